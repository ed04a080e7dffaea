use http::Request;
use tollway::core::{BodyRule, Rules, Scope, Test as Asked, Verdict};
use tollway::limit::{Limits, Quota, RateLimitError, Shape};
use tollway::retry::{Attempts, Outcome, Stop};
use tollway::{Body, Client};
use tollway_sim::rule::Rule;
use tollway_sim::{Fault, Gateway, Provider, Scope as Limited};
use tollway_tests::words::{self, Seen};

use super::{Test, client, failing, ms, not_done, records};

const PAYRIX: Provider = Provider::Payrix;
const BLOCK: std::time::Duration = std::time::Duration::from_secs(10);

/// The request that Payrix offers for trying out its 429.
fn trigger(gateway: &Gateway) -> Result<Request<Body>, http::Error> {
    let mut request = words::pay(gateway, "r-1")?;
    let value = http::HeaderValue::from_static("match");
    request.headers_mut().insert("rate-limit-test", value);
    Ok(request)
}

#[tokio::test]
async fn the_test_trigger_s_429_says_nothing_and_means_a_block_of_10_s() -> Test {
    let gateway = Gateway::builder(PAYRIX).start().await?;
    // Shorter than the block, so that the call ends now instead of then.
    let client = client(PAYRIX)?.deadline(ms(2000)).build()?;

    let response = client.send(trigger(&gateway)?).await?;
    assert_eq!(response.status(), 429);
    assert!(!response.headers().contains_key("retry-after"));
    let verdict = Verdict::NotExecuted {
        retry_after: Some(BLOCK),
        scope: Scope::Unspecified,
    };
    assert_eq!(Verdict::of(response.extensions()), Some(verdict));
    let story = Attempts::of(response.extensions()).expect("why it wasn't repeated");
    assert_eq!((story.made(), story.stop()), (1, Stop::Deadline));
    assert!(story.would_have_waited() >= Some(BLOCK));

    // The path is closed to everybody, and nobody walks into it.
    let arrived = gateway.stats().arrivals;
    let error = client
        .send(words::pay(&gateway, "r-2")?)
        .await
        .expect_err("the path is blocked for longer than the deadline");
    assert!(error.is_not_executed(), "{error:#}");
    let refused = RateLimitError::find(&error).expect("the limiter's");
    assert!(refused.wait() > Some(BLOCK - ms(2000)), "{refused}");
    assert_eq!(gateway.stats().arrivals, arrived);

    // Another path is open.
    let logins = Request::get(format!("{}/logins", gateway.url())).body(Body::empty())?;
    let seen = Seen::of(client.send(logins).await).await;
    assert_eq!((seen.verdict, seen.attempts), (Verdict::Done, 1));
    Ok(())
}

#[tokio::test]
async fn a_block_reaches_calls_that_have_their_permit_and_wait_for_a_connection() -> Test {
    let gateway = Gateway::builder(PAYRIX).start().await?;
    let client = client(PAYRIX)?
        .deadline(ms(2000))
        .pool(|pool| pool.max_connections_per_host(1))
        .build()?;
    let first = client.send(trigger(&gateway)?);
    let mut calls = tokio::task::JoinSet::new();
    calls.spawn(async move { (0, first.await) });
    for n in 1..5 {
        let call = client.send(words::pay(&gateway, &format!("r-{n}"))?);
        calls.spawn(async move { (n, call.await) });
    }
    for (n, ended) in calls.join_all().await {
        if n == 0 {
            assert_eq!(ended?.status(), 429);
            continue;
        }
        let error = ended.expect_err("it would have walked into the block");
        assert!(error.is_not_executed(), "{error:#}");
        let refused = RateLimitError::find(&error).expect("the limiter's");
        assert!(refused.is_paused(), "{refused}");
        assert!(refused.wait() > Some(BLOCK - ms(2000)), "{refused}");
    }
    assert_eq!(gateway.stats().arrivals, 1);
    Ok(())
}

/// Payrix's rule, shorter: both sides have a window and a block of this.
const SHORT: std::time::Duration = ms(300);

async fn short_gateway(limit: u32) -> Result<Gateway, tollway_sim::SimError> {
    let rule = Rule::sliding_log(limit, SHORT).penalty(SHORT);
    Gateway::builder(PAYRIX)
        .rule(Limited::EachPath, rule)
        .start()
        .await
}

fn short_client(limit: u32) -> Result<Client, tollway::core::BoxError> {
    let quota = Quota::new(limit, SHORT).penalty(SHORT).shape(Shape::Burst);
    let block = Verdict::NotExecuted {
        retry_after: Some(SHORT),
        scope: Scope::Unspecified,
    };
    let code = Asked::Is("C_RATE_LIMIT_EXCEEDED_TEMP_BLOCK".into());
    let rules = BodyRule::new(429..=429, "errors.0.errorCode", code).means(block);
    Ok(client(PAYRIX)?
        .limits(Limits::builder().every_call(quota))
        .rules(Rules::new().body(rules))
        .build()?)
}

#[tokio::test]
async fn the_limit_is_used_and_never_broken() -> Test {
    let gateway = short_gateway(10).await?;
    let client = short_client(10)?;
    let failed = not_done(&client, 35, |reference| words::pay(&gateway, reference));
    assert!(failed.await?.is_empty());
    let stats = gateway.stats();
    assert_eq!((stats.throttled, stats.blocks), (0, 0));
    assert_eq!(gateway.ledger().effects(), 35);
    Ok(())
}

#[tokio::test]
async fn a_block_that_others_brought_about_is_sat_out_once_by_everybody() -> Test {
    let gateway = short_gateway(5).await?;
    // Somebody else behind the same address, who knows no limit.
    let careless = client(PAYRIX)?.limits(Limits::builder()).build()?;
    for nth in 0..5 {
        careless
            .send(words::pay(&gateway, &format!("o-{nth}"))?)
            .await?;
    }
    let ours = short_client(5)?;
    let first = ours.send(words::pay(&gateway, "first")?).await;
    let attempts = records(&first);
    assert_eq!(Verdict::of_response(&first?), Verdict::Done);
    assert_eq!(attempts.len(), 2, "{attempts:?}");
    assert_eq!(
        attempts[0].outcome,
        Outcome::Status(http::StatusCode::TOO_MANY_REQUESTS)
    );
    assert!(attempts[1].delay >= SHORT, "{attempts:?}");
    let failed = not_done(&ours, 8, |reference| words::pay(&gateway, reference));
    assert!(failed.await?.is_empty());
    let stats = gateway.stats();
    assert_eq!((stats.throttled, stats.blocks), (1, 1));
    Ok(())
}

#[tokio::test]
async fn without_a_key_an_unknown_outcome_is_looked_up_and_not_repeated() -> Test {
    let gateway = failing(PAYRIX, &[Fault::ResetAfterEffect]).start().await?;
    let client = client(PAYRIX)?.build()?;
    let error = client
        .send(words::pay(&gateway, "r-1")?)
        .await
        .expect_err("it was reset");
    assert!(error.is_unknown(), "{error:#}");
    assert!(error.idempotency_key().is_none());
    let story = error.attempts().expect("its story");
    assert_eq!((story.made(), story.stop()), (1, Stop::NoKey));

    let seen = Seen::of(client.send(words::look_up(&gateway, "r-1")?).await).await;
    assert_eq!(words::found(PAYRIX, 200, &seen.body?), Some(true));
    Ok(())
}
