//! What the limiter does beside letting through and holding back.
#![cfg(feature = "tokio")]
#![allow(clippy::unwrap_used, reason = "a test")]

use std::pin::pin;
use std::time::Duration;

use http::{HeaderMap, HeaderName, Method, Response};
use tokio::time::{Instant, sleep};
use tokio_test::{assert_pending, assert_ready, task};
use tollway_core::{Deadline, Endpoint, Fault, Phase, Priority, Scope, Verdict};
use tollway_limit::{Call, CountFrom, Key, Limits, LimitsBuilder, Quota, Shape};

const fn millis(millis: u64) -> Duration {
    Duration::from_millis(millis)
}

fn burst(limit: u32, window: Duration) -> Quota {
    Quota::new(limit, window).shape(Shape::Burst)
}

fn limits(quota: Quota) -> Limits {
    Limits::builder().every_call(quota).build().unwrap()
}

fn call(path: &str) -> Call<'_> {
    Call::new(&Method::GET, path)
}

/// How long the next permit takes.
async fn wait(limits: &Limits, call: &Call<'_>) -> Duration {
    let start = Instant::now();
    limits.acquire(call).await.unwrap().give_back();
    start.elapsed()
}

#[tokio::test(start_paused = true)]
async fn the_first_in_the_queue_is_dropped_and_the_next_moves_up() {
    let limits = limits(Quota::concurrent(1));
    let call = call("/");
    let holder = limits.acquire(&call).await.unwrap();
    let mut first = task::spawn(limits.acquire(&call));
    let mut second = task::spawn(limits.acquire(&call));
    assert_pending!(first.poll());
    assert_pending!(second.poll());
    drop(first);
    drop(holder);
    assert!(second.is_woken());
    drop(assert_ready!(second.poll()).unwrap());
    assert_eq!(limits.snapshot().waiting, 0);
}

#[tokio::test(start_paused = true)]
async fn one_in_the_middle_is_dropped_without_a_trace() {
    let limits = limits(Quota::concurrent(1));
    let call = call("/");
    let holder = limits.acquire(&call).await.unwrap();
    let mut waiters: Vec<_> = (0..3).map(|_| task::spawn(limits.acquire(&call))).collect();
    for waiter in &mut waiters {
        assert_pending!(waiter.poll());
    }
    drop(waiters.remove(1));
    drop(holder);
    let permit = assert_ready!(waiters[0].poll()).unwrap();
    assert_pending!(waiters[1].poll());
    drop(permit);
    drop(assert_ready!(waiters[1].poll()).unwrap());
}

#[tokio::test(start_paused = true)]
async fn one_that_was_granted_and_is_dropped_unpolled_passes_the_permit_on() {
    let limits = limits(burst(1, millis(1000)).in_flight(1));
    let call = call("/");
    let holder = limits.acquire(&call).await.unwrap();
    let mut first = task::spawn(limits.acquire(&call));
    let mut second = task::spawn(limits.acquire(&call));
    assert_pending!(first.poll());
    assert_pending!(second.poll());
    // Never sent: its place in the window is free at once.
    holder.give_back();
    assert!(first.is_woken());
    drop(first);
    assert!(second.is_woken());
    drop(assert_ready!(second.poll()).unwrap());
}

#[tokio::test(start_paused = true)]
async fn whoever_set_the_timer_may_go() {
    let limits = limits(burst(1, millis(1000)));
    let call = call("/");
    drop(limits.acquire(&call).await.unwrap());
    let start = Instant::now();
    {
        // It sets the timer, and is gone before it fires.
        let mut first = task::spawn(limits.acquire(&call));
        assert_pending!(first.poll());
        let other = limits.clone();
        tokio::spawn(async move {
            let call = Call::new(&Method::GET, "/");
            drop(other.acquire(&call).await.unwrap());
        });
        tokio::task::yield_now().await;
    }
    sleep(millis(1)).await;
    drop(limits.acquire(&call).await.unwrap());
    assert_eq!(start.elapsed(), millis(2000));
}

#[tokio::test(start_paused = true)]
async fn a_deadline_ends_a_wait_for_attempts_in_flight() {
    let limits = limits(Quota::concurrent(1));
    let call = call("/");
    let _holder = limits.acquire(&call).await.unwrap();
    let deadline = Deadline::after(Instant::now(), millis(250)).unwrap();
    let start = Instant::now();
    let error = limits.acquire(&call.deadline(deadline)).await.unwrap_err();
    assert!(error.is_deadline());
    assert_eq!(start.elapsed(), millis(250));
    assert_eq!(limits.snapshot().waiting, 0);
}

#[tokio::test(start_paused = true)]
async fn a_pause_refuses_at_once_those_who_can_no_longer_make_it() {
    let limits = limits(Quota::concurrent(2).penalty(millis(10_000)));
    let call = call("/");
    let (one, _two) = (
        limits.acquire(&call).await.unwrap(),
        limits.acquire(&call).await.unwrap(),
    );
    let deadline = Deadline::after(Instant::now(), millis(9_000)).unwrap();
    let mut hopeless = task::spawn(limits.acquire(&call));
    assert_pending!(hopeless.poll());
    drop(hopeless);
    let in_time = call.deadline(deadline);
    let mut hopeless = task::spawn(limits.acquire(&in_time));
    assert_pending!(hopeless.poll());
    one.over(Verdict::NotExecuted {
        retry_after: None,
        scope: Scope::GlobalConcurrency,
    });
    let error = assert_ready!(hopeless.poll()).unwrap_err();
    assert!(error.is_deadline());
    assert_eq!(error.wait(), Some(millis(10_000)));
}

/// So does a header that says nothing is left for longer than that.
#[tokio::test(start_paused = true)]
async fn a_header_refuses_at_once_those_who_can_no_longer_make_it() {
    let limits = limits(burst(2, millis(1000)));
    let call = call("/");
    let one = limits.acquire(&call).await.unwrap();
    let _two = limits.acquire(&call).await.unwrap();
    let deadline = Deadline::after(Instant::now(), millis(4_000)).unwrap();
    let in_time = call.deadline(deadline);
    let mut hopeless = task::spawn(limits.acquire(&in_time));
    assert_pending!(hopeless.poll());
    let mut response = Response::new(());
    let header = r#""a";r=0;t=5"#.parse().unwrap();
    response.headers_mut().insert("ratelimit", header);
    one.answered(&response);
    let error = assert_ready!(hopeless.poll()).unwrap_err();
    assert!(error.is_deadline());
    assert_eq!(error.wait(), Some(millis(5_000)));
}

