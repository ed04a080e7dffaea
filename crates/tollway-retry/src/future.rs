use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use http::{Request, Response};
use http_body::Body;
use pin_project_lite::pin_project;
use tokio::time::{Instant, Sleep, sleep_until};
use tollway_core::BoxError;
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
        // The first attempt is under way, and the hedging one beside it is
        // planned or under way, until it has failed.
        Race {
            #[pin]
            future: F,
            rival: Option<Box<Rival<F>>>,
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
    pub(crate) fn new(call: Call<S, B, R>, future: S::Future) -> Self {
        let state = State::Attempt { future };
        Self { call, state }
    }

    /// With a hedging attempt beside the first one, if there is to be one.
    pub(crate) fn hedged(
        call: Call<S, B, R>,
        rival: Option<Box<Rival<S::Future>>>,
        future: S::Future,
    ) -> Self {
        let state = match rival {
            Some(_) => State::Race { future, rival },
            None => State::Attempt { future },
        };
        Self { call, state }
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
        let this = self.as_mut().project();
        let ended = match this.state.project() {
            StateProj::Attempt { future } => match future.poll(cx) {
                // The way of most calls, which all others leave alone.
                Poll::Ready(Ok(response)) if this.call.is_plain(&response) => {
                    return Poll::Ready(Ok(response));
                }
                Poll::Ready(outcome) => Some(outcome.map_err(Into::into)),
                Poll::Pending => return this.call.pending(),
            },
            _ => None,
        };
        self.poll_on(ended, cx)
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
    /// Goes on, maybe from what an attempt has come to.
    #[cold]
    fn poll_on(
        mut self: Pin<&mut Self>,
        ended: Option<Result<Response<ResB>, BoxError>>,
        cx: &mut Context<'_>,
    ) -> Poll<Result<Response<ResB>, RetryError>> {
        let poll = self.as_mut().poll_states(ended, cx);
        if poll.is_pending() {
            return self.call.pending();
        }
        poll
    }

    fn poll_states(
        self: Pin<&mut Self>,
        mut ended: Option<Result<Response<ResB>, BoxError>>,
        cx: &mut Context<'_>,
    ) -> Poll<Result<Response<ResB>, RetryError>> {
        let mut this = self.project();
        loop {
            if let Some(outcome) = ended.take() {
                let next = match this.call.settle(outcome) {
                    Next::Return(result) => return Poll::Ready(result),
                    Next::Repeat { at, response } => {
                        match response.and_then(|body| this.call.drain(body)) {
                            Some(drain) => State::Drain { drain, at },
                            None => State::wait(at),
                        }
                    }
                };
                this.state.set(next);
            }
            let next = match this.state.as_mut().project() {
                StateProj::Attempt { future } => {
                    ended = Some(ready!(future.poll(cx)).map_err(Into::into));
                    continue;
                }
                StateProj::Race { future, rival } => {
                    match ready!(this.call.poll_race(future, rival, cx)) {
                        Raced::Plain(response) => return Poll::Ready(Ok(response)),
                        Raced::Over(outcome) => {
                            ended = Some(outcome);
                            // The loser is cancelled here, and not when the
                            // caller gets round to dropping this future.
                            State::Over
                        }
                        Raced::Rival(future) => State::Rival { future },
                    }
                }
                StateProj::Rival { future } => {
                    ended = Some(ready!(future.as_mut().poll(cx)).map_err(Into::into));
                    continue;
                }
                StateProj::Drain { drain, at } => {
                    ready!(drain.poll(cx));
                    State::wait(*at)
                }
                StateProj::Wait { sleep } => {
                    ready!(sleep.as_mut().poll(cx));
                    State::Ready
                }
                StateProj::Ready => match ready!(this.call.poll_resend(cx)) {
                    Ok(future) => State::Attempt { future },
                    Err(error) => return Poll::Ready(Err(error)),
                },
                StateProj::Over => panic!("polled again after it was ready"),
            };
            this.state.set(next);
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
