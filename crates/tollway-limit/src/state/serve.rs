//! Serving those who wait.

use super::{State, Wakers};
use crate::gauge::Full;
use crate::lanes::{Fate, Plan};
use crate::meter::Meter;
use crate::quota::LEVELS;
use crate::time::Nanos;

/// So many turns come to nothing before a place is kept. The model has less of it:
/// its schedules are short.
const PATIENCE: u32 = if cfg!(test) { 1 } else { 8 };

impl State {
    /// Grants what can be granted by now, and ends the waits whose deadline has
    /// come.
    pub(crate) fn pump(&mut self, now: Nanos, wakers: &mut Wakers) {
        // Each wait that ends may make room for others.
        while self.next_wake().is_some_and(|wake| wake <= now) {
            while let Some(&(time, id)) = self.timers.first()
                && time <= now
            {
                self.timers.pop_first();
                self.serve(id, now, wakers);
            }
            while let Some(&(time, waiter)) = self.deadlines.first()
                && time <= now
            {
                wakers.extend(self.end_wait(waiter, now, Fate::TooLate { wait: 0 }));
            }
        }
    }

    /// Serves those who stand in line at the meters of a plan.
    pub(crate) fn serve_plan(&mut self, plan: &Plan, now: Nanos, wakers: &mut Wakers) {
        if self.lanes.waiting() == 0 {
            return;
        }
        let mut lines = false;
        for &id in plan {
            if self.meters.get(id).is_some_and(Meter::has_line) {
                lines = true;
                self.look_at(id, now);
            }
        }
        if lines {
            self.pump(now, wakers);
        }
    }

    /// Serves a meter's line as far as there is room.
    fn serve(&mut self, id: u32, now: Nanos, wakers: &mut Wakers) {
        if let Some(meter) = self.meters.get_mut(id) {
            meter.wake = None;
        }
        let mut again: Option<Nanos> = None;
        // A grant to one level may make room for a higher one (a share that is
        // used is kept no longer), so each time the highest comes first.
        while let Some(meter) = self.meters.get_mut(id) {
            again = None;
            let next = (0..LEVELS).find_map(|level| {
                let &(ticket, lane) = meter.line[level].first()?;
                match meter.room(level, ticket, now) {
                    Ok(()) => return Some((level, ticket, lane)),
                    Err(Full::UntilEvent) => {}
                    Err(Full::Until(time)) => {
                        again = Some(again.map_or(time, |again| again.min(time)));
                    }
                }
                None
            });
            let Some((level, ticket, lane)) = next else {
                break;
            };
            meter.line[level].pop_first();
            self.serve_head(lane, level, ticket, id, now, wakers);
        }
        if let Some(time) = again {
            // Never the present: that would spin.
            self.look_at(id, time.max(now.saturating_add(1)));
        }
    }

    /// Grants to the head of a queue that has left the line at `from`, or puts
    /// it in line where it is held up.
    fn serve_head(
        &mut self,
        lane: u32,
        level: usize,
        ticket: u64,
        from: u32,
        now: Nanos,
        wakers: &mut Wakers,
    ) {
        let Some(plan) = self.lanes.lane(lane).map(|lane| lane.plan.clone()) else {
            return;
        };
        if let Some((meter, full)) = self.obstacle(&plan, level, ticket, now) {
            self.keep(lane, level, ticket, from, now);
            self.stand(lane, level, meter, full);
            return;
        }
        let Some((head, _)) = self.lanes.head(lane, level) else {
            return;
        };
        self.take(&plan, level, now);
        for &id in &plan {
            if let Some(meter) = self.meters.get_mut(id) {
                // It may not be polled for long.
                meter.gauge.hold_back(level, Some(now));
            }
        }
        self.leave(head, &plan, level, now);
        wakers.extend(self.lanes.settle(head, Fate::Granted { at: now }));
        // The next of the lane takes the place in line; the caller looks at it.
        self.stand(lane, level, from, Full::UntilEvent);
    }

    /// The head of a queue has had its turn at a meter in vain: another was full.
    /// Where others take what it needs, by turns, it would wait for ever. So in
    /// the end a place is kept for it.
    fn keep(&mut self, lane: u32, level: usize, ticket: u64, at: u32, now: Nanos) {
        let Some(lane) = self.lanes.lane_mut(lane) else {
            return;
        };
        let in_vain = &mut lane.in_vain[level];
        *in_vain = in_vain.saturating_add(1);
        if *in_vain < PATIENCE {
            return;
        }
        if let Some(meter) = self.meters.get_mut(at) {
            meter.keep(level, ticket, now);
        }
    }
}
