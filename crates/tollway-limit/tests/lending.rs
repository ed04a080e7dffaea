//! Permits that are lent out and taken without the lock, against a naive model:
//! no more of them than the quota allows, none lost.
#![cfg(feature = "tokio")]
#![allow(clippy::unwrap_used, reason = "a test")]

use std::collections::VecDeque;
use std::task::Poll;
use std::time::Duration;

use http::{HeaderMap, HeaderName, HeaderValue, Method};
use proptest::collection::vec;
use proptest::prelude::*;
use tokio::time::{Instant, advance};
use tokio_test::task;
use tollway_core::{Deadline, Endpoint, Fault, Priority, Scope, Verdict};
use tollway_limit::{Call, Key, Limits, LimitsBuilder, Permit, Quota, Shape};

/// As much too late as an answer may be counted that was noted without the
/// lock, and what instants are rounded to.
const LATE: Duration = Duration::from_nanos(100_000 + 4);
const WINDOW: Duration = Duration::from_millis(2);

const PATHS: [&str; KEYS] = ["/a", "/b", "/c"];
const KEYS: usize = 3;

#[derive(Clone, Debug)]
enum Op {
    /// So many of one key.
    Take(usize, Priority, u8),
    /// The nth of those in flight is answered, and so many more.
    Answer(usize, usize, u8),
    /// The nth of those in flight was never sent.
    GiveBack(usize, usize),
    Advance(Duration),
    /// Takes the lock.
    Look,
    Change(u32),
}

/// An operation, and whether another thread does it.
fn ops() -> impl Strategy<Value = Vec<(Op, bool)>> {
    let priority = prop_oneof![9 => Just(Priority::Normal), 1 => Just(Priority::High)];
    let micros = prop_oneof![1..60u64, 1..400u64, 1..4000u64];
    let key = || prop_oneof![3 => Just(0), 1 => 1..KEYS];
    let op = prop_oneof![
        9 => (key(), priority, 1..6u8)
            .prop_map(|(key, priority, count)| Op::Take(key, priority, count)),
        7 => (key(), 0..8usize, 1..6u8).prop_map(|(key, nth, count)| Op::Answer(key, nth, count)),
        1 => (key(), 0..8usize).prop_map(|(key, nth)| Op::GiveBack(key, nth)),
        6 => micros.prop_map(|micros| Op::Advance(Duration::from_micros(micros))),
        1 => Just(Op::Look),
        1 => (4..12u32).prop_map(Op::Change),
    ];
    vec((op, proptest::bool::weighted(0.2)), 1..120)
}

struct Flying {
    permit: Permit,
    sent: Instant,
}

/// What a quota should know.
#[derive(Default)]
struct Known {
    flying: VecDeque<Flying>,
    /// Sent, and over.
    over: Vec<(Instant, Instant)>,
}

impl Known {
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

    fn answer(&mut self, nth: usize, count: u8) {
        for _ in 0..count {
            let nth = nth % self.flying.len().max(1);
            if let Some(flying) = self.flying.remove(nth) {
                drop(flying.permit);
                self.over.push((flying.sent, Instant::now()));
            }
        }
    }
}

struct World {
    limits: Limits,
    quota: Quota,
    limit: u32,
    in_flight: Option<u32>,
    is_keyed: bool,
    known: [Known; KEYS],
    /// Which of the ways to ask comes next.
    is_told: bool,
}

impl World {
    fn new(limit: u32, in_flight: Option<u32>, is_keyed: bool) -> Self {
        let quota = Quota::new(limit, WINDOW).shape(Shape::Burst);
        let quota = in_flight.map_or(quota, |limit| quota.in_flight(limit));
        Self {
            limits: Self::builder(quota, is_keyed).build().unwrap(),
            quota,
            limit,
            in_flight,
            is_keyed,
            known: Default::default(),
            is_told: false,
        }
    }

