//! Calls that need several quotas, where each is used up by calls that don't need
//! the others.
#![cfg(feature = "tokio")]
#![allow(clippy::unwrap_used, reason = "a test")]

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use http::Method;
use proptest::prelude::*;
use tokio::time::{sleep, timeout};
use tollway_core::{Endpoint, Priority};
use tollway_limit::{Call, CountFrom, Limits, Quota, Shape};

const fn millis(millis: u64) -> Duration {
    Duration::from_millis(millis)
}

const BOTH: &str = "/both";

/// Two quotas, each with an endpoint of its own and one that needs both.
fn limits(first: Quota, second: Quota) -> Limits {
    let with_both = |path: &'static str| [BOTH, path].map(Endpoint::get);
    Limits::builder()
        .endpoints(with_both("/first"), first)
        .endpoints(with_both("/second"), second)
        .build()
        .unwrap()
}

async fn attempt(limits: &Limits, path: &str, priority: Priority, holds: Duration) {
    let call = Call::new(&Method::GET, path).priority(priority);
    let permit = limits.acquire(&call).await.unwrap();
    sleep(holds).await;
    drop(permit);
}

/// So many who never stop calling. Says how many attempts they have made.
fn rivals(
    limits: &Limits,
    path: &'static str,
    priority: Priority,
    count: u64,
    holds: Duration,
) -> Arc<AtomicUsize> {
    let made = Arc::new(AtomicUsize::new(0));
    for rival in 0..count {
        let (limits, made) = (limits.clone(), Arc::clone(&made));
        tokio::spawn(async move {
            // Not all in step.
            sleep(millis(rival)).await;
            loop {
                attempt(&limits, path, priority, holds).await;
                made.fetch_add(1, Ordering::Relaxed);
            }
        });
    }
    made
}

fn run<T>(test: impl Future<Output = T>) -> T {
    let mut runtime = tokio::runtime::Builder::new_current_thread();
    let runtime = runtime.enable_time().start_paused(true).build().unwrap();
    runtime.block_on(test)
}

fn quota() -> impl Strategy<Value = Quota> {
    let window =
        (1..12u32, 20..300u64).prop_map(|(limit, window)| Quota::new(limit, millis(window)));
    let rate = prop_oneof![
        2 => window.clone(),
        2 => window.prop_map(|quota| quota.shape(Shape::Burst)),
        1 => (1..5u32).prop_map(Quota::concurrent),
        1 => (1..12u32, 20..300u64, 1..4u32)
            .prop_map(|(limit, per, burst)| Quota::rate(limit, millis(per)).burst(burst)),
    ];
    let in_flight = proptest::option::weighted(0.3, 1..4u32);
    let margin = proptest::option::weighted(0.2, 0..60u64);
    (rate, in_flight, margin).prop_map(|(mut quota, in_flight, margin)| {
        if let Some(in_flight) = in_flight {
            quota = quota.in_flight(in_flight);
        }
        if let Some(margin) = margin {
            let margin = millis(margin);
            quota = quota.count_from(CountFrom::Sending { margin });
        }
        quota
    })
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: 60,
        failure_persistence: None,
        ..ProptestConfig::default()
    })]

    #[test]
    fn whoever_needs_two_quotas_that_others_use_up_has_its_turn(
        first in quota(),
        second in quota(),
        holds in (1..40u64, 1..40u64),
        lower in any::<bool>(),
    ) {
        run(async {
            let limits = limits(first, second);
            let rival = if lower { Priority::Low } else { Priority::Normal };
            let _rivals = [
                rivals(&limits, "/first", rival, 12, millis(holds.0)),
                rivals(&limits, "/second", rival, 12, millis(holds.1)),
            ];
            sleep(millis(10_000)).await;
            for _ in 0..5 {
                let both = attempt(&limits, BOTH, Priority::Normal, millis(5));
                timeout(millis(60_000), both).await.unwrap();
            }
        });
    }
}

fn made(attempts: &AtomicUsize) -> usize {
    attempts.swap(0, Ordering::Relaxed)
}

/// A place that is kept costs the others no more than it is worth.
#[test]
fn those_who_need_two_quotas_leave_none_unused() {
    let burst = Quota::new(10, millis(100)).shape(Shape::Burst);
    let paced = Quota::new(11, millis(100));
    let slow = Quota::new(11, millis(1000));
    let few = Quota::concurrent(3);
    for (first, second) in [
        (burst, burst),
        (paced, paced),
        (paced, slow),
        (few, few),
        (few, paced),
        (burst, few),
    ] {
        run(async {
            let limits = limits(first, second);
            let holds = millis(20);
            let firsts = rivals(&limits, "/first", Priority::Normal, 15, holds);
            let seconds = rivals(&limits, "/second", Priority::Normal, 15, holds);
            let (firsts, seconds) = (&*firsts, &*seconds);
            let all = async |boths: &AtomicUsize| {
                sleep(millis(2000)).await;
                let _before = [firsts, seconds, boths].map(made);
                sleep(millis(20_000)).await;
                let both = made(boths);
                [firsts, seconds].map(|rivals| made(rivals) + both)
            };
            let alone = all(&AtomicUsize::new(0)).await;
            let boths = rivals(&limits, BOTH, Priority::Normal, 5, holds);
            let together = all(&boths).await;
            for (alone, together) in alone.into_iter().zip(together) {
                assert!(
                    100 * together >= 97 * alone,
                    "{together} of {alone}: {first:?}, {second:?}"
                );
            }
        });
    }
}
