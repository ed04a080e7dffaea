//! Changes that concern many who wait at once: pauses, and other limits.

use super::{State, Wakers};
use crate::lanes::{Fate, Plan};
use crate::meter::{Meter, Role};
use crate::time::Nanos;

impl State {
    /// Refuses those who need a meter that lets nothing through until `until`,
    /// and whose deadline comes before.
    pub(crate) fn refuse_until(
        &mut self,
        meter: u32,
        until: Nanos,
        now: Nanos,
        wakers: &mut Wakers,
    ) {
        let needs = |waiter: u32| {
            let lane = self.lanes.waiter(waiter)?.lane;
            Some(self.lanes.lane(lane)?.plan.contains(&meter))
        };
        let hopeless: Vec<u32> = self
            .deadlines
            .range(..=(until, u32::MAX))
            .map(|&(_, waiter)| waiter)
            .filter(|&waiter| needs(waiter) == Some(true))
            .collect();
        let wait = until.saturating_sub(now);
        for waiter in hopeless {
            wakers.extend(self.end_wait(waiter, now, Fate::TooLate { wait }));
        }
    }

    /// Sends all away who wait, to ask again.
    pub(crate) fn void_all(&mut self, now: Nanos, wakers: &mut Wakers) {
        for waiter in self.lanes.all_waiting() {
            wakers.extend(self.end_wait(waiter, now, Fate::Void));
        }
    }

    /// Sees to it that every line is looked at.
    pub(crate) fn look_at_all(&mut self, now: Nanos) {
        let lines: Vec<_> = self
            .meters
            .ids()
            .into_iter()
            .filter(|&id| self.meters.get(id).is_some_and(Meter::has_line))
            .collect();
        for id in lines {
            self.look_at(id, now);
        }
    }

    /// Those of a plan's meters whose rules are there: an answer is about them.
    pub(crate) fn valid(&self, plan: &Plan) -> Plan {
        let meter = |&id: &u32| self.meters.get(id);
        let is_valid = |id: &u32| meter(id).is_some_and(|meter| meter.role != Role::Gone);
        plan.iter().copied().filter(is_valid).collect()
    }

    /// Whether the provider has one of these rules pause, or says that nothing of
    /// its quota is left.
    pub(crate) fn is_paused(&self, plan: &Plan, now: Nanos) -> bool {
        self.paused_until(plan) > now
    }

    /// Until when that is so.
    pub(crate) fn paused_until(&self, plan: &Plan) -> Nanos {
        let meters = plan.iter().filter_map(|&id| self.meters.get(id));
        let until = meters.map(|meter| meter.gauge.sends_from()).max();
        until.unwrap_or_default()
    }

    /// Forgets those meters whose rules are gone that nothing refers to any more,
    /// but the one that is `kept`.
    pub(crate) fn retire(&mut self, retired: &mut Vec<u32>, kept: Option<u32>) {
        retired.retain(|&id| {
            let is_used = self.meters.get_mut(id).is_some_and(|meter| {
                meter.role = Role::Gone;
                meter.is_used()
            });
            let stays = is_used || Some(id) == kept;
            if !stays {
                self.meters.remove(id);
            }
            stays
        });
    }
}
