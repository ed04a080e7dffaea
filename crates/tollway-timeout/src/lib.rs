//! Layers that end an HTTP call in time: one deadline for the whole call, and
//! a time limit on each attempt.
//!
//! # The problem
//!
//! A call waits in many places: for a permit, between attempts, for a
//! connection, for the head of the answer, for each piece of its body. A limit
//! on each of them adds up to anything; one limit around a retry starts anew
//! with each attempt, or cuts the second one short. And when time runs out the
//! caller of a payment gateway needs to know one thing: may the request have
//! been executed, or certainly not?
//!
//! So there are two layers. [`DeadlineLayer`] stands above everything and gives
//! the call one instant at which its caller stops caring. That instant is
//! the [`Deadline`](tollway_core::Deadline) of everything that is called and
//! polled below, so that a limiter can refuse a wait and a retry a back-off that
//! would outlast it. [`AttemptTimeoutLayer`] stands
//! below the retry and ends one attempt that takes too long, early enough for
//! another.
//!
//! # What tower's `Timeout` doesn't do
//!
//! | | tower | here |
//! | --- | --- | --- |
//! | `poll_ready` of the inner service | not counted | counted, inside the call |
//! | the response's body | not covered | covered: deadline, and pauses |
//! | several attempts | one limit for all | one that can grow |
//! | a deadline that came with the request | unknown | the earlier one wins |
//! | the error | "request timed out" | phase, time, limit, and whether it may have been executed |
//! | the timer | registered for every call | only for a call that has to wait |
//!
//! # Example
//!
//! ```
//! use std::time::Duration;
//!
//! use http::{Request, Response};
//! use tollway_core::{BoxError, Phase, Verdict};
//! use tollway_timeout::{AttemptTimeout, AttemptTimeoutLayer, DeadlineLayer, TimeoutError};
//! use tower::{ServiceBuilder, ServiceExt, service_fn};
//!
//! # #[tokio::main(flavor = "current_thread", start_paused = true)]
//! # async fn main() {
//! let never_answers = service_fn(|_: Request<()>| async {
//!     std::future::pending::<()>().await;
//!     Ok::<_, BoxError>(Response::new(String::new()))
//! });
//! let service = ServiceBuilder::new()
//!     .layer(DeadlineLayer::new(Duration::from_secs(60)))
//!     // A retry would stand here.
//!     .layer(AttemptTimeoutLayer::new(
//!         AttemptTimeout::new(Duration::from_secs(20)).then(Duration::from_secs(30)),
//!     ))
//!     .service(never_answers);
//!
//! let error = service.oneshot(Request::new(())).await.unwrap_err();
//!
//! assert!(tollway_timeout::is_timeout(&*error));
//! let error: &TimeoutError = error.downcast_ref().unwrap();
//! assert_eq!(error.phase(), Phase::Head);
//! assert_eq!(error.limit(), Duration::from_secs(20));
//! assert_eq!(Verdict::of_error(error), Verdict::Unknown);
//! # }
//! ```
//!
//! # A deadline that came in
//!
//! A service that calls a gateway while it serves a request should stop when
//! its own caller has stopped. `DeadlineLayer` on the server side holds the
//! deadline over the handler, and with it over the calls that the handler makes:
//! the client side's layer takes the earlier of that and its own. With axum:
//!
//! ```
//! use axum::{Router, error_handling::HandleErrorLayer, http::StatusCode, routing::post};
//! use std::time::Duration;
//! use tollway_core::{BoxError, Deadline};
//! use tollway_timeout::DeadlineLayer;
//! use tower::ServiceBuilder;
//!
//! async fn pay() {
//!     // client.call(outbound).await … ends at the deadline, by itself.
//!     //
//!     // A task of its own is under nobody's deadline. It is handed on there:
//!     let mut outbound = http::Request::new(());
//!     if let Some(deadline) = Deadline::held() {
//!         outbound.extensions_mut().insert(deadline);
//!     }
//!     // tokio::spawn(client.call(outbound)) …
//! }
//!
//! let app: Router = Router::new().route("/pay", post(pay)).layer(
//!     ServiceBuilder::new()
//!         .layer(HandleErrorLayer::new(|_: BoxError| async { StatusCode::GATEWAY_TIMEOUT }))
//!         .layer(DeadlineLayer::new(Duration::from_secs(10))),
//! );
//! ```
//!
//! Give the client's stack a `DeadlineLayer` of its own all the same, be it an
//! [inherited](DeadlineLayer::inherited) one, for two reasons. It reads the clock
//! anew for each call: under the handler's layer alone, all calls within one poll
//! of the handler are told one time. After one that computes for long, or blocks,
//! an attempt would seem to have begun before that, and be ended so much too
//! early. And it keeps to itself what its call waits for, which says nothing of
//! what else the handler does: under the handler's layer alone, a handler that
//! waits for a connection would seem to have done nothing else.
//!
//! # What exactly is limited
//!
//! - **Readiness.** Both services are always ready. Where the inner one isn't,
//!   the wait moves into the call and counts. So they pass on no back-pressure
//!   through `poll_ready`; a call is the unit that waits, or is refused.
//! - **The start.** The deadline counts from the call. An attempt's limit
//!   counts from the call where that has a deadline, and else from the first
//!   poll that finds it waiting, so that a call that is answered at once never
//!   asks for the time. After its deadline a request isn't sent.
//! - **The body.** A retry decides when it has the head. So a body that stalls
//!   afterwards ends with a [`TimeoutError`] that the reader of the body gets,
//!   as do layers that read a body before they hand the head on: for them, the
//!   limit on the head covers that reading too. The limit on pauses also ends
//!   the draining of a failed response.
//! - **What is there.** An answer, or a piece of a body, that has come is never
//!   thrown away for being late; only a wait can run out.
//! - **The end.** What was waited for is dropped at once, so that its
//!   connection is given up, even if the caller keeps the future or the body.
//!
//! Where the deadline falls into an attempt, both layers wait for the same
//! instant. The lower one answers first, through all layers between, which can
//! then add what they know: the attempts made, the idempotency key. Without an
//! [`AttemptTimeoutLayer`] the deadline can only drop the call, and the error
//! has neither. So give every stack one; [`Duration::MAX`](std::time::Duration::MAX)
//! as its limit is enough.
//!
//! # Whether it may have been executed
//!
//! Time that ran out before the inner service was called, or while every wait
//! so far was noted by the layers below as one for a permit or a connection
//! ([`Phase::pending`](tollway_core::Phase::pending)), gives
//! [`NotExecuted`](tollway_core::Verdict::NotExecuted). Everything else gives
//! [`Unknown`](tollway_core::Verdict::Unknown): without notes from below, that
//! is any time-out after the call. Notes go up to a stack's deadline layer, and
//! no further.
//!
//! # Telemetry
//!
//! One `tracing` event for each time-out, `time ran out`, at level debug under
//! the target `tollway::timeout`, with `tollway.timeout.limit` (`deadline`,
//! `attempt`, `body_pause`), `tollway.timeout.phase`, `tollway.timeout.after`
//! and `tollway.timeout.of` in seconds, and `tollway.verdict`.
//!
//! # Cost
//!
//! A call that has to wait allocates and registers a timer with each layer, or
//! one with both ([`DeadlineLayer::sharing_timers`]). Beyond that neither layer
//! allocates, but for what is rare: an inner service that isn't ready, a body
//! that has to wait, an error. The deadline isn't put into the request's
//! extensions, where the first costs three allocations; a thread-local cell
//! holds it while the layer calls or polls what is below. So whatever moves
//! the call to another task in between, as tower's buffer does, hides it from
//! the layers below, which then wait as long as they like until the deadline
//! layer drops the call. A deadline that the caller puts into the extensions
//! goes through buffers too.

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
