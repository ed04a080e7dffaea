//! Whoever waits is woken, whoever else leaves, and whatever else happens.
#![cfg(feature = "tokio")]
#![allow(clippy::unwrap_used, reason = "a test")]

use std::future::{Future, poll_fn};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll, Wake, Waker};
use std::time::Duration;

use http::{HeaderMap, HeaderValue, Method};
use proptest::collection::vec;
use proptest::prelude::*;
use tokio::runtime::{Handle, Runtime};
use tokio::task::{JoinHandle, yield_now};
use tokio::time::{Instant, advance, sleep, sleep_until, timeout};
use tokio_test::{assert_pending, assert_ready, task};
use tollway_core::{Deadline, Endpoint, Fault, Phase, Priority, Scope, Verdict};
use tollway_limit::{Call, CountFrom, Key, Limits, LimitsBuilder, Permit, Quota, Shape};

const fn millis(millis: u64) -> Duration {
    Duration::from_millis(millis)
}

fn call(path: &str) -> Call<'_> {
    Call::new(&Method::GET, path)
}

/// A task that waits for a permit and lets it go.
async fn waiter(limits: &Limits, path: &'static str, priority: Priority) -> JoinHandle<()> {
    let limits = limits.clone();
    let waiter = tokio::spawn(async move {
        let call = call(path).priority(priority);
        drop(limits.acquire(&call).await.unwrap());
    });
    yield_now().await;
    waiter
}

/// The one who is woken to set the timer may leave before that.
#[tokio::test(start_paused = true)]
async fn whoever_leaves_before_setting_the_timer_has_another_set_it() {
    let quota = Quota::new(1, millis(1000)).shape(Shape::Burst);
    let limits = Limits::builder().every_call(quota).build().unwrap();
    let permit = limits.acquire(&call("/")).await.unwrap();
    let first = waiter(&limits, "/", Priority::Normal).await;
    let second = waiter(&limits, "/", Priority::Normal).await;
    let start = Instant::now();
    drop(permit);
    first.abort();
    timeout(millis(5000), second).await.unwrap().unwrap();
    assert_eq!(start.elapsed(), millis(1000));
}

/// A `select!` may leave a future aside, for another that needs a permit, too.
#[tokio::test(start_paused = true)]
async fn whoever_is_left_unpolled_holds_up_no_others() {
    let burst = Quota::new(2, millis(1000)).shape(Shape::Burst);
    for quota in [burst, Quota::per_second(11)] {
        for is_answered in [true, false] {
            let limits = Limits::builder().every_call(quota).build().unwrap();
            let call = call("/");
            let now = Instant::now().into_std();
            let permits = [(); 2].map(|()| limits.try_acquire(&call, now));
            let mut aside = task::spawn(limits.acquire(&call));
            if !is_answered {
                drop(permits);
                assert_pending!(aside.poll());
                let next = timeout(millis(5000), limits.acquire(&call));
                drop(next.await.unwrap().unwrap());
            } else {
                assert_pending!(aside.poll());
                let next = waiter(&limits, "/", Priority::Normal).await;
                drop(permits);
                timeout(millis(5000), next).await.unwrap().unwrap();
            }
        }
    }
}

/// Nor where the permit that they wait for is let go by a thread of its own.
#[tokio::test(start_paused = true)]
async fn whoever_is_left_unpolled_holds_up_no_others_whoever_lets_go() {
    let quota = Quota::new(2, millis(1000)).shape(Shape::Burst);
    let limits = Limits::builder().every_call(quota).build().unwrap();
    let call = call("/");
    let now = Instant::now().into_std();
    let permits = [(); 2].map(|()| limits.try_acquire(&call, now));
    let mut aside = task::spawn(limits.acquire(&call));
    assert_pending!(aside.poll());
    let next = waiter(&limits, "/", Priority::Normal).await;
    std::thread::spawn(move || drop(permits)).join().unwrap();
    timeout(millis(5000), next).await.unwrap().unwrap();
}

