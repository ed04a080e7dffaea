//! The gauges of one keyed rule, made when a key is first seen and forgotten
//! once idle.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

use crate::meter::Role;
use crate::quota::Quota;
use crate::state::State;
use crate::time::Nanos;

/// How many keys may be idle and still be kept: so many are no burden, and
/// looking through them would be.
const KEPT: usize = 64;
/// How many keys each keyed call looks at, to forget those that are idle.
const LOOKED_AT: usize = 2;

#[derive(Debug)]
pub(crate) struct Keys {
    quota: Quota,
    role: Role,
    rule: u32,
    max: usize,
    meters: HashMap<Arc<str>, u32>,
    /// The same keys, in the order in which they are looked at.
    round: VecDeque<Arc<str>>,
    /// Shared by the keys that come when there are `max` busy ones. Stricter
    /// than a quota each, never looser.
    overflow: Option<u32>,
}

impl Keys {
    pub(crate) fn new(quota: Quota, role: Role, rule: u32, max: usize) -> Self {
        Self {
            quota,
            role,
            rule,
            max,
            meters: HashMap::new(),
            round: VecDeque::new(),
            overflow: None,
        }
    }

    /// The meter of this key.
    pub(crate) fn meter(&mut self, key: &str, state: &mut State, now: Nanos) -> u32 {
        self.sweep(state, now);
        if let Some(&meter) = self.meters.get(key) {
            return meter;
        }
        if self.meters.len() >= self.max {
            let (quota, role, rule) = (self.quota, self.role, self.rule);
            return *self
                .overflow
                .get_or_insert_with(|| state.add_meter(quota, role, rule));
        }
        let meter = state.add_meter(self.quota, self.role, self.rule);
        let key: Arc<str> = key.into();
        self.meters.insert(Arc::clone(&key), meter);
        self.round.push_back(key);
        meter
    }

    /// Looks at the next few keys, and forgets those that are idle.
    fn sweep(&mut self, state: &mut State, now: Nanos) {
        if self.meters.len() <= KEPT {
            return;
        }
        for _ in 0..LOOKED_AT {
            let Some(key) = self.round.pop_front() else {
                return;
            };
            let Some(&meter) = self.meters.get(&key) else {
                continue;
            };
            let idle = state
                .meters
                .get_mut(meter as usize)
                .is_none_or(|meter| meter.is_idle(now));
            if idle {
                self.meters.remove(&key);
                state.meters.try_remove(meter as usize);
            } else {
                self.round.push_back(key);
            }
        }
        if self.meters.capacity() > 4 * self.meters.len().max(KEPT) {
            self.meters.shrink_to(2 * self.meters.len());
            self.round.shrink_to(2 * self.round.len());
        }
    }

    /// Every meter, with its key. The overflow has none.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (Option<&Arc<str>>, u32)> {
        let overflow = self.overflow.map(|meter| (None, meter));
        self.meters
            .iter()
            .map(|(key, &meter)| (Some(key), meter))
            .chain(overflow)
    }

    /// Makes meters of another quota from now on.
    pub(crate) fn set_quota(&mut self, quota: Quota, rule: u32, max: usize) {
        self.quota = quota;
        self.rule = rule;
        self.max = max;
    }
}
