//! One call: get a connection, send, await the head of the response.

use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use http::header::UPGRADE;
use http::{Method, Request, Response};
use http_body::Body;
use pin_project_lite::pin_project;
use tokio::time::{Instant, Sleep, sleep_until};
use tollway_core::{BoxError, Deadline, Phase};

use crate::arena::Id;
use crate::body::PoolBody;
use crate::conn::Http;
use crate::error::{Kind, PoolError};
use crate::host::Host;
use crate::lease::{Broken, Lease};
use crate::state::{CheckOut, Grant};

/// How many dying connections one request may meet. Each of them is gone
/// after that, so a pool full of dead ones is got through; a peer that closes
/// every new connection isn't tried for ever.
const RESENDS: u32 = 32;

/// How many of those may be new connections.
const FRESH_RESENDS: u32 = 2;

pin_project! {
    /// A call's response, to come.
    ///
    /// Dropped while it waits, it leaves the queue, and a connection that is
    /// being opened on its behalf joins the pool. Dropped after the request
    /// was sent, it closes an HTTP/1.1 connection, since the response would
    /// still come over it; over HTTP/2 it resets its stream, and retires the
    /// connection too if nothing at all came over it meanwhile.
    pub struct ResponseFuture<B: 'static> {
        stage: Stage<B>,
        // The request, unless hyper has it.
        request: Option<Request<B>>,
        #[pin]
        timer: Option<Sleep>,
        acquire_timeout: Duration,
        // How often the request met a dying connection, and how many of those
        // were new.
        resends: u32,
        fresh_resends: u32,
    }
}

enum Stage<B: 'static> {
    /// Refused before anything was done.
    Refused(PoolError),
    /// A connection is asked for.
    CheckOut(Arc<Host<B>>),
    /// It will come.
    Waiting(Ticket<B>),
    /// The request is hyper's, until it has an answer.
    Sent(Lease<B>),
    Done,
}

/// A place in the queue, given up when dropped.
struct Ticket<B: 'static> {
    host: Arc<Host<B>>,
    waiter: Id,
    since: Instant,
    until: Instant,
}

impl<B: 'static> Drop for Ticket<B> {
    fn drop(&mut self) {
        self.host.cancel(self.waiter);
    }
}

impl<B> ResponseFuture<B> {
    pub(crate) fn new(host: Arc<Host<B>>, request: Request<B>, acquire_timeout: Duration) -> Self {
        let stage = match unsupported(&request) {
            Some(what) => {
                let name = Some(host.name.clone());
                Stage::Refused(PoolError::new(Kind::Unsupported(what), name, None))
            }
            None => Stage::CheckOut(host),
        };
        Self {
            stage,
            request: Some(request),
            timer: None,
            acquire_timeout,
            resends: 0,
            fresh_resends: 0,
        }
    }

    pub(crate) fn refused(error: PoolError) -> Self {
        Self {
            stage: Stage::Refused(error),
            request: None,
            timer: None,
            acquire_timeout: Duration::ZERO,
            resends: 0,
            fresh_resends: 0,
        }
    }
}

/// What would turn the connection into something else than a pool's.
fn unsupported<B>(request: &Request<B>) -> Option<&'static str> {
    if request.method() == Method::CONNECT {
        Some("a pool opens no tunnels with CONNECT: give it a connector that does")
    } else if request.headers().contains_key(UPGRADE) {
        Some("a pool can't upgrade its connections to another protocol: remove the upgrade header")
    } else {
        None
    }
}

