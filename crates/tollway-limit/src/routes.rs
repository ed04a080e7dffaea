//! Which quotas cover a call.

use std::borrow::Cow;
use std::collections::HashMap;
use std::sync::Arc;

use smallvec::SmallVec;
use tollway_core::{Endpoint, Endpoints};

use crate::builder::{LimitsBuilder, Target};
use crate::call::Call;
use crate::directory::Directory;
use crate::error::InvalidLimits;
use crate::express::Till;
use crate::key::{Key, Source};
use crate::keys::Keys;
use crate::lanes::Plan;
use crate::meter::Role;
use crate::quota::Quota;
use crate::state::State;
use crate::time::Nanos;

/// Where the meters of one rule are.
#[derive(Debug)]
pub(crate) enum Home {
    One(u32),
    Each {
        known: HashMap<Endpoint, u32>,
        /// Shared by calls of no known endpoint.
        other: u32,
        /// Endpoints that only calls name, by their text.
        named: Keys,
    },
    Keyed(Keys),
}

impl Home {
    pub(crate) fn new(
        target: &Target,
        quota: Quota,
        rule: u32,
        endpoints: &Endpoints<usize>,
        max_keys: usize,
        state: &mut State,
    ) -> Self {
        match target {
            Target::EveryCall => Self::One(state.meters.add(quota, Role::EveryCall, rule)),
            Target::Endpoints(_) => Self::One(state.meters.add(quota, Role::Endpoint, rule)),
            Target::EachEndpoint => Self::Each {
                known: endpoints
                    .iter()
                    .map(|(endpoint, _)| {
                        let meter = state.meters.add(quota, Role::Endpoint, rule);
                        (endpoint.clone(), meter)
                    })
                    .collect(),
                other: state.meters.add(quota, Role::Endpoint, rule),
                named: Keys::new(quota, Role::Endpoint, rule, max_keys),
            },
            Target::Keyed(_) => Self::Keyed(Keys::new(quota, Role::Key, rule, max_keys)),
        }
    }

    /// Every meter, with what it is for within the rule.
    pub(crate) fn meters(&self) -> Vec<(Option<String>, u32)> {
        let keys = |keys: &Keys| -> Vec<_> {
            keys.iter()
                .map(|(key, meter)| {
                    let name = key.map_or_else(|| "(others)".to_owned(), ToString::to_string);
                    (Some(name), meter)
                })
                .collect()
        };
        match self {
            Self::One(meter) => vec![(None, *meter)],
            Self::Each {
                known,
                other,
                named,
            } => {
                let mut meters: Vec<_> = known
                    .iter()
                    .map(|(endpoint, &meter)| (Some(endpoint.to_string()), meter))
                    .collect();
                meters.push((Some("(others)".to_owned()), *other));
                meters.extend(keys(named));
                meters
            }
            Self::Keyed(table) => keys(table),
        }
    }

    /// Every meter.
    pub(crate) fn ids(&self) -> impl Iterator<Item = u32> {
        let (one, known, keys) = match self {
            Self::One(meter) => (Some(*meter), None, None),
            Self::Each {
                known,
                other,
                named,
            } => (Some(*other), Some(known), Some(named)),
            Self::Keyed(keys) => (None, None, Some(keys)),
        };
        let known = known.into_iter().flat_map(HashMap::values).copied();
        let keys = keys.into_iter().flat_map(Keys::iter);
        one.into_iter()
            .chain(known)
            .chain(keys.map(|(_, meter)| meter))
    }

