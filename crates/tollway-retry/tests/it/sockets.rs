//! What the layer does to connections, over real sockets.

use std::convert::Infallible;
use std::future::Future;
use std::pin::Pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http::{Request, Response, StatusCode};
use http_body::Frame;
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio::sync::oneshot;
use tollway_retry::{Attempts, BackOff, ReplayBody, RetryLayer, RetryPolicy};
use tower::{Layer, ServiceExt};

use crate::support::*;

type Body = ReplayBody<Full<Bytes>>;

/// The `Content-Length` and the body of a request.
type Sent = (Option<String>, Bytes);

/// Answers 429 to as many requests, with a body of this length, and then 200.
struct Server {
    address: String,
    connections: Arc<AtomicUsize>,
    bodies: Arc<Mutex<Vec<Sent>>>,
}

impl Server {
    async fn start(refusals: usize, body: usize) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = format!("http://{}/", listener.local_addr().unwrap());
        let connections = Arc::new(AtomicUsize::new(0));
        let bodies = Arc::default();
        let server = Self {
            address,
            connections: Arc::clone(&connections),
            bodies: Arc::clone(&bodies),
        };
        let requests = Arc::new(AtomicUsize::new(0));
        tokio::spawn(async move {
            loop {
                let (socket, _) = listener.accept().await.unwrap();
                connections.fetch_add(1, Ordering::Relaxed);
                let requests = Arc::clone(&requests);
                let bodies: Arc<Mutex<Vec<Sent>>> = Arc::clone(&bodies);
                let service = service_fn(move |request: Request<Incoming>| {
                    let refuse = requests.fetch_add(1, Ordering::Relaxed) < refusals;
                    let bodies = Arc::clone(&bodies);
                    async move {
                        let length = request.headers().get("content-length");
                        let length = length.map(|value| value.to_str().unwrap().to_owned());
                        let sent = request.into_body().collect().await.unwrap().to_bytes();
                        bodies.lock().unwrap().push((length, sent));
                        let mut response = Response::new(Full::new(Bytes::from(vec![b'x'; body])));
                        if refuse {
                            *response.status_mut() = StatusCode::TOO_MANY_REQUESTS;
                        }
                        Ok::<_, Infallible>(response)
                    }
                });
                tokio::spawn(
                    hyper::server::conn::http1::Builder::new()
                        .serve_connection(TokioIo::new(socket), service),
                );
            }
        });
        server
    }

    /// One call, retried as often as it takes.
    async fn call(&self, drain: usize) -> Response<Incoming> {
        let client: Client<HttpConnector, Body> =
            Client::builder(TokioExecutor::new()).build_http();
        let policy = RetryPolicy::builder()
            .max_attempts(100)
            .back_off(BackOff::exponential(millis(1), millis(2)).unwrap())
            .drain(drain, secs(1))
            .build()
            .unwrap();
        let request = Request::post(&self.address)
            .body(Full::from("amount=1"))
            .unwrap();
        RetryLayer::new(policy)
            .layer(client)
            .oneshot(request)
            .await
            .unwrap()
    }

    fn connections(&self) -> usize {
        self.connections.load(Ordering::Relaxed)
    }
}

/// Elsewhere the failed response was held, unread, for the whole back-off: 20
/// retries took 20 connections.
#[tokio::test]
async fn twenty_refusals_use_one_connection() {
    // What is left of a short body, hyper reads itself when it is dropped. Of
    // the long one it doesn't.
    for (body, drain) in [(200, 16 * 1024), (300_000, 512 * 1024)] {
        let server = Server::start(20, body).await;
        let response = server.call(drain).await;
        assert_eq!(response.status(), StatusCode::OK);
        let attempts = Attempts::of(response.extensions());
        assert_eq!(attempts.map(Attempts::made), Some(21));
        assert_eq!(server.connections(), 1);
        // And each attempt was the same request.
        let bodies = server.bodies.lock().unwrap();
        let same = (Some("8".to_owned()), Bytes::from("amount=1"));
        assert!(bodies.iter().all(|body| *body == same), "{bodies:?}");
    }
}

#[tokio::test]
async fn a_response_longer_than_the_bound_costs_its_connection() {
    let server = Server::start(3, 300_000).await;
    let response = server.call(16 * 1024).await;
    assert_eq!(response.status(), StatusCode::OK);
    assert_eq!(server.connections(), 4);
}

/// Sends its start, and the rest only when told to.
struct Halting {
    start: Option<Bytes>,
    go: Option<oneshot::Receiver<()>>,
}

