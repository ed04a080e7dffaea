//! The first look at a body.

use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, Waker};

use bytes::Bytes;
use http_body::Body;
use tollway_core::BoxError;

use super::tape::Tape;
use super::{Kind, Recording, Replay, ReplayBody, Source, into_bytes, lock};

/// What a look at a body showed before the first attempt, with the body still in
/// its request: so the request is moved once, when all of this is known.
pub(crate) struct Opening<B>(Seen<B>);

enum Seen<B> {
    /// All of it.
    Whole(Bytes),
    /// The first frame, recorded. The body itself is still to be put on the tape,
    /// if it hasn't `ended`.
    Beginning {
        tape: Arc<Mutex<Tape<B>>>,
        ended: bool,
    },
}

impl<B> Opening<B>
where
    B: Body + Unpin,
    B::Error: Into<BoxError>,
{
    /// Looks at a body.
    #[inline]
    pub(crate) fn of(body: &mut B, bound: usize) -> Self {
        if body.is_end_stream() {
            return Self(Seen::Whole(Bytes::new()));
        }
        if body.size_hint().exact().is_none() {
            return Self::beginning(Tape::new(bound).of_unknown_length(), false);
        }
        // Who knows his length mostly has it all at hand. Asked here, such a
        // body needs no recording. One that hasn't is asked again, with a real
        // waker, when it is sent.
        match Pin::new(&mut *body).poll_frame(&mut Context::from_waker(Waker::noop())) {
            Poll::Pending => Self::beginning(Tape::new(bound), false),
            Poll::Ready(None) => Self(Seen::Whole(Bytes::new())),
            Poll::Ready(Some(Err(error))) => Self::beginning(Tape::broken(error.into()), true),
            Poll::Ready(Some(Ok(frame))) => match frame.into_data() {
                Ok(data) => {
                    let data = into_bytes(data);
                    if body.is_end_stream() {
                        return Self(Seen::Whole(data));
                    }
                    Self::beginning(Tape::new(bound).starting_with(data), false)
                }
                Err(frame) => {
                    let trailers = frame.into_trailers().ok();
                    Self::beginning(Tape::new(bound).ending_with(trailers), true)
                }
            },
        }
    }
}

impl<B> Opening<B> {
    #[cold]
    fn beginning(tape: Tape<B>, ended: bool) -> Self {
        let tape = Arc::new(Mutex::new(tape));
        Self(Seen::Beginning { tape, ended })
    }

    /// What the bodies of later attempts are made from.
    #[inline]
    pub(crate) fn replay(&self) -> Replay<B> {
        Replay(match &self.0 {
            Seen::Whole(data) => Source::Whole(data.clone()),
            Seen::Beginning { tape, .. } => Source::Tape(Some(Recording(Arc::clone(tape)))),
        })
    }

    /// The body of the first attempt, where nothing of the caller's is needed.
    #[inline]
    pub(crate) fn whole(self) -> Result<ReplayBody<B>, Self> {
        match self.0 {
            Seen::Whole(data) => Ok(ReplayBody(Kind::Whole(data))),
            _ => Err(self),
        }
    }

    /// The body of the first attempt.
    pub(crate) fn first(self, body: B) -> ReplayBody<B> {
        ReplayBody(match self.0 {
            Seen::Whole(data) => Kind::Whole(data),
            Seen::Beginning { tape, ended } => {
                if !ended {
                    lock(&tape).continue_with(body);
                }
                Kind::Taped { tape, attempt: 0 }
            }
        })
    }
}
