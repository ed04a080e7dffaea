//! A pool's calls over HTTP/1.1 and HTTP/2, plain and with TLS.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

use http::Version;
use support::{Server, fetch, get, pool, post, text};
use tollway_pool::{Protocol, TlsVersion};

#[tokio::test]
async fn a_connection_is_used_again() {
    let server = Server::http1(|_| async { text("hello") }).await;
    let pool = pool().build().unwrap();
    for call in 0..10 {
        let answer = fetch(&pool, get(server.uri("/v1/things?x=1")))
            .await
            .unwrap();
        assert_eq!(answer.body, "hello");
        assert_eq!(answer.info.is_reused(), call > 0);
        assert_eq!(answer.info.protocol(), Version::HTTP_11);
        assert_eq!(answer.info.remote_addr(), Some(server.addr));
    }
    assert_eq!(server.seen.accepted(), 1);
    let stats = pool.stats();
    assert_eq!(stats.total().opened(), 1);
    assert_eq!(stats.total().reused(), 9);
    assert_eq!(stats.total().idle(), 1);
    assert_eq!(stats.total().handshakes().count(), 1);
}

#[tokio::test]
async fn alpn_decides_between_the_protocols() {
    for (alpn, version) in [
        (&["h2", "http/1.1"][..], Version::HTTP_2),
        (&["http/1.1"][..], Version::HTTP_11),
        (&[][..], Version::HTTP_11),
    ] {
        let server = Server::tls(alpn, |_| async { text("hello") }).await;
        let pool = pool().build().unwrap();
        for _ in 0..3 {
            let answer = fetch(&pool, get(server.uri("/"))).await.unwrap();
            assert_eq!(answer.info.protocol(), version);
            assert_eq!(answer.info.tls_version(), Some(TlsVersion::Tls13));
        }
        assert_eq!(server.seen.accepted(), 1);
    }
}

#[tokio::test]
async fn http2_is_spoken_with_prior_knowledge_where_asked_for() {
    let server = Server::http2(100, |request| async move {
        assert_eq!(request.version(), Version::HTTP_2);
        text("hello")
    })
    .await;
    let pool = pool().protocol(Protocol::Http2Only).build().unwrap();
    let answer = fetch(&pool, post(server.uri("/"), "body")).await.unwrap();
    assert_eq!(answer.info.protocol(), Version::HTTP_2);
}

#[tokio::test]
async fn the_request_is_addressed_as_the_protocol_wants_it() {
    let echo = |request: http::Request<hyper::body::Incoming>| async move {
        text(format!(
            "{} {:?}",
            request.uri(),
            request.headers().get("host")
        ))
    };
    let server = Server::http1(echo).await;
    let pool1 = pool().build().unwrap();
    let port = server.addr.port();
    for (path, seen) in [("/a/b?c=d", "/a/b?c=d"), ("", "/"), ("?q", "/?q")] {
        let answer = fetch(&pool1, get(server.uri(path))).await.unwrap();
        let expected = format!("{seen} Some(\"127.0.0.1:{port}\")");
        assert_eq!(answer.body, expected);
    }
    let mut request = get(server.uri("/"));
    request
        .headers_mut()
        .insert("host", "other.example".parse().unwrap());
    let answer = fetch(&pool1, request).await.unwrap();
    assert_eq!(answer.body, "/ Some(\"other.example\")");

    let server = Server::http2(100, echo).await;
    let pool2 = pool().protocol(Protocol::Http2Only).build().unwrap();
    let mut request = get(server.uri("/a?b"));
    request
        .headers_mut()
        .insert("connection", "keep-alive".parse().unwrap());
    let answer = fetch(&pool2, request).await.unwrap();
    let expected = format!("http://127.0.0.1:{}/a?b None", server.addr.port());
    assert_eq!(answer.body, expected);
    let mut request = get(server.uri("/"));
    request
        .headers_mut()
        .insert("host", "other.example".parse().unwrap());
    let answer = fetch(&pool2, request).await.unwrap();
    assert_eq!(answer.body, "http://other.example/ None");

    // As it stands in the field, and not as it is displayed.
    let server = Server::http2(100, |request| async move {
        text(request.uri().path_and_query().unwrap().as_str().to_owned())
    })
    .await;
    for (path, seen) in [("/a/b?c=d", "/a/b?c=d"), ("", "/"), ("?q", "/?q")] {
        let answer = fetch(&pool2, get(server.uri(path))).await.unwrap();
        assert_eq!(answer.body, seen);
    }
}

#[tokio::test]
async fn any_connector_will_do() {
    use hyper_util::client::legacy::connect::HttpConnector;
    use tollway_pool::{Pool, PoolLayer};
    use tower::Layer;

    let server = Server::http1(|_| async { text("hello") }).await;
    let builder = Pool::<support::Body>::builder().plain_http(true);
    let pool = builder.layer().unwrap().layer(HttpConnector::new());
    for reused in [false, true] {
        let answer = fetch(&pool, get(server.uri("/"))).await.unwrap();
        assert_eq!(answer.info.is_reused(), reused);
        assert_eq!(answer.info.remote_addr(), Some(server.addr));
    }
    // By default, plain http isn't spoken over it either.
    let pool = PoolLayer::default().layer(HttpConnector::new());
    let error = fetch(&pool, get(server.uri("/"))).await.unwrap_err();
    assert!(error.to_string().contains("plain_http(true)"), "{error}");
}

#[test]
fn settings_without_sense_are_refused_by_name() {
    use std::time::Duration;
    use tollway_pool::Pool;

    let builder = || Pool::<support::Body>::builder().tls(support::Tls::get().client());
    for (builder, field) in [
        (
            builder().max_connections_per_host(0),
            "max_connections_per_host",
        ),
        (
            builder().max_requests_per_connection(0),
            "max_requests_per_connection",
        ),
        (builder().idle_timeout(Duration::ZERO), "idle_timeout"),
        (builder().max_age(Duration::ZERO), "max_age"),
        (builder().connect_timeout(Duration::MAX), "connect_timeout"),
        (builder().acquire_timeout(Duration::ZERO), "acquire_timeout"),
    ] {
        let error = builder.build().unwrap_err();
        assert_eq!(error.field(), field);
        assert!(error.to_string().starts_with(field), "{error}");
    }
    let mut tls = support::Tls::get().client();
    tls.alpn_protocols = vec![b"h2".to_vec()];
    assert_eq!(builder().tls(tls).build().unwrap_err().field(), "tls");
    assert_eq!(builder().layer().unwrap_err().field(), "tls");
}
