//! What a caller learns at the deadline: never less than it must know so as not
//! to pay twice.

use std::future::poll_fn;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::Full;
use tokio::time::{Instant, sleep};
use tollway::core::{BoxError, Deadline, IdempotencyKey, Phase, Verdict};
use tollway::idempotency::{Dialect, IdempotencyKeyLayer, KeyBody};
use tollway::limit::{Limits, LimitsBuilder, Quota, RateLimitLayer};
use tollway::pool::Protocol;
use tollway::retry::{Attempts, BackOff, Hedge, Jitter, ReplayBody, RetryLayer, RetryPolicy, Stop};
use tollway::timeout::{AttemptTimeoutLayer, DeadlineLayer};
use tollway::{Client, ClientBuilder};
use tollway_sim::{Fault, Faults, Gateway, Latency, Provider};
use tollway_tests::words;
use tower::{Service, ServiceBuilder, ServiceExt, service_fn};

const DEADLINE: Duration = Duration::from_millis(300);
const FOR_EVER: Duration = Duration::from_secs(600);

fn ms(ms: u64) -> Duration {
    Duration::from_millis(ms)
}

async fn gateway(
    provider: Provider,
    faults: impl IntoIterator<Item = Option<Fault>>,
) -> Result<Gateway, BoxError> {
    let gateway = Gateway::builder(provider)
        .unlimited()
        .faults(Faults::script(faults))
        .start()
        .await?;
    Ok(gateway)
}

fn builder(provider: Provider, limits: LimitsBuilder) -> Result<ClientBuilder, BoxError> {
    let profile = words::profile(provider);
    // Some time between the attempts, for others to come in between.
    let back_off = BackOff::exponential(ms(50), ms(50))?.with_jitter(Jitter::Equal);
    let retry = profile.retry.clone().back_off(back_off);
    Ok(Client::builder(profile)
        .plain_http(true)
        .limits(limits)
        .retry(retry)
        .deadline(DEADLINE)
        .pool(|pool| pool.protocol(Protocol::Http1Only)))
}

#[tokio::test]
async fn the_error_carries_the_minted_key_the_attempts_and_the_doubt() -> Result<(), BoxError> {
    let fault = Some(Fault::HangAfterEffect(FOR_EVER));
    let gateway = gateway(Provider::Stripe, [fault]).await?;
    let client = builder(Provider::Stripe, Limits::builder())?.build()?;

    let error = client
        .send(words::pay(&gateway, "r-1")?)
        .await
        .expect_err("nobody answers");
    assert!(error.is_timeout(), "{error:#}");
    assert!(error.is_unknown(), "{error:#}");
    assert!(!error.is_not_executed());
    let key = error.idempotency_key().expect("the key that was minted");
    assert_eq!(
        gateway.ledger().entries[0].key.as_deref(),
        Some(key.as_str())
    );
    let attempts = error.attempts().expect("the attempts");
    assert_eq!(attempts.made(), 1);
    assert_eq!(attempts.records()[0].verdict, Verdict::Unknown);
    Ok(())
}

#[tokio::test]
async fn all_attempts_stand_in_the_error_of_the_deadline() -> Result<(), BoxError> {
    let faults = [
        Some(Fault::ErrorAfter(503)),
        Some(Fault::HangAfterEffect(FOR_EVER)),
    ];
    let gateway = gateway(Provider::Stripe, faults).await?;
    let client = builder(Provider::Stripe, Limits::builder())?.build()?;

    let error = client
        .send(words::pay(&gateway, "r-1")?)
        .await
        .expect_err("nobody answers");
    assert!(error.is_timeout() && error.is_unknown(), "{error:#}");
    assert!(error.idempotency_key().is_some());
    assert_eq!(error.attempts().map(Attempts::made), Some(2));
    assert_eq!(gateway.ledger().times_applied("r-1"), 1);
    Ok(())
}

