//! What is kept of a request, so that it can be made again.

use std::cell::RefCell;
use std::ops::{Deref, DerefMut};

use http::header::{HeaderName, HeaderValue};
use http::{Extensions, Method, Request, Uri, Version};
use tokio::time::Instant;
use tollway_core::{Deadline, Endpoint, IdempotencyKey, Priority};

use crate::policy::Settings;

/// A copy of a request's head. It shares every name and value with the request.
#[derive(Default)]
pub(crate) struct Head {
    method: Method,
    uri: Uri,
    version: Version,
    headers: Vec<(HeaderName, HeaderValue)>,
    extensions: Carried,
}

/// The extensions: those that Tollway's layers know, or else a clone of the
/// map, which costs several allocations.
enum Carried {
    Known {
        deadline: Option<Deadline>,
        priority: Option<Priority>,
        endpoint: Option<Endpoint>,
        key: Option<IdempotencyKey>,
    },
    Any(Extensions),
}

impl Head {
    fn fill<B>(&mut self, request: &Request<B>) {
        self.method.clone_from(request.method());
        self.uri.clone_from(request.uri());
        self.version = request.version();
        self.headers.reserve(request.headers().len());
        for (name, value) in request.headers() {
            self.headers.push((name.clone(), value.clone()));
        }
        self.extensions = Carried::of(request.extensions());
    }

    /// Lets go of everything but the room for headers.
    fn clear(&mut self) {
        self.method = Method::default();
        self.uri = Uri::default();
        self.headers.clear();
        self.headers.shrink_to(MAX_ROOM);
        self.extensions = Carried::default();
    }

    /// The request once more, with `body`.
    pub(crate) fn to_request<B>(&self, body: B) -> Request<B> {
        let mut request = Request::new(body);
        *request.method_mut() = self.method.clone();
        *request.uri_mut() = self.uri.clone();
        *request.version_mut() = self.version;
        request.headers_mut().reserve(self.headers.len());
        for (name, value) in &self.headers {
            request.headers_mut().append(name.clone(), value.clone());
        }
        *request.extensions_mut() = self.extensions.to_map();
        request
    }

    /// The same, for the last time. What stays behind is empty.
    pub(crate) fn take_request<B>(&mut self, body: B) -> Request<B> {
        let mut request = Request::new(body);
        *request.method_mut() = std::mem::take(&mut self.method);
        *request.uri_mut() = std::mem::take(&mut self.uri);
        *request.version_mut() = self.version;
        request.headers_mut().reserve(self.headers.len());
        for (name, value) in self.headers.drain(..) {
            request.headers_mut().append(name, value);
        }
        *request.extensions_mut() = std::mem::take(&mut self.extensions).into_map();
        request
    }

    pub(crate) fn deadline(&self) -> Option<Deadline> {
        match &self.extensions {
            Carried::Known { deadline, .. } => {
                deadline.iter().copied().chain(Deadline::held()).min()
            }
            Carried::Any(extensions) => Deadline::of(extensions),
        }
    }

    pub(crate) fn is_idempotent(&self) -> bool {
        self.method.is_idempotent()
    }

    pub(crate) fn evidence<R>(&self, settings: &Settings<R>, started: Instant) -> Evidence {
        let carried = match &self.extensions {
            Carried::Known { key, .. } => key.as_ref(),
            Carried::Any(extensions) => IdempotencyKey::of(extensions),
        };
        Evidence::new(&self.method, carried, settings, started, |wanted| {
            let field = self.headers.iter().find(|(name, _)| name == wanted)?;
            Some(&field.1)
        })
    }
}

impl Default for Carried {
    fn default() -> Self {
        Self::Known {
            deadline: None,
            priority: None,
            endpoint: None,
            key: None,
        }
    }
}

