//! Taking a permit and giving it back where nobody waits.

use super::State;
use crate::quota::CountFrom;
use crate::time::Nanos;

impl State {
    /// Takes a permit, if nobody waits and there is room, and lends what is left.
    /// The way of nearly every attempt, and the short one.
    #[inline]
    pub(crate) fn take_at_once(
        &mut self,
        plan: &[u32],
        level: usize,
        deadline: Option<Nanos>,
        now: Nanos,
    ) -> bool {
        if self.lanes.waiting() > 0 || deadline.is_some_and(|deadline| deadline <= now) {
            return false;
        }
        if let &[id] = plan {
            let Some(meter) = self.meters.get_mut(id) else {
                return true;
            };
            let has_room = meter.gauge.take_if_room(level, now);
            if has_room {
                meter.lend(now);
            }
            return has_room;
        }
        let has_room = plan.iter().all(|&id| {
            let meter = self.meters.get_mut(id);
            meter.is_none_or(|meter| meter.gauge.room(level, now).is_ok())
        });
        if has_room {
            self.take(plan, level, now);
        }
        has_room
    }

    /// Whether all these meters count from the response.
    #[inline]
    pub(crate) fn counts_from_response(&self, plan: &[u32]) -> bool {
        plan.iter().all(|&id| {
            let meter = self.meters.get(id);
            meter.is_none_or(|meter| meter.gauge.quota().count_from == CountFrom::Response)
        })
    }

    /// Notes that an attempt is over, if nobody waits who should hear of it, and
    /// lends what is left.
    #[inline]
    pub(crate) fn finish_at_once(
        &mut self,
        plan: &[u32],
        level: usize,
        sent: Option<Nanos>,
        now: Nanos,
    ) -> bool {
        if self.lanes.waiting() > 0 {
            return false;
        }
        match *plan {
            [id] => {
                if let Some(meter) = self.meters.get_mut(id) {
                    meter.gauge.finish(level, sent, now);
                    meter.lend(now);
                }
            }
            _ => self.finish(plan, level, sent, now),
        }
        true
    }

    /// Notes that an attempt is over.
    pub(crate) fn finish(&mut self, plan: &[u32], level: usize, sent: Option<Nanos>, now: Nanos) {
        for &id in plan {
            if let Some(meter) = self.meters.get_mut(id) {
                meter.gauge.finish(level, sent, now);
            }
        }
    }

    /// Lends what is left, where one meter is all of the plan.
    #[inline]
    pub(crate) fn lend(&mut self, plan: &[u32], now: Nanos) {
        if let &[id] = plan {
            self.meters.lend(id, now);
        }
    }

    pub(super) fn take(&mut self, plan: &[u32], level: usize, now: Nanos) {
        for &meter in plan {
            if let Some(meter) = self.meters.get_mut(meter) {
                meter.gauge.take(level, now);
            }
        }
    }
}
