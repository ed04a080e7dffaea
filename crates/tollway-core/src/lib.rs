//! The vocabulary that Tollway's layers share, and the layer that reads an
//! answer into a verdict.
//!
//! A service that calls somebody else's HTTP API must know, after each attempt,
//! one thing above all: did it take effect? A status code alone doesn't say. A
//! 429 was certainly not executed, a 504 perhaps; one provider answers 200 and
//! refuses in the body; another says in a header whether a retry is any use.
//! [`ClassifyLayer`] reads the answer once, by the provider's [`Rules`], and
//! puts the [`Verdict`] into the response's extensions, where every layer above
//! finds it with [`Verdict::of_response`]. tower has no such thing: there each
//! retry policy, each limiter and each caller reads the answer again, and each a
//! little differently.
//!
//! Tollway's layers never import each other. They cooperate through the small
//! types of this crate:
//!
//! | type | travels | says |
//! | --- | --- | --- |
//! | [`Endpoint`] | down | which operation this is |
//! | [`Deadline`] | down, or held by a layer above | when the caller stops caring |
//! | [`Priority`] | down | who goes first |
//! | [`IdempotencyKey`] | down, and up again | by what the provider recognises a repeat |
//! | [`Attempt`] | down | which try of the call this is |
//! | [`Verdict`], [`RetryAdvice`] | up | what the answer means |
//! | [`Fault`] | up, in an error's `source()` chain | what the error means |
//!
//! All of them are optional: a layer that doesn't find one has a documented
//! default.
//!
//! # Example
//!
//! ```
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<(), tollway_core::BoxError> {
//! use http::{Request, Response, StatusCode};
//! use http_body_util::Empty;
//! use bytes::Bytes;
//! use tollway_core::{ClassifyLayer, Rules, Verdict};
//! use tower::{ServiceBuilder, ServiceExt, service_fn};
//!
//! // For this provider a 409 says that the same key is in use right now.
//! let rules = Rules::new().status(StatusCode::CONFLICT, Verdict::Unknown);
//! let service = ServiceBuilder::new()
//!     .layer(ClassifyLayer::new(rules))
//!     .service(service_fn(|_: Request<()>| async {
//!         Response::builder().status(409).body(Empty::<Bytes>::new())
//!     }));
//!
//! let response = service.oneshot(Request::new(())).await?;
//! assert_eq!(Verdict::of(response.extensions()), Some(Verdict::Unknown));
//! # Ok(())
//! # }
//! ```
//!
//! # Bounds
//!
//! What comes from the network never panics and never makes this crate allocate
//! in proportion to it: at most [64 KiB](ClassifyLayer::MAX_BODY) of a body are
//! looked at, scalars are cut to 512 bytes, and a `Retry-After` of more than 64
//! bytes is ignored.

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
mod waiting;

pub use attempt::Attempt;
pub use classify::{
    Answer, BodyRule, Classify, ClassifyBody, ClassifyFuture, ClassifyLayer, ClassifyService,
    InvalidRules, Judgement, Rules, Test,
};
pub use deadline::{Deadline, Held, recent};
pub use endpoint::Endpoint;
pub use endpoints::{Endpoints, Found, InvalidEndpoint};
pub use fault::{BoxError, Fault, Phase};
pub use key::{IdempotencyKey, InvalidKey};
pub use priority::Priority;
pub use retry_after::{retry_after, server_now};
pub use verdict::{RetryAdvice, Scope, Verdict};
