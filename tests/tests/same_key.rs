//! Calls that share their keys: a caller that tries again what it gave up, two
//! workers with the same payment, another payment under a reference in use, a
//! call repeated with the key that was made for it. Each payment is made at most
//! once, and no call denies one that is made.

use std::collections::HashMap;
use std::future::{Future, poll_fn};
use std::pin::pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::Poll;
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderName, Request, Response, StatusCode};
use http_body_util::{BodyExt, Full};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use tokio::time::{Instant, sleep, timeout};
use tollway::core::{
    BodyRule, BoxError, ClassifyLayer, Fault, IdempotencyKey, Phase, Rules, Test, Verdict,
};
use tollway::idempotency::{Dialect, IdempotencyKeyLayer, KeyBody, key_of};
use tollway::limit::{Limits, Quota, RateLimitLayer};
use tollway::retry::{BackOff, ReplayBody, RetryLayer, RetryPolicy};
use tollway::timeout::{AttemptTimeoutLayer, DeadlineLayer};
use tower::util::BoxCloneService;
use tower::{ServiceBuilder, ServiceExt, service_fn};

const SEEDS: u64 = 1000;
const CALLS: usize = 10;
const KEY: HeaderName = HeaderName::from_static("idempotency-key");
/// A provider remembers a key for as long as it says, at least.
const SLACK: Duration = Duration::from_secs(3);
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
            Self::Field => Dialect::body_field("id"),
            Self::Unique => Dialect::body_field("id").refuses_repeats(),
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
    /// Turned away before anybody looks at the key.
    Door(u16),
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

const FATES: [Fate; 17] = [
    Fate::Unconnected,
    Fate::Throttled,
    Fate::Throttled,
    Fate::Throttled,
    Fate::Door(401),
    Fate::Door(404),
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
    saved: Vec<Saved>,
    /// The calls that made each payment.
    made: HashMap<Payment, Vec<usize>>,
    /// The calls for each payment that have begun.
    begun: HashMap<Payment, Vec<usize>>,
    /// For whoever reads the failed test.
    log: Vec<String>,
}

