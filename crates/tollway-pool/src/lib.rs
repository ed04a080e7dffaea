//! A keep-alive connection pool for HTTP/1.1 and HTTP/2 as a tower service.

mod arena;
mod body;
mod builder;
mod conn;
pub mod connect;
mod dial;
mod error;
mod future;
mod host;
mod hosts;
mod info;
mod key;
mod layer;
mod queue;
mod reaper;
mod sent;
mod service;
mod state;
mod stats;
mod wire;

pub use body::PoolBody;
pub use builder::{ConfigError, PoolBuilder, Protocol};
pub use error::PoolError;
pub use future::ResponseFuture;
pub use info::{ConnectionInfo, TlsVersion};
pub use layer::PoolLayer;
pub use service::Pool;
pub use stats::{CloseReason, HandshakeTimes, PoolStats, Stats};
