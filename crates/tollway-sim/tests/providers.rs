//! Every provider's own words: answers, refusals, repeats, look-ups.
#![cfg(feature = "server")]
#![allow(clippy::unwrap_used, reason = "a test fails where it stands")]

mod common;

use std::time::Duration;

use common::{Client, payout};
use http::Method;
use serde_json::json;
use tokio::time::{Instant, sleep};
use tollway_sim::rule::{Rule, RuleKind};
use tollway_sim::wire::Matches;
use tollway_sim::{Fault, Faults, Gateway, Latency, Provider, Scope};

const SECOND: Duration = Duration::from_secs(1);

async fn start(provider: Provider) -> (Gateway, Client) {
    let gateway = Gateway::builder(provider).start().await.unwrap();
    let client = Client::http1(&gateway).await;
    (gateway, client)
}

async fn with_rule(provider: Provider, scope: Scope, limit: u32) -> (Gateway, Client) {
    let hour = Duration::from_secs(3600);
    let gateway = Gateway::builder(provider)
        .rule(scope, Rule::sliding_log(limit, hour))
        .start()
        .await
        .unwrap();
    let client = Client::http1(&gateway).await;
    (gateway, client)
}

#[tokio::test]
async fn a_payout_takes_effect_once_and_is_found_by_its_reference() {
    for provider in Provider::ALL {
        let (gateway, mut client) = start(provider).await;
        let wire = provider.wire();
        for (reference, found) in [("ref 1/ä", 0), ("ref 1/ä", 1), ("other", 0)] {
            let lookup = client.get(&wire.lookup(reference)).await.unwrap();
            let matches = match wire.matches {
                Matches::List(pointer) => {
                    assert_eq!(lookup.status, 200);
                    lookup
                        .json()
                        .pointer(pointer)
                        .unwrap()
                        .as_array()
                        .unwrap()
                        .len()
                }
                _ if lookup.status == 200 => 1,
                _ => {
                    assert_eq!(lookup.status, 404, "{provider}");
                    0
                }
            };
            assert_eq!(matches, found, "{provider} {reference}");
            if reference == "ref 1/ä" && found == 0 {
                let body = payout(provider, reference, 4200);
                let headers = [("idempotency-key", "k-1")];
                let paid = client.post(wire.create, &headers, body).await.unwrap();
                assert!(paid.status.is_success(), "{provider}: {}", paid.text());
            }
        }
        let ledger = gateway.ledger();
        assert_eq!(ledger.effects(), 1, "{provider}");
        assert_eq!(ledger.times_applied("ref 1/ä"), 1, "{provider}");
        let entry = &ledger.entries[0];
        assert_eq!(entry.endpoint, format!("POST {}", wire.create));
        assert_eq!(entry.payload, payout(provider, "ref 1/ä", 4200));
    }
}

#[tokio::test]
async fn an_object_is_found_by_the_id_that_it_was_given() {
    for provider in Provider::ALL {
        let (gateway, mut client) = start(provider).await;
        client.pay(provider, "r").await.unwrap();
        let id = gateway.ledger().entries[0].ids[0].clone();
        let path = format!("{}/{id}", provider.wire().create);
        let found = client.get(&path).await.unwrap();
        assert_eq!(found.status, 200, "{provider}");
        assert!(found.text().contains(&id), "{provider}");
        let missing = client
            .get(&format!("{}/nobody", provider.wire().create))
            .await
            .unwrap();
        assert_eq!(missing.status, 404, "{provider}");
    }
}