#[derive(Clone, Debug)]
struct Saved {
    key: String,
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
        self.saved
            .retain(|saved| saved.since.elapsed() < life + SLACK);
        let of_key = || self.saved.iter().filter(|saved| saved.key == key);
        if kind == Kind::Unique && of_key().next().is_some() {
            return (409, "DUPLICATE");
        }
        // A key that comes to stand for another payment comes in its time, whenever
        // the other's came.
        let mixed = life == Dialect::DEFAULT_LIFE && of_key().any(|saved| saved.payment != payment);
        if mixed {
            return match kind {
                Kind::Field => (200, "94"),
                _ => (400, "94"),
            };
        }
        let known = of_key().find(|saved| saved.payment == payment);
        let (declined, known) = (
            known.map_or(declined, |known| known.declined),
            known.is_some(),
        );
        // A payment that wasn't made uses up no reference that is unique.
        if !known && (!declined || kind != Kind::Unique) {
            let payment = payment.clone();
            self.saved.push(Saved {
                key,
                payment,
                declined,
                since: Instant::now(),
            });
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
    times: [u64; 3],
) -> Result<Response<Full<Bytes>>, BoxError> {
    let mut connecting = pin!(sleep(ms(times[0])));
    poll_fn(|cx| match connecting.as_mut().poll(cx) {
        Poll::Pending => Phase::Connect.pending(),
        ready => ready,
    })
    .await;
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
    // It is on its way, whether or not anybody still waits for its answer.
    let sent = tokio::spawn(async move {
        sleep(ms(times[1])).await;
        let mut core = lock(&core);
        let executed = match fate {
            Fate::Lost { executed, .. } | Fate::Failed { executed } => executed,
            Fate::Declined | Fate::Answered => true,
            Fate::Unconnected | Fate::Throttled | Fate::Door(_) => false,
        };
        let declined = matches!(fate, Fate::Declined);
        let came = executed.then(|| core.execute(kind, call, key, payment.clone(), declined, life));
        let line = format!(
            "{:?} call {call}, {payment:?}: {fate:?}, {came:?}",
            Instant::now()
        );
        core.log.push(line);
        came
    });
    let came = sent.await?;
    sleep(ms(times[2])).await;
    match fate {
        Fate::Throttled => answer((429, "")),
        Fate::Door(status) => answer((status, "")),
        Fate::Lost { hangs: true, .. } => std::future::pending().await,
        Fate::Lost { .. } | Fate::Unconnected => Err("reset".into()),
        Fate::Failed { .. } => answer((503, "")),
        Fate::Declined | Fate::Answered => answer(came.unwrap_or((500, ""))),
    }
}

type Client = BoxCloneService<Request<Full<Bytes>>, Response<()>, BoxError>;

/// The whole stack over a provider of this kind.
fn client(seed: u64, kind: Kind, life: Duration, core: &Shared) -> Result<Client, BoxError> {
    let draws = Mutex::new(StdRng::seed_from_u64(!seed));
    let deadline = ms([1500, 6000, 40_000][lock(&draws).random_range(0..3)]);
    // No call outlasts its key.
    let deadline = deadline.min(life - SLACK);
    let (core, draws) = (Arc::clone(core), Arc::new(draws));
    let gateway = service_fn(move |request: Sent| {
        let mut rng = lock(&draws);
        let fate = FATES[rng.random_range(0..FATES.len())];
        let times = [[0, 0, 50, 1500], [0, 0, 20, 2500], [0, 20, 300, 2500]];
        let times = times.map(|times| times[rng.random_range(0..4)]);
        attempt(request, Arc::clone(&core), kind, life, fate, times)
    });
    let policy = RetryPolicy::builder()
        .back_off(BackOff::exponential(ms(50), ms(800))?)
        .seed(move || seed);
    let limits = Limits::builder().every_call(Quota::per_second(5).in_flight(4));
    let keys = IdempotencyKeyLayer::new().dialect(kind.dialect().life(life));
    let service = ServiceBuilder::new()
        .layer(DeadlineLayer::new(deadline).sharing_timers())
        .layer(keys)
        .layer(RetryLayer::new(policy.build()?))
        .layer(RateLimitLayer::new(limits.build()?))
        .layer(AttemptTimeoutLayer::new(ms(2000)))
        .layer(ClassifyLayer::new(kind.rules()))
        .service(gateway);
    Ok(BoxCloneService::new(
        service.map_response(|response| response.map(drop)),
    ))
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
    let request = Request::post("/payments").header(CALL, call);
    Ok(request.body(Full::from(body))?)
}

/// What the caller saw of a call, if it waited for the end.
#[derive(Debug)]
struct Seen {
    verdict: Verdict,
    text: String,
    key: Option<IdempotencyKey>,
}

async fn seen(call: impl Future<Output = Result<Response<()>, BoxError>>) -> Seen {
    match call.await {
        Ok(response) => Seen {
            verdict: Verdict::of_response(&response),
            text: response.status().to_string(),
            key: IdempotencyKey::of(response.extensions()).cloned(),
        },
        Err(error) => Seen {
            verdict: Verdict::of_error(&*error),
            text: error.to_string(),
            key: key_of(&*error).cloned(),
        },
    }
}

async fn run(seed: u64) -> Result<[usize; 4], BoxError> {
    let mut rng = StdRng::seed_from_u64(seed);
    let kind = [Kind::Header, Kind::Quoted, Kind::Field, Kind::Unique][rng.random_range(0..4)];
    // What is unique is so for ever.
    let life = match kind {
        Kind::Unique => Dialect::DEFAULT_LIFE,
        _ => [ms(10_000), Dialect::DEFAULT_LIFE][rng.random_range(0..2)],
    };
    let core = Shared::default();
    let client = client(seed, kind, life, &core)?;
    let mut calls = tokio::task::JoinSet::new();
    for call in 0..CALLS {
        let plan = Plan {
            payment: (
                format!("r-{}", rng.random_range(0..3)),
                rng.random_range(1..3),
            ),
            start: ms([0, 100, 2000, 5000, 9900, 12_000, 19_000][rng.random_range(0..7)]),
            patience: ms([30, 400, 3000, 60_000, 60_000][rng.random_range(0..5)]),
        };
        lock(&core).log.push(format!("call {call}: {plan:?}"));
        let mut request = request(kind, call, &plan.payment)?;
        if let Kind::Header | Kind::Quoted = kind {
            let key: IdempotencyKey = plan.payment.0.parse()?;
            request.extensions_mut().insert(key);
        }
        let (client, ended_in) = (client.clone(), Arc::clone(&core));
        calls.spawn(async move {
            sleep(plan.start).await;
            let begin = || {
                let mut core = lock(&ended_in);
                let begun = core.begun.entry(plan.payment.clone()).or_default();
                begun.push(call);
            };
            begin();
            let seen = timeout(plan.patience, seen(client.oneshot(request))).await;
            let mut core = lock(&ended_in);
            let line = format!("{:?} call {call} has ended: {seen:?}", Instant::now());
            core.log.push(line);
            let begun = core.begun.get(&plan.payment).cloned();
            (call, plan.payment, seen.ok(), begun.unwrap_or_default())
        });
    }
    let mut ended = Vec::new();
    while let Some(call) = calls.join_next().await {
        ended.push(call?);
    }
    // What is on its way still.
    sleep(SLACK).await;
    let mut counts = [0; 4];
    let core = lock(&core);
    for (call, payment, seen, begun) in ended {
        let made = core.made.get(&payment).map_or(&[][..], Vec::as_slice);
        let told = || {
            let log = core.log.join("\n");
            format!("seed {seed}, {kind:?}, {life:?}, call {call}, {payment:?}: {seen:?}\n{log}")
        };
        assert!(made.len() <= 1, "twice: {}", told());
        let Some(Seen { verdict, text, .. }) = &seen else {
            continue;
        };
        let admitted = matches!(verdict, Verdict::Done | Verdict::Unknown);
        let denied = !admitted && made.iter().any(|by| begun.contains(by));
        assert!(!denied, "denied ({text}): {}", told());
        let made_up = *verdict == Verdict::Done && made.is_empty();
        assert!(!made_up, "made up: {}", told());
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

/// One payment after the other, each repeated until its fate is known: with the
/// key that was made for it.
async fn insist(seed: u64) -> Result<usize, BoxError> {
    let kind = [Kind::Header, Kind::Quoted][usize::from(seed.is_multiple_of(2))];
    let core = Shared::default();
    let client = client(seed, kind, Dialect::DEFAULT_LIFE, &core)?;
    let mut repeats = 0;
    for reference in 0..4 {
        let payment = (format!("r-{reference}"), 1);
        let mut key: Option<IdempotencyKey> = None;
        let mut last = None;
        for call in 0..8 {
            let mut request = request(kind, call, &payment)?;
            if let Some(key) = &key {
                // Out of a table, say.
                let key: IdempotencyKey = key.as_str().parse()?;
                request.extensions_mut().insert(key);
                repeats += 1;
            }
            let seen = seen(client.clone().oneshot(request)).await;
            lock(&core).log.push(format!("call {call}: {seen:?}"));
            last = Some(seen.verdict);
            // A deadline takes the key along.
            if seen.verdict != Verdict::Unknown || seen.key.is_none() {
                break;
            }
            key = seen.key;
        }
        sleep(SLACK).await;
        let core = lock(&core);
        let made = core.made.get(&payment).map_or(0, Vec::len);
        let admitted = matches!(last, Some(Verdict::Done | Verdict::Unknown));
        let true_of_it = made <= usize::from(admitted);
        assert!(true_of_it, "seed {seed}: {made}, {}", core.log.join("\n"));
    }
    Ok(repeats)
}

#[tokio::test(start_paused = true)]
async fn a_payment_is_repeated_with_the_key_that_was_made_for_it() -> Result<(), BoxError> {
    let mut repeats = 0;
    for seed in 0..SEEDS {
        repeats += insist(seed).await?;
    }
    assert!(repeats > 500, "{repeats}");
    Ok(())
}
