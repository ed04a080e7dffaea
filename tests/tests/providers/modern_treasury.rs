use http::Version;
use tollway::core::{Attempt, IdempotencyKey, Verdict};
use tollway::pool::{ConnectionInfo, TlsVersion};
use tollway::profiles;
use tollway::retry::{Attempts, Stop};
use tollway_sim::rule::Rule;
use tollway_sim::{Fault, Gateway, Latency, Provider, Scope};
use tollway_tests::words::{self, Seen};

use super::{Test, client, failing, ms, not_done, records};

const MODERN_TREASURY: Provider = Provider::ModernTreasury;

#[tokio::test]
async fn exactly_the_listed_statuses_are_repeated() -> Test {
    for (status, attempts) in [
        (500, 2),
        (502, 2),
        (503, 2),
        (504, 2),
        (507, 1),
        (508, 1),
        (520, 1),
        (599, 1),
    ] {
        let gateway = failing(MODERN_TREASURY, &[Fault::ErrorBefore(status)]);
        let gateway = gateway.start().await?;
        let client = client(MODERN_TREASURY)?.build()?;
        let answer = client.send(words::pay(&gateway, "r-1")?).await;
        if attempts == 1 {
            let response = answer.as_ref().expect("the answer as it is");
            // Whether there was an effect, nobody knows all the same.
            assert_eq!(Verdict::of(response.extensions()), Some(Verdict::Unknown));
            let story = Attempts::of(response.extensions()).expect("why not");
            assert_eq!(story.stop(), Stop::Advised, "{status}");
        }
        let seen = Seen::of(answer).await;
        assert_eq!(seen.attempts, attempts, "{status}");
    }
    Ok(())
}

#[tokio::test]
async fn a_429_is_repeated_and_had_no_effect() -> Test {
    let gateway = Gateway::builder(MODERN_TREASURY)
        .rule(Scope::Gateway, Rule::sliding_log(1, ms(600)))
        .start()
        .await?;
    let client = client(MODERN_TREASURY)?
        .limits(tollway::limit::Limits::builder())
        .retry(super::retry(MODERN_TREASURY)?.max_attempts(100))
        .build()?;
    client.send(words::pay(&gateway, "r-1")?).await?;
    let second = client.send(words::pay(&gateway, "r-2")?).await;
    let attempts = records(&second);
    assert!(
        matches!(attempts[0].verdict, Verdict::NotExecuted { .. }),
        "{attempts:?}"
    );
    assert_eq!(Verdict::of_response(&second?), Verdict::Done);
    assert_eq!(gateway.ledger().effects(), 2);
    Ok(())
}

#[tokio::test]
async fn a_key_in_use_is_no_answer_and_not_on_the_list() -> Test {
    let gateway = Gateway::builder(MODERN_TREASURY)
        .latency(Latency::Fixed(ms(150)))
        .start()
        .await?;
    let keyed = || {
        let mut request = words::pay(&gateway, "r-1")?;
        let key = http::HeaderValue::from_static("one-key");
        request.headers_mut().insert("idempotency-key", key);
        Ok::<_, http::Error>(request)
    };
    let (one, two) = (
        client(MODERN_TREASURY)?.build()?,
        client(MODERN_TREASURY)?.build()?,
    );
    let first = tokio::spawn(one.send(keyed()?));
    while gateway.ledger().effects() == 0 {
        tokio::task::yield_now().await;
    }
    let second = two.send(keyed()?).await?;
    let key = IdempotencyKey::of(second.extensions());
    assert_eq!(key.map(IdempotencyKey::as_str), Some("one-key"));
    let seen = Seen::of(Ok(second)).await;
    assert_eq!(seen.status, Some(409));
    assert_eq!((seen.verdict, seen.attempts), (Verdict::Unknown, 1));
    assert_eq!(first.await??.status(), 201);
    // Later the same key brings the same answer, and no second effect.
    let seen = Seen::of(two.send(keyed()?).await).await;
    assert_eq!((seen.status, seen.verdict), (Some(201), Verdict::Done));
    assert_eq!(gateway.ledger().effects(), 1);
    Ok(())
}

#[tokio::test]
async fn a_repeat_after_a_time_out_carries_the_same_key() -> Test {
    let hang = Fault::HangAfterEffect(std::time::Duration::from_secs(600));
    let gateway = failing(MODERN_TREASURY, &[hang]).start().await?;
    let client = client(MODERN_TREASURY)?.attempt_timeout(ms(300)).build()?;
    let seen = Seen::of(client.send(words::pay(&gateway, "r-1")?).await).await;
    assert_eq!((seen.verdict, seen.attempts), (Verdict::Done, 2));
    let ledger = gateway.ledger();
    assert_eq!((ledger.effects(), ledger.entries[0].repeats), (1, 1));
    Ok(())
}

#[test]
fn its_own_time_out_and_its_keep_alive_are_heeded() {
    let profile = profiles::modern_treasury();
    let attempt = profile.attempt_timeout.head_of(Attempt::FIRST);
    assert_eq!(attempt.as_secs(), 60);
    assert!((2..30).contains(&profile.idle_timeout.as_secs()));
}

#[tokio::test]
async fn http_2_and_tls_1_3_are_spoken_where_the_server_can() -> Test {
    let gateway = Gateway::builder(MODERN_TREASURY).tls(true).start().await?;
    let mut roots = rustls::RootCertStore::empty();
    let authority = gateway.ca_certificate_der().expect("it speaks TLS");
    roots.add(authority.to_vec().into())?;
    let tls = rustls::ClientConfig::builder()
        .with_root_certificates(roots)
        .with_no_client_auth();
    let client = client(MODERN_TREASURY)?
        .plain_http(false)
        .tls(tls)
        .build()?;
    let response = client.send(words::pay(&gateway, "r-1")?).await?;
    let connection = ConnectionInfo::of(response.extensions()).expect("its connection");
    assert_eq!(connection.protocol(), Version::HTTP_2);
    assert_eq!(connection.tls_version(), Some(TlsVersion::Tls13));
    Ok(())
}

#[tokio::test]
async fn a_server_that_drops_idle_connections_surfaces_as_no_error() -> Test {
    let gateway = Gateway::builder(MODERN_TREASURY)
        .idle_timeout(ms(30))
        .start()
        .await?;
    let client = client(MODERN_TREASURY)?.build()?;
    for nth in 0..5 {
        let seen = Seen::of(
            client
                .send(words::pay(&gateway, &format!("r-{nth}"))?)
                .await,
        )
        .await;
        assert_eq!(seen.verdict, Verdict::Done, "{seen:?}");
        while gateway.stats().connections_open > 0 {
            tokio::task::yield_now().await;
        }
    }
    assert_eq!(gateway.ledger().duplicates(), [""; 0]);
    // Each call found its own gone; on a busy machine one may have been dropped
    // before its first request came.
    assert!(gateway.stats().connections_accepted >= 5);
    Ok(())
}

#[tokio::test]
async fn many_at_once_keep_to_the_polite_rate() -> Test {
    let gateway = Gateway::builder(MODERN_TREASURY).start().await?;
    let client = client(MODERN_TREASURY)?.build()?;
    let failed = not_done(&client, 120, |reference| words::pay(&gateway, reference));
    assert!(failed.await?.is_empty());
    assert_eq!(gateway.stats().throttled, 0);
    Ok(())
}
