//! What ran out.

use std::error::Error;
use std::fmt;
use std::time::Duration;

use tollway_core::{Fault, Phase, Verdict};

use crate::timer::RanOut;

/// A limit on time that ran out: the call's deadline, or one attempt's limit.
///
/// The services here answer with a boxed error, which is this one or the inner
/// service's own, untouched but where that failed to get ready: then a [`Fault`]
/// before it says that the call had no effect. Ask [`is_timeout`] and
/// [`is_deadline`], which look through every layer of wrapping.
///
/// A [`Fault`] stands in the `source()` chain with the verdict and the phase:
/// [`NotExecuted`](Verdict::NotExecuted) where nothing of the request can have
/// been written, otherwise [`Unknown`](Verdict::Unknown).
#[derive(Debug)]
pub struct TimeoutError {
    elapsed: Elapsed,
    phase: Phase,
    /// Whether the head of the response had come.
    answered: bool,
    fault: Fault,
}

/// Which limit ran out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Limit {
    /// The whole call's.
    Deadline,
    /// One attempt's, up to the head of the response.
    Attempt,
    /// The one on a gap in the body of the response.
    BodyPause,
}

impl Limit {
    const fn as_str(self) -> &'static str {
        match self {
            Self::Deadline => "deadline",
            Self::Attempt => "attempt",
            Self::BodyPause => "body_pause",
        }
    }
}

/// What a time is counted from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Start {
    Call,
    Attempt,
    /// Of the response's body.
    LastPiece,
}

impl TimeoutError {
    pub(crate) fn new(ran_out: RanOut, phase: Phase, sent: bool) -> Self {
        let verdict = if sent {
            Verdict::Unknown
        } else {
            Verdict::NO_EFFECT
        };
        // Durations are in seconds, as in OpenTelemetry's conventions.
        tracing::debug!(
            target: "tollway::timeout",
            {
                tollway.timeout.limit = ran_out.limit.as_str(),
                tollway.timeout.phase = phase.as_str(),
                tollway.timeout.after = ran_out.after.as_secs_f64(),
                tollway.timeout.of = ran_out.of.as_secs_f64(),
                tollway.verdict = verdict.as_str(),
            },
            "time ran out"
        );
        let elapsed = Elapsed(ran_out);
        Self {
            elapsed,
            phase,
            answered: false,
            fault: Fault::new(verdict).in_phase(phase).caused_by(elapsed),
        }
    }

    /// While the caller read the response's body.
    pub(crate) fn of_body(ran_out: RanOut) -> Self {
        Self {
            answered: true,
            ..Self::new(ran_out, Phase::Body, true)
        }
    }

    /// Where the call was when the time ran out.
    #[must_use]
    pub const fn phase(&self) -> Phase {
        self.phase
    }

    /// How long it had waited. The deadline layer counts from when the call
    /// began, whatever the attempt's layer says from when the attempt began, and
    /// in a body from its last piece, even where it is the deadline that passed.
    #[must_use]
    pub const fn after(&self) -> Duration {
        self.elapsed.0.after
    }

    /// The limit that ran out, counted from the same moment.
    #[must_use]
    pub const fn limit(&self) -> Duration {
        self.elapsed.0.of
    }

    /// Whether it was the deadline of the whole call, so that another attempt
    /// is no use.
    #[must_use]
    pub const fn is_deadline(&self) -> bool {
        matches!(self.elapsed.0.limit, Limit::Deadline)
    }

    /// Whether the request may have been sent.
    #[must_use]
    pub const fn may_have_been_sent(&self) -> bool {
        matches!(self.fault.verdict(), Verdict::Unknown)
    }
}

impl fmt::Display for TimeoutError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.elapsed.0.fmt(f, self.phase)?;
        // An attempt knows nothing of those before it, nor of the call's key.
        let of_call = self.elapsed.0.counted_from == Start::Call;
        f.write_str(match (self.may_have_been_sent(), of_call) {
            _ if self.answered => "; the response's status says what came of the request",
            (true, true) => {
                "; the request may have been executed: look it up, or repeat it with the same \
                 idempotency key"
            }
            (true, false) => "; the request may have been executed",
            (false, true) => "; nothing was sent, so it is safe to repeat",
            (false, false) => "; nothing was sent",
        })
    }
}

impl RanOut {
    fn fmt(&self, f: &mut fmt::Formatter<'_>, phase: Phase) -> fmt::Result {
        let Self { after, of, .. } = *self;
        match (self.limit, self.counted_from) {
            (Limit::Deadline, _) if of.is_zero() => match phase {
                Phase::Body => f.write_str("the call's deadline passed before its end was read"),
                _ => f.write_str("the call's deadline had passed already"),
            },
            // What was left of it then says nothing to whoever set it.
            (Limit::Deadline, Start::Attempt) => write!(
                f,
                "the call's deadline passed while {phase}, {after:.3?} after the attempt began"
            ),
            (Limit::Deadline, Start::LastPiece) => write!(
                f,
                "the call's deadline passed while {phase}, {after:.3?} into a pause"
            ),
            (limit, _) => write!(
                f,
                "{} ran out while {phase}, after {after:.3?} of {of:.3?}",
                match limit {
                    Limit::Deadline => "the call's deadline",
                    Limit::Attempt => "the attempt's time limit",
                    Limit::BodyPause => "the limit on a pause in the response's body",
                }
            ),
        }
    }
}

impl Error for TimeoutError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        Some(&self.fault)
    }
}

/// The innermost link of the chain.
///
/// It stands below the `Fault` because wrappers such as `io::Error`, `Box<E>`
/// and `Arc<E>` hand on the `source()` of what they wrap, and hide the error
/// itself: then this link is all that is left to be recognised.
#[derive(Clone, Copy, Debug)]
struct Elapsed(RanOut);

impl fmt::Display for Elapsed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.of.is_zero() {
            return f.write_str("no time was left");
        }
        write!(f, "{:.3?} passed", self.0.after)
    }
}

impl Error for Elapsed {}

/// Whether time ran out somewhere in the chain of errors that starts at
/// `error`: the call's deadline, or an attempt's limit.
///
/// True however deep it stands, behind whatever wraps it, so long as each
/// wrapper tells its `source()`. Chains are followed for 32 links.
///
/// It recognises this crate's errors only, not for instance the time-out that
/// an operating system reports on a socket.
#[must_use]
pub fn is_timeout(error: &(dyn Error + 'static)) -> bool {
    find(error).is_some()
}

/// Whether the deadline of the whole call ran out somewhere in the chain of
/// errors that starts at `error`. See [`is_timeout`].
#[must_use]
pub fn is_deadline(error: &(dyn Error + 'static)) -> bool {
    find(error).is_some_and(|elapsed| elapsed.0.limit == Limit::Deadline)
}

fn find<'a>(error: &'a (dyn Error + 'static)) -> Option<&'a Elapsed> {
    let mut link = error;
    for _ in 0..32 {
        if let Some(error) = link.downcast_ref::<TimeoutError>() {
            return Some(&error.elapsed);
        }
        if let Some(elapsed) = link.downcast_ref() {
            return Some(elapsed);
        }
        link = link.source()?;
    }
    None
}
