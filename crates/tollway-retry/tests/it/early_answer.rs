//! A server that answers before it has the whole request, which goes on being
//! sent meanwhile.

use std::collections::VecDeque;
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http::{Request, Response, StatusCode};
use http_body::{Body, Frame};
use http_body_util::{BodyExt, Full};
use tokio::time::{Sleep, sleep};
use tollway_core::{Attempt, BoxError};
use tollway_retry::{ReplayBody, RetryLayer};
use tower::{ServiceBuilder, ServiceExt, service_fn};

use super::support::{millis, policy, status};

/// A frame every 10 ms.
struct Slow {
    frames: VecDeque<Bytes>,
    next: Pin<Box<Sleep>>,
}

impl Body for Slow {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        ready!(self.next.as_mut().poll(cx));
        self.next = Box::pin(sleep(millis(10)));
        Poll::Ready(self.frames.pop_front().map(|data| Ok(Frame::data(data))))
    }
}

/// Ten frames of 60 bytes, of which two may be kept; throttled when the first has
/// come, and again allowed only once the others would have been sent.
#[tokio::test(start_paused = true)]
async fn the_next_attempt_sends_what_the_first_goes_on_sending_in_the_back_off()
-> Result<(), BoxError> {
    let whole: Vec<Bytes> = (0..10).map(|nth| vec![b'0' + nth; 60].into()).collect();
    let came = Arc::new(Mutex::new(Vec::new()));
    let server = {
        let came = Arc::clone(&came);
        service_fn(move |mut request: Request<ReplayBody<Slow>>| {
            let came = Arc::clone(&came);
            async move {
                if !Attempt::of(request.extensions()).is_retry() {
                    request.body_mut().frame().await.transpose()?;
                    tokio::spawn(request.into_body().collect());
                    let mut throttled = status(429);
                    throttled.headers_mut().insert("retry-after", 1.into());
                    return Ok::<Response<Full<Bytes>>, BoxError>(throttled);
                }
                let read = request.into_body().collect().await?.to_bytes();
                *came.lock().unwrap() = read.to_vec();
                Ok(status(200))
            }
        })
    };
    let service = ServiceBuilder::new()
        .layer(RetryLayer::new(policy().replay_bound(150).build()?))
        .service(server);
    let request = Request::post("/v1/uploads").body(Slow {
        frames: whole.clone().into(),
        next: Box::pin(sleep(millis(10))),
    })?;
    let response = service.oneshot(request).await?;
    assert_eq!(response.status(), StatusCode::OK);
    assert_eq!(*came.lock().unwrap(), whole.concat());
    Ok(())
}