    fn builder(quota: Quota, is_keyed: bool) -> LimitsBuilder {
        match is_keyed {
            true => Limits::builder().keyed(Key::path(), quota),
            false => Limits::builder().every_call(quota),
        }
    }

    fn known(&mut self, key: usize) -> &mut Known {
        &mut self.known[if self.is_keyed { key } else { 0 }]
    }

    fn is_full(&mut self, key: usize, late: Duration) -> bool {
        let (limit, in_flight) = (self.limit, self.in_flight);
        let known = self.known(key);
        known.in_window(late) >= limit as usize
            || in_flight.is_some_and(|limit| known.flying.len() >= limit as usize)
    }

    fn try_acquire(&mut self, key: usize, priority: Priority) -> Option<Flying> {
        let call = Call::new(&Method::GET, PATHS[key]).priority(priority);
        let sent = Instant::now();
        self.is_told = !self.is_told;
        let permit = match self.is_told {
            true => self.limits.try_acquire(&call, sent.into_std()).ok()?,
            false => at_once(&self.limits, &call)?,
        };
        Some(Flying { permit, sent })
    }

    fn take(&mut self, key: usize, priority: Priority) {
        match self.try_acquire(key, priority) {
            Some(flying) => {
                assert!(!self.is_full(key, Duration::ZERO), "one too many");
                self.known(key).flying.push_back(flying);
            }
            None => assert!(self.is_full(key, LATE), "one is lost"),
        }
    }

    fn look(&self) {
        for quota in self.limits.snapshot().quotas {
            let known = &self.known[PATHS
                .iter()
                .position(|path| Some(*path) == quota.key.as_deref())
                .unwrap_or(0)];
            assert_eq!(quota.in_flight as usize, known.flying.len());
            assert!(quota.used as usize >= known.in_window(Duration::ZERO));
            assert!(quota.used as usize <= known.in_window(LATE));
        }
    }

    fn step(&mut self, op: &Op) {
        match *op {
            Op::Take(key, priority, count) => (0..count).for_each(|_| self.take(key, priority)),
            Op::Answer(key, nth, count) => self.known(key).answer(nth, count),
            Op::GiveBack(key, nth) => {
                if let Some(flying) = self.known(key).flying.remove(nth) {
                    flying.permit.give_back();
                }
            }
            Op::Look => self.look(),
            Op::Change(limit) => {
                // What was let through under another limit is no breach of this.
                self.limit = self.limit.max(limit);
                self.quota = Quota::new(self.limit, WINDOW).shape(Shape::Burst);
                if let Some(limit) = self.in_flight {
                    self.quota = self.quota.in_flight(limit);
                }
                let builder = Self::builder(self.quota, self.is_keyed);
                self.limits.reconfigure(builder).unwrap();
            }
            Op::Advance(_) => unreachable!("time is not the world's"),
        }
    }
}

