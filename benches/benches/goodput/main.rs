//! What share of a provider's allowance a limiter lets its callers use, and
//! how often it breaks the rule, in virtual time.
//!
//! Callers keep asking for the whole time; each request takes its time to the
//! provider and back. The provider enforces its rule with `tollway-sim`'s own
//! arithmetic, at a phase of the clock that the client doesn't know, and blocks
//! for a window whoever breaks it.

#![allow(
    clippy::unwrap_used,
    clippy::cast_precision_loss,
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    missing_docs,
    reason = "a bench"
)]

mod callers;
mod loads;
mod peers;
mod provider;
mod rules;
mod run;

use tollway_benches::Report;

/// How long a run takes, in seconds.
const SPAN: u64 = 1200;

fn main() {
    let mut report = Report::new("goodput");
    rules::report(&mut report);
    loads::report(&mut report);
    peers::report(&mut report);
    report.finish().unwrap();
}
