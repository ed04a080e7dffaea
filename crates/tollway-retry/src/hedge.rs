//! A second attempt beside a slow first one.

use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use crate::error::InvalidPolicy;

/// A second attempt beside a first one that takes long. What answers first
/// counts, the other is dropped; but a rejection awaits the other where that may
/// be its cause: a `DELETE` finds nothing because the one beside it was done.
///
/// A call is hedged once its first attempt has taken longer than the given
/// quantile of the attempts before it. It cuts the slowest answers short, for
/// a little more load: at the quantile 0.95 that is one request in twenty.
///
/// Only where all of this holds:
///
/// - The method is idempotent. A key is not enough: providers refuse two
///   requests with the same key at the same time.
/// - The body is empty, or whole in its first frame.
/// - The budget has a token. It isn't paid back, so that a provider that turns
///   slow isn't asked twice by everybody: by default one call in ten.
/// - The first attempt was sent. One that still waits for a permit or for a
///   connection, by what the layers below tell, isn't made faster by another one
///   in the same queue.
/// - The quantile is known, from at least 100 attempts.
///
/// The second attempt is an attempt like any other: it counts in
/// `max_attempts`, and goes through all the layers below, a rate limit among
/// them.
///
/// The latencies are those of all calls through the policies that share this
/// value; a clone shares them. Endpoints that differ much in speed are better
/// off with a policy each.
#[derive(Clone)]
pub struct Hedge {
    quantile: f64,
    latencies: Arc<Mutex<Histogram>>,
}

impl Hedge {
    /// A second attempt once the first has taken longer than `quantile` of
    /// those before, such as 0.95.
    ///
    /// # Errors
    ///
    /// Where the quantile isn't between 0.5 and 0.999: below, every other call
    /// would be made twice; above, 1000 attempts don't tell it.
    pub fn after_quantile(quantile: f64) -> Result<Self, InvalidPolicy> {
        if !(0.5..=0.999).contains(&quantile) {
            return Err(InvalidPolicy::new(
                "hedge.quantile",
                quantile,
                "0.5 to 0.999",
            ));
        }
        Ok(Self {
            quantile,
            latencies: Arc::default(),
        })
    }

    /// How long the first attempt may take, if enough is known of others.
    #[must_use]
    pub fn delay(&self) -> Option<Duration> {
        self.lock().quantile(self.quantile)
    }

    /// An attempt took this long, or longer, to the head of its response.
    pub(crate) fn observe(&self, latency: Duration) {
        self.lock().record(latency);
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Histogram> {
        // Nothing panics under the lock.
        self.latencies
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for Hedge {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Hedge")
            .field("quantile", &self.quantile)
            .field("delay", &self.delay())
            .finish()
    }
}

/// Each doubling is cut in as many buckets, so that a bucket's edges are at
/// most a sixteenth apart.
const PER_DOUBLING: u32 = 16;

/// From a microsecond to 2^32 of them, over an hour.
const BUCKETS: usize = (PER_DOUBLING as usize) * 29;

/// Fewer tell nothing of a tail.
const ENOUGH: u32 = 100;

/// When as many were counted, all counts are halved: the past fades.
const FADE: u32 = 4096;

/// How often which latency was seen, by the microsecond.
struct Histogram {
    counts: Box<[u32; BUCKETS]>,
    total: u32,
}

impl Default for Histogram {
    fn default() -> Self {
        Self {
            counts: Box::new([0; BUCKETS]),
            total: 0,
        }
    }
}

impl Histogram {
    fn record(&mut self, latency: Duration) {
        let micros = u32::try_from(latency.as_micros()).unwrap_or(u32::MAX);
        if let Some(count) = self.counts.get_mut(bucket(micros)) {
            *count += 1;
            self.total += 1;
        }
        if self.total >= FADE {
            self.total = 0;
            for count in self.counts.iter_mut() {
                *count /= 2;
                self.total += *count;
            }
        }
    }

    /// The upper edge of the bucket in which the quantile lies.
    fn quantile(&self, quantile: f64) -> Option<Duration> {
        if self.total < ENOUGH {
            return None;
        }
        let rank = f64::from(self.total) * quantile;
        let mut seen = 0;
        let at = self.counts.iter().position(|count| {
            seen += count;
            f64::from(seen) >= rank
        })?;
        Some(Duration::from_micros(upper_edge(at)))
    }
}

/// The bucket of a latency: below 16 µs one each, then 16 for each doubling.
fn bucket(micros: u32) -> usize {
    let doublings = micros
        .max(PER_DOUBLING)
        .ilog2()
        .saturating_sub(PER_DOUBLING.ilog2());
    let offset = micros >> doublings;
    (doublings * PER_DOUBLING + offset) as usize
}

/// The first latency beyond the bucket, in microseconds.
fn upper_edge(bucket: usize) -> u64 {
    let per_doubling = u64::from(PER_DOUBLING);
    let next = bucket as u64 + 1;
    let doublings = (next / per_doubling).saturating_sub(1);
    (next - doublings * per_doubling) << doublings
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_quantile_without_sense_is_refused_by_name() {
        for quantile in [0.0, 0.49, 1.0, f64::NAN] {
            let error = Hedge::after_quantile(quantile).unwrap_err();
            assert_eq!(error.field(), "hedge.quantile");
        }
    }

    #[test]
    fn nothing_is_said_before_enough_is_known() {
        let hedge = Hedge::after_quantile(0.95).unwrap();
        for _ in 0..99 {
            hedge.observe(Duration::from_millis(10));
        }
        assert_eq!(hedge.delay(), None);
        hedge.observe(Duration::from_millis(10));
        assert!(hedge.delay().is_some());
    }

    #[test]
    fn the_past_fades() {
        let hedge = Hedge::after_quantile(0.5).unwrap();
        for _ in 0..100_000 {
            hedge.observe(Duration::from_millis(10));
        }
        for _ in 0..5000 {
            hedge.observe(Duration::from_secs(1));
        }
        assert!(hedge.delay() >= Some(Duration::from_secs(1)));
    }

    #[test]
    fn the_longest_latency_has_a_bucket() {
        assert!(bucket(u32::MAX) == BUCKETS - 1);
    }

    proptest! {
        #[test]
        fn a_bucket_s_edges_are_a_sixteenth_apart(micros: u32) {
            let at = bucket(micros);
            let edge = upper_edge(at);
            prop_assert!(u64::from(micros) < edge);
            prop_assert!(at == 0 || upper_edge(at - 1) <= u64::from(micros));
            prop_assert!((edge - u64::from(micros)) * 16 <= u64::from(micros).max(16));
        }

        #[test]
        fn the_quantile_is_that_of_the_sorted_list(
            mut micros in prop::collection::vec(0_u32..10_000_000, 100..500),
            quantile in 0.5..0.999_f64,
        ) {
            let hedge = Hedge::after_quantile(quantile).unwrap();
            for &micros in &micros {
                hedge.observe(Duration::from_micros(micros.into()));
            }
            micros.sort_unstable();
            #[expect(clippy::cast_precision_loss, clippy::cast_possible_truncation, clippy::cast_sign_loss)]
            let rank = (micros.len() as f64 * quantile).ceil() as usize;
            let exact = u64::from(micros[rank - 1]);
            let told = u64::try_from(hedge.delay().unwrap().as_micros()).unwrap();
            prop_assert!(told > exact && told <= exact + exact / 16 + 1, "{} {}", told, exact);
        }
    }
}
