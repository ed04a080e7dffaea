//! The wait for a response, and before it for the body.

use std::fmt;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use http::{Request, Response};
use http_body::Body;
use pin_project_lite::pin_project;
use tollway_core::{BoxError, Fault, Phase};
use tower_service::Service;

use crate::gather::{Gather, Gathered};
use crate::keys::{Keys, Outcome};
use crate::prepare::{Prepared, Rest};
use crate::{KeyBody, KeyError, KeyGenerator};

pin_project! {
    /// The response future of
    /// [`IdempotencyKeyService`](crate::IdempotencyKeyService).
    ///
    /// Dropped before the inner service was called, it leaves no trace: the key
    /// is as if it had never been given. Dropped later, its call's outcome counts
    /// as unknown, unless the layers below have said that nothing was sent.
    pub struct IdempotencyKeyFuture<S, G, B>
    where
        S: Service<Request<KeyBody<B>>>,
        B: Body,
        B::Error: Into<BoxError>,
    {
        #[pin]
        state: State<S, G, B, S::Future>,
    }
}

pin_project! {
    #[project = StateProj]
    #[project_replace = StateOwned]
    enum State<S, G, B, F>
    where
        B: Body,
        B::Error: Into<BoxError>,
    {
        // Before the call, where the body is read first and isn't all there.
        // Boxed, since it would double the size that every other call moves.
        Reading { reading: Box<Reading<S, G, B>> },
        Readying { readying: Box<Readying<S, G, B>> },
        Called { #[pin] future: F, outcome: Option<Outcome<G>> },
        Refused { error: BoxError },
        Done,
    }
}

/// A call whose body is being read.
struct Reading<S, G, B> {
    inner: S,
    keys: Arc<Keys<G>>,
    body: Pin<Box<Gather<B>>>,
    rest: Rest,
}

/// A call that goes as soon as the inner service is ready.
struct Readying<S, G, B> {
    inner: S,
    keys: Arc<Keys<G>>,
    prepared: Prepared<B>,
}

impl<S, G, B> IdempotencyKeyFuture<S, G, B>
where
    S: Service<Request<KeyBody<B>>>,
    B: Body,
    B::Error: Into<BoxError>,
{
    /// The body keeps its reader waiting.
    pub(crate) fn reading(
        inner: S,
        keys: Arc<Keys<G>>,
        body: Pin<Box<Gather<B>>>,
        rest: Rest,
    ) -> Self {
        let reading = Box::new(Reading {
            inner,
            keys,
            body,
            rest,
        });
        Self {
            state: State::Reading { reading },
        }
    }

    #[inline]
    pub(crate) fn called(future: S::Future, outcome: Option<Outcome<G>>) -> Self {
        Self {
            state: State::Called { future, outcome },
        }
    }

    pub(crate) fn refused(error: KeyError) -> Self {
        let error = error.into();
        Self {
            state: State::Refused { error },
        }
    }
}

impl<S, G, B, R> Future for IdempotencyKeyFuture<S, G, B>
where
    S: Service<Request<KeyBody<B>>, Response = Response<R>>,
    S::Error: Into<BoxError>,
    G: KeyGenerator,
    B: Body,
    B::Error: Into<BoxError>,
{
    type Output = Result<Response<R>, BoxError>;

    #[inline]
    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let mut state = self.project().state;
        loop {
            match state.as_mut().project() {
                StateProj::Reading { reading } => {
                    let Poll::Ready(read) = reading.body.as_mut().poll(cx) else {
                        // Nothing has left, whatever the body waits for.
                        return Phase::Prepare.pending();
                    };
                    if let StateOwned::Reading { reading } =
                        state.as_mut().project_replace(State::Done)
                    {
                        let readying = reading.read(read)?;
                        state.set(State::Readying { readying });
                    }
                }
                StateProj::Readying { readying } => {
                    let Poll::Ready(ready) = readying.inner.poll_ready(cx) else {
                        return Phase::Prepare.pending();
                    };
                    if let StateOwned::Readying { readying } =
                        state.as_mut().project_replace(State::Done)
                    {
                        if let Err(error) = ready {
                            let error = readying.failed(Fault::not_ready(error));
                            return Poll::Ready(Err(error.into()));
                        }
                        let (future, outcome) = readying.call()?;
                        let outcome = Some(outcome);
                        state.set(State::Called { future, outcome });
                    }
                }
                StateProj::Called { future, outcome } => {
                    let poll = match outcome {
                        Some(outcome) => outcome.observe(|| future.poll(cx)),
                        None => future.poll(cx),
                    };
                    let mut result = ready!(poll).map_err(Into::into);
                    // In place: it is moved often enough.
                    if let Some(outcome) = outcome {
                        match &mut result {
                            Ok(response) => outcome.answered(response),
                            Err(_) => {
                                result = result.map_err(|error| outcome.failed(error).into());
                            }
                        }
                    }
                    state.set(State::Done);
                    return Poll::Ready(result);
                }
                StateProj::Refused { .. } | StateProj::Done => {
                    return match state.project_replace(State::Done) {
                        StateOwned::Refused { error } => Poll::Ready(Err(error)),
                        _ => panic!("polled after completion"),
                    };
                }
            }
        }
    }
}

impl<S, G: KeyGenerator, B> Reading<S, G, B> {
    /// The body was read.
    fn read(self, read: Result<Gathered, BoxError>) -> Result<Box<Readying<S, G, B>>, KeyError> {
        let prepared = self.rest.with(read, &self.keys)?;
        Ok(Box::new(Readying {
            inner: self.inner,
            keys: self.keys,
            prepared,
        }))
    }
}

impl<S, G: KeyGenerator, B> Readying<S, G, B> {
    /// Calls the inner service, which is ready.
    fn call(mut self) -> Result<(S::Future, Outcome<G>), KeyError>
    where
        S: Service<Request<KeyBody<B>>>,
    {
        let (request, outcome) = self.prepared.admit(&self.keys)?;
        Ok((self.inner.call(request), outcome))
    }

    /// The inner service has failed, and doesn't get the call. That says nothing of
    /// others with its key.
    fn failed(self, error: BoxError) -> KeyError {
        match self.prepared.admit(&self.keys) {
            Ok((_, mut outcome)) => outcome.failed(error),
            Err(refused) => refused,
        }
    }
}

impl<S, G, B> fmt::Debug for IdempotencyKeyFuture<S, G, B>
where
    S: Service<Request<KeyBody<B>>>,
    B: Body,
    B::Error: Into<BoxError>,
{
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("IdempotencyKeyFuture")
            .finish_non_exhaustive()
    }
}
