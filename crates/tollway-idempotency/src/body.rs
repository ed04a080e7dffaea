//! A request body, read before it is sent or not.

use std::fmt;
use std::mem;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::{Buf, Bytes};
use http::HeaderMap;
use http_body::{Body, Frame, SizeHint};
use pin_project_lite::pin_project;

pin_project! {
    /// The request body that the inner service gets: the caller's own, or what
    /// was read of it, byte for byte, with its trailers.
    pub struct KeyBody<B> {
        #[pin]
        inner: Inner<B>,
    }
}

pin_project! {
    #[project = InnerProj]
    enum Inner<B> {
        Untouched { #[pin] body: B },
        // All that there was, or the end of it.
        Whole { data: Bytes },
        // Boxed, since every layer below moves the request.
        Read { read: Box<Read> },
    }
}

/// What is left to send of a body that was read, and has trailers.
struct Read {
    data: Option<Bytes>,
    trailers: Option<HeaderMap>,
    /// Whether it tells its length.
    sized: bool,
}

impl Read {
    fn size_hint(&self) -> SizeHint {
        let len = self.data.as_ref().map_or(0, |data| data.len() as u64);
        if self.sized {
            return SizeHint::with_exact(len);
        }
        let mut hint = SizeHint::new();
        hint.set_lower(len);
        hint
    }
}

impl<B> KeyBody<B> {
    #[inline]
    pub(crate) fn untouched(body: B) -> Self {
        Self {
            inner: Inner::Untouched { body },
        }
    }

    /// `sized` says whether the caller's body told its length. What was read has
    /// one in any case, but HTTP/1.1 sends trailers only behind a body without.
    pub(crate) fn read(data: Bytes, trailers: Option<HeaderMap>, sized: bool) -> Self {
        let inner = if trailers.is_none() {
            Inner::Whole { data }
        } else {
            let read = Box::new(Read {
                data: Some(data).filter(|data| !data.is_empty()),
                sized,
                trailers,
            });
            Inner::Read { read }
        };
        Self { inner }
    }
}

impl<B> KeyBody<B> {
    /// What was read of the body, if it was read and not yet sent.
    pub(crate) fn data(&self) -> Option<&Bytes> {
        match &self.inner {
            Inner::Untouched { .. } => None,
            Inner::Whole { data } => Some(data),
            Inner::Read { read } => read.data.as_ref(),
        }
    }
}

impl<B> fmt::Debug for KeyBody<B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // What is in it may be anybody's account number.
        f.debug_tuple("KeyBody")
            .field(match &self.inner {
                Inner::Untouched { .. } => &"untouched",
                Inner::Whole { .. } | Inner::Read { .. } => &"read",
            })
            .finish()
    }
}

impl<B: Body> Body for KeyBody<B> {
    type Data = Bytes;
    type Error = B::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, B::Error>>> {
        match self.project().inner.project() {
            InnerProj::Untouched { body } => {
                let frame = ready!(body.poll_frame(cx));
                // For `Bytes` this is a move.
                let to_bytes = |mut data: B::Data| data.copy_to_bytes(data.remaining());
                Poll::Ready(frame.map(|frame| frame.map(|frame| frame.map_data(to_bytes))))
            }
            InnerProj::Whole { data } => {
                let data = mem::take(data);
                let frame = Some(data).filter(|data| !data.is_empty());
                Poll::Ready(frame.map(|data| Ok(Frame::data(data))))
            }
            InnerProj::Read { read } => {
                let data = read.data.take().map(Frame::data);
                let frame = data.or_else(|| read.trailers.take().map(Frame::trailers));
                Poll::Ready(frame.map(Ok))
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        match &self.inner {
            Inner::Untouched { body } => body.is_end_stream(),
            Inner::Whole { data } => data.is_empty(),
            Inner::Read { read } => read.data.is_none() && read.trailers.is_none(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.inner {
            Inner::Untouched { body } => body.size_hint(),
            Inner::Whole { data } => SizeHint::with_exact(data.len() as u64),
            Inner::Read { read } => read.size_hint(),
        }
    }
}

#[cfg(test)]
mod tests {
    use http_body_util::{BodyExt, Full};

    use super::*;

    /// HTTP/1.1 sends nothing of a body that is at its end.
    #[tokio::test]
    async fn a_body_that_was_read_ends_with_its_last_frame() {
        let trailers = HeaderMap::from_iter([(http::header::ETAG, "1".parse().expect("a value"))]);
        for (data, trailers) in [
            ("{}", None),
            ("{}", Some(trailers.clone())),
            ("", Some(trailers)),
            ("", None),
        ] {
            let mut frames = usize::from(!data.is_empty()) + usize::from(trailers.is_some());
            let sized = trailers.is_none();
            let mut body = KeyBody::<Full<Bytes>>::read(data.into(), trailers, false);
            let len = data.len() as u64;
            assert_eq!(body.size_hint().exact(), sized.then_some(len));
            assert_eq!(body.size_hint().lower(), len);
            while !body.is_end_stream() {
                assert!(matches!(body.frame().await, Some(Ok(_))));
                frames -= 1;
            }
            assert_eq!(frames, 0);
            assert!(body.frame().await.is_none());
            assert_eq!(body.size_hint().lower(), 0);
        }
    }
}
