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
        let resolver = Resolver {
            resolved: resolved.clone(),
        };
        let mut connector = connector(resolver, limit);
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

/// All but the name's resolution is hyper-util's.
fn connector<R>(resolver: R, limit: Duration) -> HttpConnector<R> {
    let mut connector = HttpConnector::new_with_resolver(resolver);
    connector.enforce_http(false);
    connector.set_nodelay(true);
    connector.set_keepalive(Some(KEEP_ALIVE));
    connector.set_keepalive_interval(Some(KEEP_ALIVE));
    connector.set_connect_timeout(Some(limit));
    connector
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

#[cfg(test)]
mod tests {
    use std::future::{Ready, ready};
    use std::net::Ipv4Addr;
    use std::sync::Mutex;

    use bytes::Bytes;
    use http::Request;
    use http_body_util::{BodyExt, Full};
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;
    use tower::ServiceExt;
    use tower_layer::Layer;

    use super::*;
    use crate::{ConnectionInfo, Pool};

    const LIMIT: Duration = Duration::from_secs(10);

    /// Answers each question with the next of its answers.
    #[derive(Clone)]
    struct Scripted(Arc<Mutex<Vec<Vec<Ipv4Addr>>>>);

    impl Scripted {
        fn new(mut answers: Vec<Vec<Ipv4Addr>>) -> Self {
            answers.reverse();
            Self(Arc::new(Mutex::new(answers)))
        }
    }

    impl Service<Name> for Scripted {
        type Response = std::vec::IntoIter<SocketAddr>;
        type Error = io::Error;
        type Future = Ready<io::Result<Self::Response>>;

        fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }

        fn call(&mut self, _: Name) -> Self::Future {
            let answer = self.0.lock().unwrap().pop();
            let addrs = answer.unwrap_or_default().into_iter();
            let addrs: Vec<_> = addrs.map(|ip| SocketAddr::from((ip, 0))).collect();
            ready(Ok(addrs.into_iter()))
        }
    }

    const fn loopback(last: u8) -> Ipv4Addr {
        Ipv4Addr::new(127, 0, 0, last)
    }

    /// Answers every request on `ip`, at `port` if that isn't zero.
    async fn serve(ip: Ipv4Addr, port: u16) -> u16 {
        let listener = TcpListener::bind((ip, port)).await.unwrap();
        let port = listener.local_addr().unwrap().port();
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                tokio::spawn(async move {
                    let mut buffer = [0; 1024];
                    while let Ok(1..) = stream.read(&mut buffer).await {
                        let answer = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok";
                        stream.write_all(answer).await.unwrap();
                    }
                });
            }
        });
        port
    }

    fn uri(port: u16) -> Uri {
        format!("http://gateway.test:{port}/").parse().unwrap()
    }

    #[tokio::test]
    async fn every_address_of_a_name_is_tried() {
        let port = serve(loopback(1), 0).await;
        // Nobody listens at the first two.
        let resolver = Scripted::new(vec![vec![loopback(2), loopback(3), loopback(1)]]);
        let stream = connector(resolver, LIMIT).oneshot(uri(port)).await.unwrap();
        let peer = stream.inner().peer_addr().unwrap();
        assert_eq!(peer, SocketAddr::from((loopback(1), port)));
    }

    #[tokio::test]
    async fn small_writes_are_not_held_back_and_a_dead_peer_is_noticed() {
        let port = serve(loopback(1), 0).await;
        let uri = format!("http://127.0.0.1:{port}/").parse().unwrap();
        let stream = Tcp::new(LIMIT).oneshot(uri).await.unwrap();
        assert!(stream.inner().nodelay().unwrap());
        let socket = socket2::SockRef::from(stream.inner());
        assert!(socket.keepalive().unwrap());
        #[cfg(target_os = "linux")]
        {
            assert_eq!(socket.tcp_keepalive_time().unwrap(), KEEP_ALIVE);
            assert_eq!(socket.tcp_keepalive_interval().unwrap(), KEEP_ALIVE);
        }
    }

    #[tokio::test]
    async fn a_name_is_resolved_anew_for_each_connection() {
        let port = serve(loopback(1), 0).await;
        serve(loopback(2), port).await;
        let resolver = Scripted::new(vec![vec![loopback(1)], vec![loopback(2)]]);
        let pool: Pool<Full<Bytes>> = Pool::builder()
            .plain_http(true)
            .max_requests_per_connection(2)
            .layer()
            .unwrap()
            .layer(connector(resolver, LIMIT));
        let mut peers = Vec::new();
        for _ in 0..3 {
            let mut request = Request::new(Full::default());
            *request.uri_mut() = uri(port);
            let response = pool.clone().oneshot(request).await.unwrap();
            let info = ConnectionInfo::of(response.extensions()).unwrap();
            peers.push(info.remote_addr().unwrap().ip());
            response.into_body().collect().await.unwrap();
        }
        assert_eq!(peers, [loopback(1), loopback(1), loopback(2)]);
    }
}
