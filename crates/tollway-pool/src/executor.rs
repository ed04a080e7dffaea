//! Runs what hyper's HTTP/2 spawns.

use std::any::Any;
use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::task::{Context, Poll, ready};

use tokio::task::AbortHandle;

use crate::wire::Wire;

/// Runs what hyper's HTTP/2 spawns. The first of a connection is the task that
/// has the socket: that one can be aborted, and tells of its progress. The
/// others are the requests', two for one with a body.
#[derive(Clone, Debug)]
pub(crate) struct H2Executor {
    wire: Arc<Wire>,
    socket: Arc<OnceLock<AbortHandle>>,
    places: Arc<OnceLock<Arc<dyn Any + Send + Sync>>>,
}

impl H2Executor {
    pub(crate) fn new(wire: Arc<Wire>) -> Self {
        Self {
            wire,
            socket: Arc::default(),
            places: Arc::default(),
        }
    }

    /// The task that has the socket, once it runs.
    pub(crate) fn socket(&self) -> &Arc<OnceLock<AbortHandle>> {
        &self.socket
    }

    #[cold]
    fn run_socket<F>(&self, future: F)
    where
        F: Future + Send + 'static,
        F::Output: Send,
    {
        let wire = self.wire.clone();
        let task = tokio::spawn(async move {
            let mut future = std::pin::pin!(future);
            poll_fn(move |cx| {
                let polled = future.as_mut().poll(cx);
                wire.progressed();
                polled
            })
            .await
        });
        // It was empty: hyper makes this call once, before any other.
        let _ = self.socket.set(task.abort_handle());
    }
}

impl<F> hyper::rt::Executor<F> for H2Executor
where
    F: Future<Output = ()> + Send + 'static,
{
    fn execute(&self, future: F) {
        if self.socket.get().is_none() {
            return self.run_socket(future);
        }
        self.wire.spawned.fetch_add(1, Ordering::AcqRel);
        // All of a connection's are of one type, which hyper doesn't name.
        let places = self.places.get_or_init(|| Arc::<Places<F>>::default());
        if let Ok(places) = places.clone().downcast::<Places<F>>() {
            let place = places.put(future);
            tokio::spawn(Run { place, places });
        } else {
            tokio::spawn(Box::pin(future));
        }
    }
}

/// Where a future runs: a box that can be used again.
type Place<F> = Pin<Box<Option<F>>>;

/// Places for requests' futures, as many as there were at once, up to a bound.
///
/// Such a future is as large as the connection's, a kilobyte and a half, and
/// spawning would move it several times; so it goes into a box, and since a box
/// of that size is costly to allocate, into one that is there already.
struct Places<F>(Mutex<Vec<Place<F>>>);

impl<F> Places<F> {
    const KEPT: usize = 100;

    fn put(&self, future: F) -> Option<Place<F>> {
        let spare = self.0.lock().unwrap_or_else(PoisonError::into_inner).pop();
        let mut place = spare.unwrap_or_else(|| Box::pin(None));
        place.set(Some(future));
        Some(place)
    }

    fn keep(&self, place: Place<F>) {
        let mut spare = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if spare.len() < Self::KEPT {
            spare.push(place);
        }
    }
}

impl<F> Default for Places<F> {
    fn default() -> Self {
        Self(Mutex::default())
    }
}

/// A future in its place, which is kept when it is over.
struct Run<F> {
    place: Option<Place<F>>,
    places: Arc<Places<F>>,
}

impl<F: Future<Output = ()>> Future for Run<F> {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let this = &mut *self;
        if let Some(place) = &mut this.place
            && let Some(future) = place.as_mut().as_pin_mut()
        {
            ready!(future.poll(cx));
        }
        if let Some(mut place) = this.place.take() {
            // What it held goes now, and not with the place.
            place.set(None);
            this.places.keep(place);
        }
        Poll::Ready(())
    }
}
