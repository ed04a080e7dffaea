//! What a listener hears of connections.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

use std::io;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use support::{Server, fetch, get, pool, text, until};
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

#[tokio::test]
async fn connections_tell_of_their_beginning_their_end_and_their_failure() {
    let captured = Captured::default();
    let writer = captured.clone();
    let subscriber = tracing_subscriber::fmt()
        .with_max_level(tracing_subscriber::filter::LevelFilter::DEBUG)
        .with_ansi(false)
        .without_time()
        .with_writer(move || writer.clone())
        .finish();
    let guard = tracing::subscriber::set_default(subscriber);

    let server = Server::tls(&["h2"], |_| async { text("ok") }).await;
    let pool = pool()
        .idle_timeout(Duration::from_millis(50))
        .build()
        .unwrap();
    for _ in 0..3 {
        fetch(&pool, get(server.uri("/v1/secret?card=4111")))
            .await
            .unwrap();
    }
    until(|| pool.stats().total().closed(CloseReason::Idle) == 1).await;
    fetch(&pool, get("http://127.0.0.1:1/v1/secret".parse().unwrap()))
        .await
        .unwrap_err();
    drop(guard);

    let text = String::from_utf8(captured.0.lock().unwrap().clone()).unwrap();
    let events: Vec<_> = text
        .lines()
        .filter_map(|line| line.split_once("tollway::pool: "))
        .map(|(_, event)| event)
        .collect();
    let [opened, closed, failed] = events[..] else {
        panic!("{text}");
    };
    let port = server.addr.port();
    for (event, parts) in [
        (
            opened,
            vec![
                "connection opened server.address=\"localhost\"".to_owned(),
                format!("server.port={port}"),
                format!("network.peer.address=127.0.0.1:{port}"),
                "network.protocol.version=\"2\"".to_owned(),
                "tls.protocol.version=\"1.3\"".to_owned(),
                "took_ms=".to_owned(),
            ],
        ),
        (
            closed,
            vec![
                "connection closed server.address=\"localhost\"".to_owned(),
                "reason=\"idle\"".to_owned(),
                "requests=3".to_owned(),
            ],
        ),
        (
            failed,
            vec![
                "connection failed server.address=\"127.0.0.1\" server.port=1".to_owned(),
                "step=\"connect\"".to_owned(),
                "refused".to_owned(),
            ],
        ),
    ] {
        for part in parts {
            assert!(event.contains(&part), "{part} in {event}");
        }
    }
    assert!(!text.contains("secret") && !text.contains("4111"), "{text}");
}
