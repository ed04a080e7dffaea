//! Attempts whose answer nobody awaits any more.

use super::Gauge;
use super::pending::Pending;
use crate::quota::Rate;
use crate::time::{NANOS_PER_SEC, Nanos};

/// How long an attempt without an answer may be on its way, as long as no answer
/// has said how long that takes.
const UNKNOWN_WAY: Nanos = NANOS_PER_SEC;

impl Gauge {
    /// Nobody awaits the answer to an attempt that was taken at `sent` any more.
    /// Without one it is not known to have arrived, and may still be on its way:
    /// sent just now, if that isn't known. Says when it is taken to have arrived.
    pub(crate) fn lose(&mut self, level: usize, sent: Option<Nanos>, now: Nanos) -> Nanos {
        self.settle(now);
        self.in_flight.remove(level);
        self.saw(level, now);
        let arrives = match &mut self.pending {
            // Its margin goes on.
            Some(pending) => match sent.filter(|&sent| pending.answer(sent, level)) {
                Some(sent) => pending.latest(sent),
                None => return now,
            },
            None => sent.unwrap_or(now).saturating_add(self.way()),
        };
        if arrives > now && self.quota.rate != Rate::Unlimited {
            // Not counted until then: those that are counted meanwhile would
            // have to wait for it.
            self.astray.insert(arrives, level)
        } else {
            self.place(level, now);
            now
        }
    }

    /// How long an attempt may be on its way.
    fn way(&self) -> Nanos {
        match self.hold.nanos() {
            0 => UNKNOWN_WAY,
            mean => mean.saturating_mul(2),
        }
    }

    /// When the `index`th of the window's places is free, among them those that
    /// attempts astray will take: both are known. `None` where that hangs on an
    /// attempt in flight.
    pub(super) fn place_frees(&self, index: usize) -> Option<Nanos> {
        let astray = |nth| Some(self.astray.free_at(nth)?.saturating_add(self.window_nanos));
        // How many of those astray are among the first: of two that are sorted,
        // so many that one more would come after what it takes the place of.
        let (mut few, mut many) = (0, self.astray.len().min(index + 1));
        while few < many {
            let middle = few.midpoint(many);
            let other = self.window.free_at(index - middle);
            match other.is_none_or(|other| astray(middle).is_some_and(|at| at < other)) {
                true => few = middle + 1,
                false => many = middle,
            }
        }
        let counted = index.checked_sub(few).map(|nth| self.window.free_at(nth));
        let Some(last) = few.checked_sub(1).and_then(astray) else {
            return counted?;
        };
        let at = counted.map_or(Some(last), |at| at.map(|at| at.max(last)))?;
        // One that is pending may be counted before.
        let pending = self.pending.as_ref().and_then(Pending::first);
        Some(pending.map_or(at, |pending| {
            at.min(pending.saturating_add(self.window_nanos))
        }))
    }

    /// When so many of those astray have arrived in a bucket and drained. `None`
    /// where that hangs on an attempt in flight.
    pub(super) fn drops_drain(&self, count: u32) -> Option<Nanos> {
        // One that is pending may be counted before.
        if self.pending.is_some() || count as usize > self.astray.len() {
            return None;
        }
        let arrivals = (0..count as usize).filter_map(|nth| self.astray.free_at(nth));
        Some(arrivals.fold(self.drained_at, |drained, at| {
            drained.max(at).saturating_add(self.pace.interval())
        }))
    }

    /// Counts those that have arrived by now, if they ever do.
    #[inline]
    pub(super) fn count_astray(&mut self, now: Nanos) {
        while let Some((arrived, level)) = self.astray.pop(now) {
            match self.quota.rate {
                // Others may have been counted since.
                Rate::Window { .. } => {
                    let free_at = arrived.saturating_add(self.window_nanos);
                    self.window.insert(free_at, level);
                }
                _ => self.place(level, arrived),
            }
        }
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::quota::{Quota, Shape};
    use crate::time::NANOS_PER_MILLI;

    #[test]
    fn places_are_free_in_order_whoever_takes_them() {
        let quota = Quota::new(40, Duration::from_millis(300)).shape(Shape::Burst);
        let mut gauge = Gauge::new(quota);
        for number in 0..40 {
            let now = number * 100 * NANOS_PER_MILLI / 4;
            gauge.take(0, now);
            // Some of them arrive before those that are answered later.
            match number % 3 {
                0 => drop(gauge.lose(0, Some(now), now)),
                _ => gauge.finish(0, Some(now), now),
            }
            let counted = (0..).map_while(|nth| gauge.window.free_at(nth));
            let astray = (0..).map_while(|nth| gauge.astray.free_at(nth));
            let astray = astray.map(|at| at + gauge.window_nanos);
            let mut all: Vec<_> = counted.chain(astray).collect();
            all.sort_unstable();
            let found = (0..).map_while(|index| gauge.place_frees(index));
            assert_eq!(found.collect::<Vec<_>>(), all);
        }
    }
}
