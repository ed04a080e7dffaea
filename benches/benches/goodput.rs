//! What share of a provider's allowance a limiter lets its callers use, and
//! how often it breaks the rule, in virtual time.
//!
//! Callers keep asking for the whole time; each request takes its time to the
//! provider and back. The provider enforces its rule with `tollway-sim`'s own
//! arithmetic, at a phase of the clock that the client doesn't know, and blocks
//! for a window whoever breaks it.

#![allow(
    clippy::unwrap_used,
    clippy::cast_precision_loss,
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    missing_docs,
    reason = "a bench"
)]

use std::convert::Infallible;
use std::rc::Rc;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};
use std::time::Duration;

use http::{Request, Response, StatusCode};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use tokio::task::LocalSet;
use tokio::time::{Instant, sleep, sleep_until};
use tollway_benches::Report;
use tollway_limit::{CountFrom, Limits, Quota, RateLimitLayer, Shape};
use tollway_sim::rule::{Decision, Rule, RuleKind, RuleState};
use tower::{Layer, Service, ServiceExt, service_fn};
use tower_resilience::ratelimiter::{RateLimiterLayer, WindowType};

/// One-way delays in whole milliseconds, uniform, both ends included.
#[derive(Clone, Copy)]
struct Delays {
    from: u64,
    to: u64,
}

impl Delays {
    const SHORT: Self = Self { from: 5, to: 50 };
    const LONG: Self = Self { from: 5, to: 500 };
    const WIDE: Self = Self { from: 5, to: 2000 };

    fn name(self) -> String {
        format!("{}–{} ms", self.from, self.to)
    }

    /// J: by how much one way may take longer than another.
    fn spread(self) -> f64 {
        (self.to - self.from) as f64 / 1000.0
    }

    fn draw(self, random: &mut StdRng) -> Duration {
        Duration::from_millis(random.random_range(self.from..=self.to))
    }
}

/// The provider, and the way to it.
struct Provider {
    rule: RuleState,
    start: Instant,
    phase: Duration,
    delays: Delays,
    random: StdRng,
    seen: Seen,
}

#[derive(Clone, Copy, Default)]
struct Seen {
    accepted: u64,
    rejected: u64,
    blocks: u64,
}

type Shared = Arc<Mutex<Provider>>;

async fn send(provider: Shared) -> Result<Response<()>, Infallible> {
    let way = {
        let provider = &mut *provider.lock().unwrap();
        provider.delays.draw(&mut provider.random)
    };
    sleep(way).await;
    let (decision, way) = {
        let provider = &mut *provider.lock().unwrap();
        let now = provider.start.elapsed() + provider.phase;
        let decision = provider.rule.arrive(now);
        match decision {
            Decision::Accepted => provider.seen.accepted += 1,
            Decision::Rejected { .. } => {
                provider.seen.rejected += 1;
                provider.seen.blocks += 1;
            }
            Decision::Blocked { .. } => provider.seen.rejected += 1,
        }
        (decision, provider.delays.draw(&mut provider.random))
    };
    sleep(way).await;
    let mut response = Response::new(());
    if !decision.is_accepted() {
        *response.status_mut() = StatusCode::TOO_MANY_REQUESTS;
    }
    Ok(response)
}

/// When callers send.
#[derive(Clone, Copy)]
enum Load {
    /// As fast as they are let.
    Saturating,
    /// The first trickles at 2 a second; the others send in the last 2 s of
    /// every 6.5 s.
    OnOff,
    /// One request each, at once.
    Once,
}

struct Run {
    rule: Rule,
    delays: Delays,
    callers: usize,
    load: Load,
    span: Duration,
    seed: u64,
}

impl Run {
    fn new(rule: Rule, delays: Delays, span: u64) -> Self {
        Self {
            rule,
            delays,
            callers: 64,
            load: Load::Saturating,
            span: Duration::from_secs(span),
            seed: 1,
        }
    }

