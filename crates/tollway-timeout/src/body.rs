//! A response body that ends in time.

use std::pin::Pin;
use std::task::{Context, Poll};

use http_body::{Body, Frame, SizeHint};
use pin_project_lite::pin_project;
use tollway_core::{BoxError, Phase};

use crate::TimeoutError;
use crate::error::Limit;
use crate::timer::{Wait, Waiting};

pin_project! {
    /// A response body that ends with a [`TimeoutError`] when time runs out:
    /// at the call's deadline, or when nothing has come for too long.
    ///
    /// Data that is there is handed on, whatever the time; only a wait can run
    /// out. The time that the reader takes between two reads is not counted
    /// as a pause. When time runs out, the inner body is dropped at once, and
    /// its connection with it.
    #[derive(Debug)]
    pub struct TimeoutBody<B> {
        #[pin]
        inner: Option<B>,
        wait: Wait,
        // Boxed: most bodies are there at once, and every layer above moves
        // the response.
        waiting: Option<Box<Waiting>>,
    }
}

impl<B> TimeoutBody<B> {
    #[inline]
    pub(crate) fn new(inner: B, wait: Wait) -> Self {
        Self {
            inner: Some(inner),
            wait,
            waiting: None,
        }
    }

    /// The body within, or `None` once time has run out.
    #[must_use]
    pub fn get_ref(&self) -> Option<&B> {
        self.inner.as_ref()
    }
}

impl<B> Body for TimeoutBody<B>
where
    B: Body,
    B::Error: Into<BoxError>,
{
    type Data = B::Data;
    type Error = BoxError;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<B::Data>, BoxError>>> {
        let mut this = self.project();
        let Some(inner) = this.inner.as_mut().as_pin_mut() else {
            return Poll::Ready(None);
        };
        match inner.poll_frame(cx) {
            Poll::Ready(frame) => {
                if let Some(waiting) = this.waiting {
                    waiting.rewind();
                }
                Poll::Ready(frame.map(|frame| frame.map_err(Into::into)))
            }
            Poll::Pending => {
                let new = || Box::new(Waiting::new(None));
                let ran_out = match this.wait {
                    Wait::Endless => Poll::Pending,
                    wait => {
                        let waiting = this.waiting.get_or_insert_with(new);
                        waiting.poll(wait, Limit::BodyPause, cx)
                    }
                };
                match ran_out {
                    Poll::Pending => Phase::Body.pending(),
                    Poll::Ready(ran_out) => {
                        this.inner.set(None);
                        let error = TimeoutError::of_body(ran_out);
                        Poll::Ready(Some(Err(error.into())))
                    }
                }
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        self.inner.as_ref().is_none_or(Body::is_end_stream)
    }

    fn size_hint(&self) -> SizeHint {
        match &self.inner {
            Some(inner) => inner.size_hint(),
            None => SizeHint::with_exact(0),
        }
    }
}
