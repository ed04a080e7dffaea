//! What a provider said is left of its quota.

use crate::time::Nanos;

/// So many more may go, until then.
#[derive(Clone, Copy, Debug)]
struct Ceiling {
    left: u32,
    until: Nanos,
}

/// What was said and holds still: the earliest end first. Whatever says no less
/// than another, for no longer, is left out; so the later the end, the more is
/// left.
#[derive(Debug, Default)]
pub(super) struct Ceilings(Vec<Ceiling>);

/// Of more than so many, two become one that is as tight as the tighter, and as
/// long as the longer.
const MOST: usize = 8;

impl Ceilings {
    /// Only `left` may go until then.
    pub(super) fn lower(&mut self, left: u32, until: Nanos) {
        let mut others = self.0.iter();
        if others.any(|other| other.left <= left && other.until >= until) {
            return;
        }
        self.0
            .retain(|other| other.left < left || other.until > until);
        let place = self.0.partition_point(|other| other.until < until);
        self.0.insert(place, Ceiling { left, until });
        if self.0.len() > MOST
            && let Some(longest) = self.0.pop()
            && let Some(last) = self.0.last_mut()
        {
            last.until = longest.until;
        }
    }

    /// Forgets what holds no longer.
    #[inline]
    pub(super) fn expire(&mut self, now: Nanos) {
        while self.0.first().is_some_and(|first| first.until <= now) {
            self.0.remove(0);
        }
    }

    #[inline]
    pub(super) fn take(&mut self) {
        for ceiling in &mut self.0 {
            ceiling.left = ceiling.left.saturating_sub(1);
        }
    }

    pub(super) fn give_back(&mut self) {
        for ceiling in &mut self.0 {
            ceiling.left = ceiling.left.saturating_add(1);
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Until when nobody may go, once so many more have gone.
    #[inline]
    pub(super) fn closed_until(&self, gone: u32) -> Nanos {
        let closed = self.0.iter().rfind(|ceiling| ceiling.left <= gone);
        closed.map_or(0, |ceiling| ceiling.until)
    }
}
