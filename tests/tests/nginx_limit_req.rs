//! The limiter against a rate limit that no one here wrote: nginx's
//! `limit_req`, in front of a simulated gateway.
//!
//! Without nginx on the machine these tests say so and pass; under CI
//! (`CI` in the environment) they fail then.

use std::time::Duration;

use bytes::Bytes;
use http::{Request, StatusCode};
use http_body_util::{BodyExt, Full};
use tokio::time::Instant;
use tollway::core::BoxError;
use tollway::limit::{Limits, Quota, RateLimitLayer};
use tollway::pool::{Pool, PoolError};
use tollway_sim::{Gateway, Provider};
use tollway_tests::nginx::Nginx;
use tower::{Layer, ServiceExt, service_fn};

/// What nginx is to do: pass on to `upstream` what `rule` lets through.
fn config(rule: &str, upstream: &str, port: u16) -> Result<String, BoxError> {
    let (rate, limit) = rule.split_once(' ').ok_or("a rate and a burst")?;
    Ok(format!(
        "access_log off;
        limit_req_zone $binary_remote_addr zone=all:1m {rate};
        upstream gateway {{ server {upstream}; keepalive 16; }}
        server {{
            listen 127.0.0.1:{port};
            location / {{
                limit_req zone=all {limit} nodelay;
                limit_req_status 429;
                proxy_http_version 1.1;
                proxy_set_header Connection '';
                proxy_pass http://gateway;
            }}
        }}"
    ))
}

/// How long it took to be answered, once sent.
#[derive(Clone, Copy)]
struct Took(Duration);

/// What came of a number of calls.
#[derive(Debug, Default)]
struct Outcome {
    refused: usize,
    /// How long it took to answer the one that took longest.
    slowest: Duration,
}

/// Sends `calls` from 32 callers, held to `quota`. `None` where there is no nginx.
async fn send(rule: &str, quota: Quota, calls: usize) -> Result<Option<Outcome>, BoxError> {
    let gateway = Gateway::builder(Provider::Payalo)
        .unlimited()
        .start()
        .await?;
    let url = gateway.url();
    let upstream = url.trim_start_matches("http://").trim_end_matches('/');
    let Some(nginx) = Nginx::start(|_, port| config(rule, upstream, port)).await? else {
        return Ok(None);
    };
    let limits = Limits::builder().every_call(quota).build()?;
    let pool = Pool::builder().plain_http(true).build()?;
    let service = RateLimitLayer::new(limits).layer(service_fn(move |request| {
        let (pool, sent) = (pool.clone(), Instant::now());
        async move {
            let mut response = pool.oneshot(request).await?;
            response.extensions_mut().insert(Took(sent.elapsed()));
            Ok::<_, PoolError>(response)
        }
    }));
    let mut callers = tokio::task::JoinSet::new();
    for caller in 0..32 {
        let service = service.clone();
        let mine = (caller..calls).step_by(32).count();
        let url = format!("http://127.0.0.1:{}/", nginx.port());
        callers.spawn(async move {
            let mut outcome = Outcome::default();
            for _ in 0..mine {
                let request = Request::get(&url).body(Full::<Bytes>::default())?;
                let response = service.clone().oneshot(request).await?;
                let refused = response.status() == StatusCode::TOO_MANY_REQUESTS;
                outcome.refused += usize::from(refused);
                let took = response.extensions().get::<Took>();
                outcome.slowest = outcome.slowest.max(took.ok_or("not timed")?.0);
                response
                    .into_body()
                    .collect()
                    .await
                    .map_err(BoxError::from)?;
            }
            Ok::<_, BoxError>(outcome)
        });
    }
    let mut outcome = Outcome::default();
    while let Some(caller) = callers.join_next().await {
        let other = caller??;
        outcome.refused += other.refused;
        outcome.slowest = outcome.slowest.max(other.slowest);
    }
    drop(nginx);
    gateway.shutdown().await;
    Ok(Some(outcome))
}

const SECOND: Duration = Duration::from_secs(1);
const MINUTE: Duration = Duration::from_secs(60);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rate_with_its_burst_is_used_in_full_without_a_refusal() -> Result<(), BoxError> {
    // nginx keeps time in milliseconds and lets its clock stand still while it
    // works through events, so the one request in service is left out of the
    // burst: B, where B + 1 would be allowed at once.
    for (rule, quota, calls) in [
        (
            "rate=100r/s burst=5",
            Quota::rate(100, SECOND).burst(5),
            200,
        ),
        (
            "rate=200r/s burst=20",
            Quota::rate(200, SECOND).burst(20),
            400,
        ),
        ("rate=600r/m burst=2", Quota::rate(600, MINUTE).burst(2), 20),
    ] {
        let outcome = send(rule, quota, calls).await?;
        assert_eq!(outcome.unwrap_or_default().refused, 0, "{rule}");
    }
    Ok(())
}

/// Where nginx, or the whole machine, stands still for longer than the burst
/// lasts, all that arrives meanwhile counts at once, however it was spaced. Such a
/// run says nothing, and there is another.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_quota_whose_kind_is_not_known_is_safe_by_default() -> Result<(), BoxError> {
    const RUNS: usize = 5;
    'rules: for (rule, quota, calls, lasts) in [
        (
            "rate=100r/s burst=5",
            Quota::per_second(100),
            200,
            Duration::from_millis(50),
        ),
        (
            "rate=50r/s burst=10",
            Quota::per_second(50),
            100,
            Duration::from_millis(200),
        ),
    ] {
        for _ in 0..RUNS {
            let outcome = send(rule, quota, calls).await?.unwrap_or_default();
            if outcome.slowest < lasts {
                assert_eq!(outcome.refused, 0, "{rule}");
                continue 'rules;
            }
        }
        panic!("{rule}: nginx stood still in each of {RUNS} runs");
    }
    Ok(())
}

/// That there were no refusals means something only where a little more is
/// refused.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_fifth_more_than_the_rate_is_refused() -> Result<(), BoxError> {
    let quota = Quota::rate(120, SECOND).burst(5);
    let outcome = send("rate=100r/s burst=5", quota, 300).await?;
    assert_ne!(outcome.map(|outcome| outcome.refused), Some(0));
    Ok(())
}
