//! What the limiter costs: alone and beside its peers, with nobody waiting,
//! with everybody hammering one key, and with a long queue.

#![allow(
    clippy::unwrap_used,
    clippy::cast_precision_loss,
    clippy::disallowed_methods,
    reason = "a bench; it measures the machine's own time"
)]

use std::convert::Infallible;
use std::future::{Future, Ready, ready};
use std::hint::black_box;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use http::{Method, Request, Response};
use tollway_benches::{Instructions, Report, allocations};
use tollway_core::{Endpoint, Verdict};
use tollway_limit::{Call, Key, Limits, Quota, RateLimitLayer, Shape};
use tower::{Layer, Service};
use tower_resilience::ratelimiter::RateLimiterLayer;

/// So much that nobody waits, over a window so short that its ring stays small.
const PLENTY: Quota = Quota::new(10_000_000, Duration::from_millis(1)).shape(Shape::Burst);

fn main() {
    let mut report = Report::new("limiter");
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_time()
        .build()
        .unwrap();
    {
        let _entered = runtime.enter();
        uncontended(&mut report);
        layers(&mut report);
    }
    runtime.block_on(contended(&mut report));
    queue(&mut report);
    keys(&mut report);
    report.finish().unwrap();
}

/// Nanoseconds, allocations and instructions of one run of `work`.
fn measure(report: &mut Report, case: &str, who: &str, mut work: impl FnMut()) {
    const RUNS: u32 = 2_000;
    let rounds = (0..500).map(|_| {
        let start = Instant::now();
        for _ in 0..RUNS {
            work();
        }
        start.elapsed().as_nanos() as f64 / f64::from(RUNS)
    });
    // The fastest: what the machine does meanwhile only adds.
    let fastest = rounds.fold(f64::INFINITY, f64::min);
    report.row(case, who, "time", fastest, "ns");
    report.row(
        case,
        who,
        "allocations",
        allocations(100 * RUNS, &mut work),
        "",
    );
    let instructions = Instructions::new().and_then(|mut counter| counter.count(RUNS, &mut work));
    if let Some(instructions) = instructions {
        report.row(case, who, "instructions", instructions, "");
    }
}

fn poll<F: Future>(future: F) -> Poll<F::Output> {
    pin!(future).poll(&mut Context::from_waker(Waker::noop()))
}

/// Takes a permit and lets it go.
fn take(limits: &Limits, call: &Call<'_>) {
    let permit = poll(limits.acquire(black_box(call)));
    assert!(matches!(permit, Poll::Ready(Ok(_))));
}

fn uncontended(report: &mut Report) {
    let case = "acquire and release";
    measure(report, "two readings of the clock", "std", || {
        black_box(Instant::now());
        black_box(Instant::now());
    });
    let call = Call::new(&Method::POST, "/v1/payouts");
    let one = Limits::builder().every_call(PLENTY).build().unwrap();
    measure(report, &format!("{case}, one quota"), "tollway", || {
        take(&one, &call);
    });
    let bucket = Quota::rate(10_000_000, Duration::from_secs(1)).burst(10_000_000);
    let rate = Limits::builder().every_call(bucket).build().unwrap();
    measure(
        report,
        &format!("{case}, one quota"),
        "tollway rate",
        || take(&rate, &call),
    );
    let two = Limits::builder().every_call(PLENTY).every_call(PLENTY);
    let two = two.build().unwrap();
    measure(report, &format!("{case}, two quotas"), "tollway", || {
        take(&two, &call);
    });

    let endpoints = (0..63).map(|index| Endpoint::get(format!("/v1/resource_{index}/{{id}}")));
    let many = Limits::builder()
        .known_endpoints(endpoints)
        .every_call(PLENTY)
        .endpoint(Endpoint::post("/v1/payouts/{id}"), PLENTY)
        .build()
        .unwrap();
    let call = Call::new(&Method::POST, "/v1/payouts/po_1MSMBNL4sGkvpWSo");
    let case_of_64 = format!("{case}, two quotas, endpoint among 64");
    measure(report, &case_of_64, "tollway", || take(&many, &call));

    let keyed = Limits::builder()
        .keyed(Key::path(), PLENTY)
        .build()
        .unwrap();
    measure(report, &format!("{case}, keyed"), "tollway", || {
        take(&keyed, &call);
    });

    let quota = governor::Quota::per_second(u32::MAX.try_into().unwrap());
    let limiter = governor::RateLimiter::direct(quota);
    measure(report, &format!("{case}, one quota"), "governor", || {
        black_box(limiter.check()).unwrap();
    });
}

