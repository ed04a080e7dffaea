//! The figures.

use tollway_benches::Report;

mod callers;
mod loads;
mod peers;
mod provider;
mod rules;
mod run;

/// How long a run takes, in seconds.
const SPAN: u64 = 1200;

pub(crate) fn report() -> Report {
    let mut report = Report::new("goodput");
    rules::report(&mut report);
    loads::report(&mut report);
    peers::report(&mut report);
    report
}
