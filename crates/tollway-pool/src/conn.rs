//! A connection of hyper's, as the pool holds it.

use std::error::Error;
use std::fmt;
use std::future::{Future, pending, poll_fn};
use std::marker::PhantomData;
use std::pin::{Pin, pin};
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::task::{Context, Poll};

use http::{Request, Response};
use http_body::Body;
use hyper::body::Incoming;
use hyper::client::conn::{TrySendError, http1, http2};
use hyper::rt::{Read, Write};
use tokio::task::AbortHandle;
use tokio_util::sync::ReusableBoxFuture;
use tollway_core::BoxError;

use crate::arena::Id;
use crate::executor::H2Executor;
use crate::failure::Failure;
use crate::host::Host;
use crate::info::Facts;
use crate::sent::{Handed, Sent};
use crate::state::Kind;
use crate::stats::CloseReason;
use crate::wire::{Watched, Wire};

/// What hyper answers: a response, or an error that may hold the request.
pub(crate) type Reply<B> = Result<Response<Incoming>, TrySendError<Request<B>>>;

/// The bookkeeping, filled in with hyper's connections.
pub(crate) struct Http<B>(PhantomData<fn(B)>);

impl<B: 'static> Kind for Http<B> {
    // Boxed, since a call passes it on more than once.
    type Exclusive = Box<H1<B>>;
    type Shared = H2<B>;
    type Abort = Abort;
    type Failure = Failure;
}

impl<B> fmt::Debug for Http<B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Http")
    }
}

/// An HTTP/1.1 connection.
pub(crate) struct H1<B: 'static> {
    pub(crate) sender: http1::SendRequest<B>,
    /// Where the answer is awaited. hyper's future for it has no name; kept
    /// with the connection, its box is allocated once a connection and not
    /// once a call.
    pub(crate) reply: ReusableBoxFuture<'static, Reply<B>>,
    pub(crate) wire: Arc<Wire>,
    pub(crate) facts: Arc<Facts>,
    /// Where it belongs, while a response is read from it.
    pub(crate) home: Option<(Arc<Host<B>>, Id)>,
}

/// An HTTP/2 connection.
pub(crate) struct H2<B> {
    pub(crate) lines: Arc<Lines<B>>,
    pub(crate) facts: Arc<Facts>,
}

/// What the body of a response over HTTP/1.1 needs of its connection, whatever the
/// request's body was.
pub(crate) trait Reading: Send + Sync {
    /// The body has been read to its end.
    fn read_out(self: Box<Self>);
    /// It won't be. Returns the host's name, for errors.
    fn abandon(self: Box<Self>, reason: CloseReason) -> Option<Arc<str>>;
}

impl<B: Send + 'static> Reading for H1<B> {
    fn read_out(mut self: Box<Self>) {
        if let Some((host, id)) = self.home.take() {
            host.put_back(id, self);
        }
    }

    fn abandon(mut self: Box<Self>, reason: CloseReason) -> Option<Arc<str>> {
        let (host, id) = self.home.take()?;
        host.retire(id, reason);
        Some(host.name.clone())
    }
}

/// What a call over HTTP/2 is made with, and after that another.
pub(crate) struct Line<B> {
    sender: http2::SendRequest<Sent<B>>,
    pub(crate) reply: ReusableBoxFuture<'static, Reply<Sent<B>>>,
    pub(crate) handed: Arc<Handed>,
}

impl<B> Line<B>
where
    B: Body + Send + 'static,
    B::Error: Into<BoxError>,
{
    pub(crate) fn send(&mut self, request: Request<B>, wire: &Wire) {
        let request = request.map(|body| Sent::new(body, self.handed.clone()));
        let reply = wire.handing(|| self.sender.try_send_request(request));
        self.reply.set(reply);
    }
}

/// The lines of one connection: as many are kept as there were calls at once,
/// up to a bound.
pub(crate) struct Lines<B> {
    pub(crate) wire: Arc<Wire>,
    kept: Mutex<Kept<B>>,
}

