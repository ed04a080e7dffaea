//! A connection with a request on it.

use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use http::{Request, Response, StatusCode};
use http_body::Body;
use hyper::body::Incoming;
use hyper::client::conn::TrySendError;
use tokio::time::Instant;
use tollway_core::BoxError;

use crate::address::{address_h1, address_h2, restore_host, tell_empty};
use crate::arena::Id;
use crate::body::{PoolBody, Stream};
use crate::conn::{H1, H2, Http, Line, Lines};
use crate::error::{Kind, PoolError};
use crate::failure::{find, find_io, is_stream_reset};
use crate::host::Host;
use crate::info::{ConnectionInfo, Facts};
use crate::sent::{Handed, Sent};
use crate::state::{Conn, Grant};
use crate::stats::CloseReason;
use crate::wait::Granted;

/// A connection on which a request was sent, until there is an answer. Dropped
/// before, it gives the call up.
pub(crate) struct Lease<B: 'static>(Option<Leased<B>>);

struct Leased<B: 'static> {
    host: Arc<Host<B>>,
    id: Id,
    /// Which of the connection's calls this is.
    nth: u64,
    /// See [`Grant::rested`].
    rested: Option<Instant>,
    waited: Duration,
    carrier: Carrier<B>,
}

/// A request that failed, as hyper hands it back.
pub(crate) struct Failed<B> {
    /// The request, if nothing of it was sent.
    request: Option<Request<B>>,
    error: hyper::Error,
}

impl<B> Failed<B> {
    /// Boxed, since the answers that it stands beside are much smaller.
    #[cold]
    fn new<Q>(mut failed: TrySendError<Request<Q>>, body: impl FnOnce(Q) -> B) -> Box<Self> {
        Box::new(Self {
            request: failed.take_message().map(|request| request.map(body)),
            error: failed.into_error(),
        })
    }
}

/// A request of which nothing was sent, and why.
pub(crate) struct Unsent<B: 'static> {
    pub(crate) request: Request<B>,
    pub(crate) cause: hyper::Error,
    pub(crate) host: Arc<Host<B>>,
    /// Whether a call had used the connection before.
    pub(crate) reused: bool,
}

enum Carrier<B: 'static> {
    H1(Box<H1<B>>),
    H2 {
        line: Line<B>,
        lines: Arc<Lines<B>>,
        facts: Arc<Facts>,
        /// When the request was sent, and how often the peer had been heard of
        /// by then.
        sent: Instant,
        reads: u64,
    },
}

impl<B: 'static> Lease<B> {
    /// Hands the request to hyper.
    #[inline]
    pub(crate) fn send(
        grant: Grant<Http<B>>,
        host: Arc<Host<B>>,
        mut request: Request<B>,
        waited: Duration,
        now: Instant,
    ) -> Self
    where
        B: Body + Send + Unpin + 'static,
        B::Error: Into<BoxError>,
    {
        let Grant {
            id,
            conn,
            nth,
            rested,
        } = grant;
        let carrier = match conn {
            Conn::Exclusive(mut conn) => {
                address_h1(&mut request, &host, conn.facts.proxied.as_ref());
                tell_empty(&mut request);
                // hyper lets one request in before the connection says that it
                // is ready. This one is free, so if it isn't ready it has died,
                // and its request comes back at once.
                let H1 { sender, wire, .. } = &mut *conn;
                let reply = wire.handing(|| sender.try_send_request(request));
                conn.reply.set(reply);
                Carrier::H1(conn)
            }
            Conn::Shared(H2 { lines, facts }) => {
                address_h2(&mut request, &host);
                let reads = lines.wire.reads();
                let mut line = lines.take();
                line.send(request, &lines.wire);
                Carrier::H2 {
                    line,
                    lines,
                    facts,
                    sent: now,
                    reads,
                }
            }
        };
        Self(Some(Leased {
            host,
            id,
            nth,
            rested,
            waited,
            carrier,
        }))
    }

    /// The same, after a wait.
    pub(crate) fn granted(granted: Granted<B>) -> Self
    where
        B: Body + Send + Unpin + 'static,
        B::Error: Into<BoxError>,
    {
        let Granted {
            grant,
            host,
            request,
            waited,
        } = granted;
        Self::send(grant, host, request, waited, Instant::now())
    }

    #[inline]
    pub(crate) fn poll(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Result<Response<Incoming>, Box<Failed<B>>>> {
        match self.0.as_mut().map(|leased| &mut leased.carrier) {
            Some(Carrier::H1(conn)) => {
                let polled = conn.reply.poll(cx);
                polled.map_err(|failed| Failed::new(failed, |body| body))
            }
            Some(Carrier::H2 { line, .. }) => {
                let polled = line.reply.poll(cx);
                polled.map_err(|failed| Failed::new(failed, Sent::into_inner))
            }
            // There was an answer.
            None => Poll::Pending,
        }
    }

    /// The head of the response is here.
    pub(crate) fn answered(&mut self, mut response: Response<Incoming>) -> Response<PoolBody>
    where
        B: Send,
    {
        let Some(leased) = self.0.take() else {
            return response.map(PoolBody::complete);
        };
        let reused = leased.is_reused();
        let Leased {
            host,
            id,
            waited,
            carrier,
            ..
        } = leased;
        let info = |facts| ConnectionInfo {
            facts,
            reused,
            waited,
        };
        let complete = Body::is_end_stream(response.body());
        let mut conn = match carrier {
            Carrier::H1(conn) => conn,
            Carrier::H2 {
                line, lines, facts, ..
            } => {
                let request = Handed::is_sending(&line.handed).then(|| line.handed.clone());
                lines.keep(line);
                response.extensions_mut().insert(info(facts));
                let stream = Stream { host, id, request };
                if complete {
                    stream.finish();
                    return response.map(PoolBody::complete);
                }
                return response.map(|body| PoolBody::shared(body, stream));
            }
        };
        let facts = conn.facts.clone();
        response.extensions_mut().insert(info(facts));
        if response.status() == StatusCode::SWITCHING_PROTOCOLS {
            // Nobody asked for another protocol.
            host.retire(id, CloseReason::Error);
            response.map(PoolBody::complete)
        } else if complete {
            host.put_back(id, conn);
            response.map(PoolBody::complete)
        } else {
            conn.home = Some((host, id));
            response.map(|body| PoolBody::own(body, conn))
        }
    }

    /// The request failed, and with it perhaps the whole connection. Returns
    /// the request, if nothing of it was sent.
    pub(crate) fn broken(mut self, failed: Failed<B>) -> Option<Result<Unsent<B>, PoolError>> {
        Some(self.0.take()?.broken(failed))
    }
}

