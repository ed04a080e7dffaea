use std::time::Duration;

use http::Request;
use tollway::core::{IdempotencyKey, Scope, Verdict};
use tollway::limit::Limits;
use tollway::{Body, Client, profiles};
use tollway_sim::rule::Rule;
use tollway_sim::{Fault, Gateway, Latency, Provider, Scope as Limited};
use tollway_tests::words::{self, Seen};

use super::{Test, client, failing, ms, not_done, records, retry};

const STRIPE: Provider = Provider::Stripe;

#[tokio::test]
async fn each_reason_of_a_429_names_whom_it_concerns() -> Test {
    let endpoint = Limited::endpoint("POST /v1/payouts");
    let rule = Rule::sliding_log(1, Duration::from_secs(60));
    let gateway = || Gateway::builder(STRIPE).unlimited();
    for (gateway, reason, scope) in [
        (
            gateway().rule(Limited::Gateway, rule),
            "global-rate",
            Scope::GlobalRate,
        ),
        (
            gateway().rule(Limited::EachEndpoint, rule),
            "endpoint-rate",
            Scope::EndpointRate,
        ),
        (
            gateway().in_flight(Limited::Gateway, 0),
            "global-concurrency",
            Scope::GlobalConcurrency,
        ),
        (
            gateway().in_flight(endpoint.clone(), 0),
            "endpoint-concurrency",
            Scope::EndpointConcurrency,
        ),
        (
            gateway().rule(endpoint.clone(), rule),
            "resource-specific",
            Scope::Resource,
        ),
    ] {
        let gateway = gateway.start().await?;
        let client = client(STRIPE)?
            .retry(retry(STRIPE)?.max_attempts(1))
            .build()?;
        // The first is let through where it is a rate.
        let _ = client.send(words::pay(&gateway, "r-1")?).await?;
        let response = client.send(words::pay(&gateway, "r-2")?).await?;
        assert_eq!(response.status(), 429, "{reason}");
        assert_eq!(response.headers()["stripe-rate-limited-reason"], reason);
        let Some(Verdict::NotExecuted { scope: said, .. }) = Verdict::of(response.extensions())
        else {
            panic!("{reason}: {:?}", response.extensions());
        };
        assert_eq!(said, scope, "{reason}");
    }
    Ok(())
}

#[tokio::test]
async fn a_lock_is_waited_for_by_its_call_and_pauses_nothing_else() -> Test {
    let gateway = failing(STRIPE, &[Fault::LockTimeout]).start().await?;
    let client = client(STRIPE)?.build()?;
    let answer = client.send(words::pay(&gateway, "r-1")?).await;
    let attempts = records(&answer);
    assert_eq!(attempts.len(), 2, "{attempts:?}");
    assert_eq!(attempts[0].verdict, Verdict::NO_EFFECT);
    let paused = |client: &Client| {
        let quotas = client.limits().snapshot().quotas;
        quotas.iter().any(|quota| quota.paused_until.is_some())
    };
    assert!(!paused(&client));
    assert_eq!(Verdict::of_response(&answer?), Verdict::Done);
    assert_eq!(gateway.ledger().times_applied("r-1"), 1);
    Ok(())
}

#[tokio::test]
async fn stripe_should_retry_overrides_the_client_s_own_judgement() -> Test {
    let gateway = Gateway::builder(STRIPE)
        .latency(Latency::Fixed(ms(150)))
        .start()
        .await?;
    let keyed = |reference: &str| {
        let mut request = words::pay(&gateway, reference)?;
        let key = http::HeaderValue::from_static("one-key");
        request.headers_mut().insert("idempotency-key", key);
        Ok::<_, http::Error>(request)
    };
    // Two processes with the same key at the same time: the second is told 409
    // and `Stripe-Should-Retry: true` until the first is through, and then has
    // its result.
    let (one, two) = (
        client(STRIPE)?.build()?,
        client(STRIPE)?
            .retry(retry(STRIPE)?.max_attempts(100))
            .build()?,
    );
    let first = tokio::spawn(one.send(keyed("r-1")?));
    while gateway.ledger().effects() == 0 {
        tokio::task::yield_now().await;
    }
    let second = two.send(keyed("r-1")?).await;
    let attempts = records(&second);
    assert_eq!(attempts[0].verdict, Verdict::Unknown);
    assert!(
        format!("{:?}", attempts[0].outcome).contains("409"),
        "{attempts:?}"
    );
    let second = second?;
    assert_eq!(second.headers()["idempotent-replayed"], "true");
    assert_eq!(first.await??.status(), 200);
    assert_eq!(gateway.ledger().effects(), 1);

    // Other parameters under a known key: 400 and `Stripe-Should-Retry: false`.
    // A process that has seen neither call can't know.
    let three = client(STRIPE)?.build()?;
    let seen = Seen::of(three.send(keyed("r-2")?).await).await;
    assert_eq!(seen.status, Some(400));
    assert_eq!((seen.verdict, seen.attempts), (Verdict::Rejected, 1));
    // One that has doesn't send it at all.
    let arrived = gateway.stats().arrivals;
    let error = one.send(keyed("r-2")?).await.expect_err("refused here");
    assert_eq!(error.verdict(), Verdict::Rejected, "{error:#}");
    assert_eq!(gateway.stats().arrivals, arrived);
    Ok(())
}

