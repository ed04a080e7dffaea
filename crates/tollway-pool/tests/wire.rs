//! What stands on the wire in the odd cases: other versions, answers without a
//! body, answers before the answer, answers that break the rules.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

use std::convert::Infallible;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http::header::{CONTENT_LENGTH, HOST};
use http::{Method, Request, StatusCode, Version};
use http_body::{Frame, SizeHint};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use support::{
    Body, Server, Tls, fetch, get, pool, post, send, serve_http1, serve_http2, text, until,
};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::Notify;
use tokio_rustls::TlsAcceptor;
use tollway_core::Verdict;
use tollway_pool::{CloseReason, Pool, Protocol};
use tower::ServiceExt;

/// Answers each request with the next of `answers`, all on one connection, and
/// closes it after the last where `closes`.
async fn scripted(answers: &'static [&'static str], closes: bool) -> Server {
    Server::raw(move |mut stream, seen| async move {
        let mut buffer = vec![0; 64 * 1024];
        for answer in answers {
            let Ok(1..) = stream.read(&mut buffer).await else {
                return;
            };
            seen.request();
            let _ = stream.write_all(answer.as_bytes()).await;
        }
        if !closes {
            let _ = stream.read(&mut buffer).await;
        }
    })
    .await
}

const OK: &str = "HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok";

#[tokio::test]
async fn answers_without_a_body_leave_the_connection_in_use() {
    // Their lengths are about a body that doesn't come.
    let server = scripted(
        &[
            "HTTP/1.1 204 No Content\r\n\r\n",
            "HTTP/1.1 304 Not Modified\r\ncontent-length: 100\r\n\r\n",
            "HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\n",
            "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n",
            OK,
        ],
        false,
    )
    .await;
    let pool = pool().build().unwrap();
    for method in [
        Method::GET,
        Method::GET,
        Method::HEAD,
        Method::HEAD,
        Method::GET,
    ] {
        let mut request = get(server.uri("/"));
        *request.method_mut() = method;
        fetch(&pool, request).await.unwrap();
    }
    assert_eq!(server.seen.accepted(), 1);
}

/// The head of a request, as it stands on the wire.
async fn head_of(request: Request<support::Body>) -> String {
    let (heads, mut seen) = tokio::sync::mpsc::unbounded_channel();
    let server = Server::raw(move |mut stream, _| {
        let heads = heads.clone();
        async move {
            let mut head = Vec::new();
            while !head.ends_with(b"\r\n\r\n") {
                head.push(stream.read_u8().await.unwrap());
            }
            let _ = stream.write_all(OK.as_bytes()).await;
            heads.send(String::from_utf8(head).unwrap()).unwrap();
        }
    })
    .await;
    let (mut parts, body) = request.into_parts();
    parts.uri = server.uri("/");
    let pool = pool().build().unwrap();
    fetch(&pool, Request::from_parts(parts, body))
        .await
        .unwrap();
    seen.recv().await.unwrap()
}

#[tokio::test]
async fn a_method_that_lets_expect_a_body_says_that_there_is_none() {
    let lengths = |head: &str| head.matches("content-length:").count();
    for method in [Method::POST, Method::PUT, Method::PATCH] {
        let mut request = post("/".parse().unwrap(), "");
        *request.method_mut() = method.clone();
        let head = head_of(request.clone()).await;
        assert!(head.contains("\r\ncontent-length: 0\r\n"), "{head}");
        // hyper takes the coding of a body that isn't there away.
        let chunked = "chunked".parse().unwrap();
        request.headers_mut().insert("transfer-encoding", chunked);
        let head = head_of(request.clone()).await;
        assert!(head.contains("\r\ncontent-length: 0\r\n"), "{head}");
        assert!(!head.contains("transfer-encoding"), "{head}");
        // Once, whoever says it.
        request.headers_mut().remove("transfer-encoding");
        let zero = "0".parse().unwrap();
        request.headers_mut().insert("content-length", zero);
        assert_eq!(lengths(&head_of(request).await), 1);

        let mut request = post("/".parse().unwrap(), "pay");
        *request.method_mut() = method;
        let head = head_of(request).await;
        assert!(head.contains("\r\ncontent-length: 3\r\n"), "{head}");
        assert_eq!(lengths(&head), 1);
    }
    for method in [Method::GET, Method::HEAD, Method::DELETE, Method::OPTIONS] {
        let mut request = get("/".parse().unwrap());
        *request.method_mut() = method;
        let head = head_of(request).await;
        assert_eq!(lengths(&head), 0, "{head}");
    }
}

