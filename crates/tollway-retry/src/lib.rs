//! A tower layer that retries an HTTP call only where that cannot charge twice.
//!
//! A payment API answers 503, or doesn't answer at all. Was the card charged?
//! A retry that doesn't ask this question charges twice; a client that never
//! retries loses sales to every hiccup. [`RetryLayer`] decides from the
//! [`Verdict`](tollway_core::Verdict) on each attempt:
//!
//! | | idempotent method, or an idempotency key | otherwise |
//! | --- | --- | --- |
//! | not executed (429, connect error) | retry | retry |
//! | unknown (timeout, reset, 5xx) | retry, while the key lives | return it, marked unknown |
//! | done, rejected for good | return | return |
//!
//! What it does beyond that:
//!
//! - An attempt of unknown outcome leaves the call's unknown, whatever comes of
//!   the later ones, unless an answer speaks for all of them: a success, or a
//!   refusal of the request itself under its key (400, 402, 422, or in the body
//!   of a 2xx), unless the provider keeps only what it has done under that
//!   ([`refusing_repeats`](tollway_core::IdempotencyKey::refusing_repeats)). Not a
//!   401, 404 or 409, which may come before anybody looks at
//!   the key; nor any refusal without a key: a `DELETE` that is repeated finds
//!   nothing because it was done.
//! - An answer that the call was done before
//!   ([`DoneBefore`](tollway_core::RetryAdvice::DoneBefore)) is a success where an
//!   earlier attempt of it may have had that effect. Otherwise another call had
//!   the same key, maybe for something else, and the outcome is unknown.
//! - It waits as long as the provider asks ([`RetryPolicyBuilder::max_retry_after`]),
//!   and otherwise by a [`BackOff`] with jitter. The first retry comes at once
//!   where the attempt had no effect and no answer, as on a connection that
//!   failed; a provider that says "not now" needs time. A wait that would outlast the
//!   [`Deadline`](tollway_core::Deadline) ends the call at once.
//! - It reads a failed response to its end before it waits, so that the
//!   connection is free, and holds nothing of it while it waits.
//! - Its [`Budget`] keeps all retries of all clones together in bounds, so that
//!   an outage isn't answered with a storm.
//! - It sends the same bytes again: see [`ReplayBody`].
//! - It tells what it did: [`Attempts`], in the response's extensions or on the
//!   [`RetryError`].
//!
//! What an error means stands as a [`Fault`](tollway_core::Fault) in its chain, put
//! there by Tollway's pool and layers. An error without one counts as unknown, a
//! connect error of another client among them: over hyper-util's client or
//! reqwest's, tell it apart with
//! [`Rules::connect_errors`](tollway_core::Rules::connect_errors).
//!
//! tower's `Retry` leaves all of that to a policy that you write, copies every
//! request whether or not it can be retried, and holds a failed response while
//! it waits.
//!
//! ```
//! # #[tokio::main(flavor = "current_thread", start_paused = true)]
//! # async fn main() -> Result<(), tollway_core::BoxError> {
//! use std::sync::atomic::{AtomicU32, Ordering};
//! use bytes::Bytes;
//! use http::{Request, Response, StatusCode};
//! use http_body_util::Full;
//! use tollway_retry::{Attempts, ReplayBody, RetryLayer, RetryPolicy};
//! use tower::{ServiceBuilder, ServiceExt, service_fn};
//!
//! // A gateway that is overloaded at first.
//! static CALLS: AtomicU32 = AtomicU32::new(0);
//! let gateway = service_fn(|_: Request<ReplayBody<Full<Bytes>>>| async {
//!     let mut response = Response::new(Full::<Bytes>::default());
//!     if CALLS.fetch_add(1, Ordering::Relaxed) < 2 {
//!         *response.status_mut() = StatusCode::SERVICE_UNAVAILABLE;
//!     }
//!     Ok::<_, std::io::Error>(response)
//! });
//!
//! let service = ServiceBuilder::new()
//!     .layer(RetryLayer::new(RetryPolicy::default()))
//!     .service(gateway);
//!
//! // The key makes it safe to repeat a POST.
//! let request = Request::post("https://pay.example/v1/charges")
//!     .header("idempotency-key", "order-4711")
//!     .body(Full::from("amount=100"))?;
//! let response = service.oneshot(request).await?;
//! assert_eq!(response.status(), StatusCode::OK);
//! let attempts = Attempts::of(response.extensions());
//! assert_eq!(attempts.map(Attempts::made), Some(3));
//! # Ok(())
//! # }
//! ```
//!
//! # Telemetry
//!
//! `tracing` events under the target `tollway::retry`, one each time that a call
//! is tried again (`retrying`, debug) and one when such a call, or one that can't
//! be, has ended: `outcome unknown` (warn), since somebody has to look that call
//! up, or else, and for methods that ask for no effect, `call ended` (debug).
//! They tell `tollway.verdict`,
//! `http.request.resend_count`, `http.response.status_code` or `error.type` (the
//! phase in which the attempt failed), and `tollway.retry.delay` in seconds or
//! `tollway.retry.stop`. A call that is answered for good at the first attempt
//! emits nothing.

mod back_off;
mod budget;
mod call;
mod decide;
mod drain;
mod error;
mod evidence;
mod future;
mod head;
mod hedge;
mod layer;
mod policy;
mod replay;
mod resend;
mod rival;
mod rng;
mod service;
mod story;
mod telemetry;

pub use back_off::{BackOff, Jitter};
pub use budget::{Budget, BudgetBuilder};
pub use error::{InvalidPolicy, RetryError};
pub use future::RetryFuture;
pub use hedge::Hedge;
pub use layer::RetryLayer;
pub use policy::{RetryPolicy, RetryPolicyBuilder};
pub use replay::{ReplayBody, Superseded};
pub use rng::{RandomSeed, Seed};
pub use service::RetryService;
pub use story::{AttemptRecord, Attempts, Outcome, Stop};
