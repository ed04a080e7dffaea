//! Every interleaving of two clones on two threads.

use std::time::Duration;

use super::*;

fn budget(per_success: f64, per_second: f64) -> Budget {
    Budget::builder()
        .capacity(1)
        .per_success(per_success)
        .per_second(per_second)
        .build()
        .unwrap()
}

/// Sends a retry if it may, and says whether it did.
fn spend(budget: &Budget, now: Instant) -> bool {
    budget
        .withdraw(now, Cost::Transient)
        .is_some_and(|mut taken| {
            taken.sent();
            true
        })
}

fn beside<T: 'static>(
    budget: &Budget,
    one: impl Fn(&Budget) -> T + 'static,
    two: impl Fn(&Budget) -> T,
) -> [T; 2] {
    let clone = budget.clone();
    let other = loom::thread::spawn(move || one(&clone));
    let two = two(budget);
    [other.join().unwrap(), two]
}

#[test]
fn one_token_is_spent_once() {
    let now = Instant::now();
    loom::model(move || {
        let budget = budget(0.0, 0.0);
        let spent = beside(&budget, move |it| spend(it, now), |it| spend(it, now));
        assert_eq!(spent.into_iter().filter(|spent| *spent).count(), 1);
    });
}

#[test]
fn a_second_s_income_is_counted_once() {
    let start = Instant::now();
    let later = start + Duration::from_secs(1);
    loom::model(move || {
        let budget = budget(0.0, 1.0);
        assert!(spend(&budget, start));
        let spent = beside(&budget, move |it| spend(it, later), |it| spend(it, later));
        assert_eq!(spent.into_iter().filter(|spent| *spent).count(), 1);
    });
}

#[test]
fn no_deposit_is_lost_and_none_overflows() {
    let now = Instant::now();
    for (per_success, held) in [(0.3, 0.6), (0.8, 1.0)] {
        loom::model(move || {
            let budget = budget(per_success, 0.0);
            assert!(spend(&budget, now));
            beside(&budget, Budget::deposit_success, Budget::deposit_success);
            assert_eq!(budget.available(), Some(held));
        });
    }
}

#[test]
fn a_token_that_comes_back_can_be_taken_at_once_or_not_at_all() {
    let now = Instant::now();
    loom::model(move || {
        let budget = budget(0.0, 0.0);
        beside(
            &budget,
            // Takes the token and is dropped before it is sent.
            move |it| drop(it.withdraw(now, Cost::Transient)),
            move |it| {
                if spend(it, now) {
                    assert!(!spend(it, now));
                }
            },
        );
        assert!(budget.available() <= Some(1.0));
    });
}
