//! One deadline for the whole call.

mod support;

use std::future::poll_fn;
use std::pin::pin;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::{BodyExt, Full};
use support::{Slow, secs};
use tokio::time::{Instant, advance, sleep};
use tollway_core::{BoxError, Deadline, Fault, Phase, Verdict};
use tollway_timeout::{
    AttemptTimeoutLayer, DeadlineLayer, TimeoutBody, TimeoutError, is_deadline, is_timeout,
};
use tower::limit::ConcurrencyLimit;
use tower::{Layer, Service, ServiceExt, service_fn};

fn timeout(error: &BoxError) -> &TimeoutError {
    error.downcast_ref().expect("a time-out")
}

#[tokio::test(start_paused = true)]
async fn a_call_that_is_answered_in_time_is_left_alone() {
    let slow = Slow {
        head: secs(4),
        body: vec![secs(1), Duration::ZERO],
        ..Slow::default()
    };
    let service = DeadlineLayer::new(secs(6)).layer(slow);
    let response = service.oneshot(Request::new(())).await.unwrap();
    let body = response.into_body().collect().await.unwrap().to_bytes();
    assert_eq!(body, "xx");
}

#[tokio::test(start_paused = true)]
async fn the_deadline_ends_the_wait_for_the_head_at_its_very_instant() {
    let start = Instant::now();
    let slow = Slow {
        head: secs(60),
        ..Slow::default()
    };
    let state = slow.state.clone();
    let service = DeadlineLayer::new(secs(5)).layer(slow);
    let error = service.oneshot(Request::new(())).await.unwrap_err();
    assert_eq!(start.elapsed(), secs(5));
    assert!(is_deadline(&*error));
    assert_eq!(timeout(&error).phase(), Phase::Head);
    assert_eq!(timeout(&error).after(), secs(5));
    assert_eq!(timeout(&error).limit(), secs(5));
    assert_eq!(Verdict::of_error(&*error), Verdict::Unknown);
    assert_eq!(state.alive(), 0, "the inner future is dropped with it");
}

#[tokio::test(start_paused = true)]
async fn the_inner_call_is_dropped_even_if_the_outer_future_is_kept() {
    let slow = Slow {
        head: secs(60),
        ..Slow::default()
    };
    let state = slow.state.clone();
    let mut service = DeadlineLayer::new(secs(5)).layer(slow);
    let ready = ServiceExt::<Request<()>>::ready(&mut service)
        .await
        .unwrap();
    let mut call = Box::pin(ready.call(Request::new(())));
    call.as_mut().await.unwrap_err();
    assert_eq!(state.alive(), 0);
    drop(call);
}

#[tokio::test(start_paused = true)]
async fn a_service_that_is_ready_is_called_at_once() {
    let slow = Slow::default();
    let state = slow.state.clone();
    let mut service = DeadlineLayer::new(secs(10)).layer(slow);
    poll_fn(|cx| Service::<Request<()>>::poll_ready(&mut service, cx))
        .await
        .unwrap();
    let _unpolled = service.call(Request::new(()));
    assert_eq!(state.calls(), 1);
}

#[tokio::test(start_paused = true)]
async fn waiting_for_the_inner_service_to_be_ready_counts() {
    let start = Instant::now();
    let slow = Slow {
        ready_at: Some(start + secs(60)),
        ..Slow::default()
    };
    let state = slow.state.clone();
    let mut service = DeadlineLayer::new(secs(5)).layer(slow);
    let ready = ServiceExt::<Request<()>>::ready(&mut service)
        .await
        .unwrap();
    let error = ready.call(Request::new(())).await.unwrap_err();
    assert_eq!(start.elapsed(), secs(5));
    assert_eq!(timeout(&error).phase(), Phase::Permit);
    assert_eq!(Verdict::of_error(&*error), Verdict::NO_EFFECT);
    assert_eq!(state.calls(), 0);
}

/// Its place in a queue belongs to the one that was asked: a clone would wait
/// behind it for ever.
#[tokio::test(start_paused = true)]
async fn a_place_in_the_queue_is_taken_along_into_the_call() {
    let gateway = service_fn(|_: Request<()>| async {
        sleep(secs(1)).await;
        Ok::<_, BoxError>(Response::new(String::new()))
    });
    let one = ConcurrencyLimit::new(gateway, 1);
    let mut service = DeadlineLayer::new(secs(10)).layer(one);
    for _ in 0..2 {
        let mut other = service.clone();
        let first = other.ready().await.unwrap().call(Request::new(()));
        let second = service.ready().await.unwrap().call(Request::new(()));
        let (first, second) = tokio::join!(first, second);
        first.unwrap();
        second.unwrap();
    }
}

