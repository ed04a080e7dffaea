//! Hedging: a second attempt beside a slow first one.

use std::convert::Infallible;
use std::future::{Future, poll_fn};
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response};
use http_body::{Body, Frame};
use http_body_util::{BodyExt, Full};
use tokio::time::{Instant, sleep};
use tollway_core::{BoxError, Phase, Verdict};
use tollway_retry::{
    BackOff, Budget, Hedge, Outcome, ReplayBody, RetryLayer, RetryPolicyBuilder, Seed, Stop,
};
use tower::{Layer, Service, ServiceExt, service_fn};

use crate::support::*;

/// A hedge that has seen 200 calls, all of them 100 ms long.
async fn hedge() -> Hedge {
    let hedge = Hedge::after_quantile(0.9).unwrap();
    let gateway = Gateway::default().taking(millis(100));
    for _ in 0..200 {
        call(policy().hedge(hedge.clone()), &gateway, get())
            .await
            .unwrap();
    }
    assert_eq!(gateway.made(), 200);
    hedge
}

async fn hedged() -> RetryPolicyBuilder<impl Seed> {
    policy().hedge(hedge().await)
}

#[tokio::test(start_paused = true)]
async fn the_delay_is_the_quantile_of_what_was_seen() {
    let delay = hedge().await.delay().unwrap();
    assert!(delay >= millis(100) && delay <= millis(107), "{delay:?}");
}

#[tokio::test(start_paused = true)]
async fn a_slow_first_attempt_is_overtaken_and_dropped() {
    let policy = hedged().await;
    let gateway = Gateway::lasting([secs(30), millis(100)]);
    let start = Instant::now();
    let response = call(policy, &gateway, get()).await.unwrap();
    let took = start.elapsed();
    assert!(took >= millis(200) && took < millis(210), "{took:?}");
    assert_eq!((gateway.made(), gateway.dropped()), (2, 1));

    let story = story(&response);
    assert_eq!((story.made(), story.stop()), (2, Stop::Final));
    assert_eq!(story.records()[0].outcome, Outcome::Cancelled);
    assert_eq!(story.records()[0].delay, Duration::ZERO);
    assert_eq!(story.records()[1].verdict, Verdict::Done);
    assert!(story.records()[1].delay >= millis(100));
    assert_eq!(story.records()[1].duration, millis(100));
}

/// A future that has answered may be kept for a while before it is dropped.
#[tokio::test(start_paused = true)]
async fn the_loser_is_dropped_with_the_answer() {
    let policy = hedged().await.build().unwrap();
    let gateway = Gateway::lasting([secs(30), millis(100)]);
    let mut service = RetryLayer::new(policy).layer(gateway.clone());
    // Not `oneshot`, which drops it when it has answered.
    let mut call = pin!(service.ready().await.unwrap().call(get()));
    call.as_mut().await.unwrap();
    assert_eq!((gateway.made(), gateway.dropped()), (2, 1));
}

#[tokio::test(start_paused = true)]
async fn a_first_attempt_that_answers_after_all_wins() {
    let policy = hedged().await;
    let gateway = Gateway::lasting([millis(150), secs(30)]);
    let start = Instant::now();
    let response = call(policy, &gateway, get()).await.unwrap();
    assert_eq!(start.elapsed(), millis(150));
    assert_eq!((gateway.made(), gateway.dropped()), (2, 1));
    let [cancelled, answered] = story(&response).records() else {
        panic!("two attempts");
    };
    assert_eq!(cancelled.outcome, Outcome::Cancelled);
    assert!(cancelled.delay >= millis(100) && cancelled.duration < millis(50));
    assert_eq!(
        (answered.delay, answered.duration),
        (Duration::ZERO, millis(150))
    );
}

#[tokio::test(start_paused = true)]
async fn a_fast_call_is_not_hedged() {
    let policy = hedged().await;
    let gateway = Gateway::lasting([millis(99)]);
    let response = call(policy, &gateway, get()).await.unwrap();
    assert_eq!(gateway.made(), 1);
    assert!(response.extensions().is_empty());
}

/// Two requests at the same time: that's not what a key is for.
#[tokio::test(start_paused = true)]
async fn only_an_idempotent_method_is_hedged() {
    for (request, made) in [(get(), 2), (post(), 1), (post_with_key(), 1)] {
        let policy = hedged().await;
        let gateway = Gateway::lasting([secs(1), secs(1)]);
        call(policy, &gateway, request).await.unwrap();
        assert_eq!(gateway.made(), made);
    }
}

