//! Numbers to look at.

use std::fmt;
use std::time::Duration;

use tokio::time::Instant;

/// Why a connection was closed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum CloseReason {
    /// Nobody used it for the idle timeout.
    Idle,
    /// It reached its maximum age.
    Age,
    /// It carried its maximum number of requests.
    Requests,
    /// More connections were idle than are kept.
    Surplus,
    /// The peer closed it while no call was on it or behind its last answer, left
    /// its PINGs unanswered then, or said by `GOAWAY` that it takes no more.
    Peer,
    /// It broke while a call was on it.
    Error,
    /// A call on it was dropped, by its caller or by a timeout, before the
    /// response was there.
    Cancelled,
    /// A response's body was dropped unread, and what was left of it was too
    /// large or too slow to read to its end.
    Unread,
    /// Nothing came from the peer for as long as a call waited on it.
    Unresponsive,
    /// The pool was drained or dropped.
    Drained,
    /// It was never ready for use: the handshake failed.
    Failed,
}

impl CloseReason {
    /// Every reason.
    pub const ALL: &[Self] = &[
        Self::Idle,
        Self::Age,
        Self::Requests,
        Self::Surplus,
        Self::Peer,
        Self::Error,
        Self::Cancelled,
        Self::Unread,
        Self::Unresponsive,
        Self::Drained,
        Self::Failed,
    ];

    /// The stable name, for telemetry.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Idle => "idle",
            Self::Age => "age",
            Self::Requests => "requests",
            Self::Surplus => "surplus",
            Self::Peer => "peer",
            Self::Error => "error",
            Self::Cancelled => "cancelled",
            Self::Unread => "unread",
            Self::Unresponsive => "unresponsive",
            Self::Drained => "drained",
            Self::Failed => "failed",
        }
    }
}

impl fmt::Display for CloseReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// What has happened to one host so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Counters {
    pub(crate) opened: u64,
    pub(crate) failed: u64,
    pub(crate) requests: u64,
    pub(crate) reused: u64,
    pub(crate) waited: u64,
    pub(crate) resent: u64,
    pub(crate) closed: Closes,
    pub(crate) handshakes: HandshakeTimes,
}

impl Counters {
    pub(crate) fn closed(&mut self, reason: CloseReason) {
        self.closed.0[reason as usize] += 1;
    }
}

/// How many connections were closed, for each reason.
#[derive(Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Closes([u64; CloseReason::ALL.len()]);

impl Closes {
    pub(crate) const fn of(&self, reason: CloseReason) -> u64 {
        self.0[reason as usize]
    }
}

impl fmt::Debug for Closes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let all = CloseReason::ALL.iter().zip(self.0);
        f.debug_map()
            .entries(all.filter(|(_, count)| *count > 0))
            .finish()
    }
}

/// How long it took to open connections: name, TCP, TLS and HTTP together.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct HandshakeTimes {
    count: u64,
    total: Duration,
    /// When it was, and how long it took.
    last: Option<(Instant, Duration)>,
    max: Duration,
}

impl HandshakeTimes {
    pub(crate) fn record(&mut self, took: Duration, now: Instant) {
        self.count += 1;
        self.total = self.total.saturating_add(took);
        self.last = Some((now, took));
        self.max = self.max.max(took);
    }

    fn add(&mut self, other: Self) {
        self.count += other.count;
        self.total = self.total.saturating_add(other.total);
        self.max = self.max.max(other.max);
        self.last = self.last.max(other.last);
    }

    /// How many there were.
    #[must_use]
    pub const fn count(&self) -> u64 {
        self.count
    }

    /// The mean, zero where there were none.
    #[must_use]
    pub fn mean(&self) -> Duration {
        u32::try_from(self.count)
            .ok()
            .and_then(|count| self.total.checked_div(count))
            .unwrap_or_default()
    }

    /// The last one, zero where there were none.
    #[must_use]
    pub const fn last(&self) -> Duration {
        match self.last {
            Some((_, took)) => took,
            None => Duration::ZERO,
        }
    }

    /// The longest.
    #[must_use]
    pub const fn max(&self) -> Duration {
        self.max
    }
}

/// A pool's or a host's numbers, at one moment.
///
/// The first ones are what is there now; the others count what has happened
/// since the pool was built. A connection is in exactly one of
/// [`opening`](Self::opening), [`idle`](Self::idle), [`in_use`](Self::in_use)
/// and [`closing`](Self::closing).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stats {
    pub(crate) gauges: crate::state::Gauges,
    pub(crate) counters: Counters,
}

