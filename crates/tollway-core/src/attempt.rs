//! Which try of a call this is.

use std::fmt;
use std::num::NonZeroU32;

use http::Extensions;

/// Which try of a call this is, counted from one.
///
/// The retry layer puts it into the extensions of every attempt after the
/// first. Absent means the first attempt, so that a call that needs no retry
/// pays nothing for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Attempt(NonZeroU32);

impl Attempt {
    /// The first attempt.
    pub const FIRST: Self = Self(NonZeroU32::MIN);

    /// The attempt that `extensions` carry, or [`Attempt::FIRST`].
    #[must_use]
    #[inline]
    pub fn of(extensions: &Extensions) -> Self {
        extensions.get().copied().unwrap_or_default()
    }

    /// The attempt's number: 1 for the first.
    #[must_use]
    pub const fn number(self) -> u32 {
        self.0.get()
    }

    /// Whether an earlier attempt was made.
    #[must_use]
    pub const fn is_retry(self) -> bool {
        self.number() > 1
    }

    /// The attempt after this one. It stays where it is at `u32::MAX`.
    #[must_use]
    pub const fn next(self) -> Self {
        Self(self.0.saturating_add(1))
    }
}

impl Default for Attempt {
    fn default() -> Self {
        Self::FIRST
    }
}

impl fmt::Display for Attempt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}
