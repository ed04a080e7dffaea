//! A gauge, and those who stand in line at it.

use std::collections::BTreeSet;

use crate::gauge::Gauge;
use crate::quota::LEVELS;
use crate::time::Nanos;

/// What a quota is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Role {
    EveryCall,
    Endpoint,
    Key,
}

/// A gauge, and those who stand in line at it.
#[derive(Debug)]
pub(crate) struct Meter {
    pub(crate) gauge: Gauge,
    pub(crate) role: Role,
    /// Which rule it belongs to, for snapshots.
    pub(crate) rule: u32,
    /// Heads of lanes that this gauge had no room for, by level: ticket, lane.
    pub(crate) line: [BTreeSet<(u64, u32)>; LEVELS],
    /// When to look at the line again.
    pub(crate) wake: Option<Nanos>,
    /// Lanes whose plan names this meter.
    pub(crate) lanes: u32,
}

impl Meter {
    pub(crate) fn has_line(&self) -> bool {
        self.line.iter().any(|line| !line.is_empty())
    }

    /// Whether nothing refers to it, and nothing would be lost with it.
    pub(crate) fn is_idle(&mut self, now: Nanos) -> bool {
        self.lanes == 0 && self.gauge.is_idle(now)
    }
}
