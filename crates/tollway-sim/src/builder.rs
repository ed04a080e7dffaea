//! How a gateway is configured.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use rand::SeedableRng;
use rand::rngs::StdRng;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::time::Instant;

use crate::dialect::{self, Dialect};
use crate::error::SimError;
use crate::faults::{FaultDraw, Faults, Latency};
use crate::gateway::Gateway;
use crate::handler::{Shared, State};
use crate::ledger::Books;
use crate::limits::{Cap, Limit, LimitBook, Scope};
use crate::provider::Provider;
use crate::rule::{Rule, RuleKind};
use crate::server;
use crate::stats::Stats;
use crate::tls;

/// Configures a [`Gateway`]. Made by [`Gateway::builder`].
#[derive(Clone, Debug)]
#[must_use]
pub struct GatewayBuilder {
    provider: Provider,
    sandbox: bool,
    unlimited: bool,
    kind: Option<RuleKind>,
    overrides: Vec<Limit>,
    faults: Faults,
    latency: Latency,
    tls: bool,
    http2: bool,
    idle_timeout: Option<Duration>,
    max_requests_per_connection: Option<u64>,
    goaway_after: Option<u64>,
    seed: u64,
    bind: SocketAddr,
}

impl GatewayBuilder {
    pub(crate) fn new(provider: Provider) -> Self {
        Self {
            provider,
            sandbox: false,
            unlimited: false,
            kind: None,
            overrides: Vec::new(),
            faults: Faults::none(),
            latency: Latency::None,
            tls: false,
            http2: true,
            idle_timeout: None,
            max_requests_per_connection: None,
            goaway_after: None,
            seed: 0,
            bind: (Ipv4Addr::LOCALHOST, 0).into(),
        }
    }

    /// Enforces the provider's sandbox limits instead of the live ones. They differ at Stripe.
    pub const fn sandbox(mut self, sandbox: bool) -> Self {
        self.sandbox = sandbox;
        self
    }

    /// Drops the provider's own limits. What [`rule`](Self::rule) and
    /// [`in_flight`](Self::in_flight) set stays, before or after.
    pub const fn unlimited(mut self) -> Self {
        self.unlimited = true;
        self
    }

    /// Counts each of the provider's own rates this way, with its numbers as they are.
    pub const fn rule_kind(mut self, kind: RuleKind) -> Self {
        self.kind = Some(kind);
        self
    }

    /// Enforces a rate on a scope, in place of the provider's own rates on it.
    pub fn rule(self, scope: Scope, rule: Rule) -> Self {
        self.set(Limit::rate(scope, rule))
    }

    /// Lets at most this many requests be in flight at once in a scope, in place of the
    /// provider's own number for it. 0 refuses everything.
    pub fn in_flight(self, scope: Scope, limit: u32) -> Self {
        self.set(Limit::in_flight(scope, limit))
    }

    fn set(mut self, limit: Limit) -> Self {
        self.overrides.retain(|known| !known.is_replaced_by(&limit));
        self.overrides.push(limit);
        self
    }

    /// What goes wrong. Default: nothing.
    pub fn faults(mut self, faults: Faults) -> Self {
        self.faults = faults;
        self
    }

    /// How long the gateway takes over a request. Default: no time. A request's effect takes
    /// place when it arrives; its answer comes this much later, and its key is in use until then.
    pub const fn latency(mut self, latency: Latency) -> Self {
        self.latency = latency;
        self
    }

    /// Speaks TLS 1.3 and 1.2, with a certificate authority made at the start, and a certificate
    /// for `localhost`, `127.0.0.1` and `::1`. Default: no.
    pub const fn tls(mut self, tls: bool) -> Self {
        self.tls = tls;
        self
    }

    /// Whether ALPN offers HTTP/2 beside HTTP/1.1. Default: yes. Without TLS a client may always
    /// speak HTTP/2 with prior knowledge.
    pub const fn http2(mut self, http2: bool) -> Self {
        self.http2 = http2;
        self
    }

    /// Closes a connection that was idle for this long, as load balancers do: with `GOAWAY` on
    /// HTTP/2, without a word on HTTP/1.1. Default: 30 s at Modern Treasury, as it documents, and
    /// never at the others.
    pub const fn idle_timeout(mut self, timeout: Duration) -> Self {
        self.idle_timeout = Some(timeout);
        self
    }

