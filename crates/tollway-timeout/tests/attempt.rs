//! A time limit on each attempt.

mod support;

use std::error::Error;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use http::Request;
use http_body_util::BodyExt;
use proptest::prelude::*;
use support::{Slow, secs};
use tokio::time::{Instant, advance, sleep};
use tollway_core::{Attempt, BoxError, Deadline, Fault, Phase, Verdict};
use tollway_timeout::{AttemptTimeout, AttemptTimeoutLayer, TimeoutError, is_deadline, is_timeout};
use tower::{Layer, Service, ServiceExt};

fn timeout(error: &BoxError) -> &TimeoutError {
    error.downcast_ref().expect("a time-out")
}

fn attempt(number: u32) -> Request<()> {
    let mut request = Request::new(());
    let attempt = (1..number).fold(Attempt::FIRST, |attempt, _| attempt.next());
    request.extensions_mut().insert(attempt);
    request
}

#[tokio::test(start_paused = true)]
async fn the_schedule_gives_later_attempts_more_time_and_its_last_entry_repeats() {
    let timeout = AttemptTimeout::new(secs(30)).then(secs(60)).then(secs(90));
    for (number, limit) in [(1, 30), (2, 60), (3, 90), (4, 90), (100, 90)] {
        let slow = Slow {
            head: secs(1000),
            ..Slow::default()
        };
        let start = Instant::now();
        let service = AttemptTimeoutLayer::new(timeout.clone()).layer(slow);
        let error = service.oneshot(attempt(number)).await.unwrap_err();
        assert_eq!(start.elapsed(), secs(limit), "attempt {number}");
        assert!(is_timeout(&*error) && !is_deadline(&*error));
    }
}

#[tokio::test(start_paused = true)]
async fn a_request_that_tells_no_attempt_is_the_first() {
    let slow = Slow {
        head: secs(1000),
        ..Slow::default()
    };
    let start = Instant::now();
    let timeout = AttemptTimeout::new(secs(30)).then(secs(60));
    let service = AttemptTimeoutLayer::new(timeout).layer(slow);
    service.oneshot(Request::new(())).await.unwrap_err();
    assert_eq!(start.elapsed(), secs(30));
}

#[tokio::test(start_paused = true)]
async fn waiting_for_a_connection_counts_and_had_no_effect() {
    let start = Instant::now();
    let slow = Slow {
        ready_at: Some(start + secs(60)),
        ..Slow::default()
    };
    let state = slow.state.clone();
    let service = AttemptTimeoutLayer::new(secs(5)).layer(slow);
    let error = service.oneshot(Request::new(())).await.unwrap_err();
    assert_eq!(start.elapsed(), secs(5));
    assert_eq!(timeout(&error).phase(), Phase::Connect);
    assert_eq!(Verdict::of_error(&*error), Verdict::NO_EFFECT);
    assert_eq!(state.calls(), 0);
}

#[tokio::test(start_paused = true)]
async fn one_limit_covers_readying_connecting_and_the_head() {
    let start = Instant::now();
    let slow = Slow {
        ready_at: Some(start + secs(2)),
        connect: secs(2),
        head: secs(2),
        ..Slow::default()
    };
    let service = AttemptTimeoutLayer::new(secs(5)).layer(slow);
    let error = service.oneshot(Request::new(())).await.unwrap_err();
    assert_eq!(start.elapsed(), secs(5));
    assert_eq!(timeout(&error).phase(), Phase::Head);
    assert_eq!(timeout(&error).limit(), secs(5));
    assert_eq!(Verdict::of_error(&*error), Verdict::Unknown);
}

#[tokio::test(start_paused = true)]
async fn the_deadline_ends_an_attempt_that_would_outlast_it() {
    let start = Instant::now();
    let slow = Slow {
        head: secs(60),
        ..Slow::default()
    };
    let service = AttemptTimeoutLayer::new(secs(30)).layer(slow);
    let mut request = Request::new(());
    request
        .extensions_mut()
        .insert(Deadline::at(start + secs(5)));
    let error = service.oneshot(request).await.unwrap_err();
    assert_eq!(start.elapsed(), secs(5));
    assert!(is_deadline(&*error));
    assert_eq!(timeout(&error).phase(), Phase::Head);
}

