//! What came of the run.

use std::collections::{HashMap, HashSet};
use std::fmt;
use std::time::Duration;

use serde::Serialize;
use tollway_sim::Gateway;
use tollway_sim::rule::Rule;

use crate::file::Payout;
use crate::pay::{Fate, Settled};

/// The figures of a run.
#[derive(Debug, Serialize)]
pub(crate) struct Report {
    submitted: usize,
    succeeded: usize,
    rejected: usize,
    unknown: usize,
    reconciled: usize,
    attempts: u64,
    retries: u64,
    throttled: u64,
    duplicates: usize,
    lost: usize,
    connections_opened: u64,
    elapsed_ms: u64,
    p50_ms: u64,
    p99_ms: u64,
    /// `None` where the provider has no rate to compare with.
    allowed_ratio: Option<f64>,
    /// Of what it was made: requests accepted, and allowed.
    #[serde(skip)]
    allowed: Option<(u64, u64)>,
    /// What was left when the run was stopped: the end of the file.
    #[serde(skip)]
    not_begun: usize,
    #[serde(skip)]
    proven: bool,
    #[serde(skip)]
    troubles: Vec<String>,
}

/// A payout, its fate, and how long it took.
pub(crate) struct Line<'a> {
    pub(crate) payout: &'a Payout,
    pub(crate) settled: Settled,
    pub(crate) took: Duration,
}

impl Report {
    pub(crate) fn new(lines: &[Line<'_>], elapsed: Duration, connections_opened: u64) -> Self {
        let count = |is: fn(&Fate) -> bool| lines.iter().filter(|l| is(&l.settled.fate)).count();
        let sum = |of: fn(&Settled) -> u64| lines.iter().map(|l| of(&l.settled)).sum();
        let mut times: Vec<_> = lines.iter().map(|line| millis(line.took)).collect();
        times.sort_unstable();
        let quantile = |hundredths: usize| {
            let rank = (times.len() * hundredths).div_ceil(100).max(1) - 1;
            times.get(rank).copied().unwrap_or_default()
        };
        Self {
            submitted: lines.len(),
            succeeded: count(|fate| *fate == Fate::Succeeded),
            rejected: count(|fate| matches!(fate, Fate::Rejected(_))),
            unknown: count(|fate| matches!(fate, Fate::Unknown(_))),
            reconciled: lines.iter().filter(|l| l.settled.reconciled).count(),
            attempts: sum(|settled| settled.attempts),
            retries: sum(|settled| settled.retries),
            throttled: sum(|settled| settled.throttled),
            duplicates: 0,
            lost: count(|fate| matches!(fate, Fate::Unsent(_))),
            connections_opened,
            elapsed_ms: millis(elapsed),
            p50_ms: quantile(50),
            p99_ms: quantile(99),
            allowed_ratio: None,
            allowed: None,
            not_begun: 0,
            proven: false,
            troubles: lines.iter().filter_map(trouble).collect(),
        }
    }

    /// Counts the payouts that weren't begun, and those whose worker failed.
    pub(crate) fn without_outcome(&mut self, not_begun: usize, failed: usize) {
        self.not_begun = not_begun;
        self.unknown += failed;
        if failed > 0 {
            self.troubles.push(format!("{failed} workers failed"));
        }
    }

    /// How many payouts the provider has answered for good.
    pub(crate) fn answered(&self) -> u64 {
        u64::try_from(self.succeeded + self.rejected).unwrap_or(u64::MAX)
    }

    /// Compares what was accepted with what the rule allows in that time.
    pub(crate) fn against(&mut self, rule: Option<Rule>, accepted: u64, elapsed: Duration) {
        let ideal = rule
            .map(|rule| rule.ideal(elapsed))
            .filter(|ideal| *ideal > 0);
        self.allowed = ideal.map(|ideal| (accepted, ideal));
        #[expect(
            clippy::cast_precision_loss,
            reason = "counts of requests, for a ratio"
        )]
        let ratio = ideal.map(|ideal| accepted as f64 / ideal as f64);
        self.allowed_ratio = ratio.map(|ratio| (ratio * 1000.0).round() / 1000.0);
    }

    /// Holds the gateway's own ledger against the file.
    pub(crate) fn prove(&mut self, gateway: &Gateway, lines: &[Line<'_>]) {
        let ledger = gateway.ledger();
        let applied: HashMap<_, _> = ledger.by_reference().into_iter().collect();
        let known: HashSet<_> = lines.iter().map(|l| l.payout.reference.as_str()).collect();
        for line in lines {
            let reference = line.payout.reference.as_str();
            match (
                applied.get(reference).copied().unwrap_or(0),
                &line.settled.fate,
            ) {
                (0, Fate::Succeeded) => {
                    self.lost += 1;
                    let what = "the ledger has no such payout, though it was answered as done";
                    self.troubles.push(format!("{reference}: {what}"));
                }
                (1, Fate::Rejected(_) | Fate::Unsent(_)) => {
                    self.lost += 1;
                    let what = "the ledger has it, though it seemed to have failed";
                    self.troubles.push(format!("{reference}: {what}"));
                }
                (0 | 1, _) => {}
                (times, _) => {
                    self.duplicates += 1;
                    self.troubles
                        .push(format!("{reference}: paid {times} times"));
                }
            }
        }
        let strangers = applied
            .keys()
            .filter(|reference| !known.contains(*reference));
        for reference in strangers {
            self.duplicates += 1;
            self.troubles
                .push(format!("{reference}: paid, and not in the file"));
        }
        self.throttled = gateway.stats().throttled;
        self.proven = true;
    }

    /// Whether nothing was lost, paid twice, left unknown or left out.
    pub(crate) fn is_clean(&self) -> bool {
        self.is_in_order() && self.not_begun == 0
    }

    fn is_in_order(&self) -> bool {
        self.lost == 0 && self.duplicates == 0 && self.unknown == 0
    }
}

