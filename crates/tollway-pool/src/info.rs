//! What a response says of the connection that it came over.

use std::fmt;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use http::{Extensions, Version};

use crate::connect::ProxyAuth;

/// The connection that a response came over, in the response's extensions.
///
/// ```
/// # use tollway_pool::ConnectionInfo;
/// # let response = http::Response::new(());
/// if let Some(info) = ConnectionInfo::of(response.extensions()) {
///     println!("{:?}, reused: {}", info.protocol(), info.is_reused());
/// }
/// ```
#[derive(Clone, Debug)]
pub struct ConnectionInfo {
    pub(crate) facts: Arc<Facts>,
    pub(crate) reused: bool,
    pub(crate) waited: Duration,
}

/// What stays the same as long as the connection lives.
#[derive(Debug)]
pub(crate) struct Facts {
    pub(crate) protocol: Version,
    pub(crate) tls: Option<TlsVersion>,
    pub(crate) remote: Option<SocketAddr>,
    /// A proxy forwards plain HTTP, and this is how it is told who we are.
    pub(crate) proxied: Option<ProxyAuth>,
    pub(crate) handshake: Duration,
}

impl ConnectionInfo {
    /// The one that `extensions` carry, if any.
    #[must_use]
    pub fn of(extensions: &Extensions) -> Option<&Self> {
        extensions.get()
    }

    /// Whether an earlier call had used the connection.
    #[must_use]
    pub fn is_reused(&self) -> bool {
        self.reused
    }

    /// `HTTP/1.1` or `HTTP/2`.
    #[must_use]
    pub fn protocol(&self) -> Version {
        self.facts.protocol
    }

    /// The TLS version; `None` for plain HTTP, or where the connector doesn't
    /// say.
    #[must_use]
    pub fn tls_version(&self) -> Option<TlsVersion> {
        self.facts.tls
    }

    /// The peer's address, the proxy's if there is one. `None` where the
    /// connector doesn't say.
    #[must_use]
    pub fn remote_addr(&self) -> Option<SocketAddr> {
        self.facts.remote
    }

    /// Whether a proxy passes plain HTTP on.
    #[must_use]
    pub fn is_proxied(&self) -> bool {
        self.facts.proxied.is_some()
    }

    /// How long this call waited for the connection, the opening of a new one
    /// included. Zero where a free one was there.
    #[must_use]
    pub fn waited(&self) -> Duration {
        self.waited
    }

    /// How long it took to open the connection, for the call that first used
    /// it as for every later one.
    #[must_use]
    pub fn handshake(&self) -> Duration {
        self.facts.handshake
    }
}

/// A version of TLS.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[non_exhaustive]
pub enum TlsVersion {
    /// TLS 1.2.
    Tls12,
    /// TLS 1.3.
    Tls13,
}

impl TlsVersion {
    /// The stable name, for telemetry: `1.2`, `1.3`.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Tls12 => "1.2",
            Self::Tls13 => "1.3",
        }
    }
}

impl fmt::Display for TlsVersion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}
