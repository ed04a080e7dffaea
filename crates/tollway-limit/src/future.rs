//! One attempt, from asking for its permit to its answer.

use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use http::{Request, Response};
use pin_project_lite::pin_project;
use tollway_core::{BoxError, Fault, Phase};
use tower_service::Service;

use crate::acquire::Place;
use crate::call::Call;
use crate::error::RateLimitError;
use crate::limits::Limits;
use crate::permit::Permit;
use crate::shared::Shared;

pin_project! {
    /// The future of a [`RateLimitService`](crate::RateLimitService).
    ///
    /// The attempt may be on its way already; see
    /// [`RateLimitService`](crate::RateLimitService). Otherwise the future asks
    /// for a permit when it is first polled.
    ///
    /// A permit that it was granted is its own, whether it is polled or not; see
    /// [`Acquire`](crate::Acquire).
    ///
    /// Where what is below says that it waits to send (a pool, for a connection;
    /// see [`Phase::pending`]), the permit is held meanwhile. If its quota pauses,
    /// the attempt ends with a [`RateLimitError`] in place of being sent.
    ///
    /// Dropped while it waits, it gives up its place in the queue; dropped
    /// between permit and sending, the permit goes back; dropped after that,
    /// the attempt is over, and counted as one that may still be on its way.
    #[must_use = "futures do nothing unless polled"]
    pub struct RateLimitFuture<S, B>
    where
        S: Service<Request<B>>,
    {
        claim: Claim,
        #[pin]
        state: State<S, B, S::Future>,
    }
}

pin_project! {
    #[project = StateProj]
    enum State<S, B, F> {
        // Before the permit, and with it until the inner service is ready.
        Waiting {
            inner: S,
            // Taken when the attempt is sent.
            request: Option<Request<B>>,
        },
        // The attempt is on its way.
        Sent {
            #[pin]
            answer: F,
        },
        // The inner service had failed before it.
        Failed {
            error: Option<BoxError>,
        },
    }
}

/// What there is of a permit.
#[derive(Debug)]
enum Claim {
    /// Nothing yet: it asks when the future is polled.
    Ask(Arc<Shared>),
    Queue(Place),
    /// Until the attempt is sent, a permit that goes back if it is dropped.
    Held(Permit),
    /// It is used up, or was refused.
    Over,
}

impl Claim {
    /// Sees to it that there is a permit for `request`.
    #[inline]
    fn poll<B>(
        &mut self,
        request: &Request<B>,
        cx: &Context<'_>,
    ) -> Poll<Result<(), RateLimitError>> {
        let mut permit = match self {
            Self::Held(_) => return Poll::Ready(Ok(())),
            Self::Queue(place) => ready!(place.poll(|| Call::of(request), cx))?,
            Self::Ask(_) | Self::Over => {
                let Self::Ask(shared) = std::mem::replace(self, Self::Over) else {
                    return Poll::Pending;
                };
                match Place::ask(&shared, &Call::of(request), cx)? {
                    Ok(permit) => permit,
                    Err(place) => {
                        *self = Self::Queue(place);
                        return Phase::Permit.pending();
                    }
                }
            }
        };
        permit.hold_back();
        *self = Self::Held(permit);
        Poll::Ready(Ok(()))
    }

    /// The inner service is ready. Says whether the attempt is sent; if not, it is
    /// to ask again.
    #[inline]
    fn send(&mut self) -> bool {
        let Self::Held(permit) = self else {
            return true;
        };
        if permit.has_waited()
            && let Err(shared) = permit.resume()
        {
            *self = Self::Ask(shared);
            return false;
        }
        permit.send();
        true
    }

    /// The refusal of an attempt that has been handed on and waits below, where a
    /// quota has paused meanwhile.
    #[inline]
    fn paused(&self) -> Option<RateLimitError> {
        match self {
            Self::Held(permit) if permit.has_waited() => permit.pause().map(RateLimitError::paused),
            _ => None,
        }
    }

