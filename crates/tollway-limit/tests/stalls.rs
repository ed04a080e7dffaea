//! An inner service that is seldom ready, callers that are seldom polled, runtimes
//! that are seldom driven, and limits that change meanwhile.
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
    runtime: usize,
}

fn callers() -> impl Strategy<Value = Vec<Caller>> {
    let sleeps = proptest::option::of(0..150u64);
    let caller = (0..15u64, sleeps, 0..30u64, 0..80u64, 0..3usize);
    let caller = caller.prop_map(|(comes, sleeps, way, back, runtime)| Caller {
        comes,
        sleeps,
        way,
        back,
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

/// When each request arrives.
fn arrivals(
    limits: &Limits,
    changes: &[(u64, LimitsBuilder)],
    places: usize,
    callers: Vec<Caller>,
    mut runtimes: Runtimes,
) -> Vec<u64> {
    let arrivals = Arc::<Mutex<Vec<_>>>::default();
    let noted = Arc::clone(&arrivals);
    let provider = service_fn(move |request: Request<(u64, u64)>| {
        let noted = Arc::clone(&noted);
        async move {
            let (way, back) = request.into_body();
            // A timer would be up to a millisecond late.
            let arrives = Instant::now() + millis(way);
            noted.lock().unwrap().push(arrives);
            sleep_until(arrives + millis(back)).await;
            Ok::<_, Infallible>(Response::new(()))
        }
    });
    let service = RateLimitLayer::new(limits.clone())
        .layer(GlobalConcurrencyLimitLayer::new(places).layer(provider));
    let (start, mut comes, mut calls) = (runtimes.start, 0, Vec::new());
    for caller in callers {
        comes += caller.comes;
        let service = service.clone();
        let call = async move {
            sleep_until(start + millis(comes)).await;
            let mut call = pin!(service.oneshot(Request::new((caller.way, caller.back))));
            if let Some(sleeps) = caller.sleeps {
                let first = poll_fn(|cx| Poll::Ready(call.as_mut().poll(cx))).await;
                if first.is_ready() {
                    return;
                }
                sleep(millis(sleeps)).await;
            }
            call.await.unwrap();
        };
        let runtime = caller.runtime % runtimes.all.len();
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
    let arrivals = arrivals.lock().unwrap();
    let since = |at: &Instant| u64::try_from((*at - start).as_millis()).unwrap();
    let mut arrivals: Vec<_> = arrivals.iter().map(since).collect();
    arrivals.sort_unstable();
    arrivals
}

/// Whether no more than `limit` arrive in any `window`, as far as that holds.
fn is_kept(limit: usize, window: u64, arrivals: &[u64], holds: Range<u64>) -> bool {
    let start = arrivals.partition_point(|&at| at < holds.start);
    let end = arrivals.partition_point(|&at| at < holds.end);
    let mut runs = arrivals[start..end].windows(limit + 1);
    runs.all(|run| run[limit] - run[0] >= window)
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: 300,
        failure_persistence: None,
        ..ProptestConfig::default()
    })]

    #[test]
    fn no_window_holds_more_than_its_limit_whatever_is_waited_for(
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
        let arrivals = arrivals(&limits, &changes, places, callers, runtimes);
        prop_assert_eq!(arrivals.len(), count);
        // Who has a permit keeps it where the limit is lowered.
        let mut limit = 0;
        for (index, (holds, rule)) in rules.iter().enumerate() {
            limit = limit.max(rule.limit as usize);
            let is_last = index + 1 == rules.len();
            let end = if is_last { u64::MAX } else { ends[index] };
            let holds = ends[index] - holds..end;
            let is_kept = is_kept(limit, rule.window, &arrivals, holds.clone());
            prop_assert!(is_kept, "{rule:?} in {holds:?}: {arrivals:?}");
        }
    }
}