#[tokio::test(start_paused = true)]
async fn under_a_deadline_an_attempt_counts_from_its_call() {
    for (deadline, ends) in [(None, secs(31)), (Some(secs(60)), secs(30))] {
        let start = Instant::now();
        let slow = Slow {
            head: secs(60),
            ..Slow::default()
        };
        let mut service = AttemptTimeoutLayer::new(secs(30)).layer(slow);
        let mut request = Request::new(());
        if let Some(limit) = deadline {
            request.extensions_mut().insert(Deadline::at(start + limit));
        }
        let call = service.call(request);
        advance(secs(1)).await;
        let error = call.await.unwrap_err();
        assert_eq!(start.elapsed(), ends);
        assert_eq!(timeout(&error).after(), secs(30));
    }
}

#[tokio::test(start_paused = true)]
async fn nothing_is_sent_once_the_deadline_has_passed() {
    let slow = Slow::default();
    let state = slow.state.clone();
    let service = AttemptTimeoutLayer::new(secs(30)).layer(slow);
    let mut request = Request::new(());
    request
        .extensions_mut()
        .insert(Deadline::at(Instant::now()));
    let error = service.oneshot(request).await.unwrap_err();
    assert!(is_deadline(&*error));
    assert_eq!(Verdict::of_error(&*error), Verdict::NO_EFFECT);
    assert_eq!(state.calls(), 0);
}

#[tokio::test(start_paused = true)]
async fn a_stalled_body_ends_and_a_slow_one_does_not() {
    let slow = Slow {
        body: vec![secs(4), secs(4), secs(4), secs(6)],
        ..Slow::default()
    };
    let state = slow.state.clone();
    let service = AttemptTimeoutLayer::new(secs(5)).layer(slow);
    let response = service.oneshot(Request::new(())).await.unwrap();
    let mut body = response.into_body();
    for _ in 0..3 {
        assert!(body.frame().await.unwrap().is_ok());
    }
    let stalled = Instant::now();
    let error = body.frame().await.unwrap().unwrap_err();
    assert_eq!(stalled.elapsed(), secs(5));
    assert_eq!(timeout(&error).phase(), Phase::Body);
    assert_eq!(timeout(&error).after(), secs(5));
    assert!(!is_deadline(&*error));
    assert_eq!(Verdict::of_error(&*error), Verdict::Unknown);
    assert_eq!(state.alive(), 0);
    assert!(http_body::Body::is_end_stream(&body));
    assert!(body.frame().await.is_none());
}

#[tokio::test(start_paused = true)]
async fn pauses_in_the_body_have_a_limit_of_their_own() {
    let slow = Slow {
        head: secs(4),
        body: vec![secs(2)],
        ..Slow::default()
    };
    let timeout = AttemptTimeout::new(secs(5)).body_pause(secs(1));
    let service = AttemptTimeoutLayer::new(timeout).layer(slow);
    let response = service.oneshot(Request::new(())).await.unwrap();
    let error = response.into_body().collect().await.unwrap_err();
    assert_eq!(
        error.downcast_ref::<TimeoutError>().unwrap().limit(),
        secs(1)
    );
}

#[tokio::test(start_paused = true)]
async fn the_time_that_the_reader_takes_is_no_pause() {
    let slow = Slow {
        body: vec![secs(1), secs(1), secs(1)],
        ..Slow::default()
    };
    let service = AttemptTimeoutLayer::new(secs(2)).layer(slow);
    let response = service.oneshot(Request::new(())).await.unwrap();
    let mut body = response.into_body();
    for _ in 0..3 {
        sleep(secs(10)).await;
        assert!(body.frame().await.unwrap().is_ok());
    }
}