#[tokio::test]
async fn what_comes_before_the_answer_is_not_taken_for_it() {
    let server = scripted(
        &[
            "HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nlink: </a>\r\n\r\n\
             HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok",
            OK,
        ],
        false,
    )
    .await;
    let pool = pool().build().unwrap();
    let mut request = post(server.uri("/"), "pay");
    let expect = "100-continue".parse().unwrap();
    request.headers_mut().insert("expect", expect);
    let answer = fetch(&pool, request).await.unwrap();
    assert_eq!(answer.body, "ok");
    fetch(&pool, get(server.uri("/"))).await.unwrap();
    assert_eq!(server.seen.accepted(), 1);
}

/// As the statistics have it, whoever is quicker: the peer, or its answers' reader.
async fn closed_in_order(pool: &Pool<Body>, connections: u64) {
    until(|| pool.stats().total().open() + pool.stats().total().closing() == 0).await;
    let stats = *pool.stats().total();
    assert_eq!(stats.closed(CloseReason::Peer), connections, "{stats:?}");
}

#[tokio::test]
async fn a_peer_that_says_close_is_taken_at_its_word() {
    for answer in [
        "HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: 2\r\n\r\nok",
        "HTTP/1.0 200 OK\r\ncontent-length: 2\r\n\r\nok",
    ] {
        let answers = Box::leak(Box::new([answer, answer]));
        let server = scripted(answers, false).await;
        let pool = pool().build().unwrap();
        for _ in 0..2 {
            assert_eq!(fetch(&pool, get(server.uri("/"))).await.unwrap().body, "ok");
        }
        assert_eq!(server.seen.accepted(), 2, "{answer}");
        closed_in_order(&pool, 2).await;
    }
    let kept = "HTTP/1.0 200 OK\r\nconnection: keep-alive\r\ncontent-length: 2\r\n\r\nok";
    let server = scripted(Box::leak(Box::new([kept, kept])), false).await;
    let pool = pool().build().unwrap();
    for _ in 0..2 {
        fetch(&pool, get(server.uri("/"))).await.unwrap();
    }
    assert_eq!(server.seen.accepted(), 1);
}

#[tokio::test]
async fn a_body_without_a_length_ends_with_its_connection() {
    let server = scripted(&["HTTP/1.0 200 OK\r\n\r\nuntil the end"], true).await;
    let pool = pool().build().unwrap();
    for _ in 0..2 {
        let answer = fetch(&pool, get(server.uri("/"))).await.unwrap();
        assert_eq!(answer.body, "until the end");
    }
    assert_eq!(server.seen.accepted(), 2);
    closed_in_order(&pool, 2).await;
}