#[tokio::test(start_paused = true)]
async fn whoever_waits_sets_the_timer_without_a_task() {
    let limits = one_a_second();
    let call = call("/");
    drop(limits.acquire(&call).await.unwrap());
    let mut waits = task::spawn(limits.acquire(&call));
    assert_pending!(waits.poll());
    assert_pending!(waits.poll());
    assert_eq!(Handle::current().metrics().num_alive_tasks(), 0);
    sleep(millis(1010)).await;
    drop(assert_ready!(waits.poll()).unwrap());
}

#[tokio::test(start_paused = true)]
async fn one_task_sets_the_timer_however_many_are_answered_at_once() {
    let quota = Quota::new(100, millis(1000)).shape(Shape::Burst);
    let limits = Limits::builder().every_call(quota).build().unwrap();
    let now = Instant::now().into_std();
    let permits = [(); 100].map(|()| limits.try_acquire(&call("/"), now));
    let next = waiter(&limits, "/", Priority::Normal).await;
    drop(permits);
    // The waiter's, and that one.
    assert_eq!(Handle::current().metrics().num_alive_tasks(), 2);
    timeout(millis(5000), next).await.unwrap().unwrap();
}

/// Whoever was granted a permit has it, polled or not, until it is dropped.
#[tokio::test(start_paused = true)]
async fn a_permit_that_was_granted_is_kept_until_its_future_is_polled_or_dropped() {
    let window = Quota::new(1, millis(1000)).shape(Shape::Burst);
    for quota in [Quota::concurrent(1), window] {
        for is_polled in [true, false] {
            let limits = Limits::builder().every_call(quota).build().unwrap();
            let permit = limits.acquire(&call("/")).await.unwrap();
            let call = call("/").deadline(Deadline::at(Instant::now() + millis(5000)));
            let mut aside = task::spawn(limits.acquire(&call));
            assert_pending!(aside.poll());
            let next = waiter(&limits, "/", Priority::Normal).await;
            drop(permit);
            sleep(millis(60_000)).await;
            assert!(aside.is_woken());
            assert!(!next.is_finished());
            match is_polled {
                true => drop(assert_ready!(aside.poll()).unwrap()),
                false => drop(aside),
            }
            let start = Instant::now();
            next.await.unwrap();
            let is_counted = is_polled && quota == window;
            assert_eq!(start.elapsed(), millis(1000 * u64::from(is_counted)));
        }
    }
}

fn paused() -> Verdict {
    Verdict::NotExecuted {
        retry_after: Some(millis(1000)),
        scope: Scope::GlobalConcurrency,
    }
}

/// Whoever gives a permit back because of a pause doesn't fall behind those who
/// came later, nor is there no room for it among them.
#[tokio::test(start_paused = true)]
async fn whoever_asks_again_after_a_pause_comes_where_it_was() {
    let rules = Limits::builder().every_call(Quota::concurrent(2));
    let limits = rules.max_waiting(3).build().unwrap();
    let call = call("/");
    let now = Instant::now().into_std();
    let permits = [(); 2].map(|()| limits.try_acquire(&call, now).unwrap());
    let mut waiting = [(); 4].map(|()| task::spawn(limits.acquire(&call)));
    let [first, second] = permits;
    for waits in &mut waiting[..3] {
        assert_pending!(waits.poll());
    }
    drop(first);
    assert!(waiting[0].is_woken());
    // As many wait as may.
    assert_pending!(waiting[3].poll());
    second.over(paused());
    assert_pending!(waiting[0].poll());
    assert_eq!(limits.snapshot().waiting, 4);
    sleep(millis(2000)).await;
    let woken = waiting.each_ref().map(|waits| waits.is_woken());
    assert_eq!(woken, [true, true, false, false]);
}

/// Those who came later aren't waited for, either.
#[tokio::test(start_paused = true)]
async fn whoever_asks_again_after_a_pause_has_time_enough() {
    let limits = Limits::builder().every_call(Quota::new(2, millis(1000)).shape(Shape::Burst));
    let limits = limits.build().unwrap();
    let now = Instant::now();
    let hasty = call("/").deadline(Deadline::at(now + millis(3000)));
    let call = call("/");
    let permits = [(); 2].map(|()| limits.try_acquire(&call, now).unwrap());
    let mut first = task::spawn(limits.acquire(&hasty));
    assert_pending!(first.poll());
    let mut others = [(); 10].map(|()| task::spawn(limits.acquire(&call)));
    for waits in &mut others {
        assert_pending!(waits.poll());
    }
    let [unsent, refused] = permits;
    unsent.give_back();
    refused.over(Verdict::NotExecuted {
        retry_after: Some(millis(1000)),
        scope: Scope::GlobalRate,
    });
    assert_pending!(first.poll());
    sleep(millis(2000)).await;
    drop(assert_ready!(first.poll()).unwrap());
}

