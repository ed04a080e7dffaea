//! What all handles share: the lock, and the ways through it and around it.

use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::task::Waker;
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;

use crate::error::RateLimitError;
use crate::express::Express;
use crate::gauge::Gauge;
use crate::lanes::{Fate, Plan};
use crate::limits::Core;
use crate::permit::Permit;
use crate::routes::Way;
use crate::state::Wakers;
use crate::sync::{Mutex, Runtime, lock, runtime};
use crate::time::{self, Nanos, Origin};

/// What all handles share.
pub(crate) struct Shared {
    /// Where permits are taken without the lock, once all calls have one quota.
    /// They are of the first such quota, for good.
    pub(crate) express: OnceLock<Express>,
    pub(crate) origin: Origin,
    /// Whether `Core::only` may be there. A hint: the lock tells.
    is_plain: AtomicBool,
    pub(crate) way: ArcSwap<Way>,
    /// In a box, it is on lines of its own.
    pub(crate) core: Box<Mutex<Core>>,
}

impl Shared {
    pub(crate) fn new(core: Core, way: Way, origin: Origin) -> Arc<Self> {
        let shared = Arc::new(Self {
            express: OnceLock::new(),
            origin,
            is_plain: AtomicBool::new(false),
            way: ArcSwap::from_pointee(way),
            core: Box::new(Mutex::new(core)),
        });
        shared.lend(&mut lock(&shared.core));
        shared
    }

    /// Makes the way to other limits known.
    pub(crate) fn publish(self: &Arc<Self>, core: &mut Core, way: Way) {
        self.lend(core);
        self.way.store(Arc::new(way));
    }

    /// Lends without the lock what one quota has for all calls, if that is so.
    fn lend(self: &Arc<Self>, core: &mut Core) {
        if let Some(meter) = core.only_meter() {
            let new = || Express::new(meter, self.origin, &Arc::downgrade(self));
            self.express.get_or_init(new);
        }
        core.lend_at(self.express.get());
        self.is_plain.store(core.only.is_some(), Ordering::Relaxed);
    }

    #[inline]
    pub(crate) fn is_plain(&self) -> bool {
        self.is_plain.load(Ordering::Relaxed)
    }

    pub(crate) fn nanos(&self, instant: Instant) -> Nanos {
        self.origin.nanos(instant)
    }

    /// Runs `decide` under the lock, and wakes whom it names afterwards.
    pub(crate) fn with<R>(
        self: &Arc<Self>,
        now: Nanos,
        decide: impl FnOnce(&mut Core, Nanos, &mut Wakers) -> R,
    ) -> R {
        self.decide(now, |core, now, wakers, _| decide(core, now, wakers))
    }

    /// The same, for one who waits, and says in which runtime it sets the timer
    /// itself. Tasks of their own set the others that have to be set anew.
    pub(crate) fn decide<R>(
        self: &Arc<Self>,
        now: Nanos,
        decide: impl FnOnce(&mut Core, Nanos, &mut Wakers, &mut Option<Runtime>) -> R,
    ) -> R {
        let (mut wakers, mut here) = (Wakers::new(), None);
        let mut core = lock(&self.core);
        let now = core.state.meters.tick(now);
        let decision = decide(&mut core, now, &mut wakers, &mut here);
        let arms = core.state.have_armed(here.as_ref(), now);
        drop(core);
        // Before any waker: that is foreign code, and may panic.
        self.arm_soon(arms);
        if !wakers.is_empty() {
            wakers.into_iter().for_each(Waker::wake);
        }
        decision
    }

    /// Sets the timer in these runtimes, soon.
    #[cfg(not(feature = "tokio"))]
    fn arm_soon(&self, _: crate::state::arming::Arms) {}

    /// Applies `change` to each gauge of a plan.
    pub(crate) fn change(
        self: &Arc<Self>,
        plan: &Plan,
        now: Nanos,
        mut change: impl FnMut(&mut Gauge, Nanos),
    ) {
        self.with(now, |core, now, wakers| {
            core.state
                .change(plan, now, wakers, |gauge| change(gauge, now));
        });
    }

    /// What became of a waiter, if its wait is over: an outcome, or with which
    /// ticket it is to ask again. Otherwise `waker` will be woken.
    pub(crate) fn check(
        self: &Arc<Self>,
        waiter: u32,
        now: Instant,
        waker: &Waker,
    ) -> Option<Result<Result<Permit, RateLimitError>, u64>> {
        let mut old = None;
        let gone = self.decide(self.nanos(now), |core, now, wakers, here| {
            let state = &mut core.state;
            // The timer may be late, or this poll early.
            state.pump(now, wakers);
            let waiting = state
                .lanes
                .waiter_mut(waiter)
                .map(|waiter| &mut waiter.fate);
            let Some(Fate::Waiting(waiting)) = waiting else {
                return state.collect(waiter, now, wakers);
            };
            if !waiting.will_wake(waker) {
                old = Some(std::mem::replace(waiting, waker.clone()));
            }
            *here = runtime();
            state.waits_in(waiter, here.as_ref());
            None
        });
        // Foreign code, so only after the lock.
        drop(old);
        let gone = gone?;
        Some(match gone.fate {
            Fate::Granted { at } => {
                let waited = Duration::from_nanos(at.saturating_sub(gone.since));
                tracing::debug!(
                    target: "tollway::limit",
                    { tollway.limit.wait = waited.as_secs_f64() },
                    "waited for a permit"
                );
                Ok(Ok(Permit::taken(
                    Arc::clone(self),
                    gone.plan,
                    gone.level,
                    at,
                )))
            }
            Fate::TooLate { wait } => {
                let wait = Duration::from_nanos(wait);
                Ok(Err(RateLimitError::deadline(wait).told()))
            }
            Fate::Void | Fate::Waiting(_) => Err(gone.ticket),
        })
    }

    /// A waiter is dropped.
    pub(crate) fn leave(self: &Arc<Self>, waiter: u32) {
        let now = self.nanos(time::now());
        let gone = self.with(now, |core, now, wakers| {
            let gone = core.state.drop_waiter(waiter, now, wakers)?;
            if let Fate::Granted { at } = gone.fate {
                core.state.change(&gone.plan, now, wakers, |gauge| {
                    gauge.give_back(gone.level, Some(at), true);
                });
            }
            Some(gone)
        });
        // Its waker is foreign code, so only after the lock.
        drop(gone);
    }
}

impl fmt::Debug for Shared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Shared").finish_non_exhaustive()
    }
}
