//! Servers that close: after so many requests on a connection, or after so many
//! milliseconds without one. How many calls fail, and is any request sent
//! twice?
//!
//! "tollway" is the composed client, of Stripe's profile without its limits;
//! a POST of its carries a key unless the case says otherwise. "pool" is the
//! pool alone, without keys and without retries. hyper-util's legacy client and
//! reqwest stand beside them as they come. The server's ledger is the witness:
//! "twice" counts requests without a key that took effect more than once, and
//! "false" counts failures that were called not executed although the request
//! had taken effect.
//!
//! Its timers are real. Each caller pauses between calls, for up to twice the
//! server's patience.

use std::collections::HashMap;
use std::convert::Infallible;
use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use http::{Method, Request, Response, Uri};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::client::legacy::{self, connect::HttpConnector};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, timeout};
use tollway::limit::Limits;
use tollway::{Client, profiles};
use tollway_benches::Report;
use tollway_core::{BoxError, Verdict};
use tollway_pool::{Pool, Protocol};
use tower::ServiceExt;

type Body = Full<Bytes>;

const CALLERS: usize = 16;
const CALLS: usize = 100;
const SENT: &str = "amount=1100";

/// When the server closes a connection.
#[derive(Clone, Copy, Debug)]
enum Closes {
    AfterRequests(usize),
    AfterIdle(Duration),
}

impl Closes {
    fn name(self) -> String {
        match self {
            Self::AfterRequests(count) => format!("after {count} requests"),
            Self::AfterIdle(time) => format!("after {} ms idle", time.as_millis()),
        }
    }

    /// The longest pause between two calls.
    fn pause(self) -> Duration {
        match self {
            Self::AfterRequests(_) => Duration::from_millis(1),
            Self::AfterIdle(time) => time * 2,
        }
    }
}

#[derive(Clone, Copy, PartialEq)]
enum Version {
    Http1,
    Http2,
}

/// How often each call took effect.
type Ledger = Arc<Mutex<HashMap<String, usize>>>;

/// What became of a call, as its caller sees it.
#[derive(Clone, Copy, PartialEq)]
enum Outcome {
    Done,
    Failed(Verdict),
}

type Calling = Pin<Box<dyn Future<Output = Outcome> + Send>>;

/// Makes one call, whoever it is.
type Contestant = Arc<dyn Fn(Request<Body>) -> Calling + Send + Sync>;

#[tokio::main]
async fn main() -> Result<(), BoxError> {
    let sweep = [
        Closes::AfterRequests(1),
        Closes::AfterRequests(2),
        Closes::AfterRequests(10),
        Closes::AfterIdle(Duration::from_millis(1)),
        Closes::AfterIdle(Duration::from_millis(5)),
        Closes::AfterIdle(Duration::from_millis(20)),
    ];
    let mut report = Report::new("churn");
    for (version, name) in [(Version::Http1, "HTTP/1.1"), (Version::Http2, "HTTP/2")] {
        for closes in sweep {
            for (method, keyed, what) in [
                (Method::GET, false, "GET"),
                (Method::POST, true, "POST with a key"),
                (Method::POST, false, "POST"),
            ] {
                for (who, call) in contestants(version, keyed)? {
                    let case = format!("{name}, {}, {what}", closes.name());
                    let figures = run(version, closes, &method, call).await?;
                    figures.report(&mut report, &case, who, keyed || method == Method::GET);
                }
            }
        }
    }
    report.finish()?;
    Ok(())
}

#[derive(Default)]
struct Figures {
    failed: usize,
    unknown: usize,
    /// Took effect more than once.
    twice: usize,
    /// Was called not executed, and was.
    untrue: usize,
    connections: usize,
}

impl Figures {
    fn report(&self, report: &mut Report, case: &str, who: &str, repeatable: bool) {
        let mut row = |metric: &str, value: usize| {
            // Far below 2⁵³.
            #[expect(clippy::cast_precision_loss)]
            report.row(case, who, metric, value as f64, "");
        };
        row("failed", self.failed);
        row("unknown", self.unknown);
        if !repeatable {
            row("twice", self.twice);
        }
        row("false", self.untrue);
        row("connections", self.connections);
    }
}

