//! What the layer does, cell by cell and line by line.

use std::future::{Future, poll_fn};
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll};
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use http::{Method, Request, Response, StatusCode};
use http_body::{Body, Frame};
use http_body_util::{BodyExt, Full};
use tokio::time::{Instant, Sleep, sleep, timeout};
use tollway_core::{
    Attempt, BoxError, Deadline, Fault, IdempotencyKey, Judgement, Phase, Priority, RetryAdvice,
    Scope, Verdict,
};
use tollway_retry::{
    Attempts, Budget, Outcome, ReplayBody, RetryError, RetryFuture, RetryLayer, RetryPolicy, Stop,
};
use tower::{Layer, Service, ServiceExt, service_fn};

use crate::support::*;

/// Every cell of the table: how many attempts a first answer leads to.
#[tokio::test(start_paused = true)]
async fn the_verdict_table_holds_in_every_cell() {
    type Cell = (&'static str, fn() -> Answer, [usize; 3]);
    let cells: [Cell; 8] = [
        // What came, then the attempts of a GET, a POST with a key, a POST.
        ("done", || verdict(Verdict::Done), [1, 1, 1]),
        ("rejected", || verdict(Verdict::Rejected), [1, 1, 1]),
        ("a plain 402", || Ok(status(402)), [1, 1, 1]),
        ("a plain 429", || Ok(status(429)), [2, 2, 2]),
        ("a plain 500", || Ok(status(500)), [2, 2, 1]),
        ("connect error", || error(Verdict::NO_EFFECT), [2, 2, 2]),
        ("reset", || error(Verdict::Unknown), [2, 2, 1]),
        ("an error without a fault", || Err("?".into()), [2, 2, 1]),
    ];
    for (name, answer, attempts) in cells {
        let requests = [get(), post_with_key(), post()];
        for (request, expected) in requests.into_iter().zip(attempts) {
            let text = format!("{name}, {}", request.method());
            let gateway = Gateway::answering([answer()]);
            let _ = call(policy(), &gateway, request).await;
            assert_eq!(gateway.made(), expected, "{text}");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn every_attempt_is_the_same_request_and_knows_its_number() {
    let gateway = Gateway::answering([Ok(status(503)), Ok(status(503)), Ok(status(503))]);
    let mut request = post_with_key();
    request.extensions_mut().insert(Priority::High);
    let response = call(policy(), &gateway, request).await.unwrap();
    assert_eq!(response.status(), StatusCode::OK);
    let inner = gateway.0.lock().unwrap();
    let numbers: Vec<_> = inner
        .seen
        .iter()
        .map(|seen| seen.attempt.number())
        .collect();
    assert_eq!(numbers, [1, 2, 3, 4]);
    for seen in &inner.seen {
        assert_eq!(seen.method, Method::POST);
        assert_eq!(seen.headers["idempotency-key"], "order-1");
        assert_eq!(seen.body, "amount=1");
        assert_eq!(seen.priority, Priority::High);
    }
}

#[tokio::test(start_paused = true)]
async fn a_stale_connection_is_retried_at_once_but_only_once_at_once() {
    let gateway = Gateway::answering([error(Verdict::NO_EFFECT), error(Verdict::NO_EFFECT)]);
    call(policy(), &gateway, post()).await.unwrap();
    let gaps = gateway.gaps();
    assert_eq!(gaps[0], Duration::ZERO);
    assert!(gaps[1] > Duration::ZERO && gaps[1] <= secs(1), "{gaps:?}");
}

/// Who is told of a lock, and comes back at once, finds it locked.
#[tokio::test(start_paused = true)]
async fn an_answer_that_says_not_executed_is_waited_upon_from_the_first() {
    for answer in [
        verdict(Verdict::NO_EFFECT),
        Ok(status(429)),
        Ok(status(425)),
    ] {
        let gateway = Gateway::answering([answer]);
        call(policy(), &gateway, post()).await.unwrap();
        let gap = gateway.gaps()[0];
        assert!(gap > Duration::ZERO && gap <= millis(501), "{gap:?}");
    }
}

/// `Retry-After` was ignored elsewhere, or cut to whole seconds and so to 0.
#[tokio::test(start_paused = true)]
async fn a_delay_asked_for_is_kept_to_the_millisecond_with_jitter_on_top() {
    for asked in [millis(1), millis(19_001), secs(60)] {
        let throttled = not_executed(Some(asked), Scope::Unspecified);
        let gateway = Gateway::answering([verdict(throttled)]);
        call(RetryPolicy::builder(), &gateway, post())
            .await
            .unwrap();
        let gap = gateway.gaps()[0];
        assert!(gap >= asked && gap <= asked + millis(501), "{gap:?}");
    }
}

/// Everybody who was told the same would return at the same instant.
#[tokio::test(start_paused = true)]
async fn those_who_were_told_the_same_return_one_by_one() {
    let throttled = not_executed(Some(secs(10)), Scope::Unspecified);
    let mut gaps = Vec::new();
    for _ in 0..20 {
        let gateway = Gateway::answering([verdict(throttled)]);
        call(RetryPolicy::builder(), &gateway, post())
            .await
            .unwrap();
        gaps.extend(gateway.gaps());
    }
    gaps.sort_unstable();
    gaps.dedup();
    assert!(gaps.len() > 10, "{gaps:?}");
}

#[tokio::test(start_paused = true)]
async fn retry_after_is_kept_on_an_unknown_outcome_too() {
    let gateway = Gateway::answering([advice(503, RetryAdvice::After(secs(7)))]);
    call(policy(), &gateway, post_with_key()).await.unwrap();
    assert!(gateway.gaps()[0] >= secs(7));
    // And from the bare header, where nobody has classified.
    let mut plain = status(503);
    plain
        .headers_mut()
        .insert("retry-after", "7".parse().unwrap());
    let gateway = Gateway::answering([Ok(plain)]);
    call(policy(), &gateway, get()).await.unwrap();
    assert!(gateway.gaps()[0] >= secs(7));
}

#[tokio::test(start_paused = true)]
async fn a_delay_beyond_the_policy_s_returns_at_once_and_says_how_long() {
    let throttled = not_executed(Some(secs(61)), Scope::GlobalRate);
    let gateway = Gateway::answering([verdict(throttled)]);
    let start = Instant::now();
    let response = call(policy(), &gateway, post()).await.unwrap();
    assert_eq!(start.elapsed(), Duration::ZERO);
    assert_eq!(story(&response).stop(), Stop::DelayTooLong);
    assert_eq!(story(&response).would_have_waited(), Some(secs(61)));
    assert_eq!(Verdict::of_response(&response), throttled);
}

#[tokio::test(start_paused = true)]
async fn a_delay_that_would_outlast_the_deadline_ends_the_call_now() {
    let throttled = not_executed(Some(secs(10)), Scope::Unspecified);
    let gateway = Gateway::answering([verdict(throttled)]);
    let mut request = post();
    let start = Instant::now();
    request
        .extensions_mut()
        .insert(Deadline::at(start + secs(10)));
    let response = call(policy(), &gateway, request).await.unwrap();
    assert_eq!(start.elapsed(), Duration::ZERO);
    assert_eq!(story(&response).stop(), Stop::Deadline);
    assert!(story(&response).would_have_waited() >= Some(secs(10)));
}

/// A layer above may hold one: asked for whenever an attempt has ended, and not
/// only at the first.
#[tokio::test(start_paused = true)]
async fn a_deadline_that_is_held_ends_the_call_too() {
    let throttled = |wait| verdict(not_executed(Some(wait), Scope::Unspecified));
    let gateway = Gateway::answering([throttled(secs(1)), throttled(secs(10))]);
    let start = Instant::now();
    let deadline = Deadline::at(start + secs(5));
    let mut call = Box::pin(call(policy(), &gateway, post()));
    let response = poll_fn(|cx| {
        let later = start.elapsed() >= secs(1);
        let _held = later.then(|| deadline.hold(None));
        call.as_mut().poll(cx)
    });
    let response = response.await.unwrap();
    assert!(start.elapsed() < secs(5));
    assert_eq!(story(&response).stop(), Stop::Deadline);
    assert_eq!(story(&response).made(), 2);
}

/// A limiter below that refuses is understood by its fault alone.
#[tokio::test(start_paused = true)]
async fn a_permit_refused_for_the_deadline_isn_t_asked_for_again() {
    let refused = Fault::new(not_executed(Some(secs(30)), Scope::Unspecified));
    let gateway = Gateway::answering([Err(refused.in_phase(Phase::Permit).into())]);
    let mut request = post();
    request
        .extensions_mut()
        .insert(Deadline::at(Instant::now() + secs(20)));
    let error = call(policy(), &gateway, request).await.unwrap_err();
    assert!(error.is_not_executed());
    assert_eq!(error.attempts().stop(), Stop::Deadline);
    assert_eq!(gateway.made(), 1);
}

#[tokio::test(start_paused = true)]
async fn the_provider_s_advice_goes_beyond_the_verdict() {
    let gateway = Gateway::answering([advice(503, RetryAdvice::Never)]);
    let response = call(policy(), &gateway, get()).await.unwrap();
    assert_eq!(
        (gateway.made(), story(&response).stop()),
        (1, Stop::Advised)
    );

    let once = || advice(425, RetryAdvice::Once);
    let gateway = Gateway::answering([once(), once()]);
    let response = call(policy(), &gateway, get()).await.unwrap();
    assert_eq!(
        (gateway.made(), story(&response).stop()),
        (2, Stop::Advised)
    );
}

#[tokio::test(start_paused = true)]
async fn a_key_in_the_extensions_makes_a_repeat_safe_while_it_lives() {
    for (life, attempts) in [(secs(3600), 2), (Duration::ZERO, 1)] {
        let gateway = Gateway::answering([Ok(status(502))]);
        let key: IdempotencyKey = "RequestId-7".parse().unwrap();
        let mut request = post();
        let end = Instant::now() + life;
        request
            .extensions_mut()
            .insert(key.clone().valid_until(end));
        let response = call(policy(), &gateway, request).await.unwrap();
        assert_eq!(gateway.made(), attempts);
        if attempts == 1 {
            assert_eq!(story(&response).stop(), Stop::KeyExpired);
            assert_eq!(Verdict::of(response.extensions()), Some(Verdict::Unknown));
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_retry_after_the_life_of_a_header_s_key_is_refused() {
    let gateway = Gateway::answering([Ok(status(503)), Ok(status(503))]).taking(secs(60));
    let policy = policy().key_life(secs(100));
    let response = call(policy, &gateway, post_with_key()).await.unwrap();
    assert_eq!(gateway.made(), 2);
    assert_eq!(story(&response).stop(), Stop::KeyExpired);
}

#[tokio::test(start_paused = true)]
async fn a_key_that_would_die_in_the_wait_ends_the_call_before_it() {
    let gateway = Gateway::answering([advice(503, RetryAdvice::After(secs(20)))]);
    let start = Instant::now();
    let policy = policy().key_life(secs(20));
    let response = call(policy, &gateway, post_with_key()).await.unwrap();
    assert_eq!(gateway.made(), 1);
    assert_eq!(story(&response).stop(), Stop::KeyExpired);
    assert_eq!(start.elapsed(), Duration::ZERO);
}

#[tokio::test(start_paused = true)]
async fn the_life_of_a_key_bounds_only_an_attempt_after_one_in_doubt() {
    for (code, bound) in [(429, None), (503, Some(secs(20)))] {
        let start = Instant::now();
        let service = service_fn(move |request: Request<ReplayBody<Full<Bytes>>>| {
            let is_first = Attempt::of(request.extensions()) == Attempt::FIRST;
            let deadline = Deadline::of(request.extensions()).map(Deadline::instant);
            async move {
                if is_first {
                    return Ok::<_, BoxError>(status(code));
                }
                let end = bound.map(|life| (start + life).into_std());
                assert_eq!(deadline, end, "{code}");
                Ok(status(200))
            }
        });
        let policy = policy().key_life(secs(20)).build().unwrap();
        let service = RetryLayer::new(policy).layer(service);
        let response = service.oneshot(post_with_key()).await.unwrap();
        assert_eq!(response.status(), StatusCode::OK);
    }
}

#[tokio::test(start_paused = true)]
async fn no_header_is_a_key_where_the_provider_honours_none() {
    let gateway = Gateway::answering([Ok(status(503))]);
    let response = call(policy().key_headers([]), &gateway, post_with_key())
        .await
        .unwrap();
    assert_eq!((gateway.made(), story(&response).stop()), (1, Stop::NoKey));
}

#[tokio::test(start_paused = true)]
async fn an_unknown_outcome_is_marked_with_its_key() {
    let gateway = Gateway::answering([Ok(status(503)), Ok(status(503))]);
    let response = call(policy().max_attempts(2), &gateway, post_with_key())
        .await
        .unwrap();
    assert_eq!(response.status(), StatusCode::SERVICE_UNAVAILABLE);
    assert_eq!(Verdict::of(response.extensions()), Some(Verdict::Unknown));
    let key = IdempotencyKey::of(response.extensions()).unwrap();
    assert_eq!(key.as_str(), "order-1");

    let gateway = Gateway::answering([error(Verdict::Unknown)]);
    let error = call(policy().max_attempts(1), &gateway, post_with_key())
        .await
        .unwrap_err();
    assert!(error.is_unknown());
    assert_eq!(error.idempotency_key().unwrap().as_str(), "order-1");
    assert_eq!(
        error.to_string(),
        "outcome unknown after 1 attempt, as many as the policy allows; \
         look it up before repeating it"
    );

    // A look-up had none.
    let gateway = Gateway::answering([crate::support::error(Verdict::Unknown)]);
    let error = call(policy().max_attempts(1), &gateway, get()).await;
    assert_eq!(
        error.unwrap_err().to_string(),
        "outcome unknown after 1 attempt, as many as the policy allows"
    );
}

/// The first attempt may have had its effect: a later one that certainly hadn't
/// doesn't change that.
#[tokio::test(start_paused = true)]
async fn an_unknown_outcome_stays_unknown_after_a_refusal() {
    let answers = || [error(Verdict::Unknown), Ok(status(429))];
    let gateway = Gateway::answering(answers());
    let response = call(policy().max_attempts(2), &gateway, post_with_key())
        .await
        .unwrap();
    assert_eq!(response.status(), StatusCode::TOO_MANY_REQUESTS);
    assert_eq!(Verdict::of(response.extensions()), Some(Verdict::Unknown));

    let gateway = Gateway::answering([Ok(status(500)), error(Verdict::NO_EFFECT)]);
    let error = call(policy().max_attempts(2), &gateway, post_with_key())
        .await
        .unwrap_err();
    assert!(error.is_unknown());
    assert_eq!(Verdict::of_error(&error), Verdict::Unknown);
    let fault = Fault::find(&error).unwrap();
    assert_eq!(fault.phase(), Some(Phase::Connect));
}

/// Whoever reads the answer further up, another retry for instance, is told no
/// less than this one was.
#[tokio::test(start_paused = true)]
async fn advice_goes_with_the_verdict_that_an_answer_is_marked_with() {
    let asking = |code, secs: u32| {
        let mut response = status(code);
        response.headers_mut().insert("retry-after", secs.into());
        Ok(response)
    };
    let once = || advice(425, RetryAdvice::Once);
    let never = || advice(429, RetryAdvice::Never);
    let after = |delay| Some(RetryAdvice::After(secs(delay)));
    for (answers, advised) in [
        // No layer below has read these.
        (vec![asking(503, 90)], after(90)),
        (vec![Ok(status(302))], Some(RetryAdvice::Never)),
        // The last attempt had no effect, and an earlier one may have had.
        (vec![Ok(status(500)), asking(429, 90)], after(90)),
        (vec![Ok(status(500)), never()], Some(RetryAdvice::Never)),
        (vec![Ok(status(500)), once()], None),
        (vec![asking(503, 1), Ok(status(404))], None),
    ] {
        let attempts = u32::try_from(answers.len()).unwrap();
        let gateway = Gateway::answering(answers);
        let response = call(policy().max_attempts(attempts), &gateway, post_with_key())
            .await
            .unwrap();
        let read = Judgement::of_response(&response, SystemTime::UNIX_EPOCH);
        let expected = (Verdict::Unknown, advised);
        assert_eq!((read.verdict, read.advice), expected, "{response:?}");
    }
    // So is whoever reads an error.
    let refused = not_executed(Some(secs(90)), Scope::Call);
    for (last, advised) in [(refused, after(90)), (Verdict::NO_EFFECT, None)] {
        let gateway = Gateway::answering([Ok(status(500)), error(last)]);
        let policy = policy().max_attempts(2);
        let error = call(policy, &gateway, post_with_key()).await.unwrap_err();
        let read = Judgement::of_error(&error);
        assert_eq!((read.verdict, read.advice), (Verdict::Unknown, advised));
    }
}

/// The first attempt may have been executed, and the second one turned away at
/// the door: credentials that were replaced in between, a key in use, a route
/// that is gone.
#[tokio::test(start_paused = true)]
async fn an_unknown_outcome_stays_unknown_after_a_rejection_that_is_not_about_the_request() {
    for (code, last) in [
        (307, Verdict::Unknown),
        (401, Verdict::Unknown),
        (403, Verdict::Unknown),
        (404, Verdict::Unknown),
        (409, Verdict::Unknown),
        (400, Verdict::Rejected),
        (402, Verdict::Rejected),
        (422, Verdict::Rejected),
    ] {
        let gateway = Gateway::answering([error(Verdict::Unknown), Ok(status(code))]);
        let response = call(policy(), &gateway, post_with_key()).await.unwrap();
        assert_eq!((gateway.made(), response.status().as_u16()), (2, code));
        assert_eq!(Verdict::of_response(&response), last, "{code}");
        let key = IdempotencyKey::of(response.extensions());
        assert_eq!(key.is_some(), last == Verdict::Unknown, "{code}");
        // The same answer to the only attempt is what it says.
        let gateway = Gateway::answering([Ok(status(code))]);
        let response = call(policy(), &gateway, post_with_key()).await.unwrap();
        assert_eq!(Verdict::of_response(&response), Verdict::Rejected, "{code}");
    }
    // Nor does one that is, where the provider keeps only what it has done: the
    // first attempt may be late.
    let mut request = post();
    let key: IdempotencyKey = "order-1".parse().unwrap();
    request.extensions_mut().insert(key.refusing_repeats());
    let gateway = Gateway::answering([error(Verdict::Unknown), Ok(status(402))]);
    let response = call(policy(), &gateway, request).await.unwrap();
    assert_eq!(gateway.made(), 2);
    assert_eq!(Verdict::of_response(&response), Verdict::Unknown);
    // Nor does an error say more: nobody was asked.
    let gateway = Gateway::answering([Ok(status(503)), error(Verdict::Rejected)]);
    let error = call(policy(), &gateway, post_with_key()).await.unwrap_err();
    assert!(error.is_unknown());
    assert_eq!(Verdict::of_error(&error), Verdict::Unknown);
    assert_eq!(error.idempotency_key().unwrap().as_str(), "order-1");
}

/// What somebody else did under the same key isn't what this call asked for.
#[tokio::test(start_paused = true)]
async fn what_was_done_before_was_done_by_an_attempt_in_doubt_or_is_unknown() {
    let before = || advice(409, RetryAdvice::DoneBefore);
    let said = |answer: Answer| {
        answer.map(|mut response| {
            response.extensions_mut().insert(Verdict::Unknown);
            response
        })
    };
    for (answers, made, verdict, stop) in [
        (vec![], 1, Verdict::Unknown, Stop::Advised),
        // A refusal leaves no doubt behind.
        (vec![Ok(status(429))], 2, Verdict::Unknown, Stop::Advised),
        (
            vec![error(Verdict::NO_EFFECT)],
            2,
            Verdict::Unknown,
            Stop::Advised,
        ),
        (vec![Ok(status(503))], 2, Verdict::Done, Stop::Final),
        (
            vec![error(Verdict::Unknown), Ok(status(429))],
            3,
            Verdict::Done,
            Stop::Final,
        ),
    ] {
        let gateway = Gateway::answering(answers);
        gateway.answer([said(before())]);
        let response = call(policy(), &gateway, post_with_key()).await.unwrap();
        assert_eq!(response.status(), StatusCode::CONFLICT);
        assert_eq!(Verdict::of_response(&response), verdict);
        assert_eq!(gateway.made(), made);
        assert_eq!(story(&response).stop(), stop);
        let last = story(&response).records().last().unwrap();
        assert_eq!(last.verdict, verdict);
        let key = IdempotencyKey::of(response.extensions());
        assert_eq!(key.is_some(), verdict == Verdict::Unknown);
    }
}

/// A 303 says that the request was processed; what came of it stands elsewhere.
#[tokio::test(start_paused = true)]
async fn a_redirect_is_final_only_where_nothing_was_asked_for() {
    let put = || {
        let mut request = post();
        *request.method_mut() = Method::PUT;
        request
    };
    for code in [302, 303] {
        for (request, verdict) in [
            (get(), Verdict::Rejected),
            (put(), Verdict::Unknown),
            (post(), Verdict::Unknown),
            (post_with_key(), Verdict::Unknown),
        ] {
            let gateway = Gateway::answering([Ok(status(code))]);
            let response = call(policy(), &gateway, request).await.unwrap();
            assert_eq!(response.status(), code);
            assert_eq!(Verdict::of_response(&response), verdict);
            assert_eq!(gateway.made(), 1);
        }
    }
    // An error that advises against a retry is no redirect.
    for verdict in [Verdict::NO_EFFECT, Verdict::Unknown] {
        let fault = Fault::new(verdict).advising(RetryAdvice::Never);
        let gateway = Gateway::answering([Err(fault.into())]);
        let error = call(policy(), &gateway, get()).await.unwrap_err();
        assert_eq!(Verdict::of_error(&error), verdict);
        assert_eq!(gateway.made(), 1);
    }
    // A new address for the same request: nothing was done at the old one.
    for code in [301, 307, 308] {
        let gateway = Gateway::answering([Ok(status(code))]);
        let response = call(policy(), &gateway, post()).await.unwrap();
        assert_eq!(Verdict::of_response(&response), Verdict::Rejected);
    }
}

/// The second `DELETE` finds nothing because the first one took effect.
#[tokio::test(start_paused = true)]
async fn a_repeat_without_a_key_that_runs_into_the_first_one_s_effect_is_unknown() {
    for (method, code) in [("DELETE", 404), ("DELETE", 410), ("PUT", 412), ("PUT", 400)] {
        let gateway = Gateway::answering([error(Verdict::Unknown), Ok(status(code))]);
        let mut request = get();
        *request.method_mut() = method.parse().unwrap();
        let response = call(policy(), &gateway, request).await.unwrap();
        assert_eq!(Verdict::of_response(&response), Verdict::Unknown, "{code}");
    }
    // To read has no effect that could be in doubt.
    let gateway = Gateway::answering([error(Verdict::Unknown), Ok(status(404))]);
    let response = call(policy(), &gateway, get()).await.unwrap();
    assert_eq!(Verdict::of_response(&response), Verdict::Rejected);
}

#[tokio::test(start_paused = true)]
async fn the_answer_tells_its_story() {
    let gateway = Gateway::answering([error(Verdict::NO_EFFECT), Ok(status(503))]).taking(secs(2));
    let response = call(policy(), &gateway, post_with_key()).await.unwrap();
    let story = story(&response);
    assert_eq!((story.made(), story.stop()), (3, Stop::Final));
    let records = story.records();
    let Outcome::Error(text) = &records[0].outcome else {
        panic!("{records:?}");
    };
    assert_eq!(
        &**text,
        "certainly not executed (connecting): connection reset"
    );
    assert_eq!(
        records[1].outcome,
        Outcome::Status(StatusCode::SERVICE_UNAVAILABLE)
    );
    assert_eq!(records[2].outcome, Outcome::Status(StatusCode::OK));
    let verdicts: Vec<_> = records.iter().map(|record| record.verdict).collect();
    assert_eq!(
        verdicts,
        [Verdict::NO_EFFECT, Verdict::Unknown, Verdict::Done]
    );
    assert!(records.iter().all(|record| record.duration == secs(2)));
    assert_eq!(
        (records[0].delay, records[1].delay),
        (Duration::ZERO, Duration::ZERO)
    );
    assert!(records[2].delay > Duration::ZERO);
}

#[tokio::test(start_paused = true)]
async fn a_call_that_needs_no_retry_has_no_story() {
    for code in [200, 402] {
        let gateway = Gateway::answering([Ok(status(code))]);
        let response = call(policy(), &gateway, post()).await.unwrap();
        assert!(response.extensions().is_empty());
    }
}

#[tokio::test(start_paused = true)]
async fn a_spent_budget_is_visible_in_the_answer() {
    let budget = Budget::builder()
        .capacity(1)
        .per_second(0.0)
        .build()
        .unwrap();
    let gateway = Gateway::answering((0..9).map(|_| Ok(status(503))));
    let policy = policy().budget(budget.clone());
    let response = call(policy, &gateway, get()).await.unwrap();
    assert_eq!((gateway.made(), story(&response).stop()), (2, Stop::Budget));
    assert_eq!(budget.available(), Some(0.0));
}

#[tokio::test(start_paused = true)]
async fn a_retry_that_succeeds_pays_back() {
    let budget = Budget::default();
    let gateway = Gateway::answering([Ok(status(503))]);
    call(policy().budget(budget.clone()), &gateway, get())
        .await
        .unwrap();
    assert_eq!(gateway.made(), 2);
    assert_eq!(budget.available(), Some(100.0));
}

/// A limiter has many at once come again, of which the provider has seen nothing.
#[tokio::test(start_paused = true)]
async fn an_attempt_that_got_no_permit_costs_nothing() {
    let refused = || {
        let fault = Fault::new(not_executed(Some(secs(1)), Scope::Call));
        Err(fault.in_phase(Phase::Permit).into())
    };
    let budget = Budget::builder().capacity(1).per_second(0.0);
    let budget = budget.build().unwrap();
    let policy = || policy().budget(budget.clone());
    let gateway = Gateway::answering([refused(), refused(), refused()]);
    call(policy(), &gateway, get()).await.unwrap();
    assert_eq!((gateway.made(), budget.available()), (4, Some(1.0)));
    // Nor does one whose call is dropped before the next.
    let gateway = Gateway::answering([Ok(status(503)), refused()]);
    let dropped = timeout(secs(1), call(policy(), &gateway, get())).await;
    assert!(dropped.is_err());
    assert_eq!((gateway.made(), budget.available()), (2, Some(1.0)));
    // What was paid for one that is refused pays for the next.
    let gateway = Gateway::answering([Ok(status(503)), refused(), Ok(status(503))]);
    call(policy(), &gateway, get()).await.unwrap();
    assert_eq!((gateway.made(), budget.available()), (3, Some(0.0)));
}

#[tokio::test(start_paused = true)]
async fn a_call_that_succeeds_at_once_adds_to_the_budget() {
    let budget = Budget::builder()
        .capacity(2)
        .per_success(0.25)
        .per_second(0.0);
    let budget = budget.build().unwrap();
    let gateway = Gateway::answering((0..9).map(|_| Ok(status(503))));
    let policy = || policy().max_attempts(2).budget(budget.clone());
    for spent in 1..=3 {
        call(policy(), &gateway, get()).await.unwrap();
        assert_eq!(budget.available(), Some(2.0 - f64::from(spent.min(2))));
    }
    let healthy = Gateway::default();
    for earned in 1..=3 {
        call(policy(), &healthy, get()).await.unwrap();
        assert_eq!(budget.available(), Some(0.25 * f64::from(earned)));
    }
}

/// Elsewhere the request is cloned even for the last attempt.
#[tokio::test(start_paused = true)]
async fn nothing_is_copied_that_cannot_be_used() {
    /// Counts its copies.
    struct Counted(Arc<AtomicUsize>);
    impl Clone for Counted {
        fn clone(&self) -> Self {
            self.0.fetch_add(1, Ordering::Relaxed);
            Self(Arc::clone(&self.0))
        }
    }

    // The first of three attempts leaves a copy behind, the second is copied
    // from it, the third is the copy itself.
    for (max_attempts, copied) in [(1, 0), (2, 1), (3, 2)] {
        let copies = Arc::new(AtomicUsize::new(0));
        let gateway = Gateway::answering((0..9).map(|_| Ok(status(503))));
        let mut request = get();
        request
            .extensions_mut()
            .insert(Counted(Arc::clone(&copies)));
        let policy = policy().max_attempts(max_attempts);
        call(policy, &gateway, request).await.unwrap();
        assert_eq!(gateway.made(), max_attempts as usize);
        assert_eq!(copies.load(Ordering::Relaxed), copied);
    }
}

/// The service below ends between two attempts.
#[tokio::test(start_paused = true)]
async fn a_service_that_gets_ready_no_more_ends_the_call() {
    #[derive(Clone)]
    struct Mortal(Gateway);
    impl Service<Request<ReplayBody<Full<Bytes>>>> for Mortal {
        type Response = Response<Full<Bytes>>;
        type Error = BoxError;
        type Future = <Gateway as Service<Request<ReplayBody<Full<Bytes>>>>>::Future;
        fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
            Poll::Ready(match self.0.made() {
                0 => Ok(()),
                _ => Err("closed".into()),
            })
        }
        fn call(&mut self, request: Request<ReplayBody<Full<Bytes>>>) -> Self::Future {
            self.0.call(request)
        }
    }

    for (first, unknown) in [(500, true), (429, false)] {
        let gateway = Gateway::answering([Ok(status(first))]);
        let budget = Budget::default();
        let policy = RetryPolicy::builder()
            .budget(budget.clone())
            .build()
            .unwrap();
        let service = RetryLayer::new(policy).layer(Mortal(gateway.clone()));
        let error = service.clone().oneshot(get()).await.unwrap_err();
        assert_eq!(error.is_unknown(), unknown);
        assert_eq!(error.is_not_executed(), !unknown);
        assert_eq!(error.attempts().stop(), Stop::NotReady);
        assert_eq!(error.attempts().made(), 1);
        assert_eq!(budget.available(), Some(100.0));
        // And so does a call that didn't even begin.
        let error = service.oneshot(get()).await.unwrap_err();
        assert!(error.is_not_executed());
        assert_eq!(
            error.to_string(),
            "call failed without effect before the first attempt"
        );
    }
}

/// The key lives when the wait begins, and is forgotten when the service below
/// is ready at last.
#[tokio::test(start_paused = true)]
async fn a_key_that_dies_while_the_service_gets_ready_is_not_used() {
    /// Not ready for a minute once the first attempt was made.
    struct Slow(Gateway, Option<Pin<Box<Sleep>>>);
    impl Clone for Slow {
        fn clone(&self) -> Self {
            Self(self.0.clone(), None)
        }
    }
    impl Service<Request<ReplayBody<Full<Bytes>>>> for Slow {
        type Response = Response<Full<Bytes>>;
        type Error = BoxError;
        type Future = <Gateway as Service<Request<ReplayBody<Full<Bytes>>>>>::Future;
        fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
            if self.0.made() == 0 {
                return Poll::Ready(Ok(()));
            }
            let sleep = self.1.get_or_insert_with(|| Box::pin(sleep(secs(60))));
            sleep.as_mut().poll(cx).map(Ok)
        }
        fn call(&mut self, request: Request<ReplayBody<Full<Bytes>>>) -> Self::Future {
            self.0.call(request)
        }
    }

    for (life, made) in [(secs(30), 1), (secs(90), 2)] {
        let gateway = Gateway::answering([Ok(status(503))]);
        let policy = policy().key_life(life).build().unwrap();
        let service = RetryLayer::new(policy).layer(Slow(gateway.clone(), None));
        let result = service.oneshot(post_with_key()).await;
        assert_eq!(gateway.made(), made);
        if made == 1 {
            let error = result.unwrap_err();
            assert!(error.is_unknown());
            assert_eq!(error.attempts().stop(), Stop::KeyExpired);
            assert_eq!(error.idempotency_key().unwrap().as_str(), "order-1");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_body_that_failed_ends_the_call_and_says_so() {
    let service = RetryLayer::new(RetryPolicy::default()).layer(service_fn(
        |request: Request<ReplayBody<Broken>>| async move {
            // As a connection does: the request fails as its body does.
            request.into_body().collect().await?;
            Ok::<_, BoxError>(status(200))
        },
    ));
    let request = Request::put("/").body(Broken).unwrap();
    let error = service.oneshot(request).await.unwrap_err();
    assert!(error.is_unknown());
    assert_eq!(error.attempts().stop(), Stop::NotReplayable);
    assert_eq!(error.attempts().made(), 1);
}

/// Fails when it is read.
struct Broken;

impl Body for Broken {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, io::Error>>> {
        Poll::Ready(Some(Err(io::ErrorKind::BrokenPipe.into())))
    }
}

#[test]
fn what_crosses_threads_can() {
    fn can<T: Send + Sync>() {}
    can::<RetryError>();
    can::<Attempts>();
    can::<ReplayBody<Full<Bytes>>>();
    can::<RetryPolicy>();
    fn can_move<T: Send>() {}
    can_move::<RetryFuture<Gateway, Full<Bytes>, Full<Bytes>>>();
}
