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
use std::net::{Ipv4Addr, TcpListener};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
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
use tower::ServiceExt;

const CALLERS: usize = 16;
const CALLS: usize = 60;
/// When nginx closes an idle connection.
const IDLE: Duration = Duration::from_millis(20);

/// nginx, running until dropped.
struct Nginx {
    process: Child,
    folder: PathBuf,
    port: u16,
    tls: rustls::ClientConfig,
}

impl Nginx {
    /// `None` where there is no nginx on this machine.
    async fn start() -> Result<Option<Self>, BoxError> {
        // Free a moment ago; nginx can't be asked to choose.
        let port = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?
            .local_addr()?
            .port();
        let folder = std::env::temp_dir().join(format!("tollway-keepalive-{port}"));
        std::fs::create_dir_all(&folder)?;
        let tls = certificate(&folder)?;
        // `listen … http2` is how every version says it, the newest with a
        // warning.
        let config = format!(
            "daemon off;
            master_process off;
            pid {folder}/pid;
            error_log {folder}/error.log;
            events {{}}
            http {{
                log_format calls '$http_x_call $status';
                access_log {folder}/access.log calls;
                client_body_temp_path {folder}/body;
                proxy_temp_path {folder}/proxy;
                fastcgi_temp_path {folder}/fastcgi;
                uwsgi_temp_path {folder}/uwsgi;
                scgi_temp_path {folder}/scgi;
                keepalive_timeout {idle}ms;
                keepalive_requests 7;
                server {{
                    listen 127.0.0.1:{port} ssl http2;
                    ssl_certificate {folder}/cert.pem;
                    ssl_certificate_key {folder}/key.pem;
                    location / {{ return 200 'paid'; }}
                }}
            }}",
            folder = folder.display(),
            idle = IDLE.as_millis(),
        );
        let path = folder.join("nginx.conf");
        std::fs::write(&path, config)?;
        let spawned = Command::new("nginx")
            .arg("-p")
            .arg(&folder)
            .arg("-c")
            .arg(&path)
            .stderr(Stdio::null())
            .spawn();
        let process = match spawned {
            Ok(process) => process,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                let _ = std::fs::remove_dir_all(&folder);
                assert!(std::env::var_os("CI").is_none(), "CI has no nginx");
                eprintln!("skipped: there is no nginx on this machine");
                return Ok(None);
            }
            Err(error) => return Err(error.into()),
        };
        let mut nginx = Self {
            process,
            folder,
            port,
            tls,
        };
        nginx.listening().await?;
        Ok(Some(nginx))
    }

    /// Waits until it listens.
    async fn listening(&mut self) -> Result<(), BoxError> {
        loop {
            let address = (Ipv4Addr::LOCALHOST, self.port);
            if tokio::net::TcpStream::connect(address).await.is_ok() {
                return Ok(());
            }
            if let Some(status) = self.process.try_wait()? {
                let log = std::fs::read_to_string(self.folder.join("error.log"));
                return Err(
                    format!("nginx ended with {status}: {}", log.unwrap_or_default()).into(),
                );
            }
            sleep(Duration::from_millis(10)).await;
        }
    }

    fn url(&self) -> String {
        format!("https://localhost:{}/v1/payouts", self.port)
    }

    /// How often nginx answered each call with 200. It ends here: a call is
    /// logged only after its answer was sent, perhaps not before the caller has
    /// it.
    fn answered(mut self) -> Result<HashMap<String, usize>, BoxError> {
        let told = Command::new("nginx")
            .args(["-s", "quit", "-p"])
            .arg(&self.folder)
            .arg("-c")
            .arg(self.folder.join("nginx.conf"))
            .stderr(Stdio::null())
            .status()?;
        assert!(told.success(), "nginx can't be told to quit: {told}");
        tokio::task::block_in_place(|| self.process.wait())?;
        let mut answered = HashMap::new();
        for line in std::fs::read_to_string(self.folder.join("access.log"))?.lines() {
            if let Some((call, "200")) = line.split_once(' ') {
                *answered.entry(call.to_owned()).or_default() += 1;
            }
        }
        Ok(answered)
    }
}

impl Drop for Nginx {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
        let _ = std::fs::remove_dir_all(&self.folder);
    }
}

/// Writes a certificate for nginx, and trusts it.
fn certificate(folder: &std::path::Path) -> Result<rustls::ClientConfig, BoxError> {
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
    let Some(nginx) = Nginx::start().await? else {
        return Ok(());
    };
    let client = Client::builder(profiles::stripe())
        .limits(Limits::builder())
        .tls(nginx.tls.clone())
        .pool(|pool| pool.protocol(protocol))
        .build()?;
    let mut callers = JoinSet::new();
    for caller in 0..CALLERS {
        let (client, url) = (client.clone(), nginx.url());
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
    assert_eq!(nginx.answered()?.len(), CALLERS * CALLS);
    Ok(())
}

/// Without keys and without retries: what the pool says of each call has to
/// agree with what nginx did.
async fn no_call_is_sent_twice(protocol: Protocol) -> Result<(), BoxError> {
    let Some(nginx) = Nginx::start().await? else {
        return Ok(());
    };
    let pool: Pool<Full<Bytes>> = Pool::builder()
        .tls(nginx.tls.clone())
        .protocol(protocol)
        .build()?;
    let mut callers = JoinSet::new();
    for caller in 0..CALLERS {
        let (pool, url) = (pool.clone(), nginx.url());
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
    let answered = nginx.answered()?;
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