/// A share is kept for a call that waits elsewhere. When that call leaves, it is
/// soon lent out, and somebody has to set the timer for that.
#[tokio::test(start_paused = true)]
async fn whoever_leaves_a_share_behind_has_another_set_the_timer() {
    let limits = Limits::builder()
        .every_call(Quota::concurrent(2).reserve(Priority::High, 50))
        .endpoint(Endpoint::get("/busy"), Quota::concurrent(1))
        .build()
        .unwrap();
    let _permit = limits.acquire(&call("/busy")).await.unwrap();
    let leaver = waiter(&limits, "/busy", Priority::High).await;
    let other = waiter(&limits, "/", Priority::Normal).await;
    assert_eq!(limits.snapshot().waiting, 2);
    leaver.abort();
    let start = Instant::now();
    timeout(millis(5000), other).await.unwrap().unwrap();
    assert_eq!(start.elapsed(), millis(1000));
}

fn runtime() -> Runtime {
    let mut builder = tokio::runtime::Builder::new_current_thread();
    builder.enable_time().start_paused(true).build().unwrap()
}

/// Drives a runtime by itself, as code that isn't asynchronous does.
struct Blocking {
    runtime: Runtime,
    limits: Limits,
}

impl Blocking {
    fn new(limits: &Limits) -> Self {
        Self {
            runtime: runtime(),
            limits: limits.clone(),
        }
    }

    async fn acquire(limits: Limits) -> Permit {
        limits.acquire(&call("/")).await.unwrap()
    }

    /// A task of this runtime waits.
    fn waits(&self) -> JoinHandle<Permit> {
        let waits = self.runtime.spawn(Self::acquire(self.limits.clone()));
        self.runtime.block_on(yield_now());
        waits
    }

    /// A permit comes while this runtime is driven.
    /// And keeps it: whoever lets one go sees to those who wait.
    fn gets_one(&self, waits: JoinHandle<Permit>) -> Permit {
        let end = async { timeout(millis(5000), waits).await };
        let end = self.runtime.block_on(end);
        end.expect("it waits for ever").unwrap()
    }
}

fn one_a_second() -> Limits {
    let quota = Quota::new(11, millis(10_000));
    Limits::builder().every_call(quota).build().unwrap()
}

/// A runtime in which nobody waits any more may not be driven any more.
#[test]
fn a_timer_that_was_set_in_a_runtime_that_is_idle_holds_nobody_up() {
    let limits = one_a_second();
    let (idle, driven) = (Blocking::new(&limits), Blocking::new(&limits));
    let _kept = idle.gets_one(idle.waits());
    let leaves = idle.waits();
    leaves.abort();
    idle.runtime.block_on(leaves).unwrap_err();
    drop(driven.gets_one(driven.waits()));
}

/// A wait may start in one runtime and go on in another.
#[test]
fn whoever_moves_to_another_runtime_has_its_timer_set_there() {
    let limits = one_a_second();
    let (idle, driven) = (Blocking::new(&limits), Blocking::new(&limits));
    let _kept = idle.gets_one(idle.waits());
    let mut moves = Box::pin(Blocking::acquire(limits.clone()));
    let first_poll = poll_fn(|cx| Poll::Ready(moves.as_mut().poll(cx).is_pending()));
    assert!(idle.runtime.block_on(first_poll));
    let waits = driven.runtime.spawn(moves);
    drop(driven.gets_one(waits));
}

/// Whoever is granted a permit in another runtime may not be polled there.
#[test]
fn whoever_is_left_unpolled_in_another_runtime_holds_up_no_others() {
    let limits = one_a_second();
    let (idle, driven) = (Blocking::new(&limits), Blocking::new(&limits));
    let _kept = idle.gets_one(idle.waits());
    let waits = driven.waits();
    let call = call("/").priority(Priority::High);
    let mut aside = task::spawn(limits.acquire(&call));
    idle.runtime
        .block_on(async { assert_pending!(aside.poll()) });
    drop(driven.gets_one(waits));
    assert!(aside.is_woken());
}

