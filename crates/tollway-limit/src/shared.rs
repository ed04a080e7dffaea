//! What all handles share: the lock, and the ways through it and around it.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::Waker;
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use tollway_core::recent;

use crate::call::Call;
use crate::error::RateLimitError;
use crate::express::{Express, Loan};
use crate::gauge::Gauge;
use crate::lanes::{Fate, Plan};
use crate::limits::Core;
use crate::permit::Permit;
use crate::quota::{EXPRESS, level};
use crate::routes::Routes;
use crate::state::{Admission, Wakers};
use crate::sync::{Mutex, MutexGuard, lock};
use crate::time::{self, Nanos, Origin};

/// What all handles share.
///
/// In this order, what taking and giving back a lent permit reads and writes
/// lies beside the counts of the handles, which they write too. So a processor
/// that is after a permit fetches one line from another, as a rule, and not
/// three; and what the lock guards, in a box, is on lines of its own.
#[repr(C)]
pub(crate) struct Shared {
    express: Express,
    pub(crate) origin: Origin,
    /// Whether `Core::only` may be there. A hint: the lock tells.
    is_plain: AtomicBool,
    pub(crate) routes: ArcSwap<Routes>,
    pub(crate) core: Box<Mutex<Core>>,
    #[cfg(feature = "tokio")]
    pub(crate) timer: crate::timer::Timer,
}

/// What comes of asking, with the lock released.
#[derive(Debug)]
pub(crate) enum Asked {
    Granted(Permit),
    Waits(Arc<Shared>, u32),
    Refused(RateLimitError),
}

impl Shared {
    pub(crate) fn new(core: Core, routes: Routes) -> Self {
        Self {
            express: Express::new(match core.only.as_deref() {
                Some(&[meter]) => Some(meter),
                _ => None,
            }),
            origin: Origin::now(),
            is_plain: AtomicBool::new(core.only.is_some()),
            routes: ArcSwap::from_pointee(routes),
            core: Box::new(Mutex::new(core)),
            #[cfg(feature = "tokio")]
            timer: crate::timer::Timer::default(),
        }
    }

    /// Makes the way to other limits known.
    pub(crate) fn publish(&self, core: &Core, routes: Routes) {
        self.is_plain.store(core.only.is_some(), Ordering::Relaxed);
        self.routes.store(Arc::new(routes));
    }

    pub(crate) fn nanos(&self, instant: Instant) -> Nanos {
        self.origin.nanos(instant)
    }

    /// Runs `decide` under the lock, and wakes whom it names afterwards.
    ///
    /// The timer may have to be set anew then. Whoever was granted a permit
    /// does that when it is polled, in its own runtime; where nobody was,
    /// someone who waits is woken to do it.
    pub(crate) fn with<R>(
        &self,
        now: Nanos,
        decide: impl FnOnce(&mut Core, Nanos, &mut Wakers) -> R,
    ) -> R {
        self.decide(now, |core, now, wakers| {
            let decision = decide(core, now, wakers);
            if wakers.is_empty() && core.state.must_arm() {
                wakers.extend(core.state.lanes.any_waiting().cloned());
            }
            decision
        })
    }

    /// The same, by a task that sets the timer itself.
    fn decide<R>(&self, now: Nanos, decide: impl FnOnce(&mut Core, Nanos, &mut Wakers) -> R) -> R {
        let mut wakers = Wakers::new();
        let (mut core, now) = self.enter(now);
        let decision = decide(&mut core, now, &mut wakers);
        drop(core);
        if !wakers.is_empty() {
            wakers.into_iter().for_each(Waker::wake);
        }
        decision
    }

    /// Takes the lock, and brings what it guards up to date.
    #[inline]
    fn enter(&self, now: Nanos) -> (MutexGuard<'_, Core>, Nanos) {
        let mut core = lock(&self.core);
        let now = self.update(&mut core, now);
        (core, now)
    }

    /// The same, unless `lent` is all that is needed, which takes no lock.
    ///
    /// It is tried again with the lock in hand: whoever had it may have lent
    /// anew. Otherwise two would recall each other's loans for ever.
    #[inline]
    fn enter_unless(
        &self,
        now: Nanos,
        lent: impl Fn(&Express) -> bool,
    ) -> Option<(MutexGuard<'_, Core>, Nanos)> {
        if lent(&self.express) {
            return None;
        }
        let mut core = lock(&self.core);
        if core.loan.is_some() && lent(&self.express) {
            return None;
        }
        let now = self.update(&mut core, now);
        Some((core, now))
    }