/// A streamed body has one reader: a second attempt would take it from the first.
#[tokio::test(start_paused = true)]
async fn a_body_that_is_not_there_at_once_is_not_sent_twice_at_the_same_time() {
    struct Stream(Option<Bytes>);
    impl Body for Stream {
        type Data = Bytes;
        type Error = Infallible;
        fn poll_frame(
            mut self: Pin<&mut Self>,
            _: &mut Context<'_>,
        ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
            Poll::Ready(self.0.take().map(|data| Ok(Frame::data(data))))
        }
    }
    let made = Arc::new(AtomicU32::new(0));
    let counted = Arc::clone(&made);
    let gateway = service_fn(move |request: Request<ReplayBody<Stream>>| {
        counted.fetch_add(1, Ordering::Relaxed);
        async {
            sleep(secs(1)).await;
            let body = request.into_body().collect().await?.to_bytes();
            Ok::<_, BoxError>(Response::new(Full::new(body)))
        }
    });
    let policy = hedged().await.build().unwrap();
    let body = Stream(Some(Bytes::from_static(b"amount=1")));
    let call = RetryLayer::new(policy).layer(gateway);
    let response = call.oneshot(Request::put("/").body(body).unwrap()).await;
    let body = response.unwrap().into_body().collect().await.unwrap();
    assert_eq!(body.to_bytes(), "amount=1");
    assert_eq!(made.load(Ordering::Relaxed), 1);
}

/// Where the quota is what takes so long, a second place in the queue would only
/// cost the tokens that retries need.
#[tokio::test(start_paused = true)]
async fn an_attempt_that_was_not_sent_yet_is_not_hedged() {
    let budget = Budget::builder().per_success(0.0).per_second(0.0);
    let budget = budget.build().unwrap();
    for (phase, attempts) in [
        (Phase::Permit, 1),
        (Phase::Connect, 1),
        (Phase::Send, 2),
        (Phase::Head, 2),
    ] {
        let made = Arc::new(AtomicU32::new(0));
        let counted = Arc::clone(&made);
        let gateway = service_fn(move |_: Request<ReplayBody<Full<Bytes>>>| {
            counted.fetch_add(1, Ordering::Relaxed);
            let mut wait = Box::pin(sleep(secs(1)));
            poll_fn(move |cx| match wait.as_mut().poll(cx) {
                Poll::Ready(()) => Poll::Ready(Ok::<_, BoxError>(status(200))),
                Poll::Pending => phase.pending(),
            })
        });
        let before = budget.available();
        let policy = hedged().await.budget(budget.clone()).build().unwrap();
        let call = RetryLayer::new(policy).layer(gateway).oneshot(get());
        call.await.unwrap();
        assert_eq!(made.load(Ordering::Relaxed), attempts, "{phase}");
        assert_eq!(budget.available() == before, attempts == 1, "{phase}");
    }
}

#[tokio::test(start_paused = true)]
async fn what_a_hedged_call_took_is_seen_and_pays_for_its_first_attempt() {
    let budget = Budget::builder()
        .capacity(200)
        .per_success(0.5)
        .per_second(0.0);
    let budget = budget.build().unwrap();
    let hedge = hedge().await;
    let before = hedge.delay();
    for nth in 1..=30 {
        // The first attempt wins, its rival being under way.
        let gateway = Gateway::lasting([millis(150), secs(30)]);
        let policy = policy().hedge(hedge.clone()).budget(budget.clone());
        call(policy, &gateway, get()).await.unwrap();
        if nth == 20 {
            assert_eq!(budget.available(), Some(200.0 - 20.0 + 10.0));
        }
    }
    assert!(hedge.delay() > before);
}

#[tokio::test(start_paused = true)]
async fn a_hedge_is_paid_for_and_never_paid_back() {
    let budget = Budget::builder()
        .capacity(3)
        .per_success(0.0)
        .per_second(0.0)
        .build()
        .unwrap();
    let hedge = hedge().await;
    for made in [2, 2, 2, 1] {
        let gateway = Gateway::lasting([secs(1), millis(10)]);
        let policy = policy().hedge(hedge.clone()).budget(budget.clone());
        call(policy, &gateway, get()).await.unwrap();
        assert_eq!(gateway.made(), made);
    }
    assert_eq!(budget.available(), Some(0.0));
}

#[tokio::test(start_paused = true)]
async fn the_attempts_of_a_hedged_call_are_counted_together() {
    // Both fail, in either order; then there is one left of three.
    for lasting in [[millis(500), millis(100)], [millis(200), millis(500)]] {
        let policy = hedged().await.max_attempts(3);
        let gateway = Gateway::lasting(lasting);
        gateway.answer((0..9).map(|_| Ok(status(503))));
        let response = call(policy, &gateway, get()).await.unwrap();
        assert_eq!(gateway.made(), 3);
        assert_eq!(story(&response).stop(), Stop::MaxAttempts);
        assert_eq!(story(&response).made(), 3);
    }
}

