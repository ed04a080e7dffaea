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
    /// The rest is held back, and once the half is on its way the stream breaks off.
    Half {
        /// How often the connection was written to before.
        writes: u64,
        pause: Pin<Box<Sleep>>,
    },
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
    busy: Busy,
}

const PIECES: u32 = 10;

/// Between the half and the break the connection is given this long to write, again and again
/// until it has, or the client would see neither head nor half: on HTTP/2 another task writes,
/// and a reset takes along what waits to be written.
const WRITING: Duration = Duration::from_millis(2);

impl SimBody {
    fn new(rest: Bytes, delivery: Delivery, busy: Busy) -> Self {
        Self {
            rest,
            delivery,
            busy,
        }
    }

    pub(crate) fn whole(body: Bytes, busy: Busy) -> Self {
        Self::new(body, Delivery::Whole, busy)
    }

    pub(crate) fn half(body: &Bytes, busy: Busy) -> Self {
        let half = body.slice(..body.len() / 2);
        let delivery = Delivery::Half {
            writes: busy.writes(),
            pause: Box::pin(sleep(WRITING)),
        };
        Self::new(half, delivery, busy)
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
            Delivery::Half { writes, pause } if this.rest.is_empty() => loop {
                ready!(pause.as_mut().poll(cx));
                if this.busy.writes() != *writes {
                    return Poll::Ready(Some(Err(BrokenOff)));
                }
                pause.set(sleep(WRITING));
            },
            _ if this.rest.is_empty() => Poll::Ready(None),
            Delivery::Half { writes, pause } => {
                *writes = this.busy.writes();
                pause.set(sleep(WRITING));
                let data = std::mem::take(&mut this.rest);
                Poll::Ready(Some(Ok(Frame::data(data))))
            }
            Delivery::Whole => {
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
        self.rest.is_empty() && !matches!(self.delivery, Delivery::Half { .. })
    }

    fn size_hint(&self) -> SizeHint {
        match self.delivery {
            Delivery::Whole => SizeHint::with_exact(self.rest.len() as u64),
            // The head promises the length.
            Delivery::Half { .. } | Delivery::Slow { .. } => SizeHint::default(),
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
