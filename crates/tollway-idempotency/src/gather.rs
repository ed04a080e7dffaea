//! Reading a request's body before it is sent.

use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::{Buf, Bytes, BytesMut};
use http::HeaderMap;
use http_body::Body;
use http_body_util::Limited;
use pin_project_lite::pin_project;
use tollway_core::BoxError;

use crate::Dialect;

pin_project! {
    /// Reads a body to its end, up to [`Dialect::MAX_BODY`].
    pub(crate) struct Gather<B> {
        #[pin]
        body: Limited<B>,
        gathered: Gathered,
    }
}

/// What was read of a body.
#[derive(Default)]
pub(crate) struct Gathered {
    /// Its data, while that came in one piece.
    first: Bytes,
    /// All of it, once there was a second piece.
    all: BytesMut,
    pub(crate) trailers: Option<HeaderMap>,
}

impl<B> Gather<B> {
    pub(crate) fn new(body: B) -> Self {
        Self {
            body: Limited::new(body, Dialect::MAX_BODY),
            gathered: Gathered::default(),
        }
    }
}

impl<B> Future for Gather<B>
where
    B: Body,
    B::Error: Into<BoxError>,
{
    type Output = Result<Gathered, BoxError>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let mut this = self.project();
        while !this.body.is_end_stream() {
            let Some(frame) = ready!(this.body.as_mut().poll_frame(cx)) else {
                break;
            };
            match frame?.into_data() {
                // For `Bytes` this is a move.
                Ok(mut data) => this.gathered.add(data.copy_to_bytes(data.remaining())),
                Err(frame) => {
                    if let Ok(more) = frame.into_trailers() {
                        let trailers = &mut this.gathered.trailers;
                        trailers.get_or_insert_default().extend(more);
                    }
                }
            }
        }
        Poll::Ready(Ok(std::mem::take(this.gathered)))
    }
}

impl Gathered {
    fn add(&mut self, data: Bytes) {
        if self.first.is_empty() {
            self.first = data;
            return;
        }
        if self.all.is_empty() {
            self.all.extend_from_slice(&self.first);
        }
        self.all.extend_from_slice(&data);
    }

    /// The data. What came in one piece isn't copied.
    pub(crate) fn data(self) -> Bytes {
        if self.all.is_empty() {
            self.first
        } else {
            self.all.freeze()
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;
    use std::convert::Infallible;

    use http::HeaderValue;
    use http::header::ETAG;
    use http_body::Frame;
    use http_body_util::{BodyExt, Full};
    use proptest::prelude::*;
    use tokio_test::{assert_ready_ok, task};

    use super::*;

    /// A body in pieces. `None` keeps its reader waiting once.
    #[derive(Clone)]
    struct Pieces(VecDeque<Option<Piece>>);

    #[derive(Clone, Debug)]
    enum Piece {
        Data(Vec<u8>),
        Trailer(u16),
    }

    impl Body for Pieces {
        type Data = Bytes;
        type Error = Infallible;

        fn poll_frame(
            mut self: Pin<&mut Self>,
            cx: &mut Context<'_>,
        ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
            let frame = match self.0.pop_front() {
                None => return Poll::Ready(None),
                Some(None) => {
                    cx.waker().wake_by_ref();
                    return Poll::Pending;
                }
                Some(Some(Piece::Data(data))) => Frame::data(data.into()),
                Some(Some(Piece::Trailer(value))) => {
                    let value = HeaderValue::from(value);
                    Frame::trailers(HeaderMap::from_iter([(ETAG, value)]))
                }
            };
            Poll::Ready(Some(Ok(frame)))
        }
    }

    #[test]
    fn one_piece_is_not_copied() {
        let data = Bytes::from(vec![7; 100]);
        let mut gather = task::spawn(Gather::new(Full::new(data.clone())));
        let gathered = assert_ready_ok!(gather.poll());
        assert_eq!(gathered.data().as_ptr(), data.as_ptr());
    }

    fn piece() -> impl Strategy<Value = Option<Piece>> {
        prop_oneof![
            4 => prop::collection::vec(any::<u8>(), 0..4).prop_map(|data| Some(Piece::Data(data))),
            1 => any::<u16>().prop_map(|value| Some(Piece::Trailer(value))),
            2 => Just(None),
        ]
    }

    proptest! {
        #[test]
        fn it_reads_what_collect_reads(pieces in prop::collection::vec(piece(), 0..8)) {
            let mut all = task::spawn(Pieces(pieces.iter().flatten().cloned().map(Some).collect()).collect());
            let all = assert_ready_ok!(all.poll());
            let mut gather = task::spawn(Gather::new(Pieces(pieces.iter().cloned().collect())));
            for _ in pieces.iter().filter(|piece| piece.is_none()) {
                prop_assert!(gather.poll().is_pending());
                prop_assert!(gather.is_woken());
            }
            let gathered = assert_ready_ok!(gather.poll());
            prop_assert_eq!(gathered.trailers.as_ref(), all.trailers());
            prop_assert_eq!(gathered.data(), all.to_bytes());
        }
    }
}
