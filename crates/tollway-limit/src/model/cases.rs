//! Schedules that once went wrong, or that chance seldom finds.

use tollway_core::Priority;

use super::world::World;
use super::{Op, millis};
use crate::gauge::Gauge;
use crate::quota::{CountFrom, Quota, Shape};
use crate::time::NANOS_PER_MILLI;

/// A share is kept for a call that waits at another quota; when that call gives
/// up, those who wait for the share must hear of it.
#[test]
fn whoever_waits_for_a_share_is_told_when_its_owner_gives_up_elsewhere() {
    let busy = Quota::new(1, millis(3)).in_flight(1);
    let shared = Quota::new(2, millis(6))
        .count_from(CountFrom::Sending { margin: millis(24) })
        .reserve(Priority::Normal, 50);
    let arrive = |plan, level, patience| Op::Arrive {
        plan,
        level,
        patience,
    };
    let mut world = World::new([busy, shared]);
    for op in [
        arrive(2, 0, None),
        Op::Advance(79),
        Op::Pause(1, 10),
        arrive(0, 0, None),
        // Held up by the pause first, and then by the quota that is busy.
        arrive(2, 1, Some(38)),
        // Needs the share that is kept for the one before.
        arrive(1, 2, None),
    ] {
        world.step(op);
    }
    world.drain();
}

#[test]
fn levels_that_each_keep_half_do_not_wait_for_each_other_for_ever() {
    let halves = Quota::new(2, millis(10))
        .reserve(Priority::High, 50)
        .reserve(Priority::Normal, 50);
    let arrive = |level| Op::Arrive {
        plan: 0,
        level,
        patience: None,
    };
    let mut world = World::new([halves, Quota::new(5, millis(1))]);
    for level in [2, 0, 1] {
        world.step(arrive(level));
    }
    world.drain();
}

/// The restart after a pause is as long as the longest window says, though a
/// later pause came under a shorter one.
#[test]
fn a_later_pause_does_not_cut_the_gentle_restart_short() {
    let quota = |window| Quota::new(5, millis(window)).shape(Shape::Burst);
    let at = |millis| millis * NANOS_PER_MILLI;
    let mut gauge = Gauge::new(quota(100));
    gauge.pause(0, at(10));
    gauge.set_quota(quota(10), at(1));
    gauge.pause(at(1), at(10));
    // 10 ms of pause and 100 ms of restart, not 11 and 10. Meanwhile no more go
    // at once than a timer may be late for, 5 ms at one in 2.5 ms.
    for (now, at_once) in [(50, 3), (109, 3), (121, 5)] {
        let now = at(now);
        let mut gone = 0;
        while gauge.room(0, now).is_ok() {
            gauge.take(0, now);
            gauge.finish(0, Some(now), now);
            gone += 1;
        }
        assert_eq!(gone, at_once, "at {now}");
    }
}

/// An attempt that was answered under a margin that came after it was sent is
/// counted, though the margin is gone again before it has passed.
#[test]
fn an_answer_is_not_lost_between_two_changes_of_where_to_count_from() {
    let from_response = Quota::new(2, millis(5)).shape(Shape::Burst);
    let from_sending = from_response.count_from(CountFrom::Sending { margin: millis(3) });
    let arrive = || Op::Arrive {
        plan: 0,
        level: 0,
        patience: None,
    };
    let mut world = World::new([from_response, from_response]);
    for op in [
        arrive(),
        arrive(),
        Op::Advance(1),
        Op::Change(0, from_sending),
        Op::Answer(0),
        Op::Change(0, from_response),
        arrive(),
    ] {
        world.step(op);
    }
    world.drain();
}

/// A wait is foretold as it will be, though more is in flight than the limit
/// that was lowered meanwhile.
#[test]
fn a_lowered_limit_is_not_foretold_to_take_longer_than_it_does() {
    let burst = |limit| Quota::new(limit, millis(5)).shape(Shape::Burst);
    let arrive = || Op::Arrive {
        plan: 0,
        level: 0,
        patience: None,
    };
    let mut world = World::new([burst(3), burst(3)]);
    for op in [
        arrive(),
        arrive(),
        arrive(),
        Op::Change(0, burst(1)),
        Op::Probe(0),
    ] {
        world.step(op);
    }
    world.drain();
}
