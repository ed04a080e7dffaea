//! A future that is dropped leaves everything as if it had never been.

use std::pin::pin;

use tokio_test::task;
use tollway_core::Verdict;
use tollway_retry::{BackOff, Budget};

use crate::support::*;

/// The call retries three times, and is dropped after 0, 1, 2, … polls: while
/// an attempt is under way, while it drains, while it waits.
#[tokio::test(start_paused = true)]
async fn a_call_dropped_anywhere_leaves_no_token_behind() {
    for polls in 0..40 {
        let budget = Budget::builder().per_second(0.0).build().unwrap();
        let gateway =
            Gateway::answering([Ok(status(503)), error(Verdict::NO_EFFECT), Ok(status(503))])
                .taking(millis(20));
        let back_off = BackOff::exponential(millis(50), millis(50)).unwrap();
        let policy = policy().budget(budget.clone()).back_off(back_off);
        let finished = {
            let mut call = pin!(call(policy, &gateway, get()));
            let mut finished = false;
            for _ in 0..polls {
                let mut task = task::spawn(call.as_mut());
                if task.poll().is_ready() {
                    finished = true;
                    break;
                }
                drop(task);
                tokio::time::advance(millis(5)).await;
            }
            finished
        };
        // Those that were sent are spent; one that wasn't is back.
        #[expect(clippy::cast_precision_loss)]
        let sent = gateway.made().saturating_sub(1) as f64;
        let expected = if finished {
            100.0 - sent + 1.0
        } else {
            100.0 - sent
        };
        assert_eq!(budget.available(), Some(expected), "after {polls} polls");
        // Nothing is under way, and every attempt has ended or was dropped.
        assert_eq!(gateway.under_way(), 0);
    }
}
