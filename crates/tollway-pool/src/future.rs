//! One call: get a connection, send, await the head of the response.

use std::fmt;
use std::future::Future;
use std::mem;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use http::header::{CONTENT_LENGTH, UPGRADE};
use http::{HeaderValue, Method, Request, Response};
use http_body::Body;
use tokio::time::Instant;
use tollway_core::{BoxError, Deadline, Phase, recent};

use crate::body::PoolBody;
use crate::error::{Kind, PoolError};
use crate::host::Host;
use crate::lease::{Failed, Lease, Unsent};
use crate::wait::Wait;

/// How many dying connections one request may meet. Each of them is gone
/// after that, so a pool full of dead ones is got through; a peer that closes
/// every new connection isn't tried for ever.
const RESENDS: u32 = 32;

/// How many of those may be new connections.
const FRESH_RESENDS: u32 = 2;

/// A call's response, to come.
///
/// Dropped while it waits, it leaves the queue, and a connection that is being
/// opened on its behalf joins the pool. Dropped after the request was sent, it
/// closes an HTTP/1.1 connection, since the response would still come over it;
/// over HTTP/2 it resets its stream, and retires the connection too if nothing
/// at all came over it meanwhile, for at least as long as it took to open it.
pub struct PoolFuture<B: 'static> {
    stage: Stage<B>,
    /// How often the request met a dying connection, and how many of those were
    /// new.
    resends: u32,
    fresh_resends: u32,
}

enum Stage<B: 'static> {
    /// Refused before anything was done.
    Refused(PoolError),
    /// No connection was free.
    Waiting(Pin<Box<Wait<B>>>),
    /// The request is hyper's, until it has an answer.
    Sent(Lease<B>),
    Done,
}

impl<B> PoolFuture<B>
where
    B: Body + Send + Unpin + 'static,
    B::Error: Into<BoxError>,
{
    #[inline]
    pub(crate) fn new(host: Arc<Host<B>>, request: Request<B>) -> Self {
        let stage = match unsupported(&request) {
            Some(what) => Stage::Refused(host.error(Kind::Unsupported(what), None)),
            None => Stage::begin(host, request),
        };
        Self::at(stage)
    }

    pub(crate) fn refused(error: PoolError) -> Self {
        Self::at(Stage::Refused(error))
    }

    #[inline]
    fn at(stage: Stage<B>) -> Self {
        Self {
            stage,
            resends: 0,
            fresh_resends: 0,
        }
    }
}

/// What would turn the connection into something else than a pool's, or be half a
/// request.
fn unsupported<B: Body>(request: &Request<B>) -> Option<&'static str> {
    if request.method() == Method::CONNECT {
        return Some("a pool opens no tunnels with CONNECT: give it a connector that does");
    }
    // Two look-ups cost more than the few headers that there are.
    for (name, value) in request.headers() {
        if *name == UPGRADE {
            return Some(
                "a pool can't upgrade its connections to another protocol: remove the upgrade \
                 header",
            );
        }
        if *name == CONTENT_LENGTH && !is_size_of(value, request.body()) {
            return Some("the request's content-length isn't its body's size: remove the header");
        }
    }
    None
}

/// hyper takes the caller's word for it over HTTP/1.1, cuts the body or has the
/// peer wait for more.
#[cold]
fn is_size_of<B: Body>(stated: &HeaderValue, body: &B) -> bool {
    let stated = stated.to_str().ok().and_then(|text| text.parse().ok());
    let size = body.size_hint();
    stated.is_some_and(|stated| {
        size.lower() <= stated && size.upper().is_none_or(|upper| stated <= upper)
    })
}

impl<B> Stage<B>
where
    B: Body + Send + Unpin + 'static,
    B::Error: Into<BoxError>,
{
    /// A free connection takes the request at once. Where none is, the first
    /// poll asks for one: it may have to be opened, which takes a runtime.
    #[inline]
    fn begin(host: Arc<Host<B>>, request: Request<B>) -> Self {
        let now = Instant::from_std(recent(|| Instant::now().into_std()));
        let mut until = now + host.acquire_timeout;
        // Asked here, while the layer that holds it calls or polls.
        if let Some(deadline) = Deadline::of(request.extensions()) {
            until = until.min(deadline.instant().into());
        }
        if until <= now {
            return Self::Refused(host.error(Kind::Wait(Duration::ZERO), None));
        }
        match host.take_free(now) {
            Some(grant) => Self::Sent(Lease::send(grant, host, request, Duration::ZERO, now)),
            None => Self::Waiting(Wait::new(host, request, now, until)),
        }
    }
}

impl<B> PoolFuture<B>
where
    B: Body + Send + Unpin + 'static,
    B::Data: Send,
    B::Error: Into<BoxError>,
{
    /// The request has failed. It begins anew, if it came back unsent.
    #[cold]
    fn failed(&mut self, failed: Failed<B>) -> Result<(), PoolError> {
        let Stage::Sent(lease) = mem::replace(&mut self.stage, Stage::Done) else {
            return Ok(());
        };
        let Some(unsent) = lease.broken(failed).transpose()? else {
            return Ok(());
        };
        self.resends += 1;
        self.fresh_resends += u32::from(!unsent.reused);
        let Unsent {
            request,
            cause,
            host,
            ..
        } = unsent;
        if self.resends > RESENDS || self.fresh_resends > FRESH_RESENDS {
            return Err(host.error(Kind::Dying, Some(cause.into())));
        }
        host.with(|state| state.counters.resent += 1);
        self.stage = Stage::begin(host, request);
        Ok(())
    }
}

impl<B> Future for PoolFuture<B>
where
    B: Body + Send + Unpin + 'static,
    B::Data: Send,
    B::Error: Into<BoxError>,
{
    type Output = Result<Response<PoolBody>, PoolError>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.get_mut();
        loop {
            match &mut this.stage {
                // Sent -> Done, with an answer.
                // Sent -> Sent or Waiting, where the request came back unsent.
                Stage::Sent(lease) => match ready!(lease.poll(cx)) {
                    Ok(response) => return Poll::Ready(Ok(lease.answered(response))),
                    Err(failed) => this.failed(*failed)?,
                },
                // Waiting -> Sent, once served.
                // Waiting -> Done, once in vain. It is let go of, since its place in the
                // queue would be served as long as whoever polls this keeps it.
                Stage::Waiting(wait) => match wait.as_mut().poll(cx) {
                    Poll::Ready(Ok(granted)) => this.stage = Stage::Sent(Lease::granted(granted)),
                    Poll::Ready(Err(error)) => {
                        this.stage = Stage::Done;
                        return Poll::Ready(Err(error));
                    }
                    // A timeout above that strikes now is told that nothing was
                    // written.
                    Poll::Pending => return Phase::Connect.pending(),
                },
                Stage::Refused(_) | Stage::Done => {
                    return match mem::replace(&mut this.stage, Stage::Done) {
                        Stage::Refused(error) => Poll::Ready(Err(error)),
                        // As every future, it isn't to be polled again.
                        _ => Poll::Pending,
                    };
                }
            }
        }
    }
}

impl<B> fmt::Debug for PoolFuture<B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let stage = match &self.stage {
            Stage::Refused(_) => "refused",
            Stage::Waiting(_) => "waiting",
            Stage::Sent(_) => "sent",
            Stage::Done => "done",
        };
        f.debug_struct("PoolFuture")
            .field("stage", &stage)
            .finish_non_exhaustive()
    }
}
