//! What threads share, in every order in which they may get at it.
//!
//! `RUSTFLAGS="--cfg loom" cargo test -p tollway-limit --no-default-features
//! --lib --release`

use std::future::poll_fn;
use std::sync::Arc;
use std::task::Poll;

use http::Method;
use loom::future::block_on;
use loom::sync::atomic::{AtomicUsize, Ordering};
use loom::thread;
use tollway_core::Endpoint;

use crate::ask::Asked;
use crate::call::Call;
use crate::express::TILLS;
use crate::key::Key;
use crate::limits::Limits;
use crate::permit::Permit;
use crate::quota::Quota;
use crate::sync::own_index;
use crate::time::now;

fn one_at_a_time() -> Limits {
    let builder = Limits::builder().every_call(Quota::concurrent(1));
    builder.build().unwrap_or_else(|error| panic!("{error}"))
}

async fn acquire(limits: &Limits) -> Permit {
    acquire_at(limits, "/").await
}

async fn acquire_at(limits: &Limits, path: &str) -> Permit {
    acquire_for(limits, Call::new(&Method::GET, path)).await
}

async fn acquire_for(limits: &Limits, call: Call<'_>) -> Permit {
    let mut place = None;
    poll_fn(|cx| {
        let Some(waiter) = place else {
            return match limits.shared.ask(&call, now, cx.waker()) {
                Asked::Granted(permit) => Poll::Ready(permit),
                Asked::Waits(_, waiter) => {
                    place = Some(waiter);
                    Poll::Pending
                }
                Asked::Refused(error) => panic!("{error}"),
            };
        };
        match limits.shared.check(waiter, now(), cx.waker()) {
            Some(Ok(Ok(permit))) => Poll::Ready(permit),
            Some(Ok(Err(error))) => panic!("{error}"),
            Some(Err(_)) => panic!("nobody changes the rules"),
            None => Poll::Pending,
        }
    })
    .await
}

#[test]
fn a_permit_is_held_by_one_and_whoever_waits_is_woken() {
    loom::model(|| {
        let limits = one_at_a_time();
        let holders = Arc::new(AtomicUsize::new(0));
        let work = |limits: Limits, holders: Arc<AtomicUsize>| {
            move || {
                let permit = block_on(acquire(&limits));
                assert_eq!(holders.fetch_add(1, Ordering::SeqCst), 0);
                holders.fetch_sub(1, Ordering::SeqCst);
                drop(permit);
            }
        };
        let other = thread::spawn(work(limits.clone(), Arc::clone(&holders)));
        work(limits.clone(), holders)();
        other
            .join()
            .unwrap_or_else(|_| panic!("the other thread failed"));
        assert_eq!(limits.snapshot().waiting, 0);
        assert_eq!(limits.snapshot().quotas[0].in_flight, 0);
    });
}

#[test]
fn one_who_leaves_while_being_granted_passes_the_permit_on() {
    loom::model(|| {
        let limits = one_at_a_time();
        let permit = block_on(acquire(&limits));
        let leaver = {
            let limits = limits.clone();
            thread::spawn(move || {
                let call = Call::new(&Method::GET, "/");
                let waker = std::task::Waker::noop();
                match limits.shared.ask(&call, now, waker) {
                    Asked::Waits(shared, waiter) => shared.leave(waiter),
                    Asked::Granted(permit) => permit.give_back(),
                    Asked::Refused(error) => panic!("{error}"),
                }
            })
        };
        drop(permit);
        // Whatever became of the other, the permit comes back.
        drop(block_on(acquire(&limits)));
        leaver
            .join()
            .unwrap_or_else(|_| panic!("the leaver failed"));
        assert_eq!(limits.snapshot().quotas[0].in_flight, 0);
    });
}

/// A first permit, taken and let go under the lock, leaves the place on loan.
fn with_a_loan(limit: u32) -> Limits {
    let builder = Limits::builder().every_call(Quota::concurrent(limit));
    let limits = builder.build().unwrap_or_else(|error| panic!("{error}"));
    drop(block_on(acquire(&limits)));
    limits
}