/// Does `step` with each operation. Some are done by another thread, which goes
/// to tills of its own.
async fn each(ops: Vec<(Op, bool)>, mut step: impl FnMut(&Op) + Send) {
    let runtime = tokio::runtime::Handle::current();
    for (op, elsewhere) in ops {
        if let Op::Advance(by) = op {
            advance(by).await;
        } else if elsewhere {
            std::thread::scope(|scope| {
                let there = || {
                    let _entered = runtime.enter();
                    step(&op);
                };
                scope.spawn(there);
            });
        } else {
            step(&op);
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
    #![proptest_config(ProptestConfig {
        cases: 500,
        failure_persistence: None,
        ..ProptestConfig::default()
    })]

    #[test]
    fn lent_permits_are_neither_minted_nor_lost(
        limit in 1..24u32,
        in_flight in proptest::option::weighted(0.3, 1..24u32),
        is_keyed: bool,
        ops in ops(),
    ) {
        run(async {
            let mut world = World::new(limit, in_flight, is_keyed);
            each(ops, |op| world.step(op)).await;
            world.look();
        });
    }

    /// A bucket's, too, wherever between sending and answer each attempt arrives.
    #[test]
    fn lent_permits_of_a_bucket_never_make_it_overflow(
        burst in 1..24u32,
        is_keyed: bool,
        ops in ops(),
    ) {
        let interval = Duration::from_micros(150);
        run(async {
            let mut world = World::new(1, None, is_keyed);
            let bucket = Quota::rate(10, interval * 10).burst(burst);
            world.limits = World::builder(bucket, is_keyed).build().unwrap();
            each(ops, |op| match *op {
                Op::Take(key, priority, count) => {
                    for _ in 0..count {
                        if let Some(flying) = world.try_acquire(key, priority) {
                            world.known(key).flying.push_back(flying);
                        }
                    }
                }
                Op::Look | Op::Change(_) => drop(world.limits.snapshot()),
                _ => world.step(op),
            })
            .await;
            for known in &world.known {
                let sent = known.over.iter().map(|&(sent, _)| sent);
                let over = known.over.iter().map(|&(_, over)| over);
                for mut arrivals in [sent.collect::<Vec<_>>(), over.collect()] {
                    arrivals.sort();
                    let mut drained = None;
                    for at in arrivals {
                        let from = drained.map_or(at, |drained: Instant| drained.max(at));
                        assert!(from + interval - at <= interval * burst, "it overflows");
                        drained = Some(from + interval);
                    }
                }
            }
        });
    }
}

/// Leaves what is left of the quota of `/a` on loan.
fn lend(limits: &Limits) {
    let first = take(limits, "/a", Priority::Normal).unwrap();
    drop(take(limits, "/a", Priority::Normal).unwrap());
    drop(first);
}

fn take(limits: &Limits, path: &str, priority: Priority) -> Option<Permit> {
    let call = Call::new(&Method::GET, path).priority(priority);
    at_once(limits, &call)
}

/// A permit, if there is one at once.
fn at_once(limits: &Limits, call: &Call<'_>) -> Option<Permit> {
    match task::spawn(limits.acquire(call)).poll() {
        Poll::Ready(permit) => Some(permit.unwrap()),
        Poll::Pending => None,
    }
}

#[tokio::test(start_paused = true)]
async fn a_lent_permit_is_not_taken_once_the_deadline_has_passed() {
    for is_keyed in [false, true] {
        let limits = World::new(10, None, is_keyed).limits;
        lend(&limits);
        let now = Instant::now();
        for (deadline, is_taken) in [(now, false), (now + WINDOW, true)] {
            let call = Call::new(&Method::GET, "/a").deadline(Deadline::at(deadline));
            let permit = limits.try_acquire(&call, now);
            assert_eq!(permit.is_ok(), is_taken);
        }
    }
}

/// How far apart calls are after a pause: a tenth of the window and of how long
/// answers take.
async fn pace_after_a_pause(limits: &Limits) -> Duration {
    let refused = take(limits, "/a", Priority::Normal).unwrap();
    refused.over(Verdict::NotExecuted {
        retry_after: Some(Duration::from_secs(1)),
        scope: Scope::Unspecified,
    });
    let call = Call::new(&Method::GET, "/a");
    drop(limits.acquire(&call).await.unwrap());
    let start = Instant::now();
    for _ in 0..5 {
        drop(limits.acquire(&call).await.unwrap());
    }
    start.elapsed() / 5
}

fn eleven() -> Limits {
    let quota = Quota::new(11, Duration::from_millis(100)).shape(Shape::Burst);
    Limits::builder().every_call(quota).build().unwrap()
}

/// Nobody reads the clock for most lent permits, and it isn't guessed what it
/// said: a loan may be old.
#[tokio::test(start_paused = true)]
async fn a_permit_that_was_lent_long_ago_says_nothing_of_how_long_answers_take() {
    let limits = eleven();
    lend(&limits);
    let first = take(&limits, "/a", Priority::Normal).unwrap();
    advance(Duration::from_secs(10)).await;
    let later = take(&limits, "/a", Priority::Normal).unwrap();
    first.give_back();
    drop(later);
    assert!(pace_after_a_pause(&limits).await <= Duration::from_millis(11));
}

