//! What goes wrong: a policy that can't be, and a call that failed.

use std::error::Error;
use std::fmt;

use tollway_core::{BoxError, Fault, IdempotencyKey, Judgement, Verdict};

use crate::story::Attempts;

/// A [`RetryPolicy`](crate::RetryPolicy), or a part of one, that was refused
/// when it was built. The message names the field, its value and what was
/// expected.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InvalidPolicy {
    field: &'static str,
    text: String,
}

impl InvalidPolicy {
    pub(crate) fn new(
        field: &'static str,
        value: impl fmt::Debug,
        expected: impl fmt::Display,
    ) -> Self {
        Self {
            field,
            text: format!("{value:?}, expected {expected}"),
        }
    }

    /// The field that was refused: `back_off.base`.
    #[must_use]
    pub const fn field(&self) -> &'static str {
        self.field
    }
}

impl fmt::Display for InvalidPolicy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} is {}", self.field, self.text)
    }
}

impl Error for InvalidPolicy {}

/// A call that ended with an error, after all the attempts that were worth
/// making.
///
/// The `source()` is the error of the last attempt, so predicates that walk
/// the chain answer as they would without the retry. A
/// [`Fault`](tollway_core::Fault) stands before it where the call as a whole
/// means something else than its last attempt: an attempt whose outcome is
/// unknown stays unknown, whatever stopped or failed the next one.
#[derive(Debug)]
pub struct RetryError(Box<Inner>);

#[derive(Debug)]
struct Inner {
    source: BoxError,
    verdict: Verdict,
    /// Whether the method asks for no effect, so that there is none to look up.
    safe: bool,
    key: Option<IdempotencyKey>,
    attempts: Attempts,
}

impl RetryError {
    pub(crate) fn new(
        source: BoxError,
        verdict: Verdict,
        safe: bool,
        key: Option<IdempotencyKey>,
        attempts: Attempts,
    ) -> Self {
        let source = if Verdict::of_error(&*source) == verdict {
            source
        } else {
            let phase = Fault::find(&*source).and_then(Fault::phase);
            let doubt = Judgement::of_error(&*source).in_doubt();
            let mut fault = Fault::new(verdict).caused_by(source);
            if let Some(phase) = phase {
                fault = fault.in_phase(phase);
            }
            if let Some(advice) = doubt.advice.filter(|_| verdict == doubt.verdict) {
                fault = fault.advising(advice);
            }
            fault.into()
        };
        Self(Box::new(Inner {
            source,
            verdict,
            safe,
            key,
            attempts,
        }))
    }

    /// The inner service failed before it was given a request.
    pub(crate) fn not_ready(source: BoxError) -> Self {
        let verdict = Fault::find(&*source).map_or(Verdict::NO_EFFECT, Fault::verdict);
        Self::new(source, verdict, false, None, Attempts::none())
    }

    /// What the error means for the whole call.
    #[must_use]
    pub fn verdict(&self) -> Verdict {
        self.0.verdict
    }

    /// Whether the call may or may not have had an effect. Look it up at the
    /// provider, by its [key](Self::idempotency_key) or your own reference,
    /// before you repeat it.
    #[must_use]
    pub fn is_unknown(&self) -> bool {
        self.0.verdict == Verdict::Unknown
    }

    /// Whether the call certainly had no effect.
    #[must_use]
    pub fn is_not_executed(&self) -> bool {
        matches!(self.0.verdict, Verdict::NotExecuted { .. })
    }

    /// The key that every attempt carried, if any.
    #[must_use]
    pub fn idempotency_key(&self) -> Option<&IdempotencyKey> {
        self.0.key.as_ref()
    }

    /// The attempts that were made, and why there was no further one.
    #[must_use]
    pub fn attempts(&self) -> &Attempts {
        &self.0.attempts
    }
}

impl fmt::Display for RetryError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let attempts = &self.0.attempts;
        f.write_str(match self.0.verdict {
            Verdict::Unknown => "outcome unknown",
            Verdict::NotExecuted { .. } => "call failed without effect",
            Verdict::Done | Verdict::Rejected => "call failed",
        })?;
        match attempts.made() {
            0 => return f.write_str(" before the first attempt"),
            1 => f.write_str(" after 1 attempt")?,
            made => write!(f, " after {made} attempts")?,
        }
        write!(f, ", {}", attempts.stop())?;
        if let Some(wait) = attempts.would_have_waited() {
            write!(f, " (the wait would have been {wait:.1?})")?;
        }
        if self.is_unknown() && !self.0.safe {
            f.write_str("; look it up before repeating it")?;
        }
        Ok(())
    }
}

impl Error for RetryError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        Some(&*self.0.source)
    }
}
