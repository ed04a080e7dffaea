//! Who goes first.

use std::fmt;

use http::Extensions;

/// Who goes first when calls wait for the same thing.
///
/// It travels down the stack in the request's extensions; absent means
/// [`Normal`](Self::Normal). A checkout that a customer waits for is
/// [`High`](Self::High), a nightly reconciliation [`Low`](Self::Low).
///
/// The levels are few and fixed, so that each can have a queue of its own.
/// They order as one expects: `Low < Normal < High`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Priority {
    /// Background work that gives way to everything else.
    Low,
    /// What a call has when nothing is said.
    #[default]
    Normal,
    /// Work that somebody waits for.
    High,
}

impl Priority {
    /// Every level, the highest first: the order of service.
    pub const ALL: [Self; 3] = [Self::High, Self::Normal, Self::Low];

    /// The priority that `extensions` carry, or [`Priority::Normal`].
    #[must_use]
    #[inline]
    pub fn of(extensions: &Extensions) -> Self {
        extensions.get().copied().unwrap_or_default()
    }

    /// The stable name, for telemetry: `low`, `normal`, `high`.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Low => "low",
            Self::Normal => "normal",
            Self::High => "high",
        }
    }
}

impl fmt::Display for Priority {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}