#[tokio::test(start_paused = true)]
async fn the_first_permit_of_a_loan_says_how_long_answers_take() {
    let limits = eleven();
    for _ in 0..100 {
        lend(&limits);
        let first = take(&limits, "/a", Priority::Normal).unwrap();
        advance(Duration::from_millis(300)).await;
        drop(first);
    }
    let pace = pace_after_a_pause(&limits).await;
    assert!(pace >= Duration::from_millis(19), "{pace:?}");
}

#[tokio::test(start_paused = true)]
async fn a_key_that_shared_a_quota_gets_its_own_once_that_is_idle() {
    let quota = Quota::new(1, WINDOW).shape(Shape::Burst);
    let builder = Limits::builder().keyed(Key::path(), quota).max_keys(1);
    let limits = builder.build().unwrap();
    let take = |path| take(&limits, path, Priority::Normal).is_some();
    assert!(take("/a"));
    advance(WINDOW / 2).await;
    assert!(take("/b"));
    advance(WINDOW / 2 + LATE).await;
    // The first is idle and forgotten. The second has used the shared quota.
    assert!(!take("/b"));
    advance(WINDOW / 2).await;
    assert!(take("/b"));
    assert!(take("/c"));
    assert!(!take("/c"));
}

/// One key that keeps a shared quota busy doesn't keep new keys from their own.
#[tokio::test(start_paused = true)]
async fn a_busy_shared_quota_is_for_those_that_shared_it() {
    let quota = Quota::concurrent(1);
    let builder = Limits::builder().keyed(Key::path(), quota).max_keys(1);
    let limits = builder.build().unwrap();
    let take = |path| take(&limits, path, Priority::Normal);
    let first = take("/a").unwrap();
    let _busy = take("/b").unwrap();
    assert!(take("/c").is_none());
    drop(first);
    // The first is forgotten, and there is a place. Not for one that has shared.
    assert!(take("/c").is_none());
    assert!(take("/d").is_some());
}

/// What one key's quota has lent isn't taken by calls that others cover as well.
#[tokio::test(start_paused = true)]
async fn a_key_s_lent_permits_are_for_calls_that_it_alone_covers() {
    let quota = |limit| Quota::new(limit, WINDOW).shape(Shape::Burst);
    let header = HeaderName::from_static("account");
    let (path, account) = (Key::path(), Key::header(header.clone()));
    let get = Endpoint::get("/a");
    for builder in [
        Limits::builder()
            .keyed(path.clone(), quota(20))
            .keyed(account.clone(), quota(3)),
        Limits::builder()
            .keyed(account, quota(3))
            .keyed(path.clone(), quota(20)),
        Limits::builder()
            .keyed(path, quota(20))
            .endpoint(get.clone(), quota(3)),
    ] {
        let limits = builder.build().unwrap();
        let headers = HeaderMap::from_iter([(header.clone(), HeaderValue::from_static("one"))]);
        let post = Call::new(&Method::POST, "/a");
        let both = Call::new(&Method::GET, "/a").headers(&headers);
        let take = |call| limits.try_acquire(call, Instant::now()).ok();
        let held: Vec<_> = (0..3).map(|_| take(&post)).collect();
        assert!(held.iter().all(Option::is_some));
        let of_both: Vec<_> = (0..5).map(|_| take(&both)).collect();
        assert_eq!(of_both.iter().flatten().count(), 3);
    }
}

