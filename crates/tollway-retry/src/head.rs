//! What is kept of a request, so that it can be made again.

use http::header::{HeaderMap, HeaderName, HeaderValue};
use http::{Extensions, Method, Request, Uri, Version};
use tokio::time::Instant;
use tollway_core::{Deadline, Endpoint, IdempotencyKey, Priority};

use crate::policy::Settings;

/// As many headers are kept in place, without an allocation. A payment API's
/// request has four to seven.
const INLINE: usize = 8;

/// A copy of a request's head, all but free on the way to a call that needs no
/// retry: every name and value is shared, and nothing is allocated for a
/// handful of headers.
pub(crate) struct Head {
    method: Method,
    uri: Uri,
    version: Version,
    headers: Headers,
    extensions: Carried,
}

#[expect(
    clippy::large_enum_variant,
    reason = "the large one is the rule, and a box would be an allocation for every call"
)]
enum Headers {
    // Filled from the front.
    Few([Option<(HeaderName, HeaderValue)>; INLINE]),
    Many(HeaderMap),
}

/// The extensions: those that Tollway's layers know in place, or else a clone
/// of the map, which costs several allocations.
enum Carried {
    Known {
        deadline: Option<Deadline>,
        priority: Option<Priority>,
        endpoint: Option<Endpoint>,
        key: Option<IdempotencyKey>,
    },
    Any(Extensions),
}

impl Default for Head {
    fn default() -> Self {
        Self::of(&Request::new(()))
    }
}

impl Head {
    pub(crate) fn of<B>(request: &Request<B>) -> Self {
        Self {
            method: request.method().clone(),
            uri: request.uri().clone(),
            version: request.version(),
            headers: Headers::of(request.headers()),
            extensions: Carried::of(request.extensions()),
        }
    }

    /// The request once more, with `body`.
    pub(crate) fn to_request<B>(&self, body: B) -> Request<B> {
        let mut request = Request::new(body);
        *request.method_mut() = self.method.clone();
        *request.uri_mut() = self.uri.clone();
        *request.version_mut() = self.version;
        *request.headers_mut() = self.headers.to_map();
        *request.extensions_mut() = self.extensions.to_map();
        request
    }

    /// The same, for the last time.
    pub(crate) fn into_request<B>(self, body: B) -> Request<B> {
        let mut request = Request::new(body);
        *request.method_mut() = self.method;
        *request.uri_mut() = self.uri;
        *request.version_mut() = self.version;
        *request.headers_mut() = self.headers.into_map();
        *request.extensions_mut() = self.extensions.into_map();
        request
    }

    pub(crate) fn deadline(&self) -> Option<Deadline> {
        match &self.extensions {
            Carried::Known { deadline, .. } => *deadline,
            Carried::Any(extensions) => Deadline::of(extensions),
        }
    }

    pub(crate) fn evidence<R>(&self, settings: &Settings<R>, started: Instant) -> Evidence {
        let carried = match &self.extensions {
            Carried::Known { key, .. } => key.as_ref(),
            Carried::Any(extensions) => IdempotencyKey::of(extensions),
        };
        Evidence::new(&self.method, carried, settings, started, |name| {
            self.headers.get(name)
        })
    }
}

impl Headers {
    fn of(map: &HeaderMap) -> Self {
        if map.len() > INLINE {
            return Self::Many(map.clone());
        }
        let mut few = [const { None }; INLINE];
        for (slot, (name, value)) in few.iter_mut().zip(map) {
            *slot = Some((name.clone(), value.clone()));
        }
        Self::Few(few)
    }

    fn to_map(&self) -> HeaderMap {
        match self {
            Self::Few(few) => Self::collect(few.iter().flatten().cloned()),
            Self::Many(map) => map.clone(),
        }
    }

    fn into_map(self) -> HeaderMap {
        match self {
            Self::Few(few) => Self::collect(few.into_iter().flatten()),
            Self::Many(map) => map,
        }
    }

    fn collect(entries: impl Iterator<Item = (HeaderName, HeaderValue)>) -> HeaderMap {
        let mut map = HeaderMap::with_capacity(INLINE);
        for (name, value) in entries {
            map.append(name, value);
        }
        map
    }

