//! The exact sliding window.

use std::collections::VecDeque;

use super::state::Meter;

/// The times of the last `limit` counted arrivals. An arrival counts for one whole window:
/// exactly a window later it no longer does.
#[derive(Clone, Debug)]
pub(super) struct Log {
    limit: usize,
    window: u128,
    arrivals: VecDeque<u128>,
}

impl Log {
    pub(super) fn new(limit: u32, window: u128) -> Self {
        Self {
            limit: usize::try_from(limit).unwrap_or(usize::MAX),
            window,
            arrivals: VecDeque::new(),
        }
    }

    fn forget(&mut self, now: u128) {
        while self
            .arrivals
            .front()
            .is_some_and(|at| at + self.window <= now)
        {
            self.arrivals.pop_front();
        }
    }
}

impl Meter for Log {
    fn wait(&mut self, now: u128) -> Option<u128> {
        self.forget(now);
        if self.arrivals.len() < self.limit {
            return None;
        }
        self.arrivals.front().map(|at| at + self.window - now)
    }

    fn count(&mut self, now: u128) {
        self.forget(now);
        // Only the last `limit` can matter, which bounds the log when refusals count too.
        if self.arrivals.len() == self.limit {
            self.arrivals.pop_front();
        }
        self.arrivals.push_back(now);
    }

    fn at_rest(&mut self, now: u128) -> bool {
        self.forget(now);
        self.arrivals.is_empty()
    }
}
