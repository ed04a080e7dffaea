//! Which requests a limit counts together, and the counters of one gateway.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap};
use std::net::IpAddr;
use std::time::Duration;

use crate::dialect::Route;
use crate::rule::{Decision, Rule, RuleError, RuleState};

/// What a limit counts together. An endpoint is named as `POST /v1/payouts`.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Scope {
    /// Every request to the gateway.
    Gateway,
    /// Each endpoint apart: all ids of `GET /v1/payouts/{id}` are one.
    EachEndpoint,
    /// Each source IP × host × path template apart, whatever the method, as Payrix counts.
    EachPath,
    /// The endpoints named, together.
    Endpoints(Vec<String>),
    /// Each object of one endpoint apart.
    EachObject(String),
}

impl Scope {
    /// One endpoint.
    #[must_use]
    pub fn endpoint(name: impl Into<String>) -> Self {
        Self::Endpoints(vec![name.into()])
    }

    pub(crate) fn endpoints(names: &[&str]) -> Self {
        Self::Endpoints(names.iter().map(|&name| name.to_owned()).collect())
    }

    /// The endpoints that the scope names, for checking.
    pub(crate) fn named(&self) -> &[String] {
        match self {
            Self::Endpoints(names) => names,
            Self::EachObject(name) => std::slice::from_ref(name),
            Self::Gateway | Self::EachEndpoint | Self::EachPath => &[],
        }
    }

    fn subject(&self, arrival: &Arrival<'_>) -> Option<Subject> {
        match self {
            Self::Gateway => Some(Subject::All),
            Self::EachEndpoint => Some(Subject::Name(arrival.route.name.to_owned())),
            Self::EachPath => Some(Subject::Path(
                arrival.ip,
                arrival.host.to_owned(),
                arrival.route.template(),
            )),
            Self::Endpoints(names) => names
                .iter()
                .any(|name| name == arrival.route.name)
                .then_some(Subject::All),
            Self::EachObject(name) => (name == arrival.route.name)
                .then_some(arrival.object)
                .flatten()
                .map(|object| Subject::Name(object.to_owned())),
        }
    }
}

/// What may not be exceeded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Cap {
    Rate(Rule),
    InFlight(u32),
}

#[derive(Clone, Debug)]
pub(crate) struct Limit {
    pub(crate) scope: Scope,
    pub(crate) cap: Cap,
}

impl Limit {
    pub(crate) const fn rate(scope: Scope, rule: Rule) -> Self {
        Self {
            scope,
            cap: Cap::Rate(rule),
        }
    }

    pub(crate) const fn in_flight(scope: Scope, limit: u32) -> Self {
        Self {
            scope,
            cap: Cap::InFlight(limit),
        }
    }

    /// Whether the other limit counts the same thing, so that it takes this one's place.
    pub(crate) fn is_replaced_by(&self, other: &Self) -> bool {
        self.scope == other.scope
            && matches!(
                (self.cap, other.cap),
                (Cap::Rate(_), Cap::Rate(_)) | (Cap::InFlight(_), Cap::InFlight(_))
            )
    }
}

/// One request, as the limits see it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Arrival<'a> {
    pub(crate) route: &'static Route,
    pub(crate) ip: IpAddr,
    pub(crate) host: &'a str,
    pub(crate) object: Option<&'a str>,
}

