//! The order of the layers is the point: composed in another one, the stack
//! breaks the provider's rule or pays twice.
//!
//! Each check is made on the right order by hand, on a wrong one, and on the
//! client's own. That the wrong one fails it shows that it would notice.

use std::future::{Ready, ready};
use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::Full;
use tokio::task::JoinSet;
use tollway::core::{BoxError, ClassifyLayer, Verdict};
use tollway::idempotency::IdempotencyKeyLayer;
use tollway::limit::{Limits, LimitsBuilder, Quota, RateLimitLayer};
use tollway::pool::Pool;
use tollway::retry::{BackOff, Budget, RetryLayer, RetryPolicy, RetryPolicyBuilder};
use tollway::{Client, profiles};
use tollway_sim::rule::Rule;
use tollway_sim::{Fault, Faults, Gateway, Provider, Scope};
use tollway_tests::words;
use tower::{Service, ServiceBuilder, ServiceExt};

type Call = Request<Full<Bytes>>;

const CALLS: usize = 12;
/// The provider's rule, and the client's quota.
const LIMIT: u32 = 6;
const WINDOW: Duration = Duration::from_millis(400);

/// Every request has a twin that fails, and had its effect.
fn faults() -> Faults {
    let fault = Some(Fault::ErrorAfter(503));
    Faults::script((0..2 * CALLS).map(|nth| if nth % 2 == 0 { fault } else { None }))
}

async fn gateway(rule: Option<Rule>) -> Result<Gateway, BoxError> {
    let mut builder = Gateway::builder(Provider::Stripe)
        .unlimited()
        .faults(faults());
    if let Some(rule) = rule {
        builder = builder.rule(Scope::Gateway, rule);
    }
    Ok(builder.start().await?)
}

fn policy() -> Result<RetryPolicyBuilder, BoxError> {
    let back_off = BackOff::exponential(Duration::from_millis(1), Duration::from_millis(2))?;
    Ok(RetryPolicy::builder()
        .max_attempts(10)
        .back_off(back_off)
        .budget(Budget::unlimited()))
}

fn limits() -> LimitsBuilder {
    Limits::builder().every_call(Quota::new(LIMIT, WINDOW))
}

fn pool<B>() -> Result<Pool<B>, BoxError>
where
    B: http_body::Body + Send + Unpin + 'static,
    B::Data: Send,
    B::Error: Into<BoxError>,
{
    Ok(Pool::builder().plain_http(true).build()?)
}

/// What came of a stack's calls.
struct Came {
    /// Calls that ended with anything but success.
    failed: usize,
    /// References that took effect more than once.
    duplicates: usize,
    /// Requests that the gateway's rule refused.
    throttled: u64,
}

/// Pays through a stack, all at once, and asks the gateway what it saw.
async fn pay_through<S, ResB>(stack: S, gateway: &Gateway) -> Result<Came, BoxError>
where
    S: Service<Call, Response = Response<ResB>> + Clone + Send + 'static,
    S::Error: Into<BoxError> + Send,
    S::Future: Send,
    ResB: Send + 'static,
{
    let mut calls = JoinSet::new();
    for nth in 0..CALLS {
        let request = words::pay(gateway, &format!("r-{nth}"))?;
        let body = words::payout(Provider::Stripe, &format!("r-{nth}"));
        let call = stack.clone().oneshot(request.map(|_| Full::new(body)));
        calls.spawn(async move {
            call.await
                .is_ok_and(|response| Verdict::of_response(&response) == Verdict::Done)
        });
    }
    let failed = calls.join_all().await.iter().filter(|done| !**done).count();
    Ok(Came {
        failed,
        duplicates: gateway.ledger().duplicates().len(),
        throttled: gateway.stats().throttled,
    })
}

fn client(limits: LimitsBuilder) -> Result<Client, BoxError> {
    Ok(Client::builder(profiles::stripe())
        .plain_http(true)
        .limits(limits)
        .retry(policy()?)
        .build()?)
}

/// The check: the rule was never broken, and every call succeeded.
fn keeps_the_quota(came: &Came) -> bool {
    came.throttled == 0 && came.failed == 0
}

fn rule() -> Option<Rule> {
    Some(Rule::sliding_log(LIMIT, WINDOW))
}

