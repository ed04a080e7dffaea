//! The stack over a simulated network that parts the two sides, in one direction
//! or both, or holds what is on its way, at any moment.
//!
//! The provider's ledger is the witness: no payment takes effect twice, whatever
//! the network does, and none is called paid or unpaid that isn't.

#![allow(clippy::unwrap_used, reason = "a test")]

use std::collections::{HashMap, HashSet};
use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response, Uri};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::rt::{Read, ReadBufCursor, Write};
use hyper_util::client::legacy::connect::{Connected, Connection};
use hyper_util::rt::{TokioExecutor, TokioIo};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use tollway::core::{BoxError, ClassifyLayer, Rules, Verdict};
use tollway::idempotency::{Dialect, IdempotencyKeyLayer};
use tollway::pool::{Pool, Protocol};
use tollway::retry::{BackOff, Budget, RetryLayer, RetryPolicy};
use tollway::timeout::{AttemptTimeoutLayer, DeadlineLayer};
use tower::{ServiceBuilder, ServiceExt, service_fn};
use turmoil::net::{TcpListener, TcpStream};

const CALLS: usize = 60;

/// What the provider has done: how often each reference was paid, and which keys
/// it knows.
#[derive(Default)]
struct Ledger {
    paid: HashMap<String, u32>,
    keys: HashSet<String>,
}

impl Ledger {
    fn pay(&mut self, reference: &str, key: Option<&str>) {
        if let Some(key) = key
            && !self.keys.insert(key.to_owned())
        {
            return;
        }
        *self.paid.entry(reference.to_owned()).or_default() += 1;
    }

    fn times_paid(&self, reference: &str) -> u32 {
        self.paid.get(reference).copied().unwrap_or_default()
    }
}

type Shared = Arc<Mutex<Ledger>>;

/// Pays what the path names, once the whole request is there.
async fn gateway(ledger: Shared, protocol: Protocol) -> turmoil::Result {
    let listener = TcpListener::bind("0.0.0.0:80").await?;
    loop {
        let (stream, _) = listener.accept().await?;
        let ledger = Arc::clone(&ledger);
        let service = hyper::service::service_fn(move |request: Request<Incoming>| {
            let ledger = Arc::clone(&ledger);
            async move {
                let (head, body) = request.into_parts();
                body.collect().await?;
                let key = head.headers.get("idempotency-key");
                let key = key.map(|key| key.to_str().unwrap());
                ledger.lock().unwrap().pay(head.uri.path(), key);
                Ok::<_, hyper::Error>(Response::new(Full::new(Bytes::from_static(b"paid"))))
            }
        });
        let io = TokioIo::new(stream);
        // A connection that the network cut is no concern of the others.
        match protocol {
            Protocol::Http2Only => {
                let server = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
                tokio::spawn(server.serve_connection(io, service));
            }
            _ => {
                let server = hyper::server::conn::http1::Builder::new();
                tokio::spawn(server.serve_connection(io, service));
            }
        }
    }
}

/// A simulated stream that the pool can use.
struct Stream(TokioIo<TcpStream>);

impl Connection for Stream {
    fn connected(&self) -> Connected {
        Connected::new()
    }
}

impl Read for Stream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: ReadBufCursor<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_read(cx, buf)
    }
}

impl Write for Stream {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_shutdown(cx)
    }
}

