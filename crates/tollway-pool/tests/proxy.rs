//! Through a proxy, and over a Unix socket.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

use http::Uri;
use hyper_util::client::proxy::matcher::Matcher;
use hyper_util::rt::TokioIo;
use std::time::Duration;
use support::{Server, fetch, get, pool, serve_http1, text};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};
use tollway_core::Verdict;
use tollway_pool::connect::{Proxy, Tcp};

fn tcp() -> Tcp {
    Tcp::new(Duration::from_secs(10))
}

/// A proxy that knows CONNECT, and wants a password.
async fn tunnelling() -> Server {
    Server::raw(|stream, seen| async move {
        let mut stream = BufReader::new(stream);
        let (mut target, mut authorised) = (None, false);
        loop {
            let mut line = String::new();
            stream.read_line(&mut line).await.unwrap();
            let line = line.trim_end();
            if line.is_empty() {
                break;
            }
            if let Some(rest) = line.strip_prefix("CONNECT ") {
                target = rest.split(' ').next().map(str::to_owned);
            }
            // "me:secret"
            authorised |= line.eq_ignore_ascii_case("proxy-authorization: Basic bWU6c2VjcmV0");
        }
        if !authorised {
            let denied = b"HTTP/1.1 407 Proxy Authentication Required\r\n\r\n";
            let _ = stream.write_all(denied).await;
            return;
        }
        seen.request();
        let mut upstream = TcpStream::connect(target.unwrap()).await.unwrap();
        stream.write_all(b"HTTP/1.1 200 OK\r\n\r\n").await.unwrap();
        let _ = tokio::io::copy_bidirectional(&mut stream, &mut upstream).await;
    })
    .await
}

#[tokio::test]
async fn https_goes_through_a_tunnel() {
    let proxy = tunnelling().await;
    let server = Server::tls(&["h2"], |_| async { text("hello") }).await;
    let matcher = |user: &str| {
        let url = format!("http://{user}{}", proxy.addr);
        Matcher::builder().https(url).build()
    };
    let through = Proxy::new(tcp(), matcher("me:secret@"));
    let pool1 = pool().build_over(through).unwrap();
    for _ in 0..3 {
        let answer = fetch(&pool1, get(server.uri("/"))).await.unwrap();
        assert_eq!(answer.body, "hello");
        assert!(!answer.info.is_proxied());
    }
    assert_eq!(proxy.seen.requests(), 1);

    let through = Proxy::new(tcp(), matcher(""));
    let pool2 = pool().build_over(through).unwrap();
    let error = fetch(&pool2, get(server.uri("/"))).await.unwrap_err();
    assert!(error.is_connect(), "{error}");
    let text = format!("{error:?}");
    assert!(text.contains("ProxyAuthRequired"), "{text}");
}

#[tokio::test]
async fn plain_http_is_forwarded() {
    let proxy = Server::http1(|request| async move {
        let auth = request.headers().get("proxy-authorization");
        text(format!("{} {:?}", request.uri(), auth))
    })
    .await;
    let url = format!("http://me:secret@{}", proxy.addr);
    let matcher = Matcher::builder().http(url).no("direct.test").build();
    let pool = pool().build_over(Proxy::new(tcp(), matcher)).unwrap();
    let uri: Uri = "http://api.example.com/v1/things?x=1".parse().unwrap();
    let answer = fetch(&pool, get(uri)).await.unwrap();
    let expected = "http://api.example.com/v1/things?x=1 Some(\"Basic bWU6c2VjcmV0\")";
    assert_eq!(answer.body, expected);
    assert!(answer.info.is_proxied());
}

#[tokio::test]
async fn what_a_proxy_does_is_not_blamed_on_the_host() {
    let closed = {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        listener.local_addr().unwrap()
    };
    let denying = tunnelling().await;
    for (proxy, uri, says) in [
        (closed, "https://api.example.com/", "can't be reached"),
        (closed, "http://api.example.com/", "can't be reached"),
        (denying.addr, "https://api.example.com/", "a tunnel"),
    ] {
        let matcher = Matcher::builder().all(format!("http://me:guess@{proxy}"));
        let pool = pool().build_over(Proxy::new(tcp(), matcher.build()));
        let request = get(uri.parse().unwrap());
        let error = fetch(&pool.unwrap(), request).await.unwrap_err();
        assert!(error.is_connect());
        assert_eq!(error.verdict(), Verdict::NO_EFFECT);
        let text = error.to_string();
        assert!(text.contains("proxy") && text.contains(says), "{text}");
        assert!(!format!("{error:?}").contains("guess"));
    }
}

#[tokio::test(start_paused = true)]
async fn a_proxy_that_answers_nothing_is_among_the_suspects() {
    let silent = Server::raw(|mut stream, _| async move {
        let _ = tokio::io::copy(&mut stream, &mut tokio::io::sink()).await;
    })
    .await;
    let matcher = Matcher::builder().all(format!("http://{}", silent.addr));
    let pool = pool().build_over(Proxy::new(tcp(), matcher.build()));
    let request = get("https://api.example.com/".parse().unwrap());
    let error = fetch(&pool.unwrap(), request).await.unwrap_err();
    assert!(error.is_connect() && error.is_timeout(), "{error}");
    let text = error.to_string();
    assert!(text.contains("a proxy on the way"), "{text}");
}

#[tokio::test]
async fn a_proxy_of_another_kind_is_refused_without_its_password() {
    let matcher = Matcher::builder()
        .all("socks5://me:secret@127.0.0.1:1")
        .build();
    let pool = pool().build_over(Proxy::new(tcp(), matcher)).unwrap();
    let uri: Uri = "https://api.example.com/".parse().unwrap();
    let error = fetch(&pool, get(uri)).await.unwrap_err();
    assert!(error.is_connect());
    let text = format!("{error:?}");
    assert!(text.contains("not an http:// one"), "{text}");
    assert!(!text.contains("secret"), "{text}");
}

#[tokio::test]
async fn a_unix_socket_is_a_transport_too() {
    let folder = std::env::temp_dir().join(format!("tollway-unix-{}", std::process::id()));
    std::fs::create_dir_all(&folder).unwrap();
    let path = folder.join("socket");
    let listener = UnixListener::bind(&path).unwrap();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            tokio::spawn(serve_http1(stream, Default::default(), |_| async {
                text("hello")
            }));
        }
    });
    let transport = {
        let path = path.clone();
        tower::service_fn(move |_: Uri| {
            let path = path.clone();
            async move { UnixStream::connect(path).await.map(TokioIo::new) }
        })
    };
    let pool = pool().build_over(transport).unwrap();
    for reused in [false, true] {
        let uri: Uri = "http://gateway/".parse().unwrap();
        let answer = fetch(&pool, get(uri)).await.unwrap();
        assert_eq!(answer.body, "hello");
        assert_eq!(answer.info.is_reused(), reused);
        assert_eq!(answer.info.remote_addr(), None);
    }
    std::fs::remove_dir_all(&folder).unwrap();
}
