//! The mistakes of other limiters, each of which must not happen here.
#![cfg(feature = "tokio")]
#![allow(clippy::unwrap_used, reason = "a test")]

use std::collections::VecDeque;
use std::convert::Infallible;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll};
use std::time::{Duration, SystemTime};

use http::{Request, Response, StatusCode};
use tokio::task::{JoinError, JoinSet};
use tokio::time::{Instant, sleep};
use tollway_core::{Scope, Verdict};
use tollway_limit::{Limits, Quota, RateLimitLayer, Shape};
use tower::{Layer, Service, ServiceExt, service_fn};

fn get(path: &str) -> Request<()> {
    Request::get(path).body(()).unwrap()
}

const fn millis(millis: u64) -> Duration {
    Duration::from_millis(millis)
}

/// A log that allows 100 in any second.
fn count(arrivals: &mut VecDeque<Instant>) {
    let now = Instant::now();
    arrivals.push_back(now);
    if arrivals.len() > 100 {
        let earlier = arrivals.pop_front().unwrap();
        assert!(now - earlier >= millis(1000), "{:?}", now - earlier);
    }
}

/// "100 per second" lets 199 through in some second.
#[tokio::test(start_paused = true)]
async fn no_window_holds_more_than_its_limit_whatever_the_network_does() {
    for shape in [Shape::Burst, Shape::Paced] {
        let arrivals = Arc::new(Mutex::new(VecDeque::new()));
        let quota = Quota::per_second(100).shape(shape);
        let limits = Limits::builder().every_call(quota).build().unwrap();
        let provider = {
            let arrivals = Arc::clone(&arrivals);
            service_fn(move |request: Request<()>| {
                let arrivals = Arc::clone(&arrivals);
                async move {
                    // Some arrive at once and are answered late, some arrive
                    // late and are answered at once: the worst for a client that
                    // guesses.
                    let number: usize = request.uri().path()[1..].parse().unwrap();
                    let (there, back) = if number % 200 < 100 {
                        (300, 1)
                    } else {
                        (1, 300)
                    };
                    sleep(millis(there)).await;
                    count(&mut arrivals.lock().unwrap());
                    sleep(millis(back)).await;
                    Ok::<_, Infallible>(Response::new(()))
                }
            })
        };
        let service = RateLimitLayer::new(limits).layer(provider);
        let mut calls = JoinSet::new();
        for number in 0..1000 {
            calls.spawn(service.clone().oneshot(get(&format!("/{number}"))));
        }
        while let Some(answer) = calls.join_next().await {
            answer.unwrap().unwrap();
        }
    }
}

/// A clone that was readied and dropped keeps its permit for ever.
#[tokio::test(start_paused = true)]
async fn a_clone_that_was_readied_and_dropped_keeps_nothing() {
    let quota = Quota::per_second(1).in_flight(1).shape(Shape::Burst);
    let limits = Limits::builder().every_call(quota).build().unwrap();
    let answer = |_: Request<()>| async { Ok::<_, Infallible>(Response::new(())) };
    let service = RateLimitLayer::new(limits.clone()).layer(service_fn(answer));
    for _ in 0..10 {
        service.clone().ready().await.unwrap();
    }
    let start = Instant::now();
    service.clone().oneshot(get("/")).await.unwrap();
    assert_eq!(start.elapsed(), Duration::ZERO);
    // Nor one that was called when there was no permit.
    for _ in 0..10 {
        let mut clone = service.clone();
        clone.ready().await.unwrap();
        drop(clone.call(get("/")));
    }
    let snapshot = limits.snapshot();
    assert_eq!(snapshot.waiting, 0);
    assert_eq!(snapshot.quotas[0].in_flight, 0);
    assert_eq!(snapshot.quotas[0].used, 1);
}

/// A service of which one at a time is ready, as a connection is.
#[derive(Debug)]
struct OneAtATime {
    free: Arc<AtomicUsize>,
    held: bool,
}

impl Clone for OneAtATime {
    fn clone(&self) -> Self {
        Self {
            free: Arc::clone(&self.free),
            held: false,
        }
    }
}

impl Drop for OneAtATime {
    fn drop(&mut self) {
        if self.held {
            self.free.fetch_add(1, Ordering::SeqCst);
        }
    }
}

impl Service<Request<()>> for OneAtATime {
    type Response = Response<()>;
    type Error = Infallible;
    type Future = std::future::Ready<Result<Response<()>, Infallible>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        assert_eq!(self.free.fetch_sub(1, Ordering::SeqCst), 1, "it is taken");
        self.held = true;
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, _: Request<()>) -> Self::Future {
        std::future::ready(Ok(Response::new(())))
    }
}

/// A throttled call holds the inner service's readiness and blocks another.
#[tokio::test(start_paused = true)]
async fn a_call_that_waits_for_a_quota_does_not_hold_the_inner_service() {
    let limits = Limits::builder()
        .endpoint(
            tollway_core::Endpoint::get("/slow"),
            Quota::per_hour(1).shape(Shape::Burst),
        )
        .build()
        .unwrap();
    let inner = OneAtATime {
        free: Arc::new(AtomicUsize::new(1)),
        held: false,
    };
    let service = RateLimitLayer::new(limits).layer(inner);
    service.clone().oneshot(get("/slow")).await.unwrap();
    let mut waiting = JoinSet::new();
    waiting.spawn(service.clone().oneshot(get("/slow")));
    tokio::task::yield_now().await;
    service.oneshot(get("/fast")).await.unwrap();
    assert!(waiting.try_join_next().is_none());
}

