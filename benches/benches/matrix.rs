//! What each client makes of a gateway that fails: payouts made twice, and
//! calls that failed although a correct client would have completed them.
//!
//! The cells are those of the fault matrix in `tests/`, met by every contestant
//! in the same order. Each is configured the natural way: four attempts on
//! every error, 429 and 5xx, a time limit on each, and the caller's key in the
//! header or the body where the provider looks for one.

use std::collections::BTreeMap;
use std::error::Error;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderValue, Request, Response};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper_util::client::legacy;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use reqwest_retry::RetryTransientMiddleware;
use reqwest_retry::policies::ExponentialBackoff;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tollway_benches::Report;
use tollway_core::Verdict;
use tollway_sim::wire::Key;
use tollway_sim::{Faults, Gateway, Provider};
use tollway_tests::matrix::{Ask, CALLS, Cell, End, MAX_ATTEMPTS, WAITS};
use tollway_tests::words::{self, Seen};
use tower::timeout::Timeout;
use tower::{Service, ServiceBuilder, ServiceExt};
use tower_resilience::retry::{ExponentialBackoff as Exponential, RetryLayer};
use tower_resilience::timelimiter::TimeLimiterLayer;

type BoxError = Box<dyn Error + Send + Sync>;
type Call = Request<Full<Bytes>>;
type Legacy = legacy::Client<HttpConnector, Full<Bytes>>;
type Sent<'a> = Pin<Box<dyn Future<Output = bool> + Send + 'a>>;

const CONTESTANTS: [(&str, Make); 4] = [
    ("tollway", tollway),
    ("tower", tower),
    ("tower-resilience", resilience),
    ("reqwest-retry", reqwest),
];

/// Makes a contestant's client for a cell, with a limit on each attempt.
type Make = fn(&Cell, Duration) -> Result<Box<dyn Contestant>, BoxError>;

/// A client that says of each call whether it succeeded.
trait Contestant: Send + Sync {
    fn send(&self, call: Call) -> Sent<'_>;
}

struct Calls<F>(F);

impl<F, R> Contestant for Calls<F>
where
    F: Fn(Call) -> R + Send + Sync,
    R: Future<Output = bool> + Send + 'static,
{
    fn send(&self, call: Call) -> Sent<'_> {
        Box::pin((self.0)(call))
    }
}

fn tollway(cell: &Cell, attempt: Duration) -> Result<Box<dyn Contestant>, BoxError> {
    let client = cell.client(attempt)?;
    Ok(Box::new(Calls(move |call| {
        let call = client.send(call);
        async move { Seen::of(call.await).await.verdict == Verdict::Done }
    })))
}

fn legacy(cell: &Cell) -> Legacy {
    legacy::Client::builder(TokioExecutor::new())
        .http2_only(cell.http2)
        .build_http()
}

/// Four attempts on anything that looks transient.
#[derive(Clone)]
struct Transient {
    left: u32,
}

fn is_transient(status: u16) -> bool {
    status == 429 || status >= 500
}

impl tower::retry::Policy<Call, Response<Incoming>, BoxError> for Transient {
    type Future = Pin<Box<dyn Future<Output = ()> + Send>>;

    fn retry(
        &mut self,
        _: &mut Call,
        result: &mut Result<Response<Incoming>, BoxError>,
    ) -> Option<Self::Future> {
        let again = match result {
            Ok(response) => is_transient(response.status().as_u16()),
            Err(_) => true,
        };
        if !again || self.left == 0 {
            return None;
        }
        self.left -= 1;
        Some(Box::pin(tokio::time::sleep(WAITS[0])))
    }

    fn clone_request(&mut self, call: &Call) -> Option<Call> {
        Some(call.clone())
    }
}