    /// Applies another quota to every meter, and makes meters for endpoints
    /// that are new. Hands back those of endpoints that are gone.
    pub(crate) fn adapt(
        &mut self,
        quota: Quota,
        rule: u32,
        endpoints: &Endpoints<usize>,
        max_keys: usize,
        state: &mut State,
        now: Nanos,
    ) -> Vec<u32> {
        let mut gone = Vec::new();
        match self {
            Self::One(_) => {}
            Self::Each { known, named, .. } => {
                known.retain(|endpoint, meter| {
                    let stays = endpoints.iter().any(|(stays, _)| stays == endpoint);
                    if !stays {
                        gone.push(*meter);
                    }
                    stays
                });
                for (endpoint, _) in endpoints.iter() {
                    known
                        .entry(endpoint.clone())
                        .or_insert_with(|| state.meters.add(quota, Role::Endpoint, rule));
                }
                named.set_quota(quota, rule, max_keys);
            }
            Self::Keyed(keys) => keys.set_quota(quota, rule, max_keys),
        }
        for meter in self.ids() {
            if let Some(meter) = state.meters.get_mut(meter) {
                meter.rule = rule;
                meter.gauge.set_quota(quota, now);
            }
        }
        gone
    }
}

/// The way from a call to the quotas that cover it, and past the lock where
/// there is a way.
#[derive(Debug)]
pub(crate) struct Way {
    pub(crate) routes: Arc<Routes>,
    pub(crate) directory: Directory,
}

impl Way {
    pub(crate) fn new(routes: Routes) -> Self {
        Self {
            directory: match routes.has_keys() {
                true => Directory::for_keys(0),
                false => Directory::default(),
            },
            routes: Arc::new(routes),
        }
    }

    /// Where to take a permit without the lock, for a call that one key's quota
    /// alone covers.
    #[inline]
    pub(crate) fn till(&self, route: &Route<'_, '_>) -> Option<&Arc<Till>> {
        let (home, key) = route.only_key()?;
        Some(self.directory.find(home, key)?.till())
    }
}

/// The way from a call to the quotas that cover it. It never changes; new
/// limits bring a new one.
#[derive(Debug)]
pub(crate) struct Routes {
    /// Plans that hang on an older version are void.
    pub(crate) version: u64,
    pub(crate) builder: LimitsBuilder,
    endpoints: Endpoints<usize>,
    by_endpoint: HashMap<Endpoint, usize>,
    /// For each endpoint, in the order of `endpoints`.
    plans: Vec<Plan>,
    /// For calls of no known endpoint.
    other: Plan,
    /// For calls that name an endpoint that isn't known.
    every: Plan,
    keyed: Vec<Keyed>,
    has_params: bool,
    each: SmallVec<[usize; 1]>,
}

#[derive(Debug)]
struct Keyed {
    home: usize,
    key: Key,
    /// The endpoints that it is for; none means any.
    endpoints: Vec<usize>,
}

