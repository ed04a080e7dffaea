//! Accepting connections and speaking HTTP on them.

use std::future::Future;
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use hyper::rt::Executor;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use hyper_util::server::conn::auto;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::sleep;
use tokio_rustls::TlsAcceptor;

use crate::connection::{Control, Socket};
use crate::handler::{Shared, handle};

/// Resolves once the gateway closes: its end of the channel is dropped, nothing is ever sent.
async fn closed(mut open: watch::Receiver<()>) {
    while open.changed().await.is_ok() {}
}

/// Runs the streams of an HTTP/2 connection, and ends them with the gateway.
#[derive(Clone, Debug)]
struct UntilClosed(watch::Receiver<()>);

impl<F> Executor<F> for UntilClosed
where
    F: Future + Send + 'static,
    F::Output: Send,
{
    fn execute(&self, future: F) {
        let open = self.0.clone();
        tokio::spawn(async move {
            tokio::select! {
                _ = future => {}
                () = closed(open) => {}
            }
        });
    }
}

/// Serves until the gateway closes, and returns when every connection is gone.
pub(crate) async fn accept(
    listener: TcpListener,
    tls: Option<TlsAcceptor>,
    shared: Arc<Shared>,
    open: watch::Receiver<()>,
) {
    let mut connections = JoinSet::new();
    let mut closed_here = pin!(closed(open.clone()));
    loop {
        let accepted = tokio::select! {
            () = &mut closed_here => break,
            accepted = listener.accept() => accepted,
            Some(_) = connections.join_next() => continue,
        };
        match accepted {
            Ok((stream, peer)) => {
                let (shared, tls, open) = (Arc::clone(&shared), tls.clone(), open.clone());
                connections.spawn(async move {
                    tokio::select! {
                        () = connected(stream, peer, tls, shared, open.clone()) => {}
                        () = closed(open) => {}
                    }
                });
            }
            // Out of file descriptors, say: spinning on it would only make it worse.
            Err(_) => sleep(Duration::from_millis(10)).await,
        }
    }
    drop(listener);
    while connections.join_next().await.is_some() {}
}

async fn connected(
    stream: TcpStream,
    peer: SocketAddr,
    tls: Option<TlsAcceptor>,
    shared: Arc<Shared>,
    open: watch::Receiver<()>,
) {
    // Answers are small; one that waits for an acknowledgement would distort latencies.
    let _ = stream.set_nodelay(true);
    let control = Control::new(shared.state().stats.connected());
    let socket = Socket::new(stream, Arc::clone(&control));
    let _counted = Disconnect(&shared);
    match tls {
        None => speak(socket, peer, &shared, &control, open).await,
        Some(tls) => {
            if let Ok(stream) = tls.accept(socket).await {
                speak(stream, peer, &shared, &control, open).await;
            }
        }
    }
}

struct Disconnect<'a>(&'a Shared);

impl Drop for Disconnect<'_> {
    fn drop(&mut self) {
        self.0.state().stats.disconnected();
    }
}

async fn speak<S>(
    stream: S,
    peer: SocketAddr,
    shared: &Arc<Shared>,
    control: &Arc<Control>,
    open: watch::Receiver<()>,
) where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let service =
        service_fn(|request| handle(Arc::clone(shared), Arc::clone(control), peer.ip(), request));
    // Without a timer: an idle connection is closed when the builder says so, not by hyper.
    let builder = auto::Builder::new(UntilClosed(open));
    let mut connection = pin!(builder.serve_connection(TokioIo::new(stream), service));
    let mut finished = pin!(control.finished(shared.idle_timeout));
    let mut finishing = false;
    loop {
        tokio::select! {
            // How a connection ends is the client's to see, not ours.
            _ = connection.as_mut() => return,
            () = control.aborted() => return,
            () = &mut finished, if !finishing => {
                finishing = true;
                connection.as_mut().graceful_shutdown();
            }
        }
    }
}
