use std::time::{Duration, SystemTime};

use http::HeaderValue;
use http::header::RETRY_AFTER;

use super::*;
use crate::Test;

fn judge(rules: &Rules, status: u16, headers: &HeaderMap, body: &str) -> Judgement {
    rules.classify(&Answer {
        status: StatusCode::from_u16(status).unwrap(),
        headers,
        body: body.as_bytes(),
        broken: false,
        clock: || SystemTime::UNIX_EPOCH,
    })
}

fn verdict(rules: &Rules, status: u16, body: &str) -> Verdict {
    judge(rules, status, &HeaderMap::new(), body).verdict
}

fn header(name: &'static str, value: &'static str) -> HeaderMap {
    let mut headers = HeaderMap::new();
    headers.insert(name, HeaderValue::from_static(value));
    headers
}

#[test]
fn without_rules_the_status_speaks_for_itself() {
    let rules = Rules::new();
    for (status, expected) in [
        (200, Verdict::Done),
        (204, Verdict::Done),
        (301, Verdict::Rejected),
        (302, Verdict::Unknown),
        (303, Verdict::Unknown),
        (304, Verdict::Rejected),
        (307, Verdict::Rejected),
        (308, Verdict::Rejected),
        (400, Verdict::Rejected),
        (402, Verdict::Rejected),
        (409, Verdict::Rejected),
        (408, Verdict::Unknown),
        (425, Verdict::NO_EFFECT),
        (500, Verdict::Unknown),
        (501, Verdict::Rejected),
        (503, Verdict::Unknown),
        (504, Verdict::Unknown),
        (599, Verdict::Unknown),
        // No status of HTTP: to be taken for a 5xx (RFC 9110, section 15).
        (600, Verdict::Unknown),
        (999, Verdict::Unknown),
    ] {
        assert_eq!(verdict(&rules, status, ""), expected, "{status}");
    }
}

#[test]
fn a_rule_that_can_never_hold_is_refused() {
    #[expect(clippy::reversed_empty_ranges, reason = "that is the mistake")]
    let inverted = 299..=200;
    for (statuses, path, wrong) in [
        (inverted, "code", "statuses of a body rule is 299..=200, "),
        (0..=99, "code", "statuses of a body rule is 0..=99, "),
        (
            1000..=1001,
            "code",
            "statuses of a body rule is 1000..=1001, ",
        ),
        (200..=299, "", "path of a body rule is ``, "),
        (
            200..=299,
            "/error/code",
            "path of a body rule is `/error/code`, ",
        ),
        (200..=299, "$.error", "path of a body rule is `$.error`, "),
        (
            200..=299,
            "error..code",
            "path of a body rule is `error..code`, ",
        ),
        (200..=299, "error.", "path of a body rule is `error.`, "),
    ] {
        let right = BodyRule::new(200..=200, "$type.a/b.0", Test::Present);
        let rules = Rules::new().body(right);
        assert!(rules.check().is_ok());
        let rules = rules.body(BodyRule::new(statuses, path, Test::Present));
        let error = rules.check().unwrap_err().to_string();
        assert!(error.starts_with(&format!("{wrong}expected ")), "{error}");
    }
}

#[test]
fn a_delay_asked_for_with_503_is_advice() {
    let headers = header(RETRY_AFTER.as_str(), "7");
    let judgement = judge(&Rules::new(), 503, &headers, "");
    assert_eq!(judgement.verdict, Verdict::Unknown);
    let advice = Some(RetryAdvice::After(Duration::from_secs(7)));
    assert_eq!(judgement.advice, advice);
}

