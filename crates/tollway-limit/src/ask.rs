//! Asking for a permit, and saying that an attempt is over.

use std::sync::Arc;
use std::task::Waker;
use std::time::{Duration, Instant};

use tollway_core::recent;

use crate::call::Call;
use crate::directory::Directory;
use crate::error::RateLimitError;
use crate::express::{Express, Taken, Till};
use crate::lanes::{Plan, Wish};
use crate::limits::Core;
use crate::permit::Permit;
use crate::quota::{EXPRESS, level};
use crate::routes::{Home, Route, Routes, Way};
use crate::shared::Shared;
use crate::state::{Admission, State};
use crate::sync::{lock, runtime};
use crate::time::{self, Nanos, Origin};

/// What comes of asking, with the lock released.
#[derive(Debug)]
pub(crate) enum Asked {
    Granted(Permit),
    Waits(Arc<Shared>, u32),
    Refused(RateLimitError),
}

/// A call that asks: for what, and how to read the clock.
struct Asking<'a, F> {
    call: &'a Call<'a>,
    wish: Wish,
    /// The time, once it has been read. A lent permit may be taken whatever it
    /// is, so without a deadline it seldom needs to be.
    now: Option<Nanos>,
    read: F,
    /// Whether the time is the caller's own. The limiter has to be told of that,
    /// or it couldn't say when the attempt was over.
    is_given: bool,
    waker: Option<&'a Waker>,
}

impl<'a, F: Fn() -> Nanos> Asking<'a, F> {
    #[inline]
    fn new(origin: Origin, call: &'a Call<'a>, read: F, waker: Option<&'a Waker>) -> Self {
        let deadline = call.deadline;
        Self {
            call,
            wish: Wish {
                level: level(call.priority),
                deadline: deadline.map(|deadline| origin.nanos(deadline.instant())),
                ticket: None,
            },
            now: deadline.map(|_| read()),
            read,
            is_given: false,
            waker,
        }
    }

    #[inline]
    fn now(&mut self) -> Nanos {
        *self.now.get_or_insert_with(&self.read)
    }

    /// Takes a lent permit, if there is one and it may.
    #[inline]
    fn take(&mut self, till: &Arc<Till>) -> Option<Permit> {
        let deadline = self.wish.deadline.zip(self.now);
        let is_in_time = deadline.is_none_or(|(deadline, now)| deadline > now);
        if self.wish.level != EXPRESS || !is_in_time {
            return None;
        }
        if self.is_given && !till.is_told(self.now()) {
            return None;
        }
        let sent = match till.take()? {
            // Now and then one is timed, for the limiter to know how long
            // answers take.
            Taken::First => Some(self.now()),
            Taken::Later => self.now,
        };
        Some(Permit::lent(till, sent))
    }

    /// The same with the lock in hand: whoever had it may have lent anew.
    /// Otherwise two would recall each other's loans for ever.
    fn take_after_all(&mut self, core: &Core, till: &Arc<Till>) -> Option<Permit> {
        let meter = core.state.meters.get(till.meter)?;
        let is_lending = meter.is_lending();
        is_lending.then(|| self.take(till)).flatten()
    }
}

impl Shared {
    /// Asks for a permit, or for a place in the queue.
    #[inline]
    pub(crate) fn ask(
        self: &Arc<Self>,
        call: &Call<'_>,
        now: impl Fn() -> Instant,
        waker: &Waker,
    ) -> Asked {
        let read = || self.nanos(now());
        self.ask_for(Asking::new(self.origin, call, read, Some(waker)))
    }

    /// The same for one who has waited, and is to ask again: with this ticket.
    pub(crate) fn ask_again(
        self: &Arc<Self>,
        call: &Call<'_>,
        ticket: u64,
        now: impl Fn() -> Instant,
        waker: &Waker,
    ) -> Asked {
        let read = || self.nanos(now());
        let mut asking = Asking::new(self.origin, call, read, Some(waker));
        asking.wish.ticket = Some(ticket);
        self.ask_for(asking)
    }

    /// Asks for a permit at a time that the caller knows, and doesn't wait.
    pub(crate) fn ask_at(self: &Arc<Self>, call: &Call<'_>, now: Instant) -> Asked {
        let mut asking = Asking::new(self.origin, call, || self.nanos(now), None);
        asking.is_given = true;
        self.ask_for(asking)
    }