/// A first attempt that may have had an effect, and then no room in the quota
/// until long after the deadline.
#[tokio::test]
async fn a_quota_without_room_for_a_second_attempt_leaves_the_outcome_unknown()
-> Result<(), BoxError> {
    for fault in [Fault::ErrorAfter(503), Fault::ResetAfterEffect] {
        let gateway = gateway(Provider::Stripe, [Some(fault)]).await?;
        let limits = Limits::builder().every_call(Quota::per_minute(1));
        let client = builder(Provider::Stripe, limits)?.build()?;

        let result = client.send(words::pay(&gateway, "r-1")?).await;
        let error = result.expect_err("no permit");
        assert!(error.is_unknown(), "{fault}: {error:#}");
        assert!(error.idempotency_key().is_some(), "{fault}: {error:#}");
        assert_eq!(error.phase(), Some(Phase::Permit), "{fault}: {error:#}");
        assert_eq!(gateway.ledger().times_applied("r-1"), 1);
    }
    Ok(())
}

/// Sends a call whose first attempt may have had an effect, and behind it one
/// that never ends, which takes what the second attempt would need. Returns
/// the error of the first.
async fn overtaken(builder: ClientBuilder) -> Result<tollway::Error, BoxError> {
    let gateway = Gateway::builder(Provider::Stripe)
        .unlimited()
        .latency(Latency::Fixed(ms(20)))
        .faults(Faults::script([
            Some(Fault::ErrorAfter(503)),
            Some(Fault::Hang(FOR_EVER)),
        ]))
        .start()
        .await?;
    let client = builder.build()?;
    let first = tokio::spawn(client.send(words::pay(&gateway, "r-1")?));
    while gateway.stats().arrivals == 0 {
        tokio::task::yield_now().await;
    }
    let second = words::pay(&gateway, "r-2")?;
    let second = tokio::spawn(client.send(second));
    let error = first.await?.expect_err("nothing is free");
    second.abort();
    assert_eq!(gateway.ledger().times_applied("r-1"), 1);
    assert_eq!(gateway.stats().arrivals, 2, "only one attempt each");
    Ok(error)
}

#[tokio::test]
async fn waiting_for_a_permit_for_the_second_attempt_leaves_the_outcome_unknown()
-> Result<(), BoxError> {
    let limits = Limits::builder().every_call(Quota::concurrent(1));
    let error = overtaken(builder(Provider::Stripe, limits)?).await?;
    assert!(error.is_unknown() && error.is_timeout(), "{error:#}");
    assert!(error.idempotency_key().is_some(), "{error:#}");
    Ok(())
}

#[tokio::test]
async fn waiting_for_a_connection_for_the_second_attempt_leaves_the_outcome_unknown()
-> Result<(), BoxError> {
    let one =
        builder(Provider::Stripe, Limits::builder())?.pool(|pool| pool.max_connections_per_host(1));
    let error = overtaken(one).await?;
    assert!(error.is_unknown() && error.is_timeout(), "{error:#}");
    assert!(error.idempotency_key().is_some(), "{error:#}");
    Ok(())
}

#[tokio::test]
async fn a_call_that_never_got_a_permit_or_a_connection_had_no_effect() -> Result<(), BoxError> {
    let fault = Some(Fault::Hang(FOR_EVER));
    let gateway = gateway(Provider::Stripe, [fault]).await?;
    let limited = Limits::builder().every_call(Quota::concurrent(1));
    let permits = builder(Provider::Stripe, limited)?;
    let connections =
        builder(Provider::Stripe, Limits::builder())?.pool(|pool| pool.max_connections_per_host(1));
    for builder in [permits, connections] {
        gateway.set_faults(Faults::always(Fault::Hang(FOR_EVER)))?;
        let client = builder.build()?;
        let arrived = gateway.stats().arrivals;
        let first = tokio::spawn(client.send(words::pay(&gateway, "r-1")?));
        while gateway.stats().arrivals == arrived {
            tokio::task::yield_now().await;
        }
        let started = Instant::now();
        // Before the first gives up and makes room.
        let mut request = words::pay(&gateway, "r-2")?;
        let soon = Deadline::after(started, DEADLINE / 3).expect("a near instant");
        request.extensions_mut().insert(soon);
        let error = client.send(request).await.expect_err("no room");
        assert!(error.is_not_executed() && error.is_timeout(), "{error:#}");
        assert!(error.idempotency_key().is_some(), "{error:#}");
        first.abort();
    }
    Ok(())
}

