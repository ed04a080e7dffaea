//! TCP.

use std::future::Future;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use http::Uri;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::client::legacy::connect::dns::Name;
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tokio::time::timeout;
use tollway_core::BoxError;
use tower_service::Service;

use crate::failure::{OpenError, Step};

/// Connects by TCP: resolves the name anew each time, tries all of its
/// addresses, both families in a race with a head start of 300 ms for the
/// preferred one (Happy Eyeballs, RFC 8305), sets `TCP_NODELAY`, and turns on
/// TCP keep-alive after 15 s of silence.
#[derive(Clone, Debug)]
pub struct Tcp {
    timeout: Duration,
}

impl Tcp {
    /// A connector that gives up after `timeout`, the name's resolution
    /// included. An address gets an equal share of it.
    #[must_use]
    pub fn new(timeout: Duration) -> Self {
        Self { timeout }
    }
}

impl Service<Uri> for Tcp {
    type Response = TokioIo<TcpStream>;
    type Error = BoxError;
    type Future = Connecting<TokioIo<TcpStream>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, uri: Uri) -> Self::Future {
        let limit = self.timeout;
        // A literal address needs no resolver, and hyper-util asks none.
        let resolved = Arc::new(AtomicBool::new(is_literal(&uri)));
        let mut connector = HttpConnector::new_with_resolver(Resolver {
            resolved: resolved.clone(),
        });
        connector.enforce_http(false);
        connector.set_nodelay(true);
        connector.set_keepalive(Some(KEEP_ALIVE));
        connector.set_keepalive_interval(Some(KEEP_ALIVE));
        connector.set_connect_timeout(Some(limit));
        Connecting(Box::pin(async move {
            match timeout(limit, connector.call(uri)).await {
                Ok(Ok(stream)) => Ok(stream),
                Ok(Err(error)) if resolved.load(Ordering::Relaxed) => {
                    Err(OpenError::new(Step::Connect, error).into())
                }
                Ok(Err(error)) => Err(OpenError::new(Step::Resolve, error).into()),
                Err(_) if resolved.load(Ordering::Relaxed) => {
                    Err(OpenError::timed_out(Step::Connect, limit).into())
                }
                Err(_) => Err(OpenError::timed_out(Step::Resolve, limit).into()),
            }
        }))
    }
}

fn is_literal(uri: &Uri) -> bool {
    let host = uri.host().unwrap_or_default();
    host.trim_start_matches('[')
        .trim_end_matches(']')
        .parse::<IpAddr>()
        .is_ok()
}

/// The default idle timeout: a connection that lives longer than it is silent
/// is in use, and then its peer had better be alive.
const KEEP_ALIVE: Duration = Duration::from_secs(15);

/// The system's resolver, which tells when it has answered.
#[derive(Clone)]
struct Resolver {
    resolved: Arc<AtomicBool>,
}

impl Service<Name> for Resolver {
    type Response = std::vec::IntoIter<SocketAddr>;
    type Error = io::Error;
    type Future = Connecting<std::vec::IntoIter<SocketAddr>, io::Error>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, name: Name) -> Self::Future {
        let resolved = self.resolved.clone();
        Connecting(Box::pin(async move {
            let addrs: Vec<_> = tokio::net::lookup_host((name.as_str(), 0)).await?.collect();
            resolved.store(true, Ordering::Relaxed);
            Ok(addrs.into_iter())
        }))
    }
}

/// A connection on its way.
pub struct Connecting<T, E = BoxError>(
    pub(crate) Pin<Box<dyn Future<Output = Result<T, E>> + Send>>,
);

impl<T, E> Future for Connecting<T, E> {
    type Output = Result<T, E>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        self.0.as_mut().poll(cx)
    }
}

impl<T, E> std::fmt::Debug for Connecting<T, E> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Connecting")
    }
}
