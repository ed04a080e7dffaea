//! Payouts to each provider with its profile as it is, under its default rules,
//! while some requests go wrong: each exactly once, and no 429.

use http_body_util::BodyExt;
use tokio::task::JoinSet;
use tollway::Client;
use tollway::core::{BoxError, Verdict};
use tollway_sim::{Faults, Gateway, Provider};
use tollway_tests::words;

const PAYOUTS: usize = 60;

/// How often a payout is sent as a call of its own.
const SENDS: usize = 5;

/// Sends one payout until it is certain what became of it, as a careful
/// integrator would: where the outcome is unknown, the provider is asked.
async fn pay(client: &Client, gateway: &Gateway, reference: &str) -> Result<bool, BoxError> {
    for _ in 0..SENDS {
        let verdict = match client.send(words::pay(gateway, reference)?).await {
            Ok(response) => Verdict::of_response(&response),
            Err(error) => error.verdict(),
        };
        match verdict {
            Verdict::Done => return Ok(true),
            Verdict::Rejected => return Ok(false),
            Verdict::NotExecuted { .. } => {}
            Verdict::Unknown => {
                if took_effect(client, gateway, reference).await? {
                    return Ok(true);
                }
            }
        }
    }
    Ok(false)
}

async fn took_effect(
    client: &Client,
    gateway: &Gateway,
    reference: &str,
) -> Result<bool, BoxError> {
    // A look-up's own body can break off as well.
    for _ in 0..SENDS {
        let response = client.send(words::look_up(gateway, reference)?).await?;
        let status = response.status().as_u16();
        if let Ok(body) = response.into_body().collect().await
            && let Some(found) = words::found(gateway.provider(), status, &body.to_bytes())
        {
            return Ok(found);
        }
    }
    Err("the gateway doesn't say".into())
}

async fn run(provider: Provider) -> Result<(), BoxError> {
    let gateway = Gateway::builder(provider)
        .faults(Faults::rate(0.1))
        .seed(7)
        .start()
        .await?;
    let client = Client::builder(words::profile(provider))
        .plain_http(true)
        .build()?;
    let gateway = std::sync::Arc::new(gateway);
    let mut calls = JoinSet::new();
    for nth in 0..PAYOUTS {
        let (client, gateway) = (client.clone(), gateway.clone());
        calls.spawn(async move { pay(&client, &gateway, &format!("r-{nth}")).await });
    }
    for paid in calls.join_all().await {
        assert!(paid?, "{provider}: a payout was not made");
    }
    let ledger = gateway.ledger();
    let stats = gateway.stats();
    assert!(!stats.faults.is_empty(), "{provider}: nothing went wrong");
    assert_eq!(ledger.duplicates(), [""; 0], "{provider}");
    assert_eq!(ledger.by_reference().len(), PAYOUTS, "{provider}");
    assert_eq!(stats.throttled, 0, "{provider}: {stats:?}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_takes_effect_exactly_once_and_no_rule_is_broken() -> Result<(), BoxError> {
    let mut runs = JoinSet::new();
    for provider in Provider::ALL {
        runs.spawn(run(provider));
    }
    runs.join_all().await.into_iter().collect()
}