/// A service that is ready and answers at once.
#[derive(Clone, Copy)]
struct Answers;

impl Service<Request<()>> for Answers {
    type Response = Response<()>;
    type Error = Infallible;
    type Future = Ready<Result<Response<()>, Infallible>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, _: Request<()>) -> Self::Future {
        ready(Ok(Response::new(())))
    }
}

fn layers(report: &mut Report) {
    let case = "a call over a ready service";
    let mut measure_service = |who: &str, service: &mut dyn FnMut()| {
        measure(report, case, who, service);
    };
    fn call<S: Service<Request<()>>>(service: &mut S) {
        assert!(poll(std::future::poll_fn(|cx| service.poll_ready(cx))).is_ready());
        assert!(poll(service.call(black_box(Request::new(())))).is_ready());
    }
    let mut bare = Answers;
    measure_service("bare", &mut || call(&mut bare));
    let limits = Limits::builder().every_call(PLENTY).build().unwrap();
    let mut ours = RateLimitLayer::new(limits).layer(Answers);
    measure_service("tollway", &mut || call(&mut ours));
    let rate = tower::limit::rate::Rate::new(u64::MAX, Duration::from_secs(1));
    let mut tower = tower::limit::RateLimit::new(Answers, rate);
    measure_service("tower", &mut || call(&mut tower));
    let layer = RateLimiterLayer::builder()
        .limit_for_period(usize::MAX)
        .refresh_period(Duration::from_secs(1))
        .build()
        .unwrap();
    let mut resilient = layer.layer(Answers);
    measure_service("tower-resilience", &mut || call(&mut resilient));
}

/// 8 tasks on 2 threads, all on one key, beside the least that a limiter can do
/// that learns of answers and has one place to count: it reads the clock twice, and
/// adds to a handle's count and to one of its own, and again at the answer.
async fn contended(report: &mut Report) {
    let case = "8 tasks on 2 threads, one key";
    let count = Arc::new(AtomicUsize::new(0));
    let least = hammer(move || {
        let handle = Arc::clone(&count);
        black_box(Instant::now());
        handle.fetch_add(1, Ordering::AcqRel);
        black_box(Instant::now());
        handle.fetch_add(1, Ordering::AcqRel);
    });
    report.row(
        case,
        "two clocks, four additions",
        "time",
        least.await,
        "ns",
    );
    let limits = Limits::builder().every_call(PLENTY).build().unwrap();
    let ours = hammer(move || take(&limits, &Call::new(&Method::GET, "/"))).await;
    report.row(case, "tollway", "time", ours, "ns");
    let keyed = Limits::builder()
        .keyed(Key::path(), PLENTY)
        .build()
        .unwrap();
    let ours = hammer(move || take(&keyed, &Call::new(&Method::GET, "/one"))).await;
    report.row(case, "tollway keyed", "time", ours, "ns");
    let quota = governor::Quota::per_second(u32::MAX.try_into().unwrap());
    let limiter = Arc::new(governor::RateLimiter::direct(quota));
    let direct = hammer(move || {
        let _ = black_box(limiter.check());
    });
    report.row(case, "governor", "time", direct.await, "ns");
    let limiter = Arc::new(governor::RateLimiter::keyed(quota));
    let keyed = hammer(move || {
        let _ = black_box(limiter.check_key(&"/one"));
    });
    report.row(case, "governor keyed", "time", keyed.await, "ns");
}

/// Nanoseconds for one run of `work`: the median of the tenth of all rounds in
/// which both threads were busy the longest. Where one runs alone, nothing is
/// contended.
async fn hammer(work: impl Fn() + Clone + Send + 'static) -> f64 {
    const ROUNDS: usize = 400;
    let mut rounds = Vec::new();
    for _ in 0..ROUNDS {
        rounds.push(round(work.clone()).await);
    }
    rounds.sort_by(|a, b| f64::total_cmp(&b.side_by_side, &a.side_by_side));
    let mut times: Vec<_> = rounds[..ROUNDS / 10]
        .iter()
        .map(|round| round.time)
        .collect();
    times.sort_by(f64::total_cmp);
    times[times.len() / 2]
}

struct Round {
    /// Nanoseconds for one run.
    time: f64,
    /// For which part of the round both threads were busy.
    side_by_side: f64,
}

