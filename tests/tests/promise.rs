//! The promise, over calls whose attempts go wrong one after the other, each in
//! a way of its own: every call takes effect at most once, none is said to have
//! had no effect that had one, and each ends in time.

use std::collections::{HashMap, VecDeque};
use std::future::{Future, poll_fn};
use std::pin::{Pin, pin};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderName, Method, Request, Response, StatusCode};
use http_body::{Body, Frame, SizeHint};
use http_body_util::{BodyExt, Full};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use tokio::time::{Instant, sleep};
use tollway::core::{BoxError, ClassifyLayer, Fault, IdempotencyKey, Phase, Rules, Verdict};
use tollway::idempotency::{Dialect, IdempotencyKeyLayer, KeyBody, key_of};
use tollway::limit::{Limits, Quota, RateLimitLayer};
use tollway::retry::{BackOff, Hedge, ReplayBody, RetryLayer, RetryPolicy};
use tollway::timeout::{AttemptTimeoutLayer, DeadlineLayer};
use tower::{ServiceBuilder, ServiceExt, service_fn};

const SEEDS: u64 = 2000;
const CALLS: usize = 8;
/// The longest that a request is on its way.
const SLACK: Duration = Duration::from_secs(3);
const KEY: HeaderName = HeaderName::from_static("idempotency-key");

fn ms(ms: u64) -> Duration {
    Duration::from_millis(ms)
}

/// What an attempt meets.
#[derive(Clone, Copy, Debug)]
enum Fate {
    /// No connection.
    Unconnected,
    /// Turned away before anybody looks at the key.
    Door(u16),
    /// Not executed, and asked to come back after so many seconds.
    Throttled(u16, Option<u64>),
    /// Executed or not, and answered with this.
    Answered(u16, bool),
    /// Executed or not, and then a reset, with or without a `Fault`.
    Reset(bool, bool),
    /// Executed or not, and never answered.
    Silent(bool),
    /// Declined, by the provider's core.
    Declined,
    /// Executed, with a body that stalls or not.
    Done(bool),
}

const FATES: [Fate; 26] = [
    Fate::Unconnected,
    Fate::Door(307),
    Fate::Door(401),
    Fate::Door(403),
    Fate::Door(404),
    Fate::Door(409),
    Fate::Throttled(429, None),
    Fate::Throttled(429, Some(1)),
    Fate::Throttled(429, Some(90)),
    Fate::Throttled(425, None),
    Fate::Answered(500, true),
    Fate::Answered(503, false),
    Fate::Answered(303, true),
    Fate::Answered(302, false),
    Fate::Answered(408, true),
    Fate::Answered(502, true),
    Fate::Reset(true, true),
    Fate::Reset(true, false),
    Fate::Reset(false, true),
    Fate::Silent(true),
    Fate::Silent(false),
    Fate::Declined,
    Fate::Done(true),
    Fate::Done(false),
    Fate::Done(false),
    Fate::Done(false),
];

/// What became of one resource.
#[derive(Debug, Default)]
struct Entry {
    effects: u32,
    deleted: bool,
    /// A request came whole, but not as its caller said it.
    muddled: bool,
    /// The results under the keys that were seen, and since when.
    saved: HashMap<String, (u16, Instant)>,
    /// For whoever reads the failed test.
    fates: Vec<Fate>,
}

type Ledger = Arc<Mutex<HashMap<String, Entry>>>;
type Sent = Request<ReplayBody<KeyBody<Parts>>>;

impl Entry {
    /// The core gets the request, and says what came of it.
    fn execute(&mut self, request: &Request<()>, life: Option<Duration>, status: u16) -> u16 {
        if request.method() == Method::DELETE && status == 200 {
            let found = !std::mem::replace(&mut self.deleted, true);
            return if found { status } else { 404 };
        }
        if request.method() != Method::POST {
            return status;
        }
        let key = request.headers().get(KEY).filter(|_| life.is_some());
        let key = key.and_then(|key| key.to_str().ok()).map(str::to_owned);
        // What is older is forgotten, but not while a repeat may be on its way.
        let life = life.map(|life| life + SLACK);
        self.saved
            .retain(|_, (_, since)| Some(since.elapsed()) < life);
        if let Some((saved, _)) = key.as_ref().and_then(|key| self.saved.get(key)) {
            return *saved;
        }
        self.effects += u32::from(status == 200);
        if let Some(key) = key {
            self.saved.insert(key, (status, Instant::now()));
        }
        status
    }

