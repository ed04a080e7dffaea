//! Rate limit fields in any bytes: no panic, and never looser than configured.
#![no_main]
// There is no runtime here whose clock could be paused.
#![allow(clippy::disallowed_methods)]

use std::time::Instant;

use http::{HeaderName, HeaderValue, Method, Response};
use libfuzzer_sys::fuzz_target;
use tollway_limit::{Call, Limits, Quota, Shape};

const NAMES: [&str; 5] = [
    "ratelimit",
    "ratelimit-policy",
    "x-ratelimit-limit",
    "x-ratelimit-remaining",
    "x-ratelimit-reset",
];

fuzz_target!(|fields: Vec<(u8, &[u8])>| {
    let limits = Limits::builder()
        .every_call(Quota::per_hour(3).shape(Shape::Burst))
        .build()
        .expect("a sensible quota");
    let call = Call::new(&Method::GET, "/");
    let now = Instant::now();
    let mut permit = limits.try_acquire(&call, now).expect("the first permit");
    permit.sent();
    let mut response = Response::new(());
    for (name, value) in fields {
        let name = HeaderName::from_static(NAMES[usize::from(name) % NAMES.len()]);
        if let Ok(value) = HeaderValue::from_bytes(value) {
            response.headers_mut().append(name, value);
        }
    }
    permit.answered(&response);
    let mut granted = 1;
    while let Ok(mut permit) = limits.try_acquire(&call, Instant::now()) {
        permit.sent();
        permit.answered(&Response::new(()));
        granted += 1;
        assert!(granted <= 3, "a field loosened the quota");
    }
});
