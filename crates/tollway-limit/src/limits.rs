//! The handle that layers, services and plain code share.

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::ask::Asked;
use crate::builder::{LimitsBuilder, Target};
use crate::call::Call;
use crate::error::{InvalidLimits, RateLimitError};
use crate::express::Express;
use crate::lanes::Plan;
use crate::meter::{Meters, Role};
use crate::permit::Permit;
use crate::quota::Quota;
use crate::routes::{self, Home, Route, Routes, Way};
use crate::shared::Shared;
use crate::state::State;
use crate::time::{Nanos, Origin, now};

/// A provider's limits, and how much of them is used.
///
/// It is a handle: clones share the quotas, and so do the layers and services
/// that were given one.
#[derive(Clone)]
pub struct Limits {
    pub(crate) shared: Arc<Shared>,
}

/// What the one lock guards. It is held for a decision, never across an await,
/// and no foreign code runs under it but what clones a waker.
#[derive(Debug)]
pub(crate) struct Core {
    pub(crate) version: u64,
    /// The plan of every call, where all have the same: no look-up then.
    pub(crate) only: Option<Plan>,
    pub(crate) state: State,
    /// For each rule.
    pub(crate) homes: Vec<Home>,
    /// Meters of rules that are gone, until nothing refers to them.
    retired: Vec<u32>,
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
        let origin = Origin::now();
        let meters = Meters::new(move || origin.nanos(now()));
        let mut state = State::new(builder.max_waiting, meters);
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
            shared: Shared::new(core, Way::new(routes), origin),
        })
    }

    /// A permit for `call` if it may go at `now`, without waiting.
    ///
    /// This needs no runtime. Whoever waits (with `acquire`) and could go by
    /// now goes first.
    ///
    /// Times may be made up. Then [`Permit::over_at`] says when an attempt is
    /// over; a permit that is dropped is over by the clock, or at the latest time
    /// that the limiter was told, whichever is later.
    ///
    /// # Errors
    ///
    /// Where there is no permit; [`wait`](RateLimitError::wait) says how long
    /// that will be so, at the least.
    pub fn try_acquire(
        &self,
        call: &Call<'_>,
        now: impl Into<Instant>,
    ) -> Result<Permit, RateLimitError> {
        match self.shared.ask_at(call, now.into()) {
            Asked::Granted(permit) => Ok(permit),
            Asked::Refused(error) => Err(error),
            Asked::Waits(..) => Err(RateLimitError::not_now(Duration::ZERO)),
        }
    }

    /// The limits as they were built or last changed, to add to: a rule for the
    /// target of another stands beside that one, and doesn't replace it.
    #[must_use]
    pub fn to_builder(&self) -> LimitsBuilder {
        self.shared.way.load().routes.builder.clone()
    }

    /// Puts other limits in the place of these, while calls wait and fly.
    ///
    /// A rule with the same target as before keeps what it has counted. Calls
    /// that wait are held to the new numbers; where rules come or go, they ask
    /// again, and keep their order. Attempts in flight don't count in rules that
    /// are new.
    ///
    /// ```
    /// use tollway_limit::{Limits, LimitsBuilder, Quota};
    ///
    /// fn account(per_second: u32) -> LimitsBuilder {
    ///     Limits::builder()
    ///         .every_call(Quota::per_second(per_second))
    ///         .each_endpoint(Quota::per_second(25))
    /// }
    ///
    /// # fn main() -> Result<(), tollway_limit::InvalidLimits> {
    /// let limits = account(100).build()?;
    /// // The provider has raised the account's limit.
    /// limits.reconfigure(account(200))?;
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    ///
    /// Where the limits are nonsense, as with
    /// [`build`](LimitsBuilder::build). Then the old ones stay.
    pub fn reconfigure(&self, builder: LimitsBuilder) -> Result<(), InvalidLimits> {
        builder.check()?;
        let endpoints = routes::endpoints(&builder)?;
        let now = self.shared.nanos(now());
        // What computes keys is foreign code, so it is dropped after the lock.
        let _old = self.shared.with(now, |core, now, wakers| {
            let old = self.shared.way.load_full();
            if !builder.has_rules_of(&old.routes.builder) {
                core.state.void_all(now, wakers);
            }
            let lends = self.shared.express.get().map(Express::meter);
            let routes = core.reconfigure(builder, &old.routes, endpoints, lends, now);
            self.shared.publish(core, Way::new(routes));
            core.state.look_at_all(now);
            core.state.pump(now, wakers);
            old
        });
        Ok(())
    }
}

impl fmt::Debug for Limits {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Limits")
            .field("rules", &self.shared.way.load().routes.builder.rules)
            .finish_non_exhaustive()
    }
}

