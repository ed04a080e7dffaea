//! What a case costs: in time, and in what needs no repetition.

use std::cell::RefCell;
use std::time::Duration;

use criterion::Criterion;
use tollway_benches::{Executed, Report, allocations, counted, median, uncounted};

use crate::cases::{Group, Run};

/// How often a case runs for its allocations and instructions.
const RUNS: u32 = 1000;
/// How many calls of a case and of the bare service take turns.
const TURN: u64 = 500;

/// The counts of a call.
#[derive(Clone, Copy)]
pub(crate) struct Counts {
    allocations: f64,
    instructions: Option<f64>,
}

impl Counts {
    pub(crate) fn of(run: &mut Run, executed: &mut Executed) -> Self {
        // Thread-locals, the chunks of keys, rings that grow.
        run(RUNS.into());
        let allocations = allocations(1, || _ = run(RUNS.into())) / f64::from(RUNS);
        let instructions = executed.by(|| _ = uncounted(|| run(RUNS.into())));
        Self {
            allocations,
            instructions: instructions.map(|all| all / f64::from(RUNS)),
        }
    }

    pub(crate) fn report(self, report: &mut Report, case: &str, who: &str, floor: Self) {
        report.row(case, who, "allocations", self.allocations, "");
        let more = self.allocations - floor.allocations;
        report.row(case, who, "Δ allocations", more, "");
        if let Some(instructions) = self.instructions {
            report.row(case, who, "instructions", instructions, "");
            let more = instructions - floor.instructions.unwrap_or_default();
            report.row(case, who, "Δ instructions", more, "");
        }
    }
}

/// Counts under valgrind, for the program that started this one: in the order of
/// the calls of [`Counts::of`].
pub(crate) fn count_instructions(groups: Vec<Group>) {
    for Group { bare, cases, .. } in groups {
        let runs = std::iter::once(bare).chain(cases.into_iter().map(|case| case.run));
        for mut run in runs {
            run(RUNS.into());
            uncounted(|| counted(|| _ = run(RUNS.into())));
        }
    }
}

/// The time of a call in ns, and the difference to the bare service: the medians
/// over all turns. A turn is shorter than the system's time slices, so that what
/// else the machine does falls on few of them.
pub(crate) struct Time {
    taken: f64,
    more: f64,
}

impl Time {
    /// `None` where criterion was told to leave the case out.
    pub(crate) fn of(
        criterion: &mut Criterion,
        id: &str,
        run: &mut Run,
        bare: &mut Run,
    ) -> Option<Self> {
        let turns = RefCell::new(Vec::new());
        criterion.bench_function(id, |bencher| {
            bencher.iter_custom(|runs| {
                let mut all = Duration::ZERO;
                let mut left = runs;
                while left > 0 {
                    let turn = left.min(TURN);
                    let Some((bare, taken)) = uncounted(|| (bare(turn), run(turn))) else {
                        break;
                    };
                    if turn == TURN {
                        let per_call = |time: Duration| time.as_secs_f64() * 1e9 / TURN as f64;
                        let taken = per_call(taken);
                        turns.borrow_mut().push((taken, taken - per_call(bare)));
                    }
                    all += taken;
                    left -= turn;
                }
                all
            });
        });
        let turns = turns.into_inner();
        (!turns.is_empty()).then(|| Self {
            taken: median(turns.iter().map(|turn| turn.0)),
            more: median(turns.iter().map(|turn| turn.1)),
        })
    }

    pub(crate) fn report(&self, report: &mut Report, case: &str, who: &str) {
        report.row(case, who, "time", self.taken, "ns");
        report.row(case, who, "Δ time", self.more, "ns");
    }
}