/// Makes its payments one after the other, and says of each how it ended.
async fn customer(protocol: Protocol, keys: bool) -> Result<Vec<Verdict>, BoxError> {
    let connector = service_fn(async |_: Uri| {
        let stream = TcpStream::connect("gateway:80").await?;
        Ok::<_, io::Error>(Stream(TokioIo::new(stream)))
    });
    let pool = Pool::builder()
        .plain_http(true)
        .protocol(protocol)
        .connect_timeout(Duration::from_millis(200))
        .layer()?;
    let (least, most) = (Duration::from_millis(50), Duration::from_millis(500));
    // Patient enough for any trouble.
    let policy = RetryPolicy::builder()
        .max_attempts(100)
        .back_off(BackOff::exponential(least, most)?)
        .budget(Budget::unlimited())
        .build()?;
    let dialect = match keys {
        true => Dialect::default(),
        false => Dialect::default().methods([]),
    };
    let service = ServiceBuilder::new()
        .layer(DeadlineLayer::new(Duration::from_secs(60)))
        .layer(IdempotencyKeyLayer::new().dialect(dialect))
        .layer(RetryLayer::new(policy))
        .layer(AttemptTimeoutLayer::new(Duration::from_millis(300)))
        .layer(ClassifyLayer::new(Rules::new()))
        .layer(pool)
        .service(connector);
    let mut verdicts = Vec::new();
    for number in 0..CALLS {
        let request = Request::post(format!("http://gateway/{number}"));
        let request = request.body(Full::new(Bytes::from_static(b"amount=1")))?;
        verdicts.push(match service.clone().oneshot(request).await {
            Ok(response) => {
                let verdict = Verdict::of_response(&response);
                // What the answer says is no longer of interest.
                let _ = response.into_body().collect().await;
                verdict
            }
            Err(error) => Verdict::of_error(&*error),
        });
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    Ok(verdicts)
}

/// Troubles the network between the two, now and then, and mends it.
async fn trouble(seed: u64) {
    let mut random = StdRng::seed_from_u64(seed);
    let (a, b) = ("customer", "gateway");
    loop {
        let calm = random.random_range(20..400);
        tokio::time::sleep(Duration::from_millis(calm)).await;
        let kind = random.random_range(0..4);
        match kind {
            0 => turmoil::partition(a, b),
            1 => turmoil::partition_oneway(a, b),
            2 => turmoil::partition_oneway(b, a),
            _ => turmoil::hold(a, b),
        }
        let storm = random.random_range(20..800);
        tokio::time::sleep(Duration::from_millis(storm)).await;
        match kind {
            3 => turmoil::release(a, b),
            _ => turmoil::repair(a, b),
        }
    }
}

/// What came of each payment, and what the ledger says.
fn run(seed: u64, protocol: Protocol, keys: bool) -> (Vec<Verdict>, Vec<u32>) {
    let ledger = Shared::default();
    let verdicts = Arc::new(Mutex::new(Vec::new()));
    let mut sim = turmoil::Builder::new()
        .rng_seed(seed)
        .min_message_latency(Duration::from_millis(1))
        .max_message_latency(Duration::from_millis(20))
        .simulation_duration(Duration::from_secs(3600))
        .build();
    sim.host("gateway", {
        let ledger = Arc::clone(&ledger);
        move || gateway(Arc::clone(&ledger), protocol)
    });
    sim.client("customer", {
        let verdicts = Arc::clone(&verdicts);
        async move {
            let trouble = tokio::spawn(trouble(seed));
            let ended = customer(protocol, keys).await;
            trouble.abort();
            *verdicts.lock().unwrap() = ended.map_err(|error| error.to_string())?;
            Ok(())
        }
    });
    sim.run().unwrap();
    let verdicts = verdicts.lock().unwrap().clone();
    let ledger = ledger.lock().unwrap();
    let paid = (0..CALLS).map(|number| ledger.times_paid(&format!("/{number}")));
    (verdicts, paid.collect())
}

fn check(keys: bool) {
    let mut unknown = 0;
    for protocol in [Protocol::Http1Only, Protocol::Http2Only] {
        for seed in 0..6 {
            let (verdicts, paid) = run(seed, protocol, keys);
            assert_eq!(verdicts.len(), CALLS);
            for (number, (verdict, paid)) in verdicts.into_iter().zip(paid).enumerate() {
                let case = format!("{protocol:?}, seed {seed}, payment {number}: {verdict:?}");
                match verdict {
                    Verdict::Done => assert_eq!(paid, 1, "{case}"),
                    Verdict::NotExecuted { .. } => assert_eq!(paid, 0, "{case}"),
                    Verdict::Unknown => {
                        unknown += 1;
                        assert!(paid <= 1, "{case}");
                    }
                    Verdict::Rejected => panic!("{case}"),
                }
            }
        }
    }
    // With a key, repeats outlive every trouble; without one, the first attempt
    // that may have arrived is the last.
    assert_eq!(unknown == 0, keys, "{unknown} unknown");
}

#[test]
fn whatever_the_network_does_a_payment_with_a_key_is_made_once() {
    check(true);
}

#[test]
fn whatever_the_network_does_a_payment_without_a_key_is_never_made_twice() {
    check(false);
}
