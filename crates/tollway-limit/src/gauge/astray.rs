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

    /// When the `index`th of the window's places is free: those that attempts
    /// astray will take come after those that are taken, because they arrive
    /// later. `None` where that hangs on an attempt in flight.
    pub(super) fn place_frees(&self, index: usize) -> Option<Nanos> {
        let frees = |arrived: Nanos| arrived.saturating_add(self.window_nanos);
        let (at, before) = match self.window.free_at(index) {
            // Unless the window was shortened: then it is looked at when the
            // first makes place.
            Some(at) => (at, self.astray.free_at(0)),
            // One that is pending may be counted before.
            None => {
                let astray = self.astray.free_at(index - self.window.len())?;
                let pending = self.pending.as_ref().and_then(Pending::first);
                (frees(astray), pending)
            }
        };
        Some(before.map_or(at, |before| at.min(frees(before))))
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
