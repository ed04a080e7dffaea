//! Meters: a gauge each, those who stand in line at it, and what it has lent.

use std::collections::BTreeSet;
use std::fmt;

use slab::Slab;

use crate::express::{Express, Loan};
use crate::gauge::{Full, Gauge};
use crate::lanes::index;
use crate::quota::{EXPRESS, LEVELS, Quota};
use crate::time::{Clock, Nanos};

/// What a quota is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Role {
    EveryCall,
    Endpoint,
    Key,
    /// Nothing any more: its rule is gone.
    Gone,
}

/// A gauge, and those who stand in line at it.
#[derive(Debug)]
pub(crate) struct Meter {
    pub(crate) gauge: Gauge,
    pub(crate) role: Role,
    /// Which rule it belongs to, for snapshots.
    pub(crate) rule: u32,
    /// Heads of lanes that this gauge had no room for, by level: ticket, lane.
    pub(crate) line: [BTreeSet<(u64, u32)>; LEVELS],
    /// When to look at the line again.
    pub(crate) wake: Option<Nanos>,
    /// Lanes whose plan names this meter.
    pub(crate) lanes: u32,
    kept: Option<Box<Kept>>,
    /// Where it lends, if it may.
    pub(crate) express: Option<Express>,
    loan: Option<Loan>,
}

/// A place that is kept for one who had its turn here again and again, and each
/// time another meter had no room. Or that was: it is remembered.
#[derive(Debug)]
struct Kept {
    /// For whom: level, ticket.
    whose: (usize, u64),
    since: Nanos,
    until: Nanos,
}

/// For so many times as long as a place was kept, none is kept again.
const REST: Nanos = 7;

impl Kept {
    fn rests_until(&self) -> Nanos {
        let rest = self.until.saturating_sub(self.since).saturating_mul(REST);
        self.until.saturating_add(rest)
    }
}

impl Meter {
    fn new(quota: Quota, role: Role, rule: u32) -> Self {
        Self {
            gauge: Gauge::new(quota),
            role,
            rule,
            line: Default::default(),
            wake: None,
            lanes: 0,
            kept: None,
            express: None,
            loan: None,
        }
    }

    /// Whether somebody has a permit of it, or waits for one.
    pub(crate) fn is_used(&self) -> bool {
        self.lanes > 0 || self.gauge.in_flight() > 0
    }

    /// Whether an attempt of `level` with this ticket may go now. A place that
    /// is kept is kept from those who come after the one that it is for.
    pub(crate) fn room(&mut self, level: usize, ticket: u64, now: Nanos) -> Result<(), Full> {
        match self.keeps_from(level, ticket, now) {
            None => self.gauge.room(level, now),
            Some(until) => self.gauge.room_but_one(until, level, now),
        }
    }

    /// Until when it keeps a place from such an attempt, if it does.
    pub(crate) fn keeps_from(&self, level: usize, ticket: u64, now: Nanos) -> Option<Nanos> {
        let kept = self.kept.as_ref()?;
        (kept.until > now && kept.whose < (level, ticket)).then_some(kept.until)
    }

    /// Keeps a place for an attempt that could go but for another meter, if it may.
    pub(crate) fn keep(&mut self, level: usize, ticket: u64, now: Nanos) {
        let until = now.saturating_add(self.gauge.worth());
        let rests = self
            .kept
            .as_ref()
            .is_some_and(|kept| kept.rests_until() > now);
        if !rests {
            self.kept = Some(Box::new(Kept {
                whose: (level, ticket),
                since: now,
                until,
            }));
        }
    }

    /// Keeps no place any more for this attempt, whose wait is over. Says
    /// whether it did.
    pub(crate) fn let_go(&mut self, level: usize, ticket: u64, now: Nanos) -> bool {
        let kept = self.kept.as_mut();
        let kept = kept.filter(|kept| kept.whose == (level, ticket));
        kept.map(|kept| kept.until = kept.until.min(now)).is_some()
    }

    pub(crate) fn has_line(&self) -> bool {
        self.line.iter().any(|line| !line.is_empty())
    }

    /// Whether nothing refers to it, and nothing would be lost with it.
    pub(crate) fn is_idle(&mut self, now: Nanos) -> bool {
        self.lanes == 0 && self.gauge.is_idle(now)
    }

    pub(crate) fn may_lend(&self) -> bool {
        self.gauge.lends() && self.lanes == 0
    }

    /// Whether several of its places are taken.
    pub(crate) fn is_busy(&mut self, now: Nanos) -> bool {
        self.gauge.in_flight().max(self.gauge.taken(now)) > 1
    }

