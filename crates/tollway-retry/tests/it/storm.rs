//! An outage, and what it sees of the retries.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::time::Instant;
use tollway_core::BoxError;
use tollway_retry::{RetryLayer, RetryPolicy};
use tower::{Layer, ServiceExt};

use crate::support::*;

const OUTAGE: Duration = Duration::from_secs(60);

/// The requests that a gateway sees, second by second, which answers `status` to
/// everything for a minute, while `per_second` calls are made at an even pace;
/// and the calls that succeed, by the second in which they were made.
async fn storm(status: u16, per_second: u32) -> (Vec<u32>, Vec<u32>) {
    let gateway = Gateway::default();
    let start = Instant::now();
    gateway.0.lock().unwrap().down = Some((status, start + OUTAGE));
    let calls = AtomicU64::new(0);
    let seed = move || calls.fetch_add(1, Ordering::Relaxed);
    let layer = RetryLayer::new(RetryPolicy::builder().seed(seed).build().unwrap());
    let seconds = 70;
    let mut calls = Vec::new();
    let mut pace = tokio::time::interval(Duration::from_secs(1) / per_second);
    for n in 0..seconds * per_second {
        pace.tick().await;
        let service = layer.layer(gateway.clone());
        let call = tokio::spawn(service.oneshot(get()));
        calls.push((n / per_second, call));
    }
    let mut succeeded = vec![0; seconds as usize];
    for (second, call) in calls {
        let response = call.await.unwrap().map_err(BoxError::from).unwrap();
        if response.status().is_success() {
            succeeded[second as usize] += 1;
        }
    }
    let mut seen = vec![0; seconds as usize];
    for request in &gateway.0.lock().unwrap().seen {
        let second = usize::try_from((request.at - start).as_secs()).unwrap();
        if let Some(seen) = seen.get_mut(second) {
            *seen += 1;
        }
    }
    (seen, succeeded)
}

/// What the gateway sees beyond the fresh load of the last fifty seconds.
async fn retries(status: u16, per_second: u32) -> u32 {
    let (seen, _) = storm(status, per_second).await;
    let all: u32 = seen[10..60].iter().sum();
    let fresh = per_second * 50;
    let load = f64::from(all) / f64::from(fresh);
    println!("{per_second}/s, {status}: {load:.3} of the fresh load");
    assert!(all >= fresh && all * 10 <= fresh * 12, "{all} for {fresh}");
    all - fresh
}

#[tokio::test(start_paused = true)]
async fn an_outage_sees_at_most_a_fifth_more_than_the_fresh_load() {
    for per_second in [10, 50, 200] {
        assert!(retries(503, per_second).await <= 50);
    }
}

/// Half the price makes it two retries a second, where a 503 sees one.
#[tokio::test(start_paused = true)]
async fn so_does_a_provider_that_throttles_everything() {
    for per_second in [10, 50, 200] {
        assert!(retries(429, per_second).await <= 100);
    }
}

async fn recovers(status: u16) {
    for per_second in [10, 50, 200] {
        let (_, succeeded) = storm(status, per_second).await;
        assert!(succeeded[..50].iter().all(|&n| n == 0));
        assert!(
            succeeded[62..].iter().all(|&n| n == per_second),
            "{succeeded:?}"
        );
        println!("{per_second}/s: {:?}", &succeeded[58..64]);
    }
}

#[tokio::test(start_paused = true)]
async fn the_full_rate_is_back_within_two_seconds() {
    recovers(503).await;
    recovers(429).await;
}
