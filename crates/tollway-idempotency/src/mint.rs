//! Where keys come from.

use std::cell::{Cell, RefCell};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use bytes::{Bytes, BytesMut};
use http::HeaderValue;
use rand::Rng;
use tollway_core::{IdempotencyKey, InvalidKey, recent};
use uuid::Uuid;

/// Makes the key of a call whose caller gave none.
///
/// Two calls must never get the same key: the provider would answer the second
/// with the first one's result. Any closure that returns a key is a generator,
/// which is how a test makes keys predictable.
pub trait KeyGenerator {
    /// A key that was never returned before.
    ///
    /// # Errors
    ///
    /// Where the text that was made can't be a key. The call is then refused
    /// before it leaves.
    fn generate(&self) -> Result<IdempotencyKey, InvalidKey>;

    /// Of a generator whose keys are UUIDs, the next one, made `now`: there is
    /// nothing to check in such a key.
    #[doc(hidden)]
    #[inline]
    fn uuid(&self, now: Instant) -> Option<u128> {
        let _ = now;
        None
    }
}

impl<F> KeyGenerator for F
where
    F: Fn() -> Result<IdempotencyKey, InvalidKey>,
{
    fn generate(&self) -> Result<IdempotencyKey, InvalidKey> {
        self()
    }
}

/// Makes UUIDs of version 7 (RFC 9562): the time in milliseconds, then 74
/// random bits from a cryptographic generator that the operating system seeds.
///
/// They sort by the time of their making, which helps a provider's index and a
/// reader of logs, and can't be guessed.
#[derive(Clone, Copy, Debug, Default)]
pub struct UuidV7;

impl KeyGenerator for UuidV7 {
    fn generate(&self) -> Result<IdempotencyKey, InvalidKey> {
        key_of(Uuid::from_u128(v7(recent_now())))
    }

    #[inline]
    fn uuid(&self, now: Instant) -> Option<u128> {
        Some(v7(now))
    }
}

/// RFC 9562, section 5.7: 48 bits of time and 74 of chance, between them the
/// version and the variant.
#[inline]
fn v7(now: Instant) -> u128 {
    let mut chance = rand::rng();
    let (a, b) = (chance.next_u32(), chance.next_u64());
    let high = wall_millis(now) << 16 | 7 << 12 | u64::from(a & 0xfff);
    let low = 0b10 << 62 | b >> 2;
    u128::from(high) << 64 | u128::from(low)
}

/// The time of the call under way, which the layer above has mostly read.
#[inline]
pub(crate) fn recent_now() -> Instant {
    recent(|| tokio::time::Instant::now().into_std())
}

/// The wall clock in milliseconds since 1970, before which it counts as 1970.
/// It is part of a text and decides nothing.
///
/// It is read once in a while, and between two readings told from tokio's clock,
/// on which it is `now`.
fn wall_millis(now: Instant) -> u64 {
    const FRESH: Duration = Duration::from_secs(1);
    thread_local! {
        /// Both clocks, at one time.
        static CLOCKS: Cell<Option<(Instant, u64)>> = const { Cell::new(None) };
    }
    if let Some((then, millis)) = CLOCKS.get()
        && let Some(since) = now.checked_duration_since(then)
        && since < FRESH
    {
        return millis + u64::from(since.subsec_millis());
    }
    let wall = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    let millis = wall.as_secs() * 1000 + u64::from(wall.subsec_millis());
    CLOCKS.set(Some((now, millis)));
    millis
}

/// The key that stands for a business reference: an order, a payout, a line of
/// a file.
///
/// The same two texts give the same key for ever, in every process and every
/// version of this crate, so a program that crashed between sending and writing
/// down that it sent repeats its call under the key that the provider already
/// knows. Put it into the request's extensions:
///
/// ```
/// use tollway_idempotency::key_from_reference;
///
/// let mut request = http::Request::post("/v1/payouts").body(())?;
/// request
///     .extensions_mut()
///     .insert(key_from_reference("payout", "order-4711")?);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
///
/// `namespace` names the operation and `reference` the thing, so that the
/// capture and the refund of one order get two keys. The key is a UUID of
/// version 5, a hash: it doesn't give the reference away to a reader who can't
/// guess it.
///
/// A provider forgets a key after its life (24 h at Stripe). A process that was
/// down for longer must look the reference up before it repeats the call.
///
/// # Errors
///
/// [`InvalidKey::Empty`] where `reference` is empty: every call without a
/// reference would get the same key.
pub fn key_from_reference(namespace: &str, reference: &str) -> Result<IdempotencyKey, InvalidKey> {
    // Drawn at random, once and for all.
    const TOLLWAY: Uuid = Uuid::from_u128(0x6f1c_9b0e_5d3a_4e47_9c1b_2f7f_5a8d_3e61);
    if reference.is_empty() {
        return Err(InvalidKey::Empty);
    }
    // Hashed one in the other, no two pairs run together.
    let namespace = Uuid::new_v5(&TOLLWAY, namespace.as_bytes());
    key_of(Uuid::new_v5(&namespace, reference.as_bytes()))
}

