//! What the layer does, in virtual time over a scripted service.

use std::collections::VecDeque;
use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, Method, Request, Response, StatusCode};
use http_body_util::{BodyExt, Full};
use tokio::time::Instant;
use tollway_core::{
    Attempt, BoxError, Deadline, Fault, IdempotencyKey, Phase, Priority, RetryAdvice, Scope,
    Verdict,
};
use tollway_retry::{
    Attempts, BackOff, Budget, Outcome, ReplayBody, RetryError, RetryLayer, RetryPolicy,
    RetryPolicyBuilder, Stop,
};
use tower::{Layer, Service, ServiceExt};

type Answer = Result<Response<Full<Bytes>>, BoxError>;

/// Gives the answers it was told, in order, and then 200s; keeps what it saw.
#[derive(Clone, Default)]
struct Gateway(Arc<Mutex<Inner>>);

#[derive(Default)]
struct Inner {
    answers: VecDeque<Answer>,
    takes: Duration,
    seen: Vec<Seen>,
}

#[derive(Debug)]
struct Seen {
    at: Instant,
    attempt: Attempt,
    method: Method,
    headers: HeaderMap,
    priority: Priority,
    body: Bytes,
}

impl Gateway {
    fn answering(answers: impl IntoIterator<Item = Answer>) -> Self {
        let gateway = Self::default();
        gateway.0.lock().unwrap().answers.extend(answers);
        gateway
    }

    fn taking(self, time: Duration) -> Self {
        self.0.lock().unwrap().takes = time;
        self
    }

    fn made(&self) -> usize {
        self.0.lock().unwrap().seen.len()
    }

    /// The waits between the attempts.
    fn gaps(&self) -> Vec<Duration> {
        let inner = self.0.lock().unwrap();
        inner.seen.windows(2).map(|w| w[1].at - w[0].at).collect()
    }
}

impl Service<Request<ReplayBody<Full<Bytes>>>> for Gateway {
    type Response = Response<Full<Bytes>>;
    type Error = BoxError;
    type Future = Pin<Box<dyn Future<Output = Answer> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<ReplayBody<Full<Bytes>>>) -> Self::Future {
        let gateway = self.clone();
        Box::pin(async move {
            let at = Instant::now();
            let (parts, body) = request.into_parts();
            let body = body.collect().await?.to_bytes();
            let (answer, takes) = {
                let mut inner = gateway.0.lock().unwrap();
                inner.seen.push(Seen {
                    at,
                    attempt: Attempt::of(&parts.extensions),
                    priority: Priority::of(&parts.extensions),
                    method: parts.method,
                    headers: parts.headers,
                    body,
                });
                (inner.answers.pop_front(), inner.takes)
            };
            tokio::time::sleep(takes).await;
            answer.unwrap_or_else(|| Ok(status(200)))
        })
    }
}

fn status(code: u16) -> Response<Full<Bytes>> {
    Response::builder()
        .status(code)
        .body(Full::from("answer"))
        .unwrap()
}

fn verdict(verdict: Verdict) -> Answer {
    let mut response = status(if verdict == Verdict::Done { 200 } else { 503 });
    response.extensions_mut().insert(verdict);
    Ok(response)
}

fn not_executed(retry_after: Option<Duration>, scope: Scope) -> Verdict {
    Verdict::NotExecuted { retry_after, scope }
}

fn advice(code: u16, advice: RetryAdvice) -> Answer {
    let mut response = status(code);
    let verdict = Verdict::of_status(response.status());
    response.extensions_mut().insert(verdict);
    response.extensions_mut().insert(advice);
    Ok(response)
}

fn error(verdict: Verdict) -> Answer {
    Err(Fault::new(verdict)
        .in_phase(Phase::Connect)
        .caused_by(io::Error::from(io::ErrorKind::ConnectionReset))
        .into())
}

fn get() -> Request<Full<Bytes>> {
    Request::get("/v1/charges/1").body(Full::default()).unwrap()
}

fn post() -> Request<Full<Bytes>> {
    Request::post("/v1/charges")
        .body(Full::from("amount=1"))
        .unwrap()
}

fn post_with_key() -> Request<Full<Bytes>> {
    let mut request = post();
    let key = "order-1".parse().unwrap();
    request.headers_mut().insert("idempotency-key", key);
    request
}

async fn call(
    policy: RetryPolicyBuilder<impl tollway_retry::Seed>,
    gateway: &Gateway,
    request: Request<Full<Bytes>>,
) -> Result<Response<Full<Bytes>>, RetryError> {
    RetryLayer::new(policy.build().unwrap())
        .layer(gateway.clone())
        .oneshot(request)
        .await
}

fn policy() -> RetryPolicyBuilder<impl tollway_retry::Seed> {
    RetryPolicy::builder().seed(|| 42)
}

