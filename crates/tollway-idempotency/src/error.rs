//! Why a call with a key failed, and the key.

use std::error::Error;
use std::fmt;

use http_body_util::LengthLimitError;
use tollway_core::{BoxError, Fault, IdempotencyKey, InvalidKey, Judgement, Verdict};

use crate::dialect::{Dialect, Misfit};
use crate::guard::Refusal;
use crate::json::Unreadable;

/// Why a call that has a key, or ought to have one, failed.
///
/// Either the call was refused before it left, or the inner service failed, and
/// this error adds the key to that one's, which stands unchanged in the
/// `source()` chain, its verdict included.
#[derive(Debug)]
pub struct KeyError {
    link: Box<Link>,
}

/// The link below the `KeyError`, which holds everything.
///
/// Wrappers such as `io::Error`, `Box<E>` and `Arc<E>` hand on the `source()`
/// of what they wrap and hide the error itself. Then this is what is left.
#[derive(Debug)]
struct Link {
    key: Option<IdempotencyKey>,
    why: Why,
    source: BoxError,
}

/// The link that says why a call's outcome is unknown although its failure is
/// not.
#[derive(Debug)]
struct Doubt {
    source: BoxError,
}

/// Why a call failed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Why {
    Inner,
    Used(Refusal),
    Given(Misfit),
    Repeated,
    Contradiction,
    Generated(Misfit),
    Field(Box<str>, Field),
    /// The body is longer than is read.
    TooLong,
    /// The body failed.
    Broken,
}

impl Why {
    /// The stable name, for telemetry.
    const fn as_str(&self) -> &'static str {
        match self {
            Self::Inner => "inner",
            Self::Used(Refusal::Reused) => "reused",
            Self::Used(Refusal::Expired) => "expired",
            Self::Given(_) => "malformed",
            Self::Repeated => "repeated",
            Self::Contradiction => "contradiction",
            Self::Generated(_) => "generator",
            Self::Field(..) => "body_field",
            Self::TooLong => "body_too_long",
            Self::Broken => "body_failed",
        }
    }
}

/// What is wrong with the field of a body.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Field {
    Missing,
    Unreadable(Unreadable),
    Misfit(Misfit),
    /// It is missing, and this header vouches for the body as it is.
    Sealed(&'static str),
}

impl KeyError {
    /// The inner service failed.
    pub(crate) fn inner(key: Option<IdempotencyKey>, source: BoxError) -> Self {
        Self::new(Why::Inner, key, source)
    }

    /// The inner service failed, and another call with the key may have had an
    /// effect.
    pub(crate) fn in_doubt(key: Option<IdempotencyKey>, source: BoxError) -> Self {
        let phase = Fault::find(&*source).and_then(Fault::phase);
        let judgement = Judgement::of_error(&*source).in_doubt();
        let mut fault = Fault::new(judgement.verdict).caused_by(Doubt { source });
        if let Some(phase) = phase {
            fault = fault.in_phase(phase);
        }
        if let Some(advice) = judgement.advice {
            fault = fault.advising(advice);
        }
        Self::inner(key, fault.into())
    }

    /// The call is refused.
    pub(crate) fn refused(why: Why, key: Option<IdempotencyKey>) -> Self {
        let verdict = match why {
            // An earlier call with this very payload may have been executed.
            Why::Used(Refusal::Expired) => Verdict::Unknown,
            _ => Verdict::Rejected,
        };
        Self::told(why, key, Fault::new(verdict).into())
    }

    /// The body couldn't be read.
    pub(crate) fn body(key: Option<IdempotencyKey>, source: BoxError) -> Self {
        let why = if source.is::<LengthLimitError>() {
            Why::TooLong
        } else {
            Why::Broken
        };
        let fault = Fault::new(Verdict::Rejected).caused_by(source);
        Self::told(why, key, fault.into())
    }

    /// A refusal, of which whoever listens is told.
    fn told(why: Why, key: Option<IdempotencyKey>, source: BoxError) -> Self {
        tracing::debug!(
            target: "tollway::idempotency",
            { tollway.idempotency.reason = why.as_str() },
            "refused"
        );
        Self::new(why, key, source)
    }

    fn new(why: Why, key: Option<IdempotencyKey>, source: BoxError) -> Self {
        Self {
            link: Box::new(Link { key, why, source }),
        }
    }

    /// The call's key, if it had one by then.
    #[must_use]
    pub fn idempotency_key(&self) -> Option<&IdempotencyKey> {
        self.link.key.as_ref()
    }

    /// Whether the call was refused here, before anything of it left.
    #[must_use]
    pub fn is_refused(&self) -> bool {
        self.link.why != Why::Inner
    }

