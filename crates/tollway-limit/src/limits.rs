//! The handle that layers, services and plain code share.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::Waker;
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;

use crate::builder::LimitsBuilder;
use crate::call::Call;
use crate::error::{InvalidLimits, RateLimitError};
use crate::gauge::Gauge;
use crate::lanes::{Fate, Plan};
use crate::permit::Permit;
use crate::quota::level;
use crate::routes::{self, Home, Route, Routes};
use crate::state::{Admission, State, Wakers};
use crate::sync::{Mutex, MutexGuard, lock};
use crate::time::{Nanos, Origin, now};

/// A provider's limits, and how much of them is used.
///
/// It is a handle: clones share the quotas, and so do the layers and services
/// that were given one.
#[derive(Clone)]
pub struct Limits {
    pub(crate) shared: Arc<Shared>,
}

/// What all handles share.
pub(crate) struct Shared {
    pub(crate) origin: Origin,
    /// Whether `Core::only` may be there. A hint: the lock tells.
    is_plain: AtomicBool,
    routes: ArcSwap<Routes>,
    pub(crate) core: Mutex<Core>,
    #[cfg(feature = "tokio")]
    pub(crate) timer: crate::timer::Timer,
}

/// What the one lock guards. It is held for a decision, never across an await,
/// and no foreign code runs under it.
#[derive(Debug)]
pub(crate) struct Core {
    version: u64,
    /// The plan of every call, where all have the same: no look-up then.
    only: Option<Plan>,
    pub(crate) state: State,
    /// For each rule.
    pub(crate) homes: Vec<Home>,
    /// Meters of rules that are gone, until nothing refers to them.
    retired: Vec<u32>,
}

/// What comes of asking, with the lock released.
#[derive(Debug)]
pub(crate) enum Asked {
    Granted(Permit),
    Waits(Arc<Shared>, u32),
    Refused(RateLimitError),
}

impl Limits {
    /// Limits to be filled in.
    #[must_use]
    pub fn builder() -> LimitsBuilder {
        LimitsBuilder::default()
    }

    pub(crate) fn new(builder: LimitsBuilder) -> Result<Self, InvalidLimits> {
        builder.check()?;
        let endpoints = routes::endpoints(&builder)?;
        let mut state = State::new(builder.max_waiting);
        let homes: Vec<_> = (0u32..)
            .zip(&builder.rules)
            .map(|(index, rule)| {
                let (target, quota) = (&rule.target, rule.quota);
                Home::new(
                    target,
                    quota,
                    index,
                    &endpoints,
                    builder.max_keys,
                    &mut state,
                )
            })
            .collect();
        let routes = Routes::new(0, builder, endpoints, &homes);
        let core = Core {
            version: 0,
            only: routes.only(),
            state,
            homes,
            retired: Vec::new(),
        };
        Ok(Self {
            shared: Arc::new(Shared {
                origin: Origin::now(),
                is_plain: AtomicBool::new(core.only.is_some()),
                routes: ArcSwap::from_pointee(routes),
                core: Mutex::new(core),
                #[cfg(feature = "tokio")]
                timer: crate::timer::Timer::default(),
            }),
        })
    }

    /// A permit for `call` if it may go at `now`, without waiting.
    ///
    /// This needs no runtime. Whoever waits (with `acquire`) and could go by
    /// now goes first.
    ///
    /// # Errors
    ///
    /// Where there is no permit; [`wait`](RateLimitError::wait) says how long
    /// that will be so, at the least.
    pub fn try_acquire(&self, call: &Call<'_>, now: Instant) -> Result<Permit, RateLimitError> {
        match Arc::clone(&self.shared).ask(call, now, None) {
            Asked::Granted(permit) => Ok(permit),
            Asked::Refused(error) => Err(error),
            Asked::Waits(..) => Err(RateLimitError::not_now(Duration::ZERO)),
        }
    }

    /// The limits as they were built or last changed.
    #[must_use]
    pub fn to_builder(&self) -> LimitsBuilder {
        self.shared.routes.load().builder.clone()
    }

