//! One call: get a connection, send, await the head of the response.

use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use http::header::{HOST, UPGRADE};
use http::uri::PathAndQuery;
use http::{Method, Request, Response, StatusCode};
use http_body::Body;
use hyper::body::Incoming;
use hyper::client::conn::TrySendError;
use pin_project_lite::pin_project;
use tokio::time::{Instant, Sleep, sleep_until};
use tollway_core::{BoxError, Deadline, Phase};

use crate::arena::Id;
use crate::body::PoolBody;
use crate::conn::{Awaited, H1, Http, Link, Replies, Reply};
use crate::error::{Kind, PoolError, find};
use crate::host::{Host, Release as _};
use crate::info::ConnectionInfo;
use crate::sent::{Sent, Watch};
use crate::state::{CheckOut, Conn, Grant};
use crate::stats::CloseReason;

/// How many dying connections one request may meet. Each of them is gone
/// after that, so a pool full of dead ones is got through; a peer that closes
/// every new connection isn't tried for ever.
const RESENDS: u32 = 32;

/// How many of those may be new connections.
const FRESH_RESENDS: u32 = 2;

pin_project! {
    /// A call's response, to come.
    ///
    /// Dropped while it waits, it leaves the queue, and a connection that is
    /// being opened on its behalf joins the pool. Dropped after the request
    /// was sent, it closes an HTTP/1.1 connection, since the response would
    /// still come over it; over HTTP/2 it resets its stream, and retires the
    /// connection too if nothing at all came over it meanwhile.
    pub struct ResponseFuture<B: 'static> {
        stage: Stage<B>,
        // The request, unless hyper has it.
        request: Option<Request<B>>,
        #[pin]
        timer: Option<Sleep>,
        acquire_timeout: Duration,
        // How often the request met a dying connection, and how many of those
        // were new.
        resends: u32,
        fresh_resends: u32,
    }
}

enum Stage<B: 'static> {
    /// Refused before anything was done.
    Refused(PoolError),
    /// A connection is asked for.
    CheckOut(Arc<Host<B>>),
    /// It will come.
    Waiting(Ticket<B>),
    /// The request is hyper's, until it has an answer.
    Sent(Lease<B>),
    Done,
}

/// A place in the queue, given up when dropped.
struct Ticket<B: 'static> {
    host: Arc<Host<B>>,
    waiter: Id,
    since: Instant,
    until: Instant,
}

impl<B: 'static> Drop for Ticket<B> {
    fn drop(&mut self) {
        self.host.cancel(self.waiter);
    }
}

/// A connection on which a request was sent.
struct Lease<B: 'static> {
    host: Arc<Host<B>>,
    id: Id,
    reused: bool,
    waited: Duration,
    carrier: Option<Carrier<B>>,
}

/// How hyper hands a failed request back.
type Failed<B> = TrySendError<Request<Sent<B>>>;

/// What a failure leaves.
#[expect(clippy::large_enum_variant, reason = "it is taken apart at once")]
enum Broken<B> {
    /// The request, of which nothing was sent, and why.
    Unsent(Request<B>, hyper::Error),
    /// Something of it may have been.
    Sent(PoolError),
}

enum Carrier<B> {
    H1(H1<B>),
    H2 {
        awaited: Awaited<B>,
        replies: Arc<Replies<B>>,
        link: Arc<Link>,
        /// How often the peer had been heard of when the request was sent.
        reads: u64,
    },
}

impl<B> ResponseFuture<B> {
    pub(crate) fn new(host: Arc<Host<B>>, request: Request<B>, acquire_timeout: Duration) -> Self {
        let stage = match unsupported(&request) {
            Some(what) => {
                let name = Some(host.name.clone());
                Stage::Refused(PoolError::new(Kind::Unsupported(what), name, None))
            }
            None => Stage::CheckOut(host),
        };
        Self {
            stage,
            request: Some(request),
            timer: None,
            acquire_timeout,
            resends: 0,
            fresh_resends: 0,
        }
    }

    pub(crate) fn refused(error: PoolError) -> Self {
        Self {
            stage: Stage::Refused(error),
            request: None,
            timer: None,
            acquire_timeout: Duration::ZERO,
            resends: 0,
            fresh_resends: 0,
        }
    }
}

