//! Keys in any bytes: no panic, and what is sent is what was checked.
#![no_main]

use std::convert::Infallible;
use std::future::Future;
use std::pin::pin;
use std::task::{Context, Poll, Waker};

use bytes::Bytes;
use http::{HeaderName, HeaderValue, Request, Response};
use http_body_util::Full;
use libfuzzer_sys::fuzz_target;
use tollway_idempotency::{Dialect, IdempotencyKeyLayer};
use tower::{Layer, ServiceExt, service_fn};

const NAME: HeaderName = HeaderName::from_static("idempotency-key");

fuzz_target!(|data: (u8, &[u8], &[u8])| {
    let (dialect, header, body) = data;
    let dialect = match dialect % 4 {
        0 => Dialect::header(NAME),
        1 => Dialect::quoted_header(NAME),
        2 => Dialect::body_field("id"),
        _ => Dialect::inserted_body_field("id"),
    };
    let service = IdempotencyKeyLayer::new()
        .dialect(dialect)
        .layer(service_fn(|_| async {
            Ok::<_, Infallible>(Response::new(()))
        }));
    let mut request = Request::post("/")
        .body(Full::new(Bytes::copy_from_slice(body)))
        .expect("a request");
    if let Ok(value) = HeaderValue::from_bytes(header) {
        request.headers_mut().insert(NAME, value);
    }
    let call = pin!(service.oneshot(request));
    // Nothing in it waits.
    let poll = call.poll(&mut Context::from_waker(Waker::noop()));
    assert!(matches!(poll, Poll::Ready(_)));
});
