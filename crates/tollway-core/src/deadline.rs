//! The instant at which the caller stops caring.

use std::cell::Cell;
use std::marker::PhantomData;
use std::thread::LocalKey;
use std::time::{Duration, Instant};

use http::Extensions;

use crate::Phase;

/// The instant at which the caller stops caring, for the whole call.
///
/// The limiter refuses a wait that would outlast it, the retry a back-off, the
/// pool a wait for a connection. It reaches them in two ways, and the earlier
/// of two wins:
///
/// - Whoever makes the call puts it into the request's extensions.
/// - A layer above [holds](Self::hold) it while it calls and polls the service
///   under it, as `DeadlineLayer` does. That costs no allocation, where a
///   request's first extension costs three, and it holds for all that is polled
///   inside: a handler's outbound calls end when the handler must. It ends where
///   the chain of polls does. A layer in between that hands the call to another
///   task, as tower's buffer does, hides it from those below; the layer above
///   still ends the call in time.
///
/// It holds a [`std::time::Instant`], so that this crate needs no runtime.
/// A tokio `Instant` converts into one, under a paused clock too:
///
/// ```
/// use std::time::{Duration, Instant};
/// use tollway_core::Deadline;
///
/// # #[expect(clippy::disallowed_methods)]
/// let now = Instant::now();
/// let deadline = Deadline::at(now + Duration::from_secs(30));
/// assert_eq!(deadline.remaining(now), Duration::from_secs(30));
/// assert!(!deadline.has_passed(now));
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Deadline(Instant);

impl Deadline {
    /// The deadline at `instant`.
    #[must_use]
    pub fn at(instant: impl Into<Instant>) -> Self {
        Self(instant.into())
    }

    /// The deadline `limit` after `now`, or `None` where the clock can't say
    /// that instant: so far away, there is no deadline.
    #[must_use]
    #[inline]
    pub fn after(now: impl Into<Instant>, limit: Duration) -> Option<Self> {
        now.into().checked_add(limit).map(Self)
    }

    /// The deadline of a request with these extensions, if any: the earlier of
    /// the one that they carry and the one that is [held](Self::hold) right now.
    ///
    /// To be asked in a service's `call` and in its future's `poll`.
    #[must_use]
    #[inline]
    pub fn of(extensions: &Extensions) -> Option<Self> {
        let carried = extensions.get().copied();
        carried.into_iter().chain(Self::held()).min()
    }

    /// Puts the deadline into `extensions`, unless they carry an earlier one.
    pub fn insert_into(self, extensions: &mut Extensions) {
        let is_later = |carried: &Self| *carried > self;
        if extensions.get().is_none_or(is_later) {
            extensions.insert(self);
        }
    }

    /// The deadline that is [held](Self::hold) right now, if any.
    #[must_use]
    #[inline]
    pub fn held() -> Option<Self> {
        HELD.get()
    }

    /// Holds this deadline, or an earlier one that is [held](Self::held) already,
    /// until what it returns is dropped: while a layer calls or polls what is
    /// under it.
    ///
    /// `now` is the time, if the layer has just read it; see [`recent`].
    ///
    /// It holds back notes of what a call [waits for](crate::Phase::pending) as
    /// well: they are for the layers of that call's stack. Whoever polls the whole
    /// of it may do other things beside it, and leave no note of them.
    ///
    /// ```
    /// use std::time::{Duration, Instant};
    /// use tollway_core::Deadline;
    ///
    /// # #[expect(clippy::disallowed_methods)]
    /// let deadline = Deadline::at(Instant::now() + Duration::from_secs(30));
    /// {
    ///     let _held = deadline.hold(None);
    ///     assert_eq!(Deadline::held(), Some(deadline));
    /// }
    /// assert_eq!(Deadline::held(), None);
    /// ```
    #[inline]
    pub fn hold(self, now: Option<Instant>) -> Held {
        let before = Held {
            held: HELD.get(),
            now: NOW.get(),
            not_send: PhantomData,
        };
        set(&HELD, Some(before.held.map_or(self, |held| held.min(self))));
        // What an outer layer read may be old: a handler can compute for long
        // before it makes this call.
        set(&NOW, now.map_or(Reading::Wanted, Reading::Taken));
        before
    }

    /// The instant itself. `tokio::time::Instant::from` takes it.
    #[must_use]
    #[inline]
    pub fn instant(self) -> Instant {
        self.0
    }

    /// The time left at `now`, zero once the deadline has passed.
    #[must_use]
    pub fn remaining(self, now: impl Into<Instant>) -> Duration {
        self.0.saturating_duration_since(now.into())
    }

    /// Whether the deadline has passed at `now`. It has passed at its very
    /// instant.
    #[must_use]
    #[inline]
    pub fn has_passed(self, now: impl Into<Instant>) -> bool {
        now.into() >= self.0
    }
}

thread_local! {
    static HELD: Cell<Option<Deadline>> = const { Cell::new(None) };
    static NOW: Cell<Reading> = const { Cell::new(Reading::Unshared) };
}

/// `LocalKey::set` hands the value on through memory, a function further down.
#[inline]
pub(crate) fn set<T>(key: &'static LocalKey<Cell<T>>, value: T) {
    key.with(|cell| cell.set(value));
}

/// What this thread knows of the time.
#[derive(Clone, Copy, Debug)]
enum Reading {
    /// Nobody says when the poll under way ends, so each asks the clock.
    Unshared,
    /// The first who asks reads the clock for all.
    Wanted,
    Taken(Instant),
}

