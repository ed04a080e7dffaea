use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use http::{Request, Response};
use http_body::Body;
use pin_project_lite::pin_project;
use tokio::time::{Instant, Sleep, sleep_until};
use tollway_core::{BoxError, Phase};
use tower_service::Service;

use crate::call::{Call, Next};
use crate::drain::Drain;
use crate::rival::{Raced, Rival};
use crate::{RandomSeed, ReplayBody, RetryError, Seed};

pin_project! {
    /// The future of a [`RetryService`](crate::RetryService).
    pub struct RetryFuture<S, B, ResB, R = RandomSeed>
    where
        S: Service<Request<ReplayBody<B>>>,
    {
        call: Call<S, B, R>,
        #[pin]
        state: State<S::Future, ResB>,
        // The hedging attempt beside the first one, if there is to be one.
        rival: Option<Box<Rival<S::Future>>>,
    }
}

pin_project! {
    #[project = StateProj]
    enum State<F, ResB> {
        // An attempt is under way.
        Attempt {
            #[pin]
            future: F,
        },
        // The hedging attempt is under way alone.
        Rival {
            future: Pin<Box<F>>,
        },
        // It is to be repeated at `at`; its response is read to the end, so
        // that its connection is free for others.
        Drain {
            drain: Drain<ResB>,
            at: Option<Instant>,
        },
        // Nothing is held but the request.
        Wait {
            sleep: Pin<Box<Sleep>>,
        },
        // The wait is over, and the service below gets ready.
        Ready,
        // Nothing is left to do.
        Over,
    }
}

impl<S, B, ResB, R> RetryFuture<S, B, ResB, R>
where
    S: Service<Request<ReplayBody<B>>>,
{
    #[inline]
    pub(crate) fn new(
        call: Call<S, B, R>,
        rival: Option<Box<Rival<S::Future>>>,
        future: S::Future,
    ) -> Self {
        Self {
            call,
            state: State::Attempt { future },
            rival,
        }
    }
}

impl<S, B, ResB, R> fmt::Debug for RetryFuture<S, B, ResB, R>
where
    S: Service<Request<ReplayBody<B>>>,
{
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RetryFuture").finish_non_exhaustive()
    }
}

impl<S, B, ResB, R> Future for RetryFuture<S, B, ResB, R>
where
    S: Service<Request<ReplayBody<B>>, Response = Response<ResB>>,
    S::Error: Into<BoxError>,
    B: Body + Unpin,
    B::Error: Into<BoxError>,
    ResB: Body,
    R: Seed,
{
    type Output = Result<Response<ResB>, RetryError>;

    #[inline]
    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let poll = self.as_mut().poll_call(cx);
        if poll.is_pending() && self.project().call.is_in_doubt() {
            // The note that stands is about the latest attempt: it may wait for
            // a permit. That says nothing of the one before, which may have had
            // an effect.
            return Phase::Head.pending();
        }
        poll
    }
}

impl<S, B, ResB, R> RetryFuture<S, B, ResB, R>
where
    S: Service<Request<ReplayBody<B>>, Response = Response<ResB>>,
    S::Error: Into<BoxError>,
    B: Body + Unpin,
    B::Error: Into<BoxError>,
    ResB: Body,
    R: Seed,
{
    #[inline]
    fn poll_call(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Result<Response<ResB>, RetryError>> {
        let mut this = self.project();
        loop {
            let outcome = match this.state.as_mut().project() {
                StateProj::Attempt { future } if this.rival.is_none() => {
                    match ready!(future.poll(cx)) {
                        Ok(response) if this.call.is_plain(&response) => {
                            return Poll::Ready(Ok(response));
                        }
                        outcome => outcome.map_err(Into::into),
                    }
                }
                StateProj::Attempt { future } => {
                    match ready!(this.call.poll_race(future, this.rival, cx)) {
                        Raced::Plain(response) => return Poll::Ready(Ok(response)),
                        Raced::Over(outcome) => {
                            // The loser is cancelled here, and not when the
                            // caller gets round to dropping this future.
                            this.state.set(State::Over);
                            outcome
                        }
                        Raced::Rival(future) => {
                            this.state.set(State::Rival { future });
                            continue;
                        }
                    }
                }
                StateProj::Rival { future } => ready!(future.as_mut().poll(cx)).map_err(Into::into),
                StateProj::Drain { drain, at } => {
                    ready!(drain.poll(cx));
                    let at = *at;
                    this.state.set(State::wait(at));
                    continue;
                }
                StateProj::Wait { sleep } => {
                    ready!(sleep.as_mut().poll(cx));
                    this.state.set(State::Ready);
                    continue;
                }
                StateProj::Over => panic!("polled again after it was ready"),
                StateProj::Ready => {
                    let future = match ready!(this.call.poll_resend(cx)) {
                        Ok(future) => future,
                        Err(error) => return Poll::Ready(Err(error)),
                    };
                    this.state.set(State::Attempt { future });
                    continue;
                }
            };
            match this.call.settle(outcome) {
                Next::Return(result) => return Poll::Ready(result),
                Next::Repeat { at, response } => {
                    let drain = response.and_then(|body| this.call.drain(body));
                    this.state.set(match drain {
                        Some(drain) => State::Drain { drain, at },
                        None => State::wait(at),
                    });
                }
            }
        }
    }
}

impl<F, ResB> State<F, ResB> {
    fn wait(at: Option<Instant>) -> Self {
        match at {
            Some(at) => Self::Wait {
                sleep: Box::pin(sleep_until(at)),
            },
            None => Self::Ready,
        }
    }
}
