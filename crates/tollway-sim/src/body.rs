//! Bodies of answers, the broken ones included.

use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use tokio::time::{Sleep, sleep};

use crate::connection::Busy;

/// How a body reaches the client.
#[derive(Debug)]
enum Delivery {
    Whole,
    /// The rest is held back, and the stream breaks off.
    Half,
    /// In this many pieces, with a pause before each.
    Slow {
        pieces: u32,
        pause: Duration,
        sleep: Pin<Box<Sleep>>,
    },
}

/// The body of one answer. While it lives, its connection isn't idle.
#[derive(Debug)]
pub(crate) struct SimBody {
    rest: Bytes,
    delivery: Delivery,
    sent_half: bool,
    _busy: Busy,
}

const PIECES: u32 = 10;

impl SimBody {
    fn new(rest: Bytes, delivery: Delivery, busy: Busy) -> Self {
        Self {
            rest,
            delivery,
            sent_half: false,
            _busy: busy,
        }
    }

    pub(crate) fn whole(body: Bytes, busy: Busy) -> Self {
        Self::new(body, Delivery::Whole, busy)
    }

    pub(crate) fn half(body: &Bytes, busy: Busy) -> Self {
        let half = body.slice(..body.len() / 2);
        Self::new(half, Delivery::Half, busy)
    }

    pub(crate) fn slow(body: Bytes, over: Duration, busy: Busy) -> Self {
        let pause = over / PIECES;
        let delivery = Delivery::Slow {
            pieces: PIECES,
            pause,
            sleep: Box::pin(sleep(pause)),
        };
        Self::new(body, delivery, busy)
    }
}

impl Body for SimBody {
    type Data = Bytes;
    type Error = BrokenOff;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BrokenOff>>> {
        let this = self.get_mut();
        match &mut this.delivery {
            Delivery::Half if this.rest.is_empty() && this.sent_half => {
                Poll::Ready(Some(Err(BrokenOff)))
            }
            Delivery::Half if this.rest.is_empty() => {
                // Between the half and the break the connection gets a turn to flush, or the
                // client would see neither head nor half.
                this.sent_half = true;
                cx.waker().wake_by_ref();
                Poll::Pending
            }
            _ if this.rest.is_empty() => Poll::Ready(None),
            Delivery::Whole | Delivery::Half => {
                let data = std::mem::take(&mut this.rest);
                Poll::Ready(Some(Ok(Frame::data(data))))
            }
            Delivery::Slow {
                pieces,
                pause,
                sleep: timer,
            } => {
                ready!(timer.as_mut().poll(cx));
                timer.set(sleep(*pause));
                let left = usize::try_from(*pieces).unwrap_or(1).max(1);
                *pieces = pieces.saturating_sub(1);
                let piece = this.rest.split_to(this.rest.len().div_ceil(left));
                Poll::Ready(Some(Ok(Frame::data(piece))))
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        self.rest.is_empty() && !matches!(self.delivery, Delivery::Half)
    }

    fn size_hint(&self) -> SizeHint {
        match self.delivery {
            Delivery::Whole => SizeHint::with_exact(self.rest.len() as u64),
            // The head promises the length.
            Delivery::Half | Delivery::Slow { .. } => SizeHint::default(),
        }
    }
}

/// The gateway broke off its answer, as it was told to.
#[derive(Clone, Copy, Debug)]
pub(crate) struct BrokenOff;

impl fmt::Display for BrokenOff {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the answer was broken off on purpose")
    }
}

impl std::error::Error for BrokenOff {}
