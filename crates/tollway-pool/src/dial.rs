//! Opening a connection: the connector's part, then HTTP's.

use std::future::Future;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use http::{Extensions, Uri, Version};
use http_body::Body;
use hyper::client::conn::{http1, http2};
use hyper::rt::{Read, Write};
use hyper_util::client::legacy::connect::{Connection, HttpInfo};
use hyper_util::rt::TokioTimer;
use tokio::time::{Instant, timeout_at};
use tokio_util::sync::ReusableBoxFuture;
use tollway_core::BoxError;
use tower_service::Service;

use crate::arena::Id;
use crate::builder::{Config, Protocol};
use crate::conn::{Abort, H1, H2, Http, Lines, drive_h1, drive_h2};
use crate::connect::{ProxyAuth, TlsInfo};
use crate::executor::H2Executor;
use crate::failure::{Failure, Step};
use crate::host::Host;
use crate::info::Facts;
use crate::sent::Sent;
use crate::service::Shared;
use crate::state::Conn;
use crate::wire::{OnClose, Watched, Wire};

/// More streams than any peer allows: as long as this stands, the peer's own
/// limit is yet to come.
const LIMIT_UNKNOWN: usize = 0x7fff_fffe;

/// How many streams that were given up are remembered, for a second each, so that
/// what still comes on them is ignored. What comes on others counts against the
/// peer: after a thousand such answers h2 ends the connection, and with it the
/// calls that nobody gave up. Its own fifty are fewer than time out at once where
/// a gateway hangs.
const GIVEN_UP: usize = 1_000;

/// How much later than its own limit a connector is given up. That one begins a
/// moment later, and its end tells how far the connector had come.
const LEEWAY: Duration = Duration::from_millis(100);

/// Opens connections over a connector whose type nobody else has to know.
pub(crate) trait Dial<B: 'static>: Send + Sync {
    /// Opens the connection that `id` stands for, and tells the host.
    fn dial(&self, host: Arc<Host<B>>, id: Id) -> Dialing;

    /// Starts the reaper, unless it runs.
    fn ensure_reaper(&self, pool: &Shared<B>);
}

/// Allocated once a connection, which costs a great deal more anyway.
pub(crate) type Dialing = Pin<Box<dyn Future<Output = Result<(), Failure>> + Send>>;

pub(crate) struct Dialer<C> {
    pub(crate) connector: C,
    pub(crate) config: Arc<Config>,
}

impl<C, B> Dial<B> for Dialer<C>
where
    C: Service<Uri> + Clone + Send + Sync + 'static,
    C::Response: Read + Write + Connection + Unpin + Send + 'static,
    C::Error: Into<BoxError>,
    C::Future: Send,
    B: Body + Send + Unpin + 'static,
    B::Data: Send,
    B::Error: Into<BoxError>,
{
    fn dial(&self, host: Arc<Host<B>>, id: Id) -> Dialing {
        let connector = self.connector.clone();
        let config = self.config.clone();
        let attempt = Attempt::new(host, id);
        Box::pin(async move {
            if let Some(pool) = attempt.host.pool.upgrade() {
                pool.ensure_reaper();
            }
            let began = Instant::now();
            match open(connector, &config, &attempt, began).await {
                Ok(opened) => attempt.opened(opened, &config, began.elapsed()),
                Err(failure) => attempt.failed(failure),
            }
        })
    }

    fn ensure_reaper(&self, pool: &Shared<B>) {
        pool.ensure_reaper();
    }
}

/// An attempt that always reports, even when its task is dropped.
struct Attempt<B: 'static> {
    host: Arc<Host<B>>,
    id: Id,
    reported: bool,
}

struct Opened<B: 'static> {
    conn: Conn<Http<B>>,
    facts: Arc<Facts>,
    limit: usize,
    abort: Abort,
}

