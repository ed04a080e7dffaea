//! The layer over plain services, in virtual time.
#![cfg(feature = "tokio")]
#![allow(clippy::unwrap_used, reason = "a test")]

use std::convert::Infallible;
use std::future::{Future, Ready, pending, poll_fn, ready};
use std::pin::pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};
use std::time::Duration;

use http::{Method, Request, Response};
use tokio::sync::Semaphore;
use tokio::task::{JoinSet, yield_now};
use tokio::time::{Instant, sleep};
use tokio_test::{assert_pending, assert_ready, task};
use tollway_core::{BoxError, Deadline, Endpoint, Fault, Phase, Priority, Scope, Verdict};
use tollway_limit::{Call, CountFrom, Limits, Quota, RateLimitError, RateLimitLayer, Shape};
use tower::limit::GlobalConcurrencyLimitLayer;
use tower::{Layer, Service, ServiceExt, service_fn};

fn get(path: &str) -> Request<()> {
    Request::get(path).body(()).unwrap()
}

async fn answer(_: Request<()>) -> Result<Response<()>, Infallible> {
    sleep(Duration::from_millis(20)).await;
    Ok(Response::new(()))
}

fn millis(since: Instant) -> u128 {
    since.elapsed().as_millis()
}

#[tokio::test(start_paused = true)]
async fn a_call_beyond_the_window_waits_until_the_response_is_a_window_old() {
    let quota = Quota::per_second(2).shape(Shape::Burst);
    let limits = Limits::builder().every_call(quota).build().unwrap();
    let service = RateLimitLayer::new(limits).layer(service_fn(answer));
    let start = Instant::now();
    for _ in 0..2 {
        service.clone().oneshot(get("/")).await.unwrap();
    }
    assert_eq!(millis(start), 40);
    service.clone().oneshot(get("/")).await.unwrap();
    assert_eq!(millis(start), 20 + 1000 + 20);
    service.clone().oneshot(get("/")).await.unwrap();
    assert_eq!(millis(start), 40 + 1000 + 20);
}

#[tokio::test(start_paused = true)]
async fn a_wait_that_outlasts_the_deadline_is_refused_at_once() {
    let quota = Quota::per_second(1).shape(Shape::Burst);
    let limits = Limits::builder().every_call(quota).build().unwrap();
    let mut service = RateLimitLayer::new(limits).layer(service_fn(answer));
    service.ready().await.unwrap().call(get("/")).await.unwrap();
    let start = Instant::now();
    let mut request = get("/");
    let deadline = Deadline::after(start, Duration::from_millis(999)).unwrap();
    request.extensions_mut().insert(deadline);
    let error: BoxError = service.oneshot(request).await.unwrap_err();
    assert_eq!(start.elapsed(), Duration::ZERO);
    let error = RateLimitError::find(error.as_ref()).unwrap();
    assert!(error.is_deadline());
    assert_eq!(error.wait(), Some(Duration::from_secs(1)));
    let fault = Fault::find(error).unwrap();
    assert_eq!(fault.phase(), Some(Phase::Permit));
    assert!(matches!(
        fault.verdict(),
        Verdict::NotExecuted { retry_after: Some(after), .. } if after == Duration::from_secs(1)
    ));
}

#[tokio::test(start_paused = true)]
async fn a_held_deadline_counts_beside_what_the_extensions_say() {
    let exhausted = Endpoint::get("/slow");
    let limits = Limits::builder()
        .endpoint(exhausted.clone(), Quota::per_second(1).shape(Shape::Burst))
        .build()
        .unwrap();
    let service = RateLimitLayer::new(limits).layer(service_fn(answer));
    service.clone().oneshot(get("/slow")).await.unwrap();
    let start = Instant::now();
    let deadline = Deadline::after(start, Duration::from_millis(999)).unwrap();
    // The extension is the only one that it carries, and names the endpoint.
    let mut request = get("/by/another/name");
    request.extensions_mut().insert(exhausted);
    let mut refused = pin!(service.oneshot(request));
    let poll = poll_fn(|cx| {
        let _held = deadline.hold(None);
        refused.as_mut().poll(cx)
    });
    let error = poll.await.unwrap_err();
    assert_eq!(start.elapsed(), Duration::ZERO);
    let error = RateLimitError::find(error.as_ref()).unwrap();
    assert!(error.is_deadline());
    assert_eq!(error.wait(), Some(Duration::from_secs(1)));
}