impl<B: 'static> Leased<B> {
    /// Whether a call used the connection before.
    fn is_reused(&self) -> bool {
        self.nth > 1
    }

    fn broken(self, failed: Failed<B>) -> Result<Unsent<B>, PoolError> {
        let Failed { request, error } = failed;
        // Under HTTP/1.1 it would be the transport that had one.
        let goes_away = matches!(&self.carrier, Carrier::H2 { .. })
            && find::<h2::Error>(&error).is_some_and(|e| e.is_remote() && e.is_go_away());
        if request.is_some() || goes_away {
            // It had ended before, or the peer has said GOAWAY.
            self.host.retire(self.id, CloseReason::Peer);
        } else if !is_stream_reset(&error) {
            self.host.retire(self.id, CloseReason::Error);
        }
        if let Some(rested) = self.rested
            && (request.is_some() || is_lost(&error))
        {
            let now = Instant::now();
            self.host.with(|state| state.distrust(rested, now));
        }
        let handed = matches!(&self.carrier,
            Carrier::H2 { line, .. } if line.handed.is_certain());
        // A GOAWAY ends the streams above the last one that the peer processes
        // (RFC 9113, 6.8), and no other. `handed` is whether this one had a
        // future of its own: see `crate::sent::Handed`.
        let above = handed && goes_away;
        if above {
            let now = Instant::now();
            self.host
                .with(|state| state.refused(self.id, self.nth, now));
        }
        let reused = self.is_reused();
        let host = self.end(CloseReason::Error);
        match request {
            Some(mut request) => {
                restore_host(&mut request, &host);
                Ok(Unsent {
                    request,
                    cause: error,
                    host,
                    reused,
                })
            }
            None => Err(judge(error, above, &host)),
        }
    }

    fn end(self, reason: CloseReason) -> Arc<Host<B>> {
        let now = Instant::now();
        match self.carrier {
            Carrier::H1(conn) => {
                self.host.with(|state| state.retire(self.id, reason, now));
                drop(conn);
            }
            Carrier::H2 {
                line,
                lines,
                facts,
                sent,
                reads,
            } => {
                // Only where the call was given up: one that failed may have done so
                // by itself. And no shorter than it took to open the connection:
                // before that, not even the answer to a PING would be here.
                let silent = reason == CloseReason::Cancelled
                    && lines.wire.reads() == reads
                    && now.saturating_duration_since(sent) >= facts.handshake;
                self.host.with(|state| {
                    // One stream's end says nothing of the others; silence
                    // does.
                    if silent {
                        state.retire(self.id, CloseReason::Unresponsive, now);
                    }
                    state.release(self.id, now);
                });
                drop(line);
            }
        }
        self.host
    }
}

impl<B: 'static> Drop for Lease<B> {
    fn drop(&mut self) {
        if let Some(leased) = self.0.take() {
            leased.end(CloseReason::Cancelled);
        }
    }
}

/// Whether the connection was lost, and not only its call.
fn is_lost(error: &hyper::Error) -> bool {
    error.is_incomplete_message() || error.is_closed() || find_io(error).is_some()
}

/// Whether the connection's task ended with the request in its hands: with the
/// pool, its runtime, or a connection that broke just then. hyper counts it among
/// the user's errors, of which those of bodies are the only others here, and has
/// no predicate for it.
fn is_orphan(error: &hyper::Error) -> bool {
    error.to_string() == "dispatch task is gone"
}

/// What hyper's error means, of a request that it has taken. `above` is whether
/// the peer ended the connection before it.
fn judge<B>(failed: hyper::Error, above: bool, host: &Host<B>) -> PoolError {
    let reset = find::<h2::Error>(&failed).filter(|error| error.is_reset());
    let refused = host.trust_refused_stream
        && reset.is_some_and(|error| {
            error.is_remote() && error.reason() == Some(h2::Reason::REFUSED_STREAM)
        });
    // Neither the peer nor the protocol's rules: hyper's HTTP/2 resets a stream
    // whose body fails, and keeps the reason to itself.
    let own = reset.is_some_and(|error| !error.is_remote() && !error.is_library());
    let kind = if above || refused {
        Kind::Refused
    } else if own || (failed.is_user() && !is_orphan(&failed)) {
        Kind::Send
    } else if failed.is_parse() {
        Kind::Garbled
    } else {
        Kind::Head
    };
    host.error(kind, Some(failed.into()))
}
