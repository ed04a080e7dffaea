//! Limits, as data.

use tollway_core::Endpoint;

use crate::error::InvalidLimits;
use crate::key::{Key, Source};
use crate::limits::Limits;
use crate::quota::Quota;

/// Limits as plain data: which quota covers which calls.
///
/// A call may be covered by any number of quotas; a permit is taken from all of
/// them or from none.
#[derive(Clone, Debug)]
pub struct LimitsBuilder {
    pub(crate) rules: Vec<Rule>,
    pub(crate) known: Vec<Endpoint>,
    pub(crate) max_waiting: usize,
    pub(crate) max_keys: usize,
}

#[derive(Clone, Debug)]
pub(crate) struct Rule {
    pub(crate) target: Target,
    pub(crate) quota: Quota,
}

#[derive(Clone, Debug)]
pub(crate) enum Target {
    EveryCall,
    EachEndpoint,
    Endpoints(Vec<Endpoint>),
    Keyed(Key),
}

impl Target {
    /// The name of the rule, for errors and snapshots.
    pub(crate) fn name(&self) -> String {
        match self {
            Self::EveryCall => "every call".to_owned(),
            Self::EachEndpoint => "each endpoint".to_owned(),
            Self::Endpoints(endpoints) => endpoints
                .iter()
                .map(ToString::to_string)
                .collect::<Vec<_>>()
                .join(", "),
            Self::Keyed(key) => key.to_string(),
        }
    }

    pub(crate) fn is(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::EveryCall, Self::EveryCall) | (Self::EachEndpoint, Self::EachEndpoint) => true,
            (Self::Endpoints(a), Self::Endpoints(b)) => a == b,
            (Self::Keyed(a), Self::Keyed(b)) => a.is(b),
            _ => false,
        }
    }
}

impl Default for LimitsBuilder {
    fn default() -> Self {
        Self {
            rules: Vec::new(),
            known: Vec::new(),
            max_waiting: Self::MAX_WAITING,
            max_keys: Self::MAX_KEYS,
        }
    }
}

impl LimitsBuilder {
    /// How many calls may wait, unless said otherwise: at 100 a second, this
    /// many wait 100 s, longer than callers stay. 2.5 MB at the most.
    pub const MAX_WAITING: usize = 10_000;
    /// How many keys of a rule have a quota of their own at one time, unless
    /// said otherwise. Each takes some 0.7 kB, as much again once several calls
    /// have used it at a time, and 8 bytes for each place of its window that is
    /// taken. Of those that are idle, 64 are kept.
    pub const MAX_KEYS: usize = 100_000;

    /// `quota` covers every call.
    #[must_use]
    pub fn every_call(self, quota: Quota) -> Self {
        self.rule(Target::EveryCall, quota)
    }

    /// Each endpoint has a quota like `quota` to itself.
    ///
    /// Endpoints are those named in other rules and in
    /// [`known_endpoints`](Self::known_endpoints), and those that calls carry as
    /// an extension. (A call to the path of a known one is that one's, whatever it
    /// carries: `/v1/payouts/{payout}` may be `/v1/payouts/{id}`.) Calls of no known
    /// endpoint share one quota: that is stricter than the provider, never looser.
    #[must_use]
    pub fn each_endpoint(self, quota: Quota) -> Self {
        self.rule(Target::EachEndpoint, quota)
    }

    /// `quota` covers the calls of `endpoint`, on top of what else covers them.
    #[must_use]
    pub fn endpoint(self, endpoint: Endpoint, quota: Quota) -> Self {
        self.endpoints([endpoint], quota)
    }

    /// `quota` is shared by the calls of these endpoints.
    #[must_use]
    pub fn endpoints(self, endpoints: impl IntoIterator<Item = Endpoint>, quota: Quota) -> Self {
        self.rule(Target::Endpoints(endpoints.into_iter().collect()), quota)
    }

    /// Each value of `key` has a quota like `quota` to itself.
    #[must_use]
    pub fn keyed(self, key: Key, quota: Quota) -> Self {
        self.rule(Target::Keyed(key), quota)
    }

    fn rule(mut self, target: Target, quota: Quota) -> Self {
        self.rules.push(Rule { target, quota });
        self
    }

