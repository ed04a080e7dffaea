//! The profiles' numbers and rules, each as its provider documents it.

#![allow(
    clippy::unwrap_used,
    reason = "a test that panics has failed, as it should"
)]

use std::time::Duration;

use http::{HeaderMap, HeaderValue, Request, StatusCode};
use tokio::time::Instant;
use tollway::core::{Answer, Attempt, Classify, Judgement, RetryAdvice, Scope, Verdict};
use tollway::idempotency::Dialect;
use tollway::limit::{Call, Limits};
use tollway::{Profile, profiles};

const SECOND: Duration = Duration::from_secs(1);
const MINUTE: Duration = Duration::from_secs(60);
const HOUR: Duration = Duration::from_secs(3600);
const DAY: Duration = Duration::from_secs(24 * 3600);

fn request(line: &str) -> Request<()> {
    let (method, path) = line.split_once(' ').unwrap();
    Request::builder()
        .method(method)
        .uri(path)
        .body(())
        .unwrap()
}

fn limits(profile: Profile) -> Limits {
    profile.limits.build().unwrap()
}

/// How many of these requests, one after the other and each answered at once,
/// get a permit within this time of a limiter that was never used.
fn granted(profile: Profile, requests: &[Request<()>], time: Duration) -> usize {
    let limits = limits(profile);
    let start = Instant::now();
    let mut now = start;
    let mut granted = 0;
    loop {
        let mut soonest = Duration::MAX;
        let mut any = false;
        for request in requests {
            match limits.try_acquire(&Call::of(request), now) {
                Ok(permit) => {
                    permit.over_at(now, Verdict::Done);
                    granted += 1;
                    any = true;
                }
                Err(error) => soonest = soonest.min(error.wait().unwrap()),
            }
        }
        if !any {
            now += soonest.max(Duration::from_nanos(1));
        }
        if now >= start + time {
            return granted;
        }
    }
}

/// How many in each window, in the mean of ten.
fn per(window: Duration, profile: fn() -> Profile, lines: &[&str]) -> usize {
    let requests: Vec<_> = lines.iter().map(|line| request(line)).collect();
    let ten = granted(profile(), &requests, window * 10);
    assert_eq!(ten % 10, 0, "{ten}");
    ten / 10
}

/// At an even pace, the last of a window would fall on the first of the next
/// one: so many fewer.
const PACED: usize = 1;

/// How many can be in flight at the same time.
fn in_flight(profile: Profile, line: &str) -> usize {
    let limits = limits(profile);
    let request = request(line);
    let start = Instant::now();
    let permits: Vec<_> = (0..1000)
        .filter_map(|n| {
            let now = start + n * SECOND / 10;
            limits.try_acquire(&Call::of(&request), now).ok()
        })
        .collect();
    permits.len()
}

#[tokio::test(start_paused = true)]
async fn payrix_takes_1000_in_10_s_on_each_path() {
    let window = 10 * SECOND;
    assert_eq!(per(window, profiles::payrix, &["POST /txns"]), 1000);
    let one = ["POST /txns", "GET /txns/1"];
    assert_eq!(per(window, profiles::payrix, &one), 1000);
    let two = ["POST /txns", "GET /logins"];
    assert_eq!(per(window, profiles::payrix, &two), 2000);
}

#[tokio::test(start_paused = true)]
async fn stripe_takes_100_a_second_and_25_of_each_endpoint() {
    let charges = ["GET /v1/charges/a", "GET /v1/charges/b"];
    assert_eq!(per(SECOND, profiles::stripe, &charges), 25 - PACED);
    let many = [
        "GET /v1/charges",
        "POST /v1/charges",
        "GET /v1/refunds/a",
        "POST /v1/refunds",
        "GET /v1/customers",
        "POST /v1/customers",
    ];
    assert_eq!(per(SECOND, profiles::stripe, &many), 100 - PACED);
    assert_eq!(per(SECOND, profiles::stripe_sandbox, &many), 25 - PACED);
}