    /// Answers the nth request on an HTTP/1.1 connection with `Connection: close`. Default: never.
    pub const fn max_requests_per_connection(mut self, n: u64) -> Self {
        self.max_requests_per_connection = Some(n);
        self
    }

    /// Sends `GOAWAY` when the nth request on an HTTP/2 connection arrives. That one and those
    /// under way are answered. Default: never.
    pub const fn goaway_after(mut self, n: u64) -> Self {
        self.goaway_after = Some(n);
        self
    }

    /// What faults and latencies are drawn from. Default: 0. The same seed and the same order of
    /// arrivals give the same faults.
    pub const fn seed(mut self, seed: u64) -> Self {
        self.seed = seed;
        self
    }

    /// Where to listen. Default: `127.0.0.1`, on a free port.
    pub const fn bind(mut self, addr: SocketAddr) -> Self {
        self.bind = addr;
        self
    }

    /// Starts the gateway on the current tokio runtime, which must have time and I/O enabled.
    ///
    /// # Errors
    ///
    /// When a setting makes no sense, when the address can't be listened on, or when no
    /// certificate can be made.
    pub async fn start(self) -> Result<Gateway, SimError> {
        let dialect = dialect::of(self.provider);
        let limits = self.limits(dialect)?;
        self.check()?;
        let (authority, acceptor) = if self.tls {
            let (authority, acceptor) = tls::make(self.http2)?;
            (Some(authority), Some(acceptor))
        } else {
            (None, None)
        };
        let bind = |error| SimError::bind(self.bind, error);
        let listener = TcpListener::bind(self.bind).await.map_err(bind)?;
        let addr = listener.local_addr().map_err(bind)?;
        let shared = Arc::new(Shared {
            dialect,
            started: Instant::now(),
            latency: self.latency,
            max_requests: self.max_requests_per_connection,
            goaway_after: self.goaway_after,
            idle_timeout: self.idle_timeout.or_else(|| dialect.idle_timeout()),
            state: Mutex::new(State {
                faults: FaultDraw::new(self.faults, self.seed),
                // Its own, so that a latency moves no fault.
                latencies: StdRng::seed_from_u64(!self.seed),
                limits: LimitBook::new(limits),
                books: Books::default(),
                stats: Stats::default(),
            }),
        });
        let (open, until) = watch::channel(());
        let accepting = server::accept(listener, acceptor, Arc::clone(&shared), until);
        Ok(Gateway {
            provider: self.provider,
            addr,
            authority,
            seed: self.seed,
            shared,
            open,
            accepting: tokio::spawn(accepting),
        })
    }

    fn check(&self) -> Result<(), SimError> {
        self.faults.check()?;
        self.latency.check()?;
        let at_least_one = |field, n: Option<u64>| match n {
            Some(0) => Err(SimError::config(field, 0, "at least 1")),
            _ => Ok(()),
        };
        at_least_one(
            "max_requests_per_connection",
            self.max_requests_per_connection,
        )?;
        at_least_one("goaway_after", self.goaway_after)?;
        match self.idle_timeout {
            Some(Duration::ZERO) => {
                let expected = "more than zero";
                Err(SimError::config("idle_timeout", Duration::ZERO, expected))
            }
            _ => Ok(()),
        }
    }

    /// The provider's own limits with what was set on top, checked.
    fn limits(&self, dialect: &dyn Dialect) -> Result<Vec<Limit>, SimError> {
        let mut limits = if self.unlimited {
            Vec::new()
        } else {
            dialect.limits(self.sandbox)
        };
        for limit in &mut limits {
            if let (Cap::Rate(rule), Some(kind)) = (&mut limit.cap, self.kind) {
                *rule = rule.of_kind(kind);
            }
        }
        limits.retain(|own| !self.overrides.iter().any(|set| own.is_replaced_by(set)));
        limits.extend(self.overrides.iter().cloned());
        for limit in &limits {
            if let Cap::Rate(rule) = limit.cap {
                rule.check()?;
            }
            for name in limit.scope.named() {
                if !dialect.routes().iter().any(|route| route.name == name) {
                    let known: Vec<_> = dialect.routes().iter().map(|r| r.name).collect();
                    let expected = format!("one of {}", known.join(", "));
                    return Err(SimError::config("rule scope", name, expected));
                }
            }
        }
        Ok(limits)
    }
}