/// What would turn the connection into something else than a pool's.
fn unsupported<B>(request: &Request<B>) -> Option<&'static str> {
    if request.method() == Method::CONNECT {
        Some("a pool opens no tunnels with CONNECT: give it a connector that does")
    } else if request.headers().contains_key(UPGRADE) {
        Some("a pool can't upgrade its connections to another protocol: remove the upgrade header")
    } else {
        None
    }
}

impl<B> Future for ResponseFuture<B>
where
    B: Body + Send + Unpin + 'static,
    B::Data: Send,
    B::Error: Into<BoxError>,
{
    type Output = Result<Response<PoolBody>, PoolError>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let mut this = self.project();
        loop {
            match this.stage {
                // CheckOut -> Sent, where a connection is free.
                // CheckOut -> Waiting, where one will be.
                Stage::CheckOut(host) => {
                    let now = Instant::now();
                    let until = deadline(this.request.as_ref(), now, *this.acquire_timeout);
                    if until <= now {
                        let kind = Kind::Wait(Duration::ZERO);
                        return Poll::Ready(Err(error(kind, host, None)));
                    }
                    let host = host.clone();
                    *this.stage = match host.check_out(now) {
                        CheckOut::Ready(grant) => {
                            Stage::sent(grant, host, this.request, Duration::ZERO)
                        }
                        CheckOut::Waiting(waiter) => Stage::Waiting(Ticket {
                            host,
                            waiter,
                            since: now,
                            until,
                        }),
                        CheckOut::Full(waiting) => {
                            let kind = Kind::QueueFull(waiting);
                            return Poll::Ready(Err(error(kind, &host, None)));
                        }
                        CheckOut::Draining => {
                            return Poll::Ready(Err(error(Kind::Draining, &host, None)));
                        }
                    };
                }
                // Waiting -> Sent, once served.
                Stage::Waiting(ticket) => {
                    match ticket.host.poll_waiter(ticket.waiter, cx.waker()) {
                        Poll::Ready(Some(Ok(grant))) => {
                            this.timer.set(None);
                            let (host, waited) = (ticket.host.clone(), ticket.since.elapsed());
                            *this.stage = Stage::sent(grant, host, this.request, waited);
                        }
                        Poll::Ready(Some(Err(failure))) => {
                            let kind = Kind::Open(failure);
                            return Poll::Ready(Err(error(kind, &ticket.host, None)));
                        }
                        // Not known: can't be, while the ticket lives. Ask anew.
                        Poll::Ready(None) => *this.stage = Stage::CheckOut(ticket.host.clone()),
                        Poll::Pending => {
                            if this.timer.is_none() {
                                this.timer.set(Some(sleep_until(ticket.until)));
                            }
                            if let Some(timer) = this.timer.as_mut().as_pin_mut()
                                && timer.poll(cx).is_ready()
                            {
                                let kind = Kind::Wait(ticket.since.elapsed());
                                return Poll::Ready(Err(error(kind, &ticket.host, None)));
                            }
                            // A timeout above that strikes now is told that
                            // nothing was written.
                            return Phase::Connect.pending();
                        }
                    }
                }
                // Sent -> Done, with an answer.
                // Sent -> CheckOut, where the request came back unsent.
                Stage::Sent(lease) => {
                    let failed = match ready!(lease.poll(cx)) {
                        Ok(response) => return Poll::Ready(Ok(lease.answered(response))),
                        Err(failed) => failed,
                    };
                    let reused = lease.reused;
                    let host = lease.host.clone();
                    let cause = match lease.broken(failed) {
                        Broken::Sent(error) => return Poll::Ready(Err(error)),
                        Broken::Unsent(request, cause) => {
                            *this.request = Some(request);
                            cause
                        }
                    };
                    *this.resends += 1;
                    *this.fresh_resends += u32::from(!reused);
                    if *this.resends > RESENDS || *this.fresh_resends > FRESH_RESENDS {
                        let cause = Some(cause.into());
                        return Poll::Ready(Err(error(Kind::Dying, &host, cause)));
                    }
                    host.with(|state| state.counters.resent += 1);
                    *this.stage = Stage::CheckOut(host);
                }
                Stage::Refused(_) | Stage::Done => {
                    return match std::mem::replace(this.stage, Stage::Done) {
                        Stage::Refused(error) => Poll::Ready(Err(error)),
                        // As every future, it isn't to be polled again.
                        _ => Poll::Pending,
                    };
                }
            }
        }
    }
}

