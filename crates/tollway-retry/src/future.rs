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
    }
}

impl<S, B, ResB, R> RetryFuture<S, B, ResB, R>
where
    S: Service<Request<ReplayBody<B>>>,
{
    pub(crate) fn new(call: Call<S, B, R>, future: S::Future) -> Self {
        Self {
            call,
            state: State::Attempt { future },
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

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let mut this = self.project();
        loop {
            match this.state.as_mut().project() {
                StateProj::Attempt { future } => {
                    let outcome = match ready!(future.poll(cx)) {
                        Ok(response) if this.call.is_plain(&response) => {
                            return Poll::Ready(Ok(response));
                        }
                        outcome => outcome.map_err(Into::into),
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
                StateProj::Drain { drain, at } => {
                    ready!(drain.poll(cx));
                    let at = *at;
                    this.state.set(State::wait(at));
                }
                StateProj::Wait { sleep } => {
                    ready!(sleep.as_mut().poll(cx));
                    this.state.set(State::Ready);
                }
                StateProj::Ready => {
                    let future = match ready!(this.call.poll_resend(cx)) {
                        Ok(future) => future,
                        Err(error) => return Poll::Ready(Err(error)),
                    };
                    this.state.set(State::Attempt { future });
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
