//! An inner service that is seldom ready, callers that are seldom polled, runtimes
//! that are seldom driven, limits that change and a provider that has them pause.
#![cfg(feature = "tokio")]
#![allow(clippy::unwrap_used, reason = "a test")]

use std::convert::Infallible;
use std::future::poll_fn;
use std::ops::Range;
use std::pin::pin;
use std::sync::{Arc, Mutex};
use std::task::Poll;
use std::time::Duration;

use http::{Request, Response};
use proptest::collection::vec;
use proptest::prelude::*;
use tokio::runtime::Runtime;
use tokio::task::yield_now;
use tokio::time::{Instant, advance, sleep, sleep_until};
use tollway_core::{Scope, Verdict};
use tollway_limit::{CountFrom, Key, Limits, LimitsBuilder, Quota, RateLimitLayer, Shape};
use tower::limit::GlobalConcurrencyLimitLayer;
use tower::{Layer, ServiceExt, service_fn};

const fn millis(millis: u64) -> Duration {
    Duration::from_millis(millis)
}

/// All in milliseconds.
#[derive(Clone, Debug)]
struct Caller {
    /// After the one before.
    comes: u64,
    /// How long it isn't polled once it waits.
    sleeps: Option<u64>,
    /// Until the request arrives, at most the margin.
    way: u64,
    /// From there to the answer.
    back: u64,
    /// How long it says to wait, if it is a refusal.
    pause: Option<u64>,
    runtime: usize,
}

fn callers() -> impl Strategy<Value = Vec<Caller>> {
    let sleeps = proptest::option::of(0..150u64);
    let pause = proptest::option::weighted(0.1, 1..100u64);
    let caller = (0..15u64, sleeps, 0..30u64, 0..80u64, pause, 0..3usize);
    let caller = caller.prop_map(|(comes, sleeps, way, back, pause, runtime)| Caller {
        comes,
        sleeps,
        way,
        back,
        pause,
        runtime,
    });
    vec(caller, 1..60)
}

/// So many in so long, counted from the response or from sending and so much later.
#[derive(Clone, Debug)]
struct Rule {
    limit: u32,
    window: u64,
    margin: Option<u64>,
    shape: Shape,
}

fn rule() -> impl Strategy<Value = Rule> {
    let margin = proptest::option::weighted(0.7, 0..20u64);
    let shape = prop_oneof![Just(Shape::Burst), Just(Shape::Paced)];
    let parts = (1..8u32, 2..60u64, margin, shape);
    parts.prop_map(|(limit, window, margin, shape)| Rule {
        limit,
        window,
        margin,
        shape,
    })
}

/// The rules, by the time for which they hold: the last for good.
fn rules() -> impl Strategy<Value = Vec<(u64, Rule)>> {
    vec((0..300u64, rule()), 1..4)
}

impl Rule {
    fn limits(&self, is_keyed: bool) -> LimitsBuilder {
        let quota = Quota::new(self.limit, millis(self.window)).shape(self.shape);
        let quota = self.margin.map_or(quota, |margin| {
            let margin = millis(margin);
            quota.count_from(CountFrom::Sending { margin })
        });
        match is_keyed {
            true => Limits::builder().keyed(Key::path(), quota),
            false => Limits::builder().every_call(quota),
        }
    }
}

/// Runtimes whose clocks go alike, each driven once in so many milliseconds.
struct Runtimes {
    all: Vec<(Runtime, u64)>,
    start: Instant,
    /// In milliseconds.
    now: u64,
}

impl Runtimes {
    fn new(paces: &[u64]) -> Self {
        let runtime = |&pace: &u64| {
            let mut runtime = tokio::runtime::Builder::new_current_thread();
            let runtime = runtime.enable_time().start_paused(true).build();
            (runtime.unwrap(), pace)
        };
        let all: Vec<_> = paces.iter().map(runtime).collect();
        let now = |(runtime, _): &(Runtime, _)| runtime.block_on(async { Instant::now() });
        let start = all.iter().map(now).max().unwrap();
        Self { all, start, now: 0 }
    }

    /// Until the next millisecond.
    fn drive(&mut self) {
        self.now += 1;
        let now = self.start + millis(self.now);
        for (runtime, pace) in &self.all {
            if self.now.is_multiple_of(*pace) {
                runtime.block_on(async {
                    advance(now - Instant::now()).await;
                    for _ in 0..4 {
                        yield_now().await;
                    }
                });
            }
        }
    }
}

/// What the provider sees.
#[derive(Clone, Default)]
struct Seen {
    sent: Vec<Instant>,
    arrivals: Vec<Instant>,
    pauses: Vec<Range<Instant>>,
}

fn answer(pause: Option<u64>, seen: &Mutex<Seen>) -> Response<()> {
    let mut response = Response::new(());
    if let Some(pause) = pause.map(millis) {
        let now = Instant::now();
        seen.lock().unwrap().pauses.push(now..now + pause);
        response.extensions_mut().insert(Verdict::NotExecuted {
            retry_after: Some(pause),
            scope: Scope::Unspecified,
        });
    }
    response
}

