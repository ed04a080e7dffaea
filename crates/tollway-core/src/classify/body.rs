//! A body whose start was looked at, handed on as if it hadn't been.

use std::collections::VecDeque;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::{Buf, Bytes};
use http_body::{Body, Frame, SizeHint};
use pin_project_lite::pin_project;

use super::ClassifyLayer;

/// The most frames that are held while the start of a body is read. Together
/// with the bound on bytes it bounds what a server can make us keep by sending
/// its body a byte at a time.
const MAX_FRAMES: usize = 1024;

type Frames<B> = VecDeque<Result<Frame<Bytes>, <B as Body>::Error>>;

/// Reads the start of a body.
pub(super) struct Peek<B: Body> {
    frames: Frames<B>,
    len: usize,
    rest: B,
}

impl<B: Body + Unpin> Peek<B> {
    pub(super) fn new(body: B) -> Self {
        Self {
            frames: VecDeque::new(),
            len: 0,
            rest: body,
        }
    }

    /// Ready when the bound is reached or the body has ended, well or badly.
    pub(super) fn poll_start(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        while self.len < ClassifyLayer::<()>::MAX_BODY && self.frames.len() < MAX_FRAMES {
            let Some(frame) = ready!(Pin::new(&mut self.rest).poll_frame(cx)) else {
                break;
            };
            let frame = frame.map(into_bytes);
            let ended = frame.is_err();
            if let Some(data) = frame.as_ref().ok().and_then(Frame::data_ref) {
                self.len = self.len.saturating_add(data.len());
            }
            self.frames.push_back(frame);
            if ended {
                break;
            }
        }
        Poll::Ready(())
    }

    /// What was read, in one piece, cut to the bound.
    pub(super) fn start(&self) -> Bytes {
        let mut chunks = self
            .frames
            .iter()
            .filter_map(|frame| frame.as_ref().ok().and_then(Frame::data_ref));
        let bound = ClassifyLayer::<()>::MAX_BODY;
        let Some(first) = chunks.next() else {
            return Bytes::new();
        };
        if first.len() == self.len {
            return first.slice(..bound.min(first.len()));
        }
        let mut start = Vec::with_capacity(bound.min(self.len));
        start.extend_from_slice(&first[..bound.min(first.len())]);
        for chunk in chunks {
            let room = bound - start.len();
            start.extend_from_slice(&chunk[..room.min(chunk.len())]);
        }
        start.into()
    }

    /// Whether it failed behind what was read.
    pub(super) fn is_broken(&self) -> bool {
        self.frames.back().is_some_and(Result::is_err)
    }

    pub(super) fn into_body(self) -> ClassifyBody<B> {
        ClassifyBody {
            frames: Some(Box::new(self.frames)),
            rest: self.rest,
        }
    }
}

fn into_bytes<D: Buf>(frame: Frame<D>) -> Frame<Bytes> {
    // For `Bytes` this only counts a reference.
    frame.map_data(|mut data| data.copy_to_bytes(data.remaining()))
}

pin_project! {
    /// The body of a response that a [`ClassifyService`](super::ClassifyService)
    /// returns: the inner one, byte for byte and frame for frame, errors and
    /// trailers included.
    pub struct ClassifyBody<B>
    where
        B: Body,
    {
        // What was read, in order, if anything was. An error can only be the
        // last.
        frames: Option<Box<Frames<B>>>,
        #[pin]
        rest: B,
    }
}

impl<B: Body> ClassifyBody<B> {
    pub(super) fn untouched(body: B) -> Self {
        Self {
            frames: None,
            rest: body,
        }
    }
}

impl<B: Body> std::fmt::Debug for ClassifyBody<B> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ClassifyBody").finish_non_exhaustive()
    }
}

impl<B: Body> Body for ClassifyBody<B> {
    type Data = Bytes;
    type Error = B::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, B::Error>>> {
        let this = self.project();
        if let Some(frames) = this.frames {
            if let Some(frame) = frames.pop_front() {
                return Poll::Ready(Some(frame));
            }
            *this.frames = None;
        }
        let frame = ready!(this.rest.poll_frame(cx));
        Poll::Ready(frame.map(|frame| frame.map(into_bytes)))
    }

    fn is_end_stream(&self) -> bool {
        self.frames.as_ref().is_none_or(|frames| frames.is_empty()) && self.rest.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        let rest = self.rest.size_hint();
        let Some(frames) = &self.frames else {
            return rest;
        };
        let held: u64 = frames
            .iter()
            .filter_map(|frame| frame.as_ref().ok().and_then(Frame::data_ref))
            .map(|data| data.len() as u64)
            .sum();
        let mut hint = SizeHint::new();
        hint.set_lower(rest.lower().saturating_add(held));
        if let Some(upper) = rest.upper() {
            hint.set_upper(upper.saturating_add(held));
        }
        hint
    }
}