    /// Sees to it that nothing is lent, and that time doesn't go backwards.
    #[inline]
    fn update(&self, core: &mut Core, now: Nanos) -> Nanos {
        if let Some(loan) = core.loan.take() {
            self.recall(core, loan, now);
        }
        core.state.tick(now)
    }

    /// Accounts for what has happened without the lock.
    #[inline(never)]
    fn recall(&self, core: &mut Core, loan: Loan, now: Nanos) {
        let used = self.express.recall(loan);
        let now = core.state.tick(now);
        let Some(meter) = core.state.meters.get_mut(self.express.meter as usize) else {
            return;
        };
        if used.taken > 0 {
            meter.gauge.take_lent(EXPRESS, used.taken, now);
        }
        if used.answered > 0 {
            // None was answered after this, nor after the end of the loan.
            let at = self.nanos(time::now()).min(loan.until);
            meter.gauge.finish_many(EXPRESS, used.answered, at);
        }
    }

    /// Lends what is left. Nobody may wait for it.
    #[inline]
    fn lend(&self, core: &mut Core, now: Nanos) {
        debug_assert_eq!(core.state.lanes.waiting(), 0);
        let id = self.express.meter;
        if let Some(meter) = core.state.meters.get_mut(id as usize)
            && meter.gauge.lends()
            && core.only.as_deref() == Some(&[id])
        {
            let spare = meter.gauge.spare(now);
            if spare > 0 {
                core.loan = Some(self.express.lend(spare, now));
            }
        }
    }

    /// Asks for a permit. Without a `waker` it doesn't wait.
    #[inline]
    pub(crate) fn ask(
        self: Arc<Self>,
        call: &Call<'_>,
        now: Instant,
        waker: Option<&Waker>,
    ) -> Asked {
        let level = level(call.priority);
        let deadline = call.deadline.map(|deadline| self.nanos(deadline.instant()));
        let now = self.nanos(now);
        match self.take_at_once(level, deadline, now) {
            Some((plan, at)) => Asked::Granted(Permit::new(self, plan, level, at)),
            None => self.ask_at_length(call, level, deadline, now, waker),
        }
    }

    /// A permit, if it is there at once and easily found.
    #[inline]
    pub(crate) fn ask_at_once(self: &Arc<Self>, call: &Call<'_>) -> Option<Permit> {
        let level = level(call.priority);
        let deadline = call.deadline.map(|deadline| self.nanos(deadline.instant()));
        let now = self.nanos(recent(time::now));
        let (plan, at) = self.take_at_once(level, deadline, now)?;
        Some(Permit::new(Arc::clone(self), plan, level, at))
    }

    /// A permit, where every call has the same plan, there is room, and nobody
    /// waits.
    #[inline]
    fn take_at_once(
        &self,
        level: usize,
        deadline: Option<Nanos>,
        now: Nanos,
    ) -> Option<(Plan, Nanos)> {
        if !self.is_plain.load(Ordering::Relaxed) {
            return None;
        }
        let is_usual = level == EXPRESS && deadline.is_none_or(|deadline| deadline > now);
        let Some((mut core, now)) = self.enter_unless(now, |lent| is_usual && lent.take()) else {
            return Some((Plan::from_slice(&[self.express.meter]), now));
        };
        let Core { only, state, .. } = &mut *core;
        let plan = only.as_ref()?;
        let taken = state.take_at_once(plan, level, deadline, now);
        // Copies plain numbers, where `clone` goes through an iterator.
        let plan = taken.then(|| Plan::from_slice(plan))?;
        self.lend(&mut core, now);
        Some((plan, now))
    }

    /// An attempt that was taken at `sent` is over.
    pub(crate) fn finish(&self, plan: &Plan, level: usize, sent: Nanos, now: Nanos) {
        let is_usual = |lent: &Express| level == EXPRESS && **plan == [lent.meter];
        let answer = |lent: &Express| lent.is_open() && is_usual(lent) && lent.answer(now);
        let Some((mut core, now)) = self.enter_unless(now, answer) else {
            return;
        };
        // Nobody waits for its place, as a rule; then that is all.
        if core.state.finish_at_once(plan, level, sent, now) {
            self.lend(&mut core, now);
            return;
        }
        drop(core);
        self.change(plan, now, |gauge, now| gauge.finish(level, sent, now));
    }

