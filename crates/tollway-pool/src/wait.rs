//! A call that waits for its connection.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use http::Request;
use pin_project_lite::pin_project;
use tokio::time::{Instant, Sleep, sleep_until};

use crate::arena::Id;
use crate::conn::Http;
use crate::error::{Kind, PoolError};
use crate::host::Host;
use crate::service::Shared;
use crate::state::{CheckOut, Grant};

/// How often a call asks anew, where the runtime that was to open its connection
/// ends. One that ends closes its connections one by one, and each of them leaves
/// a place for which it would have opened another. If it is the call's own runtime
/// that has ended, asking doesn't help.
const ORPHANED: u32 = 32;

pin_project! {
    /// The wait for a connection, with the request that it is for.
    pub(crate) struct Wait<B: 'static> {
        host: Arc<Host<B>>,
        // There until it has its connection.
        request: Option<Request<B>>,
        since: Instant,
        until: Instant,
        // The place in the queue, once it has asked.
        ticket: Option<Ticket<B>>,
        // How often whoever was to open its connection has gone.
        orphaned: u32,
        #[pin]
        timer: Option<Sleep>,
        // A call that waits is a handle, too: one without its pool would be refused
        // when it asks, at first or anew. Dropped last, when its place is free.
        pool: Option<Arc<Shared<B>>>,
    }
}

/// What the wait ends with.
pub(crate) struct Granted<B: 'static> {
    pub(crate) grant: Grant<Http<B>>,
    pub(crate) host: Arc<Host<B>>,
    pub(crate) request: Request<B>,
    pub(crate) waited: Duration,
}

/// A place in the queue, given up when dropped.
struct Ticket<B: 'static> {
    host: Arc<Host<B>>,
    waiter: Id,
}

impl<B: 'static> Drop for Ticket<B> {
    fn drop(&mut self) {
        self.host.cancel(self.waiter);
    }
}

impl<B: 'static> Wait<B> {
    /// Boxed: whoever has to wait can spare the time, and those who needn't
    /// would have to move it.
    #[cold]
    pub(crate) fn new(
        host: Arc<Host<B>>,
        request: Request<B>,
        since: Instant,
        until: Instant,
    ) -> Pin<Box<Self>> {
        Box::pin(Self {
            pool: host.pool.upgrade(),
            host,
            request: Some(request),
            since,
            until,
            ticket: None,
            orphaned: 0,
            timer: None,
        })
    }

    pub(crate) fn poll(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Result<Granted<B>, PoolError>> {
        let mut this = self.project();
        let grant = loop {
            let Some(ticket) = this.ticket else {
                match this.host.check_out(Instant::now()) {
                    CheckOut::Ready(grant) => break grant,
                    CheckOut::Waiting(waiter) => {
                        let host = this.host.clone();
                        *this.ticket = Some(Ticket { host, waiter });
                        continue;
                    }
                    CheckOut::Full(waiting) => {
                        return Poll::Ready(Err(this.host.error(Kind::QueueFull(waiting), None)));
                    }
                    CheckOut::Draining => {
                        return Poll::Ready(Err(this.host.error(Kind::Draining, None)));
                    }
                }
            };
            match this.host.poll_waiter(ticket.waiter, cx.waker()) {
                Poll::Ready(Some(Ok(grant))) => break grant,
                // Another call's runtime has ended; this one's may be well.
                Poll::Ready(Some(Err(failure)))
                    if failure.is_orphaned() && *this.orphaned < ORPHANED =>
                {
                    *this.orphaned += 1;
                    *this.ticket = None;
                }
                Poll::Ready(Some(Err(failure))) => {
                    return Poll::Ready(Err(this.host.error(Kind::Open(failure), None)));
                }
                // Not known: can't be, while the ticket lives. Ask anew.
                Poll::Ready(None) => *this.ticket = None,
                Poll::Pending => {
                    if this.timer.is_none() {
                        this.timer.set(Some(sleep_until(*this.until)));
                    }
                    if let Some(timer) = this.timer.as_mut().as_pin_mut() {
                        ready!(timer.poll(cx));
                    }
                    let kind = Kind::Wait(this.since.elapsed());
                    return Poll::Ready(Err(this.host.error(kind, None)));
                }
            }
        };
        // It is there: as every future, this one isn't to be polled again.
        let Some(request) = this.request.take() else {
            return Poll::Pending;
        };
        Poll::Ready(Ok(Granted {
            grant,
            host: this.host.clone(),
            request,
            waited: if this.ticket.is_some() {
                this.since.elapsed()
            } else {
                Duration::ZERO
            },
        }))
    }
}
