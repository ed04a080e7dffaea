//! The timer of a limiter: one in each runtime in which somebody waits.
//!
//! It wakes the limiter itself, not a waiter: when it fires, the limiter grants
//! what is due and wakes exactly those who were granted. So no waiter leads the
//! others, and one that is dropped has nothing to hand over.
//!
//! Setting it takes a runtime. One who waits and is being polled is in it, and
//! sets it there. But who is woken may not be polled for long: a future that a
//! `select!` has left aside, while the same task waits for another permit. So
//! wherever else it has to be set (it has fired, an attempt was answered, somebody
//! came first in another runtime), a task of its own does it.

use std::pin::Pin;
use std::sync::{Arc, Weak};
use std::task::{Context, Poll, Wake, Waker};

use tokio::runtime::Handle;
use tokio::time::{Instant, Sleep, sleep_until};

use crate::shared::Shared;
use crate::state::arming::Arms;
use crate::sync::{Mutex, Runtime, lock, runtime};
use crate::time::now;

#[derive(Debug, Default)]
pub(crate) struct Timer {
    /// Only those who set it lock this, and they don't hold the limiter's lock
    /// meanwhile.
    sleep: Mutex<Option<Armed>>,
}

#[derive(Debug)]
struct Armed {
    sleep: Pin<Box<Sleep>>,
    /// Made once.
    waker: Waker,
}

/// Wakes the limiter, but doesn't keep it alive: the limiter owns the timer.
struct Alarm {
    shared: Weak<Shared>,
    runtime: Runtime,
}

impl Shared {
    /// Sets the timer here, if it has to be set anew. To be called by a task that
    /// is being polled, and waits.
    pub(crate) fn arm(self: &Arc<Self>) {
        if let Some(runtime) = runtime() {
            self.arm_in(&runtime);
        } else if lock(&self.core).state.is_adrift() {
            // Only attempts in flight can be waited for without a runtime.
            let _panics = Handle::current();
        }
    }

    /// The same, in tasks of their own in these runtimes, which drop them if they
    /// end. Where there is none, that's at once.
    pub(crate) fn arm_soon(self: &Arc<Self>, arms: Arms) {
        for runtime in arms {
            let handle = runtime.as_ref().map(|runtime| runtime.handle.clone());
            let sets = SetTimer {
                shared: Arc::downgrade(self),
                runtime,
                is_over: false,
            };
            if let Some(handle) = handle {
                handle.spawn(sets);
            }
        }
    }

    fn arm_in(self: &Arc<Self>, runtime: &Runtime) {
        while self.set_timer(runtime) {
            // Not under the timer's lock: whom this wakes may set it.
            self.fire(runtime);
        }
    }

    /// Says whether it is due already.
    fn set_timer(self: &Arc<Self>, runtime: &Runtime) -> bool {
        let now = self.nanos(now());
        let Some(timer) = lock(&self.core).state.unset_timer(runtime, now) else {
            return false;
        };
        let mut slot = lock(&timer.sleep);
        // Where none can be made there is a panic, and none is taken to be set.
        let Armed { sleep, waker } = slot.get_or_insert_with(|| Armed {
            sleep: Box::pin(sleep_until(Instant::now())),
            waker: Waker::from(Arc::new(Alarm {
                shared: Arc::downgrade(self),
                runtime: runtime.clone(),
            })),
        });
        // Only now: whoever comes after this has it set again.
        let Some(at) = lock(&self.core).state.arm(runtime, &timer, now) else {
            return false;
        };
        if let Some(at) = self.origin.instant(at) {
            sleep.as_mut().reset(at.into());
        }
        let sleep = std::pin::pin!(tokio::task::unconstrained(sleep.as_mut()));
        sleep.poll(&mut Context::from_waker(waker)).is_ready()
    }

    /// The timer of this runtime has fired: grants what is due.
    fn fire(self: &Arc<Self>, runtime: &Runtime) {
        let now = self.nanos(now());
        self.with(now, |core, now, wakers| {
            core.state.fired(runtime);
            core.state.pump(now, wakers);
        });
    }
}

/// Sets the timer, once it is polled. If it can't, it wakes who waits there: they
/// go on elsewhere, or say what is missing.
struct SetTimer {
    shared: Weak<Shared>,
    runtime: Option<Runtime>,
    is_over: bool,
}

impl Future for SetTimer {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<()> {
        if let (Some(shared), Some(runtime)) = (self.shared.upgrade(), &self.runtime) {
            // First: whoever needs it set for an earlier time from now on has
            // another sent.
            lock(&shared.core).state.sets(runtime);
            shared.arm_in(runtime);
        }
        self.is_over = true;
        Poll::Ready(())
    }
}

impl Drop for SetTimer {
    fn drop(&mut self) {
        if !self.is_over
            && let Some(shared) = self.shared.upgrade()
        {
            let wakers = lock(&shared.core).state.gives_up(self.runtime.as_ref());
            wakers.into_iter().for_each(Waker::wake);
        }
    }
}

impl Wake for Alarm {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        if let Some(shared) = self.shared.upgrade() {
            shared.fire(&self.runtime);
        }
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use std::time::Duration;

