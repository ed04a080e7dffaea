//! The layer.

use tower_layer::Layer;

use crate::limits::Limits;
use crate::service::RateLimitService;

/// Lets each attempt through when every quota that covers it has room.
///
/// Services made by layers that were given clones of the same [`Limits`] share
/// the quotas.
#[derive(Clone, Debug)]
pub struct RateLimitLayer {
    limits: Limits,
}

impl RateLimitLayer {
    /// The layer of these limits.
    #[must_use]
    pub fn new(limits: Limits) -> Self {
        Self { limits }
    }
}

impl<S> Layer<S> for RateLimitLayer {
    type Service = RateLimitService<S>;

    fn layer(&self, inner: S) -> Self::Service {
        RateLimitService::new(self.limits.clone(), inner)
    }
}
