//! One request over a kept connection on loopback: the pool beside a bare hyper
//! connection, hyper-util's legacy client, reqwest, and reqwest with
//! reqwest-retry.
//!
//! A call is a POST of 100 bytes of JSON, answered with some JSON. The server
//! is a process of its own. "bare" is a hyper connection for each caller,
//! without a pool: what every client is built upon, and its floor. Rates are
//! taken in short turns, so that a noisy machine is as noisy for everybody;
//! each is the median of its turns, and the ratio the median of the ratios
//! within a turn. Allocations and instructions are those of the client's
//! thread, its runtime included.
//!
//! The pool's cap is raised to the number of callers here: the bare
//! connections have none either.

mod bare;
mod callers;
mod exchange;
mod ours;
mod peers;
mod server;
mod tls;

use tollway_benches::{
    Executed, Report, ServerProcess, allocations, counted, median, told_to_count,
};
use tollway_core::BoxError;

use callers::{CALLERS, Contestant};
use server::{Server, Version};

/// How many calls the counts are taken over.
const RUNS: u32 = 200;
/// How many turns everybody gets.
const TURNS: usize = 11;

fn main() -> Result<(), BoxError> {
    if let Some(version) = ServerProcess::asked() {
        return server::serve(Version::named(&version));
    }
    if told_to_count() {
        return count_instructions();
    }
    let mut executed = Executed::prepare();
    let mut report = Report::new("throughput");
    for version in Version::BOTH {
        let mut contestants = contestants(version)?;
        let alone = format!("{version:?}, 1 in flight");
        let together = format!("{version:?}, 64 in flight");
        rates(&mut report, &together, &mut contestants, CALLERS);
        rates(&mut report, &alone, &mut contestants, 1);
        counts(&mut report, &alone, &mut contestants, &mut executed);
    }
    tls::report(&mut report)?;
    report.finish()?;
    Ok(())
}

/// Everybody, over one server.
fn contestants(version: Version) -> Result<Vec<Box<dyn Contestant>>, BoxError> {
    let server = Server::start(version)?;
    let mut contestants = vec![
        bare::contestant(&server)?,
        ours::pool(&server)?,
        ours::client(&server)?,
    ];
    if version == Version::Http2 {
        contestants.push(ours::pool_without_pings(&server)?);
    }
    contestants.extend([
        peers::legacy(&server)?,
        peers::reqwest(&server)?,
        peers::reqwest_retry(&server)?,
    ]);
    Ok(contestants)
}

/// Everybody's rate, in turns.
fn rates(
    report: &mut Report,
    case: &str,
    contestants: &mut [Box<dyn Contestant>],
    in_flight: usize,
) {
    let mut rates = vec![Vec::new(); contestants.len()];
    for _ in 0..TURNS {
        for (contestant, rates) in contestants.iter_mut().zip(&mut rates) {
            rates.push(contestant.rate(in_flight));
        }
    }
    let floor = rates[0].clone();
    for (contestant, rates) in contestants.iter().zip(rates) {
        let ratios = rates.iter().zip(&floor).map(|(rate, floor)| rate / floor);
        let ratio = median(ratios);
        report.row(case, contestant.who(), "calls", median(rates), "/s");
        report.row(case, contestant.who(), "of bare", ratio, "");
    }
}

/// What a call costs everybody.
fn counts(
    report: &mut Report,
    case: &str,
    contestants: &mut [Box<dyn Contestant>],
    executed: &mut Executed,
) {
    for contestant in contestants {
        contestant.run(RUNS);
        let allocated = allocations(1, || contestant.run(RUNS)) / f64::from(RUNS);
        report.row(case, contestant.who(), "allocations", allocated, "");
        if let Some(executed) = executed.by(|| contestant.run(RUNS)) {
            let executed = executed / f64::from(RUNS);
            report.row(case, contestant.who(), "instructions", executed, "");
        }
    }
}

/// Counts under valgrind, for the program that started this one: everybody in
/// the order of [`counts`].
fn count_instructions() -> Result<(), BoxError> {
    for version in Version::BOTH {
        for mut contestant in contestants(version)? {
            contestant.run(RUNS);
            counted(|| contestant.run(RUNS));
        }
    }
    Ok(())
}
