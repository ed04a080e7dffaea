//! Faults and delays, drawn from a seed.

use std::fmt;
use std::time::Duration;

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

use crate::error::SimError;

/// One way in which a request goes wrong.
///
/// On HTTP/2 a reset is a reset of the request's stream; [`AbortConnection`](Self::AbortConnection)
/// takes the whole connection with it on both versions.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Fault {
    /// A 5xx of this status, and no effect.
    ErrorBefore(u16),
    /// A 5xx of this status, though the effect took place.
    ErrorAfter(u16),
    /// A refusal of this status, a 4xx other than 429, and no effect. A 402 is a declined payment,
    /// which Savvy tells in a 200. Nothing is remembered of it: a repeat meets its own fate.
    Refuse(u16),
    /// A reset before the body is read. The limits don't see the request.
    ResetBeforeRead,
    /// A reset after the request was read, and no effect.
    ResetAfterRead,
    /// A reset in place of the answer, though the effect took place.
    ResetAfterEffect,
    /// The TCP connection is reset after the request was read: no effect, and whatever else is
    /// in flight on the connection loses its answer.
    AbortConnection,
    /// The effect takes place, half of the promised answer is sent, then the connection (on
    /// HTTP/2 the stream) ends.
    HalfResponse,
    /// The effect takes place, and the answer's body trickles in over this long.
    SlowBody(Duration),
    /// No effect and no answer: silence for this long, then a reset.
    Hang(Duration),
    /// The effect takes place, but no answer comes: silence for this long, then a reset.
    HangAfterEffect(Duration),
    /// The answer comes, and the connection takes no more requests: `GOAWAY` on HTTP/2,
    /// `Connection: close` on HTTP/1.1.
    GoAway,
    /// HTTP/2 refuses the stream unread (`REFUSED_STREAM`), which means no effect. On HTTP/1.1 the
    /// same as [`ResetBeforeRead`](Self::ResetBeforeRead).
    RefusedStream,
    /// Stripe's 429 with `code: "lock_timeout"` and no reason header: an object was locked, no
    /// limit was broken, nothing took effect. On other gateways a 503 before the effect.
    LockTimeout,
}

