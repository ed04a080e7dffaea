//! The body of a request that may be sent again.

use std::fmt;
use std::mem;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};

use bytes::{Buf, Bytes};
use http_body::{Body, Frame, SizeHint};
use tollway_core::BoxError;

mod opening;
mod tape;

pub(crate) use opening::Opening;
use tape::Tape;

/// The body of one attempt: what the service below a
/// [`RetryService`](crate::RetryService) is given.
///
/// The same bytes and trailers as the caller's body, and the same size hint, so
/// that `Content-Length` is the same on every attempt, or missing from all. How
/// the next attempt gets at them depends on the body:
///
/// - One that is whole in its first frame, such as `Full<Bytes>`, is shared by
///   reference count.
/// - Any other is recorded frame by frame while the first attempt sends it, up
///   to the policy's `replay_bound`. An attempt that stopped reading half-way
///   leaves the rest to the next one, which sends what was recorded and then
///   reads on. A body that nothing was read of can be sent whatever its size.
/// - One that outgrew the bound, failed with an error, or panicked, can't be sent
///   again. The attempt under way isn't disturbed; the call just isn't retried.
/// - The last attempt, and a call that is never retried, record nothing.
///
/// Only one attempt reads at a time. Where a connection still holds the body of
/// an earlier attempt when another one is decided on (it was answered before it
/// was sent whole), the earlier body ends with an error that is a
/// [`Superseded`], so that the connection gives that request up.
pub struct ReplayBody<B>(Kind<B>);

/// Two variants fit into the space of `Bytes`, three don't. Then a request has
/// 256 bytes, which a processor copies in whole words.
enum Kind<B> {
    /// All of it; empty once it is sent.
    Whole(Bytes),
    /// The part that the attempt number `attempt` plays in a recording.
    Taped {
        tape: Arc<Mutex<Tape<B>>>,
        attempt: u32,
    },
}

impl<B> Kind<B> {
    fn lost() -> Self {
        let tape = Tape::broken("the body can't be sent again".into());
        Self::Taped {
            tape: Arc::new(Mutex::new(tape)),
            attempt: 0,
        }
    }
}

fn into_bytes(mut data: impl Buf) -> Bytes {
    // For `Bytes` this only counts a reference.
    data.copy_to_bytes(data.remaining())
}

fn lock<B>(tape: &Mutex<Tape<B>>) -> MutexGuard<'_, Tape<B>> {
    // A panic under the lock is one of the caller's body. No attempt is made
    // after it, and what was recorded is still true.
    tape.lock().unwrap_or_else(PoisonError::into_inner)
}

impl<B> Body for ReplayBody<B>
where
    B: Body + Unpin,
    B::Error: Into<BoxError>,
{
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        match &mut self.0 {
            Kind::Whole(data) if data.is_empty() => Poll::Ready(None),
            Kind::Whole(data) => Poll::Ready(Some(Ok(Frame::data(mem::take(data))))),
            Kind::Taped { tape, attempt } => lock(tape).poll_frame(*attempt, cx),
        }
    }

    fn is_end_stream(&self) -> bool {
        match &self.0 {
            Kind::Whole(data) => data.is_empty(),
            Kind::Taped { tape, attempt } => lock(tape).is_end_stream(*attempt),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.0 {
            Kind::Whole(data) => SizeHint::with_exact(data.len() as u64),
            Kind::Taped { tape, attempt } => lock(tape).size_hint(*attempt),
        }
    }
}

impl<B> fmt::Debug for ReplayBody<B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("ReplayBody")
            .field(match &self.0 {
                Kind::Whole(_) => &"whole",
                Kind::Taped { .. } => &"recorded",
            })
            .finish()
    }
}

/// What the bodies of later attempts are made from.
pub(crate) struct Replay<B>(Source<B>);

enum Source<B> {
    Whole(Bytes),
    /// `None` where it can't be sent again.
    Tape(Option<Recording<B>>),
}

/// Dropping it ends the recording: nobody can ask for it any more.
struct Recording<B>(Arc<Mutex<Tape<B>>>);

impl<B> Drop for Recording<B> {
    fn drop(&mut self) {
        lock(&self.0).stop_recording();
    }
}

impl<B> Replay<B> {
    /// Of a body that can't be sent again.
    pub(crate) const fn none() -> Self {
        Self(Source::Tape(None))
    }

    /// Whether the next attempt can have the body.
    pub(crate) fn is_possible(&self) -> bool {
        match &self.0 {
            Source::Whole(_) => true,
            Source::Tape(Some(Recording(tape))) => tape.lock().is_ok_and(|tape| tape.can_rewind()),
            Source::Tape(None) => false,
        }
    }

    /// Whether several attempts can have the body at the same time.
    pub(crate) const fn is_shared(&self) -> bool {
        matches!(self.0, Source::Whole(_))
    }

    /// Keeps the body for the next attempt, and whether that was possible: from
    /// now on no connection that is still sending it for an earlier one reads on,
    /// and so makes it outgrow the bound during the wait.
    pub(crate) fn claim(&self) -> bool {
        match &self.0 {
            Source::Whole(_) => true,
            Source::Tape(Some(Recording(tape))) => supersede(tape).is_some(),
            Source::Tape(None) => false,
        }
    }

    /// The body of the next attempt. It fails when read where there is none: what
    /// is left of a body would look like all of it.
    pub(crate) fn next(&self) -> ReplayBody<B> {
        ReplayBody(match &self.0 {
            Source::Whole(data) => Kind::Whole(data.clone()),
            Source::Tape(Some(Recording(tape))) => match supersede(tape) {
                Some(attempt) => Kind::Taped {
                    tape: Arc::clone(tape),
                    attempt,
                },
                None => Kind::lost(),
            },
            Source::Tape(None) => Kind::lost(),
        })
    }
}

/// Ends the reading of earlier attempts: the number of the next one, if it can
/// have all of the body.
fn supersede<B>(tape: &Mutex<Tape<B>>) -> Option<u32> {
    // A body that panicked may have lost what it was about to say: read on, it
    // could end early, and look whole.
    let mut recording = tape.lock().ok().filter(|tape| tape.can_rewind())?;
    let (attempt, superseded) = recording.rewind();
    drop(recording);
    // Outside of the lock, which the woken may well take at once.
    if let Some(waker) = superseded {
        waker.wake();
    }
    Some(attempt)
}

/// The error of an earlier attempt's body that was still being read when a
/// later attempt took over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Superseded;

impl fmt::Display for Superseded {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a later attempt of the same call has taken over the body")
    }
}

impl std::error::Error for Superseded {}

#[cfg(test)]
mod tests;
