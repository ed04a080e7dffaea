//! Does anything leak, and does anybody starve? 200 tasks call two faulty
//! gateways, one over HTTP/1.1 and one over HTTP/2, both over TLS, through
//! clients with a cap of 50 connections, for `--minutes` (10 by default, one
//! in ten of which is a warm-up).
//!
//! Everything that can go wrong does: one call in five meets a fault of the
//! simulator's whole mix, connections close after 50 requests or half a second,
//! a task in ten gives its call up at some moment, and one in ten drops the
//! response's body unread.
//!
//! Before and after, with every connection idle for long enough to be closed,
//! file descriptors, resident memory and tasks are counted. The gateways are
//! processes of their own: their ledgers grow with every payment.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use std::{fs, io};

use http::Request;
use http_body_util::BodyExt;
use rustls::pki_types::CertificateDer;
use tokio::runtime::Handle;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, timeout};
use tollway::limit::Limits;
use tollway::pool::{ConnectionInfo, Protocol};
use tollway::{Body, Client, profiles};
use tollway_benches::{Report, ServerProcess};
use tollway_core::BoxError;
use tollway_sim::{Faults, Gateway, Latency, Provider};

const TASKS: usize = 200;
const CAP: usize = 50;
/// Short, so that the wait at the end is.
const IDLE: Duration = Duration::from_secs(2);

#[tokio::main]
async fn main() -> Result<(), BoxError> {
    if let Some(protocol) = ServerProcess::asked() {
        return serve(protocol == "http2").await;
    }
    let minutes: f64 = match std::env::args().skip_while(|a| a != "--minutes").nth(1) {
        Some(minutes) => minutes.parse()?,
        None => 10.0,
    };
    let whole = Duration::from_secs_f64(minutes * 60.0);
    let mut sides = Vec::new();
    for http2 in [false, true] {
        sides.push(Side::start(http2).await?);
    }
    run(&sides, whole / 10).await;
    let before = Footprint::at_rest().await?;
    for side in &sides {
        side.tally.longest_wait.store(0, Ordering::SeqCst);
    }
    run(&sides, whole).await;
    let after = Footprint::at_rest().await?;

    let mut report = Report::new("soak");
    for (what, footprint) in [("before", &before), ("after", &after)] {
        let mut row = |metric, value, unit| {
            report.row(what, "process", metric, value, unit);
        };
        row("file descriptors", footprint.descriptors, "");
        row("memory", footprint.memory, "MiB");
        row("tasks", footprint.tasks, "");
    }
    for side in &sides {
        side.report(&mut report);
    }
    report.finish()?;
    Ok(())
}

/// A gateway, and the client that calls it.
struct Side {
    name: &'static str,
    url: String,
    client: Client,
    tally: Arc<Tally>,
}

#[derive(Default)]
struct Tally {
    done: AtomicU64,
    failed: AtomicU64,
    given_up: AtomicU64,
    unread: AtomicU64,
    /// For a connection, in microseconds.
    longest_wait: AtomicU64,
}

impl Side {
    async fn start(http2: bool) -> Result<Self, BoxError> {
        let mut gateway = ServerProcess::start(if http2 { "http2" } else { "http1" })?;
        let url = gateway.line()?;
        let root = hex(&gateway.line()?)?;
        let mut roots = rustls::RootCertStore::empty();
        roots.add(CertificateDer::from(root))?;
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let tls = rustls::ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()?
            .with_root_certificates(roots)
            .with_no_client_auth();
        let client = Client::builder(profiles::stripe())
            .limits(Limits::builder())
            .tls(tls)
            .attempt_timeout(Duration::from_secs(1))
            .pool(|pool| {
                pool.max_connections_per_host(CAP)
                    .idle_timeout(IDLE)
                    .protocol(Protocol::Auto)
            })
            .build()?;
        Ok(Self {
            name: if http2 { "HTTP/2" } else { "HTTP/1.1" },
            url: format!("{}/v1/payment_intents", url.trim_end_matches('/')),
            client,
            tally: Arc::default(),
        })
    }

