//! Each kind of rule against its definition, written as naively as can be.
#![allow(clippy::unwrap_used, reason = "a test fails where it stands")]

use std::time::Duration;

use proptest::collection::vec;
use proptest::prelude::*;
use tollway_sim::rule::{Decision, Rule, RuleKind, RuleState};

const MS: Duration = Duration::from_millis(1);

/// The definitions, straight from the whole history of arrivals. Times are in milliseconds and
/// windows divide evenly, so that fractions are exact in `f64`.
struct Naive {
    rule: Rule,
    /// Every arrival that counts, and whether it was accepted.
    counted: Vec<(u64, bool)>,
    blocked_until: u64,
}

impl Naive {
    fn accepts(&self, now: u64) -> bool {
        let window = ms(self.rule.window());
        let limit = f64::from(self.rule.limit());
        let within = |from: u64, to: u64| {
            let counted = self
                .counted
                .iter()
                .filter(|(at, _)| (from..to).contains(at));
            counted.count() as f64
        };
        match self.rule.kind() {
            RuleKind::SlidingLog => {
                let in_view = self.counted.iter().filter(|(at, _)| at + window > now);
                (in_view.count() as f64) < limit
            }
            RuleKind::FixedWindow => {
                let start = now / window * window;
                within(start, start + window) < limit
            }
            RuleKind::SlidingCounter => {
                let start = now / window * window;
                let previous = within(start.saturating_sub(window), start);
                let overlap = (start + window - now) as f64 / window as f64;
                previous * overlap + within(start, start + window) + 1.0 <= limit + 1e-9
            }
            RuleKind::TokenBucket => {
                self.tokens(now, f64::from(self.rule.capacity())) >= 1.0 - 1e-9
            }
            // nginx, as a bucket: one place for the request in service, beside the burst.
            RuleKind::LeakyBucket => {
                self.tokens(now, f64::from(self.rule.capacity()) + 1.0) >= 1.0 - 1e-9
            }
        }
    }

    fn tokens(&self, now: u64, capacity: f64) -> f64 {
        let per_ms = f64::from(self.rule.limit()) / ms(self.rule.window()) as f64;
        let (mut tokens, mut last) = (capacity, 0);
        for &(at, _) in &self.counted {
            tokens = (tokens + (at - last) as f64 * per_ms).min(capacity);
            // A refused arrival that counts takes what is there.
            tokens = (tokens - 1.0).max(0.0);
            last = at;
        }
        (tokens + (now - last) as f64 * per_ms).min(capacity)
    }

    fn arrive(&mut self, now: u64) -> bool {
        let blocked = now < self.blocked_until;
        let accepted = !blocked && self.accepts(now);
        if accepted || self.rule.counts_rejected() {
            self.counted.push((now, accepted));
        }
        if !accepted && !blocked {
            self.blocked_until = now + self.rule.penalty_after_breach().map_or(0, ms);
        }
        accepted
    }
}

fn ms(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap()
}

prop_compose! {
    fn any_rule()(
        kind in prop::sample::select(RuleKind::ALL.to_vec()),
        limit in 1u32..20,
        // Powers of two keep the naive fractions exact.
        window in prop::sample::select(vec![64u64, 128, 1024]),
        burst in prop::option::of(1u32..10),
        penalty in prop::option::of(0u64..500),
        counted in any::<bool>(),
    ) -> Rule {
        let mut rule = Rule::new(kind, limit, MS * u32::try_from(window).unwrap());
        if let (Some(burst), true) = (burst, kind.has_burst()) {
            rule = rule.burst(burst);
        }
        if let Some(penalty) = penalty {
            rule = rule.penalty(Duration::from_millis(penalty));
        }
        rule.rejected_count(counted)
    }
}

/// Mostly bursts, with pauses up to a few windows.
fn gaps() -> impl Strategy<Value = Vec<u64>> {
    vec(
        prop_oneof![4 => Just(0u64), 4 => 1u64..20, 1 => 20u64..2500],
        1..200,
    )
}

