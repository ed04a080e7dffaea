//! Bodies that come as it was drawn.

use std::collections::VecDeque;
use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use rand::RngExt;
use rand::rngs::StdRng;
use tokio::sync::Notify;
use tokio::time::{Sleep, sleep};
use tollway_core::BoxError;

use super::{ms, one_of};

/// So many bytes, which are nobody else's.
pub fn pattern(call: usize, len: usize) -> Vec<u8> {
    let from = (0..=250).cycle().skip(call * 31 % 251);
    from.take(len).collect()
}

/// The frames of a body, and how long each takes to come.
#[derive(Default)]
pub struct Script {
    frames: VecDeque<(u64, Bytes)>,
    len: usize,
    /// Ends with an error where the last of them is due.
    fails: bool,
    sized: bool,
    waiting: Option<Pin<Box<Sleep>>>,
    /// Told when it is over, read or not.
    tells: Option<Arc<Notify>>,
}

impl Drop for Script {
    fn drop(&mut self) {
        if let Some(tells) = &self.tells {
            tells.notify_one();
        }
    }
}

impl Script {
    pub fn draw(call: usize, rng: &mut StdRng) -> Self {
        let len = one_of(rng, &[0, 1, 100, 3000, 70_000, 200_000]);
        let size = one_of(rng, &[1000, 16_000, 1 << 20]).max(len / 20);
        let waits = one_of(rng, &[&[0][..], &[0, 0, 10, 300], &[0, 4000]]);
        let whole = Bytes::from(pattern(call, len));
        let mut frames = VecDeque::new();
        for from in (0..len).step_by(size) {
            let to = len.min(from + size);
            frames.push_back((one_of(rng, waits), whole.slice(from..to)));
        }
        let fails = rng.random_bool(0.1);
        if fails {
            frames.pop_back();
        }
        Self {
            frames,
            len,
            fails,
            sized: rng.random_bool(0.5),
            waiting: None,
            tells: None,
        }
    }

    /// All of it at once.
    pub fn whole(call: usize, len: usize) -> Self {
        let mut script = Self::default();
        script.frames.push_back((0, pattern(call, len).into()));
        script.len = len;
        script.sized = true;
        script
    }

    pub fn telling(mut self, tells: Option<Arc<Notify>>) -> Self {
        self.tells = tells;
        self
    }

    /// How long it is said to be.
    pub fn len(&self) -> usize {
        self.len
    }
}

impl fmt::Debug for Script {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let waits: Vec<_> = self.frames.iter().map(|(wait, _)| wait).collect();
        let Self {
            len, fails, sized, ..
        } = self;
        write!(f, "{len} bytes {waits:?}, fails: {fails}, sized: {sized}")
    }
}

impl Body for Script {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        let Some((wait, _)) = self.frames.front() else {
            let failed = std::mem::take(&mut self.fails);
            return Poll::Ready(failed.then(|| Err("the source of the body failed".into())));
        };
        let wait = ms(*wait);
        if !wait.is_zero() {
            let waiting = self.waiting.get_or_insert_with(|| Box::pin(sleep(wait)));
            ready!(waiting.as_mut().poll(cx));
            self.waiting = None;
        }
        let frame = self.frames.pop_front();
        Poll::Ready(frame.map(|(_, frame)| Ok(Frame::data(frame))))
    }

    fn is_end_stream(&self) -> bool {
        self.frames.is_empty() && !self.fails
    }

    fn size_hint(&self) -> SizeHint {
        let left: usize = self.frames.iter().map(|(_, frame)| frame.len()).sum();
        if self.sized && !self.fails {
            SizeHint::with_exact(left as u64)
        } else {
            SizeHint::new()
        }
    }
}