fn tower(cell: &Cell, attempt: Duration) -> Result<Box<dyn Contestant>, BoxError> {
    let left = MAX_ATTEMPTS - 1;
    let service = ServiceBuilder::new()
        .retry(Transient { left })
        .layer_fn(|inner| Timeout::new(inner, attempt))
        .service(legacy(cell));
    Ok(through(service, cell.provider))
}

fn resilience(cell: &Cell, attempt: Duration) -> Result<Box<dyn Contestant>, BoxError> {
    let retry = RetryLayer::<Call, Response<Incoming>, _>::builder()
        .max_attempts(MAX_ATTEMPTS as usize)
        .backoff(Exponential::new(WAITS[0]).max_interval(WAITS[1]))
        .retry_on_response(|response: &Response<Incoming>| is_transient(response.status().as_u16()))
        .build();
    let limit = TimeLimiterLayer::builder()
        .timeout_duration(attempt)
        .cancel_running_future(true)
        .build();
    let service = ServiceBuilder::new()
        .layer(retry)
        .layer(limit)
        .service(legacy(cell));
    Ok(through(service, cell.provider))
}

fn through<S>(service: S, provider: Provider) -> Box<dyn Contestant>
where
    S: Service<Call, Response = Response<Incoming>> + Clone + Send + Sync + 'static,
    S::Error: Send,
    S::Future: Send,
{
    Box::new(Calls(move |call| {
        let call = service.clone().oneshot(call);
        async move {
            let Ok(response) = call.await else {
                return false;
            };
            let status = response.status().as_u16();
            let body = response.into_body().collect().await.ok();
            succeeded(provider, status, body.map(|body| body.to_bytes()))
        }
    }))
}

fn reqwest(cell: &Cell, attempt: Duration) -> Result<Box<dyn Contestant>, BoxError> {
    let builder = reqwest::Client::builder().timeout(attempt).no_proxy();
    let builder = if cell.http2 {
        builder.http2_prior_knowledge()
    } else {
        builder.http1_only()
    };
    let policy = ExponentialBackoff::builder()
        .retry_bounds(WAITS[0], WAITS[1])
        .build_with_max_retries(MAX_ATTEMPTS - 1);
    let client = reqwest_middleware::ClientBuilder::new(builder.build()?)
        .with(RetryTransientMiddleware::new_with_policy(policy))
        .build();
    let provider = cell.provider;
    Ok(Box::new(Calls(move |call: Call| {
        let client = client.clone();
        async move {
            let (head, body) = call.into_parts();
            let Ok(body) = body.collect().await;
            let request = client
                .request(head.method, head.uri.to_string())
                .headers(head.headers)
                .body(body.to_bytes());
            let Ok(response) = request.send().await else {
                return false;
            };
            let status = response.status().as_u16();
            succeeded(provider, status, response.bytes().await.ok())
        }
    })))
}

/// Whether an answer says that the call was done: a 2xx, whatever becomes of
/// its body; at Savvy the body says it.
fn succeeded(provider: Provider, status: u16, body: Option<Bytes>) -> bool {
    let said = |body: Bytes| {
        serde_json::from_slice(&body).is_ok_and(|body: serde_json::Value| body["responseCode"] == 0)
    };
    (200..300).contains(&status) && (provider != Provider::Savvy || body.is_some_and(said))
}

/// What one contestant made of one or more cells.
#[derive(Clone, Copy, Default)]
struct Score {
    calls: u32,
    attempts: u64,
    duplicates: u64,
    needless: u32,
}

impl Score {
    fn add(&mut self, other: Self) {
        self.calls += other.calls;
        self.attempts += other.attempts;
        self.duplicates += other.duplicates;
        self.needless += other.needless;
    }
}