#[tokio::test(start_paused = true)]
async fn a_body_keeps_to_the_deadline_that_its_request_carried() {
    let start = Instant::now();
    let slow = Slow {
        body: vec![secs(4); 10],
        ..Slow::default()
    };
    let service = AttemptTimeoutLayer::new(secs(5)).layer(slow);
    let mut request = Request::new(());
    request
        .extensions_mut()
        .insert(Deadline::at(start + secs(10)));
    let response = service.oneshot(request).await.unwrap();
    let error = response.into_body().collect().await.unwrap_err();
    assert_eq!(start.elapsed(), secs(10));
    assert!(is_deadline(&*error));
}

#[tokio::test(start_paused = true)]
async fn size_and_end_of_the_body_are_those_of_the_inner_one() {
    use http_body::Body;
    let full = tower::service_fn(|_: Request<()>| async {
        Ok::<_, BoxError>(http::Response::new(String::from("hello")))
    });
    let service = AttemptTimeoutLayer::new(secs(5)).layer(full);
    let response = service.oneshot(Request::new(())).await.unwrap();
    let mut body = response.into_body();
    assert_eq!(body.size_hint().exact(), Some(5));
    assert!(!body.is_end_stream());
    body.frame().await.unwrap().unwrap();
    assert!(body.is_end_stream());
}

#[tokio::test(start_paused = true)]
async fn an_answer_that_is_there_wins_over_the_time() {
    let slow = Slow {
        head: secs(5),
        ..Slow::default()
    };
    let service = AttemptTimeoutLayer::new(secs(5)).layer(slow);
    service.oneshot(Request::new(())).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_service_that_is_never_idle_is_ended_all_the_same() {
    // It uses up the task's budget on every poll, and then the runtime's timer
    // says "pending" whatever the time.
    let busy = tower::service_fn(|_: Request<()>| async {
        loop {
            tokio::task::consume_budget().await;
        }
        #[expect(unreachable_code)]
        Ok::<http::Response<String>, BoxError>(http::Response::default())
    });
    let service = AttemptTimeoutLayer::new(secs(5)).layer(busy);
    let mut call = tokio_test::task::spawn(service.oneshot(Request::new(())));
    assert!(call.poll().is_pending());
    advance(secs(6)).await;
    match call.poll() {
        std::task::Poll::Ready(Err(error)) => assert!(is_timeout(&*error)),
        other => panic!("still {other:?}"),
    }
}

#[tokio::test(start_paused = true)]
async fn dropped_at_each_await_it_leaves_nothing_behind() {
    for seconds in [0, 1, 3, 5, 7] {
        let slow = Slow {
            ready_at: Some(Instant::now() + secs(2)),
            connect: secs(2),
            head: secs(2),
            body: vec![secs(60)],
            ..Slow::default()
        };
        let state = slow.state.clone();
        let service = AttemptTimeoutLayer::new(secs(60)).layer(slow);
        let mut call = tokio_test::task::spawn(async {
            let response = service.oneshot(Request::new(())).await?;
            response.into_body().collect().await
        });
        assert!(call.poll().is_pending());
        for _ in 0..seconds {
            advance(secs(1)).await;
            assert!(call.poll().is_pending());
        }
        drop(call);
        assert_eq!(state.alive(), 0, "after {seconds} s");
    }
}

async fn timed_out() -> BoxError {
    let slow = Slow {
        head: secs(60),
        ..Slow::default()
    };
    let service = AttemptTimeoutLayer::new(Duration::from_millis(1500)).layer(slow);
    let answer = service.oneshot(Request::new(())).await;
    answer.expect_err("it never answers in time")
}

#[tokio::test(start_paused = true)]
async fn the_predicates_hold_behind_every_kind_of_wrapping() {
    #[derive(Debug)]
    struct Wrapped(BoxError);
    impl std::fmt::Display for Wrapped {
        fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
            f.write_str("wrapped")
        }
    }
    impl Error for Wrapped {
        fn source(&self) -> Option<&(dyn Error + 'static)> {
            Some(&*self.0)
        }
    }
    let held = || async { *timed_out().await.downcast::<TimeoutError>().unwrap() };
    let wrapped: Vec<BoxError> = vec![
        timed_out().await,
        Box::new(Wrapped(Box::new(Wrapped(timed_out().await)))),
        Box::new(io::Error::other(timed_out().await)),
        Box::new(io::Error::other(Box::new(io::Error::other(
            timed_out().await,
        )))),
        Box::new(Box::new(held().await)),
        Box::new(Arc::new(held().await)),
        Box::new(Fault::new(Verdict::Unknown).caused_by(timed_out().await)),
    ];
    for error in wrapped {
        assert!(is_timeout(&*error), "{error:?}");
        assert!(!is_deadline(&*error), "{error:?}");
        assert_eq!(Verdict::of_error(&*error), Verdict::Unknown);
    }
    assert!(!is_timeout(&io::Error::from(io::ErrorKind::TimedOut)));
}

