//! What a listener hears.
#![expect(clippy::unwrap_used, reason = "a test's helpers may panic")]

use std::io::{self, Write};
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::Full;
use tollway_core::BoxError;
use tollway_idempotency::{Dialect, IdempotencyKeyLayer, KeyBody};
use tower::{Layer, ServiceExt, service_fn};
use tracing_subscriber::filter::LevelFilter;

/// What was written, for all who write.
#[derive(Clone, Default)]
struct Captured(Arc<Mutex<Vec<u8>>>);

impl Write for Captured {
    fn write(&mut self, text: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().write(text)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Sends it to a provider that does whatever it gets.
async fn send(layer: &IdempotencyKeyLayer, request: Request<Full<Bytes>>) -> Result<(), BoxError> {
    let provider = service_fn(|_: Request<KeyBody<Full<Bytes>>>| async {
        Ok::<_, BoxError>(Response::new(Full::<Bytes>::default()))
    });
    layer.layer(provider).oneshot(request).await.map(drop)
}

#[tokio::test]
async fn each_refusal_is_told_with_its_reason_and_without_the_key() {
    let captured = Captured::default();
    let writer = captured.clone();
    let subscriber = tracing_subscriber::fmt()
        .with_max_level(LevelFilter::DEBUG)
        .with_ansi(false)
        .with_writer(move || writer.clone())
        .finish();
    let guard = tracing::subscriber::set_default(subscriber);

    let header = IdempotencyKeyLayer::new();
    let keyed = |key: &str, body: &'static str| {
        Request::post("https://api.example/v1/payouts")
            .header("idempotency-key", key)
            .body(Full::from(body))
            .unwrap()
    };
    send(&header, keyed("secret-1", "1")).await.unwrap();
    send(&header, keyed("secret-1", "2")).await.unwrap_err();
    let long = "secret-".repeat(100);
    send(&header, keyed(&long, "1")).await.unwrap_err();
    let field = IdempotencyKeyLayer::new().dialect(Dialect::body_field("RequestId"));
    let bare = Request::post("https://api.example/pay").body(Full::from("{}"));
    send(&field, bare.unwrap()).await.unwrap_err();
    let long = vec![b' '; Dialect::MAX_BODY + 1];
    let long = Request::post("https://api.example/pay").body(Full::from(long));
    send(&field, long.unwrap()).await.unwrap_err();
    drop(guard);

    let text = String::from_utf8(captured.0.lock().unwrap().clone()).unwrap();
    assert!(!text.contains("secret"), "{text}");
    let told: Vec<_> = text
        .lines()
        .filter_map(|line| line.split_once("DEBUG tollway::idempotency: "))
        .map(|(_, event)| event)
        .collect();
    let refused = ["reused", "malformed", "body_field", "body_too_long"]
        .map(|reason| format!("refused tollway.idempotency.reason=\"{reason}\""));
    assert_eq!(told, refused);
}