    /// Puts other limits in the place of these, while calls wait and fly.
    ///
    /// A rule with the same target as before keeps what it has counted. Calls
    /// that wait already are held to the rules that they came under, with the
    /// new numbers; rules that are gone hold nobody up any more.
    ///
    /// # Errors
    ///
    /// Where the limits are nonsense, as with
    /// [`build`](LimitsBuilder::build). Then the old ones stay.
    pub fn reconfigure(&self, builder: LimitsBuilder) -> Result<(), InvalidLimits> {
        builder.check()?;
        let endpoints = routes::endpoints(&builder)?;
        let now = self.shared.nanos(now());
        self.shared.with(now, |core, now, wakers| {
            let routes = core.reconfigure(builder, &self.shared.routes.load(), endpoints, now);
            self.shared
                .is_plain
                .store(core.only.is_some(), Ordering::Relaxed);
            self.shared.routes.store(Arc::new(routes));
            core.state.look_at_all(now);
            core.state.pump(now, wakers);
        });
        Ok(())
    }
}

impl fmt::Debug for Limits {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Limits")
            .field("rules", &self.shared.routes.load().builder.rules)
            .finish_non_exhaustive()
    }
}

impl Core {
    fn reconfigure(
        &mut self,
        builder: LimitsBuilder,
        old: &Routes,
        endpoints: tollway_core::Endpoints<usize>,
        now: Nanos,
    ) -> Routes {
        let mut homes: Vec<_> = self.homes.drain(..).map(Some).collect();
        let mut adapted = Vec::with_capacity(builder.rules.len());
        for (index, rule) in builder.rules.iter().enumerate() {
            let id = crate::lanes::index(index);
            let max_keys = builder.max_keys;
            let same = builder
                .same_rule(index, &old.builder)
                .and_then(|same| homes.get_mut(same)?.take());
            adapted.push(match same {
                Some(mut home) => {
                    let state = &mut self.state;
                    let gone = home.adapt(rule.quota, id, &endpoints, max_keys, state, now);
                    self.retired.extend(gone);
                    home
                }
                None => Home::new(
                    &rule.target,
                    rule.quota,
                    id,
                    &endpoints,
                    max_keys,
                    &mut self.state,
                ),
            });
        }
        let gone = homes.into_iter().flatten();
        self.retired
            .extend(gone.flat_map(|home| home.meters()).map(|(_, meter)| meter));
        self.state.retire(&mut self.retired, now);
        self.homes = adapted;
        self.state.max_waiting = builder.max_waiting;
        self.version += 1;
        let routes = Routes::new(self.version, builder, endpoints, &self.homes);
        self.only = routes.only();
        routes
    }

    /// The meters that cover a call, those of its keys among them.
    fn plan(&mut self, route: &Route<'_, '_>, now: Nanos) -> Plan {
        if route.keys.is_empty() {
            // Copies plain numbers, where `clone` goes through an iterator.
            return Plan::from_slice(route.fixed);
        }
        // Keys first: the narrowest is the likeliest to be full.
        let mut plan = Plan::new();
        for (home, key) in &route.keys {
            if let Some(Home::Keyed(keys) | Home::Each { named: keys, .. }) =
                self.homes.get_mut(*home)
            {
                plan.push(keys.meter(key, &mut self.state, now));
            }
        }
        plan.extend_from_slice(route.fixed);
        plan
    }
}

impl Shared {
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

    /// Takes the lock, and sees to it that time doesn't go backwards.
    #[inline]
    pub(crate) fn enter(&self, now: Nanos) -> (MutexGuard<'_, Core>, Nanos) {
        let mut core = lock(&self.core);
        let now = core.state.tick(now);
        (core, now)
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

    /// A permit, where every call has the same plan, there is room, and nobody
    /// waits.
    fn take_at_once(
        &self,
        level: usize,
        deadline: Option<Nanos>,
        now: Nanos,
    ) -> Option<(Plan, Nanos)> {
        if !self.is_plain.load(Ordering::Relaxed) {
            return None;
        }
        let (mut core, now) = self.enter(now);
        let Core { only, state, .. } = &mut *core;
        let plan = only.as_ref()?;
        let taken = state.take_at_once(plan, level, deadline, now);
        // Copies plain numbers, where `clone` goes through an iterator.
        taken.then(|| (Plan::from_slice(plan), now))
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
        let now = self.nanos(now());
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