/// Why a request was turned away.
#[derive(Clone, Debug)]
pub(crate) struct Refusal {
    pub(crate) scope: Scope,
    pub(crate) cap: Cap,
    pub(crate) retry_after: Duration,
    /// Whether this very request brought a block about.
    pub(crate) starts_block: bool,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Subject {
    All,
    Name(String),
    Path(IpAddr, String, &'static str),
}

#[derive(Debug)]
enum Counter {
    Rate(RuleState),
    InFlight(InFlight),
}

impl Counter {
    fn new(cap: Cap) -> Result<Self, RuleError> {
        Ok(match cap {
            Cap::Rate(rule) => Self::Rate(RuleState::new(rule)?),
            Cap::InFlight(limit) => Self::InFlight(InFlight {
                limit,
                ends: BinaryHeap::new(),
            }),
        })
    }

    fn at_rest(&mut self, now: Duration) -> bool {
        match self {
            Self::Rate(state) => state.at_rest(now),
            Self::InFlight(flights) => flights.count(now) == 0,
        }
    }
}

/// How long the gateway works on a request is known when it arrives, so what is in flight is a
/// function of time as well. A caller that hangs up doesn't make the gateway stop working.
#[derive(Debug)]
struct InFlight {
    limit: u32,
    ends: BinaryHeap<Reverse<Duration>>,
}

impl InFlight {
    fn count(&mut self, now: Duration) -> usize {
        while self.ends.peek().is_some_and(|Reverse(end)| *end <= now) {
            self.ends.pop();
        }
        self.ends.len()
    }

    fn wait(&mut self, now: Duration) -> Option<Duration> {
        let full = self.count(now) >= usize::try_from(self.limit).unwrap_or(usize::MAX);
        full.then(|| {
            let first = self.ends.peek().map_or(now, |Reverse(end)| *end);
            first.saturating_sub(now)
        })
    }
}

/// Beyond this many counters those at rest are thrown away, and if none is, the newcomer
/// isn't counted: paths and objects are named by the caller, and must not fill the memory.
const MOST_COUNTERS: usize = 65_536;

/// The limits of one gateway and their counters.
#[derive(Debug)]
pub(crate) struct LimitBook {
    limits: Vec<Limit>,
    counters: HashMap<(usize, Subject), Counter>,
}

impl LimitBook {
    pub(crate) fn new(limits: Vec<Limit>) -> Self {
        Self {
            limits,
            counters: HashMap::new(),
        }
    }

    /// Admits a request that the gateway will work on until `ends`, or says which limit is in
    /// the way. A refused request spends from no limit, unless rejected requests count there.
    pub(crate) fn admit(
        &mut self,
        arrival: &Arrival<'_>,
        now: Duration,
        ends: Duration,
    ) -> Result<(), Box<Refusal>> {
        let subjects: Vec<_> = self
            .limits
            .iter()
            .enumerate()
            .filter_map(|(index, limit)| Some((index, limit.scope.subject(arrival)?)))
            .collect();
        let refusing = subjects
            .iter()
            .find_map(|key| Some((key.0, self.refusal(key, now)?)));
        for key in subjects {
            let refused_here = matches!(&refusing, Some((index, _)) if *index == key.0);
            match self.counters.get_mut(&key) {
                Some(Counter::Rate(state))
                    if refusing.is_none() || refused_here || state.rule().counts_rejected() =>
                {
                    state.arrive(now);
                }
                Some(Counter::InFlight(flights)) if refusing.is_none() => {
                    flights.ends.push(Reverse(ends));
                }
                _ => {}
            }
        }
        refusing.map_or(Ok(()), |(_, refusal)| Err(Box::new(refusal)))
    }

    fn refusal(&mut self, key: &(usize, Subject), now: Duration) -> Option<Refusal> {
        let Limit { scope, cap } = self.limits.get(key.0)?.clone();
        let (retry_after, starts_block) = match self.counter(key, cap, now)? {
            Counter::Rate(state) => match state.peek(now) {
                Decision::Accepted => return None,
                Decision::Rejected { retry_after } => (
                    retry_after,
                    state
                        .rule()
                        .penalty_after_breach()
                        .is_some_and(|p| !p.is_zero()),
                ),
                Decision::Blocked { until } => (until.saturating_sub(now), false),
            },
            Counter::InFlight(flights) => (flights.wait(now)?, false),
        };
        Some(Refusal {
            scope,
            cap,
            retry_after,
            starts_block,
        })
    }

    fn counter(&mut self, key: &(usize, Subject), cap: Cap, now: Duration) -> Option<&mut Counter> {
        if !self.counters.contains_key(key) {
            if self.counters.len() >= MOST_COUNTERS {
                self.counters.retain(|_, counter| !counter.at_rest(now));
            }
            if self.counters.len() < MOST_COUNTERS {
                self.counters.insert(key.clone(), Counter::new(cap).ok()?);
            }
        }
        self.counters.get_mut(key)
    }
}