    /// Runs the callers over `limit` around the provider.
    fn go<S>(&self, limit: impl FnOnce(Shared) -> S) -> (Seen, Duration)
    where
        S: Service<Request<()>, Response = Response<()>> + Clone + 'static,
    {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_time()
            .start_paused(true)
            .build()
            .unwrap();
        LocalSet::new().block_on(&runtime, async {
            let mut random = StdRng::seed_from_u64(self.seed);
            let start = Instant::now();
            let phase = Duration::from_millis(
                random.random_range(0..self.rule.window().as_millis() as u64),
            );
            let provider = Arc::new(Mutex::new(Provider {
                rule: RuleState::new(self.rule).unwrap(),
                start,
                phase,
                delays: self.delays,
                random: StdRng::seed_from_u64(self.seed + 1),
                seen: Seen::default(),
            }));
            let service = limit(Arc::clone(&provider));
            let mut callers = tokio::task::JoinSet::new();
            for index in 0..self.callers {
                let service = service.clone();
                let random = StdRng::seed_from_u64(self.seed + 2 + index as u64);
                callers.spawn_local(call(service, self.load, index, start, random));
            }
            if let Load::Once = self.load {
                while callers.join_next().await.is_some() {}
            } else {
                sleep_until(start + self.span).await;
            }
            let seen = provider.lock().unwrap().seen;
            (seen, start.elapsed())
        })
    }
}

/// One caller: sends, and after a rejection backs off with full jitter, three
/// times.
async fn call<S>(service: S, load: Load, index: usize, start: Instant, mut random: StdRng)
where
    S: Service<Request<()>, Response = Response<()>> + Clone,
{
    loop {
        match load {
            Load::OnOff if index == 0 => {
                let tick = start.elapsed().as_millis() as u64 / 500 + 1;
                sleep_until(start + Duration::from_millis(500 * tick)).await;
            }
            Load::OnOff => {
                let into = start.elapsed().as_millis() % 6500;
                if into < 4500 {
                    sleep(Duration::from_millis(4500 - into as u64)).await;
                }
            }
            Load::Saturating | Load::Once => {}
        }
        for attempt in 0..4 {
            let request = Request::new(());
            let Ok(response) = service.clone().oneshot(request).await else {
                break;
            };
            if response.status() == StatusCode::OK {
                break;
            }
            let most = 100u64 << attempt;
            sleep(Duration::from_millis(random.random_range(0..=most))).await;
        }
        if let Load::Once = load {
            return;
        }
    }
}

fn inner(
    provider: Shared,
) -> impl Service<
    Request<()>,
    Response = Response<()>,
    Error = Infallible,
    Future = impl Future<Output = Result<Response<()>, Infallible>>,
> + Clone {
    service_fn(move |_: Request<()>| send(Arc::clone(&provider)))
}

fn tollway(run: &Run, quota: Quota) -> (Seen, Duration) {
    run.go(|provider| {
        let limits = Limits::builder().every_call(quota).build().unwrap();
        RateLimitLayer::new(limits).layer(inner(provider))
    })
}

const RULES: [(u32, u64); 3] = [(1000, 10), (100, 1), (25, 1)];
const SPAN: u64 = 1200;

fn main() {
    let mut report = Report::new("goodput");
    kinds(&mut report);
    loads(&mut report);
    peers(&mut report);
    report.finish().unwrap();
}

fn row(
    report: &mut Report,
    case: &str,
    who: &str,
    run: &Run,
    seen: Seen,
    yardsticks: &[(&str, f64)],
) {
    let rate = seen.accepted as f64 / run.span.as_secs_f64();
    let ideal = f64::from(run.rule.limit()) / run.rule.window().as_secs_f64();
    report.row(case, who, "of N/W", 100.0 * rate / ideal, "%");
    for (name, yardstick) in yardsticks {
        report.row(case, who, *name, 100.0 * rate / yardstick, "%");
    }
    report.row(case, who, "429s", seen.rejected as f64, "").row(
        case,
        who,
        "blocks",
        seen.blocks as f64,
        "",
    );
}

/// The rule of this kind. A leaky bucket gets the smallest burst with which a
/// client can promise the full rate at these delays: N/W × J.
fn rule(kind: RuleKind, limit: u32, seconds: u64, delays: Delays) -> Rule {
    let window = Duration::from_secs(seconds);
    let rule = Rule::new(kind, limit, window).penalty(window);
    match kind {
        RuleKind::LeakyBucket => {
            let clump = f64::from(limit) / window.as_secs_f64() * delays.spread();
            rule.burst(clump.ceil() as u32)
        }
        _ => rule,
    }
}

/// Each kind of rule, saturated: the default shape everywhere, and what a client
/// configures who knows the kind.
fn kinds(report: &mut Report) {
    for (limit, seconds) in RULES {
        for delays in [Delays::SHORT, Delays::LONG] {
            for kind in RuleKind::ALL {
                for harsh in [false, true] {
                    kind_of_rule(report, limit, seconds, delays, kind, harsh);
                }
            }
        }
    }
}