    pub(crate) fn is_lending(&self) -> bool {
        self.loan.is_some()
    }

    /// Whether it has lent so lately that answers are noted without the lock.
    pub(crate) fn has_lent_lately(&self, now: Nanos) -> bool {
        self.loan.is_some_and(|loan| loan.is_fresh(now))
    }

    /// Lends what is left, unless somebody waits who needs some of it.
    #[inline]
    pub(crate) fn lend(&mut self, now: Nanos) {
        debug_assert!(self.loan.is_none());
        if self.may_lend() {
            self.lend_at_till(now);
        }
    }

    #[inline(never)]
    fn lend_at_till(&mut self, now: Nanos) {
        let Some(express) = &self.express else { return };
        let spare = self.gauge.spare(now);
        if spare > 0 {
            self.loan = Some(express.lend(spare, now));
        }
    }

    /// Accounts for what has happened without the lock: by `now`, at the latest.
    #[inline(never)]
    fn recall(&mut self, now: impl Fn() -> Nanos, clock: Clock) {
        let (Some(loan), Some(express)) = (self.loan.take(), &self.express) else {
            return;
        };
        let used = express.recall(loan);
        if used.taken > 0 {
            self.gauge.take_lent(EXPRESS, used.taken, clock.latest);
        }
        if used.answered > 0 {
            let at = loan.counted_at(now(), clock);
            self.gauge.finish_many(EXPRESS, used.answered, at);
        }
    }
}

/// All meters. Whoever is handed one to change it finds it up to date, and
/// nothing of it lent.
pub(crate) struct Meters {
    /// In boxes: a crowd of keys leaves its indices behind, and no more.
    slab: Slab<Box<Meter>>,
    clock: Clock,
    /// Reads the real one: answers are noted without the lock while others, with
    /// a time that they have read before, wait for it.
    read: Box<dyn Fn() -> Nanos + Send>,
}

impl Meters {
    pub(crate) fn new(read: impl Fn() -> Nanos + Send + 'static) -> Self {
        Self {
            slab: Slab::new(),
            clock: Clock::default(),
            read: Box::new(read),
        }
    }

    /// The later of `now` and the latest time seen.
    pub(crate) fn tick(&mut self, now: Nanos) -> Nanos {
        self.clock.tick(now)
    }

    pub(crate) fn add(&mut self, quota: Quota, role: Role, rule: u32) -> u32 {
        let meter = Meter::new(quota, role, rule);
        index(self.slab.insert(Box::new(meter)))
    }

    /// Puts a new meter in the place of one that nothing refers to, if it is one.
    pub(crate) fn renew(&mut self, id: u32, quota: Quota, role: Role, rule: u32) -> bool {
        let meter = self.get_mut(id).filter(|meter| !meter.is_used());
        meter
            .map(|meter| *meter = Meter::new(quota, role, rule))
            .is_some()
    }

    /// A meter for what no loan changes.
    #[inline]
    pub(crate) fn get(&self, id: u32) -> Option<&Meter> {
        self.slab.get(id as usize).map(Box::as_ref)
    }

    #[inline]
    pub(crate) fn get_mut(&mut self, id: u32) -> Option<&mut Meter> {
        let meter = self.slab.get_mut(id as usize)?;
        if meter.loan.is_some() {
            meter.recall(&self.read, self.clock);
        }
        Some(meter)
    }

    /// Lends what is left of a meter, where it has somewhere to.
    #[inline]
    pub(crate) fn lend(&mut self, id: u32, now: Nanos) {
        if let Some(meter) = self.get_mut(id) {
            meter.lend(now);
        }
    }

    /// Lends nothing any more, nowhere.
    pub(crate) fn close(&mut self) {
        for id in self.ids() {
            if let Some(meter) = self.get_mut(id) {
                meter.express = None;
            }
        }
    }

    pub(crate) fn remove(&mut self, id: u32) {
        debug_assert!(self.get(id).is_none_or(|meter| meter.loan.is_none()));
        self.slab.try_remove(id as usize);
    }

    pub(crate) fn len(&self) -> usize {
        self.slab.len()
    }

    pub(crate) fn ids(&self) -> Vec<u32> {
        self.slab.iter().map(|(id, _)| index(id)).collect()
    }
}

impl fmt::Debug for Meters {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list()
            .entries(self.slab.iter().map(|(_, meter)| meter))
            .finish()
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use crate::express::Till;

    /// What [`MAX_KEYS`](crate::LimitsBuilder::MAX_KEYS) says of memory.
    #[test]
    fn a_key_takes_as_much_as_is_said() {
        assert!(size_of::<Meter>() <= 640);
        assert!(size_of::<Till>() <= 128);
    }
}
