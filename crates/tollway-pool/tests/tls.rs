//! What is agreed upon under `https`.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

use std::net::IpAddr;
use std::sync::{Arc, Mutex};

use rustls::{HandshakeKind, ProtocolVersion};
use support::{Server, Tls, fetch, get, pool, serve_http1, text};
use tollway_pool::TlsVersion;

/// What a server agreed upon, connection by connection.
type Agreed = Arc<Mutex<Vec<(ProtocolVersion, HandshakeKind)>>>;

async fn server(config: rustls::ServerConfig, agreed: &Agreed) -> Server {
    let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(config));
    let agreed = agreed.clone();
    Server::raw(move |stream, seen| {
        let (acceptor, agreed) = (acceptor.clone(), agreed.clone());
        async move {
            let Ok(stream) = acceptor.accept(stream).await else {
                return;
            };
            let (_, session) = stream.get_ref();
            let version = session.protocol_version().unwrap();
            let kind = session.handshake_kind().unwrap();
            agreed.lock().unwrap().push((version, kind));
            serve_http1(stream, seen, |_| async { text("ok") }).await;
        }
    })
    .await
}

#[tokio::test]
async fn both_versions_are_spoken_and_a_session_is_resumed() {
    let both = [
        (ProtocolVersion::TLSv1_2, TlsVersion::Tls12),
        (ProtocolVersion::TLSv1_3, TlsVersion::Tls13),
    ];
    for (version, expected) in both {
        let supported = rustls::ALL_VERSIONS
            .iter()
            .copied()
            .find(|supported| supported.version == version)
            .unwrap();
        let mut config = rustls::ServerConfig::builder_with_provider(Arc::new(
            rustls::crypto::ring::default_provider(),
        ))
        .with_protocol_versions(&[supported])
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(
            Tls::get().chain.clone(),
            rustls::pki_types::PrivatePkcs8KeyDer::from(Tls::get().key.clone()).into(),
        )
        .unwrap();
        config.ticketer = rustls::crypto::ring::Ticketer::new().unwrap();
        let agreed = Agreed::default();
        let server = server(config, &agreed).await;
        let uri: http::Uri = format!("https://localhost:{}/", server.addr.port())
            .parse()
            .unwrap();
        let pool = pool().max_requests_per_connection(1).build().unwrap();
        for _ in 0..2 {
            let answer = fetch(&pool, get(uri.clone())).await.unwrap();
            assert_eq!(answer.info.tls_version(), Some(expected));
        }
        let agreed = agreed.lock().unwrap();
        let expected = [HandshakeKind::Full, HandshakeKind::Resumed].map(|kind| (version, kind));
        assert_eq!(*agreed, expected);
    }
}

#[tokio::test]
async fn a_client_without_the_certificate_that_is_wanted_is_told_so() {
    let tls = Tls::get();
    for version in [&rustls::version::TLS12, &rustls::version::TLS13] {
        let mut roots = rustls::RootCertStore::empty();
        roots.add(tls.chain[0].clone()).unwrap();
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let verifier = rustls::server::WebPkiClientVerifier::builder_with_provider(
            Arc::new(roots),
            provider.clone(),
        );
        let key = rustls::pki_types::PrivatePkcs8KeyDer::from(tls.key.clone());
        let config = rustls::ServerConfig::builder_with_provider(provider)
            .with_protocol_versions(&[version])
            .unwrap()
            .with_client_cert_verifier(verifier.build().unwrap())
            .with_single_cert(tls.chain.clone(), key.into())
            .unwrap();
        let server = Server::tls_with(config, |_| async { text("hello") }).await;
        let pool = pool().build().unwrap();
        let error = fetch(&pool, get(server.uri("/"))).await.unwrap_err();
        assert!(
            error.to_string().contains("client's certificate"),
            "{error}"
        );
    }
}

#[tokio::test]
async fn a_certificate_may_be_that_of_an_address() {
    let address: IpAddr = [127, 0, 0, 1].into();
    let tls = Tls::of(|params| {
        params.subject_alt_names = vec![rcgen::SanType::IpAddress(address)];
    });
    let agreed = Agreed::default();
    let server = server(tls.server(&[]), &agreed).await;
    let pool = pool().tls(tls.client()).build().unwrap();
    let port = server.addr.port();
    let uri = format!("https://127.0.0.1:{port}/").parse().unwrap();
    assert_eq!(fetch(&pool, get(uri)).await.unwrap().body, "ok");
    let uri = format!("https://localhost:{port}/").parse().unwrap();
    let error = fetch(&pool, get(uri)).await.unwrap_err();
    assert!(error.to_string().contains("is another host's"), "{error}");
}
