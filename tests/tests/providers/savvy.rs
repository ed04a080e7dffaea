use std::time::Duration;

use http::Request;
use serde_json::Value;
use tollway::core::{Attempt, BoxError, Verdict};
use tollway::limit::Limits;
use tollway::{Body, profiles};
use tollway_sim::rule::Rule;
use tollway_sim::{Fault, Gateway, Provider, Scope};
use tollway_tests::words::{self, Seen};

use super::{Test, client, failing, ms, records};

const SAVVY: Provider = Provider::Savvy;

fn post(gateway: &Gateway, body: &Value) -> Result<Request<Body>, http::Error> {
    Request::post(format!("{}/payments", gateway.url()))
        .header("content-type", "application/json")
        .body(Body::from(body.to_string()))
}

fn read(seen: &Seen) -> Result<Value, BoxError> {
    let body = seen.body.as_ref().map_err(ToString::to_string)?;
    Ok(serde_json::from_slice(body)?)
}

#[tokio::test]
async fn a_call_without_a_request_id_is_refused_before_it_leaves() -> Test {
    let gateway = Gateway::builder(SAVVY).start().await?;
    let client = client(SAVVY)?.build()?;
    let body = serde_json::json!({"Amount": 100, "Reference": "r-1"});
    let error = client.send(post(&gateway, &body)?).await;
    let error = error.expect_err("no id");
    assert_eq!(error.verdict(), Verdict::Rejected);
    assert!(format!("{error:#}").contains("`RequestId`"), "{error:#}");
    assert_eq!(gateway.stats().arrivals, 0);
    Ok(())
}

#[tokio::test]
async fn a_repeat_is_the_exact_same_payload_and_brings_the_first_result() -> Test {
    for fault in [
        Fault::ErrorAfter(500),
        Fault::ErrorAfter(502),
        Fault::HangAfterEffect(Duration::from_secs(600)),
        Fault::HalfResponse,
    ] {
        let gateway = failing(SAVVY, &[fault]).start().await?;
        let client = client(SAVVY)?.attempt_timeout(ms(500)).build()?;
        let seen = Seen::of(client.send(words::pay(&gateway, "r-1")?).await).await;
        assert_eq!((seen.verdict, seen.attempts), (Verdict::Done, 2), "{fault}");
        assert_eq!(read(&seen)?["isFirstResponse"], false, "{fault}");
        // One entry is one payload, byte for byte.
        let ledger = gateway.ledger();
        assert_eq!(ledger.entries.len(), 1, "{fault}");
        assert_eq!(ledger.entries[0].payload, words::payout(SAVVY, "r-1"));
        assert_eq!((ledger.effects(), ledger.entries[0].repeats), (1, 1));
    }
    Ok(())
}

#[tokio::test]
async fn a_response_code_other_than_0_is_final_whatever_the_status_says() -> Test {
    let gateway = Gateway::builder(SAVVY).start().await?;
    let client = client(SAVVY)?.build()?;
    let body = serde_json::json!({"RequestId": "id-1", "Amount": 0});
    let seen = Seen::of(client.send(post(&gateway, &body)?).await).await;
    assert_eq!(seen.status, Some(200));
    assert_eq!((seen.verdict, seen.attempts), (Verdict::Rejected, 1));
    // The body that was looked into reaches the caller.
    assert_ne!(read(&seen)?["responseCode"], 0);

    // The same id with another payload: refused by the gateway, in a 200.
    let seen = Seen::of(client.send(words::pay(&gateway, "r-1")?).await).await;
    assert_eq!(seen.verdict, Verdict::Done);
    let other = super::client(SAVVY)?.build()?;
    let body = serde_json::json!({"RequestId": "r-1", "Amount": 7});
    let seen = Seen::of(other.send(post(&gateway, &body)?).await).await;
    assert_eq!((seen.status, seen.verdict), (Some(200), Verdict::Rejected));
    // And by the client that made the first, before it leaves.
    let arrived = gateway.stats().arrivals;
    let error = client.send(post(&gateway, &body)?).await;
    assert_eq!(error.expect_err("used").verdict(), Verdict::Rejected);
    assert_eq!(gateway.stats().arrivals, arrived);
    Ok(())
}

#[tokio::test]
async fn the_delay_in_a_429_s_text_is_respected() -> Test {
    let second = Duration::from_secs(1);
    let gateway = Gateway::builder(SAVVY)
        .rule(Scope::Gateway, Rule::sliding_log(1, second))
        .start()
        .await?;
    let client = client(SAVVY)?.limits(Limits::builder()).build()?;
    client.send(words::pay(&gateway, "r-1")?).await?;
    let answer = client.send(words::pay(&gateway, "r-2")?).await;
    let attempts = records(&answer);
    assert_eq!(attempts.len(), 2, "{attempts:?}");
    let Verdict::NotExecuted { retry_after, .. } = attempts[0].verdict else {
        panic!("{attempts:?}");
    };
    assert_eq!(retry_after, Some(second));
    assert!(attempts[1].delay >= second, "{attempts:?}");
    assert_eq!(Verdict::of_response(&answer?), Verdict::Done);
    assert_eq!(gateway.stats().throttled, 1);
    assert_eq!(gateway.ledger().effects(), 2);
    Ok(())
}

#[test]
fn an_attempt_may_take_90_s_and_a_later_one_longer() {
    let timeout = profiles::savvy().attempt_timeout;
    let (first, second) = (Attempt::FIRST, Attempt::FIRST.next());
    assert_eq!(timeout.head_of(first).as_secs(), 90);
    assert!(timeout.head_of(second) > timeout.head_of(first));
    assert!(profiles::savvy().deadline > timeout.head_of(first) + timeout.head_of(second));
}

#[tokio::test]
async fn after_a_time_out_there_is_a_retry_that_may_take_longer() -> Test {
    use tollway::timeout::AttemptTimeout;

    let hang = Fault::Hang(Duration::from_secs(600));
    let gateway = failing(SAVVY, &[hang, hang]).start().await?;
    let timeout = AttemptTimeout::new(ms(200)).then(ms(400)).then(ms(2000));
    let client = client(SAVVY)?.attempt_timeout(timeout).build()?;
    let answer = client.send(words::pay(&gateway, "r-1")?).await;
    let attempts = records(&answer);
    assert_eq!(attempts.len(), 3, "{attempts:?}");
    assert!(attempts[0].duration >= ms(200) && attempts[1].duration >= ms(400));
    assert_eq!(Verdict::of_response(&answer?), Verdict::Done);
    Ok(())
}
