//! Reading an answer once, into a [`Verdict`].

use std::error::Error;
use std::sync::Arc;
use std::time::SystemTime;

use http::{Extensions, HeaderMap, StatusCode};

use crate::{Fault, RetryAdvice, Verdict, retry_after};

mod body;
mod body_rule;
mod future;
mod json;
mod layer;
mod rules;
mod service;

pub use body::ClassifyBody;
pub use body_rule::{BodyRule, Test};
pub use future::ClassifyFuture;
pub use layer::ClassifyLayer;
pub use rules::{InvalidRules, Rules};
pub use service::ClassifyService;

/// Decides what an answer means.
///
/// [`Rules`] are this as data, and enough for every provider that Tollway
/// knows. Implement it for one that they can't describe; where you hand on to
/// rules, hand on every method, or else they get no body to look at.
pub trait Classify {
    /// Whether [`classify`](Self::classify) needs the start of the body for an
    /// answer with this head. Where it doesn't, the body is handed on untouched.
    fn needs_body(&self, status: StatusCode, headers: &HeaderMap) -> bool {
        let _ = (status, headers);
        false
    }

    /// What the answer means.
    fn classify(&self, answer: &Answer<'_>) -> Judgement;

    /// What an error of the service below means, where this knows better than
    /// the [`Fault`] in its chain: a fault that is put before it, with the
    /// [phase](crate::Phase) if that is known. `None` leaves the error as it is;
    /// without a fault it will count as [`Verdict::Unknown`].
    ///
    /// Tollway's pool puts faults into its errors. For the connect errors of
    /// another client, [`Rules::connect_errors`] is enough.
    fn classify_error(&self, error: &(dyn Error + 'static)) -> Option<Fault> {
        let _ = error;
        None
    }
}

impl<C: Classify + ?Sized> Classify for Arc<C> {
    fn needs_body(&self, status: StatusCode, headers: &HeaderMap) -> bool {
        (**self).needs_body(status, headers)
    }

    fn classify(&self, answer: &Answer<'_>) -> Judgement {
        (**self).classify(answer)
    }

    fn classify_error(&self, error: &(dyn Error + 'static)) -> Option<Fault> {
        (**self).classify_error(error)
    }
}

/// What is known of an answer when it is classified.
#[derive(Clone, Copy, Debug)]
pub struct Answer<'a> {
    /// The status.
    pub status: StatusCode,
    /// The header fields.
    pub headers: &'a HeaderMap,
    /// The start of the body, as it came. Empty unless
    /// [`needs_body`](Classify::needs_body) asked for it.
    pub body: &'a [u8],
    /// Whether the body failed behind that start: its connection broke, for
    /// instance. What else it would have said, nobody knows.
    pub broken: bool,
    /// Reads the wall clock. Most answers have nothing to do with it, and
    /// [`SystemTime::now`] costs more than looking at their head.
    pub clock: fn() -> SystemTime,
}

/// A verdict, and what there is to say about a retry beyond it.
///
/// Made from a [`Verdict`]; the advice is then set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Judgement {
    /// What the answer means.
    pub verdict: Verdict,
    /// A word about retrying that goes beyond the verdict.
    pub advice: Option<RetryAdvice>,
}

impl From<Verdict> for Judgement {
    fn from(verdict: Verdict) -> Self {
        Self {
            verdict,
            advice: None,
        }
    }
}

impl Judgement {
    /// What a head says when nothing else is known of the provider: the
    /// [verdict of its status](Verdict::of_status), with the delay that its
    /// `Retry-After` asks for; after a 425 one retry at the most (RFC 8470,
    /// section 5.2: the client may retry once the handshake is complete), and
    /// none after a redirect, which would only come again.
    #[must_use]
    pub fn of_head(status: StatusCode, headers: &HeaderMap, now: SystemTime) -> Self {
        Self::of_head_by(status, headers, || now)
    }

    /// The same, which reads the clock only if it matters.
    fn of_head_by(status: StatusCode, headers: &HeaderMap, clock: impl Fn() -> SystemTime) -> Self {
        let judgement = Self {
            verdict: Verdict::of_status(status),
            advice: match status {
                StatusCode::TOO_EARLY => Some(RetryAdvice::Once),
                StatusCode::FOUND | StatusCode::SEE_OTHER => Some(RetryAdvice::Never),
                _ => None,
            },
        };
        judgement.heeding(headers, clock)
    }

    /// What a response means: what a `ClassifyLayer` below has put into its
    /// extensions, or else what its [head](Self::of_head) says.
    #[must_use]
    pub fn of_response<B>(response: &http::Response<B>, now: SystemTime) -> Self {
        match Verdict::of(response.extensions()) {
            Some(verdict) => Self {
                verdict,
                advice: RetryAdvice::of(response.extensions()),
            },
            None => Self::of_head(response.status(), response.headers(), now),
        }
    }

    /// What an error means: what the [`Fault`] in its `source()` chain says, or
    /// else that the outcome is unknown.
    #[must_use]
    pub fn of_error(error: &(dyn Error + 'static)) -> Self {
        Self {
            verdict: Verdict::of_error(error),
            advice: Fault::find(error).and_then(Fault::advice),
        }
    }

    /// The same answer, where something else is in doubt that it doesn't speak for:
    /// an earlier attempt of the call, another call with its key.
    /// The outcome is unknown, and what this asks of a retry holds.
    #[must_use]
    pub fn in_doubt(self) -> Self {
        let asked = match self.verdict {
            Verdict::NotExecuted { retry_after, .. } => retry_after.map(RetryAdvice::After),
            _ => None,
        };
        let advice = match self.advice {
            Some(RetryAdvice::Never | RetryAdvice::After(_)) => self.advice,
            _ => asked,
        };
        Self {
            verdict: Verdict::Unknown,
            advice,
        }
    }

    /// Puts the verdict and the advice into the extensions of a response, in
    /// place of those that stand there.
    pub fn insert_into(self, extensions: &mut Extensions) {
        extensions.insert(self.verdict);
        match self.advice {
            Some(advice) => extensions.insert(advice),
            // What somebody below advised was about another verdict.
            None => extensions.remove::<RetryAdvice>(),
        };
    }

    /// The same, but never asking for a retry sooner than these headers do.
    fn heeding(mut self, headers: &HeaderMap, clock: impl Fn() -> SystemTime) -> Self {
        let asked = || retry_after(headers, clock());
        match &mut self.verdict {
            Verdict::NotExecuted { retry_after, .. } => *retry_after = asked().max(*retry_after),
            Verdict::Unknown if self.advice.is_none() => {
                self.advice = asked().map(RetryAdvice::After);
            }
            Verdict::Unknown | Verdict::Done | Verdict::Rejected => {}
        }
        self
    }
}
