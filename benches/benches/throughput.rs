//! One request over a kept connection on loopback: the pool beside a bare hyper
//! connection, hyper-util's legacy client, reqwest, and reqwest with
//! reqwest-retry.
//!
//! A call is a POST of 100 bytes of JSON, answered with some JSON. The server
//! is a process of its own. "bare" is a hyper connection for each caller,
//! without a pool: what every client is built upon, and its floor. Rates are
//! taken in short turns, so that a noisy machine is as noisy for everybody;
//! each is the median of its turns, and the ratio the median of the ratios
//! within a turn. Allocations and instructions are those of the client's
//! thread, its runtime included.
//!
//! The pool's cap is raised to the number of callers here: the bare
//! connections have none either.

use std::future::Future;
use std::io::{BufRead, Read};
use std::net::SocketAddr;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::Duration;
use std::{io, thread};

use bytes::Bytes;
use http::header::{AUTHORIZATION, CONTENT_TYPE, HOST, USER_AGENT};
use http::{HeaderValue, Method, Request, Uri};
use http_body_util::{BodyExt, Full};
use hyper::client::conn::{http1, http2};
use hyper_util::client::legacy::{self, connect::HttpConnector};
use hyper_util::rt::{TokioExecutor, TokioIo};
use reqwest_middleware::ClientWithMiddleware;
use reqwest_retry::RetryTransientMiddleware;
use reqwest_retry::policies::ExponentialBackoff;
use rustls::pki_types::PrivatePkcs8KeyDer;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::{self, Runtime};
use tokio::time::Instant;
use tollway_benches::{COUNT, Instructions, Report, allocations, callgrind, counted};
use tollway_core::BoxError;
use tollway_idempotency::Dialect;
use tollway_limit::{Limits, Quota};
use tollway_pool::{Pool, Protocol};
use tower::Service;

type Body = Full<Bytes>;

/// How many callers there are at once.
const CALLERS: usize = 64;
/// How many calls the counts are taken over.
const RUNS: u32 = 200;
/// How many turns everybody gets, and how long one is.
const TURNS: usize = 11;
const TURN: Duration = Duration::from_millis(100);

const SENT: &[u8; 100] = &[b'{'; 100];
const ANSWER: &str = r#"{"id":"pi_1","object":"payment_intent","amount":2000,"currency":"usd"}"#;

/// The argument with which this program starts itself as a server.
const SERVE: &str = "--serve";

fn main() -> Result<(), BoxError> {
    let mut arguments = std::env::args().skip_while(|argument| argument != SERVE);
    if let (Some(_), Some(version)) = (arguments.next(), arguments.next()) {
        return serve_until_told(match version.as_str() {
            "http1" => Version::Http1,
            _ => Version::Http2,
        });
    }
    if std::env::args().any(|argument| argument == COUNT) {
        for version in [Version::Http1, Version::Http2] {
            for mut contestant in contestants(version)? {
                contestant.run(RUNS);
                counted(|| contestant.run(RUNS));
            }
        }
        return Ok(());
    }
    let mut counter = Instructions::new();
    let mut emulated = match counter {
        Some(_) => Vec::new(),
        None => callgrind().unwrap_or_default(),
    }
    .into_iter();
    let mut report = Report::new("throughput");
    for version in [Version::Http1, Version::Http2] {
        let mut contestants = contestants(version)?;
        for (in_flight, case) in [(CALLERS, "64 in flight"), (1, "1 in flight")] {
            rates(
                &mut report,
                &format!("{version:?}, {case}"),
                &mut contestants,
                in_flight,
            );
        }
        let case = format!("{version:?}, 1 in flight");
        for contestant in &mut contestants {
            contestant.run(RUNS);
            let allocated = allocations(1, || contestant.run(RUNS)) / f64::from(RUNS);
            report.row(&case, contestant.who(), "allocations", allocated, "");
            let executed = match &mut counter {
                Some(counter) => counter.count(1, || contestant.run(RUNS)),
                None => emulated.next(),
            };
            if let Some(executed) = executed {
                let executed = executed / f64::from(RUNS);
                report.row(&case, contestant.who(), "instructions", executed, "");
            }
        }
    }
    tls(&mut report)?;
    report.finish()?;
    Ok(())
}

