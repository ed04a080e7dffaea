//! What can be set, and what is refused.

use std::error::Error;
use std::fmt;
use std::marker::PhantomData;
use std::sync::Arc;
use std::time::Duration;

use http::Uri;
use http_body::Body;
use hyper::rt::{Read, Write};
use hyper_util::client::legacy::connect::Connection;
use tollway_core::BoxError;
use tower_layer::Layer;
use tower_service::Service;

use crate::connect::{Https, Tcp};
use crate::layer::PoolLayer;
use crate::service::Pool;
use crate::state::{Limits, Spoken};

/// Which version of HTTP is spoken.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Protocol {
    /// What the peer prefers, agreed upon while TLS is established (ALPN):
    /// HTTP/2 where it can, else HTTP/1.1. Plain HTTP is HTTP/1.1.
    #[default]
    Auto,
    /// HTTP/1.1.
    Http1Only,
    /// HTTP/2, without asking; over plain HTTP too (prior knowledge).
    Http2Only,
}

/// The settings of a pool, checked.
#[derive(Clone, Debug)]
pub(crate) struct Config {
    pub(crate) limits: Limits,
    pub(crate) max_age: Option<Duration>,
    pub(crate) connect_timeout: Duration,
    pub(crate) acquire_timeout: Duration,
    pub(crate) protocol: Protocol,
    pub(crate) plain_http: bool,
    pub(crate) http2_keep_alive: Option<(Duration, Duration)>,
    pub(crate) trust_refused_stream: bool,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            limits: Limits {
                connections: 20,
                idle: usize::MAX,
                waiting: 1024,
                idle_timeout: Duration::from_secs(15),
                requests: u64::MAX,
            },
            max_age: Some(Duration::from_secs(10 * 60)),
            connect_timeout: Duration::from_secs(10),
            acquire_timeout: Duration::from_secs(30),
            protocol: Protocol::Auto,
            plain_http: false,
            http2_keep_alive: Some((Duration::from_secs(10), Duration::from_secs(5))),
            trust_refused_stream: true,
        }
    }
}

impl Config {
    /// What is known of the protocol before the first handshake.
    pub(crate) fn spoken(&self, https: bool) -> Option<Spoken> {
        match self.protocol {
            Protocol::Http1Only => Some(Spoken::Http1),
            Protocol::Http2Only => Some(Spoken::Http2),
            Protocol::Auto if !https => Some(Spoken::Http1),
            Protocol::Auto => None,
        }
    }
}

/// Builds a [`Pool`], or a [`PoolLayer`] for a connector of one's own.
#[must_use = "a builder does nothing until it builds"]
pub struct PoolBuilder<B> {
    config: Config,
    #[cfg(feature = "tls")]
    tls: Option<rustls::ClientConfig>,
    body: PhantomData<fn(B)>,
}

impl<B> PoolBuilder<B> {
    pub(crate) fn new() -> Self {
        Self {
            config: Config::default(),
            #[cfg(feature = "tls")]
            tls: None,
            body: PhantomData,
        }
    }

    /// How many connections there are to one host at most, in any state, until
    /// their sockets are really closed. 20 by default.
    ///
    /// Gateways ask for 10 to 20 calls in flight (Payalo's documentation), and
    /// 20 connections carry 100 calls a second at 200 ms each: Stripe's limit.
    /// A pool without a cap answers a burst with a burst of handshakes, each
    /// of which costs more than a short wait.
    pub fn max_connections_per_host(mut self, max: usize) -> Self {
        self.config.limits.connections = max;
        self
    }

    /// How many connections to one host are kept while idle. By default as
    /// many as there may be: the idle timeout takes what a peak has left over.
    pub fn max_idle_per_host(mut self, max: usize) -> Self {
        self.config.limits.idle = max;
        self
    }

    /// How many calls to one host may wait for a connection that others use; a
    /// further one is refused at once. Those for which new ones are opened come on
    /// top, so zero means that a call is refused while all connections are in use.
    /// 1024 by default: at 200 ms a call over 20 connections, that is a wait of ten
    /// seconds.
    pub fn max_waiting_per_host(mut self, max: usize) -> Self {
        self.config.limits.waiting = max;
        self
    }

