//! Limits that change while calls wait, fly and are lent permits.
#![cfg(feature = "tokio")]
#![allow(clippy::unwrap_used, reason = "a test")]

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock, mpsc};
use std::thread;
use std::time::Duration;

use http::Method;
use tokio::time::{Instant, advance};
use tokio_test::{assert_pending, assert_ready, task};
use tollway_core::{Endpoint, Scope, Verdict};
use tollway_limit::{Call, Key, Limits, LimitsBuilder, Quota, Shape};

const HOUR: Duration = Duration::from_secs(3600);

const fn millis(millis: u64) -> Duration {
    Duration::from_millis(millis)
}

fn call(path: &str) -> Call<'_> {
    Call::new(&Method::GET, path)
}

fn every(quota: Quota) -> LimitsBuilder {
    Limits::builder().every_call(quota)
}

fn burst(limit: u32, window: Duration) -> Quota {
    Quota::new(limit, window).shape(Shape::Burst)
}

/// How many of so many calls may go at once.
fn at_once(limits: &Limits, calls: u32) -> usize {
    let now = Instant::now().into_std();
    let permits = (0..calls).filter_map(|_| limits.try_acquire(&call("/"), now).ok());
    permits.count()
}

/// How long the next permit takes.
async fn wait(limits: &Limits) -> Duration {
    let start = Instant::now();
    drop(limits.acquire(&call("/")).await.unwrap());
    start.elapsed()
}

/// Whatever held them up before: they don't come as a herd.
#[tokio::test(start_paused = true)]
async fn whoever_waits_is_held_to_rules_that_are_new() {
    let quota = burst(5, HOUR);
    let keyed = || Limits::builder().keyed(Key::path(), quota);
    let each = || Limits::builder().each_endpoint(quota);
    let one = || Limits::builder().endpoint(Endpoint::get("/"), quota);
    for (old, new, expected) in [
        (every(quota), keyed(), 5),
        (keyed(), every(quota), 5),
        // The old rule stays, and is full.
        (keyed(), keyed().every_call(quota), 0),
        (one(), every(quota), 5),
        (every(quota), one(), 5),
        (each().known_endpoints([Endpoint::get("/")]), each(), 5),
    ] {
        let limits = old.build().unwrap();
        assert_eq!(at_once(&limits, 10), 5);
        let waiting: Vec<_> = (0..20)
            .map(|number| {
                let limits = limits.clone();
                tokio::spawn(async move {
                    drop(limits.acquire(&call("/")).await.unwrap());
                    (Instant::now(), number)
                })
            })
            .collect();
        advance(millis(1)).await;
        limits.reconfigure(new).unwrap();
        let start = Instant::now();
        let mut granted = Vec::new();
        for waiting in waiting {
            granted.push(waiting.await.unwrap());
        }
        assert!(granted.is_sorted(), "{granted:?}");
        let at_once = granted.iter().filter(|(at, _)| *at == start).count();
        assert_eq!(at_once, expected);
        assert!(start.elapsed() >= 3 * HOUR - millis(1));
        assert_eq!(limits.snapshot().waiting, 0);
    }
}

/// Here in the middle of a look-up.
#[tokio::test(start_paused = true)]
async fn whoever_asks_while_rules_change_is_held_to_those_that_are_new() {
    let slot = Arc::new(OnceLock::<Limits>::new());
    let limits = Arc::clone(&slot);
    let key = Key::computed("changes the rules", move |_| {
        let rules = every(Quota::concurrent(1));
        limits.get().unwrap().reconfigure(rules).unwrap();
        Some("key".into())
    });
    let limits = Limits::builder().keyed(key, Quota::concurrent(9));
    let limits = slot.get_or_init(|| limits.build().unwrap());
    let _permit = limits.acquire(&call("/")).await.unwrap();
    assert_eq!(limits.snapshot().quotas[0].in_flight, 1);
    assert_eq!(at_once(limits, 1), 0);
}

/// Rules that stay keep those who wait in their places.
#[tokio::test(start_paused = true)]
async fn whoever_waits_keeps_its_place_where_numbers_change() {
    let limits = every(burst(1, HOUR)).build().unwrap();
    assert_eq!(at_once(&limits, 1), 1);
    let call = call("/");
    let mut first = task::spawn(limits.acquire(&call));
    let mut second = task::spawn(limits.acquire(&call));
    assert_pending!(first.poll());
    assert_pending!(second.poll());
    limits.reconfigure(every(burst(2, HOUR))).unwrap();
    assert!(first.is_woken() && !second.is_woken());
    drop(assert_ready!(first.poll()).unwrap());
}

/// Nor do newcomers take them while those who wait ask again.
#[tokio::test(start_paused = true)]
async fn whoever_asks_again_is_not_refused_for_newcomers() {
    let quota = burst(1, HOUR);
    let limits = every(quota).max_waiting(2).build().unwrap();
    assert_eq!(at_once(&limits, 1), 1);
    let call = call("/");
    let mut waiting = [(); 2].map(|()| task::spawn(limits.acquire(&call)));
    waiting
        .iter_mut()
        .for_each(|waits| assert_pending!(waits.poll()));
    let rules = every(quota).every_call(Quota::concurrent(3));
    limits.reconfigure(rules.max_waiting(2)).unwrap();
    for _ in 0..3 {
        let refused = limits.acquire(&call).await.unwrap_err();
        assert!(refused.is_queue_full());
    }
    waiting
        .iter_mut()
        .for_each(|waits| assert_pending!(waits.poll()));
    drop(waiting);
    let mut newcomer = task::spawn(limits.acquire(&call));
    assert_pending!(newcomer.poll());
}

