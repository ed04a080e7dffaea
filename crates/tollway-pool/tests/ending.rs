//! The end of a pool: drained, or dropped.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use http_body_util::BodyExt;
use hyper_util::rt::TokioIo;
use support::{Server, fetch, fetch_later, get, pool, post, send, text, until};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::runtime::Runtime;
use tokio::time::{Instant, sleep};
use tollway_core::Verdict;
use tollway_pool::{CloseReason, Protocol};
use tower::{Service, ServiceExt};

/// A server that answers after this long.
async fn slow(protocol: Protocol, time: Duration) -> Server {
    let handle = move |_| async move {
        sleep(time).await;
        text("done")
    };
    match protocol {
        Protocol::Http2Only => Server::http2(100, handle).await,
        _ => Server::http1(handle).await,
    }
}

#[tokio::test(start_paused = true)]
async fn a_drained_pool_finishes_what_it_has_and_takes_nothing_new() {
    let server = slow(Protocol::Http1Only, Duration::from_secs(5)).await;
    let pool = pool().max_connections_per_host(1).build().unwrap();
    let in_flight = tokio::spawn(fetch_later(&pool, &server));
    until(|| pool.stats().total().calls() == 1).await;
    let waiting = tokio::spawn(fetch_later(&pool, &server));
    until(|| pool.stats().total().waiting() == 1).await;
    let draining = {
        let pool = pool.clone();
        tokio::spawn(async move { pool.drain(Duration::from_secs(60)).await })
    };
    tokio::task::yield_now().await;
    // Nor a host that it hasn't met yet.
    for uri in [server.uri("/"), "http://127.0.0.1:1/".parse().unwrap()] {
        let error = fetch(&pool, get(uri)).await.unwrap_err();
        assert!(error.is_draining(), "{error}");
        assert_eq!(error.verdict(), Verdict::NO_EFFECT);
    }
    in_flight.await.unwrap();
    waiting.await.unwrap();
    assert_eq!(draining.await.unwrap(), 0);
    until(|| server.seen.open() == 0).await;
}

