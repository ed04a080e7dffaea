//! Every row of what the five providers promise and demand, held against their
//! simulated gateways through the client and the profile.

mod modern_treasury;
mod payalo;
mod payrix;
mod savvy;
mod stripe;

use std::time::Duration;

use http::Request;
use tokio::task::JoinSet;
use tollway::core::{BoxError, Verdict};
use tollway::retry::{AttemptRecord, Attempts, BackOff, RetryPolicyBuilder};
use tollway::{Body, Client, ClientBuilder, Error, ResponseBody};
use tollway_sim::{Fault, Faults, Gateway, GatewayBuilder, Provider};
use tollway_tests::words::{self, Seen};

type Test = Result<(), BoxError>;
type Answer = Result<http::Response<ResponseBody>, Error>;

const fn ms(ms: u64) -> Duration {
    Duration::from_millis(ms)
}

/// The profile as it is, but that it waits less between attempts, and that the
/// gateway here speaks plain HTTP.
fn client(provider: Provider) -> Result<ClientBuilder, BoxError> {
    Ok(Client::builder(words::profile(provider))
        .retry(retry(provider)?)
        .plain_http(true))
}

fn retry(provider: Provider) -> Result<RetryPolicyBuilder, BoxError> {
    let back_off = BackOff::exponential(ms(1), ms(20))?;
    Ok(words::profile(provider).retry.back_off(back_off))
}

/// Meets these faults, one request after the other.
fn failing(provider: Provider, faults: &[Fault]) -> GatewayBuilder {
    let script = faults.iter().copied().map(Some);
    Gateway::builder(provider).faults(Faults::script(script))
}

/// The attempts that an answer or an error tells of.
fn records(answer: &Answer) -> Vec<AttemptRecord> {
    let story = match answer {
        Ok(response) => Attempts::of(response.extensions()),
        Err(error) => error.attempts(),
    };
    story.map_or_else(Vec::new, |story| story.records().to_vec())
}

/// Sends `count` requests at once, and returns those that weren't done.
async fn not_done(
    client: &Client,
    count: usize,
    request: impl Fn(&str) -> Result<Request<Body>, http::Error>,
) -> Result<Vec<Seen>, BoxError> {
    let mut calls = JoinSet::new();
    for nth in 0..count {
        let call = client.send(request(&format!("r-{nth}"))?);
        calls.spawn(async move { Seen::of(call.await).await });
    }
    let mut all = calls.join_all().await;
    all.retain(|seen| seen.verdict != Verdict::Done);
    Ok(all)
}

#[tokio::test]
async fn what_is_refused_is_not_asked_again() -> Test {
    const STATUSES: [u16; 6] = [400, 401, 402, 403, 404, 422];
    for provider in Provider::ALL {
        let gateway = failing(provider, &STATUSES.map(Fault::Refuse))
            .start()
            .await?;
        let client = client(provider)?.build()?;
        for status in STATUSES {
            let reference = format!("r-{status}");
            let seen = Seen::of(client.send(words::pay(&gateway, &reference)?).await).await;
            let case = format!("{provider}, {status}: {seen:?}");
            assert_eq!(
                (seen.verdict, seen.attempts),
                (Verdict::Rejected, 1),
                "{case}"
            );
            // Savvy declines in a 200.
            let in_body = provider == Provider::Savvy && status == 402;
            let told = if in_body { 200 } else { status };
            assert_eq!(seen.status, Some(told), "{case}");
        }
        assert_eq!(gateway.ledger().effects(), 0, "{provider}");
    }
    Ok(())
}