impl Stats {
    pub(crate) fn add(&mut self, other: &Self) {
        let (to, from) = (&mut self.gauges, &other.gauges);
        to.opening += from.opening;
        to.idle += from.idle;
        to.in_use += from.in_use;
        to.closing += from.closing;
        to.waiting += from.waiting;
        to.calls += from.calls;
        self.add_past(&other.counters);
    }

    pub(crate) fn add_past(&mut self, from: &Counters) {
        let to = &mut self.counters;
        to.opened += from.opened;
        to.failed += from.failed;
        to.requests += from.requests;
        to.reused += from.reused;
        to.waited += from.waited;
        to.resent += from.resent;
        for (to, from) in to.closed.0.iter_mut().zip(from.closed.0) {
            *to += from;
        }
        to.handshakes.add(from.handshakes);
    }

    /// Connections that are ready or in use: [`idle`](Self::idle) and
    /// [`in_use`](Self::in_use).
    #[must_use]
    pub const fn open(&self) -> usize {
        self.gauges.idle + self.gauges.in_use
    }

    /// Connections on their way.
    #[must_use]
    pub const fn opening(&self) -> usize {
        self.gauges.opening
    }

    /// Connections without a call.
    #[must_use]
    pub const fn idle(&self) -> usize {
        self.gauges.idle
    }

    /// Connections with a call, or over HTTP/2 with several.
    #[must_use]
    pub const fn in_use(&self) -> usize {
        self.gauges.in_use
    }

    /// Connections that take no new call, and whose socket is still to close.
    #[must_use]
    pub const fn closing(&self) -> usize {
        self.gauges.closing
    }

    /// Calls that have a connection.
    #[must_use]
    pub const fn calls(&self) -> usize {
        self.gauges.calls
    }

    /// Calls that wait for a connection.
    #[must_use]
    pub const fn waiting(&self) -> usize {
        self.gauges.waiting
    }

    /// How many connections were opened.
    #[must_use]
    pub const fn opened(&self) -> u64 {
        self.counters.opened
    }

    /// How many could not be opened.
    #[must_use]
    pub const fn failed(&self) -> u64 {
        self.counters.failed
    }

    /// How many calls got a connection, one that was resent once for each
    /// time.
    #[must_use]
    pub const fn requests(&self) -> u64 {
        self.counters.requests
    }

    /// How many of those found a connection that had been used before.
    #[must_use]
    pub const fn reused(&self) -> u64 {
        self.counters.reused
    }

    /// How many calls had to wait for a connection, be it for a new one.
    #[must_use]
    pub const fn waited(&self) -> u64 {
        self.counters.waited
    }

    /// How many requests met a dying connection, and were sent again on
    /// another since certainly nothing of them had been written.
    #[must_use]
    pub const fn resent(&self) -> u64 {
        self.counters.resent
    }

    /// How many connections were closed for this reason. One that closes under a
    /// call counts once that is over.
    #[must_use]
    pub const fn closed(&self, reason: CloseReason) -> u64 {
        self.counters.closed.of(reason)
    }

    /// How long it took to open connections.
    #[must_use]
    pub const fn handshakes(&self) -> HandshakeTimes {
        self.counters.handshakes
    }
}

/// A snapshot of a pool: its [`total`](Self::total), and each host's part.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PoolStats {
    pub(crate) total: Stats,
    pub(crate) hosts: Vec<(String, Stats)>,
}

impl PoolStats {
    /// All hosts together, those that the pool has forgotten included.
    #[must_use]
    pub const fn total(&self) -> &Stats {
        &self.total
    }

    /// Each host that the pool knows: `https://api.example.com:443`.
    pub fn hosts(&self) -> impl Iterator<Item = (&str, &Stats)> {
        self.hosts
            .iter()
            .map(|(host, stats)| (host.as_str(), stats))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_handshake_of_all_is_the_latest_of_any_host() {
        let now = Instant::now();
        let took = Duration::from_millis;
        let mut hosts = [Stats::default(); 3];
        hosts[0].counters.handshakes.record(took(30), now + took(5));
        hosts[1].counters.handshakes.record(took(20), now);
        let mut total = Stats::default();
        for host in &hosts {
            total.add(host);
        }
        assert_eq!(total.handshakes().last(), took(30));
        assert_eq!(total.handshakes().mean(), took(25));
    }

    #[test]
    fn what_is_printed_names_the_reasons_for_which_connections_were_closed() {
        let mut stats = Stats::default();
        stats.counters.closed(CloseReason::Peer);
        stats.counters.closed(CloseReason::Peer);
        stats.counters.closed(CloseReason::Idle);
        let printed = format!("{stats:?}");
        assert!(printed.contains("closed: {Idle: 1, Peer: 2}"), "{printed}");
    }
}