    /// Endpoints to be recognised by their path, beside those that have quotas
    /// of their own.
    #[must_use]
    pub fn known_endpoints(mut self, endpoints: impl IntoIterator<Item = Endpoint>) -> Self {
        self.known.extend(endpoints);
        self
    }

    /// At most so many calls wait; more are refused at once. The default is
    /// [`MAX_WAITING`](Self::MAX_WAITING); zero means that none waits.
    #[must_use]
    pub fn max_waiting(mut self, calls: usize) -> Self {
        self.max_waiting = calls;
        self
    }

    /// At most so many keys of a rule have a quota of their own at one time;
    /// more than that share one, until others are idle, and so is what they
    /// share. The default is [`MAX_KEYS`](Self::MAX_KEYS).
    #[must_use]
    pub fn max_keys(mut self, keys: usize) -> Self {
        self.max_keys = keys;
        self
    }

    /// The limits.
    ///
    /// # Errors
    ///
    /// Where a quota is nonsense (a limit or a window of zero), or a template is
    /// malformed or overlaps with another.
    pub fn build(self) -> Result<Limits, InvalidLimits> {
        Limits::new(self)
    }

    pub(crate) fn check(&self) -> Result<(), InvalidLimits> {
        for Rule { target, quota } in &self.rules {
            quota.check().map_err(|(field, value, expected)| {
                InvalidLimits::new(target.name(), field, value, expected)
            })?;
            match target {
                Target::Endpoints(endpoints) if endpoints.is_empty() => {
                    return Err(InvalidLimits::new(
                        None,
                        "endpoints",
                        "none",
                        "at least one",
                    ));
                }
                Target::Keyed(key) => self.check_key(key)?,
                _ => {}
            }
        }
        if self.max_waiting > MOST {
            return Err(InvalidLimits::new(
                None,
                "max_waiting",
                self.max_waiting.to_string(),
                "at most 100,000,000",
            ));
        }
        if self.max_keys == 0 || self.max_keys > MOST {
            return Err(InvalidLimits::new(
                None,
                "max_keys",
                self.max_keys.to_string(),
                "1 to 100,000,000",
            ));
        }
        Ok(())
    }

    /// A parameter that no template has would silently cover nothing.
    fn check_key(&self, key: &Key) -> Result<(), InvalidLimits> {
        let Source::Param(name) = &key.source else {
            return Ok(());
        };
        let has = |endpoint: &Endpoint| {
            let template = endpoint.template();
            template.contains(&format!("{{{name}}}")) || template.contains(&format!("{{*{name}}}"))
        };
        let found = if key.endpoints.is_empty() {
            self.named_endpoints().any(has)
        } else {
            key.endpoints.iter().all(has)
        };
        if found {
            Ok(())
        } else {
            Err(InvalidLimits::new(
                key.to_string(),
                "param",
                format!("`{name}`"),
                "a parameter of the endpoint's template",
            ))
        }
    }

    /// All endpoints that are named anywhere, with repeats.
    pub(crate) fn named_endpoints(&self) -> impl Iterator<Item = &Endpoint> {
        let in_rules = self.rules.iter().flat_map(|rule| match &rule.target {
            Target::Endpoints(endpoints) => endpoints.as_slice(),
            Target::Keyed(key) => key.endpoints.as_slice(),
            Target::EveryCall | Target::EachEndpoint => &[],
        });
        in_rules.chain(&self.known)
    }

    /// Whether the rules are for the same calls, whatever their quotas.
    pub(crate) fn has_rules_of(&self, other: &Self) -> bool {
        let (rules, others) = (&self.rules, &other.rules);
        let same = |(rule, other): (&Rule, &Rule)| rule.target.is(&other.target);
        rules.len() == others.len()
            && rules.iter().zip(others).all(same)
            && self.known == other.known
    }

    /// The rule of the same target and position in `old`: position among the
    /// rules of that target.
    pub(crate) fn same_rule(&self, index: usize, old: &Self) -> Option<usize> {
        let target = &self.rules.get(index)?.target;
        let nth = self.rules[..index]
            .iter()
            .filter(|rule| rule.target.is(target))
            .count();
        old.rules
            .iter()
            .enumerate()
            .filter(|(_, rule)| rule.target.is(target))
            .map(|(index, _)| index)
            .nth(nth)
    }
}

/// Indices are 32 bits wide; this leaves room.
const MOST: usize = 100_000_000;
