//! Peers that refuse, vanish, lie and break off.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http::{Request, Uri};
use http_body::Frame;
use http_body_util::BodyExt;
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;
use support::{
    Body, Server, Tls, fetch, fetch_later, get, pool, post, send, serve_http2, text, until,
};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::Notify;
use tokio::time::{Instant, sleep};
use tollway_core::{Fault, Phase, Verdict};
use tollway_pool::{CloseReason, Pool, PoolError, Protocol};
use tower::ServiceExt;

async fn failing(builder: tollway_pool::PoolBuilder<Body>, uri: Uri) -> PoolError {
    let pool = builder.build().unwrap();
    let error = fetch(&pool, get(uri)).await.unwrap_err();
    // Nothing of it is left.
    until(|| pool.stats().total().opening() + pool.stats().total().closing() == 0).await;
    assert_eq!(pool.stats().total().waiting(), 0);
    error
}

fn localhost(server: &Server) -> Uri {
    format!("https://localhost:{}/", server.addr.port())
        .parse()
        .unwrap()
}

/// What every error before the request was sent has in common.
fn assert_no_effect(error: &PoolError) {
    assert_eq!(error.verdict(), Verdict::NO_EFFECT, "{error}");
    assert_eq!(Verdict::of_error(error), Verdict::NO_EFFECT);
    let fault = Fault::find(error).unwrap();
    assert_eq!(fault.phase(), Some(Phase::Connect));
    assert!(std::error::Error::source(fault).is_some(), "{error}");
}

#[tokio::test]
async fn a_refused_connection_says_so() {
    let closed = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let addr = closed.local_addr().unwrap();
    drop(closed);
    let uri = format!("http://{addr}/").parse().unwrap();
    let error = failing(pool(), uri).await;
    assert!(error.is_connect() && !error.is_timeout());
    assert_no_effect(&error);
    let expected =
        format!("{addr} refused the connection: is the server running, and is it the right port?");
    assert_eq!(error.to_string(), expected);
    assert_eq!(error.host(), Some(&*addr.to_string()));
}

#[tokio::test]
async fn a_name_that_does_not_resolve_says_so() {
    let error = failing(pool(), "https://nowhere.invalid/".parse().unwrap()).await;
    assert!(error.is_resolve(), "{error}");
    assert_no_effect(&error);
    assert!(
        error
            .to_string()
            .contains("no address for nowhere.invalid:443")
    );
}

#[tokio::test(start_paused = true)]
async fn a_black_hole_is_given_up_in_time_wherever_it_swallows() {
    // SYNs into the void.
    let void = tower::service_fn(|_: Uri| {
        std::future::pending::<Result<hyper_util::rt::TokioIo<TcpStream>, std::io::Error>>()
    });
    let before = Instant::now();
    let pool1 = pool().build_over(void).unwrap();
    let uri = "https://api.example.com/".parse().unwrap();
    let error = fetch(&pool1, get(uri)).await.unwrap_err();
    assert!(error.is_connect() && error.is_timeout(), "{error}");
    assert_no_effect_without_cause(&error);
    assert_eq!(before.elapsed().as_secs(), 10);
    assert!(
        error
            .to_string()
            .contains("no answer from api.example.com:443 within 10s")
    );

    // A peer that accepts, and then says nothing.
    let server = Server::raw(|mut stream, _| async move {
        let _ = stream.read_to_end(&mut Vec::new()).await;
    })
    .await;
    let uri: Uri = format!("https://{}/", server.addr).parse().unwrap();
    let error = failing(pool(), uri).await;
    assert!(error.is_tls() && error.is_timeout(), "{error}");
    let uri = server.uri("/");
    let error = failing(pool().protocol(Protocol::Http2Only), uri).await;
    assert!(error.is_handshake() && error.is_timeout(), "{error}");
    until(|| server.seen.open() == 0).await;
}

/// A host that drops what is sent to it, whose silence the transport notices first.
#[cfg(target_os = "linux")]
#[tokio::test(start_paused = true)]
async fn a_host_that_does_not_answer_is_a_timeout() {
    let listener = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None);
    let listener = listener.unwrap();
    let any = std::net::SocketAddr::from(([127, 0, 0, 1], 0));
    listener.bind(&any.into()).unwrap();
    listener.listen(0).unwrap();
    let addr = listener.local_addr().unwrap();
    // Its queue is full from then on.
    let queued = [(); 4].map(|()| {
        let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None);
        let socket = socket.unwrap();
        socket.set_nonblocking(true).unwrap();
        let _ = socket.connect(&addr);
        socket
    });
    let uri = format!("http://{}/", addr.as_socket().unwrap());
    let error = failing(pool(), uri.parse().unwrap()).await;
    assert!(error.is_connect() && error.is_timeout(), "{error}");
    assert_no_effect(&error);
    assert!(error.to_string().contains("no answer from"), "{error}");
    drop(queued);
}

/// A transport whose readiness takes a moment.
#[derive(Clone)]
struct Tardy(Arc<AtomicUsize>);

impl tower::Service<Uri> for Tardy {
    type Response = TokioIo<TcpStream>;
    type Error = tollway_core::BoxError;
    type Future = tollway_pool::connect::Connecting<Self::Response>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        if self.0.fetch_add(1, Ordering::SeqCst) > 0 {
            return Poll::Ready(Ok(()));
        }
        let waker = cx.waker().clone();
        tokio::spawn(async move {
            sleep(Duration::from_millis(1)).await;
            waker.wake();
        });
        Poll::Pending
    }

    fn call(&mut self, uri: Uri) -> Self::Future {
        tollway_pool::connect::Tcp::new(Duration::from_secs(10)).call(uri)
    }
}

