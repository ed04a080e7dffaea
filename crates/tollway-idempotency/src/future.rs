//! The wait for a response, and before it for the body.

use std::fmt;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use http::{Request, Response};
use http_body::Body;
use http_body_util::combinators::Collect;
use http_body_util::{BodyExt, Limited};
use pin_project_lite::pin_project;
use tollway_core::{BoxError, Phase};
use tower_service::Service;

use crate::keys::{Chosen, Keys, Outcome};
use crate::{Dialect, KeyBody, KeyError, KeyGenerator};

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
        // Before the call, where the body is read first: a body that holds the
        // key, or a key that is remembered with its payload. Boxed, since it
        // would double the size that every other call moves.
        Reading { reading: Pin<Box<Reading<S, G, B>>> },
        Readying { readying: Box<Readying<S, G, B>> },
        Called { #[pin] future: F, outcome: Option<Outcome<G>> },
        Refused { error: BoxError },
        Done,
    }
}

pin_project! {
    struct Reading<S, G, B>
    where
        B: Body,
        B::Error: Into<BoxError>,
    {
        #[pin]
        body: Collect<Limited<B>>,
        // All there until the body is.
        rest: Option<Rest<S, G>>,
    }
}

/// What a call holds beside its body while that is read.
struct Rest<S, G> {
    inner: S,
    keys: Arc<Keys<G>>,
    head: Request<()>,
    chosen: Option<Chosen>,
    /// Whether the body told its length.
    sized: bool,
}

/// A call that goes as soon as the inner service is ready.
struct Readying<S, G, B> {
    inner: S,
    keys: Arc<Keys<G>>,
    request: Request<KeyBody<B>>,
    chosen: Chosen,
}

impl<S, G, B> IdempotencyKeyFuture<S, G, B>
where
    S: Service<Request<KeyBody<B>>>,
    B: Body,
    B::Error: Into<BoxError>,
{
    pub(crate) fn reading(
        inner: S,
        keys: Arc<Keys<G>>,
        chosen: Option<Chosen>,
        request: Request<B>,
    ) -> Self {
        let (parts, body) = request.into_parts();
        let rest = Rest {
            inner,
            keys,
            head: Request::from_parts(parts, ()),
            chosen,
            sized: body.size_hint().exact().is_some(),
        };
        let reading = Box::pin(Reading {
            body: Limited::new(body, Dialect::MAX_BODY).collect(),
            rest: Some(rest),
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
                StateProj::Reading { reading } => match reading.as_mut().poll_body(cx) {
                    // Nothing has left, whatever the body waits for.
                    Poll::Pending => return Phase::Prepare.pending(),
                    Poll::Ready(Ok(readying)) => state.set(State::Readying {
                        readying: Box::new(readying),
                    }),
                    Poll::Ready(Err(error)) => {
                        state.set(State::Done);
                        return Poll::Ready(Err(error.into()));
                    }
                },
                StateProj::Readying { readying } => {
                    match readying.inner.poll_ready(cx) {
                        Poll::Pending => return Phase::Prepare.pending(),
                        Poll::Ready(Ok(())) => {}
                        Poll::Ready(Err(error)) => {
                            state.set(State::Done);
                            return Poll::Ready(Err(error.into()));
                        }
                    }
                    if let StateOwned::Readying { readying } =
                        state.as_mut().project_replace(State::Done)
                    {
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

impl<S, G, B> Reading<S, G, B>
where
    G: KeyGenerator,
    B: Body,
    B::Error: Into<BoxError>,
{
    /// Ready once the body was read, and the key is known.
    fn poll_body(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Result<Readying<S, G, B>, KeyError>> {
        let this = self.project();
        let read = ready!(this.body.poll(cx));
        let Some(rest) = this.rest.take() else {
            panic!("polled after completion");
        };
        let Rest {
            inner,
            keys,
            mut head,
            chosen,
            sized,
        } = rest;
        let body = match read {
            Ok(body) => body,
            Err(error) => {
                let key = chosen.map(|chosen| chosen.key);
                return Poll::Ready(Err(KeyError::body(key, error)));
            }
        };
        let trailers = body.trailers().cloned();
        let (data, chosen) = keys.read(
            chosen,
            head.headers_mut(),
            trailers.as_ref(),
            body.to_bytes(),
        )?;
        Poll::Ready(Ok(Readying {
            inner,
            keys,
            request: head.map(|()| KeyBody::read(data, trailers, sized)),
            chosen,
        }))
    }
}

impl<S, G: KeyGenerator, B> Readying<S, G, B> {
    /// Calls the inner service, which is ready. The key is remembered only
    /// now, with the call right behind it: until here the future can be dropped
    /// without a trace.
    fn call(mut self) -> Result<(S::Future, Outcome<G>), KeyError>
    where
        S: Service<Request<KeyBody<B>>>,
    {
        // The body shares its bytes with this copy.
        let data = self.request.body().data().cloned().unwrap_or_default();
        let outcome = self
            .keys
            .admit(self.chosen, &mut self.request, Some(&data))?;
        Ok((self.inner.call(self.request), outcome))
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