/// What a service waits for before it is called isn't about the request, say it
/// what it may.
#[tokio::test(start_paused = true)]
async fn a_service_that_was_never_called_has_sent_nothing_whatever_it_notes() {
    #[derive(Clone)]
    struct Busy;
    impl Service<Request<()>> for Busy {
        type Response = Response<String>;
        type Error = BoxError;
        type Future = std::future::Pending<Result<Response<String>, BoxError>>;
        fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
            Phase::Head.pending()
        }
        fn call(&mut self, _: Request<()>) -> Self::Future {
            unreachable!("it is never ready")
        }
    }
    let mut service = DeadlineLayer::new(secs(5)).layer(Busy);
    let error = service.call(Request::new(())).await.unwrap_err();
    assert_eq!(timeout(&error).phase(), Phase::Permit);
    assert_eq!(Verdict::of_error(&*error), Verdict::NO_EFFECT);
}

#[tokio::test(start_paused = true)]
async fn a_service_that_fails_before_it_is_called_has_sent_nothing() {
    #[derive(Clone)]
    struct Broken {
        busy: bool,
    }
    impl Service<Request<()>> for Broken {
        type Response = Response<String>;
        type Error = BoxError;
        type Future = std::future::Pending<Result<Response<String>, BoxError>>;
        fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
            // Once it is asked within the call.
            match std::mem::take(&mut self.busy) {
                true => Poll::Pending,
                false => Poll::Ready(Err("broken".into())),
            }
        }
        fn call(&mut self, _: Request<()>) -> Self::Future {
            unreachable!("it is never ready")
        }
    }
    let service = DeadlineLayer::new(secs(5)).layer(Broken { busy: true });
    let error = service.oneshot(Request::new(())).await.unwrap_err();
    assert_eq!(error.source().unwrap().to_string(), "broken");
    assert_eq!(Verdict::of_error(&*error), Verdict::NO_EFFECT);
}

#[tokio::test(start_paused = true)]
async fn a_service_that_becomes_ready_in_time_is_called() {
    let slow = Slow {
        ready_at: Some(Instant::now() + secs(3)),
        head: secs(1),
        ..Slow::default()
    };
    let state = slow.state.clone();
    let service = DeadlineLayer::new(secs(5)).layer(slow);
    service.oneshot(Request::new(())).await.unwrap();
    assert_eq!(state.calls(), 1);
}

#[tokio::test(start_paused = true)]
async fn what_is_left_after_readying_is_what_the_head_gets() {
    let start = Instant::now();
    let slow = Slow {
        ready_at: Some(start + secs(3)),
        head: secs(3),
        ..Slow::default()
    };
    let service = DeadlineLayer::new(secs(5)).layer(slow);
    let error = service.oneshot(Request::new(())).await.unwrap_err();
    assert_eq!(start.elapsed(), secs(5));
    assert_eq!(timeout(&error).phase(), Phase::Head);
    assert_eq!(Verdict::of_error(&*error), Verdict::Unknown);
}

#[tokio::test(start_paused = true)]
async fn the_earlier_of_two_deadlines_wins_and_is_passed_on() {
    for (own, inherited, wins) in [(10, 4, 4), (4, 10, 4)] {
        let start = Instant::now();
        let slow = Slow {
            head: secs(60),
            ..Slow::default()
        };
        let state = slow.state.clone();
        let service = DeadlineLayer::new(secs(own)).layer(slow);
        let mut request = Request::new(());
        request
            .extensions_mut()
            .insert(Deadline::at(start + secs(inherited)));
        service.oneshot(request).await.unwrap_err();
        assert_eq!(start.elapsed(), secs(wins));
        let seen = state.seen.lock().unwrap();
        assert_eq!(seen[0], Some(Deadline::at(start + secs(wins))));
    }
}

