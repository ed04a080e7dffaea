//! The gateway as a server: connections, TLS, its own endpoints, start and stop.
#![cfg(feature = "server")]
#![allow(clippy::unwrap_used, reason = "a test fails where it stands")]

mod common;

use std::time::Duration;

use common::{Client, caused_by, payout, tls};
use http::Version;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::Instant;
use tollway_sim::rule::Rule;
use tollway_sim::{Fault, Faults, Gateway, Latency, Provider, Scope};

const PROVIDER: Provider = Provider::Payrix;

#[tokio::test]
async fn both_versions_are_spoken_on_the_plain_port() {
    let gateway = Gateway::builder(PROVIDER).start().await.unwrap();
    assert!(gateway.url().starts_with("http://127.0.0.1:"));
    assert!(gateway.ca_certificate_pem().is_none());
    let one = Client::http1(&gateway)
        .await
        .pay(PROVIDER, "a")
        .await
        .unwrap();
    let two = Client::http2(&gateway)
        .await
        .pay(PROVIDER, "b")
        .await
        .unwrap();
    assert_eq!(
        (one.version, two.version),
        (Version::HTTP_11, Version::HTTP_2)
    );
    let versions = gateway.stats().http_versions;
    assert_eq!((versions["HTTP/1.1"], versions["HTTP/2.0"]), (1, 1));
}

#[tokio::test]
async fn alpn_chooses_the_version_over_tls() {
    let gateway = Gateway::builder(PROVIDER).tls(true).start().await.unwrap();
    assert!(gateway.url().starts_with("https://127.0.0.1:"));
    assert!(
        gateway
            .ca_certificate_pem()
            .unwrap()
            .starts_with("-----BEGIN CERTIFICATE-----")
    );
    for (offered, version) in [
        (&[&b"h2"[..], b"http/1.1"][..], Version::HTTP_2),
        (&[b"http/1.1"], Version::HTTP_11),
        (&[], Version::HTTP_11),
    ] {
        let mut client = Client::tls(&gateway, offered).await;
        assert_eq!(client.pay(PROVIDER, "a").await.unwrap().version, version);
    }
    let only_one = Gateway::builder(PROVIDER)
        .tls(true)
        .http2(false)
        .start()
        .await
        .unwrap();
    let mut client = Client::tls(&only_one, &[b"h2", b"http/1.1"]).await;
    assert_eq!(
        client.pay(PROVIDER, "a").await.unwrap().version,
        Version::HTTP_11
    );
}

#[tokio::test]
async fn each_gateway_has_an_authority_of_its_own() {
    let one = Gateway::builder(PROVIDER).tls(true).start().await.unwrap();
    let two = Gateway::builder(PROVIDER).tls(true).start().await.unwrap();
    assert_ne!(one.ca_certificate_der(), two.ca_certificate_der());
    tls(&one, &[]).await.unwrap();
}

#[tokio::test]
async fn faults_reach_through_tls() {
    let gateway = Gateway::builder(PROVIDER)
        .tls(true)
        .faults(Faults::always(Fault::ResetAfterEffect))
        .start()
        .await
        .unwrap();
    let mut client = Client::tls(&gateway, &[]).await;
    let error = client.pay(PROVIDER, "a").await.unwrap_err();
    assert!(
        caused_by(&error, std::io::ErrorKind::ConnectionReset),
        "{error:?}"
    );
    assert_eq!(gateway.ledger().effects(), 1);
}

#[tokio::test]
async fn the_ledger_and_the_counts_are_shown_as_json_and_touched_by_nothing() {
    let gateway = Gateway::builder(Provider::Stripe)
        .rule(
            Scope::Gateway,
            Rule::sliding_log(2, Duration::from_secs(3600)),
        )
        .faults(Faults::script([None, Some(Fault::ErrorAfter(500)), None]))
        .start()
        .await
        .unwrap();
    let mut client = Client::http1(&gateway).await;
    for reference in ["a", "b", "c"] {
        client.pay(Provider::Stripe, reference).await.unwrap();
    }
    gateway
        .set_faults(Faults::always(Fault::ErrorBefore(503)))
        .unwrap();
    for _ in 0..3 {
        assert_eq!(client.get("/_sim/stats").await.unwrap().status, 200);
    }
    let mut other = Client::http1(&gateway).await;
    let stats = other.get("/_sim/stats").await.unwrap().json();
    assert_eq!(
        stats,
        serde_json::json!({
            "arrivals": 3, "accepted": 2, "throttled": 1, "blocks": 0,
            "faults": {"error-after": 1},
            "connections_accepted": 2, "connections_open": 2,
            "requests_per_connection": [3, 0],
            "http_versions": {"HTTP/1.1": 3},
        })
    );
    let ledger = other.get("/_sim/ledger").await.unwrap().json();
    let entry = &ledger["entries"][1];
    assert_eq!(entry["endpoint"], "POST /v1/payouts");
    assert_eq!(
        (&entry["key"], &entry["reference"]),
        (&"b".into(), &"b".into())
    );
    assert_eq!(entry["times_applied"], 1);
    assert_eq!(entry["payload"], payout(Provider::Stripe, "b", 100));
    assert_eq!(entry["fingerprint"].as_str().unwrap().len(), 16);
    assert!(entry["first_at_ms"].is_u64());
    assert_eq!(serde_json::to_value(gateway.ledger()).unwrap(), ledger);
    assert_eq!(client.get("/_sim/else").await.unwrap().status, 404);
    assert_eq!(
        client.post("/_sim/stats", &[], "").await.unwrap().status,
        405
    );
}

