//! A request's body on its way through hyper's HTTP/2.

use std::fmt;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::task::{Context, Poll};

use http_body::{Body, Frame, SizeHint};
use pin_project_lite::pin_project;

use crate::wire::Wire;

/// Tells whether a request became a stream with a future of its own.
///
/// An error that says GOAWAY reaches two kinds of calls. Those whose stream's
/// own future ends with it: their stream is above the last that the peer
/// processed, and had no effect. And the one call that was being opened while
/// GOAWAY came: hyper asks the connection whether it is ready for a further
/// one, and fails *this* one if it isn't, although its stream may be the very
/// last that the peer processes (nginx says GOAWAY on reading the last request
/// that it takes). So without this, a payment could be made twice.
///
/// What can be seen from outside: hyper asks for the body's size before it
/// opens the stream, and spawns the stream's future after it; the body is
/// polled in between, or dropped.
#[derive(Debug)]
pub(crate) struct Handed {
    wire: Arc<Wire>,
    /// How many futures had been spawned when the size was asked for.
    before: AtomicU64,
    handed: AtomicBool,
}

impl Handed {
    pub(crate) fn new(wire: Arc<Wire>) -> Arc<Self> {
        Arc::new(Self {
            wire,
            before: AtomicU64::new(u64::MAX),
            handed: AtomicBool::new(false),
        })
    }

    /// Whether the stream has its own future for certain. False says nothing.
    pub(crate) fn is_certain(&self) -> bool {
        self.handed.load(Ordering::Acquire)
    }

    /// Ready for another call, if nobody else still has it.
    pub(crate) fn renew(mut this: Arc<Self>) -> Arc<Self> {
        match Arc::get_mut(&mut this) {
            Some(handed) => {
                *handed.before.get_mut() = u64::MAX;
                *handed.handed.get_mut() = false;
                this
            }
            // A body that is still being sent, though the answer has come.
            None => Self::new(this.wire.clone()),
        }
    }
}

pin_project! {
    /// A body that watches what becomes of it, over HTTP/2.
    pub(crate) struct Sent<B> {
        #[pin]
        body: B,
        watch: Watch,
    }
}

/// The connection's end of the watch. Apart from the body, so that taking that
/// out needs no care.
struct Watch(Arc<Handed>);

impl Drop for Watch {
    fn drop(&mut self) {
        let handed = &*self.0;
        if handed.wire.spawned.load(Ordering::Acquire) > handed.before.load(Ordering::Acquire) {
            handed.handed.store(true, Ordering::Release);
        }
    }
}

impl<B> Sent<B> {
    pub(crate) fn new(body: B, handed: Arc<Handed>) -> Self {
        Self {
            body,
            watch: Watch(handed),
        }
    }

    /// The body, which comes back unsent.
    pub(crate) fn into_inner(self) -> B {
        self.body
    }
}

impl<B: Body> Body for Sent<B> {
    type Data = B::Data;
    type Error = B::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Self::Data>, Self::Error>>> {
        let this = self.project();
        this.watch.0.handed.store(true, Ordering::Release);
        this.body.poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        let handed = &*self.watch.0;
        let before = handed.wire.spawned.load(Ordering::Acquire);
        handed.before.store(before, Ordering::Release);
        self.body.size_hint()
    }
}

impl<B> fmt::Debug for Sent<B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Sent")
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use http_body_util::{BodyExt, Full};

    use super::*;

    fn sent() -> (Arc<Wire>, Arc<Handed>, Sent<Full<Bytes>>) {
        let wire = Arc::new(Wire::default());
        let handed = Handed::new(wire.clone());
        let body = Sent::new(Full::default(), handed.clone());
        (wire, handed, body)
    }

    #[test]
    fn a_stream_that_goaway_met_while_it_was_opened_may_have_been_processed() {
        let (wire, handed, body) = sent();
        // That of the call before.
        wire.spawned.fetch_add(1, Ordering::AcqRel);
        // As hyper does it: it asks for the size, opens the stream, and gives
        // the call up.
        body.size_hint();
        drop(body);
        assert!(!handed.is_certain());
    }

    #[test]
    fn a_call_that_was_given_up_before_it_was_opened_is_not_certain_either() {
        let (wire, handed, body) = sent();
        wire.spawned.fetch_add(1, Ordering::AcqRel);
        drop(body);
        assert!(!handed.is_certain());
    }

    #[test]
    fn a_stream_with_a_future_of_its_own_is_certain_and_only_that_one() {
        let (wire, handed, body) = sent();
        body.size_hint();
        wire.spawned.fetch_add(1, Ordering::AcqRel);
        drop(body);
        assert!(handed.is_certain());
        let next = Handed::renew(handed);
        drop(Sent::new(Full::<Bytes>::default(), next.clone()));
        assert!(!next.is_certain());
    }

    #[tokio::test]
    async fn so_is_one_whose_body_was_asked_for() {
        let (_, handed, mut body) = sent();
        body.size_hint();
        assert!(body.frame().await.is_none());
        assert!(handed.is_certain());
    }
}