#[tokio::test(start_paused = true)]
async fn stripe_has_stricter_resources() {
    for (lines, number) in [
        (&["GET /v1/files", "GET /v1/files/a"][..], 20),
        (&["POST /v1/files"], 20),
        (&["GET /v1/charges/search", "GET /v1/invoices/search"], 20),
        (&["POST /v1/payouts"], 15),
    ] {
        let granted = per(SECOND, profiles::stripe, lines);
        assert_eq!(granted, number - PACED, "{lines:?}");
    }
    // Those in flight count among the 15 until they are answered.
    assert_eq!(in_flight(profiles::stripe(), "POST /v1/payouts"), 15);
    for (line, number) in [
        ("POST /v1/payment_intents/a", 1000),
        ("POST /v1/subscriptions/a", 200),
    ] {
        assert_eq!(per(HOUR, profiles::stripe, &[line]), number, "{line}");
        let other = line.replace("/a", "/b");
        let both = per(HOUR, profiles::stripe, &[line, &other]);
        assert_eq!(both, 2 * number, "{line}");
        // The object's next update waits for no more than its endpoint.
        let updates = granted(profiles::stripe(), &[request(line)], SECOND);
        assert_eq!(updates, 25 - PACED, "{line}");
    }
}

#[tokio::test(start_paused = true)]
async fn stripe_s_usual_endpoints_have_quotas_of_their_own() {
    let resources = [
        "balance_transactions",
        "charges",
        "customers",
        "disputes",
        "invoices",
        "payment_methods",
        "refunds",
        "setup_intents",
        "transfers",
    ];
    let each = 25 - PACED;
    for resource in resources {
        let lines = ["GET /v1/@", "POST /v1/@", "GET /v1/@/a", "POST /v1/@/a"]
            .map(|line| line.replace('@', resource));
        let lines: Vec<_> = lines.iter().map(String::as_str).collect();
        let granted = per(SECOND, profiles::stripe, &lines);
        assert_eq!(granted, 4 * each, "{resource}");
    }
    for action in ["confirm", "capture", "cancel"] {
        let line = format!("POST /v1/payment_intents/a/{action}");
        let lines = [&line, "POST /v1/nobody/knows"];
        assert_eq!(per(SECOND, profiles::stripe, &lines), 2 * each, "{action}");
    }
    let unknown = ["POST /v1/nobody/knows", "GET /v1/nor/this"];
    assert_eq!(per(SECOND, profiles::stripe, &unknown), each);
}

#[tokio::test(start_paused = true)]
async fn stripe_makes_10_invoices_a_minute_and_20_a_day_of_a_subscription() {
    let mut invoice = request("POST /v1/invoices");
    let subscription = profiles::Subscription("a".into());
    invoice.extensions_mut().insert(subscription);
    let invoices = [invoice];
    assert_eq!(granted(profiles::stripe(), &invoices, MINUTE), 10);
    assert_eq!(granted(profiles::stripe(), &invoices, DAY), 20);
    assert_eq!(granted(profiles::stripe(), &invoices, 2 * DAY), 40);
}

#[tokio::test(start_paused = true)]
async fn the_others_keep_to_their_rates() {
    for profile in [profiles::modern_treasury, profiles::savvy] {
        assert_eq!(per(SECOND, profile, &["POST /anything"]), 100 - PACED);
    }
    let status = "GET /payments/a/status";
    assert_eq!(per(SECOND, profiles::payalo, &[status]), 50 - PACED);
    assert_eq!(in_flight(profiles::payalo(), status), 20);
    assert_eq!(in_flight(profiles::payalo(), "POST /payments"), 20);
}

/// One caller's refusal, and another's call to another path.
#[tokio::test(start_paused = true)]
async fn what_an_answer_asks_for_holds_for_all_calls_whether_or_not_there_is_a_rate() {
    for profile in [Profile::new("anybody"), profiles::payalo()] {
        let name = profile.name.clone();
        let limits = limits(profile);
        let (first, second) = (request("POST /payments"), request("POST /refunds"));
        let permit = limits.acquire(&Call::of(&first)).await.unwrap();
        permit.over(Verdict::NotExecuted {
            retry_after: Some(SECOND),
            scope: Scope::Unspecified,
        });
        let refused = limits.try_acquire(&Call::of(&second), Instant::now());
        assert_eq!(refused.unwrap_err().wait(), Some(SECOND), "{name}");
    }
}

#[test]
fn times_and_connections_are_the_documented_ones() {
    for (profile, deadline, first, second) in [
        (profiles::payrix(), 60, 30, 30),
        (profiles::stripe(), 80, 30, 30),
        (profiles::stripe_sandbox(), 80, 30, 30),
        (profiles::modern_treasury(), 180, 60, 60),
        (profiles::savvy(), 300, 90, 120),
        (profiles::payalo(), 60, 30, 30),
    ] {
        let name = &profile.name;
        let timeout = &profile.attempt_timeout;
        let attempts = [Attempt::FIRST, Attempt::FIRST.next()];
        let times = attempts.map(|attempt| timeout.head_of(attempt).as_secs());
        assert_eq!(times, [first, second], "{name}");
        assert_eq!(profile.deadline.as_secs(), deadline, "{name}");
        assert_eq!(profile.idle_timeout.as_secs(), 15, "{name}");
        assert_eq!(profile.max_connections, 20, "{name}");
    }
}