    fn had_effect(&self) -> bool {
        self.effects > 0 || self.deleted
    }
}

/// What every request says, in one frame or several.
const SAID: &[u8] = b"amount=1&currency=eur";

/// The body of a request: its frames, and how long each takes to come.
#[derive(Debug)]
struct Parts {
    frames: VecDeque<(u64, Bytes)>,
    /// Ends with an error where the last of them is due.
    fails: bool,
    sized: bool,
    waiting: Option<Pin<Box<tokio::time::Sleep>>>,
}

impl Parts {
    fn draw(rng: &mut StdRng) -> Self {
        let mut frames: VecDeque<_> = if rng.random_bool(0.5) {
            [(0, Bytes::from_static(SAID))].into()
        } else {
            let frames = SAID.chunks(rng.random_range(3..SAID.len()));
            let mut delay = || [0, 0, 30, 700][rng.random_range(0..4)];
            frames
                .map(|frame| (delay(), Bytes::from_static(frame)))
                .collect()
        };
        let fails = rng.random_bool(0.1);
        if fails {
            frames.pop_back();
        }
        Self {
            frames,
            fails,
            sized: rng.random_bool(0.5),
            waiting: None,
        }
    }
}

impl Body for Parts {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        let Some((delay, _)) = self.frames.front() else {
            let failed = std::mem::take(&mut self.fails);
            return Poll::Ready(failed.then(|| Err("the source of the body failed".into())));
        };
        let delay = ms(*delay);
        if !delay.is_zero() {
            let waiting = self.waiting.get_or_insert_with(|| Box::pin(sleep(delay)));
            std::task::ready!(waiting.as_mut().poll(cx));
            self.waiting = None;
        }
        let frame = self.frames.pop_front();
        Poll::Ready(frame.map(|(_, frame)| Ok(Frame::data(frame))))
    }

    fn is_end_stream(&self) -> bool {
        self.frames.is_empty() && !self.fails
    }

    fn size_hint(&self) -> SizeHint {
        let left = self.frames.iter().map(|(_, frame)| frame.len() as u64);
        let sized = self.sized.then(|| SizeHint::with_exact(left.sum()));
        sized.unwrap_or_default()
    }
}

/// A body of one frame, which may never come.
#[derive(Debug)]
struct Answer(Option<bool>);

impl Body for Answer {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        match self.0.take() {
            Some(true) => {
                self.0 = Some(true);
                Poll::Pending
            }
            Some(false) => Poll::Ready(Some(Ok(Frame::data(Bytes::from_static(b"{}"))))),
            None => Poll::Ready(None),
        }
    }
}

fn answer(status: u16, stalls: bool) -> Result<Response<Answer>, BoxError> {
    let mut response = Response::new(Answer(Some(stalls)));
    *response.status_mut() = StatusCode::from_u16(status)?;
    Ok(response)
}