    fn get(&self, wanted: &HeaderName) -> Option<&HeaderValue> {
        match self {
            Self::Few(few) => few
                .iter()
                .flatten()
                .find_map(|(name, value)| (name == wanted).then_some(value)),
            Self::Many(map) => map.get(wanted),
        }
    }
}

impl Carried {
    fn of(extensions: &Extensions) -> Self {
        let deadline = Deadline::of(extensions);
        let priority = extensions.get::<Priority>();
        let endpoint = Endpoint::of(extensions);
        let key = IdempotencyKey::of(extensions);
        let known = usize::from(deadline.is_some())
            + usize::from(priority.is_some())
            + usize::from(endpoint.is_some())
            + usize::from(key.is_some());
        if known < extensions.len() {
            return Self::Any(extensions.clone());
        }
        Self::Known {
            deadline,
            priority: priority.copied(),
            endpoint: endpoint.cloned(),
            key: key.cloned(),
        }
    }

    fn to_map(&self) -> Extensions {
        match self {
            Self::Known {
                deadline,
                priority,
                endpoint,
                key,
            } => Self::collect(*deadline, *priority, endpoint.clone(), key.clone()),
            Self::Any(extensions) => extensions.clone(),
        }
    }

    fn into_map(self) -> Extensions {
        match self {
            Self::Known {
                deadline,
                priority,
                endpoint,
                key,
            } => Self::collect(deadline, priority, endpoint, key),
            Self::Any(extensions) => extensions,
        }
    }

    fn collect(
        deadline: Option<Deadline>,
        priority: Option<Priority>,
        endpoint: Option<Endpoint>,
        key: Option<IdempotencyKey>,
    ) -> Extensions {
        let mut extensions = Extensions::new();
        if let Some(deadline) = deadline {
            extensions.insert(deadline);
        }
        if let Some(priority) = priority {
            extensions.insert(priority);
        }
        if let Some(endpoint) = endpoint {
            extensions.insert(endpoint);
        }
        if let Some(key) = key {
            extensions.insert(key);
        }
        extensions
    }
}

/// What makes it safe to repeat a call whose outcome is unknown.
#[derive(Clone, Debug)]
pub(crate) struct Evidence {
    /// Repeating the method has the effect of doing it once.
    pub(crate) idempotent: bool,
    /// The key that the provider honours, with its life.
    pub(crate) key: Option<IdempotencyKey>,
}

impl Evidence {
    /// The evidence of a request that no copy is kept of.
    pub(crate) fn of<B, R>(request: &Request<B>, settings: &Settings<R>, started: Instant) -> Self {
        let carried = IdempotencyKey::of(request.extensions());
        Self::new(request.method(), carried, settings, started, |name| {
            request.headers().get(name)
        })
    }