impl Core {
    /// Other limits from now on. The meter that `lends` to all calls, or has done,
    /// is kept for when there is use for it again.
    fn reconfigure(
        &mut self,
        builder: LimitsBuilder,
        old: &Routes,
        endpoints: tollway_core::Endpoints<usize>,
        lends: Option<u32>,
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
                None => {
                    let (target, quota) = (&rule.target, rule.quota);
                    let renewed = lends.filter(|&lends| self.renew(lends, target, quota, id));
                    renewed.map_or_else(
                        || Home::new(target, quota, id, &endpoints, max_keys, &mut self.state),
                        Home::One,
                    )
                }
            });
        }
        let gone = homes.into_iter().flatten();
        gone.for_each(|home| self.retired.extend(home.ids()));
        self.state.retire(&mut self.retired, lends);
        self.homes = adapted;
        self.state.max_waiting = builder.max_waiting;
        self.version += 1;
        let routes = Routes::new(self.version, builder, endpoints, &self.homes);
        self.only = routes.only();
        routes
    }

    /// Has a meter start afresh for a rule that is new, if it may: for every call,
    /// and nothing refers to it any more.
    fn renew(&mut self, id: u32, target: &Target, quota: Quota, rule: u32) -> bool {
        let unused = self.retired.iter().position(|&retired| retired == id);
        let (Some(unused), Target::EveryCall) = (unused, target) else {
            return false;
        };
        let is_renewed = self.state.meters.renew(id, quota, Role::EveryCall, rule);
        if is_renewed {
            self.retired.swap_remove(unused);
        }
        is_renewed
    }

    /// The meter that covers every call alone, if there is such a one.
    pub(crate) fn only_meter(&self) -> Option<u32> {
        match self.only.as_deref() {
            Some(&[meter]) => Some(meter),
            _ => None,
        }
    }

    /// Lends nothing any more but there, and only where that is for every call.
    pub(crate) fn lend_at(&mut self, express: Option<&Express>) {
        self.state.meters.close();
        let meter = self.only_meter();
        if let Some(express) = express.filter(|express| meter == Some(express.meter()))
            && let Some(meter) = self.state.meters.get_mut(express.meter())
        {
            meter.express = Some(express.clone());
        }
    }

    /// Forgets a few of the idle keys that these meters' rules have.
    #[inline]
    pub(crate) fn sweep(&mut self, plan: &[u32], now: Nanos) {
        if self.only.is_some() {
            return;
        }
        for &id in plan {
            let rule = self.state.meters.get(id).map(|meter| meter.rule as usize);
            if let Some(Home::Keyed(keys) | Home::Each { named: keys, .. }) =
                rule.and_then(|rule| self.homes.get_mut(rule))
            {
                keys.sweep(&mut self.state, now);
            }
        }
    }

    /// The meters that cover a call, those of its keys among them.
    pub(crate) fn plan(&mut self, route: &Route<'_, '_>, now: Nanos) -> Plan {
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

#[cfg(all(test, not(loom)))]
mod tests {
    use std::sync::mpsc;
    use std::task::Waker;
    use std::thread;

    use http::Method;
    use http::header::HOST;
    use http::{HeaderMap, HeaderValue};
    use tokio::runtime::Handle;
    use tollway_core::Endpoint;

    use super::*;
    use crate::key::Key;
    use crate::meter::Meter;
    use crate::sync::lock;

    #[test]
    fn meters_of_rules_that_are_gone_are_forgotten() {
        let rule = |number: usize| {
            let endpoint = Endpoint::get(format!("/{number}"));
            Limits::builder().endpoint(endpoint, Quota::concurrent(1))
        };
        let limits = rule(0).build().unwrap();
        let meters = || lock(&limits.shared.core).state.meters.len();
        for number in 0..50 {
            let path = format!("/{number}");
            let permit = limits.try_acquire(&Call::new(&Method::GET, &path), now());
            // The meter outlives its rule for as long as somebody holds a permit.
            limits.reconfigure(rule(number + 1)).unwrap();
            assert_eq!(meters(), 2);
            drop(permit.unwrap());
        }
        limits.reconfigure(rule(99)).unwrap();
        assert_eq!(meters(), 1);
    }

    #[test]
    fn a_quota_lends_again_once_nobody_waits() {
        let limits = Limits::builder().every_call(Quota::concurrent(2));
        let limits = limits.build().unwrap();
        let call = Call::new(&Method::GET, "/");
        let permits = [(); 2].map(|()| limits.try_acquire(&call, now()));
        let ask = || match limits.shared.ask(&call, now, Waker::noop()) {
            Asked::Waits(_, waiter) => waiter,
            asked => panic!("{asked:?}"),
        };
        let waiters = [ask(), ask()];
        drop(permits);
        waiters
            .iter()
            .for_each(|&waiter| limits.shared.leave(waiter));
        drop(limits.try_acquire(&call, now()).unwrap());
        let core = lock(&limits.shared.core);
        let meter = core.state.meters.get(0);
        assert!(meter.is_some_and(Meter::is_lending));
    }

    #[test]
    fn a_quota_that_comes_to_be_the_only_one_lends() {
        let plain = || Limits::builder().every_call(Quota::concurrent(9));
        let keyed = Limits::builder().keyed(Key::path(), Quota::concurrent(9));
        for first in [plain(), keyed, plain().every_call(Quota::concurrent(3))] {
            let limits = first.build().unwrap();
            let call = Call::new(&Method::GET, "/");
            let before = limits.try_acquire(&call, now()).unwrap();
            limits.reconfigure(plain()).unwrap();
            let after = limits.try_acquire(&call, now()).unwrap();
            let core = lock(&limits.shared.core);
            let meter = core.state.meters.get(core.only_meter().unwrap());
            assert!(meter.is_some_and(Meter::is_lending));
            drop(core);
            drop((before, after));
            assert_eq!(limits.snapshot().quotas[0].in_flight, 0);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn lent_permits_are_taken_and_let_go_without_the_lock() {
        let plain = Limits::builder().every_call(Quota::concurrent(99));
        let keyed = Limits::builder().keyed(Key::path(), Quota::concurrent(99));
        for builder in [plain, keyed] {
            let limits = builder.build().unwrap();
            let call = Call::new(&Method::GET, "/");
            // A key's quota is lent once several of its permits are taken.
            let _several = [(); 2].map(|()| limits.try_acquire(&call, now()).unwrap());
            let core = lock(&limits.shared.core);
            let (other, handle) = (limits.clone(), Handle::current());
            let (done, is_done) = mpsc::channel();
            thread::spawn(move || {
                let _clock = handle.enter();
                let call = Call::new(&Method::GET, "/");
                drop(other.try_acquire(&call, now()));
                done.send(())
            });
            is_done.recv_timeout(Duration::from_secs(10)).unwrap();
            drop(core);
        }
    }

    #[test]
    fn a_quota_that_comes_back_lends_again() {
        let plain = || Limits::builder().every_call(Quota::concurrent(9));
        let keyed = || Limits::builder().keyed(Key::path(), Quota::concurrent(9));
        let limits = plain().build().unwrap();
        let take = || limits.try_acquire(&Call::new(&Method::GET, "/"), now());
        let is_lending = || {
            let core = lock(&limits.shared.core);
            let meter = core.state.meters.get(core.only_meter().unwrap());
            meter.is_some_and(Meter::is_lending)
        };
        for _ in 0..3 {
            limits.reconfigure(keyed()).unwrap();
            drop(take());
            limits.reconfigure(plain()).unwrap();
            drop(take());
            assert!(is_lending());
        }
        assert_eq!(lock(&limits.shared.core).state.meters.len(), 1);
        // What is in flight counts where it was taken, and nowhere else.
        let flying = [(); 2].map(|()| take());
        limits.reconfigure(keyed()).unwrap();
        limits.reconfigure(plain()).unwrap();
        let others = [(); 2].map(|()| take());
        drop(flying);
        assert_eq!(limits.snapshot().quotas[0].in_flight, 2);
        drop(others);
        assert_eq!(limits.snapshot().quotas[0].in_flight, 0);
    }

    /// A thread may have looked up where to take permits under the old rules, and
    /// come there only now.
    #[test]
    fn what_was_lent_under_other_rules_is_lent_no_more() {
        let host = || Limits::builder().keyed(Key::header(HOST), Quota::concurrent(9));
        let limits = host().build().unwrap();
        let mut headers = HeaderMap::new();
        headers.insert(HOST, HeaderValue::from_static("h"));
        let call = |path: &'static str| Call::new(&Method::GET, path).headers(&headers);
        let take = || [(); 2].map(|()| limits.try_acquire(&call("/b"), now()).unwrap());
        let till = || {
            let way = limits.shared.way.load();
            let call = call("/b");
            let route = way.routes.route(&call);
            way.till(&route).map(Arc::clone)
        };
        let _before = take();
        let stale = till().unwrap();
        let endpoint = Endpoint::get("/a");
        let rules = host().endpoint(endpoint, Quota::concurrent(1));
        limits.reconfigure(rules).unwrap();
        let _after = take();
        assert!(till().is_some_and(|till| till.take().is_some()));
        assert_eq!(stale.take(), None);
    }

    #[test]
    fn keys_that_come_after_a_change_are_known_by_their_rule() {
        let keyed = |rules: LimitsBuilder| rules.keyed(Key::path(), Quota::concurrent(1));
        let limits = keyed(Limits::builder()).build().unwrap();
        let every = Limits::builder().every_call(Quota::concurrent(9));
        limits.reconfigure(keyed(every)).unwrap();
        let _permit = limits.try_acquire(&Call::new(&Method::GET, "/"), now());
        let meters = &lock(&limits.shared.core).state.meters;
        let ids = meters.ids().into_iter().filter_map(|id| meters.get(id));
        let mut keys = ids.filter(|meter| meter.role == Role::Key);
        assert_eq!(keys.next().unwrap().rule, 1);
    }
}