struct Kept<B> {
    /// That of every further line.
    sender: http2::SendRequest<Sent<B>>,
    lines: Vec<Line<B>>,
}

impl<B: 'static> Lines<B> {
    const KEPT: usize = 100;

    pub(crate) fn new(wire: Arc<Wire>, sender: http2::SendRequest<Sent<B>>) -> Self {
        let lines = Vec::new();
        Self {
            wire,
            kept: Mutex::new(Kept { sender, lines }),
        }
    }

    /// One for a further call.
    pub(crate) fn take(&self) -> Line<B> {
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        match kept.lines.pop() {
            Some(mut line) => {
                drop(kept);
                Handed::renew(&mut line.handed);
                line
            }
            None => Line {
                sender: kept.sender.clone(),
                reply: ReusableBoxFuture::new(pending()),
                handed: Handed::new(self.wire.clone()),
            },
        }
    }

    /// Keeps one whose answer has come.
    pub(crate) fn keep(&self, line: Line<B>) {
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        if kept.lines.len() < Self::KEPT {
            kept.lines.push(line);
        }
    }
}

impl<B> Clone for H2<B> {
    fn clone(&self) -> Self {
        Self {
            lines: self.lines.clone(),
            facts: self.facts.clone(),
        }
    }
}

impl<B> fmt::Debug for H1<B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("H1").field(&self.facts).finish()
    }
}

impl<B> fmt::Debug for H2<B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("H2").field(&self.facts).finish()
    }
}

/// Ends a connection's tasks, and with them the connection.
#[derive(Clone, Debug)]
pub(crate) struct Abort {
    /// Drives the connection, or over HTTP/2 its requests.
    pub(crate) driver: AbortHandle,
    /// HTTP/2 only: the task that has the socket.
    pub(crate) socket: Arc<OnceLock<AbortHandle>>,
}

impl Abort {
    pub(crate) fn abort(&self) {
        self.driver.abort();
        if let Some(socket) = self.socket.get() {
            socket.abort();
        }
    }
}

/// hyper's end of a connection, with the requests that it was handed.
struct Driven<C> {
    /// There until it is dropped.
    conn: Option<C>,
    wire: Arc<Wire>,
}

impl<C> Driven<C> {
    fn new(conn: C, wire: Arc<Wire>) -> Self {
        let conn = Some(conn);
        Self { conn, wire }
    }

    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<C::Output>
    where
        C: Future + Unpin,
    {
        match &mut self.conn {
            Some(conn) => Pin::new(conn).poll(cx),
            None => Poll::Pending,
        }
    }
}

impl<C> Drop for Driven<C> {
    fn drop(&mut self) {
        let conn = self.conn.take();
        self.wire.handing(|| drop(conn));
    }
}

/// Drives an HTTP/1.1 connection, and sees when it is ready for a further
/// call: a body's last byte reaches its reader a moment before.
pub(crate) async fn drive_h1<T, B>(
    conn: http1::Connection<Watched<T>, B>,
    wire: Arc<Wire>,
    host: Arc<Host<B>>,
    id: Id,
) where
    T: Read + Write + Unpin + Send + 'static,
    B: Body + Send + 'static,
    B::Data: Send,
    B::Error: Into<BoxError>,
{
    let mut driven = Driven::new(conn, wire.clone());
    let ended = poll_fn(|cx| {
        let polled = driven.poll(cx);
        // Readiness is signalled within the poll above, and the flag is set
        // before readiness is looked at for the last time by the one who sets
        // it. So one of the two sees it.
        if polled.is_pending() && wire.settling.load(Ordering::SeqCst) && host.settle(id) {
            wire.settling.store(false, Ordering::SeqCst);
        }
        polled
    });
    tell(ended.await, &host);
}