/// Nor does one go that was granted a permit before, and not polled.
#[tokio::test(start_paused = true)]
async fn a_pause_holds_for_those_who_were_granted_a_permit_and_do_not_know() {
    let quota = Quota::new(2, millis(1000)).shape(Shape::Burst);
    let limits = Limits::builder().every_call(quota).build().unwrap();
    let call = call("/");
    let first = limits.acquire(&call).await.unwrap();
    let refused = limits.acquire(&call).await.unwrap();
    let mut waits = task::spawn(limits.acquire(&call));
    assert_pending!(waits.poll());
    drop(first);
    sleep(millis(1000)).await;
    assert!(waits.is_woken());
    refused.over(Verdict::NotExecuted {
        retry_after: Some(millis(5000)),
        scope: Scope::Unspecified,
    });
    assert_pending!(waits.poll());
    assert_eq!(limits.snapshot().quotas[0].in_flight, 0);
    let start = Instant::now();
    drop(waits.await.unwrap());
    assert_eq!(start.elapsed(), millis(5000));
}

#[tokio::test(start_paused = true)]
async fn after_a_pause_the_queue_restarts_evenly_and_then_as_its_shape_says() {
    let limits = limits(burst(100, millis(1000)));
    let call = call("/");
    let refused = limits.acquire(&call).await.unwrap();
    refused.over(Verdict::NotExecuted {
        retry_after: Some(millis(700)),
        scope: Scope::GlobalRate,
    });
    let start = Instant::now();
    let mut last = Duration::ZERO;
    for number in 0..50 {
        drop(limits.acquire(&call).await.unwrap());
        let at = start.elapsed();
        if number == 0 {
            assert_eq!(at, millis(700));
        } else {
            // 99 in a window, against absolute instants.
            let even = millis(700) + millis(1000) * number / 99;
            assert!(at >= even && at < even + millis(3), "{number} at {at:?}");
            assert!(at > last);
        }
        last = at;
    }
    // A window after the pause there is nothing left to be gentle with.
    tokio::time::sleep_until(start + millis(2700)).await;
    let start = Instant::now();
    for _ in 0..100 {
        drop(limits.acquire(&call).await.unwrap());
    }
    assert_eq!(start.elapsed(), Duration::ZERO);
}

/// Who was told "in a second" waits a second, and not an hour for the next of twenty a
/// day.
#[tokio::test(start_paused = true)]
async fn the_queue_restarts_evenly_for_a_minute_at_the_most() {
    let limits = limits(burst(20, Duration::from_secs(24 * 60 * 60)));
    let refused = limits.acquire(&call("/")).await.unwrap();
    refused.over(Verdict::NotExecuted {
        retry_after: Some(millis(1000)),
        scope: Scope::Unspecified,
    });
    for expected in [1000, 60_000, 0, 0].map(millis) {
        assert_eq!(wait_and_use(&limits, &call("/")).await, expected);
    }
    // Who is told again is still held to an even pace.
    let limits = self::limits(burst(20, Duration::from_secs(24 * 60 * 60)));
    for expected in [0, 1000, 61_000].map(millis) {
        let start = Instant::now();
        let refused = limits.acquire(&call("/")).await.unwrap();
        assert_eq!(start.elapsed(), expected);
        refused.over(Verdict::NotExecuted {
            retry_after: Some(millis(1000)),
            scope: Scope::Unspecified,
        });
    }
}

#[tokio::test(start_paused = true)]
async fn a_provider_that_asks_for_an_age_gets_a_day() {
    for asked in [Duration::from_secs(u64::from(u32::MAX)), Duration::MAX] {
        let limits = limits(Quota::per_second(10));
        let permit = limits.acquire(&call("/")).await.unwrap();
        permit.over(Verdict::NotExecuted {
            retry_after: Some(asked),
            scope: Scope::GlobalRate,
        });
        let waited = wait(&limits, &call("/")).await;
        assert_eq!(waited, Duration::from_secs(24 * 60 * 60));
    }
}

#[tokio::test(start_paused = true)]
async fn the_queue_is_bounded() {
    let limits = Limits::builder()
        .every_call(burst(1, millis(1000)))
        .max_waiting(1)
        .build()
        .unwrap();
    let call = call("/");
    drop(limits.acquire(&call).await.unwrap());
    let mut first = task::spawn(limits.acquire(&call));
    assert_pending!(first.poll());
    let error = limits.acquire(&call).await.unwrap_err();
    assert!(error.is_queue_full());
    // The one ahead takes the place that is free in a second.
    assert_eq!(error.wait(), Some(millis(2000)));
}

#[tokio::test(start_paused = true)]
async fn those_who_were_served_are_no_longer_ahead() {
    let limits = limits(burst(1, millis(1000)));
    let first = call("/");
    drop(limits.acquire(&first).await.unwrap());
    let mut waiting = [(); 3].map(|()| task::spawn(limits.acquire(&first)));
    for waiting in &mut waiting {
        assert_pending!(waiting.poll());
    }
    for waiting in &mut waiting[..2] {
        sleep(millis(1001)).await;
        drop(assert_ready!(waiting.poll()).unwrap());
    }
    // The third goes in a second, and whoever comes now a second later.
    let now = Instant::now();
    let deadline = Deadline::at(now + millis(2500));
    let next = limits.acquire(&first.deadline(deadline));
    let mut next = task::spawn(next);
    assert_pending!(next.poll());
}

fn stripe() -> Limits {
    Limits::builder()
        .every_call(burst(100, millis(1000)))
        .each_endpoint(burst(25, millis(1000)))
        .known_endpoints([Endpoint::get("/a"), Endpoint::get("/b/{id}")])
        .keyed(Key::param("id"), burst(10, millis(1000)))
        .build()
        .unwrap()
}