    fn report(&self, report: &mut Report) {
        let mut row = |metric: &str, value: u64, unit: &str| {
            // Far below 2⁵³.
            #[expect(clippy::cast_precision_loss)]
            report.row(self.name, "tollway", metric, value as f64, unit);
        };
        let tally = &self.tally;
        row("done", tally.done.load(Ordering::SeqCst), "");
        row("failed", tally.failed.load(Ordering::SeqCst), "");
        row("given up", tally.given_up.load(Ordering::SeqCst), "");
        row("unread", tally.unread.load(Ordering::SeqCst), "");
        let longest = tally.longest_wait.load(Ordering::SeqCst) / 1000;
        row("longest wait", longest, "ms");
        let stats = self.client.pool_stats();
        row("opened", stats.total().opened(), "");
        row("reused", stats.total().reused(), "");
        row("resent", stats.total().resent(), "");
        let left = stats.total().open() + stats.total().opening() + stats.total().closing();
        row("left open", left as u64, "");
        row("left waiting", stats.total().waiting() as u64, "");
    }
}

/// Runs a gateway until the other process ends.
async fn serve(http2: bool) -> Result<(), BoxError> {
    let gateway = Gateway::builder(Provider::Stripe)
        .unlimited()
        .tls(true)
        .http2(http2)
        .faults(Faults::rate(0.2))
        .latency(Latency::Uniform {
            min: Duration::from_millis(1),
            max: Duration::from_millis(20),
        })
        .idle_timeout(Duration::from_millis(500))
        .max_requests_per_connection(50)
        .start()
        .await?;
    let root = gateway.ca_certificate_der().ok_or("no certificate")?;
    let root: String = root.iter().map(|byte| format!("{byte:02x}")).collect();
    println!("{}\n{root}", gateway.url());
    tokio::task::spawn_blocking(ServerProcess::until_told).await??;
    Ok(())
}

fn hex(text: &str) -> Result<Vec<u8>, BoxError> {
    let digits = text.as_bytes().chunks(2);
    digits
        .map(|two| Ok(u8::from_str_radix(std::str::from_utf8(two)?, 16)?))
        .collect()
}

async fn run(sides: &[Side], time: Duration) {
    let until = Instant::now() + time;
    let mut tasks = JoinSet::new();
    for task in 0..TASKS {
        let side = &sides[task % sides.len()];
        let (client, url, tally) = (side.client.clone(), side.url.clone(), side.tally.clone());
        tasks.spawn(async move {
            while Instant::now() < until {
                let limit = if rand::random_bool(0.1) {
                    Duration::from_micros(rand::random_range(0..30_000))
                } else {
                    Duration::from_secs(600)
                };
                let count = match timeout(limit, call(&client, &url, &tally)).await {
                    Ok(Ok(true)) => &tally.done,
                    Ok(Ok(false)) => &tally.unread,
                    Ok(Err(_)) => &tally.failed,
                    Err(_) => &tally.given_up,
                };
                count.fetch_add(1, Ordering::Relaxed);
            }
        });
    }
    tasks.join_all().await;
}

/// Whether the response was read.
async fn call(client: &Client, url: &str, tally: &Tally) -> Result<bool, BoxError> {
    let request = Request::post(url)
        .header("authorization", "Bearer sk_test_1")
        .header("content-type", "application/x-www-form-urlencoded")
        .body(Body::from("amount=1100&currency=usd"))?;
    let response = client.send(request).await?;
    if let Some(info) = ConnectionInfo::of(response.extensions()) {
        let waited = u64::try_from(info.waited().as_micros()).unwrap_or(u64::MAX);
        tally.longest_wait.fetch_max(waited, Ordering::Relaxed);
    }
    if rand::random_bool(0.1) {
        return Ok(false);
    }
    response.into_body().collect().await?;
    Ok(true)
}

struct Footprint {
    descriptors: f64,
    memory: f64,
    tasks: f64,
}

impl Footprint {
    /// Once idle connections have been closed on both ends, and the gateways
    /// have let go of what hung.
    #[expect(clippy::cast_precision_loss)]
    async fn at_rest() -> io::Result<Self> {
        sleep(IDLE + Duration::from_secs(8)).await;
        let pages = fs::read_to_string("/proc/self/statm")?;
        let resident = pages.split(' ').nth(1).and_then(|pages| pages.parse().ok());
        Ok(Self {
            descriptors: fs::read_dir("/proc/self/fd")?.count() as f64,
            memory: resident.unwrap_or(0.0) * 4096.0 / 1024.0 / 1024.0,
            tasks: Handle::current().metrics().num_alive_tasks() as f64,
        })
    }
}
