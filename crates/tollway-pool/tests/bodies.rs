//! What becomes of a connection whose response isn't read.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

use std::time::Duration;

use support::{Server, fetch, get, pool, post, send, until};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tollway_pool::CloseReason;

/// Answers the path `/n` with so many bytes, in chunks if it ends with `c`, and
/// `/stuck` with half a body.
async fn server() -> Server {
    Server::raw(|mut stream, seen| async move {
        let mut buffer = vec![0; 16 * 1024];
        while let Ok(1..) = stream.read(&mut buffer).await {
            seen.request();
            let head = String::from_utf8_lossy(&buffer);
            let path = head.split(' ').nth(1).unwrap().trim_start_matches('/');
            let answer = if path == "stuck" {
                "HTTP/1.1 200 OK\r\ncontent-length: 1000\r\n\r\nhalf".to_owned()
            } else if let Some(len) = path.strip_suffix('c') {
                let len: usize = len.parse().unwrap();
                let chunk = "x".repeat(len);
                format!(
                    "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n{len:x}\r\n{chunk}\r\n0\r\n\r\n"
                )
            } else {
                let len: usize = path.parse().unwrap();
                let body = "x".repeat(len);
                format!("HTTP/1.1 200 OK\r\ncontent-length: {len}\r\n\r\n{body}")
            };
            if stream.write_all(answer.as_bytes()).await.is_err() {
                return;
            }
        }
    })
    .await
}

#[tokio::test]
async fn a_small_body_dropped_unread_costs_no_connection() {
    let server = server().await;
    let pool = pool().max_connections_per_host(1).build().unwrap();
    for path in ["/0", "/10", "/60000", "/10c", "/60000c"] {
        let response = send(&pool, get(server.uri(path))).await.unwrap();
        drop(response);
        // The next call never sees what was left of it.
        let answer = fetch(&pool, get(server.uri("/3"))).await.unwrap();
        assert_eq!(answer.body, "xxx", "after {path}");
    }
    assert_eq!(server.seen.accepted(), 1);
}

#[tokio::test]
async fn a_large_body_dropped_unread_costs_its_connection() {
    let server = server().await;
    let pool = pool().max_connections_per_host(1).build().unwrap();
    for path in ["/1000000", "/1000000c"] {
        let response = send(&pool, get(server.uri(path))).await.unwrap();
        let before = server.seen.accepted();
        drop(response);
        let answer = fetch(&pool, get(server.uri("/3"))).await.unwrap();
        assert_eq!(answer.body, "xxx", "after {path}");
        assert_eq!(server.seen.accepted(), before + 1);
    }
    until(|| pool.stats().total().closed(CloseReason::Unread) == 2).await;
}

#[tokio::test(start_paused = true)]
async fn a_body_that_does_not_end_is_not_waited_for_long() {
    let server = server().await;
    let pool = pool().max_connections_per_host(1).build().unwrap();
    let response = send(&pool, get(server.uri("/stuck"))).await.unwrap();
    drop(response);
    let answer = fetch(&pool, get(server.uri("/3"))).await.unwrap();
    assert_eq!(answer.body, "xxx");
    assert!(answer.info.waited() >= Duration::from_secs(1));
    assert_eq!(server.seen.accepted(), 2);
    assert_eq!(pool.stats().total().closed(CloseReason::Unread), 1);
}

#[tokio::test]
async fn a_body_that_breaks_off_is_an_error_of_unknown_outcome() {
    let server = Server::raw(|mut stream, _| async move {
        let mut buffer = [0; 1024];
        let _ = stream.read(&mut buffer).await;
        let half = b"HTTP/1.1 200 OK\r\ncontent-length: 1000\r\n\r\nhalf";
        let _ = stream.write_all(half).await;
    })
    .await;
    let pool = pool().build().unwrap();
    let error = fetch(&pool, post(server.uri("/"), "x")).await.unwrap_err();
    assert!(error.is_read(), "{error}");
    assert_eq!(error.verdict(), tollway_core::Verdict::Unknown);
    assert_eq!(error.phase(), Some(tollway_core::Phase::Body));
    until(|| pool.stats().total().open() == 0).await;
    assert_eq!(pool.stats().total().closed(CloseReason::Error), 1);
}
