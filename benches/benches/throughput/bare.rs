//! hyper's connections, without a pool.

use std::net::SocketAddr;

use http::header::HOST;
use http::{HeaderValue, Uri};
use hyper::client::conn::{http1, http2};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::net::TcpStream;
use tokio::sync::OnceCell;
use tollway_core::BoxError;

use crate::callers::{Caller, Callers, Contestant};
use crate::exchange::{Body, read, request};
use crate::server::{Server, Version};

/// Over HTTP/1.1 each caller has a connection; over HTTP/2 all of them share
/// one, as everybody's do.
pub(crate) fn contestant(server: &Server) -> Result<Box<dyn Contestant>, BoxError> {
    match server.version {
        Version::Http1 => Callers::made("bare", || BareHttp1::new(server.addr)),
        Version::Http2 => {
            let shared = OnceCell::new();
            Callers::made("bare", || async {
                let sender = shared
                    .get_or_try_init(|| connect_http2(server.addr))
                    .await?;
                Ok(BareHttp2 {
                    sender: sender.clone(),
                    uri: server.uri.clone(),
                })
            })
        }
    }
}

async fn connect(addr: SocketAddr) -> Result<TokioIo<TcpStream>, BoxError> {
    let stream = TcpStream::connect(addr).await?;
    stream.set_nodelay(true)?;
    Ok(TokioIo::new(stream))
}

struct BareHttp1 {
    sender: http1::SendRequest<Body>,
    host: HeaderValue,
}

impl BareHttp1 {
    async fn new(addr: SocketAddr) -> Result<Self, BoxError> {
        let (sender, connection) = http1::handshake(connect(addr).await?).await?;
        tokio::spawn(connection);
        let host = HeaderValue::try_from(addr.to_string())?;
        Ok(Self { sender, host })
    }
}

impl Caller for BareHttp1 {
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

struct BareHttp2 {
    sender: http2::SendRequest<Body>,
    uri: Uri,
}

async fn connect_http2(addr: SocketAddr) -> Result<http2::SendRequest<Body>, BoxError> {
    let stream = connect(addr).await?;
    let (sender, connection) = http2::handshake(TokioExecutor::new(), stream).await?;
    tokio::spawn(connection);
    Ok(sender)
}

impl Caller for BareHttp2 {
    async fn call(&mut self) -> usize {
        match self.sender.send_request(request(self.uri.clone())).await {
            Ok(response) => read(response.into_body()).await,
            Err(error) => panic!("{error}"),
        }
    }
}