/// One attempt, from connecting to its answer.
async fn attempt(
    request: Sent,
    ledger: Ledger,
    life: Option<Duration>,
    fate: Fate,
    times: [u64; 3],
) -> Result<Response<Answer>, BoxError> {
    let mut connecting = pin!(sleep(ms(times[0])));
    poll_fn(|cx| match connecting.as_mut().poll(cx) {
        Poll::Pending => Phase::Connect.pending(),
        ready => ready,
    })
    .await;
    if let Fate::Unconnected = fate {
        let fault = Fault::new(Verdict::NO_EFFECT).in_phase(Phase::Connect);
        return Err(fault.into());
    }
    // Answered before all of the request has come.
    let early = matches!(
        fate,
        Fate::Door(_) | Fate::Throttled(..) | Fate::Answered(_, false) | Fate::Reset(false, _)
    );
    // It is on its way, and then the provider's, whoever drops this.
    let sent = tokio::spawn(async move {
        let (head, mut body) = request.into_parts();
        let read = if early {
            body.frame().await.transpose()?;
            None
        } else {
            Some(body.collect().await?.to_bytes())
        };
        let request = Request::from_parts(head, ());
        sleep(ms(times[1])).await;
        let mut ledger = ledger.lock().unwrap_or_else(PoisonError::into_inner);
        let entry = ledger.entry(request.uri().path().to_owned()).or_default();
        entry.fates.push(fate);
        entry.muddled |= read.is_some_and(|read| read != SAID);
        let mut execute = |executes: bool, status| {
            let executed = executes.then(|| entry.execute(&request, life, status));
            executed.unwrap_or(status)
        };
        Ok::<_, BoxError>(match fate {
            Fate::Answered(_, executes) | Fate::Reset(executes, _) | Fate::Silent(executes) => {
                execute(executes, 200)
            }
            Fate::Declined => execute(true, 402),
            _ => execute(matches!(fate, Fate::Done(_)), 200),
        })
    });
    let executed = sent.await??;
    sleep(ms(times[2])).await;
    match fate {
        Fate::Door(status) => answer(status, false),
        Fate::Answered(status, _) => answer(status, true),
        Fate::Throttled(status, after) => {
            let mut response = answer(status, true)?;
            if let Some(after) = after {
                response.headers_mut().insert("retry-after", after.into());
            }
            Ok(response)
        }
        Fate::Reset(_, true) => Err(Fault::new(Verdict::Unknown).in_phase(Phase::Head).into()),
        Fate::Reset(..) | Fate::Unconnected => Err("reset".into()),
        Fate::Silent(_) => std::future::pending().await,
        Fate::Declined => answer(executed, false),
        Fate::Done(stalls) => answer(executed, stalls),
    }
}

/// What the caller saw of a call.
#[derive(Debug)]
struct Seen {
    verdict: Verdict,
    key: Option<IdempotencyKey>,
    took: Duration,
    error: Option<String>,
}

impl Seen {
    /// For whoever reads the failed test.
    fn told(&self, seed: u64, method: &Method, entry: &Entry) -> String {
        let error = self.error.as_deref().unwrap_or("no error");
        format!("seed {seed}, {method}: {self:?}, {error}, {entry:?}")
    }
}