/// Its limit began a moment later than the pool's.
#[tokio::test(start_paused = true)]
async fn a_connector_that_gives_up_last_says_how_far_it_has_come() {
    let server = Server::raw(|mut stream, _| async move {
        let _ = stream.read_to_end(&mut Vec::new()).await;
    })
    .await;
    let pool = pool().build_over(Tardy(Arc::default())).unwrap();
    let uri = format!("https://{}/", server.addr).parse().unwrap();
    let error = fetch(&pool, get(uri)).await.unwrap_err();
    assert!(error.is_tls() && error.is_timeout(), "{error}");
}

fn assert_no_effect_without_cause(error: &PoolError) {
    assert_eq!(error.verdict(), Verdict::NO_EFFECT, "{error}");
}

#[tokio::test]
async fn a_bad_certificate_is_explained() {
    let handle = |_| async { text("hello") };
    let server = Server::tls(&[], handle).await;
    // Trusted by nobody.
    let other = Tls::of(|params| {
        let name = rcgen::DnType::CommonName;
        params.distinguished_name.push(name, "another authority");
    });
    let error = failing(pool().tls(other.client()), server.uri("/")).await;
    assert!(error.is_tls(), "{error}");
    assert_no_effect(&error);
    assert!(
        error.to_string().contains("whom this machine trusts"),
        "{error}"
    );
    // Another's name.
    let uri: Uri = format!("https://127.0.0.1:{}/", server.addr.port())
        .parse()
        .unwrap();
    let error = failing(pool(), uri).await;
    assert!(error.is_tls());
    assert!(error.to_string().contains("is another host's"), "{error}");
    // Out of date.
    let expired = Tls::of(|params| params.not_after = rcgen::date_time_ymd(2001, 1, 1));
    let server = Server::tls_with(expired.server(&[]), handle).await;
    let error = failing(pool().tls(expired.client()), server.uri("/")).await;
    assert!(error.is_tls());
    assert!(error.to_string().contains("has expired"), "{error}");
}

#[tokio::test]
async fn plain_http_on_a_tls_port_and_the_other_way_round_are_explained() {
    let plain = Server::http1(|_| async { text("hello") }).await;
    let error = failing(pool(), localhost(&plain)).await;
    assert!(error.is_tls(), "{error}");
    assert_no_effect(&error);
    assert!(
        error
            .to_string()
            .contains("does the port speak plain http?")
    );

    let tls = Server::tls(&[], |_| async { text("hello") }).await;
    let uri: Uri = format!("http://{}/", tls.addr).parse().unwrap();
    let error = failing(pool(), uri).await;
    assert!(error.is_read(), "{error}");
    assert!(
        error.to_string().contains("https perhaps?"),
        "not explained: {error}"
    );
    assert_eq!(error.verdict(), Verdict::Unknown);
}

#[tokio::test]
async fn a_peer_that_closes_during_the_tls_handshake_is_explained() {
    let server = Server::raw(|mut stream, _| async move {
        let _ = stream.read(&mut [0; 1024]).await;
    })
    .await;
    let error = failing(pool(), localhost(&server)).await;
    assert!(error.is_tls(), "{error}");
    assert_no_effect(&error);
    let text = error.to_string();
    assert!(text.contains("closed the connection during"), "{text}");
}

/// A body that fails after its first piece.
struct Failing(bool);

impl http_body::Body for Failing {
    type Data = Bytes;
    type Error = std::io::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<std::io::Result<Frame<Bytes>>>> {
        let first = !std::mem::replace(&mut self.0, true);
        Poll::Ready(Some(if first {
            Ok(Frame::data("pay".into()))
        } else {
            Err(std::io::Error::other("the disk is gone"))
        }))
    }
}

#[tokio::test]
async fn a_body_of_the_callers_that_fails_is_not_blamed_on_the_connection() {
    let handle = |request: Request<Incoming>| async move {
        let _ = request.into_body().collect().await;
        text("hello")
    };
    for (protocol, server) in [
        (Protocol::Http1Only, Server::http1(handle).await),
        (Protocol::Http2Only, Server::http2(100, handle).await),
    ] {
        let pool = Pool::builder().plain_http(true).protocol(protocol);
        let pool: Pool<Failing> = pool.build().unwrap();
        let request = Request::post(server.uri("/")).body(Failing(false)).unwrap();
        let error = pool.clone().oneshot(request).await.unwrap_err();
        assert!(error.is_write(), "{protocol:?}: {error}");
        assert!(error.to_string().contains("its own body"), "{error}");
        assert_eq!(error.verdict(), Verdict::Unknown);
    }
}

/// A body that fails after a while.
struct FailingLate(Pin<Box<tokio::time::Sleep>>);

impl http_body::Body for FailingLate {
    type Data = Bytes;
    type Error = std::io::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<std::io::Result<Frame<Bytes>>>> {
        let late = self.0.as_mut().poll(cx);
        late.map(|()| Some(Err(std::io::Error::other("the disk is gone"))))
    }
}

/// The peer has no reason to say anything meanwhile.
#[tokio::test(start_paused = true)]
async fn nor_on_the_silence_of_the_peer() {
    let server = Server::http2(100, |request: Request<Incoming>| async move {
        let _ = request.into_body().collect().await;
        text("hello")
    })
    .await;
    let pool = Pool::builder().plain_http(true).http2_keep_alive(None);
    let pool = pool.protocol(Protocol::Http2Only).build().unwrap();
    for _ in 0..3 {
        let body = FailingLate(Box::pin(sleep(Duration::from_secs(1))));
        let request = Request::post(server.uri("/")).body(body).unwrap();
        let error = pool.clone().oneshot(request).await.unwrap_err();
        assert!(error.is_write(), "{error}");
    }
    assert_eq!(pool.stats().total().closed(CloseReason::Unresponsive), 0);
    assert_eq!(server.seen.accepted(), 1);
}

/// A body that is empty, or panics when it is polled for the so manieth time.
struct Panicking(Option<usize>);

