//! The five layers in their order, as one client.

use std::fmt;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response, Uri};
use http_body::Body as HttpBody;
use tollway_core::BoxError;
use tollway_limit::Limits;
use tollway_pool::{Pool, PoolError, PoolStats};
use tower_service::Service;

use crate::Profile;

mod body;
mod builder;
mod error;
mod future;
mod stack;
mod telemetry;

pub use body::Body;
pub use builder::ClientBuilder;
pub use error::{BuildError, Error};
pub use future::{ResponseBody, ResponseFuture};
use stack::{Stack, WireBody};

/// An HTTP client for one provider's API: the layers of this family, composed
/// in the right order over one pool of connections.
///
/// A clone is another handle to the same client: the quotas, the retry budget
/// and the connections are shared. It is a tower service as well, from
/// `Request<B>` for any body, and always ready: a call waits for its permit and
/// its connection in its future, since only its request tells which. Where tower's
/// `ready` is to be asked all the same, it has to be told of which body:
/// `ServiceExt::<Request<Body>>::ready(&mut client)`.
///
/// # What it leaves to you
///
/// It follows no redirect (a 3xx is an answer; a 302 or 303 to a payment leaves
/// open what came of it), keeps no cookies, adds no header but the key and what
/// HTTP itself asks for (so no `user-agent`), and decompresses nothing. Don't ask
/// for compressed answers in a request's headers where the profile's rules read
/// bodies, as Savvy's do: they would find nothing in them. A stack by hand has a
/// place for tower-http's layers. It connects directly, unless it is built
/// [over](ClientBuilder::build_over) a proxy or another transport.
///
/// # Runtime
///
/// It is built anywhere, and called on a tokio runtime with its timers and I/O
/// enabled, as `#[tokio::main]` makes one. Elsewhere a call fails or panics, as
/// tokio's own timers do.
///
/// # Telemetry
///
/// Each call has a span, `call` at level info under the target `tollway::client`,
/// with the fields of OpenTelemetry's conventions for HTTP clients, and
/// `tollway.provider` and `tollway.verdict`. Left out is `url.full`, which names
/// objects and may hold secrets; put an `Endpoint` into the request's extensions
/// to have its template as `url.template`. `error.type` is a status, `timeout`,
/// the name of the [phase](Error::phase) in which the call failed, or `dropped`,
/// with the verdict `unknown`, where its future was dropped before it had ended.
/// `http.request.resend_count` counts the attempts after the first. For
/// tracing-opentelemetry there are `otel.name` (`POST /v1/payouts`, without an
/// `Endpoint` only `POST`), `otel.kind`, and for an error or a 4xx or 5xx
/// `otel.status_code`; `otel.status_description` is an error's `{:#}`. The layers'
/// events (retries, waits) stand in the span; those of the pool's connections,
/// which serve many calls, don't.
///
/// # Cancellation
///
/// Dropping the future of a call ends it: its place in the queue, its permit
/// and its connection are given back. A request that had been sent by then may
/// have had an effect; the provider's quota counts it, and so does the limiter.
pub struct Client {
    provider: Arc<str>,
    stack: Stack,
    /// Another handle to the same, for calls from behind a shared reference: to
    /// make one for each call takes as long as some of the layers.
    spare: Mutex<Stack>,
    limits: Limits,
    pool: Pool<WireBody>,
}

impl Client {
    /// A client for the provider of this profile, to be adjusted and built.
    pub fn builder(profile: Profile) -> ClientBuilder {
        ClientBuilder::new(profile)
    }

