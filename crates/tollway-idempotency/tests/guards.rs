//! Keys that come back.
#![expect(clippy::unwrap_used, reason = "a test's helpers may panic")]

use std::error::Error;
use std::future::poll_fn;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response, StatusCode};
use http_body_util::Full;
use tokio::time::Instant;
use tollway_core::{
    BoxError, Deadline, Fault, IdempotencyKey, Judgement, Phase, RetryAdvice, Scope, Verdict,
};
use tollway_idempotency::{
    Dialect, IdempotencyKeyLayer, IdempotencyKeyService, KeyBody, KeyError, KeyGenerator, key_of,
};
use tower::limit::ConcurrencyLimit;
use tower::{Layer, Service, ServiceExt};

const DAY: Duration = Duration::from_secs(24 * 60 * 60);

/// Answers with `status`, or not at all with 0, and counts.
#[derive(Clone, Default)]
struct Gateway {
    status: u16,
    /// Whether it is never ready.
    busy: bool,
    /// Whether it never will be.
    broken: bool,
    calls: Arc<AtomicUsize>,
}

impl Gateway {
    fn answering(status: u16) -> Self {
        Self {
            status,
            ..Self::default()
        }
    }

    fn calls(&self) -> usize {
        self.calls.load(Ordering::SeqCst)
    }
}

impl<B> Service<Request<KeyBody<B>>> for Gateway {
    type Response = Response<()>;
    type Error = BoxError;
    type Future = std::pin::Pin<Box<dyn Future<Output = Result<Response<()>, BoxError>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        match (self.busy, self.broken) {
            (_, true) => Poll::Ready(Err("broken".into())),
            (true, _) => Poll::Pending,
            _ => Poll::Ready(Ok(())),
        }
    }

    fn call(&mut self, _: Request<KeyBody<B>>) -> Self::Future {
        self.calls.fetch_add(1, Ordering::SeqCst);
        let status = self.status;
        Box::pin(async move {
            match status {
                0 => std::future::pending().await,
                1 => Err(Fault::new(Verdict::NO_EFFECT)
                    .in_phase(Phase::Connect)
                    .into()),
                2 => Err("reset".into()),
                3 => Err(Fault::new(Verdict::Rejected).into()),
                _ => {
                    let mut response = Response::new(());
                    *response.status_mut() = StatusCode::from_u16(status)?;
                    Ok(response)
                }
            }
        })
    }
}

type Guarded = IdempotencyKeyService<Gateway>;

fn guarded(gateway: &Gateway) -> Guarded {
    IdempotencyKeyLayer::new().layer(gateway.clone())
}

fn pay(key: &str, path: &str, body: &'static str) -> Request<Full<Bytes>> {
    Request::post(path)
        .header("idempotency-key", key)
        .body(Full::from(body))
        .unwrap()
}

/// A body that doesn't say how long it is.
#[derive(Clone, Default)]
struct Unsized(Full<Bytes>);

impl http_body::Body for Unsized {
    type Data = Bytes;
    type Error = std::convert::Infallible;

    fn poll_frame(
        mut self: std::pin::Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<http_body::Frame<Bytes>, Self::Error>>> {
        std::pin::Pin::new(&mut self.0).poll_frame(cx)
    }
}

/// A body that isn't there when it is first asked for.
struct Late {
    body: Full<Bytes>,
    asked: bool,
}

impl Late {
    fn new(body: Full<Bytes>) -> Self {
        Self { body, asked: false }
    }
}

impl http_body::Body for Late {
    type Data = Bytes;
    type Error = std::convert::Infallible;