#[tokio::test(start_paused = true)]
async fn only_an_inherited_deadline_counts_where_no_limit_is_set() {
    let slow = Slow {
        head: secs(60),
        ..Slow::default()
    };
    let state = slow.state.clone();
    let service = DeadlineLayer::inherited().layer(slow);

    service.clone().oneshot(Request::new(())).await.unwrap();
    assert_eq!(state.seen.lock().unwrap()[0], None);

    let start = Instant::now();
    let mut request = Request::new(());
    request
        .extensions_mut()
        .insert(Deadline::at(start + secs(2)));
    let error = service.oneshot(request).await.unwrap_err();
    assert_eq!(start.elapsed(), secs(2));
    assert!(is_deadline(&*error));
}

#[tokio::test(start_paused = true)]
async fn a_deadline_that_has_passed_refuses_the_call_before_it_leaves() {
    let slow = Slow::default();
    let state = slow.state.clone();
    let service = DeadlineLayer::new(secs(10)).layer(slow);
    let mut request = Request::new(());
    request
        .extensions_mut()
        .insert(Deadline::at(Instant::now()));
    let error = service.oneshot(request).await.unwrap_err();
    assert!(is_deadline(&*error));
    assert!(!timeout(&error).may_have_been_sent());
    assert_eq!(Verdict::of_error(&*error), Verdict::NO_EFFECT);
    assert_eq!(state.calls(), 0);
}

#[tokio::test(start_paused = true)]
async fn a_limit_beyond_the_clock_is_none() {
    let slow = Slow {
        head: secs(100_000),
        ..Slow::default()
    };
    let state = slow.state.clone();
    let service = DeadlineLayer::new(Duration::MAX).layer(slow);
    service.oneshot(Request::new(())).await.unwrap();
    assert_eq!(state.seen.lock().unwrap()[0], None);
}

#[tokio::test(start_paused = true)]
async fn the_body_is_covered_by_the_same_instant() {
    let start = Instant::now();
    let slow = Slow {
        head: secs(3),
        body: vec![secs(1), secs(1), secs(1), secs(1)],
        ..Slow::default()
    };
    let state = slow.state.clone();
    let service = DeadlineLayer::new(Duration::from_millis(5500)).layer(slow);
    let response = service.oneshot(Request::new(())).await.unwrap();
    let mut body = response.into_body();
    assert!(body.frame().await.unwrap().is_ok());
    assert!(body.frame().await.unwrap().is_ok());
    let error = body.frame().await.unwrap().unwrap_err();
    assert_eq!(start.elapsed(), Duration::from_millis(5500));
    assert_eq!(timeout(&error).phase(), Phase::Body);
    assert_eq!(timeout(&error).limit(), Duration::from_millis(5500));
    assert_eq!(Verdict::of_error(&*error), Verdict::Unknown);
    assert_eq!(
        state.alive(),
        0,
        "the body, and its connection, are dropped"
    );
    assert!(body.frame().await.is_none(), "an error ends the body");
}

#[tokio::test(start_paused = true)]
async fn what_is_there_is_taken_even_after_the_deadline() {
    let slow = Slow {
        body: vec![Duration::ZERO, secs(9)],
        ..Slow::default()
    };
    let service = DeadlineLayer::new(secs(5)).layer(slow);
    let response = service.oneshot(Request::new(())).await.unwrap();
    sleep(secs(7)).await;
    let mut body = response.into_body();
    assert!(body.frame().await.unwrap().is_ok());
    let error = body.frame().await.unwrap().unwrap_err();
    assert_eq!(timeout(&error).after(), secs(7));
}

#[tokio::test(start_paused = true)]
async fn a_wait_for_a_connection_is_known_to_have_had_no_effect() {
    let slow = Slow {
        connect: secs(60),
        ..Slow::default()
    };
    let service = DeadlineLayer::new(secs(5)).layer(slow);
    let error = service.oneshot(Request::new(())).await.unwrap_err();
    assert_eq!(timeout(&error).phase(), Phase::Connect);
    assert_eq!(Verdict::of_error(&*error), Verdict::NO_EFFECT);
}

