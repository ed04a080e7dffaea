//! The server that closes, and its ledger.

use std::collections::HashMap;
use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use http::{Request, Response};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use hyper::server::conn::http2;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep_until, timeout};

use crate::{Body, SENT};

/// When the server closes a connection.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Closes {
    AfterRequests(usize),
    AfterIdle(Duration),
}

impl Closes {
    pub(crate) fn name(self) -> String {
        match self {
            Self::AfterRequests(count) => format!("after {count} requests"),
            Self::AfterIdle(time) => format!("after {} ms idle", time.as_millis()),
        }
    }

    /// The longest pause between two calls.
    pub(crate) fn pause(self) -> Duration {
        match self {
            Self::AfterRequests(_) => Duration::from_millis(1),
            Self::AfterIdle(time) => time * 2,
        }
    }
}

#[derive(Clone, Copy, PartialEq)]
pub(crate) enum Version {
    Http1,
    Http2,
}

/// How often each call took effect.
#[derive(Clone, Default)]
pub(crate) struct Ledger(Arc<Mutex<HashMap<String, usize>>>);

impl Ledger {
    /// Notes that a call took effect.
    fn note(&self, call: &str) {
        let mut ledger = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        *ledger.entry(call.to_owned()).or_default() += 1;
    }

    pub(crate) fn effects(&self, call: &str) -> usize {
        let ledger = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        ledger.get(call).copied().unwrap_or_default()
    }
}

pub(crate) struct Server {
    pub(crate) addr: SocketAddr,
    pub(crate) ledger: Ledger,
    connections: Arc<AtomicUsize>,
    task: JoinHandle<()>,
}

impl Drop for Server {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Server {
    pub(crate) async fn start(version: Version, closes: Closes) -> io::Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let addr = listener.local_addr()?;
        let (ledger, connections) = (Ledger::default(), Arc::new(AtomicUsize::new(0)));
        let task = {
            let (ledger, connections) = (ledger.clone(), connections.clone());
            tokio::spawn(async move {
                while let Ok((stream, _)) = listener.accept().await {
                    connections.fetch_add(1, Ordering::SeqCst);
                    let _ = stream.set_nodelay(true);
                    let ledger = ledger.clone();
                    match version {
                        Version::Http1 => tokio::spawn(serve_http1(stream, closes, ledger)),
                        Version::Http2 => tokio::spawn(serve_http2(stream, closes, ledger)),
                    };
                }
            })
        };
        Ok(Self {
            addr,
            ledger,
            connections,
            task,
        })
    }

    /// How many connections it has accepted.
    pub(crate) fn connections(&self) -> usize {
        self.connections.load(Ordering::SeqCst)
    }
}

/// HTTP/1.1 closes without a word once the last answer is out, as impolite
/// load balancers do.
async fn serve_http1(mut stream: TcpStream, closes: Closes, ledger: Ledger) {
    const ANSWER: &[u8] = b"HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\npaid";
    let (most, idle) = match closes {
        Closes::AfterRequests(most) => (most, Duration::from_secs(60)),
        Closes::AfterIdle(time) => (usize::MAX, time),
    };
    let mut buffer = vec![0; 4096];
    for _ in 0..most {
        let mut filled = 0;
        let call = loop {
            match timeout(idle, stream.read(&mut buffer[filled..])).await {
                Ok(Ok(read @ 1..)) => filled += read,
                _ => return,
            }
            // Every request has the same body, and nothing after it.
            let text = String::from_utf8_lossy(&buffer[..filled]);
            if text.ends_with(SENT) {
                let mut lines = text.lines();
                let call = lines.find_map(|line| line.strip_prefix("x-call: "));
                break call.unwrap_or_default().to_owned();
            }
        };
        ledger.note(&call);
        if stream.write_all(ANSWER).await.is_err() {
            return;
        }
    }
}

/// HTTP/2 says GOAWAY, as it must.
async fn serve_http2(stream: TcpStream, closes: Closes, ledger: Ledger) {
    let patience = Arc::new(Patience {
        requests: AtomicUsize::new(0),
        last: Mutex::new(Instant::now()),
    });
    let service = {
        let patience = patience.clone();
        service_fn(move |request: Request<Incoming>| {
            let (ledger, patience) = (ledger.clone(), patience.clone());
            async move {
                let call = request.headers().get("x-call");
                let call = call.and_then(|call| call.to_str().ok());
                ledger.note(call.unwrap_or_default());
                let _ = request.into_body().collect().await;
                patience.begins();
                Ok::<_, Infallible>(Response::new(Body::from("paid")))
            }
        })
    };
    let serving =
        http2::Builder::new(TokioExecutor::new()).serve_connection(TokioIo::new(stream), service);
    let mut serving = std::pin::pin!(serving);
    tokio::select! {
        _ = serving.as_mut() => return,
        () = patience.ends(closes) => {}
    }
    serving.as_mut().graceful_shutdown();
    let _ = serving.await;
}

/// What a connection has seen, for its patience.
struct Patience {
    requests: AtomicUsize,
    last: Mutex<Instant>,
}

impl Patience {
    /// Begins anew with a request.
    fn begins(&self) {
        self.requests.fetch_add(1, Ordering::SeqCst);
        *self.last.lock().unwrap_or_else(PoisonError::into_inner) = Instant::now();
    }

    /// Returns when it has ended.
    async fn ends(&self, closes: Closes) {
        loop {
            let (until, over) = match closes {
                Closes::AfterRequests(most) => (
                    Instant::now() + Duration::from_micros(200),
                    self.requests.load(Ordering::SeqCst) >= most,
                ),
                Closes::AfterIdle(time) => {
                    let last = *self.last.lock().unwrap_or_else(PoisonError::into_inner);
                    (last + time, last.elapsed() >= time)
                }
            };
            if over {
                return;
            }
            sleep_until(until).await;
        }
    }
}
