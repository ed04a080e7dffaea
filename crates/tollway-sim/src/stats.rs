//! What a gateway has counted.

use std::collections::BTreeMap;

use http::Version;
use serde::Serialize;

/// Counts since the gateway started, taken at one moment. Requests to `/_sim` are in none.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Stats {
    /// Requests that arrived.
    pub arrivals: u64,
    /// Requests that the limits let through.
    pub accepted: u64,
    /// Requests that a limit refused with a 429, those inside a block included.
    pub throttled: u64,
    /// Penalty blocks that were brought about.
    pub blocks: u64,
    /// Faults that were injected, by the name of their kind.
    pub faults: BTreeMap<String, u64>,
    /// Connections accepted.
    pub connections_accepted: u64,
    /// Connections that are open.
    pub connections_open: u64,
    /// Requests on each connection, in the order in which they were accepted; the first
    /// [`MOST_CONNECTIONS_LISTED`](Self::MOST_CONNECTIONS_LISTED) of them.
    pub requests_per_connection: Vec<u64>,
    /// Requests by version: `HTTP/1.0`, `HTTP/1.1`, `HTTP/2.0`.
    pub http_versions: BTreeMap<String, u64>,
}

impl Stats {
    /// How many connections are listed one by one.
    pub const MOST_CONNECTIONS_LISTED: usize = 4096;

    /// Counts a connection, and says which one it is.
    pub(crate) fn connected(&mut self) -> usize {
        self.connections_accepted += 1;
        self.connections_open += 1;
        if self.requests_per_connection.len() < Self::MOST_CONNECTIONS_LISTED {
            self.requests_per_connection.push(0);
            return self.requests_per_connection.len() - 1;
        }
        usize::MAX
    }

    pub(crate) const fn disconnected(&mut self) {
        self.connections_open = self.connections_open.saturating_sub(1);
    }

    pub(crate) fn arrived(&mut self, connection: usize, version: Version) {
        self.arrivals += 1;
        if let Some(requests) = self.requests_per_connection.get_mut(connection) {
            *requests += 1;
        }
        *self
            .http_versions
            .entry(format!("{version:?}"))
            .or_default() += 1;
    }

    pub(crate) fn faulted(&mut self, fault: &'static str) {
        *self.faults.entry(fault.to_owned()).or_default() += 1;
    }
}
