//! Reading a response that nobody wants to its end.

use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Buf;
use http_body::Body;
use tokio::time::{Instant, Sleep, sleep};

use crate::Seed;
use crate::call::Call;
use crate::resend::Kept;

/// Reads what is left of a failed response, so that its connection can be used
/// again: up to a bound in bytes and in time, and only if it may fit.
pub(crate) struct Drain<B> {
    body: Pin<Box<B>>,
    left: usize,
    limit: Pin<Box<Sleep>>,
}

impl<S, B, R: Seed> Call<S, B, R> {
    /// Reads a failed response to its end, if that may be worth it. A deadline
    /// that came meanwhile would end the call from above, where nobody knows what
    /// was tried.
    pub(crate) fn drain<ResB: Body>(&self, body: ResB) -> Option<Drain<ResB>> {
        let settings = self.policy.settings();
        if let Kept::Resend(resend) = &self.kept
            && let Some(deadline) = resend.head.deadline()
            && deadline.remaining(Instant::now()) <= settings.drain_time
        {
            return None;
        }
        Drain::new(body, settings.drain_bytes, settings.drain_time)
    }
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

#[cfg(test)]
mod tests {
    use std::convert::Infallible;
    use std::future::poll_fn;

    use bytes::Bytes;
    use http_body::Frame;

    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    /// Frames of this length, without an end. None: it is pending for ever.
    struct Endless(Option<usize>);

    impl Body for Endless {
        type Data = Bytes;
        type Error = Infallible;

        fn poll_frame(
            self: Pin<&mut Self>,
            _: &mut Context<'_>,
        ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
            match self.0 {
                Some(len) => Poll::Ready(Some(Ok(Frame::data(vec![0; len].into())))),
                None => Poll::Pending,
            }
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_body_without_an_end_is_left_at_the_bound() {
        let start = Instant::now();
        for len in [0, 1, 100, 10_000] {
            let mut drain = Drain::new(Endless(Some(len)), 1000, SECOND).unwrap();
            poll_fn(|cx| drain.poll(cx)).await;
        }
        assert_eq!(start.elapsed(), Duration::ZERO);
    }

    #[tokio::test(start_paused = true)]
    async fn a_body_that_stalls_is_left_in_time() {
        let start = Instant::now();
        let mut drain = Drain::new(Endless(None), 1000, SECOND).unwrap();
        poll_fn(|cx| drain.poll(cx)).await;
        assert_eq!(start.elapsed(), SECOND);
    }

    #[test]
    fn a_body_known_to_be_empty_or_too_long_is_not_read() {
        let body = |len: usize| http_body_util::Full::new(Bytes::from(vec![0; len]));
        assert!(Drain::new(body(0), 1000, SECOND).is_none());
        assert!(Drain::new(body(1001), 1000, SECOND).is_none());
    }
}