    /// How long a connection is kept without a call, 15 seconds by default.
    ///
    /// It has to be shorter than the peer's own timeout, or the pool keeps
    /// connections that the peer is about to close. Modern Treasury's
    /// documentation asks for 2 to 30 s, since the load balancer in front drops
    /// idle connections at 30 s; 15 s is well inside.
    pub fn idle_timeout(mut self, timeout: Duration) -> Self {
        self.config.limits.idle_timeout = timeout;
        self
    }

    /// How old a connection gets, 10 minutes by default, give or take 10 % so
    /// that those which were opened together aren't closed together. `None`
    /// for no maximum.
    ///
    /// A name is resolved anew for each connection, so this is also how long
    /// the pool stays with an address that has left the name. A call in flight
    /// is never cut short.
    pub fn max_age(mut self, age: impl Into<Option<Duration>>) -> Self {
        self.config.max_age = age.into();
        self
    }

    /// How many calls one connection carries, without a limit by default. Worth
    /// setting just below the peer's own number (nginx's `keepalive_requests`,
    /// 1000 by default), so that the pool closes first, and between calls.
    pub fn max_requests_per_connection(mut self, max: u64) -> Self {
        self.config.limits.requests = max;
        self
    }

    /// How long opening a connection may take, from the name to the end of the
    /// handshakes. 10 seconds by default: three lost SYNs.
    pub fn connect_timeout(mut self, timeout: Duration) -> Self {
        self.config.connect_timeout = timeout;
        self
    }

    /// How long a call waits for a connection, 30 seconds by default. Its
    /// [`Deadline`](tollway_core::Deadline::of), if earlier, ends the wait too.
    pub fn acquire_timeout(mut self, timeout: Duration) -> Self {
        self.config.acquire_timeout = timeout;
        self
    }

    /// Which version of HTTP is spoken, [`Protocol::Auto`] by default.
    pub fn protocol(mut self, protocol: Protocol) -> Self {
        self.config.protocol = protocol;
        self
    }

    /// Whether `http://` may be called. Not by default: a key in a header would
    /// be readable by everyone on the way.
    pub fn plain_http(mut self, allowed: bool) -> Self {
        self.config.plain_http = allowed;
        self
    }

    /// How often an HTTP/2 connection is pinged, and how long the answer may
    /// take before the connection is given up. 10 and 5 seconds by default, so
    /// that one which died silently is noticed within 15. `None` for no pings.
    pub fn http2_keep_alive(
        mut self,
        interval_and_timeout: impl Into<Option<(Duration, Duration)>>,
    ) -> Self {
        self.config.http2_keep_alive = interval_and_timeout.into();
        self
    }

    /// Whether `REFUSED_STREAM` is believed: that the peer has not processed the
    /// request, so that any call may be repeated (RFC 9113, 8.7). It is by default.
    ///
    /// HAProxy says it, too, of a request that it has passed on over a connection
    /// in use before, and which that server then closed without an answer (as of
    /// 2.6): the request may have been processed. Turn this off where such a proxy
    /// stands before the gateway. The outcome is unknown then, and a call that is
    /// neither idempotent nor has a key isn't repeated.
    pub fn trust_refused_stream(mut self, trusted: bool) -> Self {
        self.config.trust_refused_stream = trusted;
        self
    }

    /// The TLS settings: own roots, a client certificate, versions, session
    /// storage. By default, the platform's roots, TLS 1.3 and 1.2, and
    /// resumption.
    ///
    /// Leave its `alpn_protocols` empty: [`protocol`](Self::protocol) sets
    /// them.
    #[cfg(feature = "tls")]
    pub fn tls(mut self, config: rustls::ClientConfig) -> Self {
        self.tls = Some(config);
        self
    }