#[test]
fn keys_stand_where_the_provider_looks() {
    let header = |profile: Profile| {
        let keys: Dialect = profile.keys.unwrap();
        keys.header_name().map(ToString::to_string)
    };
    assert!(profiles::payrix().keys.is_none());
    let usual = Some("idempotency-key".to_string());
    for profile in [profiles::stripe(), profiles::modern_treasury()] {
        assert_eq!(header(profile), usual);
    }
    for profile in [profiles::savvy(), profiles::payalo()] {
        assert_eq!(header(profile), None);
    }
}

fn judge(
    profile: &Profile,
    status: u16,
    headers: &[(&'static str, &str)],
    body: &str,
) -> Judgement {
    let headers: HeaderMap = headers
        .iter()
        .map(|(name, value)| (name.parse().unwrap(), HeaderValue::from_str(value).unwrap()))
        .collect();
    profile.rules.classify(&Answer {
        status: StatusCode::from_u16(status).unwrap(),
        headers: &headers,
        body: body.as_bytes(),
        broken: false,
        clock: || std::time::SystemTime::UNIX_EPOCH,
    })
}

#[test]
fn what_is_final_is_so_everywhere() {
    for profile in [
        profiles::payrix(),
        profiles::stripe(),
        profiles::modern_treasury(),
        profiles::savvy(),
        profiles::payalo(),
    ] {
        for status in [400, 401, 402, 403, 404, 422] {
            let judgement = judge(&profile, status, &[], "{}");
            assert_eq!(
                judgement,
                Verdict::Rejected.into(),
                "{} {status}",
                profile.name
            );
        }
        for status in [500, 502, 503, 504] {
            let judgement = judge(&profile, status, &[], "");
            assert_eq!(
                judgement,
                Verdict::Unknown.into(),
                "{} {status}",
                profile.name
            );
        }
    }
}

#[test]
fn a_payrix_block_lasts_10_s() {
    let body = r#"{"errors":[{"code":64,"severity":2,
        "msg":"Rate of requests exceeded - Temporary block implemented",
        "errorCode":"C_RATE_LIMIT_EXCEEDED_TEMP_BLOCK"}]}"#;
    let block = Verdict::NotExecuted {
        retry_after: Some(10 * SECOND),
        scope: Scope::Unspecified,
    };
    assert_eq!(judge(&profiles::payrix(), 429, &[], body), block.into());
}

#[test]
fn modern_treasury_repeats_its_list_and_nothing_else() {
    let profile = profiles::modern_treasury();
    for status in (400..=599).filter(|status| ![429, 500, 502, 503, 504].contains(status)) {
        let judgement = judge(&profile, status, &[], "");
        let repeated =
            !judgement.verdict.is_final() && judgement.advice != Some(RetryAdvice::Never);
        assert!(!repeated, "{status}");
    }
    assert!(!judge(&profile, 429, &[], "").verdict.is_final());
    assert_eq!(judge(&profile, 409, &[], "").verdict, Verdict::Unknown);
}

/// "HTTP 200 with body field `responseCode`; any other HTTP status is a
/// failure."
#[test]
fn savvy_s_success_is_a_200_with_a_response_code_of_0_and_nothing_else() {
    let profile = profiles::savvy();
    let verdict = |status, body| judge(&profile, status, &[], body).verdict;
    let zero = r#"{"responseCode":0}"#;
    assert_eq!(verdict(200, zero), Verdict::Done);
    assert_eq!(verdict(200, r#"{"responseCode":51}"#), Verdict::Rejected);
    for body in [
        "",
        "{}",
        "<html>",
        r#"{"responseCode":null}"#,
        r#"{"data":{"responseCode":0}}"#,
    ] {
        assert_eq!(verdict(200, body), Verdict::Unknown, "{body}");
    }
    for status in [201, 202, 204, 206] {
        for body in ["", zero] {
            assert_eq!(verdict(status, body), Verdict::Unknown, "{status} {body}");
        }
    }
    let text = r#"{"statusCode":429,"message":"Rate limit is exceeded. Try again in 19 seconds."}"#;
    let throttled = Verdict::NotExecuted {
        retry_after: Some(19 * SECOND),
        scope: Scope::Unspecified,
    };
    assert_eq!(verdict(429, text), throttled);
}