#[tokio::test]
async fn a_peer_that_closes_behind_its_last_http2_answer_is_no_error() {
    let server = Server::raw(|mut stream, _| async move {
        let settings = [0, 0, 0, 4, 0, 0, 0, 0, 0];
        let go_away = [0, 0, 8, 7, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0];
        let head = [0, 0, 1, 1, 4, 0, 0, 0, 1, 0x88];
        let body = [0, 0, 2, 0, 1, 0, 0, 0, 1, b'o', b'k'];
        stream.write_all(&settings).await.unwrap();
        // The preface and its settings come first.
        let mut buffer = [0; 4096];
        let mut read = 0;
        while !buffer[..read]
            .windows(9)
            .any(|frame| frame.ends_with(&[1, 5, 0, 0, 0, 1]))
        {
            read += stream.read(&mut buffer[read..]).await.unwrap();
        }
        let answer = [&go_away[..], &head, &body].concat();
        stream.write_all(&answer).await.unwrap();
    })
    .await;
    let pool = pool().protocol(Protocol::Http2Only).build().unwrap();
    for _ in 0..2 {
        let response = send(&pool, get(server.uri("/"))).await.unwrap();
        until(|| pool.stats().total().open() + pool.stats().total().closing() == 0).await;
        let body = response.into_body().collect().await.unwrap();
        assert_eq!(body.to_bytes(), "ok");
    }
    closed_in_order(&pool, 2).await;
}

#[tokio::test]
async fn trailers_come_through() {
    let server = scripted(
        &[
            "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\ntrailer: x-sum\r\n\r\n\
           2\r\nok\r\n0\r\nx-sum: 7\r\n\r\n",
            OK,
        ],
        false,
    )
    .await;
    let pool = pool().build().unwrap();
    let mut request = get(server.uri("/"));
    request
        .headers_mut()
        .insert("te", "trailers".parse().unwrap());
    let response = send(&pool, request).await.unwrap();
    let whole = response.into_body().collect().await.unwrap();
    assert_eq!(whole.trailers().unwrap()["x-sum"], "7");
    fetch(&pool, get(server.uri("/"))).await.unwrap();
    assert_eq!(server.seen.accepted(), 1);
}

#[tokio::test]
async fn what_comes_after_an_answer_is_never_taken_for_the_next() {
    let twice = "HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok\
                 HTTP/1.1 200 OK\r\ncontent-length: 6\r\n\r\npoison";
    let server = scripted(Box::leak(Box::new([twice])), false).await;
    let pool = pool().build().unwrap();
    for _ in 0..10 {
        let answer = fetch(&pool, get(server.uri("/"))).await.unwrap();
        assert_eq!(answer.body, "ok");
    }
    assert_eq!(server.seen.accepted(), 10);
}

#[tokio::test]
async fn answers_that_break_the_rules_are_errors_of_unknown_outcome() {
    let many = format!("HTTP/1.1 200 OK\r\n{}\r\n", "a: b\r\n".repeat(10_000));
    let long = format!("HTTP/1.1 200 OK\r\na: {}\r\n\r\n", "b".repeat(1 << 20));
    for answer in [
        "HTTP/1.1 200 OK\r\ncontent-length: 1\r\ncontent-length: 2\r\n\r\nok",
        "HTTP/1.1 99999 OK\r\n\r\n",
        "HTTP/9.9 200 OK\r\n\r\n",
        "\0\u{1}\u{2}\r\n\r\n",
        Box::leak(many.into_boxed_str()),
        Box::leak(long.into_boxed_str()),
    ] {
        let server = scripted(Box::leak(Box::new([answer])), true).await;
        let pool = pool().build().unwrap();
        let error = fetch(&pool, post(server.uri("/"), "pay"))
            .await
            .unwrap_err();
        let shown = &answer[..answer.len().min(60)];
        assert_eq!(error.verdict(), Verdict::Unknown, "{shown}: {error}");
        assert_eq!(server.seen.requests(), 1, "{shown}");
        until(|| pool.stats().total().open() == 0).await;
    }
}

#[tokio::test]
async fn an_answer_that_switches_protocols_unasked_costs_its_connection() {
    let switch = "HTTP/1.1 101 Switching Protocols\r\nupgrade: x\r\nconnection: upgrade\r\n\r\n";
    let server = scripted(Box::leak(Box::new([switch, OK])), false).await;
    let pool = pool().build().unwrap();
    for _ in 0..3 {
        match send(&pool, get(server.uri("/"))).await {
            Ok(response) => assert_eq!(response.status(), StatusCode::SWITCHING_PROTOCOLS),
            Err(error) => assert_eq!(error.verdict(), Verdict::Unknown, "{error}"),
        }
    }
    assert_eq!(server.seen.accepted(), 3);
}

