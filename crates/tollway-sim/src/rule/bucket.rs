//! The token bucket.

use super::state::Meter;

/// A token is worth `window` units and `limit` units come back each nanosecond, so the level is
/// exact in whole numbers.
#[derive(Clone, Debug)]
pub(super) struct Bucket {
    limit: u128,
    window: u128,
    full: u128,
    level: u128,
    at: u128,
}

impl Bucket {
    pub(super) fn new(limit: u128, window: u128, burst: u128) -> Self {
        Self {
            limit,
            window,
            full: burst * window,
            level: burst * window,
            at: 0,
        }
    }

    fn refill(&mut self, now: u128) {
        let back = (now - self.at).saturating_mul(self.limit);
        self.level = self.level.saturating_add(back).min(self.full);
        self.at = now;
    }
}

impl Meter for Bucket {
    fn wait(&mut self, now: u128) -> Option<u128> {
        self.refill(now);
        let missing = self.window.saturating_sub(self.level);
        (missing > 0).then(|| missing.div_ceil(self.limit))
    }

    fn count(&mut self, now: u128) {
        self.refill(now);
        self.level = self.level.saturating_sub(self.window);
    }

    fn at_rest(&mut self, now: u128) -> bool {
        self.refill(now);
        self.level == self.full
    }
}
