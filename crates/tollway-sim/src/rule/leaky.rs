//! The leaky bucket as nginx's `limit_req … nodelay` keeps it.

use super::state::Meter;

/// `excess` is how far the arrivals are ahead of the rate. The first arrival has none; each
/// later one adds one request less what has drained since the last accepted one, and is refused
/// when that exceeds the burst. A request is worth `window` units and `limit` units drain each
/// nanosecond.
#[derive(Clone, Debug)]
pub(super) struct Leaky {
    limit: u128,
    window: u128,
    burst: u128,
    last: Option<Last>,
}

#[derive(Clone, Copy, Debug)]
struct Last {
    at: u128,
    excess: u128,
}

impl Leaky {
    pub(super) fn new(limit: u128, window: u128, burst: u128) -> Self {
        Self {
            limit,
            window,
            burst: burst * window,
            last: None,
        }
    }

    fn excess(&self, now: u128) -> u128 {
        self.last.map_or(0, |last| {
            let drained = (now - last.at).saturating_mul(self.limit);
            (last.excess + self.window).saturating_sub(drained)
        })
    }
}

impl Meter for Leaky {
    fn wait(&mut self, now: u128) -> Option<u128> {
        let over = self.excess(now).saturating_sub(self.burst);
        (over > 0).then(|| over.div_ceil(self.limit))
    }

    fn count(&mut self, now: u128) {
        let excess = self.excess(now).min(self.burst);
        self.last = Some(Last { at: now, excess });
    }

    fn at_rest(&mut self, now: u128) -> bool {
        self.excess(now) == 0
    }
}
