//! Who sets the one timer, and when it has to be set.

use super::{Runtime, State, Wakers};
use crate::time::Nanos;

impl State {
    /// Notes in which runtime one is polled who waits, as a newcomer or `again`:
    /// the timer is to be set in one that is driven, and only those certainly
    /// are.
    pub(crate) fn waits_in(&mut self, runtime: Runtime, again: bool) {
        if !self.is_elsewhere(runtime) {
            return;
        }
        // The only one starts afresh.
        self.is_mixed = self.lanes.waiting() > 1;
        self.runtime = Some(runtime);
        if again || !self.is_mixed {
            // It may have moved here, and others with it.
            self.armed = None;
        }
    }

    /// Whether any of those who wait are in another runtime.
    pub(crate) fn is_elsewhere(&self, runtime: Runtime) -> bool {
        self.is_mixed || self.runtime != Some(runtime)
    }

    /// Whether a task of its own is to set the timer, in this runtime: one who
    /// is woken to do it may not be polled for long.
    pub(crate) fn arms_here(&mut self, runtime: impl FnOnce() -> Runtime) -> bool {
        let arms = !self.is_arming && self.must_arm() && {
            let runtime = runtime();
            runtime.is_some() && !self.is_elsewhere(runtime)
        };
        self.is_arming |= arms;
        arms
    }

    /// Wakes one who waits to set the timer anew, if it has to be.
    pub(crate) fn have_armed(&self, wakers: &mut Wakers) {
        if wakers.is_empty() && self.must_arm() {
            wakers.extend(self.lanes.any_waiting().cloned());
        }
    }

    /// When to call [`pump`](Self::pump) next.
    pub(crate) fn next_wake(&self) -> Option<Nanos> {
        let timer = self.timers.first().map(|&(time, _)| time);
        let deadline = self.deadlines.first().map(|&(time, _)| time);
        match (timer, deadline) {
            (Some(timer), Some(deadline)) => Some(timer.min(deadline)),
            (time, None) | (None, time) => time,
        }
    }

    /// Whether the one timer has to be set anew.
    pub(crate) fn must_arm(&self) -> bool {
        if self.lanes.waiting() == 0 {
            return false;
        }
        match (self.next_wake(), self.armed) {
            (Some(next), Some(armed)) => next < armed,
            (Some(_), None) => true,
            (None, _) => false,
        }
    }
}
