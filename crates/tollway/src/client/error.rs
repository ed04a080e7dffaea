//! Why a call failed, and what that means.

use std::error::Error as StdError;
use std::fmt;

use tollway_core::{BoxError, Fault, IdempotencyKey, Phase, Verdict};
use tollway_idempotency::KeyError;
use tollway_limit::RateLimitError;
use tollway_pool::PoolError;
use tollway_retry::{Attempts, RetryError};
use tollway_timeout::TimeoutError;

/// A call of a [`Client`](crate::Client) that ended without a response.
///
/// What matters about it is its [verdict](Self::verdict): whether the call
/// certainly had no effect, or may have had one. `{}` says that alone; `{:#}`
/// goes on with the attempts, why there was no further one, what failed and why,
/// each said once, in one line: it is what to log. The whole chain of causes is
/// [`source()`](StdError::source), as ever. `{:?}`, which is what a `main` or an
/// `unwrap` shows, is that line too; `{:#?}` has every field.
pub struct Error {
    source: BoxError,
    /// Whether the method asks for no effect, so that there is none to look up.
    safe: bool,
}

impl Error {
    pub(super) fn new(source: BoxError, safe: bool) -> Self {
        Self { source, safe }
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

    /// The attempts that were made, those that got no permit or no connection
    /// among them. `None` where the call ended before the first.
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

    /// The links that say what failed. The others carry what the head of the line
    /// says already: the verdict, the attempts, the key.
    fn causes(&self) -> impl Iterator<Item = &(dyn StdError + 'static)> {
        let (mut of_key, mut of_time) = (false, false);
        self.links().filter(move |link| {
            if of_time || std::mem::take(&mut of_key) {
                return false;
            }
            // What stands below these two is there for those who ask, in case
            // that they are wrapped.
            of_time = link.is::<TimeoutError>();
            let key = link.downcast_ref::<KeyError>();
            of_key = key.is_some();
            key.is_none_or(KeyError::is_refused) && !link.is::<RetryError>() && !link.is::<Fault>()
        })
    }

    /// The attempts, and what to do.
    fn fmt_head(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let verdict = self.verdict();
        // What can't be sent as it is had none that counts.
        if let Some(attempts) = self.attempts().filter(|_| verdict != Verdict::Rejected) {
            match attempts.made() {
                0 => {}
                // One that the limiter turned away was none yet.
                1 if self.links().any(|link| link.is::<RateLimitError>()) => {}
                1 => write!(f, " after 1 attempt ({})", attempts.stop())?,
                made => write!(f, " after {made} attempts ({})", attempts.stop())?,
            }
        }
        if verdict == Verdict::Unknown && !self.safe {
            f.write_str("; look it up before repeating it")?;
            // `Debug` of a key shows only its start.
            if let Some(key) = self.idempotency_key() {
                write!(f, ", it had {key:?}")?;
            }
        }
        Ok(())
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
        self.fmt_head(f)?;
        self.causes().try_for_each(|cause| write!(f, ": {cause}"))
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
