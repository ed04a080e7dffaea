//! Services and bodies that take their time.
#![allow(dead_code)]

use std::convert::Infallible;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response};
use http_body::Frame;
use tokio::time::{Instant, Sleep, sleep, sleep_until};
use tollway_core::{Deadline, Phase};
use tower::Service;

pub(crate) fn secs(secs: u64) -> Duration {
    Duration::from_secs(secs)
}

/// A body that gives one byte after each of these pauses.
#[derive(Debug)]
pub(crate) struct Drip {
    pauses: Vec<Duration>,
    next: Option<Pin<Box<Sleep>>>,
    alive: Arc<AtomicUsize>,
}

impl Drip {
    fn new(mut pauses: Vec<Duration>, alive: Arc<AtomicUsize>) -> Self {
        pauses.reverse();
        alive.fetch_add(1, Ordering::SeqCst);
        Self {
            pauses,
            next: None,
            alive,
        }
    }
}

impl Drop for Drip {
    fn drop(&mut self) {
        self.alive.fetch_sub(1, Ordering::SeqCst);
    }
}

impl http_body::Body for Drip {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        let Some(pause) = self.pauses.last().copied() else {
            return Poll::Ready(None);
        };
        let next = self.next.get_or_insert_with(|| Box::pin(sleep(pause)));
        if !pause.is_zero() && next.as_mut().poll(cx).is_pending() {
            return Poll::Pending;
        }
        self.next = None;
        self.pauses.pop();
        Poll::Ready(Some(Ok(Frame::data(Bytes::from_static(b"x")))))
    }
}

/// A service that is slow to be ready, slow to connect, slow to answer.
#[derive(Debug, Default)]
pub(crate) struct Slow {
    pub(crate) ready_at: Option<Instant>,
    /// Tells that it connects for so long, as the pool does.
    pub(crate) connect: Duration,
    pub(crate) head: Duration,
    pub(crate) body: Vec<Duration>,
    pub(crate) state: Arc<State>,
    pub(crate) readying: Option<Pin<Box<Sleep>>>,
    pub(crate) is_ready: bool,
}

#[derive(Debug, Default)]
pub(crate) struct State {
    pub(crate) calls: AtomicUsize,
    /// Futures and bodies that haven't been dropped.
    pub(crate) alive: Arc<AtomicUsize>,
    /// The deadline that each call came with.
    pub(crate) seen: std::sync::Mutex<Vec<Option<Deadline>>>,
}

impl State {
    pub(crate) fn calls(&self) -> usize {
        self.calls.load(Ordering::SeqCst)
    }

    pub(crate) fn alive(&self) -> usize {
        self.alive.load(Ordering::SeqCst)
    }
}

impl Clone for Slow {
    fn clone(&self) -> Self {
        Self {
            ready_at: self.ready_at,
            connect: self.connect,
            head: self.head,
            body: self.body.clone(),
            state: Arc::clone(&self.state),
            readying: None,
            is_ready: false,
        }
    }
}

impl<B> Service<Request<B>> for Slow {
    type Response = Response<Drip>;
    type Error = Infallible;
    type Future = Answer;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        if let Some(at) = self.ready_at {
            let readying = self
                .readying
                .get_or_insert_with(|| Box::pin(sleep_until(at)));
            if readying.as_mut().poll(cx).is_pending() {
                return Poll::Pending;
            }
            self.ready_at = None;
        }
        self.is_ready = true;
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<B>) -> Answer {
        assert!(
            std::mem::take(&mut self.is_ready),
            "called without being ready"
        );
        self.state.calls.fetch_add(1, Ordering::SeqCst);
        let deadline = Deadline::of(request.extensions());
        self.state.seen.lock().expect("no panic").push(deadline);
        self.state.alive.fetch_add(1, Ordering::SeqCst);
        Answer {
            connect: (!self.connect.is_zero()).then(|| Box::pin(sleep(self.connect))),
            head: self.head,
            waiting: None,
            body: self.body.clone(),
            alive: Arc::clone(&self.state.alive),
        }
    }
}

pub(crate) struct Answer {
    connect: Option<Pin<Box<Sleep>>>,
    head: Duration,
    waiting: Option<Pin<Box<Sleep>>>,
    body: Vec<Duration>,
    alive: Arc<AtomicUsize>,
}

impl Future for Answer {
    type Output = Result<Response<Drip>, Infallible>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        if let Some(connect) = &mut self.connect {
            if connect.as_mut().poll(cx).is_pending() {
                return Phase::Connect.pending();
            }
            self.connect = None;
        }
        if !self.head.is_zero() {
            let head = self.head;
            let waiting = self.waiting.get_or_insert_with(|| Box::pin(sleep(head)));
            if waiting.as_mut().poll(cx).is_pending() {
                return Poll::Pending;
            }
        }
        let body = Drip::new(std::mem::take(&mut self.body), Arc::clone(&self.alive));
        Poll::Ready(Ok(Response::new(body)))
    }
}

impl Drop for Answer {
    fn drop(&mut self) {
        self.alive.fetch_sub(1, Ordering::SeqCst);
    }
}