#[tokio::test]
async fn an_answer_before_the_request_was_sent_whole_is_not_lost() {
    let body = Bytes::from(vec![0; 8 << 20]);
    let server = Server::raw(|mut stream, _| async move {
        let mut buffer = [0; 1024];
        let _ = stream.read(&mut buffer).await;
        let answer = b"HTTP/1.1 413 Content Too Large\r\ncontent-length: 2\r\n\r\nno";
        let _ = stream.write_all(answer).await;
        tokio::time::sleep(Duration::from_secs(60)).await;
    })
    .await;
    let pool = pool().build().unwrap();
    for _ in 0..2 {
        let response = send(&pool, post(server.uri("/"), body.clone()))
            .await
            .unwrap();
        assert_eq!(response.status(), StatusCode::PAYLOAD_TOO_LARGE);
        let body = response.into_body().collect().await.unwrap();
        assert_eq!(body.to_bytes(), "no");
    }
    assert_eq!(server.seen.accepted(), 2);
}

#[tokio::test]
async fn a_request_of_any_version_is_sent_in_the_connections_own() {
    let echo = |request: Request<Incoming>| async move {
        let version = request.version();
        let body = request.into_body().collect().await.unwrap().to_bytes();
        text(format!("{version:?} {body:?}"))
    };
    let http1 = Server::http1(echo).await;
    let http2 = Server::http2(100, echo).await;
    for (server, protocol, sent) in [
        (http1, Protocol::Http1Only, "HTTP/1.1 b\"pay\""),
        (http2, Protocol::Http2Only, "HTTP/2.0 b\"pay\""),
    ] {
        let pool = Pool::builder().plain_http(true).protocol(protocol);
        let pool = pool.build().unwrap();
        for version in [
            Version::HTTP_09,
            Version::HTTP_10,
            Version::HTTP_11,
            Version::HTTP_2,
            Version::HTTP_3,
        ] {
            // Nobody knows its size, which HTTP/1.0 would have to be told.
            let body = Body::from("pay").map_frame(|frame| frame);
            let mut request = Request::post(server.uri("/")).body(body).unwrap();
            *request.version_mut() = version;
            let response = pool.clone().oneshot(request).await.unwrap();
            let answer = response.into_body().collect().await.unwrap();
            assert_eq!(answer.to_bytes(), sent, "{version:?}");
        }
        assert_eq!(server.seen.accepted(), 1);
    }
}

struct Bounded(Body, SizeHint);

impl http_body::Body for Bounded {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        Pin::new(&mut self.0).poll_frame(cx)
    }

    fn size_hint(&self) -> SizeHint {
        self.1
    }
}

/// Less than the body would cut that, and more would have the peer wait.
#[tokio::test]
async fn a_body_that_is_not_as_long_as_its_header_says_is_refused() {
    for protocol in [Protocol::Http1Only, Protocol::Http2Only] {
        let pool = pool().protocol(protocol).build().unwrap();
        for (length, body) in [
            ("5", "amount=1100"),
            ("0", "amount=1100"),
            ("12", "amount=1100"),
            ("5", ""),
            ("-11", "amount=1100"),
        ] {
            let mut request = post("http://127.0.0.1:1/".parse().unwrap(), body);
            let stated = length.parse().unwrap();
            request.headers_mut().insert(CONTENT_LENGTH, stated);
            let error = send(&pool, request).await.unwrap_err();
            assert_eq!(error.verdict(), Verdict::Rejected, "{length}: {error}");
            assert!(error.to_string().contains("content-length"), "{error}");
        }
    }
    // A body that knows no more than its bounds, if any.
    let pool = Pool::builder().plain_http(true).build().unwrap();
    for (length, bounds) in [("11, 12", 0..=u64::MAX), ("5", 10..=20), ("21", 10..=20)] {
        let mut size = SizeHint::new();
        size.set_upper(*bounds.end());
        size.set_lower(*bounds.start());
        let request = Request::post("http://127.0.0.1:1/").header(CONTENT_LENGTH, length);
        let request = request.body(Bounded(Body::from("amount=1100"), size));
        let error = pool.clone().oneshot(request.unwrap()).await.unwrap_err();
        assert_eq!(error.verdict(), Verdict::Rejected, "{length}: {error}");
    }
    let mut request = post("/".parse().unwrap(), "amount=1100");
    let stated = "11".parse().unwrap();
    request.headers_mut().insert(CONTENT_LENGTH, stated);
    let head = head_of(request).await;
    assert!(head.contains("\r\ncontent-length: 11\r\n"), "{head}");
}

