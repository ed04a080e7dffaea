//! Every fault, as a client over a real socket sees it.
#![cfg(feature = "server")]
#![allow(clippy::unwrap_used, reason = "a test fails where it stands")]

mod common;

use std::io::ErrorKind;
use std::time::Duration;

use common::{BoxError, Client, caused_by, h2_reason};
use http::Method;
use tokio::time::Instant;
use tollway_sim::{Fault, Faults, Gateway, GatewayBuilder, Latency, Provider};

const PROVIDER: Provider = Provider::Payrix;

async fn start(faults: Faults) -> Gateway {
    builder(faults).start().await.unwrap()
}

fn builder(faults: Faults) -> GatewayBuilder {
    Gateway::builder(PROVIDER).faults(faults)
}

/// One payment over each version of HTTP, against a gateway of its own.
async fn over_both(fault: Fault) -> [(Result<u16, BoxError>, Gateway); 2] {
    let one = start(Faults::always(fault)).await;
    let two = start(Faults::always(fault)).await;
    let mut http1 = Client::http1(&one).await;
    let mut http2 = Client::http2(&two).await;
    let status = |answer: common::Answer| answer.status.as_u16();
    let over_one = http1.pay(PROVIDER, "a").await.map(status);
    let over_two = http2.pay(PROVIDER, "a").await.map(status);
    [(over_one, one), (over_two, two)]
}

fn assert_effects(gateway: &Gateway, effects: u64, fault: Fault) {
    assert_eq!(gateway.ledger().effects(), effects, "{fault}");
    assert_eq!(
        gateway.stats().faults.get(fault.name()),
        Some(&1),
        "{fault}"
    );
}

#[tokio::test]
async fn an_error_is_sent_before_the_effect_or_after_it() {
    for (fault, effects) in [
        (Fault::ErrorBefore(500), 0),
        (Fault::ErrorBefore(503), 0),
        (Fault::ErrorAfter(500), 1),
        (Fault::ErrorAfter(502), 1),
    ] {
        let (Fault::ErrorBefore(expected) | Fault::ErrorAfter(expected)) = fault else {
            unreachable!()
        };
        for (status, gateway) in over_both(fault).await {
            assert_eq!(status.unwrap(), expected);
            assert_effects(&gateway, effects, fault);
        }
    }
}

#[tokio::test]
async fn a_reset_is_a_real_reset_of_the_connection_or_the_stream() {
    for (fault, effects) in [
        (Fault::ResetBeforeRead, 0),
        (Fault::ResetAfterRead, 0),
        (Fault::ResetAfterEffect, 1),
    ] {
        let [(http1, one), (http2, two)] = over_both(fault).await;
        let error = http1.unwrap_err();
        assert!(
            caused_by(&error, ErrorKind::ConnectionReset),
            "{fault}: {error:?}"
        );
        let error = http2.unwrap_err();
        assert_eq!(
            h2_reason(&error),
            Some(h2::Reason::INTERNAL_ERROR),
            "{fault}: {error:?}"
        );
        assert_effects(&one, effects, fault);
        assert_effects(&two, effects, fault);
    }
}

#[tokio::test]
async fn a_request_reset_before_it_is_read_spends_from_no_limit() {
    for (fault, accepted) in [(Fault::ResetBeforeRead, 0), (Fault::ResetAfterRead, 1)] {
        let gateway = start(Faults::always(fault)).await;
        Client::http1(&gateway)
            .await
            .pay(PROVIDER, "a")
            .await
            .unwrap_err();
        let stats = gateway.stats();
        assert_eq!((stats.arrivals, stats.accepted), (1, accepted), "{fault}");
    }
}

