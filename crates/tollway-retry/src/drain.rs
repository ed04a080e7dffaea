//! Reading a response that nobody wants to its end.

use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Buf;
use http_body::Body;
use tokio::time::{Sleep, sleep};

/// Reads what is left of a failed response, so that its connection can be used
/// again: up to a bound in bytes and in time, and only if it may fit.
pub(crate) struct Drain<B> {
    body: Pin<Box<B>>,
    left: usize,
    limit: Pin<Box<Sleep>>,
}

impl<B: Body> Drain<B> {
    /// `None` where the body is at its end already, or known to exceed `bytes`.
    pub(crate) fn new(body: B, bytes: usize, time: Duration) -> Option<Self> {
        let fits = body.size_hint().lower() <= bytes as u64;
        (fits && !body.is_end_stream()).then(|| Self {
            body: Box::pin(body),
            left: bytes,
            limit: Box::pin(sleep(time)),
        })
    }

    /// Ready when there is nothing more to read, or no more time for it.
    pub(crate) fn poll(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        loop {
            let frame = match self.body.as_mut().poll_frame(cx) {
                Poll::Ready(Some(Ok(frame))) => frame,
                Poll::Ready(Some(Err(_)) | None) => return Poll::Ready(()),
                Poll::Pending => return self.limit.as_mut().poll(cx),
            };
            // An empty frame counts as well, or they could come for ever.
            let len = frame.data_ref().map_or(0, Buf::remaining).max(1);
            match self.left.checked_sub(len) {
                Some(left) => self.left = left,
                None => return Poll::Ready(()),
            }
        }
    }
}
