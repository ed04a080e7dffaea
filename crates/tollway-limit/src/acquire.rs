//! Waiting for a permit.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tollway_core::{Phase, recent};

use crate::ask::Asked;
use crate::call::Call;
use crate::error::RateLimitError;
use crate::limits::Limits;
use crate::permit::Permit;
use crate::shared::Shared;
use crate::time::now;

/// A place in the queue. Dropped, it leaves no trace.
#[derive(Debug)]
pub(crate) struct Place {
    shared: Arc<Shared>,
    waiter: u32,
    left: bool,
}

impl Place {
    /// Asks for a permit: it is there at once, or there is a place in the
    /// queue.
    #[inline]
    pub(crate) fn ask(
        shared: &Arc<Shared>,
        call: &Call<'_>,
        cx: &Context<'_>,
    ) -> Result<Result<Permit, Self>, RateLimitError> {
        Self::of(shared.ask(call, || recent(now), cx.waker()))
    }

    #[inline]
    fn of(asked: Asked) -> Result<Result<Permit, Self>, RateLimitError> {
        match asked {
            Asked::Granted(permit) => Ok(Ok(permit)),
            Asked::Refused(error) => Err(error),
            Asked::Waits(shared, waiter) => {
                let place = Self {
                    shared,
                    waiter,
                    left: false,
                };
                place.shared.arm();
                Ok(Err(place))
            }
        }
    }

    /// Where the rules have changed, or a quota has paused, `call` asks again, and
    /// comes where it was.
    pub(crate) fn poll<'c>(
        &mut self,
        call: impl FnOnce() -> Call<'c>,
        cx: &Context<'_>,
    ) -> Poll<Result<Permit, RateLimitError>> {
        if self.left {
            return Poll::Ready(Err(RateLimitError::deadline(Duration::ZERO)));
        }
        let fate = self.shared.check(self.waiter, now(), cx.waker());
        self.left = fate.is_some();
        match fate {
            Some(Ok(outcome)) => return Poll::Ready(outcome),
            Some(Err(ticket)) => {
                let asked = self
                    .shared
                    .ask_again(&call(), ticket, || recent(now), cx.waker());
                match Self::of(asked)? {
                    Ok(permit) => return Poll::Ready(Ok(permit)),
                    Err(place) => *self = place,
                }
            }
            None => self.shared.arm(),
        }
        Phase::Permit.pending()
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        if !self.left {
            self.shared.leave(self.waiter);
        }
    }
}

/// The future of [`Limits::acquire`].
///
/// It asks when it is first polled. Dropped, it gives up its place in the
/// queue, and a permit that it was granted goes back.
///
/// A permit that it was granted is its own from then on, as one in flight, whether
/// it is polled or not, and whatever the deadline. (Where its quota has paused before
/// it is polled, it waits again, ahead of those who came later.) So poll it until it
/// is ready, or drop it: a task that keeps it aside (a `select!` over `&mut`, a stream
/// that isn't driven) and awaits another permit may wait for itself.
#[derive(Debug)]
#[must_use = "futures do nothing unless polled"]
pub struct Acquire<'a> {
    limits: &'a Limits,
    call: Call<'a>,
    place: Option<Place>,
}

impl Limits {
    /// Waits for a permit for `call`, first come, first served within its
    /// priority.
    ///
    /// To be awaited on a tokio runtime with its timer enabled. Without one it
    /// panics where it would have to wait for a time to come.
    ///
    /// # Errors
    ///
    /// At once, where the call's deadline passes before there is a permit, or
    /// too many wait already; later, where the deadline comes while waiting for
    /// attempts in flight.
    pub fn acquire<'a>(&'a self, call: &Call<'a>) -> Acquire<'a> {
        Acquire {
            limits: self,
            call: *call,
            place: None,
        }
    }
}

impl Future for Acquire<'_> {
    type Output = Result<Permit, RateLimitError>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.get_mut();
        let Some(place) = &mut this.place else {
            return match Place::ask(&this.limits.shared, &this.call, cx)? {
                Ok(permit) => Poll::Ready(Ok(permit)),
                Err(place) => {
                    this.place = Some(place);
                    Phase::Permit.pending()
                }
            };
        };
        let outcome = ready!(place.poll(|| this.call, cx));
        this.place = None;
        Poll::Ready(outcome)
    }
}
