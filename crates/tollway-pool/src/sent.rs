//! A request's body on its way through hyper's HTTP/2.

use std::fmt;
use std::mem;
use std::panic::{self, AssertUnwindSafe};
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};

use http_body::{Body, Frame, SizeHint};
use pin_project_lite::pin_project;
use tokio::time::Instant;
use tollway_core::BoxError;

use crate::arena::Id;
use crate::host::Release;
use crate::wire::Wire;

/// Tells whether a request became a stream with a future of its own.
///
/// An error that says GOAWAY reaches two kinds of calls. Those whose stream's
/// own future ends with it: their stream is above the last that the peer
/// processed, and had no effect. And the one call that was being opened while
/// GOAWAY came: hyper asks the connection whether it is ready for a further
/// one, and fails *this* one if it isn't, although its stream may be the very
/// last that the peer processes (nginx says GOAWAY on reading the last request
/// that it takes). So without this, a payment could be made twice.
///
/// What can be seen from outside: hyper asks for the body's size before it
/// opens the stream, and spawns the stream's future after it; the body is
/// polled in between, or dropped.
pub(crate) struct Handed {
    wire: Arc<Wire>,
    /// Which of the connection's requests it is, once its stream is being
    /// opened.
    nth: AtomicU64,
    handed: AtomicBool,
    body: Mutex<Sending>,
}

/// How far the request's body is.
enum Sending {
    /// It may still be being sent.
    Open,
    /// Its call is over, and its stream will be with it.
    Lagging(Arc<dyn Release>, Id, Instant),
    Over,
}

/// The request whose stream hyper is opening: one after the other, in one task
/// of the connection's.
#[derive(Debug, Default)]
pub(crate) struct Opening {
    /// Which of the connection's requests it is, from 1. No two are given the
    /// same, whoever else asks for a size: an earlier one's future would count as
    /// this one's.
    nth: AtomicU64,
    /// The last one for which a future was spawned.
    spawned: AtomicU64,
    /// One whose body is at its end. Another's task may put that here just then,
    /// which makes this one look as if there was more to come.
    ended: AtomicU64,
}

impl Opening {
    fn begin(&self) -> u64 {
        self.nth.fetch_add(1, Ordering::Relaxed) + 1
    }

    /// A future is spawned for the request. True if it is what sends the body,
    /// with some of that still to come: hyper spawns it first.
    pub(crate) fn spawns_sending(&self) -> bool {
        let nth = self.nth.load(Ordering::Relaxed);
        let first = self.spawned.load(Ordering::Relaxed) != nth;
        self.spawned.store(nth, Ordering::Release);
        first && self.ended.load(Ordering::Relaxed) != nth
    }
}

impl Handed {
    pub(crate) fn new(wire: Arc<Wire>) -> Arc<Self> {
        Arc::new(Self {
            wire,
            nth: AtomicU64::new(u64::MAX),
            handed: AtomicBool::new(false),
            body: Mutex::new(Sending::Open),
        })
    }

    fn body(&self) -> MutexGuard<'_, Sending> {
        self.body.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether the request's body may still be being sent. Once it isn't, it
    /// won't be.
    pub(crate) fn is_sending(this: &Arc<Self>) -> bool {
        Arc::strong_count(this) > 1
    }

    /// The call is over. So is its stream, unless the body is still being sent.
    pub(crate) fn finish(&self, host: Arc<dyn Release>, id: Id) {
        let over = matches!(*self.body(), Sending::Over);
        if over {
            host.release(id);
            return;
        }
        let overdue = host.clone().lags(id);
        let mut body = self.body();
        if let Sending::Open = *body {
            *body = Sending::Lagging(host, id, overdue);
        } else {
            drop(body);
            host.caught_up(id, overdue);
        }
    }

    /// Whether the stream has its own future for certain. False says nothing.
    pub(crate) fn is_certain(&self) -> bool {
        self.handed.load(Ordering::Acquire)
    }

