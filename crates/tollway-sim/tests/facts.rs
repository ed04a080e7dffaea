//! What each provider documents, with its own numbers, at a gateway to which nothing was said.
#![cfg(feature = "server")]
#![allow(clippy::unwrap_used, reason = "a test fails where it stands")]

mod common;

use std::time::Duration;

use common::{Client, payout};
use http::Method;
use tokio::time::{advance, sleep};
use tollway_sim::{Gateway, Latency, Provider};

const SECOND: Duration = Duration::from_secs(1);
const MINUTE: Duration = Duration::from_secs(60);
const HOUR: Duration = Duration::from_secs(3600);
const DAY: Duration = Duration::from_secs(24 * 3600);

/// A request line, with what stands in the body of a POST.
type Line = (&'static str, &'static str);

async fn send(client: &mut Client, line: Line) -> common::Answer {
    let (method, path) = line.0.split_once(' ').unwrap();
    let method: Method = method.parse().unwrap();
    let request = client.request(method, path, &[], line.1);
    client.send(request).await.unwrap()
}

/// Sends these in turns until one is refused, and says how many weren't, and why that one was.
async fn until_refused(client: &mut Client, lines: &[Line]) -> (usize, Option<String>) {
    for (accepted, line) in lines.iter().cycle().enumerate() {
        let answer = send(client, *line).await;
        if answer.status == 429 {
            let reason = answer.header("stripe-rate-limited-reason");
            return (accepted, reason.map(str::to_owned));
        }
    }
    unreachable!("the lines go round for ever")
}

/// Whether `lines` are refused after `number`, for exactly this long.
async fn holds(provider: Provider, lines: &[Line], number: usize, window: Duration) {
    let gateway = Gateway::builder(provider).start().await.unwrap();
    let mut client = Client::http1(&gateway).await;
    let (accepted, _) = until_refused(&mut client, lines).await;
    assert_eq!(accepted, number, "{provider} {lines:?}");
    let nearly = window.saturating_sub(Duration::from_millis(1));
    advance(nearly).await;
    let refused = send(&mut client, lines[0]).await.status;
    assert_eq!(refused, 429, "{provider} {lines:?} after {nearly:?}");
    advance(window - nearly).await;
    let accepted = send(&mut client, lines[0]).await.status;
    assert_ne!(accepted, 429, "{provider} {lines:?} after {window:?}");
}

#[tokio::test(start_paused = true)]
async fn rates_are_the_documented_ones() {
    let intents: &[Line] = &[
        ("GET /v1/payment_intents/pi_1", ""),
        ("GET /v1/payment_intents/pi_2", ""),
    ];
    let files: &[Line] = &[("GET /v1/files", ""), ("GET /v1/files/file_1", "")];
    for (provider, lines, number) in [
        (Provider::Stripe, intents, 25),
        (Provider::Stripe, files, 20),
        (Provider::Stripe, &[("POST /v1/files", "{}")], 20),
        (
            Provider::Stripe,
            &[("GET /v1/payment_intents/search", "")],
            20,
        ),
        (Provider::Stripe, &[("POST /v1/payouts", "{}")], 15),
        (
            Provider::ModernTreasury,
            &[("GET /api/payment_orders", "")],
            100,
        ),
        (Provider::Savvy, &[("GET /payments", "")], 100),
        (
            Provider::Payalo,
            &[
                ("GET /payments/a/status", ""),
                ("GET /payments/b/status", ""),
            ],
            50,
        ),
    ] {
        holds(provider, lines, number, SECOND).await;
    }
}

#[tokio::test(start_paused = true)]
async fn stripe_counts_the_whole_account_less_in_a_sandbox() {
    // Of no endpoint more than 25.
    let lines = [
        "GET /v1/payouts",
        "GET /v1/payouts/po_1",
        "GET /v1/payment_intents",
        "GET /v1/payment_intents/pi_1",
        "GET /v1/invoices/in_1",
        "GET /v1/subscriptions/sub_1",
    ]
    .map(|line| (line, ""));
    for (sandbox, number) in [(false, 100), (true, 25)] {
        let builder = Gateway::builder(Provider::Stripe).sandbox(sandbox);
        let gateway = builder.start().await.unwrap();
        let mut client = Client::http1(&gateway).await;
        let (accepted, reason) = until_refused(&mut client, &lines).await;
        assert_eq!(accepted, number);
        assert_eq!(reason.as_deref(), Some("global-rate"));
    }
}