#[tokio::test(start_paused = true)]
async fn an_exhausted_endpoint_does_not_starve_another() {
    let limits = Limits::builder()
        .every_call(Quota::per_second(100).shape(Shape::Burst))
        .endpoint(
            Endpoint::get("/slow"),
            Quota::per_hour(1).shape(Shape::Burst),
        )
        .build()
        .unwrap();
    let service = RateLimitLayer::new(limits).layer(service_fn(answer));
    service.clone().oneshot(get("/slow")).await.unwrap();
    for _ in 0..200 {
        tokio::spawn(service.clone().oneshot(get("/slow")));
    }
    tokio::task::yield_now().await;
    let start = Instant::now();
    service.oneshot(get("/fast")).await.unwrap();
    assert_eq!(millis(start), 20);
}

#[tokio::test]
async fn a_call_with_a_permit_is_sent_before_its_future_is_polled() {
    let quota = Quota::per_second(2).shape(Shape::Burst);
    let limits = Limits::builder().every_call(quota).build().unwrap();
    let sent = AtomicUsize::new(0);
    let mut service = RateLimitLayer::new(limits.clone()).layer(service_fn(|_: Request<()>| {
        sent.fetch_add(1, Ordering::Relaxed);
        pending::<Result<Response<()>, Infallible>>()
    }));
    let first = service.call(get("/"));
    let second = service.call(get("/"));
    let third = service.call(get("/"));
    assert_eq!(sent.load(Ordering::Relaxed), 2);
    // The provider may have counted those two.
    drop((first, second, third));
    let quota = &limits.snapshot().quotas[0];
    assert_eq!((quota.in_flight, quota.used), (0, 2));
}

#[tokio::test(start_paused = true)]
async fn what_counts_from_sending_is_sent_only_when_its_future_is_polled() {
    let margin = Duration::from_millis(50);
    let quota = Quota::per_second(1)
        .shape(Shape::Burst)
        .count_from(CountFrom::Sending { margin });
    let limits = Limits::builder().every_call(quota).build().unwrap();
    let sent = AtomicUsize::new(0);
    let mut service = RateLimitLayer::new(limits.clone()).layer(service_fn(|_: Request<()>| {
        sent.fetch_add(1, Ordering::Relaxed);
        pending::<Result<Response<()>, Infallible>>()
    }));
    let late = service.call(get("/"));
    assert_eq!(limits.snapshot().quotas[0].in_flight, 0);
    sleep(Duration::from_secs(5)).await;
    let mut late = task::spawn(late);
    assert_pending!(late.poll());
    assert_eq!(sent.load(Ordering::Relaxed), 1);
    // Its window begins now, and not when it was called.
    sleep(Duration::from_secs(1)).await;
    assert_pending!(task::spawn(service.call(get("/"))).poll());
    assert_eq!(sent.load(Ordering::Relaxed), 1);
}

#[tokio::test]
async fn a_service_that_is_not_ready_is_waited_for_with_the_permit_in_hand() {
    let quota = Quota::per_second(10).in_flight(2).shape(Shape::Burst);
    let limits = Limits::builder().every_call(quota).build().unwrap();
    let inner = tower::limit::ConcurrencyLimit::new(
        service_fn(|_: Request<()>| pending::<Result<Response<()>, Infallible>>()),
        1,
    );
    let mut service = RateLimitLayer::new(limits.clone()).layer(inner);
    let in_flight = || limits.snapshot().quotas[0].in_flight;
    let first = service.call(get("/"));
    let mut second = task::spawn(service.call(get("/")));
    assert_eq!(in_flight(), 2);
    assert_pending!(second.poll());
    // It took its place in the inner service's queue with it.
    drop(first);
    assert!(second.is_woken());
    assert_pending!(second.poll());
    let mut third = task::spawn(service.call(get("/")));
    assert_pending!(third.poll());
    drop(third);
    assert_eq!(in_flight(), 1);
    drop(second);
    let quota = &limits.snapshot().quotas[0];
    // The third was never sent.
    assert_eq!((quota.in_flight, quota.used), (0, 2));
}