/// When the wait for a connection has to end.
fn deadline<B>(request: Option<&Request<B>>, now: Instant, acquire_timeout: Duration) -> Instant {
    let until = now + acquire_timeout;
    match request.and_then(|request| Deadline::of(request.extensions())) {
        Some(deadline) => until.min(deadline.instant().into()),
        None => until,
    }
}

impl<B> Stage<B>
where
    B: Body + Send + Unpin + 'static,
{
    /// Hands the request to hyper.
    fn sent(
        grant: Grant<Http<B>>,
        host: Arc<Host<B>>,
        request: &mut Option<Request<B>>,
        waited: Duration,
    ) -> Self {
        let Grant { id, conn, reused } = grant;
        let Some(mut request) = request.take() else {
            return Self::Done;
        };
        let carrier = match conn {
            Conn::Exclusive(mut conn) => {
                address_h1(&mut request, &host, conn.link.facts.proxied);
                // hyper lets one request in before the connection says that it
                // is ready. This one is free, so if it isn't ready it has died,
                // and its request comes back at once.
                let request = request.map(|body| Sent::new(body, None));
                conn.reply.set(conn.sender.try_send_request(request));
                Carrier::H1(conn)
            }
            Conn::Shared(mut conn) => {
                address_h2(&mut request, &host);
                let reads = conn.link.wire.reads();
                let mut awaited = conn.replies.take();
                let watch = Watch {
                    handed: awaited.handed.clone(),
                    wire: conn.link.wire.clone(),
                };
                let request = request.map(|body| Sent::new(body, Some(watch)));
                awaited.reply.set(conn.sender.try_send_request(request));
                Carrier::H2 {
                    awaited,
                    replies: conn.replies,
                    link: conn.link,
                    reads,
                }
            }
        };
        Self::Sent(Lease {
            host,
            id,
            reused,
            waited,
            carrier: Some(carrier),
        })
    }
}

/// HTTP/1.1 wants the path in its first line, and the host in a header. A
/// proxy that passes plain HTTP on wants the whole URL.
fn address_h1<B>(request: &mut Request<B>, host: &Host<B>, proxied: bool) {
    if request.uri().scheme().is_some() && !proxied {
        let mut parts = std::mem::take(request.uri_mut()).into_parts();
        parts.scheme = None;
        parts.authority = None;
        // A path without the rest is a URL, always.
        *request.uri_mut() = http::Uri::from_parts(parts).unwrap_or_default();
    }
    if !request.headers().contains_key(HOST) {
        request.headers_mut().insert(HOST, host.header.clone());
    }
}

/// HTTP/2 wants the whole URL, and no header for the host. The headers that
/// are about an HTTP/1.1 connection are removed by hyper.
fn address_h2<B>(request: &mut Request<B>, host: &Host<B>) {
    let authority = request.headers_mut().remove(HOST);
    if request.uri().scheme().is_none() {
        // It has been on an HTTP/1.1 connection that died.
        let path = request.uri().path_and_query().cloned();
        let path = path.unwrap_or_else(|| PathAndQuery::from_static("/"));
        *request.uri_mut() = host.absolute(path);
    }
    // A host of the caller's choice stays their choice.
    if let Some(authority) = authority
        && authority != host.header
        && let Ok(authority) = http::uri::Authority::try_from(authority.as_bytes())
    {
        let mut parts = std::mem::take(request.uri_mut()).into_parts();
        parts.authority = Some(authority);
        *request.uri_mut() = http::Uri::from_parts(parts).unwrap_or_default();
    }
}