#[tokio::test]
async fn an_address_in_brackets_is_a_host() {
    let Ok(listener) = tokio::net::TcpListener::bind("[::1]:0").await else {
        return; // A machine without IPv6.
    };
    let uri = format!("http://{}/", listener.local_addr().unwrap());
    let host = listener.local_addr().unwrap().to_string();
    tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        let mut buffer = vec![0; 4096];
        let read = stream.read(&mut buffer).await.unwrap();
        let seen = String::from_utf8_lossy(&buffer[..read]).into_owned();
        let line = seen
            .lines()
            .find(|line| line.starts_with("host: "))
            .unwrap_or_default()
            .to_owned();
        let answer = format!(
            "HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{line}",
            line.len()
        );
        stream.write_all(answer.as_bytes()).await.unwrap();
    });
    let pool = pool().build().unwrap();
    let answer = fetch(&pool, get(uri.parse().unwrap())).await.unwrap();
    assert_eq!(answer.body, format!("host: {host}"));
}

#[tokio::test]
async fn a_request_that_is_sent_again_by_another_protocol_keeps_the_callers_host() {
    /// HTTP/2 first, on a connection that ends, and HTTP/1.1 after that.
    async fn changing(ends: Arc<Notify>) -> Server {
        Server::raw(move |stream, seen| {
            let ends = ends.clone();
            async move {
                let first = seen.accepted() == 1;
                let alpn = if first { "h2" } else { "http/1.1" };
                let tls = TlsAcceptor::from(Arc::new(Tls::get().server(&[alpn])));
                let stream = tls.accept(stream).await.unwrap();
                let host = |request: Request<Incoming>| async move {
                    let authority = request.uri().authority().map(ToString::to_string);
                    let header = request.headers().get(HOST);
                    let header = header.map(|host| host.to_str().unwrap().to_owned());
                    text(authority.or(header).unwrap())
                };
                if first {
                    tokio::select! {
                        () = serve_http2(stream, seen, 100, host) => {}
                        () = ends.notified() => {}
                    }
                } else {
                    serve_http1(stream, seen, host).await;
                }
            }
        })
        .await
    }

    for _ in 0..100 {
        let ends = Arc::new(Notify::new());
        let server = changing(ends.clone()).await;
        let pool = pool().build().unwrap();
        let request = || {
            let url = format!("https://localhost:{}/", server.addr.port());
            let mut request = get(url.parse().unwrap());
            let host = "other.example.com".parse().unwrap();
            request.headers_mut().insert(HOST, host);
            request
        };
        let first = fetch(&pool, request()).await.unwrap();
        assert_eq!(first.info.protocol(), Version::HTTP_2);
        assert_eq!(first.body, "other.example.com");
        ends.notify_one();
        tokio::task::yield_now().await;
        // Whether the request is written before the end is seen is a race.
        if let Ok(second) = fetch(&pool, request()).await
            && pool.stats().total().resent() == 1
        {
            assert_eq!(second.info.protocol(), Version::HTTP_11);
            assert_eq!(second.body, "other.example.com");
            return;
        }
    }
    panic!("no request was ever sent again");
}