fn check(rule: Rule, gaps: &[u64]) -> Result<(), TestCaseError> {
    let mut state = RuleState::new(rule).unwrap();
    let mut naive = Naive {
        rule,
        counted: Vec::new(),
        blocked_until: 0,
    };
    let mut now = 0;
    for gap in gaps {
        now += gap;
        let at = Duration::from_millis(now);
        let blocked = now < naive.blocked_until;
        let peeked = state.peek(at);
        let decision = state.arrive(at);
        prop_assert_eq!(
            decision.is_accepted(),
            naive.arrive(now),
            "{:?} at {}",
            rule,
            now
        );
        prop_assert_eq!(peeked.is_accepted(), decision.is_accepted());
        prop_assert_eq!(matches!(decision, Decision::Blocked { .. }), blocked);
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(500))]

    #[test]
    fn every_kind_does_what_its_definition_says(rule in any_rule(), gaps in gaps()) {
        check(rule, &gaps)?;
    }

    #[test]
    fn the_delay_that_a_refusal_names_is_the_shortest_that_helps(
        rule in any_rule(),
        gaps in gaps(),
    ) {
        let mut state = RuleState::new(rule).unwrap();
        let mut now = Duration::ZERO;
        for gap in gaps {
            now += Duration::from_millis(gap);
            if let Decision::Rejected { retry_after } = state.arrive(now) {
                let again = now + retry_after;
                prop_assert!(state.clone().peek(again).is_accepted(), "{:?}", rule);
                let early = again - Duration::from_nanos(1);
                if early >= now {
                    prop_assert!(!state.clone().peek(early).is_accepted(), "{:?}", rule);
                }
            }
        }
    }

    #[test]
    fn a_counter_at_rest_is_as_good_as_new(
        rule in any_rule(),
        before in gaps(),
        pause in 0u64..3000,
        after in gaps(),
    ) {
        let mut state = RuleState::new(rule).unwrap();
        let mut now = Duration::ZERO;
        for gap in before {
            now += Duration::from_millis(gap);
            state.arrive(now);
        }
        now += Duration::from_millis(pause);
        if !state.at_rest(now) {
            now += Duration::from_millis(gaps_rest(&rule));
            prop_assert!(state.at_rest(now));
        }
        let mut fresh = RuleState::new(rule).unwrap();
        for gap in after {
            now += Duration::from_millis(gap);
            prop_assert_eq!(state.arrive(now), fresh.arrive(now));
        }
    }

    #[test]
    fn a_clock_that_goes_back_stands_still(rule in any_rule(), gaps in gaps()) {
        let (mut state, mut steady) = (RuleState::new(rule).unwrap(), RuleState::new(rule).unwrap());
        let mut now = Duration::from_secs(10);
        for gap in gaps {
            now += Duration::from_millis(gap);
            prop_assert_eq!(state.arrive(now), steady.arrive(now));
            let back = now.saturating_sub(Duration::from_secs(5));
            prop_assert_eq!(state.arrive(back), steady.arrive(now));
        }
    }

    #[test]
    fn the_ideal_is_what_a_perfect_caller_gets(rule in any_rule(), span in 1u64..5000) {
        let span = Duration::from_millis(span);
        let mut state = RuleState::new(rule).unwrap();
        let (mut now, mut accepted) = (Duration::ZERO, 0);
        while now < span {
            match state.peek(now) {
                Decision::Rejected { .. } => now += wait(&mut state, now),
                _ => {
                    state.arrive(now);
                    accepted += 1;
                }
            }
        }
        prop_assert_eq!(rule.ideal(span), accepted, "{:?}", rule);
    }
}

/// Long enough for every window, bucket and block to be over.
fn gaps_rest(rule: &Rule) -> u64 {
    let refill = ms(rule.window()) * u64::from(rule.capacity() + 2);
    refill + 2 * ms(rule.window()) + rule.penalty_after_breach().map_or(0, ms)
}

/// The wait that the rule itself asks for, without the penalty of having been too early.
fn wait(state: &mut RuleState, now: Duration) -> Duration {
    let rule = *state.rule();
    let mut low = Duration::ZERO;
    let mut high = rule.window() * (rule.capacity() + 3);
    while high - low > Duration::from_nanos(1) {
        let middle = low + (high - low) / 2;
        if state.clone().peek(now + middle).is_accepted() {
            high = middle;
        } else {
            low = middle;
        }
    }
    high
}

#[test]
fn fixed_windows_let_twice_the_limit_through_around_a_boundary() {
    let mut state = RuleState::new(Rule::fixed_window(100, Duration::from_secs(1))).unwrap();
    let mut accepted = 0;
    for at in [999, 1000] {
        for _ in 0..150 {
            accepted += u32::from(state.arrive(MS * at).is_accepted());
        }
    }
    assert_eq!(accepted, 200);
}

#[test]
fn a_sliding_log_never_does() {
    let mut state = RuleState::new(Rule::sliding_log(100, Duration::from_secs(1))).unwrap();
    let mut accepted = 0;
    for at in [999, 1000, 1998] {
        for _ in 0..150 {
            accepted += u32::from(state.arrive(MS * at).is_accepted());
        }
    }
    assert_eq!(accepted, 100);
    assert!(state.arrive(MS * 1999).is_accepted(), "a window later");
}