/// Everybody's rate, in turns.
fn rates(
    report: &mut Report,
    case: &str,
    contestants: &mut [Box<dyn Contestant>],
    in_flight: usize,
) {
    let mut rates = vec![Vec::new(); contestants.len()];
    for _ in 0..TURNS {
        for (contestant, rates) in contestants.iter_mut().zip(&mut rates) {
            rates.push(contestant.rate(in_flight));
        }
    }
    let floor = rates[0].clone();
    for (contestant, rates) in contestants.iter().zip(rates) {
        let ratios = rates.iter().zip(&floor).map(|(rate, floor)| rate / floor);
        let ratio = median(ratios.collect());
        report.row(case, contestant.who(), "calls", median(rates), "/s");
        report.row(case, contestant.who(), "of bare", ratio, "");
    }
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Version {
    Http1,
    Http2,
}

/// One client, with as many callers as there may be.
trait Contestant {
    fn who(&self) -> &'static str;
    /// So many calls, one after the other.
    fn run(&mut self, calls: u32);
    /// How many calls a second so many callers get done.
    fn rate(&mut self, in_flight: usize) -> f64;
}

/// Somebody who makes one call at a time.
trait Caller: Send + 'static {
    fn call(&mut self) -> impl Future<Output = usize> + Send;
}

struct Callers<C> {
    who: &'static str,
    runtime: Runtime,
    callers: Vec<C>,
}

impl<C: Caller> Callers<C> {
    fn boxed<Fut>(
        who: &'static str,
        count: usize,
        make: impl Fn(usize) -> Fut,
    ) -> Result<Box<dyn Contestant>, BoxError>
    where
        Fut: Future<Output = Result<C, BoxError>>,
    {
        let runtime = runtime::Builder::new_current_thread()
            .enable_all()
            .build()?;
        let callers = runtime.block_on(async {
            let mut callers = Vec::new();
            for at in 0..count {
                callers.push(make(at).await?);
            }
            Ok::<_, BoxError>(callers)
        })?;
        Ok(Box::new(Self {
            who,
            runtime,
            callers,
        }))
    }
}

impl<C: Caller> Contestant for Callers<C> {
    fn who(&self) -> &'static str {
        self.who
    }

    fn run(&mut self, calls: u32) {
        let caller = &mut self.callers[0];
        self.runtime.block_on(async {
            for _ in 0..calls {
                assert_eq!(caller.call().await, ANSWER.len());
            }
        });
    }

    fn rate(&mut self, in_flight: usize) -> f64 {
        let callers: Vec<C> = self.callers.drain(..in_flight).collect();
        let (callers, calls, took) = self.runtime.block_on(async move {
            let began = Instant::now();
            let until = began + TURN;
            let tasks: Vec<_> = callers
                .into_iter()
                .map(|mut caller| {
                    tokio::spawn(async move {
                        let mut calls = 0_u32;
                        while Instant::now() < until {
                            assert_eq!(caller.call().await, ANSWER.len());
                            calls += 1;
                        }
                        (caller, calls)
                    })
                })
                .collect();
            let (mut back, mut calls) = (Vec::new(), 0);
            for task in tasks {
                let (caller, made) = task.await.unwrap_or_else(|error| panic!("{error}"));
                back.push(caller);
                calls += made;
            }
            (back, calls, began.elapsed())
        });
        self.callers.splice(0..0, callers);
        f64::from(calls) / took.as_secs_f64()
    }
}