#[tokio::test]
async fn a_stream_reset_leaves_the_connection_and_an_abort_does_not() {
    let faults = Faults::script([
        Some(Fault::ResetAfterRead),
        None,
        Some(Fault::AbortConnection),
    ]);
    let gateway = start(faults).await;
    let mut client = Client::http2(&gateway).await;
    client.pay(PROVIDER, "a").await.unwrap_err();
    assert_eq!(client.pay(PROVIDER, "b").await.unwrap().status, 200);
    client.pay(PROVIDER, "c").await.unwrap_err();
    client.pay(PROVIDER, "d").await.unwrap_err();
    assert_eq!(
        gateway
            .ledger()
            .by_reference()
            .into_keys()
            .collect::<Vec<_>>(),
        ["b"]
    );
    assert_eq!(gateway.stats().connections_accepted, 1);
}

#[tokio::test]
async fn half_of_the_promised_answer_arrives() {
    let gateway = start(Faults::always(Fault::HalfResponse)).await;
    let client = Client::http1(&gateway).await;
    let body = common::payout(PROVIDER, "a", 100);
    let request = client.request(Method::POST, "/txns", &[], body);
    let Client::Http1(mut sender, _) = client else {
        unreachable!()
    };
    let response = sender.send_request(request).await.unwrap();
    assert_eq!(response.status(), 200);
    let promised: usize = response.headers()["content-length"]
        .to_str()
        .unwrap()
        .parse()
        .unwrap();
    let (received, error) = drain(response.into_body()).await;
    assert_eq!(received, promised / 2);
    assert!(caused_by(&error, ErrorKind::UnexpectedEof), "{error:?}");
    assert_effects(&gateway, 1, Fault::HalfResponse);

    let gateway = start(Faults::always(Fault::HalfResponse)).await;
    let error = Client::http2(&gateway)
        .await
        .pay(PROVIDER, "a")
        .await
        .unwrap_err();
    assert_eq!(h2_reason(&error), Some(h2::Reason::INTERNAL_ERROR));
    assert_effects(&gateway, 1, Fault::HalfResponse);
}

