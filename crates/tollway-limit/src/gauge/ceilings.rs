//! What a provider said is left of its quota.

use crate::time::Nanos;

/// So many more may go, until then. Fewer than none, where more are under way
/// than are left: one of those that was never sent makes no room yet.
#[derive(Clone, Copy, Debug)]
struct Ceiling {
    left: i64,
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
    pub(super) fn lower(&mut self, left: i64, until: Nanos) {
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
            ceiling.left -= 1;
        }
    }

    pub(super) fn give_back(&mut self) {
        for ceiling in &mut self.0 {
            ceiling.left += 1;
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Until when nobody may go, once so many more have gone.
    #[inline]
    pub(super) fn closed_until(&self, gone: u32) -> Nanos {
        let closed = self
            .0
            .iter()
            .rfind(|ceiling| ceiling.left <= i64::from(gone));
        closed.map_or(0, |ceiling| ceiling.until)
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    fn naive(said: &[(i64, Nanos)], gone: u32, now: Nanos) -> Nanos {
        let closed = said.iter().filter(|&&(left, _)| left <= gone.into());
        let until = closed.map(|&(_, until)| until).max().unwrap_or(0);
        if until > now { until } else { 0 }
    }

    #[test]
    fn everything_that_was_said_holds_to_its_end() {
        let mut ceilings = Ceilings::default();
        let mut said: Vec<(i64, Nanos)> = Vec::new();
        let lefts = [3, 0, 6, 2, 5, 1, 4].into_iter().cycle();
        for (now, left) in (0..5000).zip(lefts) {
            // Repeats itself only after a long while.
            let until = now + now * 13 % 41;
            said.retain(|&(_, until)| until > now);
            said.push((left, until));
            ceilings.lower(left, until);
            if now % 3 == 0 {
                ceilings.take();
                said.iter_mut().for_each(|(left, _)| *left -= 1);
            }
            ceilings.expire(now);
            for gone in 0..8 {
                assert_eq!(ceilings.closed_until(gone), naive(&said, gone, now));
            }
        }
    }

    #[test]
    fn of_too_many_the_loosest_become_tighter() {
        let mut ceilings = Ceilings::default();
        let said: Vec<(i64, Nanos)> = (1..=20).zip(1..=20).collect();
        for &(left, until) in &said {
            ceilings.lower(left, until);
        }
        assert_eq!(ceilings.0.len(), MOST);
        for gone in 0..30 {
            let most = naive(&said, gone, 0);
            let until = ceilings.closed_until(gone);
            assert!(until == most || gone >= 8 && until == 20, "{gone}: {until}");
        }
    }
}
