//! The limiter against a rate limit that no one here wrote: nginx's
//! `limit_req`, in front of a simulated gateway.
//!
//! Without nginx on the machine these tests say so and pass; under CI
//! (`CI` in the environment) they fail then.

use std::net::{Ipv4Addr, TcpListener};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use bytes::Bytes;
use http::{Request, StatusCode};
use http_body_util::{BodyExt, Full};
use tollway::core::BoxError;
use tollway::limit::{Limits, Quota, RateLimitLayer};
use tollway::pool::Pool;
use tollway_sim::{Gateway, Provider};
use tower::{Layer, ServiceExt};

/// nginx, running until dropped.
struct Nginx {
    process: Child,
    folder: PathBuf,
    port: u16,
}

impl Nginx {
    /// `None` where there is no nginx on this machine.
    fn start(rule: &str, upstream: &str) -> Result<Option<Self>, BoxError> {
        // Free a moment ago; nginx can't be asked to choose.
        let port = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?
            .local_addr()?
            .port();
        let folder = std::env::temp_dir().join(format!("tollway-nginx-{port}"));
        std::fs::create_dir_all(&folder)?;
        let (rate, limit) = rule.split_once(' ').ok_or("a rate and a burst")?;
        let config = format!(
            "daemon off;
            master_process off;
            pid {folder}/pid;
            error_log {folder}/error.log;
            events {{}}
            http {{
                access_log off;
                client_body_temp_path {folder}/body;
                proxy_temp_path {folder}/proxy;
                fastcgi_temp_path {folder}/fastcgi;
                uwsgi_temp_path {folder}/uwsgi;
                scgi_temp_path {folder}/scgi;
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
                }}
            }}",
            folder = folder.display(),
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
        match spawned {
            Ok(process) => Ok(Some(Self {
                process,
                folder,
                port,
            })),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                let _ = std::fs::remove_dir_all(&folder);
                Ok(None)
            }
            Err(error) => Err(error.into()),
        }
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
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }
}

impl Drop for Nginx {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
        let _ = std::fs::remove_dir_all(&self.folder);
    }
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
    let Some(mut nginx) = Nginx::start(rule, upstream)? else {
        assert!(std::env::var_os("CI").is_none(), "CI has no nginx");
        eprintln!("skipped: there is no nginx on this machine");
        return Ok(None);
    };
    nginx.listening().await?;
    let limits = Limits::builder().every_call(quota).build()?;
    let pool = Pool::builder().plain_http(true).build()?;
    let service = RateLimitLayer::new(limits).layer(pool);
    let mut callers = tokio::task::JoinSet::new();
    for caller in 0..32 {
        let service = service.clone();
        let mine = (caller..calls).step_by(32).count();
        let url = format!("http://127.0.0.1:{}/", nginx.port);
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