#[tokio::test(start_paused = true)]
async fn a_later_wait_for_a_connection_takes_nothing_back() {
    // A layer below retries by itself: it sends, then connects anew.
    #[derive(Clone)]
    struct SendsThenConnects;
    impl Service<Request<()>> for SendsThenConnects {
        type Response = http::Response<String>;
        type Error = BoxError;
        type Future = std::pin::Pin<
            Box<dyn Future<Output = Result<http::Response<String>, BoxError>> + Send>,
        >;
        fn poll_ready(
            &mut self,
            _: &mut std::task::Context<'_>,
        ) -> std::task::Poll<Result<(), BoxError>> {
            std::task::Poll::Ready(Ok(()))
        }
        fn call(&mut self, _: Request<()>) -> Self::Future {
            Box::pin(async {
                sleep(secs(1)).await;
                std::future::poll_fn(|_| Phase::Connect.pending::<()>()).await;
                unreachable!()
            })
        }
    }
    let service = DeadlineLayer::new(secs(5)).layer(SendsThenConnects);
    let error = service.oneshot(Request::new(())).await.unwrap_err();
    assert_eq!(timeout(&error).phase(), Phase::Connect);
    assert_eq!(Verdict::of_error(&*error), Verdict::Unknown);
}

#[tokio::test(start_paused = true)]
async fn where_both_limits_end_together_the_error_comes_from_below() {
    let slow = Slow {
        connect: secs(60),
        ..Slow::default()
    };
    let marked = tower::util::MapErrLayer::new(|error: BoxError| -> BoxError {
        Fault::new(Verdict::of_error(&*error))
            .caused_by(error)
            .into()
    });
    let inner = marked.layer(AttemptTimeoutLayer::new(secs(30)).layer(slow));
    let service = DeadlineLayer::new(secs(5)).layer(inner);
    let error = service.oneshot(Request::new(())).await.unwrap_err();
    assert!(error.is::<Fault>(), "it came through the layer between");
    assert!(is_deadline(&*error));
}

#[tokio::test(start_paused = true)]
async fn dropped_at_each_await_it_leaves_nothing_behind() {
    for polls_for in [0, 1, 3, 5] {
        let slow = Slow {
            ready_at: Some(Instant::now() + secs(2)),
            connect: secs(2),
            head: secs(2),
            ..Slow::default()
        };
        let state = slow.state.clone();
        let service = DeadlineLayer::new(secs(60)).layer(slow);
        let mut call = tokio_test::task::spawn(service.oneshot(Request::new(())));
        assert!(call.poll().is_pending());
        for _ in 0..polls_for {
            advance(secs(1)).await;
            assert!(call.poll().is_pending());
        }
        drop(call);
        assert_eq!(state.alive(), 0, "after {polls_for} s");
    }
}

#[tokio::test(start_paused = true)]
async fn an_inner_error_comes_through_as_it_is() {
    let refused = tower::service_fn(|_: Request<()>| async {
        Err::<http::Response<String>, _>(std::io::Error::other("refused"))
    });
    let service = DeadlineLayer::new(secs(5)).layer(refused);
    let error = service.oneshot(Request::new(())).await.unwrap_err();
    assert!(error.is::<std::io::Error>());
    assert!(!is_timeout(&*error));
}

#[tokio::test(start_paused = true)]
async fn a_clone_of_a_ready_service_asks_for_itself() {
    let slow = Slow::default();
    let mut service = DeadlineLayer::new(secs(5)).layer(slow);
    ServiceExt::<Request<()>>::ready(&mut service)
        .await
        .unwrap();
    // `Slow` panics where it is called without being ready.
    service.clone().call(Request::new(())).await.unwrap();
    service.call(Request::new(())).await.unwrap();
}

/// What an axum handler does with the deadline of the request that it serves.
#[tokio::test(start_paused = true)]
async fn an_inbound_deadline_bounds_the_calls_that_a_handler_makes() {
    use axum::{Router, body::Body, error_handling::HandleErrorLayer, routing::post};

    let slow = Slow {
        head: secs(60),
        ..Slow::default()
    };
    let gateway = DeadlineLayer::inherited().layer(slow);
    let handler = async move || {
        let mut outbound = Request::new(());
        // Half a second is kept for the answer itself.
        let deadline = Deadline::held().unwrap().instant() - Duration::from_millis(500);
        outbound.extensions_mut().insert(Deadline::at(deadline));
        match gateway.oneshot(outbound).await {
            Ok(_) => "paid",
            Err(error) if is_deadline(&*error) => "too late",
            Err(_) => "failed",
        }
    };
    let router = Router::new().route("/pay", post(handler)).layer(
        tower::ServiceBuilder::new()
            .layer(HandleErrorLayer::new(|_: BoxError| async {
                http::StatusCode::GATEWAY_TIMEOUT
            }))
            .layer(DeadlineLayer::new(secs(5))),
    );
    let start = Instant::now();
    let response = router
        .oneshot(Request::post("/pay").body(Body::empty()).unwrap())
        .await
        .unwrap();
    assert_eq!(start.elapsed(), Duration::from_millis(4500));
    let body = response.into_body().collect().await.unwrap().to_bytes();
    assert_eq!(body, "too late");
}

