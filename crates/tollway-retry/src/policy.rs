//! What a retry layer does, as data.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use http::HeaderName;

use crate::error::InvalidPolicy;
use crate::{BackOff, Budget, Hedge, RandomSeed};

/// What a retry layer does, as data.
///
/// A clone shares the [`Budget`], and so do policies built with clones of one.
///
/// ```
/// use std::time::Duration;
/// use tollway_retry::{BackOff, Budget, RetryPolicy};
///
/// # fn main() -> Result<(), tollway_retry::InvalidPolicy> {
/// // Two clients of one provider share a budget.
/// let budget = Budget::default();
/// let checkout = RetryPolicy::builder()
///     .max_attempts(5)
///     .budget(budget.clone())
///     .build()?;
/// let reports = RetryPolicy::builder()
///     .back_off(BackOff::exponential(Duration::from_secs(1), Duration::from_secs(30))?)
///     .budget(budget)
///     .build()?;
/// # Ok(())
/// # }
/// ```
pub struct RetryPolicy<R = RandomSeed>(Arc<Settings<R>>);

#[derive(Clone)]
pub(crate) struct Settings<R> {
    pub(crate) max_attempts: u32,
    pub(crate) back_off: BackOff,
    pub(crate) max_retry_after: Duration,
    pub(crate) replay_bound: usize,
    pub(crate) drain_bytes: usize,
    pub(crate) drain_time: Duration,
    pub(crate) key_headers: Vec<HeaderName>,
    pub(crate) key_life: Duration,
    pub(crate) budget: Budget,
    pub(crate) hedge: Option<Hedge>,
    pub(crate) seed: R,
}

impl RetryPolicy {
    /// A policy to configure, with the defaults.
    pub fn builder() -> RetryPolicyBuilder {
        RetryPolicyBuilder(Settings {
            max_attempts: 4,
            back_off: BackOff::default(),
            max_retry_after: Duration::from_secs(60),
            replay_bound: 64 * 1024,
            drain_bytes: 16 * 1024,
            drain_time: Duration::from_millis(100),
            key_headers: vec![HeaderName::from_static("idempotency-key")],
            key_life: Duration::from_secs(24 * 60 * 60),
            budget: Budget::default(),
            hedge: None,
            seed: RandomSeed,
        })
    }
}

impl<R> RetryPolicy<R> {
    /// A policy to configure, which starts as this one and shares its budget.
    pub fn to_builder(&self) -> RetryPolicyBuilder<R>
    where
        R: Clone,
    {
        RetryPolicyBuilder((*self.0).clone())
    }

    /// The budget, to look at or to share.
    #[must_use]
    pub fn budget(&self) -> &Budget {
        &self.0.budget
    }

    pub(crate) fn settings(&self) -> &Settings<R> {
        &self.0
    }
}

impl Default for RetryPolicy {
    fn default() -> Self {
        Self(Arc::new(Self::builder().0))
    }
}

impl<R> Clone for RetryPolicy<R> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

impl<R> fmt::Debug for RetryPolicy<R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.debug(f, "RetryPolicy")
    }
}

impl<R> Settings<R> {
    fn debug(&self, f: &mut fmt::Formatter<'_>, name: &str) -> fmt::Result {
        f.debug_struct(name)
            .field("max_attempts", &self.max_attempts)
            .field("back_off", &self.back_off)
            .field("max_retry_after", &self.max_retry_after)
            .field("replay_bound", &self.replay_bound)
            .field("drain_bytes", &self.drain_bytes)
            .field("drain_time", &self.drain_time)
            .field("key_headers", &self.key_headers)
            .field("key_life", &self.key_life)
            .field("budget", &self.budget)
            .field("hedge", &self.hedge)
            .finish_non_exhaustive()
    }
}

/// Builds a [`RetryPolicy`].
#[derive(Clone)]
#[must_use]
pub struct RetryPolicyBuilder<R = RandomSeed>(Settings<R>);

impl<R> fmt::Debug for RetryPolicyBuilder<R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.debug(f, "RetryPolicyBuilder")
    }
}

impl<R> RetryPolicyBuilder<R> {
    /// The most attempts of a call, the first included; 1 turns retries off,
    /// and with them every copy. Default: 4. The official SDKs of Stripe and
    /// Modern Treasury make 3; the budget is what keeps the load of one more
    /// in hand.
    pub fn max_attempts(mut self, attempts: u32) -> Self {
        self.0.max_attempts = attempts;
        self
    }

    /// The wait between attempts where the provider doesn't say. Default: 500
    /// ms to 8 s with full jitter.
    pub fn back_off(mut self, back_off: BackOff) -> Self {
        self.0.back_off = back_off;
        self
    }

    /// The longest delay that the provider may ask for. Where it asks for more,
    /// the call returns at once with the answer that asked, and its
    /// [`Attempts`](crate::Attempts) say how long the wait would have been.
    /// Default: 60 s, as in Modern Treasury's official SDKs.
    pub fn max_retry_after(mut self, delay: Duration) -> Self {
        self.0.max_retry_after = delay;
        self
    }

