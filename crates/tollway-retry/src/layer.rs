use tower_layer::Layer;

use crate::{RandomSeed, RetryPolicy, RetryService};

/// Repeats a call's attempts where that is safe and worth it, as its
/// [`RetryPolicy`] says.
///
/// It belongs below what is done once a call (a deadline, an idempotency key)
/// and above what is done on every attempt (the rate limit, the attempt's
/// timeout, the classification of the answer). All services made from one
/// layer, and all their clones, share the policy's budget.
#[derive(Debug)]
pub struct RetryLayer<R = RandomSeed> {
    policy: RetryPolicy<R>,
}

impl<R> RetryLayer<R> {
    /// A layer with this policy.
    #[must_use]
    pub const fn new(policy: RetryPolicy<R>) -> Self {
        Self { policy }
    }
}

impl Default for RetryLayer {
    /// The default policy, with a budget of its own.
    fn default() -> Self {
        Self::new(RetryPolicy::default())
    }
}

impl<R> Clone for RetryLayer<R> {
    fn clone(&self) -> Self {
        Self {
            policy: self.policy.clone(),
        }
    }
}

impl<S, R> Layer<S> for RetryLayer<R> {
    type Service = RetryService<S, R>;

    fn layer(&self, inner: S) -> Self::Service {
        RetryService::new(inner, self.policy.clone())
    }
}
