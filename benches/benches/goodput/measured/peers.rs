//! The limiters that people use, configured in the natural way, beside ours.

use std::future::Future;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};
use std::time::Duration;

use governor::clock::Clock as _;
use http::Request;
use tokio::sync::Mutex;
use tokio::time::{Instant, sleep};
use tollway_benches::Report;
use tollway_sim::rule::RuleKind;
use tower::limit::RateLimit;
use tower::limit::rate::Rate;
use tower::{Layer, Service, ServiceExt, service_fn};
use tower_resilience::ratelimiter::{RateLimiterLayer, WindowType};

use super::provider::{Delays, Seen, service};
use super::rules::Setting;
use super::run::Run;

type Contestant = fn(&Run) -> Seen;

const PEERS: [(&str, Contestant); 5] = [
    ("tower", tower_rate),
    ("governor", |run| governed(run, LIMIT)),
    ("governor, burst 1", |run| governed(run, 1)),
    ("tower-resilience, log", |run| {
        resilient(run, WindowType::SlidingLog)
    }),
    ("tower-resilience, counter", |run| {
        resilient(run, WindowType::SlidingCounter)
    }),
];

const LIMIT: u32 = 1000;
const WINDOW: Duration = Duration::from_secs(10);

pub(crate) fn report(report: &mut Report) {
    for kind in RuleKind::ALL {
        for harsh in [false, true] {
            let setting = Setting {
                limit: LIMIT,
                window: WINDOW,
                delays: Delays::SHORT,
                kind,
                harsh,
            };
            let run = Run::new(setting.rule(), setting.delays, 120);
            let case = format!("120 s of {}", setting.name());
            let (seen, _) = run.tollway(setting.quota());
            run.report(report, &case, "tollway", seen, &[]);
            for (who, contestant) in PEERS {
                let seen = contestant(&run);
                run.report(report, &case, who, seen, &[]);
            }
        }
    }
}

/// tower's can't be cloned; `Buffer` makes it shareable.
fn tower_rate(run: &Run) -> Seen {
    let limit = |provider| {
        let limited = RateLimit::new(service(provider), Rate::new(LIMIT.into(), WINDOW));
        Queue::new(limited)
    };
    run.go(limit).0
}

/// A service that is shared by readying it under a fair lock, as `Buffer` would
/// from its task.
struct Queue<S>(Rc<Mutex<S>>);

impl<S> Queue<S> {
    fn new(inner: S) -> Self {
        Self(Rc::new(Mutex::new(inner)))
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
    type Future = Pin<Box<dyn Future<Output = Result<S::Response, S::Error>>>>;

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
        let quota = governor::Quota::with_period(WINDOW / LIMIT)
            .unwrap()
            .allow_burst(burst.try_into().unwrap());
        let limiter = Rc::new(governor::RateLimiter::direct_with_clock(
            quota,
            clock.clone(),
        ));
        let inner = service(provider);
        service_fn(move |request| {
            let (limiter, clock, inner) = (Rc::clone(&limiter), clock.clone(), inner.clone());
            async move {
                while let Err(not_until) = limiter.check() {
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
            .limit_for_period(LIMIT as usize)
            .refresh_period(WINDOW)
            .timeout_duration(Duration::from_secs(3600))
            .window_type(window)
            .build()
            .unwrap();
        Local(layer.layer(service(provider)))
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