/// What a call inside waits for says nothing of what else a handler has done.
#[tokio::test(start_paused = true)]
async fn a_handler_that_waits_for_a_connection_may_have_done_other_things() {
    async fn ends<S, R>(client: S)
    where
        S: Service<Request<()>, Response = R, Error = BoxError> + Clone,
    {
        // Something else goes on beside the call, and goes on when that has failed.
        let handler = service_fn(async |request: Request<()>| {
            let call = client.clone().oneshot(request);
            let (answer, ()) = tokio::join!(call, sleep(secs(60)));
            answer.map(|_| Response::new(String::new()))
        });
        let server = DeadlineLayer::new(secs(5)).layer(handler);
        let error = server.oneshot(Request::new(())).await.unwrap_err();
        assert_eq!(timeout(&error).after(), secs(5));
        assert_eq!(Verdict::of_error(&*error), Verdict::Unknown);
    }
    let connects = Slow {
        connect: secs(60),
        ..Slow::default()
    };
    for client in [DeadlineLayer::new(secs(60)), DeadlineLayer::inherited()] {
        ends(client.layer(connects.clone())).await;
        let attempt = AttemptTimeoutLayer::new(Duration::MAX).layer(connects.clone());
        ends(client.layer(attempt)).await;
    }
}

/// A deadline layer is the top of a stack.
#[tokio::test(start_paused = true)]
async fn notes_of_what_a_call_waits_for_go_no_further_than_its_deadline_layer() {
    let attempt = AttemptTimeoutLayer::new(secs(9)).layer(Slow {
        connect: secs(60),
        ..Slow::default()
    });
    let mut cx = Context::from_waker(Waker::noop());
    let mut call = pin!(attempt.clone().oneshot(Request::new(())));
    let (_, noted) = Phase::observe(|| call.as_mut().poll(&mut cx));
    assert_eq!(noted, Some(Phase::Connect));
    let deadline = DeadlineLayer::new(secs(60));
    let inherited = DeadlineLayer::inherited();
    for layer in [deadline, deadline.sharing_timers(), inherited] {
        let service = layer.layer(attempt.clone());
        let mut request = Request::new(());
        let end = Instant::now() + secs(60);
        request.extensions_mut().insert(Deadline::at(end));
        let mut call = pin!(service.oneshot(request));
        let (poll, noted) = Phase::observe(|| call.as_mut().poll(&mut cx));
        assert!(poll.is_pending());
        assert_eq!(noted, None);
    }
}

/// An attempt of 3 s under a deadline of 5 s that has no timer of its own as
/// long as the attempt's is set.
#[tokio::test(start_paused = true)]
async fn a_deadline_that_shares_timers_sets_its_own_when_none_is_left() {
    let attempt = AttemptTimeoutLayer::new(secs(3)).layer(Slow {
        head: secs(60),
        ..Slow::default()
    });
    // After the attempt has failed, it waits for something else, as a back-off
    // does.
    let then_waits = service_fn(move |request: Request<()>| {
        let attempt = attempt.clone();
        async move {
            let start = Instant::now();
            let error = attempt.oneshot(request).await.unwrap_err();
            assert_eq!(start.elapsed(), secs(3));
            assert!(!is_deadline(&*error));
            std::future::pending::<Result<Response<String>, BoxError>>().await
        }
    });
    let service = DeadlineLayer::new(secs(5))
        .sharing_timers()
        .layer(then_waits);
    let start = Instant::now();
    let error = service.oneshot(Request::new(())).await.unwrap_err();
    assert_eq!(start.elapsed(), secs(5));
    assert!(is_deadline(&*error));
}

