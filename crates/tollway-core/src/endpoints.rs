//! Recognising a request's endpoint.

use std::fmt;

use http::Method;

use crate::Endpoint;

/// A set of endpoints, each with a value, that recognises a request's.
///
/// A literal segment wins over a parameter: with both `/v1/payouts/search` and
/// `/v1/payouts/{id}` in the set, the path `/v1/payouts/search` is the first.
/// A look-up costs the length of the path, whatever the size of the set, and
/// allocates nothing for up to three parameters.
///
/// ```
/// use http::Method;
/// use tollway_core::{Endpoint, Endpoints};
///
/// let endpoints = Endpoints::new([
///     (Endpoint::post("/v1/payment_intents"), "create"),
///     (Endpoint::get("/v1/payment_intents/{id}"), "retrieve"),
/// ])?;
/// let found = endpoints.at(&Method::GET, "/v1/payment_intents/pi_123").unwrap();
/// assert_eq!(found.value, &"retrieve");
/// assert_eq!(found.param("id"), Some("pi_123"));
/// # Ok::<(), tollway_core::InvalidEndpoint>(())
/// ```
#[derive(Clone)]
pub struct Endpoints<T> {
    /// One router a method. There are few methods, so a scan beats hashing.
    routers: Vec<(Method, matchit::Router<usize>)>,
    entries: Vec<(Endpoint, T)>,
}

impl<T> Endpoints<T> {
    /// The set of these endpoints.
    ///
    /// # Errors
    ///
    /// Where a template is malformed, or overlaps with another so that one path
    /// could be either.
    pub fn new(entries: impl IntoIterator<Item = (Endpoint, T)>) -> Result<Self, InvalidEndpoint> {
        let mut endpoints = Self {
            routers: Vec::new(),
            entries: Vec::new(),
        };
        for (endpoint, value) in entries {
            endpoints.insert(endpoint, value)?;
        }
        Ok(endpoints)
    }

    fn insert(&mut self, endpoint: Endpoint, value: T) -> Result<(), InvalidEndpoint> {
        let refuse = |reason| {
            Err(InvalidEndpoint {
                endpoint: endpoint.clone(),
                reason,
            })
        };
        if !endpoint.template().starts_with('/') {
            return refuse(Reason::NoSlash);
        }
        if endpoint.template().contains(['?', '#']) {
            return refuse(Reason::NotAPath);
        }
        let index = self.entries.len();
        match self
            .router(endpoint.method())
            .insert(endpoint.template(), index)
        {
            Ok(()) => {
                self.entries.push((endpoint, value));
                Ok(())
            }
            Err(matchit::InsertError::Conflict { with }) => refuse(Reason::Overlap(with)),
            Err(error) => refuse(Reason::Malformed(match error {
                matchit::InsertError::InvalidParam => {
                    "each `{` needs a name and a `}`, as in `{id}`"
                }
                matchit::InsertError::InvalidParamSegment => {
                    "a segment ends with its `{parameter}`, and has one at the most"
                }
                matchit::InsertError::InvalidCatchAll => {
                    "a `{*parameter}` stands at the end, after a `/`"
                }
                _ => "it can't be recognised",
            })),
        }
    }

    fn router(&mut self, method: &Method) -> &mut matchit::Router<usize> {
        let at = match self.routers.iter().position(|(m, _)| m == method) {
            Some(at) => at,
            None => {
                self.routers.push((method.clone(), matchit::Router::new()));
                self.routers.len() - 1
            }
        };
        &mut self.routers[at].1
    }

    /// The endpoint of a request with this method and path, if it is in the
    /// set. The path is compared as it stands: no decoding, no trailing slash
    /// forgiven, as providers compare it.
    #[must_use]
    pub fn at<'a>(&'a self, method: &Method, path: &'a str) -> Option<Found<'a, T>> {
        let (_, router) = self.routers.iter().find(|(m, _)| m == method)?;
        let found = router.at(path).ok()?;
        let (endpoint, value) = self.entries.get(*found.value)?;
        Some(Found {
            endpoint,
            value,
            params: found.params,
        })
    }

    /// The endpoints and their values, in the order of their adding.
    pub fn iter(&self) -> impl Iterator<Item = (&Endpoint, &T)> {
        self.entries
            .iter()
            .map(|(endpoint, value)| (endpoint, value))
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }
}

impl<T> Default for Endpoints<T> {
    fn default() -> Self {
        Self {
            routers: Vec::new(),
            entries: Vec::new(),
        }
    }
}

impl<T: fmt::Debug> fmt::Debug for Endpoints<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_map().entries(self.iter()).finish()
    }
}

/// The endpoint that a request is for.
#[derive(Debug)]
pub struct Found<'a, T> {
    /// The endpoint.
    pub endpoint: &'a Endpoint,
    /// Its value in the set.
    pub value: &'a T,
    params: matchit::Params<'a, 'a>,
}

impl<'a, T> Found<'a, T> {
    /// What stands in the path for `{name}`, as it stands, not decoded.
    #[must_use]
    pub fn param(&self, name: &str) -> Option<&'a str> {
        self.params.get(name)
    }
}

/// A template that is malformed, or overlaps with another.
#[derive(Clone, Debug)]
pub struct InvalidEndpoint {
    endpoint: Endpoint,
    reason: Reason,
}

#[derive(Clone, Debug)]
enum Reason {
    NoSlash,
    NotAPath,
    Overlap(String),
    Malformed(&'static str),
}

impl InvalidEndpoint {
    /// The endpoint that was refused.
    #[must_use]
    pub fn endpoint(&self) -> &Endpoint {
        &self.endpoint
    }
}

impl fmt::Display for InvalidEndpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the endpoint `{}` ", self.endpoint)?;
        match &self.reason {
            Reason::NoSlash => f.write_str("needs a template that starts with `/`"),
            Reason::NotAPath => f.write_str("needs a path alone, without a query or fragment"),
            Reason::Overlap(with) => write!(
                f,
                "overlaps with `{with}`: a path could be either; keep one of them"
            ),
            Reason::Malformed(why) => write!(f, "has a malformed template: {why}"),
        }
    }
}

impl std::error::Error for InvalidEndpoint {}
