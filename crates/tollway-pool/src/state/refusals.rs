//! What calls that a peer turned away say about it.

use std::time::Duration;

use tokio::time::Instant;

use super::{Kind, State};
use crate::arena::Id;

/// How long it is heeded. Finding it out again costs the calls in flight on one
/// connection another attempt; never asking again would keep a server's bad
/// hour for the life of the process.
const HEEDED: Duration = Duration::from_secs(10 * 60);

/// After how many calls the peer ends its connections, as far as refused calls
/// tell.
///
/// Some servers take so many calls on a connection and no more: nginx by
/// `keepalive_requests`, load balancers by other names. Over HTTP/2 the calls
/// that are on their way by then come back unprocessed, and if many are sent at
/// once, so may the next attempt of each. So where connections have ended twice
/// at the same call, no further one is given more calls than that, for a while. A
/// server that shuts down ends its connections wherever they are, or takes not
/// even their first call, and teaches nothing.
#[derive(Debug, Default)]
pub(super) struct Refusals {
    /// The latest connection that ended so, and the first call that was refused
    /// on it.
    latest: Option<(Id, u64)>,
    /// The same of the one before.
    before: Option<u64>,
    /// Until when what was learned is heeded, and what was configured.
    learned: Option<(Instant, u64)>,
}

impl Refusals {
    /// The connection's `nth` call was refused, since the connection ends.
    /// Returns how many calls a connection takes, when that is learned.
    fn note(&mut self, id: Id, nth: u64) -> Option<u64> {
        match &mut self.latest {
            Some((latest, first)) if *latest == id => {
                *first = nth.min(*first);
                None
            }
            latest => {
                // No further call of the one before will come back.
                let (_, first) = latest.replace((id, nth))?;
                let twice = self.before.replace(first) == Some(first);
                let calls = first.saturating_sub(1);
                (twice && calls > 0).then_some(calls)
            }
        }
    }
}

impl<K: Kind> State<K> {
    /// A connection's `nth` call came back unprocessed: the peer ends the
    /// connection before it.
    pub(crate) fn refused(&mut self, id: Id, nth: u64, now: Instant) {
        if let Some(calls) = self.refusals.note(id, nth) {
            let learned = self.refusals.learned;
            let configured = learned.map_or(self.limits.requests, |(_, configured)| configured);
            self.limits.requests = configured.min(calls);
            self.refusals.learned = Some((now + HEEDED, configured));
        }
    }

    /// What was learned long ago is asked anew. One connection that ends where
    /// the last ones did confirms it.
    pub(super) fn forget_refusals(&mut self, now: Instant) {
        let old = |(until, _): &mut (Instant, u64)| now >= *until;
        if let Some((_, configured)) = self.refusals.learned.take_if(old) {
            self.limits.requests = configured;
            self.refusals.latest = None;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::arena::Arena;

    #[test]
    fn two_connections_that_end_at_the_same_call_teach_how_many_a_third_gets() {
        let mut ids = Arena::new();
        let [a, b, c] = [0; 3].map(|_| ids.insert(()));
        let mut refusals = Refusals::default();
        // In the order in which they hear of it, which isn't that of sending.
        for nth in [9, 8, 10] {
            assert_eq!(refusals.note(a, nth), None);
        }
        assert_eq!(refusals.note(b, 8), None);
        assert_eq!(refusals.note(c, 11), Some(7));
    }

    #[test]
    fn connections_that_end_anywhere_teach_nothing() {
        let mut ids = Arena::new();
        let mut refusals = Refusals::default();
        for nth in [3, 9, 3, 4, 1, 2] {
            assert_eq!(refusals.note(ids.insert(()), nth), None);
        }
    }

    #[test]
    fn connections_that_take_no_call_at_all_teach_nothing() {
        let mut ids = Arena::new();
        let mut refusals = Refusals::default();
        for _ in 0..5 {
            assert_eq!(refusals.note(ids.insert(()), 1), None);
        }
    }
}