fn contestants(version: Version) -> Result<Vec<Box<dyn Contestant>>, BoxError> {
    let addr = serve(version)?;
    let uri: Uri = format!("http://{addr}/v1/payment_intents").parse()?;
    let host = HeaderValue::try_from(addr.to_string())?;
    let bare = match version {
        Version::Http1 => Callers::boxed("bare", CALLERS, |_| BareH1::new(addr, host.clone()))?,
        Version::Http2 => {
            // All of them share one connection, as everybody's do.
            let shared = std::cell::RefCell::new(None);
            Callers::boxed("bare", CALLERS, |_| BareH2::new(addr, uri.clone(), &shared))?
        }
    };
    let legacy = {
        let client = std::cell::OnceCell::new();
        Callers::boxed("hyper-util legacy", CALLERS, |_| {
            let client = client.get_or_init(|| {
                legacy::Client::builder(TokioExecutor::new())
                    .http2_only(version == Version::Http2)
                    .build(nodelay())
            });
            let (client, uri) = (client.clone(), uri.clone());
            async move { Ok(Legacy { client, uri }) }
        })?
    };
    // One for each of the two: a connection stays with its runtime.
    let reqwest = || {
        match version {
            Version::Http1 => reqwest::Client::builder().http1_only(),
            Version::Http2 => reqwest::Client::builder().http2_prior_knowledge(),
        }
        .no_proxy()
        .build()
    };
    let plain = reqwest()?;
    let retrying = reqwest_middleware::ClientBuilder::new(reqwest()?)
        .with(RetryTransientMiddleware::new_with_policy(
            ExponentialBackoff::builder().build_with_max_retries(3),
        ))
        .build();
    let url: reqwest::Url = uri.to_string().parse()?;
    let pool = || {
        Pool::<Body>::builder()
            .plain_http(true)
            .max_connections_per_host(CALLERS)
            .protocol(match version {
                Version::Http1 => Protocol::Http1Only,
                Version::Http2 => Protocol::Http2Only,
            })
    };
    let pooled = |who, pool: Pool<Body>| {
        Callers::boxed(who, CALLERS, |_| {
            let (pool, uri) = (pool.clone(), uri.clone());
            async move { Ok(Pooled { pool, uri }) }
        })
    };
    // All five layers over the pool; the quota is never reached.
    let client = tollway::Client::builder(tollway::Profile::new("bench"))
        .limits(Limits::builder().every_call(Quota::new(1_000_000, Duration::from_millis(1))))
        .keys(Dialect::default())
        .pool(|_| {
            tollway_pool::Pool::builder()
                .plain_http(true)
                .max_connections_per_host(CALLERS)
                .protocol(match version {
                    Version::Http1 => Protocol::Http1Only,
                    Version::Http2 => Protocol::Http2Only,
                })
        })
        .build()?;
    let composed = Callers::boxed("tollway, the client", CALLERS, |_| {
        let (client, uri) = (client.clone(), uri.clone());
        async move { Ok(Composed { client, uri }) }
    })?;
    let mut contestants = vec![bare, pooled("tollway", pool().build()?)?, composed];
    if version == Version::Http2 {
        // hyper-util's client sends none unless told to.
        let silent = pool().http2_keep_alive(None).build()?;
        contestants.push(pooled("tollway without PINGs", silent)?);
    }
    contestants.extend([
        legacy,
        Callers::boxed("reqwest", CALLERS, |_| {
            let (client, url) = (plain.clone(), url.clone());
            async move { Ok(Reqwest { client, url }) }
        })?,
        Callers::boxed("reqwest + reqwest-retry", CALLERS, |_| {
            let (client, url) = (retrying.clone(), url.clone());
            async move { Ok(Retrying { client, url }) }
        })?,
    ]);
    Ok(contestants)
}

fn nodelay() -> HttpConnector {
    let mut connector = HttpConnector::new();
    connector.set_nodelay(true);
    connector
}

/// The call, but for its host.
fn request(uri: Uri) -> Request<Body> {
    let mut request = Request::new(Body::new(Bytes::from_static(SENT)));
    *request.method_mut() = Method::POST;
    *request.uri_mut() = uri;
    let headers = request.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    headers.insert(AUTHORIZATION, HeaderValue::from_static("Bearer nobody"));
    headers.insert(USER_AGENT, HeaderValue::from_static("checkout/1.0"));
    request
}

async fn read<B>(body: B) -> usize
where
    B: hyper::body::Body,
    B::Error: std::fmt::Debug,
{
    match body.collect().await {
        Ok(body) => body.to_bytes().len(),
        Err(error) => panic!("{error:?}"),
    }
}

struct BareH1 {
    sender: http1::SendRequest<Body>,
    host: HeaderValue,
}