    fn ask_at_length(
        self: Arc<Self>,
        call: &Call<'_>,
        level: usize,
        deadline: Option<Nanos>,
        now: Nanos,
        waker: Option<&Waker>,
    ) -> Asked {
        let admit = |core: &mut Core, plan: Plan, now, wakers: &mut Wakers| {
            let state = &mut core.state;
            let admission = state.admit(&plan, level, deadline, now, waker, wakers);
            // Whoever may go doesn't set the timer for those who wait.
            if wakers.is_empty() && matches!(admission, Admission::Granted(_)) && state.must_arm() {
                wakers.extend(state.lanes.any_waiting().cloned());
            }
            (plan, admission)
        };
        let (plan, admission) = loop {
            let routes = self.routes.load();
            let route = routes.route(call);
            let asked = self.decide(now, |core, now, wakers| {
                // New limits may have come in between; then this route leads
                // astray, and the next one is looked up.
                if core.version != routes.version {
                    return None;
                }
                let plan = core.plan(&route, now);
                Some(admit(core, plan, now, wakers))
            });
            if let Some(asked) = asked {
                break asked;
            }
        };
        let error = match admission {
            Admission::Granted(at) => {
                return Asked::Granted(Permit::new(self, plan, level, at));
            }
            Admission::Waits(waiter) => return Asked::Waits(self, waiter),
            Admission::NotNow(wait) => RateLimitError::not_now(Duration::from_nanos(wait)),
            Admission::QueueFull(wait) => RateLimitError::queue_full(Duration::from_nanos(wait)),
            Admission::TooLate(wait) => RateLimitError::deadline(Some(Duration::from_nanos(wait))),
        };
        tracing::debug!(target: "tollway::limit", { tollway.limit.reason = %error }, "gave no permit");
        Asked::Refused(error)
    }

    /// Applies `change` to each gauge of a plan.
    pub(crate) fn change(
        &self,
        plan: &Plan,
        now: Nanos,
        mut change: impl FnMut(&mut Gauge, Nanos),
    ) {
        self.with(now, |core, now, wakers| {
            core.state
                .change(plan, now, wakers, |gauge| change(gauge, now));
        });
    }

    /// What became of a waiter, if its wait is over. Otherwise `waker` will be
    /// woken.
    pub(crate) fn check(
        self: &Arc<Self>,
        waiter: u32,
        now: Instant,
        waker: &Waker,
    ) -> Option<Result<Permit, RateLimitError>> {
        let mut old = None;
        let fate = self.decide(self.nanos(now), |core, now, wakers| {
            // The timer may be late, or this poll early.
            core.state.pump(now, wakers);
            match &mut core.state.lanes.waiter_mut(waiter)?.fate {
                Fate::Waiting(waiting) => {
                    if !waiting.will_wake(waker) {
                        old = Some(std::mem::replace(waiting, waker.clone()));
                    }
                    None
                }
                Fate::Granted { .. } | Fate::TooLate { .. } => {
                    core.state.drop_waiter(waiter, now, wakers)
                }
            }
        });
        // Foreign code, so only after the lock.
        drop(old);
        let (plan, level, fate, since) = fate?;
        Some(match fate {
            Fate::Granted { at } => {
                let waited = Duration::from_nanos(at.saturating_sub(since));
                tracing::debug!(
                    target: "tollway::limit",
                    { tollway.limit.wait = waited.as_secs_f64() },
                    "waited for a permit"
                );
                Ok(Permit::new(Arc::clone(self), plan, level, at))
            }
            Fate::TooLate { wait } => Err(RateLimitError::deadline(
                (wait > 0).then(|| Duration::from_nanos(wait)),
            )),
            Fate::Waiting(_) => Err(RateLimitError::deadline(None)),
        })
    }

    /// A waiter is dropped.
    pub(crate) fn leave(&self, waiter: u32) {
        let now = self.nanos(time::now());
        let gone = self.with(now, |core, now, wakers| {
            let gone = core.state.drop_waiter(waiter, now, wakers)?;
            if let (plan, level, Fate::Granted { at }, _) = &gone {
                core.state.change(plan, now, wakers, |gauge| {
                    gauge.give_back(*level, *at, now);
                });
            }
            Some(gone)
        });
        drop(gone);
    }
}

impl fmt::Debug for Shared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Shared").finish_non_exhaustive()
    }
}
