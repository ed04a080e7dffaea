//! A provider that has its clients pause, while most of them have their permit and
//! wait for a connection: the pause delays them, and that is all.

use std::future::{Future, poll_fn};
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::Poll;
use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::Full;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep};
use tollway::core::{BoxError, Phase};
use tollway::limit::{Limits, Quota, RateLimitLayer, Shape};
use tollway::retry::{ReplayBody, RetryLayer, RetryPolicy};
use tower::{ServiceBuilder, ServiceExt, service_fn};

const CALLS: usize = 1000;

/// Waits for a connection as the pool does.
async fn connected(connections: Arc<Semaphore>) -> Result<impl Sized, BoxError> {
    let mut connection = pin!(connections.acquire_owned());
    let connection = poll_fn(|cx| match connection.as_mut().poll(cx) {
        Poll::Pending => Phase::Connect.pending(),
        ready => ready,
    });
    Ok(connection.await?)
}

#[tokio::test(start_paused = true)]
async fn a_pause_costs_those_who_wait_for_a_connection_nothing_but_time() -> Result<(), BoxError> {
    let connections = Arc::new(Semaphore::new(20));
    let sent = Arc::new(AtomicUsize::new(0));
    let seen = Arc::clone(&sent);
    let provider = service_fn(move |_: Request<ReplayBody<Full<Bytes>>>| {
        let (connections, seen) = (Arc::clone(&connections), Arc::clone(&seen));
        async move {
            let _connection = connected(connections).await?;
            let nth = seen.fetch_add(1, Ordering::Relaxed);
            sleep(Duration::from_millis(100)).await;
            let mut response = Response::new(Full::<Bytes>::default());
            if nth == 0 {
                *response.status_mut() = http::StatusCode::TOO_MANY_REQUESTS;
                response.headers_mut().insert("retry-after", 10.into());
            }
            Ok::<_, BoxError>(response)
        }
    });
    let quota = Quota::new(1000, Duration::from_secs(10)).shape(Shape::Burst);
    let limits = Limits::builder().every_call(quota).build()?;
    let client = ServiceBuilder::new()
        .layer(RetryLayer::new(RetryPolicy::default()))
        .layer(RateLimitLayer::new(limits))
        .service(provider);
    let start = Instant::now();
    let mut calls = JoinSet::new();
    for _ in 0..CALLS {
        let request = Request::post("/payouts").body(Full::from("amount=1"))?;
        calls.spawn(client.clone().oneshot(request));
    }
    let mut statuses = Vec::new();
    for ended in calls.join_all().await {
        statuses.push(ended?.status());
    }
    assert!(statuses.iter().all(http::StatusCode::is_success));
    // All but the refused one were sent once.
    assert_eq!(sent.load(Ordering::Relaxed), CALLS + 1);
    assert!(start.elapsed() < Duration::from_secs(25));
    Ok(())
}