async fn round(work: impl Fn() + Clone + Send + 'static) -> Round {
    const TASKS: usize = 8;
    const EACH: usize = 1_000;
    const AT_A_TIME: usize = 100;
    let start = Instant::now();
    let mut tasks = tokio::task::JoinSet::new();
    for _ in 0..TASKS {
        let work = work.clone();
        tasks.spawn(async move {
            let mut busy = Vec::with_capacity(EACH / AT_A_TIME);
            for _ in 0..EACH / AT_A_TIME {
                let start = Instant::now();
                (0..AT_A_TIME).for_each(|_| work());
                busy.push((std::thread::current().id(), start.elapsed()));
                tokio::task::yield_now().await;
            }
            busy
        });
    }
    let busy = tasks.join_all().await.concat();
    let took = start.elapsed();
    let thread = busy[0].0;
    let (one, other): (Vec<_>, Vec<_>) = busy.into_iter().partition(|busy| busy.0 == thread);
    let total = |busy: Vec<(_, Duration)>| busy.iter().map(|busy| busy.1).sum::<Duration>();
    Round {
        time: took.as_nanos() as f64 / (TASKS * EACH) as f64,
        side_by_side: total(one).min(total(other)).as_secs_f64() / took.as_secs_f64(),
    }
}

/// 10,000 waiters on one quota.
fn queue(report: &mut Report) {
    const WAITERS: usize = 10_000;
    let case = "10,000 waiters on one quota";
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .build()
        .unwrap();
    let polls = Arc::new(AtomicUsize::new(0));
    let (inversions, bytes) = runtime.block_on(async {
        let limits = Limits::builder()
            .every_call(Quota::new(100, Duration::from_millis(10)))
            .build()
            .unwrap();
        let call = Call::new(&Method::GET, "/");
        let mut acquires: Vec<_> = (0..WAITERS)
            .map(|_| Box::pin(limits.acquire(&call)))
            .collect();
        let mut cx = Context::from_waker(Waker::noop());
        let info = allocation_counter::measure(|| {
            for acquire in &mut acquires {
                let _ = black_box(acquire.as_mut().poll(&mut cx));
            }
        });
        let size = size_of_val(&*acquires[0]) as f64;
        let bytes = info.bytes_current as f64 / WAITERS as f64 + size;
        drop(acquires);

        let (sender, mut order) = tokio::sync::mpsc::unbounded_channel();
        for index in 0..WAITERS {
            let (limits, polls, sender) = (limits.clone(), Arc::clone(&polls), sender.clone());
            tokio::spawn(async move {
                let call = Call::new(&Method::GET, "/");
                let mut acquire = pin!(limits.acquire(&call));
                let permit = std::future::poll_fn(|cx| {
                    polls.fetch_add(1, Ordering::Relaxed);
                    acquire.as_mut().poll(cx)
                });
                let _permit = permit.await.unwrap();
                let _ = sender.send(index);
                tokio::time::sleep(Duration::from_millis(1)).await;
            });
        }
        drop(sender);
        let (mut inversions, mut last) = (0, None);
        while let Some(index) = order.recv().await {
            inversions += usize::from(last.is_some_and(|last| last > index));
            last = Some(index);
        }
        (inversions, bytes)
    });
    let polls = polls.load(Ordering::Relaxed) as f64 / WAITERS as f64;
    report
        .row(case, "tollway", "polls a permit", polls, "")
        .row(case, "tollway", "inversions", inversions as f64, "")
        .row(case, "tollway", "memory a waiter", bytes, "bytes");
}

/// 100,000 keys, idle after a millisecond, and what is left of them after as
/// many calls of one other key.
fn keys(report: &mut Report) {
    const KEYS: usize = 100_000;
    let limits = Limits::builder()
        .keyed(Key::path(), PLENTY)
        .build()
        .unwrap();
    for index in 0..KEYS {
        let path = format!("/{index}");
        take(&limits, &Call::new(&Method::GET, &path));
    }
    let held = limits.snapshot().quotas.len();
    // By then all are idle. Nobody has to wait for it: the limiter is told.
    let later = Instant::now() + Duration::from_millis(10);
    for _ in 0..KEYS {
        let permit = limits.try_acquire(&Call::new(&Method::GET, "/one"), later);
        permit.unwrap().over_at(later, Verdict::Done);
    }
    let case = "100,000 keys, one call each";
    report
        .row(case, "tollway", "kept at once", held as f64, "keys")
        .row(
            case,
            "tollway",
            "kept once idle",
            limits.snapshot().quotas.len() as f64,
            "keys",
        );
}
