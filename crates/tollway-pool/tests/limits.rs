//! The cap, the queue, idle connections, age and use.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

use std::pin::Pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http_body::{Body, Frame};
use http_body_util::BodyExt;
use hyper_util::rt::TokioIo;
use support::{Server, Tls, fetch, fetch_later, get, pool, serve_http1, text, until};
use tokio::net::TcpStream;
use tokio::sync::{Notify, Semaphore, oneshot};
use tokio::time::{Instant, sleep};
use tollway_core::{Deadline, Scope, Verdict};
use tollway_pool::{CloseReason, Pool, PoolBuilder, Protocol};
use tower::{Layer, Service, ServiceExt, service_fn};

/// A server that answers after this long.
async fn slow(time: Duration) -> Server {
    Server::http1(move |_| async move {
        sleep(time).await;
        text("done")
    })
    .await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_callers_share_few_connections() {
    for (alpn, connections) in [(&["http/1.1"][..], 20), (&["h2"][..], 1)] {
        let server = Server::tls(alpn, |_| async { text("hello") }).await;
        let pool = pool().max_connections_per_host(20).build().unwrap();
        let callers = (0..64).map(|_| {
            let (pool, uri) = (pool.clone(), server.uri("/"));
            tokio::spawn(async move {
                for _ in 0..32 {
                    fetch(&pool, get(uri.clone())).await.unwrap();
                }
            })
        });
        for caller in callers.collect::<Vec<_>>() {
            caller.await.unwrap();
        }
        assert_eq!(server.seen.requests(), 64 * 32);
        assert!(server.seen.accepted() <= connections);
        let stats = pool.stats();
        assert_eq!(stats.total().waiting() + stats.total().calls(), 0);
        assert!(stats.total().idle() <= connections);
    }
}

#[tokio::test(start_paused = true)]
async fn whoever_waits_is_served_in_order() {
    let server = slow(Duration::from_millis(5)).await;
    let pool = pool().max_connections_per_host(1).build().unwrap();
    let order = Arc::new(Mutex::new(Vec::new()));
    let mut callers = Vec::new();
    for caller in 0..20 {
        let (call, order) = (fetch_later(&pool, &server), order.clone());
        callers.push(tokio::spawn(async move {
            call.await;
            order.lock().unwrap().push(caller);
        }));
    }
    for caller in callers {
        caller.await.unwrap();
    }
    assert_eq!(*order.lock().unwrap(), (0..20).collect::<Vec<_>>());
    assert_eq!(server.seen.accepted(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_full_queue_refuses_at_once() {
    let server = slow(Duration::from_secs(5)).await;
    let pool = pool()
        .max_connections_per_host(1)
        .max_waiting_per_host(1)
        .build()
        .unwrap();
    let first = tokio::spawn(fetch_later(&pool, &server));
    until(|| pool.stats().total().calls() == 1).await;
    let second = tokio::spawn(fetch_later(&pool, &server));
    until(|| pool.stats().total().waiting() == 1).await;
    let before = Instant::now();
    let error = fetch(&pool, get(server.uri("/"))).await.unwrap_err();
    assert!(error.is_queue_full(), "{error}");
    // Not at once: that a retry keeps for what may be otherwise the next moment.
    let not_now = Verdict::NotExecuted {
        retry_after: Some(Duration::ZERO),
        scope: Scope::Call,
    };
    assert_eq!(error.verdict(), not_now);
    assert_eq!(before.elapsed(), Duration::ZERO);
    first.await.unwrap();
    second.await.unwrap();
}

#[tokio::test]
async fn without_a_queue_there_are_still_as_many_calls_as_connections() {
    for alpn in [None, Some("http/1.1"), Some("h2")] {
        let gate = Arc::new(Semaphore::new(0));
        let handle = {
            let gate = gate.clone();
            move |_| {
                let gate = gate.clone();
                async move {
                    gate.acquire().await.unwrap().forget();
                    text("hello")
                }
            }
        };
        let server = match alpn {
            None => Server::http1(handle).await,
            Some(alpn) => Server::tls(Box::leak(Box::new([alpn])), handle).await,
        };
        let pool = pool().max_connections_per_host(4).max_waiting_per_host(0);
        let pool = pool.build().unwrap();
        let mut calls: Vec<_> = (0..6)
            .map(|_| {
                let (pool, uri) = (pool.clone(), server.uri("/"));
                tokio::spawn(async move { fetch(&pool, get(uri)).await })
            })
            .collect();
        for refused in calls.split_off(4) {
            let error = refused.await.unwrap().unwrap_err();
            assert!(error.is_queue_full(), "{alpn:?}: {error}");
        }
        gate.add_permits(4);
        for call in calls {
            call.await.unwrap().unwrap();
        }
    }
}

#[tokio::test(start_paused = true)]
async fn the_deadline_ends_the_wait_and_so_does_the_limit_of_its_own() {
    let server = slow(Duration::from_secs(3600)).await;
    let pool = pool()
        .max_connections_per_host(1)
        .acquire_timeout(Duration::from_secs(7))
        .build()
        .unwrap();
    let _busy = tokio::spawn(fetch_later(&pool, &server));
    until(|| pool.stats().total().calls() == 1).await;

    let before = Instant::now();
    let error = fetch(&pool, get(server.uri("/"))).await.unwrap_err();
    assert!(error.is_timeout(), "{error}");
    assert_eq!(error.verdict(), Verdict::NO_EFFECT);
    assert_eq!(before.elapsed().as_secs(), 7);

    let before = Instant::now();
    let mut request = get(server.uri("/"));
    let deadline = Deadline::at(before + Duration::from_secs(2));
    request.extensions_mut().insert(deadline);
    let error = fetch(&pool, request).await.unwrap_err();
    assert!(error.is_timeout(), "{error}");
    assert_eq!(before.elapsed().as_secs(), 2);
    assert_eq!(pool.stats().total().waiting(), 0);
}

#[tokio::test(start_paused = true)]
async fn whoever_has_waited_in_vain_is_not_served_though_its_future_is_kept() {
    let server = slow(Duration::from_secs(10)).await;
    let mut pool = pool()
        .max_connections_per_host(1)
        .acquire_timeout(Duration::from_secs(7))
        .build()
        .unwrap();
    let busy = tokio::spawn(fetch_later(&pool, &server));
    until(|| pool.stats().total().calls() == 1).await;
    let mut late = std::pin::pin!(pool.call(get(server.uri("/"))));
    let error = late.as_mut().await.unwrap_err();
    assert!(error.is_timeout(), "{error}");
    assert_eq!(pool.stats().total().waiting(), 0);
    busy.await.unwrap();
    assert_eq!(pool.stats().total().calls(), 0);
    fetch(&pool, get(server.uri("/"))).await.unwrap();
}

#[tokio::test]
async fn a_cancelled_waiters_connection_joins_the_pool() {
    let go = Arc::new(Notify::new());
    let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(Tls::get().server(&[])));
    let gate = go.clone();
    let server = Server::raw(move |stream, seen| {
        let (acceptor, gate) = (acceptor.clone(), gate.clone());
        async move {
            gate.notified().await;
            let stream = acceptor.accept(stream).await.unwrap();
            serve_http1(stream, seen, |_| async { text("hello") }).await;
        }
    })
    .await;
    let uri: http::Uri = format!("https://localhost:{}", server.addr.port())
        .parse()
        .unwrap();
    let pool = pool().build().unwrap();
    let call = {
        let (pool, uri) = (pool.clone(), uri.clone());
        tokio::spawn(async move { fetch(&pool, get(uri)).await })
    };
    until(|| server.seen.accepted() == 1).await;
    call.abort();
    assert!(call.await.unwrap_err().is_cancelled());
    assert_eq!(pool.stats().total().waiting(), 0);
    assert_eq!(pool.stats().total().opening(), 1);
    go.notify_one();
    until(|| pool.stats().total().idle() == 1).await;
    fetch(&pool, get(uri)).await.unwrap();
    assert_eq!(server.seen.accepted(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_call_given_up_midway_leaves_every_count_as_if_it_had_never_been() {
    let server = slow(Duration::from_secs(3600)).await;
    let pool = pool().max_connections_per_host(1).build().unwrap();
    for _ in 0..3 {
        let call = tokio::spawn(fetch_later(&pool, &server));
        let waiter = tokio::spawn(fetch_later(&pool, &server));
        until(|| pool.stats().total().calls() == 1).await;
        until(|| pool.stats().total().waiting() == 1).await;
        waiter.abort();
        call.abort();
        until(|| pool.stats().total().open() + pool.stats().total().closing() == 0).await;
        assert_eq!(pool.stats().total().waiting(), 0);
    }
    assert_eq!(pool.stats().total().closed(CloseReason::Cancelled), 3);
    until(|| server.seen.open() == 0).await;
}

#[tokio::test(start_paused = true)]
async fn idle_connections_are_closed_by_time_and_not_before() {
    let server = Server::http1(|_| async { text("hello") }).await;
    let pool = pool().build().unwrap();
    fetch(&pool, get(server.uri("/"))).await.unwrap();
    sleep(Duration::from_millis(14_900)).await;
    assert_eq!(pool.stats().total().idle(), 1);
    sleep(Duration::from_millis(200)).await;
    assert_eq!(pool.stats().total().idle(), 0);
    until(|| server.seen.open() == 0).await;
    assert_eq!(pool.stats().total().closed(CloseReason::Idle), 1);
}

#[tokio::test(start_paused = true)]
async fn exactly_the_cap_stays_until_the_idle_timeout_and_nothing_after() {
    let server = slow(Duration::from_millis(10)).await;
    let pool = pool()
        .max_connections_per_host(20)
        .idle_timeout(Duration::from_secs(30))
        .build()
        .unwrap();
    let callers: Vec<_> = (0..64)
        .map(|_| {
            let (pool, uri) = (pool.clone(), server.uri("/"));
            tokio::spawn(async move {
                for _ in 0..2000 / 64 + 1 {
                    fetch(&pool, get(uri.clone())).await.unwrap();
                }
            })
        })
        .collect();
    for caller in callers {
        caller.await.unwrap();
    }
    assert!(server.seen.requests() >= 2000);
    assert_eq!(server.seen.accepted(), 20);
    sleep(Duration::from_secs(29)).await;
    assert_eq!(pool.stats().total().idle(), 20);
    assert_eq!(server.seen.open(), 20);
    sleep(Duration::from_millis(1_500)).await;
    assert_eq!(pool.stats().total().open(), 0);
    until(|| server.seen.open() == 0).await;
}

#[tokio::test(start_paused = true)]
async fn an_old_connection_is_replaced_and_no_call_is_cut_short() {
    let server = slow(Duration::from_secs(200)).await;
    let pool = pool()
        .max_age(Duration::from_secs(100))
        .http2_keep_alive(None)
        .build()
        .unwrap();
    // Twice its maximum age under one call.
    fetch(&pool, get(server.uri("/"))).await.unwrap();
    until(|| server.seen.open() == 0).await;
    assert_eq!(pool.stats().total().closed(CloseReason::Age), 1);
    fetch(&pool, get(server.uri("/"))).await.unwrap();
    assert_eq!(server.seen.accepted(), 2);
}

#[tokio::test]
async fn a_connection_carries_so_many_requests_and_no_more() {
    let server = Server::http1(|_| async { text("hello") }).await;
    let pool = pool().max_requests_per_connection(3).build().unwrap();
    for _ in 0..10 {
        fetch(&pool, get(server.uri("/"))).await.unwrap();
    }
    assert_eq!(server.seen.accepted(), 4);
    assert_eq!(pool.stats().total().closed(CloseReason::Requests), 3);

    let server = Server::http2(100, |_| async { text("hello") }).await;
    let pool = support::pool()
        .protocol(Protocol::Http2Only)
        .max_requests_per_connection(3)
        .build()
        .unwrap();
    for _ in 0..10 {
        fetch(&pool, get(server.uri("/"))).await.unwrap();
    }
    assert_eq!(server.seen.accepted(), 4);
}

/// A request's body that is at its end when it is told, or never.
struct Upload(Option<oneshot::Receiver<()>>);

impl Body for Upload {
    type Data = Bytes;
    type Error = std::convert::Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        match &mut self.0 {
            Some(end) => Pin::new(end).poll(cx).map(|_| None),
            None => Poll::Pending,
        }
    }
}

/// Answers before it has been sent the whole request, which it goes on reading.
async fn hasty(answer: &'static str) -> Server {
    Server::http2(1, move |request| {
        tokio::spawn(request.into_body().collect());
        async move { text(answer) }
    })
    .await
}

fn uploading() -> PoolBuilder<Upload> {
    Pool::builder()
        .plain_http(true)
        .protocol(Protocol::Http2Only)
        .http2_keep_alive(None)
}

async fn upload(pool: &Pool<Upload>, server: &Server, body: Upload) -> Bytes {
    let request = http::Request::post(server.uri("/")).body(body).unwrap();
    let response = pool.clone().oneshot(request).await.unwrap();
    response.into_body().collect().await.unwrap().to_bytes()
}

#[tokio::test]
async fn a_request_that_is_still_being_sent_after_its_answer_takes_up_a_stream() {
    for answer in ["", "hello"] {
        let server = hasty(answer).await;
        let pool = uploading().build().unwrap();
        let (ends, bodies): (Vec<_>, Vec<_>) = (0..2).map(|_| oneshot::channel()).unzip();
        for body in bodies {
            assert_eq!(upload(&pool, &server, Upload(Some(body))).await, answer);
        }
        assert_eq!(server.seen.accepted(), 2);
        assert_eq!(pool.stats().total().idle(), 0);
        drop(ends);
        until(|| pool.stats().total().idle() == 2).await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_request_that_is_being_sent_for_ever_costs_its_connection_in_the_end() {
    let server = hasty("no").await;
    let pool = uploading().build().unwrap();
    upload(&pool, &server, Upload(None)).await;
    until(|| server.seen.open() == 0).await;
    assert_eq!(pool.stats().total().closed(CloseReason::Unread), 1);
}

#[tokio::test(start_paused = true)]
async fn no_more_than_so_many_are_kept_idle() {
    let done = |_| async {
        sleep(Duration::from_millis(10)).await;
        text("done")
    };
    for (protocol, server) in [
        (Protocol::Http1Only, Server::http1(done).await),
        (Protocol::Http2Only, Server::http2(1, done).await),
    ] {
        let pool = pool().protocol(protocol).max_idle_per_host(2);
        let pool = pool.build().unwrap();
        let callers: Vec<_> = (0..8)
            .map(|_| tokio::spawn(fetch_later(&pool, &server)))
            .collect();
        for caller in callers {
            caller.await.unwrap();
        }
        until(|| server.seen.open() == 2).await;
        assert_eq!(server.seen.most_open(), 8, "{protocol:?}");
        assert_eq!(pool.stats().total().idle(), 2);
        assert_eq!(pool.stats().total().closed(CloseReason::Surplus), 6);
    }
}

#[tokio::test]
async fn an_http2_connection_is_filled_before_there_is_a_further_one() {
    let go = Arc::new(Notify::new());
    let gate = go.clone();
    let server = Server::http2(4, move |_| {
        let gate = gate.clone();
        async move {
            gate.notified().await;
            text("hello")
        }
    })
    .await;
    let pool = pool()
        .protocol(Protocol::Http2Only)
        .max_connections_per_host(2)
        .build()
        .unwrap();
    let callers: Vec<_> = (0..10)
        .map(|_| tokio::spawn(fetch_later(&pool, &server)))
        .collect();
    until(|| server.seen.requests() == 8).await;
    assert_eq!(server.seen.accepted(), 2);
    assert_eq!(pool.stats().total().calls(), 8);
    assert_eq!(pool.stats().total().waiting(), 2);
    for served in 0..10 {
        go.notify_one();
        until(|| pool.stats().total().requests() > served.min(9)).await;
        tokio::task::yield_now().await;
    }
    until(|| {
        go.notify_one();
        callers.iter().all(tokio::task::JoinHandle::is_finished)
    })
    .await;
    for caller in callers {
        caller.await.unwrap();
    }
    assert_eq!(server.seen.accepted(), 2);
}

#[tokio::test(start_paused = true)]
async fn a_pool_is_warmed_before_the_peak() {
    let server = slow(Duration::from_millis(10)).await;
    let pool1 = pool().build().unwrap();
    assert_eq!(pool1.warm(&server.uri("/"), 5).await.unwrap(), 5);
    assert_eq!(pool1.warm(&server.uri("/"), 5).await.unwrap(), 5);
    assert_eq!(pool1.warm(&server.uri("/"), 500).await.unwrap(), 20);
    assert_eq!(server.seen.accepted(), 20);
    let answer = fetch(&pool1, get(server.uri("/"))).await.unwrap();
    assert!(!answer.info.is_reused());
    assert_eq!(answer.info.waited(), Duration::ZERO);
    assert_eq!(server.seen.accepted(), 20);
}

#[tokio::test]
async fn warming_finds_out_which_protocol_it_is() {
    for (alpn, count) in [(&["h2"][..], 1), (&["http/1.1"][..], 5)] {
        let server = Server::tls(alpn, |_| async { text("hello") }).await;
        let pool = pool().build().unwrap();
        assert_eq!(pool.warm(&server.uri("/"), 5).await.unwrap(), count);
        assert_eq!(server.seen.accepted(), count);
    }
}

#[tokio::test]
async fn warming_waits_for_what_others_have_begun_to_open() {
    for alpn in [&["h2"][..], &["http/1.1"][..]] {
        let server = Server::tls(alpn, |_| async { text("hello") }).await;
        let pool = pool().build().unwrap();
        let uri = server.uri("/");
        let (first, second) = tokio::join!(pool.warm(&uri, 5), pool.warm(&uri, 5));
        let open = if alpn == ["h2"] { 1 } else { 5 };
        assert_eq!((first.unwrap(), second.unwrap()), (open, open));
        assert_eq!(server.seen.accepted(), open);
    }
}

#[tokio::test]
async fn hosts_that_cannot_be_reached_are_forgotten_too() {
    let nowhere = service_fn(|_: http::Uri| async {
        Err::<TokioIo<TcpStream>, _>(std::io::Error::other("nobody there"))
    });
    let pool = pool().build_over(nowhere).unwrap();
    for host in 0..500 {
        let uri = format!("http://gateway-{host}.test/").parse().unwrap();
        fetch(&pool, get(uri)).await.unwrap_err();
    }
    assert!(pool.stats().hosts().count() <= 100);
    assert_eq!(pool.stats().total().failed(), 500);
}

#[tokio::test]
async fn hosts_that_nobody_calls_any_more_are_forgotten() {
    let server = Server::http1(|_| async { text("hello") }).await;
    let addr = server.addr;
    // Whatever the name, it is the same server.
    let connector = service_fn(move |_: http::Uri| async move {
        let stream = TcpStream::connect(addr).await?;
        Ok::<_, std::io::Error>(TokioIo::new(stream))
    });
    let builder = Pool::<support::Body>::builder().plain_http(true);
    let builder = builder.idle_timeout(Duration::from_millis(20));
    let pool = builder.layer().unwrap().layer(connector);
    let mut calls = 0;
    for host in 0..200 {
        for spelled in ["h", "H"] {
            let uri = format!("http://{spelled}{host}.example/").parse().unwrap();
            fetch(&pool, get(uri)).await.unwrap();
            calls += 1;
        }
    }
    // It is seen to whenever something is closed.
    let forgotten = async {
        while pool.stats().hosts().count() > 64 {
            let uri = "http://one.more.example/".parse().unwrap();
            fetch(&pool, get(uri)).await.unwrap();
            calls += 1;
            sleep(Duration::from_millis(30)).await;
        }
    };
    let limit = Duration::from_secs(20);
    tokio::time::timeout(limit, forgotten).await.unwrap();
    // What they did isn't.
    assert_eq!(pool.stats().total().requests(), calls);
}

#[tokio::test]
async fn whoever_comes_while_a_connection_fails_to_open_gets_another() {
    let answer = Arc::new(Semaphore::new(0));
    let server = Server::http1({
        let answer = answer.clone();
        move |_| {
            let answer = answer.clone();
            async move {
                answer.acquire().await.unwrap().forget();
                text("done")
            }
        }
    })
    .await;
    let (attempts, fail) = (Arc::new(AtomicUsize::new(0)), Arc::new(Notify::new()));
    let connector = {
        let (attempts, fail, addr) = (attempts.clone(), fail.clone(), server.addr);
        service_fn(move |_: http::Uri| {
            let (attempts, fail) = (attempts.clone(), fail.clone());
            async move {
                if attempts.fetch_add(1, Ordering::SeqCst) == 1 {
                    fail.notified().await;
                    return Err(std::io::ErrorKind::TimedOut.into());
                }
                TcpStream::connect(addr).await.map(TokioIo::new)
            }
        })
    };
    let pool = pool().build_over(connector).unwrap();
    let first = tokio::spawn(fetch_later(&pool, &server));
    until(|| server.seen.requests() == 1).await;
    // It asks for the second connection, and leaves.
    let second = tokio::spawn(fetch_later(&pool, &server));
    until(|| attempts.load(Ordering::SeqCst) == 2).await;
    second.abort();
    until(|| pool.stats().total().waiting() == 0).await;
    // It finds an attempt under way, which then fails.
    let third = tokio::spawn(fetch_later(&pool, &server));
    until(|| pool.stats().total().waiting() == 1).await;
    fail.notify_one();
    until(|| server.seen.requests() == 2).await;
    answer.add_permits(2);
    first.await.unwrap();
    third.await.unwrap();
}
