//! A layer that gives each HTTP call one idempotency key for all its attempts.
//!
//! # The problem
//!
//! A payment whose answer got lost may have been made. To send it again is safe
//! only where the provider can tell that it is the same one, by a key that the
//! first attempt carried already. So the key must be there before anything goes
//! wrong, be the same over every attempt, be another one for every other
//! payment, and still be known when the call has failed and its fate has to be
//! looked up.
//!
//! [`IdempotencyKeyLayer`] sees to that. It stands above the retry: below it,
//! each attempt would get a key of its own, and two attempts could charge twice.
//!
//! # What a request-id layer doesn't do
//!
//! `tower-http` can set a header to a fresh UUID as well. It knows nothing of
//! how providers want the key ([`Dialect`]: quoted, in the body, for some
//! methods or endpoints, at most so long), of a key that comes back with another
//! payload or too late, or of telling the caller the key when the call fails.
//!
//! # Example
//!
//! ```
//! use bytes::Bytes;
//! use http::{Request, Response, StatusCode};
//! use http_body_util::Full;
//! use tollway_core::{BoxError, IdempotencyKey};
//! use tollway_idempotency::{IdempotencyKeyLayer, KeyBody};
//! use tower::{ServiceBuilder, ServiceExt, service_fn};
//!
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<(), BoxError> {
//! let gateway = service_fn(|request: Request<KeyBody<Full<Bytes>>>| async move {
//!     assert!(request.headers().contains_key("idempotency-key"));
//!     let mut response = Response::new(());
//!     *response.status_mut() = StatusCode::BAD_GATEWAY;
//!     Ok::<_, BoxError>(response)
//! });
//! let service = ServiceBuilder::new()
//!     .layer(IdempotencyKeyLayer::new())
//!     // A retry would stand here.
//!     .service(gateway);
//!
//! let request = Request::post("/v1/payouts").body(Full::from("{}"))?;
//! let response = service.oneshot(request).await?;
//!
//! // It may have been made: keep the key, to look it up or to repeat it.
//! let key = IdempotencyKey::of(response.extensions()).unwrap();
//! assert_eq!(key.as_str().len(), 36);
//! # Ok(())
//! # }
//! ```
//!
//! # Which key a call gets
//!
//! 1. The [`IdempotencyKey`](tollway_core::IdempotencyKey) in the request's
//!    extensions: one of the caller's own, or one that
//!    [`key_from_reference`] derived from a business reference, so that a
//!    restarted process repeats it.
//! 2. The one that stands in the header or in the body already.
//! 3. A new one: a UUID of version 7, or what the [`KeyGenerator`] makes.
//!
//! A call with two keys that differ is refused. One whose method or endpoint
//! takes no key, by the [`Dialect`], loses what stands in the extensions: the
//! provider wouldn't see it, and a retry that trusts it could pay twice. What
//! stands in its header goes on, but the extensions say that its life is over.
//!
//! # Where it is seen
//!
//! - Going down: in the header, or in the body. The layers below read it there.
//!   In the request's extensions it stands only where the header doesn't tell
//!   everything: a key in a body, in quotes, or in a header of another name than
//!   `Idempotency-Key`, one that the caller put there, one with less than
//!   [24 hours](Dialect::DEFAULT_LIFE) to live.
//! - Coming up: in the extensions of every response that isn't
//!   [`Done`](tollway_core::Verdict::Done), of all with
//!   [`echo`](IdempotencyKeyLayer::echo); and on every error from
//!   below, where [`key_of`] finds it. A deadline above that drops the call takes
//!   the key with it, unless an attempt's timeout below answers first.
//! - Nowhere else. It is marked sensitive in the header, and shows only its
//!   first four characters in `Debug` and in errors.
//!
//! # Keys that come back
//!
//! A key that the caller gives is remembered with a fingerprint of its payload:
//! method, path with query, body.
//!
//! - With another payload, while it lives, it is refused before it leaves.
//! - With the same payload, after its life, it is refused too, and the outcome
//!   is unknown: the provider may have forgotten it and would execute the call
//!   a second time. With another payload it is a new key by then; what it stood
//!   for before stays refused.
//! - A call that certainly had no effect, or was dropped before it left, frees
//!   its key. One dropped in flight doesn't, nor one whose outcome is unknown.
//! - No call denies what another one with its key has done, or may have done, or
//!   may be doing at that moment. Where it isn't executed itself, or is turned
//!   away by a 401 or a 409, its outcome is unknown all the same: the payment may
//!   have been made. A repeat that is answered says what came of it. So does a
//!   refusal of the request itself
//!   ([400, 402, 422](tollway_core::Verdict::is_about_request)), which speaks for
//!   all that have the key, unless one was done before, or the provider [keeps
//!   only what it has done](Dialect::refuses_repeats). Only one that ends while its own body is still read
//!   says what it says of itself alone.
//!
//! A body that says how long it is, up to [64 KiB](Dialect::MAX_BODY), is read
//! for that before the call. A longer one, or a stream, is never held back: its
//! key stands for the method and the path alone. The memory is
//! [bounded](IdempotencyKeyLayer::remember) and lives in this process; beyond
//! it the provider's own check remains, and the verdict on a repeat is on that
//! call alone: a process that was restarted must not take "not executed" for
//! "not paid". A key made here can't have stood for anything before. It is
//! remembered once its caller is told that the outcome is unknown, since then it
//! may come back.
//!
//! # Telemetry
//!
//! One `tracing` event for each call that is refused, `refused`, at level debug
//! under the target `tollway::idempotency`, with `tollway.idempotency.reason`:
//! `reused`, `expired`, `malformed`, `repeated`, `contradiction`, `generator`,
//! `body_field`, `body_too_long` or `body_failed`. It shows no key.
//!
//! # Cost
//!
//! A call with a new key in a header allocates nothing but a share of a chunk
//! for some fifty keys. A key that is kept keeps its chunk, 2 KiB. A call with a
//! key of its caller's, which is remembered with its payload, or with one in its
//! body allocates twice, and once more where its body isn't all there when it is
//! called.

mod body;
mod dialect;
mod error;
mod future;
mod gather;
mod guard;
mod json;
mod keys;
mod layer;
mod memory;
mod mint;
mod prepare;
mod service;

pub use body::KeyBody;
pub use dialect::Dialect;
pub use error::{KeyError, key_of};
pub use future::IdempotencyKeyFuture;
pub use layer::IdempotencyKeyLayer;
pub use mint::{KeyGenerator, UuidV7, key_from_reference};
pub use service::IdempotencyKeyService;