impl<B> Future for ResponseFuture<B>
where
    B: Body + Send + Unpin + 'static,
    B::Data: Send,
    B::Error: Into<BoxError>,
{
    type Output = Result<Response<PoolBody>, PoolError>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let mut this = self.project();
        loop {
            match this.stage {
                // CheckOut -> Sent, where a connection is free.
                // CheckOut -> Waiting, where one will be.
                Stage::CheckOut(host) => {
                    let now = Instant::now();
                    let until = deadline(this.request.as_ref(), now, *this.acquire_timeout);
                    if until <= now {
                        let kind = Kind::Wait(Duration::ZERO);
                        return Poll::Ready(Err(error(kind, host, None)));
                    }
                    let host = host.clone();
                    *this.stage = match host.check_out(now) {
                        CheckOut::Ready(grant) => {
                            Stage::sent(grant, host, this.request, Duration::ZERO)
                        }
                        CheckOut::Waiting(waiter) => Stage::Waiting(Ticket {
                            host,
                            waiter,
                            since: now,
                            until,
                        }),
                        CheckOut::Full(waiting) => {
                            let kind = Kind::QueueFull(waiting);
                            return Poll::Ready(Err(error(kind, &host, None)));
                        }
                        CheckOut::Draining => {
                            return Poll::Ready(Err(error(Kind::Draining, &host, None)));
                        }
                    };
                }
                // Waiting -> Sent, once served.
                Stage::Waiting(ticket) => {
                    match ticket.host.poll_waiter(ticket.waiter, cx.waker()) {
                        Poll::Ready(Some(Ok(grant))) => {
                            this.timer.set(None);
                            let (host, waited) = (ticket.host.clone(), ticket.since.elapsed());
                            *this.stage = Stage::sent(grant, host, this.request, waited);
                        }
                        Poll::Ready(Some(Err(failure))) => {
                            let kind = Kind::Open(failure);
                            return Poll::Ready(Err(error(kind, &ticket.host, None)));
                        }
                        // Not known: can't be, while the ticket lives. Ask anew.
                        Poll::Ready(None) => *this.stage = Stage::CheckOut(ticket.host.clone()),
                        Poll::Pending => {
                            if this.timer.is_none() {
                                this.timer.set(Some(sleep_until(ticket.until)));
                            }
                            if let Some(timer) = this.timer.as_mut().as_pin_mut()
                                && timer.poll(cx).is_ready()
                            {
                                let kind = Kind::Wait(ticket.since.elapsed());
                                return Poll::Ready(Err(error(kind, &ticket.host, None)));
                            }
                            // A timeout above that strikes now is told that
                            // nothing was written.
                            return Phase::Connect.pending();
                        }
                    }
                }
                // Sent -> Done, with an answer.
                // Sent -> CheckOut, where the request came back unsent.
                Stage::Sent(lease) => {
                    let failed = match ready!(lease.poll(cx)) {
                        Ok(response) => return Poll::Ready(Ok(lease.answered(response))),
                        Err(failed) => failed,
                    };
                    let reused = lease.reused;
                    let host = lease.host.clone();
                    let cause = match lease.broken(failed) {
                        Broken::Sent(error) => return Poll::Ready(Err(error)),
                        Broken::Unsent(request, cause) => {
                            *this.request = Some(request);
                            cause
                        }
                    };
                    *this.resends += 1;
                    *this.fresh_resends += u32::from(!reused);
                    if *this.resends > RESENDS || *this.fresh_resends > FRESH_RESENDS {
                        let cause = Some(cause.into());
                        return Poll::Ready(Err(error(Kind::Dying, &host, cause)));
                    }
                    host.with(|state| state.counters.resent += 1);
                    *this.stage = Stage::CheckOut(host);
                }
                Stage::Refused(_) | Stage::Done => {
                    return match std::mem::replace(this.stage, Stage::Done) {
                        Stage::Refused(error) => Poll::Ready(Err(error)),
                        // As every future, it isn't to be polled again.
                        _ => Poll::Pending,
                    };
                }
            }
        }
    }
}

/// When the wait for a connection has to end.
fn deadline<B>(request: Option<&Request<B>>, now: Instant, acquire_timeout: Duration) -> Instant {
    let until = now + acquire_timeout;
    match request.and_then(|request| Deadline::of(request.extensions())) {
        Some(deadline) => until.min(deadline.instant().into()),
        None => until,
    }
}

impl<B> Stage<B>
where
    B: Body + Send + Unpin + 'static,
{
    /// The request is handed to hyper. It is there, until it has been.
    fn sent(
        grant: Grant<Http<B>>,
        host: Arc<Host<B>>,
        request: &mut Option<Request<B>>,
        waited: Duration,
    ) -> Self {
        match request.take() {
            Some(request) => Self::Sent(Lease::send(grant, host, request, waited)),
            None => Self::Done,
        }
    }
}

fn error<B>(kind: Kind, host: &Host<B>, cause: Option<BoxError>) -> PoolError {
    PoolError::new(kind, Some(host.name.clone()), cause)
}

impl<B> fmt::Debug for ResponseFuture<B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let stage = match &self.stage {
            Stage::Refused(_) => "refused",
            Stage::CheckOut(_) => "not begun",
            Stage::Waiting(_) => "waiting",
            Stage::Sent(_) => "sent",
            Stage::Done => "done",
        };
        f.debug_struct("ResponseFuture")
            .field("stage", &stage)
            .finish_non_exhaustive()
    }
}
