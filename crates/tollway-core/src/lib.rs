//! The words that Tollway's layers share.

mod attempt;
mod deadline;
mod endpoint;
mod endpoints;
mod fault;
mod key;
mod priority;
mod verdict;

pub use attempt::Attempt;
pub use deadline::Deadline;
pub use endpoint::Endpoint;
pub use endpoints::{EndpointError, Endpoints, Found};
pub use fault::{BoxError, Fault, Phase};
pub use key::{IdempotencyKey, InvalidKey};
pub use priority::Priority;
pub use verdict::{RetryAdvice, Scope, Verdict};
