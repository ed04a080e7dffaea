//! Why a connection could not be opened.

use std::error::Error;
use std::fmt;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use tollway_core::BoxError;

/// How far the opening of a connection had come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Step {
    Resolve,
    Connect,
    /// The way to the host is through a proxy, and ended there.
    #[cfg_attr(not(feature = "proxy"), expect(dead_code, reason = "there are none"))]
    Proxy,
    Tls,
    Handshake,
    /// There was nothing to open it on.
    Runtime,
    /// The pool's end came first.
    Drained,
}

impl Step {
    pub(crate) const fn as_str(self) -> &'static str {
        match self {
            Self::Resolve => "resolve",
            Self::Connect => "connect",
            Self::Proxy => "proxy",
            Self::Tls => "tls",
            Self::Handshake => "handshake",
            Self::Runtime => "runtime",
            Self::Drained => "drained",
        }
    }
}

/// Why a connection could not be opened. Several calls may have waited for it.
#[derive(Clone, Debug)]
pub(crate) struct Failure(Arc<OpenError>);

/// An error of our own connectors, which know at which step they were.
#[derive(Debug)]
pub(crate) struct OpenError {
    step: Step,
    /// The limit that was exceeded, if that is the error.
    timed_out: Option<Duration>,
    source: Option<BoxError>,
}

impl OpenError {
    pub(crate) fn new(step: Step, source: impl Into<BoxError>) -> Self {
        Self {
            step,
            timed_out: None,
            source: Some(source.into()),
        }
    }

    pub(crate) fn timed_out(step: Step, limit: Duration) -> Self {
        Self {
            step,
            timed_out: Some(limit),
            source: None,
        }
    }

    /// What came of asking a proxy.
    #[cfg(feature = "proxy")]
    pub(crate) fn at_proxy(source: BoxError) -> Self {
        Self {
            step: Step::Proxy,
            timed_out: find::<Self>(&*source).and_then(|error| error.timed_out),
            source: Some(source),
        }
    }
}

impl fmt::Display for OpenError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.timed_out {
            Some(limit) => write!(f, "{} timed out after {limit:?}", self.step.as_str()),
            None => write!(f, "{} failed", self.step.as_str()),
        }
    }
}

impl Error for OpenError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        self.source.as_deref().map(|source| source as _)
    }
}

impl Failure {
    /// What a connector says, at the step that it names; `step` if it names
    /// none.
    pub(crate) fn from_connector(step: Step, error: BoxError) -> Self {
        let error = match error.downcast::<OpenError>() {
            Ok(known) => return Self(Arc::from(known)),
            Err(error) => error,
        };
        Self(Arc::new(OpenError::new(step, error)))
    }

    pub(crate) fn timed_out(step: Step, limit: Duration) -> Self {
        Self(Arc::new(OpenError::timed_out(step, limit)))
    }

    pub(crate) fn new(step: Step, source: impl Into<BoxError>) -> Self {
        Self(Arc::new(OpenError::new(step, source)))
    }

    /// A pool that is used outside of a tokio runtime, or in one that ends.
    pub(crate) fn no_runtime() -> Self {
        Self::new(Step::Runtime, "no tokio runtime")
    }

    /// Whoever was to open a connection is gone without a word: by a panic of the
    /// connector's, which a further attempt would only repeat, or else with its
    /// runtime.
    pub(crate) fn gone(panicked: bool) -> Self {
        if panicked {
            Self::new(Step::Connect, "the connector panicked")
        } else {
            Self::no_runtime()
        }
    }

    /// A connection that the pool's end cut short.
    pub(crate) fn drained() -> Self {
        Self::new(Step::Drained, "the pool is closed")
    }

    pub(crate) fn step(&self) -> Step {
        self.0.step
    }

    /// For events.
    pub(crate) fn cause(&self) -> &(dyn Error + 'static) {
        self.0.source().unwrap_or(&*self.0)
    }

    /// Nobody was there to open it, which says nothing of the host.
    pub(crate) fn is_orphaned(&self) -> bool {
        self.0.step == Step::Runtime
    }

    /// A limit was exceeded, the connector's own or the system's included: each
    /// address of a name has its share of the time, which most often ends first.
    pub(crate) fn is_timeout(&self) -> bool {
        let silent = |error: &io::Error| error.kind() == io::ErrorKind::TimedOut;
        self.0.timed_out.is_some() || find_io(&*self.0).is_some_and(silent)
    }

