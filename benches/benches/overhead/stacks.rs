//! The layers stacked, beside stacks of the peers'.

use http::Request;
use tollway_core::BoxError;
use tollway_idempotency::IdempotencyKeyLayer;
use tollway_retry::RetryLayer;
use tower::{Service, ServiceBuilder};

use crate::bare::{Bare, Body};
use crate::cases::Group;
use crate::layers::{classify, deadline, limit, timeout};
use crate::peers::{Attempts, resilience_limit, resilience_retry, resilience_timeout};
use crate::{ATTEMPT_TIMEOUT, LIMIT, WINDOW};

pub(crate) fn each<const PENDING: bool>(group: &mut Group) {
    group.one("all but the limit", "tollway", four::<PENDING>());
    group.one("stack", "tollway", five::<PENDING>());
    group.one("stack, not shared", "tower", tower::<PENDING>());
    group.one("stack", "tower-resilience", resilience::<PENDING>());
    let case = "stack, a clone for each call";
    group.cloned(case, "tollway", five::<PENDING>());
    group.cloned(case, "tower-resilience", resilience::<PENDING>());
    group.one("stack and classify", "tollway", six::<PENDING>());
}

/// The deadline and the attempt share a timer, as in the client.
fn four<const PENDING: bool>() -> impl Service<Request<Body>> {
    ServiceBuilder::new()
        .layer(deadline().sharing_timers())
        .layer(IdempotencyKeyLayer::new())
        .layer(RetryLayer::default())
        .layer(timeout())
        .service(Bare::<PENDING>)
}

fn five<const PENDING: bool>() -> impl Service<Request<Body>> + Clone {
    ServiceBuilder::new()
        .layer(deadline().sharing_timers())
        .layer(IdempotencyKeyLayer::new())
        .layer(RetryLayer::default())
        .layer(limit())
        .layer(timeout())
        .service(Bare::<PENDING>)
}

fn six<const PENDING: bool>() -> impl Service<Request<Body>> {
    ServiceBuilder::new()
        .layer(deadline().sharing_timers())
        .layer(IdempotencyKeyLayer::new())
        .layer(RetryLayer::default())
        .layer(limit())
        .layer(timeout())
        .layer(classify())
        .service(Bare::<PENDING>)
}

/// Tower's rate limit can't be cloned, so its retry can't stand above it.
fn tower<const PENDING: bool>() -> impl Service<Request<Body>, Error = BoxError, Future: Send> + Send
{
    ServiceBuilder::new()
        .rate_limit(LIMIT.into(), WINDOW)
        .retry(Attempts(3))
        .timeout(ATTEMPT_TIMEOUT)
        .service(Bare::<PENDING>)
}

/// The same behind a buffer, which is how it can be shared.
pub(crate) fn buffered<const PENDING: bool>() -> impl Service<Request<Body>> {
    ServiceBuilder::new()
        .buffer(1024)
        .service(tower::<PENDING>())
}

fn resilience<const PENDING: bool>() -> impl Service<Request<Body>> + Clone {
    ServiceBuilder::new()
        .layer(resilience_retry())
        .layer(resilience_limit())
        .layer(resilience_timeout())
        .service(Bare::<PENDING>)
}
