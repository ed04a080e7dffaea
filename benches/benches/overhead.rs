//! What a call costs beyond the bare service: each layer alone and stacked,
//! beside tower's layers, tower-resilience's and governor.
//!
//! The service is ready and answers at once, so that nothing but the layers is
//! left; in the cases with "yield" it is pending once, so that timers register.
//! A call is a POST with three headers and a body of 100 bytes, and is built
//! anew each time. "Δ" is what a case takes beyond the bare service, measured
//! in turns with it.
//!
//! Every limiter is given a rate that is never reached, 10,000 in 1 ms, so that
//! its window holds some thousand calls, as one of 1000 in 10 s does in use.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::convert::Infallible;
use std::future::{Future, poll_fn};
use std::hint::black_box;
use std::num::NonZeroU32;
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::task::{Context, Poll};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use criterion::Criterion;
use http::header::{AUTHORIZATION, CONTENT_TYPE, USER_AGENT};
use http::{HeaderName, HeaderValue, Method, Request, Response, Uri};
use http_body_util::Full;
use tokio::runtime::{self, Runtime};
use tokio::time::{Instant, sleep_until};
use tollway_benches::{COUNT, Instructions, Report, allocations, callgrind, counted, uncounted};
use tollway_core::{BoxError, ClassifyLayer, Rules};
use tollway_idempotency::IdempotencyKeyLayer;
use tollway_limit::{Call, Limits, Quota, RateLimitLayer};
use tollway_retry::RetryLayer;
use tollway_timeout::{AttemptTimeoutLayer, DeadlineLayer};
use tower::retry::Policy;
use tower::{Service, ServiceBuilder};
use tower_resilience::ratelimiter::RateLimiterLayer;
use tower_resilience::retry::RetryLayer as ResilienceRetryLayer;
use tower_resilience::timelimiter::TimeLimiterLayer;

type Body = Full<Bytes>;

/// Never reached.
const LIMIT: u32 = 10_000;
const WINDOW: Duration = Duration::from_millis(1);

const CALL_TIMEOUT: Duration = Duration::from_secs(60);
const ATTEMPT_TIMEOUT: Duration = Duration::from_secs(30);

/// How often a case runs for its allocations and instructions.
const RUNS: u32 = 1000;
/// How many calls of a case and of the bare service take turns.
const TURN: u64 = 500;

/// Not inlined, and handed on through a black box, so that it costs the same in
/// every case: what is just written and at once moved in larger words stalls the
/// processor, or not, by chance.
#[inline(never)]
fn request() -> Request<Body> {
    const BODY: Bytes = Bytes::from_static(&[b'x'; 100]);
    Request::post(Uri::from_static("https://api.example.com/v1/payouts"))
        .header(CONTENT_TYPE, HeaderValue::from_static("application/json"))
        .header(AUTHORIZATION, HeaderValue::from_static("Bearer nobody"))
        .header(USER_AGENT, HeaderValue::from_static("checkout/1.0"))
        .body(Full::new(BODY))
        .expect("a valid request")
}

/// The bare service: it answers at once, or is `PENDING` once before.
#[derive(Clone, Copy)]
struct Bare<const PENDING: bool>;

struct Answer {
    pending: bool,
}

impl<const PENDING: bool, B> Service<Request<B>> for Bare<PENDING> {
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = Answer;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, _: Request<B>) -> Answer {
        Answer { pending: PENDING }
    }
}

impl Future for Answer {
    type Output = Result<Response<Body>, Infallible>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        if std::mem::take(&mut self.pending) {
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        Poll::Ready(Ok(Response::new(Full::default())))
    }
}

/// Makes so many calls, and says how long they took.
type Run = Box<dyn FnMut(u64) -> Duration>;

struct Case {
    case: String,
    who: &'static str,
    run: Run,
}

/// Cases whose Δ is against the same bare service.
struct Group {
    bare: Run,
    cases: Vec<Case>,
}

/// Builds the cases of one group.
struct Builder {
    runtime: Rc<Runtime>,
    suffix: &'static str,
    cases: Vec<Case>,
}

impl Builder {
    fn add(&mut self, case: &str, who: &'static str, run: Run) {
        let case = format!("{case}{}", self.suffix);
        self.cases.push(Case { case, who, run });
    }