impl http_body::Body for Panicking {
    type Data = Bytes;
    type Error = std::convert::Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        let Some(left) = &mut self.0 else {
            return Poll::Ready(None);
        };
        *left = left.checked_sub(1).expect("the caller's own mistake");
        cx.waker().wake_by_ref();
        Poll::Pending
    }
}

#[tokio::test]
async fn a_body_of_the_callers_that_panics_costs_its_own_call_over_http2() {
    let server = Server::http2(100, |request: Request<Incoming>| async move {
        let _ = request.into_body().collect().await;
        text("hello")
    })
    .await;
    let pool = Pool::builder().plain_http(true);
    let pool: Pool<Panicking> = pool.protocol(Protocol::Http2Only).build().unwrap();
    let call = |body| {
        let request = Request::post(server.uri("/")).body(body).unwrap();
        let answer = pool.clone().oneshot(request);
        tokio::time::timeout(Duration::from_secs(20), answer)
    };
    for polls in 0..3 {
        // At once, and in a task of its own.
        let error = call(Panicking(Some(polls))).await.unwrap().unwrap_err();
        assert!(error.is_write(), "{polls}: {error}");
        assert_eq!(error.verdict(), Verdict::Unknown);
        call(Panicking(None)).await.unwrap().unwrap();
    }
    assert_eq!(server.seen.accepted(), 1);
}

/// A body that takes its time, and its thread's, when it is polled again.
#[derive(Default)]
struct Slow {
    polled: bool,
    takes: Option<std::sync::mpsc::Receiver<()>>,
}

