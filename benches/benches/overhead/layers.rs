//! Each layer alone, beside its peers.

use std::num::NonZeroU32;

use http::Method;
use tokio::time::Instant;
use tollway_core::{ClassifyLayer, Rules};
use tollway_idempotency::IdempotencyKeyLayer;
use tollway_limit::{Call, Limits, Quota, RateLimitLayer};
use tollway_retry::RetryLayer;
use tollway_timeout::{AttemptTimeoutLayer, DeadlineLayer};
use tower::Layer;
use tower::limit::RateLimitLayer as TowerRateLimitLayer;
use tower::retry::RetryLayer as TowerRetryLayer;
use tower::timeout::TimeoutLayer;

use crate::bare::{Bare, with_key};
use crate::cases::Group;
use crate::peers::{Attempts, resilience_limit, resilience_retry, resilience_timeout};
use crate::{ATTEMPT_TIMEOUT, CALL_TIMEOUT, LIMIT, WINDOW};

pub(crate) fn deadline() -> DeadlineLayer {
    DeadlineLayer::new(CALL_TIMEOUT)
}

pub(crate) fn timeout() -> AttemptTimeoutLayer {
    AttemptTimeoutLayer::new(ATTEMPT_TIMEOUT)
}

pub(crate) fn limit() -> RateLimitLayer {
    RateLimitLayer::new(limits())
}

fn limits() -> Limits {
    Limits::builder()
        .every_call(Quota::new(LIMIT, WINDOW))
        .build()
        .expect("valid limits")
}

pub(crate) fn classify() -> ClassifyLayer {
    ClassifyLayer::new(Rules::new())
}

pub(crate) fn each<const PENDING: bool>(group: &mut Group) {
    let bare = Bare::<PENDING>;
    group.one("deadline", "tollway", deadline().layer(bare));

    group.one("timeout", "tollway", timeout().layer(bare));
    let towers = TimeoutLayer::new(ATTEMPT_TIMEOUT);
    group.one("timeout", "tower", towers.layer(bare));
    let resilience = resilience_timeout().layer(bare);
    group.one("timeout", "tower-resilience", resilience);

    let key = IdempotencyKeyLayer::new();
    group.one("key", "tollway", key.layer(bare));
    let own = "key of the caller's";
    group.one_with(own, "tollway", key.layer(bare), with_key);

    group.one("retry", "tollway", RetryLayer::default().layer(bare));
    let towers = TowerRetryLayer::new(Attempts(3));
    group.one("retry", "tower", towers.layer(bare));
    let resilience = resilience_retry().layer(bare);
    group.one("retry", "tower-resilience", resilience);

    group.one("limit", "tollway", limit().layer(bare));
    let towers = TowerRateLimitLayer::new(LIMIT.into(), WINDOW);
    group.one("limit", "tower", towers.layer(bare));
    let resilience = resilience_limit().layer(bare);
    group.one("limit", "tower-resilience", resilience);

    group.one("classify", "tollway", classify().layer(bare));
}

/// Asking for a permit, without a service.
pub(crate) fn permits(group: &mut Group) {
    let limits = limits();
    group.check("permit", "tollway", move || {
        let call = Call::new(&Method::POST, "/v1/payouts");
        assert!(limits.try_acquire(&call, Instant::now()).is_ok());
    });
    let most = NonZeroU32::MAX;
    let direct = governor::RateLimiter::direct(governor::Quota::per_second(most));
    group.check("permit", "governor", move || {
        assert!(direct.check().is_ok());
    });
    let keyed = governor::RateLimiter::keyed(governor::Quota::per_second(most));
    group.check("permit, keyed", "governor", move || {
        assert!(keyed.check_key(&"/v1/payouts").is_ok());
    });
}
