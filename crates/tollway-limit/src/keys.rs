//! The gauges of one keyed rule, made when a key is first seen and forgotten
//! once idle.

use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::Arc;

use crate::meter::Role;
use crate::quota::Quota;
use crate::state::State;
use crate::time::Nanos;

/// How many keys may be idle and still be kept: so many are no burden, and
/// looking through them would be.
const KEPT: usize = if cfg!(loom) { 0 } else { 64 };
/// How many keys are looked at each time that a keyed call takes the lock, to
/// forget those that are idle.
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
    overflow: Option<Overflow>,
}

/// Shared by the keys that come when there are `max` busy ones. Stricter than a
/// quota each, never looser: a key that has shared it since it was last idle gets
/// none of its own.
#[derive(Debug)]
struct Overflow {
    meter: u32,
    /// Those keys, as long as they aren't too many to remember.
    keys: HashSet<Box<str>>,
}

/// Of so many keys is remembered that they share a quota. More, and every new key
/// is taken for one of them.
const REMEMBERED: usize = 1024;

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
        if self.shares(key, state, now) || self.meters.len() >= self.max {
            return self.share(key, state);
        }
        let meter = state.meters.add(self.quota, self.role, self.rule);
        let key: Arc<str> = key.into();
        self.meters.insert(Arc::clone(&key), meter);
        self.round.push_back(key);
        meter
    }

    /// Whether a key has lately shared a quota with others.
    fn shares(&mut self, key: &str, state: &mut State, now: Nanos) -> bool {
        let Some(overflow) = &mut self.overflow else {
            return false;
        };
        let meter = state.meters.get_mut(overflow.meter);
        if meter.is_none_or(|meter| meter.is_idle(now)) {
            overflow.keys = HashSet::new();
        }
        overflow.keys.contains(key) || overflow.keys.len() >= REMEMBERED
    }

    /// The meter that this key shares with others.
    fn share(&mut self, key: &str, state: &mut State) -> u32 {
        let (quota, role, rule) = (self.quota, self.role, self.rule);
        let overflow = self.overflow.get_or_insert_with(|| Overflow {
            meter: state.meters.add(quota, role, rule),
            keys: HashSet::new(),
        });
        if overflow.keys.len() < REMEMBERED && !overflow.keys.contains(key) {
            overflow.keys.insert(key.into());
        }
        overflow.meter
    }

    /// Whether this is the meter of that key alone.
    pub(crate) fn has(&self, key: &str, meter: u32) -> bool {
        self.meters.get(key) == Some(&meter)
    }

    /// Looks at the next few keys, and forgets those that are idle.
    pub(crate) fn sweep(&mut self, state: &mut State, now: Nanos) {
        if self.meters.len() <= KEPT.min(self.max - 1) {
            return;
        }
        for _ in 0..LOOKED_AT {
            let Some(key) = self.round.pop_front() else {
                return;
            };
            let Some(&meter) = self.meters.get(&key) else {
                continue;
            };
            // Where permits are taken without the lock, looking closer would put
            // an end to it.
            let lends = state
                .meters
                .get(meter)
                .is_some_and(|meter| meter.has_lent_lately(now));
            let idle = !lends
                && state
                    .meters
                    .get_mut(meter)
                    .is_none_or(|meter| meter.is_idle(now));
            if idle {
                self.meters.remove(&key);
                state.meters.remove(meter);
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
        let overflow = self.overflow.iter().map(|overflow| (None, overflow.meter));
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

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use crate::meter::Meters;
    use crate::quota::EXPRESS;

    fn new(max: usize) -> (Keys, State) {
        let keys = Keys::new(Quota::concurrent(1), Role::Key, 0, max);
        (keys, State::new(0, Meters::new(|| 0)))
    }

    fn take(state: &mut State, meter: u32) {
        if let Some(meter) = state.meters.get_mut(meter) {
            meter.gauge.take(EXPRESS, 0);
        }
    }

    fn finish(state: &mut State, meter: u32) {
        if let Some(meter) = state.meters.get_mut(meter) {
            meter.gauge.finish(EXPRESS, None, 0);
        }
    }

    #[test]
    fn of_more_keys_than_can_be_remembered_each_is_taken_to_share_a_quota() {
        let (mut keys, mut state) = new(1);
        let own = keys.meter("own", &mut state, 0);
        take(&mut state, own);
        let shared = keys.meter("first", &mut state, 0);
        take(&mut state, shared);
        for key in 0..2 * REMEMBERED {
            assert_eq!(keys.meter(&key.to_string(), &mut state, 0), shared);
        }
        let overflow = keys.overflow.as_ref().unwrap();
        assert_eq!(overflow.keys.len(), REMEMBERED);
        // There is a place, but who is new, and who has shared?
        finish(&mut state, own);
        assert_eq!(keys.meter("new", &mut state, 0), shared);
        // They may all have their own once what they shared is idle.
        finish(&mut state, shared);
        assert_ne!(keys.meter("first", &mut state, 0), shared);
    }

    /// Its key was found, and then another quota had no room.
    #[test]
    fn keys_of_calls_that_came_to_nothing_are_forgotten() {
        let (mut keys, mut state) = new(100_000);
        for key in 0..10_000 {
            keys.meter(&key.to_string(), &mut state, 0);
        }
        assert!(keys.meters.len() <= KEPT + 1);
        assert!(state.meters.len() <= KEPT + 1);
    }

    #[test]
    fn a_crowd_of_keys_leaves_no_memory_behind() {
        let (mut keys, mut state) = new(100_000);
        let meter = |key: usize| {
            let meter = keys.meter(&key.to_string(), &mut state, 0);
            take(&mut state, meter);
            meter
        };
        let crowd: Vec<_> = (0..10_000).map(meter).collect();
        crowd.iter().for_each(|&meter| finish(&mut state, meter));
        for _ in 0..10_000 {
            keys.sweep(&mut state, 0);
        }
        assert!(keys.meters.len() <= KEPT);
        assert!(keys.meters.capacity() <= 4 * KEPT);
        assert!(keys.round.capacity() <= 4 * KEPT);
    }
}