type Sent = Request<ReplayBody<Full<Bytes>>>;

fn answer(status: u16) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::default());
    *response.status_mut() = http::StatusCode::from_u16(status).expect("a status");
    response
}

fn with_key() -> Request<Full<Bytes>> {
    Request::post("https://pay.example/v1/payouts")
        .header("idempotency-key", "r-1")
        .body(Full::from("amount=1"))
        .expect("a request")
}

/// The layer above sees only what the last of the futures below it waits for,
/// which says nothing of an attempt before.
#[tokio::test(start_paused = true)]
async fn a_deadline_above_the_retry_remembers_the_attempt_before() -> Result<(), BoxError> {
    let made = Arc::new(AtomicU32::new(0));
    let gateway = service_fn(move |_: Sent| {
        let first = made.fetch_add(1, Ordering::Relaxed) == 0;
        let mut asked = false;
        poll_fn(move |cx| {
            if first && std::mem::replace(&mut asked, true) {
                // Sent and answered in one poll.
                return Poll::Ready(Ok::<_, BoxError>(answer(503)));
            }
            if first {
                cx.waker().wake_by_ref();
            }
            Phase::Permit.pending()
        })
    });
    // One back-off of no time at all, so that the second attempt begins in the
    // same poll.
    let shortest = Duration::from_nanos(1);
    for seed in 0..16 {
        let policy = RetryPolicy::builder()
            .back_off(BackOff::exponential(shortest, shortest)?)
            .seed(move || seed)
            .build()?;
        let mut service = ServiceBuilder::new()
            .layer(DeadlineLayer::new(DEADLINE))
            .layer(RetryLayer::new(policy))
            .service(gateway.clone());
        let error = service.ready().await?.call(with_key()).await;
        let error = error.expect_err("no second permit");
        assert!(tollway::timeout::is_timeout(&*error));
        if seed == 0 {
            assert_eq!(Verdict::of_error(&*error), Verdict::Unknown, "{error}");
        }
    }
    Ok(())
}

/// Of two attempts under way, one waits for its permit; the other doesn't.
#[tokio::test(start_paused = true)]
async fn a_deadline_above_a_hedge_sees_both_attempts() -> Result<(), BoxError> {
    let made = Arc::new(AtomicU32::new(0));
    let gateway = service_fn(move |_: Sent| {
        let nth = made.fetch_add(1, Ordering::Relaxed);
        let mut answered = Box::pin(sleep(FOR_EVER));
        poll_fn(move |cx| match nth {
            // So that a quantile is known.
            ..200 => Poll::Ready(Ok::<_, BoxError>(answer(200))),
            // The first waits for its answer, the second for its permit.
            200 => answered.as_mut().poll(cx).map(|()| Ok(answer(200))),
            _ => Phase::Permit.pending(),
        })
    });
    let policy = RetryPolicy::builder()
        .hedge(Hedge::after_quantile(0.95)?)
        .build()?;
    let mut service = ServiceBuilder::new()
        .layer(DeadlineLayer::new(DEADLINE))
        .layer(RetryLayer::new(policy))
        .service(gateway);
    let get = || {
        Request::get("https://pay.example/v1/payouts")
            .body(Full::<Bytes>::default())
            .expect("a request")
    };
    for _ in 0..200 {
        service.ready().await?.call(get()).await?;
    }
    let error = service.ready().await?.call(get()).await;
    let error = error.expect_err("no answer");
    assert_eq!(Verdict::of_error(&*error), Verdict::Unknown, "{error}");
    Ok(())
}

