//! How a provider wants its keys.

use std::borrow::Cow;
use std::convert::Infallible;
use std::time::Duration;

use http::header::HeaderName;
use http::{HeaderValue, Method};
use sfv::visitor::Ignored;
use sfv::{BareItemFromInput, Parser};
use tollway_core::{Endpoint, Endpoints, IdempotencyKey, InvalidEndpoint, InvalidKey};

use crate::mint;

/// How a provider wants its keys, as plain data.
///
/// ```
/// use std::time::Duration;
/// use http::{HeaderName, Method};
/// use tollway_core::Endpoint;
/// use tollway_idempotency::Dialect;
///
/// // What most providers do, and the default: `Idempotency-Key: <key>` on
/// // every POST, remembered for 24 h.
/// let stripe = Dialect::default();
///
/// // Version 2 of Stripe's API takes keys on DELETE as well.
/// let both = Dialect::default().endpoints([
///     Endpoint::post("/{*path}"),
///     Endpoint::delete("/v2/{*path}"),
/// ])?;
///
/// // The IETF's draft: a structured field, so the key stands in quotes.
/// let ietf = Dialect::quoted_header(HeaderName::from_static("idempotency-key"))
///     .methods([Method::POST, Method::PATCH])
///     .life(Duration::from_secs(3600));
///
/// // Savvy: no header, but a field of the JSON body.
/// let savvy = Dialect::body_field("RequestId");
/// # Ok::<(), tollway_core::InvalidEndpoint>(())
/// ```
#[derive(Clone, Debug)]
pub struct Dialect {
    pub(crate) place: Place,
    calls: Calls,
    max_len: usize,
    pub(crate) life: Duration,
    pub(crate) refuses_repeats: bool,
}

/// Where the layers below look for a key, unless told of one.
const DEFAULT_HEADER: &str = "idempotency-key";

/// Where the key stands.
#[derive(Clone, Debug)]
pub(crate) enum Place {
    Header {
        name: HeaderName,
        quoted: bool,
        /// Whether the layers below see by the header alone that there is a key,
        /// and which: they look at `Idempotency-Key`, and don't unquote.
        says_all: bool,
    },
    Field {
        name: Cow<'static, str>,
        /// Whether a body without the field gets it.
        insert: bool,
    },
}

/// Which calls have a key.
#[derive(Clone, Debug)]
enum Calls {
    Methods(Vec<Method>),
    Endpoints(Endpoints<()>),
}

impl Dialect {
    /// How long a provider remembers a key unless said otherwise: 24 hours,
    /// which is what Stripe promises at least.
    pub const DEFAULT_LIFE: Duration = Duration::from_secs(24 * 60 * 60);

    /// The longest body that is read to find or insert the key, or to tell two
    /// payloads apart: 64 KiB, many times a payment.
    pub const MAX_BODY: usize = 64 * 1024;

    /// The key stands in the header `name` as it is.
    #[must_use]
    pub fn header(name: HeaderName) -> Self {
        Self::at(Place::Header {
            says_all: name == DEFAULT_HEADER,
            name,
            quoted: false,
        })
    }

    /// The key stands in the header `name` as a structured field's string, in
    /// double quotes, as draft-ietf-httpapi-idempotency-key-header has it.
    #[must_use]
    pub fn quoted_header(name: HeaderName) -> Self {
        Self::at(Place::Header {
            name,
            quoted: true,
            says_all: false,
        })
    }

    /// The key stands in the field `name` of the JSON object that is the body.
    ///
    /// The caller puts it there; a call without it is refused, and no payload
    /// is ever changed. The body is read to check it, up to
    /// [`MAX_BODY`](Self::MAX_BODY), and handed on byte for byte. The field
    /// holds a string or a whole number of 64 bits, once.
    #[must_use]
    pub fn body_field(name: impl Into<Cow<'static, str>>) -> Self {
        Self::at(Place::Field {
            name: name.into(),
            insert: false,
        })
    }

