//! The future of a call, and the body of its response.

use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http::{Request, Response};
use http_body::{Body as HttpBody, Frame, SizeHint};
use pin_project_lite::pin_project;
use tollway_core::BoxError;
use tower_service::Service;
use tracing::Span;

use super::stack::Stack;
use super::{Body, Error, telemetry};

type Inner = <Stack as Service<Request<Body>>>::Future;
type InnerBody = <<Stack as Service<Request<Body>>>::Response as IntoBody>::Body;

/// Names the body of a response type.
trait IntoBody {
    type Body;
}

impl<B> IntoBody for Response<B> {
    type Body = B;
}

pin_project! {
    /// The future of a [`Client`](crate::Client)'s call.
    ///
    /// Where there are a permit and a free connection, the request is on its way
    /// already; otherwise it goes once this is polled. Dropped, the call ends.
    #[must_use = "dropped, the call ends, and a request that was sent may have had an effect"]
    pub struct ResponseFuture {
        #[pin]
        inner: Inner,
        span: Span,
        // Whether the request's method is.
        safe: bool,
        ended: bool,
    }

    impl PinnedDrop for ResponseFuture {
        fn drop(this: Pin<&mut Self>) {
            if !this.ended {
                telemetry::dropped(&this.span);
            }
        }
    }
}

impl ResponseFuture {
    /// Calls the stack, and makes its own future of what that returns.
    #[inline]
    pub(super) fn new(span: Span, safe: bool, call: impl FnOnce() -> Inner) -> Self {
        Self {
            // The layers' own events from within `call` belong to the span too.
            inner: span.in_scope(call),
            span,
            safe,
            ended: false,
        }
    }
}

impl Future for ResponseFuture {
    type Output = Result<Response<ResponseBody>, Error>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.project();
        let _entered = this.span.enter();
        // Each way out makes its own result: a response is moved often enough.
        let outcome = ready!(this.inner.poll(cx));
        *this.ended = true;
        match outcome {
            Ok(response) => {
                telemetry::answered(this.span, &response);
                Poll::Ready(Ok(response.map(|inner| ResponseBody { inner })))
            }
            Err(error) => {
                let error = Error::new(error, *this.safe);
                telemetry::failed(this.span, &error);
                Poll::Ready(Err(error))
            }
        }
    }
}

impl fmt::Debug for ResponseFuture {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ResponseFuture").finish_non_exhaustive()
    }
}

pin_project! {
    /// The body of a [`Client`](crate::Client)'s response, as it comes in.
    /// `BodyExt` of the crate `http-body-util` reads it: `collect().await` to its
    /// end, `frame().await` piece by piece.
    ///
    /// Where it breaks off, its error says whether
    /// [time ran out](tollway_timeout::is_timeout). What became of the call was
    /// known before: the verdict on the response holds, whether or not its body
    /// arrives.
    ///
    /// The attempt's limit on pauses and the call's deadline go on counting
    /// until its end. Dropped unread, its connection is emptied in the
    /// background where that is cheap, and closed otherwise.
    pub struct ResponseBody {
        #[pin]
        inner: InnerBody,
    }
}

impl HttpBody for ResponseBody {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        self.project().inner.poll_frame(cx).map_err(Into::into)
    }

    fn is_end_stream(&self) -> bool {
        self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}

impl fmt::Debug for ResponseBody {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ResponseBody")
            .field("size_hint", &self.size_hint())
            .finish_non_exhaustive()
    }
}