    /// The most of a streamed request body that is recorded for a repeat, in
    /// bytes. A body that outgrows it is sent all the same, but not again.
    /// Default: 64 KiB; the requests of payment APIs are a few hundred bytes
    /// long.
    ///
    /// A body that arrives whole in its first frame, such as `Full<Bytes>`, is
    /// shared and not recorded, so it may be longer.
    pub fn replay_bound(mut self, bytes: usize) -> Self {
        self.0.replay_bound = bytes;
        self
    }

    /// The most of a failed response's body that is read before the wait, so
    /// that its connection can be used again: in bytes, and in time. What isn't
    /// through by then is dropped, which costs the connection over HTTP/1.1; so
    /// is all of it where the deadline could come meanwhile. Default: 16 KiB and
    /// 100 ms, about what a new connection with TLS costs.
    pub fn drain(mut self, bytes: usize, time: Duration) -> Self {
        self.0.drain_bytes = bytes;
        self.0.drain_time = time;
        self
    }

    /// The request headers that carry an idempotency key which the provider
    /// honours. Empty for a provider that honours none. Default:
    /// `idempotency-key`.
    ///
    /// A key that stands elsewhere is said by an
    /// [`IdempotencyKey`](tollway_core::IdempotencyKey) in the request's
    /// extensions.
    pub fn key_headers(mut self, names: impl IntoIterator<Item = HeaderName>) -> Self {
        self.0.key_headers = names.into_iter().collect();
        self
    }

    /// How long the provider remembers a key that stands in a header, counted
    /// from the first attempt. An attempt that could come later isn't made
    /// where an earlier one may have had an effect. Default: 24 h, what Stripe
    /// promises at least.
    pub fn key_life(mut self, life: Duration) -> Self {
        self.0.key_life = life;
        self
    }

    /// The budget that retries are paid from. Default: one of its own, see
    /// [`Budget`].
    pub fn budget(mut self, budget: Budget) -> Self {
        self.0.budget = budget;
        self
    }

    /// A second attempt beside a slow first one, where the method is
    /// idempotent. Default: none.
    pub fn hedge(mut self, hedge: Hedge) -> Self {
        self.0.hedge = Some(hedge);
        self
    }

    /// Where the randomness of the back-off comes from. For tests.
    pub fn seed<R2>(self, seed: R2) -> RetryPolicyBuilder<R2> {
        let Settings {
            max_attempts,
            back_off,
            max_retry_after,
            replay_bound,
            drain_bytes,
            drain_time,
            key_headers,
            key_life,
            budget,
            hedge,
            seed: _,
        } = self.0;
        RetryPolicyBuilder(Settings {
            max_attempts,
            back_off,
            max_retry_after,
            replay_bound,
            drain_bytes,
            drain_time,
            key_headers,
            key_life,
            budget,
            hedge,
            seed,
        })
    }

    /// The policy.
    ///
    /// # Errors
    ///
    /// Where `max_attempts` is zero, or `max_retry_after` is above a day.
    pub fn build(self) -> Result<RetryPolicy<R>, InvalidPolicy> {
        const DAY: Duration = Duration::from_secs(24 * 60 * 60);
        if self.0.max_attempts == 0 {
            return Err(InvalidPolicy::new(
                "max_attempts",
                self.0.max_attempts,
                "at least 1, which is no retry",
            ));
        }
        if self.0.max_retry_after > DAY {
            return Err(InvalidPolicy::new(
                "max_retry_after",
                self.0.max_retry_after,
                "a day at the most",
            ));
        }
        Ok(RetryPolicy(Arc::new(self.0)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_policy_without_sense_is_refused_by_name() {
        let error = RetryPolicy::builder().max_attempts(0).build().unwrap_err();
        assert_eq!(
            error.to_string(),
            "max_attempts is 0, expected at least 1, which is no retry"
        );
        let error = RetryPolicy::builder()
            .max_retry_after(Duration::MAX)
            .build()
            .unwrap_err();
        assert_eq!(error.field(), "max_retry_after");
    }

    #[test]
    fn a_failed_response_is_read_within_the_bounds_that_are_set() {
        let drain = |builder: RetryPolicyBuilder| {
            let policy = builder.build().unwrap();
            let settings = policy.settings();
            (settings.drain_bytes, settings.drain_time)
        };
        let by_default = (16 * 1024, Duration::from_millis(100));
        assert_eq!(drain(RetryPolicy::builder()), by_default);
        let (bytes, time) = (7, Duration::from_secs(8));
        assert_eq!(
            drain(RetryPolicy::builder().drain(bytes, time)),
            (bytes, time)
        );
    }

    #[test]
    fn a_policy_made_from_another_shares_its_budget() {
        let budget = Budget::builder().per_second(0.0).build().unwrap();
        let one = RetryPolicy::builder().budget(budget).build().unwrap();
        let two = one.to_builder().max_attempts(2).build().unwrap();
        let now = tokio::time::Instant::now();
        let mut taken = one
            .budget()
            .withdraw(now, crate::budget::Cost::Transient)
            .unwrap();
        taken.sent();
        assert_eq!(two.budget().available(), Some(99.0));
    }
}
