//! The bookkeeping under any order of events, and in orders of note.

mod world;

use std::time::Duration;

use proptest::prelude::*;

use super::{Limits, Spoken};
use crate::stats::CloseReason;
use world::{Step, World, limits};

fn step() -> impl Strategy<Value = Step> {
    let at = || 0..64_usize;
    prop_oneof![
        8 => Just(Step::CheckOut),
        4 => at().prop_map(Step::Poll),
        2 => at().prop_map(Step::Cancel),
        2 => at().prop_map(Step::Connected),
        4 => (at(), any::<bool>()).prop_map(|(at, h2)| Step::Opened(at, h2)),
        1 => at().prop_map(Step::ClosedWhileOpening),
        1 => at().prop_map(Step::Failed),
        1 => at().prop_map(Step::Orphaned),
        1 => at().prop_map(Step::SocketCloses),
        6 => (at(), any::<u8>()).prop_map(|(at, how)| Step::LeaseEnds(at, how)),
        2 => (at(), any::<bool>()).prop_map(|(at, ready)| Step::ReadOut(at, ready)),
        2 => at().prop_map(Step::Settles),
        1 => at().prop_map(Step::CatchesUp),
        1 => (at(), 0..4_usize).prop_map(|(at, to)| Step::Limit(at, to)),
        1 => (0..40_000_u64).prop_map(Step::Pass),
        1 => (0..8_usize).prop_map(Step::Warm),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1_000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn no_order_of_events_breaks_the_counts_or_forgets_a_waiter(
        cap in 1..5_usize,
        idle in 0..5_usize,
        waiting in 1..12_usize,
        requests in prop_oneof![Just(u64::MAX), 1..4_u64],
        h2_limit in 1..4_usize,
        spoken in prop_oneof![Just(None), Just(Some(Spoken::Http1)), Just(Some(Spoken::Http2))],
        steps in prop::collection::vec(step(), 0..150),
        drain_at in prop::option::of(0..150_usize),
    ) {
        let limits = Limits { idle, waiting, requests, ..limits(cap) };
        let mut world = World::new(limits, spoken, h2_limit);
        for (at, step) in steps.iter().enumerate() {
            if drain_at == Some(at) {
                world.step(&Step::Drain);
            }
            world.step(step);
        }
        world.finish();
    }
}

/// A world in which everything has worked so far.
fn http1(connections: usize) -> World {
    World::new(limits(connections), Some(Spoken::Http1), 1)
}

#[test]
fn the_most_recently_used_goes_first_so_that_the_others_age_out() {
    let mut world = http1(3);
    for _ in 0..3 {
        world.check_out();
    }
    for _ in 0..3 {
        world.attempt_succeeds(0, false);
        world.poll_waiter(0);
    }
    for _ in 0..3 {
        world.lease_ends(0, 0);
    }
    // One call a second, one after the other: one connection carries them.
    for _ in 0..20 {
        world.check_out();
        world.lease_ends(0, 0);
        world.pass(Duration::from_secs(1));
        world.close_the_closing();
    }
    assert_eq!(world.sockets.len(), 1);
    assert_eq!(world.state.counters.closed.of(CloseReason::Idle), 2);
}

#[test]
fn an_http2_connection_that_is_used_now_and_then_is_kept() {
    let mut world = World::new(limits(2), Some(Spoken::Http2), 10);
    world.check_out();
    world.attempt_succeeds(0, true);
    world.poll_waiter(0);
    for _ in 0..20 {
        world.lease_ends(0, 0);
        world.pass(Duration::from_secs(2));
        world.check_out();
    }
    assert_eq!((world.leases.len(), world.sockets.len()), (1, 1));
}

#[test]
fn whoever_waits_as_the_drain_begins_has_the_next_stream_of_the_one_connection() {
    let mut world = World::new(limits(1), Some(Spoken::Http2), 1);
    world.check_out();
    world.attempt_succeeds(0, true);
    world.poll_waiter(0);
    world.check_out();
    world.step(&Step::Drain);
    world.lease_ends(0, 0);
    world.poll_waiter(0);
    assert_eq!((world.leases.len(), world.attempts.len()), (1, 0));
    world.lease_ends(0, 0);
    world.close_the_closing();
    assert!(world.state.is_drained());
}

#[test]
fn what_has_been_idle_for_too_long_is_not_used_though_the_reaper_is_late() {
    for (spoken, h2) in [(Spoken::Http1, false), (Spoken::Http2, true)] {
        let mut world = World::new(limits(2), Some(spoken), 10);
        world.check_out();
        world.attempt_succeeds(0, h2);
        world.poll_waiter(0);
        world.lease_ends(0, 0);
        world.now += limits(2).idle_timeout;
        world.check_out();
        assert_eq!((world.leases.len(), world.attempts.len()), (0, 1));
        world.close_the_closing();
        assert_eq!(world.state.counters.closed.of(CloseReason::Idle), 1);
    }
}

#[test]
fn where_one_is_found_dead_those_that_have_been_idle_for_as_long_are_closed() {
    let mut world = http1(4);
    for _ in 0..4 {
        world.check_out();
    }
    for _ in 0..4 {
        world.attempt_succeeds(0, false);
        world.poll_waiter(0);
    }
    // Three are idle; the last of them is taken, and meanwhile the fourth comes
    // back.
    for _ in 0..3 {
        world.lease_ends(0, 0);
        world.pass(Duration::from_millis(1));
    }
    world.check_out();
    world.lease_ends(0, 0);
    world.lease_ends(0, 3);
    world.close_the_closing();
    assert_eq!(world.sockets.len(), 1);
    assert_eq!(world.state.counters.closed.of(CloseReason::Idle), 2);
    assert_eq!(world.state.counters.closed.of(CloseReason::Error), 1);
}

#[test]
fn while_the_protocol_is_unknown_one_handshake_is_made_for_all() {
    let mut world = World::new(limits(20), None, 100);
    for _ in 0..64 {
        world.check_out();
    }
    assert_eq!(world.attempts.len(), 1);
    world.attempt_succeeds(0, true);
    assert_eq!(world.attempts.len(), 0);
    assert_eq!(world.state.gauges().waiting, 0);
    assert_eq!(world.state.gauges().calls, 64);
}

#[test]
fn once_the_peer_turns_out_to_speak_http1_the_others_get_their_own() {
    let mut world = World::new(limits(20), None, 100);
    for _ in 0..64 {
        world.check_out();
    }
    world.attempt_succeeds(0, false);
    assert_eq!(world.attempts.len(), 19);
    assert_eq!(world.state.gauges().waiting, 63);
}

#[test]
fn a_full_http2_connection_is_joined_by_another_within_the_cap() {
    let mut world = World::new(limits(2), Some(Spoken::Http2), 10);
    for _ in 0..25 {
        world.check_out();
    }
    world.attempt_succeeds(0, true);
    assert_eq!(world.state.gauges().calls, 10);
    assert_eq!(world.attempts.len(), 1);
    world.attempt_succeeds(0, true);
    assert_eq!(world.state.gauges().calls, 20);
    assert_eq!(world.attempts.len(), 0);
    assert_eq!(world.state.gauges().waiting, 5);
}

#[test]
fn a_peer_that_takes_no_calls_for_now_is_not_asked_on_one_connection_after_the_other() {
    let mut world = World::new(limits(3), Some(Spoken::Http2), 0);
    world.check_out();
    world.attempt_succeeds(0, true);
    world.check_out();
    assert_eq!((world.waiters.len(), world.attempts.len()), (2, 0));
    world.h2_limit = 100;
    world.limit_changes(0, 100);
    world.poll_waiter(0);
    world.poll_waiter(0);
    assert_eq!(world.leases.len(), 2);
    // One that has taken calls may be about to be closed.
    world.limit_changes(0, 0);
    world.check_out();
    assert_eq!((world.waiters.len(), world.attempts.len()), (1, 1));
}

#[test]
fn whoever_waits_for_a_connection_that_takes_no_more_calls_gets_another() {
    let mut world = World::new(limits(3), Some(Spoken::Http2), 1);
    world.check_out();
    let (id, now) = (world.attempts[0].0, world.now);
    assert!(!world.state.limit_changed(id, 0, now), "it isn't open yet");
    world.attempt_succeeds(0, true);
    world.poll_waiter(0);
    // The further one that its caller asks for fails, and the first will do.
    world.check_out();
    world.attempt_fails(0);
    assert_eq!((world.waiters.len(), world.attempts.len()), (1, 0));
    world.limit_changes(0, 0);
    assert_eq!((world.waiters.len(), world.attempts.len()), (1, 1));
}

#[test]
fn what_refused_calls_teach_is_heeded_for_a_while() {
    /// A connection that the peer ends before this call.
    fn ends_at(world: &mut World, nth: u64) {
        world.check_out();
        world.attempt_succeeds(0, true);
        world.poll_waiter(0);
        let id = world.leases[0].id;
        world.state.refused(id, nth, world.now);
        world.state.retire(id, CloseReason::Peer, world.now);
        world.lease_ends(0, 0);
        world.close_the_closing();
    }
    /// How many calls a further one is given, of ten.
    fn calls_of_a_connection(world: &mut World) -> usize {
        world.check_out();
        world.attempt_succeeds(0, true);
        world.poll_waiter(0);
        world.lease_ends(0, 0);
        for calls in 1..10 {
            world.check_out();
            if world.leases.is_empty() {
                world.step(&Step::Cancel(0));
                world.close_the_closing();
                return calls;
            }
            world.lease_ends(0, 0);
        }
        let id = world.sockets[0];
        world.state.retire(id, CloseReason::Peer, world.now);
        world.close_the_closing();
        10
    }

    let mut world = World::new(limits(1), Some(Spoken::Http2), 100);
    for _ in 0..3 {
        ends_at(&mut world, 4);
    }
    assert_eq!(calls_of_a_connection(&mut world), 3);
    world.pass(Duration::from_secs(601));
    assert_eq!(calls_of_a_connection(&mut world), 10);
    ends_at(&mut world, 9);
    assert_eq!(calls_of_a_connection(&mut world), 10);
    // It is as before: two connections tell, and the next hears of it.
    for _ in 0..3 {
        ends_at(&mut world, 4);
    }
    assert_eq!(calls_of_a_connection(&mut world), 3);
    // It is still so: one connection tells.
    world.pass(Duration::from_secs(601));
    for _ in 0..2 {
        ends_at(&mut world, 4);
    }
    assert_eq!(calls_of_a_connection(&mut world), 3);
}

#[test]
fn all_who_waited_for_the_one_handshake_share_its_failure() {
    let mut world = World::new(limits(20), None, 100);
    for _ in 0..64 {
        world.check_out();
    }
    world.attempt_fails(0);
    assert_eq!(world.state.gauges().waiting, 0);
    assert_eq!(world.attempts.len(), 0);
}

#[test]
fn a_failed_attempt_costs_one_call_on_http1_and_the_next_gets_its_own() {
    let mut world = http1(2);
    for _ in 0..4 {
        world.check_out();
    }
    assert_eq!(world.attempts.len(), 2);
    world.attempt_fails(0);
    assert_eq!(world.state.gauges().waiting, 3);
    assert_eq!(world.attempts.len(), 2);
    assert!(!world.state.queue.waits(world.waiters[0]));
}

#[test]
fn a_failed_attempt_costs_nobody_who_came_while_it_was_under_way() {
    let mut world = http1(2);
    world.check_out();
    world.attempt_succeeds(0, false);
    world.poll_waiter(0);
    // Whom the second one is for leaves, and another comes.
    world.check_out();
    world.step(&Step::Cancel(0));
    world.check_out();
    assert_eq!(world.attempts.len(), 1);
    world.attempt_fails(0);
    assert_eq!(world.state.gauges().waiting, 1);
    assert_eq!(world.attempts.len(), 1, "gets an attempt of its own");
    world.attempt_fails(0);
    assert_eq!(world.state.gauges().waiting, 0);
    assert_eq!(world.attempts.len(), 0);
}

#[test]
fn a_connection_that_refuses_to_close_is_closed_by_force() {
    let mut world = http1(1);
    world.check_out();
    world.attempt_succeeds(0, false);
    world.poll_waiter(0);
    world.lease_ends(0, 3);
    world.check_out();
    assert_eq!(world.attempts.len(), 0, "above the cap");
    world.pass(super::CLOSING);
    assert_eq!(world.sockets.len(), 0);
    assert_eq!(world.attempts.len(), 1);
}

#[test]
fn a_stream_that_lags_behind_one_that_was_given_up_is_given_up_in_its_time() {
    let mut world = World::new(limits(1), Some(Spoken::Http2), 2);
    world.check_out();
    world.attempt_succeeds(0, true);
    world.poll_waiter(0);
    world.check_out();
    world.lease_ends(0, 2);
    world.pass(super::CLOSING / 2);
    world.lease_ends(0, 2);
    world.pass(super::CLOSING / 2);
    let later = world.now + super::CLOSING / 2;
    assert_eq!(world.state.alarm(), Some(later));
    // And then no longer than any other to close.
    world.pass(super::CLOSING / 2);
    world.pass(super::CLOSING);
    assert_eq!(world.sockets.len(), 0);
}

#[test]
fn a_stream_that_has_caught_up_costs_its_connection_nothing() {
    let mut world = World::new(limits(1), Some(Spoken::Http2), 2);
    world.check_out();
    world.attempt_succeeds(0, true);
    world.poll_waiter(0);
    world.lease_ends(0, 2);
    world.step(&Step::CatchesUp(0));
    assert_eq!(world.state.gauges().calls, 0);
    world.check_out();
    world.pass(super::CLOSING);
    assert_eq!(world.state.gauges().calls, 1);
    assert_eq!(world.state.gauges().closing, 0);
}

#[test]
fn a_connection_that_closed_under_calls_broke_if_any_of_them_says_so() {
    for (how, reason) in [(0, CloseReason::Peer), (3, CloseReason::Error)] {
        let mut world = World::new(limits(1), Some(Spoken::Http2), 10);
        world.check_out();
        world.attempt_succeeds(0, true);
        world.poll_waiter(0);
        world.check_out();
        world.check_out();
        world.socket_closes(0);
        world.lease_ends(0, 0);
        assert_eq!(world.state.parted.len(), 1);
        world.lease_ends(0, how);
        world.lease_ends(0, 0);
        assert_eq!(world.state.counters.closed.of(reason), 1);
    }
}