impl<B: 'static> Attempt<B> {
    fn new(host: Arc<Host<B>>, id: Id) -> Self {
        Self {
            host,
            id,
            reported: false,
        }
    }

    fn opened(mut self, opened: Opened<B>, config: &Config, took: Duration) -> Result<(), Failure> {
        let Opened {
            conn,
            facts,
            limit,
            abort,
        } = opened;
        let expires = config
            .max_age
            .map(|age| Instant::now() + jittered(age, rand::random::<f64>()));
        if !self.host.opened(self.id, conn, limit, expires, abort, took) {
            // It closed while the handshake was being completed.
            let gone = Failure::new(Step::Handshake, "closed by the peer at once");
            return self.failed(gone);
        }
        self.reported = true;
        tracing::debug!(
            target: "tollway::pool",
            { server.address = self.host.key.address(),
            server.port = i64::from(self.host.key.port()),
            network.peer.address = facts.remote.map(|peer| tracing::field::display(peer.ip())),
            network.peer.port = facts.remote.map(|peer| i64::from(peer.port())),
            network.protocol.name = "http",
            network.protocol.version = if facts.protocol == Version::HTTP_2 { "2" } else { "1.1" },
            tls.protocol.version = facts.tls.map(|version| version.as_str()),
            tollway.pool.handshake = took.as_secs_f64() },
            "connection opened",
        );
        Ok(())
    }

    fn failed(mut self, failure: Failure) -> Result<(), Failure> {
        self.report_failure(&failure);
        Err(failure)
    }

    fn report_failure(&mut self, failure: &Failure) {
        self.reported = true;
        self.host.attempt_failed(self.id, failure);
        tracing::debug!(
            target: "tollway::pool",
            { server.address = self.host.key.address(),
            server.port = i64::from(self.host.key.port()),
            "error.type" = failure.step().as_str(),
            error = failure.cause() },
            "connection failed",
        );
    }
}

impl<B: 'static> Drop for Attempt<B> {
    fn drop(&mut self) {
        if !self.reported {
            self.report_failure(&Failure::gone(std::thread::panicking()));
        }
    }
}

/// `age`, give or take a tenth: connections that were opened together don't
/// all close together. `unit` is from zero to one.
fn jittered(age: Duration, unit: f64) -> Duration {
    age.mul_f64(0.9 + 0.2 * unit.clamp(0.0, 1.0))
}

async fn open<C, B>(
    mut connector: C,
    config: &Config,
    attempt: &Attempt<B>,
    began: Instant,
) -> Result<Opened<B>, Failure>
where
    C: Service<Uri>,
    C::Response: Read + Write + Connection + Unpin + Send + 'static,
    C::Error: Into<BoxError>,
    B: Body + Send + Unpin + 'static,
    B::Data: Send,
    B::Error: Into<BoxError>,
{
    let (host, id) = (&attempt.host, attempt.id);
    let limit = config.connect_timeout;
    let until = began + limit;
    let connect = async {
        std::future::poll_fn(|cx| connector.poll_ready(cx)).await?;
        connector.call(host.uri()).await
    };
    let io = match timeout_at(until + LEEWAY, connect).await {
        Ok(Ok(io)) => io,
        Ok(Err(error)) => return Err(Failure::from_connector(Step::Connect, error.into())),
        Err(_) => return Err(Failure::timed_out(Step::Connect, limit)),
    };
    let connected = io.connected();
    let mut extras = Extensions::new();
    connected.get_extras(&mut extras);
    let tls = extras.get::<TlsInfo>().cloned();
    let h2 = match config.protocol {
        Protocol::Auto => connected.is_negotiated_h2(),
        Protocol::Http1Only => false,
        Protocol::Http2Only => true,
    };

    host.with(|state| state.socket_opened(id));
    let wire = Arc::new(Wire::default());
    let on_close = {
        let host = host.clone();
        OnClose(Box::new(move || host.closed(id)))
    };
    let io = Watched::new(io, wire.clone(), on_close);
    let facts = |handshake| {
        Arc::new(Facts {
            protocol: if h2 {
                Version::HTTP_2
            } else {
                Version::HTTP_11
            },
            tls: tls.and_then(|tls| tls.version),
            remote: extras.get::<HttpInfo>().map(HttpInfo::remote_addr),
            proxied: connected
                .is_proxied()
                .then(|| extras.get().cloned().unwrap_or(ProxyAuth(None))),
            handshake,
        })
    };
    let handshake = async {
        if h2 {
            open_h2(io, wire, config, host, id, began, facts).await
        } else {
            open_h1(io, wire, host, id, began, facts).await
        }
    };
    match timeout_at(until, handshake).await {
        Ok(opened) => opened,
        Err(_) => Err(Failure::timed_out(Step::Handshake, limit)),
    }
}

