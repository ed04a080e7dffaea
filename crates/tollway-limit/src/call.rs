//! What the limiter needs to know of a call.

use std::fmt;

use http::{Extensions, HeaderMap, Method, Request};
use tollway_core::{Deadline, Endpoint, Priority};

/// What the limiter needs to know of an attempt: which endpoint it is for, how
/// urgent it is, how long it may wait, and where its keys are read from.
///
/// ```
/// use http::Method;
/// use tollway_core::Priority;
/// use tollway_limit::Call;
///
/// let call = Call::new(&Method::POST, "/v1/payouts").priority(Priority::High);
/// ```
#[derive(Clone, Copy)]
pub struct Call<'a> {
    pub(crate) method: &'a Method,
    pub(crate) path: &'a str,
    pub(crate) endpoint: Option<&'a Endpoint>,
    pub(crate) headers: Option<&'a HeaderMap>,
    pub(crate) extensions: Option<&'a Extensions>,
    pub(crate) priority: Priority,
    pub(crate) deadline: Option<Deadline>,
}

impl<'a> Call<'a> {
    /// A call of this method and path, of normal priority, that may wait for
    /// ever.
    #[must_use]
    pub fn new(method: &'a Method, path: &'a str) -> Self {
        Self {
            method,
            path,
            endpoint: None,
            headers: None,
            extensions: None,
            priority: Priority::default(),
            deadline: None,
        }
    }

    /// The call that `request` makes. `Endpoint`, `Priority` and `Deadline` are
    /// read from its extensions; the deadline may also be one that a layer above
    /// [holds](Deadline::of).
    #[must_use]
    #[inline]
    pub fn of<B>(request: &'a Request<B>) -> Self {
        let extensions = request.extensions();
        let call = Self {
            method: request.method(),
            path: request.uri().path(),
            endpoint: None,
            headers: Some(request.headers()),
            extensions: Some(extensions),
            priority: Priority::default(),
            deadline: Deadline::of(extensions),
        };
        // Most requests carry nothing, and nothing is looked up.
        if extensions.is_empty() {
            return call;
        }
        Self {
            endpoint: Endpoint::of(extensions),
            priority: Priority::of(extensions),
            ..call
        }
    }

    /// The same, known to be for `endpoint`.
    #[must_use]
    pub fn endpoint(mut self, endpoint: &'a Endpoint) -> Self {
        self.endpoint = Some(endpoint);
        self
    }

    /// The same, with these headers.
    #[must_use]
    pub fn headers(mut self, headers: &'a HeaderMap) -> Self {
        self.headers = Some(headers);
        self
    }

    /// The same, with these extensions, for keys that are
    /// [computed](crate::Key::computed) from them. Of an endpoint, a priority or a
    /// deadline among them nothing is read: those have methods of their own.
    #[must_use]
    pub fn extensions(mut self, extensions: &'a Extensions) -> Self {
        self.extensions = Some(extensions);
        self
    }

    /// The same, of this priority.
    #[must_use]
    pub fn priority(mut self, priority: Priority) -> Self {
        self.priority = priority;
        self
    }

    /// The same, not to be waited for beyond `deadline`.
    #[must_use]
    pub fn deadline(mut self, deadline: Deadline) -> Self {
        self.deadline = Some(deadline);
        self
    }

    /// The method.
    #[must_use]
    pub fn method(&self) -> &'a Method {
        self.method
    }

    /// The path.
    #[must_use]
    pub fn path(&self) -> &'a str {
        self.path
    }

    /// The value of a header, where it is text.
    #[must_use]
    pub fn header(&self, name: &str) -> Option<&'a str> {
        self.headers?.get(name)?.to_str().ok()
    }

    /// The request's extension of this type.
    #[must_use]
    pub fn extension<T: Clone + Send + Sync + 'static>(&self) -> Option<&'a T> {
        self.extensions?.get()
    }
}

/// Headers and extensions hold secrets.
impl fmt::Debug for Call<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Call")
            .field("method", self.method)
            .field("path", &self.path)
            .field("endpoint", &self.endpoint)
            .field("priority", &self.priority)
            .field("deadline", &self.deadline)
            .finish_non_exhaustive()
    }
}