    /// One service takes all calls.
    fn one<S>(&mut self, case: &str, who: &'static str, service: S)
    where
        S: Service<Request<Body>> + 'static,
    {
        let run = alone(&self.runtime, service, call);
        self.add(case, who, run);
    }

    /// Each call has a clone of its own.
    fn cloned<S>(&mut self, case: &str, who: &'static str, service: S)
    where
        S: Service<Request<Body>> + Clone + 'static,
    {
        let run = alone(&self.runtime, service, async |service: &mut S| {
            call(&mut service.clone()).await;
        });
        self.add(case, who, run);
    }

    /// Something that isn't a service. What the bare service costs is added, so
    /// that the Δ is its own cost.
    fn check(&mut self, case: &str, who: &'static str, mut check: impl FnMut() + 'static) {
        let run = alone(&self.runtime, Bare::<false>, async move |service| {
            check();
            call(service).await;
        });
        self.add(case, who, run);
    }
}

/// Runs calls in one task that is never suspended: where a service is pending,
/// it is polled again at once, and the runtime's own work stays out of it.
fn alone<S: 'static>(
    runtime: &Rc<Runtime>,
    mut service: S,
    mut call: impl AsyncFnMut(&mut S) + 'static,
) -> Run {
    let runtime = Rc::clone(runtime);
    Box::new(move |runs| {
        // Without a budget, which would turn timers away after 128 polls.
        runtime.block_on(tokio::task::coop::unconstrained(async {
            let start = Instant::now();
            for _ in 0..runs {
                call(&mut service).await;
            }
            start.elapsed()
        }))
    })
}

/// Runs calls that need another task, so that both take turns on the runtime.
fn among_others<S>(runtime: &Rc<Runtime>, mut service: S) -> Run
where
    S: Service<Request<Body>> + 'static,
{
    let runtime = Rc::clone(runtime);
    Box::new(move |runs| {
        runtime.block_on(async {
            let start = Instant::now();
            for _ in 0..runs {
                let ready = poll_fn(|cx| service.poll_ready(cx)).await;
                assert!(ready.is_ok());
                assert!(service.call(black_box(request())).await.is_ok());
            }
            start.elapsed()
        })
    })
}

async fn call<S: Service<Request<Body>>>(service: &mut S) {
    let ready = poll_fn(|cx| service.poll_ready(cx)).await;
    assert!(ready.is_ok());
    let mut answer = pin!(service.call(black_box(request())));
    poll_fn(|cx| {
        for _ in 0..2 {
            if let Poll::Ready(answer) = answer.as_mut().poll(cx) {
                assert!(answer.is_ok());
                return Poll::Ready(());
            }
        }
        unreachable!("pending more than once")
    })
    .await;
}

fn limits() -> Limits {
    Limits::builder()
        .every_call(Quota::new(LIMIT, WINDOW))
        .build()
        .expect("valid limits")
}

/// A policy as most people write it.
#[derive(Clone)]
struct Attempts(u32);

impl<T, E> Policy<Request<Body>, Response<T>, E> for Attempts {
    type Future = std::future::Ready<()>;

    fn retry(
        &mut self,
        _: &mut Request<Body>,
        result: &mut Result<Response<T>, E>,
    ) -> Option<Self::Future> {
        let failed = match result {
            Ok(response) => response.status().is_server_error(),
            Err(_) => true,
        };
        (failed && self.0 > 0).then(|| {
            self.0 -= 1;
            std::future::ready(())
        })
    }

