//! TLS over any transport, and plain HTTP over the bare one.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};
#[cfg(feature = "tls")]
use std::{sync::Arc, time::Duration};

use http::Uri;
use hyper::rt::{Read, ReadBufCursor, Write};
use hyper_util::client::legacy::connect::{Connected, Connection};
#[cfg(feature = "tls")]
use hyper_util::rt::TokioIo;
use pin_project_lite::pin_project;
#[cfg(feature = "tls")]
use rustls::pki_types::ServerName;
#[cfg(feature = "tls")]
use tokio::time::timeout_at;
#[cfg(feature = "tls")]
use tokio_rustls::{TlsConnector, client::TlsStream};
use tollway_core::BoxError;
use tower_service::Service;

#[cfg(feature = "tls")]
use super::TlsInfo;
use super::tcp::Connecting;
use crate::failure::{OpenError, Step};
#[cfg(feature = "tls")]
use crate::{
    builder::{InvalidPool, Protocol},
    info::TlsVersion,
};

/// A connector that puts TLS over another's stream for `https`, and leaves it
/// as it is for `http`.
#[derive(Clone)]
pub struct Https<C> {
    transport: C,
    #[cfg(feature = "tls")]
    tls: Tls,
}

#[cfg(feature = "tls")]
#[derive(Clone)]
struct Tls {
    config: Arc<rustls::ClientConfig>,
    timeout: Duration,
}

impl<C> Https<C> {
    /// TLS with `config` over `transport`, for `protocol`, with at most
    /// `timeout` for both together.
    ///
    /// # Errors
    ///
    /// Where `config` has `alpn_protocols`: `protocol` sets them.
    #[cfg(feature = "tls")]
    pub fn with_tls(
        transport: C,
        mut config: rustls::ClientConfig,
        protocol: Protocol,
        timeout: Duration,
    ) -> Result<Self, InvalidPool> {
        if !config.alpn_protocols.is_empty() {
            return Err(InvalidPool::new(
                "tls",
                "a configuration with alpn_protocols",
                "them to be empty, since protocol() sets them",
            ));
        }
        config.alpn_protocols = match protocol {
            Protocol::Auto => vec![b"h2".to_vec(), b"http/1.1".to_vec()],
            Protocol::Http1Only => vec![b"http/1.1".to_vec()],
            Protocol::Http2Only => vec![b"h2".to_vec()],
        };
        let config = Arc::new(config);
        Ok(Self {
            transport,
            tls: Tls { config, timeout },
        })
    }

    #[cfg(not(feature = "tls"))]
    pub(crate) fn without_tls(transport: C) -> Self {
        Self { transport }
    }
}

impl<C> Service<Uri> for Https<C>
where
    C: Service<Uri> + Send + Clone + 'static,
    C::Response: Read + Write + Connection + Unpin + Send + 'static,
    C::Error: Into<BoxError>,
    C::Future: Send,
{
    type Response = HttpsStream<C::Response>;
    type Error = BoxError;
    type Future = Connecting<Self::Response>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        self.transport.poll_ready(cx).map_err(Into::into)
    }

    #[cfg(feature = "tls")]
    fn call(&mut self, uri: Uri) -> Self::Future {
        // The ready one goes, its copy stays.
        let fresh = self.transport.clone();
        let mut transport = std::mem::replace(&mut self.transport, fresh);
        let Tls { config, timeout } = self.tls.clone();
        Connecting(Box::pin(async move {
            let until = tokio::time::Instant::now() + timeout;
            let https = uri.scheme() == Some(&http::uri::Scheme::HTTPS);
            let name = if https {
                Some(server_name(&uri)?)
            } else {
                None
            };
            let io = match timeout_at(until, transport.call(uri)).await {
                Ok(io) => io.map_err(Into::into)?,
                Err(_) => return Err(OpenError::timed_out(Step::Connect, timeout).into()),
            };
            let Some(name) = name else {
                return Ok(HttpsStream::Plain { io });
            };
            let handshake = TlsConnector::from(config).connect(name, TokioIo::new(io));
            match timeout_at(until, handshake).await {
                Ok(Ok(tls)) => Ok(HttpsStream::Tls {
                    tls: TokioIo::new(tls),
                }),
                Ok(Err(error)) => Err(OpenError::new(Step::Tls, error).into()),
                Err(_) => Err(OpenError::timed_out(Step::Tls, timeout).into()),
            }
        }))
    }

    #[cfg(not(feature = "tls"))]
    fn call(&mut self, uri: Uri) -> Self::Future {
        let https = uri.scheme() == Some(&http::uri::Scheme::HTTPS);
        let connecting = (!https).then(|| self.transport.call(uri));
        Connecting(Box::pin(async move {
            let Some(connecting) = connecting else {
                let missing = "https needs tollway-pool's feature `tls`";
                return Err(OpenError::new(Step::Tls, missing).into());
            };
            let io = connecting.await.map_err(Into::into)?;
            Ok(HttpsStream::Plain { io })
        }))
    }
}