/// Nor may others that wait with it, whoever lets the permit go.
#[test]
fn all_who_are_left_unpolled_in_another_runtime_hold_up_no_others() {
    for is_let_go in [true, false] {
        let burst = Quota::new(4, millis(1000)).shape(Shape::Burst);
        let limits = Limits::builder().every_call(burst).build().unwrap();
        let (idle, driven) = (Blocking::new(&limits), Blocking::new(&limits));
        let acquire = || Blocking::acquire(limits.clone());
        let mut kept: Vec<_> = (0..4).map(|_| driven.runtime.block_on(acquire())).collect();
        let call = call("/");
        let mut aside = [(); 3].map(|()| task::spawn(limits.acquire(&call)));
        let poll_aside = async { aside.each_mut().map(|aside| assert_pending!(aside.poll())) };
        idle.runtime.block_on(poll_aside);
        let waits = driven.waits();
        match is_let_go {
            // Three have a place each, and none of them is polled.
            true => std::thread::spawn(move || drop(kept)).join().unwrap(),
            false => drop(kept.drain(1..)),
        }
        let mut aside = aside.into_iter();
        drop(aside.next());
        drop(driven.gets_one(waits));
    }
}

/// Several that wait may, too, by turns.
#[test]
fn all_who_move_to_another_runtime_have_the_timer_set_there() {
    let limits = one_a_second();
    let all = [(); 3].map(|()| Blocking::new(&limits));
    let _kept = all[0].gets_one(all[0].waits());
    let mut moving = [(); 2].map(|()| Box::pin(Blocking::acquire(limits.clone())));
    for blocking in &all[..2] {
        for moves in &mut moving {
            let poll = poll_fn(|cx| Poll::Ready(moves.as_mut().poll(cx).is_pending()));
            assert!(blocking.runtime.block_on(poll));
        }
    }
    let waits = moving.map(|moves| all[2].runtime.spawn(moves));
    let _kept = waits.map(|waits| all[2].gets_one(waits));
}

#[test]
fn whoever_gets_a_permit_or_leaves_has_no_timer_set_where_nobody_waits() {
    for leaves in [true, false] {
        let limits = one_a_second();
        let (idle, driven) = (Blocking::new(&limits), Blocking::new(&limits));
        let _kept = idle.gets_one(idle.waits());
        let first = idle.waits();
        let second = driven.waits();
        let _kept = if leaves {
            first.abort();
            drop(idle.runtime.block_on(first));
            None
        } else {
            Some(idle.gets_one(first))
        };
        drop(driven.gets_one(second));
    }
}

/// Not even if the one who waits is alone, and about to set it.
#[test]
fn whoever_gets_a_permit_late_has_no_timer_set_where_nobody_waits() {
    let limits = Limits::builder().every_call(Quota::concurrent(1));
    let limits = limits.build().unwrap();
    let (idle, driven) = (Blocking::new(&limits), Blocking::new(&limits));
    let permit = idle.runtime.block_on(Blocking::acquire(limits.clone()));
    let first = idle.waits();
    drop(permit);
    let second = driven.waits();
    let rules = Limits::builder().every_call(Quota::new(3, millis(1000)));
    limits.reconfigure(rules).unwrap();
    let _kept = idle.gets_one(first);
    drop(driven.gets_one(second));
}

#[test]
fn without_a_runtime_one_may_wait_for_what_is_in_flight_alone() {
    let limits = Limits::builder().every_call(Quota::concurrent(1));
    let limits = limits.build().unwrap();
    let call = call("/");
    let now = Instant::now().into_std();
    let permit = limits.try_acquire(&call, now).unwrap();
    let mut waits = task::spawn(limits.acquire(&call));
    assert_pending!(waits.poll());
    assert_pending!(waits.poll());
    drop(permit);
    assert!(waits.is_woken());
    drop(assert_ready!(waits.poll()).unwrap());
}