    /// The attempt has been handed on, and waits below: for this by its own
    /// account.
    #[inline]
    fn follow(&mut self, noted: Option<Phase>) {
        let Self::Held(permit) = self else {
            return;
        };
        if noted.is_some_and(Phase::is_before_sending) {
            permit.wait();
        } else {
            permit.leave();
        }
    }
}

impl<S, B> RateLimitFuture<S, B>
where
    S: Service<Request<B>>,
{
    /// An attempt that has its permit, and is on its way.
    #[inline]
    pub(crate) fn sent(permit: Permit, answer: S::Future) -> Self {
        Self {
            claim: Claim::Held(permit),
            state: State::Sent { answer },
        }
    }

    /// An attempt that asks for its permit when it is polled.
    pub(crate) fn asking(limits: &Limits, inner: S, request: Request<B>) -> Self {
        Self::before_sending(Claim::Ask(Arc::clone(&limits.shared)), inner, request)
    }

    /// An attempt that has its permit, and waits for `inner`.
    pub(crate) fn waiting(permit: Permit, inner: S, request: Request<B>) -> Self {
        Self::before_sending(Claim::Held(permit), inner, request)
    }

    fn before_sending(claim: Claim, inner: S, request: Request<B>) -> Self {
        Self {
            claim,
            state: State::Waiting {
                inner,
                request: Some(request),
            },
        }
    }

    /// An attempt that can't be made.
    pub(crate) fn failed(error: BoxError) -> Self {
        Self {
            claim: Claim::Over,
            state: State::Failed { error: Some(error) },
        }
    }
}

impl<S, B, R> Future for RateLimitFuture<S, B>
where
    S: Service<Request<B>, Response = Response<R>> + Clone,
    S::Error: Into<BoxError>,
{
    type Output = Result<Response<R>, BoxError>;

    #[inline]
    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.project();
        let (claim, mut state) = (this.claim, this.state);
        if let StateProj::Waiting { inner, request } = state.as_mut().project() {
            let Some(asked) = &*request else {
                return Poll::Pending;
            };
            loop {
                ready!(claim.poll(asked, cx))?;
                match inner.poll_ready(cx) {
                    Poll::Ready(Ok(())) if claim.send() => break,
                    // It waits for a permit again, and holds up nobody meanwhile.
                    Poll::Ready(Ok(())) => *inner = inner.clone(),
                    Poll::Ready(Err(error)) => {
                        *claim = Claim::Over;
                        return Poll::Ready(Err(Fault::not_ready(error)));
                    }
                    // Nothing of it has left us.
                    Poll::Pending => {
                        if let Claim::Held(permit) = claim {
                            permit.wait();
                        }
                        return Phase::Connect.pending();
                    }
                }
            }
            let Some(request) = request.take() else {
                return Poll::Pending;
            };
            let answer = inner.call(request);
            state.set(State::Sent { answer });
        }
        if let Some(paused) = claim.paused() {
            // Out of its queue first, and then of the limits.
            state.set(State::Failed { error: None });
            *claim = Claim::Over;
            return Poll::Ready(Err(paused.told().into()));
        }
        let answer = match state.project() {
            StateProj::Sent { answer } => answer,
            StateProj::Failed { error } => {
                return error
                    .take()
                    .map_or(Poll::Pending, |error| Poll::Ready(Err(error)));
            }
            StateProj::Waiting { .. } => return Poll::Pending,
        };
        Phase::forget();
        let Poll::Ready(answer) = answer.poll(cx) else {
            claim.follow(Phase::noted());
            return Poll::Pending;
        };
        let answer = answer.map_err(Into::into);
        if let Claim::Held(mut permit) = std::mem::replace(claim, Claim::Over) {
            permit.leave();
            match &answer {
                Ok(response) => permit.answered(response),
                Err(error) => permit.failed(error.as_ref()),
            }
        }
        Poll::Ready(answer)
    }
}

impl<S, B> fmt::Debug for RateLimitFuture<S, B>
where
    S: Service<Request<B>>,
{
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RateLimitFuture").finish_non_exhaustive()
    }
}