#[tokio::test(start_paused = true)]
async fn a_deadline_that_shares_timers_ends_an_attempt_and_a_call_without_one() {
    let slow = || Slow {
        head: secs(60),
        ..Slow::default()
    };
    let deadline = DeadlineLayer::new(secs(2)).sharing_timers();
    let start = Instant::now();
    let attempt = AttemptTimeoutLayer::new(secs(3)).layer(slow());
    let error = deadline.layer(attempt).oneshot(Request::new(())).await;
    assert!(is_deadline(&*error.unwrap_err()));
    assert_eq!(start.elapsed(), secs(2));
    let error = deadline.layer(slow()).oneshot(Request::new(())).await;
    assert!(is_deadline(&*error.unwrap_err()));
    assert_eq!(start.elapsed(), secs(4));
}

#[tokio::test(start_paused = true)]
async fn a_timer_that_is_later_than_the_deadline_is_not_shared() {
    let late = service_fn(|_: Request<()>| {
        let start = Instant::now();
        poll_fn(move |_| {
            Phase::Head.pending_until::<Result<Response<String>, BoxError>>(start + secs(9))
        })
    });
    let service = DeadlineLayer::new(secs(2)).sharing_timers().layer(late);
    let start = Instant::now();
    let error = service.oneshot(Request::new(())).await.unwrap_err();
    assert_eq!(start.elapsed(), secs(2));
    assert!(is_deadline(&*error));
}

/// What a handler does between two calls of one poll is none of their time.
#[tokio::test(start_paused = true)]
async fn a_call_made_late_in_its_handlers_poll_has_all_of_its_time() {
    let client = DeadlineLayer::new(secs(10)).layer(AttemptTimeoutLayer::new(secs(2)).layer(
        service_fn(|_: Request<()>| async {
            sleep(secs(1)).await;
            Ok::<_, BoxError>(Response::new(String::new()))
        }),
    ));
    let handler = service_fn(move |request: Request<()>| {
        let mut client = client.clone();
        async move {
            let _first = client.ready().await?.call(Request::new(()));
            // It computes for so long, and doesn't let go of the thread.
            let mut busy = pin!(advance(secs(5)));
            poll_fn(|cx| Poll::Ready(busy.as_mut().poll(cx).is_pending())).await;
            let called = Instant::now();
            let answer = client.ready().await?.call(request).await;
            assert_eq!(called.elapsed(), secs(1));
            answer
        }
    });
    let service = DeadlineLayer::new(secs(60)).layer(handler);
    service.oneshot(Request::new(())).await.unwrap();
}

#[test]
fn what_crosses_threads_can() {
    fn can_be_shared<T: Send + Sync + 'static>() {}
    fn can_move<T: Send + 'static>(_: &T) {}
    can_be_shared::<TimeoutError>();
    can_be_shared::<DeadlineLayer>();
    can_be_shared::<AttemptTimeoutLayer>();
    fn is_easy_to_read<T: Send + Unpin + 'static>() {}
    is_easy_to_read::<TimeoutBody<Full<Bytes>>>();
    let mut deadline = DeadlineLayer::new(secs(1)).layer(Slow::default());
    can_move(&Service::<Request<()>>::call(
        &mut deadline,
        Request::new(()),
    ));
    let mut attempt = AttemptTimeoutLayer::new(secs(1)).layer(Slow::default());
    can_move(&Service::<Request<()>>::call(
        &mut attempt,
        Request::new(()),
    ));
}

#[tokio::test(start_paused = true)]
async fn the_message_says_of_what_the_call_ran_out_and_what_to_do() {
    let silent = Slow {
        head: secs(60),
        ..Slow::default()
    };
    let service = DeadlineLayer::new(secs(5)).layer(silent);
    let error = service.clone().oneshot(Request::new(())).await.unwrap_err();
    assert_eq!(
        error.to_string(),
        "the call's deadline ran out while awaiting the head of the response, after 5.000s of \
         5.000s; the request may have been executed: look it up, or repeat it with the same \
         idempotency key"
    );
    let mut late = Request::new(());
    late.extensions_mut().insert(Deadline::at(Instant::now()));
    let error = service.oneshot(late).await.unwrap_err();
    assert_eq!(
        error.to_string(),
        "the call's deadline had passed already; nothing was sent, so it is safe to repeat"
    );
}
