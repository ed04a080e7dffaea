//! Quotas per value of something.

use std::borrow::Cow;
use std::fmt;
use std::sync::Arc;

use http::HeaderName;
use tollway_core::Endpoint;

use crate::call::Call;

/// What a keyed quota is counted by: each value has a quota of its own. A call
/// without a value isn't covered.
///
/// ```
/// use tollway_core::Endpoint;
/// use tollway_limit::Key;
///
/// // 1000 updates an hour for each payment intent.
/// let object = Key::param("id").on(Endpoint::post("/v1/payment_intents/{id}"));
/// // So many for each connected account.
/// let account = Key::header(http::HeaderName::from_static("stripe-account"));
/// // Whatever the caller knows of the call.
/// #[derive(Clone)]
/// struct Merchant(String);
/// let merchant = Key::computed("merchant", |call| {
///     call.extension::<Merchant>().map(|merchant| merchant.0.as_str().into())
/// });
/// ```
#[derive(Clone)]
pub struct Key {
    pub(crate) source: Source,
    pub(crate) endpoints: Vec<Endpoint>,
}

#[derive(Clone)]
pub(crate) enum Source {
    Param(Cow<'static, str>),
    Header(HeaderName),
    Path,
    Computed(Cow<'static, str>, Arc<Compute>),
}

type Compute = dyn for<'a> Fn(&Call<'a>) -> Option<Cow<'a, str>> + Send + Sync;

impl Key {
    /// The value of the parameter `{name}` in the template of the call's
    /// endpoint.
    pub fn param(name: impl Into<Cow<'static, str>>) -> Self {
        Self::from_source(Source::Param(name.into()))
    }

    /// The value of a header. A [snapshot](crate::Limits::snapshot) shows it, so
    /// not one that is secret.
    #[must_use]
    pub fn header(name: HeaderName) -> Self {
        Self::from_source(Source::Header(name))
    }

    /// The path as it stands, for providers that count by path and whose
    /// endpoints aren't known beforehand.
    #[must_use]
    pub fn path() -> Self {
        Self::from_source(Source::Path)
    }

    /// Whatever `compute` makes of the call. `name` is for snapshots and
    /// telemetry.
    pub fn computed<F>(name: impl Into<Cow<'static, str>>, compute: F) -> Self
    where
        F: for<'a> Fn(&Call<'a>) -> Option<Cow<'a, str>> + Send + Sync + 'static,
    {
        Self::from_source(Source::Computed(name.into(), Arc::new(compute)))
    }

    fn from_source(source: Source) -> Self {
        Self {
            source,
            endpoints: Vec::new(),
        }
    }

    /// The same, for calls of `endpoint` alone, or of this one too.
    #[must_use]
    pub fn on(mut self, endpoint: Endpoint) -> Self {
        self.endpoints.push(endpoint);
        self
    }

    /// Whether two keys are the same. A computed one is known by its name.
    pub(crate) fn is(&self, other: &Self) -> bool {
        let same = match (&self.source, &other.source) {
            (Source::Param(a), Source::Param(b))
            | (Source::Computed(a, _), Source::Computed(b, _)) => a == b,
            (Source::Header(a), Source::Header(b)) => a == b,
            (Source::Path, Source::Path) => true,
            _ => false,
        };
        same && self.endpoints == other.endpoints
    }
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.source {
            Source::Param(name) => write!(f, "{{{name}}}")?,
            Source::Header(name) => write!(f, "header {name}")?,
            Source::Path => f.write_str("path")?,
            Source::Computed(name, _) => f.write_str(name)?,
        }
        for (index, endpoint) in self.endpoints.iter().enumerate() {
            let link = if index == 0 { " of" } else { "," };
            write!(f, "{link} {endpoint}")?;
        }
        Ok(())
    }
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Key({self})")
    }
}