    /// Ready for another call, if nobody else still has it.
    pub(crate) fn renew(this: &mut Arc<Self>) {
        match Arc::get_mut(this) {
            Some(handed) => {
                *handed.nth.get_mut() = u64::MAX;
                *handed.handed.get_mut() = false;
                *handed
                    .body
                    .get_mut()
                    .unwrap_or_else(PoisonError::into_inner) = Sending::Open;
            }
            // A body that is still being sent, though the answer has come.
            None => *this = Self::new(this.wire.clone()),
        }
    }
}

pin_project! {
    /// A body that watches what becomes of it, over HTTP/2.
    pub(crate) struct Sent<B> {
        #[pin]
        body: B,
        watch: Watch,
    }
}

/// The connection's end of the watch. Apart from the body, so that taking that
/// out needs no care.
struct Watch(Arc<Handed>);

impl Drop for Watch {
    fn drop(&mut self) {
        let handed = &*self.0;
        let spawned = handed.wire.opening.spawned.load(Ordering::Acquire);
        if spawned >= handed.nth.load(Ordering::Acquire) {
            handed.handed.store(true, Ordering::Release);
        }
        let sending = mem::replace(&mut *handed.body(), Sending::Over);
        if let Sending::Lagging(host, id, overdue) = sending {
            host.caught_up(id, overdue);
        }
    }
}

impl<B> Sent<B> {
    pub(crate) fn new(body: B, handed: Arc<Handed>) -> Self {
        Self {
            body,
            watch: Watch(handed),
        }
    }

    /// The body, which comes back unsent.
    pub(crate) fn into_inner(self) -> B {
        self.body
    }
}

impl<B: Body> Body for Sent<B>
where
    B::Error: Into<BoxError>,
{
    type Data = B::Data;
    type Error = BoxError;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Self::Data>, Self::Error>>> {
        let this = self.project();
        this.watch.0.handed.store(true, Ordering::Release);
        // A panic would end the task that sends it, or the one that begins all of
        // the connection's requests, and the call would wait for ever. Of a body
        // that fails hyper resets the stream.
        let polled = panic::catch_unwind(AssertUnwindSafe(|| {
            let polled = this.body.poll_frame(cx);
            polled.map(|frame| frame.map(|frame| frame.map_err(Into::into)))
        }));
        polled.unwrap_or_else(|_| {
            let panicked = BoxError::from("the request's body panicked");
            Poll::Ready(Some(Err(panicked)))
        })
    }

    fn is_end_stream(&self) -> bool {
        let ended = self.body.is_end_stream();
        if ended {
            let handed = &*self.watch.0;
            let nth = handed.nth.load(Ordering::Relaxed);
            handed.wire.opening.ended.store(nth, Ordering::Relaxed);
        }
        ended
    }

    fn size_hint(&self) -> SizeHint {
        let handed = &*self.watch.0;
        let nth = handed.wire.opening.begin();
        handed.nth.store(nth, Ordering::Release);
        self.body.size_hint()
    }
}