async fn open_h1<T, B>(
    io: Watched<T>,
    wire: Arc<Wire>,
    host: &Arc<Host<B>>,
    id: Id,
    began: Instant,
    facts: impl FnOnce(Duration) -> Arc<Facts>,
) -> Result<Opened<B>, Failure>
where
    T: Read + Write + Unpin + Send + 'static,
    B: Body + Send + 'static,
    B::Data: Send,
    B::Error: Into<BoxError>,
{
    let (mut sender, conn) = http1::handshake(io)
        .await
        .map_err(|error| Failure::new(Step::Handshake, error))?;
    let driver = drive_h1(conn, wire.clone(), host.clone(), id);
    let driver = tokio::spawn(driver).abort_handle();
    // Ready once its task has been polled.
    sender
        .ready()
        .await
        .map_err(|error| Failure::new(Step::Handshake, error))?;
    let facts = facts(began.elapsed());
    Ok(Opened {
        conn: Conn::Exclusive(Box::new(H1 {
            sender,
            reply: ReusableBoxFuture::new(std::future::pending()),
            wire,
            facts: facts.clone(),
            home: None,
        })),
        facts,
        limit: 1,
        abort: Abort {
            driver,
            socket: Arc::default(),
        },
    })
}

async fn open_h2<T, B>(
    io: Watched<T>,
    wire: Arc<Wire>,
    config: &Config,
    host: &Arc<Host<B>>,
    id: Id,
    began: Instant,
    facts: impl FnOnce(Duration) -> Arc<Facts>,
) -> Result<Opened<B>, Failure>
where
    T: Read + Write + Unpin + Send + 'static,
    B: Body + Send + Unpin + 'static,
    B::Data: Send,
    B::Error: Into<BoxError>,
{
    let executor = H2Executor::new(wire.clone());
    let socket = executor.socket().clone();
    let mut builder = http2::Builder::new(executor);
    builder
        .timer(TokioTimer::new())
        .initial_max_send_streams(LIMIT_UNKNOWN)
        .max_concurrent_reset_streams(GIVEN_UP);
    if let Some((interval, timeout)) = config.http2_keep_alive {
        builder
            .keep_alive_interval(interval)
            .keep_alive_timeout(timeout)
            .keep_alive_while_idle(true);
    }
    wire.watch(true);
    let (sender, mut conn) = builder
        .handshake(io)
        .await
        .map_err(|error| Failure::new(Step::Handshake, error))?;
    let limit = first_settings(&mut conn, &wire).await?;
    wire.watch(false);
    let facts = facts(began.elapsed());
    let driver = drive_h2(conn, wire.clone(), limit, host.clone(), id);
    let driver = tokio::spawn(driver).abort_handle();
    Ok(Opened {
        conn: Conn::Shared(H2 {
            lines: Arc::new(Lines::new(wire, sender)),
            facts: facts.clone(),
        }),
        facts,
        limit,
        abort: Abort { driver, socket },
    })
}

/// Waits for the peer's first SETTINGS, and returns how many streams it
/// allows.
///
/// No request is sent before: so none is refused for being one too many, none
/// waits behind others on a connection that is full, and a peer that doesn't
/// speak HTTP/2 fails the handshake, and not a request whose fate would be
/// unknown. It costs the first request on a connection half a round trip.
async fn first_settings<T, B>(
    conn: &mut http2::Connection<Watched<T>, Sent<B>, H2Executor>,
    wire: &Wire,
) -> Result<usize, Failure>
where
    T: Read + Write + Unpin + Send + 'static,
    B: Body + Send + Unpin + 'static,
    B::Data: Send,
    B::Error: Into<BoxError>,
{
    loop {
        let mut progress = pin!(wire.progress.notified());
        let ended = std::future::poll_fn(|cx| {
            if let Poll::Ready(ended) = Pin::new(&mut *conn).poll(cx) {
                return Poll::Ready(Some(ended));
            }
            progress.as_mut().poll(cx).map(|()| None)
        })
        .await;
        let limit = conn.current_max_send_streams();
        if limit != LIMIT_UNKNOWN {
            return Ok(limit);
        }
        match ended {
            Some(Err(error)) => return Err(Failure::new(Step::Handshake, error)),
            Some(Ok(())) => {
                return Err(Failure::new(
                    Step::Handshake,
                    "closed before any HTTP/2 settings came",
                ));
            }
            None => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::jittered;

    #[test]
    fn a_maximum_age_varies_by_a_tenth_each_way() {
        let age = Duration::from_secs(100);
        assert_eq!(jittered(age, 0.0), Duration::from_secs(90));
        assert_eq!(jittered(age, 0.5), Duration::from_secs(100));
        assert_eq!(jittered(age, 1.0), Duration::from_secs(110));
    }
}
