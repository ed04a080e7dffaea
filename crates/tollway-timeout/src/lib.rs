//! Layers that end an HTTP call in time: one deadline for the whole call, and
//! a time limit on each attempt.

mod attempt;
mod body;
mod error;
mod future;
mod layer;
mod service;
mod timer;

pub use attempt::AttemptTimeout;
pub use body::TimeoutBody;
pub use error::{TimeoutError, is_deadline, is_timeout};
pub use future::TimeoutFuture;
pub use layer::{AttemptTimeoutLayer, DeadlineLayer};
pub use service::{AttemptTimeoutService, DeadlineService};
