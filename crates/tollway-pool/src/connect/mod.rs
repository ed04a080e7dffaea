//! Connectors: TCP, TLS over any transport, proxies.
//!
//! A connector is a `Service<Uri>` that returns a stream. These are the pool's
//! own; each can stand alone, and any other can take its place.

mod https;
mod tcp;
#[cfg(feature = "tls")]
mod tls;

pub use self::https::{Https, HttpsStream};
pub use self::tcp::Tcp;
pub(crate) use self::tls::{explain_tls, platform_tls};

/// What is known of a TLS session, in a connector's `Connected`.
#[derive(Clone, Copy, Debug)]
pub(crate) struct TlsInfo {
    pub(crate) version: Option<crate::info::TlsVersion>,
}
