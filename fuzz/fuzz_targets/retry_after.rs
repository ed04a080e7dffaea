//! `Retry-After` in any bytes: no panic, and a delay that an instant can take.
#![no_main]

use std::time::{Duration, SystemTime};

use http::header::{DATE, RETRY_AFTER};
use http::{HeaderMap, HeaderValue};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: (u32, &[u8], &[u8])| {
    let (now, retry_after, date) = data;
    let mut headers = HeaderMap::new();
    for (name, bytes) in [(RETRY_AFTER, retry_after), (DATE, date)] {
        if let Ok(value) = HeaderValue::from_bytes(bytes) {
            headers.insert(name, value);
        }
    }
    let now = SystemTime::UNIX_EPOCH + Duration::from_secs(now.into());
    if let Some(delay) = tollway_core::retry_after(&headers, now) {
        assert!(delay <= Duration::from_secs(u32::MAX.into()));
        assert_eq!(delay.subsec_nanos() % 1_000_000, 0, "whole milliseconds");
    }
});
