//! Rate rules as providers enforce them: pure functions of time and arrivals.
//!
//! A [`Rule`] is the configuration, a [`RuleState`] is one counter that enforces it. The state
//! is handed the time of every arrival and answers with a [`Decision`]. It never reads a clock,
//! so the same code runs inside a gateway and, in virtual time, inside a bench.
//!
//! ```
//! use std::time::Duration;
//! use tollway_sim::rule::{Decision, Rule, RuleState};
//!
//! # fn main() -> Result<(), tollway_sim::rule::RuleError> {
//! let rule = Rule::sliding_log(2, Duration::from_secs(10)).penalty(Duration::from_secs(10));
//! let mut state = RuleState::new(rule)?;
//! let at = Duration::from_secs;
//! assert_eq!(state.arrive(at(0)), Decision::Accepted);
//! assert_eq!(state.arrive(at(1)), Decision::Accepted);
//! assert_eq!(state.arrive(at(2)), Decision::Rejected { retry_after: at(10) });
//! assert_eq!(state.arrive(at(11)), Decision::Blocked { until: at(12) });
//! assert_eq!(state.arrive(at(12)), Decision::Accepted);
//! # Ok(())
//! # }
//! ```

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

mod bucket;
mod counter;
mod fixed;
mod leaky;
mod log;
mod state;

pub use state::{Decision, RuleState};

/// How a provider counts.
///
/// Real providers differ, and few say which they use.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum RuleKind {
    /// Exact: at most `limit` arrivals in *any* `window`.
    SlidingLog,
    /// A counter that restarts at every multiple of the window, counted from the start.
    FixedWindow,
    /// The current window plus the previous one, weighted by how much of it still overlaps, as
    /// Cloudflare and HAProxy estimate a sliding window with two counters.
    SlidingCounter,
    /// Tokens come back at `limit` per `window`; at most `burst` are kept (default: `limit`).
    TokenBucket,
    /// nginx's `limit_req` with `nodelay`: a bucket that drains at `limit` per `window` and
    /// holds `burst` requests beyond the one in service (default: 0).
    LeakyBucket,
}

impl RuleKind {
    /// The five kinds.
    pub const ALL: [Self; 5] = [
        Self::SlidingLog,
        Self::FixedWindow,
        Self::SlidingCounter,
        Self::TokenBucket,
        Self::LeakyBucket,
    ];

    /// The name used on the command line: `sliding-log`, `fixed-window`, `sliding-counter`,
    /// `token-bucket` or `leaky-bucket`.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::SlidingLog => "sliding-log",
            Self::FixedWindow => "fixed-window",
            Self::SlidingCounter => "sliding-counter",
            Self::TokenBucket => "token-bucket",
            Self::LeakyBucket => "leaky-bucket",
        }
    }

    /// Whether a burst means something to this kind: to the two buckets only.
    #[must_use]
    pub const fn has_burst(self) -> bool {
        matches!(self, Self::TokenBucket | Self::LeakyBucket)
    }
}

impl fmt::Display for RuleKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for RuleKind {
    type Err = RuleError;

    fn from_str(name: &str) -> Result<Self, RuleError> {
        Self::ALL
            .into_iter()
            .find(|kind| kind.name() == name)
            .ok_or(RuleError {
                field: "rule",
                value: None,
                expected: "sliding-log, fixed-window, sliding-counter, token-bucket or leaky-bucket",
            })
    }
}

/// A rate rule: at most `limit` requests per `window`, counted in one of five ways.
///
/// Plain data. It is checked where it is put to use, in [`RuleState::new`] and when a gateway
/// starts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rule {
    kind: RuleKind,
    limit: u32,
    window: Duration,
    burst: Option<u32>,
    penalty: Option<Duration>,
    rejected_count: bool,
}

impl Rule {
    /// A rule of the given kind, without a penalty, that doesn't count rejected requests.
    #[must_use]
    pub const fn new(kind: RuleKind, limit: u32, window: Duration) -> Self {
        Self {
            kind,
            limit,
            window,
            burst: None,
            penalty: None,
            rejected_count: false,
        }
    }

    /// At most `limit` arrivals in any `window`, exactly.
    #[must_use]
    pub const fn sliding_log(limit: u32, window: Duration) -> Self {
        Self::new(RuleKind::SlidingLog, limit, window)
    }

    /// At most `limit` arrivals between two multiples of `window`.
    #[must_use]
    pub const fn fixed_window(limit: u32, window: Duration) -> Self {
        Self::new(RuleKind::FixedWindow, limit, window)
    }

    /// At most an estimated `limit` arrivals per `window`.
    #[must_use]
    pub const fn sliding_counter(limit: u32, window: Duration) -> Self {
        Self::new(RuleKind::SlidingCounter, limit, window)
    }

    /// `limit` tokens come back per `window`; the bucket keeps `burst` of them.
    #[must_use]
    pub const fn token_bucket(limit: u32, window: Duration, burst: u32) -> Self {
        Self::new(RuleKind::TokenBucket, limit, window).burst(burst)
    }

    /// nginx's `limit_req rate=limit/window burst=burst nodelay`.
    #[must_use]
    pub const fn leaky_bucket(limit: u32, window: Duration, burst: u32) -> Self {
        Self::new(RuleKind::LeakyBucket, limit, window).burst(burst)
    }

