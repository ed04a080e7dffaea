//! Who sets the one timer, and when it has to be set.

use super::{Runtime, State, Wakers};
use crate::time::Nanos;

impl State {
    /// Notes in which runtime one is polled who waits, as a newcomer or `again`:
    /// the timer is to be set in one that is driven, and only those certainly
    /// are.
    pub(crate) fn waits_in(&mut self, runtime: Option<Runtime>, again: bool) {
        if !self.is_elsewhere(runtime.as_ref()) {
            return;
        }
        // The only one starts afresh.
        self.is_mixed = self.lanes.waiting() > 1;
        self.runtime = runtime;
        if again || !self.is_mixed {
            // It may have moved here, and others with it.
            self.armed = None;
        }
    }

    /// Whether any of those who wait are in another runtime.
    pub(crate) fn is_elsewhere(&self, runtime: Option<&Runtime>) -> bool {
        self.is_mixed || self.runtime.as_ref() != runtime
    }

    /// Has the timer set anew, if it has to be. By a task of its own, in the
    /// runtime that this hands back: one who is woken to do it may not be polled
    /// for long. Where those who wait are in several, one of them is woken all the
    /// same, beside whoever was granted a permit.
    pub(crate) fn have_armed(&mut self, wakers: &mut Wakers) -> Option<Runtime> {
        if !self.must_arm() {
            return None;
        }
        if self.is_mixed {
            wakers.extend(self.lanes.any_waiting().cloned());
            return None;
        }
        let runtime = self.runtime.clone().filter(|_| !self.is_arming)?;
        self.is_arming = true;
        Some(runtime)
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
