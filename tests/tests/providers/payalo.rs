use http::Request;
use serde_json::Value;
use tollway::core::{Attempt, IdempotencyKey, Verdict};
use tollway::limit::Limits;
use tollway::{Body, profiles};
use tollway_sim::{Fault, Gateway, Latency, Provider};
use tollway_tests::words::{self, Seen};

use super::{Test, client, failing, ms, not_done};

const PAYALO: Provider = Provider::Payalo;

#[tokio::test]
async fn a_reference_that_the_call_itself_used_before_means_done() -> Test {
    for fault in [Fault::ErrorAfter(503), Fault::ResetAfterEffect] {
        let gateway = failing(PAYALO, &[fault]).start().await?;
        let client = client(PAYALO)?.build()?;
        let seen = Seen::of(client.send(words::pay(&gateway, "r-1")?).await).await;
        assert_eq!(seen.status, Some(409), "{fault}");
        assert_eq!((seen.verdict, seen.attempts), (Verdict::Done, 2), "{fault}");
        let body: Value = serde_json::from_slice(&seen.body?)?;
        let ledger = gateway.ledger();
        assert_eq!(body["paymentId"], ledger.entries[0].ids[0]);
        assert_eq!(ledger.effects(), 1);
    }
    Ok(())
}

/// By another process, for another payment perhaps: nobody may take it for paid,
/// nor pay again under another reference before he has looked.
#[tokio::test]
async fn a_reference_that_somebody_else_used_before_is_to_be_looked_up() -> Test {
    let gateway = Gateway::builder(PAYALO).start().await?;
    let theirs = client(PAYALO)?.build()?;
    let paid = Seen::of(theirs.send(words::pay(&gateway, "r-1")?).await).await;
    assert_eq!(paid.verdict, Verdict::Done);
    let ours = client(PAYALO)?.build()?;
    let response = ours.send(words::pay(&gateway, "r-1")?).await?;
    let key = IdempotencyKey::of(response.extensions()).cloned();
    assert_eq!(key.ok_or("no key")?.as_str(), "r-1");
    let seen = Seen::of(Ok(response)).await;
    assert_eq!(seen.status, Some(409));
    assert_eq!((seen.verdict, seen.attempts), (Verdict::Unknown, 1));
    assert_eq!(gateway.ledger().effects(), 1);
    Ok(())
}

/// Payalo keeps no decline, so an attempt that comes behind one would be executed.
#[tokio::test]
async fn a_decline_does_not_speak_for_an_attempt_that_may_be_late() -> Test {
    let faults = [Fault::ResetAfterRead, Fault::Refuse(402)];
    for (provider, verdict) in [
        (PAYALO, Verdict::Unknown),
        (Provider::Stripe, Verdict::Rejected),
    ] {
        let gateway = failing(provider, &faults).start().await?;
        let client = client(provider)?.build()?;
        let seen = Seen::of(client.send(words::pay(&gateway, "r-1")?).await).await;
        assert_eq!((seen.status, seen.attempts), (Some(402), 2), "{provider:?}");
        assert_eq!(seen.verdict, verdict, "{provider:?}");
    }
    Ok(())
}

#[tokio::test]
async fn a_call_without_a_reference_is_refused_before_it_leaves() -> Test {
    let gateway = Gateway::builder(PAYALO).start().await?;
    let client = client(PAYALO)?.build()?;
    let request = Request::post(format!("{}/payments", gateway.url()))
        .body(Body::from(r#"{"amount":100}"#))?;
    let error = client.send(request).await.expect_err("no reference");
    assert_eq!(error.verdict(), Verdict::Rejected);
    assert_eq!(gateway.stats().arrivals, 0);
    Ok(())
}

async fn slow() -> Result<Gateway, tollway_sim::SimError> {
    let latency = Latency::uniform(ms(10), ms(30));
    Gateway::builder(PAYALO).latency(latency).start().await
}

#[tokio::test]
async fn bulk_goes_out_20_at_a_time() -> Test {
    let gateway = slow().await?;
    let client = client(PAYALO)?.build()?;
    let failed = not_done(&client, 120, |reference| words::pay(&gateway, reference));
    assert!(failed.await?.is_empty());
    let stats = gateway.stats();
    assert_eq!((stats.throttled, stats.arrivals), (0, 120));
    assert!(stats.connections_accepted <= 20, "{stats:?}");
    Ok(())
}

/// That there is a limit to be broken.
#[tokio::test]
async fn without_a_quota_there_are_more_than_20_at_a_time() -> Test {
    let gateway = slow().await?;
    let client = client(PAYALO)?
        .limits(Limits::builder())
        .pool(|pool| pool.max_connections_per_host(100))
        .build()?;
    let _ = not_done(&client, 120, |reference| words::pay(&gateway, reference)).await?;
    assert!(gateway.stats().throttled > 0);
    Ok(())
}

#[tokio::test]
async fn status_checks_keep_to_50_a_second() -> Test {
    let gateway = Gateway::builder(PAYALO).start().await?;
    let client = client(PAYALO)?.build()?;
    client.send(words::pay(&gateway, "r-1")?).await?;
    let check = |_: &str| words::look_up(&gateway, "r-1");
    assert!(not_done(&client, 70, check).await?.is_empty());
    assert_eq!(gateway.stats().throttled, 0);
    Ok(())
}

#[test]
fn an_attempt_may_take_30_s() {
    let timeout = profiles::payalo().attempt_timeout;
    assert_eq!(timeout.head_of(Attempt::FIRST).as_secs(), 30);
}
