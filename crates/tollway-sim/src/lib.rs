//! Five payment gateways, simulated with their rate limits, idempotency and faults.
//!
//! A client for a rate-limited API is only as good as the server it was tried against. The
//! providers' sandboxes are slow, shared and polite: they don't reset a connection on request,
//! and they don't tell what took effect. A [`Gateway`] does. It enforces what the provider
//! documents, fails in the ways that networks and load balancers fail, and keeps a [`Ledger`] of
//! every effect, so that a test can ask the other side whether a payout happened exactly once.
//!
//! ```
//! # #[cfg(feature = "server")]
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! use std::time::Duration;
//! use tollway_sim::rule::Rule;
//! use tollway_sim::{Fault, Faults, Gateway, Latency, Provider, Scope};
//!
//! let gateway = Gateway::builder(Provider::Payrix)
//!     .rule(Scope::EachPath, Rule::token_bucket(50, Duration::from_secs(1), 10))
//!     .faults(Faults::script([None, Some(Fault::ResetAfterEffect)]))
//!     .latency(Latency::uniform(Duration::from_millis(1), Duration::from_millis(5)))
//!     .seed(7)
//!     .start()
//!     .await?;
//! println!("POST payouts to {}{}", gateway.url(), gateway.provider().wire().create);
//! assert_eq!(gateway.ledger().effects(), 0);
//! gateway.shutdown().await;
//! # Ok(())
//! # }
//! # #[cfg(not(feature = "server"))]
//! # fn main() {}
//! ```
//!
//! # What is simulated
//!
//! | | limits by default | a repeat |
//! | --- | --- | --- |
//! | Payrix | 1000 in any 10 s per IP, host and path, then a block of 10 s | takes effect again |
//! | Stripe | 100/s (sandbox 25/s), 25/s per endpoint, and tighter ones for files, search, payouts, updates and invoices | `Idempotency-Key`: the stored answer, 409 while in flight, 400 with another payload |
//! | Modern Treasury | 100/s *(ours)* | `Idempotency-Key`: the same, without Stripe's headers |
//! | Savvy | 100/s *(ours)* | `RequestId`: the stored result with `isFirstResponse: false`, a business error with another payload |
//! | Payalo | 50/s on status checks, 20 in flight | `merchantReference`: 409 that names the first |
//!
//! Rates are counted as an exact sliding log unless [`GatewayBuilder::rule_kind`] or
//! [`GatewayBuilder::rule`] says otherwise. A request that several limits cover spends from all
//! of them or from none. Stripe and Modern Treasury apply a POST without a key again and again.
//! Modern Treasury's load balancer closes connections that were idle for 30 s.
//!
//! A body is a form where its `Content-Type` says so, and JSON otherwise; [`wire`] names the
//! fields, that of the caller's reference among them, which the ledger is asked by.
//!
//! Requests are counted once their body is read; a body over 1 MiB is refused with a 413. An
//! effect takes place on arrival and its answer follows after the latency, so a look-up never
//! misses what is still being worked on. Credentials are neither asked for nor kept.
//!
//! `GET /_sim/ledger` and `GET /_sim/stats` answer with [`Ledger`] and [`Stats`] as JSON. They
//! are not counted, limited or faulted.
//!
//! # Features
//!
//! - `server`: the gateways. Without it there is only [`rule`], which needs nothing but std.
//! - `cli` (default): the program `tollway-sim`, and `server` with it.

#[cfg(feature = "server")]
mod body;
#[cfg(feature = "server")]
mod builder;
#[cfg(feature = "server")]
mod call;
#[cfg(feature = "server")]
mod connection;
#[cfg(feature = "server")]
mod desk;
#[cfg(feature = "server")]
mod dialect;
#[cfg(feature = "server")]
mod error;
#[cfg(feature = "server")]
mod faults;
#[cfg(feature = "server")]
mod gateway;
#[cfg(feature = "server")]
mod handler;
#[cfg(feature = "server")]
mod ledger;
#[cfg(feature = "server")]
mod limits;
mod provider;
#[cfg(feature = "server")]
mod reply;
pub mod rule;
#[cfg(feature = "server")]
mod server;
#[cfg(feature = "server")]
mod stats;
#[cfg(feature = "server")]
mod tls;
#[cfg(feature = "server")]
pub mod wire;

#[cfg(feature = "server")]
pub use builder::GatewayBuilder;
#[cfg(feature = "server")]
pub use error::SimError;
#[cfg(feature = "server")]
pub use faults::{Fault, Faults, Latency};
#[cfg(feature = "server")]
pub use gateway::Gateway;
#[cfg(feature = "server")]
pub use ledger::{Entry, Ledger};
#[cfg(feature = "server")]
pub use limits::Scope;
pub use provider::{Provider, UnknownProvider};
#[cfg(feature = "server")]
pub use stats::Stats;