/// The same through the client: the hedge waits for its permit, the first
/// attempt for its answer.
#[tokio::test]
async fn a_hedge_that_waits_for_its_permit_leaves_the_outcome_unknown() -> Result<(), BoxError> {
    let gateway = gateway(Provider::Stripe, []).await?;
    let limits = Limits::builder().every_call(Quota::concurrent(1));
    let profile = words::profile(Provider::Stripe);
    let retry = profile.retry.clone().hedge(Hedge::after_quantile(0.95)?);
    let client = builder(Provider::Stripe, limits)?.retry(retry).build()?;
    for _ in 0..120 {
        client.send(words::look_up(&gateway, "r-1")?).await?;
    }
    gateway.set_faults(Faults::always(Fault::Hang(FOR_EVER)))?;
    let error = client.send(words::look_up(&gateway, "r-1")?).await;
    let error = error.expect_err("nobody answers");
    assert!(error.is_unknown() && error.is_timeout(), "{error:#}");
    Ok(())
}

/// The retry sees to it before the deadline does.
#[tokio::test]
async fn a_back_off_that_would_outlast_the_deadline_returns_the_last_answer() -> Result<(), BoxError>
{
    let gateway = gateway(Provider::Stripe, [Some(Fault::ErrorAfter(503))]).await?;
    let profile = words::profile(Provider::Stripe);
    let back_off = BackOff::exponential(FOR_EVER, FOR_EVER)?.with_jitter(Jitter::Equal);
    let client = builder(Provider::Stripe, Limits::builder())?
        .retry(profile.retry.back_off(back_off))
        .build()?;
    let response = client.send(words::pay(&gateway, "r-1")?).await?;
    assert_eq!(response.status(), 503);
    assert_eq!(Verdict::of(response.extensions()), Some(Verdict::Unknown));
    let attempts = Attempts::of(response.extensions()).expect("its story");
    assert_eq!(attempts.stop(), Stop::Deadline);
    assert!(attempts.would_have_waited() >= Some(FOR_EVER / 2));
    Ok(())
}

/// A failed response that is read to its end until the deadline comes would end
/// the call from above, where nobody knows its key.
#[tokio::test(start_paused = true)]
async fn a_failed_response_that_stalls_is_let_go_before_the_deadline() -> Result<(), BoxError> {
    let made = Arc::new(AtomicU32::new(0));
    let counted = Arc::clone(&made);
    let gateway = service_fn(move |_: Request<ReplayBody<KeyBody<Full<Bytes>>>>| {
        let first = counted.fetch_add(1, Ordering::Relaxed) == 0;
        async move {
            let mut response = Response::new(Stalls);
            if !first {
                std::future::pending::<()>().await;
            }
            *response.status_mut() = http::StatusCode::SERVICE_UNAVAILABLE;
            Ok::<_, BoxError>(response)
        }
    });
    let policy = RetryPolicy::builder()
        .back_off(BackOff::exponential(ms(1), ms(1))?)
        .drain(16 * 1024, 2 * DEADLINE)
        .build()?;
    let service = ServiceBuilder::new()
        .layer(DeadlineLayer::new(DEADLINE).sharing_timers())
        .layer(IdempotencyKeyLayer::new())
        .layer(RetryLayer::new(policy))
        .layer(AttemptTimeoutLayer::new(FOR_EVER))
        .service(gateway);
    let started = Instant::now();
    let request = Request::post("https://pay.example/v1/payouts").body(Full::from("amount=1"))?;
    let error = service.oneshot(request).await.expect_err("no answer");
    assert_eq!(started.elapsed(), DEADLINE);
    assert_eq!(made.load(Ordering::Relaxed), 2);
    assert_eq!(Verdict::of_error(&*error), Verdict::Unknown, "{error}");
    assert!(tollway::timeout::is_deadline(&*error), "{error}");
    assert!(tollway::idempotency::key_of(&*error).is_some(), "{error}");
    Ok(())
}

/// A body that never comes.
#[derive(Debug)]
struct Stalls;

