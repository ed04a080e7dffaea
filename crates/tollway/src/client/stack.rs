//! The order of the layers, in one place.

use tollway_core::{ClassifyLayer, ClassifyService, Rules};
use tollway_idempotency::{IdempotencyKeyLayer, IdempotencyKeyService, KeyBody};
use tollway_limit::{RateLimitLayer, RateLimitService};
use tollway_pool::Pool;
use tollway_retry::{ReplayBody, RetryLayer, RetryService};
use tollway_timeout::{AttemptTimeoutLayer, AttemptTimeoutService, DeadlineLayer, DeadlineService};
use tower_layer::Layer;

use super::Body;

/// The request body that reaches the pool.
pub(super) type WireBody = ReplayBody<KeyBody<Body>>;

/// The layers of a client, outermost first.
///
/// The order is the point. Every attempt, retries included, pays its quota, so
/// the limiter stands below the retry. The key is minted once for all attempts,
/// so it stands above. The deadline covers everything: the wait for a permit,
/// the back-off, connecting. An attempt's time starts when it has its permit.
/// The verdict is read directly above the transport, so that everybody above
/// sees the same one.
#[derive(Debug)]
pub(super) struct Layers {
    pub(super) deadline: DeadlineLayer,
    pub(super) key: IdempotencyKeyLayer,
    pub(super) retry: RetryLayer,
    pub(super) limit: RateLimitLayer,
    pub(super) attempt_timeout: AttemptTimeoutLayer,
    pub(super) classify: ClassifyLayer<Rules>,
}

pub(super) type Stack = DeadlineService<
    IdempotencyKeyService<
        RetryService<
            RateLimitService<AttemptTimeoutService<ClassifyService<Pool<WireBody>, Rules>>>,
        >,
    >,
>;

impl Layers {
    pub(super) fn over(self, pool: Pool<WireBody>) -> Stack {
        let service = self.classify.layer(pool);
        let service = self.attempt_timeout.layer(service);
        let service = self.limit.layer(service);
        let service = self.retry.layer(service);
        let service = self.key.layer(service);
        self.deadline.layer(service)
    }
}