    fn new<'a, R>(
        method: &Method,
        carried: Option<&IdempotencyKey>,
        settings: &Settings<R>,
        started: Instant,
        header: impl Fn(&HeaderName) -> Option<&'a HeaderValue>,
    ) -> Self {
        let in_header = || {
            let value = settings.key_headers.iter().find_map(header)?;
            // A value that can't be a key won't be taken for one by the
            // provider either.
            let key = IdempotencyKey::new(value.clone()).ok()?;
            Some(match started.checked_add(settings.key_life) {
                Some(end) => key.valid_until(end),
                None => key,
            })
        };
        Self {
            // RFC 9110, section 9.2.2.
            idempotent: method.is_idempotent(),
            key: carried.cloned().or_else(in_header),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use http::header;
    use proptest::prelude::*;

    use super::*;
    use crate::RetryPolicy;

    #[derive(Clone, Debug, PartialEq)]
    struct Foreign(u8);

    proptest! {
        #[test]
        fn a_copy_is_equal_with_few_headers_and_with_many(
            fields in prop::collection::vec(("[a-c]{1,2}", "[ -~]{0,8}", any::<bool>()), 0..20),
            foreign: bool,
        ) {
            let mut request = Request::post("https://pay.example/v1/charges?x=1").body(()).unwrap();
            *request.version_mut() = Version::HTTP_2;
            for (name, value, sensitive) in fields {
                let mut value = HeaderValue::from_str(&value).unwrap();
                value.set_sensitive(sensitive);
                request.headers_mut().append(HeaderName::try_from(name).unwrap(), value);
            }
            let endpoint = Endpoint::post("/v1/charges");
            let key: IdempotencyKey = "k-1".parse().unwrap();
            let deadline = Deadline::at(Instant::now());
            request.extensions_mut().insert(endpoint.clone());
            request.extensions_mut().insert(key.clone());
            request.extensions_mut().insert(deadline);
            request.extensions_mut().insert(Priority::High);
            if foreign {
                request.extensions_mut().insert(Foreign(1));
            }

            let head = Head::of(&request);
            prop_assert_eq!(head.deadline(), Some(deadline));
            for copy in [head.to_request(()), head.into_request(())] {
                prop_assert_eq!(copy.method(), request.method());
                prop_assert_eq!(copy.uri(), request.uri());
                prop_assert_eq!(copy.version(), request.version());
                prop_assert_eq!(copy.headers(), request.headers());
                for (name, value) in copy.headers() {
                    let same = request.headers().get_all(name).iter()
                        .any(|v| v == value && v.is_sensitive() == value.is_sensitive());
                    prop_assert!(same);
                }
                let extensions = copy.extensions();
                prop_assert_eq!(extensions.len(), request.extensions().len());
                prop_assert_eq!(Endpoint::of(extensions), Some(&endpoint));
                prop_assert_eq!(IdempotencyKey::of(extensions), Some(&key));
                prop_assert_eq!(Deadline::of(extensions), Some(deadline));
                prop_assert_eq!(Priority::of(extensions), Priority::High);
                prop_assert_eq!(extensions.get::<Foreign>().is_some(), foreign);
            }
        }
    }

    fn evidence(request: &Request<()>) -> Evidence {
        let policy = RetryPolicy::default();
        let now = Instant::now();
        let of_copy = Head::of(request).evidence(policy.settings(), now);
        let of_request = Evidence::of(request, policy.settings(), now);
        assert_eq!(of_copy.key, of_request.key);
        assert_eq!(of_copy.idempotent, of_request.idempotent);
        of_copy
    }

    #[test]
    fn methods_are_idempotent_as_rfc_9110_says() {
        for (method, idempotent) in [
            (Method::GET, true),
            (Method::HEAD, true),
            (Method::OPTIONS, true),
            (Method::TRACE, true),
            (Method::PUT, true),
            (Method::DELETE, true),
            (Method::POST, false),
            (Method::PATCH, false),
            (Method::CONNECT, false),
            (Method::from_bytes(b"SEARCH").unwrap(), false),
        ] {
            let mut request = Request::new(());
            *request.method_mut() = method.clone();
            assert_eq!(evidence(&request).idempotent, idempotent, "{method}");
        }
    }

    #[test]
    fn a_key_is_found_in_the_extensions_first_and_then_in_a_header() {
        let mut request = Request::post("/").body(()).unwrap();
        assert_eq!(evidence(&request).key, None);
        request
            .headers_mut()
            .insert("idempotency-key", HeaderValue::from_static("from-header"));
        assert_eq!(evidence(&request).key.unwrap().as_str(), "from-header");
        let key: IdempotencyKey = "from-extension".parse().unwrap();
        request.extensions_mut().insert(key.clone());
        assert_eq!(evidence(&request).key, Some(key));
    }

    #[test]
    fn a_header_that_cannot_be_a_key_is_none() {
        let mut request = Request::post("/").body(()).unwrap();
        for value in ["", "two words"] {
            request
                .headers_mut()
                .insert("idempotency-key", HeaderValue::from_static(value));
            assert_eq!(evidence(&request).key, None);
        }
    }

    #[test]
    fn a_key_in_a_header_lives_from_the_first_attempt() {
        let policy = RetryPolicy::builder()
            .key_headers([header::AUTHORIZATION])
            .key_life(Duration::from_secs(10))
            .build()
            .unwrap();
        let request = Request::post("/")
            .header(header::AUTHORIZATION, "k")
            .body(())
            .unwrap();
        let started = Instant::now();
        let key = Evidence::of(&request, policy.settings(), started)
            .key
            .unwrap();
        assert!(key.is_valid(started + Duration::from_millis(9_999)));
        assert!(!key.is_valid(started + Duration::from_secs(10)));
    }
}