    /// Sends `request`, and waits for the head of the response.
    ///
    /// The request's URI is absolute. Its body is any [`http_body::Body`] of
    /// `Bytes`: a [`Body`] made of a text or of bytes, [`Body::empty`] for a `GET`,
    /// an axum body, a stream. What the request carries in its extensions is
    /// heeded: `Deadline`, `Priority`, `Endpoint`, `IdempotencyKey`.
    ///
    /// ```
    /// use tollway::core::{BoxError, Priority, Verdict};
    /// use tollway::idempotency::key_from_reference;
    /// use tollway::{Body, Client};
    ///
    /// /// Whether the provider took the order's payment; `None` where it is still to
    /// /// say.
    /// async fn pay(client: &Client, order: &str) -> Result<Option<bool>, BoxError> {
    ///     let request = http::Request::post("https://api.stripe.com/v1/payouts")
    ///         .header("content-type", "application/x-www-form-urlencoded")
    ///         .extension(Priority::High)
    ///         // Made of the order, so that a program that was restarted repeats it.
    ///         .extension(key_from_reference("orders", order)?)
    ///         .body(Body::from("amount=1100&currency=usd"))?;
    ///     let verdict = match client.send(request).await {
    ///         Ok(response) => Verdict::of_response(&response),
    ///         Err(error) => error.verdict(),
    ///     };
    ///     Ok(match verdict {
    ///         Verdict::Done => Some(true),
    ///         Verdict::Rejected => Some(false),
    ///         // Look it up, or call this again: the key is the same, so the
    ///         // provider knows what it has done already. That this call had no
    ///         // effect says nothing of one that was made before a restart.
    ///         Verdict::NotExecuted { .. } | Verdict::Unknown => None,
    ///     })
    /// }
    /// ```
    ///
    /// # Errors
    ///
    /// An [`Error`] where there is no response to return, with a
    /// [verdict](Error::verdict) that says whether the call may have had an
    /// effect. A response with a status that says so is no error; its verdict is
    /// `Verdict::of_response`.
    pub fn send<B>(&self, request: Request<B>) -> ResponseFuture
    where
        B: HttpBody<Data = Bytes> + Send + 'static,
        B::Error: Into<BoxError>,
    {
        match self.spare.try_lock() {
            Ok(mut stack) => self.start_on(&mut stack, request),
            // Another thread is just calling, or this one is, from within a body's
            // own code; or a body panicked there once. Nobody waits.
            Err(_) => self.start_on(&mut self.stack.clone(), request),
        }
    }

    #[inline]
    fn start_on<B>(&self, stack: &mut Stack, request: Request<B>) -> ResponseFuture
    where
        B: HttpBody<Data = Bytes> + Send + 'static,
        B::Error: Into<BoxError>,
    {
        // Ready at once, since the limiter is; but a service has to be asked.
        let _ = stack.poll_ready(&mut Context::from_waker(Waker::noop()));
        start(&self.provider, stack, request)
    }

    /// The limits: to look at ([`snapshot`](Limits::snapshot)), to change
    /// ([`reconfigure`](Limits::reconfigure)), or to share with another client
    /// ([`share_limits`](ClientBuilder::share_limits)).
    #[must_use]
    pub fn limits(&self) -> &Limits {
        &self.limits
    }

    /// The pool's numbers at this moment.
    #[must_use]
    pub fn pool_stats(&self) -> PoolStats {
        self.pool.stats()
    }

    /// Opens connections before a peak, so that `count` are there. Returns how
    /// many there are then.
    ///
    /// # Errors
    ///
    /// Where the URL can't be called, or no connection could be opened at all.
    pub async fn warm(&self, url: &Uri, count: usize) -> Result<usize, PoolError> {
        self.pool.warm(url, count).await
    }

    /// Ends the client gracefully: no new calls on any handle; those that have a
    /// connection, or wait for one, may finish within `limit`. Returns how many
    /// of those were cut off.
    ///
    /// A call that waits for a permit or between two attempts by then isn't waited
    /// for, nor counted, and gets no connection any more: it ends with the verdict
    /// that its attempts so far have earned. So let calls end first, as a server's
    /// graceful shutdown does, and then drain: then zero is a clean end.
    pub async fn drain(&self, limit: Duration) -> usize {
        self.pool.drain(limit).await
    }
}

impl<B> Service<Request<B>> for Client
where
    B: HttpBody<Data = Bytes> + Send + 'static,
    B::Error: Into<BoxError>,
{
    type Response = Response<ResponseBody>;
    type Error = Error;
    type Future = ResponseFuture;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Error>> {
        // The outermost layer takes any wait for readiness into the call.
        self.stack
            .poll_ready(cx)
            .map_err(|error| Error::new(error, false))
    }

    fn call(&mut self, request: Request<B>) -> ResponseFuture {
        start(&self.provider, &mut self.stack, request)
    }
}

#[inline]
fn start<B>(provider: &str, stack: &mut Stack, request: Request<B>) -> ResponseFuture
where
    B: HttpBody<Data = Bytes> + Send + 'static,
    B::Error: Into<BoxError>,
{
    let span = telemetry::span(provider, &request);
    let safe = request.method().is_safe();
    ResponseFuture::new(span, safe, || stack.call(request.map(Body::new)))
}

impl Clone for Client {
    fn clone(&self) -> Self {
        Self {
            provider: self.provider.clone(),
            stack: self.stack.clone(),
            spare: Mutex::new(self.stack.clone()),
            limits: self.limits.clone(),
            pool: self.pool.clone(),
        }
    }
}

impl fmt::Debug for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Client")
            .field("provider", &self.provider)
            .finish_non_exhaustive()
    }
}