#[tokio::test(start_paused = true)]
async fn a_refusal_pauses_exactly_what_it_names() {
    // Which of these calls waits after `/b/1` was refused with this scope.
    for (scope, waits) in [
        (Scope::Call, [false, false, false]),
        (Scope::GlobalRate, [true, true, true]),
        (Scope::EndpointRate, [true, true, false]),
        (Scope::Unspecified, [true, true, true]),
    ] {
        let limits = stripe();
        let permit = limits.acquire(&call("/b/1")).await.unwrap();
        permit.over(Verdict::NotExecuted {
            retry_after: Some(millis(700)),
            scope,
        });
        for (path, waits) in ["/b/1", "/b/2", "/a"].into_iter().zip(waits) {
            let now = Instant::now().into_std();
            let permit = limits.try_acquire(&call(path), now);
            let wait = permit.map_or_else(
                |error| error.wait(),
                |permit| {
                    permit.give_back();
                    None
                },
            );
            assert_eq!(wait, waits.then_some(millis(700)), "{scope:?} {path}");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_refusal_without_a_name_pauses_what_has_a_penalty() {
    for asked in [None, Some(millis(700))] {
        let limits = Limits::builder()
            .every_call(burst(100, millis(1000)))
            .keyed(Key::path(), burst(10, millis(1000)).penalty(millis(300)))
            .build()
            .unwrap();
        let permit = limits.acquire(&call("/a")).await.unwrap();
        permit.over(Verdict::NotExecuted {
            retry_after: asked,
            scope: Scope::Unspecified,
        });
        assert_eq!(wait(&limits, &call("/b")).await, Duration::ZERO);
        let expected = asked.unwrap_or(millis(300));
        assert_eq!(wait(&limits, &call("/a")).await, expected);
    }
}

#[tokio::test(start_paused = true)]
async fn a_refusal_without_a_name_pauses_a_limit_on_what_is_in_flight_if_there_is_no_rate() {
    let limits = Limits::builder()
        .every_call(Quota::concurrent(9))
        .endpoint(Endpoint::get("/a"), burst(100, millis(1000)));
    let limits = limits.build().unwrap();
    // Where there is a rate, it is that.
    for (path, others_wait) in [("/a", false), ("/b", true)] {
        let permit = limits.acquire(&call(path)).await.unwrap();
        permit.over(Verdict::NotExecuted {
            retry_after: Some(millis(700)),
            scope: Scope::Unspecified,
        });
        let waited = wait(&limits, &call("/c")).await;
        assert_eq!(!waited.is_zero(), others_wait, "{path}");
    }
}

#[tokio::test(start_paused = true)]
async fn what_was_never_sent_takes_no_place() {
    let limits = limits(burst(1, millis(1000)));
    let fault = |verdict, phase| Fault::new(verdict).in_phase(phase);
    for (fault, waits) in [
        (fault(Verdict::NO_EFFECT, Phase::Connect), false),
        // It was there, and was turned away.
        (fault(Verdict::NO_EFFECT, Phase::Head), true),
        (fault(Verdict::Unknown, Phase::Connect), true),
    ] {
        let permit = limits.acquire(&call("/")).await.unwrap();
        permit.failed(&fault);
        let waited = wait(&limits, &call("/")).await;
        assert_eq!(!waited.is_zero(), waits, "{fault:?}");
    }
}

#[test]
fn an_endpoint_that_is_named_twice_takes_one_place() {
    let named = || [(); 2].map(|()| Endpoint::get("/a"));
    let limits = Limits::builder().endpoints(named(), Quota::concurrent(1));
    let limits = limits.build().unwrap();
    let _permit = limits.try_acquire(&call("/a"), Instant::now().into_std());
    assert_eq!(limits.snapshot().quotas[0].in_flight, 1);
}

#[test]
fn an_endpoint_under_another_name_is_the_same() {
    let known = Endpoint::get("/a/{id}");
    let limits = Limits::builder()
        .endpoint(known.clone(), Quota::concurrent(1))
        .each_endpoint(Quota::concurrent(9))
        .keyed(Key::param("id").on(known), Quota::concurrent(9));
    let limits = limits.build().unwrap();
    let other = Endpoint::get("/a/{object}");
    let call = call("/a/1").endpoint(&other);
    let _permit = limits.try_acquire(&call, Instant::now().into_std());
    let used: Vec<_> = limits.snapshot().quotas;
    let used = used.iter().filter(|quota| quota.in_flight == 1);
    let used: Vec<_> = used.map(|quota| quota.key.as_deref()).collect();
    assert_eq!(used, [None, Some("GET /a/{id}"), Some("1")]);
}

/// By code that has no request to ask with.
#[tokio::test(start_paused = true)]
async fn each_merchant_has_a_quota() {
    #[derive(Clone)]
    struct Merchant(&'static str);
    let merchant = |call: &Call<'_>| call.extension().map(|Merchant(name)| *name);
    let key = Key::computed("merchant", move |call| merchant(call).map(Into::into));
    let limits = Limits::builder().keyed(key, burst(1, millis(1000)));
    let limits = limits.build().unwrap();
    for (name, expected) in [("a", 0), ("b", 0), ("a", 1000)] {
        let mut extensions = http::Extensions::new();
        extensions.insert(Merchant(name));
        let start = Instant::now();
        drop(limits.acquire(&call("/").extensions(&extensions)).await);
        assert_eq!(start.elapsed(), millis(expected), "{name}");
    }
}

/// By its shape, or after a pause.
#[tokio::test(start_paused = true)]
async fn what_would_have_to_wait_for_an_even_pace_too_long_is_refused_at_once() {
    let paced = Quota::rate(2, millis(1000)).burst(9).shape(Shape::Paced);
    for (quota, pause, spacing) in [
        (paced, millis(0), millis(500)),
        (paced.shape(Shape::Burst), millis(700), millis(500)),
        (Quota::unlimited(), millis(700), millis(20)),
    ] {
        let limits = limits(quota);
        let call = call("/");
        limits
            .acquire(&call)
            .await
            .unwrap()
            .over(Verdict::NotExecuted {
                retry_after: Some(pause),
                scope: Scope::Unspecified,
            });
        sleep(pause).await;
        let (start, mut others) = (Instant::now(), Vec::new());
        if !pause.is_zero() {
            drop(limits.acquire(&call).await.unwrap());
        }
        for ahead in 1..=2 {
            let soon = call.deadline(Deadline::at(start + spacing * ahead - millis(1)));
            let mut refused = task::spawn(limits.acquire(&soon));
            let error = assert_ready!(refused.poll()).unwrap_err();
            assert_eq!(error.wait(), Some(spacing * ahead), "{quota:?}");
            others.push(task::spawn(limits.acquire(&call)));
            assert_pending!(others.last_mut().unwrap().poll());
        }
        // And none that would get its permit.
        let after = call.deadline(Deadline::at(start + spacing * 3 + millis(1)));
        assert!(limits.acquire(&after).await.is_ok(), "{quota:?}");
    }
}

#[test]
fn a_wait_for_attempts_in_flight_has_no_length() {
    let limits = Limits::builder().every_call(Quota::concurrent(1));
    let limits = limits.build().unwrap();
    let (call, now) = (call("/"), Instant::now());
    let ask = |call: Call<'_>| limits.try_acquire(&call, now.into_std());
    let _permit = ask(call).unwrap();
    for call in [call, call.deadline(Deadline::at(now))] {
        let error = ask(call).unwrap_err();
        assert_eq!(error.wait(), None);
        assert!(!error.to_string().contains("wait"), "{error}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_resource_s_refusal_pauses_its_key_and_endpoint_quotas() {
    for asked in [None, Some(millis(700))] {
        let limits = Limits::builder()
            .every_call(burst(100, millis(1000)))
            .keyed(
                Key::param("id").on(Endpoint::get("/b/{id}")),
                burst(10, millis(1000)).penalty(millis(300)),
            )
            .build()
            .unwrap();
        let permit = limits.acquire(&call("/b/1")).await.unwrap();
        permit.over(Verdict::NotExecuted {
            retry_after: asked,
            scope: Scope::Resource,
        });
        assert_eq!(wait(&limits, &call("/b/2")).await, Duration::ZERO);
        let expected = asked.unwrap_or(millis(300));
        assert_eq!(wait(&limits, &call("/b/1")).await, expected);
    }
}

#[tokio::test(start_paused = true)]
async fn headers_tighten_and_never_loosen() {
    let limits = limits(burst(10, millis(1000)));
    let call = call("/");
    let answer = |fields: &[(&'static str, &str)]| {
        let mut response = Response::new(());
        for (name, value) in fields {
            let name = HeaderName::from_static(name);
            response.headers_mut().insert(name, value.parse().unwrap());
        }
        response
    };
    // Far more than we believe: nothing changes.
    let permit = limits.acquire(&call).await.unwrap();
    permit.answered(&answer(&[("ratelimit", r#""a";r=1000;t=60"#)]));
    for _ in 0..9 {
        drop(limits.acquire(&call).await.unwrap());
    }
    assert_eq!(wait(&limits, &call).await, millis(1000));
    // One less than we believe, for five seconds.
    let permit = limits.acquire(&call).await.unwrap();
    permit.answered(&answer(&[
        ("x-ratelimit-remaining", "1"),
        ("x-ratelimit-reset", "5"),
    ]));
    let start = Instant::now();
    drop(limits.acquire(&call).await.unwrap());
    assert_eq!(start.elapsed(), Duration::ZERO);
    assert_eq!(wait(&limits, &call).await, millis(5000));
}

#[tokio::test(start_paused = true)]
async fn what_is_said_to_be_left_may_not_take_in_an_attempt_that_is_lost() {
    let limits = limits(burst(10, millis(1000)));
    let call = call("/");
    let lost = limits.acquire(&call).await.unwrap();
    let answered = limits.acquire(&call).await.unwrap();
    lost.failed(&Fault::new(Verdict::Unknown));
    let mut response = Response::new(());
    let header = r#""a";r=1;t=5"#.parse().unwrap();
    response.headers_mut().insert("ratelimit", header);
    answered.answered(&response);
    assert_eq!(wait(&limits, &call).await, millis(5000));
}

/// The one timer is for whatever comes next, and a pause for those it concerns.
#[tokio::test(start_paused = true)]
async fn a_wait_ends_at_its_deadline_whatever_others_wait_for() {
    let limits = Limits::builder()
        .endpoint(Endpoint::get("/a"), burst(2, millis(10_000)))
        .endpoint(Endpoint::get("/b"), Quota::concurrent(1))
        .build()
        .unwrap();
    drop(limits.acquire(&call("/a")).await.unwrap());
    let refused = limits.acquire(&call("/a")).await.unwrap();
    let _busy = limits.acquire(&call("/b")).await.unwrap();
    let long = call("/a");
    let mut long = task::spawn(limits.acquire(&long));
    assert_pending!(long.poll());
    let short = call("/b").deadline(Deadline::at(Instant::now() + millis(1000)));
    let mut short = task::spawn(limits.acquire(&short));
    assert_pending!(short.poll());
    refused.over(Verdict::NotExecuted {
        retry_after: Some(millis(20_000)),
        scope: Scope::EndpointRate,
    });
    assert_pending!(short.poll());
    sleep(millis(1000)).await;
    assert!(short.is_woken());
    assert_ready!(short.poll()).unwrap_err();
}

/// Of calls that need several quotas, too, and whichever is looked at first.
#[tokio::test(start_paused = true)]
async fn whoever_came_first_goes_first_whatever_else_others_need() {
    let quota = burst(1, millis(1000));
    for priority in [Priority::Normal, Priority::High] {
        let limits = Limits::builder().endpoint(Endpoint::get("/a"), quota);
        let limits = limits.every_call(quota).build().unwrap();
        let (both, one) = (call("/a"), call("/b").priority(priority));
        drop(limits.acquire(&both).await.unwrap());
        let mut both = task::spawn(limits.acquire(&both));
        let mut one = task::spawn(limits.acquire(&one));
        if priority == Priority::High {
            assert_pending!(both.poll());
        }
        assert_pending!(one.poll());
        assert_pending!(both.poll());
        sleep(millis(1000)).await;
        assert!(one.is_woken() && !both.is_woken(), "{priority:?}");
    }
}

/// Those that are still under way may take more than that.
#[tokio::test(start_paused = true)]
async fn what_was_never_sent_makes_no_room_beyond_what_is_left() {
    let limits = limits(burst(10, millis(1000)));
    let call = call("/");
    let mut under_way = Vec::new();
    for _ in 0..4 {
        under_way.push(limits.acquire(&call).await.unwrap());
    }
    let mut response = Response::new(());
    let header = r#""a";r=2;t=5"#.parse().unwrap();
    response.headers_mut().insert("ratelimit", header);
    under_way.pop().unwrap().answered(&response);
    // Three are under way, and then two.
    under_way.pop().unwrap().give_back();
    let now = Instant::now().into_std();
    limits.try_acquire(&call, now).unwrap_err();
    under_way.pop().unwrap().give_back();
    drop(limits.try_acquire(&call, now).unwrap());
    limits.try_acquire(&call, now).unwrap_err();
}

#[tokio::test(start_paused = true)]
async fn of_two_headers_the_tighter_one_holds() {
    for (earlier, later, expected) in [
        ("r=0;t=1", "r=5;t=5", 1000),
        ("r=5;t=5", "r=0;t=1", 1000),
        ("r=0;t=5", "r=0;t=3", 5000),
        ("r=0;t=3", "r=0;t=5", 5000),
    ] {
        let limits = limits(burst(10, millis(100)));
        let call = call("/");
        let permits = [
            limits.acquire(&call).await.unwrap(),
            limits.acquire(&call).await.unwrap(),
        ];
        for (permit, said) in permits.into_iter().zip([earlier, later]) {
            let mut response = Response::new(());
            let header = format!(r#""a";{said}"#).parse().unwrap();
            response.headers_mut().insert("ratelimit", header);
            permit.answered(&response);
        }
        assert_eq!(
            wait(&limits, &call).await,
            millis(expected),
            "{earlier}, {later}"
        );
    }
}

#[tokio::test(start_paused = true)]
async fn what_is_left_for_longer_holds_beyond_what_is_left_for_now() {
    let limits = limits(burst(10, millis(100)));
    let call = call("/");
    let mut response = Response::new(());
    let header = r#""now";r=1;t=1, "later";r=2;t=5"#.parse().unwrap();
    response.headers_mut().insert("ratelimit", header);
    let permit = limits.acquire(&call).await.unwrap();
    permit.answered(&response);
    let start = Instant::now();
    for expected in [0, 1000, 5000] {
        drop(limits.acquire(&call).await.unwrap());
        assert_eq!(start.elapsed(), millis(expected));
    }
}

#[tokio::test(start_paused = true)]
async fn headers_are_about_the_quota_that_they_describe() {
    for (policy, whose) in [
        (r#""m";w=60"#, "everybody's"),
        (r#""m";q=100"#, "everybody's"),
        (r#""m";w=1;q=7"#, "the endpoint's"),
        (r#""m";q=7"#, "the endpoint's"),
    ] {
        let limits = Limits::builder()
            .every_call(burst(100, Duration::from_secs(60)))
            .endpoint(Endpoint::get("/a"), burst(10, millis(1000)))
            .build()
            .unwrap();
        let mut response = Response::new(());
        let headers = response.headers_mut();
        headers.insert("ratelimit-policy", policy.parse().unwrap());
        headers.insert("ratelimit", r#""m";r=0;t=30"#.parse().unwrap());
        let permit = limits.acquire(&call("/a")).await.unwrap();
        permit.answered(&response);
        let waited = wait(&limits, &call("/b")).await;
        let expected = [Duration::ZERO, Duration::from_secs(30)];
        let everybody = usize::from(whose == "everybody's");
        assert_eq!(waited, expected[everybody], "{policy}");
        let waited = waited + wait(&limits, &call("/a")).await;
        assert_eq!(waited, Duration::from_secs(30), "{policy}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_refusal_of_concurrency_pauses_what_limits_it() {
    // Everybody's calls in flight are limited, and those of `/a`.
    for (scope, a, b) in [
        (Scope::GlobalConcurrency, true, true),
        (Scope::EndpointConcurrency, true, false),
        // A limit in flight is no rate.
        (Scope::EndpointRate, false, false),
    ] {
        let limits = Limits::builder()
            .every_call(Quota::concurrent(10))
            .endpoint(Endpoint::get("/a"), Quota::concurrent(5))
            .build()
            .unwrap();
        let permit = limits.acquire(&call("/a")).await.unwrap();
        permit.over(Verdict::NotExecuted {
            retry_after: Some(millis(700)),
            scope,
        });
        let now = Instant::now().into_std();
        let waits = |path| match limits.try_acquire(&call(path), now) {
            Ok(permit) => {
                permit.give_back();
                false
            }
            Err(error) => error.wait() == Some(millis(700)),
        };
        assert_eq!((waits("/a"), waits("/b")), (a, b), "{scope:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_reserved_share_is_lent_out_and_taken_back_at_once() {
    let quota = burst(10, millis(1000)).reserve(Priority::High, 30);
    let limits = limits(quota);
    let normal = call("/");
    let high = normal.priority(Priority::High);
    // Nobody of high priority is about: all of it is lent out.
    for _ in 0..10 {
        drop(limits.acquire(&normal).await.unwrap());
    }
    // One comes, and gets the first place.
    assert_eq!(wait(&limits, &high).await, millis(1000));
    // From now on the others leave three places.
    for _ in 0..7 {
        assert_eq!(wait_and_use(&limits, &normal).await, Duration::ZERO);
    }
    let now = Instant::now().into_std();
    limits.try_acquire(&normal, now).unwrap_err();
    for _ in 0..3 {
        assert_eq!(wait_and_use(&limits, &high).await, Duration::ZERO);
    }
}

async fn wait_and_use(limits: &Limits, call: &Call<'_>) -> Duration {
    let start = Instant::now();
    drop(limits.acquire(call).await.unwrap());
    start.elapsed()
}

#[tokio::test(start_paused = true)]
async fn a_lower_priority_with_a_share_is_not_starved() {
    let quota = Quota::per_second(10).reserve(Priority::Low, 20);
    let limits = limits(quota);
    let (sender, mut order) = tokio::sync::mpsc::unbounded_channel();
    for priority in [Priority::High, Priority::Low] {
        for _ in 0..100 {
            let (limits, sender) = (limits.clone(), sender.clone());
            tokio::spawn(async move {
                let call = Call::new(&Method::GET, "/").priority(priority);
                drop(limits.acquire(&call).await.unwrap());
                sender.send(priority).unwrap();
            });
        }
    }
    let mut low = 0;
    for _ in 0..100 {
        low += usize::from(order.recv().await == Some(Priority::Low));
    }
    assert!((15..=25).contains(&low), "{low} of 100");
}

/// Those of higher priorities who wait have no part in its share, and don't come
/// before it.
#[tokio::test(start_paused = true)]
async fn a_share_is_there_before_a_deadline_however_many_of_others_wait() {
    let quota = Quota::per_second(10).reserve(Priority::Low, 20);
    let limits = limits(quota);
    let call = Call::new(&Method::GET, "/");
    let high = call.priority(Priority::High);
    let mut crowd = [(); 100].map(|()| task::spawn(limits.acquire(&high)));
    for waits in &mut crowd {
        drop(waits.poll());
    }
    let low = call.priority(Priority::Low);
    let low = low.deadline(Deadline::at(Instant::now() + millis(2000)));
    assert!(wait_and_use(&limits, &low).await < millis(1000));
    // They come before one who has no share.
    let refused = call.deadline(Deadline::at(Instant::now() + millis(2000)));
    let refused = limits.acquire(&refused).await.unwrap_err();
    assert!(refused.wait() > Some(millis(9000)));
}

/// Quotas that are used up by turns seldom have room at the same time, but for who
/// has a share of each.
#[tokio::test(start_paused = true)]
async fn a_share_of_each_quota_lets_a_call_have_several() {
    let quota = Quota::concurrent(2).reserve(Priority::High, 50);
    let builder = Limits::builder().endpoint(Endpoint::get("/a"), quota);
    let host = Key::header(http::header::HOST);
    let limits = builder.keyed(host, quota).build().unwrap();
    let mut headers = HeaderMap::new();
    headers.insert("host", http::HeaderValue::from_static("one"));
    for turn in 0..20 {
        let (limits, headers) = (limits.clone(), headers.clone());
        tokio::spawn(async move {
            sleep(millis(5 * turn)).await;
            let call = match turn % 2 {
                0 => call("/a"),
                _ => call("/b").headers(&headers),
            };
            loop {
                let permit = limits.acquire(&call).await.unwrap();
                sleep(millis(10)).await;
                drop(permit);
            }
        });
    }
    sleep(millis(500)).await;
    let both = call("/a").headers(&headers).priority(Priority::High);
    let start = Instant::now();
    drop(limits.acquire(&both).await.unwrap());
    assert!(start.elapsed() <= millis(20));
}

#[tokio::test(start_paused = true)]
async fn limits_change_while_calls_wait() {
    let builder = |limit| Limits::builder().every_call(burst(limit, millis(60_000)));
    let limits = builder(1).build().unwrap();
    let call = call("/");
    drop(limits.acquire(&call).await.unwrap());
    let mut waiters: Vec<_> = (0..2).map(|_| task::spawn(limits.acquire(&call))).collect();
    for waiter in &mut waiters {
        assert_pending!(waiter.poll());
    }
    limits.reconfigure(builder(2)).unwrap();
    drop(assert_ready!(waiters[0].poll()).unwrap());
    assert_pending!(waiters[1].poll());
    // Gone altogether.
    limits.reconfigure(Limits::builder()).unwrap();
    drop(assert_ready!(waiters[1].poll()).unwrap());
    // And nonsense is refused, and changes nothing.
    let error = limits.reconfigure(builder(0)).unwrap_err();
    assert_eq!(error.field(), "limit");
    assert_eq!(wait(&limits, &call).await, Duration::ZERO);
}

#[tokio::test(start_paused = true)]
async fn what_was_counted_survives_a_change() {
    let rule = |limit| -> LimitsBuilder {
        Limits::builder()
            .endpoint(Endpoint::get("/a"), burst(limit, millis(1000)))
            .each_endpoint(burst(5, millis(1000)))
    };
    let limits = rule(3).build().unwrap();
    for _ in 0..3 {
        drop(limits.acquire(&call("/a")).await.unwrap());
    }
    limits
        .reconfigure(rule(4).known_endpoints([Endpoint::get("/b")]))
        .unwrap();
    assert_eq!(wait_and_use(&limits, &call("/a")).await, Duration::ZERO);
    assert_eq!(wait(&limits, &call("/a")).await, millis(1000));
}

#[tokio::test(start_paused = true)]
async fn keys_have_quotas_of_their_own_and_idle_ones_are_forgotten() {
    let limits = Limits::builder()
        .keyed(
            Key::header(HeaderName::from_static("account")),
            burst(1, millis(1000)),
        )
        .build()
        .unwrap();
    let ask = |account: String| {
        let limits = limits.clone();
        async move {
            let mut headers = HeaderMap::new();
            headers.insert("account", account.parse().unwrap());
            wait_and_use(&limits, &call("/").headers(&headers)).await
        }
    };
    assert_eq!(ask("a".into()).await, Duration::ZERO);
    assert_eq!(ask("b".into()).await, Duration::ZERO);
    assert_eq!(ask("a".into()).await, millis(1000));
    // No header, no limit.
    assert_eq!(wait_and_use(&limits, &call("/")).await, Duration::ZERO);
    for index in 0..1000 {
        ask(index.to_string()).await;
    }
    assert!(limits.snapshot().quotas.len() >= 1000);
    sleep(millis(5000)).await;
    for _ in 0..1000 {
        ask("a".into()).await;
    }
    let kept = limits.snapshot().quotas.len();
    assert!(kept <= 64, "{kept}");
}

#[tokio::test(start_paused = true)]
async fn more_keys_than_may_be_kept_share_one_quota() {
    let limits = Limits::builder()
        .keyed(Key::path(), burst(1, millis(1000)))
        .max_keys(2)
        .build()
        .unwrap();
    for path in ["/1", "/2", "/3"] {
        assert_eq!(wait_and_use(&limits, &call(path)).await, Duration::ZERO);
    }
    assert_eq!(wait(&limits, &call("/4")).await, millis(1000));
}

#[tokio::test(start_paused = true)]
async fn a_margin_ends_the_wait_for_slow_answers() {
    let margin = CountFrom::Sending { margin: millis(50) };
    let limits = limits(burst(2, millis(1000)).count_from(margin));
    let call = call("/");
    // One is answered soon, one not at all.
    let quick = limits.acquire(&call).await.unwrap();
    let _slow = limits.acquire(&call).await.unwrap();
    sleep(millis(20)).await;
    drop(quick);
    let start = Instant::now();
    drop(limits.acquire(&call).await.unwrap());
    assert_eq!(start.elapsed(), millis(1000));
    drop(limits.acquire(&call).await.unwrap());
    assert_eq!(start.elapsed(), millis(1030));
}

#[tokio::test(start_paused = true)]
async fn a_margin_counts_from_the_sending_and_not_from_the_permit() {
    let margin = CountFrom::Sending { margin: millis(50) };
    let limits = limits(burst(1, millis(1000)).count_from(margin));
    let start = Instant::now();
    let mut permit = limits.acquire(&call("/")).await.unwrap();
    sleep(millis(100)).await;
    permit.sent();
    drop(limits.acquire(&call("/")).await.unwrap());
    assert_eq!(start.elapsed(), millis(1150));
}

#[tokio::test(start_paused = true)]
async fn what_was_sent_late_is_counted_once_it_is_answered() {
    let margin = CountFrom::Sending {
        margin: millis(500),
    };
    let limits = limits(burst(1, millis(1000)).count_from(margin));
    let start = Instant::now();
    let mut permit = limits.acquire(&call("/")).await.unwrap();
    sleep(millis(100)).await;
    permit.sent();
    sleep(millis(20)).await;
    drop(permit);
    drop(limits.acquire(&call("/")).await.unwrap());
    assert_eq!(start.elapsed(), millis(1120));
}

/// A task may be polled long after it was granted its permit.
#[tokio::test(start_paused = true)]
async fn a_margin_counts_from_when_the_permit_is_handed_over() {
    let margin = millis(100);
    let limits = limits(burst(1, millis(1000)).count_from(CountFrom::Sending { margin }));
    let call = call("/");
    let _first = limits.acquire(&call).await.unwrap();
    let mut late = task::spawn(limits.acquire(&call));
    assert_pending!(late.poll());
    // The first is counted, and the timer set anew.
    sleep(millis(200)).await;
    assert_pending!(late.poll());
    sleep(millis(1400)).await;
    assert!(late.is_woken());
    let _second = assert_ready!(late.poll()).unwrap();
    assert_eq!(wait(&limits, &call).await, millis(1100));
}

/// However long that takes, its place is no one else's, though the margin may have
/// come meanwhile.
#[tokio::test(start_paused = true)]
async fn a_permit_that_is_not_handed_over_keeps_its_place() {
    let from_response = burst(1, millis(1000));
    let margin = millis(100);
    let from_sending = from_response.count_from(CountFrom::Sending { margin });
    for quota in [from_sending, from_response] {
        let limits = limits(quota);
        let call = call("/");
        drop(limits.acquire(&call).await.unwrap());
        let mut late = task::spawn(limits.acquire(&call));
        assert_pending!(late.poll());
        let mut next = task::spawn(limits.acquire(&call));
        assert_pending!(next.poll());
        sleep(millis(1500)).await;
        assert!(late.is_woken());
        let rules = Limits::builder().every_call(from_sending);
        limits.reconfigure(rules).unwrap();
        sleep(millis(3000)).await;
        assert!(!next.is_woken());
        let _late = assert_ready!(late.poll()).unwrap();
        sleep(millis(1099)).await;
        assert!(!next.is_woken());
        sleep(millis(2)).await;
        assert!(next.is_woken());
        // Nor is it lost when nobody wants it any more.
        drop(next);
        assert_eq!(wait(&limits, &call).await, Duration::ZERO);
    }
}

/// A poll may take long before it asks, and the clock is read as it begins.
#[tokio::test(start_paused = true)]
async fn a_margin_counts_from_the_sending_however_long_the_poll_has_taken() {
    let margin = millis(100);
    let quota = burst(1, millis(1000)).count_from(CountFrom::Sending { margin });
    for limits in [
        limits(quota),
        Limits::builder().keyed(Key::path(), quota).build().unwrap(),
    ] {
        let call = call("/");
        let poll =
            Deadline::at(Instant::now() + millis(5000)).hold(Some(Instant::now().into_std()));
        tokio::time::advance(millis(300)).await;
        let _first = assert_ready!(task::spawn(limits.acquire(&call)).poll()).unwrap();
        drop(poll);
        assert_eq!(wait(&limits, &call).await, millis(1100));
    }
}

/// And it is known by that time when it is answered, or leaves.
#[tokio::test(start_paused = true)]
async fn a_late_hand_over_is_found_again() {
    let margin = millis(100_000);
    for is_polled in [true, false] {
        let limits = limits(burst(1, millis(1000)).count_from(CountFrom::Sending { margin }));
        let call = call("/");
        drop(limits.acquire(&call).await.unwrap());
        let mut late = task::spawn(limits.acquire(&call));
        assert_pending!(late.poll());
        sleep(millis(1500)).await;
        assert!(late.is_woken());
        if is_polled {
            drop(assert_ready!(late.poll()).unwrap());
        }
        drop(late);
        let expected = if is_polled { 1000 } else { 0 };
        assert_eq!(wait(&limits, &call).await, millis(expected));
    }
}

#[tokio::test(start_paused = true)]
async fn a_bucket_gives_its_burst_and_then_its_rate() {
    let limits = limits(Quota::rate(10, millis(1000)).burst(3));
    let call = call("/");
    let start = Instant::now();
    let mut times = Vec::new();
    for _ in 0..6 {
        drop(limits.acquire(&call).await.unwrap());
        times.push(start.elapsed().as_millis());
    }
    assert_eq!(times, [0, 0, 0, 100, 200, 300]);
}

#[tokio::test(start_paused = true)]
async fn a_late_timer_loses_nothing_of_the_pace() {
    // 1999 intervals over 1 s: half a millisecond each, under a timer of one.
    let limits = limits(Quota::per_second(2000));
    let call = call("/");
    let start = Instant::now();
    for _ in 0..10_000 {
        drop(limits.acquire(&call).await.unwrap());
    }
    let rate = 10_000.0 / start.elapsed().as_secs_f64();
    assert!(rate > 1990.0, "{rate}");
}

#[tokio::test(start_paused = true)]
async fn a_snapshot_shows_every_quota() {
    let limits = stripe();
    let _permit = limits.acquire(&call("/b/1")).await.unwrap();
    let snapshot = limits.snapshot();
    let rules: Vec<_> = snapshot
        .quotas
        .iter()
        .map(|quota| (quota.rule.as_str(), quota.key.as_deref(), quota.used))
        .collect();
    assert!(rules.contains(&("every call", None, 1)), "{rules:?}");
    assert!(rules.contains(&("each endpoint", Some("GET /b/{id}"), 1)));
    assert!(rules.contains(&("each endpoint", Some("GET /a"), 0)));
    assert!(rules.contains(&("{id}", Some("1"), 1)));
    let every = &snapshot.quotas[0];
    assert_eq!(every.in_flight, 1);
    assert_eq!(every.waiting(Priority::Normal), 0);
    assert_eq!(every.free_at, Some(snapshot.at));
    assert_eq!(every.paused_until, None);
}

/// It is free a window after the last of them may have arrived.
#[tokio::test(start_paused = true)]
async fn a_snapshot_says_when_attempts_that_are_lost_make_room() {
    let limits = limits(burst(2, millis(1000)));
    for _ in 0..2 {
        let permit = limits.acquire(&call("/")).await.unwrap();
        permit.failed(&Fault::new(Verdict::Unknown));
        sleep(millis(100)).await;
    }
    let snapshot = limits.snapshot();
    let free_in = snapshot.quotas[0].free_at.unwrap() - snapshot.at;
    // Each may be on its way for a second.
    assert_eq!(free_in.as_millis(), 1800);
    let waited = wait(&limits, &call("/")).await;
    assert!(waited.abs_diff(free_in) <= millis(1));
}

/// What is kept for others is lent out a window after they were last about.
#[tokio::test(start_paused = true)]
async fn a_snapshot_says_when_a_share_makes_room() {
    let limits = limits(burst(2, millis(1000)).reserve(Priority::High, 50));
    let high = call("/").priority(Priority::High);
    limits.acquire(&high).await.unwrap().give_back();
    let _normal = limits.acquire(&call("/")).await.unwrap();
    let snapshot = limits.snapshot();
    let free_in = snapshot.quotas[0].free_at.unwrap() - snapshot.at;
    assert_eq!(free_in, millis(1000));
    assert_eq!(wait(&limits, &call("/")).await, free_in);
}

#[test]
fn nonsense_is_refused_by_name() {
    let refused = |builder: LimitsBuilder| builder.build().unwrap_err().to_string();
    let every = |quota| refused(Limits::builder().every_call(quota));
    assert_eq!(
        every(Quota::per_second(0)),
        "limit of `every call` is 0, expected at least 1"
    );
    assert!(every(Quota::new(1, Duration::ZERO)).starts_with("window of `every call` is 0ns,"));
    assert!(every(Quota::rate(1, millis(10)).burst(0)).starts_with("burst of `every call` is 0,"));
    assert!(every(Quota::concurrent(0)).starts_with("in_flight of `every call` is 0,"));
    assert!(every(Quota::per_second(1).penalty(Duration::ZERO)).starts_with("penalty of "));
    let much = Quota::per_second(9)
        .reserve(Priority::High, 60)
        .reserve(Priority::Low, 50);
    assert!(every(much).starts_with("reserve of `every call` is 110 %,"));
    assert_eq!(
        every(Quota::per_second(100).burst(20)),
        "burst of `every call` is 20, expected a `rate` that it belongs to; \
         a window's is `Shape::Burst`"
    );
    assert!(every(Quota::concurrent(9).burst(3)).starts_with("burst of `every call` is 3,"));
    assert_eq!(
        every(Quota::concurrent(9).shape(Shape::Paced)),
        "shape of `every call` is Paced, expected a rate or a window to pace"
    );
    let quota = Quota::per_second(1);
    let overlap = Limits::builder()
        .endpoint(Endpoint::get("/a/{b}"), quota)
        .endpoint(Endpoint::get("/a/{c}"), quota);
    assert!(refused(overlap).contains("overlaps with `/a/{b}`"));
    let path = Limits::builder().endpoint(Endpoint::get("v1/a"), quota);
    assert_eq!(
        refused(path),
        "the endpoint `GET v1/a` needs a template that starts with `/`"
    );
    let nowhere = Limits::builder().keyed(Key::param("id"), quota);
    assert!(refused(nowhere).starts_with("param of "));
    // What isn't of one rule names none.
    assert_eq!(
        refused(Limits::builder().endpoints([], quota)),
        "endpoints is none, expected at least one"
    );
    assert_eq!(
        refused(Limits::builder().max_keys(0)),
        "max_keys is 0, expected 1 to 100,000,000"
    );
    assert!(refused(Limits::builder().max_waiting(usize::MAX)).starts_with("max_waiting is 18"));
}

#[test]
fn a_call_is_shown_without_its_secrets() {
    let mut request = http::Request::new(());
    let secret = http::HeaderValue::from_static("Bearer secret");
    request.headers_mut().insert("authorization", secret);
    let limits = limits(Quota::per_second(1));
    let call = Call::of(&request);
    let shown = format!("{:?} {:?}", call, limits.acquire(&call));
    assert!(
        shown.contains("GET") && !shown.contains("secret"),
        "{shown}"
    );
}

#[test]
fn limits_outlive_the_runtime_in_which_somebody_waited() {
    let limits = limits(burst(1, millis(30)));
    let runtime = || {
        tokio::runtime::Builder::new_current_thread()
            .enable_time()
            .start_paused(true)
            .build()
            .unwrap()
    };
    let call = call("/");
    let first = runtime();
    first.block_on(async {
        drop(limits.acquire(&call).await.unwrap());
        let mut waits = pin!(limits.acquire(&call));
        let wait = tokio::time::timeout(millis(1), waits.as_mut()).await;
        wait.unwrap_err();
    });
    drop(first);
    runtime().block_on(async {
        drop(limits.acquire(&call).await.unwrap());
        drop(limits.acquire(&call).await.unwrap());
    });
}

/// Times that are a little behind those of others are lifted to them, and found
/// again by the same.
#[tokio::test(start_paused = true)]
async fn an_attempt_that_is_sent_by_a_slow_clock_is_counted_once_answered() {
    let margin = millis(10_000);
    let limits = limits(burst(1, millis(1000)).count_from(CountFrom::Sending { margin }));
    let ahead = Instant::now() + millis(5000);
    let take = |at: Instant| limits.try_acquire(&call("/"), at);
    let mut permit = take(ahead).unwrap();
    permit.sent();
    drop(permit);
    assert!(take(ahead + millis(999)).is_err());
    assert!(take(ahead + millis(1001)).is_ok());
}

/// It is on its way for twice as long as answers take, from when it was sent.
#[tokio::test(start_paused = true)]
async fn an_attempt_that_is_lost_late_has_arrived() {
    let limits = limits(burst(1, millis(1000)));
    let permit = limits.acquire(&call("/")).await.unwrap();
    sleep(millis(50)).await;
    drop(permit);
    for (held, expected) in [(30, 1070), (300, 1000)] {
        let permit = limits.acquire(&call("/")).await.unwrap();
        sleep(millis(held)).await;
        permit.failed(&Fault::new(Verdict::Unknown));
        let took = wait(&limits, &call("/")).await;
        assert!(took.abs_diff(millis(expected)) <= millis(2), "{took:?}");
    }
}

/// One that may still be on its way keeps its own place, and nobody else's.
#[tokio::test(start_paused = true)]
async fn an_attempt_without_an_answer_holds_up_no_others() {
    let lost = Fault::new(Verdict::Unknown);
    let window = limits(burst(10, millis(1000)));
    let bucket = limits(Quota::rate(10, millis(1000)).burst(10));
    for limits in [window, bucket] {
        let permit = limits.acquire(&call("/")).await.unwrap();
        let nine: Vec<_> = (0..9)
            .map(|_| limits.try_acquire(&call("/"), Instant::now()).unwrap())
            .collect();
        permit.failed(&lost);
        drop(nine);
        sleep(millis(1001)).await;
        let now = Instant::now().into_std();
        let again = (0..10).filter_map(|_| limits.try_acquire(&call("/"), now).ok());
        assert_eq!(again.collect::<Vec<_>>().len(), 9);
    }
}
