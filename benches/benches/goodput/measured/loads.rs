//! A sliding log under other loads: many callers far away, callers that come
//! and go, and all of them at once.

use std::time::Duration;

use tollway_benches::Report;
use tollway_limit::{CountFrom, Quota, Shape};
use tollway_sim::rule::Rule;

use super::SPAN;
use super::callers::Load;
use super::provider::Delays;
use super::run::Run;

const WINDOW: Duration = Duration::from_secs(10);
const QUOTA: Quota = Quota::new(1000, WINDOW);
const BURST: Quota = QUOTA.shape(Shape::Burst);

pub(crate) fn report(report: &mut Report) {
    many(report);
    on_off(report);
    once(report);
}

fn run(delays: Delays) -> Run {
    let rule = Rule::sliding_log(1000, WINDOW).penalty(WINDOW);
    Run::new(rule, delays, SPAN)
}

const fn margin(quota: Quota, millis: u64) -> Quota {
    quota.count_from(CountFrom::Sending {
        margin: Duration::from_millis(millis),
    })
}

fn many(report: &mut Report) {
    let run = Run {
        callers: 1024,
        ..run(Delays::WIDE)
    };
    let case = "1000/10 s sliding-log 5–2000 ms, 1024 callers";
    for (who, quota) in [
        ("tollway", QUOTA),
        ("tollway burst", BURST),
        ("tollway margin 550 ms", margin(QUOTA, 550)),
    ] {
        let (seen, _) = run.tollway(quota);
        run.report(report, case, who, seen, &[]);
    }
}

fn on_off(report: &mut Report) {
    let run = Run {
        load: Load::OnOff,
        ..run(Delays::SHORT)
    };
    let case = "1000/10 s sliding-log 5–50 ms, on/off";
    for (who, quota) in [("tollway", QUOTA), ("tollway burst", BURST)] {
        let (seen, _) = run.tollway(quota);
        run.report(report, case, who, seen, &[]);
    }
    // Over a network without spread the same log wastes nothing: this is the most
    // that the load lets anyone use.
    let run = Run {
        delays: Delays { from: 27, to: 27 },
        ..run
    };
    let (seen, _) = run.tollway(margin(BURST, 0));
    run.report(report, case, "the most of this load", seen, &[]);
}

fn once(report: &mut Report) {
    let run = Run {
        load: Load::Once,
        callers: 1000,
        ..run(Delays::SHORT)
    };
    let case = "1000 at once from idle, 1000/10 s sliding-log 5–50 ms";
    for (who, quota) in [("tollway", QUOTA), ("tollway burst", BURST)] {
        let (seen, took) = run.tollway(quota);
        report.row(case, who, "took", took.as_secs_f64(), "s");
        seen.report(report, case, who);
    }
}