    /// The same as [`body_field`](Self::body_field), and where the field is
    /// missing it is put in, before all others. The rest of the body stays as
    /// it is, byte for byte, and a `Content-Length` header is corrected.
    ///
    /// Not for payloads that the caller signs or sums up: the signature would no
    /// longer match. A call is refused where it would have to change a body that
    /// a header of the standards vouches for, or a trailer (`Content-Digest`,
    /// `Repr-Digest`, `Digest`, `Content-MD5`, `Signature`); others aren't known
    /// here.
    #[must_use]
    pub fn inserted_body_field(name: impl Into<Cow<'static, str>>) -> Self {
        Self::at(Place::Field {
            name: name.into(),
            insert: true,
        })
    }

    fn at(place: Place) -> Self {
        Self {
            place,
            calls: Calls::Methods(vec![Method::POST]),
            max_len: IdempotencyKey::MAX_LEN,
            life: Self::DEFAULT_LIFE,
            refuses_repeats: false,
        }
    }

    /// Calls with these methods have a key, in place of `POST` alone.
    #[must_use]
    pub fn methods(mut self, methods: impl IntoIterator<Item = Method>) -> Self {
        self.calls = Calls::Methods(methods.into_iter().collect());
        self
    }

    /// Calls of these endpoints have a key, whatever was said of methods.
    ///
    /// # Errors
    ///
    /// Where a template is malformed, or overlaps with another.
    pub fn endpoints(
        mut self,
        endpoints: impl IntoIterator<Item = Endpoint>,
    ) -> Result<Self, InvalidEndpoint> {
        let endpoints = endpoints.into_iter().map(|endpoint| (endpoint, ()));
        self.calls = Calls::Endpoints(Endpoints::new(endpoints)?);
        Ok(self)
    }

    /// The longest key that the provider accepts, in characters: 255 unless
    /// said, and never more. A call with a longer one is refused.
    ///
    /// The UUIDs that are made by default have 36. Where the provider takes
    /// fewer, each call brings its own key, or a [`KeyGenerator`](crate::KeyGenerator)
    /// makes shorter ones.
    #[must_use]
    pub fn max_len(mut self, characters: usize) -> Self {
        self.max_len = characters.min(IdempotencyKey::MAX_LEN);
        self
    }

    /// How long the provider remembers a key after its first use:
    /// [`DEFAULT_LIFE`](Self::DEFAULT_LIFE) unless said.
    ///
    /// No call should be given as long: of two that have one key at the same
    /// time, the first could still wait to be sent when the provider has
    /// forgotten the second.
    #[must_use]
    pub fn life(mut self, life: Duration) -> Self {
        self.life = life;
        self
    }

    /// The provider refuses a repeat (*done before*), as where the key is a
    /// reference that has to be unique, in place of answering it with the first
    /// one's result, as providers with idempotency keys do.
    ///
    /// It keeps no decline then. So a call that is declined after an attempt of
    /// unknown outcome is of unknown outcome too: that one may be late, and be
    /// executed yet.
    #[must_use]
    pub fn refuses_repeats(mut self) -> Self {
        self.refuses_repeats = true;
        self
    }

    /// The header that the key stands in, if that is its place.
    #[must_use]
    pub const fn header_name(&self) -> Option<&HeaderName> {
        match &self.place {
            Place::Header { name, .. } => Some(name),
            Place::Field { .. } => None,
        }
    }

    /// Whether a call with this method and path has a key.
    #[must_use]
    #[inline]
    pub fn applies_to(&self, method: &Method, path: &str) -> bool {
        match &self.calls {
            Calls::Methods(methods) => methods.contains(method),
            Calls::Endpoints(endpoints) => endpoints.at(method, path).is_some(),
        }
    }

    /// Whether the header says all that there is to say of a key.
    pub(crate) const fn says_all(&self) -> bool {
        matches!(self.place, Place::Header { says_all: true, .. }) && !self.refuses_repeats
    }

    /// The header that takes a UUID as it is, where one that was just made needs
    /// nothing more.
    #[inline]
    pub(crate) fn header_of_uuids(&self) -> Option<&HeaderName> {
        match &self.place {
            Place::Header { name, .. }
                if self.says_all()
                    && self.max_len >= mint::UUID_LEN
                    && self.life >= Self::DEFAULT_LIFE =>
            {
                Some(name)
            }
            _ => None,
        }
    }

    /// Whether the provider accepts a key of this length.
    #[inline]
    pub(crate) fn check(&self, key: &IdempotencyKey) -> Result<(), Misfit> {
        let len = key.header_value().len();
        if len > self.max_len {
            return Err(Misfit::TooLong {
                len,
                max: self.max_len,
            });
        }
        Ok(())
    }
}