impl<B: 'static> Lease<B> {
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Reply<B>> {
        match &mut self.carrier {
            Some(Carrier::H1(conn)) => conn.reply.poll(cx),
            Some(Carrier::H2 { awaited, .. }) => awaited.reply.poll(cx),
            // It is taken only by those who consume the lease.
            None => Poll::Pending,
        }
    }

    /// The head of the response is here.
    fn answered(&mut self, mut response: Response<Incoming>) -> Response<PoolBody>
    where
        B: Send,
    {
        let Some(carrier) = self.carrier.take() else {
            return response.map(PoolBody::complete);
        };
        let facts = match &carrier {
            Carrier::H1(conn) => &conn.link.facts,
            Carrier::H2 { link, .. } => &link.facts,
        };
        response.extensions_mut().insert(ConnectionInfo {
            facts: facts.clone(),
            reused: self.reused,
            waited: self.waited,
        });
        let (host, id) = (self.host.clone(), self.id);
        let complete = Body::is_end_stream(response.body());
        match carrier {
            // Nobody asked for another protocol.
            Carrier::H1(_) if response.status() == StatusCode::SWITCHING_PROTOCOLS => {
                host.retire(id, CloseReason::Error);
                response.map(PoolBody::complete)
            }
            Carrier::H1(conn) if complete => {
                host.put_back(id, conn);
                response.map(PoolBody::complete)
            }
            Carrier::H1(conn) => {
                host.with(|state| state.reading(id, conn));
                response.map(|body| PoolBody::new(body, host, id, false))
            }
            Carrier::H2 {
                awaited, replies, ..
            } => {
                replies.keep(awaited);
                if complete {
                    host.release(id);
                    return response.map(PoolBody::complete);
                }
                response.map(|body| PoolBody::new(body, host, id, true))
            }
        }
    }

    /// The request failed, and with it perhaps the whole connection. Returns
    /// the request, if nothing of it was sent.
    fn broken(&mut self, mut failed: Failed<B>) -> Broken<B> {
        let request = failed.take_message();
        if request.is_some() || !is_stream_error(failed.error()) {
            self.host.retire(self.id, CloseReason::Error);
        }
        let carrier = self.carrier.take();
        let handed = matches!(&carrier,
            Some(Carrier::H2 { awaited, .. }) if awaited.handed.is_certain());
        if let Some(carrier) = carrier {
            self.end(carrier, CloseReason::Error);
        }
        match request {
            Some(request) => Broken::Unsent(request.map(Sent::into_inner), failed.into_error()),
            None => Broken::Sent(judge(failed.into_error(), handed, &self.host)),
        }
    }

    fn end(&self, carrier: Carrier<B>, reason: CloseReason) {
        let now = Instant::now();
        match carrier {
            Carrier::H1(conn) => {
                self.host.with(|state| state.retire(self.id, reason, now));
                drop(conn);
            }
            Carrier::H2 {
                link,
                reads,
                awaited,
                ..
            } => {
                let silent = link.wire.reads() == reads;
                self.host.with(|state| {
                    // One stream's end says nothing of the others; silence
                    // does.
                    if silent {
                        state.retire(self.id, CloseReason::Unresponsive, now);
                    }
                    state.release(self.id, now);
                });
                drop(awaited);
            }
        }
    }
}

impl<B: 'static> Drop for Lease<B> {
    fn drop(&mut self) {
        if let Some(carrier) = self.carrier.take() {
            self.end(carrier, CloseReason::Cancelled);
        }
    }
}

/// Whether an error ended one stream of a connection, and not all of it.
fn is_stream_error(error: &hyper::Error) -> bool {
    find::<h2::Error>(error).is_some_and(h2::Error::is_reset)
}

/// What hyper's error means, of a request that it has taken. `handed` is
/// whether its stream had a future of its own: see [`crate::sent::Handed`].
fn judge<B>(failed: hyper::Error, handed: bool, host: &Host<B>) -> PoolError {
    let refused = find::<h2::Error>(&failed).is_some_and(|error| {
        // A GOAWAY ends the streams above the last one that the peer processes
        // (RFC 9113, 6.8), and no other.
        let above = handed && error.is_go_away();
        let refused = error.is_reset() && error.reason() == Some(h2::Reason::REFUSED_STREAM);
        error.is_remote() && (above || refused)
    });
    let kind = if refused {
        Kind::Refused
    } else if failed.is_user() || failed.is_body_write_aborted() {
        Kind::Send
    } else {
        Kind::Head
    };
    error(kind, host, Some(failed.into()))
}

fn error<B>(kind: Kind, host: &Host<B>, cause: Option<BoxError>) -> PoolError {
    PoolError::new(kind, Some(host.name.clone()), cause)
}

impl<B> fmt::Debug for ResponseFuture<B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let stage = match &self.stage {
            Stage::Refused(_) => "refused",
            Stage::CheckOut(_) => "not begun",
            Stage::Waiting(_) => "waiting",
            Stage::Sent(_) => "sent",
            Stage::Done => "done",
        };
        f.debug_struct("ResponseFuture")
            .field("stage", &stage)
            .finish_non_exhaustive()
    }
}
