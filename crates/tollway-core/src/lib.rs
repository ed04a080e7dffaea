//! The words that Tollway's layers share.

mod attempt;
mod classify;
mod deadline;
mod endpoint;
mod endpoints;
mod fault;
mod key;
mod priority;
mod retry_after;
mod verdict;

pub use attempt::Attempt;
pub use classify::{
    Answer, BodyRule, Classify, ClassifyBody, ClassifyFuture, ClassifyLayer, ClassifyService,
    Judgement, Meaning, Rules, Test,
};
pub use deadline::Deadline;
pub use endpoint::Endpoint;
pub use endpoints::{EndpointError, Endpoints, Found};
pub use fault::{BoxError, Fault, Phase};
pub use key::{IdempotencyKey, InvalidKey};
pub use priority::Priority;
pub use retry_after::retry_after;
pub use verdict::{RetryAdvice, Scope, Verdict};
