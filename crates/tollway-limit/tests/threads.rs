//! Threads, each with runtimes of its own that come and go, share limits that
//! change.
#![cfg(feature = "tokio")]
#![allow(clippy::unwrap_used, reason = "a test")]

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use http::Method;
use http::header::HOST;
use tokio::runtime::{Builder, Runtime};
use tokio::task::{JoinHandle, yield_now};
use tokio::time::{Instant, timeout};
use tokio_test::task;
use tollway_core::{Deadline, Endpoint, Fault, Priority, Verdict};
use tollway_limit::{Call, Key, Limits, LimitsBuilder, Quota, Shape};

const LIMIT: u32 = 20;
const WINDOW: Duration = Duration::from_millis(3);
const IN_FLIGHT: u32 = 12;
const PATHS: [&str; 3] = ["/a", "/b", "/c"];

/// The same every time, but for how the threads are scheduled.
#[derive(Clone)]
struct Dice(u64);

impl Dice {
    fn roll(&mut self, sides: u64) -> u64 {
        self.0 = self
            .0
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1);
        (self.0 >> 33) % sides
    }

    fn pick<T: Copy>(&mut self, of: &[T]) -> T {
        of[usize::try_from(self.roll(of.len() as u64)).unwrap()]
    }

    fn other(&mut self) -> Self {
        Self(self.roll(u64::MAX))
    }
}

/// What the provider sees.
#[derive(Default)]
struct Seen {
    arrivals: Mutex<Vec<Instant>>,
    in_flight: AtomicUsize,
}

/// One rule that stays, and others that come and go.
fn rules(dice: &mut Dice) -> LimitsBuilder {
    let stays = Quota::new(LIMIT, WINDOW).shape(Shape::Burst);
    let rules = Limits::builder().every_call(stays.in_flight(IN_FLIGHT));
    match dice.roll(4) {
        0 => rules.endpoint(
            Endpoint::get("/a"),
            Quota::concurrent(3).reserve(Priority::High, 30),
        ),
        1 => rules.each_endpoint(Quota::new(9, WINDOW)),
        2 => rules
            .keyed(Key::header(HOST), Quota::concurrent(2))
            .every_call(Quota::rate(30, WINDOW).burst(9)),
        _ => rules,
    }
}

async fn attempt(limits: Limits, seen: Arc<Seen>, mut dice: Dice) {
    let call = Call::new(&Method::GET, dice.pick(&PATHS)).priority(dice.pick(&Priority::ALL));
    let patience = Duration::from_micros(dice.roll(20_000));
    let call = match dice.roll(3) {
        0 => call.deadline(Deadline::at(Instant::now() + patience)),
        _ => call,
    };
    let Ok(permit) = limits.acquire(&call).await else {
        return;
    };
    if dice.roll(8) == 0 {
        return permit.give_back();
    }
    let others = seen.in_flight.fetch_add(1, Ordering::SeqCst);
    assert!(others < IN_FLIGHT as usize);
    seen.arrivals.lock().unwrap().push(Instant::now());
    seen.in_flight.fetch_sub(1, Ordering::SeqCst);
    if dice.roll(2) == 0 {
        yield_now().await;
    }
    match dice.roll(8) {
        0 => permit.failed(&Fault::new(Verdict::Unknown)),
        1 => permit.over(Verdict::Done),
        _ => drop(permit),
    }
}

async fn end(calls: impl IntoIterator<Item = JoinHandle<()>>) {
    for call in calls {
        let end = timeout(Duration::from_secs(60), call).await;
        let end = end.expect("somebody waits for ever");
        assert!(end.is_ok() || end.is_err_and(|error| error.is_cancelled()));
    }
}

/// Runtimes that end with their calls, or leave some behind. Each has one more who
/// waits and is left aside.
fn call_a_while(limits: &Limits, seen: &Arc<Seen>, mut dice: Dice) {
    for _ in 0..3 {
        let runtime: Runtime = Builder::new_current_thread().enable_time().build().unwrap();
        let aside = Call::new(&Method::GET, "/b").priority(Priority::High);
        let mut aside = task::spawn(limits.acquire(&aside));
        runtime.block_on(async { drop(aside.poll()) });
        let mut calls: Vec<_> = (0..1 + dice.roll(30))
            .map(|_| runtime.spawn(attempt(limits.clone(), Arc::clone(seen), dice.other())))
            .collect();
        for call in &calls {
            if dice.roll(5) == 0 {
                call.abort();
            }
        }
        if dice.roll(2) == 0 {
            calls.truncate(1);
        }
        runtime.block_on(end(calls));
    }
}

#[test]
fn no_rule_is_broken_and_nobody_is_forgotten() {
    let mut dice = Dice(7);
    for _ in 0..20 {
        let limits = rules(&mut dice).build().unwrap();
        let seen = Arc::new(Seen::default());
        thread::scope(|scope| {
            for _ in 0..4 {
                let (limits, seen, dice) = (&limits, &seen, dice.other());
                scope.spawn(move || call_a_while(limits, seen, dice));
            }
            for _ in 0..dice.roll(6) {
                thread::yield_now();
                limits.reconfigure(rules(&mut dice)).unwrap();
            }
        });
        let left = limits.snapshot();
        assert_eq!(left.waiting, 0);
        assert!(left.quotas.iter().all(|quota| quota.in_flight == 0));
        let mut arrivals = seen.arrivals.lock().unwrap();
        arrivals.sort_unstable();
        for run in arrivals.windows(LIMIT as usize + 1) {
            assert!(run[LIMIT as usize] - run[0] >= WINDOW);
        }
    }
}
