//! Small servers on real sockets.
#![allow(dead_code, unreachable_pub, reason = "each test uses a part of it")]
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::convert::Infallible;
use std::future::Future;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response, Uri};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tollway_pool::{ConnectionInfo, Pool, PoolBody, PoolBuilder, PoolError};
use tower::ServiceExt;

pub type Body = Full<Bytes>;

/// What a server saw.
#[derive(Debug, Default)]
pub struct Seen {
    accepted: AtomicUsize,
    open: AtomicUsize,
    most_open: AtomicUsize,
    requests: AtomicUsize,
}

impl Seen {
    pub fn accepted(&self) -> usize {
        self.accepted.load(Ordering::SeqCst)
    }
    pub fn open(&self) -> usize {
        self.open.load(Ordering::SeqCst)
    }
    pub fn most_open(&self) -> usize {
        self.most_open.load(Ordering::SeqCst)
    }
    pub fn requests(&self) -> usize {
        self.requests.load(Ordering::SeqCst)
    }

    pub fn connected(self: &Arc<Self>) -> Connected {
        self.accepted.fetch_add(1, Ordering::SeqCst);
        let open = self.open.fetch_add(1, Ordering::SeqCst) + 1;
        self.most_open.fetch_max(open, Ordering::SeqCst);
        Connected(self.clone())
    }

    pub fn request(&self) -> usize {
        self.requests.fetch_add(1, Ordering::SeqCst) + 1
    }
}

pub struct Connected(Arc<Seen>);

impl Drop for Connected {
    fn drop(&mut self) {
        self.0.open.fetch_sub(1, Ordering::SeqCst);
    }
}

pub struct Server {
    pub addr: SocketAddr,
    pub seen: Arc<Seen>,
    scheme: &'static str,
}

impl Server {
    pub fn uri(&self, path: &str) -> Uri {
        let host = if self.scheme == "https" {
            "localhost"
        } else {
            "127.0.0.1"
        };
        format!("{}://{host}:{}{path}", self.scheme, self.addr.port())
            .parse()
            .unwrap()
    }

    /// A server that does what it likes with each connection.
    pub async fn raw<F, Fut>(serve: F) -> Self
    where
        F: Fn(TcpStream, Arc<Seen>) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = ()> + Send + 'static,
    {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr = listener.local_addr().unwrap();
        let seen = Arc::new(Seen::default());
        let server = Self {
            addr,
            seen: seen.clone(),
            scheme: "http",
        };
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let connected = seen.connected();
                let serving = serve(stream, seen.clone());
                tokio::spawn(async move {
                    serving.await;
                    drop(connected);
                });
            }
        });
        server
    }

    /// HTTP/1.1, plain.
    pub async fn http1<F, Fut>(handle: F) -> Self
    where
        F: Fn(Request<Incoming>) -> Fut + Clone + Send + Sync + 'static,
        Fut: Future<Output = Response<Body>> + Send + 'static,
    {
        Self::raw(move |stream, seen| serve_http1(stream, seen, handle.clone())).await
    }

    /// HTTP/2 with prior knowledge, plain.
    pub async fn http2<F, Fut>(max_streams: u32, handle: F) -> Self
    where
        F: Fn(Request<Incoming>) -> Fut + Clone + Send + Sync + 'static,
        Fut: Future<Output = Response<Body>> + Send + 'static,
    {
        Self::raw(move |stream, seen| serve_http2(stream, seen, max_streams, handle.clone())).await
    }

    /// TLS, with the protocols given.
    pub async fn tls<F, Fut>(alpn: &'static [&'static str], handle: F) -> Self
    where
        F: Fn(Request<Incoming>) -> Fut + Clone + Send + Sync + 'static,
        Fut: Future<Output = Response<Body>> + Send + 'static,
    {
        Self::tls_with(Tls::get().server(alpn), handle).await
    }

    pub async fn tls_with<F, Fut>(config: rustls::ServerConfig, handle: F) -> Self
    where
        F: Fn(Request<Incoming>) -> Fut + Clone + Send + Sync + 'static,
        Fut: Future<Output = Response<Body>> + Send + 'static,
    {
        let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(config));
        let mut server = Self::raw(move |stream, seen| {
            let (acceptor, handle) = (acceptor.clone(), handle.clone());
            async move {
                let Ok(stream) = acceptor.accept(stream).await else {
                    return;
                };
                if stream.get_ref().1.alpn_protocol() == Some(b"h2") {
                    serve_http2(stream, seen, 100, handle).await;
                } else {
                    serve_http1(stream, seen, handle).await;
                }
            }
        })
        .await;
        server.scheme = "https";
        server
    }
}

