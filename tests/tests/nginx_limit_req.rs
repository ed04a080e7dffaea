//! The limiter against a rate limit that no one here wrote: nginx's
//! `limit_req`, in front of a simulated gateway.
//!
//! Without nginx on the machine these tests say so and pass; under CI
//! (`CI` in the environment) they fail then.

use std::time::Duration;

use bytes::Bytes;
use http::{Request, StatusCode};
use http_body_util::{BodyExt, Full};
use tollway::core::BoxError;
use tollway::limit::{Limits, Quota, RateLimitLayer};
use tollway::pool::Pool;
use tollway_sim::{Gateway, Provider};
use tollway_tests::nginx::Nginx;
use tower::{Layer, ServiceExt};

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

/// Sends `calls` from 32 callers, held to `quota`, and counts the refusals.
/// `None` where there is no nginx.
async fn refused(rule: &str, quota: Quota, calls: usize) -> Result<Option<usize>, BoxError> {
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
    let service = RateLimitLayer::new(limits).layer(pool);
    let mut callers = tokio::task::JoinSet::new();
    for caller in 0..32 {
        let service = service.clone();
        let mine = (caller..calls).step_by(32).count();
        let url = format!("http://127.0.0.1:{}/", nginx.port());
        callers.spawn(async move {
            let mut refused = 0;
            for _ in 0..mine {
                let request = Request::get(&url).body(Full::<Bytes>::default())?;
                let response = service.clone().oneshot(request).await?;
                refused += usize::from(response.status() == StatusCode::TOO_MANY_REQUESTS);
                response
                    .into_body()
                    .collect()
                    .await
                    .map_err(BoxError::from)?;
            }
            Ok::<_, BoxError>(refused)
        });
    }
    let mut refused = 0;
    while let Some(caller) = callers.join_next().await {
        refused += caller??;
    }
    drop(nginx);
    gateway.shutdown().await;
    Ok(Some(refused))
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
        assert!(
            matches!(refused(rule, quota, calls).await?, None | Some(0)),
            "{rule}"
        );
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_quota_whose_kind_is_not_known_is_safe_by_default() -> Result<(), BoxError> {
    for (rule, quota, calls) in [
        ("rate=100r/s burst=5", Quota::per_second(100), 200),
        ("rate=50r/s burst=10", Quota::per_second(50), 100),
    ] {
        assert!(
            matches!(refused(rule, quota, calls).await?, None | Some(0)),
            "{rule}"
        );
    }
    Ok(())
}

/// That there were no refusals means something only where a little more is
/// refused.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_fifth_more_than_the_rate_is_refused() -> Result<(), BoxError> {
    let quota = Quota::rate(120, SECOND).burst(5);
    let refused = refused("rate=100r/s burst=5", quota, 300).await?;
    assert_ne!(refused, Some(0));
    Ok(())
}
