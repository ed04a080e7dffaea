//! Runs what hyper's HTTP/2 spawns.

use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll};

use pin_project_lite::pin_project;
use tokio::task::AbortHandle;

use crate::errands::{Errands, Inbox};
use crate::sent::Does;
use crate::wire::Wire;

/// Runs what hyper's HTTP/2 spawns. The first of a connection is the task that
/// has the socket: that one can be aborted, and tells of its progress. The
/// others are the requests', two for one with a body: one sends it, the other
/// awaits the head of the answer.
///
/// Either does next to nothing, a few times, and is woken by the task that has
/// the socket: a task of its own would cost more than what it does. So that task
/// runs them, but for those that have code of the caller's to run, bodies that
/// aren't at their end: the other calls aren't to wait for that.
#[derive(Clone)]
pub(crate) struct H2Executor(Arc<Shared>);

struct Shared {
    wire: Arc<Wire>,
    inbox: Arc<Inbox>,
    socket: Arc<OnceLock<AbortHandle>>,
}

impl H2Executor {
    pub(crate) fn new(wire: Arc<Wire>) -> Self {
        Self(Arc::new(Shared {
            wire,
            inbox: Inbox::new(),
            socket: Arc::default(),
        }))
    }

    /// The task that has the socket, once it runs.
    pub(crate) fn socket(&self) -> &Arc<OnceLock<AbortHandle>> {
        &self.0.socket
    }

    #[cold]
    fn run_socket<F>(&self, future: F)
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let task = tokio::spawn(Socket {
            conn: Some(future),
            errands: Errands::new(self.0.inbox.clone()),
            wire: self.0.wire.clone(),
            held: false,
        });
        // It was empty: hyper makes this call once, before any other.
        let _ = self.0.socket.set(task.abort_handle());
    }
}

impl<F> hyper::rt::Executor<F> for H2Executor
where
    F: Future<Output = ()> + Send + 'static,
{
    fn execute(&self, future: F) {
        let shared = &*self.0;
        if shared.socket.get().is_none() {
            return self.run_socket(future);
        }
        match shared.wire.opening.spawned() {
            Does::SendUnfinished => {
                // Boxed, since it is as large as the connection's.
                tokio::spawn(Box::pin(future));
                return;
            }
            Does::SendWhole => shared.wire.follows(),
            Does::Await => {}
        }
        if let Err(future) = shared.inbox.push(future) {
            // The connection has ended, as the future is about to learn.
            tokio::spawn(future);
        }
    }
}

pin_project! {
    /// The task that has the socket.
    struct Socket<F> {
        // Until the connection has ended. Dropped first, so that what is left to
        // run below can tell the calls why.
        #[pin]
        conn: Option<F>,
        errands: Errands,
        wire: Arc<Wire>,
        // Whether writes were held back by the last poll.
        held: bool,
    }
}

impl<F: Future<Output = ()>> Future for Socket<F> {
    type Output = ();

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let mut this = self.project();
        this.errands.expect();
        // HEADERS wait for the DATA that an errand is about to add, so that both
        // take one write, and one packet; but once only, whatever comes next.
        *this.held = this.wire.take_following() && !*this.held;
        this.wire.hold(*this.held);
        if *this.held {
            cx.waker().wake_by_ref();
        }
        if let Some(conn) = this.conn.as_mut().as_pin_mut()
            && conn.poll(cx).is_ready()
        {
            this.conn.set(None);
        }
        this.wire.progressed();
        this.errands.run(cx);
        if this.conn.is_none() && this.errands.is_done() {
            Poll::Ready(())
        } else {
            Poll::Pending
        }
    }
}

#[cfg(test)]
mod tests {
    use std::future::{pending, poll_fn};
    use std::io;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::task::Wake;

    use bytes::Bytes;
    use http::{Request, Response};
    use http_body_util::Full;
    use hyper::body::Incoming;
    use hyper::client::conn::http2;
    use hyper::rt::{Read, ReadBufCursor, Write};
    use hyper::service::service_fn;
    use hyper_util::rt::{TokioExecutor, TokioIo};
    use tokio::io::DuplexStream;
    use tokio::sync::oneshot;
    use tokio::sync::oneshot::error::TryRecvError;

    use super::*;
    use crate::sent::{Handed, Sent};
    use crate::wire::{OnClose, Watched};

    /// An errand that learns of the connection's end, and what it learns.
    fn socket(
        turns: usize,
    ) -> (
        Socket<impl Future<Output = ()>>,
        oneshot::Sender<()>,
        oneshot::Receiver<bool>,
    ) {
        let inbox = Inbox::new();
        let (close, closed) = oneshot::channel();
        let (stream, ended) = oneshot::channel::<()>();
        let (tell, told) = oneshot::channel();
        let pushed = inbox.push(async move {
            let ended = ended.await.is_err();
            for _ in 0..turns {
                tokio::task::yield_now().await;
            }
            tell.send(ended).unwrap();
        });
        assert!(pushed.is_ok());
        let conn = async move {
            let _stream = stream;
            if closed.await.is_err() {
                pending::<()>().await;
            }
        };
        let socket = Socket {
            conn: Some(conn),
            errands: Errands::new(inbox),
            wire: Arc::default(),
            held: false,
        };
        (socket, close, told)
    }

