//! A future that is dropped leaves everything as if it had never been.

use std::future::poll_fn;
use std::pin::pin;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};

use bytes::Bytes;
use http::Request;
use http_body_util::Full;
use tokio_test::task;
use tollway_core::{BoxError, Phase, Verdict};
use tollway_retry::{BackOff, Budget, ReplayBody, RetryLayer};
use tower::{Layer, Service, ServiceExt, service_fn};

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

/// A deadline above is told what the call waits for. That its latest attempt
/// has sent nothing yet says nothing of an earlier one.
#[tokio::test(start_paused = true)]
async fn a_call_in_doubt_is_not_said_to_wait_for_a_permit() {
    for (first, note) in [(503, Phase::Head), (429, Phase::Permit)] {
        let mut answers = vec![status(first)];
        let service = service_fn(move |_: Request<ReplayBody<Full<Bytes>>>| {
            let answer = answers.pop();
            poll_fn(move |_| match &answer {
                Some(answer) => Poll::Ready(Ok::<_, BoxError>(answer.clone())),
                None => Phase::Permit.pending(),
            })
        });
        let gateway = Buffer(Arc::new(Mutex::new(service)));
        let back_off = BackOff::exponential(millis(1), millis(1)).unwrap();
        let policy = policy().back_off(back_off).build().unwrap();
        let mut call = task::spawn(RetryLayer::new(policy).layer(gateway).oneshot(get()));
        assert!(call.poll().is_pending());
        tokio::time::advance(millis(5)).await;
        let (poll, noted) = Phase::observe(|| call.poll());
        assert!(poll.is_pending());
        assert_eq!(noted, Some(note), "after {first}");
    }
}

/// Clones of one service.
struct Buffer<S>(Arc<Mutex<S>>);

impl<S> Clone for Buffer<S> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

impl<S: Service<T>, T> Service<T> for Buffer<S> {
    type Response = S::Response;
    type Error = S::Error;
    type Future = S::Future;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.0.lock().unwrap().poll_ready(cx)
    }

    fn call(&mut self, request: T) -> S::Future {
        self.0.lock().unwrap().call(request)
    }
}