pub async fn serve_http1<T, F, Fut>(stream: T, seen: Arc<Seen>, handle: F)
where
    T: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    F: Fn(Request<Incoming>) -> Fut + Clone + Send + Sync + 'static,
    Fut: Future<Output = Response<Body>> + Send + 'static,
{
    let service = service_fn(move |request| {
        seen.request();
        let response = handle(request);
        async move { Ok::<_, Infallible>(response.await) }
    });
    let _ = hyper::server::conn::http1::Builder::new()
        .serve_connection(TokioIo::new(stream), service)
        .await;
}

pub async fn serve_http2<T, F, Fut>(stream: T, seen: Arc<Seen>, max_streams: u32, handle: F)
where
    T: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    F: Fn(Request<Incoming>) -> Fut + Clone + Send + Sync + 'static,
    Fut: Future<Output = Response<Body>> + Send + 'static,
{
    let service = service_fn(move |request| {
        seen.request();
        let response = handle(request);
        async move { Ok::<_, Infallible>(response.await) }
    });
    let _ = hyper::server::conn::http2::Builder::new(TokioExecutor::new())
        .max_concurrent_streams(max_streams)
        .serve_connection(TokioIo::new(stream), service)
        .await;
}

/// Certificates for `localhost`, from an authority of the tests' own.
pub struct Tls {
    pub chain: Vec<rustls::pki_types::CertificateDer<'static>>,
    pub key: Vec<u8>,
}

impl Tls {
    pub fn get() -> &'static Self {
        static TLS: std::sync::OnceLock<Tls> = std::sync::OnceLock::new();
        TLS.get_or_init(|| Self::of(|_| {}))
    }

    pub fn of(change: impl FnOnce(&mut rcgen::CertificateParams)) -> Self {
        let key = rcgen::KeyPair::generate().unwrap();
        let mut params = rcgen::CertificateParams::new(vec!["localhost".to_owned()]).unwrap();
        change(&mut params);
        let cert = params.self_signed(&key).unwrap();
        Self {
            chain: vec![cert.der().clone()],
            key: key.serialize_der(),
        }
    }

    pub fn server(&self, alpn: &[&str]) -> rustls::ServerConfig {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let key = rustls::pki_types::PrivatePkcs8KeyDer::from(self.key.clone());
        let mut config = rustls::ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(self.chain.clone(), key.into())
            .unwrap();
        config.alpn_protocols = alpn.iter().map(|alpn| alpn.as_bytes().to_vec()).collect();
        config
    }

    pub fn client(&self) -> rustls::ClientConfig {
        let mut roots = rustls::RootCertStore::empty();
        roots.add(self.chain[0].clone()).unwrap();
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        rustls::ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(roots)
            .with_no_client_auth()
    }
}

/// A pool that trusts the tests' servers.
pub fn pool() -> PoolBuilder<Body> {
    Pool::builder().plain_http(true).tls(Tls::get().client())
}

pub fn get(uri: Uri) -> Request<Body> {
    let mut request = Request::new(Body::default());
    *request.uri_mut() = uri;
    request
}

pub fn post(uri: Uri, body: impl Into<Bytes>) -> Request<Body> {
    let mut request = Request::new(Body::new(body.into()));
    *request.uri_mut() = uri;
    *request.method_mut() = http::Method::POST;
    request
}

pub async fn send(
    pool: &Pool<Body>,
    request: Request<Body>,
) -> Result<Response<PoolBody>, PoolError> {
    pool.clone().oneshot(request).await
}

/// Sends, and reads the response to its end.
pub async fn fetch(pool: &Pool<Body>, request: Request<Body>) -> Result<Answer, PoolError> {
    let response = send(pool, request).await?;
    let info = ConnectionInfo::of(response.extensions()).unwrap().clone();
    let body = response.into_body().collect().await?.to_bytes();
    Ok(Answer { body, info })
}

/// The same by a task of its own; it must go well.
pub fn fetch_later(
    pool: &Pool<Body>,
    server: &Server,
) -> impl Future<Output = ()> + Send + 'static {
    let (pool, uri) = (pool.clone(), server.uri("/"));
    async move {
        fetch(&pool, get(uri)).await.unwrap();
    }
}

#[derive(Debug)]
pub struct Answer {
    pub body: Bytes,
    pub info: ConnectionInfo,
}

pub fn text(text: impl Into<Bytes>) -> Response<Body> {
    Response::new(Body::new(text.into()))
}

/// Waits until something is so, which other tasks are bringing about.
pub async fn until(mut is_so: impl FnMut() -> bool) {
    let limit = Duration::from_secs(20);
    tokio::time::timeout(limit, async {
        while !is_so() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    })
    .await
    .expect("it never came about");
}
