//! The pool against a server that no one here wrote: nginx with a short
//! keep-alive timeout and few requests a connection, over TLS.
//!
//! Its timers are real, so the pauses between calls are too: some of them are
//! just as long as its timeout, so that calls meet connections which are about
//! to close. Nothing is asserted about time.
//!
//! Without nginx on the machine these tests say so and pass; under CI
//! (`CI` in the environment) they fail then.

use std::collections::HashMap;
use std::path::Path;
use std::time::Duration;

use bytes::Bytes;
use http::{Method, Request, StatusCode, Version};
use http_body_util::{BodyExt, Full};
use tokio::task::JoinSet;
use tokio::time::sleep;
use tollway::core::{BoxError, Verdict};
use tollway::limit::Limits;
use tollway::pool::{ConnectionInfo, Pool, PoolError, Protocol};
use tollway::{Body, Client, profiles};
use tollway_tests::nginx::Nginx;
use tower::ServiceExt;

const CALLERS: usize = 16;
const CALLS: usize = 60;
/// When nginx closes an idle connection.
const IDLE: Duration = Duration::from_millis(20);

/// nginx, and how to trust it. `None` where there is none on this machine.
async fn start() -> Result<Option<(Nginx, rustls::ClientConfig)>, BoxError> {
    let mut tls = None;
    let nginx = Nginx::start(|folder, port| {
        tls = Some(certificate(folder)?);
        Ok(config(folder, port))
    });
    Ok(nginx.await?.zip(tls))
}

/// `listen … http2` is how every version says it, the newest with a warning.
fn config(folder: &Path, port: u16) -> String {
    format!(
        "log_format calls '$http_x_call $status';
        access_log {folder}/access.log calls;
        keepalive_timeout {idle}ms;
        keepalive_requests 7;
        server {{
            listen 127.0.0.1:{port} ssl http2;
            ssl_certificate {folder}/cert.pem;
            ssl_certificate_key {folder}/key.pem;
            location / {{ return 200 'paid'; }}
        }}",
        folder = folder.display(),
        idle = IDLE.as_millis(),
    )
}

fn url(nginx: &Nginx) -> String {
    format!("https://localhost:{}/v1/payouts", nginx.port())
}

/// How often nginx answered each call with 200. It ends with this.
fn answered(nginx: Nginx) -> Result<HashMap<String, usize>, BoxError> {
    let mut answered = HashMap::new();
    for line in nginx.quit_and_read("access.log")?.lines() {
        if let Some((call, "200")) = line.split_once(' ') {
            *answered.entry(call.to_owned()).or_default() += 1;
        }
    }
    Ok(answered)
}

/// Writes a certificate for nginx, and trusts it.
fn certificate(folder: &Path) -> Result<rustls::ClientConfig, BoxError> {
    let key = rcgen::KeyPair::generate()?;
    let cert = rcgen::CertificateParams::new(vec!["localhost".to_owned()])?.self_signed(&key)?;
    std::fs::write(folder.join("cert.pem"), cert.pem())?;
    std::fs::write(folder.join("key.pem"), key.serialize_pem())?;
    let mut roots = rustls::RootCertStore::empty();
    roots.add(cert.der().clone())?;
    let provider = std::sync::Arc::new(rustls::crypto::ring::default_provider());
    Ok(rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .with_root_certificates(roots)
        .with_no_client_auth())
}

/// A pause that ends around the moment at which nginx closes, every third time.
async fn pause(caller: usize, call: usize) {
    if (caller + call).is_multiple_of(3) {
        let off = Duration::from_micros((caller * 977 + call * 1609) as u64 % 6000);
        sleep(IDLE + off - Duration::from_millis(3)).await;
    }
}

async fn no_call_fails(protocol: Protocol, version: Version) -> Result<(), BoxError> {
    let Some((nginx, tls)) = start().await? else {
        return Ok(());
    };
    let client = Client::builder(profiles::stripe())
        .limits(Limits::builder())
        .tls(tls)
        .pool(|pool| pool.protocol(protocol))
        .build()?;
    let mut callers = JoinSet::new();
    for caller in 0..CALLERS {
        let (client, url) = (client.clone(), url(&nginx));
        callers.spawn(async move {
            for call in 0..CALLS {
                // Stripe's keys go on every POST.
                let method = [Method::GET, Method::POST][call % 2].clone();
                let request = Request::builder()
                    .method(method)
                    .uri(&url)
                    .header("x-call", format!("{caller}-{call}"))
                    .body(Body::from("amount=1100"))?;
                let response = client.send(request).await?;
                assert_eq!(response.status(), StatusCode::OK);
                let info = ConnectionInfo::of(response.extensions()).cloned();
                assert_eq!(info.map(|info| info.protocol()), Some(version));
                assert_eq!(response.into_body().collect().await?.to_bytes(), "paid");
                pause(caller, call).await;
            }
            Ok::<_, BoxError>(())
        });
    }
    while let Some(caller) = callers.join_next().await {
        caller??;
    }
    assert_eq!(answered(nginx)?.len(), CALLERS * CALLS);
    Ok(())
}

/// Without keys and without retries: what the pool says of each call has to
/// agree with what nginx did.
async fn no_call_is_sent_twice(protocol: Protocol) -> Result<(), BoxError> {
    let Some((nginx, tls)) = start().await? else {
        return Ok(());
    };
    let pool: Pool<Full<Bytes>> = Pool::builder().tls(tls).protocol(protocol).build()?;
    let mut callers = JoinSet::new();
    for caller in 0..CALLERS {
        let (pool, url) = (pool.clone(), url(&nginx));
        callers.spawn(async move {
            let mut outcomes = Vec::new();
            for call in 0..CALLS {
                let name = format!("{caller}-{call}");
                let request = Request::post(&url)
                    .header("x-call", &name)
                    .body(Full::from("amount=1100"))?;
                let outcome = match pool.clone().oneshot(request).await {
                    Ok(response) => response.into_body().collect().await.err(),
                    Err(error) => Some(error),
                };
                let verdict = outcome.as_ref().map_or(Verdict::Done, PoolError::verdict);
                let story = format!("{name}: {outcome:?}");
                outcomes.push((name, verdict, story));
                pause(caller, call).await;
            }
            Ok::<_, BoxError>(outcomes)
        });
    }
    let outcomes = callers.join_all().await;
    let answered = answered(nginx)?;
    for (call, verdict, story) in outcomes
        .into_iter()
        .collect::<Result<Vec<_>, _>>()?
        .concat()
    {
        let times = answered.get(&call).copied().unwrap_or_default();
        match verdict {
            Verdict::Done => assert_eq!(times, 1, "{story}"),
            Verdict::Unknown => assert!(times <= 1, "{times} times {story}"),
            Verdict::NotExecuted { .. } => assert_eq!(times, 0, "{story}"),
            Verdict::Rejected => panic!("{story}"),
        }
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_call_fails_over_http1() -> Result<(), BoxError> {
    no_call_fails(Protocol::Http1Only, Version::HTTP_11).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_call_fails_over_http2() -> Result<(), BoxError> {
    no_call_fails(Protocol::Http2Only, Version::HTTP_2).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_call_is_sent_twice_over_http1() -> Result<(), BoxError> {
    no_call_is_sent_twice(Protocol::Http1Only).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_call_is_sent_twice_over_http2() -> Result<(), BoxError> {
    no_call_is_sent_twice(Protocol::Http2Only).await
}