    fn check(&self) -> Result<(), InvalidPool> {
        let config = &self.config;
        let at_least_one = [
            ("max_connections_per_host", config.limits.connections as u64),
            ("max_requests_per_connection", config.limits.requests),
        ];
        for (field, value) in at_least_one {
            if value == 0 {
                return Err(InvalidPool::new(field, "0", "at least 1"));
            }
        }
        let (ping_every, ping_timeout) = config.http2_keep_alive.unzip();
        let positive = [
            ("idle_timeout", Some(config.limits.idle_timeout)),
            ("max_age", config.max_age),
            ("connect_timeout", Some(config.connect_timeout)),
            ("acquire_timeout", Some(config.acquire_timeout)),
            ("http2_keep_alive", ping_every),
            ("http2_keep_alive", ping_timeout),
        ];
        for (field, value) in positive {
            match value {
                Some(Duration::ZERO) => {
                    return Err(InvalidPool::new(field, "zero", "a positive duration"));
                }
                // What is added to `now` has to stay an instant.
                Some(long) if long > LONGEST => {
                    return Err(InvalidPool::new(
                        field,
                        format!("{long:?}"),
                        "at most 30 days",
                    ));
                }
                _ => {}
            }
        }
        Ok(())
    }

    pub(crate) fn into_layer_config(self) -> Result<Arc<Config>, InvalidPool> {
        self.check()?;
        #[cfg(feature = "tls")]
        if self.tls.is_some() {
            return Err(InvalidPool::new(
                "tls",
                "a rustls configuration",
                "none: under a layer, TLS is the connector's affair",
            ));
        }
        Ok(Arc::new(self.config))
    }
}

/// Longer than anyone means.
const LONGEST: Duration = Duration::from_secs(30 * 24 * 60 * 60);

impl<B> PoolBuilder<B>
where
    B: Body + Send + Unpin + 'static,
    B::Data: Send,
    B::Error: Into<BoxError>,
{
    /// The pool, over TCP and TLS.
    ///
    /// # Errors
    ///
    /// Where a setting doesn't make sense, or the platform's roots can't be
    /// loaded.
    pub fn build(self) -> Result<Pool<B>, InvalidPool> {
        let tcp = Tcp::new(self.config.connect_timeout);
        self.build_over(tcp)
    }

    /// The pool, over TLS over a transport of the caller's: a Unix socket, a
    /// proxy (`connect::Proxy`), anything that takes the host's URL and
    /// returns a stream.
    ///
    /// # Errors
    ///
    /// As for [`build`](Self::build).
    pub fn build_over<C>(self, transport: C) -> Result<Pool<B>, InvalidPool>
    where
        C: Service<Uri> + Clone + Send + Sync + 'static,
        C::Response: Read + Write + Connection + Unpin + Send + 'static,
        C::Error: Into<BoxError>,
        C::Future: Send,
    {
        self.check()?;
        #[cfg(feature = "tls")]
        let https = {
            let tls = match self.tls {
                Some(tls) => tls,
                None => crate::connect::platform_tls()?,
            };
            Https::with_tls(
                transport,
                tls,
                self.config.protocol,
                self.config.connect_timeout,
            )?
        };
        #[cfg(not(feature = "tls"))]
        let https = Https::without_tls(transport);
        let layer = PoolLayer::from_config(Arc::new(self.config));
        Ok(layer.layer(https))
    }

    /// A layer with these settings, for a connector that does everything, TLS
    /// included.
    ///
    /// # Errors
    ///
    /// Where a setting doesn't make sense, or there are TLS settings.
    pub fn layer(self) -> Result<PoolLayer<B>, InvalidPool> {
        PoolLayer::new(self)
    }
}

impl<B> fmt::Debug for PoolBuilder<B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PoolBuilder")
            .field("config", &self.config)
            .finish_non_exhaustive()
    }
}

/// A setting that makes no sense.
#[derive(Debug)]
pub struct InvalidPool {
    field: &'static str,
    value: String,
    expected: &'static str,
    source: Option<BoxError>,
}

impl InvalidPool {
    pub(crate) fn new(
        field: &'static str,
        value: impl Into<String>,
        expected: &'static str,
    ) -> Self {
        Self {
            field,
            value: value.into(),
            expected,
            source: None,
        }
    }

    #[cfg(feature = "tls")]
    pub(crate) fn caused_by(mut self, source: impl Into<BoxError>) -> Self {
        self.source = Some(source.into());
        self
    }

    /// The name of the setting.
    #[must_use]
    pub fn field(&self) -> &str {
        self.field
    }
}

impl fmt::Display for InvalidPool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} is {}, expected {}",
            self.field, self.value, self.expected
        )
    }
}

impl Error for InvalidPool {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        self.source.as_deref().map(|source| source as _)
    }
}