/// A deadline that is held until this is dropped, after a panic too. What held
/// before then holds again.
///
/// To be dropped before the poll or the call that made it returns, and in
/// reverse order of making, as a local variable is.
#[derive(Debug)]
#[must_use = "the deadline is held until this is dropped"]
pub struct Held {
    held: Option<Deadline>,
    now: Reading,
    not_send: PhantomData<*const ()>,
}

impl Drop for Held {
    #[inline]
    fn drop(&mut self) {
        Phase::hold_back();
        set(&HELD, self.held);
        // Within another layer's poll, what was read here is the latest.
        if matches!(self.now, Reading::Unshared) {
            set(&NOW, Reading::Unshared);
        }
    }
}

/// The time of the poll under way, for those who can do with an instant that is
/// a little too early: when an attempt begins, whether a deadline has passed.
///
/// Under a [held](Deadline::hold) deadline the clock is read once in each call
/// and each poll of the innermost layer that holds one, and all who ask inside
/// are told the same, however long that poll takes: a stack that is called from
/// a handler under somebody else's deadline needs a layer of its own that holds
/// one. Elsewhere it is read each time. `read` reads it; tokio's is
/// to be preferred, which a test can pause.
#[inline]
pub fn recent(read: impl FnOnce() -> Instant) -> Instant {
    match NOW.get() {
        Reading::Taken(now) => now,
        Reading::Unshared => read(),
        Reading::Wanted => {
            let now = read();
            set(&NOW, Reading::Taken(now));
            now
        }
    }
}

#[cfg(test)]
#[expect(
    clippy::disallowed_methods,
    reason = "instants to compare, not to wait for"
)]
mod tests {
    use std::panic;

    use super::*;

    fn in_secs(secs: u64) -> Deadline {
        Deadline::at(Instant::now() + Duration::from_secs(secs))
    }

    #[test]
    fn the_earlier_of_two_deadlines_is_held() {
        let (sooner, later) = (in_secs(1), in_secs(2));
        for (outer, inner) in [(sooner, later), (later, sooner)] {
            let _outer = outer.hold(None);
            {
                let _inner = inner.hold(None);
                assert_eq!(Deadline::held(), Some(sooner));
            }
            assert_eq!(Deadline::held(), Some(outer));
        }
        assert_eq!(Deadline::held(), None);
    }

    #[test]
    fn the_earlier_of_the_carried_and_the_held_one_counts() {
        let (sooner, later) = (in_secs(1), in_secs(2));
        for (carried, held) in [(sooner, later), (later, sooner)] {
            let mut extensions = Extensions::new();
            extensions.insert(carried);
            assert_eq!(Deadline::of(&extensions), Some(carried));
            let _held = held.hold(None);
            assert_eq!(Deadline::of(&extensions), Some(sooner));
        }
    }

    #[test]
    fn the_earlier_of_two_deadlines_is_carried() {
        let (sooner, later) = (in_secs(1), in_secs(2));
        for (first, second) in [(sooner, later), (later, sooner)] {
            let mut extensions = Extensions::new();
            first.insert_into(&mut extensions);
            assert_eq!(Deadline::of(&extensions), Some(first));
            second.insert_into(&mut extensions);
            assert_eq!(Deadline::of(&extensions), Some(sooner));
        }
    }

    #[test]
    fn what_a_call_waits_for_is_noted_no_further_up_than_its_deadline_is_held() {
        let inner = || {
            let _held = in_secs(1).hold(None);
            let (poll, noted) = Phase::observe(|| Phase::Connect.pending::<()>());
            assert_eq!(noted, Some(Phase::Connect));
            poll
        };
        let (_, noted) = Phase::observe(inner);
        assert_eq!(noted, None);
    }

    #[test]
    fn nothing_is_held_after_a_panic() {
        let hold = || {
            let _held = in_secs(1).hold(None);
            panic!("on purpose");
        };
        assert!(panic::catch_unwind(hold).is_err());
        assert_eq!(Deadline::held(), None);
        let mut readings = 0;
        for _ in 0..2 {
            recent(|| {
                readings += 1;
                Instant::now()
            });
        }
        assert_eq!(readings, 2);
    }

    #[test]
    fn the_clock_is_read_once_in_a_poll_and_each_time_outside() {
        let readings = Cell::new(0);
        let read = || {
            recent(|| {
                readings.set(readings.get() + 1);
                Instant::now()
            })
        };
        read();
        read();
        assert_eq!(readings.get(), 2);
        for poll in 1..=2 {
            {
                let _held = in_secs(1).hold(None);
                assert_eq!(read(), read());
                // A layer inside may have been called much later.
                let latest = {
                    let _inner = in_secs(2).hold(None);
                    let latest = read();
                    assert_eq!(read(), latest);
                    latest
                };
                assert_eq!(read(), latest);
            }
            assert_eq!(readings.get(), 2 + 2 * poll);
        }
        let _held = in_secs(1).hold(None);
        // Read inside another layer's poll, it holds for the rest of ours.
        let first = {
            let _inner = in_secs(2).hold(None);
            read()
        };
        assert_eq!(read(), first);
        assert_eq!(readings.get(), 7);
    }

    #[test]
    fn a_time_that_was_read_before_is_handed_out() {
        let now = Instant::now();
        let _held = in_secs(1).hold(Some(now));
        assert_eq!(recent(|| unreachable!("the time is known")), now);
    }
}