/// The text of the error of an attempt, or of its body, with this deadline.
async fn message(slow: Slow, deadline: Option<Duration>) -> String {
    let service = AttemptTimeoutLayer::new(secs(2)).layer(slow);
    let mut request = Request::new(());
    if let Some(deadline) = deadline {
        let deadline = Deadline::at(Instant::now() + deadline);
        request.extensions_mut().insert(deadline);
    }
    match service.oneshot(request).await {
        Ok(response) => response.into_body().collect().await.expect_err("cut off"),
        Err(error) => error,
    }
    .to_string()
}

#[tokio::test(start_paused = true)]
async fn the_message_says_what_ran_out_when_and_what_that_means() {
    let silent = || Slow {
        head: secs(60),
        ..Slow::default()
    };
    assert_eq!(
        message(silent(), None).await,
        "the attempt's time limit ran out while awaiting the head of the response, after \
         2.000s of 2.000s; the request may have been executed"
    );
    // Not "after 1 s of 1 s", which isn't what anybody allowed for the call.
    assert_eq!(
        message(silent(), Some(secs(1))).await,
        "the call's deadline passed while awaiting the head of the response, 1.000s after the \
         attempt began; the request may have been executed"
    );
    assert_eq!(
        message(silent(), Some(Duration::ZERO)).await,
        "the call's deadline had passed already; nothing was sent"
    );
    let unconnected = Slow {
        connect: secs(60),
        ..Slow::default()
    };
    // Of another attempt something may have been.
    assert_eq!(
        message(unconnected, None).await,
        "the attempt's time limit ran out while connecting, after 2.000s of 2.000s; nothing was \
         sent"
    );
    let stalled = || Slow {
        body: vec![Duration::ZERO, secs(60)],
        ..Slow::default()
    };
    assert_eq!(
        message(stalled(), None).await,
        "the limit on a pause in the response's body ran out while reading the body of the \
         response, after 2.000s of 2.000s; the response's status says what came of the request"
    );
    assert_eq!(
        message(stalled(), Some(secs(1))).await,
        "the call's deadline passed while reading the body of the response, 1.000s into a \
         pause; the response's status says what came of the request"
    );
}

proptest! {
    #[test]
    fn the_schedule_is_the_list_with_its_last_entry_repeated(
        limits in prop::collection::vec(0u64..1000, 1..6),
        number in 1u32..12,
    ) {
        let timeout = limits[1..]
            .iter()
            .fold(AttemptTimeout::new(secs(limits[0])), |timeout, limit| timeout.then(secs(*limit)));
        let attempt = (1..number).fold(Attempt::FIRST, |attempt, _| attempt.next());
        let expected = *limits.get(number as usize - 1).unwrap_or(&limits[limits.len() - 1]);
        prop_assert_eq!(timeout.head_of(attempt), secs(expected));
    }
}
