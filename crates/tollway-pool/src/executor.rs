//! Runs what hyper's HTTP/2 spawns.

use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll};

use pin_project_lite::pin_project;
use tokio::task::AbortHandle;

use crate::errands::{Errands, Inbox};
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
            self.run_socket(future);
        } else if shared.wire.opening.spawns_sending() {
            // Boxed, since it is as large as the connection's.
            tokio::spawn(Box::pin(future));
        } else if let Err(future) = shared.inbox.push(future) {
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
    }
}

impl<F: Future<Output = ()>> Future for Socket<F> {
    type Output = ();

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let mut this = self.project();
        this.errands.expect();
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
    use std::future::pending;

    use tokio::sync::oneshot;
    use tokio::sync::oneshot::error::TryRecvError;

    use super::*;

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
        let socket = Socket {
            conn: Some(async move {
                let _stream = stream;
                if closed.await.is_err() {
                    pending::<()>().await;
                }
            }),
            errands: Errands::new(inbox),
            wire: Arc::default(),
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
}