fn joined<T>(thread: thread::JoinHandle<T>) -> T {
    let result = thread.join();
    result.unwrap_or_else(|_| panic!("the other thread failed"))
}

#[test]
fn an_answer_noted_without_the_lock_reaches_whoever_is_about_to_wait() {
    loom::model(|| {
        let limits = with_a_loan(1);
        share_the_till();
        let permit = block_on(acquire(&limits));
        let holder = thread::spawn(move || drop(permit));
        drop(block_on(acquire(&limits)));
        joined(holder);
        assert_eq!(limits.snapshot().quotas[0].in_flight, 0);
    });
}

#[test]
fn a_lent_permit_that_goes_back_reaches_whoever_is_about_to_wait() {
    loom::model(|| {
        let limits = with_a_loan(1);
        share_the_till();
        let permit = block_on(acquire(&limits));
        let holder = thread::spawn(move || permit.give_back());
        drop(block_on(acquire(&limits)));
        joined(holder);
        assert_eq!(limits.snapshot().quotas[0].in_flight, 0);
    });
}

/// The next thread goes to the same till as this one.
fn share_the_till() {
    own_index();
    for _ in 1..TILLS {
        joined(thread::spawn(own_index));
    }
}

#[test]
fn one_lent_permit_is_taken_by_one() {
    loom::model(|| {
        let limits = with_a_loan(1);
        share_the_till();
        let holders = Arc::new(AtomicUsize::new(0));
        let work = |limits: Limits, holders: Arc<AtomicUsize>| {
            move || {
                let permit = block_on(acquire(&limits));
                assert_eq!(holders.fetch_add(1, Ordering::SeqCst), 0);
                holders.fetch_sub(1, Ordering::SeqCst);
                drop(permit);
            }
        };
        let other = thread::spawn(work(limits.clone(), Arc::clone(&holders)));
        work(limits.clone(), holders)();
        joined(other);
        assert_eq!(limits.snapshot().waiting, 0);
        assert_eq!(limits.snapshot().quotas[0].in_flight, 0);
    });
}

#[test]
fn what_is_taken_and_answered_while_a_loan_is_recalled_is_counted_once() {
    loom::model(|| {
        let limits = with_a_loan(2);
        share_the_till();
        let other = {
            let limits = limits.clone();
            thread::spawn(move || {
                let permit = block_on(acquire(&limits));
                drop(block_on(acquire(&limits)));
                permit
            })
        };
        assert!(limits.snapshot().quotas[0].in_flight <= 2);
        let permit = joined(other);
        assert_eq!(limits.snapshot().quotas[0].in_flight, 1);
        drop(permit);
        assert_eq!(limits.snapshot().quotas[0].in_flight, 0);
    });
}

#[test]
fn what_is_lent_in_several_tills_is_counted_once() {
    loom::model(|| {
        let limits = with_a_loan(8);
        let held = block_on(acquire(&limits));
        let other = {
            let limits = limits.clone();
            thread::spawn(move || {
                let permits = [(); 3].map(|()| block_on(acquire(&limits)));
                let [first, second, _third] = permits;
                drop(first);
                second
            })
        };
        assert!(limits.snapshot().quotas[0].in_flight <= 4);
        drop(held);
        let permit = joined(other);
        assert_eq!(limits.snapshot().quotas[0].in_flight, 1);
        drop(permit);
        assert_eq!(limits.snapshot().quotas[0].in_flight, 0);
    });
}

/// Two permits at a time leave what is left of a key's on loan.
fn with_a_loan_by_key(limit: u32) -> Limits {
    let builder = Limits::builder().keyed(Key::path(), Quota::concurrent(limit));
    let limits = builder.build().unwrap_or_else(|error| panic!("{error}"));
    let first = block_on(acquire_at(&limits, "/a"));
    drop(block_on(acquire_at(&limits, "/a")));
    drop(first);
    limits
}

