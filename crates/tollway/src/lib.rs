//! Independent tower layers for calling somebody else's rate-limited HTTP API,
//! composed into one client.
//!
//! A service that moves money through somebody else's API has five troubles:
//! the provider's rate limits, transient failures, double charges, hanging
//! calls, and connection churn. Each of Tollway's layers solves one. Composed,
//! they promise: **every request takes effect at most once, none is lost
//! silently, the provider's limits are never broken, and nearly all of what
//! they allow is used.**
//!
//! # For people who just want to call an API
//!
//! ```no_run
//! # async fn call() -> Result<(), tollway::core::BoxError> {
//! use tollway::{Body, Client, profiles};
//!
//! let client = Client::builder(profiles::stripe()).build()?;
//! let request = http::Request::post("https://api.stripe.com/v1/payouts")
//!     .header("authorization", "Bearer sk_test_123")
//!     .header("content-type", "application/x-www-form-urlencoded")
//!     .body(Body::from("amount=1100&currency=usd"))?;
//! let response = client.send(request).await?;
//! println!("{}", response.status());
//! # Ok(())
//! # }
//! ```
//!
//! tower's own layers can be stacked to much the same height, but each decides
//! for itself: its retry doesn't know whether a repeat is safe, its rate limit
//! can't be shared by clones, its timeout starts before the wait for the rate
//! limit. Here one verdict on each attempt is read once and heeded by all.
//!
//! # For people who have a stack
//!
//! Each layer is a crate of its own, re-exported here under a feature of its
//! name, and drops into any stack:
//!
//! | module | layer | does |
//! | --- | --- | --- |
//! | [`timeout`] | `DeadlineLayer` | one deadline for the whole call |
//! | [`idempotency`] | `IdempotencyKeyLayer` | one key for all attempts |
//! | [`retry`] | `RetryLayer` | repeats what can't charge twice |
//! | [`limit`] | `RateLimitLayer` | a permit from every quota in reach |
//! | [`timeout`] | `AttemptTimeoutLayer` | a limit on each attempt |
//! | [`core`] | `ClassifyLayer` | reads the answer once, into a verdict |
//! | [`pool`] | `Pool` | keep-alive HTTP/1.1 and HTTP/2 connections |
//!
//! That is also their order, outermost first, and the order is the point: every
//! attempt, retries included, pays its quota; the key is minted once, above the
//! retries; the deadline covers the wait for a permit, the back-off and
//! connecting. [`Client`] holds this order. Whoever wants another composes the
//! layers by hand.
//!
//! A layer asks little of the service below: that it takes an `http::Request` and
//! answers with an `http::Response`, is [`Clone`], and has an error that goes into a
//! [`BoxError`](core::BoxError). Bodies are [`Unpin`], or pinned in a box. Two layers
//! put their own body around the request's: below the retry it is a
//! [`ReplayBody<B>`](retry::ReplayBody), below the key a
//! [`KeyBody<B>`](idempotency::KeyBody). Where something of this doesn't hold, the
//! compiler only says that the service has no `oneshot`, `ready` or `call`. reqwest's
//! client has requests of its own: put a [`service_fn`] between, as the example
//! `compose` does.
//!
//! [`service_fn`]: https://docs.rs/tower/latest/tower/fn.service_fn.html
//!
//! # Features
//!
//! `client` (the default) is everything. `limit`, `retry`, `idempotency`,
//! `timeout` and `pool` each bring in that layer alone. `proxy` adds the pool's
//! HTTP proxies.

#[cfg(feature = "client")]
mod client;
#[cfg(feature = "client")]
mod profile;

#[cfg(feature = "client")]
pub use client::{Body, BuildError, Client, ClientBuilder, Error, ResponseBody, ResponseFuture};
#[cfg(feature = "client")]
pub use profile::{Profile, profiles};

pub use tollway_core as core;
#[cfg(feature = "idempotency")]
pub use tollway_idempotency as idempotency;
#[cfg(feature = "limit")]
pub use tollway_limit as limit;
#[cfg(feature = "pool")]
pub use tollway_pool as pool;
#[cfg(feature = "retry")]
pub use tollway_retry as retry;
#[cfg(feature = "timeout")]
pub use tollway_timeout as timeout;