    #[tokio::test]
    async fn calls_learn_why_a_connection_has_ended_before_its_task_does() {
        for turns in 0..3 {
            let (socket, close, mut told) = socket(turns);
            let task = tokio::spawn(socket);
            tokio::task::yield_now().await;
            assert_eq!(told.try_recv(), Err(TryRecvError::Empty));
            close.send(()).unwrap();
            task.await.unwrap();
            assert_eq!(told.try_recv(), Ok(true));
        }
    }

    #[tokio::test]
    async fn so_they_do_where_it_is_cut_off() {
        let (socket, _close, told) = socket(0);
        let task = tokio::spawn(socket);
        tokio::task::yield_now().await;
        task.abort();
        assert_eq!(told.await, Ok(true));
    }

    /// Counts the writes that a connection makes.
    struct Counted {
        io: TokioIo<DuplexStream>,
        writes: Arc<AtomicUsize>,
    }

    impl Read for Counted {
        fn poll_read(
            mut self: Pin<&mut Self>,
            cx: &mut Context<'_>,
            buf: ReadBufCursor<'_>,
        ) -> Poll<io::Result<()>> {
            Pin::new(&mut self.io).poll_read(cx, buf)
        }
    }

    impl Write for Counted {
        fn poll_write(
            mut self: Pin<&mut Self>,
            cx: &mut Context<'_>,
            buf: &[u8],
        ) -> Poll<io::Result<usize>> {
            self.writes.fetch_add(1, Ordering::SeqCst);
            Pin::new(&mut self.io).poll_write(cx, buf)
        }

        fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
            Pin::new(&mut self.io).poll_flush(cx)
        }

        fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
            Pin::new(&mut self.io).poll_shutdown(cx)
        }
    }

    /// A connection that counts its writes, and its other end.
    fn counted(wire: &Arc<Wire>) -> (Watched<Counted>, Arc<AtomicUsize>, DuplexStream) {
        let (io, peer) = tokio::io::duplex(1024);
        let writes = Arc::default();
        let counted = Counted {
            io: TokioIo::new(io),
            writes: Arc::clone(&writes),
        };
        let on_close = OnClose(Box::new(|| {}));
        (Watched::new(counted, wire.clone(), on_close), writes, peer)
    }

    #[tokio::test]
    async fn a_request_and_its_body_take_one_write() {
        let wire = Arc::new(Wire::default());
        let (io, writes, peer) = counted(&wire);
        let answer = service_fn(async |_: Request<Incoming>| {
            Ok::<_, io::Error>(Response::new(Full::<Bytes>::default()))
        });
        let server = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
        tokio::spawn(server.serve_connection(TokioIo::new(peer), answer));
        let executor = H2Executor::new(wire.clone());
        let (mut sender, conn) = http2::handshake(executor, io).await.unwrap();
        tokio::spawn(conn);
        for body in ["all of it", "", "all of the next one"] {
            // What is to be said about settings has been said.
            for _ in 0..10 {
                tokio::task::yield_now().await;
            }
            let before = writes.load(Ordering::SeqCst);
            let body = Sent::new(Full::new(Bytes::from(body)), Handed::new(wire.clone()));
            sender.send_request(Request::new(body)).await.unwrap();
            assert_eq!(writes.load(Ordering::SeqCst) - before, 1);
        }
    }

    /// Counts how often the task was woken.
    struct Woken(AtomicUsize);

    impl Wake for Woken {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::SeqCst);
        }
    }

    #[tokio::test]
    async fn nothing_is_held_back_twice_or_for_good() {
        let wire = Arc::new(Wire::default());
        let (mut io, writes, _peer) = counted(&wire);
        let mut socket = Box::pin(Socket {
            conn: Some(poll_fn(move |cx| {
                let _ = Pin::new(&mut io).poll_write(cx, b"some");
                Poll::<()>::Pending
            })),
            errands: Errands::new(Inbox::new()),
            wire: wire.clone(),
            held: false,
        });
        let woken = Arc::new(Woken(AtomicUsize::new(0)));
        let waker = woken.clone().into();
        let mut cx = Context::from_waker(&waker);
        for (follows, written) in [(true, 0), (true, 1), (false, 2), (true, 2), (false, 3)] {
            if follows {
                wire.follows();
            }
            assert!(socket.as_mut().poll(&mut cx).is_pending());
            assert_eq!(writes.load(Ordering::SeqCst), written);
        }
        assert_eq!(woken.0.load(Ordering::SeqCst), 2);
    }
}
