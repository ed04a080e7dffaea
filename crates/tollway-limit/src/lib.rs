//! A tower layer that keeps a client inside its provider's rate limits, exactly.
//!
//! A provider that allows 1000 requests in any 10 s blocks whoever sends the
//! 1001st. A client that counts what it *sends* breaks that rule, because the
//! provider counts what *arrives*, and the network bunches requests up. This
//! limiter takes a place in the provider's window to be free a window after the
//! *response*: the arrival was before that, so no delay can break the rule. On a
//! network with 5–50 ms of delay it lets 99 % of the allowance through, with no
//! rejection; limiters that count what is sent reach about half of it, with
//! thousands. [`goodput`] has the derivation and the figures.
//!
//! # How it differs from tower's
//!
//! [tower's `RateLimit`] can't be shared without a buffer, restarts its count at
//! fixed times (so 2N − 1 fit into one window), counts what is sent, and takes
//! the inner service's readiness while it waits. This one
//!
//! - holds any number of [quotas](Quota) at once: for every call, for each
//!   endpoint, for each value of a [`Key`]; a permit is taken from all or none,
//!   and who waits holds nothing, so an exhausted endpoint never starves another;
//! - is shared by clones, by services and by code without tower
//!   ([`Limits::acquire`]);
//! - serves first come, first served within a [`Priority`], refuses at once what
//!   would outlast its [`Deadline`] and says how long the wait would have been,
//!   and bounds its queue;
//! - learns from answers: a refusal pauses exactly the quota that it names, for
//!   everybody; rate-limit headers tighten it.
//!
//! # Example
//!
//! ```
//! use std::convert::Infallible;
//!
//! use http::{Request, Response};
//! use tollway_core::Endpoint;
//! use tollway_limit::{Limits, Quota, RateLimitLayer};
//! use tower::{ServiceBuilder, ServiceExt, service_fn};
//!
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<(), tollway_core::BoxError> {
//! let limits = Limits::builder()
//!     .every_call(Quota::per_second(100))
//!     .each_endpoint(Quota::per_second(25))
//!     .endpoint(Endpoint::post("/v1/payouts"), Quota::per_second(15).in_flight(30))
//!     .build()?;
//! let service = ServiceBuilder::new()
//!     .layer(RateLimitLayer::new(limits.clone()))
//!     .service(service_fn(async |_: Request<()>| {
//!         Ok::<_, Infallible>(Response::new(()))
//!     }));
//!
//! service.oneshot(Request::post("/v1/payouts").body(())?).await?;
//! assert_eq!(limits.snapshot().quotas[0].used, 1);
//! # Ok(())
//! # }
//! ```
//!
//! # What travels with a request
//!
//! All of it is optional, in the request's extensions.
//!
//! | extension | absent means |
//! | --- | --- |
//! | [`Endpoint`] | it is recognised by method and path, as where none of that name is known |
//! | [`Priority`] | normal |
//! | [`Deadline`], or one that a layer above [holds](tollway_core::Deadline::hold) | the call may wait for ever |
//!
//! A call that needs several quotas goes when all of them have room at the same
//! time, and keeps no place in one while it waits for another. Where each is
//! always used up by calls that don't need the other, that would be never. So
//! once it has had its turn eight times, and each time another quota had no room,
//! a place is kept for it: from those that come after it, and for as long as the
//! quota needs to let one more through (in paced shape its spacing, otherwise its
//! window). Then, for seven times as long, none is kept. So at most an eighth of
//! one place is left unused, or in paced shape an eighth of the rate. A share of
//! each ([`reserve`](Quota::reserve)) lets such calls through sooner.
//!
//! An attempt that is a retry stands in the same queue as fresh calls of its
//! priority, in the order in which they came: it overtakes nobody, least of all a
//! fresh call of a higher priority. Retries that overtook would starve fresh
//! calls just when the provider is in trouble.
//!
//! # Feedback
//!
//! The verdict on an answer (an extension, or else its status and `Retry-After`)
//! says what was refused:
//!
//! | [`Scope`] of `NotExecuted` | what pauses |
//! | --- | --- |
//! | `GlobalRate` | quotas of [`every_call`](LimitsBuilder::every_call) |
//! | `EndpointRate` | quotas of endpoints |
//! | `GlobalConcurrency`, `EndpointConcurrency` | those with an [`in_flight`](Quota::in_flight) limit |
//! | `Resource` | quotas of keys and endpoints |
//! | `Unspecified` | quotas with a [penalty](Quota::penalty), or else every rate that covers the call, or else every quota that does |
//! | `Call` | none: a lock on one object is no limit |
//!
//! It pauses for the delay that the provider asks for, a day at the most (more is
//! a mistake, and nobody should have to restart a client because of it), or else
//! for the quota's own penalty; without either the call alone was refused. After
//! a pause the queue restarts evenly spaced, whatever the shape, so that it doesn't
//! come as a herd: for the length of the quota's window, a minute at the most.
//! Attempts that have been handed to the inner service, and wait there for a
//! connection, end with a [`RateLimitError`] in place of being sent, if what is below
//! says that it waits ([`Phase::pending`](tollway_core::Phase::pending)); so they do
//! where a header says that nothing is left. An attempt that was certainly never sent
//! (a connect error) takes no place.
//!
//! # Telemetry
//!
//! `tracing` events under the target `tollway::limit`, durations in seconds:
//! `waited for a permit` (debug, `tollway.limit.wait`), `gave no permit` (debug,
//! `tollway.limit.reason`: `deadline`, `queue_full`, `not_now` or `paused`, and
//! `tollway.limit.wait`: how long the wait would have been, if that is known), and
//! `the provider refused an attempt` (info, `tollway.limit.scope`,
//! `tollway.limit.retry_after`, and `tollway.limit.pause`: for how long the quotas
//! that the scope names pause, if any does).
//! [`Limits::snapshot`] has the state of every quota.
//!
//! # Without tokio
//!
//! Without the feature `tokio` there is no waiting and no layer, and
//! [`Limits::try_acquire`] is handed the time. With it, runtimes may share a
//! `Limits`: each in which a call waits has a timer of its own, so that one which
//! is blocked or isn't driven holds up its own calls alone. Either way the target
//! needs 64-bit atomics.
//!
//! [tower's `RateLimit`]: https://docs.rs/tower/latest/tower/limit/rate/struct.RateLimit.html
//! [`Deadline`]: tollway_core::Deadline
//! [`Endpoint`]: tollway_core::Endpoint
//! [`Priority`]: tollway_core::Priority
//! [`Scope`]: tollway_core::Scope
#![cfg_attr(
    not(feature = "tokio"),
    allow(dead_code, reason = "only those who wait need it")
)]

#[doc = include_str!("../docs/goodput.md")]
pub mod goodput {}

mod ask;
mod builder;
mod call;
mod directory;
mod error;
mod express;
mod feedback;
mod fields;
mod gauge;
mod key;
mod keys;
mod lanes;
mod limits;
mod meter;
mod pace;
mod permit;
mod quota;
mod routes;
mod shared;
mod snapshot;
mod state;
mod sync;
mod tally;
mod time;
mod window;

#[cfg(all(test, loom))]
mod interleavings;
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
pub use future::RateLimitFuture;
#[cfg(feature = "tokio")]
pub use layer::RateLimitLayer;
#[cfg(feature = "tokio")]
pub use service::RateLimitService;