#[tokio::test]
async fn below_the_retry_every_attempt_pays_its_quota() -> Result<(), BoxError> {
    let gateway = gateway(rule()).await?;
    let stack = ServiceBuilder::new()
        .layer(IdempotencyKeyLayer::new())
        .layer(RetryLayer::new(policy()?.build()?))
        .layer(RateLimitLayer::new(limits().build()?))
        .layer(ClassifyLayer::default())
        .service(pool()?);
    let came = pay_through(stack, &gateway).await?;
    assert!(keeps_the_quota(&came));
    Ok(())
}

#[tokio::test]
async fn above_the_retry_a_limiter_lets_the_retries_break_the_rule() -> Result<(), BoxError> {
    let gateway = gateway(rule()).await?;
    let stack = ServiceBuilder::new()
        .layer(IdempotencyKeyLayer::new())
        .layer(RateLimitLayer::new(limits().build()?))
        .layer(RetryLayer::new(policy()?.build()?))
        .layer(ClassifyLayer::default())
        .service(pool()?);
    let came = pay_through(stack, &gateway).await?;
    assert!(!keeps_the_quota(&came), "the check would not notice");
    assert!(came.throttled > 0);
    Ok(())
}

#[tokio::test]
async fn the_client_lets_every_attempt_pay_its_quota() -> Result<(), BoxError> {
    let gateway = gateway(rule()).await?;
    let came = pay_through(client(limits())?, &gateway).await?;
    assert!(keeps_the_quota(&came));
    Ok(())
}

/// The check: every call succeeded, and took effect once.
fn pays_once(came: &Came) -> bool {
    came.duplicates == 0 && came.failed == 0
}

#[tokio::test]
async fn above_the_retry_one_key_serves_all_attempts() -> Result<(), BoxError> {
    let gateway = gateway(None).await?;
    let stack = ServiceBuilder::new()
        .layer(IdempotencyKeyLayer::new())
        .layer(RetryLayer::new(policy()?.build()?))
        .layer(ClassifyLayer::default())
        .service(pool()?);
    let came = pay_through(stack, &gateway).await?;
    assert!(pays_once(&came));
    Ok(())
}

/// Our retry sees no key where none has been given yet, and so it doesn't dare:
/// calls end that needn't.
#[tokio::test]
async fn below_the_retry_a_key_is_of_no_use_to_it() -> Result<(), BoxError> {
    let gateway = gateway(None).await?;
    let stack = ServiceBuilder::new()
        .layer(RetryLayer::new(policy()?.build()?))
        .layer(IdempotencyKeyLayer::new())
        .layer(ClassifyLayer::default())
        .service(pool()?);
    let came = pay_through(stack, &gateway).await?;
    assert!(!pays_once(&came), "the check would not notice");
    assert!(came.failed > 0);
    Ok(())
}

/// A retry that dares everything, as many are configured.
#[derive(Clone)]
struct Always;

impl<ResB, E> tower::retry::Policy<Call, Response<ResB>, E> for Always {
    type Future = Ready<()>;

    fn retry(&mut self, _: &mut Call, result: &mut Result<Response<ResB>, E>) -> Option<Ready<()>> {
        let done = result
            .as_ref()
            .is_ok_and(|response| response.status().is_success());
        (!done).then(|| ready(()))
    }

    fn clone_request(&mut self, call: &Call) -> Option<Call> {
        Some(call.clone())
    }
}

/// Where the retry dares all the same, each attempt has a key of its own.
#[tokio::test]
async fn below_a_retry_that_dares_a_key_is_minted_for_each_attempt_and_pays_twice()
-> Result<(), BoxError> {
    let gateway = gateway(None).await?;
    let stack = ServiceBuilder::new()
        .layer(tower::retry::RetryLayer::new(Always))
        .layer(IdempotencyKeyLayer::new())
        .layer(ClassifyLayer::default())
        .service(pool()?);
    let came = pay_through(stack, &gateway).await?;
    assert!(!pays_once(&came), "the check would not notice");
    assert!(came.duplicates > 0);
    Ok(())
}

#[tokio::test]
async fn the_client_gives_all_attempts_one_key() -> Result<(), BoxError> {
    let gateway = gateway(None).await?;
    let came = pay_through(client(Limits::builder())?, &gateway).await?;
    assert!(pays_once(&came));
    Ok(())
}
