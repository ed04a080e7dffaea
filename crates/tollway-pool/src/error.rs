//! What goes wrong, by phase.

use std::error::Error;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use tollway_core::{BoxError, Fault, Phase, RetryAdvice, Scope, Verdict};

use crate::failure::{Failure, SharedCause, Step, is_stream_reset};
use crate::key::BadUrl;

/// Why a call got no response, or not all of it.
///
/// [`verdict`](Self::verdict) says what it means for the call: *not executed*
/// while a connection was being found or opened, and wherever certainly
/// nothing was written or processed; *unknown* from the first byte on. It
/// stands in the `source()` chain as a [`Fault`] too, so that a layer which
/// doesn't know this type understands it.
///
/// Messages name the host, and never a header, a path or a body.
#[derive(Debug)]
pub struct PoolError(Box<Inner>);

#[derive(Debug)]
struct Inner {
    kind: Kind,
    host: Option<Arc<str>>,
    fault: Fault,
}

#[derive(Debug)]
pub(crate) enum Kind {
    /// The URL can't be called.
    Url(BadUrl),
    PlainHttp,
    Unsupported(&'static str),
    QueueFull(usize),
    Draining,
    /// No connection came free, or was opened, in time.
    Wait(Duration),
    Open(Failure),
    /// One connection after the other died before it took the request.
    Dying,
    /// The peer says that it didn't process the request.
    Refused,
    /// The request's own body failed.
    Send,
    Head,
    /// What came can't be read as HTTP.
    Garbled,
    Body,
    /// The peer ended the response early, and called that no error.
    Cut,
}

impl PoolError {
    pub(crate) fn new(kind: Kind, host: Option<Arc<str>>, cause: Option<BoxError>) -> Self {
        let (verdict, phase) = match &kind {
            // A repeat would only repeat it.
            Kind::Url(_) | Kind::PlainHttp | Kind::Unsupported(_) => {
                (Verdict::Rejected, Phase::Connect)
            }
            // Without a delay it would be tried again at once.
            Kind::QueueFull(_) => {
                let not_now = Verdict::NotExecuted {
                    retry_after: Some(Duration::ZERO),
                    scope: Scope::Call,
                };
                (not_now, Phase::Connect)
            }
            Kind::Draining | Kind::Wait(_) | Kind::Open(_) => (Verdict::NO_EFFECT, Phase::Connect),
            Kind::Dying => (Verdict::NO_EFFECT, Phase::Send),
            Kind::Refused => (Verdict::NO_EFFECT, Phase::Head),
            Kind::Send => (Verdict::Unknown, Phase::Send),
            Kind::Head | Kind::Garbled => (Verdict::Unknown, Phase::Head),
            Kind::Body | Kind::Cut => (Verdict::Unknown, Phase::Body),
        };
        let mut fault = Fault::new(verdict).in_phase(phase);
        if let Kind::Draining = kind {
            fault = fault.advising(RetryAdvice::Never);
        }
        if let Some(cause) = cause {
            fault = fault.caused_by(cause);
        } else if let Kind::Open(failure) = &kind {
            fault = fault.caused_by(SharedCause(failure.clone()));
        }
        Self(Box::new(Inner { kind, host, fault }))
    }

    /// What the error means for the call.
    #[must_use]
    pub fn verdict(&self) -> Verdict {
        self.0.fault.verdict()
    }

    /// Where the call was.
    #[must_use]
    pub fn phase(&self) -> Option<Phase> {
        self.0.fault.phase()
    }

    /// The host that the call was for, `api.example.com:443`, if its URL named
    /// one.
    #[must_use]
    pub fn host(&self) -> Option<&str> {
        self.0.host.as_deref()
    }

    fn step(&self) -> Option<Step> {
        match &self.0.kind {
            Kind::Open(failure) => Some(failure.step()),
            _ => None,
        }
    }

    /// The host's name could not be resolved.
    #[must_use]
    pub fn is_resolve(&self) -> bool {
        self.step() == Some(Step::Resolve)
    }

    /// No connection could be made: refused, unreachable, no answer, or a proxy
    /// that doesn't let it through.
    #[must_use]
    pub fn is_connect(&self) -> bool {
        matches!(self.step(), Some(Step::Connect | Step::Proxy))
    }

    /// TLS could not be established: a certificate, a protocol version, or
    /// something that isn't TLS at all.
    #[must_use]
    pub fn is_tls(&self) -> bool {
        self.step() == Some(Step::Tls)
    }

    /// The connection stood, but HTTP could not begin on it.
    #[must_use]
    pub fn is_handshake(&self) -> bool {
        self.step() == Some(Step::Handshake)
    }