/// Drives the requests of an HTTP/2 connection, and keeps an eye on how many
/// streams the peer allows. A request that is sent or answered makes it look. Where
/// the peer allows none, there will be none, so whatever comes from it does.
pub(crate) async fn drive_h2<T, B>(
    conn: http2::Connection<Watched<T>, Sent<B>, H2Executor>,
    wire: Arc<Wire>,
    mut limit: usize,
    host: Arc<Host<B>>,
    id: Id,
) where
    T: Read + Write + Unpin + Send + 'static,
    B: Body + Send + Unpin + 'static,
    B::Data: Send,
    B::Error: Into<BoxError>,
{
    wire.watch(limit == 0);
    let mut driven = Driven::new(conn, wire.clone());
    let ended = loop {
        let mut progress = pin!(wire.progress.notified());
        let ended = poll_fn(|cx| {
            let polled = driven.poll(cx);
            while let Some(conn) = &driven.conn {
                let now = conn.current_max_send_streams();
                if now == limit {
                    break;
                }
                if !host.limit_changed(id, now) {
                    // It is about to be reported as open.
                    cx.waker().wake_by_ref();
                    break;
                }
                limit = now;
                // And looks again, since it may have been raised before anybody
                // watched.
                wire.watch(limit == 0);
            }
            match polled {
                Poll::Ready(ended) => Poll::Ready(Some(ended)),
                Poll::Pending if limit == 0 => progress.as_mut().poll(cx).map(|()| None),
                Poll::Pending => Poll::Pending,
            }
        });
        if let Some(ended) = ended.await {
            break ended;
        }
    };
    // GOAWAY, or the end. Streams may still be on it, but no new one will be: the
    // next request comes back unsent.
    tell(ended, &host);
}

fn tell<B>(ended: hyper::Result<()>, host: &Host<B>) {
    if let Err(error) = ended {
        tracing::debug!(
            target: "tollway::pool",
            { server.address = host.key.address(),
            server.port = i64::from(host.key.port()),
            error = &error as &dyn Error },
            "connection broke",
        );
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicBool;

    use bytes::Bytes;
    use http_body::Body as _;
    use http_body_util::Full;
    use hyper_util::rt::TokioIo;

    use super::*;

    /// Of a connection that goes nowhere.
    async fn lines() -> Lines<Full<Bytes>> {
        let wire = Arc::new(Wire::default());
        let (io, _peer) = tokio::io::duplex(1024);
        let (sender, _) = http2::handshake(H2Executor::new(wire.clone()), TokioIo::new(io))
            .await
            .unwrap();
        Lines::new(wire, sender)
    }

    /// Else a call could wait for ever; see [`Wire::handing`].
    #[test]
    fn no_request_is_handed_over_while_those_of_a_connection_are_dropped() {
        struct Conn(Arc<Wire>, Arc<AtomicBool>);

        impl Drop for Conn {
            fn drop(&mut self) {
                self.1.store(self.0.is_handing(), Ordering::SeqCst);
            }
        }

        let wire = Arc::new(Wire::default());
        let held = Arc::new(AtomicBool::new(false));
        let conn = Conn(wire.clone(), held.clone());
        drop(Driven::new(conn, wire.clone()));
        assert!(held.load(Ordering::SeqCst));
        assert!(!wire.is_handing());
        assert!(wire.handing(|| wire.is_handing()));
    }

    #[tokio::test]
    async fn what_one_call_was_certain_of_the_next_is_not() {
        let lines = lines().await;
        let line = lines.take();
        let body = Sent::new(Full::<Bytes>::default(), line.handed.clone());
        body.size_hint();
        lines.wire.opening.spawns_sending();
        drop(body);
        assert!(line.handed.is_certain());
        lines.keep(line);
        assert!(!lines.take().handed.is_certain());
    }

    #[tokio::test]
    async fn no_more_is_kept_than_calls_are_likely_to_need_again() {
        let lines = lines().await;
        let taken: Vec<_> = (0..1_000).map(|_| lines.take()).collect();
        for line in taken {
            lines.keep(line);
        }
        let kept = lines.kept.lock().unwrap();
        assert_eq!(kept.lines.len(), Lines::<()>::KEPT);
    }
}
