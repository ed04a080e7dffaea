//! Proxies, as the environment names them.

use std::fmt;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use http::uri::Scheme;
use http::{HeaderValue, Uri};
use hyper::rt::{Read, ReadBufCursor, Write};
use hyper_util::client::legacy::connect::proxy::Tunnel;
use hyper_util::client::legacy::connect::{Connected, Connection};
use hyper_util::client::proxy::matcher::{Intercept, Matcher};
use pin_project_lite::pin_project;
use tollway_core::BoxError;
use tower_service::Service;

use super::ProxyAuth;
use super::tcp::Connecting;
use crate::failure::{OpenError, Step};

/// A transport that goes through HTTP proxies: a tunnel (`CONNECT`) for
/// `https`, the proxy's own forwarding for `http`.
///
/// ```no_run
/// # use tollway_pool::{Pool, connect::{Proxy, Tcp}};
/// # use http_body_util::Full;
/// # use bytes::Bytes;
/// # fn build() -> Result<(), tollway_pool::InvalidPool> {
/// let tcp = Tcp::new(std::time::Duration::from_secs(10));
/// let pool: Pool<Full<Bytes>> = Pool::builder().build_over(Proxy::from_env(tcp))?;
/// # Ok(())
/// # }
/// ```
#[derive(Clone)]
pub struct Proxy<C> {
    transport: C,
    matcher: Arc<Matcher>,
}

impl<C> Proxy<C> {
    /// The proxies that `HTTPS_PROXY`, `HTTP_PROXY`, `ALL_PROXY` and `NO_PROXY`
    /// name now, in upper or lower case, read as curl reads them.
    #[must_use]
    pub fn from_env(transport: C) -> Self {
        Self::new(transport, Matcher::from_env())
    }

    /// The proxies that `matcher` names.
    #[must_use]
    pub fn new(transport: C, matcher: Matcher) -> Self {
        Self {
            transport,
            matcher: Arc::new(matcher),
        }
    }
}

impl<C> Service<Uri> for Proxy<C>
where
    C: Service<Uri> + Clone + Send + 'static,
    C::Response: Read + Write + Connection + Unpin + Send + 'static,
    C::Error: Into<BoxError>,
    C::Future: Send + 'static,
{
    type Response = ProxyStream<C::Response>;
    type Error = BoxError;
    type Future = Connecting<Self::Response>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        self.transport.poll_ready(cx).map_err(Into::into)
    }

    fn call(&mut self, uri: Uri) -> Self::Future {
        // The ready one goes, its copy stays.
        let fresh = self.transport.clone();
        let transport = std::mem::replace(&mut self.transport, fresh);
        let intercept = self.matcher.intercept(&uri);
        Connecting(Box::pin(connect(transport, uri, intercept)))
    }
}

async fn connect<C>(
    mut transport: C,
    uri: Uri,
    intercept: Option<Intercept>,
) -> Result<ProxyStream<C::Response>, BoxError>
where
    C: Service<Uri> + Send + 'static,
    C::Response: Read + Write + Connection + Unpin + Send + 'static,
    C::Error: Into<BoxError>,
    C::Future: Send + 'static,
{
    let Some(proxy) = intercept else {
        let io = transport.call(uri).await.map_err(Into::into)?;
        return Ok(ProxyStream { io, forwards: None });
    };
    if proxy.uri().scheme() != Some(&Scheme::HTTP) {
        // Not named: its URL may hold a password.
        let refused = "the proxy's own url is not an http:// one, which is all that is supported";
        return Err(OpenError::new(Step::Connect, refused).into());
    }
    if uri.scheme() == Some(&Scheme::HTTP) {
        let io = transport.call(proxy.uri().clone()).await;
        return Ok(ProxyStream {
            io: io.map_err(|error| OpenError::at_proxy(error.into()))?,
            forwards: Some(ProxyAuth(proxy.basic_auth().map(sensitive))),
        });
    }
    let mut tunnel = Tunnel::new(proxy.uri().clone(), transport);
    if let Some(auth) = proxy.basic_auth() {
        tunnel = tunnel.with_auth(auth.clone());
    }
    match tunnel.call(uri).await {
        Ok(io) => Ok(ProxyStream { io, forwards: None }),
        Err(error) => Err(OpenError::at_proxy(error.into()).into()),
    }
}

fn sensitive(auth: &HeaderValue) -> HeaderValue {
    let mut auth = auth.clone();
    auth.set_sensitive(true);
    auth
}

pin_project! {
    /// A stream to a host or to its proxy.
    pub struct ProxyStream<T> {
        #[pin]
        io: T,
        forwards: Option<ProxyAuth>,
    }
}

impl<T: Read> Read for ProxyStream<T> {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: ReadBufCursor<'_>,
    ) -> Poll<io::Result<()>> {
        self.project().io.poll_read(cx, buf)
    }
}

impl<T: Write> Write for ProxyStream<T> {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.project().io.poll_write(cx, buf)
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.project().io.poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.project().io.poll_shutdown(cx)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.project().io.poll_write_vectored(cx, bufs)
    }
}

impl<T: Connection> Connection for ProxyStream<T> {
    fn connected(&self) -> Connected {
        let connected = self.io.connected();
        match &self.forwards {
            Some(auth) => connected.proxy(true).extra(auth.clone()),
            None => connected,
        }
    }
}

impl<C: fmt::Debug> fmt::Debug for Proxy<C> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Without the matcher: proxies' urls may hold passwords.
        f.debug_struct("Proxy")
            .field("transport", &self.transport)
            .finish_non_exhaustive()
    }
}

impl<T> fmt::Debug for ProxyStream<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ProxyStream").finish_non_exhaustive()
    }
}