    use http::Method;
    use tokio::time::{advance, timeout};
    use tollway_core::Deadline;

    use super::*;
    use crate::ask::Asked;
    use crate::call::Call;
    use crate::limits::Limits;
    use crate::quota::{Quota, Shape};

    const SECOND: Duration = Duration::from_secs(1);

    /// Polls nothing but sets the timer, right where it is woken.
    struct Inline(Arc<Shared>);

    impl Wake for Inline {
        fn wake(self: Arc<Self>) {
            self.0.arm();
        }
    }

    #[tokio::test(start_paused = true)]
    async fn whoever_is_polled_where_it_is_woken_may_set_the_timer() {
        let quota = Quota::per_second(1).shape(Shape::Burst);
        let limits = Limits::builder().every_call(quota).build().unwrap();
        let shared = &limits.shared;
        let call = Call::new(&Method::GET, "/");
        drop(limits.acquire(&call).await.unwrap());
        let waker = Waker::from(Arc::new(Inline(Arc::clone(shared))));
        let patient = call.deadline(Deadline::at(Instant::now() + 60 * SECOND));
        let ask = || match shared.ask(&patient, now, &waker) {
            Asked::Waits(_, waiter) => waiter,
            asked => panic!("{asked:?}"),
        };
        let (first, second) = (ask(), ask());
        // Late, so that it is due when it is set.
        advance(2 * SECOND).await;
        shared.arm();
        assert!(shared.check(first, now(), &waker).is_some());
        shared.leave(second);
    }

    #[test]
    fn runtimes_that_come_and_go_leave_nothing_behind() {
        let limits = Limits::builder().every_call(Quota::concurrent(1));
        let limits = limits.build().unwrap();
        let call = Call::new(&Method::GET, "/");
        let _permit = limits.try_acquire(&call, now()).unwrap();
        for _ in 0..20 {
            let mut runtime = tokio::runtime::Builder::new_current_thread();
            runtime.enable_time().build().unwrap().block_on(async {
                let in_vain = timeout(Duration::from_millis(1), limits.acquire(&call));
                in_vain.await.unwrap_err();
            });
        }
        assert_eq!(lock(&limits.shared.core).state.posts(), 1);
    }

    /// Everybody in a runtime may be gone, and others come, while one who waited
    /// there is about to set its timer.
    #[tokio::test(start_paused = true)]
    async fn whoever_sets_a_timer_that_is_gone_sets_none_for_those_who_came_after() {
        let quota = Quota::per_second(1).shape(Shape::Burst);
        let limits = Limits::builder().every_call(quota).build().unwrap();
        let shared = &limits.shared;
        let call = Call::new(&Method::GET, "/");
        drop(limits.acquire(&call).await.unwrap());
        let ask = || match shared.ask(&call, now, Waker::noop()) {
            Asked::Waits(_, waiter) => waiter,
            asked => panic!("{asked:?}"),
        };
        let (here, first) = (runtime().unwrap(), ask());
        let timer = lock(&shared.core).state.unset_timer(&here, 0).unwrap();
        shared.leave(first);
        let mut other = tokio::runtime::Builder::new_current_thread();
        let other = other.enable_time().build().unwrap();
        let elsewhere = std::thread::scope(|scope| {
            let polled = scope.spawn(|| other.block_on(async { ask() }));
            polled.join().unwrap()
        });
        let second = ask();
        let mut core = lock(&shared.core);
        assert_eq!(core.state.arm(&here, &timer, 0), None);
        assert!(core.state.unset_timer(&here, 0).is_some());
        drop(core);
        shared.leave(second);
        shared.leave(elsewhere);
        other.shutdown_background();
    }

    #[tokio::test(start_paused = true)]
    async fn a_timer_that_has_fired_is_set_again_whatever_the_clock_says() {
        let quota = Quota::per_second(1).shape(Shape::Burst);
        let limits = Limits::builder().every_call(quota).build().unwrap();
        let call = Call::new(&Method::GET, "/");
        drop(limits.acquire(&call).await.unwrap());
        let asked = limits.shared.ask(&call, now, Waker::noop());
        let here = runtime().unwrap();
        let state = &mut lock(&limits.shared.core).state;
        let timer = state.unset_timer(&here, 0).unwrap();
        assert!(state.arm(&here, &timer, 0).is_some());
        assert!(state.unset_timer(&here, 0).is_none());
        state.fired(&here);
        assert!(state.unset_timer(&here, 0).is_some());
        drop(asked);
    }

    #[tokio::test(start_paused = true)]
    async fn limits_that_nobody_holds_any_more_are_gone_with_their_timer() {
        let quota = Quota::per_second(1).shape(Shape::Burst);
        let limits = Limits::builder().every_call(quota).build().unwrap();
        let shared = Arc::downgrade(&limits.shared);
        let call = Call::new(&Method::GET, "/");
        drop(limits.acquire(&call).await.unwrap());
        let in_vain = timeout(Duration::from_millis(1), limits.acquire(&call));
        in_vain.await.unwrap_err();
        drop(limits);
        assert!(shared.upgrade().is_none());
    }
}
