//! How long one attempt may take.

use std::sync::Arc;
use std::time::Duration;

use http::Extensions;
use tollway_core::Attempt;

/// How long one attempt may take, as plain data.
///
/// Two limits: one from the attempt's start to the head of the response, and
/// one on each pause in the body. The first can grow from attempt to attempt;
/// the second is the same as the first unless set. A body that keeps coming may
/// take as long as it likes; only the call's deadline ends it.
///
/// ```
/// use std::time::Duration;
/// use tollway_core::Attempt;
/// use tollway_timeout::AttemptTimeout;
///
/// // 30 s for the first attempt, 60 s for the second, 90 s for all later ones.
/// let timeout = AttemptTimeout::new(Duration::from_secs(30))
///     .then(Duration::from_secs(60))
///     .then(Duration::from_secs(90))
///     .body_pause(Duration::from_secs(10));
///
/// let second = Attempt::FIRST.next();
/// assert_eq!(timeout.head_of(second), Duration::from_secs(60));
/// assert_eq!(timeout.body_pause_of(second), Duration::from_secs(10));
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AttemptTimeout {
    first: Duration,
    /// Shared, and rarely there, so that a clone copies some numbers.
    later: Option<Arc<Vec<Duration>>>,
    body_pause: Option<Duration>,
}

impl AttemptTimeout {
    /// The same limit for every attempt.
    ///
    /// Zero gives up on every attempt that isn't answered at once. A limit
    /// beyond what the clock can say, such as [`Duration::MAX`], is none.
    #[must_use]
    pub const fn new(limit: Duration) -> Self {
        Self {
            first: limit,
            later: None,
            body_pause: None,
        }
    }

    /// Another limit for the attempt after the last one said so far, and for
    /// every later one.
    #[must_use]
    pub fn then(mut self, limit: Duration) -> Self {
        Arc::make_mut(self.later.get_or_insert_default()).push(limit);
        self
    }

    /// The longest pause between two pieces of a response's body, and between
    /// its head and the first piece. By default it is the attempt's limit: a
    /// provider that may take that long to begin may take as long to go on.
    #[must_use]
    pub const fn body_pause(mut self, limit: Duration) -> Self {
        self.body_pause = Some(limit);
        self
    }

    /// The limit from the start of `attempt` to the head of its response.
    #[must_use]
    pub fn head_of(&self, attempt: Attempt) -> Duration {
        let (Some(later), true) = (self.later.as_deref(), attempt.is_retry()) else {
            return self.first;
        };
        let at = usize::try_from(attempt.number() - 2).unwrap_or(usize::MAX);
        later
            .get(at)
            .or(later.last())
            .copied()
            .unwrap_or(self.first)
    }

    /// The longest pause in the body of the response to `attempt`.
    #[must_use]
    pub fn body_pause_of(&self, attempt: Attempt) -> Duration {
        self.body_pause.unwrap_or_else(|| self.head_of(attempt))
    }

    /// The limits on the head and on each pause in the body, of the attempt
    /// whose request has these extensions.
    #[inline]
    pub(crate) fn of(&self, extensions: &Extensions) -> (Duration, Duration) {
        // The look-up is spared where the number makes no difference.
        if self.later.is_none() {
            return (self.first, self.body_pause.unwrap_or(self.first));
        }
        let attempt = Attempt::of(extensions);
        (self.head_of(attempt), self.body_pause_of(attempt))
    }
}

impl From<Duration> for AttemptTimeout {
    fn from(limit: Duration) -> Self {
        Self::new(limit)
    }
}
