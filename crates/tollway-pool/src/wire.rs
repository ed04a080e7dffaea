//! The socket under a connection, watched.

use std::io;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};

use hyper::rt::{Read, ReadBufCursor, Write};
use tokio::sync::Notify;

use crate::sent::Opening;

/// What a connection's tasks and its calls tell each other.
#[derive(Debug, Default)]
pub(crate) struct Wire {
    /// How often something came from the peer.
    reads: AtomicU64,
    /// The call is over, and whoever drives the connection is to say when it
    /// is ready for the next.
    pub(crate) settling: AtomicBool,
    /// HTTP/2: what is seen of a stream that is being opened.
    pub(crate) opening: Opening,
    /// Somebody waits for `progress`.
    watched: AtomicBool,
    pub(crate) progress: Notify,
    handing: Mutex<()>,
}

impl Wire {
    /// A request is handed to hyper, or hyper lets go of those that it was handed:
    /// one after the other. A request that is put into tokio's channel just while
    /// the receiver is dropped would stay there for as long as there is a sender,
    /// and its call, which has that, would wait for ever.
    pub(crate) fn handing<R>(&self, hand: impl FnOnce() -> R) -> R {
        let _held = self.handing.lock().unwrap_or_else(PoisonError::into_inner);
        hand()
    }

    #[cfg(test)]
    pub(crate) fn is_handing(&self) -> bool {
        self.handing.try_lock().is_err()
    }

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

/// An I/O object that counts reads, and reports its own end: whoever holds it
/// last (hyper's tasks, an upgrade), the connection's place under the cap is
/// free when the socket is, and no earlier.
pub(crate) struct Watched<T> {
    // The fields drop in this order: first the socket closes, then that is
    // reported.
    //
    // Boxed, since hyper's HTTP/2 makes every request's task as large as the
    // connection's, in which this lies; and a TLS session is a kilobyte.
    io: Pin<Box<T>>,
    wire: Arc<Wire>,
    _on_close: OnClose,
}

impl<T> Watched<T> {
    pub(crate) fn new(io: T, wire: Arc<Wire>, on_close: OnClose) -> Self {
        Self {
            io: Box::pin(io),
            wire,
            _on_close: on_close,
        }
    }
}

impl<T: Read> Read for Watched<T> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: ReadBufCursor<'_>,
    ) -> Poll<io::Result<()>> {
        let polled = self.io.as_mut().poll_read(cx, buf);
        if matches!(polled, Poll::Ready(Ok(()))) {
            // Nobody else writes it.
            let reads = self.wire.reads();
            self.wire.reads.store(reads + 1, Ordering::Relaxed);
        }
        polled
    }
}

impl<T: Write> Write for Watched<T> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.io.as_mut().poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.io.as_mut().poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.io.as_mut().poll_shutdown(cx)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.io.as_mut().poll_write_vectored(cx, bufs)
    }
}