impl BareH1 {
    async fn new(addr: SocketAddr, host: HeaderValue) -> Result<Self, BoxError> {
        let stream = TcpStream::connect(addr).await?;
        stream.set_nodelay(true)?;
        let (sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
        tokio::spawn(connection);
        Ok(Self { sender, host })
    }
}

impl Caller for BareH1 {
    async fn call(&mut self) -> usize {
        let mut request = request(Uri::from_static("/v1/payment_intents"));
        request.headers_mut().insert(HOST, self.host.clone());
        if let Err(error) = self.sender.ready().await {
            panic!("{error}");
        }
        match self.sender.send_request(request).await {
            Ok(response) => read(response.into_body()).await,
            Err(error) => panic!("{error}"),
        }
    }
}

struct BareH2 {
    sender: http2::SendRequest<Body>,
    uri: Uri,
}

impl BareH2 {
    async fn new(
        addr: SocketAddr,
        uri: Uri,
        shared: &std::cell::RefCell<Option<http2::SendRequest<Body>>>,
    ) -> Result<Self, BoxError> {
        let known = shared.borrow().clone();
        let sender = match known {
            Some(sender) => sender,
            None => {
                let stream = TcpStream::connect(addr).await?;
                stream.set_nodelay(true)?;
                let executor = TokioExecutor::new();
                let (sender, connection) = http2::handshake(executor, TokioIo::new(stream)).await?;
                tokio::spawn(connection);
                shared.replace(Some(sender.clone()));
                sender
            }
        };
        Ok(Self { sender, uri })
    }
}

impl Caller for BareH2 {
    async fn call(&mut self) -> usize {
        match self.sender.send_request(request(self.uri.clone())).await {
            Ok(response) => read(response.into_body()).await,
            Err(error) => panic!("{error}"),
        }
    }
}

struct Pooled {
    pool: Pool<Body>,
    uri: Uri,
}

impl Caller for Pooled {
    async fn call(&mut self) -> usize {
        match self.pool.call(request(self.uri.clone())).await {
            Ok(response) => read(response.into_body()).await,
            Err(error) => panic!("{error}"),
        }
    }
}

struct Composed {
    client: tollway::Client,
    uri: Uri,
}

impl Caller for Composed {
    async fn call(&mut self) -> usize {
        match self.client.send(request(self.uri.clone())).await {
            Ok(response) => read(response.into_body()).await,
            Err(error) => panic!("{error:#}"),
        }
    }
}

struct Legacy {
    client: legacy::Client<HttpConnector, Body>,
    uri: Uri,
}

impl Caller for Legacy {
    async fn call(&mut self) -> usize {
        match self.client.request(request(self.uri.clone())).await {
            Ok(response) => read(response.into_body()).await,
            Err(error) => panic!("{error}"),
        }
    }
}

struct Reqwest {
    client: reqwest::Client,
    url: reqwest::Url,
}

impl Caller for Reqwest {
    async fn call(&mut self) -> usize {
        let sent = self
            .client
            .post(self.url.clone())
            .header(CONTENT_TYPE, HeaderValue::from_static("application/json"))
            .header(AUTHORIZATION, HeaderValue::from_static("Bearer nobody"))
            .header(USER_AGENT, HeaderValue::from_static("checkout/1.0"))
            .body(Bytes::from_static(SENT))
            .send();
        match sent.await {
            Ok(response) => response.bytes().await.map_or(0, |body| body.len()),
            Err(error) => panic!("{error}"),
        }
    }
}

struct Retrying {
    client: ClientWithMiddleware,
    url: reqwest::Url,
}

impl Caller for Retrying {
    async fn call(&mut self) -> usize {
        let sent = self
            .client
            .post(self.url.clone())
            .header(CONTENT_TYPE, HeaderValue::from_static("application/json"))
            .header(AUTHORIZATION, HeaderValue::from_static("Bearer nobody"))
            .header(USER_AGENT, HeaderValue::from_static("checkout/1.0"))
            .body(Bytes::from_static(SENT))
            .send();
        match sent.await {
            Ok(response) => response.bytes().await.map_or(0, |body| body.len()),
            Err(error) => panic!("{error}"),
        }
    }
}

// ===== Servers =====

/// Runs `serve` for each connection, on a thread of its own.
fn server<F, Fut>(serve: F) -> io::Result<SocketAddr>
where
    F: Fn(TcpStream) -> Fut + Send + 'static,
    Fut: Future<Output = ()> + Send + 'static,
{
    let listener = std::net::TcpListener::bind("127.0.0.1:0")?;
    listener.set_nonblocking(true)?;
    let addr = listener.local_addr()?;
    let runtime = runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    thread::spawn(move || {
        runtime.block_on(async move {
            let Ok(listener) = TcpListener::from_std(listener) else {
                return;
            };
            while let Ok((stream, _)) = listener.accept().await {
                let _ = stream.set_nodelay(true);
                tokio::spawn(serve(stream));
            }
        });
    });
    Ok(addr)
}

/// Starts a server in a process of its own, which ends with this one: nothing
/// of what it does is counted, and it shares no lock or allocator.
fn serve(version: Version) -> Result<SocketAddr, BoxError> {
    let mut server = Command::new(std::env::current_exe()?)
        .arg(SERVE)
        .arg(match version {
            Version::Http1 => "http1",
            Version::Http2 => "http2",
        })
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()?;
    let mut line = String::new();
    let said = server.stdout.take().ok_or("the server has no output")?;
    io::BufReader::new(said).read_line(&mut line)?;
    // Its input stays open for as long as this process lives.
    std::mem::forget(server);
    Ok(line.trim().parse()?)
}

/// Serves until the other process ends.
fn serve_until_told(version: Version) -> Result<(), BoxError> {
    let addr = match version {
        Version::Http1 => server(answer_http1)?,
        Version::Http2 => server(|stream| async move {
            let answering = hyper::server::conn::http2::Builder::new(TokioExecutor::new())
                .serve_connection(TokioIo::new(stream), answer());
            let _ = answering.await;
        })?,
    };
    println!("{addr}");
    io::stdin().read_to_end(&mut Vec::new())?;
    Ok(())
}

type Answered = Result<http::Response<Body>, hyper::Error>;

fn answer() -> impl hyper::service::Service<
    Request<hyper::body::Incoming>,
    Response = http::Response<Body>,
    Error = hyper::Error,
    Future: Send,
> {
    hyper::service::service_fn(|request: Request<hyper::body::Incoming>| async move {
        request.into_body().collect().await?;
        let mut response = http::Response::new(Body::new(Bytes::from_static(ANSWER.as_bytes())));
        let json = HeaderValue::from_static("application/json");
        response.headers_mut().insert(CONTENT_TYPE, json);
        Answered::Ok(response)
    })
}

/// As little as a server can do: so the client is what is measured.
async fn answer_http1(mut stream: TcpStream) {
    let answer = format!(
        "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n{ANSWER}",
        ANSWER.len()
    );
    let mut buffer = vec![0; 16 * 1024];
    let mut filled = 0;
    while let Ok(read @ 1..) = stream.read(&mut buffer[filled..]).await {
        filled += read;
        let head = buffer[..filled]
            .windows(4)
            .position(|end| end == b"\r\n\r\n");
        if head.is_some_and(|head| filled >= head + 4 + SENT.len()) {
            filled = 0;
            if stream.write_all(answer.as_bytes()).await.is_err() {
                return;
            }
        }
    }
}

// ===== TLS =====

/// What a connection costs, and what keeping it saves: the first call on a new
/// connection without and with a session to resume, and a call on a kept one.
fn tls(report: &mut Report) -> Result<(), BoxError> {
    const ROUNDS: usize = 60;

    let key = rcgen::KeyPair::generate()?;
    let cert = rcgen::CertificateParams::new(vec!["localhost".to_owned()])?.self_signed(&key)?;
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let server_config = rustls::ServerConfig::builder_with_provider(provider.clone())
        .with_safe_default_protocol_versions()?
        .with_no_client_auth()
        .with_single_cert(
            vec![cert.der().clone()],
            PrivatePkcs8KeyDer::from(key.serialize_der()).into(),
        )?;
    let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(server_config));
    let addr = server(move |stream| {
        let acceptor = acceptor.clone();
        async move {
            let Ok(stream) = acceptor.accept(stream).await else {
                return;
            };
            let answering = hyper::server::conn::http1::Builder::new()
                .serve_connection(TokioIo::new(stream), answer());
            let _ = answering.await;
        }
    })?;
    let uri: Uri = format!("https://localhost:{}/", addr.port()).parse()?;
    let client_config = || -> Result<_, BoxError> {
        let mut roots = rustls::RootCertStore::empty();
        roots.add(cert.der().clone())?;
        Ok(
            rustls::ClientConfig::builder_with_provider(provider.clone())
                .with_safe_default_protocol_versions()?
                .with_root_certificates(roots)
                .with_no_client_auth(),
        )
    };
    let runtime = runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let micros = |config: rustls::ClientConfig, calls: usize| -> Result<Vec<f64>, BoxError> {
        let pool: Pool<Body> = Pool::builder().tls(config).build()?;
        runtime.block_on(async {
            let mut times = Vec::new();
            for _ in 0..calls {
                let began = Instant::now();
                let response = pool.clone().call(request(uri.clone())).await?;
                read(response.into_body()).await;
                times.push(began.elapsed().as_secs_f64() * 1e6);
                // A session's ticket comes after the handshake.
                tokio::task::yield_now().await;
            }
            Ok(times)
        })
    };
    let (mut cold, mut resumed, mut warm) = (Vec::new(), Vec::new(), Vec::new());
    let keeping = client_config()?;
    micros(keeping.clone(), 2)?;
    for _ in 0..ROUNDS {
        cold.extend(micros(client_config()?, 1)?);
        let times = micros(keeping.clone(), 3)?;
        resumed.push(times[0]);
        warm.push(times[2]);
    }
    let warm = median(warm);
    for (case, took) in [
        ("TLS, new connection", median(cold)),
        ("TLS, new connection, session resumed", median(resumed)),
        ("TLS, kept connection", warm),
    ] {
        report.row(case, "tollway", "call", took, "µs");
        report.row(case, "tollway", "of kept", took / warm, "");
    }
    Ok(())
}