    fn clone_request(&mut self, request: &Request<Body>) -> Option<Request<Body>> {
        Some(request.clone())
    }
}

fn resilience_rate() -> RateLimiterLayer {
    RateLimiterLayer::builder()
        .limit_for_period(LIMIT as usize)
        .refresh_period(WINDOW)
        .timeout_duration(ATTEMPT_TIMEOUT)
        .build()
        .expect("valid limits")
}

fn resilience_retry<E>() -> ResilienceRetryLayer<Request<Body>, Response<Body>, E> {
    ResilienceRetryLayer::builder()
        .max_attempts(4)
        .exponential_backoff(Duration::from_millis(500))
        .build()
}

/// The layers over a service that is asked by nobody else.
fn layers<const PENDING: bool>(runtime: &Rc<Runtime>) -> Group {
    let bare = Bare::<PENDING>;
    let mut cases = Builder {
        runtime: Rc::clone(runtime),
        suffix: if PENDING { ", yield" } else { "" },
        cases: Vec::new(),
    };

    let timeout = || AttemptTimeoutLayer::new(ATTEMPT_TIMEOUT);
    let stack = || ServiceBuilder::new();
    cases.one("bare", "bare", bare);
    cases.one(
        "deadline",
        "tollway",
        stack()
            .layer(DeadlineLayer::new(CALL_TIMEOUT))
            .service(bare),
    );
    cases.one("timeout", "tollway", stack().layer(timeout()).service(bare));
    cases.one(
        "timeout",
        "tower",
        stack().timeout(ATTEMPT_TIMEOUT).service(bare),
    );
    let resilience_timeout = || {
        TimeLimiterLayer::builder()
            .timeout_duration(ATTEMPT_TIMEOUT)
            .build()
    };
    cases.one(
        "timeout",
        "tower-resilience",
        stack().layer(resilience_timeout()).service(bare),
    );
    cases.one(
        "key",
        "tollway",
        stack().layer(IdempotencyKeyLayer::new()).service(bare),
    );
    cases.one(
        "retry",
        "tollway",
        stack().layer(RetryLayer::default()).service(bare),
    );
    cases.one("retry", "tower", stack().retry(Attempts(3)).service(bare));
    cases.one(
        "retry",
        "tower-resilience",
        stack().layer(resilience_retry()).service(bare),
    );
    let limit = || RateLimitLayer::new(limits());
    cases.one("limit", "tollway", stack().layer(limit()).service(bare));
    cases.one(
        "limit",
        "tower",
        stack().rate_limit(LIMIT.into(), WINDOW).service(bare),
    );
    cases.one(
        "limit",
        "tower-resilience",
        stack().layer(resilience_rate()).service(bare),
    );
    cases.one(
        "classify",
        "tollway",
        stack()
            .layer(ClassifyLayer::new(Rules::new()))
            .service(bare),
    );
    if !PENDING {
        permits(&mut cases);
    }

    let four = || {
        stack()
            .layer(DeadlineLayer::new(CALL_TIMEOUT))
            .layer(IdempotencyKeyLayer::new())
            .layer(RetryLayer::default())
            .layer(timeout())
            .service(bare)
    };
    cases.one("all but the limit", "tollway", four());
    let five = || {
        stack()
            .layer(DeadlineLayer::new(CALL_TIMEOUT))
            .layer(IdempotencyKeyLayer::new())
            .layer(RetryLayer::default())
            .layer(limit())
            .layer(timeout())
            .service(bare)
    };
    cases.one("stack", "tollway", five());
    // Tower's rate limit can't be cloned, so its retry can't stand above it.
    let towers = stack()
        .rate_limit(LIMIT.into(), WINDOW)
        .retry(Attempts(3))
        .timeout(ATTEMPT_TIMEOUT)
        .service(bare);
    cases.one("stack, not shared", "tower", towers);
    let resilience = || {
        stack()
            .layer(resilience_retry())
            .layer(resilience_rate())
            .layer(resilience_timeout())
            .service(bare)
    };
    cases.one("stack", "tower-resilience", resilience());
    cases.cloned("stack, a clone for each call", "tollway", five());
    cases.cloned(
        "stack, a clone for each call",
        "tower-resilience",
        resilience(),
    );
    let six = stack()
        .layer(DeadlineLayer::new(CALL_TIMEOUT))
        .layer(IdempotencyKeyLayer::new())
        .layer(RetryLayer::default())
        .layer(limit())
        .layer(timeout())
        .layer(ClassifyLayer::new(Rules::new()))
        .service(bare);
    cases.one("stack and classify", "tollway", six);
    let by_hand = alone(runtime, ByHand::<PENDING>::default(), async |duties| {
        duties.call(black_box(request())).await;
    });
    cases.add("stack", "by hand", by_hand);

    Group {
        bare: alone(runtime, bare, call),
        cases: cases.cases,
    }
}

/// The duties of the five layers in one function, for one kind of call, and for
/// the case alone that all goes well: what there is to do at the least. It
/// decides nothing, tells nobody of the deadline, and leaves out whatever a
/// layer has to be ready for.
struct ByHand<const PENDING: bool> {
    window: std::sync::Mutex<VecDeque<Instant>>,
}

impl<const PENDING: bool> Default for ByHand<PENDING> {
    fn default() -> Self {
        Self {
            window: VecDeque::new().into(),
        }
    }
}

impl<const PENDING: bool> ByHand<PENDING> {
    async fn call(&self, mut request: Request<Body>) -> Response<Body> {
        const KEY: HeaderName = HeaderName::from_static("idempotency-key");
        let start = Instant::now();
        let deadline = start + CALL_TIMEOUT;
        let millis = SystemTime::now().duration_since(UNIX_EPOCH);
        let millis = u64::try_from(millis.unwrap_or_default().as_millis()).unwrap_or(0);
        let key = uuid::Builder::from_unix_timestamp_millis(millis, &rand::random());
        let mut text = uuid::Uuid::encode_buffer();
        let text = key.into_uuid().hyphenated().encode_lower(&mut text);
        let key = HeaderValue::from_str(text).expect("a valid header");
        request.headers_mut().insert(KEY, key);
        let kept = request.clone();
        {
            let mut window = self.window.lock().expect("no panic");
            while window.front().is_some_and(|&end| end <= start) {
                window.pop_front();
            }
            assert!(window.len() < LIMIT as usize);
        }
        let answer = Bare::<PENDING>.call(request);
        let end = deadline.min(start + ATTEMPT_TIMEOUT);
        let mut sleep = pin!(None);
        let mut answer = pin!(answer);
        let response = poll_fn(|cx| {
            loop {
                if let Poll::Ready(Ok(response)) = answer.as_mut().poll(cx) {
                    return Poll::Ready(response);
                }
                if sleep.is_none() {
                    sleep.set(Some(sleep_until(end)));
                }
                let sleep = sleep.as_mut().as_pin_mut().expect("just made");
                assert!(sleep.poll(cx).is_pending());
            }
        })
        .await;
        let mut window = self.window.lock().expect("no panic");
        window.push_back(Instant::now() + WINDOW);
        if !response.status().is_success() {
            black_box(&kept);
        }
        response
    }
}

/// Asking for a permit, without a service.
fn permits(cases: &mut Builder) {
    let limits = limits();
    cases.check("permit", "tollway", move || {
        let call = Call::new(&Method::POST, "/v1/payouts");
        assert!(limits.try_acquire(&call, Instant::now().into()).is_ok());
    });
    let most = NonZeroU32::MAX;
    let direct = governor::RateLimiter::direct(governor::Quota::per_second(most));
    cases.check("permit", "governor", move || {
        assert!(direct.check().is_ok());
    });
    let keyed = governor::RateLimiter::keyed(governor::Quota::per_second(most));
    cases.check("permit, keyed", "governor", move || {
        assert!(keyed.check_key(&"/v1/payouts").is_ok());
    });
}

/// Tower's layers behind a buffer, which is how they can be shared.
fn buffered<const PENDING: bool>(runtime: &Rc<Runtime>) -> Group {
    let bare = Bare::<PENDING>;
    let service = ServiceBuilder::new()
        .buffer(1024)
        .rate_limit(LIMIT.into(), WINDOW)
        .retry(Attempts(3))
        .timeout(ATTEMPT_TIMEOUT)
        .service(bare);
    let case = Case {
        case: format!("stack{}", if PENDING { ", yield" } else { "" }),
        who: "tower",
        run: among_others(runtime, service),
    };
    Group {
        bare: among_others(runtime, bare),
        cases: vec![case],
    }
}

/// What a case costs.
#[derive(Clone, Copy, Default)]
struct Figures {
    allocations: f64,
    instructions: Option<f64>,
}

/// Counts what needs no repetition.
fn count(run: &mut Run, counter: &mut Option<Instructions>) -> Figures {
    // Thread-locals, the chunks of keys, rings that grow.
    run(RUNS.into());
    let allocations = allocations(1, || _ = run(RUNS.into())) / f64::from(RUNS);
    let counted = counter.as_mut();
    let instructions =
        counted.and_then(|counter| counter.count(1, || _ = uncounted(|| run(RUNS.into()))));
    Figures {
        allocations,
        instructions: instructions.map(|all| all / f64::from(RUNS)),
    }
}

/// The time of a call in ns, and the difference to the bare service: the medians
/// over all turns. A turn is shorter than the system's time slices, so that what
/// else the machine does falls on few of them.
fn time(criterion: &mut Criterion, id: &str, run: &mut Run, bare: &mut Run) -> Option<(f64, f64)> {
    let turns = RefCell::new(Vec::new());
    criterion.bench_function(id, |bencher| {
        bencher.iter_custom(|runs| {
            let mut all = Duration::ZERO;
            let mut left = runs;
            while left > 0 {
                let turn = left.min(TURN);
                let Some((bare, taken)) = uncounted(|| (bare(turn), run(turn))) else {
                    break;
                };
                if turn == TURN {
                    let per_call = |time: Duration| time.as_secs_f64() * 1e9 / TURN as f64;
                    let taken = per_call(taken);
                    turns.borrow_mut().push((taken, taken - per_call(bare)));
                }
                all += taken;
                left -= turn;
            }
            all
        });
    });
    let turns = turns.into_inner();
    Some((
        median(turns.iter().map(|turn| turn.0))?,
        median(turns.iter().map(|turn| turn.1))?,
    ))
}

fn median(values: impl Iterator<Item = f64>) -> Option<f64> {
    let mut values: Vec<_> = values.collect();
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied()
}

fn groups() -> Vec<Group> {
    let runtime = runtime::Builder::new_current_thread()
        .enable_time()
        .build()
        .expect("a runtime");
    let runtime = Rc::new(runtime);
    // Some of tower's layers are made in a runtime only.
    let _entered = runtime.enter();
    vec![
        layers::<false>(&runtime),
        layers::<true>(&runtime),
        buffered::<false>(&runtime),
        buffered::<true>(&runtime),
    ]
}

fn main() -> Result<(), BoxError> {
    let groups = groups();
    if std::env::args().any(|argument| argument == COUNT) {
        count_instructions(groups);
        return Ok(());
    }
    let mut criterion = Criterion::default()
        .warm_up_time(Duration::from_millis(100))
        .measurement_time(Duration::from_millis(400))
        .sample_size(20)
        .configure_from_args();
    let mut counter = Instructions::new();
    // In the order of `count_instructions`.
    let mut counts = match counter {
        Some(_) => Vec::new(),
        None => callgrind().unwrap_or_default(),
    }
    .into_iter();
    let mut emulated = || counts.next().map(|all| all / f64::from(RUNS));

    let mut report = Report::new("overhead");
    for Group { mut bare, cases } in groups {
        let mut floor = count(&mut bare, &mut counter);
        floor.instructions = floor.instructions.or_else(&mut emulated);
        for Case { case, who, mut run } in cases {
            let instructions = emulated();
            let Some((ns, more)) = time(
                &mut criterion,
                &format!("{case}/{who}"),
                &mut run,
                &mut bare,
            ) else {
                continue;
            };
            let figures = count(&mut run, &mut counter);
            report.row(&case, who, "time", ns, "ns");
            report.row(&case, who, "Δ time", more, "ns");
            report.row(&case, who, "allocations", figures.allocations, "");
            let more = figures.allocations - floor.allocations;
            report.row(&case, who, "Δ allocations", more, "");
            if let Some(instructions) = figures.instructions.or(instructions) {
                report.row(&case, who, "instructions", instructions, "");
                let more = instructions - floor.instructions.unwrap_or_default();
                report.row(&case, who, "Δ instructions", more, "");
            }
        }
    }
    criterion.final_summary();
    report.finish()?;
    Ok(())
}

/// Counts under valgrind, for the program that started this one.
fn count_instructions(groups: Vec<Group>) {
    for Group { bare, cases } in groups {
        let runs = std::iter::once(bare).chain(cases.into_iter().map(|case| case.run));
        for mut run in runs {
            run(RUNS.into());
            uncounted(|| counted(|| _ = run(RUNS.into())));
        }
    }
}
