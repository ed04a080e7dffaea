//! Attempts whose answer nobody awaits any more.

use super::Gauge;
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

    /// When the `index`th of the window's places is free.
    pub(super) fn place_frees(&self, index: usize) -> Option<Nanos> {
        let at = self.window.free_at(index)?;
        // Where the window was shortened, one astray may make place before those
        // that were counted under the longer one.
        let astray = self.astray.free_at(0);
        let astray = astray.map(|at| at.saturating_add(self.window_nanos));
        Some(astray.map_or(at, |astray| at.min(astray)))
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
