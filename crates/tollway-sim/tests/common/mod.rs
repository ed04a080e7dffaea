//! A client without comforts: one connection, no retries, every failure visible.
#![allow(dead_code, unreachable_pub, reason = "each test file uses its part")]
#![allow(clippy::unwrap_used, reason = "a test fails where it stands")]

use std::error::Error;
use std::sync::Arc;

use bytes::Bytes;
use http::{HeaderMap, Method, Request, StatusCode, Version};
use http_body_util::{BodyExt, Full};
use hyper::client::conn::{http1, http2};
use hyper_util::rt::{TokioExecutor, TokioIo};
use rustls::pki_types::{CertificateDer, ServerName};
use serde_json::Value;
use tokio::net::TcpStream;
use tokio_rustls::{TlsConnector, client::TlsStream};
use tollway_sim::{Gateway, Provider};

pub type BoxError = Box<dyn Error + Send + Sync>;

pub enum Client {
    Http1(http1::SendRequest<Full<Bytes>>, String),
    Http2(http2::SendRequest<Full<Bytes>>, String),
}

#[derive(Debug)]
pub struct Answer {
    pub status: StatusCode,
    pub version: Version,
    pub headers: HeaderMap,
    pub body: Bytes,
}

impl Answer {
    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body).expect("the body is JSON")
    }

    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).map(|value| value.to_str().unwrap())
    }

    pub fn text(&self) -> &str {
        std::str::from_utf8(&self.body).unwrap()
    }
}

impl Client {
    pub async fn http1(gateway: &Gateway) -> Self {
        let stream = connect(gateway).await.unwrap();
        let (sender, connection) = http1::handshake(TokioIo::new(stream)).await.unwrap();
        tokio::spawn(connection);
        Self::Http1(sender, gateway.url())
    }

    pub async fn http2(gateway: &Gateway) -> Self {
        let stream = connect(gateway).await.unwrap();
        let io = TokioIo::new(stream);
        let (sender, connection) = http2::handshake(TokioExecutor::new(), io).await.unwrap();
        tokio::spawn(connection);
        Self::Http2(sender, gateway.url())
    }

    pub async fn tls(gateway: &Gateway, alpn: &[&[u8]]) -> Self {
        let stream = tls(gateway, alpn).await.unwrap();
        let is_http2 = stream.get_ref().1.alpn_protocol() == Some(b"h2");
        let io = TokioIo::new(stream);
        if is_http2 {
            let (sender, connection) = http2::handshake(TokioExecutor::new(), io).await.unwrap();
            tokio::spawn(connection);
            Self::Http2(sender, gateway.url())
        } else {
            let (sender, connection) = http1::handshake(io).await.unwrap();
            tokio::spawn(connection);
            Self::Http1(sender, gateway.url())
        }
    }

    pub async fn send(&mut self, request: Request<Full<Bytes>>) -> Result<Answer, BoxError> {
        let response = match self {
            Self::Http1(sender, _) => {
                sender.ready().await?;
                sender.send_request(request).await?
            }
            Self::Http2(sender, _) => {
                sender.ready().await?;
                sender.send_request(request).await?
            }
        };
        let (head, body) = response.into_parts();
        Ok(Answer {
            status: head.status,
            version: head.version,
            headers: head.headers,
            body: body.collect().await?.to_bytes(),
        })
    }

    pub fn request(
        &self,
        method: Method,
        path: &str,
        headers: &[(&str, &str)],
        body: impl Into<Bytes>,
    ) -> Request<Full<Bytes>> {
        let (uri, host) = match self {
            Self::Http1(_, url) => (path.to_owned(), url.split("//").nth(1).unwrap()),
            Self::Http2(_, url) => (format!("{url}{path}"), ""),
        };
        let mut request = Request::builder().method(method).uri(uri);
        if !host.is_empty() {
            request = request.header("host", host);
        }
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        request.body(Full::new(body.into())).unwrap()
    }

    pub async fn get(&mut self, path: &str) -> Result<Answer, BoxError> {
        let request = self.request(Method::GET, path, &[], "");
        self.send(request).await
    }

    pub async fn post(
        &mut self,
        path: &str,
        headers: &[(&str, &str)],
        body: impl Into<Bytes>,
    ) -> Result<Answer, BoxError> {
        let request = self.request(Method::POST, path, headers, body);
        self.send(request).await
    }

    /// Posts a payout as this provider wants it.
    pub async fn pay(&mut self, provider: Provider, reference: &str) -> Result<Answer, BoxError> {
        let path = provider.wire().create;
        let headers = [("idempotency-key", reference)];
        self.post(path, &headers, payout(provider, reference, 100))
            .await
    }
}

/// A payout in the provider's shape.
pub fn payout(provider: Provider, reference: &str, amount: u64) -> String {
    let wire = provider.wire();
    let mut body = serde_json::json!({
        wire.amount: amount,
        wire.currency: "eur",
        wire.beneficiary: "acct_1",
    });
    if let tollway_sim::wire::Key::Field(field) = wire.key {
        body[field] = reference.into();
    }
    match wire.reference {
        [outer, inner] => body[*outer][*inner] = reference.into(),
        path => body[path[0]] = reference.into(),
    }
    body.to_string()
}

async fn connect(gateway: &Gateway) -> std::io::Result<TcpStream> {
    let stream = TcpStream::connect(gateway.addr()).await?;
    // Or the second of two small writes waits 40 ms for an acknowledgement.
    stream.set_nodelay(true)?;
    Ok(stream)
}

/// A TLS connection that trusts nobody but the gateway.
pub async fn tls(gateway: &Gateway, alpn: &[&[u8]]) -> Result<TlsStream<TcpStream>, BoxError> {
    let mut roots = rustls::RootCertStore::empty();
    let ca = gateway
        .ca_certificate_der()
        .expect("the gateway speaks TLS");
    roots.add(CertificateDer::from(ca.to_vec()))?;
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut config = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .with_root_certificates(roots)
        .with_no_client_auth();
    config.alpn_protocols = alpn.iter().map(|name| name.to_vec()).collect();
    let stream = connect(gateway).await?;
    let name = ServerName::try_from("127.0.0.1")?;
    Ok(TlsConnector::from(Arc::new(config))
        .connect(name, stream)
        .await?)
}

/// Whether an I/O error of this kind is anywhere among the causes.
pub fn caused_by(error: &BoxError, kind: std::io::ErrorKind) -> bool {
    let mut cause: Option<&(dyn Error + 'static)> = Some(&**error);
    while let Some(error) = cause {
        if error
            .downcast_ref::<std::io::Error>()
            .is_some_and(|error| error.kind() == kind)
        {
            return true;
        }
        cause = error.source();
    }
    false
}

/// Why the stream was reset, if that is among the causes.
pub fn h2_reason(error: &BoxError) -> Option<h2::Reason> {
    let mut cause: Option<&(dyn Error + 'static)> = Some(&**error);
    while let Some(error) = cause {
        if let Some(error) = error.downcast_ref::<h2::Error>() {
            return error.reason();
        }
        cause = error.source();
    }
    None
}