#[tokio::test]
async fn payrix_refuses_in_its_own_words_and_without_a_hint() {
    let (gateway, mut client) = with_rule(Provider::Payrix, Scope::EachPath, 1).await;
    client.pay(Provider::Payrix, "a").await.unwrap();
    let refused = client.pay(Provider::Payrix, "b").await.unwrap();
    assert_eq!(refused.status, 429);
    assert_eq!(
        refused.text(),
        r#"{"errors":[{"code":64,"severity":2,"msg":"Rate of requests exceeded - Temporary block implemented","errorCode":"C_RATE_LIMIT_EXCEEDED_TEMP_BLOCK"}]}"#
    );
    let mut names: Vec<_> = refused.headers.keys().map(|name| name.as_str()).collect();
    names.sort_unstable();
    assert_eq!(names, ["content-length", "content-type", "date"]);
    let elsewhere = client.get("/logins").await.unwrap();
    assert_eq!(elsewhere.status, 200, "other paths stay unaffected");
    assert_eq!(
        (gateway.stats().throttled, gateway.ledger().effects()),
        (1, 1)
    );
}

#[tokio::test(start_paused = true)]
async fn payrix_blocks_the_path_for_ten_seconds_after_a_thousand_requests() {
    let (gateway, mut client) = start(Provider::Payrix).await;
    for _ in 0..1000 {
        assert_eq!(client.get("/txns").await.unwrap().status, 200);
    }
    for _ in 0..3 {
        assert_eq!(client.pay(Provider::Payrix, "x").await.unwrap().status, 429);
    }
    let stats = gateway.stats();
    assert_eq!(
        (stats.accepted, stats.throttled, stats.blocks),
        (1000, 3, 1)
    );
}

#[tokio::test]
async fn payrix_throttles_whoever_asks_for_it() {
    let (gateway, mut client) = start(Provider::Payrix).await;
    let body = payout(Provider::Payrix, "a", 1);
    let trigger = [("rate-limit-test", "match")];
    let refused = client.post("/txns", &trigger, body.clone()).await.unwrap();
    assert_eq!(refused.status, 429);
    let other = [("rate-limit-test", "no match")];
    assert_eq!(
        client.post("/txns", &other, body).await.unwrap().status,
        200
    );
    assert_eq!(gateway.ledger().effects(), 1);
}

#[tokio::test]
async fn payrix_applies_a_repeat_again() {
    let (gateway, mut client) = start(Provider::Payrix).await;
    for _ in 0..3 {
        client.pay(Provider::Payrix, "a").await.unwrap();
    }
    let ledger = gateway.ledger();
    assert_eq!(ledger.entries.len(), 1);
    assert_eq!(ledger.entries[0].times_applied, 3);
    assert_eq!(ledger.entries[0].ids.len(), 3);
    assert_eq!(ledger.duplicates(), ["a"]);
}

#[tokio::test]
async fn payrix_also_searches_by_header() {
    let (_gateway, mut client) = start(Provider::Payrix).await;
    client.pay(Provider::Payrix, "a").await.unwrap();
    let headers = [("search", "order[equals]=b")];
    let request = client.request(Method::GET, "/txns", &headers, "");
    let none = client.send(request).await.unwrap();
    assert_eq!(none.json()["response"]["data"], json!([]));
}

#[tokio::test]
async fn stripe_names_the_limit_that_was_exceeded() {
    let hour = Duration::from_secs(3600);
    let one = Rule::sliding_log(1, hour);
    let payouts = Scope::endpoint("POST /v1/payouts");
    let builder = || Gateway::builder(Provider::Stripe).unlimited();
    for (builder, reason) in [
        (builder().rule(Scope::Gateway, one), "global-rate"),
        (builder().rule(Scope::EachEndpoint, one), "endpoint-rate"),
        (builder().rule(payouts.clone(), one), "resource-specific"),
        (builder().in_flight(Scope::Gateway, 0), "global-concurrency"),
        (builder().in_flight(payouts, 0), "endpoint-concurrency"),
    ] {
        let gateway = builder.start().await.unwrap();
        let mut client = Client::http1(&gateway).await;
        let _first = client.pay(Provider::Stripe, "a").await.unwrap();
        let refused = client.pay(Provider::Stripe, "b").await.unwrap();
        assert_eq!(refused.status, 429);
        assert_eq!(refused.header("stripe-rate-limited-reason"), Some(reason));
        assert_eq!(refused.header("retry-after"), None);
        assert_eq!(
            refused.text(),
            r#"{"error":{"code":"rate_limit","message":"Request rate limit exceeded.","type":"invalid_request_error"}}"#
        );
    }
}

