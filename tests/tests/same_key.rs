//! Calls that share their keys: a caller that tries again what it gave up, two
//! workers with the same payment, another payment under a reference in use.
//! Each payment is made at most once, and what is said of it is true.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderName, Request, Response, StatusCode};
use http_body_util::{BodyExt, Full};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use tokio::time::{Instant, sleep, timeout};
use tollway::core::{
    BodyRule, BoxError, ClassifyLayer, Fault, IdempotencyKey, Rules, Test, Verdict,
};
use tollway::idempotency::{Dialect, IdempotencyKeyLayer, KeyBody};
use tollway::limit::{Limits, Quota, RateLimitLayer};
use tollway::retry::{BackOff, ReplayBody, RetryLayer, RetryPolicy};
use tollway::timeout::{AttemptTimeoutLayer, DeadlineLayer};
use tower::{ServiceBuilder, ServiceExt, service_fn};

const SEEDS: u64 = 500;
const CALLS: usize = 10;
const KEY: HeaderName = HeaderName::from_static("idempotency-key");
/// Which of the calls an attempt is for.
const CALL: HeaderName = HeaderName::from_static("x-call");

fn ms(ms: u64) -> Duration {
    Duration::from_millis(ms)
}

/// How a provider recognises a repeat.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    /// By a header, and answers with the stored result.
    Header,
    /// The same, the key being quoted.
    Quoted,
    /// By a field of the body, and answers with the stored result, in a 200
    /// whatever it is.
    Field,
    /// By a field of the body that is unique, and refuses the second.
    Unique,
}

impl Kind {
    fn dialect(self) -> Dialect {
        match self {
            Self::Header => Dialect::default(),
            Self::Quoted => Dialect::quoted_header(KEY),
            Self::Field | Self::Unique => Dialect::body_field("id"),
        }
    }

    fn rules(self) -> Rules {
        let code = |test| BodyRule::new(200..=299, "code", test);
        match self {
            Self::Header | Self::Quoted => {
                Rules::new().status(StatusCode::CONFLICT, Verdict::Unknown)
            }
            Self::Field => Rules::new()
                .body(code(Test::IsNot("0".into())).means(Verdict::Rejected))
                .body(code(Test::Missing)),
            Self::Unique => Rules::new()
                .body(BodyRule::new(409..=409, "code", Test::Is("DUPLICATE".into())).done_before()),
        }
    }
}

/// What an attempt meets on its way, and its answer on the way back.
#[derive(Clone, Copy, Debug)]
enum Fate {
    Unconnected,
    Throttled,
    /// No answer from the core, which was reached or not.
    Lost {
        executed: bool,
        hangs: bool,
    },
    /// An answer from what stands before the core, which was reached or not.
    Failed {
        executed: bool,
    },
    Declined,
    Answered,
}

const FATES: [Fate; 14] = [
    Fate::Unconnected,
    Fate::Throttled,
    Fate::Throttled,
    Fate::Lost {
        executed: true,
        hangs: true,
    },
    Fate::Lost {
        executed: true,
        hangs: false,
    },
    Fate::Lost {
        executed: false,
        hangs: true,
    },
    Fate::Lost {
        executed: false,
        hangs: false,
    },
    Fate::Failed { executed: true },
    Fate::Failed { executed: false },
    Fate::Declined,
    Fate::Answered,
    Fate::Answered,
    Fate::Answered,
    Fate::Answered,
];

/// A payment: its reference, and what is paid.
type Payment = (String, u64);

#[derive(Debug, Default)]
struct Core {
    /// The results under the keys that were seen.
    saved: HashMap<String, Saved>,
    /// The calls that made each payment.
    made: HashMap<Payment, Vec<usize>>,
    /// Whether a call for it has ended that may have made it, and none since that
    /// tells.
    in_doubt: HashMap<Payment, bool>,
    /// For whoever reads the failed test.
    log: Vec<String>,
}

#[derive(Clone, Debug)]
struct Saved {
    payment: Payment,
    declined: bool,
    since: Instant,
}

