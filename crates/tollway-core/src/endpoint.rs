//! A named operation: method and path template.

use std::borrow::Cow;
use std::fmt;

use http::{Extensions, Method};

/// A named operation: a method and a path template.
///
/// `GET /v1/payment_intents/{id}` is one endpoint whatever the id. In a
/// template, `{name}` stands for one segment and `{*name}` for the rest of the
/// path; [`Endpoints`](crate::Endpoints) recognises a request's endpoint, and
/// refuses malformed templates when it is built.
///
/// It may travel in the request's extensions, where a caller who knows it
/// saves the layers the look-up.
///
/// ```
/// use tollway_core::Endpoint;
///
/// let endpoint = Endpoint::get("/v1/payment_intents/{id}");
/// assert_eq!(endpoint.to_string(), "GET /v1/payment_intents/{id}");
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Endpoint {
    method: Method,
    template: Cow<'static, str>,
}

impl Endpoint {
    /// The endpoint of this method and template.
    pub fn new(method: Method, template: impl Into<Cow<'static, str>>) -> Self {
        Self {
            method,
            template: template.into(),
        }
    }

    /// A `GET` endpoint.
    pub fn get(template: impl Into<Cow<'static, str>>) -> Self {
        Self::new(Method::GET, template)
    }

    /// A `POST` endpoint.
    pub fn post(template: impl Into<Cow<'static, str>>) -> Self {
        Self::new(Method::POST, template)
    }

    /// A `PUT` endpoint.
    pub fn put(template: impl Into<Cow<'static, str>>) -> Self {
        Self::new(Method::PUT, template)
    }

    /// A `PATCH` endpoint.
    pub fn patch(template: impl Into<Cow<'static, str>>) -> Self {
        Self::new(Method::PATCH, template)
    }

    /// A `DELETE` endpoint.
    pub fn delete(template: impl Into<Cow<'static, str>>) -> Self {
        Self::new(Method::DELETE, template)
    }

    /// The endpoint that `extensions` carry, if any.
    #[must_use]
    #[inline]
    pub fn of(extensions: &Extensions) -> Option<&Self> {
        extensions.get()
    }

    /// The method.
    #[must_use]
    pub fn method(&self) -> &Method {
        &self.method
    }

    /// The path template.
    #[must_use]
    pub fn template(&self) -> &str {
        &self.template
    }
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.method, self.template)
    }
}
