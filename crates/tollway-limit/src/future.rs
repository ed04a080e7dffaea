//! One attempt, from asking for its permit to its answer.

use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use http::{Request, Response};
use pin_project_lite::pin_project;
use tollway_core::{BoxError, Phase};
use tower_service::Service;

use crate::acquire::Place;
use crate::call::Call;
use crate::limits::{Limits, Shared};
use crate::permit::Permit;

pin_project! {
    /// The future of a [`RateLimitService`](crate::RateLimitService).
    ///
    /// Dropped while it waits, it gives up its place in the queue; dropped
    /// between permit and sending, the permit goes back; dropped after that,
    /// the attempt counts as over.
    #[must_use = "futures do nothing unless polled"]
    pub struct ResponseFuture<S, Q>
    where
        S: Service<Q>,
    {
        #[pin]
        state: State<S, Q, S::Future>,
    }
}

pin_project! {
    #[project = StateProj]
    enum State<S, Q, F> {
        // Before the permit, and with it until the inner service is ready.
        Waiting {
            step: Step,
            inner: S,
            // Taken when the attempt is sent.
            request: Option<Q>,
        },
        // The attempt is on its way.
        Sent {
            permit: Option<Permit>,
            #[pin]
            answer: F,
        },
    }
}

enum Step {
    // Taken when it asks.
    Ask(Option<Arc<Shared>>),
    Queue(Place),
    Ready(Unsent),
}

/// A permit whose attempt was not sent yet: dropped, it goes back.
struct Unsent {
    permit: Option<Permit>,
    /// Whether the inner service was ready as soon as the permit was there.
    at_once: bool,
}

impl Unsent {
    #[inline]
    fn new(permit: Permit) -> Self {
        Self {
            permit: Some(permit),
            at_once: true,
        }
    }

    /// Moves it out of where it is kept.
    fn take(&mut self) -> Self {
        Self {
            permit: self.permit.take(),
            at_once: self.at_once,
        }
    }

    #[inline]
    fn send(&mut self) -> Option<Permit> {
        let mut permit = self.permit.take()?;
        if !self.at_once {
            permit.sent();
        }
        Some(permit)
    }
}

impl Drop for Unsent {
    fn drop(&mut self) {
        if let Some(permit) = self.permit.take() {
            permit.give_back();
        }
    }
}

impl<S, Q> ResponseFuture<S, Q>
where
    S: Service<Q>,
{
    #[inline]
    pub(crate) fn new(limits: &Limits, inner: S, request: Q) -> Self {
        Self {
            state: State::Waiting {
                step: Step::Ask(Some(Arc::clone(&limits.shared))),
                inner,
                request: Some(request),
            },
        }
    }
}

impl<S, B, R> Future for ResponseFuture<S, Request<B>>
where
    S: Service<Request<B>, Response = Response<R>>,
    S::Error: Into<BoxError>,
{
    type Output = Result<Response<R>, BoxError>;

    #[inline]
    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let mut state = self.project().state;
        loop {
            match state.as_mut().project() {
                StateProj::Waiting {
                    step,
                    inner,
                    request,
                } => {
                    let mut unsent = match step {
                        Step::Ask(shared) => {
                            let (Some(shared), Some(request)) = (shared.take(), &*request) else {
                                return Poll::Pending;
                            };
                            match Place::ask(shared, &Call::of(request), cx)? {
                                Ok(permit) => Unsent::new(permit),
                                Err(place) => {
                                    *step = Step::Queue(place);
                                    return Phase::Permit.pending();
                                }
                            }
                        }
                        Step::Queue(place) => Unsent::new(ready!(place.poll(cx))?),
                        Step::Ready(unsent) => unsent.take(),
                    };
                    match inner.poll_ready(cx) {
                        Poll::Ready(ready) => ready.map_err(Into::into)?,
                        Poll::Pending => {
                            unsent.at_once = false;
                            *step = Step::Ready(unsent);
                            // Nothing of it has left us.
                            return Phase::Connect.pending();
                        }
                    }
                    let permit = unsent.send();
                    let Some(request) = request.take() else {
                        return Poll::Pending;
                    };
                    let answer = inner.call(request);
                    state.set(State::Sent { permit, answer });
                }
                StateProj::Sent { permit, answer } => {
                    let answer = ready!(answer.poll(cx)).map_err(Into::into);
                    if let Some(permit) = permit.take() {
                        match &answer {
                            Ok(response) => permit.answered(response),
                            Err(error) => permit.failed(error.as_ref()),
                        }
                    }
                    return Poll::Ready(answer);
                }
            }
        }
    }
}

impl<S, Q> fmt::Debug for ResponseFuture<S, Q>
where
    S: Service<Q>,
{
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ResponseFuture").finish_non_exhaustive()
    }
}