impl Core {
    /// A request that has come through: the status and the code of its answer.
    fn execute(
        &mut self,
        kind: Kind,
        call: usize,
        key: String,
        payment: Payment,
        declined: bool,
        life: Duration,
    ) -> (u16, &'static str) {
        self.saved.retain(|_, saved| saved.since.elapsed() < life);
        let (declined, known) = match self.saved.get(&key) {
            Some(_) if kind == Kind::Unique => return (409, "DUPLICATE"),
            Some(saved) if saved.payment != payment => {
                return if kind == Kind::Field {
                    (200, "94")
                } else {
                    (400, "94")
                };
            }
            Some(saved) => (saved.declined, true),
            None => (declined, false),
        };
        // A payment that wasn't made uses up no reference that is unique.
        if !known && (!declined || kind != Kind::Unique) {
            let saved = Saved {
                payment: payment.clone(),
                declined,
                since: Instant::now(),
            };
            self.saved.insert(key, saved);
        }
        if !known && !declined {
            self.made.entry(payment).or_default().push(call);
        }
        match (declined, kind) {
            (false, _) => (200, "0"),
            (true, Kind::Field) => (200, "51"),
            (true, _) => (402, "51"),
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

type Shared = Arc<Mutex<Core>>;
type Sent = Request<ReplayBody<KeyBody<Full<Bytes>>>>;

fn answer((status, code): (u16, &str)) -> Result<Response<Full<Bytes>>, BoxError> {
    let body = format!(r#"{{"code":"{code}"}}"#);
    let mut response = Response::new(Full::from(body));
    *response.status_mut() = StatusCode::from_u16(status)?;
    Ok(response)
}

async fn attempt(
    request: Sent,
    core: Shared,
    kind: Kind,
    life: Duration,
    fate: Fate,
    times: [u64; 2],
) -> Result<Response<Full<Bytes>>, BoxError> {
    sleep(ms(times[0])).await;
    if let Fate::Unconnected = fate {
        return Err(Fault::new(Verdict::NO_EFFECT).into());
    }
    let (head, body) = request.into_parts();
    let body: serde_json::Value = serde_json::from_slice(&body.collect().await?.to_bytes())?;
    let call = head.headers[CALL].to_str()?.parse()?;
    let text = |name: &str| body[name].as_str().unwrap_or_default().to_owned();
    let payment = (
        text("reference"),
        body["amount"].as_u64().unwrap_or_default(),
    );
    let key = match kind {
        Kind::Header | Kind::Quoted => head.headers[KEY].to_str()?.to_owned(),
        Kind::Field | Kind::Unique => text("id"),
    };
    let came = {
        let mut core = lock(&core);
        let executed = match fate {
            Fate::Lost { executed, .. } | Fate::Failed { executed } => executed,
            Fate::Declined | Fate::Answered => true,
            Fate::Unconnected | Fate::Throttled => false,
        };
        let declined = matches!(fate, Fate::Declined);
        let came = executed.then(|| core.execute(kind, call, key, payment.clone(), declined, life));
        let line = format!(
            "{:?} call {call}, {payment:?}: {fate:?}, {came:?}",
            Instant::now()
        );
        core.log.push(line);
        came
    };
    sleep(ms(times[1])).await;
    match fate {
        Fate::Throttled => answer((429, "")),
        Fate::Lost { hangs: true, .. } => std::future::pending().await,
        Fate::Lost { .. } | Fate::Unconnected => Err("reset".into()),
        Fate::Failed { .. } => answer((503, "")),
        Fate::Declined | Fate::Answered => answer(came.unwrap_or((500, ""))),
    }
}

/// What a call is, when it is made, and how long its caller waits.
#[derive(Debug)]
struct Plan {
    payment: Payment,
    start: Duration,
    patience: Duration,
}

fn request(kind: Kind, call: usize, payment: &Payment) -> Result<Request<Full<Bytes>>, BoxError> {
    let (reference, amount) = payment;
    let body = match kind {
        Kind::Header | Kind::Quoted => {
            format!(r#"{{"reference":"{reference}","amount":{amount}}}"#)
        }
        Kind::Field | Kind::Unique => {
            format!(r#"{{"id":"{reference}","reference":"{reference}","amount":{amount}}}"#)
        }
    };
    let mut request = Request::post("/payments")
        .header(CALL, call)
        .body(Full::from(body))?;
    if let Kind::Header | Kind::Quoted = kind {
        let key: IdempotencyKey = reference.parse()?;
        request.extensions_mut().insert(key);
    }
    Ok(request)
}

async fn run(seed: u64) -> Result<[usize; 4], BoxError> {
    let mut rng = StdRng::seed_from_u64(seed);
    let kind = [Kind::Header, Kind::Quoted, Kind::Field, Kind::Unique][rng.random_range(0..4)];
    // What is unique is so for ever.
    let life = match kind {
        Kind::Unique => Dialect::DEFAULT_LIFE,
        _ => [ms(4000), Dialect::DEFAULT_LIFE][rng.random_range(0..2)],
    };
    let deadline = ms([1500, 6000, 40_000][rng.random_range(0..3)]);
    let core = Shared::default();
    let draws = Arc::new(Mutex::new(StdRng::seed_from_u64(!seed)));
    let gateway = {
        let core = Arc::clone(&core);
        service_fn(move |request: Sent| {
            let mut rng = lock(&draws);
            let fate = FATES[rng.random_range(0..FATES.len())];
            let times = [[0, 0, 50, 1500], [0, 20, 300, 2500]];
            let times = times.map(|times| times[rng.random_range(0..4)]);
            attempt(request, Arc::clone(&core), kind, life, fate, times)
        })
    };
    let policy = RetryPolicy::builder()
        .back_off(BackOff::exponential(ms(50), ms(800))?)
        .seed(move || seed);
    let limits = Limits::builder().every_call(Quota::per_second(8).in_flight(5));
    let service = ServiceBuilder::new()
        .layer(DeadlineLayer::new(deadline).sharing_timers())
        .layer(
            IdempotencyKeyLayer::new()
                .dialect(kind.dialect().life(life))
                .echo(true),
        )
        .layer(RetryLayer::new(policy.build()?))
        .layer(RateLimitLayer::new(limits.build()?))
        .layer(AttemptTimeoutLayer::new(ms(2000)))
        .layer(ClassifyLayer::new(kind.rules()))
        .service(gateway);

    let mut calls = tokio::task::JoinSet::new();
    for call in 0..CALLS {
        let plan = Plan {
            payment: (
                format!("r-{}", rng.random_range(0..3)),
                rng.random_range(1..3),
            ),
            start: ms([0, 100, 2000, 5000, 9000][rng.random_range(0..5)]),
            patience: ms([30, 400, 3000, 60_000, 60_000][rng.random_range(0..5)]),
        };
        lock(&core).log.push(format!("call {call}: {plan:?}"));
        let request = request(kind, call, &plan.payment)?;
        let (service, ended_in) = (service.clone(), Arc::clone(&core));
        calls.spawn(async move {
            sleep(plan.start).await;
            let seen = match timeout(plan.patience, service.oneshot(request)).await {
                Ok(Ok(response)) => {
                    let status = response.status();
                    Some((Verdict::of_response(&response), status.to_string()))
                }
                Ok(Err(error)) => Some((Verdict::of_error(&*error), error.to_string())),
                Err(_given_up) => None,
            };
            let settles = match &seen {
                Some((Verdict::Done, _)) => true,
                Some((Verdict::Rejected, status)) => ["400", "402", "200"]
                    .iter()
                    .any(|about_request| status.starts_with(about_request)),
                _ => false,
            };
            let in_doubt = matches!(seen, None | Some((Verdict::Unknown, _)));
            // What is known of the payment as this call ends, if not by it.
            let mut core = lock(&ended_in);
            let doubt = core.in_doubt.entry(plan.payment.clone()).or_default();
            *doubt &= !settles;
            let others = *doubt;
            *doubt |= in_doubt;
            drop(core);
            (call, plan.payment, seen, others)
        });
    }
    let mut counts = [0; 4];
    while let Some(ended) = calls.join_next().await {
        let (call, payment, seen, others) = ended?;
        let core = lock(&core);
        let made = core.made.get(&payment).map_or(&[][..], Vec::as_slice);
        let told = || {
            let log = core.log.join("\n");
            format!("seed {seed}, {kind:?}, {life:?}, call {call}, {payment:?}: {seen:?}\n{log}")
        };
        assert!(made.len() <= 1, "twice: {}", told());
        let Some((verdict, text)) = &seen else {
            continue;
        };
        let admitted = matches!(verdict, Verdict::Done | Verdict::Unknown);
        assert!(admitted || !made.contains(&call), "denied: {}", told());
        // Another payment's key never left, and says nothing of this one.
        let is_reused = text.contains("already stands for another payload");
        let silent = others && !made.is_empty() && !is_reused;
        assert!(admitted || !silent, "denied of another: {}", told());
        assert!(
            *verdict != Verdict::Done || !made.is_empty(),
            "made up: {}",
            told()
        );
        counts[match verdict {
            Verdict::Done => 0,
            Verdict::Rejected => 1,
            Verdict::NotExecuted { .. } => 2,
            Verdict::Unknown => 3,
        }] += 1;
    }
    Ok(counts)
}

#[tokio::test(start_paused = true)]
async fn a_payment_is_made_once_and_told_truly_whoever_else_has_its_key() -> Result<(), BoxError> {
    let mut counts = [0; 4];
    for seed in 0..SEEDS {
        for (sum, count) in counts.iter_mut().zip(run(seed).await?) {
            *sum += count;
        }
    }
    assert!(counts.iter().all(|count| *count > 0), "{counts:?}");
    Ok(())
}