impl Default for Dialect {
    /// The header `Idempotency-Key`, as it is, on every `POST`.
    fn default() -> Self {
        Self::header(HeaderName::from_static(DEFAULT_HEADER))
    }
}

/// Why a text can't be the key of a call in this dialect. It never holds the
/// text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Misfit {
    Invalid(InvalidKey),
    TooLong { len: usize, max: usize },
    NotQuoted,
}

impl From<InvalidKey> for Misfit {
    fn from(invalid: InvalidKey) -> Self {
        Self::Invalid(invalid)
    }
}

/// The key that a header's value holds.
pub(crate) fn read(value: &HeaderValue, quoted: bool) -> Result<IdempotencyKey, Misfit> {
    if !quoted {
        return Ok(IdempotencyKey::new(value.clone())?);
    }
    let mut text = None;
    let take = |item: BareItemFromInput<'_>| {
        if let BareItemFromInput::String(string) = item {
            text = Some(string.as_str().to_owned());
        }
        // The draft defines no parameters.
        Ok::<_, Infallible>(Ignored)
    };
    match Parser::new(value.as_bytes()).parse_item_with_visitor(take) {
        Ok(()) => Ok(text.ok_or(Misfit::NotQuoted)?.parse::<IdempotencyKey>()?),
        Err(_) => Err(Misfit::NotQuoted),
    }
}

/// The header's value that holds `key`.
#[inline]
pub(crate) fn write(key: &IdempotencyKey, quoted: bool) -> Result<HeaderValue, Misfit> {
    if !quoted {
        let mut value = key.header_value().clone();
        value.set_sensitive(true);
        return Ok(value);
    }
    // Every character of a key can stand in a structured field's string, two
    // of them behind a backslash (RFC 9651, section 4.1.6).
    let mut text = Vec::with_capacity(key.as_str().len() + 2);
    text.push(b'"');
    for byte in key.as_str().bytes() {
        if matches!(byte, b'"' | b'\\') {
            text.push(b'\\');
        }
        text.push(byte);
    }
    text.push(b'"');
    Ok(mint::secret(text.into())?)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_quoted_key_is_escaped_and_an_escaped_one_is_read() {
        let key: IdempotencyKey = r#"a"b\c"#.parse().expect("a key");
        let value = write(&key, true).expect("a header");
        assert_eq!(value.as_bytes(), br#""a\"b\\c""#);
        assert!(value.is_sensitive());
        assert_eq!(read(&value, true), Ok(key));
    }

    #[test]
    fn only_a_string_counts_as_quoted_and_its_parameters_are_ignored() {
        let read = |text| read(&HeaderValue::from_static(text), true);
        for text in [
            "abc",
            "17",
            "?1",
            ":YWJj:",
            "(\"a\")",
            "\"a",
            "\"a\" \"b\"",
            "'a'",
            "",
        ] {
            assert_eq!(read(text), Err(Misfit::NotQuoted), "{text}");
        }
        let key: IdempotencyKey = "abc".parse().expect("a key");
        for text in ["\"abc\"", "  \"abc\"  ", "\"abc\";v=1"] {
            assert_eq!(read(text), Ok(key.clone()), "{text}");
        }
        assert_eq!(read("\"\""), Err(InvalidKey::Empty.into()));
        let space = InvalidKey::Character { at: 1 };
        assert_eq!(read("\"a b\""), Err(space.into()));
    }

    proptest! {
        #[test]
        fn every_key_survives_the_way_through_the_header(text in "[!-~]{1,255}", quoted: bool) {
            let key: IdempotencyKey = text.parse().expect("a key");
            let value = write(&key, quoted).expect("a header");
            prop_assert_eq!(read(&value, quoted), Ok(key));
        }

        #[test]
        fn whatever_stands_in_the_header_is_a_key_or_refused(
            bytes in prop::collection::vec(any::<u8>(), 0..300),
            quoted: bool,
        ) {
            if let Ok(value) = HeaderValue::from_bytes(&bytes)
                && let Ok(key) = read(&value, quoted)
            {
                prop_assert!(key.as_str().bytes().all(|byte| byte.is_ascii_graphic()));
                prop_assert!((1..=255).contains(&key.as_str().len()));
            }
        }
    }
}