/// Where the timer can't be set, the next tries again.
#[test]
fn a_runtime_without_a_timer_holds_nobody_up() {
    let limits = one_a_second();
    let driven = Blocking::new(&limits);
    let _kept = driven.gets_one(driven.waits());
    let bare = tokio::runtime::Builder::new_current_thread().build();
    let bare = Blocking {
        runtime: bare.unwrap(),
        limits: limits.clone(),
    };
    let error = bare.runtime.block_on(bare.waits()).unwrap_err();
    assert!(error.is_panic());
    drop(driven.gets_one(driven.waits()));
}

/// Nor does one wait there for ever, once there is a time to wait for.
#[test]
fn whoever_waits_where_there_is_no_timer_hears_of_it() {
    let burst = Quota::new(1, millis(1000)).shape(Shape::Burst);
    let call = call("/");
    for has_runtime in [true, false] {
        let limits = Limits::builder().every_call(burst).build().unwrap();
        let bare = tokio::runtime::Builder::new_current_thread().build();
        let bare = has_runtime.then(|| bare.unwrap());
        let now = Instant::now().into_std();
        let permit = limits.try_acquire(&call, now).unwrap();
        let mut waits = task::spawn(limits.acquire(&call));
        let entered = bare.as_ref().map(Runtime::enter);
        assert_pending!(waits.poll());
        drop(entered);
        drop(permit);
        if let Some(bare) = &bare {
            bare.block_on(yield_now());
        }
        assert!(waits.is_woken());
        let _entered = bare.as_ref().map(Runtime::enter);
        let poll = AssertUnwindSafe(|| drop(waits.poll()));
        catch_unwind(poll).unwrap_err();
    }
}

/// A runtime that has ended may not be the one in which the wait goes on.
#[test]
fn whoever_has_waited_in_a_runtime_that_has_ended_goes_on_elsewhere() {
    let limits = Limits::builder().every_call(Quota::new(1, millis(1000)).shape(Shape::Burst));
    let limits = limits.build().unwrap();
    let permit = limits.try_acquire(&call("/"), Instant::now().into_std());
    let mut moves = task::spawn(Blocking::acquire(limits.clone()));
    runtime().block_on(async { assert_pending!(moves.poll()) });
    drop(permit);
    assert!(moves.is_woken());
    let end = async { timeout(millis(5000), moves).await };
    drop(runtime().block_on(end).unwrap());
}

/// And is told so once, though there may be many of them.
#[test]
fn whoever_has_waited_in_a_runtime_that_has_ended_is_woken_once() {
    struct Count(AtomicUsize);
    impl Wake for Count {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }
    let limits = Limits::builder().every_call(Quota::new(1, millis(1000)).shape(Shape::Burst));
    let limits = limits.build().unwrap();
    let permit = limits.try_acquire(&call("/"), Instant::now().into_std());
    let woken = Arc::new(Count(AtomicUsize::new(0)));
    let waker = Waker::from(Arc::clone(&woken));
    let mut waits = Box::pin(Blocking::acquire(limits.clone()));
    let ended = runtime();
    let entered = ended.enter();
    let poll = waits.as_mut().poll(&mut Context::from_waker(&waker));
    assert_pending!(poll);
    drop(entered);
    drop(ended);
    drop(permit);
    for _ in 0..10 {
        assert_eq!(limits.snapshot().waiting, 1);
        assert_eq!(woken.0.load(Ordering::Relaxed), 1);
    }
}

#[test]
fn a_waker_that_panics_keeps_no_timer_from_being_set() {
    struct Panics;
    impl Wake for Panics {
        fn wake(self: Arc<Self>) {
            panic!("a waker");
        }
    }
    let limits = Limits::builder().every_call(Quota::concurrent(1));
    let limits = limits.build().unwrap();
    let _permit = limits.try_acquire(&call("/"), Instant::now().into_std());
    let driven = Blocking::new(&limits);
    let call = call("/").priority(Priority::High);
    let mut first = Box::pin(limits.acquire(&call));
    let waker = Waker::from(Arc::new(Panics));
    assert_pending!(first.as_mut().poll(&mut Context::from_waker(&waker)));
    let second = driven.waits();
    let rules = Limits::builder().every_call(Quota::new(3, millis(1000)));
    driven.runtime.block_on(async {
        advance(millis(100)).await;
        let change = AssertUnwindSafe(|| limits.reconfigure(rules));
        catch_unwind(change).unwrap_err();
    });
    drop(driven.gets_one(second));
}

