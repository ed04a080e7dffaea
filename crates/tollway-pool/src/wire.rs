//! The socket under a connection, watched.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::task::{Context, Poll};

use hyper::rt::{Read, ReadBufCursor, Write};
use pin_project_lite::pin_project;
use tokio::sync::Notify;

/// What a connection's tasks and its calls tell each other.
#[derive(Debug, Default)]
pub(crate) struct Wire {
    /// How often something came from the peer.
    reads: AtomicU64,
    /// The call is over, and whoever drives the connection is to say when it
    /// is ready for the next.
    pub(crate) settling: AtomicBool,
    /// Somebody waits for `progress`.
    watched: AtomicBool,
    pub(crate) progress: Notify,
}

impl Wire {
    /// How often something came from the peer so far. Two equal counts mean
    /// that it kept silent between them.
    pub(crate) fn reads(&self) -> u64 {
        self.reads.load(Ordering::Relaxed)
    }

    pub(crate) fn watch(&self, watched: bool) {
        self.watched.store(watched, Ordering::Release);
    }

    pub(crate) fn progressed(&self) {
        if self.watched.load(Ordering::Acquire) {
            self.progress.notify_one();
        }
    }
}

/// Called when it is dropped: the socket is closed.
pub(crate) struct OnClose(pub(crate) Box<dyn FnMut() + Send>);

impl Drop for OnClose {
    fn drop(&mut self) {
        (self.0)();
    }
}

pin_project! {
    /// An I/O object that counts reads, and reports its own end: whoever holds
    /// it last (hyper's tasks, an upgrade), the connection's place under the
    /// cap is free when the socket is, and no earlier.
    pub(crate) struct Watched<T> {
        // The fields drop in this order: first the socket closes, then that is
        // reported.
        #[pin]
        io: T,
        wire: Arc<Wire>,
        on_close: OnClose,
    }
}

impl<T> Watched<T> {
    pub(crate) fn new(io: T, wire: Arc<Wire>, on_close: OnClose) -> Self {
        Self { io, wire, on_close }
    }
}

impl<T: Read> Read for Watched<T> {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: ReadBufCursor<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.project();
        let polled = this.io.poll_read(cx, buf);
        if matches!(polled, Poll::Ready(Ok(()))) {
            this.wire.reads.fetch_add(1, Ordering::Relaxed);
        }
        polled
    }
}

impl<T: Write> Write for Watched<T> {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.project().io.poll_write(cx, buf)
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.project().io.poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.project().io.poll_shutdown(cx)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.project().io.poll_write_vectored(cx, bufs)
    }
}