impl http_body::Body for Halting {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        if let Some(start) = self.start.take() {
            return Poll::Ready(Some(Ok(Frame::data(start))));
        }
        let Some(go) = &mut self.go else {
            return Poll::Ready(None);
        };
        ready!(Pin::new(go).poll(cx)).unwrap();
        self.go = None;
        Poll::Ready(Some(Ok(Frame::data(Bytes::from_static(b"rest")))))
    }
}

/// A server may refuse before it has the whole request. The next attempt takes
/// the body over, recorded start and unsent rest; the connection that was still
/// sending it gives its request up, and is closed.
#[tokio::test]
async fn an_early_answer_leaves_the_body_to_the_next_attempt() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = format!("http://{}/", listener.local_addr().unwrap());
    let (go, gone) = oneshot::channel();
    let server = tokio::spawn(async move {
        // The first request is answered at its head, and then read to its end.
        let (mut first, _) = listener.accept().await.unwrap();
        let mut seen = Vec::new();
        while !seen.ends_with(b"start\r\n") {
            assert_ne!(first.read_buf(&mut seen).await.unwrap(), 0);
        }
        let refusal = b"HTTP/1.1 429 Too Many Requests\r\ncontent-length: 0\r\n\r\n";
        first.write_all(refusal).await.unwrap();

        let (second, _) = listener.accept().await.unwrap();
        let (body, sent) = oneshot::channel();
        let answer = Mutex::new(Some((go, body)));
        let service = service_fn(move |request: Request<Incoming>| {
            let (go, body) = answer.lock().unwrap().take().unwrap();
            async move {
                go.send(()).unwrap();
                let all = request.into_body().collect().await.unwrap().to_bytes();
                body.send(all).unwrap();
                Ok::<_, Infallible>(Response::new(Full::<Bytes>::default()))
            }
        });
        let connection = hyper::server::conn::http1::Builder::new()
            .serve_connection(TokioIo::new(second), service);
        tokio::spawn(connection);
        // Until the client hangs up. The last chunk never came.
        let mut rest = Vec::new();
        let _ = first.read_to_end(&mut rest).await;
        assert_eq!(rest, b"");
        sent.await.unwrap()
    });

    let client: Client<HttpConnector, ReplayBody<Halting>> =
        Client::builder(TokioExecutor::new()).build_http();
    let body = Halting {
        start: Some(Bytes::from_static(b"start")),
        go: Some(gone),
    };
    let request = Request::post(address).body(body).unwrap();
    let response = RetryLayer::default()
        .layer(client)
        .oneshot(request)
        .await
        .unwrap();
    assert_eq!(response.status(), StatusCode::OK);
    assert_eq!(server.await.unwrap(), "startrest");
}

/// A stream, and a checksum behind it.
struct Summed(Vec<Frame<Bytes>>);

impl http_body::Body for Summed {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        Poll::Ready(self.0.pop().map(Ok))
    }
}

#[tokio::test]
async fn trailers_come_with_every_attempt() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = format!("http://{}/", listener.local_addr().unwrap());
    let seen = Arc::new(Mutex::new(Vec::new()));
    let server = Arc::clone(&seen);
    tokio::spawn(async move {
        let (socket, _) = listener.accept().await.unwrap();
        let service = service_fn(move |request: Request<Incoming>| {
            let seen = Arc::clone(&server);
            async move {
                let body = request.into_body().collect().await.unwrap();
                let sum = body
                    .trailers()
                    .and_then(|trailers| trailers.get("checksum"))
                    .cloned();
                let mut seen = seen.lock().unwrap();
                seen.push((body.to_bytes(), sum));
                let status = if seen.len() < 3 { 429 } else { 200 };
                Ok::<_, Infallible>(super::support::status(status))
            }
        });
        let connection = hyper::server::conn::http1::Builder::new();
        let _ = connection
            .serve_connection(TokioIo::new(socket), service)
            .await;
    });

    let mut sum = http::HeaderMap::new();
    sum.insert("checksum", "4711".parse().unwrap());
    let body = Summed(vec![
        Frame::trailers(sum),
        Frame::data(Bytes::from_static(b"b")),
        Frame::data(Bytes::from_static(b"a")),
    ]);
    let client: Client<HttpConnector, ReplayBody<Summed>> =
        Client::builder(TokioExecutor::new()).build_http();
    let request = Request::post(address)
        .header("trailer", "checksum")
        .body(body)
        .unwrap();
    let policy = RetryPolicy::builder()
        .back_off(BackOff::exponential(millis(1), millis(2)).unwrap())
        .build()
        .unwrap();
    let response = RetryLayer::new(policy)
        .layer(client)
        .oneshot(request)
        .await
        .unwrap();
    assert_eq!(response.status(), StatusCode::OK);
    let whole = (Bytes::from("ab"), Some("4711".parse().unwrap()));
    assert_eq!(*seen.lock().unwrap(), [whole.clone(), whole.clone(), whole]);
}
