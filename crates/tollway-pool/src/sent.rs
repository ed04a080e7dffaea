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
    /// How many futures had been spawned when the size was asked for.
    before: AtomicU64,
    handed: AtomicBool,
}

impl Handed {
    /// Whether the stream has its own future for certain. False says nothing.
    pub(crate) fn is_certain(&self) -> bool {
        self.handed.load(Ordering::Acquire)
    }

    /// Ready for another call, if nobody else still has it.
    pub(crate) fn renew(mut this: Arc<Self>) -> Arc<Self> {
        match Arc::get_mut(&mut this) {
            Some(handed) => {
                *handed = Self::default();
                this
            }
            // A body that is still being sent, though the answer has come.
            None => Arc::default(),
        }
    }
}

impl Default for Handed {
    fn default() -> Self {
        Self {
            before: AtomicU64::new(u64::MAX),
            handed: AtomicBool::new(false),
        }
    }
}

/// The two ends of the watch: the call's and the connection's.
#[derive(Debug)]
pub(crate) struct Watch {
    pub(crate) handed: Arc<Handed>,
    pub(crate) wire: Arc<Wire>,
}

pin_project! {
    /// A body that watches what becomes of it, over HTTP/2.
    pub(crate) struct Sent<B> {
        #[pin]
        body: B,
        watch: Watching,
    }
}

/// Apart from the body, so that taking that out needs no care.
struct Watching(Option<Watch>);

impl Drop for Watching {
    fn drop(&mut self) {
        if let Some(Watch { handed, wire }) = &self.0
            && wire.spawned.load(Ordering::Acquire) > handed.before.load(Ordering::Acquire)
        {
            handed.handed.store(true, Ordering::Release);
        }
    }
}

impl<B> Sent<B> {
    pub(crate) fn new(body: B, watch: Option<Watch>) -> Self {
        Self {
            body,
            watch: Watching(watch),
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
        if let Some(watch) = &this.watch.0 {
            watch.handed.handed.store(true, Ordering::Release);
        }
        this.body.poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        if let Some(Watch { handed, wire }) = &self.watch.0 {
            let before = wire.spawned.load(Ordering::Acquire);
            handed.before.store(before, Ordering::Release);
        }
        self.body.size_hint()
    }
}

impl<B> fmt::Debug for Sent<B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Sent")
    }
}