async fn run(
    version: Version,
    closes: Closes,
    method: &Method,
    call: Contestant,
) -> Result<Figures, BoxError> {
    let server = Server::start(version, closes).await?;
    let uri: Uri = format!("http://{}/v1/payouts", server.addr).parse()?;
    let mut callers = JoinSet::new();
    for caller in 0..CALLERS {
        let (call, method, uri) = (call.clone(), method.clone(), uri.clone());
        callers.spawn(async move {
            let mut outcomes = Vec::new();
            for number in 0..CALLS {
                let name = format!("{caller}-{number}");
                let mut request = Request::new(Body::from(SENT));
                *request.method_mut() = method.clone();
                *request.uri_mut() = uri.clone();
                if let Ok(value) = name.parse() {
                    request.headers_mut().insert("x-call", value);
                }
                outcomes.push((name, call(request).await));
                sleep(closes.pause().mul_f64(rand::random())).await;
            }
            outcomes
        });
    }
    let outcomes = callers.join_all().await.concat();
    let mut figures = Figures {
        connections: server.connections.load(Ordering::SeqCst),
        ..Figures::default()
    };
    let ledger = server.ledger.lock().unwrap_or_else(PoisonError::into_inner);
    for (name, outcome) in outcomes {
        let effects = ledger.get(&name).copied().unwrap_or_default();
        figures.twice += usize::from(effects > 1);
        if let Outcome::Failed(verdict) = outcome {
            figures.failed += 1;
            figures.unknown += usize::from(verdict == Verdict::Unknown);
            let not_executed = matches!(verdict, Verdict::NotExecuted { .. });
            figures.untrue += usize::from(not_executed && effects > 0);
        }
    }
    Ok(figures)
}

fn contestants(version: Version, keyed: bool) -> Result<Vec<(&'static str, Contestant)>, BoxError> {
    let protocol = match version {
        Version::Http1 => Protocol::Http1Only,
        Version::Http2 => Protocol::Http2Only,
    };
    let mut builder = Client::builder(profiles::stripe())
        .limits(Limits::builder())
        .plain_http(true)
        .pool(|pool| pool.protocol(protocol));
    if !keyed {
        builder = builder.keys(None);
    }
    let client = builder.build()?;
    let pool: Pool<Body> = Pool::builder()
        .plain_http(true)
        .protocol(protocol)
        .build()?;
    let plain = legacy::Client::builder(TokioExecutor::new())
        .http2_only(version == Version::Http2)
        .build::<_, Body>(HttpConnector::new());
    let reqwest = match version {
        Version::Http1 => reqwest::Client::builder().http1_only(),
        Version::Http2 => reqwest::Client::builder().http2_prior_knowledge(),
    }
    .no_proxy()
    .build()?;

    let mut contestants: Vec<(&'static str, Contestant)> = vec![(
        "tollway",
        Arc::new(move |request| {
            let client = client.clone();
            Box::pin(async move {
                match client.send(request.map(tollway::Body::new)).await {
                    Ok(response) => outcome(response.into_body().collect().await),
                    Err(error) => outcome(Err::<(), _>(error)),
                }
            })
        }),
    )];
    if !keyed {
        contestants.push((
            "pool",
            Arc::new(move |request| {
                let pool = pool.clone();
                Box::pin(async move {
                    match pool.oneshot(request).await {
                        Ok(response) => outcome(response.into_body().collect().await),
                        Err(error) => outcome(Err::<(), _>(error)),
                    }
                })
            }),
        ));
    }
    contestants.push((
        "hyper-util legacy",
        Arc::new(move |request| {
            let client = plain.clone();
            Box::pin(async move {
                match client.request(request).await {
                    Ok(response) => outcome(response.into_body().collect().await),
                    Err(error) => outcome(Err::<(), _>(error)),
                }
            })
        }),
    ));
    contestants.push((
        "reqwest",
        Arc::new(move |request| {
            let client = reqwest.clone();
            Box::pin(async move {
                let (parts, _) = request.into_parts();
                let request = client
                    .request(parts.method, parts.uri.to_string())
                    .headers(parts.headers)
                    .body(SENT);
                match request.send().await {
                    Ok(response) => outcome(response.bytes().await),
                    Err(error) => outcome(Err::<(), _>(error)),
                }
            })
        }),
    ));
    Ok(contestants)
}

fn outcome<T, E: Into<BoxError>>(result: Result<T, E>) -> Outcome {
    match result {
        Ok(_) => Outcome::Done,
        Err(error) => Outcome::Failed(Verdict::of_error(&*error.into())),
    }
}

// ===== The server =====

