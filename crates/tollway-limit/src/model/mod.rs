//! The decisions against a naive model: any schedule of arrivals, cancellations,
//! answers, pauses, tightenings and changes of quotas.
#![allow(
    clippy::unwrap_used,
    clippy::cast_possible_truncation,
    clippy::needless_pass_by_value,
    reason = "a test"
)]

mod cases;
mod provider;
mod world;

use std::time::Duration;

use proptest::collection::vec;
use proptest::prelude::*;
use tollway_core::Priority;

use crate::quota::{CountFrom, Quota, Shape};
use world::World;

#[derive(Clone, Debug)]
enum Op {
    Advance(u8),
    Arrive {
        plan: usize,
        level: usize,
        patience: Option<u8>,
    },
    /// The nth of those in flight is answered.
    Answer(usize),
    /// The nth of those in flight was never sent.
    GiveBack(usize),
    /// Nobody awaits the nth of those in flight any more.
    Lose(usize),
    /// The nth of the waiters goes away, granted or not.
    Cancel(usize),
    Pause(usize, u8),
    /// The provider says that so many are left for a while.
    Tighten(usize, u32, u8),
    Change(usize, Quota),
    /// All who wait are to ask again, as where rules come or go. One who comes for
    /// this plan asks first.
    Again(usize),
    /// Asks how long it would be, and holds it to its word.
    Probe(usize),
    /// Asks a quota when it has room, and holds it to its word.
    Foretell(usize),
}

fn ops(changes: bool) -> impl Strategy<Value = Vec<Op>> {
    let now_and_then = u32::from(changes);
    vec(
        prop_oneof![
            6 => (0..60u8).prop_map(Op::Advance),
            9 => (0..3usize, 0..3usize, proptest::option::weighted(0.2, 1..200u8))
                .prop_map(|(plan, level, patience)| Op::Arrive { plan, level, patience }),
            5 => (0..8usize).prop_map(Op::Answer),
            1 => (0..8usize).prop_map(Op::GiveBack),
            1 => (0..8usize).prop_map(Op::Lose),
            2 => (0..8usize).prop_map(Op::Cancel),
            now_and_then => (0..2usize, 0..80u8).prop_map(|(meter, time)| Op::Pause(meter, time)),
            now_and_then => (0..2usize, 0..6u32, 0..80u8)
                .prop_map(|(meter, left, time)| Op::Tighten(meter, left, time)),
            now_and_then => (0..2usize, any_quota())
                .prop_map(|(meter, quota)| Op::Change(meter, quota)),
            1 => prop_oneof![
                (0..3usize).prop_map(Op::Probe),
                (0..2usize).prop_map(Op::Foretell),
                (0..3usize).prop_map(Op::Again),
            ],
        ],
        1..150,
    )
}

const fn millis(millis: u64) -> Duration {
    Duration::from_millis(millis)
}

/// A window in burst shape, which lets through whatever the provider allows.
fn burst_quota() -> impl Strategy<Value = Quota> {
    let limit = prop_oneof![3 => 1..6u32, 1 => 6..30u32];
    let window = (limit, 1..100u64)
        .prop_map(|(limit, window)| Quota::new(limit, millis(window)).shape(Shape::Burst));
    with_extras(window)
}

fn any_quota() -> impl Strategy<Value = Quota> {
    let rate = prop_oneof![
        3 => (1..6u32, 1..100u64).prop_map(|(limit, window)| Quota::new(limit, millis(window))),
        1 => (1..6u32, 1..100u64, 1..5u32)
            .prop_map(|(limit, per, burst)| Quota::rate(limit, millis(per)).burst(burst)),
    ];
    let shape = prop_oneof![Just(Shape::Burst), Just(Shape::Paced)];
    let shares = prop_oneof![(0..60u8).prop_map(|share| (share, 0)), (0..50u8, 0..50u8),];
    (with_extras(rate), shape, 0..3usize, 1..3usize, shares).prop_map(
        |(quota, shape, level, other, (share, further))| {
            let priority = |level: usize| Priority::ALL[level % Priority::ALL.len()];
            quota
                .shape(shape)
                .reserve(priority(level), share)
                .reserve(priority(level + other), further)
        },
    )
}

fn with_extras(quota: impl Strategy<Value = Quota>) -> impl Strategy<Value = Quota> {
    (
        quota,
        proptest::option::weighted(0.3, 1..4u32),
        proptest::option::weighted(0.3, 0..60u64),
    )
        .prop_map(|(mut quota, in_flight, margin)| {
            if let Some(in_flight) = in_flight {
                quota = quota.in_flight(in_flight);
            }
            if let Some(margin) = margin {
                let margin = millis(margin);
                quota = quota.count_from(CountFrom::Sending { margin });
            }
            quota
        })
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: 1500,
        failure_persistence: None,
        ..ProptestConfig::default()
    })]

    #[test]
    fn bursts_are_exact_fair_and_never_stuck(
        a in burst_quota(),
        b in burst_quota(),
        ops in ops(false),
    ) {
        let mut world = World::new([a, b]);
        for op in ops {
            world.step(op);
        }
        world.drain();
    }

    #[test]
    fn shapes_shares_pauses_and_changes_never_break_the_rule(
        a in any_quota(),
        b in any_quota(),
        ops in ops(true),
    ) {
        let mut world = World::new([a, b]);
        for op in ops {
            world.step(op);
        }
        world.drain();
    }
}