    #[inline]
    fn ask_for(self: &Arc<Self>, mut asking: Asking<'_, impl Fn() -> Nanos>) -> Asked {
        let is_given = asking.is_given;
        let permit = self.take_at_once(&mut asking, |state, plan, now| {
            Some(self.sends_at(state, plan, is_given, now))
        });
        match permit {
            Some(permit) => Asked::Granted(permit),
            None => self.ask_at_length(asking),
        }
    }

    /// A permit, if it is there at once and easily found, for a call whose future
    /// isn't polled yet. What is on its way nonetheless is counted when it is
    /// answered; where it counts from sending, it is to be sent right away.
    #[inline]
    pub(crate) fn ask_early(self: &Arc<Self>, call: &Call<'_>) -> Option<Permit> {
        let now = || self.nanos(recent(time::now));
        let mut asking = Asking::new(self.origin, call, now, None);
        self.take_at_once(&mut asking, |state, plan, now| {
            state.counts_from_response(plan).then_some(now)
        })
    }

    /// A permit, where every call has the same plan, there is room, and nobody
    /// waits: if `sends_at` says when it is sent.
    #[inline]
    fn take_at_once(
        self: &Arc<Self>,
        asking: &mut Asking<'_, impl Fn() -> Nanos>,
        sends_at: impl FnOnce(&mut State, &[u32], Nanos) -> Option<Nanos>,
    ) -> Option<Permit> {
        if !self.is_plain() {
            return None;
        }
        let till = self.express.get().map(Express::till);
        let lent = till.and_then(|till| asking.take(till));
        if lent.is_some() {
            return lent;
        }
        let (wish, now) = (asking.wish, asking.now());
        let mut core = lock(&self.core);
        let lent = till.and_then(|till| asking.take_after_all(&core, till));
        if lent.is_some() {
            return lent;
        }
        let Core { only, state, .. } = &mut *core;
        let now = state.meters.tick(now);
        let plan = only.as_ref()?;
        let now = sends_at(state, plan, now)?;
        let taken = state.take_at_once(plan, wish.level, wish.deadline, now);
        // Copies plain numbers, where `clone` goes through an iterator.
        let plan = taken.then(|| Plan::from_slice(plan))?;
        drop(core);
        Some(Permit::taken(Arc::clone(self), plan, wish.level, now))
    }

    /// The same where calls have different plans, for one that no key's quota
    /// covers.
    fn take_routed(
        self: &Arc<Self>,
        asking: &mut Asking<'_, impl Fn() -> Nanos>,
        routes: &Routes,
        route: &Route<'_, '_>,
    ) -> Option<Permit> {
        if self.is_plain() || !route.keys.is_empty() {
            return None;
        }
        let (wish, now) = (asking.wish, asking.now());
        let mut core = lock(&self.core);
        if core.version != routes.version {
            return None;
        }
        let now = core.state.meters.tick(now);
        let now = self.sends_at(&mut core.state, route.fixed, asking.is_given, now);
        let state = &mut core.state;
        let taken = state.take_at_once(route.fixed, wish.level, wish.deadline, now);
        let plan = taken.then(|| Plan::from_slice(route.fixed))?;
        drop(core);
        Some(Permit::taken(Arc::clone(self), plan, wish.level, now))
    }

