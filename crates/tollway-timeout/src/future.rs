//! The wait for a response.

use std::fmt;
use std::pin::Pin;
use std::task::{Context, Poll};

use http::{Request, Response};
use pin_project_lite::pin_project;
use tollway_core::{BoxError, Phase};
use tower_service::Service;

use crate::timer::{Bounds, Timer};
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
        #[pin]
        timer: Timer,
        // The bounds of the response's body.
        body: Bounds,
        // Whether something of the request may have been written.
        sent: bool,
    }
}

pin_project! {
    #[project = StateProj]
    #[project_replace = StateOwned]
    enum State<S, B, F> {
        // The inner service was not ready when the request came. `phase` is
        // what that most likely means, where it leaves no note.
        Readying { service: S, request: Request<B>, phase: Phase },
        Called { #[pin] future: F },
        // Too late to begin with.
        Refused { error: TimeoutError },
        Done,
    }
}

impl<S, B> TimeoutFuture<S, B>
where
    S: Service<Request<B>>,
{
    pub(crate) fn readying(
        service: S,
        request: Request<B>,
        phase: Phase,
        timer: Timer,
        body: Bounds,
    ) -> Self {
        let state = State::Readying {
            service,
            request,
            phase,
        };
        Self::in_state(state, timer, body)
    }

    pub(crate) fn called(future: S::Future, timer: Timer, body: Bounds) -> Self {
        Self::in_state(State::Called { future }, timer, body)
    }

    pub(crate) fn refused(error: TimeoutError) -> Self {
        let bounds = Bounds::default();
        Self::in_state(State::Refused { error }, Timer::new(bounds, None), bounds)
    }

    fn in_state(state: State<S, B, S::Future>, timer: Timer, body: Bounds) -> Self {
        Self {
            state,
            timer,
            body,
            sent: false,
        }
    }
}

impl<S, B, R> Future for TimeoutFuture<S, B>
where
    S: Service<Request<B>, Response = Response<R>>,
    S::Error: Into<BoxError>,
{
    type Output = Result<Response<TimeoutBody<R>>, BoxError>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let mut this = self.project();
        loop {
            let (poll, noted) = match this.state.as_mut().project() {
                StateProj::Readying { service, phase, .. } => {
                    let phase = *phase;
                    match Phase::observe(|| service.poll_ready(cx)) {
                        (Poll::Ready(Ok(())), _) => {
                            if let StateOwned::Readying {
                                mut service,
                                request,
                                ..
                            } = this.state.as_mut().project_replace(State::Done)
                            {
                                let future = service.call(request);
                                this.state.set(State::Called { future });
                            }
                            continue;
                        }
                        (Poll::Ready(Err(error)), _) => (Poll::Ready(Err(error)), None),
                        // Not called yet, so the promise that nothing was
                        // written holds whatever the inner service says.
                        (Poll::Pending, noted) => (
                            Poll::Pending,
                            noted.filter(|p| p.is_before_sending()).or(Some(phase)),
                        ),
                    }
                }
                StateProj::Called { future } => Phase::observe(|| future.poll(cx)),
                StateProj::Refused { .. } | StateProj::Done => {
                    return match this.state.project_replace(State::Done) {
                        StateOwned::Refused { error } => Poll::Ready(Err(error.into())),
                        _ => panic!("polled after completion"),
                    };
                }
            };
            // What is there is taken, however late: the inner future is asked
            // before the timer.
            if let Poll::Ready(result) = poll {
                this.state.set(State::Done);
                let response = result.map_err(Into::into)?;
                let timer = Timer::new(*this.body, this.timer.since());
                return Poll::Ready(Ok(response.map(|body| TimeoutBody::new(body, timer))));
            }
            // Once a wait was anything but one before sending, there is no
            // way back: a later note may be about another request, that of a
            // hidden retry for instance.
            let phase = noted.unwrap_or(Phase::Head);
            *this.sent |= !phase.is_before_sending();
            match this.timer.poll(cx) {
                Poll::Pending => return phase.pending(),
                Poll::Ready(ran_out) => {
                    this.state.set(State::Done);
                    let error = TimeoutError::new(ran_out, phase, *this.sent);
                    return Poll::Ready(Err(error.into()));
                }
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
            .field("timer", &self.timer)
            .finish_non_exhaustive()
    }
}
