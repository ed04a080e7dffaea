//! Any body under the rules of every kind: no panic, whatever it says.
#![no_main]

use std::time::SystemTime;

use http::{HeaderMap, StatusCode};
use libfuzzer_sys::fuzz_target;
use tollway_core::{Answer, BodyRule, Classify, Rules, Test, Verdict};

fuzz_target!(|body: &[u8]| {
    let rules = Rules::new()
        .body(BodyRule::new(429..=429, "message", Test::Present).delay_after("Try again in"))
        .body(BodyRule::new(
            429..=429,
            "errors.0.errorCode",
            Test::Is("C".into()),
        ))
        .body(
            BodyRule::new(200..=299, "responseCode", Test::IsNot("0".into()))
                .means(Verdict::Rejected),
        );
    let headers = HeaderMap::new();
    let statuses = [StatusCode::OK, StatusCode::TOO_MANY_REQUESTS];
    for (status, broken) in statuses.into_iter().zip([true, false]) {
        let answer = Answer {
            status,
            headers: &headers,
            body,
            broken,
            clock: || SystemTime::UNIX_EPOCH,
        };
        let _ = rules.classify(&answer);
    }
});