    /// The failure, for a newcomer.
    pub(crate) fn message(&self, f: &mut fmt::Formatter<'_>, host: &str) -> fmt::Result {
        let error = &*self.0;
        match (error.step, error.timed_out) {
            (Step::Resolve, Some(limit)) => {
                return write!(
                    f,
                    "no address for {host} within {limit:?}: is DNS reachable?"
                );
            }
            (Step::Resolve, None) => {
                return write!(
                    f,
                    "no address for {host}: check the host's name, and that DNS works here"
                );
            }
            (Step::Connect, Some(limit)) => {
                return write!(
                    f,
                    "no answer from {host} within {limit:?}: a firewall or a proxy on the way, a \
                     wrong address, or a host that is down"
                );
            }
            (Step::Proxy, Some(limit)) => {
                return write!(
                    f,
                    "no answer within {limit:?} from the proxy on the way to {host}: check the \
                     proxy's url"
                );
            }
            (Step::Tls, Some(limit)) => {
                return write!(
                    f,
                    "{host} accepted the connection but didn't complete the TLS handshake within \
                     {limit:?}"
                );
            }
            (Step::Handshake, Some(limit)) => {
                return write!(
                    f,
                    "{host} accepted the connection but didn't begin HTTP within {limit:?}"
                );
            }
            (Step::Runtime, _) => {
                return write!(
                    f,
                    "no connection to {host} can be opened outside of a tokio runtime, or in one \
                     that shuts down"
                );
            }
            (Step::Drained, _) => {
                return write!(
                    f,
                    "the pool was drained before there was a connection to {host}"
                );
            }
            (_, None) => {}
        }
        match error.step {
            Step::Tls => write!(f, "{}", crate::connect::explain_tls(host, error)),
            Step::Handshake => write!(f, "{host} didn't begin HTTP on the new connection"),
            // An error of the transport's is about reaching the proxy itself.
            Step::Proxy if error.source().and_then(find::<OpenError>).is_some() => write!(
                f,
                "the proxy on the way to {host} can't be reached: is it running, and is its url \
                 right?"
            ),
            Step::Proxy => write!(
                f,
                "the proxy on the way to {host} didn't open a tunnel: does it want a user and a \
                 password, and does it allow this host and port?"
            ),
            _ => match find_io(error).map(io::Error::kind) {
                Some(io::ErrorKind::ConnectionRefused) => write!(
                    f,
                    "{host} refused the connection: is the server running, and is it the right \
                     port?"
                ),
                Some(io::ErrorKind::TimedOut) => write!(
                    f,
                    "no answer from {host}: a firewall on the way, a wrong address, or a host \
                     that is down"
                ),
                Some(io::ErrorKind::NetworkUnreachable | io::ErrorKind::HostUnreachable) => {
                    write!(f, "no route to {host}: is this machine online?")
                }
                _ => write!(f, "can't connect to {host}"),
            },
        }
    }
}

/// The first I/O error in a chain.
pub(crate) fn find_io<'a>(error: &'a (dyn Error + 'static)) -> Option<&'a io::Error> {
    find(error)
}

/// The first error of this type in a chain, one inside of an I/O error
/// included, which `source()` steps over.
pub(crate) fn find<'a, E: Error + 'static>(error: &'a (dyn Error + 'static)) -> Option<&'a E> {
    let mut link = Some(error);
    for _ in 0..32 {
        let here = link?;
        if let Some(found) = here.downcast_ref::<E>() {
            return Some(found);
        }
        link = match here
            .downcast_ref::<io::Error>()
            .and_then(io::Error::get_ref)
        {
            Some(inner) => Some(inner),
            None => here.source(),
        };
    }
    None
}

/// Whether an error ended one stream of an HTTP/2 connection, and not all of it.
pub(crate) fn is_stream_reset(error: &(dyn Error + 'static)) -> bool {
    find::<h2::Error>(error).is_some_and(h2::Error::is_reset)
}

/// A failure that several errors share, as the cause of each.
#[derive(Debug)]
pub(crate) struct SharedCause(pub(crate) Failure);

impl fmt::Display for SharedCause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.0.fmt(f)
    }
}

impl Error for SharedCause {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        self.0.0.source()
    }
}

#[cfg(all(test, feature = "proxy"))]
mod tests {
    use super::*;

    #[test]
    fn a_proxy_that_keeps_silent_is_a_timeout_of_the_proxy() {
        let limit = Duration::from_secs(7);
        let silent = OpenError::timed_out(Step::Connect, limit);
        let at_proxy = OpenError::at_proxy(silent.into());
        let failure = Failure::from_connector(Step::Connect, at_proxy.into());
        assert!(failure.is_timeout());
        let host = "api.example.com:443".into();
        let error = crate::PoolError::new(crate::error::Kind::Open(failure), Some(host), None);
        let text = error.to_string();
        assert!(
            text.starts_with("no answer within 7s from the proxy"),
            "{text}"
        );
    }
}