    fn ask_at_length(self: &Arc<Self>, mut asking: Asking<'_, impl Fn() -> Nanos>) -> Asked {
        let asked = loop {
            let way = self.way.load();
            let route = way.routes.route(asking.call);
            let till = way.till(&route);
            if let Some(permit) = till.and_then(|till| asking.take(till)) {
                return Asked::Granted(permit);
            }
            if let Some(permit) = self.take_routed(&mut asking, &way.routes, &route) {
                return Asked::Granted(permit);
            }
            let now = asking.now();
            let asked = self.decide(now, |core, now, wakers, here| {
                // New limits may have come in between; then this route leads
                // astray, and the next one is looked up.
                if core.version != way.routes.version {
                    return None;
                }
                if let Some(permit) = till.and_then(|till| asking.take_after_all(core, till)) {
                    return Some(Err(permit));
                }
                let plan = core.plan(&route, now);
                let state = &mut core.state;
                let now = self.sends_at(state, &plan, asking.is_given, now);
                let admission = state.admit(&plan, asking.wish, now, asking.waker, wakers);
                if let Admission::Waits(waiter) = admission {
                    *here = runtime();
                    state.waits_in(waiter, here.as_ref());
                }
                let stale = match admission {
                    Admission::Granted(_) => self.lend_by_key(core, &route, &plan, now),
                    _ => None,
                };
                Some(Ok((plan, admission, stale)))
            });
            if let Some(asked) = asked {
                break asked;
            }
        };
        let (plan, admission) = match asked {
            // It takes a while to drop what is stale.
            Ok((plan, admission, _stale)) => (plan, admission),
            Err(permit) => return Asked::Granted(permit),
        };
        let error = match admission {
            Admission::Granted(at) => {
                let permit = Permit::taken(Arc::clone(self), plan, asking.wish.level, at);
                return Asked::Granted(permit);
            }
            Admission::Waits(waiter) => return Asked::Waits(Arc::clone(self), waiter),
            Admission::NotNow(wait) => RateLimitError::not_now(Duration::from_nanos(wait)),
            Admission::QueueFull(wait) => RateLimitError::queue_full(Duration::from_nanos(wait)),
            Admission::TooLate(wait) => RateLimitError::deadline(Duration::from_nanos(wait)),
        };
        Asked::Refused(error.told())
    }

    /// When an attempt that may go by `now` is sent. What the poll under way has
    /// read of the time is too early for quotas that count from there.
    #[inline]
    fn sends_at(&self, state: &mut State, plan: &[u32], is_given: bool, now: Nanos) -> Nanos {
        match is_given || state.counts_from_response(plan) {
            true => now,
            false => state.meters.tick(self.nanos(time::now())),
        }
    }

    /// Lends what is left of a key's quota, and notes where. Hands back what the
    /// note has made stale.
    fn lend_by_key(
        self: &Arc<Self>,
        core: &mut Core,
        route: &Route<'_, '_>,
        plan: &[u32],
        now: Nanos,
    ) -> Option<Arc<Way>> {
        let (Some((home, key)), &[id]) = (route.only_key(), plan) else {
            return None;
        };
        let meters = core.state.meters.len();
        let meter = core.state.meters.get_mut(id)?;
        // It is worth it for those that several calls use at a time.
        if !meter.may_lend() || !meter.is_busy(now) {
            return None;
        }
        if meter.express.is_none() {
            // Those that share a quota don't lend: soon each may have its own.
            let Some(Home::Keyed(keys) | Home::Each { named: keys, .. }) = core.homes.get(home)
            else {
                return None;
            };
            if !keys.has(key, id) {
                return None;
            }
        }
        let express = meter
            .express
            .get_or_insert_with(|| Express::new(id, self.origin, &Arc::downgrade(self)));
        let way = self.way.load();
        let mut stale = None;
        if way.directory.is_unfit(meters) {
            let directory = Directory::for_keys(meters);
            directory.note(home, key, express);
            stale = Some(self.way.swap(Arc::new(Way {
                routes: Arc::clone(&way.routes),
                directory,
            })));
        } else if !way.directory.note(home, key, express) {
            // Nobody would find the way there.
            meter.express = None;
            return None;
        }
        core.state.lend(plan, now);
        stale
    }

    /// An attempt that was taken at `sent` is over.
    pub(crate) fn finish(
        self: &Arc<Self>,
        plan: &Plan,
        level: usize,
        sent: Option<Nanos>,
        now: Nanos,
        till: Option<&Till>,
    ) {
        let mut core = lock(&self.core);
        // Somebody may have lent anew.
        if let Some(till) = till
            && core
                .state
                .meters
                .get(till.meter)
                .is_some_and(|meter| meter.is_lending())
            && till.answer(now)
        {
            return;
        }
        let now = core.state.meters.tick(now);
        // Nobody waits for its place, as a rule; then that is all.
        if core.state.finish_at_once(plan, level, sent, now) {
            core.sweep(plan, now);
            return;
        }
        drop(core);
        self.change(plan, now, |gauge, now| gauge.finish(level, sent, now));
    }
}