fn secs(secs: u64) -> Duration {
    Duration::from_secs(secs)
}

fn millis(ms: u64) -> Duration {
    Duration::from_millis(ms)
}

fn story(response: &Response<Full<Bytes>>) -> &Attempts {
    Attempts::of(response.extensions()).expect("a story")
}

/// Every cell of the table: how many attempts a first answer leads to.
#[tokio::test(start_paused = true)]
async fn the_verdict_table_holds_in_every_cell() {
    let cells: [(&str, fn() -> Answer, [usize; 3]); 8] = [
        // What came, then the attempts of a GET, a POST with a key, a POST.
        ("done", || verdict(Verdict::Done), [1, 1, 1]),
        ("rejected", || verdict(Verdict::Rejected), [1, 1, 1]),
        ("a plain 402", || Ok(status(402)), [1, 1, 1]),
        ("a plain 429", || Ok(status(429)), [2, 2, 2]),
        ("a plain 500", || Ok(status(500)), [2, 2, 1]),
        ("connect error", || error(Verdict::NO_EFFECT), [2, 2, 2]),
        ("reset", || error(Verdict::Unknown), [2, 2, 1]),
        ("an error without a fault", || Err("?".into()), [2, 2, 1]),
    ];
    for (name, answer, attempts) in cells {
        let requests = [get(), post_with_key(), post()];
        for (request, expected) in requests.into_iter().zip(attempts) {
            let text = format!("{name}, {}", request.method());
            let gateway = Gateway::answering([answer()]);
            let _ = call(policy(), &gateway, request).await;
            assert_eq!(gateway.made(), expected, "{text}");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn every_attempt_is_the_same_request_and_knows_its_number() {
    let gateway = Gateway::answering([Ok(status(503)), Ok(status(503)), Ok(status(503))]);
    let mut request = post_with_key();
    request.extensions_mut().insert(Priority::High);
    let response = call(policy(), &gateway, request).await.unwrap();
    assert_eq!(response.status(), StatusCode::OK);
    let inner = gateway.0.lock().unwrap();
    let numbers: Vec<_> = inner
        .seen
        .iter()
        .map(|seen| seen.attempt.number())
        .collect();
    assert_eq!(numbers, [1, 2, 3, 4]);
    for seen in &inner.seen {
        assert_eq!(seen.method, Method::POST);
        assert_eq!(seen.headers["idempotency-key"], "order-1");
        assert_eq!(seen.body, "amount=1");
        assert_eq!(seen.priority, Priority::High);
    }
}

#[tokio::test(start_paused = true)]
async fn a_stale_connection_is_retried_at_once_but_only_once_at_once() {
    let gateway = Gateway::answering([error(Verdict::NO_EFFECT), error(Verdict::NO_EFFECT)]);
    call(policy(), &gateway, post()).await.unwrap();
    let gaps = gateway.gaps();
    assert_eq!(gaps[0], Duration::ZERO);
    assert!(gaps[1] > Duration::ZERO && gaps[1] <= secs(1), "{gaps:?}");
}

/// `Retry-After` was ignored elsewhere, or cut to whole seconds and so to 0.
#[tokio::test(start_paused = true)]
async fn a_delay_asked_for_is_kept_to_the_millisecond_with_jitter_on_top() {
    for asked in [millis(1), millis(19_001), secs(60)] {
        let throttled = not_executed(Some(asked), Scope::Unspecified);
        let gateway = Gateway::answering([verdict(throttled)]);
        call(RetryPolicy::builder(), &gateway, post())
            .await
            .unwrap();
        let gap = gateway.gaps()[0];
        assert!(gap >= asked && gap <= asked + millis(501), "{gap:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn retry_after_is_kept_on_an_unknown_outcome_too() {
    let gateway = Gateway::answering([advice(503, RetryAdvice::After(secs(7)))]);
    call(policy(), &gateway, post_with_key()).await.unwrap();
    assert!(gateway.gaps()[0] >= secs(7));
    // And from the bare header, where nobody has classified.
    let mut plain = status(503);
    plain
        .headers_mut()
        .insert("retry-after", "7".parse().unwrap());
    let gateway = Gateway::answering([Ok(plain)]);
    call(policy(), &gateway, get()).await.unwrap();
    assert!(gateway.gaps()[0] >= secs(7));
}

#[tokio::test(start_paused = true)]
async fn a_delay_beyond_the_policy_s_returns_at_once_and_says_how_long() {
    let throttled = not_executed(Some(secs(61)), Scope::GlobalRate);
    let gateway = Gateway::answering([verdict(throttled)]);
    let start = Instant::now();
    let response = call(policy(), &gateway, post()).await.unwrap();
    assert_eq!(start.elapsed(), Duration::ZERO);
    assert_eq!(story(&response).stop(), Stop::DelayTooLong);
    assert_eq!(story(&response).would_have_waited(), Some(secs(61)));
    assert_eq!(Verdict::of_response(&response), throttled);
}

#[tokio::test(start_paused = true)]
async fn a_delay_that_would_outlast_the_deadline_ends_the_call_now() {
    let throttled = not_executed(Some(secs(10)), Scope::Unspecified);
    let gateway = Gateway::answering([verdict(throttled)]);
    let mut request = post();
    let start = Instant::now();
    request
        .extensions_mut()
        .insert(Deadline::at(start + secs(10)));
    let response = call(policy(), &gateway, request).await.unwrap();
    assert_eq!(start.elapsed(), Duration::ZERO);
    assert_eq!(story(&response).stop(), Stop::Deadline);
    assert!(story(&response).would_have_waited() >= Some(secs(10)));
}

/// A limiter below that refuses is understood by its fault alone.
#[tokio::test(start_paused = true)]
async fn a_permit_refused_for_the_deadline_isn_t_asked_for_again() {
    let refused = Fault::new(not_executed(Some(secs(30)), Scope::Unspecified));
    let gateway = Gateway::answering([Err(refused.in_phase(Phase::Permit).into())]);
    let mut request = post();
    request
        .extensions_mut()
        .insert(Deadline::at(Instant::now() + secs(20)));
    let error = call(policy(), &gateway, request).await.unwrap_err();
    assert!(error.is_not_executed());
    assert_eq!(error.attempts().stop(), Stop::Deadline);
    assert_eq!(gateway.made(), 1);
}

#[tokio::test(start_paused = true)]
async fn the_provider_s_advice_goes_beyond_the_verdict() {
    let gateway = Gateway::answering([advice(503, RetryAdvice::Never)]);
    let response = call(policy(), &gateway, get()).await.unwrap();
    assert_eq!(
        (gateway.made(), story(&response).stop()),
        (1, Stop::Advised)
    );

    let once = || advice(425, RetryAdvice::Once);
    let gateway = Gateway::answering([once(), once()]);
    let response = call(policy(), &gateway, get()).await.unwrap();
    assert_eq!(
        (gateway.made(), story(&response).stop()),
        (2, Stop::Advised)
    );
}

#[tokio::test(start_paused = true)]
async fn a_key_in_the_extensions_makes_a_repeat_safe_while_it_lives() {
    for (life, attempts) in [(secs(3600), 2), (Duration::ZERO, 1)] {
        let gateway = Gateway::answering([Ok(status(502))]);
        let key: IdempotencyKey = "RequestId-7".parse().unwrap();
        let mut request = post();
        let end = Instant::now() + life;
        request
            .extensions_mut()
            .insert(key.clone().valid_until(end));
        let response = call(policy(), &gateway, request).await.unwrap();
        assert_eq!(gateway.made(), attempts);
        if attempts == 1 {
            assert_eq!(story(&response).stop(), Stop::KeyExpired);
            assert_eq!(Verdict::of(response.extensions()), Some(Verdict::Unknown));
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_retry_after_the_life_of_a_header_s_key_is_refused() {
    let gateway = Gateway::answering([Ok(status(503)), Ok(status(503))]).taking(secs(60));
    let policy = policy().key_life(secs(100));
    let response = call(policy, &gateway, post_with_key()).await.unwrap();
    assert_eq!(gateway.made(), 2);
    assert_eq!(story(&response).stop(), Stop::KeyExpired);
}

#[tokio::test(start_paused = true)]
async fn no_header_is_a_key_where_the_provider_honours_none() {
    let gateway = Gateway::answering([Ok(status(503))]);
    let response = call(policy().key_headers([]), &gateway, post_with_key())
        .await
        .unwrap();
    assert_eq!((gateway.made(), story(&response).stop()), (1, Stop::NoKey));
}

#[tokio::test(start_paused = true)]
async fn an_unknown_outcome_is_marked_with_its_key() {
    let gateway = Gateway::answering([Ok(status(503)), Ok(status(503))]);
    let response = call(policy().max_attempts(2), &gateway, post_with_key())
        .await
        .unwrap();
    assert_eq!(response.status(), StatusCode::SERVICE_UNAVAILABLE);
    assert_eq!(Verdict::of(response.extensions()), Some(Verdict::Unknown));
    let key = IdempotencyKey::of(response.extensions()).unwrap();
    assert_eq!(key.as_str(), "order-1");

    let gateway = Gateway::answering([error(Verdict::Unknown)]);
    let error = call(policy().max_attempts(1), &gateway, post_with_key())
        .await
        .unwrap_err();
    assert!(error.is_unknown());
    assert_eq!(error.idempotency_key().unwrap().as_str(), "order-1");
    assert_eq!(
        error.to_string(),
        "outcome unknown after 1 attempt, as many as the policy allows; \
         look it up before repeating it"
    );
}

/// The first attempt may have had its effect: a later one that certainly hadn't
/// doesn't change that.
#[tokio::test(start_paused = true)]
async fn an_unknown_outcome_stays_unknown_after_a_refusal() {
    let answers = || [error(Verdict::Unknown), Ok(status(429))];
    let gateway = Gateway::answering(answers());
    let response = call(policy().max_attempts(2), &gateway, post_with_key())
        .await
        .unwrap();
    assert_eq!(response.status(), StatusCode::TOO_MANY_REQUESTS);
    assert_eq!(Verdict::of(response.extensions()), Some(Verdict::Unknown));

    let gateway = Gateway::answering([Ok(status(500)), error(Verdict::NO_EFFECT)]);
    let error = call(policy().max_attempts(2), &gateway, post_with_key())
        .await
        .unwrap_err();
    assert!(error.is_unknown());
    assert_eq!(Verdict::of_error(&error), Verdict::Unknown);
    let fault = Fault::find(&error).unwrap();
    assert_eq!(fault.phase(), Some(Phase::Connect));
}

#[tokio::test(start_paused = true)]
async fn the_answer_tells_its_story() {
    let gateway = Gateway::answering([error(Verdict::NO_EFFECT), Ok(status(503))]).taking(secs(2));
    let response = call(policy(), &gateway, post_with_key()).await.unwrap();
    let story = story(&response);
    assert_eq!((story.made(), story.stop()), (3, Stop::Final));
    let records = story.records();
    let Outcome::Error(text) = &records[0].outcome else {
        panic!("{records:?}");
    };
    assert_eq!(
        &**text,
        "certainly not executed (connecting): connection reset"
    );
    assert_eq!(
        records[1].outcome,
        Outcome::Status(StatusCode::SERVICE_UNAVAILABLE)
    );
    assert_eq!(records[2].outcome, Outcome::Status(StatusCode::OK));
    let verdicts: Vec<_> = records.iter().map(|record| record.verdict).collect();
    assert_eq!(
        verdicts,
        [Verdict::NO_EFFECT, Verdict::Unknown, Verdict::Done]
    );
    assert!(records.iter().all(|record| record.duration == secs(2)));
    assert_eq!(
        (records[0].delay, records[1].delay),
        (Duration::ZERO, Duration::ZERO)
    );
    assert!(records[2].delay > Duration::ZERO);
}

#[tokio::test(start_paused = true)]
async fn a_call_that_needs_no_retry_has_no_story() {
    for code in [200, 402] {
        let gateway = Gateway::answering([Ok(status(code))]);
        let response = call(policy(), &gateway, post()).await.unwrap();
        assert!(response.extensions().is_empty());
    }
}

#[tokio::test(start_paused = true)]
async fn a_spent_budget_is_visible_in_the_answer() {
    let budget = Budget::builder()
        .capacity(1)
        .per_second(0.0)
        .build()
        .unwrap();
    let gateway = Gateway::answering((0..9).map(|_| Ok(status(503))));
    let policy = policy().budget(budget.clone());
    let response = call(policy, &gateway, get()).await.unwrap();
    assert_eq!((gateway.made(), story(&response).stop()), (2, Stop::Budget));
    assert_eq!(budget.available(), Some(0.0));
}

#[tokio::test(start_paused = true)]
async fn a_retry_that_succeeds_pays_back() {
    let budget = Budget::default();
    let gateway = Gateway::answering([Ok(status(503))]);
    call(policy().budget(budget.clone()), &gateway, get())
        .await
        .unwrap();
    assert_eq!(gateway.made(), 2);
    assert_eq!(budget.available(), Some(100.0));
}

#[tokio::test(start_paused = true)]
async fn a_call_dropped_in_its_back_off_gives_its_token_back() {
    let budget = Budget::default();
    let gateway = Gateway::answering([Ok(status(503))]);
    let policy = policy()
        .budget(budget.clone())
        .back_off(BackOff::exponential(secs(100), secs(100)).unwrap());
    {
        let call = call(policy, &gateway, get());
        let mut call = std::pin::pin!(call);
        assert!(futures_poll(call.as_mut()).await.is_pending());
        assert_eq!(budget.available(), Some(99.0));
    }
    assert_eq!(budget.available(), Some(100.0));
}

async fn futures_poll<F: Future>(mut future: Pin<&mut F>) -> Poll<F::Output> {
    std::future::poll_fn(|cx| {
        // Once for the attempt, once for the drain: nothing is left to do then
        // but to wait.
        let _ = future.as_mut().poll(cx);
        Poll::Ready(future.as_mut().poll(cx))
    })
    .await
}