struct Server {
    addr: SocketAddr,
    ledger: Ledger,
    connections: Arc<AtomicUsize>,
    task: tokio::task::JoinHandle<()>,
}

impl Drop for Server {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Server {
    async fn start(version: Version, closes: Closes) -> io::Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let addr = listener.local_addr()?;
        let (ledger, connections) = (Ledger::default(), Arc::new(AtomicUsize::new(0)));
        let task = {
            let (ledger, connections) = (ledger.clone(), connections.clone());
            tokio::spawn(async move {
                while let Ok((stream, _)) = listener.accept().await {
                    connections.fetch_add(1, Ordering::SeqCst);
                    let _ = stream.set_nodelay(true);
                    let ledger = ledger.clone();
                    match version {
                        Version::Http1 => tokio::spawn(serve_http1(stream, closes, ledger)),
                        Version::Http2 => tokio::spawn(serve_http2(stream, closes, ledger)),
                    };
                }
            })
        };
        Ok(Self {
            addr,
            ledger,
            connections,
            task,
        })
    }
}

/// What a connection has seen, for its patience.
struct Patience {
    requests: AtomicUsize,
    last: Mutex<Instant>,
}

impl Patience {
    /// Returns when it has ended.
    async fn ends(&self, closes: Closes) {
        loop {
            let (until, over) = match closes {
                Closes::AfterRequests(most) => (
                    Instant::now() + Duration::from_micros(200),
                    self.requests.load(Ordering::SeqCst) >= most,
                ),
                Closes::AfterIdle(time) => {
                    let last = *self.last.lock().unwrap_or_else(PoisonError::into_inner);
                    (last + time, last.elapsed() >= time)
                }
            };
            if over {
                return;
            }
            tokio::time::sleep_until(until).await;
        }
    }
}

/// Notes that a call took effect.
fn note(ledger: &Ledger, call: &str) {
    let mut ledger = ledger.lock().unwrap_or_else(PoisonError::into_inner);
    *ledger.entry(call.to_owned()).or_default() += 1;
}

/// HTTP/1.1 closes without a word once the last answer is out, as impolite
/// load balancers do.
async fn serve_http1(mut stream: TcpStream, closes: Closes, ledger: Ledger) {
    const ANSWER: &[u8] = b"HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\npaid";
    let (most, idle) = match closes {
        Closes::AfterRequests(most) => (most, Duration::from_secs(60)),
        Closes::AfterIdle(time) => (usize::MAX, time),
    };
    let mut buffer = vec![0; 4096];
    for _ in 0..most {
        let mut filled = 0;
        let call = loop {
            match timeout(idle, stream.read(&mut buffer[filled..])).await {
                Ok(Ok(read @ 1..)) => filled += read,
                _ => return,
            }
            // Every request has the same body, and nothing after it.
            let text = String::from_utf8_lossy(&buffer[..filled]);
            if text.ends_with(SENT) {
                let mut lines = text.lines();
                let call = lines.find_map(|line| line.strip_prefix("x-call: "));
                break call.unwrap_or_default().to_owned();
            }
        };
        note(&ledger, &call);
        if stream.write_all(ANSWER).await.is_err() {
            return;
        }
    }
}

/// HTTP/2 says GOAWAY, as it must.
async fn serve_http2(stream: TcpStream, closes: Closes, ledger: Ledger) {
    let patience = Arc::new(Patience {
        requests: AtomicUsize::new(0),
        last: Mutex::new(Instant::now()),
    });
    let service = {
        let patience = patience.clone();
        service_fn(move |request: Request<Incoming>| {
            let (ledger, patience) = (ledger.clone(), patience.clone());
            async move {
                let call = request.headers().get("x-call");
                note(
                    &ledger,
                    call.and_then(|call| call.to_str().ok()).unwrap_or_default(),
                );
                let _ = request.into_body().collect().await;
                patience.requests.fetch_add(1, Ordering::SeqCst);
                *patience.last.lock().unwrap_or_else(PoisonError::into_inner) = Instant::now();
                Ok::<_, Infallible>(Response::new(Body::from("paid")))
            }
        })
    };
    let serving = hyper::server::conn::http2::Builder::new(TokioExecutor::new())
        .serve_connection(TokioIo::new(stream), service);
    let mut serving = std::pin::pin!(serving);
    tokio::select! {
        _ = serving.as_mut() => return,
        () = patience.ends(closes) => {}
    }
    serving.as_mut().graceful_shutdown();
    let _ = serving.await;
}
