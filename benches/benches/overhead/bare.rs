//! The call, and the bare service that answers it.

use std::convert::Infallible;
use std::future::Future;
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll};

use bytes::Bytes;
use http::header::{AUTHORIZATION, CONTENT_TYPE, USER_AGENT};
use http::{HeaderName, HeaderValue, Request, Response, Uri};
use http_body_util::Full;
use tower::Service;

pub(crate) type Body = Full<Bytes>;

/// Not inlined, and handed on through a black box, so that it costs the same in
/// every case: what is just written and at once moved in larger words stalls the
/// processor, or not, by chance.
#[inline(never)]
pub(crate) fn request() -> Request<Body> {
    const BODY: Bytes = Bytes::from_static(&[b'x'; 100]);
    Request::post(Uri::from_static("https://api.example.com/v1/payouts"))
        .header(CONTENT_TYPE, HeaderValue::from_static("application/json"))
        .header(AUTHORIZATION, HeaderValue::from_static("Bearer nobody"))
        .header(USER_AGENT, HeaderValue::from_static("checkout/1.0"))
        .body(Full::new(BODY))
        .expect("a valid request")
}

/// The same with a key of the caller's, another one each time.
pub(crate) fn with_key() -> Request<Body> {
    const KEY: HeaderName = HeaderName::from_static("idempotency-key");
    static NEXT: AtomicU64 = AtomicU64::new(0);
    let key = format!("payout-{:016}", NEXT.fetch_add(1, Ordering::Relaxed));
    let mut request = request();
    let key = HeaderValue::try_from(key).expect("a valid header");
    request.headers_mut().insert(KEY, key);
    request
}

/// The bare service: it answers at once, or is `PENDING` once before.
#[derive(Clone, Copy)]
pub(crate) struct Bare<const PENDING: bool>;

pub(crate) struct Answer {
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
