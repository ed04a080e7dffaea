//! Attempts that have a place and are not sent yet, or never.

use super::Gauge;
use crate::time::Nanos;

impl Gauge {
    /// How many of those in flight may have been sent.
    pub(super) fn sent(&self, level: usize) -> u32 {
        self.in_flight.of(level).saturating_sub(self.held.of(level))
    }

    /// An attempt that was taken at `sent` is held back: it keeps its place until
    /// it is sent or goes back, however long that takes.
    pub(crate) fn hold_back(&mut self, level: usize, sent: Option<Nanos>) {
        self.answer(level, sent);
        self.held.add(level);
    }

    /// An attempt that was taken at `sent` was never sent, and perhaps held back.
    pub(crate) fn give_back(&mut self, level: usize, sent: Option<Nanos>, was_held: bool) {
        self.in_flight.remove(level);
        self.unsend(level, sent, was_held);
        if let Some(sent) = sent {
            self.pace.give_back(sent);
        }
        self.ceilings.give_back();
    }

    /// An attempt that was taken at `sent`, and perhaps held back, is sent only
    /// now. Says whether that matters.
    pub(crate) fn resend(
        &mut self,
        level: usize,
        sent: Option<Nanos>,
        was_held: bool,
        now: Nanos,
    ) -> bool {
        // If it was counted as sent long ago, it is counted again: too much is
        // safe, too little isn't.
        self.unsend(level, sent, was_held);
        let Some(pending) = &mut self.pending else {
            return false;
        };
        pending.push(now, level);
        true
    }

    /// An attempt was not sent when it was taken.
    fn unsend(&mut self, level: usize, sent: Option<Nanos>, was_held: bool) {
        match was_held {
            true => self.held.remove(level),
            false => drop(self.answer(level, sent)),
        }
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::quota::{CountFrom, EXPRESS, Quota};
    use crate::time::NANOS_PER_SEC;

    const NOW: Nanos = NANOS_PER_SEC;

    fn sending() -> Quota {
        let margin = Duration::from_secs(1);
        Quota::per_minute(9).count_from(CountFrom::Sending { margin })
    }

    fn take_and_hold_back(gauge: &mut Gauge, at: Nanos) {
        gauge.take(EXPRESS, at);
        gauge.hold_back(EXPRESS, Some(at));
    }

    #[test]
    fn what_is_held_back_takes_one_place_wherever_is_counted_from() {
        let mut gauge = Gauge::new(Quota::per_minute(9));
        take_and_hold_back(&mut gauge, 0);
        for quota in [sending(), Quota::per_minute(9), sending()] {
            gauge.set_quota(quota, NOW);
            assert_eq!(gauge.taken(NOW), 1);
        }
        assert!(gauge.resend(EXPRESS, Some(0), true, NOW));
        assert_eq!(gauge.taken(NOW), 1);
        gauge.finish(EXPRESS, Some(NOW), NOW);
        assert_eq!(gauge.taken(NOW), 1);
        take_and_hold_back(&mut gauge, NOW);
        gauge.give_back(EXPRESS, Some(NOW), true);
        assert_eq!(gauge.taken(NOW), 1);
    }

    #[test]
    fn what_is_held_back_takes_no_other_s_place() {
        let mut gauge = Gauge::new(Quota::per_minute(9));
        gauge.take(EXPRESS, 0);
        gauge.set_quota(sending(), NOW);
        // It isn't found, and is counted as it would have been.
        gauge.finish(EXPRESS, Some(0), NOW);
        take_and_hold_back(&mut gauge, NOW);
        gauge.set_quota(Quota::per_minute(9), NOW);
        assert_eq!(gauge.taken(NOW), 2);
    }
}
