//! What a listener hears of connections.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

use std::io;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use support::{Server, fetch, get, pool, text, until};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tollway_pool::CloseReason;

#[derive(Clone, Default)]
struct Captured(Arc<Mutex<Vec<u8>>>);

impl io::Write for Captured {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Captured {
    /// Listens, on this thread, for as long as the guard lives.
    fn listen(&self) -> tracing::subscriber::DefaultGuard {
        let writer = self.clone();
        let subscriber = tracing_subscriber::fmt()
            .with_max_level(tracing_subscriber::filter::LevelFilter::DEBUG)
            .with_ansi(false)
            .without_time()
            .with_writer(move || writer.clone())
            .finish();
        tracing::subscriber::set_default(subscriber)
    }

    fn text(&self) -> String {
        String::from_utf8(self.0.lock().unwrap().clone()).unwrap()
    }
}

#[tokio::test]
async fn connections_tell_of_their_beginning_their_end_and_their_failure() {
    let captured = Captured::default();
    let guard = captured.listen();
    let server = Server::tls(&["h2"], |_| async { text("ok") }).await;
    let pool = pool()
        .idle_timeout(Duration::from_millis(50))
        .build()
        .unwrap();
    for _ in 0..3 {
        fetch(&pool, get(server.uri("/v1/secret?card=visa")))
            .await
            .unwrap();
    }
    until(|| pool.stats().total().closed(CloseReason::Idle) == 1).await;
    fetch(&pool, get("http://127.0.0.1:1/v1/secret".parse().unwrap()))
        .await
        .unwrap_err();
    drop(guard);

    let text = captured.text();
    let events: Vec<_> = text
        .lines()
        .filter_map(|line| line.split_once("tollway::pool: "))
        .map(|(_, event)| event)
        .collect();
    let [opened, closed, failed] = events[..] else {
        panic!("{text}");
    };
    let port = server.addr.port();
    let handshake = pool.stats().total().handshakes().last().as_secs_f64();
    for (event, parts) in [
        (
            opened,
            vec![
                "connection opened server.address=\"localhost\"".to_owned(),
                format!("server.port={port}"),
                "network.peer.address=127.0.0.1 ".to_owned(),
                format!("network.peer.port={port}"),
                "network.protocol.name=\"http\"".to_owned(),
                "network.protocol.version=\"2\"".to_owned(),
                "tls.protocol.version=\"1.3\"".to_owned(),
                format!("tollway.pool.handshake={handshake:?}"),
            ],
        ),
        (
            closed,
            vec![
                "connection closed server.address=\"localhost\"".to_owned(),
                "tollway.pool.reason=\"idle\"".to_owned(),
                "tollway.pool.requests=3".to_owned(),
            ],
        ),
        (
            failed,
            vec![
                "connection failed server.address=\"127.0.0.1\" server.port=1".to_owned(),
                "error.type=\"connect\"".to_owned(),
                "refused".to_owned(),
            ],
        ),
    ] {
        for part in parts {
            assert!(event.contains(&part), "{part} in {event}");
        }
    }
    assert!(!text.contains("secret") && !text.contains("visa"), "{text}");
}

#[tokio::test]
async fn a_connection_that_breaks_under_no_call_tells_how_and_whose_it_was() {
    let captured = Captured::default();
    let guard = captured.listen();
    let server = Server::raw(|mut stream, _| async move {
        let _ = stream.read(&mut [0; 1024]).await;
        let answer = b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n";
        let _ = stream.write_all(answer).await;
        // An answer that nobody asked for.
        let _ = stream.write_all(answer).await;
        let _ = stream.read(&mut [0; 1024]).await;
    })
    .await;
    let pool = pool().build().unwrap();
    fetch(&pool, get(server.uri("/v1/secret"))).await.unwrap();
    // Before the call has seen its answer, or after.
    until(|| pool.stats().total().open() + pool.stats().total().closing() == 0).await;
    drop(guard);

    let text = captured.text();
    let port = server.addr.port();
    let broke = format!("connection broke server.address=\"127.0.0.1\" server.port={port} error=");
    assert_eq!(text.matches(&broke).count(), 1, "{text}");
    assert!(text.contains("connection closed"), "{text}");
    assert!(!text.contains("secret"), "{text}");
}
