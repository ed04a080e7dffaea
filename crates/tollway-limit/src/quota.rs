//! A provider's rule.

use std::time::Duration;

use tollway_core::Priority;

/// A provider's rule: at most N attempts in any window W, or a rate with a
/// burst, and perhaps at most M attempts in flight.
///
/// It is plain data, so that a provider's facts can be written as constants.
/// Nonsense (a limit of zero, a window of zero) is refused when
/// [`Limits`](crate::Limits) are built from it.
///
/// ```
/// use std::time::Duration;
/// use tollway_limit::Quota;
///
/// /// 1000 in any 10 s, and a block of 10 s for whoever breaks it.
/// const TXNS: Quota = Quota::new(1000, Duration::from_secs(10)).penalty(Duration::from_secs(10));
/// /// 15 a second, 30 at a time.
/// const PAYOUTS: Quota = Quota::per_second(15).in_flight(30);
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Quota {
    pub(crate) rate: Rate,
    pub(crate) in_flight: Option<u32>,
    pub(crate) penalty: Option<Duration>,
    pub(crate) count_from: CountFrom,
    pub(crate) shape: Shape,
    /// What was stated where there is no bucket, to be refused.
    stray_burst: Option<u32>,
    /// Percent, by [`level`].
    pub(crate) reserved: [u8; LEVELS],
}

/// How many priorities there are.
pub(crate) const LEVELS: usize = 3;

/// The level of calls that may be served without the lock: nearly all.
pub(crate) const EXPRESS: usize = level(Priority::Normal);

/// A priority as an index, the highest first.
pub(crate) const fn level(priority: Priority) -> usize {
    match priority {
        Priority::High => 0,
        Priority::Normal => 1,
        Priority::Low => 2,
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Rate {
    /// Nothing but feedback holds attempts back.
    Unlimited,
    /// At most `limit` in any `window`.
    Window { limit: u32, window: Duration },
    /// `limit` every `per`, `burst` at once.
    Bucket {
        limit: u32,
        per: Duration,
        burst: u32,
    },
}

/// When the limiter takes an attempt to have been counted by the provider.
///
/// The provider counts when a request arrives, which the client doesn't see:
/// it lies somewhere between the sending and the response.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum CountFrom {
    /// At the response, or the failure. Then no delay of the network, however
    /// it varies, can break the provider's rule. It costs a round trip in every
    /// window: the rate is N/(W + mean round trip).
    ///
    /// An attempt that ends without an answer (its caller is gone, its time has
    /// run out, its connection broke) may still be on its way: it is counted at
    /// its end, and no earlier than twice the mean round trip after the sending,
    /// or a second, as long as no answer has said how long that takes.
    /// That isn't proof; [`Sending`](Self::Sending) states the longest way.
    ///
    /// Where the whole quota may go at once and nobody waits for it, an answer
    /// may be counted 0.1 ms late: so many are accounted for at a time.
    #[default]
    Response,
    /// At the response too, but no later than this margin after the sending.
    ///
    /// It gives N/(W + margin) where answers are slow, and is safe as long as
    /// no request takes longer than another to arrive by more than `margin`. An
    /// attempt is sent when the inner service is called: where that waits for a
    /// connection then, as a pool does, the wait is on the way, too.
    /// [`goodput`](crate::goodput) has the figures.
    Sending {
        /// The most by which one request's way to the provider may take longer
        /// than another's.
        margin: Duration,
    },
}

/// How the attempts of a window are spread over it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Shape {
    /// One after the other, evenly. Safe with every kind of provider, those
    /// included that estimate their window (sliding counters, leaky buckets)
    /// and punish a burst.
    ///
    /// So that no window ever holds more than the limit, one less goes out in
    /// each: 99 % of a limit of 100, 96 % of one of 25, but half of one of 2.
    /// Where a limit is that small and the provider known to be exact,
    /// [`Burst`](Self::Burst) gives it all.
    ///
    /// It is the permits that are spread. Attempts that wait for a connection with
    /// theirs go as they get one. Let no more be [in flight](Quota::in_flight) than
    /// there are connections, and they wait for the permit instead.
    Paced,
    /// All at once, as long as the quota has room. For providers that keep an
    /// exact log, a fixed window, or a bucket of known size.
    Burst,
}

impl Quota {
    /// At most `limit` attempts in any `window`, [paced](Shape::Paced).
    #[must_use]
    pub const fn new(limit: u32, window: Duration) -> Self {
        Self::of(Rate::Window { limit, window }, Shape::Paced)
    }

    /// At most `limit` attempts in any second.
    #[must_use]
    pub const fn per_second(limit: u32) -> Self {
        Self::new(limit, Duration::from_secs(1))
    }

    /// At most `limit` attempts in any minute.
    #[must_use]
    pub const fn per_minute(limit: u32) -> Self {
        Self::new(limit, Duration::from_secs(60))
    }

    /// At most `limit` attempts in any hour.
    #[must_use]
    pub const fn per_hour(limit: u32) -> Self {
        Self::new(limit, Duration::from_secs(3600))
    }

    /// At most `limit` attempts in any 24 hours.
    #[must_use]
    pub const fn per_day(limit: u32) -> Self {
        Self::new(limit, Duration::from_secs(86_400))
    }

