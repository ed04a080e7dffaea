//! What a pending future waits for, told to the layers above it.

use std::cell::Cell;
use std::task::Poll;
use std::time::Instant;

use crate::Phase;
use crate::deadline::set;

thread_local! {
    /// What the future that returned `Pending` last on this thread waits for.
    static NOTE: Cell<Option<Phase>> = const { Cell::new(None) };
    /// When a timer of that future wakes the task, if it said so.
    static WAKES: Cell<Option<Instant>> = const { Cell::new(None) };
}

/// Telling the layers above what a pending future waits for.
///
/// A timeout sees only that the service under it is pending. Whether that
/// service waits for a permit, connects or awaits an answer is known further
/// down, and it decides what the timeout means: a request that still waits for
/// a connection was certainly not executed. So the layer that knows leaves a
/// note as it returns `Pending`, and the one that wants to know reads it right
/// after the poll. The note is a thread-local cell: polling is one nested call
/// on one thread, so nothing is shared, nothing allocates, and layers of other
/// crates in between need to know nothing.
///
/// Where the chain of polls is broken (a spawned task, a buffer) there is no
/// note, and a reader must assume the worst: that the request may have been
/// sent. Where one future polls several others, the last one's note stands, and
/// it stands too where the others leave none. So it is to be read only above a
/// single call: whoever [holds](crate::Deadline::hold) its deadline passes none
/// on.
impl Phase {
    /// [`Poll::Pending`], with the note that it is pending in this phase.
    ///
    /// [`Prepare`](Self::Prepare), [`Permit`](Self::Permit) and
    /// [`Connect`](Self::Connect) are promises that nothing of the request has
    /// been written.
    #[inline]
    pub fn pending<T>(self) -> Poll<T> {
        set(&NOTE, Some(self));
        set(&WAKES, None);
        Poll::Pending
    }

    /// The same, by a future that has a timer, which wakes its task at `instant`
    /// at the latest. See [`wakes_at`](Self::wakes_at).
    #[inline]
    pub fn pending_until<T>(self, instant: impl Into<Instant>) -> Poll<T> {
        set(&NOTE, Some(self));
        set(&WAKES, Some(instant.into()));
        Poll::Pending
    }

    /// When a timer below wakes this task at the latest, by the note that was
    /// left since [`forget`](Self::forget).
    ///
    /// Whoever would wait for a later instant needs no timer of his own then,
    /// as long as everything between polls the future below within its own poll,
    /// and lets go of it only there. A future in between that hands it to another
    /// task, or drops it and goes on waiting, breaks that.
    #[must_use]
    #[inline]
    pub fn wakes_at() -> Option<Instant> {
        WAKES.get()
    }

    /// Calls `poll`. Where it returns `Pending`, the second value is the note
    /// that it left, if it left one.
    ///
    /// The note stays readable for the next layer up, if nothing is polled in
    /// between.
    ///
    /// ```
    /// use std::task::Poll;
    /// use tollway_core::Phase;
    ///
    /// let (poll, phase) = Phase::observe(|| Phase::Connect.pending::<()>());
    /// assert!(poll.is_pending());
    /// assert_eq!(phase, Some(Phase::Connect));
    ///
    /// let (_, phase) = Phase::observe(|| Poll::<()>::Pending);
    /// assert_eq!(phase, None);
    /// ```
    #[inline]
    pub fn observe<T>(poll: impl FnOnce() -> Poll<T>) -> (Poll<T>, Option<Self>) {
        Self::forget();
        let poll = poll();
        let note = if poll.is_pending() {
            Self::noted()
        } else {
            None
        };
        (poll, note)
    }

    /// Drops the note that an earlier poll left. With [`noted`](Self::noted) it
    /// does what [`observe`](Self::observe) does, for an answer that is too
    /// large to be handed through a closure.
    #[inline]
    pub fn forget() {
        set(&NOTE, None);
        set(&WAKES, None);
    }

    /// Drops the note alone.
    #[inline]
    pub(crate) fn hold_back() {
        set(&NOTE, None);
    }

    /// The note that was left since [`forget`](Self::forget). It means
    /// something only right after a poll that returned `Pending`.
    #[must_use]
    #[inline]
    pub fn noted() -> Option<Self> {
        NOTE.get()
    }

    /// Whether nothing of the attempt's request has been written in this
    /// phase: reading its body beforehand, waiting for a permit, or for a
    /// connection.
    #[must_use]
    pub const fn is_before_sending(self) -> bool {
        matches!(self, Self::Prepare | Self::Permit | Self::Connect)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_note_is_read_through_layers_that_know_nothing_of_it() {
        let foreign = || Phase::Permit.pending::<()>();
        let (inner, noted) = Phase::observe(|| {
            let (poll, noted) = Phase::observe(foreign);
            assert_eq!(noted, Some(Phase::Permit));
            poll
        });
        assert!(inner.is_pending());
        assert_eq!(noted, Some(Phase::Permit));
    }

    #[test]
    fn a_timer_is_told_of_with_its_note_and_forgotten_with_it() {
        #[expect(clippy::disallowed_methods, reason = "an instant to compare")]
        let soon = Instant::now();
        assert!(Phase::Head.pending_until::<()>(soon).is_pending());
        assert_eq!(Phase::noted(), Some(Phase::Head));
        assert_eq!(Phase::wakes_at(), Some(soon));
        // Whoever notes anew, and says nothing of a timer, has none.
        let _ = Phase::Permit.pending::<()>();
        assert_eq!(Phase::wakes_at(), None);
        let _ = Phase::Head.pending_until::<()>(soon);
        Phase::forget();
        assert_eq!((Phase::noted(), Phase::wakes_at()), (None, None));
    }

    #[test]
    fn an_old_note_is_not_read_again() {
        let _ = Phase::Connect.pending::<()>();
        let (_, noted) = Phase::observe(|| Poll::<()>::Pending);
        assert_eq!(noted, None);
    }

    #[test]
    fn what_is_ready_waits_for_nothing() {
        let (_, noted) = Phase::observe(|| {
            let _ = Phase::Connect.pending::<()>();
            Poll::Ready(())
        });
        assert_eq!(noted, None);
    }
}
