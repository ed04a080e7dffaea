//! Connectors: TCP, TLS over any transport, proxies.
//!
//! A connector is a `Service<Uri>` that returns a stream. These are the pool's
//! own; each can stand alone, and any other can take its place. A Unix socket,
//! for instance, which has no address to resolve:
//!
//! ```no_run
//! # #[cfg(unix)] {
//! # use bytes::Bytes;
//! # use http_body_util::Full;
//! use hyper_util::rt::TokioIo;
//! use tokio::net::UnixStream;
//! use tollway_pool::Pool;
//!
//! let transport = tower::service_fn(|_uri: http::Uri| async {
//!     let stream = UnixStream::connect("/run/gateway.sock").await?;
//!     Ok::<_, std::io::Error>(TokioIo::new(stream))
//! });
//! # fn build<C>(transport: C) -> Result<(), tollway_pool::InvalidPool>
//! # where
//! #     C: tower::Service<http::Uri, Response = TokioIo<UnixStream>, Error = std::io::Error>
//! #         + Clone + Send + Sync + 'static,
//! #     C::Future: Send,
//! # {
//! let pool: Pool<Full<Bytes>> = Pool::builder()
//!     .plain_http(true)
//!     .build_over(transport)?;
//! # Ok(())
//! # }
//! # let _ = build(transport);
//! # }
//! ```

mod https;
#[cfg(feature = "proxy")]
mod proxy;
mod tcp;
#[cfg(feature = "tls")]
mod tls;

use http::HeaderValue;

pub use self::https::{Https, HttpsStream};
#[cfg(feature = "proxy")]
pub use self::proxy::{Proxy, ProxyStream};
pub use self::tcp::{Connecting, Tcp};
#[cfg(feature = "tls")]
pub(crate) use self::tls::{client_refused, explain_tls, platform_tls, refuses_client};

/// What is known of a TLS session, in a connector's `Connected`.
#[derive(Clone, Copy, Debug)]
pub(crate) struct TlsInfo {
    pub(crate) version: Option<crate::info::TlsVersion>,
}

/// How a proxy that forwards plain HTTP wants every request authorised, in a
/// connector's `Connected`.
#[derive(Clone, Debug)]
pub(crate) struct ProxyAuth(pub(crate) Option<HeaderValue>);

#[cfg(not(feature = "tls"))]
pub(crate) fn explain_tls(host: &str, _: &crate::failure::OpenError) -> String {
    format!("https to {host} needs tollway-pool's feature `tls`, or a connector with TLS")
}