fn kind_of_rule(
    report: &mut Report,
    limit: u32,
    seconds: u64,
    delays: Delays,
    kind: RuleKind,
    harsh: bool,
) {
    let rule = rule(kind, limit, seconds, delays).rejected_count(harsh);
    let run = Run::new(rule, delays, SPAN);
    let (n, w, j) = (f64::from(limit), seconds as f64, delays.spread());
    let window = Duration::from_secs(seconds);
    // What a client can promise who knows the kind, and who doesn't.
    let known = match kind {
        RuleKind::SlidingLog | RuleKind::FixedWindow => n / (w + j),
        RuleKind::SlidingCounter => (n - 1.0) / (w + j),
        RuleKind::TokenBucket | RuleKind::LeakyBucket => n / w,
    };
    let unknown = (n - 1.0) / (w + j);
    let yardsticks = [
        ("of what can be promised", known),
        ("kind unknown", unknown),
    ];
    let harshly = if harsh { ", rejected count" } else { "" };
    let case = format!("{limit}/{seconds} s {kind} {}{harshly}", delays.name());
    let paced = Quota::new(limit, window);
    let (seen, _) = tollway(&run, paced);
    row(report, &case, "tollway", &run, seen, &yardsticks);
    let informed = match kind {
        RuleKind::SlidingLog | RuleKind::FixedWindow => {
            ("tollway burst", paced.shape(Shape::Burst))
        }
        RuleKind::TokenBucket => ("tollway rate", Quota::rate(limit, window).burst(limit)),
        RuleKind::LeakyBucket => {
            // Evenly, from sending: a clump of J is what the bucket holds.
            let margin = CountFrom::Sending {
                margin: Duration::ZERO,
            };
            (
                "tollway rate",
                Quota::rate(limit, window).count_from(margin),
            )
        }
        RuleKind::SlidingCounter => return,
    };
    let (seen, _) = tollway(&run, informed.1);
    row(report, &case, informed.0, &run, seen, &yardsticks);
}

fn loads(report: &mut Report) {
    let window = Duration::from_secs(10);
    let rule = Rule::sliding_log(1000, window).penalty(window);
    let quota = Quota::new(1000, window);
    let burst = quota.shape(Shape::Burst);

    let run = Run {
        callers: 1024,
        ..Run::new(rule, Delays::WIDE, SPAN)
    };
    let case = "1000/10 s sliding-log 5–2000 ms, 1024 callers";
    let margin = |millis| {
        quota.count_from(CountFrom::Sending {
            margin: Duration::from_millis(millis),
        })
    };
    for (who, quota) in [
        ("tollway", quota),
        ("tollway burst", burst),
        ("tollway margin 550 ms", margin(550)),
    ] {
        let (seen, _) = tollway(&run, quota);
        row(report, case, who, &run, seen, &[]);
    }

    let run = Run {
        load: Load::OnOff,
        ..Run::new(rule, Delays::SHORT, SPAN)
    };
    let case = "1000/10 s sliding-log 5–50 ms, on/off";
    for (who, quota) in [("tollway", quota), ("tollway burst", burst)] {
        let (seen, _) = tollway(&run, quota);
        row(report, case, who, &run, seen, &[]);
    }
    // Over a network without spread the same log wastes nothing: this is the most
    // that the load lets anyone use.
    let run = Run {
        delays: Delays { from: 27, to: 27 },
        ..run
    };
    let (seen, _) = tollway(
        &run,
        burst.count_from(CountFrom::Sending {
            margin: Duration::ZERO,
        }),
    );
    row(report, case, "the most of this load", &run, seen, &[]);

    let run = Run {
        load: Load::Once,
        callers: 1000,
        ..Run::new(rule, Delays::SHORT, SPAN)
    };
    for (who, quota) in [("tollway", quota), ("tollway burst", burst)] {
        let (seen, took) = tollway(&run, quota);
        let case = "1000 at once from idle, 1000/10 s sliding-log 5–50 ms";
        report
            .row(case, who, "took", took.as_secs_f64(), "s")
            .row(case, who, "429s", seen.rejected as f64, "")
            .row(case, who, "blocks", seen.blocks as f64, "");
    }
}

type Contestant = fn(&Run) -> Seen;

