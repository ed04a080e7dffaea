//! Why a call failed, and what that means.

use std::error::Error as StdError;
use std::fmt;

use tollway_core::{BoxError, Fault, IdempotencyKey, Phase, Verdict};
use tollway_limit::RateLimitError;
use tollway_pool::PoolError;
use tollway_retry::{Attempts, RetryError};

/// A call of a [`Client`](crate::Client) that ended without a response.
///
/// What matters about it is its [verdict](Self::verdict): whether the call
/// certainly had no effect, or may have had one. `{}` says that alone; `{:#}`
/// goes on with what failed and why, the whole chain of causes in one line: it
/// is what to log. The chain is [`source()`](StdError::source), as ever.
/// `{:?}`, which is what a `main` or an `unwrap` shows, is that line too;
/// `{:#?}` has every field.
pub struct Error {
    source: BoxError,
}

impl Error {
    pub(super) fn new(source: BoxError) -> Self {
        Self { source }
    }

    /// What the error means. [`Unknown`](Verdict::Unknown) unless a layer knows
    /// better.
    ///
    /// [`Rejected`](Verdict::Rejected) is a call that can't be sent as it is, and
    /// wasn't: its key stands for another payload, its body has no key where the
    /// provider looks for one, its URL is of no use.
    #[must_use]
    pub fn verdict(&self) -> Verdict {
        Verdict::of_error(&*self.source)
    }

    /// Whether the call may have had an effect. Look it up before sending it
    /// again, by your own reference or by [its key](Self::idempotency_key).
    #[must_use]
    pub fn is_unknown(&self) -> bool {
        self.verdict() == Verdict::Unknown
    }

    /// Whether the call certainly had no effect, and may have one when it is sent
    /// again: one that was [`Rejected`](Verdict::Rejected) is not meant.
    #[must_use]
    pub fn is_not_executed(&self) -> bool {
        matches!(self.verdict(), Verdict::NotExecuted { .. })
    }

    /// Whether time ran out: the deadline's, an attempt's, or the pool's limit
    /// on getting a connection. The limiter's refusal to wait for a permit that
    /// would come after the deadline counts too.
    #[must_use]
    pub fn is_timeout(&self) -> bool {
        tollway_timeout::is_timeout(&*self.source)
            || self.links().any(|link| {
                let limit = link.downcast_ref::<RateLimitError>();
                let pool = link.downcast_ref::<PoolError>();
                limit.is_some_and(RateLimitError::is_deadline)
                    || pool.is_some_and(PoolError::is_timeout)
            })
    }

    /// Where the call was when it failed, if known.
    #[must_use]
    pub fn phase(&self) -> Option<Phase> {
        Fault::find(&*self.source).and_then(Fault::phase)
    }

    /// The idempotency key that the call had, minted or given.
    #[must_use]
    pub fn idempotency_key(&self) -> Option<&IdempotencyKey> {
        tollway_idempotency::key_of(&*self.source)
    }

    /// The attempts that were made. `None` where none was.
    #[must_use]
    pub fn attempts(&self) -> Option<&Attempts> {
        self.links()
            .find_map(|link| link.downcast_ref::<RetryError>())
            .map(RetryError::attempts)
    }

    fn links(&self) -> impl Iterator<Item = &(dyn StdError + 'static)> {
        let first: &(dyn StdError + 'static) = &*self.source;
        std::iter::successors(Some(first), |link| (*link).source()).take(32)
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self.verdict() {
            Verdict::NotExecuted { .. } => "the call had no effect",
            Verdict::Unknown => "the call's outcome is unknown",
            Verdict::Rejected => "the call was refused",
            Verdict::Done => "the call took effect, and its answer failed",
        })?;
        if !f.alternate() {
            return Ok(());
        }
        for link in self.links() {
            write!(f, ": {link}")?;
        }
        Ok(())
    }
}

impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if f.alternate() {
            f.debug_struct("Error")
                .field("source", &self.source)
                .finish()
        } else {
            write!(f, "Error({self:#})")
        }
    }
}

impl StdError for Error {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        Some(&*self.source)
    }
}

/// A client that can't be: which setting, and why.
#[derive(Debug)]
pub struct BuildError {
    setting: &'static str,
    source: BoxError,
}

impl BuildError {
    pub(super) fn new(setting: &'static str, source: impl Into<BoxError>) -> Self {
        Self {
            setting,
            source: source.into(),
        }
    }
}

impl fmt::Display for BuildError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "no client can be built: {}: {}",
            self.setting, self.source
        )
    }
}

impl StdError for BuildError {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        self.source.source()
    }
}
