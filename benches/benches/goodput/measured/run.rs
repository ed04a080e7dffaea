//! One run of callers against a provider.

use std::sync::Arc;
use std::time::Duration;

use http::{Request, Response};
use rand::SeedableRng;
use rand::rngs::StdRng;
use tokio::task::{JoinSet, LocalSet};
use tokio::time::{Instant, sleep_until};
use tollway_benches::Report;
use tollway_limit::{Limits, Quota, RateLimitLayer};
use tollway_sim::rule::Rule;
use tower::{Layer, Service};

use super::callers::{Load, call};
use super::provider::{Delays, Provider, Seen, Shared, service};

pub(crate) struct Run {
    pub(crate) rule: Rule,
    pub(crate) delays: Delays,
    pub(crate) callers: usize,
    pub(crate) load: Load,
    pub(crate) span: Duration,
    pub(crate) seed: u64,
}

impl Run {
    /// 64 callers that saturate the limiter for `span` seconds.
    pub(crate) fn new(rule: Rule, delays: Delays, span: u64) -> Self {
        Self {
            rule,
            delays,
            callers: 64,
            load: Load::Saturating,
            span: Duration::from_secs(span),
            seed: 1,
        }
    }

    /// Runs the callers over `limit` around the provider.
    pub(crate) fn go<S>(&self, limit: impl FnOnce(Shared) -> S) -> (Seen, Duration)
    where
        S: Service<Request<()>, Response = Response<()>> + Clone + 'static,
    {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_time()
            .start_paused(true)
            .build()
            .unwrap();
        LocalSet::new().block_on(&runtime, async {
            let start = Instant::now();
            let provider = Provider::shared(self.rule, self.delays, start, self.seed);
            let service = limit(Arc::clone(&provider));
            let mut callers = JoinSet::new();
            for index in 0..self.callers {
                let service = service.clone();
                let random = StdRng::seed_from_u64(self.seed + 2 + index as u64);
                callers.spawn_local(call(service, self.load, index, start, random));
            }
            if let Load::Once = self.load {
                while callers.join_next().await.is_some() {}
            } else {
                sleep_until(start + self.span).await;
            }
            let seen = provider.lock().unwrap().seen();
            (seen, start.elapsed())
        })
    }

    /// Runs the callers over our limiter.
    pub(crate) fn tollway(&self, quota: Quota) -> (Seen, Duration) {
        self.go(|provider| {
            let limits = Limits::builder().every_call(quota).build().unwrap();
            RateLimitLayer::new(limits).layer(service(provider))
        })
    }

    /// What the provider saw, in relation to its rule and to these yardsticks.
    pub(crate) fn report(
        &self,
        report: &mut Report,
        case: &str,
        who: &str,
        seen: Seen,
        yardsticks: &[(&str, f64)],
    ) {
        let rate = seen.accepted as f64 / self.span.as_secs_f64();
        let ideal = f64::from(self.rule.limit()) / self.rule.window().as_secs_f64();
        report.row(case, who, "of N/W", 100.0 * rate / ideal, "%");
        for (name, yardstick) in yardsticks {
            report.row(case, who, *name, 100.0 * rate / yardstick, "%");
        }
        seen.report(report, case, who);
    }
}

impl Seen {
    /// How often the rule was broken.
    pub(crate) fn report(self, report: &mut Report, case: &str, who: &str) {
        report.row(case, who, "429s", self.rejected as f64, "").row(
            case,
            who,
            "blocks",
            self.blocks as f64,
            "",
        );
    }
}