/// The key whose text is this UUID's.
#[inline]
pub(crate) fn key_of(uuid: Uuid) -> Result<IdempotencyKey, InvalidKey> {
    IdempotencyKey::new(secret(cut(&text_of(uuid)))?)
}

/// The crate of UUIDs writes the same, but one digit after the other.
#[inline]
fn text_of(uuid: Uuid) -> [u8; UUID_LEN] {
    let digits = digits(uuid.as_bytes());
    let digits = digits.as_flattened();
    let mut text = [b'-'; UUID_LEN];
    text[..8].copy_from_slice(&digits[..8]);
    text[9..13].copy_from_slice(&digits[8..12]);
    text[14..18].copy_from_slice(&digits[12..16]);
    text[19..23].copy_from_slice(&digits[16..20]);
    text[24..].copy_from_slice(&digits[20..]);
    text
}

/// Two hexadecimal digits for each byte.
///
/// Without a table or a branch, the compiler works on eight bytes at once, so
/// long as it sees this by itself.
#[inline(never)]
fn digits(bytes: &[u8; 16]) -> [[u8; 2]; 16] {
    const fn digit(value: u8) -> u8 {
        value + if value < 10 { b'0' } else { b'a' - 10 }
    }
    bytes.map(|byte| [digit(byte >> 4), digit(byte & 15)])
}

/// The header value of `text`, marked sensitive: it stays out of `Debug` and
/// out of HTTP/2's compression table, where a text that never comes twice
/// would only push out others.
#[inline]
pub(crate) fn secret(text: Bytes) -> Result<HeaderValue, InvalidKey> {
    let mut value =
        HeaderValue::from_maybe_shared(text).map_err(|_| InvalidKey::Character { at: 0 })?;
    value.set_sensitive(true);
    Ok(value)
}

/// How long the text of a UUID is.
pub(crate) const UUID_LEN: usize = 36;
/// How many texts are allocated at once.
const CHUNK: usize = 56;

thread_local! {
    /// What is left of this thread's chunk.
    static REST: RefCell<BytesMut> = RefCell::new(BytesMut::new());
}

/// A copy of `text`, cut from a chunk that many share, so that a key costs a
/// reference count and hardly ever an allocation.
///
/// The price: a key that is kept keeps its chunk, 2 KiB at the most. A chunk
/// none of whose keys is alive any more is filled again.
#[inline]
fn cut(text: &[u8; UUID_LEN]) -> Bytes {
    REST.with_borrow_mut(|rest| {
        if rest.is_empty() {
            refill(rest);
        }
        let mut cut = rest.split_to(UUID_LEN);
        cut.copy_from_slice(text);
        cut.freeze()
    })
}

#[cold]
fn refill(rest: &mut BytesMut) {
    rest.reserve(CHUNK * UUID_LEN);
    rest.resize(CHUNK * UUID_LEN, 0);
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use uuid::{Variant, Version};

    use super::*;

    proptest! {
        #[test]
        fn the_text_of_a_uuid_is_the_usual_one(uuid: u128) {
            let uuid = Uuid::from_u128(uuid);
            let usual = uuid.to_string();
            prop_assert_eq!(&text_of(uuid), usual.as_bytes());
            let key = key_of(uuid);
            prop_assert_eq!(key.as_ref().map(IdempotencyKey::as_str), Ok(usual.as_str()));
        }
    }

    #[tokio::test(start_paused = true)]
    async fn the_time_in_a_uuid_goes_on_with_tokios_clock_between_two_readings() {
        let start = wall_millis(recent_now());
        let mut passed = 0;
        for more in [1, 499, 499] {
            tokio::time::advance(Duration::from_millis(more)).await;
            passed += more;
            let uuid = Uuid::from_u128(v7(recent_now()));
            assert_eq!(uuid.get_version(), Some(Version::SortRand));
            assert_eq!(uuid.get_variant(), Variant::RFC4122);
            assert_eq!(uuid.as_u128() >> 80, u128::from(start + passed));
        }
    }
}