#[test]
fn a_delay_asked_for_is_kept_whatever_else_the_rules_say() {
    let headers = header(RETRY_AFTER.as_str(), "7");
    let unknown = Rules::new().status(StatusCode::SERVICE_UNAVAILABLE, Verdict::Unknown);
    let judgement = judge(&unknown, 503, &headers, "");
    let delay = Duration::from_secs(7);
    assert_eq!(judgement.advice, Some(RetryAdvice::After(delay)));
    // A 409 is final elsewhere, and so is a 400.
    let conflict = Rules::new().status(StatusCode::CONFLICT, Verdict::Unknown);
    let judgement = judge(&conflict, 409, &headers, "");
    assert_eq!(judgement.advice, Some(RetryAdvice::After(delay)));
    let name = HeaderName::from_static("stripe-should-retry");
    let mut told = headers.clone();
    told.insert(name.clone(), HeaderValue::from_static("true"));
    let judgement = judge(&Rules::new().should_retry_header(name), 400, &told, "");
    assert_eq!(judgement.advice, Some(RetryAdvice::After(delay)));
    let refused = Rules::new().status(StatusCode::SERVICE_UNAVAILABLE, Verdict::NO_EFFECT);
    assert!(matches!(
        judge(&refused, 503, &headers, "").verdict,
        Verdict::NotExecuted { retry_after: Some(asked), .. } if asked == delay
    ));
}

#[test]
fn a_425_is_worth_one_retry() {
    let judgement = judge(&Rules::new(), 425, &HeaderMap::new(), "");
    assert_eq!(judgement.advice, Some(RetryAdvice::Once));
}

#[test]
fn a_redirect_to_what_came_of_it_would_only_come_again() {
    // With or without a delay until it may be followed.
    for headers in [HeaderMap::new(), header(RETRY_AFTER.as_str(), "7")] {
        for status in [302, 303] {
            let judgement = judge(&Rules::new(), status, &headers, "");
            assert_eq!(judgement.verdict, Verdict::Unknown);
            assert_eq!(judgement.advice, Some(RetryAdvice::Never));
        }
    }
}