/// What a provider answers that refuses the first call and takes the others.
fn refuses_first(
    refusal: impl Fn(&mut Response<()>) + Clone + Send + 'static,
) -> impl Service<Request<()>, Response = Response<()>, Error = Infallible, Future: Send> + Clone + Send
{
    let calls = Arc::new(AtomicUsize::new(0));
    service_fn(move |_: Request<()>| {
        let first = calls.fetch_add(1, Ordering::SeqCst) == 0;
        let refusal = refusal.clone();
        async move {
            let mut response = Response::new(());
            if first {
                *response.status_mut() = StatusCode::TOO_MANY_REQUESTS;
                refusal(&mut response);
            }
            Ok(response)
        }
    })
}

/// A 429 delays only the call that got it, and the other 63 walk into the block.
#[tokio::test(start_paused = true)]
async fn a_refusal_pauses_the_quota_for_everybody() {
    let quota = Quota::new(1000, millis(10_000))
        .shape(Shape::Burst)
        .penalty(millis(10_000));
    let limits = Limits::builder().every_call(quota).build().unwrap();
    let provider = refuses_first(|_| {});
    let service = RateLimitLayer::new(limits).layer(provider);
    let start = Instant::now();
    service.clone().oneshot(get("/")).await.unwrap();
    let mut others = JoinSet::new();
    for _ in 0..63 {
        others.spawn(service.clone().oneshot(get("/")));
    }
    let mut times = Vec::new();
    while let Some(answer) = others.join_next().await {
        answer.unwrap().unwrap();
        times.push(start.elapsed());
    }
    assert_eq!(times[0], millis(10_000));
    // And they come back one by one, not as a herd.
    for pair in times.windows(2) {
        assert!(pair[1] - pair[0] <= millis(11), "{pair:?}");
    }
    assert!(times[62] - times[0] >= millis(600), "{times:?}");
}

/// `Retry-After` ignored, or cut to whole seconds and so 0.
#[tokio::test(start_paused = true)]
async fn a_delay_is_honoured_to_the_millisecond() {
    let paused_for = |refusal: fn(&mut Response<()>)| async move {
        let quota = Quota::per_second(100).shape(Shape::Burst);
        let limits = Limits::builder().every_call(quota).build().unwrap();
        let provider = refuses_first(refusal);
        let service = RateLimitLayer::new(limits).layer(provider);
        let start = Instant::now();
        service.clone().oneshot(get("/")).await.unwrap();
        service.oneshot(get("/")).await.unwrap();
        start.elapsed()
    };
    let seconds = paused_for(|response| {
        let headers = response.headers_mut();
        headers.insert("retry-after", "3".parse().unwrap());
    });
    assert_eq!(seconds.await, millis(3000));
    let verdict = paused_for(|response| {
        response.extensions_mut().insert(Verdict::NotExecuted {
            retry_after: Some(millis(437)),
            scope: Scope::GlobalRate,
        });
    });
    assert_eq!(verdict.await, millis(437));
    let date = paused_for(|response| {
        // A whole second, so the wait is that less the part of this second
        // that has passed.
        let then = SystemTime::now() + Duration::from_secs(3600);
        let date = httpdate::fmt_http_date(then).parse().unwrap();
        response.headers_mut().insert("retry-after", date);
    });
    let date = date.await;
    assert!(date > Duration::from_secs(3500) && date <= Duration::from_secs(3600));
}

/// A request whose caller is gone is taken to have arrived while it is still on
/// its way, and the next window has it too.
#[tokio::test(start_paused = true)]
async fn no_window_holds_more_than_its_limit_though_callers_leave() {
    let arrivals = Arc::new(Mutex::new(VecDeque::new()));
    let provider = service_fn(move |request: Request<()>| {
        let arrivals = Arc::clone(&arrivals);
        // It goes its way, whoever waits for it.
        let there = tokio::spawn(async move {
            if request.uri().path() == "/slow" {
                sleep(millis(50)).await;
            }
            count(&mut arrivals.lock().unwrap());
        });
        async move {
            there.await?;
            sleep(millis(50)).await;
            Ok::<_, JoinError>(Response::new(()))
        }
    });
    let quota = Quota::per_second(100).shape(Shape::Burst);
    let limits = Limits::builder().every_call(quota).build().unwrap();
    let service = RateLimitLayer::new(limits).layer(provider);
    // At first it isn't known how long an answer takes.
    for answered in [0, 300, 300] {
        let call = |path, count| {
            let calls = (0..count).map(|_| service.clone().oneshot(get(path)));
            calls.collect::<JoinSet<_>>()
        };
        for answer in call("/slow", answered).join_all().await {
            answer.unwrap();
        }
        sleep(millis(2000)).await;
        let mut given_up = call("/slow", 100);
        sleep(millis(1)).await;
        given_up.shutdown().await;
        for answer in call("/fast", 100).join_all().await {
            answer.unwrap();
        }
    }
}
