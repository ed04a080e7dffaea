//! The story of a call: its attempts, and why there was no further one.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use http::{Extensions, StatusCode};
use tollway_core::Verdict;

/// The most attempts that a story tells of. Of a longer one it keeps the first
/// and the latest.
const MAX_RECORDS: usize = 16;

/// The longest error text in a story, in bytes.
const MAX_TEXT: usize = 256;

/// The story of a call: the attempts that were made, and why there was no
/// further one.
///
/// It stands in the response's extensions where more than one attempt was
/// made, or one more was called for and refused; absent means that the answer
/// is that of the only attempt. Every [`RetryError`](crate::RetryError) has
/// one. A clone shares it.
#[derive(Clone)]
pub struct Attempts(Arc<Story>);

struct Story {
    records: Vec<AttemptRecord>,
    made: u32,
    stop: Stop,
    would_have_waited: Option<Duration>,
}

impl Attempts {
    pub(crate) fn new(records: Records, stop: Stop, would_have_waited: Option<Duration>) -> Self {
        Self(Arc::new(Story {
            made: records.made,
            records: records.list,
            stop,
            would_have_waited,
        }))
    }

    pub(crate) fn none() -> Self {
        Self::new(Records::default(), Stop::NotReady, None)
    }

    /// The story that a response's `extensions` carry, if any.
    #[must_use]
    pub fn of(extensions: &Extensions) -> Option<&Self> {
        extensions.get()
    }

    /// How many attempts were made.
    #[must_use]
    pub fn made(&self) -> u32 {
        self.0.made
    }

    /// The attempts in order. At most 16: of more, the first and the latest.
    #[must_use]
    pub fn records(&self) -> &[AttemptRecord] {
        &self.0.records
    }

    /// Why there was no further attempt.
    #[must_use]
    pub fn stop(&self) -> Stop {
        self.0.stop
    }

    /// The wait before the next attempt, where it was too long:
    /// [`Stop::Deadline`], [`Stop::DelayTooLong`].
    #[must_use]
    pub fn would_have_waited(&self) -> Option<Duration> {
        self.0.would_have_waited
    }
}

impl fmt::Debug for Attempts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Attempts")
            .field("made", &self.0.made)
            .field("records", &self.0.records)
            .field("stop", &self.0.stop)
            .field("would_have_waited", &self.0.would_have_waited)
            .finish()
    }
}

/// One attempt of a call.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct AttemptRecord {
    /// What its answer or error meant.
    pub verdict: Verdict,
    /// What came of it.
    pub outcome: Outcome,
    /// How long the call waited before it.
    pub delay: Duration,
    /// How long it took: from handing it to the service below, to the head of
    /// the response or the error.
    pub duration: Duration,
}

/// What came of an attempt.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Outcome {
    /// A response with this status.
    Status(StatusCode),
    /// An error with this text, cut to 256 bytes.
    Error(Box<str>),
    /// Nothing: a hedging attempt beside it was answered first.
    Cancelled,
}

impl Outcome {
    /// The texts along the chain, joined: the outermost alone often says no
    /// more than that something failed.
    pub(crate) fn of_error(error: &(dyn std::error::Error + 'static)) -> Self {
        let mut text = error.to_string();
        let mut link = error.source();
        while let Some(error) = link {
            if text.len() >= MAX_TEXT {
                break;
            }
            text.push_str(": ");
            text.push_str(&error.to_string());
            link = error.source();
        }
        text.truncate(text.floor_char_boundary(MAX_TEXT));
        Self::Error(text.into_boxed_str())
    }
}

/// Why there was no further attempt.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Stop {
    /// The last answer is the provider's final one, to that attempt at least: it
    /// may say nothing of an earlier one whose outcome is unknown.
    Final,
    /// A retry is no use: the provider says so, or the error, as that of a pool
    /// that takes no more calls.
    Advised,
    /// The outcome is unknown, the method isn't idempotent, and there is no
    /// idempotency key.
    NoKey,
    /// The outcome is unknown, and the provider would have forgotten the
    /// idempotency key by the next attempt, or doesn't look at it for this call.
    KeyExpired,
    /// The policy's `max_attempts` were made.
    MaxAttempts,
    /// The body can't be sent again: it outgrew the policy's `replay_bound`, or
    /// failed.
    NotReplayable,
    /// The provider asks for a longer delay than the policy's
    /// `max_retry_after`, or a limiter below for a longer wait.
    DelayTooLong,
    /// The call's deadline would pass before the next attempt.
    Deadline,
    /// The budget for retries is spent.
    Budget,
    /// The service below failed to get ready, and takes no more requests.
    NotReady,
}

impl Stop {
    /// The stable name, for telemetry.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Final => "final",
            Self::Advised => "advised",
            Self::NoKey => "no_key",
            Self::KeyExpired => "key_expired",
            Self::MaxAttempts => "max_attempts",
            Self::NotReplayable => "not_replayable",
            Self::DelayTooLong => "delay_too_long",
            Self::Deadline => "deadline",
            Self::Budget => "budget",
            Self::NotReady => "not_ready",
        }
    }
}

impl fmt::Display for Stop {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Final => "the answer is final",
            Self::Advised => "a retry is no use",
            Self::NoKey => "a retry could take effect twice, since there is no idempotency key",
            Self::KeyExpired => {
                "the provider wouldn't know the idempotency key, or doesn't look at it"
            }
            Self::MaxAttempts => "as many as the policy allows",
            Self::NotReplayable => "the body can't be sent again",
            Self::DelayTooLong => "the wait before another is longer than the policy allows",
            Self::Deadline => "the deadline leaves no time for another",
            Self::Budget => "the retry budget is spent",
            Self::NotReady => "the service below takes no requests",
        })
    }
}

/// A story in the making.
#[derive(Debug, Default)]
pub(crate) struct Records {
    list: Vec<AttemptRecord>,
    made: u32,
}

impl Records {
    pub(crate) fn push(&mut self, record: AttemptRecord) {
        if self.list.len() == MAX_RECORDS {
            self.list.remove(1);
        }
        self.list.push(record);
        self.made = self.made.saturating_add(1);
    }

    /// How many attempts came to an end.
    pub(crate) fn made(&self) -> u32 {
        self.made
    }
}

#[cfg(test)]
mod tests {
    use std::io;

    use tollway_core::Fault;

    use super::*;

    fn record(delay: u64) -> AttemptRecord {
        AttemptRecord {
            verdict: Verdict::Unknown,
            outcome: Outcome::Status(StatusCode::BAD_GATEWAY),
            delay: Duration::from_millis(delay),
            duration: Duration::ZERO,
        }
    }

    #[test]
    fn a_long_story_keeps_the_first_and_the_latest() {
        let mut records = Records::default();
        for delay in 0..100 {
            records.push(record(delay));
        }
        let story = Attempts::new(records, Stop::MaxAttempts, None);
        assert_eq!(story.made(), 100);
        assert_eq!(story.records().len(), MAX_RECORDS);
        assert_eq!(story.records()[0], record(0));
        assert_eq!(story.records()[1], record(85));
        assert_eq!(story.records()[15], record(99));
    }

    #[test]
    fn an_error_is_told_with_its_causes_and_cut() {
        let fault = Fault::new(Verdict::Unknown).caused_by(io::Error::other("é".repeat(300)));
        let Outcome::Error(text) = Outcome::of_error(&fault) else {
            panic!("not an error");
        };
        assert!(text.starts_with("outcome unknown: éé"));
        assert!(text.len() <= MAX_TEXT && text.len() > MAX_TEXT - 4);
    }
}
