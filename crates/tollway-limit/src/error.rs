//! Why there is no permit.

use std::error::Error;
use std::fmt;
use std::time::Duration;

use tollway_core::{Fault, InvalidEndpoint, Phase, Scope, Verdict};

/// The limiter gave no permit, or took it back: the attempt was certainly not
/// sent.
///
/// In its `source()` chain stands a [`Fault`] that says so, with the wait as
/// the delay to retry after, so that a retry above knows what a retry costs.
#[derive(Debug)]
pub struct RateLimitError(Box<Refusal>);

/// In a box, so that the way of those who get a permit stays narrow.
#[derive(Debug)]
struct Refusal {
    reason: Reason,
    wait: Option<Duration>,
    fault: Fault,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Reason {
    NotNow,
    QueueFull,
    Deadline,
    Paused,
}

impl Reason {
    /// The stable name, for telemetry.
    const fn as_str(self) -> &'static str {
        match self {
            Self::NotNow => "not_now",
            Self::QueueFull => "queue_full",
            Self::Deadline => "deadline",
            Self::Paused => "paused",
        }
    }
}

impl RateLimitError {
    pub(crate) fn not_now(wait: Duration) -> Self {
        Self::new(Reason::NotNow, wait)
    }

    pub(crate) fn queue_full(wait: Duration) -> Self {
        Self::new(Reason::QueueFull, wait)
    }

    pub(crate) fn deadline(wait: Duration) -> Self {
        Self::new(Reason::Deadline, wait)
    }

    pub(crate) fn paused(wait: Duration) -> Self {
        Self::new(Reason::Paused, wait)
    }

    /// The wait would have been so long at the least, which says nothing where
    /// it is zero.
    fn new(reason: Reason, wait: Duration) -> Self {
        let verdict = Verdict::NotExecuted {
            retry_after: Some(wait),
            scope: Scope::Call,
        };
        Self(Box::new(Refusal {
            reason,
            wait: (!wait.is_zero()).then_some(wait),
            fault: Fault::new(verdict).in_phase(Phase::Permit),
        }))
    }

    /// The same, once whoever listens has been told.
    pub(crate) fn told(self) -> Self {
        tracing::debug!(
            target: "tollway::limit",
            {
                tollway.limit.reason = self.0.reason.as_str(),
                tollway.limit.wait = self.0.wait.map(|wait| wait.as_secs_f64()),
            },
            "gave no permit"
        );
        self
    }

    /// Whether the deadline passes, or has passed, before a permit is free.
    #[must_use]
    pub fn is_deadline(&self) -> bool {
        self.0.reason == Reason::Deadline
    }

    /// Whether too many wait already.
    #[must_use]
    pub fn is_queue_full(&self) -> bool {
        self.0.reason == Reason::QueueFull
    }

    /// Whether the provider had the quota pause, or said that nothing of it is left,
    /// while the attempt, which had its permit, waited below for something else: a
    /// connection.
    #[must_use]
    pub fn is_paused(&self) -> bool {
        self.0.reason == Reason::Paused
    }

    /// How long the wait would have been, at the least. `None` where it isn't
    /// known: it hangs on attempts in flight, or the deadline had passed.
    #[must_use]
    pub fn wait(&self) -> Option<Duration> {
        self.0.wait
    }

    /// The `RateLimitError` in the chain that starts at `error`, if any.
    #[must_use]
    pub fn find<'a>(error: &'a (dyn Error + 'static)) -> Option<&'a Self> {
        let mut link = error;
        // Longer chains are a loop.
        for _ in 0..32 {
            if let Some(found) = link.downcast_ref() {
                return Some(found);
            }
            link = link.source()?;
        }
        None
    }
}

impl fmt::Display for RateLimitError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self.0.reason {
            Reason::NotNow => "the quota is used up",
            Reason::QueueFull => {
                "too many calls wait for the quota already; send fewer at once, or raise `max_waiting`"
            }
            Reason::Deadline => "the deadline passes before the quota has room",
            Reason::Paused => "the quota paused while the attempt waited for a connection",
        })?;
        match self.0.wait {
            Some(wait) => write!(f, " (the wait would be {wait:.1?} or more)"),
            None => Ok(()),
        }
    }
}

impl Error for RateLimitError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        Some(&self.0.fault)
    }
}

/// Limits that make no sense: which field, of which rule, what it was, and what
/// was expected.
#[derive(Debug)]
pub struct InvalidLimits(Box<Invalid>);

#[derive(Debug)]
enum Invalid {
    Field {
        /// `None` where it concerns all of them.
        rule: Option<String>,
        field: &'static str,
        value: String,
        expected: &'static str,
    },
    Endpoint(InvalidEndpoint),
}

impl InvalidLimits {
    pub(crate) fn new(
        rule: impl Into<Option<String>>,
        field: &'static str,
        value: impl Into<String>,
        expected: &'static str,
    ) -> Self {
        Self(Box::new(Invalid::Field {
            rule: rule.into(),
            field,
            value: value.into(),
            expected,
        }))
    }

    /// The field that was refused.
    #[must_use]
    pub fn field(&self) -> &'static str {
        match &*self.0 {
            Invalid::Field { field, .. } => field,
            Invalid::Endpoint(_) => "endpoint",
        }
    }
}

impl From<InvalidEndpoint> for InvalidLimits {
    fn from(error: InvalidEndpoint) -> Self {
        Self(Box::new(Invalid::Endpoint(error)))
    }
}

impl fmt::Display for InvalidLimits {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &*self.0 {
            Invalid::Field {
                rule,
                field,
                value,
                expected,
            } => {
                f.write_str(field)?;
                if let Some(rule) = rule {
                    write!(f, " of `{rule}`")?;
                }
                write!(f, " is {value}, expected {expected}")
            }
            Invalid::Endpoint(error) => error.fmt(f),
        }
    }
}

// What an endpoint's error says is said here already.
impl Error for InvalidLimits {}