impl<B> fmt::Debug for Sent<B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Sent")
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use http_body_util::{BodyExt, Full};

    use super::*;
    use crate::arena::Arena;
    use crate::stats::CloseReason;

    fn sent() -> (Arc<Wire>, Arc<Handed>, Sent<Full<Bytes>>) {
        let wire = Arc::new(Wire::default());
        let handed = Handed::new(wire.clone());
        let body = Sent::new(Full::default(), handed.clone());
        (wire, handed, body)
    }

    #[test]
    fn a_stream_that_goaway_met_while_it_was_opened_may_have_been_processed() {
        let (wire, handed, body) = sent();
        // That of the call before.
        wire.opening.spawns_sending();
        // As hyper does it: it asks for the size, opens the stream, and gives
        // the call up.
        body.size_hint();
        drop(body);
        assert!(!handed.is_certain());
    }

    #[test]
    fn a_call_that_was_given_up_before_it_was_opened_is_not_certain_either() {
        let (wire, handed, body) = sent();
        wire.opening.spawns_sending();
        drop(body);
        assert!(!handed.is_certain());
    }

    #[test]
    fn a_stream_with_a_future_of_its_own_is_certain_and_only_that_one() {
        let (wire, handed, body) = sent();
        body.size_hint();
        wire.opening.spawns_sending();
        drop(body);
        assert!(handed.is_certain());
        let mut next = handed;
        Handed::renew(&mut next);
        drop(Sent::new(Full::<Bytes>::default(), next.clone()));
        assert!(!next.is_certain());
    }

    /// A host that notes what it is told of a stream, and lets go of a body as it
    /// hears that this is still being sent.
    #[derive(Default)]
    struct Told {
        events: Mutex<Vec<&'static str>>,
        body: Mutex<Option<Sent<Full<Bytes>>>>,
    }

    impl Told {
        fn hears(&self, event: &'static str) {
            self.events.lock().unwrap().push(event);
        }
    }

    impl Release for Told {
        fn release(self: Arc<Self>, _: Id) {
            self.hears("over");
        }

        fn lags(self: Arc<Self>, _: Id) -> Instant {
            self.hears("lags");
            let body = self.body.lock().unwrap().take();
            drop(body);
            Instant::now()
        }

        fn caught_up(self: Arc<Self>, _: Id, _: Instant) {
            self.hears("caught up");
        }

        fn discard(self: Arc<Self>, _: Id, _: CloseReason) {}

        fn name(&self) -> &Arc<str> {
            unreachable!("nothing fails")
        }
    }

    #[test]
    fn a_stream_is_over_once_whichever_of_call_and_body_ends_first() {
        let id = Arena::new().insert(());
        let told = Arc::new(Told::default());
        let events = || mem::take(&mut *told.events.lock().unwrap());

        let (_, handed, body) = sent();
        drop(body);
        handed.finish(told.clone(), id);
        assert_eq!(events(), ["over"]);

        let (_, handed, body) = sent();
        handed.finish(told.clone(), id);
        assert_eq!(events(), ["lags"]);
        drop(body);
        assert_eq!(events(), ["caught up"]);

        let (_, handed, body) = sent();
        *told.body.lock().unwrap() = Some(body);
        handed.finish(told.clone(), id);
        assert_eq!(events(), ["lags", "caught up"]);
    }

    #[tokio::test]
    async fn so_is_one_whose_body_was_asked_for() {
        let (_, handed, mut body) = sent();
        body.size_hint();
        assert!(body.frame().await.is_none());
        assert!(handed.is_certain());
    }

    /// Whether the future that sends it is told apart from the one that awaits
    /// the answer, which is spawned second.
    async fn is_told_apart<B>(body: B, frames: usize) -> (bool, bool)
    where
        B: Body<Error = std::convert::Infallible> + Unpin,
    {
        let wire = Arc::new(Wire::default());
        let mut body = Sent::new(body, Handed::new(wire.clone()));
        // As hyper does it.
        body.size_hint();
        if !body.is_end_stream() {
            for _ in 0..frames {
                let _ = body.frame().await;
                body.is_end_stream();
            }
        }
        (wire.opening.spawns_sending(), wire.opening.spawns_sending())
    }

    /// hyper asks for sizes in one task only; were it otherwise, a payment could
    /// be made twice.
    #[test]
    fn no_two_requests_are_the_same_whoever_asks_for_a_size() {
        let opening = Opening::default();
        let start = std::sync::Barrier::new(2);
        let begin = || {
            start.wait();
            (0..100_000).map(|_| opening.begin()).collect::<Vec<_>>()
        };
        let mut all = std::thread::scope(|scope| {
            let others = [scope.spawn(begin), scope.spawn(begin)];
            others.map(|other| other.join().unwrap()).concat()
        });
        all.sort_unstable();
        assert!(all.windows(2).all(|pair| pair[0] < pair[1]));
    }

    #[tokio::test]
    async fn a_body_with_more_to_come_is_sent_by_a_task_of_its_own_and_no_other() {
        let bytes = || Full::new(Bytes::from_static(b"all of it"));
        assert_eq!(
            is_told_apart(Full::<Bytes>::default(), 0).await,
            (false, false)
        );
        assert_eq!(is_told_apart(bytes(), 1).await, (false, false));
        assert_eq!(is_told_apart(bytes(), 0).await, (true, false));
    }
}
