//! What the counts come to, one step after the other.

use std::time::Duration;

use proptest::prelude::*;

use super::*;

fn tokens(budget: &Budget) -> u64 {
    budget.0.as_ref().unwrap().tokens.load(Ordering::Relaxed)
}

fn spend(budget: &Budget, now: Instant, cost: Cost) -> bool {
    budget.withdraw(now, cost).is_some_and(|mut taken| {
        taken.sent();
        true
    })
}

/// Elsewhere 0.6 was rounded to one whole token, and so to 100 %.
#[test]
fn fractions_are_exact() {
    let budget = Budget::builder()
        .capacity(1000)
        .per_success(0.6)
        .per_second(0.0)
        .build()
        .unwrap();
    let now = Instant::now();
    while spend(&budget, now, Cost::Transient) {}
    for _ in 0..1000 {
        budget.deposit_success();
    }
    let mut retries = 0;
    while spend(&budget, now, Cost::Transient) {
        retries += 1;
    }
    assert_eq!(retries, 600);
}

#[test]
fn a_throttled_retry_costs_half_of_a_transient_one() {
    let budget = Budget::default();
    let now = Instant::now();
    assert!(spend(&budget, now, Cost::Transient));
    assert_eq!(tokens(&budget), 99_000);
    assert!(spend(&budget, now, Cost::Throttled));
    assert_eq!(tokens(&budget), 98_500);
}

#[test]
fn a_retry_that_succeeds_pays_back_and_an_unsent_one_too() {
    let budget = Budget::default();
    let now = Instant::now();
    let mut taken = budget.withdraw(now, Cost::Transient).unwrap();
    taken.sent();
    taken.pay_back();
    assert_eq!(tokens(&budget), 100_000);
    drop(budget.withdraw(now, Cost::Throttled));
    assert_eq!(tokens(&budget), 100_000);
}

/// Whoever watches it sees what a retry would find.
#[tokio::test(start_paused = true)]
async fn what_has_come_in_with_time_is_at_hand() {
    let budget = Budget::default();
    while spend(&budget, Instant::now(), Cost::Transient) {}
    tokio::time::advance(Duration::from_secs(5)).await;
    assert_eq!(budget.available(), Some(5.0));
}

#[test]
fn an_idle_client_gets_its_floor_and_no_more() {
    let budget = Budget::builder()
        .capacity(2)
        .per_second(0.5)
        .build()
        .unwrap();
    let start = Instant::now();
    while spend(&budget, start, Cost::Transient) {}
    // Asking often must not lose fractions.
    for ms in 0..1999 {
        let now = start + Duration::from_millis(ms);
        assert!(!spend(&budget, now, Cost::Transient), "at {ms} ms");
    }
    assert!(spend(
        &budget,
        start + Duration::from_secs(2),
        Cost::Transient
    ));
    // Never more than it holds.
    let later = start + Duration::from_secs(86_400);
    assert!(spend(&budget, later, Cost::Transient));
    assert!(spend(&budget, later, Cost::Transient));
    assert!(!spend(&budget, later, Cost::Transient));
}

#[test]
fn clones_share_the_tokens() {
    let budget = Budget::builder().capacity(1).build().unwrap();
    let clone = budget.clone();
    let now = Instant::now();
    assert!(spend(&budget, now, Cost::Transient));
    assert!(!spend(&clone, now, Cost::Transient));
}

#[test]
fn a_budget_without_sense_is_refused_by_name() {
    let refused = |builder: BudgetBuilder| builder.build().unwrap_err().to_string();
    assert_eq!(
        refused(Budget::builder().per_success(0.0005)),
        "budget.per_success is 0.0005, expected 0 to 1000000 in steps of 0.001"
    );
    for value in [-1.0, f64::NAN, f64::INFINITY, 1e7] {
        let error = Budget::builder().per_second(value).build().unwrap_err();
        assert_eq!(error.field(), "budget.per_second");
    }
    let error = Budget::builder().capacity(0).build().unwrap_err();
    assert_eq!(error.field(), "budget.capacity");
}

#[derive(Clone, Debug)]
enum Step {
    Pass(u64),
    Success,
    Spend(bool),
    PayBack(bool),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        (0_u64..3_000_000_000).prop_map(Step::Pass),
        Just(Step::Success),
        any::<bool>().prop_map(Step::Spend),
        any::<bool>().prop_map(Step::PayBack),
    ]
}

proptest! {
    /// Against a model that counts in billionths of a thousandth.
    #[test]
    fn the_count_is_that_of_exact_arithmetic(
        steps in prop::collection::vec(step(), 1..200),
        capacity in 1_u32..5,
        per_success in 0_u32..2000,
        per_second in 0_u32..2000,
    ) {
        const NANOS: u128 = 1_000_000_000;
        let budget = Budget::builder()
            .capacity(capacity)
            .per_success(f64::from(per_success) / 1000.0)
            .per_second(f64::from(per_second) / 1000.0)
            .build()
            .unwrap();
        let start = Instant::now();
        let mut now = start;
        drop(budget.withdraw(now, Cost::Transient));
        let full = u128::from(capacity) * 1000;
        let (mut held, mut due) = (full, 0_u128);
        for step in steps {
            match step {
                Step::Pass(nanos) => {
                    now += Duration::from_nanos(nanos);
                    due += u128::from(nanos) * u128::from(per_second);
                }
                Step::Success => {
                    budget.deposit_success();
                    held = full.min(held + u128::from(per_success));
                }
                Step::Spend(throttled) | Step::PayBack(throttled) => {
                    let cost = if throttled { Cost::Throttled } else { Cost::Transient };
                    held = full.min(held + due / NANOS);
                    due %= NANOS;
                    let price = u128::from(cost.tokens());
                    let taken = budget.withdraw(now, cost);
                    prop_assert_eq!(taken.is_some(), held >= price);
                    if let Some(mut taken) = taken {
                        taken.sent();
                        if matches!(step, Step::PayBack(_)) {
                            taken.pay_back();
                        } else {
                            held -= price;
                        }
                    }
                }
            }
            prop_assert_eq!(u128::from(tokens(&budget)), held);
        }
    }
}