#[tokio::test]
async fn unknown_paths_and_methods_are_told_apart() {
    for provider in Provider::ALL {
        let gateway = Gateway::builder(provider).start().await.unwrap();
        let mut client = Client::http1(&gateway).await;
        assert_eq!(
            client.get("/nowhere").await.unwrap().status,
            404,
            "{provider}"
        );
        let path = format!("{}/x/y/z", provider.wire().create);
        assert_eq!(client.get(&path).await.unwrap().status, 404, "{provider}");
        let request = client.request(http::Method::PUT, provider.wire().create, &[], "");
        assert_eq!(
            client.send(request).await.unwrap().status,
            405,
            "{provider}"
        );
    }
}

#[tokio::test(start_paused = true)]
async fn an_answer_comes_after_the_latency_and_a_refusal_at_once() {
    let latency = Duration::from_secs(5);
    let gateway = Gateway::builder(PROVIDER)
        .rule(
            Scope::EachPath,
            Rule::sliding_log(1, Duration::from_secs(3600)),
        )
        .latency(Latency::Fixed(latency))
        .start()
        .await
        .unwrap();
    let mut client = Client::http1(&gateway).await;
    let start = Instant::now();
    assert_eq!(client.pay(PROVIDER, "a").await.unwrap().status, 200);
    let answered = start.elapsed();
    assert!(answered >= latency);
    assert_eq!(client.pay(PROVIDER, "b").await.unwrap().status, 429);
    assert_eq!(start.elapsed(), answered);
}

#[tokio::test(start_paused = true)]
async fn a_window_passes_with_tokio_s_clock() {
    let gateway = Gateway::builder(PROVIDER).start().await.unwrap();
    let mut client = Client::http1(&gateway).await;
    for _ in 0..1000 {
        client.get("/txns").await.unwrap();
    }
    assert_eq!(client.get("/txns").await.unwrap().status, 429);
    tokio::time::advance(Duration::from_millis(9_999)).await;
    assert_eq!(client.get("/txns").await.unwrap().status, 429);
    tokio::time::advance(Duration::from_millis(1)).await;
    assert_eq!(client.get("/txns").await.unwrap().status, 200);
    assert_eq!(gateway.stats().blocks, 1);
}

#[tokio::test(start_paused = true)]
async fn a_caller_that_hangs_up_is_still_worked_for() {
    let gateway = Gateway::builder(Provider::Payalo)
        .in_flight(Scope::Gateway, 1)
        .latency(Latency::Fixed(Duration::from_secs(5)))
        .start()
        .await
        .unwrap();
    let mut client = Client::http1(&gateway).await;
    let impatient = Duration::from_secs(1);
    let paid = tokio::time::timeout(impatient, client.pay(Provider::Payalo, "a")).await;
    assert!(paid.is_err());
    drop(client);
    assert_eq!(gateway.ledger().times_applied("a"), 1);
    let mut client = Client::http1(&gateway).await;
    assert_eq!(client.pay(Provider::Payalo, "b").await.unwrap().status, 429);
    tokio::time::advance(Duration::from_secs(4)).await;
    assert_eq!(client.pay(Provider::Payalo, "b").await.unwrap().status, 201);
}

#[tokio::test(start_paused = true)]
async fn an_idle_connection_is_closed_and_a_busy_one_is_not() {
    let gateway = Gateway::builder(PROVIDER)
        .idle_timeout(Duration::from_secs(30))
        .latency(Latency::Fixed(Duration::from_secs(100)))
        .start()
        .await
        .unwrap();
    for http2 in [false, true] {
        let mut client = if http2 {
            Client::http2(&gateway).await
        } else {
            Client::http1(&gateway).await
        };
        assert_eq!(client.pay(PROVIDER, "a").await.unwrap().status, 200);
        tokio::time::sleep(Duration::from_secs(29)).await;
        assert_eq!(client.pay(PROVIDER, "b").await.unwrap().status, 200);
        tokio::time::sleep(Duration::from_secs(31)).await;
        client.pay(PROVIDER, "c").await.unwrap_err();
    }
    assert_eq!(gateway.stats().connections_open, 0);
}

#[tokio::test]
async fn the_last_request_of_a_connection_closes_it() {
    let gateway = Gateway::builder(PROVIDER)
        .max_requests_per_connection(2)
        .start()
        .await
        .unwrap();
    let mut client = Client::http1(&gateway).await;
    assert_eq!(
        client
            .pay(PROVIDER, "a")
            .await
            .unwrap()
            .header("connection"),
        None
    );
    let last = client.pay(PROVIDER, "b").await.unwrap();
    assert_eq!(
        (last.status.as_u16(), last.header("connection")),
        (200, Some("close"))
    );
    client.pay(PROVIDER, "c").await.unwrap_err();
    assert_eq!(gateway.stats().requests_per_connection, [2]);
}

