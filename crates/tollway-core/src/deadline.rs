//! The instant at which the caller stops caring.

use std::time::{Duration, Instant};

use http::Extensions;

/// The instant at which the caller stops caring, for the whole call.
///
/// It travels down the stack in the request's extensions. `DeadlineLayer`
/// puts it there; so may anyone else, and the earlier of two wins. The limiter
/// refuses a wait that would outlast it, the retry a back-off, the pool a wait
/// for a connection.
///
/// It holds a [`std::time::Instant`], so that this crate needs no runtime.
/// A tokio `Instant` converts into one, under a paused clock too:
///
/// ```
/// use std::time::{Duration, Instant};
/// use tollway_core::Deadline;
///
/// # #[expect(clippy::disallowed_methods)]
/// let now = Instant::now();
/// let deadline = Deadline::at(now + Duration::from_secs(30));
/// assert_eq!(deadline.remaining(now), Duration::from_secs(30));
/// assert!(!deadline.has_passed(now));
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Deadline(Instant);

impl Deadline {
    /// The deadline at `instant`.
    #[must_use]
    pub fn at(instant: impl Into<Instant>) -> Self {
        Self(instant.into())
    }

    /// The deadline `limit` after `now`, or `None` where the clock can't say
    /// that instant: so far away, there is no deadline.
    #[must_use]
    #[inline]
    pub fn after(now: impl Into<Instant>, limit: Duration) -> Option<Self> {
        now.into().checked_add(limit).map(Self)
    }

    /// The deadline that `extensions` carry, if any.
    #[must_use]
    #[inline]
    pub fn of(extensions: &Extensions) -> Option<Self> {
        extensions.get().copied()
    }

    /// The instant itself. `tokio::time::Instant::from` takes it.
    #[must_use]
    #[inline]
    pub fn instant(self) -> Instant {
        self.0
    }

    /// The time left at `now`, zero once the deadline has passed.
    #[must_use]
    pub fn remaining(self, now: impl Into<Instant>) -> Duration {
        self.0.saturating_duration_since(now.into())
    }

    /// Whether the deadline has passed at `now`. It has passed at its very
    /// instant.
    #[must_use]
    #[inline]
    pub fn has_passed(self, now: impl Into<Instant>) -> bool {
        now.into() >= self.0
    }
}