    /// Sets the burst of a bucket. Refused on the other kinds when the rule is put to use.
    #[must_use]
    pub const fn burst(mut self, burst: u32) -> Self {
        self.burst = Some(burst);
        self
    }

    /// Blocks for this long once the rule was broken: everything that arrives in the block is
    /// refused. An arrival in the block doesn't prolong it.
    #[must_use]
    pub const fn penalty(mut self, penalty: Duration) -> Self {
        self.penalty = Some(penalty);
        self
    }

    /// Whether refused requests are counted like accepted ones. Default: no.
    ///
    /// A bucket that counts them is emptied by a refusal, never driven below empty.
    #[must_use]
    pub const fn rejected_count(mut self, counted: bool) -> Self {
        self.rejected_count = counted;
        self
    }

    /// The same numbers, counted another way. A burst is dropped where the new kind has none.
    #[must_use]
    pub const fn of_kind(mut self, kind: RuleKind) -> Self {
        self.kind = kind;
        if !kind.has_burst() {
            self.burst = None;
        }
        self
    }

    /// How the rule counts.
    #[must_use]
    pub const fn kind(&self) -> RuleKind {
        self.kind
    }

    /// Requests per window.
    #[must_use]
    pub const fn limit(&self) -> u32 {
        self.limit
    }

    /// The window.
    #[must_use]
    pub const fn window(&self) -> Duration {
        self.window
    }

    /// The block that follows a broken rule, if there is one.
    #[must_use]
    pub const fn penalty_after_breach(&self) -> Option<Duration> {
        self.penalty
    }

    /// Whether refused requests count.
    #[must_use]
    pub const fn counts_rejected(&self) -> bool {
        self.rejected_count
    }

    /// What the bucket holds, with the kind's default applied.
    #[must_use]
    pub const fn capacity(&self) -> u32 {
        match (self.burst, self.kind) {
            (Some(burst), _) => burst,
            (None, RuleKind::TokenBucket) => self.limit,
            (None, _) => 0,
        }
    }

    /// The ideal: how many requests the rule accepts in a span, from rest, of a caller who sends
    /// each at the first instant allowed and is never refused.
    ///
    /// The span starts with the rule's own clock and includes its first instant, not its last,
    /// so 120 s of a 10 s window are 12 windows. 0 for a rule that can't be put to use.
    #[must_use]
    pub fn ideal(&self, span: Duration) -> u64 {
        if self.check().is_err() || span.is_zero() {
            return 0;
        }
        let (span, window) = (span.as_nanos(), self.window.as_nanos());
        let limit = u128::from(self.limit);
        // One more for each whole interval that ends inside the span.
        let dripped = (span * limit).div_ceil(window) - 1;
        let ideal = match self.kind {
            RuleKind::SlidingLog | RuleKind::FixedWindow => span.div_ceil(window) * limit,
            RuleKind::SlidingCounter => counter::ideal(limit, window, span),
            RuleKind::TokenBucket => u128::from(self.capacity()) + dripped,
            RuleKind::LeakyBucket => u128::from(self.capacity()) + 1 + dripped,
        };
        u64::try_from(ideal).unwrap_or(u64::MAX)
    }

    /// Whether the rule can be put to use.
    ///
    /// # Errors
    ///
    /// When the limit, the window or a token bucket's burst is zero, when the window or the
    /// penalty is longer than a year, or when a kind without a bucket was given a burst.
    pub const fn check(&self) -> Result<(), RuleError> {
        const YEAR: u64 = 366 * 24 * 60 * 60;
        let (field, value, expected) = if self.limit == 0 {
            ("limit", Value::Count(0), "at least 1")
        } else if self.window.is_zero() || self.window.as_secs() > YEAR {
            let value = Value::Time(self.window);
            ("window", value, "more than zero and at most a year")
        } else if let Some(burst) = self.burst
            && !self.kind.has_burst()
        {
            let expected = "none, since only a token bucket or a leaky bucket has one";
            ("burst", Value::Count(burst), expected)
        } else if self.capacity() == 0 && matches!(self.kind, RuleKind::TokenBucket) {
            ("burst", Value::Count(0), "at least 1")
        } else if let Some(penalty) = self.penalty
            && penalty.as_secs() > YEAR
        {
            ("penalty", Value::Time(penalty), "at most a year")
        } else {
            return Ok(());
        };
        Err(RuleError {
            field,
            value: Some(value),
            expected,
        })
    }
}

/// A rule that can't be put to use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RuleError {
    field: &'static str,
    /// Not kept of a text, which whoever parses it has at hand.
    value: Option<Value>,
    expected: &'static str,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Value {
    Count(u32),
    Time(Duration),
}

impl fmt::Display for Value {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Count(count) => count.fmt(f),
            Self::Time(time) => fmt::Debug::fmt(time, f),
        }
    }
}

impl RuleError {
    /// The field at fault.
    #[must_use]
    pub const fn field(&self) -> &'static str {
        self.field
    }
}

impl fmt::Display for RuleError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "bad rate rule: `{}`", self.field)?;
        match self.value {
            Some(value) => write!(f, " is {value}, expected {}", self.expected),
            None => write!(f, " is none of {}", self.expected),
        }
    }
}

impl std::error::Error for RuleError {}