impl http_body::Body for Stalls {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(
        self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<http_body::Frame<Bytes>, BoxError>>> {
        Poll::Pending
    }
}

/// The key stands in a body that doesn't come: nothing was sent.
#[tokio::test(start_paused = true)]
async fn a_call_that_waits_for_its_own_body_had_no_effect() -> Result<(), BoxError> {
    let sent = Arc::new(AtomicU32::new(0));
    let counted = Arc::clone(&sent);
    let gateway = service_fn(move |_: Request<KeyBody<Stalls>>| {
        counted.fetch_add(1, Ordering::Relaxed);
        async { Ok::<_, BoxError>(answer(200)) }
    });
    let service = ServiceBuilder::new()
        .layer(DeadlineLayer::new(DEADLINE))
        .layer(IdempotencyKeyLayer::new().dialect(Dialect::body_field("RequestId")))
        .service(gateway);
    let request = Request::post("https://pay.example/v1/payouts").body(Stalls)?;
    let error = service.oneshot(request).await.expect_err("no body");
    assert!(tollway::timeout::is_deadline(&*error), "{error}");
    assert_eq!(Verdict::of_error(&*error), Verdict::NO_EFFECT, "{error}");
    assert_eq!(sent.load(Ordering::Relaxed), 0);
    Ok(())
}

/// Between the decision to repeat and the sending lies the wait for a permit.
#[tokio::test(start_paused = true)]
async fn no_permit_is_waited_for_longer_than_the_key_lives() -> Result<(), BoxError> {
    let sent = Arc::new(AtomicU32::new(0));
    let counted = Arc::clone(&sent);
    let gateway = service_fn(move |_: Sent| {
        counted.fetch_add(1, Ordering::Relaxed);
        async { Ok::<_, BoxError>(answer(503)) }
    });
    let limits = Limits::builder().every_call(Quota::per_minute(1));
    let policy = RetryPolicy::builder().key_life(Duration::from_secs(30));
    let service = ServiceBuilder::new()
        .layer(RetryLayer::new(policy.build()?))
        .layer(RateLimitLayer::new(limits.build()?))
        .service(gateway);
    let error = service.oneshot(with_key()).await.expect_err("no permit");
    assert!(error.is_unknown(), "{error}");
    assert_eq!(error.attempts().stop(), Stop::KeyExpired);
    assert_eq!(sent.load(Ordering::Relaxed), 1);
    Ok(())
}

/// The same where the caller repeats the call.
#[tokio::test(start_paused = true)]
async fn no_permit_is_waited_for_longer_than_a_key_that_came_back_lives() -> Result<(), BoxError> {
    let sent = Arc::new(AtomicU32::new(0));
    let counted = Arc::clone(&sent);
    let gateway = service_fn(move |_: Request<KeyBody<Full<Bytes>>>| {
        counted.fetch_add(1, Ordering::Relaxed);
        async { Ok::<_, BoxError>(answer(503)) }
    });
    let limits = Limits::builder().every_call(Quota::per_minute(1));
    let dialect = Dialect::default().life(Duration::from_secs(30));
    let service = ServiceBuilder::new()
        .layer(IdempotencyKeyLayer::new().dialect(dialect))
        .layer(RateLimitLayer::new(limits.build()?))
        .service(gateway);
    service.clone().oneshot(with_key()).await?;
    sleep(Duration::from_secs(1)).await;
    // One that the caller knows of by another process, too.
    let mut from_before = Request::post("/v1/payouts").body(Full::from("amount=1"))?;
    let key: IdempotencyKey = "r-2".parse()?;
    let dies = Instant::now() + Duration::from_secs(20);
    from_before.extensions_mut().insert(key.valid_until(dies));
    for request in [with_key(), from_before] {
        let error = service.clone().oneshot(request).await;
        let error = error.expect_err("no permit");
        assert!(tollway::idempotency::key_of(&*error).is_some());
        assert_eq!(sent.load(Ordering::Relaxed), 1);
    }
    Ok(())
}
