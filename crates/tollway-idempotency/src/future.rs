//! The wait for a response, and before it for the body.

use std::fmt;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use http::request::Parts;
use http::{Request, Response};
use http_body::Body;
use http_body_util::combinators::Collect;
use http_body_util::{BodyExt, Limited};
use pin_project_lite::pin_project;
use tollway_core::BoxError;
use tower_service::Service;

use crate::keys::{Chosen, Keys, Outcome};
use crate::{Dialect, KeyBody, KeyError, KeyGenerator};

pin_project! {
    /// The response future of
    /// [`IdempotencyKeyService`](crate::IdempotencyKeyService).
    ///
    /// Dropped before the inner service was called, it leaves no trace: the key
    /// is as if it had never been given. Dropped later, its call counts as
    /// executed.
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
        Reading {
            #[pin] body: Collect<Limited<B>>,
            head: Head<S, G>,
            chosen: Option<Chosen>,
        },
        Readying {
            head: Head<S, G>,
            body: KeyBody<B>,
            chosen: Chosen,
        },
        Called { #[pin] future: F, outcome: Option<Outcome> },
        Refused { error: KeyError },
        Done,
    }
}

/// What a call that hasn't gone yet holds beside its body and its key.
struct Head<S, G> {
    inner: S,
    keys: Arc<Keys<G>>,
    parts: Parts,
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
        parts: Parts,
        chosen: Option<Chosen>,
        body: B,
    ) -> Self {
        Self {
            state: State::Reading {
                body: Limited::new(body, Dialect::MAX_BODY).collect(),
                head: Head { inner, keys, parts },
                chosen,
            },
        }
    }

    pub(crate) fn called(future: S::Future, outcome: Option<Outcome>) -> Self {
        Self {
            state: State::Called { future, outcome },
        }
    }

    pub(crate) fn refused(error: KeyError) -> Self {
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

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let mut state = self.project().state;
        loop {
            match state.as_mut().project() {
                StateProj::Reading { body, head, chosen } => {
                    let read = ready!(body.poll(cx));
                    let (body, chosen) = match read {
                        Ok(body) => {
                            let trailers = body.trailers().cloned();
                            match head
                                .keys
                                .read(chosen.take(), &mut head.parts, body.to_bytes())
                            {
                                Ok((data, chosen)) => (KeyBody::read(data, trailers), chosen),
                                Err(error) => {
                                    state.set(State::Done);
                                    return Poll::Ready(Err(error.into()));
                                }
                            }
                        }
                        Err(error) => {
                            let key = chosen.take().map(|chosen| chosen.key);
                            state.set(State::Done);
                            return Poll::Ready(Err(KeyError::body(key, error).into()));
                        }
                    };
                    if let StateOwned::Reading { head, .. } =
                        state.as_mut().project_replace(State::Done)
                    {
                        state.set(State::Readying { head, body, chosen });
                    }
                }
                StateProj::Readying { head, .. } => {
                    if let Err(error) = ready!(head.inner.poll_ready(cx)) {
                        state.set(State::Done);
                        return Poll::Ready(Err(error.into()));
                    }
                    // Remembered only now, with the call right behind it: until
                    // here the future can be dropped without a trace.
                    if let StateOwned::Readying { head, body, chosen } =
                        state.as_mut().project_replace(State::Done)
                    {
                        match head.call(body, chosen) {
                            Ok((future, outcome)) => state.set(State::Called {
                                future,
                                outcome: Some(outcome),
                            }),
                            Err(error) => return Poll::Ready(Err(error.into())),
                        }
                    }
                }
                StateProj::Called { future, outcome } => {
                    let result = ready!(future.poll(cx)).map_err(Into::into);
                    let outcome = outcome.take();
                    state.set(State::Done);
                    return Poll::Ready(match (result, outcome) {
                        (Ok(mut response), Some(outcome)) => {
                            outcome.answered(&mut response);
                            Ok(response)
                        }
                        (Err(error), Some(outcome)) => Err(outcome.failed(error).into()),
                        (result, None) => result,
                    });
                }
                StateProj::Refused { .. } | StateProj::Done => {
                    return match state.project_replace(State::Done) {
                        StateOwned::Refused { error } => Poll::Ready(Err(error.into())),
                        _ => panic!("polled after completion"),
                    };
                }
            }
        }
    }
}

impl<S, G: KeyGenerator> Head<S, G> {
    fn call<B>(mut self, body: KeyBody<B>, chosen: Chosen) -> Result<(S::Future, Outcome), KeyError>
    where
        S: Service<Request<KeyBody<B>>>,
    {
        let Parts {
            headers,
            extensions,
            ..
        } = &mut self.parts;
        let outcome = self.keys.admit(chosen, headers, extensions)?;
        let future = self.inner.call(Request::from_parts(self.parts, body));
        Ok((future, outcome))
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
