//! What a server that ends its connections has done, beside what callers are told.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

use std::convert::Infallible;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use hyper::server::conn::http2;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use support::{Server, fetch, pool, post, text};
use tokio::net::TcpStream;
use tokio::sync::Notify;
use tollway_core::Verdict;
use tollway_pool::Protocol;

const CALLERS: usize = 32;
const CALLS: usize = 150;

/// How often each call was processed.
type Ledger = Arc<Vec<AtomicUsize>>;

/// Processes what comes, and says GOAWAY after this many calls.
async fn serve(stream: TcpStream, ledger: Ledger, calls: usize) {
    let enough = Arc::new(Notify::new());
    let taken = Arc::new(AtomicUsize::new(0));
    let service = service_fn({
        let enough = enough.clone();
        move |request: http::Request<hyper::body::Incoming>| {
            let call: usize = request.uri().path()[1..].parse().unwrap();
            ledger[call].fetch_add(1, Ordering::SeqCst);
            if taken.fetch_add(1, Ordering::SeqCst) + 1 == calls {
                enough.notify_one();
            }
            async { Ok::<_, Infallible>(text("paid")) }
        }
    });
    let io = TokioIo::new(stream);
    let mut conn = pin!(http2::Builder::new(TokioExecutor::new()).serve_connection(io, service));
    tokio::select! {
        _ = conn.as_mut() => return,
        () = enough.notified() => conn.as_mut().graceful_shutdown(),
    }
    let _ = conn.await;
}

/// Else a payment could be made twice. Which calls meet a connection's end just as
/// they are sent is chance: of so many some do.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn no_call_that_is_told_to_have_had_no_effect_had_one() {
    let ledger: Ledger = Arc::new((0..CALLERS * CALLS).map(|_| AtomicUsize::new(0)).collect());
    let server = Server::raw({
        let ledger = ledger.clone();
        move |stream, seen| serve(stream, ledger.clone(), seen.accepted() % 9 + 1)
    })
    .await;
    let pool = pool().protocol(Protocol::Http2Only);
    let pool = pool.max_connections_per_host(4).build().unwrap();
    let callers: Vec<_> = (0..CALLERS)
        .map(|caller| {
            let (pool, ledger) = (pool.clone(), ledger.clone());
            let uri = server.uri("/");
            tokio::spawn(async move {
                for call in caller * CALLS..(caller + 1) * CALLS {
                    let uri = format!("{uri}{call}").parse().unwrap();
                    let told = fetch(&pool, post(uri, "amount=1100")).await;
                    let times = ledger[call].load(Ordering::SeqCst);
                    match told {
                        Ok(_) => assert_eq!(times, 1),
                        Err(error) if matches!(error.verdict(), Verdict::NotExecuted { .. }) => {
                            assert_eq!(times, 0, "{error:?}");
                        }
                        Err(_) => assert!(times <= 1),
                    }
                }
            })
        })
        .collect();
    for caller in callers {
        caller.await.unwrap();
    }
}
