//! Servers that keep their connections for as long as they like, and answer as
//! they like.

use std::convert::Infallible;
use std::future::Future;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use http::{Method, Request, Response};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use hyper::server::conn::{http1, http2};
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use rand::RngExt;
use tokio::io::DuplexStream;
use tokio::sync::Notify;
use tokio::time::sleep;
use tollway_core::BoxError;
use tollway_pool::Protocol;

use super::script::{Script, pattern};
use super::{World, ms, one_of};

/// When a peer ends a connection, and how.
#[derive(Clone, Copy, Debug)]
struct Ends {
    /// With this request, as it comes or behind its answer.
    with: usize,
    behind: bool,
    after: Duration,
    in_order: bool,
}

pub async fn serve(world: Arc<World>, stream: DuplexStream) {
    let ends = world.draw(|rng| Ends {
        with: one_of(rng, &[1, 2, 3, 5, usize::MAX, usize::MAX]),
        after: ms(one_of(rng, &[10, 20, 100, 1000, 5000, 20_000, 30_000])),
        behind: rng.random_bool(0.5),
        in_order: rng.random_bool(0.5),
    });
    let enough = Arc::new(Notify::new());
    let service = {
        let (world, enough) = (Arc::clone(&world), Arc::clone(&enough));
        let taken = AtomicUsize::new(0);
        service_fn(move |request| {
            let taken = taken.fetch_add(1, Ordering::Relaxed) + 1;
            let is_last = taken == ends.with && !world.is_calm();
            if is_last && !ends.behind {
                enough.notify_one();
            }
            let behind = (is_last && ends.behind).then(|| Arc::clone(&enough));
            handle(Arc::clone(&world), request, behind)
        })
    };
    let io = TokioIo::new(stream);
    let ended = async {
        tokio::select! {
            biased;
            () = sleep(ends.after) => {}
            () = enough.notified() => {}
        }
        if world.is_calm() {
            std::future::pending::<Infallible>().await;
        }
        let late = world.draw(|rng| one_of(rng, &[0, 0, 10, 1000]));
        sleep(ms(late)).await;
        world.log(format_args!("the peer has had enough: {ends:?}"));
    };
    if world.protocol == Protocol::Http2Only {
        let mut builder = http2::Builder::new(TokioExecutor::new());
        world.draw(|rng| {
            builder
                .max_concurrent_streams(one_of(rng, &[1, 2, 100]))
                .initial_stream_window_size(one_of(rng, &[100, 65_535]))
        });
        let conn = pin!(builder.serve_connection(io, service));
        until(conn, ended, |conn| {
            ends.in_order.then(|| conn.graceful_shutdown())
        })
        .await;
    } else {
        let mut builder = http1::Builder::new();
        world.draw(|rng| {
            builder
                .half_close(rng.random())
                .keep_alive(rng.random_bool(0.9))
        });
        let conn = pin!(builder.serve_connection(io, service));
        until(conn, ended, |conn| {
            ends.in_order.then(|| conn.graceful_shutdown())
        })
        .await;
    }
}

/// Serves a connection until it is to end: at once, where it isn't ended in order.
async fn until<C: Future>(
    mut conn: Pin<&mut C>,
    ended: impl Future<Output = ()>,
    end: impl FnOnce(Pin<&mut C>) -> Option<()>,
) {
    tokio::select! {
        biased;
        _ = conn.as_mut() => return,
        () = ended => {}
    }
    if end(conn.as_mut()).is_some() {
        conn.await;
    }
}

async fn handle(
    world: Arc<World>,
    request: Request<Incoming>,
    behind: Option<Arc<Notify>>,
) -> Result<Response<Script>, BoxError> {
    let header = |name| request.headers()[name].to_str().unwrap().parse().unwrap();
    let (call, len): (usize, usize) = (header("x-call"), header("x-len"));
    if world.protocol == Protocol::Http2Only && world.fails(0.1) {
        return Err(h2::Error::from(h2::Reason::REFUSED_STREAM).into());
    }
    world.log(format_args!("call {call} has come"));
    world.enter(call, |entry| entry.processed += 1);
    let is_head = request.method() == Method::HEAD;
    let mut body = request.into_body();
    let reads = match world.fails(0.4) {
        true => world.draw(|rng| rng.random_range(0..2)),
        false => usize::MAX,
    };
    let mut came = Vec::new();
    for _ in 0..reads {
        match body.frame().await {
            Some(frame) => came.extend(frame?.into_data().unwrap_or_default()),
            None => {
                let whole = came == pattern(call, len);
                world.enter(call, |entry| entry.muddled |= !whole);
                break;
            }
        }
    }
    let keeps_body = world.draw(|rng| rng.random_bool(0.3));
    let kept = keeps_body.then_some(body);
    if world.fails(0.5) {
        sleep(world.draw(|rng| ms(one_of(rng, &[10, 200, 6000])))).await;
    }
    if world.fails(0.1) {
        return Err("the peer has failed".into());
    }
    // What is left of the request is read some time, or isn't.
    tokio::spawn(async move {
        sleep(ms(500)).await;
        drop(kept);
    });
    let script = if world.fails(0.7) {
        world.draw(|rng| Script::draw(call, rng))
    } else {
        Script::whole(call, 700)
    };
    let mut response = Response::builder()
        .header("x-call", call)
        .header("x-len", script.len());
    if world.protocol != Protocol::Http2Only && world.fails(0.1) {
        response = response.header("connection", "close");
    }
    world.log(format_args!("call {call} is answered: {script:?}"));
    let script = if is_head { Script::default() } else { script };
    let script = script.telling(behind);
    Ok(response.body(script)?)
}
