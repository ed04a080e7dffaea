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
    /// sent just now, if that isn't known.
    pub(crate) fn lose(&mut self, level: usize, sent: Option<Nanos>, now: Nanos) {
        self.settle(now);
        self.in_flight.remove(level);
        self.saw(level, now);
        // Where it counts from sending, its margin goes on.
        if self.pending.is_some() || self.quota.rate == Rate::Unlimited {
            return;
        }
        let way = match self.hold.nanos() {
            0 => UNKNOWN_WAY,
            mean => mean.saturating_mul(2),
        };
        let arrives = sent.unwrap_or(now).saturating_add(way);
        if arrives > now {
            // Not counted until then: those that are counted meanwhile would
            // have to wait for it.
            self.astray.count(arrives, level);
        } else {
            self.place(level, now);
        }
    }

    /// Counts those that have arrived by now, if they ever do.
    #[inline]
    pub(super) fn count_astray(&mut self, now: Nanos) {
        while let Some((arrived, level)) = self.astray.pop(now) {
            self.place(level, arrived);
        }
    }
}
