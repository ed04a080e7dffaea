//! A layer that gives each HTTP call one idempotency key for all its attempts.

mod body;
mod dialect;
mod error;
mod future;
mod guard;
mod json;
mod keys;
mod layer;
mod mint;
mod service;

pub use body::KeyBody;
pub use dialect::Dialect;
pub use error::{KeyError, key_of};
pub use future::IdempotencyKeyFuture;
pub use layer::IdempotencyKeyLayer;
pub use mint::{KeyGenerator, UuidV7, key_from_reference};
pub use service::IdempotencyKeyService;
