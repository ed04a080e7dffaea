//! How long to wait before the next attempt.

use std::time::Duration;

use crate::error::InvalidPolicy;
use crate::rng::Rng;

/// How long to wait before the next attempt, where the provider doesn't say.
///
/// The ceiling starts at `base`, doubles with every retry and stops at `cap`;
/// [`Jitter`] says where below the ceiling the delay falls. No delay is ever
/// longer than `cap`, jitter included.
///
/// The default is 500 ms to 8 s with full jitter: the bounds of Modern
/// Treasury's official SDKs; Stripe's start at 500 ms too.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BackOff {
    base: Duration,
    cap: Duration,
    jitter: Jitter,
}

/// Where below its ceiling a delay falls.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Jitter {
    /// Anywhere between nothing and the ceiling. It spreads a herd best, which
    /// is why it is the default.
    #[default]
    Full,
    /// In the upper half: a delay is never much shorter than the ceiling.
    Equal,
    /// Between `base` and three times the delay before, up to `cap`. The
    /// ceiling follows the delays drawn instead of doubling.
    Decorrelated,
}

impl BackOff {
    /// Delays from `base`, doubling up to `cap`, with full jitter.
    ///
    /// # Errors
    ///
    /// Where `base` is zero, or `cap` is shorter than `base`.
    pub fn exponential(base: Duration, cap: Duration) -> Result<Self, InvalidPolicy> {
        if base.is_zero() {
            return Err(InvalidPolicy::new(
                "back_off.base",
                base,
                "longer than zero",
            ));
        }
        if cap < base {
            return Err(InvalidPolicy::new(
                "back_off.cap",
                cap,
                format_args!("at least the base, {base:?}"),
            ));
        }
        Ok(Self {
            base,
            cap,
            jitter: Jitter::Full,
        })
    }

    /// The same bounds with this jitter.
    #[must_use]
    pub const fn with_jitter(mut self, jitter: Jitter) -> Self {
        self.jitter = jitter;
        self
    }

    /// The highest that a delay can be before retry number `retry`, counted
    /// from one.
    fn ceiling(&self, retry: u32) -> Duration {
        let mut ceiling = self.base;
        // Fewer than a hundred doublings lead from a nanosecond to the longest
        // duration there is.
        for _ in 1..retry {
            if ceiling >= self.cap {
                break;
            }
            ceiling = ceiling.saturating_mul(2);
        }
        ceiling.min(self.cap)
    }
}

impl Default for BackOff {
    fn default() -> Self {
        Self {
            base: Duration::from_millis(500),
            cap: Duration::from_secs(8),
            jitter: Jitter::Full,
        }
    }
}

/// The delays of one call.
#[derive(Debug)]
pub(crate) struct Delays {
    rng: Rng,
    previous: Duration,
}

impl Delays {
    pub(crate) fn new(seed: u64) -> Self {
        Self {
            rng: Rng::new(seed),
            previous: Duration::ZERO,
        }
    }

    /// The delay before retry number `retry`, counted from one.
    pub(crate) fn next(&mut self, back_off: &BackOff, retry: u32) -> Duration {
        let ceiling = back_off.ceiling(retry);
        let delay = match back_off.jitter {
            Jitter::Full => self.between(Duration::ZERO, ceiling),
            Jitter::Equal => self.between(ceiling / 2, ceiling),
            Jitter::Decorrelated => {
                let previous = self.previous.max(back_off.base);
                let ceiling = previous.saturating_mul(3).min(back_off.cap);
                self.between(back_off.base, ceiling)
            }
        };
        // The ceilings are capped already, so that delays spread below the cap
        // and don't pile up on it; the cap still has the last word.
        let delay = delay.min(back_off.cap);
        self.previous = delay;
        delay
    }

    /// What is put on top of the delay that the provider asked for, so that
    /// everybody who was told the same doesn't return at the same instant.
    pub(crate) fn on_top(&mut self, back_off: &BackOff, retry: u32) -> Duration {
        self.between(Duration::ZERO, back_off.ceiling(retry))
    }

