use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::SystemTime;

use http::Response;
use http_body::Body;
use pin_project_lite::pin_project;

use super::body::{ClassifyBody, Peek};
use super::{Answer, Classify};
use crate::{BoxError, Verdict};

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
        // Boxed, since few answers are read, and every layer above moves this
        // future for all of them.
        Peek {
            answer: Option<Box<Answered<B>>>,
        },
    }
}

/// An answer whose body is being read.
struct Answered<B: Body> {
    head: Response<()>,
    peek: Peek<B>,
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
                    let mut response = match ready!(future.poll(cx)) {
                        Ok(response) => response,
                        Err(error) => {
                            return Poll::Ready(Err(judge_error(&**this.classify, error)));
                        }
                    };
                    let classify = &**this.classify;
                    if !classify.needs_body(response.status(), response.headers()) {
                        judge(classify, &mut response, &[], false);
                        return Poll::Ready(Ok(response.map(ClassifyBody::untouched)));
                    }
                    let (parts, body) = response.into_parts();
                    let answer = Some(Box::new(Answered {
                        head: Response::from_parts(parts, ()),
                        peek: Peek::new(body),
                    }));
                    this.state.set(State::Peek { answer });
                }
                StateProj::Peek { answer } => {
                    if let Some(answer) = answer {
                        ready!(answer.peek.poll_start(cx));
                    }
                    // Taken only here, as the future ends: like every future, it
                    // isn't to be polled after that.
                    let answer = answer.take().expect("polled again after it was ready");
                    let Answered { mut head, peek } = *answer;
                    let broken = peek.is_broken();
                    judge(&**this.classify, &mut head, &peek.start(), broken);
                    return Poll::Ready(Ok(head.map(|()| peek.into_body())));
                }
            }
        }
    }
}

fn judge<C: Classify, B>(classify: &C, response: &mut Response<B>, start: &[u8], broken: bool) {
    let judgement = classify.classify(&Answer {
        status: response.status(),
        headers: response.headers(),
        body: start,
        broken,
        clock: SystemTime::now,
    });
    let plain = response.status().is_success() && judgement == Verdict::Done.into();
    let extensions = response.extensions_mut();
    // What its status says already costs no allocation, unless somebody below
    // said otherwise.
    if plain && Verdict::of(extensions).is_none() {
        return;
    }
    judgement.insert_into(extensions);
}

pub(super) fn judge_error<C: Classify>(classify: &C, error: impl Into<BoxError>) -> BoxError {
    let error = error.into();
    match classify.classify_error(&*error) {
        Some(fault) => fault.caused_by(error).into(),
        None => error,
    }
}