#[tokio::test]
async fn goaway_lets_what_is_under_way_end() {
    let gateway = Gateway::builder(PROVIDER)
        .goaway_after(2)
        .start()
        .await
        .unwrap();
    let mut client = Client::http2(&gateway).await;
    assert_eq!(client.pay(PROVIDER, "a").await.unwrap().status, 200);
    assert_eq!(client.pay(PROVIDER, "b").await.unwrap().status, 200);
    while gateway.stats().connections_open > 0 {
        tokio::task::yield_now().await;
    }
    client.pay(PROVIDER, "c").await.unwrap_err();
    assert_eq!(gateway.ledger().effects(), 2);
}

#[tokio::test]
async fn dropped_it_closes_its_connections_and_its_port() {
    let gateway = Gateway::builder(PROVIDER)
        .latency(Latency::Fixed(Duration::from_secs(3600)))
        .start()
        .await
        .unwrap();
    let addr = gateway.addr();
    let mut idle = TcpStream::connect(addr).await.unwrap();
    let mut waiting = Vec::new();
    for mut client in [Client::http1(&gateway).await, Client::http2(&gateway).await] {
        waiting.push(tokio::spawn(
            async move { client.get("/txns").await.map(drop) },
        ));
    }
    while gateway.stats().accepted < 2 {
        tokio::task::yield_now().await;
    }
    drop(gateway);
    assert_eq!(idle.read(&mut [0]).await.unwrap_or(0), 0);
    for waiting in waiting {
        waiting.await.unwrap().unwrap_err();
    }
    // The port is released by the task that listened, a moment later.
    while TcpStream::connect(addr).await.is_ok() {
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn shut_down_it_is_gone_when_the_future_is_done() {
    let gateway = Gateway::builder(PROVIDER).tls(true).start().await.unwrap();
    let mut client = Client::tls(&gateway, &[b"h2"]).await;
    client.pay(PROVIDER, "a").await.unwrap();
    let addr = gateway.addr();
    gateway.shutdown().await;
    TcpStream::connect(addr).await.unwrap_err();
    client.pay(PROVIDER, "b").await.unwrap_err();
    let again = Gateway::builder(PROVIDER).bind(addr).start().await.unwrap();
    assert_eq!(again.addr(), addr);
}

#[tokio::test]
async fn nonsense_on_the_wire_ends_its_own_connection_only() {
    let gateway = Gateway::builder(PROVIDER).start().await.unwrap();
    let mut stream = TcpStream::connect(gateway.addr()).await.unwrap();
    stream
        .write_all(b"\x16\x03\x01 not http\r\n\r\n")
        .await
        .unwrap();
    let mut answer = Vec::new();
    let _ = stream.read_to_end(&mut answer).await;
    assert!(answer.is_empty() || answer.starts_with(b"HTTP/1.1 400"));
    let mut client = Client::http1(&gateway).await;
    assert_eq!(client.pay(PROVIDER, "a").await.unwrap().status, 200);
}

#[tokio::test]
async fn settings_that_make_no_sense_are_refused_by_name_and_value() {
    let builder = || Gateway::builder(Provider::Stripe);
    let second = Duration::from_secs(1);
    for (builder, named) in [
        (
            builder().faults(Faults::rate(1.5)),
            "`faults` is 1.5, expected",
        ),
        (builder().faults(Faults::rate(f64::NAN)), "`faults` is NaN"),
        (builder().faults(Faults::mix(0.1, &[])), "`faults` is []"),
        (
            builder().faults(Faults::always(Fault::ErrorBefore(429))),
            "`faults` is ErrorBefore(429)",
        ),
        (
            builder().faults(Faults::always(Fault::Refuse(429))),
            "`faults` is Refuse(429)",
        ),
        (
            builder().faults(Faults::always(Fault::Refuse(500))),
            "`faults` is Refuse(500)",
        ),
        (
            builder().latency(Latency::uniform(second, Duration::ZERO)),
            "`latency` is (1s, 0ns)",
        ),
        (
            builder().idle_timeout(Duration::ZERO),
            "`idle_timeout` is 0ns",
        ),
        (
            builder().max_requests_per_connection(0),
            "`max_requests_per_connection` is 0",
        ),
        (builder().goaway_after(0), "`goaway_after` is 0"),
        (
            builder().rule(Scope::endpoint("POST /txns"), Rule::sliding_log(1, second)),
            r#"`rule scope` is "POST /txns", expected one of "#,
        ),
        (
            builder().rule(Scope::Gateway, Rule::sliding_log(0, second)),
            "rule",
        ),
    ] {
        let error = builder.start().await.unwrap_err();
        assert!(error.is_config());
        assert!(error.to_string().contains(named), "{error}");
    }
    let taken = Gateway::builder(PROVIDER).start().await.unwrap();
    let error = builder().bind(taken.addr()).start().await.unwrap_err();
    assert!(error.is_bind());
    assert!(std::error::Error::source(&error).is_some());
}
