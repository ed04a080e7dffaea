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
    pub(crate) fn give_back(
        &mut self,
        level: usize,
        sent: Option<Nanos>,
        was_held: bool,
        now: Nanos,
    ) {
        self.settle(now);
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
        self.settle(now);
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
