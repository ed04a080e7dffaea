//! Where keys come from.

use std::cell::RefCell;
use std::time::{SystemTime, UNIX_EPOCH};

use bytes::{Bytes, BytesMut};
use http::HeaderValue;
use rand::Rng;
use tollway_core::{IdempotencyKey, InvalidKey};
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
        // The wall clock, not tokio's: the time is part of the text and
        // decides nothing. Before 1970 it counts as 1970.
        let now = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .unwrap_or_default();
        let millis = now.as_secs() * 1000 + u64::from(now.subsec_millis());
        let mut random = [0; 10];
        rand::rng().fill_bytes(&mut random);
        key_of_uuid(uuid::Builder::from_unix_timestamp_millis(millis, &random).into_uuid())
    }
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
    key_of_uuid(Uuid::new_v5(&namespace, reference.as_bytes()))
}

fn key_of_uuid(uuid: Uuid) -> Result<IdempotencyKey, InvalidKey> {
    let mut text = Uuid::encode_buffer();
    IdempotencyKey::new(secret(
        uuid.hyphenated().encode_lower(&mut text).as_bytes(),
    )?)
}

/// The header value of `text`, marked sensitive: it stays out of `Debug` and
/// out of HTTP/2's compression table, where a text that never comes twice
/// would only push out others.
pub(crate) fn secret(text: &[u8]) -> Result<HeaderValue, InvalidKey> {
    let mut value =
        HeaderValue::from_maybe_shared(cut(text)).map_err(|_| InvalidKey::Character { at: 0 })?;
    value.set_sensitive(true);
    Ok(value)
}

/// How many bytes of keys are allocated at once: some fifty UUIDs.
const CHUNK: usize = 2048;

thread_local! {
    /// What is left of this thread's chunk.
    static REST: RefCell<BytesMut> = RefCell::new(BytesMut::with_capacity(CHUNK));
}

/// A copy of `text`, cut from a chunk that many share, so that a key costs a
/// reference count and hardly ever an allocation.
///
/// The price: a key that is kept keeps its chunk, 2 KiB at the most. A chunk
/// none of whose keys is alive any more is filled again.
fn cut(text: &[u8]) -> Bytes {
    REST.with_borrow_mut(|rest| {
        rest.reserve(text.len());
        rest.extend_from_slice(text);
        rest.split().freeze()
    })
}