#[tokio::test]
async fn stripe_counts_the_endpoint_and_the_account_at_once() {
    let hour = Duration::from_secs(3600);
    let gateway = Gateway::builder(Provider::Stripe)
        .unlimited()
        .rule(Scope::Gateway, Rule::sliding_log(3, hour))
        .rule(Scope::EachEndpoint, Rule::sliding_log(2, hour))
        .start()
        .await
        .unwrap();
    let mut client = Client::http1(&gateway).await;
    let mut reasons = Vec::new();
    for path in ["/v1/files"; 3].into_iter().chain(["/v1/payouts"; 2]) {
        let answer = client.get(path).await.unwrap();
        reasons.push(
            answer
                .header("stripe-rate-limited-reason")
                .map(str::to_owned),
        );
    }
    let reasons: Vec<_> = reasons.iter().map(Option::as_deref).collect();
    // The third was refused by its endpoint, so the account has one left for another.
    assert_eq!(
        reasons,
        [None, None, Some("endpoint-rate"), None, Some("global-rate")]
    );
}

#[tokio::test]
async fn stripe_counts_updates_per_object() {
    let update = "POST /v1/payment_intents/{id}";
    let (_gateway, mut client) =
        with_rule(Provider::Stripe, Scope::EachObject(update.to_owned()), 1).await;
    for key in ["a", "b"] {
        let body = payout(Provider::Stripe, key, 1);
        client.post("/v1/payment_intents", &[], body).await.unwrap();
    }
    let mut statuses = Vec::new();
    for id in ["pi_000001", "pi_000001", "pi_000002"] {
        let path = format!("/v1/payment_intents/{id}");
        let answer = client
            .post(&path, &[], r#"{"description":"x"}"#)
            .await
            .unwrap();
        statuses.push(answer.status.as_u16());
    }
    assert_eq!(statuses, [200, 429, 200]);
    let shown = client.get("/v1/payment_intents/pi_000002").await.unwrap();
    assert_eq!(shown.json()["description"], "x");
}

#[tokio::test]
async fn stripe_counts_invoices_per_subscription() {
    let invoices = Scope::EachObject("POST /v1/invoices".to_owned());
    let (_gateway, mut client) = with_rule(Provider::Stripe, invoices, 1).await;
    let mut statuses = Vec::new();
    for subscription in ["sub_1", "sub_1", "sub_2"] {
        let body = format!("subscription={subscription}");
        let form = [("content-type", "application/x-www-form-urlencoded")];
        let answer = client.post("/v1/invoices", &form, body).await.unwrap();
        statuses.push(answer.status.as_u16());
    }
    assert_eq!(statuses, [200, 429, 200]);
}

#[tokio::test]
async fn stripe_takes_forms_and_searches_in_its_query_language() {
    let (gateway, mut client) = start(Provider::Stripe).await;
    let form = [("content-type", "application/x-www-form-urlencoded")];
    let body = "amount=100&currency=eur&metadata[reference]=r%201";
    let made = client
        .post("/v1/payment_intents", &form, body)
        .await
        .unwrap();
    assert_eq!(made.json()["metadata"], json!({"reference": "r 1"}));
    assert_eq!(gateway.ledger().times_applied("r 1"), 1);
    let path = "/v1/payment_intents/search?query=metadata%5B'reference'%5D:'r%201'";
    let found = client.get(path).await.unwrap();
    assert_eq!(found.json()["data"][0]["id"], "pi_000001");
    let payouts = client
        .get(&Provider::Stripe.wire().lookup("r 1"))
        .await
        .unwrap();
    assert_eq!(payouts.json()["data"], json!([]), "an intent is no payout");
}

#[tokio::test]
async fn a_key_in_a_header_replays_the_stored_answer() {
    for (provider, replayed) in [
        (Provider::Stripe, Some("true")),
        (Provider::ModernTreasury, None),
    ] {
        let (gateway, mut client) = start(provider).await;
        let first = client.pay(provider, "a").await.unwrap();
        assert_eq!(first.header("idempotent-replayed"), None);
        let again = client.pay(provider, "a").await.unwrap();
        assert_eq!((again.status, &again.body), (first.status, &first.body));
        assert_eq!(again.header("idempotent-replayed"), replayed);
        let ledger = gateway.ledger();
        assert_eq!((ledger.effects(), ledger.entries[0].repeats), (1, 1));
    }
}

#[tokio::test]
async fn a_key_in_a_header_is_refused_with_another_payload() {
    for provider in [Provider::Stripe, Provider::ModernTreasury] {
        let (gateway, mut client) = start(provider).await;
        client.pay(provider, "a").await.unwrap();
        let body = payout(provider, "a", 101);
        let path = provider.wire().create;
        let refused = client
            .post(path, &[("idempotency-key", "a")], body)
            .await
            .unwrap();
        assert_eq!(refused.status, 400);
        assert!(refused.text().contains("idempotency_error"));
        let should_retry = (provider == Provider::Stripe).then_some("false");
        assert_eq!(refused.header("stripe-should-retry"), should_retry);
        assert_eq!(gateway.ledger().effects(), 1);
    }
}

#[tokio::test(start_paused = true)]
async fn a_key_in_a_header_is_refused_while_its_first_request_is_in_flight() {
    for provider in [Provider::Stripe, Provider::ModernTreasury] {
        let gateway = Gateway::builder(provider)
            .latency(Latency::Fixed(Duration::from_millis(300)))
            .start()
            .await
            .unwrap();
        let (mut one, mut two) = (Client::http1(&gateway).await, Client::http1(&gateway).await);
        let (first, second) = tokio::join!(one.pay(provider, "a"), two.pay(provider, "a"));
        let (mut first, mut second) = (first.unwrap(), second.unwrap());
        if first.status == 409 {
            std::mem::swap(&mut first, &mut second);
        }
        assert!(first.status.is_success());
        assert_eq!(second.status, 409);
        assert!(second.text().contains(r#""code":"idempotency_key_in_use""#));
        let should_retry = (provider == Provider::Stripe).then_some("true");
        assert_eq!(second.header("stripe-should-retry"), should_retry);
        let again = one.pay(provider, "a").await.unwrap();
        assert_eq!(again.body, first.body);
        assert_eq!(gateway.ledger().effects(), 1);
    }
}

#[tokio::test]
async fn without_a_key_a_repeat_is_applied_again_and_seen_by_its_reference() {
    for provider in [Provider::Stripe, Provider::ModernTreasury] {
        let (gateway, mut client) = start(provider).await;
        let (path, body) = (provider.wire().create, payout(provider, "a", 100));
        client.post(path, &[], body.clone()).await.unwrap();
        client.post(path, &[], body.clone()).await.unwrap();
        client
            .post(path, &[("idempotency-key", "k")], body)
            .await
            .unwrap();
        let ledger = gateway.ledger();
        let times: Vec<_> = ledger.entries.iter().map(|e| e.times_applied).collect();
        assert_eq!(times, [2, 1], "one entry without a key, one with");
        assert_eq!(ledger.times_applied("a"), 3);
    }
}

#[tokio::test]
async fn stripe_refuses_a_key_that_is_too_long() {
    let (_gateway, mut client) = start(Provider::Stripe).await;
    for (length, status) in [(255, 200), (256, 400)] {
        let key = "k".repeat(length);
        let body = payout(Provider::Stripe, "a", 1);
        let answer = client
            .post("/v1/payouts", &[("idempotency-key", &key)], body)
            .await
            .unwrap();
        assert_eq!(answer.status, status);
    }
}

#[tokio::test]
async fn modern_treasury_refuses_plainly() {
    let (_gateway, mut client) = with_rule(Provider::ModernTreasury, Scope::Gateway, 1).await;
    let made = client.pay(Provider::ModernTreasury, "a").await.unwrap();
    assert_eq!(made.status, 201);
    let refused = client.pay(Provider::ModernTreasury, "b").await.unwrap();
    assert_eq!(refused.status, 429);
    assert_eq!(
        refused.text(),
        r#"{"errors":{"code":"rate_limit_exceeded","message":"Too many requests."}}"#
    );
}

#[tokio::test]
async fn savvy_says_in_its_text_when_to_come_back() {
    let rule = Rule::sliding_log(1, Duration::from_millis(18_500));
    let gateway = Gateway::builder(Provider::Savvy)
        .rule(Scope::Gateway, rule)
        .start()
        .await
        .unwrap();
    let mut client = Client::http1(&gateway).await;
    client.pay(Provider::Savvy, "a").await.unwrap();
    let refused = client.pay(Provider::Savvy, "b").await.unwrap();
    assert_eq!(refused.status, 429);
    assert_eq!(
        refused.text(),
        r#"{"statusCode":429,"message":"Rate limit is exceeded. Try again in 19 seconds."}"#
    );
}

#[tokio::test]
async fn savvy_answers_a_repeat_with_the_first_result() {
    let (gateway, mut client) = start(Provider::Savvy).await;
    let first = client.pay(Provider::Savvy, "a").await.unwrap().json();
    assert_eq!(first["isFirstResponse"], true);
    assert_eq!(first["responseCode"], 0);
    let mut again = client.pay(Provider::Savvy, "a").await.unwrap().json();
    assert_eq!(again["isFirstResponse"], false);
    again["isFirstResponse"] = true.into();
    assert_eq!(again, first);

    let other = payout(Provider::Savvy, "a", 999);
    let refused = client.post("/payments", &[], other).await.unwrap();
    assert_eq!(refused.status, 200);
    assert_ne!(refused.json()["responseCode"], 0);
    assert_eq!(gateway.ledger().effects(), 1);
}

#[tokio::test]
async fn savvy_finds_a_payment_by_its_reference_and_shows_it_under_its_request_id() {
    let (_gateway, mut client) = start(Provider::Savvy).await;
    let payment = r#"{"RequestId":"id-1","Reference":"r-1","Amount":1}"#;
    client.post("/payments", &[], payment).await.unwrap();
    for (path, status) in [
        ("/payments?Reference=r-1", 200),
        ("/payments/id-1", 200),
        // One is no other's name, or whoever asks is told of a stranger.
        ("/payments?Reference=id-1", 404),
        ("/payments/r-1", 404),
    ] {
        let found = client.get(path).await.unwrap();
        assert_eq!(found.status, status, "{path}");
    }
}

#[tokio::test(start_paused = true)]
async fn savvy_lets_a_repeat_wait_for_the_first_result() {
    // The repeat's own latency may well be the shorter one.
    let gateway = Gateway::builder(Provider::Savvy)
        .latency(Latency::uniform(Duration::ZERO, 10 * SECOND))
        .start()
        .await
        .unwrap();
    let (mut one, mut two) = (Client::http1(&gateway).await, Client::http1(&gateway).await);
    for reference in ["a", "b", "c", "d", "e", "f"] {
        let pay = async |client: &mut Client| {
            let answer = client.pay(Provider::Savvy, reference).await.unwrap();
            let is_first = answer.json()["isFirstResponse"].as_bool().unwrap();
            (is_first, Instant::now())
        };
        let (first, second) = tokio::join!(pay(&mut one), pay(&mut two));
        let (first, repeat) = if first.0 {
            (first, second)
        } else {
            (second, first)
        };
        assert!(first.0 && !repeat.0);
        assert!(first.1 <= repeat.1, "{reference}");
    }
    assert_eq!(gateway.ledger().effects(), 6);
}

#[tokio::test]
async fn payalo_refuses_a_reference_that_it_knows_and_names_the_first() {
    let (gateway, mut client) = start(Provider::Payalo).await;
    assert_eq!(client.pay(Provider::Payalo, "a").await.unwrap().status, 201);
    let refused = client.pay(Provider::Payalo, "a").await.unwrap();
    assert_eq!(refused.status, 409);
    assert_eq!(
        refused.text(),
        r#"{"code":"DUPLICATE_MERCHANT_REFERENCE","merchantReference":"a","paymentId":"pay_000001"}"#
    );
    assert_eq!(gateway.ledger().effects(), 1);
    assert_eq!(gateway.ledger().entries[0].repeats, 1);
}

#[tokio::test]
async fn payalo_limits_status_checks_and_nothing_else() {
    let (gateway, mut client) = start(Provider::Payalo).await;
    client.pay(Provider::Payalo, "a").await.unwrap();
    let hour = Duration::from_secs(3600);
    drop(gateway);
    let gateway = Gateway::builder(Provider::Payalo)
        .rule(
            Scope::endpoint("GET /payments/{id}/status"),
            Rule::sliding_log(1, hour),
        )
        .start()
        .await
        .unwrap();
    let mut client = Client::http1(&gateway).await;
    for reference in ["a", "b", "c"] {
        assert_eq!(
            client
                .pay(Provider::Payalo, reference)
                .await
                .unwrap()
                .status,
            201
        );
    }
    assert_eq!(client.get("/payments/a/status").await.unwrap().status, 200);
    let refused = client.get("/payments/b/status").await.unwrap();
    assert_eq!(refused.status, 429);
    assert_eq!(
        refused.text(),
        r#"{"code":"RATE_LIMITED","message":"Too many requests"}"#
    );
    assert_eq!(client.get("/payments/a").await.unwrap().status, 200);
}

#[tokio::test(start_paused = true)]
async fn payalo_takes_twenty_in_flight_and_refuses_the_next() {
    let gateway = Gateway::builder(Provider::Payalo)
        .latency(Latency::Fixed(Duration::from_secs(2)))
        .start()
        .await
        .unwrap();
    let Client::Http2(sender, url) = Client::http2(&gateway).await else {
        unreachable!()
    };
    let payments: Vec<_> = (0..21)
        .map(|n| {
            let mut client = Client::Http2(sender.clone(), url.clone());
            tokio::spawn(async move {
                let answer = client
                    .pay(Provider::Payalo, &format!("r{n}"))
                    .await
                    .unwrap();
                answer.status.as_u16()
            })
        })
        .collect();
    let mut statuses = Vec::new();
    for payment in payments {
        statuses.push(payment.await.unwrap());
    }
    statuses.sort_unstable();
    assert_eq!(statuses, [vec![201; 20], vec![429]].concat());
}

/// What never answers is worked on all the same.
#[tokio::test(start_paused = true)]
async fn a_request_that_hangs_is_in_flight_until_it_is_given_up() {
    let gateway = Gateway::builder(Provider::Payalo)
        .in_flight(Scope::Gateway, 1)
        .faults(Faults::script([Some(Fault::Hang(10 * SECOND))]))
        .start()
        .await
        .unwrap();
    let mut hanging = Client::http1(&gateway).await;
    let hanging = tokio::spawn(async move { hanging.pay(Provider::Payalo, "a").await.is_err() });
    let mut client = Client::http1(&gateway).await;
    sleep(9 * SECOND).await;
    let refused = client.pay(Provider::Payalo, "b").await.unwrap();
    assert_eq!(refused.status, 429);
    sleep(2 * SECOND).await;
    let taken = client.pay(Provider::Payalo, "b").await.unwrap();
    assert_eq!(taken.status, 201);
    assert!(hanging.await.unwrap());
}

#[tokio::test(start_paused = true)]
async fn a_limit_that_counts_refusals_counts_those_of_other_limits() {
    for (counted, status) in [(false, 200), (true, 429)] {
        let hourly = Rule::sliding_log(3, 3600 * SECOND).rejected_count(counted);
        let gateway = Gateway::builder(Provider::Stripe)
            .unlimited()
            .rule(Scope::Gateway, Rule::sliding_log(1, SECOND))
            .rule(Scope::EachEndpoint, hourly)
            .start()
            .await
            .unwrap();
        let mut client = Client::http1(&gateway).await;
        for expected in [200, 429, 429] {
            let answer = client.get("/v1/payouts").await.unwrap();
            assert_eq!(answer.status, expected);
        }
        sleep(SECOND).await;
        let answer = client.get("/v1/payouts").await.unwrap();
        assert_eq!(answer.status, status, "{counted}");
    }
}

#[tokio::test]
async fn a_list_ends_after_a_page() {
    let gateway = Gateway::builder(Provider::Stripe).unlimited();
    let gateway = gateway.start().await.unwrap();
    let mut client = Client::http1(&gateway).await;
    for n in 0..101 {
        client
            .pay(Provider::Stripe, &format!("r{n}"))
            .await
            .unwrap();
    }
    let list = client.get("/v1/payouts").await.unwrap();
    assert_eq!(list.json()["data"].as_array().map(Vec::len), Some(100));
}

#[tokio::test]
async fn a_field_that_is_missing_or_wrong_is_refused_for_good_and_has_no_effect() {
    for provider in Provider::ALL {
        let (gateway, mut client) = start(provider).await;
        let path = provider.wire().create;
        for body in [
            payout(provider, "a", 0),
            "{}".to_owned(),
            "nonsense".to_owned(),
        ] {
            let refused = client.post(path, &[], body).await.unwrap();
            if provider == Provider::Savvy {
                assert_eq!(refused.status, 200);
                assert_ne!(refused.json()["responseCode"], 0);
            } else {
                assert!(refused.status.is_client_error(), "{provider}");
                assert_ne!(refused.status, 429);
            }
        }
        assert_eq!(gateway.ledger().effects(), 0, "{provider}");
    }
}

#[tokio::test]
async fn a_request_that_makes_no_sense_counts_like_any_other() {
    let (_gateway, mut client) = with_rule(Provider::Stripe, Scope::Gateway, 1).await;
    let mut statuses = Vec::new();
    for _ in 0..2 {
        let answer = client.post("/v1/payouts", &[], "nonsense").await.unwrap();
        statuses.push(answer.status.as_u16());
    }
    assert_eq!(statuses, [400, 429]);
}

#[tokio::test]
async fn a_body_beyond_a_mebibyte_is_refused() {
    let (gateway, mut client) = start(Provider::Stripe).await;
    let most = 1024 * 1024;
    let mut body = payout(Provider::Stripe, "a", 1);
    body.push_str(&" ".repeat(most - body.len()));
    assert_eq!(
        client
            .post("/v1/payouts", &[], body.clone())
            .await
            .unwrap()
            .status,
        200
    );
    body.push(' ');
    // The rest of the body is never read, so the refusal may be cut off by the reset that
    // follows it; it has no effect either way.
    if let Ok(refused) = client.post("/v1/payouts", &[], body).await {
        assert_eq!(refused.status, 413);
    }
    assert_eq!(gateway.ledger().effects(), 1);
}

#[tokio::test]
async fn every_kind_of_rule_works_on_every_gateway() {
    for provider in Provider::ALL {
        for kind in RuleKind::ALL {
            let burst = if kind.has_burst() { Some(3) } else { None };
            let mut rule = Rule::new(kind, 3, Duration::from_secs(3600));
            if let Some(burst) = burst {
                rule = rule.burst(burst);
            }
            let gateway = Gateway::builder(provider)
                .unlimited()
                .rule(Scope::Gateway, rule)
                .start()
                .await
                .unwrap();
            let mut client = Client::http1(&gateway).await;
            let mut accepted = 0;
            while client
                .pay(provider, &format!("r{accepted}"))
                .await
                .unwrap()
                .status
                != 429
            {
                accepted += 1;
            }
            let expected = if kind == RuleKind::LeakyBucket { 4 } else { 3 };
            assert_eq!(accepted, expected, "{provider} {kind}");
        }
    }
}