#[test]
fn what_was_done_before_is_said_whatever_else_the_rules_say() {
    let rules = Rules::new()
        .retry_only([503])
        .should_retry_header(HeaderName::from_static("should-retry"))
        .body(BodyRule::new(409..=409, "code", Test::Is("DUPLICATE".into())).done_before());
    for headers in [
        HeaderMap::new(),
        header(RETRY_AFTER.as_str(), "7"),
        header("should-retry", "false"),
        header("should-retry", "true"),
    ] {
        let judgement = judge(&rules, 409, &headers, r#"{"code":"DUPLICATE"}"#);
        assert_eq!(judgement.verdict, Verdict::Unknown);
        assert_eq!(judgement.advice, Some(RetryAdvice::DoneBefore));
    }
    assert_eq!(
        verdict(&rules, 409, r#"{"code":"OTHER"}"#),
        Verdict::Rejected
    );
    // Compressed by something on the way, or from something else.
    for body in ["", "{}", "<html>", "\u{1f}\u{8b}"] {
        let judgement = judge(&rules, 409, &HeaderMap::new(), body);
        assert_eq!(judgement.verdict, Verdict::Unknown, "{body}");
        assert_eq!(judgement.advice, Some(RetryAdvice::Never));
        assert_eq!(verdict(&rules, 404, body), Verdict::Rejected);
    }
    // What the status says is done needs no scalar to be so.
    let rules =
        Rules::new().body(BodyRule::new(200..=200, "code", Test::Is("D".into())).done_before());
    assert_eq!(verdict(&rules, 200, "{}"), Verdict::Done);
}

#[test]
fn the_reason_header_names_the_limit() {
    let name = HeaderName::from_static("stripe-rate-limited-reason");
    let rules = Rules::new().reason_header(name.clone());
    for (reason, expected) in [
        ("global-rate", Scope::GlobalRate),
        ("endpoint-rate", Scope::EndpointRate),
        ("global-concurrency", Scope::GlobalConcurrency),
        ("endpoint-concurrency", Scope::EndpointConcurrency),
        ("resource-specific", Scope::Resource),
        ("something-new", Scope::Unspecified),
    ] {
        let headers = header("stripe-rate-limited-reason", reason);
        let Verdict::NotExecuted { scope, .. } = judge(&rules, 429, &headers, "").verdict else {
            panic!("a 429 is not executed");
        };
        assert_eq!(scope, expected, "{reason}");
    }
}

#[test]
fn a_lock_concerns_one_call_unless_a_limit_is_named() {
    let reason = HeaderName::from_static("stripe-rate-limited-reason");
    let rules = Rules::new().reason_header(reason.clone()).body(
        BodyRule::new(429..=429, "error.code", Test::Is("lock_timeout".into()))
            .unless_header(reason)
            .means(Verdict::NO_EFFECT),
    );
    let body = r#"{"error":{"code":"lock_timeout"}}"#;
    assert_eq!(verdict(&rules, 429, body), Verdict::NO_EFFECT);
    let headers = header("stripe-rate-limited-reason", "global-rate");
    assert!(!rules.needs_body(StatusCode::TOO_MANY_REQUESTS, &headers));
    assert!(matches!(
        judge(&rules, 429, &headers, body).verdict,
        Verdict::NotExecuted {
            scope: Scope::GlobalRate,
            ..
        }
    ));
}

#[test]
fn the_should_retry_header_overrides_both_ways() {
    let name = HeaderName::from_static("stripe-should-retry");
    let rules = Rules::new().should_retry_header(name);
    let no = judge(&rules, 500, &header("stripe-should-retry", "false"), "");
    assert_eq!(no.advice, Some(RetryAdvice::Never));
    assert_eq!(no.verdict, Verdict::Unknown);
    let yes = judge(&rules, 400, &header("stripe-should-retry", "true"), "");
    assert_eq!(yes.verdict, Verdict::Unknown);
    let done = judge(&rules, 200, &header("stripe-should-retry", "true"), "");
    assert_eq!(done, Verdict::Done.into());
}

#[test]
fn statuses_outside_the_list_keep_their_verdict_and_are_not_retried() {
    let rules = Rules::new().retry_only([429, 500, 502, 503, 504]);
    let judgement = judge(&rules, 507, &HeaderMap::new(), "");
    assert_eq!(judgement.verdict, Verdict::Unknown);
    assert_eq!(judgement.advice, Some(RetryAdvice::Never));
    assert_eq!(judge(&rules, 503, &HeaderMap::new(), "").advice, None);
    assert_eq!(judge(&rules, 400, &HeaderMap::new(), "").advice, None);
}

#[test]
fn the_should_retry_header_goes_before_the_list() {
    let name = HeaderName::from_static("should-retry");
    let rules = Rules::new().retry_only([503]).should_retry_header(name);
    for (status, said, advice) in [
        (500, "true", None),
        (500, "false", Some(RetryAdvice::Never)),
        (500, "perhaps", Some(RetryAdvice::Never)),
        (503, "true", None),
        (503, "false", Some(RetryAdvice::Never)),
        (503, "perhaps", None),
    ] {
        let judgement = judge(&rules, status, &header("should-retry", said), "");
        assert_eq!(judgement.advice, advice, "{status} {said}");
    }
}

#[test]
fn what_a_broken_body_leaves_open_heeds_what_is_known() {
    let is = |path, text: &'static str| BodyRule::new(200..=499, path, Test::Is(text.into()));
    let rules = Rules::new()
        .body(is("status", "failed").means(Verdict::Rejected))
        .body(is("reason", "locked"));
    let headers = header(RETRY_AFTER.as_str(), "7");
    let judge = |body: &str| {
        rules.classify(&Answer {
            status: StatusCode::FORBIDDEN,
            headers: &headers,
            body: body.as_bytes(),
            broken: true,
            clock: || SystemTime::UNIX_EPOCH,
        })
    };
    let open = judge(r#"{"status":"paid","rea"#);
    assert_eq!(open.verdict, Verdict::Unknown);
    let delay = Duration::from_secs(7);
    assert_eq!(open.advice, Some(RetryAdvice::After(delay)));
    // One rule that holds is enough.
    let held = judge(r#"{"status":"failed","rea"#);
    assert_eq!(held, Verdict::Rejected.into());
}

#[test]
fn the_longer_of_two_delays_counts() {
    let rules =
        Rules::new().body(BodyRule::new(429..=429, "message", Test::Present).delay_after("in"));
    let headers = header(RETRY_AFTER.as_str(), "30");
    let judgement = judge(&rules, 429, &headers, r#"{"message":"in 5 seconds"}"#);
    assert!(matches!(
        judgement.verdict,
        Verdict::NotExecuted { retry_after: Some(delay), .. } if delay.as_secs() == 30
    ));
}