impl Carried {
    fn of(extensions: &Extensions) -> Self {
        // Looked up, the most usual first, until none is left to find.
        let mut left = extensions.len();
        let deadline = find::<Deadline>(extensions, &mut left);
        let key = find::<IdempotencyKey>(extensions, &mut left);
        let priority = find::<Priority>(extensions, &mut left);
        let endpoint = find::<Endpoint>(extensions, &mut left);
        if left > 0 {
            return Self::Any(extensions.clone());
        }
        Self::Known {
            deadline,
            priority,
            endpoint,
            key,
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

/// The extension of this type, which is counted off from those `left`.
fn find<T: Clone + Send + Sync + 'static>(extensions: &Extensions, left: &mut usize) -> Option<T> {
    if *left == 0 {
        return None;
    }
    let found = extensions.get::<T>().cloned();
    *left -= usize::from(found.is_some());
    found
}

thread_local! {
    #[expect(clippy::vec_box, reason = "the box is what is kept")]
    static SPARE: RefCell<Vec<Box<Head>>> = const { RefCell::new(Vec::new()) };
}

/// As many heads that are out of use wait on each thread for the next calls.
const MAX_SPARE: usize = 64;

/// A head that waits for the next call keeps room for as many headers.
const MAX_ROOM: usize = 16;

/// A head in a box that is used again and again.
///
/// Every call keeps a head, and hardly any needs it. As a part of the future it
/// would be the largest by far, and copied each time the future is moved; in a
/// box of its own it would cost allocations on every call. So the boxes are
/// kept, a few on each thread: a steady load allocates none.
pub(crate) struct KeptHead(Option<Box<Head>>);

impl KeptHead {
    pub(crate) fn of<B>(request: &Request<B>) -> Self {
        // Without the thread's store, which a thread that ends may have lost
        // already, a box is a box.
        let spare = SPARE.try_with(|spare| spare.try_borrow_mut().ok()?.pop());
        let mut head = spare.ok().flatten().unwrap_or_default();
        head.fill(request);
        Self(Some(head))
    }
}

impl Deref for KeptHead {
    type Target = Head;

    fn deref(&self) -> &Head {
        self.0.as_ref().expect(IN_PLACE)
    }
}

impl DerefMut for KeptHead {
    fn deref_mut(&mut self) -> &mut Head {
        self.0.as_mut().expect(IN_PLACE)
    }
}

const IN_PLACE: &str = "the box is taken out only when it is dropped";

impl Drop for KeptHead {
    fn drop(&mut self) {
        let Some(mut head) = self.0.take() else {
            return;
        };
        // What the caller's values do when they are dropped is their own: not
        // while the store is borrowed.
        head.clear();
        let _ = SPARE.try_with(|spare| {
            if let Ok(mut spare) = spare.try_borrow_mut()
                && spare.len() < MAX_SPARE
            {
                spare.push(head);
            }
        });
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
        fn a_copy_is_equal(
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

            let mut head = KeptHead::of(&request);
            prop_assert_eq!(head.deadline(), Some(deadline));
            for copy in [head.to_request(()), head.take_request(())] {
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
        let of_copy = KeptHead::of(request).evidence(policy.settings(), now);
        let of_request = Evidence::of(request, policy.settings(), now);
        assert_eq!(of_copy.key, of_request.key);
        assert_eq!(of_copy.idempotent, of_request.idempotent);
        of_copy
    }

    #[test]
    fn a_box_that_waits_holds_nothing_of_the_last_call() {
        let bytes = bytes::Bytes::from(b"secret".to_vec());
        let mut request = Request::new(());
        let value = HeaderValue::from_maybe_shared(bytes.clone()).unwrap();
        request.headers_mut().insert(header::AUTHORIZATION, value);
        let head = KeptHead::of(&request);
        assert!(!bytes.is_unique());
        drop((request, head));
        assert!(bytes.is_unique());
        // And the next call starts with an empty one.
        let head = KeptHead::of(&Request::new(()));
        assert!(head.to_request(()).headers().is_empty());
    }

    #[test]
    fn no_more_boxes_wait_than_are_worth_it() {
        let request = Request::new(());
        let heads: Vec<_> = (0..2 * MAX_SPARE).map(|_| KeptHead::of(&request)).collect();
        drop(heads);
        assert_eq!(SPARE.with_borrow(Vec::len), MAX_SPARE);
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