#[test]
fn a_key_s_lent_permits_are_taken_by_as_many() {
    loom::model(|| {
        let limits = with_a_loan_by_key(2);
        let holders = Arc::new(AtomicUsize::new(0));
        let work = |limits: Limits, holders: Arc<AtomicUsize>| {
            move || {
                let first = block_on(acquire_at(&limits, "/a"));
                assert!(holders.fetch_add(1, Ordering::SeqCst) < 2);
                let second = try_acquire_at(&limits, "/a");
                if second.is_some() {
                    assert!(holders.fetch_add(1, Ordering::SeqCst) < 2);
                    holders.fetch_sub(1, Ordering::SeqCst);
                }
                drop(second);
                holders.fetch_sub(1, Ordering::SeqCst);
                drop(first);
            }
        };
        let other = thread::spawn(work(limits.clone(), Arc::clone(&holders)));
        work(limits.clone(), holders)();
        joined(other);
        assert_eq!(limits.snapshot().waiting, 0);
        for quota in limits.snapshot().quotas {
            assert_eq!(quota.in_flight, 0);
        }
    });
}

/// Whoever waits for several quotas hears of an answer that would be noted at the
/// till of one.
#[test]
fn an_answer_reaches_whoever_needs_another_quota_as_well() {
    loom::model(|| {
        let builder = Limits::builder()
            .keyed(Key::path(), Quota::concurrent(2))
            .endpoint(Endpoint::post("/a"), Quota::concurrent(1));
        let limits = builder.build().unwrap_or_else(|error| panic!("{error}"));
        let _held = block_on(acquire_at(&limits, "/a"));
        drop(block_on(acquire_at(&limits, "/a")));
        let lent = block_on(acquire_at(&limits, "/a"));
        let holder = thread::spawn(move || drop(lent));
        let call = Call::new(&Method::POST, "/a");
        drop(block_on(acquire_for(&limits, call)));
        joined(holder);
        assert_eq!(limits.snapshot().waiting, 0);
    });
}

fn try_acquire_at(limits: &Limits, path: &str) -> Option<Permit> {
    let call = Call::new(&Method::GET, path);
    limits.try_acquire(&call, now()).ok()
}

/// Whoever has found the tills of a key that is forgotten meanwhile, and known
/// anew, doesn't take from two quotas.
#[test]
fn a_key_that_is_forgotten_lends_no_more() {
    loom::model(|| {
        let limits = with_a_loan_by_key(2);
        let holders = Arc::new(AtomicUsize::new(0));
        let take = |limits: &Limits, holders: &AtomicUsize| {
            let permits = [(); 2].map(|()| try_acquire_at(limits, "/a"));
            let count = permits.iter().flatten().count();
            assert!(holders.fetch_add(count, Ordering::SeqCst) + count <= 2);
            holders.fetch_sub(count, Ordering::SeqCst);
            drop(permits);
        };
        let other = {
            let (limits, holders) = (limits.clone(), Arc::clone(&holders));
            thread::spawn(move || take(&limits, &holders))
        };
        // Another key's call forgets those that are idle.
        drop(try_acquire_at(&limits, "/b"));
        take(&limits, &holders);
        joined(other);
        for quota in limits.snapshot().quotas {
            assert_eq!(quota.in_flight, 0);
        }
    });
}

/// Whoever was on the way past the lock when the limits changed doesn't get past
/// the new ones.
#[test]
fn what_is_lent_under_the_old_limits_is_not_taken_under_the_new_ones() {
    loom::model(|| {
        let limits = with_a_loan(4);
        let before = block_on(acquire(&limits));
        let other = {
            let limits = limits.clone();
            thread::spawn(move || try_acquire_at(&limits, "/"))
        };
        let every = Limits::builder().every_call(Quota::concurrent(4));
        let changed = limits.reconfigure(every.keyed(Key::path(), Quota::concurrent(4)));
        changed.unwrap_or_else(|error| panic!("{error}"));
        let in_flight = limits.snapshot().quotas[0].in_flight;
        drop(before);
        let permit = joined(other);
        if permit.is_some() && in_flight == 1 {
            // It came after the change.
            assert_eq!(limits.snapshot().quotas[1].in_flight, 1);
        }
        drop(permit);
        for quota in limits.snapshot().quotas {
            assert_eq!(quota.in_flight, 0);
        }
    });
}
