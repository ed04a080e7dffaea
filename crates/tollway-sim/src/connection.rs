//! One connection: what its requests may do to it, and how it ends.

use std::io;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::sync::Notify;
use tokio::time::{Instant, sleep};

/// How requests steer their connection. Shared by its requests and its task.
#[derive(Debug)]
pub(crate) struct Control {
    /// Which connection it is, in the statistics.
    pub(crate) index: usize,
    requests: AtomicU64,
    writes: AtomicU64,
    activity: Mutex<Activity>,
    became_idle: Notify,
    finish: Notify,
    abort: Notify,
    reset_on_close: AtomicBool,
}

#[derive(Clone, Copy, Debug, PartialEq)]
struct Activity {
    in_flight: usize,
    since: Instant,
}

impl Control {
    pub(crate) fn new(index: usize) -> Arc<Self> {
        Arc::new(Self {
            index,
            requests: AtomicU64::new(0),
            writes: AtomicU64::new(0),
            activity: Mutex::new(Activity {
                in_flight: 0,
                since: Instant::now(),
            }),
            became_idle: Notify::new(),
            finish: Notify::new(),
            abort: Notify::new(),
            reset_on_close: AtomicBool::new(false),
        })
    }

    fn activity(&self) -> MutexGuard<'_, Activity> {
        self.activity.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Counts a request, and says the how manieth on this connection it is.
    pub(crate) fn begin(self: &Arc<Self>) -> (Busy, u64) {
        self.activity().in_flight += 1;
        let nth = self.requests.fetch_add(1, Ordering::Relaxed) + 1;
        (Busy(Arc::clone(self)), nth)
    }

    /// Takes no more requests: `GOAWAY`, or no more keep-alive.
    pub(crate) fn finish(&self) {
        self.finish.notify_one();
    }

    /// When the connection closes, it is reset, and what wasn't sent is lost.
    pub(crate) fn reset_on_close(&self) {
        self.reset_on_close.store(true, Ordering::Relaxed);
    }

    /// Resets the connection at once.
    pub(crate) fn abort(&self) {
        self.reset_on_close();
        self.abort.notify_one();
    }

    pub(crate) async fn aborted(&self) {
        self.abort.notified().await;
    }

    /// Resolves when the connection should wind down: it was asked to, or it idled too long.
    pub(crate) async fn finished(&self, idle_timeout: Option<Duration>) {
        let idle = async {
            match idle_timeout {
                Some(timeout) => self.idled(timeout).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            () = self.finish.notified() => {}
            () = idle => {}
        }
    }

    async fn idled(&self, timeout: Duration) {
        loop {
            let before = *self.activity();
            if before.in_flight > 0 {
                self.became_idle.notified().await;
                continue;
            }
            sleep(timeout.saturating_sub(before.since.elapsed())).await;
            // A request may have come and gone meanwhile; then the time starts anew.
            if *self.activity() == before {
                return;
            }
        }
    }
}

/// A request in flight: from its head to the last byte of its answer.
#[derive(Debug)]
pub(crate) struct Busy(Arc<Control>);

impl Busy {
    /// How often something was written to the connection.
    pub(crate) fn writes(&self) -> u64 {
        self.0.writes.load(Ordering::Relaxed)
    }
}

impl Drop for Busy {
    fn drop(&mut self) {
        let mut activity = self.0.activity();
        activity.in_flight = activity.in_flight.saturating_sub(1);
        if activity.in_flight == 0 {
            activity.since = Instant::now();
            self.0.became_idle.notify_one();
        }
    }
}

/// A socket that can be told to close with a reset, however deep in TLS and HTTP it lies.
#[derive(Debug)]
pub(crate) struct Socket {
    stream: TcpStream,
    control: Arc<Control>,
}

impl Socket {
    pub(crate) const fn new(stream: TcpStream, control: Arc<Control>) -> Self {
        Self { stream, control }
    }
}

impl Drop for Socket {
    fn drop(&mut self) {
        if self.control.reset_on_close.load(Ordering::Relaxed) {
            // Fails only on a socket that is gone already.
            let _ = self.stream.set_zero_linger();
        }
    }
}

impl AsyncRead for Socket {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buf)
    }
}

impl AsyncWrite for Socket {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        let written = ready!(Pin::new(&mut self.stream).poll_write(cx, buf));
        self.control.writes.fetch_add(1, Ordering::Relaxed);
        Poll::Ready(written)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = ready!(Pin::new(&mut self.stream).poll_write_vectored(cx, bufs));
        self.control.writes.fetch_add(1, Ordering::Relaxed);
        Poll::Ready(written)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }
}