/// A call's way: a fixed plan, and keys to be looked up.
#[derive(Debug)]
pub(crate) struct Route<'r, 'c> {
    pub(crate) fixed: &'r Plan,
    pub(crate) keys: SmallVec<[(usize, Cow<'c, str>); 2]>,
}

impl Route<'_, '_> {
    /// The key, where nothing but its quota covers the call.
    #[inline]
    pub(crate) fn only_key(&self) -> Option<(usize, &str)> {
        match &*self.keys {
            [(home, key)] if self.fixed.is_empty() => Some((*home, key)),
            _ => None,
        }
    }
}

/// All endpoints that the builder names, each once.
pub(crate) fn endpoints(builder: &LimitsBuilder) -> Result<Endpoints<usize>, InvalidLimits> {
    let mut named: Vec<&Endpoint> = Vec::new();
    for endpoint in builder.named_endpoints() {
        if !named.contains(&endpoint) {
            named.push(endpoint);
        }
    }
    let entries = named
        .into_iter()
        .enumerate()
        .map(|(index, endpoint)| (endpoint.clone(), index));
    Ok(Endpoints::new(entries)?)
}

impl Routes {
    pub(crate) fn new(
        version: u64,
        builder: LimitsBuilder,
        endpoints: Endpoints<usize>,
        homes: &[Home],
    ) -> Self {
        let by_endpoint: HashMap<_, _> = endpoints
            .iter()
            .map(|(endpoint, &index)| (endpoint.clone(), index))
            .collect();
        let mut plans = vec![Plan::new(); by_endpoint.len()];
        let (mut other, mut every) = (Plan::new(), Plan::new());
        let mut keyed = Vec::new();
        let mut each = SmallVec::new();
        // The narrowest first: it is the likeliest to be full.
        for (index, (rule, home)) in builder.rules.iter().zip(homes).enumerate().rev() {
            match (&rule.target, home) {
                (Target::Endpoints(of), Home::One(meter)) => {
                    for endpoint in of {
                        // It may be named twice.
                        if let Some(&endpoint) = by_endpoint.get(endpoint)
                            && !plans[endpoint].contains(meter)
                        {
                            plans[endpoint].push(*meter);
                        }
                    }
                }
                (Target::Keyed(key), _) => keyed.push(Keyed {
                    home: index,
                    key: key.clone(),
                    endpoints: key
                        .endpoints
                        .iter()
                        .filter_map(|endpoint| by_endpoint.get(endpoint).copied())
                        .collect(),
                }),
                _ => {}
            }
        }
        for (index, home) in homes.iter().enumerate() {
            if let Home::Each {
                known, other: rest, ..
            } = home
            {
                for (endpoint, meter) in known {
                    if let Some(&endpoint) = by_endpoint.get(endpoint) {
                        plans[endpoint].push(*meter);
                    }
                }
                other.push(*rest);
                each.push(index);
            }
        }
        for (rule, home) in builder.rules.iter().zip(homes) {
            if let (Target::EveryCall, Home::One(meter)) = (&rule.target, home) {
                let all = plans.iter_mut().chain([&mut other, &mut every]);
                all.for_each(|plan| plan.push(*meter));
            }
        }
        let has_params = keyed
            .iter()
            .any(|keyed| matches!(keyed.key.source, Source::Param(_)));
        Self {
            version,
            builder,
            endpoints,
            by_endpoint,
            plans,
            other,
            every,
            keyed,
            has_params,
            each,
        }
    }

    fn has_keys(&self) -> bool {
        !self.keyed.is_empty() || !self.each.is_empty()
    }

    /// The plan of every call, where all have the same.
    pub(crate) fn only(&self) -> Option<Plan> {
        let is_plain = self.endpoints.is_empty() && self.keyed.is_empty() && self.each.is_empty();
        is_plain.then(|| self.other.clone())
    }

    pub(crate) fn route<'c>(&self, call: &Call<'c>) -> Route<'_, 'c> {
        let mut keys = SmallVec::new();
        let named = call.endpoint.map(|name| (name, self.by_endpoint.get(name)));
        let found = match named {
            Some((_, Some(_))) if !self.has_params => None,
            _ if self.endpoints.is_empty() => None,
            _ => self.endpoints.at(call.method, call.path),
        };
        let index = match named {
            Some((_, Some(index))) => Some(*index),
            // It may be a known one under another name.
            _ => found.as_ref().map(|found| *found.value),
        };
        let fixed = match (index, named) {
            (Some(index), _) => &self.plans[index],
            (None, None) => &self.other,
            (None, Some((name, _))) => {
                for &home in &self.each {
                    keys.push((home, Cow::Owned(name.to_string())));
                }
                &self.every
            }
        };
        for keyed in &self.keyed {
            let covers = keyed.key.endpoints.is_empty()
                || index.is_some_and(|index| keyed.endpoints.contains(&index));
            if !covers {
                continue;
            }
            let value = match &keyed.key.source {
                Source::Param(name) => found
                    .as_ref()
                    .and_then(|found| param(call.path, found.param(name))),
                Source::Header(name) => call.header(name.as_str()).map(Cow::Borrowed),
                Source::Path => Some(Cow::Borrowed(call.path)),
                Source::Computed(_, compute) => compute(call),
            };
            if let Some(value) = value {
                keys.push((keyed.home, value));
            }
        }
        Route { fixed, keys }
    }
}

/// A parameter's value as a part of the call's path, which outlives the look-up.
fn param<'c>(path: &'c str, value: Option<&str>) -> Option<Cow<'c, str>> {
    let value = value?;
    let start = (value.as_ptr() as usize).checked_sub(path.as_ptr() as usize)?;
    path.get(start..start + value.len()).map(Cow::Borrowed)
}