#[tokio::test(start_paused = true)]
async fn a_drain_cuts_off_what_outlasts_its_limit() {
    for protocol in [Protocol::Http1Only, Protocol::Http2Only] {
        let server = slow(protocol, Duration::from_secs(3600)).await;
        let pool = pool().protocol(protocol).build().unwrap();
        let call = {
            let (pool, uri) = (pool.clone(), server.uri("/"));
            tokio::spawn(async move { fetch(&pool, get(uri)).await })
        };
        until(|| server.seen.requests() == 1).await;
        assert_eq!(pool.drain(Duration::from_secs(2)).await, 1);
        let error = call.await.unwrap().unwrap_err();
        assert_eq!(error.verdict(), Verdict::Unknown, "{error}");
        until(|| server.seen.open() == 0).await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_drain_waits_for_one_host_where_another_has_nothing() {
    let idle = slow(Protocol::Http1Only, Duration::ZERO).await;
    let busy = slow(Protocol::Http1Only, Duration::from_secs(3600)).await;
    let pool = pool().build().unwrap();
    fetch(&pool, get(idle.uri("/"))).await.unwrap();
    let call = tokio::spawn({
        let (pool, uri) = (pool.clone(), busy.uri("/"));
        async move { fetch(&pool, get(uri)).await }
    });
    until(|| busy.seen.requests() == 1).await;
    // Looking at the one that has nothing woke the drain itself, without end.
    assert_eq!(pool.drain(Duration::from_secs(2)).await, 1);
    let error = call.await.unwrap().unwrap_err();
    assert_eq!(error.verdict(), Verdict::Unknown, "{error}");
}

#[tokio::test(start_paused = true)]
async fn a_drain_ends_with_the_last_attempt_that_fails() {
    for protocol in [Protocol::Http1Only, Protocol::Http2Only] {
        let nowhere = tower::service_fn(|_: http::Uri| async {
            tokio::time::sleep(Duration::from_secs(2)).await;
            Err::<TokioIo<TcpStream>, _>(std::io::Error::other("nobody there"))
        });
        let pool = pool().protocol(protocol).build_over(nowhere).unwrap();
        let uri = "http://gateway.test/".parse().unwrap();
        let call = tokio::spawn({
            let pool = pool.clone();
            async move { fetch(&pool, get(uri)).await.unwrap_err() }
        });
        until(|| pool.stats().total().opening() == 1).await;
        let began = Instant::now();
        assert_eq!(pool.drain(Duration::MAX).await, 0);
        assert!(began.elapsed() <= Duration::from_secs(2));
        assert!(call.await.unwrap().is_connect());
    }
}

#[tokio::test(start_paused = true)]
async fn a_drain_may_take_for_ever_and_then_nothing_is_warmed() {
    let server = slow(Protocol::Http1Only, Duration::from_secs(3600)).await;
    let pool = pool().build().unwrap();
    let call = tokio::spawn(fetch_later(&pool, &server));
    until(|| server.seen.requests() == 1).await;
    assert_eq!(pool.drain(Duration::MAX).await, 0);
    call.await.unwrap();
    for uri in [server.uri("/"), "http://127.0.0.1:1/".parse().unwrap()] {
        let error = pool.warm(&uri, 2).await.unwrap_err();
        assert!(error.is_draining(), "{error}");
    }
}

#[tokio::test(start_paused = true)]
async fn whoever_waits_when_the_drain_cuts_off_is_told_so() {
    let server = slow(Protocol::Http1Only, Duration::from_secs(3600)).await;
    let pool = pool().max_connections_per_host(1).build().unwrap();
    let call = || {
        let (pool, uri) = (pool.clone(), server.uri("/"));
        tokio::spawn(async move { fetch(&pool, get(uri)).await })
    };
    let in_flight = call();
    until(|| server.seen.requests() == 1).await;
    let waiting = call();
    until(|| pool.stats().total().waiting() == 1).await;
    assert_eq!(pool.drain(Duration::from_secs(2)).await, 2);
    let error = in_flight.await.unwrap().unwrap_err();
    assert_eq!(error.verdict(), Verdict::Unknown, "{error}");
    assert!(error.is_read() && !error.is_write(), "{error:?}");
    let error = waiting.await.unwrap().unwrap_err();
    assert!(error.is_draining() && !error.is_connect(), "{error}");
    assert_eq!(error.verdict(), Verdict::NO_EFFECT);
}

#[test]
fn a_pool_outlives_the_runtimes_that_it_is_used_in() {
    let runtime = || {
        tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap()
    };
    let serving = Runtime::new().unwrap();
    for protocol in [Protocol::Http1Only, Protocol::Http2Only] {
        let pool = pool().idle_timeout(Duration::from_millis(50));
        let pool = pool.protocol(protocol).build().unwrap();
        let server = serving.block_on(slow(protocol, Duration::ZERO));
        for call in 1..=3 {
            runtime().block_on(async {
                fetch(&pool, get(server.uri("/"))).await.unwrap();
            });
            // Its connection has ended with the runtime that drove it.
            assert_eq!(pool.stats().total().opened(), call);
            assert_eq!(pool.stats().total().open(), 0);
        }
        runtime().block_on(async {
            fetch(&pool, get(server.uri("/"))).await.unwrap();
            // The reaper is of this runtime too.
            until(|| pool.stats().total().open() == 0).await;
        });
    }
}

/// A runtime with a thread of its own.
fn runtime() -> Runtime {
    let mut builder = tokio::runtime::Builder::new_multi_thread();
    builder.worker_threads(1).enable_all().build().unwrap()
}

#[test]
fn a_runtime_that_ends_takes_nobody_with_it_who_waits_in_another() {
    let serving = runtime();
    for protocol in [Protocol::Http1Only, Protocol::Http2Only] {
        let first = Arc::new(AtomicBool::new(true));
        let handle = move |_| {
            let hangs = first.swap(false, Ordering::SeqCst);
            async move {
                if hangs {
                    std::future::pending::<()>().await;
                }
                text("done")
            }
        };
        let server = serving.block_on(async {
            match protocol {
                Protocol::Http2Only => Server::http2(1, handle).await,
                _ => Server::http1(handle).await,
            }
        });
        let pool = pool().protocol(protocol).max_connections_per_host(1);
        let pool = pool.build().unwrap();
        let (ending, staying) = (runtime(), runtime());
        ending.spawn(pool.clone().oneshot(get(server.uri("/"))));
        serving.block_on(until(|| server.seen.requests() == 1));
        let waiting: Vec<_> = (0..1000)
            .map(|_| staying.spawn(fetch_later(&pool, &server)))
            .collect();
        serving.block_on(until(|| pool.stats().total().waiting() == 1000));
        drop(ending);
        for call in waiting {
            staying.block_on(call).unwrap();
        }
    }
}

#[test]
fn a_body_dropped_by_a_runtime_that_ends_leaves_its_connection_to_others() {
    let (staying, ending) = (runtime(), runtime());
    let server = staying.block_on(slow(Protocol::Http1Only, Duration::ZERO));
    let pool = pool().max_connections_per_host(1).build().unwrap();
    staying.block_on(pool.warm(&server.uri("/"), 1)).unwrap();
    let (hold, held) = std::sync::mpsc::channel();
    let call = pool.clone().oneshot(get(server.uri("/")));
    ending.spawn(async move {
        let response = call.await.unwrap();
        hold.send(()).unwrap();
        std::future::pending::<()>().await;
        drop(response);
    });
    held.recv().unwrap();
    drop(ending);
    staying.block_on(fetch_later(&pool, &server));
}

#[test]
fn a_runtime_that_ends_does_not_take_the_reaper_from_the_others() {
    let (staying, ending) = (runtime(), runtime());
    let server = staying.block_on(slow(Protocol::Http1Only, Duration::ZERO));
    let pool = pool().idle_timeout(Duration::from_millis(200));
    let pool = pool.build().unwrap();
    // Its first connection brings the reaper.
    ending.block_on(fetch_later(&pool, &server));
    let open = staying.block_on(pool.warm(&server.uri("/"), 2)).unwrap();
    assert_eq!(open, 2);
    drop(ending);
    staying.block_on(fetch_later(&pool, &server));
    staying.block_on(until(|| pool.stats().total().closed(CloseReason::Idle) > 0));
}

#[test]
fn a_call_outside_of_a_runtime_says_so() {
    let pool = pool().build().unwrap();
    let call = send(&pool, get("http://127.0.0.1:1/".parse().unwrap()));
    let mut call = std::pin::pin!(call);
    let cx = &mut std::task::Context::from_waker(std::task::Waker::noop());
    let std::task::Poll::Ready(Err(error)) = call.as_mut().poll(cx) else {
        panic!("it waits for nobody");
    };
    assert!(error.to_string().contains("tokio runtime"), "{error}");
    assert_eq!(error.verdict(), Verdict::NO_EFFECT);

    let uri = "http://127.0.0.1:1/".parse().unwrap();
    let mut warming = std::pin::pin!(pool.warm(&uri, 5));
    let std::task::Poll::Ready(Err(error)) = warming.as_mut().poll(cx) else {
        panic!("nothing is opened");
    };
    assert!(error.to_string().contains("tokio runtime"), "{error}");
}

#[tokio::test]
async fn the_last_handle_takes_the_idle_connections_with_it() {
    let server = Server::http1(|_| async { text("hello") }).await;
    let pool = pool().build().unwrap();
    let other = pool.clone();
    fetch(&pool, get(server.uri("/"))).await.unwrap();
    drop(pool);
    fetch(&other, get(server.uri("/"))).await.unwrap();
    assert_eq!(server.seen.open(), 1);
    let response = send(&other, get(server.uri("/"))).await.unwrap();
    drop(other);
    // The call in flight isn't harmed.
    let body = response.into_body().collect().await.unwrap();
    assert_eq!(body.to_bytes(), "hello");
    until(|| server.seen.open() == 0).await;
}

#[tokio::test]
async fn a_call_needs_no_handle_besides_its_own() {
    for protocol in [Protocol::Http1Only, Protocol::Http2Only] {
        let server = slow(protocol, Duration::ZERO).await;
        let pool = pool().protocol(protocol).build().unwrap();
        // It is dropped before its future is polled.
        let response = pool.oneshot(get(server.uri("/"))).await.unwrap();
        let body = response.into_body().collect().await.unwrap();
        assert_eq!(body.to_bytes(), "done");
        until(|| server.seen.open() == 0).await;
    }
}

#[tokio::test(start_paused = true)]
async fn calls_that_outlive_the_last_handle_finish_and_close_behind_them() {
    for protocol in [Protocol::Http1Only, Protocol::Http2Only] {
        let tasks = tokio::runtime::Handle::current().metrics();
        let server = slow(protocol, Duration::from_secs(5)).await;
        let before = tasks.num_alive_tasks();
        let pool = pool()
            .protocol(protocol)
            .max_connections_per_host(1)
            .acquire_timeout(Duration::from_secs(600))
            .build()
            .unwrap();
        // Neither keeps a handle once it has its connection. Over HTTP/1.1 the
        // second waits for the first.
        let calls = [(); 2].map(|()| {
            let call = pool.clone().oneshot(get(server.uri("/")));
            tokio::spawn(async move { call.await.unwrap().into_body().collect().await })
        });
        until(|| pool.stats().total().calls() + pool.stats().total().waiting() == 2).await;
        drop(pool);
        for call in calls {
            assert_eq!(call.await.unwrap().unwrap().to_bytes(), "done");
        }
        until(|| server.seen.open() == 0).await;
        until(|| tasks.num_alive_tasks() <= before).await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_peer_that_never_closes_holds_nothing_for_long_once_the_pool_is_gone() {
    // It answers before it has read the request, reads no more, and stays.
    let server = Server::raw(|mut stream, seen| async move {
        stream.read_u8().await.unwrap();
        seen.request();
        let answer = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok";
        stream.write_all(answer).await.unwrap();
        std::future::pending::<()>().await;
    })
    .await;
    let tasks = tokio::runtime::Handle::current().metrics();
    let before = tasks.num_alive_tasks();
    let pool = pool()
        .idle_timeout(Duration::from_secs(3600))
        .build()
        .unwrap();
    let request = post(server.uri("/"), vec![b'x'; 32 << 20]);
    let response = send(&pool, request).await.unwrap();
    response.into_body().collect().await.unwrap();
    assert_eq!(pool.stats().total().in_use(), 1);
    let dropped = Instant::now();
    drop(pool);
    // The server's own task for the connection stays.
    until(|| tasks.num_alive_tasks() == before + 1).await;
    assert!(dropped.elapsed() < Duration::from_secs(20));
}

#[tokio::test]
async fn a_call_dropped_before_it_was_polled_leaves_every_count_as_if_it_had_never_been() {
    for protocol in [Protocol::Http1Only, Protocol::Http2Only] {
        let server = slow(protocol, Duration::ZERO).await;
        let mut pool = pool().protocol(protocol).build().unwrap();
        // Without a connection, then with one.
        for _ in 0..2 {
            drop(pool.call(get(server.uri("/"))));
            until(|| pool.stats().total().in_use() == 0).await;
            assert_eq!(pool.stats().total().waiting(), 0);
            fetch(&pool, get(server.uri("/"))).await.unwrap();
        }
        until(|| server.seen.open() <= 1).await;
    }
}
