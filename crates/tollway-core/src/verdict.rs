//! What an answer, or an error, means.

use std::error::Error;
use std::fmt;
use std::time::{Duration, SystemTime};

use http::{Extensions, StatusCode};

use crate::{Fault, Judgement};

/// What an answer (or an error) means: the one decision everything hangs on.
///
/// `ClassifyLayer` puts it into the response's extensions. On an error it
/// stands as a [`Fault`] in the `source()` chain.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Verdict {
    /// The provider's final answer: success.
    Done,
    /// The provider's final answer: failure. A repeat would only repeat it.
    Rejected,
    /// The attempt certainly had no effect.
    NotExecuted {
        /// How long the provider asks the client to wait, if it says.
        retry_after: Option<Duration>,
        /// Whom the refusal concerns.
        scope: Scope,
    },
    /// The attempt may or may not have had an effect.
    Unknown,
}

/// Whom a refusal concerns: this call alone, or everybody who shares a quota.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Scope {
    /// This call alone. A lock on the object, a connection that failed:
    /// nothing else needs to slow down.
    Call,
    /// A limit was hit, and the provider doesn't say which.
    #[default]
    Unspecified,
    /// The rate limit on all of the account's calls.
    GlobalRate,
    /// The rate limit on calls of this endpoint.
    EndpointRate,
    /// The limit on all of the account's calls in flight.
    GlobalConcurrency,
    /// The limit on this endpoint's calls in flight.
    EndpointConcurrency,
    /// A limit on the one object or resource that the call is about.
    Resource,
}

impl Scope {
    /// The stable name, for telemetry: `endpoint_rate`.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Call => "call",
            Self::Unspecified => "unspecified",
            Self::GlobalRate => "global_rate",
            Self::EndpointRate => "endpoint_rate",
            Self::GlobalConcurrency => "global_concurrency",
            Self::EndpointConcurrency => "endpoint_concurrency",
            Self::Resource => "resource",
        }
    }
}

impl Verdict {
    /// Not executed, for a reason that concerns this call alone, with no delay
    /// asked for: a connect error, a request that was never written.
    pub const NO_EFFECT: Self = Self::NotExecuted {
        retry_after: None,
        scope: Scope::Call,
    };

    /// What a status says when nothing else is known of the provider.
    ///
    /// 2xx is done; 429 and 425 were not executed; 302, 303, 408 and every 5xx
    /// but 501 and 505 leave the outcome unknown; everything else is final, the
    /// other redirects included, since following one is not ours to decide. A 425
    /// says that the server was unwilling to process the request (RFC 8470,
    /// section 5.2), a 408 that it gave up on it (RFC 9110, section 15.5.9). A
    /// 303 says that it was processed, and that what came of it stands elsewhere
    /// (section 15.4.4); many servers send a 302 for that. 600 and above are no
    /// statuses of HTTP, and are taken for a 5xx (section 15). 1xx never gets
    /// here.
    #[must_use]
    pub fn of_status(status: StatusCode) -> Self {
        match status.as_u16() {
            200..=299 => Self::Done,
            429 => Self::NotExecuted {
                retry_after: None,
                scope: Scope::Unspecified,
            },
            425 => Self::NO_EFFECT,
            501 | 505 => Self::Rejected,
            302 | 303 | 408 | 500.. => Self::Unknown,
            _ => Self::Rejected,
        }
    }

    /// The verdict on a response: the one in its extensions, or else what its
    /// head says. Reads the wall clock where the head asks for a delay until a
    /// date; [`Judgement::of_response`] is the same with the clock passed in.
    #[must_use]
    pub fn of_response<B>(response: &http::Response<B>) -> Self {
        match Self::of(response.extensions()) {
            Some(verdict) => verdict,
            // Most answers: no header makes them anything else.
            None if response.status().is_success() => Self::Done,
            None => Judgement::of_response(response, SystemTime::now()).verdict,
        }
    }

    /// The verdict that `extensions` carry, if any.
    #[must_use]
    #[inline]
    pub fn of(extensions: &Extensions) -> Option<Self> {
        extensions.get().copied()
    }

    /// The verdict on an error: that of the outermost [`Fault`] in its
    /// `source()` chain, or else [`Unknown`](Self::Unknown), the only safe
    /// guess.
    #[must_use]
    pub fn of_error(error: &(dyn Error + 'static)) -> Self {
        Fault::find(error).map_or(Self::Unknown, Fault::verdict)
    }

    /// Whether a rejection with this status is about the request itself. Then it
    /// speaks for all who sent that request under one idempotency key: had one of
    /// them been executed, the provider would have answered with that result.
    ///
    /// So are 400, 402, 422, and a refusal in the body of a 2xx. Who isn't let in
    /// (401, 403), comes too early (409), or meets a wrong door (404, 3xx), may
    /// never have got as far as the key.
    #[must_use]
    pub fn is_about_request(status: StatusCode) -> bool {
        status.is_success() || matches!(status.as_u16(), 400 | 402 | 422)
    }

    /// Whether this is the provider's final answer.
    #[must_use]
    pub const fn is_final(self) -> bool {
        matches!(self, Self::Done | Self::Rejected)
    }

    /// The stable name, for telemetry: `done`, `rejected`, `not_executed`,
    /// `unknown`.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Done => "done",
            Self::Rejected => "rejected",
            Self::NotExecuted { .. } => "not_executed",
            Self::Unknown => "unknown",
        }
    }
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Done => "done",
            Self::Rejected => "rejected for good",
            Self::NotExecuted { .. } => "certainly not executed",
            Self::Unknown => "outcome unknown",
        })
    }
}

/// A word about retrying that goes beyond the [`Verdict`], in the response's
/// extensions or on an error's [`Fault`](crate::Fault). Absent means: as the
/// verdict says.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum RetryAdvice {
    /// A retry is no use: the provider says so (`Stripe-Should-Retry: false`), or
    /// it would fail in the same way.
    Never,
    /// One retry, and no more (425 Too Early).
    Once,
    /// A retry is no use: the provider says that this was done before, by a call
    /// with the same idempotency key. Where an earlier attempt of this very call
    /// may have been the one, the call is [`Done`](Verdict::Done). Otherwise it
    /// was another call, maybe of another process, maybe for something else: the
    /// verdict stays [`Unknown`](Verdict::Unknown) until somebody looks it up.
    DoneBefore,
    /// No retry sooner than this, although the outcome is unknown (503 with
    /// `Retry-After`). A delay after a refusal stands in the verdict itself.
    After(Duration),
}

impl RetryAdvice {
    /// The advice that `extensions` carry, if any.
    #[must_use]
    pub fn of(extensions: &Extensions) -> Option<Self> {
        extensions.get().copied()
    }
}
