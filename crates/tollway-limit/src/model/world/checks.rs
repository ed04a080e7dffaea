//! What the limiter does not say of itself: whether it looks where it must, and
//! whether what it foretells comes.

use super::World;
use crate::gauge::Full;
use crate::lanes::Wish;
use crate::quota::{CountFrom, EXPRESS, LEVELS};
use crate::state::{Admission, Wakers};
use crate::time::NANOS_PER_MILLI;

impl World {
    /// Nobody is left standing in line where there is room, and whoever stands
    /// there waits for a time or for something that will happen.
    pub(super) fn check_lines(&mut self) {
        for id in self.state.meters.ids() {
            // What lends is left alone.
            let meter = self.state.meters.get(id).unwrap();
            if !meter.has_line() {
                assert_eq!(meter.wake, None, "nobody stands at meter {id}");
                continue;
            }
            let meter = self.state.meters.get_mut(id).unwrap();
            for level in 0..LEVELS {
                let Some(&(ticket, _)) = meter.line[level].first() else {
                    continue;
                };
                let room = meter.room(level, ticket, self.now);
                let is_watched = match room {
                    Ok(()) => meter.wake.is_some_and(|wake| wake <= self.now),
                    Err(Full::Until(_)) => meter.wake.is_some(),
                    Err(Full::UntilEvent) => {
                        let mut others = meter.gauge.waiting();
                        others[level] = 0;
                        meter.gauge.in_flight() > 0 || others != [0; LEVELS]
                    }
                };
                assert!(
                    is_watched,
                    "nobody looks at line {level} of meter {id}: {room:?} at {}, looks at {:?}",
                    self.now, meter.wake,
                );
            }
        }
    }

    fn room(&mut self, meter: usize) -> Result<(), Full> {
        let now = self.now;
        let meter = self.state.meters.get_mut(meter as u32).unwrap();
        meter.gauge.room(EXPRESS, now)
    }

    /// If nothing happens, there is room at the time that was foretold, and not
    /// before.
    pub(super) fn foretell(&mut self, meter: usize) {
        let quota = &self.providers[meter].quota;
        // Where time counts those in flight, room hangs on them; what is kept for
        // others may grow meanwhile; and a window that was shortened may have its
        // places out of order.
        if quota.count_from != CountFrom::Response
            || quota.reserved != [0; LEVELS]
            || self.has_lost && self.has_changed
        {
            return;
        }
        self.send_away();
        let now = self.now;
        let gauge = &mut self.state.meters.get_mut(meter as u32).unwrap().gauge;
        let Some(at) = gauge.free_at(EXPRESS, now) else {
            return;
        };
        if at > now {
            self.advance(now.max(at - 4));
            assert!(self.room(meter).is_err(), "room before {at}");
            self.advance(at);
        }
        assert_eq!(self.room(meter), Ok(()), "no room at {at}");
    }

    /// However soon everything in flight is answered, there is no permit before
    /// the wait that was foretold.
    pub(super) fn probe(&mut self, plan: usize) {
        self.send_away();
        let ask = |world: &mut Self| {
            let plan = world.plans[plan].clone();
            let now = world.now;
            let mut wakers = Wakers::new();
            let wish = Wish {
                level: 1,
                deadline: None,
                ticket: None,
            };
            world.state.admit(&plan, wish, now, None, &mut wakers)
        };
        let wait = match ask(self) {
            Admission::Granted(at) => return self.sent(plan, 1, at, None),
            Admission::NotNow(wait) => wait,
            other => panic!("{other:?}"),
        };
        while let Some(index) = self.flying(0) {
            self.answer(index);
        }
        if wait > NANOS_PER_MILLI {
            self.advance(self.now + wait - NANOS_PER_MILLI);
            match ask(self) {
                Admission::NotNow(_) => {}
                other => panic!("the wait was to be {wait}, but {other:?}"),
            }
        }
    }
}
