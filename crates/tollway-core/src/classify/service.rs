use std::sync::Arc;
use std::task::{Context, Poll};

use http::{Request, Response};
use http_body::Body;
use tower_service::Service;

use super::{Classify, ClassifyBody, ClassifyFuture, Rules};
use crate::BoxError;

/// The service that [`ClassifyLayer`](super::ClassifyLayer) makes.
#[derive(Debug)]
pub struct ClassifyService<S, C = Rules> {
    inner: S,
    classify: Arc<C>,
}

impl<S, C> ClassifyService<S, C> {
    pub(super) fn new(inner: S, classify: Arc<C>) -> Self {
        Self { inner, classify }
    }
}

impl<S: Clone, C> Clone for ClassifyService<S, C> {
    fn clone(&self) -> Self {
        Self {
            inner: self.inner.clone(),
            classify: Arc::clone(&self.classify),
        }
    }
}

impl<S, C, ReqB, ResB> Service<Request<ReqB>> for ClassifyService<S, C>
where
    S: Service<Request<ReqB>, Response = Response<ResB>>,
    S::Error: Into<BoxError>,
    ResB: Body + Unpin,
    C: Classify,
{
    type Response = Response<ClassifyBody<ResB>>;
    type Error = BoxError;
    type Future = ClassifyFuture<S::Future, C, ResB>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        self.inner.poll_ready(cx).map_err(|error| {
            // No request was taken yet, so none can have had an effect; but what
            // the classifier knows of the error still goes first.
            super::future::judge_error(&*self.classify, error)
        })
    }

    fn call(&mut self, request: Request<ReqB>) -> Self::Future {
        let future = self.inner.call(request);
        ClassifyFuture::new(future, Arc::clone(&self.classify))
    }
}
