//! The value that lets the provider recognise a repeat.

use std::fmt;
use std::str::FromStr;
use std::time::Instant;

use http::{Extensions, HeaderValue};

/// The value that lets the provider recognise a repeat of a call.
///
/// In a request's extensions it says: the provider honours this key, wherever
/// it stands (a header, a field of the body), so the call may be repeated with
/// the same bytes and the same key even where the outcome is unknown. In a
/// response's extensions, and on an error, it lets the caller reconcile.
///
/// A key is 1 to 255 visible ASCII characters. 255 is Stripe's limit, the
/// strictest that is documented among the providers that Tollway knows. A
/// clone shares the bytes.
///
/// `Debug` shows only the first characters, since a key in a log would let its
/// reader replay or block a payment; [`as_str`](Self::as_str) has it whole.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct IdempotencyKey {
    value: HeaderValue,
    valid_until: Option<Instant>,
    refuses_repeats: bool,
}

impl IdempotencyKey {
    /// The longest key that is accepted, in characters.
    pub const MAX_LEN: usize = 255;

    /// The key with this `value`.
    ///
    /// # Errors
    ///
    /// Where the value is empty, longer than [`MAX_LEN`](Self::MAX_LEN), or has
    /// anything in it but visible ASCII (`!` to `~`).
    #[inline]
    pub fn new(value: HeaderValue) -> Result<Self, InvalidKey> {
        let bytes = value.as_bytes();
        if bytes.is_empty() {
            return Err(InvalidKey::Empty);
        }
        if bytes.len() > Self::MAX_LEN {
            return Err(InvalidKey::TooLong(bytes.len()));
        }
        // Without an early exit the compiler looks at many bytes at once.
        let graphic = bytes
            .iter()
            .fold(true, |all, byte| all & byte.is_ascii_graphic());
        if !graphic {
            return Err(not_graphic(bytes));
        }
        Ok(Self {
            value,
            valid_until: None,
            refuses_repeats: false,
        })
    }

    /// The same key, known to be forgotten by the provider at `instant`.
    ///
    /// A repeat after that could take effect a second time, so the retry
    /// refuses it.
    #[must_use]
    pub fn valid_until(mut self, instant: impl Into<Instant>) -> Self {
        self.valid_until = Some(instant.into());
        self
    }

    /// When the provider forgets it, if that is known.
    #[must_use]
    pub fn forgotten_at(&self) -> Option<Instant> {
        self.valid_until
    }

    /// The same key, at a provider that refuses a repeat (*done before*) in place of
    /// answering it with the first one's result.
    ///
    /// It keeps no rejection under the key then, so a rejection says nothing of
    /// another request with the key that may be on its way still.
    #[must_use]
    pub fn refusing_repeats(mut self) -> Self {
        self.refuses_repeats = true;
        self
    }

    /// Whether the provider refuses a repeat, rather than answer it anew.
    #[must_use]
    pub fn refuses_repeats(&self) -> bool {
        self.refuses_repeats
    }

    /// The key that `extensions` carry, if any.
    #[must_use]
    #[inline]
    pub fn of(extensions: &Extensions) -> Option<&Self> {
        extensions.get()
    }

    /// The key's text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        // Visible ASCII by construction; the empty text can't be reached.
        self.value.to_str().unwrap_or_default()
    }

    /// The key as a header's value. It shares the bytes.
    #[must_use]
    pub fn header_value(&self) -> &HeaderValue {
        &self.value
    }

    /// Whether the provider still knows the key at `now`. True where nothing
    /// is known of its life.
    #[must_use]
    pub fn is_valid(&self, now: impl Into<Instant>) -> bool {
        self.valid_until.is_none_or(|until| now.into() < until)
    }
}

/// Of a text with such a character in it.
fn not_graphic(text: &[u8]) -> InvalidKey {
    let bad = text.iter().position(|byte| !byte.is_ascii_graphic());
    InvalidKey::Character {
        at: bad.unwrap_or_default(),
    }
}

impl FromStr for IdempotencyKey {
    type Err = InvalidKey;

    fn from_str(text: &str) -> Result<Self, InvalidKey> {
        if text.len() > Self::MAX_LEN {
            return Err(InvalidKey::TooLong(text.len()));
        }
        match HeaderValue::from_str(text) {
            Ok(value) => Self::new(value),
            Err(_) => Err(not_graphic(text.as_bytes())),
        }
    }
}

impl TryFrom<HeaderValue> for IdempotencyKey {
    type Error = InvalidKey;

    fn try_from(value: HeaderValue) -> Result<Self, InvalidKey> {
        Self::new(value)
    }
}

impl fmt::Debug for IdempotencyKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const SHOWN: usize = 4;
        let text = self.as_str();
        let start = if text.len() > 4 * SHOWN {
            &text[..SHOWN]
        } else {
            ""
        };
        write!(f, "IdempotencyKey({start}…, {} characters)", text.len())
    }
}

/// Why a text can't be an [`IdempotencyKey`]. It never holds the text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum InvalidKey {
    /// There is nothing in it.
    Empty,
    /// It has this many characters.
    TooLong(usize),
    /// The character at this byte isn't visible ASCII.
    Character {
        /// The byte's index, from zero.
        at: usize,
    },
}

impl fmt::Display for InvalidKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("not an idempotency key: ")?;
        match self {
            Self::Empty => f.write_str("it is empty"),
            Self::TooLong(len) => write!(
                f,
                "it has {len} characters, at most {} are allowed",
                IdempotencyKey::MAX_LEN
            ),
            Self::Character { at } => {
                write!(f, "the character at byte {at} is not visible ASCII")
            }
        }
    }
}

impl std::error::Error for InvalidKey {}
