//! What became of the calls, by their callers and by the server.

use tollway_benches::Report;
use tollway_core::Verdict;

use crate::contestants::Outcome;
use crate::server::Server;

#[derive(Default)]
pub(crate) struct Figures {
    failed: usize,
    unknown: usize,
    /// Took effect more than once.
    twice: usize,
    /// Was called not executed, and was.
    untrue: usize,
    connections: usize,
}

impl Figures {
    /// The outcomes of all calls, by name, held against the server's ledger.
    pub(crate) fn of(outcomes: &[(String, Outcome)], server: &Server) -> Self {
        let mut figures = Self {
            connections: server.connections(),
            ..Self::default()
        };
        for (name, outcome) in outcomes {
            let effects = server.ledger.effects(name);
            figures.twice += usize::from(effects > 1);
            if let Outcome::Failed(verdict) = outcome {
                figures.failed += 1;
                figures.unknown += usize::from(*verdict == Verdict::Unknown);
                let not_executed = matches!(verdict, Verdict::NotExecuted { .. });
                figures.untrue += usize::from(not_executed && effects > 0);
            }
        }
        figures
    }

    pub(crate) fn report(&self, report: &mut Report, case: &str, who: &str, repeatable: bool) {
        let mut row = |metric: &str, value: usize| {
            // Far below 2⁵³.
            #[expect(clippy::cast_precision_loss)]
            report.row(case, who, metric, value as f64, "");
        };
        row("failed", self.failed);
        row("unknown", self.unknown);
        if !repeatable {
            row("twice", self.twice);
        }
        row("false", self.untrue);
        row("connections", self.connections);
    }
}
