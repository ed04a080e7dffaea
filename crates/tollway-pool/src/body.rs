//! The body of a response, and what becomes of its connection.

use std::fmt;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use tokio::time::timeout;

use crate::arena::Id;
use crate::conn::Reading;
use crate::error::{Kind, PoolError};
use crate::failure::is_stream_reset;
use crate::host::Release;
use crate::sent::Handed;
use crate::stats::CloseReason;

/// How much of a body that was dropped unread is read on, so that its
/// connection can be used again. A new connection costs the peer and us some
/// 5 kB and two or three round trips; this much arrives in about as many.
const DRAIN_BYTES: u64 = 64 * 1024;

/// How long that may take: a few round trips, wherever the peer is.
const DRAIN_TIME: Duration = Duration::from_secs(1);

/// The body of a response that came over a pool's connection.
///
/// Read to its end, it gives an HTTP/1.1 connection back to the pool. Dropped
/// before, the rest is read in the background if that is at most 64 KiB and
/// comes within a second; else the connection is closed. Over HTTP/2, only the
/// stream ends.
///
/// If the request is still being sent when its response is over, it may go on for
/// five seconds. Then its connection is closed, over HTTP/2 once its other calls
/// are over.
pub struct PoolBody {
    /// There until it is dropped.
    body: Option<Incoming>,
    lease: Option<Lease>,
}

/// The connection under a body.
enum Lease {
    /// HTTP/1.1: nobody else's meanwhile.
    Own(Box<dyn Reading>),
    /// HTTP/2: other calls are on it too.
    Shared(Stream),
}

/// A stream of an HTTP/2 connection, until its call is over.
pub(crate) struct Stream {
    pub(crate) host: Arc<dyn Release>,
    pub(crate) id: Id,
    /// The request, if it was still being sent when the answer came.
    pub(crate) request: Option<Arc<Handed>>,
}

impl Stream {
    pub(crate) fn finish(self) {
        match self.request {
            Some(request) => request.finish(self.host, self.id),
            None => self.host.release(self.id),
        }
    }

    /// The same. Returns the host's name, for errors.
    fn end(self) -> Arc<str> {
        let name = self.host.name().clone();
        self.finish();
        name
    }

    /// Whether the answer's `body` has come to an end that isn't its own. A peer
    /// that has answered may reset the stream without an error, so as not to be
    /// sent the rest of the request (RFC 9113, 8.1). hyper takes any such reset
    /// for the end, though much may be missing.
    fn is_cut_off(body: &Incoming) -> bool {
        body.size_hint().exact() != Some(0) && !body.is_end_stream()
    }
}

impl PoolBody {
    /// A body that is complete: its connection has been given back.
    pub(crate) fn complete(body: Incoming) -> Self {
        Self {
            body: Some(body),
            lease: None,
        }
    }

    /// A body that holds its HTTP/1.1 connection until it has been read.
    pub(crate) fn own(body: Incoming, conn: Box<dyn Reading>) -> Self {
        Self {
            body: Some(body),
            lease: Some(Lease::Own(conn)),
        }
    }

    /// A body on a stream of an HTTP/2 connection.
    pub(crate) fn shared(body: Incoming, stream: Stream) -> Self {
        Self {
            body: Some(body),
            lease: Some(Lease::Shared(stream)),
        }
    }
}

impl Lease {
    fn finish(self) {
        match self {
            Self::Own(conn) => conn.read_out(),
            Self::Shared(stream) => stream.finish(),
        }
    }

    /// Returns the host's name, for errors.
    fn abandon(self, reason: CloseReason) -> Option<Arc<str>> {
        match self {
            Self::Own(conn) => conn.abandon(reason),
            Self::Shared(stream) => {
                stream.host.clone().discard(stream.id, reason);
                Some(stream.end())
            }
        }
    }
}

impl Body for PoolBody {
    type Data = Bytes;
    type Error = PoolError;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, PoolError>>> {
        let this = self.get_mut();
        let Some(body) = &mut this.body else {
            return Poll::Ready(None);
        };
        let frame = ready!(Pin::new(&mut *body).poll_frame(cx));
        Poll::Ready(match frame {
            Some(Ok(frame)) => {
                // With a known length, the last frame says that it is the
                // last, and many readers don't ask again.
                if matches!(this.lease, Some(Lease::Own(_)))
                    && body.is_end_stream()
                    && let Some(lease) = this.lease.take()
                {
                    lease.finish();
                }
                Some(Ok(frame))
            }
            Some(Err(error)) => {
                let name = match this.lease.take() {
                    // Under HTTP/1.1 it would be the transport that was a stream.
                    Some(Lease::Shared(stream)) if is_stream_reset(&error) => Some(stream.end()),
                    Some(lease) => lease.abandon(CloseReason::Error),
                    None => None,
                };
                Some(Err(PoolError::new(Kind::Body, name, Some(error.into()))))
            }
            None => match this.lease.take() {
                Some(Lease::Shared(stream)) if Stream::is_cut_off(body) => {
                    Some(Err(PoolError::new(Kind::Cut, Some(stream.end()), None)))
                }
                Some(lease) => {
                    lease.finish();
                    None
                }
                None => None,
            },
        })
    }

    fn is_end_stream(&self) -> bool {
        self.body.as_ref().is_none_or(Incoming::is_end_stream)
    }

    fn size_hint(&self) -> SizeHint {
        self.body
            .as_ref()
            .map_or_else(SizeHint::default, Incoming::size_hint)
    }
}

impl Drop for PoolBody {
    fn drop(&mut self) {
        let (Some(lease), Some(body)) = (self.lease.take(), self.body.take()) else {
            return;
        };
        if matches!(lease, Lease::Shared(_)) {
            // Over HTTP/2, hyper resets the stream: first that, then there is
            // room for another.
            drop(body);
            lease.finish();
        } else if body.size_hint().lower() <= DRAIN_BYTES
            && let Ok(runtime) = tokio::runtime::Handle::try_current()
        {
            runtime.spawn(drain(body, Draining(Some(lease))));
        } else {
            lease.abandon(CloseReason::Unread);
        }
    }
}

/// The connection under a body that is read in the background: closed, unless that
/// comes to its end. The runtime may end first, without the connection's.
struct Draining(Option<Lease>);

impl Drop for Draining {
    fn drop(&mut self) {
        if let Some(lease) = self.0.take() {
            lease.abandon(CloseReason::Unread);
        }
    }
}

/// Reads what is left of a body, within the bounds, and lets go of its
/// connection accordingly.
async fn drain(mut body: Incoming, mut draining: Draining) {
    let read = async {
        let mut left = DRAIN_BYTES;
        while let Some(frame) = body.frame().await {
            let len = match frame {
                Ok(frame) => frame.data_ref().map_or(0, Bytes::len),
                Err(_) => return false,
            };
            match left.checked_sub(len as u64) {
                Some(rest) => left = rest,
                None => return false,
            }
        }
        true
    };
    if let Ok(true) = timeout(DRAIN_TIME, read).await
        && let Some(lease) = draining.0.take()
    {
        lease.finish();
    }
}

impl fmt::Debug for PoolBody {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PoolBody")
            .field("body", &self.body)
            .finish_non_exhaustive()
    }
}
