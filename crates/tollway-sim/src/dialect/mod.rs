//! What differs between the five: endpoints, limits, keys, and the words of their answers.

use std::time::Duration;

use http::{HeaderMap, Method, StatusCode};
use serde_json::{Map, Value};

use crate::ledger::Record;
use crate::limits::{Limit, Refusal};
use crate::provider::Provider;
use crate::reply::Reply;
use crate::rule::Rule;
use crate::wire::Wire;

mod modern_treasury;
mod payalo;
mod payrix;
mod savvy;
mod stripe;

/// One endpoint: its name, which says the method and the template, and what it does.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Route {
    pub(crate) name: &'static str,
    pub(crate) action: Action,
}

/// What an endpoint does. The string names the kind of object it deals with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Action {
    /// Makes an object. An effect.
    Create(&'static Resource),
    /// Changes the object named in the path. An effect.
    Update(&'static str),
    /// Shows the object named in the path.
    Get(&'static str),
    /// Shows the objects that a query asks for.
    Find(&'static str),
}

/// A kind of object that can be made.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Resource {
    pub(crate) object: &'static str,
    pub(crate) id_prefix: &'static str,
    /// The field that must hold a whole number above zero.
    pub(crate) amount: Option<&'static str>,
    /// The field that names the object it belongs to, where limits count per such object.
    pub(crate) parent: Option<&'static str>,
}

impl Route {
    pub(crate) const fn new(name: &'static str, action: Action) -> Self {
        Self { name, action }
    }

    pub(crate) fn template(&self) -> &'static str {
        self.name
            .split_once(' ')
            .map_or("", |(_, template)| template)
    }

    fn method(&self) -> &'static str {
        self.name.split_once(' ').map_or("", |(method, _)| method)
    }

    pub(crate) const fn writes(&self) -> bool {
        matches!(self.action, Action::Create(_) | Action::Update(_))
    }

    /// The path's one parameter, still encoded, if the path is of this shape.
    fn matches<'p>(&self, path: &'p str) -> Option<Option<&'p str>> {
        let (mut expected, mut given) = (self.template().split('/'), path.split('/'));
        let mut parameter = None;
        loop {
            match (expected.next(), given.next()) {
                (None, None) => return Some(parameter),
                (Some("{id}"), Some(segment)) if !segment.is_empty() => parameter = Some(segment),
                (Some(expected), Some(given)) if expected == given => {}
                _ => return None,
            }
        }
    }
}

/// What a path leads to.
pub(crate) enum Found<'p> {
    Route(&'static Route, Option<&'p str>),
    WrongMethod,
    Nothing,
}

/// The first route that fits, so that a table lists a fixed path above one with a parameter.
pub(crate) fn find<'p>(routes: &'static [Route], method: &Method, path: &'p str) -> Found<'p> {
    let mut found = Found::Nothing;
    for route in routes {
        if let Some(parameter) = route.matches(path) {
            if route.method() == method.as_str() {
                return Found::Route(route, parameter);
            }
            found = Found::WrongMethod;
        }
    }
    found
}

/// How a request relates to an earlier one with the same key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Repeat {
    /// The same request, whose first has been answered.
    Same,
    /// The same request, whose first is still being worked on.
    InFlight,
    /// Another request under a key in use.
    OtherPayload,
}

/// One provider's side of the conversation. Everything else is common to the five.
pub(crate) trait Dialect: Sync {
    fn wire(&self) -> &'static Wire;
    fn routes(&self) -> &'static [Route];
    fn limits(&self, sandbox: bool) -> Vec<Limit>;

    /// How long a connection may be idle before what stands in front of the provider closes it.
    fn idle_timeout(&self) -> Option<Duration> {
        None
    }

    /// What this provider recognises a repeat by, or the answer that refuses the request.
    fn key(
        &self,
        headers: &HeaderMap,
        fields: &Map<String, Value>,
    ) -> Result<Option<String>, Reply>;

    /// The answer to a request that took effect.
    fn created(&self, record: &Record) -> Reply;
    /// The answer to a request whose key was seen before.
    fn repeated(&self, first: &Record, repeat: Repeat) -> Reply;
    fn one(&self, record: &Record) -> Reply;
    /// The answer to a query, which asked for a reference or for everything.
    fn many(&self, sought: Option<&str>, records: &[&Record]) -> Reply;
    /// The answer to a request with a bad or a missing field: final, without effect.
    fn invalid(&self, field: &str) -> Reply;
    fn throttled(&self, refusal: &Refusal) -> Reply;
    /// Any other failure.
    fn failure(&self, status: StatusCode) -> Reply;
    /// The answer of a provider that won't do it. A declined payment is a 402.
    fn refused(&self, status: StatusCode) -> Reply {
        self.failure(status)
    }

    /// The reference that a query asks for.
    fn sought(&self, _headers: &HeaderMap, query: &[(String, String)]) -> Option<String> {
        let keys = self.wire().lookup_keys;
        query
            .iter()
            .find(|(key, _)| keys.contains(&key.as_str()))
            .map(|(_, value)| value.clone())
    }

    /// Whether a repeat waits for the answer of the first, rather than being refused.
    fn waits_for_first(&self) -> bool {
        false
    }

    /// Whether the request asks to be throttled.
    fn wants_throttling(&self, _headers: &HeaderMap) -> bool {
        false
    }

    /// The answer when an object is locked.
    fn lock_timeout(&self) -> Reply {
        self.failure(StatusCode::SERVICE_UNAVAILABLE)
    }
}

pub(crate) fn of(provider: Provider) -> &'static dyn Dialect {
    match provider {
        Provider::Payrix => &payrix::Payrix,
        Provider::Stripe => &stripe::Stripe,
        Provider::ModernTreasury => &modern_treasury::ModernTreasury,
        Provider::Savvy => &savvy::Savvy,
        Provider::Payalo => &payalo::Payalo,
    }
}

/// `limit` in any second.
const fn per_second(limit: u32) -> Rule {
    Rule::sliding_log(limit, Duration::from_secs(1))
}

fn header(headers: &HeaderMap, name: &str) -> Option<String> {
    let value = headers.get(name)?.to_str().ok()?;
    (!value.is_empty()).then(|| value.to_owned())
}

fn text(fields: &Map<String, Value>, name: &str) -> Option<String> {
    let value = fields.get(name)?.as_str()?;
    (!value.is_empty()).then(|| value.to_owned())
}