/// Whoever once shared a quota doesn't take what others that share it are lent.
#[tokio::test(start_paused = true)]
async fn a_shared_quota_is_not_lent_to_a_key_that_has_its_own_by_now() {
    let quota = Quota::new(8, WINDOW).shape(Shape::Burst);
    let builder = Limits::builder().keyed(Key::path(), quota).max_keys(1);
    let limits = builder.build().unwrap();
    let take = |path, priority| take(&limits, path, priority);
    assert!(take("/other", Priority::Normal).is_some());
    lend(&limits);
    advance(2 * WINDOW).await;
    // It gets its own, and all of that in a way on which nothing is noted.
    let refused = take("/a", Priority::High).unwrap();
    refused.over(Verdict::NotExecuted {
        retry_after: Some(10 * WINDOW),
        scope: Scope::Unspecified,
    });
    let waiting: Vec<_> = (0..8)
        .map(|_| {
            let limits = limits.clone();
            tokio::spawn(async move { limits.acquire(&Call::new(&Method::GET, "/a")).await })
        })
        .collect();
    let mut own = Vec::new();
    for waiting in waiting {
        own.push(waiting.await.unwrap().unwrap());
    }
    let shared: Vec<_> = (0..3).map(|_| take("/b", Priority::Normal)).collect();
    assert!(shared.iter().all(Option::is_some));
    assert!(take("/a", Priority::Normal).is_none());
    drop(own);
}

/// Keys that come and go leave no tills behind that lend.
#[tokio::test(start_paused = true)]
async fn keys_that_are_forgotten_and_come_back_have_one_quota() {
    let quota = Quota::new(8, WINDOW).shape(Shape::Burst);
    let limits = Limits::builder().keyed(Key::path(), quota);
    let limits = limits.build().unwrap();
    for round in 0..20 {
        for number in 0..200 {
            let path = format!("/{}", (number * 7 + round) % 300);
            let take = || take(&limits, &path, Priority::Normal);
            let permits: Vec<_> = (0..9).map(|_| take()).collect();
            assert_eq!(permits.iter().flatten().count(), 8, "{path}");
        }
        advance(WINDOW + LATE).await;
    }
    assert!(limits.snapshot().quotas.len() < 300);
}

/// Calls that take lent permits look after the keys that are idle, too.
#[tokio::test(start_paused = true)]
async fn idle_keys_are_forgotten_though_only_one_that_lends_is_used() {
    let quota = Quota::new(100, WINDOW).shape(Shape::Burst);
    let limits = Limits::builder().keyed(Key::path(), quota);
    let limits = limits.build().unwrap();
    for number in 0..300 {
        drop(take(&limits, &format!("/{number}"), Priority::Normal));
    }
    lend(&limits);
    advance(2 * WINDOW).await;
    for _ in 0..300 {
        let permit = take(&limits, "/a", Priority::Normal);
        advance(LATE).await;
        drop(permit);
    }
    assert!(limits.snapshot().quotas.len() <= 65);
}

/// Code that makes up its own time may run ahead of the clock, and say by
/// dropping its permit that an attempt is over.
#[tokio::test(start_paused = true)]
async fn a_clock_that_lags_behind_made_up_times_neither_mints_nor_loses() {
    for (is_keyed, looks) in [(false, false), (true, false), (false, true), (true, true)] {
        let limits = World::new(10, None, is_keyed).limits;
        let start = Instant::now();
        let mut sent = Vec::new();
        for step in 0..500 {
            let at = start + step * WINDOW / 50;
            let call = Call::new(&Method::GET, "/a");
            // Now a few over the window, now whatever there is.
            let tries = match step % 100 {
                45..55 => 10,
                step => u32::from(step % 5 == 0),
            };
            let permits = (0..tries).filter_map(|_| limits.try_acquire(&call, at).ok());
            let permits: Vec<_> = permits.collect();
            sent.extend(permits.iter().map(|_| at));
            drop(permits);
            if looks && step % 7 == 0 {
                drop(limits.snapshot());
            }
        }
        let mut windows = sent.windows(11);
        assert!(windows.all(|sent| sent[10] - sent[0] >= WINDOW));
        assert!(sent.len() >= 95, "{}", sent.len());
    }
}

