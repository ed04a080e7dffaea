//! A counter per window.

use super::state::Meter;

#[derive(Clone, Debug)]
pub(super) struct Fixed {
    limit: u128,
    window: u128,
    index: u128,
    counted: u128,
}

impl Fixed {
    pub(super) fn new(limit: u128, window: u128) -> Self {
        Self {
            limit,
            window,
            index: 0,
            counted: 0,
        }
    }

    fn turn(&mut self, now: u128) {
        let index = now / self.window;
        if index != self.index {
            self.index = index;
            self.counted = 0;
        }
    }
}

impl Meter for Fixed {
    fn wait(&mut self, now: u128) -> Option<u128> {
        self.turn(now);
        (self.counted >= self.limit).then(|| self.window - now % self.window)
    }

    fn count(&mut self, now: u128) {
        self.turn(now);
        self.counted += 1;
    }

    fn at_rest(&mut self, now: u128) -> bool {
        self.turn(now);
        self.counted == 0
    }
}