fn trouble(line: &Line<'_>) -> Option<String> {
    let (what, why) = match &line.settled.fate {
        Fate::Succeeded => return None,
        Fate::Rejected(why) => ("rejected", why),
        Fate::Unknown(why) => ("unknown", why),
        Fate::Unsent(why) => ("never sent", why),
    };
    Some(format!("{}: {what}: {why}", line.payout.reference))
}

fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut row = |name: &str, value: &dyn fmt::Display| writeln!(f, "{name:>20}  {value}");
        row("submitted", &self.submitted)?;
        row("succeeded", &self.succeeded)?;
        row("rejected", &self.rejected)?;
        row("unknown", &self.unknown)?;
        row("reconciled", &self.reconciled)?;
        row("attempts", &self.attempts)?;
        row("retries", &self.retries)?;
        row("throttled (429)", &self.throttled)?;
        row("duplicates", &self.duplicates)?;
        row("lost", &self.lost)?;
        row("connections opened", &self.connections_opened)?;
        row("elapsed", &format_args!("{} ms", self.elapsed_ms))?;
        row(
            "median, 99 %",
            &format_args!("{} ms, {} ms", self.p50_ms, self.p99_ms),
        )?;
        match self.allowed_ratio.zip(self.allowed) {
            // Without the numbers, one that ends as a window begins looks slow.
            Some((ratio, (accepted, allowed))) => row(
                "of what is allowed",
                &format_args!(
                    "{:.1} % ({accepted} requests of {allowed} in that time)",
                    ratio * 100.0
                ),
            )?,
            None => row("of what is allowed", &"no rate to compare with")?,
        }
        for trouble in self.troubles.iter().take(20) {
            writeln!(f, "  {trouble}")?;
        }
        if let Some(more @ 1..) = self.troubles.len().checked_sub(20) {
            writeln!(f, "  and {more} more")?;
        }
        if self.not_begun > 0 {
            writeln!(
                f,
                "Stopped: of the file the first {} were begun, and the last {} were not.",
                self.submitted, self.not_begun
            )?;
        }
        match (self.is_in_order(), self.proven) {
            (true, true) => write!(
                f,
                "The gateway's ledger has each payout exactly once: none twice, none missing."
            ),
            (true, false) => write!(f, "Every payout has an outcome: none lost, none unknown."),
            (false, _) => write!(f, "NOT in order: see the payouts listed above."),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_run_that_was_stopped_is_not_clean_and_says_where() {
        let payout = Payout {
            reference: "po-1".to_owned(),
            amount: 1,
            currency: "EUR".to_owned(),
            beneficiary: "X".to_owned(),
        };
        let lines = [Line {
            payout: &payout,
            settled: Settled {
                fate: Fate::Succeeded,
                attempts: 1,
                retries: 0,
                throttled: 0,
                reconciled: false,
            },
            took: Duration::from_millis(1),
        }];
        let mut report = Report::new(&lines, Duration::from_secs(1), 1);
        assert!(report.is_clean());
        report.without_outcome(3, 0);
        assert!(!report.is_clean());
        let shown = report.to_string();
        assert!(
            shown.contains("the first 1 were begun, and the last 3 were not"),
            "{shown}"
        );
    }
}