    /// Uniform between the two, to the nanosecond.
    fn between(&mut self, low: Duration, high: Duration) -> Duration {
        const NANOS: u128 = 1_000_000_000;
        let span = high.saturating_sub(low).as_nanos();
        // A `Duration` is below 2^94 ns: a span that can't be multiplied by 64
        // random bits is drawn more coarsely.
        let random = u128::from(self.rng.next());
        let drawn = match span.checked_mul(random) {
            Some(product) => product >> 64,
            None => (span >> 64).saturating_mul(random),
        };
        let secs = u64::try_from(drawn / NANOS).unwrap_or(u64::MAX);
        let nanos = u32::try_from(drawn % NANOS).unwrap_or(0);
        low.saturating_add(Duration::new(secs, nanos))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn secs(secs: u64) -> Duration {
        Duration::from_secs(secs)
    }

    fn millis(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    #[test]
    fn a_delay_without_sense_is_refused_by_name() {
        let error = BackOff::exponential(Duration::ZERO, millis(1)).unwrap_err();
        assert_eq!(
            error.to_string(),
            "back_off.base is 0ns, expected longer than zero"
        );
        let error = BackOff::exponential(millis(2), millis(1)).unwrap_err();
        assert_eq!(
            error.to_string(),
            "back_off.cap is 1ms, expected at least the base, 2ms"
        );
    }

    #[test]
    fn the_ceiling_doubles_up_to_the_cap() {
        let back_off = BackOff::exponential(millis(100), millis(1000)).unwrap();
        let ceilings: Vec<_> = (1..=6).map(|retry| back_off.ceiling(retry)).collect();
        assert_eq!(ceilings, [100, 200, 400, 800, 1000, 1000].map(millis));
        assert_eq!(back_off.ceiling(u32::MAX), millis(1000));
        let steep = BackOff::exponential(Duration::from_nanos(1), Duration::MAX).unwrap();
        assert_eq!(steep.ceiling(34), Duration::from_nanos(1 << 33));
        assert_eq!(steep.ceiling(u32::MAX), Duration::MAX);
    }

    /// Some back-offs cut their jitter to whole units, and so the first delay
    /// is the same for everybody.
    #[test]
    fn the_first_delay_varies_to_the_nanosecond() {
        let back_off = BackOff::exponential(Duration::from_nanos(1000), millis(1)).unwrap();
        let mut seen: Vec<_> = (0..4000)
            .map(|seed| Delays::new(seed).next(&back_off, 1).as_nanos())
            .collect();
        seen.sort_unstable();
        seen.dedup();
        assert!(seen.len() > 950, "{} values of 1000", seen.len());
    }

    #[test]
    fn full_jitter_is_uniform_up_to_the_ceiling() {
        let back_off = BackOff::exponential(millis(1000), millis(1000)).unwrap();
        let mut delays = Delays::new(7);
        let mut tenths = [0_u32; 10];
        for _ in 0..10_000 {
            let delay = delays.next(&back_off, 1);
            tenths[usize::try_from(delay.as_millis() / 100).unwrap()] += 1;
        }
        assert!(
            tenths.iter().all(|&n| (850..1150).contains(&n)),
            "{tenths:?}"
        );
    }

    #[test]
    fn decorrelated_delays_follow_those_before_them() {
        let back_off = BackOff::exponential(millis(100), secs(60))
            .unwrap()
            .with_jitter(Jitter::Decorrelated);
        let mut longest = [Duration::ZERO; 3];
        for seed in 0..1000 {
            let mut delays = Delays::new(seed);
            for (retry, longest) in (1..).zip(&mut longest) {
                *longest = delays.next(&back_off, retry).max(*longest);
            }
        }
        for (longest, ceiling) in longest.into_iter().zip([300, 900, 2700]) {
            let close = longest > millis(ceiling / 2) && longest <= millis(ceiling);
            assert!(close, "{longest:?} of {ceiling} ms");
        }
    }

    proptest! {
        /// Jitter applied after the cap made 19.999 s out of a cap of 10 s.
        #[test]
        fn no_delay_exceeds_the_cap(
            base in 1_u64..=u64::MAX,
            extra in 0_u64..=u64::MAX,
            seed: u64,
            jitter in prop_oneof![
                Just(Jitter::Full), Just(Jitter::Equal), Just(Jitter::Decorrelated)
            ],
        ) {
            let base = Duration::from_nanos(base);
            let cap = base + Duration::from_nanos(extra);
            let back_off = BackOff::exponential(base, cap).unwrap().with_jitter(jitter);
            let mut delays = Delays::new(seed);
            for retry in 1..=70 {
                let ceiling = back_off.ceiling(retry);
                let delay = delays.next(&back_off, retry);
                prop_assert!(delay <= cap);
                match jitter {
                    Jitter::Full => prop_assert!(delay <= ceiling),
                    Jitter::Equal => prop_assert!(delay >= ceiling / 2 && delay <= ceiling),
                    Jitter::Decorrelated => prop_assert!(delay >= base),
                }
            }
        }

        #[test]
        fn delays_of_any_length_do_not_overflow(secs: u64, seed: u64) {
            let cap = Duration::new(secs.max(1), 999_999_999);
            let back_off = BackOff::exponential(cap, cap).unwrap();
            prop_assert!(Delays::new(seed).next(&back_off, 1) <= cap);
        }
    }
}
