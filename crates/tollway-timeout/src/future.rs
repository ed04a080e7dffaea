//! The wait for a response.

use std::fmt;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use http::{Request, Response};
use pin_project_lite::pin_project;
use tokio::time::Instant;
use tollway_core::{BoxError, Fault, Phase};
use tower_service::Service;

use crate::error::Limit;
use crate::timer::{Wait, Waiting};
use crate::{TimeoutBody, TimeoutError};

pin_project! {
    /// The response future of [`DeadlineService`](crate::DeadlineService) and
    /// [`AttemptTimeoutService`](crate::AttemptTimeoutService).
    ///
    /// Dropping it drops what it waits for, and its timer.
    pub struct TimeoutFuture<S, B>
    where
        S: Service<Request<B>>,
    {
        #[pin]
        state: State<S, B, S::Future>,
        wait: Wait,
        waiting: Waiting,
        // The limit on each pause in the response's body, where each wait has
        // one.
        pause: Duration,
        // Whether something of the request may have been written.
        sent: bool,
        // Whether a timer below, if it is early enough, will do.
        shares_timers: bool,
    }
}

pin_project! {
    #[project = StateProj]
    #[project_replace = StateOwned]
    enum State<S, B, F> {
        // The inner service was not ready when the request came. That is rare,
        // and boxed, since every call moves a future of this size.
        Readying { readying: Box<Readying<S, B>> },
        Called { #[pin] future: F },
        // Too late to begin with.
        Refused { error: BoxError },
        Done,
    }
}

/// A call whose service isn't ready yet.
pub(crate) struct Readying<S, B> {
    pub(crate) service: S,
    pub(crate) request: Request<B>,
    /// What that most likely means, where the service leaves no note.
    pub(crate) phase: Phase,
}

impl<S, B> TimeoutFuture<S, B>
where
    S: Service<Request<B>>,
{
    pub(crate) fn readying(readying: Readying<S, B>, bounds: Bounds) -> Self {
        let readying = Box::new(readying);
        Self::new(State::Readying { readying }, bounds)
    }

    #[inline]
    pub(crate) fn called(future: S::Future, bounds: Bounds) -> Self {
        Self::new(State::Called { future }, bounds)
    }

    pub(crate) fn refused(error: TimeoutError) -> Self {
        let error = error.into();
        Self::new(State::Refused { error }, Bounds::NONE)
    }

    #[inline]
    fn new(state: State<S, B, S::Future>, bounds: Bounds) -> Self {
        Self {
            state,
            wait: bounds.wait,
            waiting: Waiting::new(bounds.since),
            pause: bounds.pause,
            sent: false,
            shares_timers: bounds.shares_timers,
        }
    }
}

/// What ends a call, and the waits for its response's body.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Bounds {
    pub(crate) wait: Wait,
    /// When the wait began, if that is known.
    pub(crate) since: Option<Instant>,
    pub(crate) pause: Duration,
    pub(crate) shares_timers: bool,
}

impl Bounds {
    pub(crate) const NONE: Self = Self::of_call(Wait::Endless);

    /// Of a whole call, without a limit to each wait.
    #[inline]
    pub(crate) const fn of_call(wait: Wait) -> Self {
        Self {
            wait,
            since: None,
            pause: Duration::MAX,
            shares_timers: false,
        }
    }
}

impl<S, B, R> Future for TimeoutFuture<S, B>
where
    S: Service<Request<B>, Response = Response<R>>,
    S::Error: Into<BoxError>,
{
    type Output = Result<Response<TimeoutBody<R>>, BoxError>;

    #[inline]
    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let _held = self.wait.held().map(|deadline| deadline.hold(None));
        self.poll_call(cx)
    }
}

impl<S, B> TimeoutFuture<S, B>
where
    S: Service<Request<B>>,
{
    #[inline]
    fn poll_call<R>(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Result<Response<TimeoutBody<R>>, BoxError>>
    where
        S: Service<Request<B>, Response = Response<R>>,
        S::Error: Into<BoxError>,
    {
        let mut this = self.project();
        let noted = loop {
            match this.state.as_mut().project() {
                StateProj::Readying { readying } => {
                    match Phase::observe(|| readying.service.poll_ready(cx)) {
                        (Poll::Ready(Ok(())), _) => {
                            if let StateOwned::Readying { readying } =
                                this.state.as_mut().project_replace(State::Done)
                            {
                                let Readying {
                                    mut service,
                                    request,
                                    ..
                                } = *readying;
                                let future = service.call(request);
                                this.state.set(State::Called { future });
                            }
                        }
                        (Poll::Ready(Err(error)), _) => {
                            this.state.set(State::Done);
                            return Poll::Ready(Err(Fault::not_ready(error)));
                        }
                        // Not called yet, so the promise that nothing was
                        // written holds whatever the inner service says.
                        (Poll::Pending, noted) => {
                            break noted
                                .filter(|p| p.is_before_sending())
                                .or(Some(readying.phase));
                        }
                    }
                }
                StateProj::Called { future } => {
                    Phase::forget();
                    // What is there is taken, however late: the inner future
                    // is asked before the timer.
                    if let Poll::Ready(result) = future.poll(cx) {
                        let wait = this.wait.followed_by(*this.pause);
                        this.state.set(State::Done);
                        return Poll::Ready(match result {
                            Ok(response) => Ok(response.map(|body| TimeoutBody::new(body, wait))),
                            Err(error) => Err(error.into()),
                        });
                    }
                    break Phase::noted();
                }
                StateProj::Refused { .. } | StateProj::Done => {
                    return match this.state.project_replace(State::Done) {
                        StateOwned::Refused { error } => Poll::Ready(Err(error)),
                        _ => panic!("polled after completion"),
                    };
                }
            }
        };
        // Once a wait was anything but one before sending, there is no
        // way back: a later note may be about another request, that of a
        // hidden retry for instance.
        let phase = noted.unwrap_or(Phase::Head);
        *this.sent |= !phase.is_before_sending();
        if *this.shares_timers
            && let Some(wakes) = Phase::wakes_at()
            && this.wait.deadline() >= Some(wakes.into())
        {
            return phase.pending_until(wakes);
        }
        match this.waiting.poll(this.wait, Limit::Attempt, cx) {
            Poll::Pending => match this.waiting.wakes_at() {
                Some(wakes) => phase.pending_until(wakes),
                None => phase.pending(),
            },
            Poll::Ready(ran_out) => {
                // Given up at once, whatever the caller does with the rest
                // of this future.
                this.state.set(State::Done);
                let error = TimeoutError::new(ran_out, phase, *this.sent);
                Poll::Ready(Err(error.into()))
            }
        }
    }
}

impl<S, B> fmt::Debug for TimeoutFuture<S, B>
where
    S: Service<Request<B>>,
{
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TimeoutFuture")
            .field("wait", &self.wait)
            .finish_non_exhaustive()
    }
}
