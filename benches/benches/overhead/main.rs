//! What a call costs beyond the bare service: each layer alone and stacked,
//! beside tower's layers, tower-resilience's and governor.
//!
//! The service is ready and answers at once, so that nothing but the layers is
//! left; in the cases with "yield" it is pending once, so that timers register.
//! A call is a POST with three headers and a body of 100 bytes, and is built
//! anew each time. "Δ" is what a case takes beyond the bare service, measured
//! in turns with it.
//!
//! Every limiter is given a rate that is never reached, 10,000 in 1 ms, so that
//! its window holds some thousand calls, as one of 1000 in 10 s does in use.

mod bare;
mod by_hand;
mod cases;
mod figures;
mod layers;
mod peers;
mod stacks;

use std::rc::Rc;
use std::time::Duration;

use criterion::Criterion;
use tokio::runtime::{self, Runtime};
use tollway_benches::{Executed, Report, told_to_count};
use tollway_core::BoxError;

use bare::Bare;
use cases::{Case, Group};
use figures::{Counts, Time, count_instructions};

/// Never reached.
const LIMIT: u32 = 10_000;
const WINDOW: Duration = Duration::from_millis(1);

const CALL_TIMEOUT: Duration = Duration::from_secs(60);
const ATTEMPT_TIMEOUT: Duration = Duration::from_secs(30);

fn main() -> Result<(), BoxError> {
    let groups = groups();
    if told_to_count() {
        count_instructions(groups);
        return Ok(());
    }
    let mut criterion = Criterion::default()
        .warm_up_time(Duration::from_millis(100))
        .measurement_time(Duration::from_millis(400))
        .sample_size(20)
        .configure_from_args();
    let mut executed = Executed::prepare();
    let mut report = Report::new("overhead");
    for Group {
        mut bare, cases, ..
    } in groups
    {
        let floor = Counts::of(&mut bare, &mut executed);
        for Case { case, who, mut run } in cases {
            let id = format!("{case}/{who}");
            let Some(time) = Time::of(&mut criterion, &id, &mut run, &mut bare) else {
                executed.skip();
                continue;
            };
            let counts = Counts::of(&mut run, &mut executed);
            time.report(&mut report, &case, who);
            counts.report(&mut report, &case, who, floor);
        }
    }
    criterion.final_summary();
    report.finish()?;
    Ok(())
}

fn groups() -> Vec<Group> {
    let runtime = runtime::Builder::new_current_thread()
        .enable_time()
        .build()
        .expect("a runtime");
    let runtime = Rc::new(runtime);
    // Some of tower's layers are made in a runtime only.
    let _entered = runtime.enter();
    vec![
        alone::<false>(&runtime),
        alone::<true>(&runtime),
        among_others::<false>(&runtime),
        among_others::<true>(&runtime),
    ]
}

/// The layers over a service that is asked by nobody else.
fn alone<const PENDING: bool>(runtime: &Rc<Runtime>) -> Group {
    let mut group = Group::alone::<PENDING>(runtime);
    group.one("bare", "bare", Bare::<PENDING>);
    layers::each::<PENDING>(&mut group);
    if !PENDING {
        layers::permits(&mut group);
    }
    stacks::each::<PENDING>(&mut group);
    by_hand::add::<PENDING>(&mut group);
    group
}

/// Tower's layers behind a buffer, which is how they can be shared.
fn among_others<const PENDING: bool>(runtime: &Rc<Runtime>) -> Group {
    let mut group = Group::among_others::<PENDING>(runtime);
    group.among("stack", "tower", stacks::buffered::<PENDING>());
    group
}