    fn poll_frame(
        mut self: std::pin::Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<http_body::Frame<Bytes>, Self::Error>>> {
        if !std::mem::replace(&mut self.asked, true) {
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        std::pin::Pin::new(&mut self.body).poll_frame(cx)
    }

    fn size_hint(&self) -> http_body::SizeHint {
        self.body.size_hint()
    }
}

async fn call(
    service: &Guarded,
    key: &str,
    path: &str,
    body: &'static str,
) -> Result<Response<()>, BoxError> {
    service.clone().oneshot(pay(key, path, body)).await
}

fn refusal(error: &BoxError) -> &KeyError {
    error.downcast_ref().unwrap()
}

#[tokio::test(start_paused = true)]
async fn the_same_call_may_be_repeated_while_its_key_lives() {
    let gateway = Gateway::answering(200);
    let service = guarded(&gateway);
    for _ in 0..24 {
        call(&service, "k", "/p", "{}").await.unwrap();
        tokio::time::advance(DAY / 25).await;
    }
    assert_eq!(gateway.calls(), 24);
}

#[tokio::test(start_paused = true)]
async fn another_body_path_or_query_under_the_same_key_is_refused_before_it_leaves() {
    let gateway = Gateway::answering(200);
    let service = guarded(&gateway);
    call(&service, "k", "/p", "{}").await.unwrap();
    for (path, body) in [("/p", "{ }"), ("/p", ""), ("/q", "{}"), ("/p?x=1", "{}")] {
        let error = call(&service, "k", path, body).await.unwrap_err();
        assert!(refusal(&error).is_reused());
        assert_eq!(Verdict::of_error(&*error), Verdict::Rejected);
        assert_eq!(key_of(&*error).unwrap().as_str(), "k");
    }
    call(&service, "other", "/p", "{ }").await.unwrap();
    assert_eq!(gateway.calls(), 2);
}

#[tokio::test(start_paused = true)]
async fn another_method_under_the_same_key_is_refused() {
    let gateway = Gateway::answering(200);
    let dialect = Dialect::default().methods([http::Method::POST, http::Method::PUT]);
    let service = IdempotencyKeyLayer::new()
        .dialect(dialect)
        .layer(gateway.clone());
    call(&service, "k", "/p", "{}").await.unwrap();
    let mut request = pay("k", "/p", "{}");
    *request.method_mut() = http::Method::PUT;
    let error = service.oneshot(request).await.unwrap_err();
    assert!(refusal(&error).is_reused());
}

#[tokio::test(start_paused = true)]
async fn services_of_one_layer_and_their_clones_share_what_they_remember() {
    let gateway = Gateway::answering(200);
    let layer = IdempotencyKeyLayer::new();
    let (one, two) = (layer.layer(gateway.clone()), layer.clone().layer(gateway));
    call(&one, "k", "/p", "{}").await.unwrap();
    let error = call(&two, "k", "/p", "[]").await.unwrap_err();
    assert!(refusal(&error).is_reused());
}

#[tokio::test(start_paused = true)]
async fn a_repeat_after_the_keys_life_is_refused_and_its_outcome_unknown() {
    let gateway = Gateway::answering(200);
    let service = guarded(&gateway);
    call(&service, "k", "/p", "{}").await.unwrap();
    tokio::time::advance(DAY).await;
    let error = call(&service, "k", "/p", "{}").await.unwrap_err();
    assert!(refusal(&error).is_expired());
    assert_eq!(Verdict::of_error(&*error), Verdict::Unknown);
    assert_eq!(gateway.calls(), 1);

    // Another payload is a new call to a provider that has forgotten the key.
    call(&service, "k", "/p", "[]").await.unwrap();
    assert_eq!(gateway.calls(), 2);
}

#[tokio::test(start_paused = true)]
async fn a_repeat_is_told_how_long_its_key_still_lives() {
    let seen = Arc::new(std::sync::Mutex::new(Vec::new()));
    let inner = tower::service_fn({
        let seen = Arc::clone(&seen);
        move |request: Request<KeyBody<Full<Bytes>>>| {
            let key = IdempotencyKey::of(request.extensions()).cloned();
            seen.lock().unwrap().push(key);
            std::future::ready(Ok::<_, BoxError>(Response::new(())))
        }
    });
    let service = IdempotencyKeyLayer::new().layer(inner);
    let end = tokio::time::Instant::now() + DAY;
    service.clone().oneshot(pay("k", "/p", "{}")).await.unwrap();
    tokio::time::advance(DAY / 2).await;
    service.oneshot(pay("k", "/p", "{}")).await.unwrap();
    let seen = seen.lock().unwrap();
    assert_eq!(seen[0], None, "it has its whole life before it");
    let key = seen[1].as_ref().unwrap();
    assert!(key.is_valid(end - Duration::from_nanos(1)) && !key.is_valid(end));
}

/// The layers below are told, even of a key that was just made and stands in the
/// header where they look.
#[tokio::test(start_paused = true)]
async fn a_key_says_that_its_provider_refuses_repeats() {
    for refuses in [true, false] {
        let dialect = Dialect::default();
        let dialect = if refuses {
            dialect.refuses_repeats()
        } else {
            dialect
        };
        let inner = tower::service_fn(move |request: Request<KeyBody<Full<Bytes>>>| {
            let told = IdempotencyKey::of(request.extensions());
            let told = told.is_some_and(IdempotencyKey::refuses_repeats);
            assert_eq!(told, refuses);
            std::future::ready(Ok::<_, BoxError>(Response::new(())))
        });
        let service = IdempotencyKeyLayer::new().dialect(dialect).layer(inner);
        let fresh = Request::post("/p").body(Full::from("{}")).unwrap();
        service.clone().oneshot(fresh).await.unwrap();
        service.oneshot(pay("k", "/p", "{}")).await.unwrap();
    }
}

#[tokio::test(start_paused = true)]
async fn a_call_that_had_no_effect_frees_its_key() {
    for status in [429, 1] {
        let gateway = Gateway::answering(status);
        let service = guarded(&gateway);
        let _ = call(&service, "k", "/p", "{}").await;
        let again = call(&service, "k", "/p", "[]").await;
        assert_eq!(gateway.calls(), 2, "{status}: {again:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_call_that_may_have_had_an_effect_keeps_its_key() {
    for status in [200, 400, 500, 2] {
        let gateway = Gateway::answering(status);
        let service = guarded(&gateway);
        let _ = call(&service, "k", "/p", "{}").await;
        let error = call(&service, "k", "/p", "[]").await.unwrap_err();
        assert!(refusal(&error).is_reused(), "{status}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_call_dropped_in_flight_keeps_its_key() {
    let gateway = Gateway::answering(0);
    let service = guarded(&gateway);
    let mut pending = tokio_test::task::spawn(call(&service, "k", "/p", "{}"));
    assert!(pending.poll().is_pending());
    assert_eq!(gateway.calls(), 1);
    drop(pending);
    let error = call(&service, "k", "/p", "[]").await.unwrap_err();
    assert!(refusal(&error).is_reused());
}

/// What a call with this key comes to, over a gateway that answers so; dropped
/// in flight where it doesn't answer.
async fn verdict(layer: &IdempotencyKeyLayer, status: u16) -> Verdict {
    let service = layer.layer(Gateway::answering(status));
    let call = service.oneshot(pay("a-key", "/p", "{}"));
    match tokio::time::timeout(DAY / 100, call).await {
        Ok(Ok(response)) => {
            let verdict = Verdict::of_response(&response);
            let told = IdempotencyKey::of(response.extensions());
            assert_eq!(told.is_some(), verdict != Verdict::Done);
            verdict
        }
        Ok(Err(error)) => {
            assert_eq!(key_of(&*error).unwrap().as_str(), "a-key");
            Verdict::of_error(&*error)
        }
        Err(_dropped) => Verdict::Unknown,
    }
}

/// A payment may have been made by the first call. That the second one had no
/// effect is no reason to think it wasn't.
#[tokio::test(start_paused = true)]
async fn what_an_earlier_call_with_its_key_may_have_done_is_not_denied() {
    let not_executed = |verdict| matches!(verdict, Verdict::NotExecuted { .. });
    // Dropped in flight, failed, unknown, or done.
    for first in [0, 2, 503, 200] {
        let layer = IdempotencyKeyLayer::new();
        verdict(&layer, first).await;
        // Not executed, turned away, or unknown themselves.
        for then in [1, 3, 429, 401, 403, 404, 409, 307, 502] {
            let seen = verdict(&layer, then).await;
            assert_eq!(seen, Verdict::Unknown, "{first}, {then}");
        }
        assert_eq!(verdict(&layer, 200).await, Verdict::Done);
    }
    // These speak for the calls before them.
    for settled in [400, 402, 422] {
        let layer = IdempotencyKeyLayer::new();
        assert_eq!(verdict(&layer, 0).await, Verdict::Unknown);
        assert_eq!(verdict(&layer, settled).await, Verdict::Rejected);
        assert!(not_executed(verdict(&layer, 429).await));
        assert_eq!(verdict(&layer, 401).await, Verdict::Rejected);
    }
    // Unless the provider keeps only what it has done: the first may be late.
    let dialect = Dialect::default().refuses_repeats();
    let layer = IdempotencyKeyLayer::new().dialect(dialect);
    assert_eq!(verdict(&layer, 0).await, Verdict::Unknown);
    for then in [400, 402, 401] {
        assert_eq!(verdict(&layer, then).await, Verdict::Unknown, "{then}");
    }
    // Nor do they speak for one that was done: whoever has two of a payment under way may
    // hear that one was declined behind the other's success.
    for settled in [400, 402, 422] {
        let layer = IdempotencyKeyLayer::new();
        assert_eq!(verdict(&layer, 200).await, Verdict::Done);
        for then in [settled, 401, 429] {
            assert_eq!(verdict(&layer, then).await, Verdict::Unknown, "{settled}");
        }
    }
    // Nothing was in doubt.
    let layer = IdempotencyKeyLayer::new();
    assert_eq!(verdict(&layer, 401).await, Verdict::Rejected);
    assert!(not_executed(verdict(&layer, 1).await));
    assert_eq!(verdict(&layer, 404).await, Verdict::Rejected);
}

/// Two workers have the same payment. One is throttled while the other one's
/// request is at the provider, or about to go there.
#[tokio::test(start_paused = true)]
async fn what_another_call_with_its_key_may_be_doing_is_not_denied() {
    for then in [1, 429, 401, 409] {
        let layer = IdempotencyKeyLayer::new();
        let service = layer.layer(Gateway::answering(0));
        let mut other = tokio_test::task::spawn(call(&service, "a-key", "/p", "{}"));
        assert!(other.poll().is_pending());
        assert_eq!(verdict(&layer, then).await, Verdict::Unknown, "{then}");
        // Its answer would be this one.
        assert_eq!(verdict(&layer, 402).await, Verdict::Rejected);
    }
}

/// Its caller was told the key, to repeat the call with it, and does.
#[tokio::test(start_paused = true)]
async fn what_a_call_with_a_new_key_may_have_done_is_not_denied() {
    let short = Dialect::default().life(DAY / 2);
    for (dialect, life) in [(Dialect::default(), DAY), (short, DAY / 2)] {
        for first in [2, 503] {
            let layer = IdempotencyKeyLayer::new().dialect(dialect.clone());
            let new = Request::post("/p").body(Full::<Bytes>::from("{}")).unwrap();
            let told = match layer.layer(Gateway::answering(first)).oneshot(new).await {
                Ok(response) => IdempotencyKey::of(response.extensions()).cloned(),
                Err(error) => key_of(&*error).cloned(),
            };
            // As a text it knows nothing of its past.
            let key = told.unwrap().as_str().to_owned();
            for then in [429, 401] {
                let service = layer.layer(Gateway::answering(then));
                let response = call(&service, &key, "/p", "{}").await.unwrap();
                assert_eq!(Verdict::of_response(&response), Verdict::Unknown);
            }
            let service = layer.layer(Gateway::answering(200));
            let error = call(&service, &key, "/p", "[]").await.unwrap_err();
            assert!(refusal(&error).is_reused());
            tokio::time::advance(life).await;
            let error = call(&service, &key, "/p", "{}").await.unwrap_err();
            assert!(refusal(&error).is_expired());
        }
    }
}

/// A job that runs once a day repeats today what nobody knows of yesterday.
#[tokio::test(start_paused = true)]
async fn a_new_key_lives_from_its_call_and_not_from_that_calls_end() {
    let minute = DAY / 24 / 60;
    for life in [DAY / 12, DAY, DAY * 2] {
        let dialect = Dialect::default().life(life);
        let layer = IdempotencyKeyLayer::new().dialect(dialect);
        a_key_of_this_layer_lives(&layer, minute, life).await;
        let layer = layer.generator(|| "made-here".parse());
        a_key_of_this_layer_lives(&layer, minute, life).await;
    }
}

/// It is told after `takes`, and no more use when its `life` is over.
async fn a_key_of_this_layer_lives<G: KeyGenerator>(
    layer: &IdempotencyKeyLayer<G>,
    takes: Duration,
    life: Duration,
) {
    let slow = tower::service_fn(move |_: Request<KeyBody<Full<Bytes>>>| async move {
        tokio::time::sleep(takes).await;
        Response::builder().status(504).body(())
    });
    let end = tokio::time::Instant::now() + life;
    let new = Request::post("/p").body(Full::from("{}")).unwrap();
    let response = layer.layer(slow).oneshot(new).await.unwrap();
    let key = IdempotencyKey::of(response.extensions()).unwrap();
    let service = layer.layer(Gateway::answering(504));
    let repeat = || service.clone().oneshot(pay(key.as_str(), "/p", "{}"));
    tokio::time::sleep_until(end - takes / 2).await;
    repeat().await.unwrap();
    tokio::time::sleep_until(end).await;
    let error = repeat().await.unwrap_err();
    assert!(refusal(&error).is_expired());
}

/// Whoever finds no permit in time, and hangs up, has paid nothing.
#[tokio::test(start_paused = true)]
async fn a_call_given_up_before_it_was_sent_leaves_no_doubt() {
    let layer = IdempotencyKeyLayer::new();
    let mut cx = Context::from_waker(std::task::Waker::noop());
    // What it waits for, poll by poll, and whether it may have been sent.
    let cases: [(&'static [Option<Phase>], bool); 6] = [
        (&[], true),
        (&[Some(Phase::Permit)], false),
        (&[Some(Phase::Permit), Some(Phase::Connect)], false),
        (&[Some(Phase::Connect), Some(Phase::Send)], true),
        (&[Some(Phase::Permit), None], true),
        // Waiting for the permit of its second attempt.
        (&[Some(Phase::Head), Some(Phase::Permit)], true),
    ];
    for (phases, sent) in cases {
        let inner = tower::service_fn(move |_: Request<KeyBody<Unsized>>| {
            let mut phases = phases.iter();
            poll_fn(move |_| match phases.next().copied().flatten() {
                Some(phase) => phase.pending::<Result<Response<()>, BoxError>>(),
                None => Poll::Pending,
            })
        });
        let key = format!("{phases:?}").replace(' ', "");
        let mut service = layer.layer(inner);
        {
            // A body of unknown length: the inner service is called at once.
            assert!(service.poll_ready(&mut cx).is_ready());
            let request = pay(&key, "/p", "{}").map(|_| Unsized::default());
            let mut call = pin!(service.call(request));
            for _ in phases {
                let _stale = Phase::Permit.pending::<()>();
                assert!(call.as_mut().poll(&mut cx).is_pending());
            }
        }
        let service = layer.layer(Gateway::answering(429));
        let request = pay(&key, "/p", "{}").map(|_| Unsized::default());
        let response = service.oneshot(request).await.unwrap();
        let doubt = Verdict::of_response(&response) == Verdict::Unknown;
        assert_eq!(doubt, sent, "{phases:?}");
    }
}

/// All that it was seen to wait for was a permit: the answer came in one go.
#[tokio::test(start_paused = true)]
async fn what_was_done_without_a_wait_is_not_denied() {
    let layer = IdempotencyKeyLayer::new();
    let inner = tower::service_fn(|_: Request<KeyBody<Full<Bytes>>>| {
        let mut has_waited = false;
        poll_fn(move |cx| {
            if std::mem::replace(&mut has_waited, true) {
                return Poll::Ready(Ok::<_, BoxError>(Response::new(())));
            }
            cx.waker().wake_by_ref();
            Phase::Permit.pending()
        })
    });
    let service = layer.layer(inner);
    let first = service.oneshot(pay("a-key", "/p", "{}")).await.unwrap();
    assert_eq!(Verdict::of_response(&first), Verdict::Done);
    assert_eq!(verdict(&layer, 429).await, Verdict::Unknown);
}

/// It stood for this payload in an earlier life, and for another one now.
#[tokio::test(start_paused = true)]
async fn what_a_key_stood_for_before_may_have_been_done() {
    let gateway = Gateway::answering(200);
    let service = guarded(&gateway);
    call(&service, "k", "/p", "{}").await.unwrap();
    tokio::time::advance(DAY).await;
    call(&service, "k", "/p", "[]").await.unwrap();
    let error = call(&service, "k", "/p", "{}").await.unwrap_err();
    assert!(refusal(&error).is_expired());
    assert_eq!(Verdict::of_error(&*error), Verdict::Unknown);
    let error = call(&service, "k", "/p", "0").await.unwrap_err();
    assert!(refusal(&error).is_reused());
}

#[tokio::test(start_paused = true)]
async fn a_doubt_comes_with_what_was_asked_for_and_is_told() {
    let layer = IdempotencyKeyLayer::new();
    assert_eq!(verdict(&layer, 0).await, Verdict::Unknown);

    let throttled = tower::service_fn(|_: Request<KeyBody<Full<Bytes>>>| async {
        let response = Response::builder().status(429).header("retry-after", "7");
        response.body(())
    });
    let repeat = layer.layer(throttled).oneshot(pay("a-key", "/p", "{}"));
    let response = repeat.await.unwrap();
    let asked = RetryAdvice::of(response.extensions());
    assert_eq!(asked, Some(RetryAdvice::After(Duration::from_secs(7))));
    let key = IdempotencyKey::of(response.extensions()).unwrap();
    assert_eq!(key.as_str(), "a-key");

    let service = layer.layer(Gateway::answering(1));
    let error = call(&service, "a-key", "/p", "{}").await.unwrap_err();
    assert_eq!(error.to_string(), "the call's outcome is unknown");
    let fault = Fault::find(&*error).unwrap();
    assert_eq!(fault.verdict(), Verdict::Unknown);
    assert_eq!(fault.phase(), Some(Phase::Connect));
    let doubt = fault.source().unwrap();
    assert_eq!(
        doubt.to_string(),
        "another call with its key may have had an effect, whatever came of this one"
    );
    let cause = Fault::find(doubt).unwrap();
    assert_eq!(cause.verdict(), Verdict::NO_EFFECT);

    let refused = tower::service_fn(|_: Request<KeyBody<Full<Bytes>>>| async {
        let fault = Fault::new(Verdict::NotExecuted {
            retry_after: Some(Duration::from_secs(7)),
            scope: Scope::Call,
        });
        Err::<Response<()>, _>(BoxError::from(fault))
    });
    let repeat = layer.layer(refused).oneshot(pay("a-key", "/p", "{}"));
    let judgement = Judgement::of_error(&*repeat.await.unwrap_err());
    assert_eq!(
        (judgement.verdict, judgement.advice),
        (Verdict::Unknown, asked)
    );

    // What is unknown by itself needs no other reason.
    let service = layer.layer(Gateway::answering(2));
    let error = call(&service, "a-key", "/p", "{}").await.unwrap_err();
    assert!(Fault::find(&*error).is_none());
}

/// A deadline above isn't told that nothing was sent.
#[tokio::test(start_paused = true)]
async fn a_call_whose_key_is_in_doubt_is_not_said_to_wait_for_a_permit() {
    let layer = IdempotencyKeyLayer::new();
    assert_eq!(verdict(&layer, 0).await, Verdict::Unknown);
    let permit = tower::service_fn(|_: Request<KeyBody<Full<Bytes>>>| {
        poll_fn(|_| Phase::Permit.pending::<Result<Response<()>, BoxError>>())
    });
    let mut cx = Context::from_waker(std::task::Waker::noop());
    let busy = layer.layer(Gateway::answering(0));
    let mut under_way = tokio_test::task::spawn(call(&busy, "b-key", "/p", "{}"));
    assert!(under_way.poll().is_pending());
    for (key, phase) in [
        ("another", Phase::Permit),
        ("a-key", Phase::Head),
        ("b-key", Phase::Head),
    ] {
        let mut service = layer.layer(permit);
        assert!(service.poll_ready(&mut cx).is_ready());
        let mut call = pin!(service.call(pay(key, "/p", "{}")));
        let (poll, noted) = Phase::observe(|| call.as_mut().poll(&mut cx));
        assert!(poll.is_pending());
        assert_eq!(noted, Some(phase), "{key}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_call_dropped_before_it_left_leaves_no_trace() {
    // While its body is read.
    struct Stuck;
    impl http_body::Body for Stuck {
        type Data = Bytes;
        type Error = BoxError;
        fn poll_frame(
            self: std::pin::Pin<&mut Self>,
            _: &mut Context<'_>,
        ) -> Poll<Option<Result<http_body::Frame<Bytes>, BoxError>>> {
            Poll::Pending
        }
        fn size_hint(&self) -> http_body::SizeHint {
            http_body::SizeHint::with_exact(2)
        }
    }
    let gateway = Gateway::answering(200);
    let layer = IdempotencyKeyLayer::new();
    let request = pay("k", "/p", "{}").map(|_| Stuck);
    let mut reading = tokio_test::task::spawn(layer.layer(gateway.clone()).oneshot(request));
    assert!(reading.poll().is_pending());
    drop(reading);

    // While the inner service isn't ready: its clone isn't, once the body is
    // there.
    let busy = Gateway {
        busy: true,
        ..gateway.clone()
    };
    let mut service = layer.layer(busy);
    let request = pay("k", "/p", "{}").map(Late::new);
    let mut readying = tokio_test::task::spawn(service.call(request));
    assert!(readying.poll().is_pending());
    drop(readying);

    assert_eq!(gateway.calls(), 0);
    let other = layer.layer(gateway.clone());
    call(&other, "k", "/p", "[]").await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_body_of_unknown_length_stands_for_its_method_and_path_alone() {
    let gateway = Gateway::answering(200);
    let service = guarded(&gateway);
    for body in ["a", "b"] {
        let request = pay("k", "/p", body).map(Unsized);
        service.clone().oneshot(request).await.unwrap();
    }
    let request = pay("k", "/q", "a").map(Unsized);
    let error = service.oneshot(request).await.unwrap_err();
    assert!(refusal(&error).is_reused());

    // So a refusal of the second may be about its body, not the first one's.
    let layer = IdempotencyKeyLayer::new();
    for (status, body) in [(503, "a"), (400, "b")] {
        let service = layer.layer(Gateway::answering(status));
        let request = pay("k", "/p", body).map(Unsized);
        let response = service.oneshot(request).await.unwrap();
        assert_eq!(Verdict::of_response(&response), Verdict::Unknown);
    }
}

#[tokio::test(start_paused = true)]
async fn a_body_that_is_long_is_not_held_back() {
    let gateway = Gateway::answering(200);
    let body = String::leak("x".repeat(Dialect::MAX_BODY + 1));
    call(&guarded(&gateway), "a", "/a", body).await.unwrap();
    assert_eq!(gateway.calls(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_body_longer_than_it_said_is_refused() {
    struct Liar;
    impl http_body::Body for Liar {
        type Data = Bytes;
        type Error = BoxError;
        fn poll_frame(
            self: std::pin::Pin<&mut Self>,
            _: &mut Context<'_>,
        ) -> Poll<Option<Result<http_body::Frame<Bytes>, BoxError>>> {
            Poll::Ready(Some(Ok(http_body::Frame::data(Bytes::from_static(
                &[0; 1024],
            )))))
        }
        fn size_hint(&self) -> http_body::SizeHint {
            http_body::SizeHint::with_exact(2)
        }
    }
    let gateway = Gateway::answering(200);
    let request = pay("k", "/p", "").map(|_| Liar);
    let error = guarded(&gateway).oneshot(request).await.unwrap_err();
    assert!(refusal(&error).is_refused());
    assert!(error.to_string().contains("more than the 65536 bytes"));
    assert_eq!(gateway.calls(), 0);
}

#[tokio::test(start_paused = true)]
async fn beyond_the_bound_the_oldest_are_forgotten_and_zero_remembers_none() {
    let gateway = Gateway::answering(200);
    let service = IdempotencyKeyLayer::new()
        .remember(4)
        .layer(gateway.clone());
    for key in 0..9 {
        call(&service, &key.to_string(), "/p", "{}").await.unwrap();
    }
    assert!(call(&service, "8", "/p", "[]").await.is_err());
    assert!(call(&service, "5", "/p", "[]").await.is_err());
    call(&service, "0", "/p", "[]").await.unwrap();

    let service = IdempotencyKeyLayer::new().remember(0).layer(gateway);
    call(&service, "k", "/p", "{}").await.unwrap();
    call(&service, "k", "/p", "[]").await.unwrap();
}

/// Readiness can be a place that only one has: whoever asked for it and is then
/// called must not wait for itself.
#[tokio::test(start_paused = true)]
async fn a_call_whose_body_is_read_takes_its_readiness_along() {
    let gateway = Gateway::answering(200);
    let one = ConcurrencyLimit::new(gateway.clone(), 1);
    let mut service = IdempotencyKeyLayer::new().layer(one);
    for _ in 0..2 {
        let ready = ServiceExt::<Request<Late>>::ready(&mut service).await;
        let call = ready.unwrap().call(pay("a", "/a", "{}").map(Late::new));
        let call = tokio::time::timeout(Duration::from_secs(5), call);
        call.await.expect("no deadlock").unwrap();
    }
    // A body that is all there needs no more than that.
    for _ in 0..2 {
        let ready = ServiceExt::<Request<Full<Bytes>>>::ready(&mut service).await;
        let mut call = tokio_test::task::spawn(ready.unwrap().call(pay("b", "/b", "{}")));
        tokio_test::assert_ready!(call.poll()).unwrap();
    }
    assert_eq!(gateway.calls(), 4);
}

/// Until it is called, nothing has left.
#[tokio::test(start_paused = true)]
async fn a_call_that_waits_for_its_service_says_that_it_sent_nothing() {
    let gateway = Gateway {
        busy: true,
        ..Gateway::default()
    };
    let mut service = guarded(&gateway);
    let request = pay("k", "/p", "{}").map(Late::new);
    let mut call = std::pin::pin!(service.call(request));
    let mut cx = Context::from_waker(std::task::Waker::noop());
    let (poll, phase) = Phase::observe(|| call.as_mut().poll(&mut cx));
    assert!(poll.is_pending());
    assert_eq!(phase, Some(Phase::Prepare));
}

/// Of this call, that is; what another one with its key may have done isn't denied.
#[tokio::test(start_paused = true)]
async fn a_call_whose_service_fails_before_it_had_no_effect() {
    let layer = IdempotencyKeyLayer::new();
    let first = layer.layer(Gateway::answering(502));
    first.oneshot(pay("used", "/p", "{}")).await.unwrap();
    let broken = Gateway {
        broken: true,
        ..Gateway::default()
    };
    for (key, verdict) in [("new", Verdict::NO_EFFECT), ("used", Verdict::Unknown)] {
        let request = pay(key, "/p", "{}").map(Late::new);
        let error = layer.layer(broken.clone()).call(request).await.unwrap_err();
        assert_eq!(Verdict::of_error(&*error), verdict, "{key}");
        assert_eq!(key_of(&*error).unwrap().as_str(), key);
    }
    // As if it had never been given.
    let other = layer.layer(Gateway::answering(200));
    other.oneshot(pay("new", "/other", "{}")).await.unwrap();
}

/// However long it waits for a permit: the provider may have forgotten it then.
#[tokio::test(start_paused = true)]
async fn a_key_whose_end_the_caller_knows_is_sent_no_later() {
    let end = Instant::now() + Duration::from_secs(60);
    for (key, deadline) in [("new", None), ("old", Some(end.into_std()))] {
        let inner = tower::service_fn(move |request: Request<KeyBody<Full<Bytes>>>| async move {
            let told = Deadline::of(request.extensions()).map(Deadline::instant);
            assert_eq!(told, deadline);
            Ok::<_, BoxError>(Response::new(()))
        });
        let mut given: IdempotencyKey = key.parse().unwrap();
        if deadline.is_some() {
            given = given.valid_until(end);
        }
        let mut request = pay("x", "/p", "{}");
        request.headers_mut().clear();
        request.extensions_mut().insert(given);
        let service = IdempotencyKeyLayer::new().layer(inner);
        service.oneshot(request).await.unwrap();
    }
}
