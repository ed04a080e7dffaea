//! The sliding window estimated from two counters.

use super::state::Meter;

/// A request fits while `previous × (share of the previous window still in view) + current + 1`
/// is at most the limit. Both sides are multiplied by the window, so that nothing is rounded.
#[derive(Clone, Debug)]
pub(super) struct Counter {
    limit: u128,
    window: u128,
    index: u128,
    previous: u128,
    current: u128,
}

impl Counter {
    pub(super) fn new(limit: u128, window: u128) -> Self {
        Self {
            limit,
            window,
            index: 0,
            previous: 0,
            current: 0,
        }
    }

    fn turn(&mut self, now: u128) {
        let index = now / self.window;
        if index == self.index {
            return;
        }
        self.previous = if index == self.index + 1 {
            self.current
        } else {
            0
        };
        self.current = 0;
        self.index = index;
    }

    /// How far into its window a request fits, after `previous` and with `room` places left.
    fn fits_from(&self, previous: u128, room: u128) -> u128 {
        match previous {
            0 => 0,
            _ => self.window - (room * self.window / previous).min(self.window),
        }
    }
}

impl Meter for Counter {
    fn wait(&mut self, now: u128) -> Option<u128> {
        self.turn(now);
        let into = now % self.window;
        let room = self.limit - 1;
        let from = if self.current <= room {
            self.fits_from(self.previous, room - self.current)
        } else {
            // Not in this window any more; in the next, this one is the previous.
            self.window + self.fits_from(self.current, room)
        };
        (into < from).then(|| from - into)
    }

    fn count(&mut self, now: u128) {
        self.turn(now);
        self.current += 1;
    }

    fn at_rest(&mut self, now: u128) -> bool {
        self.turn(now);
        self.previous == 0 && self.current == 0
    }
}

/// Requests accepted in a span of a caller who is always just in time.
///
/// The first window takes `limit` at once. Whoever was that greedy gets `limit - 1` places spread
/// over each later window, and the place that falls on the boundary belongs to the next.
pub(super) fn ideal(limit: u128, window: u128, span: u128) -> u128 {
    let (mut meter, mut now, mut accepted) = (Counter::new(limit, window), 0, 0);
    while now < span {
        match meter.wait(now) {
            None => {
                meter.count(now);
                accepted += 1;
            }
            Some(wait) => now += wait,
        }
    }
    accepted
}