#[cfg(feature = "tls")]
fn server_name(uri: &Uri) -> Result<ServerName<'static>, BoxError> {
    let host = uri.host().unwrap_or_default();
    let bare = host
        .strip_prefix('[')
        .and_then(|host| host.strip_suffix(']'))
        .unwrap_or(host);
    match ServerName::try_from(bare) {
        Ok(name) => Ok(name.to_owned()),
        Err(error) => Err(OpenError::new(Step::Tls, error).into()),
    }
}

#[cfg(feature = "tls")]
pin_project! {
    /// A stream with or without TLS.
    #[project = Projected]
    pub enum HttpsStream<T> {
        /// Without: plain HTTP.
        #[allow(missing_docs)]
        Plain { #[pin] io: T },
        /// With.
        #[allow(missing_docs)]
        Tls { #[pin] tls: TokioIo<TlsStream<TokioIo<T>>> },
    }
}

#[cfg(not(feature = "tls"))]
pin_project! {
    /// A stream without TLS.
    #[project = Projected]
    pub enum HttpsStream<T> {
        /// Plain HTTP.
        #[allow(missing_docs)]
        Plain { #[pin] io: T },
    }
}

macro_rules! delegate {
    ($self:ident, $io:ident => $call:expr) => {
        match $self {
            Projected::Plain { io: $io } => $call,
            #[cfg(feature = "tls")]
            Projected::Tls { tls: $io } => $call,
        }
    };
}

impl<T: Read + Write + Unpin> Read for HttpsStream<T> {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: ReadBufCursor<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.project();
        delegate!(this, io => io.poll_read(cx, buf))
    }
}

impl<T: Read + Write + Unpin> Write for HttpsStream<T> {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        let this = self.project();
        delegate!(this, io => io.poll_write(cx, buf))
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.project();
        delegate!(this, io => io.poll_flush(cx))
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.project();
        delegate!(this, io => io.poll_shutdown(cx))
    }

    fn is_write_vectored(&self) -> bool {
        match self {
            Self::Plain { io } => io.is_write_vectored(),
            #[cfg(feature = "tls")]
            Self::Tls { tls } => tls.is_write_vectored(),
        }
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = self.project();
        delegate!(this, io => io.poll_write_vectored(cx, bufs))
    }
}

impl<T: Connection> Connection for HttpsStream<T> {
    fn connected(&self) -> Connected {
        match self {
            Self::Plain { io } => io.connected(),
            #[cfg(feature = "tls")]
            Self::Tls { tls } => {
                let (transport, session) = tls.inner().get_ref();
                let version = match session.protocol_version() {
                    Some(rustls::ProtocolVersion::TLSv1_2) => Some(TlsVersion::Tls12),
                    Some(rustls::ProtocolVersion::TLSv1_3) => Some(TlsVersion::Tls13),
                    _ => None,
                };
                let connected = transport
                    .inner()
                    .connected()
                    // A proxy under TLS is a tunnel: HTTP doesn't see it.
                    .proxy(false)
                    .extra(TlsInfo { version });
                if session.alpn_protocol() == Some(b"h2") {
                    connected.negotiated_h2()
                } else {
                    connected
                }
            }
        }
    }
}

impl<C: std::fmt::Debug> std::fmt::Debug for Https<C> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Https")
            .field("transport", &self.transport)
            .finish_non_exhaustive()
    }
}

impl<T> std::fmt::Debug for HttpsStream<T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Plain { .. } => "HttpsStream::Plain",
            #[cfg(feature = "tls")]
            Self::Tls { .. } => "HttpsStream::Tls",
        })
    }
}