#[tokio::test(start_paused = true)]
async fn what_is_over_before_made_up_times_begin_is_over_then() {
    let limits = World::new(10, None, false).limits;
    let all = || -> Vec<_> {
        (0..10)
            .map(|_| take(&limits, "/a", Priority::Normal))
            .collect()
    };
    assert!(all().iter().all(Option::is_some));
    let later = (Instant::now() + WINDOW + LATE).into_std();
    let call = Call::new(&Method::GET, "/a");
    let again: Vec<_> = (0..10).map(|_| limits.try_acquire(&call, later)).collect();
    assert!(again.iter().all(Result::is_ok));
}

/// The limiter may have been told such a time by another key's call.
#[tokio::test(start_paused = true)]
async fn a_permit_that_is_dropped_is_over_at_the_latest_time_told() {
    let limits = World::new(10, None, true).limits;
    lend(&limits);
    let permits: Vec<_> = (0..8)
        .map(|_| take(&limits, "/a", Priority::Normal))
        .collect();
    let ahead = Instant::now() + 10 * WINDOW;
    let take = |path: &'static str, at: Instant| {
        let call = Call::new(&Method::GET, path);
        limits.try_acquire(&call, at).is_ok()
    };
    assert!(take("/b", ahead));
    drop(permits);
    for _ in 0..2 {
        assert!(take("/a", ahead + WINDOW / 2));
    }
    assert!(!take("/a", ahead + WINDOW / 2));
    assert!(take("/a", ahead + WINDOW + LATE));
}

/// Nor any later, though later times have been told since.
#[tokio::test(start_paused = true)]
async fn a_permit_that_was_dropped_is_over_before_later_times_are_told() {
    let limits = World::new(2, None, false).limits;
    let call = Call::new(&Method::GET, "/a");
    let start = Instant::now();
    let both = |at: u32| {
        let at = (start + at * WINDOW).into_std();
        [(); 2].map(|()| limits.try_acquire(&call, at).is_ok())
    };
    assert_eq!(both(100), [true; 2]);
    assert_eq!(both(100), [false; 2]);
    assert_eq!(both(102), [true; 2]);
}

/// What was lent is known by its level, should shares be kept from now on.
#[tokio::test(start_paused = true)]
async fn other_levels_are_not_served_from_what_is_lent_to_the_normal_one() {
    let quota = Quota::new(4, WINDOW).shape(Shape::Burst);
    let limits = Limits::builder().every_call(quota).build().unwrap();
    take(&limits, "/a", Priority::Normal).unwrap().give_back();
    drop(take(&limits, "/a", Priority::Normal).unwrap());
    advance(WINDOW + LATE).await;
    let _high = [(); 2].map(|()| take(&limits, "/a", Priority::High).unwrap());
    let _normal = take(&limits, "/a", Priority::Normal).unwrap();
    // Half of them is for normal calls, of which there is one.
    let shared = quota.reserve(Priority::Normal, 50);
    let builder = Limits::builder().every_call(shared);
    limits.reconfigure(builder).unwrap();
    assert!(take(&limits, "/a", Priority::High).is_none());
    assert!(take(&limits, "/a", Priority::Normal).is_some());
}

/// Whoever holds a permit may be the last to hold anything of the limiter.
#[tokio::test(start_paused = true)]
async fn permits_outlive_the_limits() {
    for is_keyed in [false, true] {
        let ends: [fn(Permit); 6] = [
            drop,
            Permit::give_back,
            |permit| permit.failed(&Fault::new(Verdict::Unknown)),
            |permit| permit.over(Verdict::Done),
            |permit| {
                permit.over(Verdict::NotExecuted {
                    retry_after: Some(WINDOW),
                    scope: Scope::Unspecified,
                });
            },
            |mut permit| permit.sent(),
        ];
        for end in ends {
            let limits = World::new(10, None, is_keyed).limits;
            lend(&limits);
            let permits = [(); 2].map(|()| take(&limits, "/a", Priority::Normal).unwrap());
            drop(limits);
            advance(LATE).await;
            permits.into_iter().for_each(end);
        }
    }
}