/// Whoever waits in a runtime sees to the time for those who wait outside.
#[test]
fn without_a_runtime_one_may_wait_while_others_see_to_the_time() {
    let limits = Limits::builder().every_call(Quota::concurrent(1));
    let limits = limits.build().unwrap();
    let call = call("/");
    let _permit = limits.try_acquire(&call, Instant::now().into_std());
    let runtime = runtime();
    let deadline = runtime.block_on(async { Deadline::at(Instant::now() + millis(5000)) });
    let hasty = call.deadline(deadline);
    let mut inside = task::spawn(limits.acquire(&hasty));
    runtime.block_on(async { assert_pending!(inside.poll()) });
    let mut outside = task::spawn(limits.acquire(&call));
    assert_pending!(outside.poll());
    assert_pending!(outside.poll());
    assert!(!outside.is_woken());
    drop(inside);
    assert_pending!(outside.poll());
}

/// And once they don't any more, those outside hear of it, each time.
#[test]
fn without_a_runtime_one_hears_that_nobody_sees_to_the_time() {
    let limits = Limits::builder().every_call(Quota::new(1, millis(1000)).shape(Shape::Burst));
    let limits = limits.build().unwrap();
    let call = call("/");
    let permit = limits.try_acquire(&call, Instant::now().into_std());
    let mut outside = task::spawn(limits.acquire(&call));
    assert_pending!(outside.poll());
    drop(permit);
    let runtime = runtime();
    for _ in 0..3 {
        assert!(outside.is_woken());
        let mut inside = task::spawn(limits.acquire(&call));
        runtime.block_on(async { assert_pending!(inside.poll()) });
        assert_pending!(outside.poll());
        assert!(!outside.is_woken());
    }
}

/// Whoever has left waits for no time any more.
#[test]
fn without_a_runtime_one_may_wait_though_others_have_waited_for_the_time() {
    let limits = Limits::builder()
        .endpoint(Endpoint::get("/timed"), Quota::per_hour(1))
        .endpoint(Endpoint::get("/one"), Quota::concurrent(1))
        .build()
        .unwrap();
    let (timed, one) = (call("/timed"), call("/one"));
    runtime().block_on(async {
        drop(limits.acquire(&timed).await.unwrap());
        assert_pending!(task::spawn(limits.acquire(&timed)).poll());
    });
    let _permit = limits.try_acquire(&one, Instant::now().into_std());
    assert_pending!(task::spawn(limits.acquire(&one)).poll());
}

#[derive(Clone, Debug)]
struct Caller {
    arrives: u64,
    path: &'static str,
    account: Option<&'static str>,
    priority: Priority,
    patience: Option<u64>,
    /// When its task is aborted, after it has come.
    leaves: Option<u64>,
    holds: u64,
    end: u8,
}

/// Few times, so that much happens at once.
fn time(steps: u64) -> impl Strategy<Value = u64> {
    (0..steps).prop_map(|step| 5 * step)
}

fn callers() -> impl Strategy<Value = Vec<Caller>> {
    let times = (time(8), time(4));
    let path = prop_oneof![Just("/a"), Just("/b"), Just("/c")];
    let account = proptest::option::of(prop_oneof![Just("x"), Just("y")]);
    let priority = (0..3usize).prop_map(|level| Priority::ALL[level]);
    let patience = proptest::option::weighted(0.2, time(8));
    let leaves = proptest::option::weighted(0.5, time(6));
    let caller = (times, path, account, priority, patience, leaves, 0..8u8).prop_map(
        |((arrives, holds), path, account, priority, patience, leaves, end)| Caller {
            arrives,
            path,
            account,
            priority,
            patience,
            leaves,
            holds,
            end,
        },
    );
    vec(caller, 1..40)
}