/// How much of a body came before it broke, and how it broke.
async fn drain(mut body: hyper::body::Incoming) -> (usize, BoxError) {
    use http_body_util::BodyExt;
    let mut received = 0;
    loop {
        match body.frame().await.expect("the body breaks before its end") {
            Ok(frame) => received += frame.data_ref().map_or(0, bytes::Bytes::len),
            Err(error) => return (received, error.into()),
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_slow_body_takes_its_time_and_is_whole() {
    let time = Duration::from_secs(10);
    for (status, gateway) in over_both(Fault::SlowBody(time)).await {
        assert_eq!(status.unwrap(), 200);
        assert_effects(&gateway, 1, Fault::SlowBody(time));
    }
    let gateway = start(Faults::always(Fault::SlowBody(time))).await;
    let mut client = Client::http1(&gateway).await;
    let before = Instant::now();
    client.pay(PROVIDER, "a").await.unwrap().json();
    assert!(before.elapsed() >= time);
}

#[tokio::test(start_paused = true)]
async fn a_silent_hang_ends_in_a_reset_with_or_without_the_effect() {
    let time = Duration::from_secs(60);
    for (fault, effects) in [(Fault::Hang(time), 0), (Fault::HangAfterEffect(time), 1)] {
        let before = Instant::now();
        for (answer, gateway) in over_both(fault).await {
            answer.unwrap_err();
            assert_effects(&gateway, effects, fault);
        }
        assert!(before.elapsed() >= 2 * time);
    }
}

#[tokio::test]
async fn going_away_answers_first_and_then_takes_no_more() {
    let gateway = start(Faults::always(Fault::GoAway)).await;
    let mut client = Client::http1(&gateway).await;
    let answer = client.pay(PROVIDER, "a").await.unwrap();
    assert_eq!(
        (answer.status.as_u16(), answer.header("connection")),
        (200, Some("close"))
    );
    client.pay(PROVIDER, "b").await.unwrap_err();

    let mut client = Client::http2(&gateway).await;
    assert_eq!(client.pay(PROVIDER, "c").await.unwrap().status, 200);
    wait_until_closed(&gateway).await;
    client.pay(PROVIDER, "d").await.unwrap_err();
    assert_eq!(gateway.ledger().effects(), 2);
}

async fn wait_until_closed(gateway: &Gateway) {
    while gateway.stats().connections_open > 0 {
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn a_refused_stream_says_so() {
    let [(http1, one), (http2, two)] = over_both(Fault::RefusedStream).await;
    assert!(caused_by(&http1.unwrap_err(), ErrorKind::ConnectionReset));
    assert_eq!(
        h2_reason(&http2.unwrap_err()),
        Some(h2::Reason::REFUSED_STREAM)
    );
    assert_effects(&one, 0, Fault::RefusedStream);
    assert_effects(&two, 0, Fault::RefusedStream);
}

#[tokio::test]
async fn a_lock_is_a_429_without_a_reason_at_stripe() {
    let gateway = Gateway::builder(Provider::Stripe)
        .faults(Faults::script([Some(Fault::LockTimeout)]))
        .start()
        .await
        .unwrap();
    let mut client = Client::http1(&gateway).await;
    let locked = client.pay(Provider::Stripe, "a").await.unwrap();
    assert_eq!(locked.status, 429);
    assert_eq!(locked.json()["error"]["code"], "lock_timeout");
    assert_eq!(locked.header("stripe-rate-limited-reason"), None);
    assert_eq!(locked.header("stripe-should-retry"), Some("true"));
    assert_eq!(gateway.stats().throttled, 0, "no limit was broken");
    let again = client.pay(Provider::Stripe, "a").await.unwrap();
    assert_eq!(
        again.header("idempotent-replayed"),
        None,
        "nothing had happened"
    );
}

#[tokio::test]
async fn a_refusal_has_no_effect_and_is_told_in_the_providers_words() {
    for provider in Provider::ALL {
        let script = [402, 403].map(|status| Some(Fault::Refuse(status)));
        let gateway = Gateway::builder(provider)
            .faults(Faults::script(script))
            .start()
            .await
            .unwrap();
        let mut client = Client::http1(&gateway).await;
        let declined = client.pay(provider, "a").await.unwrap();
        match provider {
            Provider::Savvy => {
                assert_eq!(declined.status, 200);
                assert_eq!(declined.json()["responseMessage"], "Declined");
            }
            _ => assert_eq!(declined.status, 402, "{provider}"),
        }
        if provider == Provider::Stripe {
            assert_eq!(declined.json()["error"]["code"], "card_declined");
        }
        let forbidden = client.pay(provider, "a").await.unwrap();
        assert_eq!(forbidden.status, 403, "{provider}");
        assert_eq!(gateway.ledger().effects(), 0, "{provider}");
        let paid = client.pay(provider, "a").await.unwrap();
        assert!(paid.status.is_success(), "{provider}: nothing is kept");
        assert_eq!(gateway.ledger().effects(), 1, "{provider}");
    }
}

#[tokio::test]
async fn a_lost_answer_is_replayed_under_the_same_key() {
    let gateway = Gateway::builder(Provider::Stripe)
        .faults(Faults::script([Some(Fault::ResetAfterEffect)]))
        .start()
        .await
        .unwrap();
    Client::http1(&gateway)
        .await
        .pay(Provider::Stripe, "a")
        .await
        .unwrap_err();
    let again = Client::http1(&gateway)
        .await
        .pay(Provider::Stripe, "a")
        .await
        .unwrap();
    assert_eq!(again.header("idempotent-replayed"), Some("true"));
    assert_eq!(gateway.ledger().effects(), 1);
}

#[tokio::test(start_paused = true)]
async fn whoever_repeats_under_the_same_key_gets_through_any_mix_exactly_once() {
    for (http2, seed) in [(false, 3), (true, 4)] {
        let gateway = Gateway::builder(Provider::Stripe)
            .unlimited()
            .faults(Faults::rate(0.5))
            .seed(seed)
            .start()
            .await
            .unwrap();
        for n in 0..100 {
            let reference = format!("r{n}");
            loop {
                let mut client = if http2 {
                    Client::http2(&gateway).await
                } else {
                    Client::http1(&gateway).await
                };
                match client.pay(Provider::Stripe, &reference).await {
                    Ok(answer) if answer.status == 200 => break,
                    Ok(answer) => assert!(answer.status.is_server_error()),
                    Err(_) => {}
                }
            }
        }
        let ledger = gateway.ledger();
        assert_eq!(ledger.by_reference().len(), 100);
        assert_eq!(ledger.duplicates(), [""; 0]);
        let kinds: Vec<_> = gateway.stats().faults.into_keys().collect();
        assert_eq!(kinds.len(), 10, "all kinds of the mix were met: {kinds:?}");
    }
}

#[tokio::test]
async fn the_same_seed_gives_the_same_faults() {
    let mut runs = Vec::new();
    for seed in [1, 1, 2] {
        // The mix without those that take time or the connection.
        let mix = [(Fault::ErrorBefore(500), 1), (Fault::ErrorAfter(502), 2)];
        let gateway = builder(Faults::mix(0.3, &mix))
            .seed(seed)
            .start()
            .await
            .unwrap();
        let mut client = Client::http1(&gateway).await;
        let mut statuses = Vec::new();
        for n in 0..100 {
            let answer = client.pay(PROVIDER, &n.to_string()).await.unwrap();
            statuses.push(answer.status.as_u16());
        }
        runs.push(statuses);
    }
    assert_eq!(runs[0], runs[1]);
    assert_ne!(runs[0], runs[2]);
    let failed = runs[0].iter().filter(|status| **status != 200).count();
    assert!((15..=45).contains(&failed), "{failed} of 100 at 30 %");
}

#[tokio::test]
async fn a_latency_moves_no_fault() {
    let mut runs = Vec::new();
    for latency in [
        Latency::None,
        Latency::uniform(Duration::ZERO, Duration::from_micros(50)),
    ] {
        let faults = Faults::mix(0.5, &[(Fault::ErrorBefore(500), 1)]);
        let gateway = builder(faults).latency(latency).start().await.unwrap();
        let mut client = Client::http1(&gateway).await;
        let mut statuses = Vec::new();
        for _ in 0..30 {
            statuses.push(client.get("/txns").await.unwrap().status);
        }
        runs.push(statuses);
    }
    assert_eq!(runs[0], runs[1]);
}

#[tokio::test]
async fn reads_can_be_spared() {
    let gateway = start(Faults::script([None, Some(Fault::ErrorBefore(503))]).writes_only()).await;
    let mut client = Client::http1(&gateway).await;
    let mut statuses = Vec::new();
    for method in [
        Method::POST,
        Method::GET,
        Method::GET,
        Method::POST,
        Method::POST,
    ] {
        let body = if method == Method::POST {
            common::payout(PROVIDER, "a", 1)
        } else {
            String::new()
        };
        let request = client.request(method, "/txns", &[], body);
        statuses.push(client.send(request).await.unwrap().status.as_u16());
    }
    assert_eq!(statuses, [200, 200, 200, 503, 200]);
}

#[tokio::test]
async fn faults_change_while_the_gateway_runs() {
    let gateway = start(Faults::none()).await;
    let mut client = Client::http1(&gateway).await;
    assert_eq!(client.pay(PROVIDER, "a").await.unwrap().status, 200);
    gateway
        .set_faults(Faults::always(Fault::ErrorBefore(502)))
        .unwrap();
    assert_eq!(client.pay(PROVIDER, "b").await.unwrap().status, 502);
    let refused = gateway.set_faults(Faults::rate(2.0)).unwrap_err();
    assert!(refused.is_config());
    assert_eq!(
        client.pay(PROVIDER, "c").await.unwrap().status,
        502,
        "left as they were"
    );
    gateway.set_faults(Faults::none()).unwrap();
    assert_eq!(client.pay(PROVIDER, "d").await.unwrap().status, 200);
}
