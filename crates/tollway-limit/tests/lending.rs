//! Permits that are lent out and taken without the lock, against a naive model:
//! no more of them than the quota allows, none lost.
#![allow(clippy::unwrap_used, reason = "a test")]

use std::collections::VecDeque;
use std::time::Duration;

use http::Method;
use proptest::collection::vec;
use proptest::prelude::*;
use tokio::time::{Instant, advance};
use tollway_core::Priority;
use tollway_limit::{Call, Limits, Permit, Quota, Shape};

/// As much too late as an answer may be counted that was noted without the
/// lock, and what instants are rounded to.
const LATE: Duration = Duration::from_nanos(100_000 + 4);
const WINDOW: Duration = Duration::from_millis(2);

#[derive(Clone, Debug)]
enum Op {
    Take(Priority, u8),
    /// The nth of those in flight is answered, and so many more.
    Answer(usize, u8),
    /// The nth of those in flight was never sent.
    GiveBack(usize),
    Advance(Duration),
    /// Takes the lock.
    Look,
    Change(u32),
}

fn ops() -> impl Strategy<Value = Vec<Op>> {
    let priority = prop_oneof![9 => Just(Priority::Normal), 1 => Just(Priority::High)];
    let micros = prop_oneof![1..60u64, 1..400u64, 1..4000u64];
    vec(
        prop_oneof![
            9 => (priority, 1..6u8).prop_map(|(priority, count)| Op::Take(priority, count)),
            7 => (0..8usize, 1..6u8).prop_map(|(nth, count)| Op::Answer(nth, count)),
            1 => (0..8usize).prop_map(Op::GiveBack),
            6 => micros.prop_map(|micros| Op::Advance(Duration::from_micros(micros))),
            1 => Just(Op::Look),
            1 => (4..12u32).prop_map(Op::Change),
        ],
        1..120,
    )
}

struct Flying {
    permit: Permit,
    sent: Instant,
}

struct World {
    limits: Limits,
    limit: u32,
    in_flight: Option<u32>,
    flying: VecDeque<Flying>,
    /// Sent, and over.
    over: Vec<(Instant, Instant)>,
}

impl World {
    fn new(limit: u32, in_flight: Option<u32>) -> Self {
        let quota = Self::quota(limit, in_flight);
        Self {
            limits: Limits::builder().every_call(quota).build().unwrap(),
            limit,
            in_flight,
            flying: VecDeque::new(),
            over: Vec::new(),
        }
    }

    fn quota(limit: u32, in_flight: Option<u32>) -> Quota {
        let quota = Quota::new(limit, WINDOW).shape(Shape::Burst);
        in_flight.map_or(quota, |limit| quota.in_flight(limit))
    }

    /// How many the provider may count in the window that ends now, if answers
    /// are counted so much late.
    fn in_window(&self, late: Duration) -> usize {
        let now = Instant::now();
        let over = self
            .over
            .iter()
            .filter(|(_, over)| *over + WINDOW + late > now);
        self.flying.len() + over.count()
    }

    fn is_full(&self, late: Duration) -> bool {
        self.in_window(late) >= self.limit as usize
            || self
                .in_flight
                .is_some_and(|limit| self.flying.len() >= limit as usize)
    }

    fn take(&mut self, priority: Priority) {
        let call = Call::new(&Method::GET, "/").priority(priority);
        let now = Instant::now();
        match self.limits.try_acquire(&call, now.into_std()) {
            Ok(permit) => {
                assert!(!self.is_full(Duration::ZERO), "one too many");
                self.flying.push_back(Flying { permit, sent: now });
            }
            Err(_) => assert!(self.is_full(LATE), "one is lost"),
        }
    }

    fn look(&self) {
        let quota = &self.limits.snapshot().quotas[0];
        assert_eq!(quota.in_flight as usize, self.flying.len());
        assert!(quota.used as usize >= self.in_window(Duration::ZERO));
        assert!(quota.used as usize <= self.in_window(LATE));
    }

    async fn step(&mut self, op: Op) {
        match op {
            Op::Take(priority, count) => (0..count).for_each(|_| self.take(priority)),
            Op::Answer(nth, count) => {
                for _ in 0..count {
                    let nth = nth % self.flying.len().max(1);
                    if let Some(flying) = self.flying.remove(nth) {
                        drop(flying.permit);
                        self.over.push((flying.sent, Instant::now()));
                    }
                }
            }
            Op::GiveBack(nth) => {
                if let Some(flying) = self.flying.remove(nth) {
                    flying.permit.give_back();
                }
            }
            Op::Advance(by) => advance(by).await,
            Op::Look => self.look(),
            Op::Change(limit) => {
                // What was let through under another limit is no breach of this.
                self.limit = self.limit.max(limit);
                let quota = Self::quota(self.limit, self.in_flight);
                let builder = Limits::builder().every_call(quota);
                self.limits.reconfigure(builder).unwrap();
            }
        }
    }
}

fn run(work: impl Future<Output = ()>) {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .start_paused(true)
        .build()
        .unwrap();
    runtime.block_on(work);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(500))]

    #[test]
    fn lent_permits_are_neither_minted_nor_lost(
        limit in 1..12u32,
        in_flight in proptest::option::weighted(0.3, 1..12u32),
        ops in ops(),
    ) {
        run(async {
            let mut world = World::new(limit, in_flight);
            for op in ops {
                world.step(op).await;
            }
            world.look();
        });
    }

    /// A bucket's, too, wherever between sending and answer each attempt arrives.
    #[test]
    fn lent_permits_of_a_bucket_never_make_it_overflow(
        burst in 1..12u32,
        ops in ops(),
    ) {
        let interval = Duration::from_micros(150);
        run(async {
            let mut world = World::new(1, None);
            let bucket = Quota::rate(10, interval * 10).burst(burst);
            world.limits = Limits::builder().every_call(bucket).build().unwrap();
            for op in ops {
                match op {
                    Op::Take(priority, count) => {
                        for _ in 0..count {
                            let call = Call::new(&Method::GET, "/").priority(priority);
                            let now = Instant::now();
                            if let Ok(permit) = world.limits.try_acquire(&call, now.into_std()) {
                                world.flying.push_back(Flying { permit, sent: now });
                            }
                        }
                    }
                    Op::Look | Op::Change(_) => drop(world.limits.snapshot()),
                    op => world.step(op).await,
                }
            }
            let sent = world.over.iter().map(|&(sent, _)| sent);
            let over = world.over.iter().map(|&(_, over)| over);
            for mut arrivals in [sent.collect::<Vec<_>>(), over.collect()] {
                arrivals.sort();
                let mut drained = None;
                for at in arrivals {
                    let from = drained.map_or(at, |drained: Instant| drained.max(at));
                    assert!(from + interval - at <= interval * burst, "it overflows");
                    drained = Some(from + interval);
                }
            }
        });
    }
}
