//! The provider, and the way to it.

use std::convert::Infallible;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use http::{Request, Response, StatusCode};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use tokio::time::{Instant, sleep};
use tollway_sim::rule::{Decision, Rule, RuleState};
use tower::{Service, service_fn};

/// One-way delays in whole milliseconds, uniform, both ends included.
#[derive(Clone, Copy)]
pub(crate) struct Delays {
    pub(crate) from: u64,
    pub(crate) to: u64,
}

impl Delays {
    pub(crate) const SHORT: Self = Self { from: 5, to: 50 };
    pub(crate) const LONG: Self = Self { from: 5, to: 500 };
    pub(crate) const WIDE: Self = Self { from: 5, to: 2000 };

    pub(crate) fn name(self) -> String {
        format!("{}–{} ms", self.from, self.to)
    }

    /// J: by how much one way may take longer than another.
    pub(crate) fn spread(self) -> f64 {
        (self.to - self.from) as f64 / 1000.0
    }

    fn draw(self, random: &mut StdRng) -> Duration {
        Duration::from_millis(random.random_range(self.from..=self.to))
    }
}

pub(crate) struct Provider {
    rule: RuleState,
    start: Instant,
    phase: Duration,
    delays: Delays,
    random: StdRng,
    seen: Seen,
}

/// What the provider has seen.
#[derive(Clone, Copy, Default)]
pub(crate) struct Seen {
    pub(crate) accepted: u64,
    pub(crate) rejected: u64,
    pub(crate) blocks: u64,
}

pub(crate) type Shared = Arc<Mutex<Provider>>;

impl Provider {
    pub(crate) fn shared(rule: Rule, delays: Delays, start: Instant, seed: u64) -> Shared {
        let window = rule.window().as_millis() as u64;
        let phase = StdRng::seed_from_u64(seed).random_range(0..window);
        Arc::new(Mutex::new(Self {
            rule: RuleState::new(rule).unwrap(),
            start,
            phase: Duration::from_millis(phase),
            delays,
            random: StdRng::seed_from_u64(seed + 1),
            seen: Seen::default(),
        }))
    }

    pub(crate) fn seen(&self) -> Seen {
        self.seen
    }

    fn delay(&mut self) -> Duration {
        self.delays.draw(&mut self.random)
    }

    fn decide(&mut self) -> Decision {
        let now = self.start.elapsed() + self.phase;
        let decision = self.rule.arrive(now);
        match decision {
            Decision::Accepted => self.seen.accepted += 1,
            Decision::Rejected { .. } => {
                self.seen.rejected += 1;
                self.seen.blocks += 1;
            }
            Decision::Blocked { .. } => self.seen.rejected += 1,
        }
        decision
    }
}

/// The provider as a service, for a limiter to stand before.
pub(crate) fn service(
    provider: Shared,
) -> impl Service<
    Request<()>,
    Response = Response<()>,
    Error = Infallible,
    Future = impl Future<Output = Result<Response<()>, Infallible>>,
> + Clone {
    service_fn(move |_: Request<()>| send(Arc::clone(&provider)))
}

async fn send(provider: Shared) -> Result<Response<()>, Infallible> {
    let there = provider.lock().unwrap().delay();
    sleep(there).await;
    let (decision, back) = {
        let mut provider = provider.lock().unwrap();
        (provider.decide(), provider.delay())
    };
    sleep(back).await;
    let mut response = Response::new(());
    if !decision.is_accepted() {
        *response.status_mut() = StatusCode::TOO_MANY_REQUESTS;
    }
    Ok(response)
}
