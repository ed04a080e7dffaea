//! tower's layers and tower-resilience's, set as most people set them.

use std::future::{Ready, ready};
use std::time::Duration;

use http::{Request, Response};
use tower::retry::Policy;
use tower_resilience::ratelimiter::RateLimiterLayer;
use tower_resilience::retry::RetryLayer;
use tower_resilience::timelimiter::TimeLimiterLayer;

use crate::bare::Body;
use crate::{ATTEMPT_TIMEOUT, LIMIT, WINDOW};

/// A policy as most people write it.
#[derive(Clone)]
pub(crate) struct Attempts(pub(crate) u32);

impl<T, E> Policy<Request<Body>, Response<T>, E> for Attempts {
    type Future = Ready<()>;

    fn retry(
        &mut self,
        _: &mut Request<Body>,
        result: &mut Result<Response<T>, E>,
    ) -> Option<Self::Future> {
        let failed = match result {
            Ok(response) => response.status().is_server_error(),
            Err(_) => true,
        };
        (failed && self.0 > 0).then(|| {
            self.0 -= 1;
            ready(())
        })
    }

    fn clone_request(&mut self, request: &Request<Body>) -> Option<Request<Body>> {
        Some(request.clone())
    }
}

pub(crate) fn resilience_timeout() -> TimeLimiterLayer {
    TimeLimiterLayer::builder()
        .timeout_duration(ATTEMPT_TIMEOUT)
        .build()
}

pub(crate) fn resilience_limit() -> RateLimiterLayer {
    RateLimiterLayer::builder()
        .limit_for_period(LIMIT as usize)
        .refresh_period(WINDOW)
        .timeout_duration(ATTEMPT_TIMEOUT)
        .build()
        .expect("valid limits")
}

pub(crate) fn resilience_retry<E>() -> RetryLayer<Request<Body>, Response<Body>, E> {
    RetryLayer::builder()
        .max_attempts(4)
        .exponential_backoff(Duration::from_millis(500))
        .build()
}