    /// A bucket: `limit` attempts every `per` in the long run, and one at once
    /// (more with [`burst`](Self::burst)). For providers that publish a rate
    /// and a burst, nginx's `limit_req` among them. Its `burst=B` lets B + 1
    /// through at once, but its clock has milliseconds: B is the burst to state.
    ///
    /// Attempts in flight count as not yet arrived, so with
    /// [`CountFrom::Response`] a burst smaller than rate × round trip costs
    /// rate; [`CountFrom::Sending`] gives it back.
    #[must_use]
    pub const fn rate(limit: u32, per: Duration) -> Self {
        Self::of(
            Rate::Bucket {
                limit,
                per,
                burst: 1,
            },
            Shape::Burst,
        )
    }

    /// No rate, and at most `limit` attempts in flight.
    #[must_use]
    pub const fn concurrent(limit: u32) -> Self {
        Self::unlimited().in_flight(limit)
    }

    /// No limit but what the provider's answers ask for: a place for pauses,
    /// where a provider publishes no rule.
    #[must_use]
    pub const fn unlimited() -> Self {
        Self::of(Rate::Unlimited, Shape::Burst)
    }

    const fn of(rate: Rate, shape: Shape) -> Self {
        Self {
            rate,
            in_flight: None,
            penalty: None,
            count_from: CountFrom::Response,
            shape,
            stray_burst: None,
            reserved: [0; LEVELS],
        }
    }

    /// The same, and `attempts` at once. It is for [`rate`](Self::rate) alone, and
    /// refused elsewhere: a window's burst is its limit, in
    /// [burst shape](Shape::Burst).
    #[must_use]
    pub const fn burst(mut self, attempts: u32) -> Self {
        if let Rate::Bucket { limit, per, .. } = self.rate {
            self.rate = Rate::Bucket {
                limit,
                per,
                burst: attempts,
            };
        } else {
            self.stray_burst = Some(attempts);
        }
        self
    }

    /// The same, and at most `limit` attempts in flight: sent, and neither
    /// answered nor failed.
    #[must_use]
    pub const fn in_flight(mut self, limit: u32) -> Self {
        self.in_flight = Some(limit);
        self
    }

    /// The same, and whoever breaks it is blocked for `period`: so long the
    /// quota pauses when the provider says that it was broken, and not for how
    /// long.
    #[must_use]
    pub const fn penalty(mut self, period: Duration) -> Self {
        self.penalty = Some(period);
        self
    }

    /// The same, counted from there. The default is
    /// [`CountFrom::Response`].
    #[must_use]
    pub const fn count_from(mut self, count_from: CountFrom) -> Self {
        self.count_from = count_from;
        self
    }

    /// The same in that shape. The default is [`Shape::Paced`] for a window,
    /// and [`Shape::Burst`] for a rate, whose burst is stated. Without either there
    /// is nothing to pace, and [`Shape::Paced`] is refused.
    #[must_use]
    pub const fn shape(mut self, shape: Shape) -> Self {
        self.shape = shape;
        self
    }

    /// The same, and `percent` of the limits are kept for calls of `priority`.
    ///
    /// The share is lent out while no such call is about. It is taken back as
    /// soon as one is: from then on the others get what is left, and each freed
    /// place goes to the priority that the share belongs to, until it has it.
    /// A share for the highest priority makes sure that a burst finds room; one
    /// for a lower makes sure that it isn't starved. Whatever the shares, a quota
    /// of which nothing is used lets one attempt of any priority go.
    #[must_use]
    pub const fn reserve(mut self, priority: Priority, percent: u8) -> Self {
        self.reserved[level(priority)] = percent;
        self
    }

    /// What is wrong with it, if anything: the field, the value, what was
    /// expected.
    pub(crate) fn check(&self) -> Result<(), (&'static str, String, &'static str)> {
        const LONGEST: Duration = Duration::from_secs(400 * 86_400);
        let limit = |field, value: u32| match value {
            0 => Err((field, value.to_string(), "at least 1")),
            1..=MOST => Ok(()),
            _ => Err((field, value.to_string(), "at most 10,000,000")),
        };
        let span = |field, value: Duration| {
            if value < Duration::from_millis(1) || value > LONGEST {
                Err((field, format!("{value:?}"), "1 ms to 400 days"))
            } else {
                Ok(())
            }
        };
        if let Some(burst) = self.stray_burst {
            let expected = "a `rate` that it belongs to; a window's is `Shape::Burst`";
            return Err(("burst", burst.to_string(), expected));
        }
        match self.rate {
            Rate::Unlimited if self.shape == Shape::Paced => {
                return Err(("shape", "Paced".to_owned(), "a rate or a window to pace"));
            }
            Rate::Unlimited => {}
            Rate::Window { limit: n, window } => {
                limit("limit", n)?;
                span("window", window)?;
            }
            Rate::Bucket {
                limit: n,
                per,
                burst,
            } => {
                limit("limit", n)?;
                span("per", per)?;
                limit("burst", burst)?;
                if per.as_nanos() < u128::from(n) {
                    return Err(("limit", n.to_string(), "at most one each nanosecond"));
                }
            }
        }
        if let Some(n) = self.in_flight {
            limit("in_flight", n)?;
        }
        if let Some(period) = self.penalty {
            span("penalty", period)?;
        }
        if let CountFrom::Sending { margin } = self.count_from
            && margin > LONGEST
        {
            return Err(("margin", format!("{margin:?}"), "at most 400 days"));
        }
        let reserved: u32 = self.reserved.iter().map(|&share| u32::from(share)).sum();
        if reserved > 100 {
            return Err((
                "reserve",
                format!("{reserved} %"),
                "at most 100 % over all priorities",
            ));
        }
        Ok(())
    }
}

/// The most that a limit may be. Its ring of timestamps takes 8 bytes each.
const MOST: u32 = 10_000_000;
