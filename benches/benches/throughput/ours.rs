//! The pool alone, and the whole client over it.

use std::time::Duration;

use http::Uri;
use tollway_core::BoxError;
use tollway_idempotency::Dialect;
use tollway_limit::{Limits, Quota};
use tollway_pool::{Pool, PoolBuilder, Protocol};
use tower::Service;

use crate::callers::{CALLERS, Caller, Callers, Contestant};
use crate::exchange::{Body, read, request};
use crate::server::{Server, Version};

/// The pool.
pub(crate) fn pool(server: &Server) -> Result<Box<dyn Contestant>, BoxError> {
    pooled("tollway", builder(server.version), server)
}

/// The pool as silent as hyper-util's client, which sends no PINGs unless told
/// to.
pub(crate) fn pool_without_pings(server: &Server) -> Result<Box<dyn Contestant>, BoxError> {
    let silent = builder(server.version).http2_keep_alive(None);
    pooled("tollway without PINGs", silent, server)
}

fn builder(version: Version) -> PoolBuilder<Body> {
    open(Pool::builder(), version)
}

/// Lets every caller in.
fn open<B>(pool: PoolBuilder<B>, version: Version) -> PoolBuilder<B> {
    pool.plain_http(true)
        .max_connections_per_host(CALLERS)
        .protocol(match version {
            Version::Http1 => Protocol::Http1Only,
            Version::Http2 => Protocol::Http2Only,
        })
}

fn pooled(
    who: &'static str,
    pool: PoolBuilder<Body>,
    server: &Server,
) -> Result<Box<dyn Contestant>, BoxError> {
    let (pool, uri) = (pool.build()?, server.uri.clone());
    Callers::clones(who, &Pooled { pool, uri })
}

#[derive(Clone)]
struct Pooled {
    pool: Pool<Body>,
    uri: Uri,
}

impl Caller for Pooled {
    async fn call(&mut self) -> usize {
        match self.pool.call(request(self.uri.clone())).await {
            Ok(response) => read(response.into_body()).await,
            Err(error) => panic!("{error}"),
        }
    }
}

/// All five layers over the pool; the quota is never reached.
pub(crate) fn client(server: &Server) -> Result<Box<dyn Contestant>, BoxError> {
    let quota = Quota::new(1_000_000, Duration::from_millis(1));
    let client = tollway::Client::builder(tollway::Profile::new("bench"))
        .limits(Limits::builder().every_call(quota))
        .keys(Dialect::default())
        .pool(|_| open(Pool::builder(), server.version))
        .build()?;
    let uri = server.uri.clone();
    Callers::clones("tollway, the client", &Composed { client, uri })
}

#[derive(Clone)]
struct Composed {
    client: tollway::Client,
    uri: Uri,
}

impl Caller for Composed {
    async fn call(&mut self) -> usize {
        match self.client.send(request(self.uri.clone())).await {
            Ok(response) => read(response.into_body()).await,
            Err(error) => panic!("{error:#}"),
        }
    }
}