/// Attempts that weren't spaced, or more widely, say nothing of when the next may
/// go under another pace.
#[tokio::test(start_paused = true)]
async fn a_new_pace_starts_when_it_comes() {
    for old in [
        Quota::unlimited(),
        Quota::concurrent(10),
        burst(2, millis(10)),
        Quota::per_hour(2),
    ] {
        let limits = every(old).build().unwrap();
        for _ in 0..1000 {
            at_once(&limits, 1);
            advance(millis(1)).await;
        }
        limits.reconfigure(every(Quota::per_second(101))).unwrap();
        assert!(wait(&limits).await <= millis(11), "{old:?}");
        assert!(wait(&limits).await <= millis(11), "{old:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn what_is_in_a_bucket_drains_at_the_new_rate() {
    let limits = every(Quota::rate(4, HOUR).burst(4)).build().unwrap();
    assert_eq!(at_once(&limits, 10), 4);
    let faster = Quota::rate(4, millis(1000)).burst(4);
    limits.reconfigure(every(faster)).unwrap();
    assert_eq!(at_once(&limits, 10), 0);
    assert_eq!(wait(&limits).await, millis(250));
    let slower = Quota::rate(4, HOUR).burst(5);
    limits.reconfigure(every(slower)).unwrap();
    assert_eq!(at_once(&limits, 10), 1);
}

/// Whatever the shape spaced before the pause, and however many went.
#[tokio::test(start_paused = true)]
async fn after_a_pause_the_queue_restarts_evenly_whatever_went_before() {
    for (quota, spacing) in [
        (Quota::unlimited(), 20),
        (burst(5, millis(500)), 125),
        (Quota::rate(10, millis(1000)).burst(10), 100),
    ] {
        let limits = every(quota).build().unwrap();
        for _ in 0..5000 {
            at_once(&limits, 2);
            advance(millis(1)).await;
        }
        advance(millis(1000)).await;
        let refused = limits.acquire(&call("/")).await.unwrap();
        refused.over(Verdict::NotExecuted {
            retry_after: Some(millis(1000)),
            scope: Scope::Unspecified,
        });
        assert_eq!(wait(&limits).await, millis(1000), "{quota:?}");
        for _ in 0..2 {
            let wait = wait(&limits).await;
            assert!(
                wait.abs_diff(millis(spacing)) <= millis(5),
                "{wait:?} {quota:?}"
            );
        }
    }
}

/// What computes a key is foreign code, and so is what drops with it.
#[test]
fn a_key_that_is_gone_is_dropped_once_others_can_use_the_limits() {
    struct Looks {
        limits: Arc<OnceLock<Limits>>,
        has_looked: Arc<AtomicBool>,
    }
    impl Drop for Looks {
        fn drop(&mut self) {
            let limits = self.limits.get().unwrap().clone();
            let (sender, receiver) = mpsc::channel();
            thread::spawn(move || sender.send(limits.snapshot().waiting));
            let looked = receiver.recv_timeout(Duration::from_secs(5));
            self.has_looked.store(looked.is_ok(), Ordering::SeqCst);
        }
    }
    let (limits, has_looked) = (Arc::default(), Arc::default());
    let looks = Looks {
        limits: Arc::clone(&limits),
        has_looked: Arc::clone(&has_looked),
    };
    let key = Key::computed("key", move |_| looks.limits.get().map(|_| "".into()));
    let keyed = Limits::builder().keyed(key, burst(1, HOUR));
    let limits = limits.get_or_init(|| keyed.build().unwrap());
    limits.reconfigure(every(burst(1, HOUR))).unwrap();
    assert!(has_looked.load(Ordering::SeqCst));
}

/// A rule that is gone has no say in what an answer is about, whose attempt it
/// still covers.
#[tokio::test(start_paused = true)]
async fn what_is_said_of_an_attempt_of_older_rules_is_about_those_that_are_left() {
    let stays = || every(burst(10, millis(500)));
    let gone = burst(9, millis(500)).penalty(millis(700));
    let answer = http::Response::builder().header("ratelimit", r#""a";r=0;t=3"#);
    let answer = answer.body(()).unwrap();
    for is_refused in [true, false] {
        for old in [
            stays().endpoint(Endpoint::get("/"), gone),
            stays().keyed(Key::path(), gone),
        ] {
            let limits = old.build().unwrap();
            let permit = limits.acquire(&call("/")).await.unwrap();
            limits.reconfigure(stays()).unwrap();
            match is_refused {
                true => permit.over(Verdict::NotExecuted {
                    retry_after: Some(millis(3000)),
                    scope: Scope::Unspecified,
                }),
                false => permit.answered(&answer),
            }
            assert_eq!(wait(&limits).await, millis(3000));
        }
    }
}
