//! What everybody calls: as little as a server can do, so that the client is
//! what is measured.

use std::future::Future;
use std::net::SocketAddr;
use std::{io, thread};

use bytes::Bytes;
use http::header::CONTENT_TYPE;
use http::{HeaderValue, Request, Response, Uri};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use hyper::server::conn::http2;
use hyper::service::{Service, service_fn};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime;
use tollway_benches::ServerProcess;
use tollway_core::BoxError;

use crate::exchange::{ANSWER, Body, SENT};

#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Version {
    Http1,
    Http2,
}

impl Version {
    pub(crate) const BOTH: [Self; 2] = [Self::Http1, Self::Http2];

    const fn name(self) -> &'static str {
        match self {
            Self::Http1 => "http1",
            Self::Http2 => "http2",
        }
    }

    pub(crate) fn named(name: &str) -> Self {
        match name {
            "http1" => Self::Http1,
            _ => Self::Http2,
        }
    }
}

/// A server in a process of its own.
pub(crate) struct Server {
    pub(crate) version: Version,
    pub(crate) addr: SocketAddr,
    pub(crate) uri: Uri,
}

impl Server {
    pub(crate) fn start(version: Version) -> Result<Self, BoxError> {
        let addr: SocketAddr = ServerProcess::start(version.name())?.line()?.parse()?;
        Ok(Self {
            version,
            addr,
            uri: format!("http://{addr}/v1/payment_intents").parse()?,
        })
    }
}

/// Serves until the other process ends.
pub(crate) fn serve(version: Version) -> Result<(), BoxError> {
    let addr = match version {
        Version::Http1 => listen(answer_http1)?,
        Version::Http2 => listen(|stream| async move {
            let answering = http2::Builder::new(TokioExecutor::new())
                .serve_connection(TokioIo::new(stream), answer());
            let _ = answering.await;
        })?,
    };
    println!("{addr}");
    ServerProcess::until_told()?;
    Ok(())
}

/// Runs `serve` for each connection, on a thread of its own.
pub(crate) fn listen<F, Fut>(serve: F) -> io::Result<SocketAddr>
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

/// The answer, as a service of hyper's.
pub(crate) fn answer()
-> impl Service<Request<Incoming>, Response = Response<Body>, Error = hyper::Error, Future: Send> {
    service_fn(|request: Request<Incoming>| async move {
        request.into_body().collect().await?;
        let mut response = Response::new(Body::new(Bytes::from_static(ANSWER.as_bytes())));
        let json = HeaderValue::from_static("application/json");
        response.headers_mut().insert(CONTENT_TYPE, json);
        Ok(response)
    })
}

/// The answer by hand, for less than hyper's HTTP/1.1 takes.
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