fn quota() -> impl Strategy<Value = Quota> {
    let rate = prop_oneof![
        (1..4u32).prop_map(Quota::concurrent),
        (1..6u32, time(7)).prop_map(|(limit, window)| Quota::new(limit, millis(window + 1))),
        (1..6u32, time(7))
            .prop_map(|(limit, window)| Quota::new(limit, millis(window + 1)).shape(Shape::Burst)),
        (1..6u32, time(7), 1..5u32).prop_map(|(limit, per, burst)| Quota::rate(
            limit,
            millis(per + 1)
        )
        .burst(burst)),
    ];
    let in_flight = proptest::option::weighted(0.3, 1..4u32);
    let margin = proptest::option::weighted(0.2, time(8));
    let share = (0..3usize, prop_oneof![Just(0), 1..60u8]);
    (rate, in_flight, margin, share).prop_map(|(mut quota, in_flight, margin, (level, share))| {
        if let Some(in_flight) = in_flight {
            quota = quota.in_flight(in_flight);
        }
        if let Some(margin) = margin {
            let margin = millis(margin);
            quota = quota.count_from(CountFrom::Sending { margin });
        }
        quota.reserve(Priority::ALL[level], share)
    })
}

/// Which of the rules there are, and their quotas.
fn rules() -> impl Strategy<Value = LimitsBuilder> {
    let rule = || proptest::option::of(quota());
    (rule(), rule(), rule(), rule()).prop_map(|(every, each, one, keyed)| {
        let mut rules = Limits::builder();
        if let Some(quota) = every {
            rules = rules.every_call(quota);
        }
        if let Some(quota) = each {
            rules = rules.each_endpoint(quota);
        }
        if let Some(quota) = one {
            rules = rules.endpoint(Endpoint::get("/a"), quota);
        }
        if let Some(quota) = keyed {
            rules = rules.keyed(Key::header(http::header::HOST), quota);
        }
        rules
    })
}

fn end(permit: Permit, how: u8) {
    match how {
        0 => permit.give_back(),
        1 => permit.failed(&Fault::new(Verdict::Unknown)),
        2 => permit.failed(&Fault::new(Verdict::Unknown).in_phase(Phase::Connect)),
        3 => permit.over(Verdict::NotExecuted {
            retry_after: Some(millis(7)),
            scope: Scope::Unspecified,
        }),
        4 => {
            let mut response = http::Response::new(());
            let said = HeaderValue::from_static(r#""a";r=1;t=1"#);
            response.headers_mut().insert("ratelimit", said);
            permit.answered(&response);
        }
        _ => drop(permit),
    }
}

async fn attempt(limits: Limits, caller: Caller) {
    let mut headers = HeaderMap::new();
    if let Some(account) = caller.account {
        headers.insert("host", HeaderValue::from_static(account));
    }
    let mut call = call(caller.path)
        .headers(&headers)
        .priority(caller.priority);
    if let Some(patience) = caller.patience {
        call = call.deadline(Deadline::at(Instant::now() + millis(patience)));
    }
    if let Ok(permit) = limits.acquire(&call).await {
        sleep(millis(caller.holds)).await;
        end(permit, caller.end);
    }
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: 1000,
        failure_persistence: None,
        ..ProptestConfig::default()
    })]

    #[test]
    fn nobody_waits_for_ever(
        rules in rules(),
        changes in vec((time(16), rules()), 0..3),
        callers in callers(),
    ) {
        runtime().block_on(async {
            let limits = rules.build().unwrap();
            let start = Instant::now();
            for (at, rules) in changes {
                let limits = limits.clone();
                tokio::spawn(async move {
                    sleep_until(start + millis(at)).await;
                    limits.reconfigure(rules).unwrap();
                });
            }
            let calls: Vec<_> = callers.into_iter().map(|caller| {
                let limits = limits.clone();
                tokio::spawn(async move {
                    sleep_until(start + millis(caller.arrives)).await;
                    let leaves = caller.leaves;
                    let call = tokio::spawn(attempt(limits, caller));
                    if let Some(leaves) = leaves {
                        sleep(millis(leaves)).await;
                        call.abort();
                    }
                    call.await.is_err_and(|error| error.is_panic())
                })
            }).collect();
            for call in calls {
                let end = timeout(Duration::from_secs(1000), call).await;
                let panicked = end.expect("somebody waits for ever").unwrap();
                assert!(!panicked);
            }
            let left = limits.snapshot();
            assert_eq!(left.waiting, 0);
            assert!(left.quotas.iter().all(|quota| quota.in_flight == 0));
        });
    }
}
