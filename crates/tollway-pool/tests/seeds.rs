//! The pool among peers, networks and callers that do as they please, drawn from
//! seeds: peers that close, say `GOAWAY`, refuse, answer early, slowly or in part;
//! networks that delay, cut and swallow; callers who give up, send their bodies in
//! pieces and drop what they were to read.
//!
//! Whatever they do, no request is processed twice, none that is told to have had
//! no effect had one, nobody gets another's answer or a part of it for the whole,
//! no more sockets are open than there may be, every call ends, and the pool is as
//! good as new when it is over.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod world;

use std::sync::Arc;
use std::time::Duration;

use http::{Method, Request, Response};
use http_body_util::BodyExt;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use tokio::time::{sleep, timeout};
use tollway_core::Verdict;
use tollway_pool::{CloseReason, Pool, PoolBody, PoolError, Protocol};
use tower::ServiceExt;
use world::script::{Script, pattern};
use world::{World, ms, one_of};

const SEEDS: u64 = 200;
const CALLS: usize = 16;
/// Nothing of the world lasts as long.
const EVER: u64 = 3_600_000;

/// What a caller does.
#[derive(Debug)]
struct Plan {
    method: Method,
    start: Duration,
    /// How often it lets others go first, before it begins and before it gives up.
    yields: usize,
    /// How long it waits for the head of the answer, and whether one that comes at
    /// the last moment is of use.
    patience: Duration,
    strict: bool,
    /// How many frames of the answer it reads, and how long it thinks about the first.
    reads: usize,
    thinks: Duration,
}

impl Plan {
    fn draw(rng: &mut StdRng) -> Self {
        Self {
            method: one_of(rng, &[Method::GET, Method::POST, Method::PUT, Method::HEAD]),
            start: ms(one_of(
                rng,
                &[0, 0, 10, 10, 20, 100, 110, 1000, 1010, 5000, 20_000],
            )),
            patience: ms(one_of(rng, &[0, 10, 20, 50, 200, 3000, EVER, EVER, EVER])),
            strict: rng.random(),
            yields: rng.random_range(0..12),
            reads: one_of(rng, &[0, 1, usize::MAX, usize::MAX, usize::MAX]),
            thinks: ms(one_of(rng, &[0, 0, 0, 20, 2000])),
        }
    }

    async fn others_first(&self) {
        for _ in 0..self.yields {
            tokio::task::yield_now().await;
        }
    }

    fn request(&self, call: usize, rng: &mut StdRng) -> Request<Script> {
        let body = match self.method {
            Method::GET | Method::HEAD => Script::default(),
            _ => Script::draw(call, rng),
        };
        self.request_of(call, body, rng.random_bool(0.05))
    }

    fn request_of(&self, call: usize, body: Script, closes: bool) -> Request<Script> {
        let mut request = Request::builder()
            .method(&self.method)
            .uri("http://gateway.test/")
            .header("x-call", call)
            .header("x-len", body.len());
        if closes {
            request = request.header("connection", "close");
        }
        request.body(body).unwrap()
    }
}

/// How a call ended, as its caller saw it.
#[derive(Debug)]
enum Ended {
    /// With an answer, read to its end or not.
    Answered {
        whole: bool,
    },
    Failed(PoolError),
    GivenUp,
}

async fn call(pool: Pool<Script>, call: usize, plan: &Plan, request: Request<Script>) -> Ended {
    sleep(plan.start).await;
    plan.others_first().await;
    let answer = async { Some(pool.oneshot(request).await) };
    let enough = async {
        sleep(plan.patience).await;
        plan.others_first().await;
        None
    };
    let answer = match plan.strict {
        true => tokio::select! { biased; none = enough => none, answer = answer => answer },
        false => tokio::select! { biased; answer = answer => answer, none = enough => none },
    };
    let Some(answer) = answer else {
        return Ended::GivenUp;
    };
    match answer {
        Ok(response) => Ended::Answered {
            whole: read(response, call, plan).await,
        },
        Err(error) => Ended::Failed(error),
    }
}

/// Whether the answer came to its end. Then it is the call's own, and whole.
async fn read(response: Response<PoolBody>, call: usize, plan: &Plan) -> bool {
    let header = |name| {
        let value = response.headers().get(name)?.to_str().ok()?;
        value.parse::<usize>().ok()
    };
    assert_eq!(header("x-call"), Some(call), "another's answer");
    let len = header("x-len").unwrap();
    let mut body = response.into_body();
    let mut came = Vec::new();
    for nth in 0..plan.reads {
        match body.frame().await {
            Some(Ok(frame)) => came.extend(frame.into_data().unwrap()),
            Some(Err(_)) => return false,
            None => {
                let len = if plan.method == Method::HEAD { 0 } else { len };
                assert!(came == pattern(call, len), "not the whole answer");
                return true;
            }
        }
        if nth < 3 {
            sleep(plan.thinks).await;
        }
    }
    false
}

/// A pool over this world, with settings drawn from the seed.
fn pool(world: &Arc<World>, rng: &mut StdRng) -> Pool<Script> {
    let age = one_of(rng, &[None, Some(ms(50)), Some(ms(3000))]);
    let pings = one_of(rng, &[None, Some((ms(1000), ms(500)))]);
    let builder = Pool::builder()
        .plain_http(true)
        .protocol(world.protocol)
        .max_connections_per_host(world.cap)
        .max_idle_per_host(one_of(rng, &[1, 2, usize::MAX]))
        .max_waiting_per_host(one_of(rng, &[0, 1, 1024, 1024]))
        .max_requests_per_connection(one_of(rng, &[1, 5, u64::MAX, u64::MAX]))
        .idle_timeout(ms(one_of(rng, &[10, 990, 2000, 15_000])))
        .max_age(age)
        .connect_timeout(ms(one_of(rng, &[100, 10_000])))
        .acquire_timeout(ms(one_of(rng, &[100, 3000, 30_000])))
        .http2_keep_alive(pings);
    let world = Arc::clone(world);
    let transport = tower::service_fn(move |_| world::connect(Arc::clone(&world)));
    builder.build_over(transport).unwrap()
}

