//! An inner service that is seldom ready, and callers that are seldom polled.
#![cfg(feature = "tokio")]
#![allow(clippy::unwrap_used, reason = "a test")]

use std::convert::Infallible;
use std::future::poll_fn;
use std::pin::pin;
use std::sync::{Arc, Mutex};
use std::task::Poll;
use std::time::Duration;

use http::{Request, Response};
use proptest::collection::vec;
use proptest::prelude::*;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, sleep_until, timeout};
use tollway_limit::{CountFrom, Key, Limits, Quota, RateLimitLayer, Shape};
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
}

fn callers() -> impl Strategy<Value = Vec<Caller>> {
    let sleeps = proptest::option::of(0..150u64);
    let caller = (0..15u64, sleeps, 0..30u64, 0..80u64);
    let caller = caller.prop_map(|(comes, sleeps, way, back)| Caller {
        comes,
        sleeps,
        way,
        back,
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
    is_keyed: bool,
}

fn rule() -> impl Strategy<Value = Rule> {
    let margin = proptest::option::weighted(0.7, 0..20u64);
    let shape = prop_oneof![Just(Shape::Burst), Just(Shape::Paced)];
    let parts = (1..8u32, 2..60u64, margin, shape, any::<bool>());
    parts.prop_map(|(limit, window, margin, shape, is_keyed)| Rule {
        limit,
        window,
        margin,
        shape,
        is_keyed,
    })
}

impl Rule {
    fn limits(&self) -> Limits {
        let quota = Quota::new(self.limit, millis(self.window)).shape(self.shape);
        let quota = self.margin.map_or(quota, |margin| {
            let margin = millis(margin);
            quota.count_from(CountFrom::Sending { margin })
        });
        let limits = match self.is_keyed {
            true => Limits::builder().keyed(Key::path(), quota),
            false => Limits::builder().every_call(quota),
        };
        limits.build().unwrap()
    }
}

/// When each request arrives.
async fn arrivals(rule: &Rule, places: usize, callers: Vec<Caller>) -> Vec<Instant> {
    let limits = RateLimitLayer::new(rule.limits());
    let margin = rule.margin.unwrap_or(u64::MAX - 1);
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
    let service = limits.layer(GlobalConcurrencyLimitLayer::new(places).layer(provider));
    let mut calls = JoinSet::new();
    for caller in callers {
        sleep(millis(caller.comes)).await;
        let service = service.clone();
        calls.spawn(async move {
            let request = Request::new((caller.way % (margin + 1), caller.back));
            let mut call = pin!(service.oneshot(request));
            if let Some(sleeps) = caller.sleeps {
                let first = poll_fn(|cx| Poll::Ready(call.as_mut().poll(cx))).await;
                if first.is_ready() {
                    return;
                }
                sleep(millis(sleeps)).await;
            }
            call.await.unwrap();
        });
    }
    let end = timeout(Duration::from_secs(1000), calls.join_all()).await;
    end.expect("somebody waits for ever");
    let mut arrivals = arrivals.lock().unwrap().clone();
    arrivals.sort_unstable();
    arrivals
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: 500,
        failure_persistence: None,
        ..ProptestConfig::default()
    })]

    #[test]
    fn no_window_holds_more_than_its_limit_whatever_is_waited_for(
        rule in rule(),
        places in 1..12usize,
        callers in callers(),
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_time()
            .start_paused(true)
            .build()
            .unwrap();
        let count = callers.len();
        let arrivals = runtime.block_on(arrivals(&rule, places, callers));
        prop_assert_eq!(arrivals.len(), count);
        let (limit, window) = (rule.limit as usize, millis(rule.window));
        for run in arrivals.windows(limit + 1) {
            prop_assert!(run[limit] - run[0] >= window);
        }
    }
}
