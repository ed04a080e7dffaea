//! A scripted gateway, and what the tests say to it.

use std::collections::VecDeque;
use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, Method, Request, Response};
use http_body_util::{BodyExt, Full};
use tokio::time::Instant;
use tollway_core::{Attempt, BoxError, Fault, Phase, Priority, RetryAdvice, Scope, Verdict};
use tollway_retry::{
    Attempts, ReplayBody, RetryError, RetryLayer, RetryPolicy, RetryPolicyBuilder,
};
use tower::{Layer, Service, ServiceExt};

pub(crate) type Answer = Result<Response<Full<Bytes>>, BoxError>;

/// Gives the answers it was told, in order, and then 200s; keeps what it saw.
#[derive(Clone, Default)]
pub(crate) struct Gateway(pub(crate) Arc<Mutex<Inner>>);

#[derive(Default)]
pub(crate) struct Inner {
    answers: VecDeque<Answer>,
    /// How long each attempt takes; then all take `takes`.
    lasting: VecDeque<Duration>,
    takes: Duration,
    /// Everything is answered with this status until then.
    pub(crate) down: Option<(u16, Instant)>,
    pub(crate) seen: Vec<Seen>,
    under_way: usize,
    ended: usize,
}

#[derive(Debug)]
pub(crate) struct Seen {
    pub(crate) at: Instant,
    pub(crate) attempt: Attempt,
    pub(crate) method: Method,
    pub(crate) headers: HeaderMap,
    pub(crate) priority: Priority,
    pub(crate) body: Bytes,
}

impl Gateway {
    pub(crate) fn answering(answers: impl IntoIterator<Item = Answer>) -> Self {
        let gateway = Self::default();
        gateway.answer(answers);
        gateway
    }

    pub(crate) fn answer(&self, answers: impl IntoIterator<Item = Answer>) {
        self.0.lock().unwrap().answers.extend(answers);
    }

    pub(crate) fn taking(self, time: Duration) -> Self {
        self.0.lock().unwrap().takes = time;
        self
    }

    pub(crate) fn lasting(times: impl IntoIterator<Item = Duration>) -> Self {
        let gateway = Self::default();
        gateway.0.lock().unwrap().lasting.extend(times);
        gateway
    }

    pub(crate) fn made(&self) -> usize {
        self.0.lock().unwrap().seen.len()
    }

    pub(crate) fn under_way(&self) -> usize {
        self.0.lock().unwrap().under_way
    }

    /// The attempts that were dropped before they ended.
    pub(crate) fn dropped(&self) -> usize {
        let inner = self.0.lock().unwrap();
        inner.seen.len() - inner.ended - inner.under_way
    }

    /// The waits between the attempts.
    pub(crate) fn gaps(&self) -> Vec<Duration> {
        let inner = self.0.lock().unwrap();
        inner.seen.windows(2).map(|w| w[1].at - w[0].at).collect()
    }
}

struct UnderWay(Gateway);

impl Drop for UnderWay {
    fn drop(&mut self) {
        self.0.0.lock().unwrap().under_way -= 1;
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
                inner.under_way += 1;
                inner.seen.push(Seen {
                    at,
                    attempt: Attempt::of(&parts.extensions),
                    priority: Priority::of(&parts.extensions),
                    method: parts.method,
                    headers: parts.headers,
                    body,
                });
                let answer = match inner.down {
                    Some((code, end)) if at < end => Some(Ok(status(code))),
                    _ => inner.answers.pop_front(),
                };
                (answer, inner.lasting.pop_front().unwrap_or(inner.takes))
            };
            let under_way = UnderWay(gateway);
            if !takes.is_zero() {
                tokio::time::sleep(takes).await;
            }
            under_way.0.0.lock().unwrap().ended += 1;
            answer.unwrap_or_else(|| Ok(status(200)))
        })
    }
}

pub(crate) fn status(code: u16) -> Response<Full<Bytes>> {
    Response::builder()
        .status(code)
        .body(Full::from("answer"))
        .unwrap()
}

pub(crate) fn verdict(verdict: Verdict) -> Answer {
    let mut response = status(if verdict == Verdict::Done { 200 } else { 503 });
    response.extensions_mut().insert(verdict);
    Ok(response)
}

pub(crate) fn not_executed(retry_after: Option<Duration>, scope: Scope) -> Verdict {
    Verdict::NotExecuted { retry_after, scope }
}

pub(crate) fn advice(code: u16, advice: RetryAdvice) -> Answer {
    let mut response = status(code);
    let verdict = Verdict::of_status(response.status());
    response.extensions_mut().insert(verdict);
    response.extensions_mut().insert(advice);
    Ok(response)
}

pub(crate) fn error(verdict: Verdict) -> Answer {
    Err(Fault::new(verdict)
        .in_phase(Phase::Connect)
        .caused_by(io::Error::from(io::ErrorKind::ConnectionReset))
        .into())
}

pub(crate) fn get() -> Request<Full<Bytes>> {
    Request::get("/v1/charges/1").body(Full::default()).unwrap()
}

pub(crate) fn post() -> Request<Full<Bytes>> {
    Request::post("/v1/charges")
        .body(Full::from("amount=1"))
        .unwrap()
}

pub(crate) fn post_with_key() -> Request<Full<Bytes>> {
    let mut request = post();
    let key = "order-1".parse().unwrap();
    request.headers_mut().insert("idempotency-key", key);
    request
}

pub(crate) async fn call(
    policy: RetryPolicyBuilder<impl tollway_retry::Seed>,
    gateway: &Gateway,
    request: Request<Full<Bytes>>,
) -> Result<Response<Full<Bytes>>, RetryError> {
    RetryLayer::new(policy.build().unwrap())
        .layer(gateway.clone())
        .oneshot(request)
        .await
}

pub(crate) fn policy() -> RetryPolicyBuilder<impl tollway_retry::Seed> {
    RetryPolicy::builder().seed(|| 42)
}

pub(crate) fn secs(secs: u64) -> Duration {
    Duration::from_secs(secs)
}

pub(crate) fn millis(ms: u64) -> Duration {
    Duration::from_millis(ms)
}

pub(crate) fn story(response: &Response<Full<Bytes>>) -> &Attempts {
    Attempts::of(response.extensions()).expect("a story")
}
