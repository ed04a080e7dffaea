//! What share of a provider's allowance a limiter lets its callers use, and
//! how often it breaks the rule, in virtual time.
//!
//! Callers keep asking for the whole time; each request takes its time to the
//! provider and back. The provider enforces its rule with `tollway-sim`'s own
//! arithmetic, at a phase of the clock that the client doesn't know, and blocks
//! for a window whoever breaks it.
//!
//! Tokio's virtual time costs the programs that are built with it a lock in
//! each round of the runtime, which the other benches would measure. So it is a
//! feature, and without it this program only has itself built with it.

#![allow(
    clippy::unwrap_used,
    clippy::cast_precision_loss,
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    missing_docs,
    reason = "a bench"
)]

#[cfg(feature = "virtual-time")]
mod measured;

#[cfg(feature = "virtual-time")]
fn main() {
    measured::report().finish().unwrap();
}

#[cfg(not(feature = "virtual-time"))]
fn main() {
    use std::process::{Command, exit};

    let command = "bench --package tollway-benches --bench goodput --features virtual-time";
    println!("goodput is measured in virtual time: cargo {command}");
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let status = Command::new(cargo).args(command.split(' ')).status();
    exit(status.unwrap().code().unwrap_or(1));
}
