//! What an error means, as a link in its `source()` chain.

use std::error::Error;
use std::fmt;

use crate::{RetryAdvice, Verdict};

/// An error of any kind.
pub type BoxError = Box<dyn Error + Send + Sync>;

/// What an error means: a link that a layer puts into the `source()` chain of
/// its own error, so that layers above understand it without knowing it.
///
/// The chain reads: the layer's error, then the `Fault`, then what caused it.
///
/// ```
/// use tollway_core::{Fault, Phase, Verdict};
///
/// let refused = std::io::Error::from(std::io::ErrorKind::ConnectionRefused);
/// let fault = Fault::new(Verdict::NO_EFFECT)
///     .in_phase(Phase::Connect)
///     .caused_by(refused);
/// assert_eq!(Verdict::of_error(&fault), Verdict::NO_EFFECT);
/// assert_eq!(fault.to_string(), "certainly not executed (connecting)");
/// ```
#[derive(Debug)]
pub struct Fault {
    verdict: Verdict,
    phase: Option<Phase>,
    advice: Option<RetryAdvice>,
    source: Option<BoxError>,
}

impl Fault {
    /// An error that means `verdict`.
    #[must_use]
    pub const fn new(verdict: Verdict) -> Self {
        Self {
            verdict,
            phase: None,
            advice: None,
            source: None,
        }
    }

    /// The same, and it happened in `phase`.
    #[must_use]
    pub const fn in_phase(mut self, phase: Phase) -> Self {
        self.phase = Some(phase);
        self
    }

    /// The same, with a word about retrying that goes beyond the verdict.
    #[must_use]
    pub const fn advising(mut self, advice: RetryAdvice) -> Self {
        self.advice = Some(advice);
        self
    }

    /// The same, and `source` caused it.
    #[must_use]
    pub fn caused_by(mut self, source: impl Into<BoxError>) -> Self {
        self.source = Some(source.into());
        self
    }

    /// The error of a service that failed to get ready, inside of a call: it was
    /// never handed the request, which so had no effect. One that has a fault already
    /// stays as it is.
    ///
    /// ```
    /// use tollway_core::{Fault, Verdict};
    ///
    /// let closed = std::io::Error::other("the buffer's worker is gone");
    /// let error = Fault::not_ready(closed);
    /// assert_eq!(Verdict::of_error(&*error), Verdict::NO_EFFECT);
    /// ```
    #[must_use]
    pub fn not_ready(error: impl Into<BoxError>) -> BoxError {
        let error = error.into();
        if Self::find(&*error).is_some() {
            return error;
        }
        let fault = Self::new(Verdict::NO_EFFECT).in_phase(Phase::Connect);
        fault.caused_by(error).into()
    }

    /// The outermost `Fault` in the chain that starts at `error`, which may be
    /// `error` itself. Chains are followed for 32 links: longer ones are a
    /// loop.
    #[must_use]
    pub fn find<'a>(error: &'a (dyn Error + 'static)) -> Option<&'a Self> {
        let mut link = error;
        for _ in 0..32 {
            if let Some(fault) = link.downcast_ref() {
                return Some(fault);
            }
            link = link.source()?;
        }
        None
    }

    /// What the error means.
    #[must_use]
    pub const fn verdict(&self) -> Verdict {
        self.verdict
    }

    /// A word about retrying that goes beyond the verdict, if there is one.
    #[must_use]
    pub const fn advice(&self) -> Option<RetryAdvice> {
        self.advice
    }

    /// Where the attempt was when it failed, if known.
    #[must_use]
    pub const fn phase(&self) -> Option<Phase> {
        self.phase
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.verdict.fmt(f)?;
        match self.phase {
            Some(phase) => write!(f, " ({phase})"),
            None => Ok(()),
        }
    }
}

impl Error for Fault {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        self.source.as_deref().map(|source| source as _)
    }
}

/// Where a call was when something happened to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Phase {
    /// Reading the request's own body, before anything of it is sent.
    Prepare,
    /// Waiting for a permit from the limiter.
    Permit,
    /// Waiting between two attempts.
    BackOff,
    /// Waiting for a connection, resolving, connecting, shaking hands.
    Connect,
    /// Sending the request.
    Send,
    /// Awaiting the head of the response.
    Head,
    /// Reading the body of the response.
    Body,
}

impl Phase {
    /// The stable name, for telemetry.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Prepare => "prepare",
            Self::Permit => "permit",
            Self::BackOff => "back_off",
            Self::Connect => "connect",
            Self::Send => "send",
            Self::Head => "head",
            Self::Body => "body",
        }
    }
}

impl fmt::Display for Phase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Prepare => "preparing the request",
            Self::Permit => "waiting for a permit",
            Self::BackOff => "waiting between attempts",
            Self::Connect => "connecting",
            Self::Send => "sending the request",
            Self::Head => "awaiting the head of the response",
            Self::Body => "reading the body of the response",
        })
    }
}