impl http_body::Body for Slow {
    type Data = Bytes;
    type Error = std::convert::Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        if !std::mem::replace(&mut self.polled, true) {
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        if let Some(takes) = self.takes.take() {
            takes.recv_timeout(Duration::from_secs(20)).unwrap();
        }
        Poll::Ready(None)
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_body_of_the_callers_that_takes_its_time_keeps_no_other_call_waiting() {
    let server = Server::http2(100, |request: Request<Incoming>| async move {
        let _ = request.into_body().collect().await;
        text("hello")
    })
    .await;
    let pool = Pool::builder().plain_http(true);
    let pool = pool.protocol(Protocol::Http2Only).build().unwrap();
    let call = |body| {
        let request = Request::post(server.uri("/")).body(body).unwrap();
        pool.clone().oneshot(request)
    };
    let (over, takes) = std::sync::mpsc::channel();
    let slow = tokio::spawn(call(Slow {
        polled: false,
        takes: Some(takes),
    }));
    until(|| server.seen.requests() == 1).await;
    call(Slow::default()).await.unwrap();
    over.send(()).unwrap();
    slow.await.unwrap().unwrap();
    assert_eq!(server.seen.accepted(), 1);
}

#[tokio::test]
async fn a_peer_without_http2_fails_the_handshake_and_not_the_request() {
    let server = Server::http1(|_| async { text("hello") }).await;
    let error = failing(pool().protocol(Protocol::Http2Only), server.uri("/")).await;
    assert!(error.is_handshake(), "{error}");
    assert_no_effect(&error);
    let server = Server::tls(&["http/1.1"], |_| async { text("hello") }).await;
    let error = failing(pool().protocol(Protocol::Http2Only), server.uri("/")).await;
    assert!(error.is_tls(), "{error}");
    assert!(error.to_string().contains("protocol()"), "{error}");
}

#[tokio::test]
async fn a_url_that_cannot_be_called_is_refused_before_anything_is_done() {
    let pool = tollway_pool::Pool::<Body>::builder()
        .tls(Tls::get().client())
        .build()
        .unwrap();
    for (uri, says) in [
        ("/v1/charges", "names no host"),
        (
            "http://127.0.0.1:1/",
            "plain http to 127.0.0.1:1 is refused",
        ),
        ("ftp://example.com/", "neither https nor http"),
        ("https://example.com:99999/", "a number up to 65535"),
        ("https://user:hunter2@example.com/", "authorization header"),
    ] {
        let error = fetch(&pool, get(uri.parse().unwrap())).await.unwrap_err();
        assert_eq!(error.verdict(), Verdict::Rejected);
        assert!(error.to_string().contains(says), "{error}");
        assert!(!format!("{error:?}").contains("hunter2"));
    }
    let mut request = get("https://example.com/".parse().unwrap());
    *request.method_mut() = http::Method::CONNECT;
    let error = fetch(&pool, request).await.unwrap_err();
    assert!(error.to_string().contains("CONNECT"), "{error}");
    let mut request = get("https://example.com/".parse().unwrap());
    let upgrade = "websocket".parse().unwrap();
    request.headers_mut().insert("upgrade", upgrade);
    let error = fetch(&pool, request).await.unwrap_err();
    assert!(error.to_string().contains("upgrade"), "{error}");
    assert_eq!(pool.stats().total().opened(), 0);
}

/// Answers so many requests on each connection, then closes it without a word.
async fn forgetful(requests: usize) -> Server {
    Server::raw(move |mut stream, seen| async move {
        let mut buffer = [0; 4096];
        for _ in 0..requests {
            let Ok(1..) = stream.read(&mut buffer).await else {
                return;
            };
            seen.request();
            let answer = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok";
            let _ = stream.write_all(answer).await;
        }
    })
    .await
}

#[tokio::test]
async fn a_request_that_meets_a_connection_which_has_closed_is_sent_on_another() {
    let server = forgetful(1).await;
    let pool = pool().build().unwrap();
    for call in 1..=50 {
        // The server's end is closed by now; whether the pool knows is luck.
        fetch(&pool, post(server.uri("/"), "pay")).await.unwrap();
        assert_eq!(server.seen.requests(), call);
        until(|| server.seen.open() == 0).await;
    }
    assert_eq!(server.seen.accepted(), 50);
}

#[tokio::test]
async fn a_peer_that_closes_every_new_connection_is_not_tried_for_ever() {
    let server = Server::raw(|stream, _| async move { drop(stream) }).await;
    let pool = pool().build().unwrap();
    let error = fetch(&pool, post(server.uri("/"), "pay"))
        .await
        .unwrap_err();
    assert!(server.seen.accepted() <= 3, "{}", server.seen.accepted());
    // Unsent it is not executed; written into a socket that had closed
    // already, nobody knows.
    let verdict = error.verdict();
    assert!(
        verdict == Verdict::NO_EFFECT || (verdict == Verdict::Unknown && error.is_read()),
        "{error} {error:?}"
    );
}

#[tokio::test]
async fn a_request_that_was_read_is_never_sent_twice() {
    let server = Server::raw(|mut stream, seen| async move {
        let mut buffer = [0; 4096];
        if let Ok(1..) = stream.read(&mut buffer).await {
            seen.request();
        }
    })
    .await;
    let pool = pool().build().unwrap();
    for call in 1..=20 {
        let error = fetch(&pool, post(server.uri("/"), "pay"))
            .await
            .unwrap_err();
        assert!(error.is_read(), "{error}");
        assert_eq!(error.verdict(), Verdict::Unknown);
        assert_eq!(server.seen.requests(), call);
    }
    assert_eq!(server.seen.accepted(), 20);
    assert_eq!(pool.stats().total().resent(), 0);
}

#[tokio::test]
async fn a_connection_that_gave_an_error_is_not_used_again() {
    // The second request on a connection is answered with garbage.
    let server = Server::raw(|mut stream, seen| async move {
        let mut buffer = [0; 4096];
        let answers = [
            &b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok"[..],
            b"garbage\r\n\r\n",
        ];
        for answer in answers {
            let Ok(1..) = stream.read(&mut buffer).await else {
                return;
            };
            seen.request();
            let _ = stream.write_all(answer).await;
        }
        let _ = stream.read(&mut buffer).await;
    })
    .await;
    let pool = pool().build().unwrap();
    fetch(&pool, get(server.uri("/"))).await.unwrap();
    let error = fetch(&pool, get(server.uri("/"))).await.unwrap_err();
    assert!(error.is_read(), "{error}");
    fetch(&pool, get(server.uri("/"))).await.unwrap();
    assert_eq!(server.seen.accepted(), 2);
}

// ===== HTTP/2, frame by frame =====

const SETTINGS: &[u8] = &[0, 0, 0, 4, 0, 0, 0, 0, 0];

/// GOAWAY without an error, after this stream.
fn go_away(last_stream: u8) -> [u8; 17] {
    let mut frame = [0; 17];
    frame[2] = 8;
    frame[3] = 7;
    frame[12] = last_stream;
    frame
}

/// `RST_STREAM` of this stream, with this code.
fn reset(stream: u8, code: u8) -> [u8; 13] {
    let mut frame = [0; 13];
    frame[2] = 4;
    frame[3] = 3;
    frame[8] = stream;
    frame[12] = code;
    frame
}

/// Reads until the headers of this stream have come.
async fn headers_of(stream: &mut TcpStream, id: u8) -> bool {
    let mut preface = [0; 24];
    if id == 1 && stream.read_exact(&mut preface).await.is_err() {
        return false;
    }
    frame_of(stream, 1, id).await
}

/// Reads until a frame of this type and stream has come.
async fn frame_of(stream: &mut TcpStream, kind: u8, id: u8) -> bool {
    loop {
        let mut head = [0; 9];
        if stream.read_exact(&mut head).await.is_err() {
            return false;
        }
        let len = u32::from_be_bytes([0, head[0], head[1], head[2]]);
        let mut payload = vec![0; len as usize];
        if stream.read_exact(&mut payload).await.is_err() {
            return false;
        }
        if head[3] == kind && head[8] == id {
            return true;
        }
    }
}

/// A server that answers a connection's first request with this frame.
async fn answering(frame: Vec<u8>) -> Server {
    Server::raw(move |mut stream, _| {
        let frame = frame.clone();
        async move {
            let _ = stream.write_all(SETTINGS).await;
            if headers_of(&mut stream, 1).await {
                let _ = stream.write_all(&frame).await;
            }
            let _ = stream.read_to_end(&mut Vec::new()).await;
        }
    })
    .await
}

#[tokio::test]
async fn a_stream_that_the_peer_refuses_was_not_executed() {
    for (frame, goes_away) in [(reset(1, 7).to_vec(), false), (go_away(0).to_vec(), true)] {
        let server = answering(frame).await;
        // With a body and without one: it is seen by other signs then.
        for body in ["pay", ""] {
            let pool = pool().protocol(Protocol::Http2Only).build().unwrap();
            let error = fetch(&pool, post(server.uri("/"), body)).await;
            let error = error.unwrap_err();
            assert!(error.is_refused(), "{error:?}");
            assert_eq!(error.verdict(), Verdict::NO_EFFECT);
            // The one that says GOAWAY ends in order.
            let ends = u64::from(goes_away);
            until(|| pool.stats().total().closed(CloseReason::Peer) == ends).await;
            assert_eq!(pool.stats().total().closed(CloseReason::Error), 0);
        }
        assert_eq!(server.seen.accepted(), 2);
    }
}

/// As HAProxy does with a request that it has passed on.
#[tokio::test]
async fn a_refusal_that_is_not_to_be_trusted_leaves_the_outcome_unknown() {
    for (frame, trusted) in [(reset(1, 7).to_vec(), false), (go_away(0).to_vec(), true)] {
        let server = answering(frame).await;
        let pool = pool()
            .protocol(Protocol::Http2Only)
            .trust_refused_stream(false)
            .build()
            .unwrap();
        let error = fetch(&pool, post(server.uri("/"), "pay")).await;
        let error = error.unwrap_err();
        assert_eq!(error.is_refused(), trusted, "{error:?}");
        let verdict = if trusted {
            Verdict::NO_EFFECT
        } else {
            Verdict::Unknown
        };
        assert_eq!(error.verdict(), verdict, "{error}");
        assert_eq!(pool.stats().total().closed(CloseReason::Error), 0);
    }
}

#[tokio::test]
async fn a_stream_that_breaks_off_is_of_unknown_outcome() {
    // INTERNAL_ERROR, CANCEL, and a connection that just ends.
    for code in [Some(2), Some(8), None] {
        let server = Server::raw(move |mut stream, _| async move {
            let _ = stream.write_all(SETTINGS).await;
            let mut id = 1;
            while headers_of(&mut stream, id).await
                && let Some(code) = code
            {
                let _ = stream.write_all(&reset(id, code)).await;
                id += 2;
            }
        })
        .await;
        let pool = pool().protocol(Protocol::Http2Only).build().unwrap();
        for _ in 0..2 {
            let error = fetch(&pool, post(server.uri("/"), "pay"))
                .await
                .unwrap_err();
            assert!(error.is_read(), "{error:?}");
            assert_eq!(error.verdict(), Verdict::Unknown);
            // What broke is what is said to have broken.
            let text = error.to_string();
            assert_eq!(text.contains("the stream"), code.is_some(), "{text}");
            assert_eq!(text.contains("the connection"), code.is_none(), "{text}");
        }
        // The others on the connection go on.
        let (connections, broken) = if code.is_some() { (1, 0) } else { (2, 2) };
        assert_eq!(server.seen.accepted(), connections);
        until(|| pool.stats().total().closed(CloseReason::Error) == broken).await;
    }
}

/// It is we who say GOAWAY then, which tells nothing of what the peer has done.
#[tokio::test]
async fn a_peer_that_breaks_the_rules_of_http2_may_have_processed_the_request() {
    for body in ["pay", ""] {
        let server = Server::raw(|mut stream, _| async move {
            let _ = stream.write_all(SETTINGS).await;
            headers_of(&mut stream, 1).await;
            // A PING of one byte.
            let _ = stream.write_all(&[0, 0, 1, 6, 0, 0, 0, 0, 0, 0]).await;
            let _ = stream.read_to_end(&mut Vec::new()).await;
        })
        .await;
        let pool = pool().protocol(Protocol::Http2Only).build().unwrap();
        let error = fetch(&pool, post(server.uri("/"), body)).await;
        let error = error.unwrap_err();
        assert!(error.is_read(), "{error:?}");
        assert_eq!(error.verdict(), Verdict::Unknown);
    }
}

#[tokio::test]
async fn an_answer_that_breaks_the_rules_of_http2_is_not_blamed_on_the_request() {
    let server = Server::raw(|mut stream, _| async move {
        let _ = stream.write_all(SETTINGS).await;
        headers_of(&mut stream, 1).await;
        // `content-length: 5`, and no status.
        let head = [0, 0, 4, 1, 5, 0, 0, 0, 1, 0x0f, 0x0d, 1, b'5'];
        let _ = stream.write_all(&head).await;
        let _ = stream.read_to_end(&mut Vec::new()).await;
    })
    .await;
    let pool = pool().protocol(Protocol::Http2Only).build().unwrap();
    let error = fetch(&pool, post(server.uri("/"), "pay"))
        .await
        .unwrap_err();
    assert!(error.is_read() && !error.is_write(), "{error:?}");
    assert_eq!(error.verdict(), Verdict::Unknown);
}

#[tokio::test]
async fn a_stream_that_breaks_off_in_its_answer_leaves_the_connection_in_use() {
    let server = Server::raw(|mut stream, _| async move {
        let _ = stream.write_all(SETTINGS).await;
        for id in [1, 3] {
            headers_of(&mut stream, id).await;
            // 200, two bytes of the body, and INTERNAL_ERROR.
            let _ = stream.write_all(&[0, 0, 1, 1, 4, 0, 0, 0, id, 0x88]).await;
            let _ = stream
                .write_all(&[0, 0, 2, 0, 0, 0, 0, 0, id, b'o', b'k'])
                .await;
            let _ = stream.write_all(&reset(id, 2)).await;
        }
        let _ = stream.read_to_end(&mut Vec::new()).await;
    })
    .await;
    let pool = pool().protocol(Protocol::Http2Only).build().unwrap();
    for _ in 0..2 {
        let error = fetch(&pool, get(server.uri("/"))).await.unwrap_err();
        assert_eq!(error.verdict(), Verdict::Unknown);
        let text = error.to_string();
        assert!(text.contains("the stream"), "{text}");
        assert_eq!(pool.stats().total().calls(), 0);
    }
    assert_eq!(server.seen.accepted(), 1);
}

/// hyper takes it for the answer's end.
#[tokio::test]
async fn an_answer_that_is_cut_off_without_an_error_is_not_taken_for_complete() {
    // 200, with five bytes to come or with as many as there are.
    let heads = [
        &[0, 0, 5, 1, 4, 0, 0, 0, 1, 0x88, 0x0f, 0x0d, 1, b'5'][..],
        &[0, 0, 1, 1, 4, 0, 0, 0, 1, 0x88],
    ];
    for (head, body) in heads
        .into_iter()
        .flat_map(|head| [(head, ""), (head, "pay")])
    {
        let server = Server::raw(move |mut stream, _| async move {
            let _ = stream.write_all(SETTINGS).await;
            headers_of(&mut stream, 1).await;
            let data = [0, 0, 2, 0, 0, 0, 0, 0, 1, b'o', b'k'];
            let cut_off = [head, &data, &reset(1, 0)].concat();
            let _ = stream.write_all(&cut_off).await;
            let _ = stream.read_to_end(&mut Vec::new()).await;
        })
        .await;
        let pool = pool().protocol(Protocol::Http2Only).build().unwrap();
        let error = fetch(&pool, post(server.uri("/"), body)).await.unwrap_err();
        assert!(error.is_read(), "{error:?}");
        assert_eq!(error.verdict(), Verdict::Unknown);
        assert!(error.to_string().contains("before the response was"));
        // The others on the connection go on.
        assert_eq!(pool.stats().total().calls(), 0);
        assert_eq!(pool.stats().total().idle(), 1);
    }
}

/// As RFC 9113, 8.1 has it: so that it isn't sent the rest.
#[tokio::test]
async fn a_peer_that_has_answered_may_stop_the_request() {
    // Whether it says that it has, and how long it says that its answer is.
    const ANSWERS: [(bool, Option<u8>); 5] = [
        (true, Some(b'2')),
        (false, Some(b'2')),
        (true, None),
        (false, Some(b'3')),
        (false, None),
    ];

    async fn answer(mut stream: TcpStream, heard: Arc<Notify>) {
        let _ = stream.write_all(SETTINGS).await;
        for (id, (ends, length)) in (1..).step_by(2).zip(ANSWERS) {
            headers_of(&mut stream, id).await;
            let head = match length {
                Some(length) => &[0, 0, 5, 1, 4, 0, 0, 0, id, 0x88, 0x0f, 0x0d, 1, length][..],
                None => &[0, 0, 1, 1, 4, 0, 0, 0, id, 0x88],
            };
            let _ = stream.write_all(head).await;
            heard.notified().await;
            let data = [0, 0, 2, 0, ends.into(), 0, 0, 0, id, b'o', b'k'];
            let rest = [&data[..], &reset(id, 0)].concat();
            let _ = stream.write_all(&rest).await;
        }
        let _ = stream.read_to_end(&mut Vec::new()).await;
    }

    let heard = Arc::new(Notify::new());
    let server = Server::raw({
        let heard = heard.clone();
        move |stream, _| answer(stream, heard.clone())
    })
    .await;
    let pool = Pool::builder().plain_http(true);
    let pool = pool.protocol(Protocol::Http2Only).build().unwrap();
    for (ends, length) in ANSWERS {
        let complete = ends || length == Some(b'2');
        let late = FailingLate(Box::pin(sleep(Duration::from_secs(3600))));
        let request = Request::post(server.uri("/")).body(late).unwrap();
        let response = pool.clone().oneshot(request).await.unwrap();
        heard.notify_one();
        match response.into_body().collect().await {
            Ok(answer) => assert!(complete && answer.to_bytes() == "ok"),
            Err(error) => assert!(!complete && error.is_read(), "{error:?}"),
        }
        until(|| pool.stats().total().calls() == 0).await;
    }
    assert_eq!(server.seen.accepted(), 1);
}

/// `SETTINGS_MAX_CONCURRENT_STREAMS`.
const fn allow(calls: u8) -> [u8; 15] {
    [0, 0, 6, 4, 0, 0, 0, 0, 0, 0, 3, 0, 0, 0, calls]
}

#[tokio::test]
async fn so_is_one_that_allows_none_after_a_while() {
    let (ready, heard) = (Arc::new(Notify::new()), Arc::new(Notify::new()));
    let server = Server::raw({
        let (ready, heard) = (ready.clone(), heard.clone());
        move |mut stream, _| {
            let (ready, heard) = (ready.clone(), heard.clone());
            async move {
                let ok = |id| [0, 0, 1, 1, 5, 0, 0, 0, id, 0x88];
                let _ = stream.write_all(&allow(10)).await;
                headers_of(&mut stream, 1).await;
                let _ = stream.write_all(&[&allow(0)[..], &ok(1)].concat()).await;
                ready.notified().await;
                let ping = [0, 0, 8, 6, 0, 0, 0, 0, 0, 1, 2, 3, 4, 5, 6, 7, 8];
                let _ = stream.write_all(&ping).await;
                frame_of(&mut stream, 6, 0).await;
                heard.notify_one();
                ready.notified().await;
                let _ = stream.write_all(&allow(10)).await;
                headers_of(&mut stream, 5).await;
                let _ = stream.write_all(&ok(5)).await;
                let _ = stream.read_to_end(&mut Vec::new()).await;
            }
        }
    })
    .await;
    let pool = pool().protocol(Protocol::Http2Only).http2_keep_alive(None);
    let pool = pool.max_connections_per_host(1).build().unwrap();
    fetch(&pool, get(server.uri("/"))).await.unwrap();
    // One that is on its way to the connection by then is held back there, and
    // given up.
    let held = tokio::spawn(fetch_later(&pool, &server));
    until(|| pool.stats().total().calls() == 1).await;
    let call = tokio::spawn(fetch_later(&pool, &server));
    until(|| pool.stats().total().waiting() == 1).await;
    ready.notify_one();
    heard.notified().await;
    held.abort();
    until(|| pool.stats().total().calls() == 0).await;
    ready.notify_one();
    call.await.unwrap();
    assert_eq!(server.seen.accepted(), 1);
}

/// Reads until the headers of so many streams have come, and returns their names.
async fn heads(stream: &mut TcpStream, count: usize) -> Vec<[u8; 4]> {
    let mut ids = Vec::new();
    stream.read_exact(&mut [0; 24]).await.unwrap();
    while ids.len() < count {
        let mut head = [0; 9];
        stream.read_exact(&mut head).await.unwrap();
        let len = u32::from_be_bytes([0, head[0], head[1], head[2]]);
        stream.read_exact(&mut vec![0; len as usize]).await.unwrap();
        if head[3] == 1 {
            ids.push([head[5], head[6], head[7], head[8]]);
        }
    }
    ids
}

/// hyper remembers fifty streams by default that were given up. What comes on
/// others it counts against the peer, up to a thousand times.
#[tokio::test]
async fn answers_to_calls_that_were_given_up_at_once_cost_the_others_nothing() {
    const CALLS: usize = 1_200;
    let (heard, given_up) = (Arc::new(Notify::new()), Arc::new(Notify::new()));
    let server = Server::raw({
        let (heard, given_up) = (heard.clone(), given_up.clone());
        move |mut stream, _| {
            let (heard, given_up) = (heard.clone(), given_up.clone());
            async move {
                let _ = stream.write_all(SETTINGS).await;
                let ids = heads(&mut stream, CALLS).await;
                // So that it isn't taken for silent.
                let ping = [0, 0, 8, 6, 0, 0, 0, 0, 0, 1, 2, 3, 4, 5, 6, 7, 8];
                let _ = stream.write_all(&ping).await;
                frame_of(&mut stream, 6, 0).await;
                heard.notify_one();
                given_up.notified().await;
                // The one that was not given up comes last.
                for [a, b, c, d] in ids.into_iter().rev() {
                    let head = [0, 0, 1, 1, 4, a, b, c, d, 0x88];
                    let body = [0, 0, 2, 0, 1, a, b, c, d, b'o', b'k'];
                    let _ = stream.write_all(&[&head[..], &body].concat()).await;
                }
                let _ = stream.read_to_end(&mut Vec::new()).await;
            }
        }
    })
    .await;
    let pool = pool().protocol(Protocol::Http2Only).http2_keep_alive(None);
    let pool = pool.build().unwrap();
    pool.warm(&server.uri("/"), 1).await.unwrap();
    let call = || {
        let (pool, uri) = (pool.clone(), server.uri("/"));
        tokio::spawn(async move { fetch(&pool, get(uri)).await })
    };
    let kept = call();
    until(|| pool.stats().total().calls() == 1).await;
    let others: Vec<_> = (1..CALLS).map(|_| call()).collect();
    heard.notified().await;
    for other in others {
        other.abort();
        let _ = other.await;
    }
    given_up.notify_one();
    assert_eq!(kept.await.unwrap().unwrap().body, "ok");
    assert_eq!(server.seen.accepted(), 1);
}

#[tokio::test]
async fn a_peer_that_allows_no_calls_for_now_is_waited_for() {
    let ready = Arc::new(Notify::new());
    let server = Server::raw({
        let ready = ready.clone();
        move |mut stream, _| {
            let ready = ready.clone();
            async move {
                let _ = stream.write_all(&allow(0)).await;
                ready.notified().await;
                let _ = stream.write_all(&allow(10)).await;
                headers_of(&mut stream, 1).await;
                // 200, and that is all.
                let _ = stream.write_all(&[0, 0, 1, 1, 5, 0, 0, 0, 1, 0x88]).await;
                let _ = stream.read_to_end(&mut Vec::new()).await;
            }
        }
    })
    .await;
    let pool = pool().protocol(Protocol::Http2Only).http2_keep_alive(None);
    let pool = pool.build().unwrap();
    let call = tokio::spawn(fetch_later(&pool, &server));
    until(|| pool.stats().total().opened() == 1).await;
    let stats = *pool.stats().total();
    assert_eq!((stats.waiting(), stats.calls(), stats.opening()), (1, 0, 0));
    ready.notify_one();
    call.await.unwrap();
    assert_eq!(server.seen.accepted(), 1);
}

#[tokio::test]
async fn after_goaway_the_rest_finishes_and_new_calls_go_elsewhere() {
    // The first connection answers stream 1 only after it has said GOAWAY.
    let server = Server::raw(|mut stream, seen| async move {
        if seen.accepted() > 1 {
            return serve_http2(stream, seen, 100, |_| async { text("second") }).await;
        }
        let _ = stream.write_all(SETTINGS).await;
        assert!(headers_of(&mut stream, 1).await);
        let _ = stream.write_all(&go_away(1)).await;
        while seen.accepted() < 2 {
            sleep(Duration::from_millis(1)).await;
        }
        // HEADERS, with the end of the stream: `:status: 200`.
        let _ = stream.write_all(&[0, 0, 1, 1, 5, 0, 0, 0, 1, 0x88]).await;
        let _ = stream.read_to_end(&mut Vec::new()).await;
    })
    .await;
    let pool = pool().protocol(Protocol::Http2Only).build().unwrap();
    let first = {
        let (pool, uri) = (pool.clone(), server.uri("/"));
        tokio::spawn(async move { fetch(&pool, get(uri)).await })
    };
    until(|| pool.stats().total().calls() == 1).await;
    // Sooner or later GOAWAY has arrived, and a call goes elsewhere. Until
    // then it would be refused.
    let answer = loop {
        match fetch(&pool, get(server.uri("/"))).await {
            Ok(answer) => break answer,
            Err(error) => assert!(error.is_refused(), "{error:?}"),
        }
    };
    assert_eq!(answer.body, "second");
    assert_eq!(first.await.unwrap().unwrap().body, "");
    until(|| pool.stats().total().open() == 1 && pool.stats().total().closing() == 0).await;
    assert_eq!(pool.stats().total().closed(CloseReason::Peer), 1);
}

#[tokio::test(start_paused = true)]
async fn a_connection_that_has_gone_silent_is_retired() {
    let server = Server::raw(|mut stream, seen| async move {
        if seen.accepted() > 1 {
            return serve_http2(stream, seen, 100, |_| async { text("second") }).await;
        }
        let _ = stream.write_all(SETTINGS).await;
        // Reads on, and says nothing more: no answer, no PING's echo.
        let _ = stream.read_to_end(&mut Vec::new()).await;
    })
    .await;
    let pool1 = pool().protocol(Protocol::Http2Only).build().unwrap();
    let before = Instant::now();
    let error = fetch(&pool1, post(server.uri("/"), "pay"))
        .await
        .unwrap_err();
    assert!(error.is_read(), "{error}");
    assert_eq!(error.verdict(), Verdict::Unknown);
    assert!(
        before.elapsed() <= Duration::from_secs(16),
        "{:?}",
        before.elapsed()
    );
    let answer = fetch(&pool1, get(server.uri("/"))).await.unwrap();
    assert_eq!(answer.body, "second");
}

#[tokio::test(start_paused = true)]
async fn a_connection_that_has_gone_silent_is_retired_before_anybody_calls() {
    let server = Server::raw(|mut stream, _| async move {
        let _ = stream.write_all(SETTINGS).await;
        let _ = stream.read_to_end(&mut Vec::new()).await;
    })
    .await;
    let pool = pool()
        .protocol(Protocol::Http2Only)
        .idle_timeout(Duration::from_secs(600))
        .build()
        .unwrap();
    assert_eq!(pool.warm(&server.uri("/"), 1).await.unwrap(), 1);
    sleep(Duration::from_secs(16)).await;
    assert_eq!(pool.stats().total().open(), 0);
    assert_eq!(pool.stats().total().closed(CloseReason::Peer), 1);
}

#[tokio::test]
async fn where_a_kept_connection_is_dead_those_idle_for_as_long_go_with_it() {
    // Takes one request on each connection, and drops the next.
    let server = Server::raw(|mut stream, seen| async move {
        let mut buffer = [0; 4096];
        if let Ok(1..) = stream.read(&mut buffer).await {
            seen.request();
            // Only once there are three, so that there are three.
            until(|| seen.requests() >= 3).await;
            let answer = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok";
            let _ = stream.write_all(answer).await;
            let _ = stream.read(&mut buffer).await;
        }
    })
    .await;
    let pool = pool().build().unwrap();
    let call = || async {
        fetch(&pool, get(server.uri("/"))).await.unwrap();
    };
    tokio::join!(call(), call(), call());
    assert_eq!(pool.stats().total().idle(), 3);
    let error = fetch(&pool, post(server.uri("/"), "pay"))
        .await
        .unwrap_err();
    assert_eq!(error.verdict(), Verdict::Unknown, "{error}");
    assert_eq!(pool.stats().total().idle(), 0);
    until(|| pool.stats().total().closed(CloseReason::Idle) == 2).await;
}

#[tokio::test(start_paused = true)]
async fn a_call_that_times_out_on_a_silent_connection_takes_it_out_of_use() {
    let server = Server::raw(|mut stream, seen| async move {
        if seen.accepted() > 1 {
            return serve_http2(stream, seen, 100, |_| async { text("second") }).await;
        }
        let _ = stream.write_all(SETTINGS).await;
        let _ = stream.read_to_end(&mut Vec::new()).await;
    })
    .await;
    let pool = pool()
        .protocol(Protocol::Http2Only)
        .http2_keep_alive(None)
        .build()
        .unwrap();
    pool.warm(&server.uri("/"), 1).await.unwrap();
    // hyper's first ACK of its settings is out of the way.
    sleep(Duration::from_millis(100)).await;
    let call = send(&pool, post(server.uri("/"), "pay"));
    assert!(
        tokio::time::timeout(Duration::from_secs(1), call)
            .await
            .is_err()
    );
    assert_eq!(
        fetch(&pool, get(server.uri("/"))).await.unwrap().body,
        "second"
    );
    assert_eq!(pool.stats().total().closed(CloseReason::Unresponsive), 1);
}

#[tokio::test(start_paused = true)]
async fn a_short_silence_is_not_held_against_a_connection() {
    // A round trip away.
    let server = Server::raw(|mut stream, _| async move {
        sleep(Duration::from_millis(300)).await;
        let _ = stream.write_all(SETTINGS).await;
        let _ = stream.read_to_end(&mut Vec::new()).await;
    })
    .await;
    let pool = pool()
        .protocol(Protocol::Http2Only)
        .http2_keep_alive(None)
        .build()
        .unwrap();
    pool.warm(&server.uri("/"), 1).await.unwrap();
    sleep(Duration::from_millis(100)).await;
    for (patience, open) in [(200, 1), (299, 1), (300, 0)] {
        let patience = Duration::from_millis(patience);
        let call = send(&pool, post(server.uri("/"), "pay"));
        assert!(tokio::time::timeout(patience, call).await.is_err());
        assert_eq!(pool.stats().total().open(), open, "{patience:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_call_that_times_out_on_a_lively_connection_leaves_it_in_use() {
    let answered = Arc::new(tokio::sync::Notify::new());
    let server = Server::http2(100, move |request| {
        let answered = answered.clone();
        async move {
            if request.uri().path() == "/never" {
                answered.notified().await;
            }
            text("hello")
        }
    })
    .await;
    let pool = pool().protocol(Protocol::Http2Only).build().unwrap();
    let never = {
        let (pool, uri) = (pool.clone(), server.uri("/never"));
        tokio::spawn(async move { send(&pool, get(uri)).await })
    };
    until(|| pool.stats().total().calls() == 1).await;
    fetch(&pool, get(server.uri("/"))).await.unwrap();
    never.abort();
    assert!(never.await.is_err());
    fetch(&pool, get(server.uri("/"))).await.unwrap();
    assert_eq!(server.seen.accepted(), 1);
}

#[tokio::test]
async fn a_connector_that_panics_is_an_error_of_its_one_attempt() {
    let attempts = Arc::new(AtomicUsize::new(0));
    let connector = {
        let attempts = attempts.clone();
        tower::service_fn(move |_: Uri| {
            attempts.fetch_add(1, Ordering::SeqCst);
            async { panic!("a bug of the connector's") as std::io::Result<TokioIo<TcpStream>> }
        })
    };
    let pool = pool().build_over(connector).unwrap();
    let uri: Uri = "http://api.example.com/".parse().unwrap();
    let error = fetch(&pool, get(uri.clone())).await.unwrap_err();
    assert!(error.is_connect(), "{error}");
    assert!(format!("{error:?}").contains("panicked"), "{error:?}");
    assert_eq!(error.verdict(), Verdict::NO_EFFECT);
    assert_eq!(attempts.load(Ordering::SeqCst), 1);
    let error = pool.warm(&uri, 1).await.unwrap_err();
    assert!(error.is_connect(), "{error}");
    assert_eq!(attempts.load(Ordering::SeqCst), 2);
}