/// As a buffer whose worker is gone.
struct Broken {
    needs_clone: bool,
}

impl Service<Request<()>> for Broken {
    type Response = Response<()>;
    type Error = &'static str;
    type Future = Ready<Result<Response<()>, &'static str>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), &'static str>> {
        Poll::Ready(Err("broken"))
    }

    fn call(&mut self, _: Request<()>) -> Self::Future {
        unreachable!("it isn't ready")
    }
}

impl Clone for Broken {
    fn clone(&self) -> Self {
        assert!(self.needs_clone, "nobody needs another");
        Self { ..*self }
    }
}

#[tokio::test]
async fn a_service_that_fails_before_the_call_has_its_permit_go_back() {
    let quota = Quota::per_second(1);
    for (builder, needs_clone) in [
        (Limits::builder(), false),
        (Limits::builder().each_endpoint(quota), true),
    ] {
        let limits = builder.every_call(quota).build().unwrap();
        let broken = Broken { needs_clone };
        let mut service = RateLimitLayer::new(limits.clone()).layer(broken);
        for _ in 0..3 {
            let error = service.call(get("/")).await.unwrap_err();
            assert_eq!(error.source().unwrap().to_string(), "broken");
            // Nobody has to look up what was never handed on.
            assert_eq!(Verdict::of_error(&*error), Verdict::NO_EFFECT);
        }
        let quota = &limits.snapshot().quotas[0];
        assert_eq!((quota.in_flight, quota.used), (0, 0));
    }
}