impl Fault {
    /// What [`Faults::rate`] draws from: each kind with its weight, out of 20. *(ours)*
    ///
    /// Weighted towards what load balancers do when a backend restarts; silences last 2 s, so
    /// that a run with a shorter timeout per attempt sees a timeout, and any other a reset.
    pub const MIX: &'static [(Self, u32)] = &[
        (Self::ErrorBefore(500), 1),
        (Self::ErrorBefore(502), 1),
        (Self::ErrorBefore(503), 2),
        (Self::ErrorAfter(500), 1),
        (Self::ErrorAfter(502), 1),
        (Self::ErrorAfter(503), 1),
        (Self::ResetBeforeRead, 2),
        (Self::ResetAfterRead, 2),
        (Self::ResetAfterEffect, 3),
        (Self::HalfResponse, 2),
        (Self::SlowBody(Duration::from_millis(500)), 1),
        (Self::Hang(Duration::from_secs(2)), 1),
        (Self::HangAfterEffect(Duration::from_secs(2)), 1),
        (Self::GoAway, 1),
    ];

    /// The name under which statistics count it.
    #[must_use]
    pub const fn name(&self) -> &'static str {
        match self {
            Self::ErrorBefore(_) => "error-before",
            Self::ErrorAfter(_) => "error-after",
            Self::Refuse(_) => "refuse",
            Self::ResetBeforeRead => "reset-before-read",
            Self::ResetAfterRead => "reset-after-read",
            Self::ResetAfterEffect => "reset-after-effect",
            Self::AbortConnection => "abort-connection",
            Self::HalfResponse => "half-response",
            Self::SlowBody(_) => "slow-body",
            Self::Hang(_) => "hang",
            Self::HangAfterEffect(_) => "hang-after-effect",
            Self::GoAway => "goaway",
            Self::RefusedStream => "refused-stream",
            Self::LockTimeout => "lock-timeout",
        }
    }

    /// Whether the request never gets to the core, so that it has no effect.
    #[must_use]
    pub const fn prevents_effect(&self) -> bool {
        matches!(
            self,
            Self::ErrorBefore(_)
                | Self::Refuse(_)
                | Self::ResetBeforeRead
                | Self::ResetAfterRead
                | Self::AbortConnection
                | Self::Hang(_)
                | Self::RefusedStream
                | Self::LockTimeout
        )
    }

    /// How much longer than usual the gateway is busy with the request.
    pub(crate) const fn holds(&self) -> Duration {
        match self {
            Self::SlowBody(time) | Self::Hang(time) | Self::HangAfterEffect(time) => *time,
            _ => Duration::ZERO,
        }
    }

    fn check(&self) -> Result<(), SimError> {
        match self {
            Self::ErrorBefore(status) | Self::ErrorAfter(status)
                if *status < 500 || *status > 599 =>
            {
                Err(bad(self, "error statuses from 500 to 599"))
            }
            // The limits answer with a 429.
            Self::Refuse(status) if *status < 400 || *status > 499 || *status == 429 => {
                Err(bad(self, "refusals with a status from 400 to 499, but 429"))
            }
            _ => Ok(()),
        }
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Which requests go wrong, and how.
///
/// Counted over the requests to the provider's own endpoints, in the order in which the gateway
/// sees them: the same seed and the same order give the same faults.
#[derive(Clone, Debug, PartialEq)]
pub struct Faults {
    plan: Plan,
    writes_only: bool,
}

#[derive(Clone, Debug, PartialEq)]
enum Plan {
    Never,
    Always(Fault),
    Rate(f64, Vec<(Fault, u32)>),
    Script(Vec<Option<Fault>>),
}

impl Default for Faults {
    fn default() -> Self {
        Self::none()
    }
}

impl Faults {
    const fn new(plan: Plan) -> Self {
        Self {
            plan,
            writes_only: false,
        }
    }

    /// No faults. The default.
    #[must_use]
    pub const fn none() -> Self {
        Self::new(Plan::Never)
    }

    /// The same fault for every request.
    #[must_use]
    pub const fn always(fault: Fault) -> Self {
        Self::new(Plan::Always(fault))
    }

    /// A share of the requests, from 0 to 1, goes wrong in a way drawn from [`Fault::MIX`].
    #[must_use]
    pub fn rate(share: f64) -> Self {
        Self::mix(share, Fault::MIX)
    }

    /// A share of the requests, from 0 to 1, goes wrong in a way drawn from a mix of one's own,
    /// each kind with its weight.
    #[must_use]
    pub fn mix(share: f64, mix: &[(Fault, u32)]) -> Self {
        Self::new(Plan::Rate(share, mix.to_vec()))
    }

    /// The nth request gets the nth of these; those after the last go well.
    #[must_use]
    pub fn script(script: impl IntoIterator<Item = Option<Fault>>) -> Self {
        Self::new(Plan::Script(script.into_iter().collect()))
    }

    /// Spares the requests that only read, so that a look-up always tells the truth. They are
    /// not counted by a script either.
    #[must_use]
    pub const fn writes_only(mut self) -> Self {
        self.writes_only = true;
        self
    }

    pub(crate) fn check(&self) -> Result<(), SimError> {
        let faults: Vec<&Fault> = match &self.plan {
            Plan::Never => return Ok(()),
            Plan::Rate(share, _) if !(0.0..=1.0).contains(share) => {
                return Err(bad(share, "a share from 0 to 1"));
            }
            Plan::Rate(_, mix)
                if mix
                    .iter()
                    .try_fold(0u32, |sum, (_, weight)| sum.checked_add(*weight))
                    .is_none_or(|sum| sum == 0) =>
            {
                let expected = "weights whose sum is more than zero and fits in 32 bits";
                return Err(bad(mix, expected));
            }
            Plan::Always(fault) => vec![fault],
            Plan::Rate(_, mix) => mix.iter().map(|(fault, _)| fault).collect(),
            Plan::Script(script) => script.iter().flatten().collect(),
        };
        faults.into_iter().try_for_each(Fault::check)
    }
}

fn bad(value: impl fmt::Debug, expected: &str) -> SimError {
    SimError::config("faults", value, expected)
}

/// A plan under way.
#[derive(Debug)]
pub(crate) struct FaultDraw {
    faults: Faults,
    rng: StdRng,
    drawn: usize,
}

impl FaultDraw {
    pub(crate) fn new(faults: Faults, seed: u64) -> Self {
        Self {
            faults,
            rng: StdRng::seed_from_u64(seed),
            drawn: 0,
        }
    }

    /// The fate of the next request.
    pub(crate) fn next(&mut self, writes: bool) -> Option<Fault> {
        if self.faults.writes_only && !writes {
            return None;
        }
        let nth = self.drawn;
        self.drawn = self.drawn.saturating_add(1);
        match &self.faults.plan {
            Plan::Never => None,
            Plan::Always(fault) => Some(*fault),
            Plan::Script(script) => script.get(nth).copied().flatten(),
            Plan::Rate(share, mix) => {
                // Both are drawn each time, so that a changed share moves no later draw.
                let hit = self.rng.random::<f64>() < *share;
                let total: u32 = mix.iter().map(|(_, weight)| weight).sum();
                let mut ticket = self.rng.random_range(0..total.max(1));
                let drawn = mix.iter().find(|(_, weight)| {
                    let found = ticket < *weight;
                    ticket = ticket.saturating_sub(*weight);
                    found
                });
                drawn.filter(|_| hit).map(|(fault, _)| *fault)
            }
        }
    }
}

/// How long the gateway takes over a request before it answers. A 429 comes at once.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Latency {
    /// No time at all. The default.
    #[default]
    None,
    /// The same for each.
    Fixed(Duration),
    /// Anything between the two, each as likely.
    Uniform {
        /// The shortest.
        min: Duration,
        /// The longest.
        max: Duration,
    },
}

impl Latency {
    /// Anything between the two, each as likely.
    #[must_use]
    pub const fn uniform(min: Duration, max: Duration) -> Self {
        Self::Uniform { min, max }
    }

    pub(crate) fn check(&self) -> Result<(), SimError> {
        match self {
            Self::Uniform { min, max } if min > max => Err(SimError::config(
                "latency",
                (min, max),
                "a shortest time that is no longer than the longest",
            )),
            _ => Ok(()),
        }
    }

    pub(crate) fn draw(&self, rng: &mut StdRng) -> Duration {
        match *self {
            Self::None => Duration::ZERO,
            Self::Fixed(time) => time,
            Self::Uniform { min, max } => rng.random_range(min..=max),
        }
    }
}