async fn play(cell: Cell, make: Make, busy: &Semaphore) -> Result<Score, BoxError> {
    let turn = busy.acquire().await?;
    let attempt = Duration::from_millis(if cell.hangs() { 250 } else { 30_000 });
    let gateway = Gateway::builder(cell.provider).unlimited().start().await?;
    let client = make(&cell, attempt)?;
    // For look-ups to find.
    client
        .send(request(&cell, &gateway, "first", Ask::PostWithKey)?)
        .await;
    let before = gateway.stats().arrivals;
    let script = cell.script();
    gateway.set_faults(Faults::script(script.iter().copied()))?;
    // Those that hang are idle nearly all the time: from here on, all at once.
    let _turn = (!cell.hangs()).then_some(turn);

    let mut score = Score::default();
    for nth in 0..CALLS {
        let at = usize::try_from(gateway.stats().arrivals - before)?;
        let expected = cell.predict(script.iter().skip(at).copied());
        let reference = match cell.ask {
            Ask::Get => "first".to_owned(),
            _ => format!("call-{nth}"),
        };
        let call = request(&cell, &gateway, &reference, cell.ask)?;
        let done = client.send(call).await;
        score.calls += 1;
        score.needless += u32::from(expected.end == End::Done && !done);
    }
    score.attempts = gateway.stats().arrivals - before;
    let ledger = gateway.ledger();
    let applied = ledger.by_reference();
    score.duplicates = applied.values().map(|times| u64::from(times - 1)).sum();
    gateway.shutdown().await;
    Ok(score)
}

fn request(cell: &Cell, gateway: &Gateway, reference: &str, ask: Ask) -> Result<Call, BoxError> {
    if ask == Ask::Get {
        let request = words::look_up(gateway, reference)?;
        return Ok(request.map(|_| Full::default()));
    }
    let payout = words::payout(cell.provider, reference);
    let mut request = words::pay(gateway, reference)?.map(|_| Full::new(payout));
    if let (Ask::PostWithKey, Key::Header(name)) = (ask, cell.provider.wire().key) {
        let key = HeaderValue::from_str(reference)?;
        request.headers_mut().insert(name, key);
    }
    Ok(request)
}

async fn contest(make: Make) -> Result<Vec<(Cell, Score)>, BoxError> {
    let busy = Arc::new(Semaphore::new(8));
    let mut cells = Cell::all();
    cells.sort_by_key(|cell| !cell.hangs());
    let mut playing = JoinSet::new();
    for cell in cells {
        let busy = Arc::clone(&busy);
        playing.spawn(async move { (cell, play(cell, make, &busy).await) });
    }
    let mut scores = Vec::new();
    while let Some(played) = playing.join_next().await {
        let (cell, score) = played?;
        scores.push((cell, score?));
    }
    Ok(scores)
}

#[tokio::main]
async fn main() -> Result<(), BoxError> {
    // Keyed by case, in the order in which they are to be printed.
    let mut cases: BTreeMap<(usize, String), Vec<(&str, Score)>> = BTreeMap::new();
    for (who, make) in CONTESTANTS {
        let mut sums: BTreeMap<(usize, String), Score> = BTreeMap::new();
        for (cell, score) in contest(make).await? {
            let ask = cell.ask.name();
            for case in [
                (0, "all".to_owned()),
                (1, ask.to_owned()),
                (2, format!("{ask}, {}", cell.provider)),
                (3, format!("{ask}, {}", cell.fault)),
            ] {
                sums.entry(case).or_default().add(score);
            }
        }
        for (case, score) in sums {
            cases.entry(case).or_default().push((who, score));
        }
    }
    let mut report = Report::new("matrix");
    for ((_, case), scores) in cases {
        for (who, score) in scores {
            let rows = [
                ("calls", f64::from(score.calls)),
                ("attempts", count(score.attempts)),
                ("duplicates", count(score.duplicates)),
                ("failed needlessly", f64::from(score.needless)),
            ];
            for (metric, value) in rows {
                report.row(case.clone(), who, metric, value, "");
            }
        }
    }
    report.finish()?;
    Ok(())
}

#[expect(clippy::cast_precision_loss, reason = "far below 2^53")]
const fn count(n: u64) -> f64 {
    n as f64
}
