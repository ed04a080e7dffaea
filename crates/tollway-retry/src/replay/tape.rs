//! A recording of a body, played to one attempt after the other.

use std::pin::Pin;
use std::task::{Context, Poll, Waker};

use bytes::Bytes;
use http::HeaderMap;
use http_body::{Body, Frame, SizeHint};
use tollway_core::BoxError;

use super::{Superseded, into_bytes};

type Polled = Poll<Option<Result<Frame<Bytes>, BoxError>>>;

/// A recording of a body, played to one attempt after the other.
///
/// The attempt that reads has played `at` frames; behind them it reads on from
/// the original.
pub(super) struct Tape<B> {
    frames: Vec<Bytes>,
    at: usize,
    /// What the frames count against the bound.
    held: usize,
    bound: usize,
    /// Whether the original told its length. Where it didn't, no attempt does,
    /// even once it is known: HTTP/1.1 sends trailers only behind a body without
    /// one.
    sized: bool,
    /// The original. None once it has ended, well or badly.
    rest: Option<B>,
    trailers: Option<HeaderMap>,
    trailers_played: bool,
    /// How the original failed, until the attempt has read it.
    error: Option<BoxError>,
    state: State,
    /// The attempt that may read.
    attempt: u32,
    /// That of the attempt that waits for the original, so that it learns when
    /// it is superseded: the original only wakes who asked last.
    waker: Option<Waker>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// Everything read so far is in `frames`.
    Recording,
    /// It is read for the last time: what is played is let go.
    Last,
    /// It outgrew the bound, or failed.
    Lost,
}

impl<B> Tape<B> {
    pub(super) const fn new(bound: usize) -> Self {
        Self {
            frames: Vec::new(),
            at: 0,
            held: 0,
            bound,
            sized: true,
            rest: None,
            trailers: None,
            trailers_played: false,
            error: None,
            state: State::Recording,
            attempt: 0,
            waker: None,
        }
    }

    /// Of a body that failed before anybody asked.
    pub(super) fn broken(error: BoxError) -> Self {
        Self {
            error: Some(error),
            state: State::Lost,
            ..Self::new(0)
        }
    }

    pub(super) fn of_unknown_length(mut self) -> Self {
        self.sized = false;
        self
    }

    /// With a frame that was read before anybody asked. It is in memory already,
    /// so the bound has no say yet.
    pub(super) fn starting_with(mut self, data: Bytes) -> Self {
        self.held = weight(&data);
        self.frames.push(data);
        self
    }

    pub(super) fn ending_with(mut self, trailers: Option<HeaderMap>) -> Self {
        self.trailers = trailers;
        self
    }

    /// With the original, which goes on behind what was read of it.
    pub(super) fn continue_with(&mut self, rest: B) {
        self.rest = Some(rest);
    }

    pub(super) fn can_rewind(&self) -> bool {
        self.state == State::Recording
    }

    /// Starts a new attempt: its number, and who is to be woken to learn that
    /// he is superseded.
    pub(super) fn rewind(&mut self) -> (u32, Option<Waker>) {
        self.attempt = self.attempt.saturating_add(1);
        self.at = 0;
        self.trailers_played = false;
        (self.attempt, self.waker.take())
    }

    /// There will be no further attempt.
    pub(super) fn stop_recording(&mut self) {
        if self.state == State::Recording {
            self.state = State::Last;
            for played in &mut self.frames[..self.at] {
                *played = Bytes::new();
            }
        }
    }

    #[cfg(test)]
    pub(super) fn held_bytes(&self) -> usize {
        self.frames.iter().map(Bytes::len).sum()
    }

    /// Records `data`, unless it is too much.
    fn record(&mut self, data: &Bytes) {
        if self.state != State::Recording {
            return;
        }
        self.held = self.held.saturating_add(weight(data));
        if self.held > self.bound {
            self.state = State::Lost;
            self.frames = Vec::new();
            self.at = 0;
        } else {
            self.frames.push(data.clone());
            self.at = self.frames.len();
        }
    }

    fn play(&mut self) -> Option<Bytes> {
        let last = self.state == State::Last;
        let frame = self.frames.get_mut(self.at)?;
        self.at += 1;
        Some(if last {
            std::mem::take(frame)
        } else {
            frame.clone()
        })
    }

    fn play_trailers(&mut self) -> Option<HeaderMap> {
        if std::mem::replace(&mut self.trailers_played, true) {
            return None;
        }
        match self.state {
            State::Recording => self.trailers.clone(),
            State::Last | State::Lost => self.trailers.take(),
        }
    }
}

/// What a frame counts against the bound: its bytes, and at least what it costs
/// to remember it, so that a body sent byte by byte is bounded too.
fn weight(data: &Bytes) -> usize {
    data.len().max(size_of::<Bytes>())
}

impl<B> Tape<B>
where
    B: Body + Unpin,
    B::Error: Into<BoxError>,
{
    pub(super) fn poll_frame(&mut self, attempt: u32, cx: &mut Context<'_>) -> Polled {
        if attempt != self.attempt {
            return Poll::Ready(Some(Err(Superseded.into())));
        }
        if let Some(data) = self.play() {
            return Poll::Ready(Some(Ok(Frame::data(data))));
        }
        if let Some(error) = self.error.take() {
            return Poll::Ready(Some(Err(error)));
        }
        if let Some(body) = &mut self.rest {
            match Pin::new(body).poll_frame(cx) {
                Poll::Pending => {
                    match &mut self.waker {
                        Some(waker) => waker.clone_from(cx.waker()),
                        None => self.waker = Some(cx.waker().clone()),
                    }
                    return Poll::Pending;
                }
                Poll::Ready(Some(Ok(frame))) => match frame.into_data() {
                    Ok(data) => {
                        let data = into_bytes(data);
                        self.record(&data);
                        return Poll::Ready(Some(Ok(Frame::data(data))));
                    }
                    Err(frame) => {
                        self.rest = None;
                        self.trailers = frame.into_trailers().ok();
                    }
                },
                Poll::Ready(Some(Err(error))) => {
                    self.rest = None;
                    self.state = State::Lost;
                    return Poll::Ready(Some(Err(error.into())));
                }
                Poll::Ready(None) => self.rest = None,
            }
        }
        Poll::Ready(
            self.play_trailers()
                .map(|trailers| Ok(Frame::trailers(trailers))),
        )
    }

    pub(super) fn is_end_stream(&self, attempt: u32) -> bool {
        let played = self.at == self.frames.len() && self.error.is_none();
        let ended = match &self.rest {
            Some(body) => body.is_end_stream(),
            None => self.trailers.is_none() || self.trailers_played,
        };
        attempt == self.attempt && played && ended
    }

    pub(super) fn size_hint(&self, attempt: u32) -> SizeHint {
        if attempt != self.attempt {
            return SizeHint::default();
        }
        let unplayed = self.frames.iter().skip(self.at);
        let unplayed: u64 = unplayed.map(|data| data.len() as u64).sum();
        let rest = match &self.rest {
            Some(body) => body.size_hint(),
            None if self.error.is_some() || !self.sized => SizeHint::default(),
            None => SizeHint::with_exact(0),
        };
        let mut hint = SizeHint::new();
        hint.set_lower(rest.lower().saturating_add(unplayed));
        if let Some(upper) = rest.upper() {
            hint.set_upper(upper.saturating_add(unplayed));
        }
        hint
    }
}
