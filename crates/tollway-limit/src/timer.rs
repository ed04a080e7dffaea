//! The one timer of a limiter.
//!
//! It wakes the limiter itself, not a waiter: when it fires, the limiter grants
//! what is due and wakes exactly those who were granted. So no waiter leads the
//! others, and one that is dropped has nothing to hand over.
//!
//! Setting it takes a runtime, and only a task that is being polled certainly
//! has a live one. So the timer is set by those who are being polled: a
//! newcomer that has to wait, and whoever was granted a permit, for the next.
//! But who is woken may not be polled for long: a future that a `select!` has
//! left aside, while the same task waits for another permit. So wherever else the
//! timer has to be set (it has fired, an attempt was answered, a waiter left), be
//! it in a runtime or not, a task of its own does it, in the runtime of those who
//! wait.
//!
//! Nobody may drive a runtime any more once none of its tasks waits. So where those
//! who wait are in several, only they set the timer, and it is set anew whenever
//! one of them is polled or gone: otherwise one of them is woken to do it.

use std::pin::Pin;
use std::sync::{Arc, Weak};
use std::task::{Context, Poll, Wake, Waker};

use tokio::runtime::Handle;
use tokio::time::{Instant, Sleep, sleep_until};

use crate::shared::Shared;
use crate::sync::{Mutex, Runtime, lock};
use crate::time::{NANOS_PER_SEC, now};

#[derive(Debug, Default)]
pub(crate) struct Timer {
    /// Only those who set it lock this, and they don't hold the limiter's lock
    /// meanwhile.
    sleep: Mutex<Option<Armed>>,
}

#[derive(Debug)]
struct Armed {
    runtime: Runtime,
    sleep: Pin<Box<Sleep>>,
    /// Made once.
    waker: Waker,
}

/// Wakes the limiter, but doesn't keep it alive: the limiter owns the timer.
struct Alarm(Weak<Shared>);

impl Shared {
    /// Sets the timer, if it has to be set anew. To be called by a task that is
    /// being polled, and that `waits` or has waited.
    pub(crate) fn arm(self: &Arc<Self>, waits: bool) {
        while lock(&self.core).state.must_arm() {
            if !self.set_timer(waits) {
                return;
            }
            // Not under the timer's lock: whom this wakes may set it.
            self.fire();
        }
    }

    /// The same, in a task of its own in this runtime, which drops it if it ends.
    pub(crate) fn arm_soon(self: &Arc<Self>, runtime: Option<Runtime>) {
        if let Some(Runtime { handle }) = runtime {
            handle.spawn(SetTimer(Arc::downgrade(self)));
        }
    }

    /// Says whether it is due already.
    fn set_timer(self: &Arc<Self>, waits: bool) -> bool {
        let mut slot = lock(&self.timer.sleep);
        let handle = Handle::current();
        let runtime = Runtime { handle };
        // A timer of another runtime may be dead, or never be driven. Where none
        // can be made there is a panic, and none is taken to be set.
        let is_unfit = |armed: &Armed| armed.runtime != runtime;
        let made = slot.as_ref().is_none_or(is_unfit).then(|| Armed {
            runtime: runtime.clone(),
            sleep: Box::pin(sleep_until(Instant::now())),
            waker: Waker::from(Arc::new(Alarm(Arc::downgrade(self)))),
        });
        let next = {
            let state = &mut lock(&self.core).state;
            if !waits && state.is_elsewhere(Some(&runtime)) {
                return false;
            }
            state.armed = state.next_wake();
            state.armed
        };
        if made.is_some() {
            *slot = made;
        }
        let (Some(next), Some(armed)) = (next, &mut *slot) else {
            return false;
        };
        let at = self.origin.instant(next).map_or_else(
            // Beyond what the clock can say: look again tomorrow.
            || Instant::now() + std::time::Duration::from_nanos(86_400 * NANOS_PER_SEC),
            Instant::from_std,
        );
        armed.sleep.as_mut().reset(at);
        let mut sleep = std::pin::pin!(tokio::task::unconstrained(armed.sleep.as_mut()));
        let polled = sleep.as_mut().poll(&mut Context::from_waker(&armed.waker));
        polled.is_ready()
    }

    /// Grants what is due.
    fn fire(self: &Arc<Self>) {
        let now = self.nanos(now());
        self.with(now, |core, now, wakers| {
            core.state.armed = None;
            core.state.pump(now, wakers);
        });
    }
}

/// Sets the timer, once it is polled.
struct SetTimer(Weak<Shared>);

impl Future for SetTimer {
    type Output = ();

    fn poll(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<()> {
        if let Some(shared) = self.0.upgrade() {
            shared.arm(false);
        }
        Poll::Ready(())
    }
}

impl Drop for SetTimer {
    fn drop(&mut self) {
        if let Some(shared) = self.0.upgrade() {
            lock(&shared.core).state.is_arming = false;
        }
    }
}

impl Wake for Alarm {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        if let Some(shared) = self.0.upgrade() {
            shared.fire();
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
            self.0.arm(true);
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
        shared.arm(true);
        assert!(shared.check(first, now(), &waker).is_some());
        shared.leave(second);
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