/// A client of eight concurrent calls, all of them drawn from `seed`.
async fn run(seed: u64, hedge: Hedge) -> Result<(), BoxError> {
    let mut rng = StdRng::seed_from_u64(seed);
    // How long the provider remembers a key, if it looks at any.
    let life = [None, Some(ms(3000)), Some(Dialect::DEFAULT_LIFE)];
    let life = life[rng.random_range(0..3)];
    let deadline = ms([300, 1500, 6000, 40_000][rng.random_range(0..4)]);
    let ledger = Ledger::default();
    let draws = Arc::new(Mutex::new(StdRng::seed_from_u64(!seed)));
    let gateway = {
        let ledger = Arc::clone(&ledger);
        service_fn(move |request: Sent| {
            let mut rng = draws.lock().unwrap_or_else(PoisonError::into_inner);
            let fate = FATES[rng.random_range(0..FATES.len())];
            let times = [[0, 0, 50, 2500], [0, 0, 20, 2500], [0, 20, 300, 2500]];
            let times = times.map(|times| times[rng.random_range(0..4)]);
            attempt(request, Arc::clone(&ledger), life, fate, times)
        })
    };
    let mut policy = RetryPolicy::builder()
        .replay_bound([0, 80, 1 << 16][rng.random_range(0..3)])
        .back_off(BackOff::exponential(ms(50), ms(800))?)
        .seed(move || seed)
        .key_headers(life.map(|_| KEY));
    if rng.random_bool(0.5) {
        policy = policy.hedge(hedge);
    }
    let dialect = match life {
        Some(life) => Dialect::default().life(life),
        None => Dialect::default().methods([]),
    };
    let remember = [1, 3, 8192][rng.random_range(0..3)];
    let limits = Limits::builder().every_call(Quota::per_second(6).in_flight(3));
    let service = ServiceBuilder::new()
        .layer(DeadlineLayer::new(deadline).sharing_timers())
        .layer(
            IdempotencyKeyLayer::new()
                .remember(remember)
                .dialect(dialect)
                .echo(true),
        )
        .layer(RetryLayer::new(policy.build()?))
        .layer(RateLimitLayer::new(limits.build()?))
        .layer(AttemptTimeoutLayer::new(ms(2000)))
        .layer(ClassifyLayer::new(Rules::new()))
        .service(gateway);

    let mut calls = tokio::task::JoinSet::new();
    for nth in 0..CALLS {
        let method = [Method::POST, Method::POST, Method::DELETE, Method::GET];
        let method = method[rng.random_range(0..4)].clone();
        let path = format!("/v1/payouts/{nth}");
        let mut request = Request::new(Parts::draw(&mut rng));
        *request.method_mut() = method.clone();
        *request.uri_mut() = path.parse()?;
        if rng.random_bool(0.3) {
            // The caller's own key, of use or not.
            request.headers_mut().insert(KEY, path[1..].parse()?);
        }
        let service = service.clone();
        calls.spawn(async move {
            let start = Instant::now();
            let seen = match service.oneshot(request).await {
                Ok(response) => Seen {
                    verdict: Verdict::of_response(&response),
                    key: IdempotencyKey::of(response.extensions()).cloned(),
                    error: response
                        .into_body()
                        .collect()
                        .await
                        .err()
                        .map(|e| e.to_string()),
                    took: start.elapsed(),
                },
                Err(error) => Seen {
                    verdict: Verdict::of_error(&*error),
                    key: key_of(&*error).cloned(),
                    error: Some(error.to_string()),
                    took: start.elapsed(),
                },
            };
            (method, path, seen)
        });
    }
    let ended = calls.join_all().await;
    sleep(SLACK).await;
    for (method, path, seen) in ended {
        let mut ledger = ledger.lock().unwrap_or_else(PoisonError::into_inner);
        let entry = ledger.entry(path).or_default();
        let told = seen.told(seed, &method, entry);
        assert!(!entry.muddled, "muddled: {told}");
        assert!(entry.effects <= 1, "twice: {told}");
        let admitted = matches!(seen.verdict, Verdict::Done | Verdict::Unknown);
        assert!(admitted || !entry.had_effect(), "denied: {told}");
        let made_up = seen.verdict == Verdict::Done && method == Method::POST;
        assert!(!made_up || entry.had_effect(), "made up: {told}");
        let must_tell =
            life.is_some() && method == Method::POST && seen.verdict == Verdict::Unknown;
        assert!(!must_tell || seen.key.is_some(), "no key: {told}");
        // A timer rounds up to a millisecond.
        assert!(seen.took <= deadline + ms(1), "too late: {told}");
    }
    Ok(())
}

/// A hedge that knows how long calls take.
async fn hedge() -> Result<Hedge, BoxError> {
    let hedge = Hedge::after_quantile(0.5)?;
    let policy = RetryPolicy::builder().hedge(hedge.clone()).build()?;
    let quick = service_fn(|_: Request<ReplayBody<Full<Bytes>>>| async {
        sleep(ms(100)).await;
        answer(200, false)
    });
    let service = ServiceBuilder::new()
        .layer(RetryLayer::new(policy))
        .service(quick);
    for _ in 0..150 {
        let request = Request::new(Full::<Bytes>::default());
        service.clone().oneshot(request).await?;
    }
    Ok(hedge)
}

#[tokio::test(start_paused = true)]
async fn it_holds_whatever_mixture_of_attempts_a_call_makes() -> Result<(), BoxError> {
    let hedge = hedge().await?;
    for seed in 0..SEEDS {
        run(seed, hedge.clone()).await?;
    }
    Ok(())
}