/// One that waits for the inner service keeps its place, however short the margin:
/// it will be sent, and nobody knows when.
#[tokio::test(start_paused = true)]
async fn a_margin_starts_when_the_inner_service_is_called() {
    let margin = Duration::from_millis(10);
    let quota = Quota::per_second(5).shape(Shape::Burst);
    let quota = quota.count_from(CountFrom::Sending { margin });
    let limits = Limits::builder().every_call(quota).build().unwrap();
    let calls = Arc::<Mutex<Vec<_>>>::default();
    let noted = Arc::clone(&calls);
    let note = service_fn(move |_| {
        noted.lock().unwrap().push(Instant::now());
        ready(Ok::<_, Infallible>(Response::new(())))
    });
    let places = Arc::new(Semaphore::new(0));
    let inner = GlobalConcurrencyLimitLayer::with_semaphore(Arc::clone(&places));
    let service = RateLimitLayer::new(limits).layer(inner.layer(note));
    let callers = (0..20).map(|_| service.clone().oneshot(get("/")));
    let callers = callers.collect::<JoinSet<_>>();
    sleep(Duration::from_secs(10)).await;
    places.add_permits(20);
    callers.join_all().await;
    let calls = calls.lock().unwrap();
    assert_eq!(calls.len(), 20);
    for six in calls.windows(6) {
        assert!(six[5] - six[0] >= Duration::from_secs(1), "{calls:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn waiters_are_served_first_come_first_served_in_two_polls_each() {
    const WAITERS: usize = 10_000;
    let limits = Limits::builder()
        .every_call(Quota::per_second(1000))
        .build()
        .unwrap();
    let polls = Arc::new(AtomicUsize::new(0));
    let (sender, mut order) = tokio::sync::mpsc::unbounded_channel();
    for index in 0..WAITERS {
        let (limits, polls, sender) = (limits.clone(), Arc::clone(&polls), sender.clone());
        tokio::spawn(async move {
            let call = Call::new(&Method::GET, "/");
            let mut acquire = std::pin::pin!(limits.acquire(&call));
            let permit = std::future::poll_fn(|cx| {
                polls.fetch_add(1, Ordering::Relaxed);
                acquire.as_mut().poll(cx)
            })
            .await
            .unwrap();
            sender.send(index).unwrap();
            drop(permit);
        });
    }
    drop(sender);
    let mut expected = 0..;
    while let Some(index) = order.recv().await {
        assert_eq!(Some(index), expected.next());
    }
    assert_eq!(expected.start, WAITERS);
    assert!(polls.load(Ordering::Relaxed) <= 2 * WAITERS, "{polls:?}");
}

#[tokio::test(start_paused = true)]
async fn a_higher_priority_goes_first() {
    let limits = Limits::builder()
        .every_call(Quota::per_second(10))
        .build()
        .unwrap();
    let (sender, mut order) = tokio::sync::mpsc::unbounded_channel();
    for priority in [Priority::Low, Priority::Normal, Priority::High] {
        for _ in 0..3 {
            let (limits, sender) = (limits.clone(), sender.clone());
            tokio::spawn(async move {
                let call = Call::new(&Method::GET, "/").priority(priority);
                let _permit = limits.acquire(&call).await.unwrap();
                sender.send(priority).unwrap();
            });
        }
    }
    drop(sender);
    let mut served = Vec::new();
    while let Some(priority) = order.recv().await {
        served.push(priority);
    }
    use Priority::{High, Low, Normal};
    // The first found room before the others came.
    let expected = [Low, High, High, High, Normal, Normal, Normal, Low, Low];
    assert_eq!(served, expected);
}

/// Those that have a permit and wait for a connection would walk into the block.
#[tokio::test(start_paused = true)]
async fn a_pause_holds_for_attempts_that_wait_for_the_inner_service() {
    let arrivals = Arc::<Mutex<Vec<_>>>::default();
    let noted = Arc::clone(&arrivals);
    let start = Instant::now();
    let provider = service_fn(move |_: Request<()>| {
        let mut noted = noted.lock().unwrap();
        noted.push(millis(start));
        let is_first = noted.len() == 1;
        async move {
            sleep(Duration::from_millis(100)).await;
            let refused = Verdict::NotExecuted {
                retry_after: Some(Duration::from_millis(5000)),
                scope: Scope::Unspecified,
            };
            let mut response = Response::new(());
            if is_first {
                response.extensions_mut().insert(refused);
            }
            Ok::<_, Infallible>(response)
        }
    });
    let places = Arc::new(Semaphore::new(1));
    let inner = GlobalConcurrencyLimitLayer::with_semaphore(Arc::clone(&places));
    let margin = Duration::from_millis(10);
    let sending = CountFrom::Sending { margin };
    for count_from in [CountFrom::Response, sending] {
        let quota = Quota::per_second(9).shape(Shape::Burst);
        let limits = Limits::builder().every_call(quota.count_from(count_from));
        let limits = RateLimitLayer::new(limits.build().unwrap());
        let start = millis(start);
        let service = limits.layer(inner.layer(provider.clone()));
        let mut calls = JoinSet::new();
        for _ in 0..3 {
            calls.spawn(service.clone().oneshot(get("/")));
        }
        yield_now().await;
        let mut hasty = get("/");
        let deadline = Deadline::at(Instant::now() + Duration::from_millis(4000));
        hasty.extensions_mut().insert(deadline);
        let error = service.clone().oneshot(hasty).await.unwrap_err();
        assert!(RateLimitError::find(&*error).is_some_and(RateLimitError::is_deadline));
        assert_eq!(places.available_permits(), 1);
        calls.join_all().await;
        let mut arrivals = arrivals.lock().unwrap();
        let after = arrivals.drain(..).map(|at| at - start);
        let after: Vec<_> = after.collect();
        assert!(after[0] == 0 && after[1] >= 5100, "{after:?}");
        assert_eq!(after.len(), 3);
    }
}

#[tokio::test(start_paused = true)]
async fn a_call_dropped_while_the_inner_service_is_not_ready_leaves_its_place() {
    for margin in [0, 10] {
        let margin = Duration::from_millis(margin);
        let quota = Quota::per_hour(1).shape(Shape::Burst);
        let quota = quota.count_from(CountFrom::Sending { margin });
        let limits = Limits::builder().every_call(quota).build().unwrap();
        let inner = GlobalConcurrencyLimitLayer::new(0).layer(service_fn(answer));
        let service = RateLimitLayer::new(limits.clone()).layer(inner);
        let mut call = task::spawn(service.oneshot(get("/")));
        assert_pending!(call.poll());
        assert_pending!(call.poll());
        sleep(Duration::from_millis(50)).await;
        drop(call);
        let call = Call::new(&Method::GET, "/");
        limits
            .try_acquire(&call, Instant::now())
            .unwrap()
            .give_back();
    }
}

/// The way to a provider: attempts wait in the service for one of its connections,
/// and say so, as a pool's do.
struct Line {
    connections: Arc<Semaphore>,
    /// When each was sent.
    sent: Arc<Mutex<Vec<Duration>>>,
    /// So many are left for 5 s, as the first answer says.
    left: Option<u32>,
}

impl Line {
    fn new(connections: usize) -> Self {
        Self {
            connections: Arc::new(Semaphore::new(connections)),
            sent: Arc::default(),
            left: None,
        }
    }

    fn sent(&self) -> Vec<Duration> {
        self.sent.lock().unwrap().clone()
    }

    /// The first attempt gets this verdict, if there is one.
    fn service(
        &self,
        verdict: Option<Verdict>,
    ) -> impl Service<
        Request<()>,
        Response = Response<()>,
        Error = Infallible,
        Future: Future<Output = Result<Response<()>, Infallible>> + Send,
    > + Clone
    + Send
    + use<> {
        let (start, left) = (Instant::now(), self.left);
        let (connections, sent) = (Arc::clone(&self.connections), Arc::clone(&self.sent));
        service_fn(move |_: Request<()>| {
            let mut free = Box::pin(Arc::clone(&connections).acquire_owned());
            let sent = Arc::clone(&sent);
            async move {
                let connection = poll_fn(|cx| match free.as_mut().poll(cx) {
                    Poll::Ready(connection) => Poll::Ready(connection),
                    Poll::Pending => Phase::Connect.pending(),
                });
                let _connection = connection.await.unwrap();
                let is_first = {
                    let mut sent = sent.lock().unwrap();
                    sent.push(start.elapsed());
                    sent.len() == 1
                };
                sleep(Duration::from_millis(100)).await;
                let mut response = Response::new(());
                if let Some(verdict) = verdict.filter(|_| is_first) {
                    response.extensions_mut().insert(verdict);
                }
                if let Some(left) = left.filter(|_| is_first) {
                    let headers = response.headers_mut();
                    headers.insert("x-ratelimit-remaining", left.into());
                    headers.insert("x-ratelimit-reset", 5.into());
                }
                Ok(response)
            }
        })
    }
}

/// Nothing is left, and it says for how long: the same as if it asked for a pause.
#[tokio::test(start_paused = true)]
async fn what_the_headers_say_reaches_attempts_that_wait_for_a_connection() {
    for left in [0, 2] {
        let quota = Quota::per_second(3).shape(Shape::Burst);
        let limits = Limits::builder().every_call(quota).build().unwrap();
        let line = Line {
            left: Some(left),
            ..Line::new(1)
        };
        let service = RateLimitLayer::new(limits.clone()).layer(line.service(None));
        let [first, second, third] =
            [(); 3].map(|()| tokio::spawn(service.clone().oneshot(get("/"))));
        first.await.unwrap().unwrap();
        for waits in [second, third] {
            let outcome = waits.await.unwrap();
            assert_eq!(outcome.is_ok(), left > 0);
            if let Err(error) = outcome {
                let error = RateLimitError::find(&*error).unwrap();
                assert!(error.is_paused());
                assert_eq!(error.wait(), Some(Duration::from_secs(5)));
            }
        }
        assert_eq!(limits.snapshot().quotas[0].in_flight, 0);
        service.oneshot(get("/")).await.unwrap();
        let last = *line.sent().last().unwrap();
        assert_eq!(last, Duration::from_millis(5100));
    }
}

#[tokio::test(start_paused = true)]
async fn a_pause_reaches_attempts_that_wait_for_a_connection() {
    let refused = Verdict::NotExecuted {
        retry_after: Some(Duration::from_secs(5)),
        scope: Scope::Unspecified,
    };
    let margin = Duration::from_millis(10);
    for count_from in [CountFrom::Response, CountFrom::Sending { margin }] {
        let quota = Quota::per_second(3).shape(Shape::Burst);
        let limits = Limits::builder().every_call(quota.count_from(count_from));
        let limits = limits.build().unwrap();
        let line = Line::new(1);
        let service = RateLimitLayer::new(limits.clone()).layer(line.service(Some(refused)));
        let first = tokio::spawn(service.clone().oneshot(get("/")));
        let second = tokio::spawn(service.clone().oneshot(get("/")));
        let third = tokio::spawn(service.clone().oneshot(get("/")));
        first.await.unwrap().unwrap();
        for waits in [second, third] {
            let error = waits.await.unwrap().unwrap_err();
            let fault = Fault::find(&*error).unwrap();
            assert_eq!(fault.phase(), Some(Phase::Permit));
            let error = RateLimitError::find(&*error).unwrap();
            assert!(error.is_paused());
            assert_eq!(error.wait(), Some(Duration::from_secs(5)));
        }
        assert_eq!(line.sent(), [Duration::ZERO]);
        assert_eq!(line.connections.available_permits(), 1);
        assert_eq!(limits.snapshot().quotas[0].in_flight, 0);
        service.oneshot(get("/")).await.unwrap();
        assert_eq!(line.sent()[1], Duration::from_millis(5100));
    }
}

#[tokio::test(start_paused = true)]
async fn what_waits_for_a_connection_counts_from_sending_only_once_it_is_sent() {
    let margin = Duration::from_millis(10);
    let quota = Quota::per_second(2).shape(Shape::Burst);
    let quota = quota.count_from(CountFrom::Sending { margin });
    let limits = Limits::builder().every_call(quota).build().unwrap();
    let line = Line::new(0);
    let service = RateLimitLayer::new(limits).layer(line.service(None));
    let mut calls = JoinSet::new();
    for _ in 0..2 {
        calls.spawn(service.clone().oneshot(get("/")));
    }
    sleep(Duration::from_secs(3)).await;
    line.connections.add_permits(3);
    sleep(Duration::from_millis(500)).await;
    calls.spawn(service.oneshot(get("/")));
    for call in calls.join_all().await {
        call.unwrap();
    }
    let expected = [3000, 3000, 4010].map(Duration::from_millis);
    assert_eq!(line.sent(), expected);
}

#[tokio::test(start_paused = true)]
async fn an_attempt_dropped_while_it_waits_for_a_connection_leaves_its_place() {
    let quota = Quota::per_hour(1).shape(Shape::Burst);
    let limits = Limits::builder().every_call(quota).build().unwrap();
    let line = Line::new(0);
    let service = RateLimitLayer::new(limits.clone()).layer(line.service(None));
    let place = || limits.try_acquire(&Call::new(&Method::GET, "/"), Instant::now());
    let mut call = task::spawn(service.clone().oneshot(get("/")));
    assert_pending!(call.poll());
    drop(call);
    place().unwrap().give_back();
    // Once it is sent, it may still be on its way.
    let mut call = task::spawn(service.oneshot(get("/")));
    assert_pending!(call.poll());
    line.connections.add_permits(1);
    assert_pending!(call.poll());
    drop(call);
    place().unwrap_err();
}

/// A redirect followed below, or a retry of somebody else's.
#[tokio::test(start_paused = true)]
async fn a_pause_does_not_deny_an_attempt_that_was_sent_and_waits_for_a_second_connection() {
    let waits = Some(Phase::Connect);
    for notes in [vec![waits, None, waits], vec![None, waits]] {
        let limits = Limits::builder().every_call(Quota::concurrent(9));
        let limits = limits.build().unwrap();
        let mut call = task::spawn({
            let notes = notes.clone();
            let service = service_fn(move |_: Request<()>| {
                let mut notes = notes.clone().into_iter();
                poll_fn(move |_| match notes.next() {
                    Some(Some(phase)) => phase.pending(),
                    Some(None) => Poll::Pending,
                    None => Poll::Ready(Ok::<_, Infallible>(Response::new(()))),
                })
            });
            let service = RateLimitLayer::new(limits.clone()).layer(service);
            service.oneshot(get("/"))
        });
        for _ in notes {
            assert_pending!(call.poll());
        }
        let other = limits.acquire(&Call::new(&Method::GET, "/")).await.unwrap();
        other.over(Verdict::NotExecuted {
            retry_after: Some(Duration::from_secs(5)),
            scope: Scope::Unspecified,
        });
        assert_ready!(call.poll()).unwrap();
        assert_eq!(limits.snapshot().quotas[0].in_flight, 0);
    }
}