#[tokio::test]
async fn every_post_has_a_key_which_all_its_attempts_carry() -> Test {
    let faults = [Fault::ErrorAfter(500), Fault::ResetAfterEffect];
    let gateway = failing(STRIPE, &faults).start().await?;
    let client = client(STRIPE)?.build()?;
    let response = client.send(words::pay(&gateway, "r-1")?).await?;
    let key = IdempotencyKey::of(response.extensions()).expect("the key that was minted");
    assert!(key.as_str().len() <= 255);
    let ledger = gateway.ledger();
    assert_eq!(ledger.effects(), 1);
    assert_eq!(ledger.entries[0].key.as_deref(), Some(key.as_str()));
    assert_eq!(ledger.entries[0].repeats, 2);
    Ok(())
}

#[tokio::test]
async fn permanent_failures_are_never_repeated() -> Test {
    let gateway = Gateway::builder(STRIPE).start().await?;
    let client = client(STRIPE)?.build()?;
    let url = |path: &str| format!("{}{path}", gateway.url());
    let bad = Request::post(url("/v1/payouts"))
        .header("content-type", "application/x-www-form-urlencoded")
        .body(Body::from("amount=0&currency=eur"))?;
    let missing = Request::get(url("/v1/payouts/po_0")).body(Body::empty())?;
    for (request, status) in [(bad, 400), (missing, 404)] {
        let seen = Seen::of(client.send(request).await).await;
        assert_eq!(seen.status, Some(status));
        assert_eq!((seen.verdict, seen.attempts), (Verdict::Rejected, 1));
    }
    Ok(())
}

#[tokio::test]
async fn payouts_keep_to_their_own_limit() -> Test {
    let gateway = Gateway::builder(STRIPE)
        .latency(Latency::uniform(ms(1), ms(20)))
        .start()
        .await?;
    let client = client(STRIPE)?.build()?;
    let failed = not_done(&client, 20, |reference| words::pay(&gateway, reference));
    assert!(failed.await?.is_empty());
    assert_eq!(gateway.stats().throttled, 0);
    Ok(())
}

#[tokio::test]
async fn all_endpoints_together_keep_to_the_sandbox_s_limit() -> Test {
    let gateway = Gateway::builder(STRIPE).sandbox(true).start().await?;
    let profile = profiles::stripe_sandbox();
    let client = Client::builder(profile).plain_http(true).build()?;
    // Two endpoints, each below its own 25 a second.
    let lists = ["/v1/payouts", "/v1/payment_intents"];
    let request = |reference: &str| {
        let at = usize::from(reference.ends_with(['1', '3', '5', '7', '9']));
        Request::get(format!("{}{}", gateway.url(), lists[at])).body(Body::empty())
    };
    assert!(not_done(&client, 40, request).await?.is_empty());
    assert_eq!(gateway.stats().throttled, 0);
    Ok(())
}

/// That the limits above are there to be broken.
#[tokio::test]
async fn without_a_quota_the_gateway_s_limit_is_broken() -> Test {
    let gateway = Gateway::builder(STRIPE).start().await?;
    let client = client(STRIPE)?.limits(Limits::builder()).build()?;
    let _ = not_done(&client, 20, |reference| words::pay(&gateway, reference)).await?;
    assert!(gateway.stats().throttled > 0);
    Ok(())
}