    /// Whether it was refused because its key already stands for another
    /// payload.
    #[must_use]
    pub fn is_reused(&self) -> bool {
        self.link.why == Why::Used(Refusal::Reused)
    }

    /// Whether it was refused because it repeats an earlier call whose key the
    /// provider may have forgotten, so that it could take effect a second time.
    #[must_use]
    pub fn is_expired(&self) -> bool {
        self.link.why == Why::Used(Refusal::Expired)
    }
}

impl fmt::Display for KeyError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.is_refused() {
            return self.link.why.fmt(f);
        }
        // Often the outermost error of all, and the only one that is logged.
        f.write_str(match Verdict::of_error(&*self.link.source) {
            Verdict::NotExecuted { .. } => "the call had no effect",
            Verdict::Unknown => "the call's outcome is unknown",
            Verdict::Rejected => "the call was refused",
            Verdict::Done => "the call took effect, and its answer failed",
        })
    }
}

impl Error for KeyError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        Some(&*self.link)
    }
}

impl fmt::Display for Link {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.key {
            // `Debug` of a key shows only its start.
            Some(key) => write!(f, "with {key:?}"),
            None => f.write_str("without an idempotency key"),
        }
    }
}

impl Error for Link {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        Some(&*self.source)
    }
}

impl fmt::Display for Doubt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("another call with its key may have had an effect, whatever came of this one")
    }
}

impl Error for Doubt {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        Some(&*self.source)
    }
}

impl fmt::Display for Why {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Inner => f.write_str("the call failed"),
            Self::Used(Refusal::Reused) => f.write_str(
                "not sent: the idempotency key already stands for another payload; \
                 repeat a call byte for byte, and give another one a key of its own",
            ),
            Self::Used(Refusal::Expired) => f.write_str(
                "not sent: the idempotency key has outlived the time that the provider \
                 remembers it, so a repeat could take effect twice; look the first call up",
            ),
            Self::Given(misfit) => write!(f, "not sent: the idempotency key {misfit}"),
            Self::Repeated => {
                f.write_str("not sent: the idempotency key's header stands there more than once")
            }
            Self::Contradiction => f.write_str(
                "not sent: the request carries an idempotency key and its extensions \
                 another; give it one",
            ),
            Self::Generated(misfit) => {
                write!(f, "not sent: the generated idempotency key {misfit}")
            }
            Self::Field(name, field) => {
                write!(f, "not sent: the body's field `{name}` ")?;
                match field {
                    Field::Missing => f.write_str(
                        "is the idempotency key, and is missing; put a value there \
                         that no other call has",
                    ),
                    Field::Unreadable(Unreadable::NotAnObject) => {
                        f.write_str("can't be found, because the body is not a JSON object")
                    }
                    Field::Unreadable(Unreadable::Twice) => f.write_str("stands there twice"),
                    Field::Unreadable(Unreadable::NotText) => {
                        f.write_str("is neither a string nor a whole number of 64 bits")
                    }
                    Field::Misfit(misfit) => misfit.fmt(f),
                    Field::Sealed(header) => write!(
                        f,
                        "is the idempotency key, and can't be put in, because the \
                         request's `{header}` vouches for the body as it is; put the \
                         field in before that is made"
                    ),
                }
            }
            Self::TooLong => write!(
                f,
                "not sent: the body has more than the {} bytes that are read for its \
                 idempotency key",
                Dialect::MAX_BODY
            ),
            Self::Broken => f.write_str("not sent: the body failed while it was read"),
        }
    }
}

impl fmt::Display for Misfit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Invalid(InvalidKey::Empty) => f.write_str("is empty"),
            Self::Invalid(invalid) => write!(f, "is {invalid}"),
            Self::TooLong { len, max } => write!(
                f,
                "has {len} characters, and the provider takes {max} at the most"
            ),
            Self::NotQuoted => {
                f.write_str("is not a structured field's string, that is, in double quotes")
            }
        }
    }
}

/// The key of the call that failed with `error`, with which its fate can be
/// looked up, or the call repeated.
///
/// It is found however deep it stands, behind whatever wraps it, so long as
/// each wrapper tells its `source()`. Chains are followed for 32 links.
#[must_use]
pub fn key_of<'a>(error: &'a (dyn Error + 'static)) -> Option<&'a IdempotencyKey> {
    let mut link = error;
    for _ in 0..32 {
        if let Some(error) = link.downcast_ref::<KeyError>() {
            return error.idempotency_key();
        }
        if let Some(link) = link.downcast_ref::<Link>() {
            return link.key.as_ref();
        }
        link = link.source()?;
    }
    None
}