#[tokio::test(start_paused = true)]
async fn one_that_fails_leaves_the_call_to_the_other() {
    for (lasting, answers) in [
        // The first fails, then the second answers; and the other way round.
        ([millis(150), secs(1)], [503, 200]),
        ([secs(1), millis(100)], [200, 503]),
    ] {
        let policy = hedged().await;
        let gateway = Gateway::lasting(lasting);
        gateway.answer(answers.map(|code| Ok(status(code))));
        let response = call(policy, &gateway, get()).await.unwrap();
        assert_eq!(response.status(), 200);
        assert_eq!(gateway.made(), 2);
        let [failed, answered] = story(&response).records() else {
            panic!("two attempts");
        };
        let verdicts = [failed.verdict, answered.verdict];
        assert_eq!(verdicts, [Verdict::Unknown, Verdict::Done]);
        let first = if answers[0] == 503 { failed } else { answered };
        assert_eq!((first.delay, first.duration), (Duration::ZERO, lasting[0]));
        let second = if answers[0] == 503 { answered } else { failed };
        assert!(second.delay >= millis(100));
        assert_eq!(second.duration, lasting[1]);
    }
}

/// One attempt deletes it, and so the other one finds nothing, which is told
/// sooner. What was asked for was done all the same.
#[tokio::test(start_paused = true)]
async fn a_rejection_that_says_nothing_of_the_attempt_beside_it_awaits_that() {
    for (method, lasting, answers, expected) in [
        ("DELETE", [secs(1), millis(100)], [200, 404], Verdict::Done),
        ("DELETE", [millis(150), secs(1)], [404, 200], Verdict::Done),
        (
            "DELETE",
            [secs(1), millis(100)],
            [404, 404],
            Verdict::Rejected,
        ),
        // To read has no effect that could be in doubt.
        ("GET", [secs(1), millis(100)], [200, 404], Verdict::Rejected),
        // Nor does a redirect tell of one then.
        ("GET", [secs(1), millis(100)], [200, 302], Verdict::Rejected),
    ] {
        let gateway = Gateway::lasting(lasting);
        gateway.answer(answers.map(|code| Ok(status(code))));
        let mut request = get();
        *request.method_mut() = method.parse().unwrap();
        let response = call(hedged().await, &gateway, request).await.unwrap();
        let dropped = usize::from(method == "GET");
        assert_eq!((gateway.made(), gateway.dropped()), (2, dropped));
        let told = (method, answers);
        assert_eq!(Verdict::of_response(&response), expected, "{told:?}");
    }
}

/// The other one may have had an effect.
#[tokio::test(start_paused = true)]
async fn a_rejection_says_nothing_of_an_attempt_beside_it_that_fails() {
    // The one that fails is the last to end, and then the first.
    for (lasting, made) in [([secs(1), millis(100)], 3), ([millis(150), secs(1)], 2)] {
        let gateway = Gateway::lasting(lasting);
        gateway.answer([503, 404, 404].map(|code| Ok(status(code))));
        let mut request = get();
        *request.method_mut() = "DELETE".parse().unwrap();
        let response = call(hedged().await, &gateway, request).await.unwrap();
        assert_eq!(gateway.made(), made);
        assert_eq!(Verdict::of_response(&response), Verdict::Unknown);
    }
}

#[tokio::test(start_paused = true)]
async fn a_delay_that_the_other_attempt_was_asked_for_is_kept() {
    let policy = hedged()
        .await
        .back_off(BackOff::exponential(millis(1), millis(1)).unwrap());
    let gateway = Gateway::lasting([secs(1), millis(100)]);
    let mut throttled = status(429);
    throttled
        .headers_mut()
        .insert("retry-after", "20".parse().unwrap());
    gateway.answer([Ok(status(503)), Ok(throttled)]);
    let start = Instant::now();
    call(policy, &gateway, get()).await.unwrap();
    assert!(start.elapsed() >= secs(20) + millis(200));
}

#[tokio::test(start_paused = true)]
async fn a_dropped_call_drops_both_attempts() {
    let policy = hedged().await;
    let gateway = Gateway::lasting([secs(30), secs(30)]);
    let call = call(policy, &gateway, get());
    assert!(tokio::time::timeout(secs(1), call).await.is_err());
    assert_eq!((gateway.made(), gateway.dropped()), (2, 2));
}