/// What the provider sees of these calls.
fn run(
    limits: &Limits,
    changes: &[(u64, LimitsBuilder)],
    places: usize,
    callers: Vec<Caller>,
    mut runtimes: Runtimes,
) -> Seen {
    let seen = Arc::<Mutex<Seen>>::default();
    let sees = Arc::clone(&seen);
    let provider = service_fn(move |request: Request<Caller>| {
        let (seen, caller) = (Arc::clone(&sees), request.into_body());
        // A timer would be up to a millisecond late.
        let arrives = Instant::now() + millis(caller.way);
        seen.lock().unwrap().sent.push(Instant::now());
        seen.lock().unwrap().arrivals.push(arrives);
        async move {
            sleep_until(arrives + millis(caller.back)).await;
            Ok::<_, Infallible>(answer(caller.pause, &seen))
        }
    });
    let service = RateLimitLayer::new(limits.clone())
        .layer(GlobalConcurrencyLimitLayer::new(places).layer(provider));
    let (start, mut comes, mut calls) = (runtimes.start, 0, Vec::new());
    for caller in callers {
        comes += caller.comes;
        let runtime = caller.runtime % runtimes.all.len();
        let service = service.clone();
        let call = async move {
            sleep_until(start + millis(comes)).await;
            let sleeps = caller.sleeps;
            let mut call = pin!(service.oneshot(Request::new(caller)));
            if let Some(sleeps) = sleeps {
                let first = poll_fn(|cx| Poll::Ready(call.as_mut().poll(cx))).await;
                if first.is_ready() {
                    return;
                }
                sleep(millis(sleeps)).await;
            }
            call.await.unwrap();
        };
        calls.push(runtimes.all[runtime].0.spawn(call));
    }
    let mut changes = changes.iter().peekable();
    while calls.iter().any(|call| !call.is_finished()) {
        assert!(runtimes.now < 100_000, "somebody waits for ever");
        while let Some((_, rules)) = changes.next_if(|(at, _)| *at <= runtimes.now) {
            let runtime = &runtimes.all[0].0;
            let change = async { limits.reconfigure(rules.clone()) };
            runtime.block_on(change).unwrap();
        }
        runtimes.drive();
    }
    let mut seen = seen.lock().unwrap().clone();
    seen.arrivals.sort_unstable();
    seen
}

/// Whether no more than `limit` arrive in any `window`, as far as that holds.
fn is_kept(limit: usize, window: u64, arrivals: &[Instant], holds: Range<Instant>) -> bool {
    let start = arrivals.partition_point(|&at| at < holds.start);
    let end = arrivals.partition_point(|&at| at < holds.end);
    let mut runs = arrivals[start..end].windows(limit + 1);
    runs.all(|run| run[limit] - run[0] >= millis(window))
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: 300,
        failure_persistence: None,
        ..ProptestConfig::default()
    })]

    #[test]
    fn no_window_holds_too_many_and_no_pause_any_whatever_is_waited_for(
        rules in rules(),
        is_keyed in any::<bool>(),
        places in 1..12usize,
        mut callers in callers(),
        paces in vec(1..30u64, 0..3),
    ) {
        // The first is driven all the time, and changes the limits.
        let paces = [&[1], &*paces].concat();
        let margin = rules.iter().filter_map(|(_, rule)| rule.margin).min();
        let margin = margin.unwrap_or(u64::MAX - 1);
        callers.iter_mut().for_each(|caller| caller.way %= margin + 1);
        let count = callers.len();
        let runtimes = Runtimes::new(&paces);
        let mut end = 0;
        let ends: Vec<_> = rules.iter().map(|(holds, _)| { end += holds; end }).collect();
        let builders = rules.iter().map(|(_, rule)| rule.limits(is_keyed));
        let changes: Vec<_> = ends.iter().copied().zip(builders.skip(1)).collect();
        let limits = rules[0].1.limits(is_keyed).build().unwrap();
        let start = runtimes.start;
        let seen = run(&limits, &changes, places, callers, runtimes);
        prop_assert_eq!(seen.arrivals.len(), count);
        // Who has a permit keeps it where the limit is lowered.
        let mut limit = 0;
        for (index, (holds, rule)) in rules.iter().enumerate() {
            limit = limit.max(rule.limit as usize);
            let is_last = index + 1 == rules.len();
            let end = if is_last { 1_000_000 } else { ends[index] };
            let holds = start + millis(ends[index] - holds)..start + millis(end);
            let is_kept = is_kept(limit, rule.window, &seen.arrivals, holds);
            prop_assert!(is_kept, "{rule:?}: {:?}", seen.arrivals);
        }
        for pause in &seen.pauses {
            let mut sent = seen.sent.iter();
            let is_kept = !sent.any(|sent| pause.start < *sent && *sent < pause.end);
            prop_assert!(is_kept, "{pause:?}: {:?}", seen.sent);
        }
    }
}
