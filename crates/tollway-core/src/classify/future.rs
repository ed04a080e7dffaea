use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::SystemTime;

use http::Response;
use http::response::Parts;
use http_body::Body;
use pin_project_lite::pin_project;

use super::body::{ClassifyBody, Peek};
use super::{Answer, Classify};
use crate::{BoxError, Fault};

pin_project! {
    /// The future of a [`ClassifyService`](super::ClassifyService).
    pub struct ClassifyFuture<F, C, B>
    where
        B: Body,
    {
        classify: Arc<C>,
        #[pin]
        state: State<F, B>,
    }
}

pin_project! {
    #[project = StateProj]
    enum State<F, B>
    where
        B: Body,
    {
        // Awaits the head.
        Head {
            #[pin]
            future: F,
        },
        // Reads the start of the body. `answer` is taken when it is returned.
        Peek {
            answer: Option<(Parts, Peek<B>)>,
        },
    }
}

impl<F, C, B: Body> ClassifyFuture<F, C, B> {
    pub(super) fn new(future: F, classify: Arc<C>) -> Self {
        Self {
            classify,
            state: State::Head { future },
        }
    }
}

impl<F, C, B: Body> std::fmt::Debug for ClassifyFuture<F, C, B> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ClassifyFuture").finish_non_exhaustive()
    }
}

impl<F, C, B, E> Future for ClassifyFuture<F, C, B>
where
    F: Future<Output = Result<Response<B>, E>>,
    E: Into<BoxError>,
    B: Body + Unpin,
    C: Classify,
{
    type Output = Result<Response<ClassifyBody<B>>, BoxError>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let mut this = self.project();
        loop {
            match this.state.as_mut().project() {
                StateProj::Head { future } => {
                    let response = match ready!(future.poll(cx)) {
                        Ok(response) => response,
                        Err(error) => {
                            return Poll::Ready(Err(judge_error(&**this.classify, error)));
                        }
                    };
                    let (parts, body) = response.into_parts();
                    if !this.classify.needs_body(parts.status, &parts.headers) {
                        let body = ClassifyBody::untouched(body);
                        return Poll::Ready(Ok(judge(&**this.classify, parts, &[], body)));
                    }
                    let answer = Some((parts, Peek::new(body)));
                    this.state.set(State::Peek { answer });
                }
                StateProj::Peek { answer } => {
                    if let Some((_, peek)) = answer {
                        ready!(peek.poll_start(cx));
                    }
                    // Taken only here, as the future ends: like every future, it
                    // isn't to be polled after that.
                    let (parts, peek) = answer.take().expect("polled again after it was ready");
                    let start = peek.start();
                    let body = peek.into_body();
                    return Poll::Ready(Ok(judge(&**this.classify, parts, &start, body)));
                }
            }
        }
    }
}

fn judge<C: Classify, B: Body>(
    classify: &C,
    mut parts: Parts,
    start: &[u8],
    body: ClassifyBody<B>,
) -> Response<ClassifyBody<B>> {
    let judgement = classify.classify(&Answer {
        status: parts.status,
        headers: &parts.headers,
        body: start,
        now: SystemTime::now(),
    });
    parts.extensions.insert(judgement.verdict);
    if let Some(advice) = judgement.advice {
        parts.extensions.insert(advice);
    }
    Response::from_parts(parts, body)
}

pub(super) fn judge_error<C: Classify>(classify: &C, error: impl Into<BoxError>) -> BoxError {
    let error = error.into();
    match classify.classify_error(&*error) {
        Some(verdict) => Fault::new(verdict).caused_by(error).into(),
        None => error,
    }
}
