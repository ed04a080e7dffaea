//! What makes it safe to repeat a call.

use http::header::{HeaderName, HeaderValue};
use http::{Method, Request, StatusCode};
use tokio::time::Instant;
use tollway_core::{IdempotencyKey, Verdict};

use crate::policy::Settings;

/// What makes it safe to repeat a call whose outcome is unknown.
#[derive(Clone, Debug)]
pub(crate) struct Evidence {
    /// Repeating the method has the effect of doing it once.
    pub(crate) idempotent: bool,
    /// The method asks for no effect at all.
    pub(crate) safe: bool,
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

    pub(crate) fn new<'a, R>(
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
            // RFC 9110, sections 9.2.1 and 9.2.2.
            idempotent: method.is_idempotent(),
            safe: method.is_safe(),
            key: carried.cloned().or_else(in_header),
        }
    }

    /// Whether this verdict, on an answer of this status or on an error, speaks for
    /// the call's other attempts too, one of which may have had an effect.
    ///
    /// A success does. A rejection does under a key where it is [about the
    /// request](Verdict::is_about_request), which was the same each time, unless the
    /// provider keeps only what it has done under the key: an earlier attempt may be
    /// late. Without one, the effect itself can be what the repeat runs into: a 404 upon a
    /// `DELETE`, a 412 upon a `PUT`.
    pub(crate) fn is_settled_by(
        &self,
        verdict: Verdict,
        status: Option<StatusCode>,
        now: Instant,
    ) -> bool {
        let speaks = |key: &IdempotencyKey| key.is_valid(now) && !key.refuses_repeats();
        let keyed = || self.key.as_ref().is_some_and(speaks);
        match verdict {
            Verdict::Done => true,
            Verdict::Rejected => {
                self.safe || status.is_some_and(Verdict::is_about_request) && keyed()
            }
            Verdict::NotExecuted { .. } | Verdict::Unknown => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use http::header;

    use super::*;
    use crate::RetryPolicy;
    use crate::head::KeptHead;

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
