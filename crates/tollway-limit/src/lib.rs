//! A tower layer that keeps a client inside its provider's rate limits, exactly.

mod builder;
mod call;
mod error;
mod feedback;
mod fields;
mod gauge;
mod key;
mod keys;
mod lanes;
mod limits;
mod pace;
mod permit;
mod quota;
mod routes;
mod snapshot;
mod state;
mod sync;
mod time;
mod window;

#[cfg(all(test, not(loom)))]
mod model;

#[cfg(feature = "tokio")]
mod acquire;
#[cfg(feature = "tokio")]
mod future;
#[cfg(feature = "tokio")]
mod layer;
#[cfg(feature = "tokio")]
mod service;
#[cfg(feature = "tokio")]
mod timer;

pub use builder::LimitsBuilder;
pub use call::Call;
pub use error::{InvalidLimits, RateLimitError};
pub use key::Key;
pub use limits::Limits;
pub use permit::Permit;
pub use quota::{CountFrom, Quota, Shape};
pub use snapshot::{QuotaState, Snapshot};

#[cfg(feature = "tokio")]
pub use acquire::Acquire;
#[cfg(feature = "tokio")]
pub use future::ResponseFuture;
#[cfg(feature = "tokio")]
pub use layer::RateLimitLayer;
#[cfg(feature = "tokio")]
pub use service::RateLimitService;