#[tokio::test(start_paused = true)]
async fn stripe_counts_updates_and_invoices_of_one_object() {
    let update_intent = ("POST /v1/payment_intents/pi_1", "{}");
    let update_subscription = ("POST /v1/subscriptions/sub_1", "{}");
    let invoice = ("POST /v1/invoices", r#"{"subscription":"sub_1"}"#);
    let another = ("POST /v1/invoices", r#"{"subscription":"sub_2"}"#);
    for (line, at_once, pause, number, window) in [
        (update_intent, 20, SECOND, 1000, HOUR),
        (update_subscription, 20, SECOND, 200, HOUR),
        (invoice, 1, SECOND, 10, MINUTE),
        (invoice, 10, MINUTE, 20, DAY),
    ] {
        let gateway = Gateway::builder(Provider::Stripe).start().await.unwrap();
        let mut client = Client::http1(&gateway).await;
        let mut waited = Duration::ZERO;
        for sent in 0..number {
            if sent > 0 && sent % at_once == 0 {
                advance(pause).await;
                waited += pause;
            }
            let status = send(&mut client, line).await.status;
            assert_ne!(status, 429, "{line:?}, {sent} before");
        }
        advance(window - waited - SECOND).await;
        let refused = send(&mut client, line).await;
        assert_eq!(refused.status, 429, "{line:?}");
        let reason = refused.header("stripe-rate-limited-reason");
        assert_eq!(reason, Some("resource-specific"));
        if line == invoice {
            assert_ne!(send(&mut client, another).await.status, 429);
        }
        advance(window).await;
        assert_ne!(send(&mut client, line).await.status, 429, "{line:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn stripe_makes_thirty_payouts_at_a_time() {
    let gateway = Gateway::builder(Provider::Stripe)
        .latency(Latency::Fixed(10 * SECOND))
        .start()
        .await
        .unwrap();
    let Client::Http2(sender, url) = Client::http2(&gateway).await else {
        unreachable!()
    };
    let mut calls = tokio::task::JoinSet::new();
    for n in 0..31 {
        // Fifteen a second at the most.
        sleep(SECOND / 10).await;
        let mut client = Client::Http2(sender.clone(), url.clone());
        calls.spawn(async move {
            let answer = client.pay(Provider::Stripe, &format!("r{n}")).await;
            let answer = answer.unwrap();
            let reason = answer.header("stripe-rate-limited-reason");
            (answer.status.as_u16(), reason.map(str::to_owned))
        });
    }
    let mut answers = calls.join_all().await;
    answers.sort();
    assert_eq!(
        answers.iter().filter(|(status, _)| *status == 200).count(),
        30
    );
    let concurrency = Some("endpoint-concurrency".to_owned());
    assert_eq!(answers.last(), Some(&(429, concurrency)));
}

#[tokio::test(start_paused = true)]
async fn payrix_blocks_one_path_of_one_host_for_ten_seconds() {
    let window = 10 * SECOND;
    let gateway = Gateway::builder(Provider::Payrix).start().await.unwrap();
    let mut client = Client::http1(&gateway).await;
    let pay = ("POST /txns", "{}");
    let (accepted, _) = until_refused(&mut client, &[pay, ("GET /txns", "")]).await;
    assert_eq!(accepted, 1000, "whatever the method");
    // All are refused in the block, though they don't prolong it.
    for _ in 0..9 {
        advance(SECOND).await;
        for line in [pay, ("GET /txns", "")] {
            let refused = send(&mut client, line).await;
            assert_eq!(refused.status, 429);
            assert!(refused.text().contains("C_RATE_LIMIT_EXCEEDED_TEMP_BLOCK"));
            assert!(!refused.headers.contains_key("retry-after"));
        }
    }
    assert_ne!(send(&mut client, ("GET /logins", "")).await.status, 429);
    let mut elsewhere = client.request(Method::GET, "/txns", &[], "");
    let host = "another.example".parse().unwrap();
    elsewhere.headers_mut().insert("host", host);
    assert_ne!(client.send(elsewhere).await.unwrap().status, 429);
    advance(window - 9 * SECOND).await;
    assert_ne!(send(&mut client, pay).await.status, 429);
    assert_eq!(gateway.stats().blocks, 1);
}

#[tokio::test(start_paused = true)]
async fn modern_treasury_s_load_balancer_drops_what_idles_for_thirty_seconds() {
    for (provider, kept) in [(Provider::ModernTreasury, false), (Provider::Stripe, true)] {
        let gateway = Gateway::builder(provider).start().await.unwrap();
        for http2 in [false, true] {
            let mut client = if http2 {
                Client::http2(&gateway).await
            } else {
                Client::http1(&gateway).await
            };
            client.pay(provider, "a").await.unwrap();
            sleep(29 * SECOND).await;
            client.pay(provider, "a").await.unwrap();
            sleep(31 * SECOND).await;
            let answer = client.pay(provider, "a").await;
            assert_eq!(answer.is_ok(), kept, "{provider}");
        }
    }
}

#[tokio::test]
async fn a_key_stands_for_its_endpoint_too() {
    let gateway = Gateway::builder(Provider::Stripe).start().await.unwrap();
    let mut client = Client::http1(&gateway).await;
    let body = payout(Provider::Stripe, "a", 100);
    let key = [("idempotency-key", "k")];
    for (path, status) in [("/v1/payouts", 200), ("/v1/payment_intents", 400)] {
        let answer = client.post(path, &key, body.clone()).await.unwrap();
        assert_eq!(answer.status, status);
    }
    assert_eq!(gateway.ledger().effects(), 1);
}