/// What the callers were told, beside what has happened.
fn compare(world: &World, ended: &[(usize, Plan, Ended)]) {
    for (call, plan, ended) in ended {
        let entry = world.entry(*call);
        let told = || {
            format!(
                "call {call}, {plan:?}: {ended:?}, {entry:?}\n{}",
                world.told()
            )
        };
        assert!(entry.processed <= 1, "twice: {}", told());
        assert!(!entry.muddled, "muddled: {}", told());
        match ended {
            Ended::Answered { .. } => assert_eq!(entry.processed, 1, "made up: {}", told()),
            Ended::Failed(error) => {
                let denied = error.verdict() != Verdict::Unknown && entry.processed > 0;
                assert!(!denied, "denied: {}", told());
            }
            Ended::GivenUp => {}
        }
    }
}

/// When the weather is fair again, every call goes well, and there are as many
/// connections as calls need.
async fn as_good_as_new(world: &World, pool: &Pool<Script>) {
    let mut calls = tokio::task::JoinSet::new();
    for nth in 0..world.cap {
        let plan = Plan {
            method: Method::POST,
            start: Duration::ZERO,
            yields: 0,
            patience: ms(EVER),
            strict: false,
            reads: usize::MAX,
            thinks: Duration::ZERO,
        };
        let number = CALLS + nth;
        let request = plan.request_of(number, Script::whole(number, 5000), false);
        let pool = pool.clone();
        calls.spawn(async move { call(pool, number, &plan, request).await });
    }
    for ended in calls.join_all().await {
        let well = matches!(ended, Ended::Answered { whole: true });
        assert!(well, "{ended:?}, {:?}\n{}", pool.stats(), world.told());
    }
}

/// Nothing is left of what there was.
fn nothing_left(world: &World, pool: &Pool<Script>) {
    let stats = *pool.stats().total();
    let told = || format!("{stats:?}\n{}", world.told());
    let now = [
        stats.opening(),
        stats.idle(),
        stats.in_use(),
        stats.closing(),
    ];
    assert_eq!(now, [0; 4], "{}", told());
    assert_eq!([stats.calls(), stats.waiting()], [0; 2], "{}", told());
    assert_eq!(world.sockets(), 0, "{}", told());
    assert!(world.most_sockets() <= world.cap, "too many: {}", told());
    let closed: u64 = CloseReason::ALL.iter().map(|&why| stats.closed(why)).sum();
    let opened = stats.opened() + stats.closed(CloseReason::Failed);
    assert_eq!(closed, opened, "{}", told());
}

async fn run(seed: u64, protocol: Protocol) -> [usize; 3] {
    let mut rng = StdRng::seed_from_u64(seed);
    let cap = rng.random_range(1..4);
    let world = Arc::new(World::new(seed, protocol, cap));
    let pool = pool(&world, &mut rng);
    let mut calls = tokio::task::JoinSet::new();
    for number in 0..CALLS {
        let plan = Plan::draw(&mut rng);
        let request = plan.request(number, &mut rng);
        let (pool, world) = (pool.clone(), Arc::clone(&world));
        calls.spawn(async move {
            let ended = timeout(ms(EVER), call(pool, number, &plan, request)).await;
            world.log(format_args!("call {number} has ended: {ended:?}"));
            let told = || format!("seed {seed}, call {number} never ended\n{}", world.told());
            (number, plan, ended.unwrap_or_else(|_| panic!("{}", told())))
        });
    }
    if rng.random_bool(0.2) {
        let url = "http://gateway.test/".parse().unwrap();
        let _ = pool.warm(&url, rng.random_range(0..4)).await;
    }
    let ended = calls.join_all().await;
    world.calm();
    sleep(ms(120_000)).await;
    compare(&world, &ended);
    nothing_left(&world, &pool);
    as_good_as_new(&world, &pool).await;
    if rng.random_bool(0.5) {
        assert_eq!(pool.drain(ms(1000)).await, 0, "{}", world.told());
    } else {
        sleep(ms(120_000)).await;
    }
    nothing_left(&world, &pool);
    let count = |what: fn(&Ended) -> bool| ended.iter().filter(|(.., ended)| what(ended)).count();
    [
        count(|ended| matches!(ended, Ended::Answered { whole: true })),
        count(|ended| matches!(ended, Ended::Failed(_))),
        count(|ended| matches!(ended, Ended::GivenUp)),
    ]
}

fn seeds(protocol: Protocol) {
    let mut counts = [0; 3];
    for seed in 0..SEEDS {
        // What is left of one is not to disturb the next.
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_time()
            .start_paused(true)
            .build()
            .unwrap();
        let ended = runtime.block_on(run(seed, protocol));
        for (sum, count) in counts.iter_mut().zip(ended) {
            *sum += count;
        }
    }
    assert!(counts.iter().all(|&count| count > CALLS * 10), "{counts:?}");
}

#[test]
fn http1_in_all_weathers() {
    seeds(Protocol::Http1Only);
}

#[test]
fn http2_in_all_weathers() {
    seeds(Protocol::Http2Only);
}
