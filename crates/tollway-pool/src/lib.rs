//! A keep-alive connection pool for HTTP/1.1 and HTTP/2, as a tower service.
//!
//! A new connection costs a TCP and a TLS handshake: with a gateway on another
//! continent 100 to 300 ms, and for both ends 20 times the work of the request
//! itself. So connections are kept. A pool that keeps them badly costs more
//! than it saves: it opens 64 of them because 64 calls came at once, keeps them
//! for longer than the load balancer in front of the gateway does, and then
//! hands out one that is just being closed. The call fails, and if it was a
//! payment, nobody knows whether it was made.
//!
//! This pool
//!
//! * opens at most so many [connections per
//!   host](PoolBuilder::max_connections_per_host); whoever comes later waits, in
//!   order, for the first that is free or new, and no longer than its deadline;
//! * closes idle connections [by time](PoolBuilder::idle_timeout), before the
//!   peer does, old ones [by age](PoolBuilder::max_age), busy ones [by
//!   use](PoolBuilder::max_requests_per_connection), and none under a call;
//! * sends a request again, unasked, where the connection died before anything
//!   of it was written, whatever its method. Where something may have been
//!   written, the error says so: its [verdict](PoolError::verdict) is
//!   *unknown*, and it is never sent twice;
//! * opens connections [before a peak](Pool::warm), ends
//!   [gracefully](Pool::drain), and has [numbers](Pool::stats) to look at.
//!
//! hyper has connections but no pool. hyper-util's legacy client has a pool
//! without a cap or a queue, and so has reqwest, which is built upon it: each
//! opens as many connections as there are calls at once, and reaps idle ones
//! in passing. tower's `ConcurrencyLimit` in front of them bounds calls, not
//! connections, and counts over all hosts.
//!
//! ```
//! use bytes::Bytes;
//! use http_body_util::{BodyExt, Full};
//! use tollway_pool::{ConnectionInfo, Pool};
//! use tower::ServiceExt;
//!
//! # use std::net::TcpListener;
//! # use std::io::{Read, Write};
//! # fn gateway() -> String {
//! #     let listener = TcpListener::bind("127.0.0.1:0").unwrap();
//! #     let addr = listener.local_addr().unwrap();
//! #     std::thread::spawn(move || {
//! #         let (mut stream, _) = listener.accept().unwrap();
//! #         let mut buffer = [0; 1024];
//! #         while matches!(stream.read(&mut buffer), Ok(1..)) {
//! #             let _ = stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\npaid");
//! #         }
//! #     });
//! #     format!("http://{addr}/v1/payouts")
//! # }
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! # let url = gateway();
//! let pool: Pool<Full<Bytes>> = Pool::builder()
//!     .max_connections_per_host(20)
//!     .plain_http(true) // for the example's server
//!     .build()?;
//!
//! for _ in 0..2 {
//!     let request = http::Request::post(&url).body(Full::from("amount=1100"))?;
//!     let response = pool.clone().oneshot(request).await?;
//!     let info = ConnectionInfo::of(response.extensions()).cloned();
//!     let body = response.into_body().collect().await?.to_bytes();
//!     println!("{body:?} over {:?}", info.map(|info| info.is_reused()));
//! }
//! assert_eq!(pool.stats().total().opened(), 1);
//! assert_eq!(pool.stats().total().reused(), 1);
//! # Ok(())
//! # }
//! ```
//!
//! # Which protocol, and how many connections
//!
//! With [`Protocol::Auto`], TLS settles the protocol. Until the first handshake
//! with a host has settled it, there is only that one: 64 calls that come at
//! once to a host unknown so far wait for it together. If it brings HTTP/2, it
//! carries them all. If not, the others get connections of their own, at once
//! and up to the cap; they are late by one handshake, once in the pool's life.
//!
//! An HTTP/2 connection carries as many calls as the peer allows, and a further
//! one is opened, within the cap, when it is full. PINGs tell a dead connection
//! from a slow answer. After `GOAWAY` it takes no new calls, those which the
//! peer processes finish, and those which it doesn't fail as *not executed*. A
//! peer that ends its connections after so many calls, as nginx does by
//! `keepalive_requests`, is found out: once it has refused calls at the same
//! place on two of them, further ones are given no more calls than it takes, for
//! ten minutes. Then it is asked anew.
//!
//! # Failures
//!
//! [`PoolError`] tells the phase (resolving, connecting, TLS, the handshake,
//! writing, reading) and names the host. A failed handshake fails those who
//! relied on it: over HTTP/1.1 one call, the one that has waited longest, and over
//! HTTP/2 all who waited for the one connection. Nobody waits for an attempt that
//! nobody makes. A call that came while the attempt was under way gets another.
//! That other connections are busy is no reason to keep a call waiting, since they
//! may be so for long: it is told, and as its verdict is *not executed*, it can be
//! repeated at once.
//!
//! Where a kept HTTP/1.1 connection turns out to be dead when a call takes it,
//! those that have been idle for as long are closed with it, so that the next
//! attempt doesn't meet the next of them.
//!
//! # Runtimes
//!
//! A pool is built anywhere and called on a tokio runtime with timers and I/O. Its
//! connections are driven by tasks of the runtime that opened them: where several
//! share a pool, each has to be driven for as long as others may be given its
//! connections. A runtime that ends takes them with it; further calls open new
//! ones, and so do those that wait in another runtime. A call itself has its timer
//! in the runtime that polls it first, and has to stay there. The request's body is
//! read by the connection's task: a timer or a socket that it makes belongs to that
//! one's runtime.
//!
//! # Telemetry
//!
//! `tracing` events under the target `tollway::pool`, at level debug, all with
//! `server.address` and `server.port`:
//!
//! * `connection opened`, with `tollway.pool.handshake`, how long it took in
//!   seconds, `network.peer.address` and `network.peer.port` (the proxy's if there
//!   is one), `network.protocol.name` and `network.protocol.version`, and
//!   `tls.protocol.version`;
//! * `connection failed`, which couldn't be opened, with the step as `error.type`
//!   (`resolve`, `connect`, `proxy`, `tls`, `handshake`, `runtime`), and `error`;
//! * `connection broke`, with `error`, where no call is there to be told of it;
//! * `connection closed`, with `tollway.pool.reason` (see [`CloseReason`]) and
//!   `tollway.pool.requests`, how many calls it carried.
//!
//! A call over a kept connection emits nothing.
//!
//! # Features
//!
//! `tls` (the default): rustls with ring, and the platform's roots. `proxy`:
//! HTTP proxies as `HTTPS_PROXY` and its like name them.

mod address;
mod arena;
mod body;
mod builder;
mod conn;
pub mod connect;
mod dial;
mod errands;
mod error;
mod executor;
mod failure;
mod future;
mod host;
mod hosts;
mod info;
mod key;
mod layer;
mod lease;
mod queue;
mod reaper;
mod sent;
mod service;
mod state;
mod stats;
mod wait;
mod wire;

pub use body::PoolBody;
pub use builder::{InvalidPool, PoolBuilder, Protocol};
pub use error::PoolError;
pub use future::PoolFuture;
pub use info::{ConnectionInfo, TlsVersion};
pub use layer::PoolLayer;
pub use service::Pool;
pub use stats::{CloseReason, HandshakeTimes, PoolStats, Stats};