    /// The request couldn't be sent, or not whole: its own body failed, or one
    /// connection after the other died before they took it.
    #[must_use]
    pub fn is_write(&self) -> bool {
        matches!(self.0.kind, Kind::Send | Kind::Dying)
    }

    /// The connection, or over HTTP/2 the stream, broke while the response was
    /// awaited or read, or what came can't be read as HTTP.
    #[must_use]
    pub fn is_read(&self) -> bool {
        matches!(
            self.0.kind,
            Kind::Head | Kind::Garbled | Kind::Body | Kind::Cut
        )
    }

    /// It took too long to get a connection: the deadline passed, nothing came
    /// free, or the host didn't answer.
    #[must_use]
    pub fn is_timeout(&self) -> bool {
        match &self.0.kind {
            Kind::Wait(_) => true,
            Kind::Open(failure) => failure.is_timeout(),
            _ => false,
        }
    }

    /// As many calls were waiting for a connection as may.
    #[must_use]
    pub fn is_queue_full(&self) -> bool {
        matches!(self.0.kind, Kind::QueueFull(_))
    }

    /// The pool is being drained, or has been.
    #[must_use]
    pub fn is_draining(&self) -> bool {
        matches!(self.0.kind, Kind::Draining) || self.step() == Some(Step::Drained)
    }

    /// The peer said that it has not processed the request (`REFUSED_STREAM`,
    /// or `GOAWAY` below its stream).
    ///
    /// Not everyone who says `REFUSED_STREAM` keeps to it: see
    /// [`trust_refused_stream`](crate::PoolBuilder::trust_refused_stream).
    #[must_use]
    pub fn is_refused(&self) -> bool {
        matches!(self.0.kind, Kind::Refused)
    }
}

impl fmt::Display for PoolError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let host = self.host().unwrap_or("the host");
        match &self.0.kind {
            Kind::Url(BadUrl::Relative) => f.write_str(
                "the request's url names no host: it must be absolute, like https://api.example.com/v1",
            ),
            Kind::Url(BadUrl::Scheme) => {
                f.write_str("the request's url has a scheme that is neither https nor http")
            }
            Kind::Url(BadUrl::Port) => {
                f.write_str("the request's url has a port that is not a number up to 65535")
            }
            Kind::Url(BadUrl::Credentials) => f.write_str(
                "the request's url carries credentials (user:password@): send them in an \
                 authorization header instead",
            ),
            Kind::PlainHttp => write!(
                f,
                "plain http to {host} is refused, since anyone on the way could read it: use \
                 https, or allow it with plain_http(true)"
            ),
            Kind::Unsupported(what) => f.write_str(what),
            Kind::QueueFull(waiting) => write!(
                f,
                "{waiting} calls wait for a connection to {host} already: send fewer at a time, \
                 or raise max_connections_per_host or max_waiting_per_host"
            ),
            Kind::Draining => f.write_str("the pool is being drained and takes no new calls"),
            Kind::Wait(Duration::ZERO) => write!(
                f,
                "no connection to {host} was asked for, since the call's deadline has passed"
            ),
            Kind::Wait(waited) => write!(
                f,
                "no connection to {host} within {waited:.1?}: all were in use, or none could be \
                 opened in that time"
            ),
            Kind::Open(failure) => failure.message(f, host),
            Kind::Dying => write!(
                f,
                "{host} closed one connection after the other before the request was written"
            ),
            Kind::Refused => write!(f, "{host} refused the request without processing it"),
            Kind::Send => write!(
                f,
                "the request to {host} was broken off, since its own body failed: it may or may \
                 not have taken effect"
            ),
            #[cfg(feature = "tls")]
            Kind::Head if crate::connect::refuses_client(&self.0.fault) => {
                f.write_str(&crate::connect::client_refused(host))
            }
            Kind::Head if is_stream_reset(&self.0.fault) => write!(
                f,
                "the stream to {host} was reset before the response came: the request may or may \
                 not have taken effect"
            ),
            Kind::Head => write!(
                f,
                "the connection to {host} broke before the response came: the request may or may \
                 not have taken effect"
            ),
            Kind::Garbled => write!(
                f,
                "{host} answered with something that can't be read as http: does the port speak \
                 another protocol, https perhaps? the request may or may not have taken effect"
            ),
            Kind::Body if is_stream_reset(&self.0.fault) => write!(
                f,
                "the stream to {host} was reset before the response was complete"
            ),
            Kind::Body => write!(
                f,
                "the connection to {host} broke before the response was complete"
            ),
            Kind::Cut => write!(
                f,
                "{host} ended the stream before the response was complete, though without an error"
            ),
        }
    }
}

impl Error for PoolError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        Some(&self.0.fault)
    }
}