#[test]
fn an_arrival_in_a_block_does_not_prolong_it() {
    let secs = Duration::from_secs;
    let mut state = RuleState::new(Rule::sliding_log(1, secs(1)).penalty(secs(10))).unwrap();
    state.arrive(secs(0));
    let rejected = state.arrive(secs(0));
    assert_eq!(
        rejected,
        Decision::Rejected {
            retry_after: secs(10)
        }
    );
    for at in 1..10 {
        assert_eq!(
            state.arrive(secs(at)),
            Decision::Blocked { until: secs(10) }
        );
    }
    assert!(state.arrive(secs(10)).is_accepted());
}

#[test]
fn rejected_requests_that_count_keep_a_window_shut() {
    let secs = Duration::from_secs;
    let rule = Rule::sliding_log(2, secs(10)).rejected_count(true);
    let mut state = RuleState::new(rule).unwrap();
    let accepted: Vec<_> = (0..60)
        .map(|at| state.arrive(secs(at)).is_accepted())
        .collect();
    assert_eq!(accepted.iter().filter(|accepted| **accepted).count(), 2);
}

#[test]
fn the_ideal_of_whole_windows_is_whole_windows() {
    let (ten, span) = (Duration::from_secs(10), Duration::from_secs(120));
    assert_eq!(Rule::sliding_log(1000, ten).ideal(span), 12_000);
    assert_eq!(Rule::fixed_window(1000, ten).ideal(span), 12_000);
    assert_eq!(Rule::token_bucket(1000, ten, 1000).ideal(span), 12_999);
    assert_eq!(Rule::leaky_bucket(1000, ten, 0).ideal(span), 12_000);
    // A greedy first window costs the estimate one place in each later one.
    assert_eq!(
        Rule::sliding_counter(1000, ten).ideal(span),
        1000 + 11 * 999
    );
}

#[test]
fn a_rule_that_makes_no_sense_is_refused_by_name_and_value() {
    let second = Duration::from_secs(1);
    let years = Duration::from_secs(1 << 32);
    for (rule, field, value) in [
        (Rule::sliding_log(0, second), "limit", "0"),
        (Rule::sliding_log(1, Duration::ZERO), "window", "0ns"),
        (Rule::sliding_log(1, years), "window", "4294967296s"),
        (Rule::sliding_log(1, second).burst(1), "burst", "1"),
        (Rule::token_bucket(1, second, 0), "burst", "0"),
        (
            Rule::sliding_log(1, second).penalty(years),
            "penalty",
            "4294967296s",
        ),
    ] {
        let error = RuleState::new(rule).unwrap_err();
        assert_eq!(error.field(), field);
        let said = format!("bad rate rule: `{field}` is {value}, expected ");
        assert!(error.to_string().starts_with(&said), "{error}");
        assert_eq!(rule.ideal(second), 0);
    }
    assert!("sliding-log".parse::<RuleKind>().is_ok());
    assert!("sliding".parse::<RuleKind>().is_err());
}

#[test]
fn of_another_kind_a_rule_keeps_its_numbers_and_a_burst_where_there_is_one() {
    let bucket = Rule::token_bucket(5, MS, 9).penalty(MS);
    for kind in RuleKind::ALL {
        let rule = bucket.of_kind(kind);
        assert_eq!((rule.kind(), rule.limit(), rule.window()), (kind, 5, MS));
        assert_eq!(rule.penalty_after_breach(), Some(MS));
        assert_eq!(rule.capacity(), if kind.has_burst() { 9 } else { 0 });
        assert!(rule.check().is_ok(), "{kind}");
    }
}

#[test]
fn the_largest_rule_and_the_longest_run_do_not_overflow() {
    let year = Duration::from_secs(366 * 24 * 60 * 60);
    for kind in RuleKind::ALL {
        let mut rule = Rule::new(kind, u32::MAX, year).penalty(year);
        if kind.has_burst() {
            rule = rule.burst(u32::MAX);
        }
        let mut state = RuleState::new(rule).unwrap();
        for at in [
            Duration::ZERO,
            year,
            Duration::from_secs(u64::MAX),
            Duration::MAX,
        ] {
            assert!(state.arrive(at).is_accepted(), "{kind} at {at:?}");
        }
        let mut strict = RuleState::new(Rule::new(kind, 1, year).penalty(year)).unwrap();
        for _ in 0..3 {
            strict.arrive(Duration::MAX);
        }
    }
}