/// The limiters that people use, configured in the natural way, beside ours.
fn peers(report: &mut Report) {
    for kind in RuleKind::ALL {
        for harsh in [false, true] {
            let rule = rule(kind, 1000, 10, Delays::SHORT).rejected_count(harsh);
            let run = Run::new(rule, Delays::SHORT, 120);
            let harshly = if harsh { ", rejected count" } else { "" };
            let case = format!("120 s of 1000/10 s {kind} 5–50 ms{harshly}");
            let quota = Quota::new(1000, Duration::from_secs(10));
            let (seen, _) = tollway(&run, quota);
            row(report, &case, "tollway", &run, seen, &[]);
            let contestants: [(&str, Contestant); 5] = [
                ("tower", tower_rate),
                ("governor", |run| governed(run, 1000)),
                ("governor, burst 1", |run| governed(run, 1)),
                ("tower-resilience, log", |run| {
                    resilient(run, WindowType::SlidingLog)
                }),
                ("tower-resilience, counter", |run| {
                    resilient(run, WindowType::SlidingCounter)
                }),
            ];
            for (who, contestant) in contestants {
                let seen = contestant(&run);
                row(report, &case, who, &run, seen, &[]);
            }
        }
    }
}

/// tower's can't be cloned; `Buffer` makes it shareable.
fn tower_rate(run: &Run) -> Seen {
    let limit = |provider| {
        let limited = tower::limit::RateLimit::new(
            inner(provider),
            tower::limit::rate::Rate::new(1000, Duration::from_secs(10)),
        );
        Queue::new(limited)
    };
    run.go(limit).0
}

/// A service that is shared by readying it under a fair lock, as `Buffer` would
/// from its task.
struct Queue<S>(Rc<tokio::sync::Mutex<S>>);

impl<S> Queue<S> {
    fn new(inner: S) -> Self {
        Self(Rc::new(tokio::sync::Mutex::new(inner)))
    }
}

impl<S> Clone for Queue<S> {
    fn clone(&self) -> Self {
        Self(Rc::clone(&self.0))
    }
}

impl<S> Service<Request<()>> for Queue<S>
where
    S: Service<Request<()>> + 'static,
{
    type Response = S::Response;
    type Error = S::Error;
    type Future = std::pin::Pin<Box<dyn Future<Output = Result<S::Response, S::Error>>>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<()>) -> Self::Future {
        let inner = Rc::clone(&self.0);
        Box::pin(async move {
            let answer = inner.lock().await.ready().await?.call(request);
            answer.await
        })
    }
}

/// governor on tokio's clock, waiting as `until_ready` does.
fn governed(run: &Run, burst: u32) -> Seen {
    run.go(|provider| {
        let clock = Clock {
            start: Instant::now(),
        };
        let quota = governor::Quota::with_period(Duration::from_millis(10))
            .unwrap()
            .allow_burst(burst.try_into().unwrap());
        let limiter = Rc::new(governor::RateLimiter::direct_with_clock(
            quota,
            clock.clone(),
        ));
        let inner = inner(provider);
        service_fn(move |request| {
            let (limiter, clock, inner) = (Rc::clone(&limiter), clock.clone(), inner.clone());
            async move {
                while let Err(not_until) = limiter.check() {
                    use governor::clock::Clock as _;
                    sleep(not_until.wait_time_from(clock.now())).await;
                }
                inner.oneshot(request).await
            }
        })
    })
    .0
}

#[derive(Clone, Debug)]
struct Clock {
    start: Instant,
}

impl governor::clock::Clock for Clock {
    type Instant = governor::nanos::Nanos;

    fn now(&self) -> Self::Instant {
        self.start.elapsed().into()
    }
}

fn resilient(run: &Run, window: WindowType) -> Seen {
    run.go(|provider| {
        let layer = RateLimiterLayer::builder()
            .limit_for_period(1000)
            .refresh_period(Duration::from_secs(10))
            .timeout_duration(Duration::from_secs(3600))
            .window_type(window)
            .build()
            .unwrap();
        let service = layer.layer(inner(provider));
        Local(service)
    })
    .0
}

/// Makes the service's future independent of what it may ask of its error.
#[derive(Clone)]
struct Local<S>(S);

impl<S> Service<Request<()>> for Local<S>
where
    S: Service<Request<()>>,
{
    type Response = S::Response;
    type Error = S::Error;
    type Future = S::Future;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.0.poll_ready(cx)
    }

    fn call(&mut self, request: Request<()>) -> Self::Future {
        self.0.call(request)
    }
}
