//! Which key a call gets, and where the caller sees it.
#![expect(clippy::unwrap_used, reason = "a test's helpers may panic")]

use std::collections::HashSet;
use std::convert::Infallible;
use std::error::Error;
use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http::header::{CONTENT_LENGTH, HeaderName, HeaderValue};
use http::{HeaderMap, Method, Request, Response, StatusCode};
use http_body::{Body as _, Frame, SizeHint};
use http_body_util::{BodyExt, Full};
use proptest::prelude::*;
use tokio::time::Instant;
use tollway_core::{BoxError, Endpoint, Fault, IdempotencyKey, Verdict};
use tollway_idempotency::{
    Dialect, IdempotencyKeyLayer, KeyBody, KeyError, key_from_reference, key_of,
};
use tower::{Layer, Service, ServiceExt, service_fn};

const KEY: HeaderName = HeaderName::from_static("idempotency-key");

/// What the inner service got.
#[derive(Clone, Default)]
struct Seen(Arc<Mutex<Vec<(http::request::Parts, Bytes)>>>);

impl Seen {
    fn header(&self, nth: usize) -> Option<HeaderValue> {
        self.0.lock().unwrap()[nth].0.headers.get(KEY).cloned()
    }

    fn extension(&self, nth: usize) -> Option<IdempotencyKey> {
        IdempotencyKey::of(&self.0.lock().unwrap()[nth].0.extensions).cloned()
    }

    fn body(&self, nth: usize) -> Bytes {
        self.0.lock().unwrap()[nth].1.clone()
    }

    fn calls(&self) -> usize {
        self.0.lock().unwrap().len()
    }

    /// A service that answers everything with `status`.
    fn answering<B>(
        &self,
        status: u16,
    ) -> impl Service<Request<KeyBody<B>>, Response = Response<()>, Error = BoxError, Future: Send> + Clone
    where
        B: http_body::Body<Data: Send> + Send + 'static,
        B::Error: Into<BoxError>,
    {
        let seen = self.clone();
        service_fn(move |request: Request<KeyBody<B>>| {
            let seen = seen.clone();
            async move {
                let (parts, body) = request.into_parts();
                let body = body.collect().await.map_err(Into::into)?.to_bytes();
                seen.0.lock().unwrap().push((parts, body));
                let status = StatusCode::from_u16(status)?;
                let mut response = Response::new(());
                *response.status_mut() = status;
                Ok::<_, BoxError>(response)
            }
        })
    }
}

fn post(body: &'static str) -> Request<Full<Bytes>> {
    Request::post("/v1/payouts").body(Full::from(body)).unwrap()
}

fn key(text: &str) -> IdempotencyKey {
    text.parse().unwrap()
}

fn with_header(text: &'static str, body: &'static str) -> Request<Full<Bytes>> {
    let mut request = post(body);
    request
        .headers_mut()
        .insert(KEY, HeaderValue::from_static(text));
    request
}

fn with_extension(key: IdempotencyKey, body: &'static str) -> Request<Full<Bytes>> {
    let mut request = post(body);
    request.extensions_mut().insert(key);
    request
}

fn refusal(error: &BoxError) -> &KeyError {
    let error: &KeyError = error.downcast_ref().unwrap();
    assert!(error.is_refused());
    error
}

mod minting {
    use super::*;

    #[tokio::test]
    async fn each_post_gets_a_uuid_of_version_7_of_its_own() {
        let seen = Seen::default();
        let service = IdempotencyKeyLayer::new().layer(seen.answering(200));
        for _ in 0..500 {
            service.clone().oneshot(post("{}")).await.unwrap();
        }
        let mut keys = HashSet::new();
        for nth in 0..500 {
            let header = seen.header(nth).unwrap();
            assert!(header.is_sensitive());
            let uuid = uuid::Uuid::parse_str(header.to_str().unwrap()).unwrap();
            assert_eq!(uuid.get_version_num(), 7);
            assert!(keys.insert(uuid), "the same key twice");
            assert_eq!(seen.extension(nth), None, "the header says it all");
        }
    }

    #[tokio::test]
    async fn keys_made_by_many_threads_differ() {
        let threads: Vec<_> = (0..4)
            .map(|_| {
                std::thread::spawn(|| {
                    use tollway_idempotency::{KeyGenerator, UuidV7};
                    let keys = (0..5000).map(|_| UuidV7.generate().unwrap());
                    keys.collect::<Vec<_>>()
                })
            })
            .collect();
        let keys = threads.into_iter().flat_map(|t| t.join().unwrap());
        assert_eq!(keys.collect::<HashSet<_>>().len(), 20_000);
    }

    #[tokio::test]
    async fn other_methods_pass_untouched() {
        let seen = Seen::default();
        let service = IdempotencyKeyLayer::new().layer(seen.answering(500));
        let request = Request::get("/").body(Full::<Bytes>::from("x")).unwrap();
        let response = service.oneshot(request).await.unwrap();
        assert_eq!(seen.header(0), None);
        assert_eq!(seen.body(0), "x");
        assert_eq!(IdempotencyKey::of(response.extensions()), None);
    }

    #[tokio::test]
    async fn a_key_in_the_extensions_goes_no_further_where_the_provider_would_not_see_it() {
        let seen = Seen::default();
        let service = IdempotencyKeyLayer::new().layer(seen.answering(200));
        let mut request = with_extension(key("mine"), "");
        *request.method_mut() = Method::PATCH;
        service.oneshot(request).await.unwrap();
        assert_eq!(seen.header(0), None);
        assert_eq!(seen.extension(0), None, "a retry would trust it");
    }

    #[tokio::test]
    async fn a_key_in_a_header_that_the_provider_does_not_look_at_is_said_to_be_dead() {
        let seen = Seen::default();
        let service = IdempotencyKeyLayer::new().layer(seen.answering(200));
        for method in [Method::PATCH, Method::GET] {
            let mut request = with_header("mine", "");
            *request.method_mut() = method;
            service.clone().oneshot(request).await.unwrap();
        }
        assert_eq!(seen.header(0).unwrap(), "mine", "it is the caller's");
        let told = seen.extension(0).expect("a retry would trust the header");
        assert!(!told.is_valid(Instant::now()));
        // Nothing hangs on the key of a call that only reads.
        assert_eq!(seen.header(1).unwrap(), "mine");
        assert_eq!(seen.extension(1), None);
    }

    #[tokio::test]
    async fn the_generator_is_injected() {
        let seen = Seen::default();
        let service = IdempotencyKeyLayer::new()
            .generator(|| "fixed".parse())
            .layer(seen.answering(200));
        service.oneshot(post("{}")).await.unwrap();
        assert_eq!(seen.header(0).unwrap(), "fixed");
    }

    #[tokio::test]
    async fn a_generator_that_fails_refuses_the_call() {
        let seen = Seen::default();
        for (text, dialect) in [
            ("", Dialect::default()),
            ("not visible", Dialect::default()),
            ("longer-than-ten", Dialect::default().max_len(10)),
        ] {
            let service = IdempotencyKeyLayer::new()
                .dialect(dialect)
                .generator(move || text.parse())
                .layer(seen.answering(200));
            let error = service.oneshot(post("{}")).await.unwrap_err();
            refusal(&error);
            assert_eq!(Verdict::of_error(&*error), Verdict::Rejected);
        }
        assert_eq!(seen.calls(), 0);
    }

    #[tokio::test]
    async fn a_uuid_that_is_too_long_for_the_provider_is_not_sent() {
        for (longest, calls) in [(35, 0), (36, 1)] {
            let seen = Seen::default();
            let service = IdempotencyKeyLayer::new()
                .dialect(Dialect::default().max_len(longest))
                .layer(seen.answering(200));
            let _ = service.oneshot(post("{}")).await;
            assert_eq!(seen.calls(), calls, "{longest}");
        }
    }

    #[tokio::test]
    async fn endpoints_decide_where_they_are_given() {
        let seen = Seen::default();
        let dialect = Dialect::default()
            .endpoints([
                Endpoint::post("/v1/{*path}"),
                Endpoint::delete("/v2/{*path}"),
            ])
            .unwrap();
        let service = IdempotencyKeyLayer::new()
            .dialect(dialect)
            .layer(seen.answering(200));
        let calls = [
            (Method::POST, "/v1/a", true),
            (Method::POST, "/v2/a", false),
            (Method::DELETE, "/v2/a", true),
            (Method::DELETE, "/v1/a", false),
        ];
        for (nth, (method, path, has)) in calls.into_iter().enumerate() {
            let request = Request::builder().method(method).uri(path);
            let request = request.body(Full::<Bytes>::default()).unwrap();
            service.clone().oneshot(request).await.unwrap();
            assert_eq!(seen.header(nth).is_some(), has, "{path}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_short_life_is_told_to_the_retry() {
        let seen = Seen::default();
        let hour = Duration::from_secs(3600);
        let service = IdempotencyKeyLayer::new()
            .dialect(Dialect::default().life(hour))
            .layer(seen.answering(200));
        service.oneshot(post("{}")).await.unwrap();
        let key = seen.extension(0).unwrap();
        assert_eq!(key.header_value(), seen.header(0).unwrap());
        let end = Instant::now() + hour;
        assert!(key.is_valid(end - Duration::from_secs(1)));
        assert!(!key.is_valid(end));
    }

    #[tokio::test]
    async fn a_stream_is_never_held_back() {
        struct Frames(Vec<&'static str>);
        impl http_body::Body for Frames {
            type Data = Bytes;
            type Error = Infallible;
            fn poll_frame(
                mut self: std::pin::Pin<&mut Self>,
                _: &mut std::task::Context<'_>,
            ) -> std::task::Poll<Option<Result<http_body::Frame<Bytes>, Infallible>>> {
                let data = self.0.pop();
                let frame = data.map(|data| Ok(http_body::Frame::data(Bytes::from(data))));
                std::task::Poll::Ready(frame)
            }
        }
        let seen = Seen::default();
        let service = IdempotencyKeyLayer::new().layer(seen.answering(200));
        let request = Request::post("/").header(KEY, "mine");
        let request = request.body(Frames(vec!["b", "a"])).unwrap();
        let mut service = service;
        let call = service.ready().await.unwrap().call(request);
        // It was called at once, without a poll for the body.
        call.await.unwrap();
        assert_eq!(seen.body(0), "ab");
    }
}

mod given {
    use super::*;

    #[tokio::test]
    async fn a_key_in_the_header_is_kept_as_it_is() {
        let seen = Seen::default();
        let service = IdempotencyKeyLayer::new().layer(seen.answering(200));
        service.oneshot(with_header("mine", "{}")).await.unwrap();
        assert_eq!(seen.header(0).unwrap(), "mine");
        assert_eq!(seen.body(0), "{}");
        assert_eq!(seen.extension(0), None);
    }

    #[tokio::test]
    async fn a_key_in_the_extensions_is_written_into_the_header() {
        for (dialect, header) in [
            (Dialect::default(), "mine"),
            (Dialect::quoted_header(KEY), "\"mine\""),
        ] {
            let seen = Seen::default();
            let service = IdempotencyKeyLayer::new()
                .dialect(dialect)
                .layer(seen.answering(200));
            let request = with_extension(key("mine"), "{}");
            service.oneshot(request).await.unwrap();
            assert_eq!(seen.header(0).unwrap(), header);
            assert_eq!(seen.extension(0).unwrap().as_str(), "mine");
        }
    }

    #[tokio::test]
    async fn whoever_chose_it_a_key_in_a_header_is_sensitive() {
        for (dialect, written) in [
            (Dialect::default(), "mine"),
            (Dialect::quoted_header(KEY), "\"mine\""),
        ] {
            let seen = Seen::default();
            let service = IdempotencyKeyLayer::new()
                .dialect(dialect)
                .layer(seen.answering(200));
            for request in [
                post(""),
                with_header(written, ""),
                with_extension(key("mine"), ""),
            ] {
                service.clone().oneshot(request).await.unwrap();
            }
            for nth in 0..3 {
                assert!(seen.header(nth).unwrap().is_sensitive(), "{nth}");
            }
        }
    }

    #[tokio::test]
    async fn what_is_no_key_or_not_one_is_refused_before_it_leaves() {
        let seen = Seen::default();
        let service = IdempotencyKeyLayer::new()
            .dialect(Dialect::default().max_len(10))
            .layer(seen.answering(200));
        let mut twice = with_header("a", "");
        twice
            .headers_mut()
            .append(KEY, HeaderValue::from_static("a"));
        let mut other = with_header("a", "");
        other.extensions_mut().insert(key("b"));
        for request in [
            with_header("", ""),
            with_header("has a space", ""),
            with_header("elevenchars", ""),
            with_extension(key("elevenchars"), ""),
            twice,
            other,
        ] {
            let error = service.clone().oneshot(request).await.unwrap_err();
            let error = refusal(&error);
            assert_eq!(Verdict::of_error(error), Verdict::Rejected);
            assert!(!error.to_string().contains("elevenchars"), "it is a secret");
        }
        assert_eq!(seen.calls(), 0);
    }

    #[tokio::test(start_paused = true)]
    async fn the_end_of_its_life_that_the_caller_knows_stays() {
        let seen = Seen::default();
        let service = IdempotencyKeyLayer::new().layer(seen.answering(200));
        let end = Instant::now() + Duration::from_secs(60);
        let request = with_extension(key("mine").valid_until(end), "");
        service.clone().oneshot(request.clone()).await.unwrap();
        assert!(!seen.extension(0).unwrap().is_valid(end));

        tokio::time::advance(Duration::from_secs(60)).await;
        let error = service.oneshot(request).await.unwrap_err();
        assert!(refusal(&error).is_expired());
        assert_eq!(Verdict::of_error(&*error), Verdict::Unknown);
        assert_eq!(seen.calls(), 1);
    }

    #[test]
    fn a_reference_gives_the_same_key_for_ever() {
        // These texts are a promise to programs that were restarted, perhaps
        // with another version of this crate.
        let key = |namespace, reference| {
            let key = key_from_reference(namespace, reference).unwrap();
            key.as_str().to_owned()
        };
        assert_eq!(key("payout", "order-4711"), PAYOUT_4711);
        assert_ne!(key("refund", "order-4711"), PAYOUT_4711);
        assert_ne!(key("payout", "order-4712"), PAYOUT_4711);
        assert_ne!(key("payoutorder", "-4711"), PAYOUT_4711);
        assert_ne!(key("", "payoutorder-4711"), PAYOUT_4711);
        assert!(key_from_reference("payout", "").is_err());
    }

    const PAYOUT_4711: &str = "c88b1ed1-2ec0-5acd-96b0-b8f4e71b2a83";
}

mod answers {
    use super::*;

    #[tokio::test]
    async fn every_answer_but_success_carries_the_key() {
        for (status, carries) in [(200, false), (400, true), (429, true), (500, true)] {
            let seen = Seen::default();
            let service = IdempotencyKeyLayer::new().layer(seen.answering(status));
            let response = service.oneshot(post("{}")).await.unwrap();
            let key = IdempotencyKey::of(response.extensions());
            assert_eq!(key.is_some(), carries, "{status}");
            if let Some(key) = key {
                assert_eq!(key.header_value(), seen.header(0).unwrap());
            }
        }
    }

    #[tokio::test]
    async fn a_success_carries_it_too_where_asked() {
        let seen = Seen::default();
        let service = IdempotencyKeyLayer::new()
            .echo(true)
            .layer(seen.answering(200));
        let response = service.oneshot(post("{}")).await.unwrap();
        let key = IdempotencyKey::of(response.extensions()).unwrap();
        assert_eq!(key.header_value(), seen.header(0).unwrap());
    }

    #[tokio::test]
    async fn an_error_carries_the_key_and_means_what_it_meant() {
        #[derive(Debug)]
        struct Outer(BoxError);
        impl std::fmt::Display for Outer {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("outer")
            }
        }
        impl Error for Outer {
            fn source(&self) -> Option<&(dyn Error + 'static)> {
                Some(&*self.0)
            }
        }
        let inner = service_fn(|_: Request<KeyBody<Full<Bytes>>>| async {
            Err::<Response<()>, BoxError>(
                Fault::new(Verdict::NO_EFFECT)
                    .caused_by(io::Error::from(io::ErrorKind::ConnectionRefused))
                    .into(),
            )
        });
        let service = IdempotencyKeyLayer::new().layer(inner);
        let call = || async {
            let request = with_header("0123456789-mine", "{}");
            service.clone().oneshot(request).await.unwrap_err()
        };
        let error = call().await;
        assert!(!error.downcast_ref::<KeyError>().unwrap().is_refused());
        assert_eq!(error.to_string(), "the call had no effect");
        let wrapped: Vec<BoxError> = vec![
            error,
            Box::new(Outer(call().await)),
            Box::new(io::Error::other(call().await)),
            Box::new(Box::new(*call().await.downcast::<KeyError>().unwrap())),
        ];
        for error in wrapped {
            assert_eq!(key_of(&*error).unwrap().as_str(), "0123456789-mine");
            assert_eq!(Verdict::of_error(&*error), Verdict::NO_EFFECT);
            let mut link: Option<&dyn Error> = Some(&*error);
            let mut refused = false;
            while let Some(this) = link {
                assert!(!this.to_string().contains("0123456789"), "it is a secret");
                refused |= this
                    .downcast_ref::<io::Error>()
                    .is_some_and(|e| e.kind() == io::ErrorKind::ConnectionRefused);
                link = this.source();
            }
            assert!(refused, "the chain is whole");
        }
    }
}

/// The layers below trust what stands in the extensions, and in the header see
/// the quotes.
#[tokio::test]
async fn a_quoted_key_is_told_below_without_its_quotes() {
    let seen = Seen::default();
    let service = IdempotencyKeyLayer::new()
        .dialect(Dialect::quoted_header(KEY))
        .generator(|| "fresh".parse())
        .layer(seen.answering(200));
    for (request, text) in [
        (post("{}"), "fresh"),
        (with_header("\"mine\"", "{}"), "mine"),
        (with_header("\"more\"; v=1", "{}"), "more"),
    ] {
        service.clone().oneshot(request).await.unwrap();
        let below = seen.extension(seen.calls() - 1).unwrap();
        assert_eq!(below.as_str(), text);
        assert!(below.forgotten_at().is_some());
    }
}

/// A retry that nobody told of the header looks for keys in another.
#[tokio::test]
async fn a_key_in_a_header_of_another_name_is_told_below() {
    let seen = Seen::default();
    let name = HeaderName::from_static("x-request-key");
    let service = IdempotencyKeyLayer::new()
        .dialect(Dialect::header(name.clone()))
        .layer(seen.answering(200));
    let mut written = post("{}");
    let mine = HeaderValue::from_static("mine");
    written.headers_mut().insert(name.clone(), mine);
    for request in [post("{}"), written] {
        service.clone().oneshot(request).await.unwrap();
        let nth = seen.calls() - 1;
        let below = seen.extension(nth).unwrap();
        let header = seen.0.lock().unwrap()[nth].0.headers[&name].clone();
        assert_eq!(*below.header_value(), header);
    }
}

mod body_fields {
    use super::*;

    #[tokio::test]
    async fn the_body_goes_on_byte_for_byte_with_its_trailers() {
        type Sent = (SizeHint, Option<HeaderMap>, Bytes);
        let seen = Arc::new(Mutex::new(None::<Sent>));
        let inner = service_fn({
            let seen = Arc::clone(&seen);
            move |request: Request<KeyBody<Unsized>>| {
                let seen = Arc::clone(&seen);
                async move {
                    let key = IdempotencyKey::of(request.extensions()).unwrap();
                    assert_eq!(key.as_str(), "r-17");
                    let hint = request.body().size_hint();
                    let body = request.into_body().collect().await?;
                    *seen.lock().unwrap() = Some((hint, body.trailers().cloned(), body.to_bytes()));
                    Ok::<_, BoxError>(Response::new(()))
                }
            }
        });
        let service = IdempotencyKeyLayer::new()
            .dialect(Dialect::body_field("RequestId"))
            .layer(inner);
        let mut trailers = HeaderMap::new();
        trailers.insert("x-sum", HeaderValue::from_static("1"));
        let text = "{ \"amount\" : 1.50, \"RequestId\":\"r-17\" }";
        // Over HTTP/1.1 trailers need a body without a length.
        for (trailers, told, length) in [
            (None, false, Some(text.len() as u64)),
            (None, true, Some(text.len() as u64)),
            (Some(trailers.clone()), true, Some(text.len() as u64)),
            (Some(trailers), false, None),
        ] {
            let body = Unsized::new(text, trailers.clone(), told);
            let request = Request::post("/").body(body).unwrap();
            service.clone().oneshot(request).await.unwrap();
            let (hint, sent_trailers, body) = seen.lock().unwrap().take().unwrap();
            assert_eq!(hint.exact(), length);
            assert_eq!(hint.lower(), text.len() as u64);
            assert_eq!(sent_trailers, trailers);
            assert_eq!(body, text);
        }
    }

    /// A body that tells its length or not.
    struct Unsized {
        data: Option<Bytes>,
        trailers: Option<HeaderMap>,
        told: Option<u64>,
    }

    impl Unsized {
        fn new(text: &'static str, trailers: Option<HeaderMap>, told: bool) -> Self {
            Self {
                data: Some(text.into()),
                trailers,
                told: told.then_some(text.len() as u64),
            }
        }
    }

    impl http_body::Body for Unsized {
        type Data = Bytes;
        type Error = Infallible;

        fn poll_frame(
            mut self: Pin<&mut Self>,
            _: &mut Context<'_>,
        ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
            let data = self.data.take().map(Frame::data);
            let frame = data.or_else(|| self.trailers.take().map(Frame::trailers));
            Poll::Ready(frame.map(Ok))
        }

        fn size_hint(&self) -> SizeHint {
            self.told.map_or_else(SizeHint::new, SizeHint::with_exact)
        }
    }

    #[tokio::test]
    async fn a_log_shows_nothing_of_a_body_that_was_read() {
        let shown = Arc::new(Mutex::new(String::new()));
        let log = Arc::clone(&shown);
        let inner = service_fn(move |request: Request<KeyBody<Full<Bytes>>>| {
            *log.lock().unwrap() = format!("{request:?}");
            async { Ok::<_, BoxError>(Response::new(())) }
        });
        let service = IdempotencyKeyLayer::new()
            .dialect(Dialect::body_field("id"))
            .layer(inner);
        let request = post(r#"{"id":"secret-key-of-mine","card":"4242424242424242"}"#);
        service.oneshot(request).await.unwrap();
        let shown = shown.lock().unwrap();
        assert!(
            !shown.contains("4242") && !shown.contains("-key-"),
            "{shown}"
        );
    }

    #[tokio::test]
    async fn a_body_without_the_key_is_refused_before_it_leaves() {
        let seen = Seen::default();
        let service = IdempotencyKeyLayer::new()
            .dialect(Dialect::body_field("RequestId"))
            .layer(seen.answering(200));
        let long: &'static str = String::leak(format!("{{\"RequestId\":\"{}\"}}", "x".repeat(256)));
        let huge: &'static str = String::leak(format!(
            "{{\"RequestId\":\"x\"{}}}",
            " ".repeat(Dialect::MAX_BODY)
        ));
        for body in [
            "",
            "{}",
            "[]",
            "RequestId=1",
            r#"{"RequestId":null}"#,
            r#"{"RequestId":""}"#,
            r#"{"RequestId":"a b"}"#,
            r#"{"RequestId":"a","RequestId":"a"}"#,
            long,
            huge,
        ] {
            let error = service.clone().oneshot(post(body)).await.unwrap_err();
            refusal(&error);
            assert_eq!(Verdict::of_error(&*error), Verdict::Rejected, "{body}");
        }
        assert_eq!(seen.calls(), 0);
    }

    #[tokio::test]
    async fn a_key_in_the_extensions_and_another_in_the_body_are_refused() {
        let seen = Seen::default();
        let service = IdempotencyKeyLayer::new()
            .dialect(Dialect::body_field("RequestId").max_len(4))
            .layer(seen.answering(200));
        let body = "{\"RequestId\":\"r-17\"}";
        let same = with_extension(key("r-17"), body);
        service.clone().oneshot(same).await.unwrap();
        for refused in [
            with_extension(key("r-18"), body),
            // Longer than the provider takes.
            post("{\"RequestId\":\"r-170\"}"),
        ] {
            let error = service.clone().oneshot(refused).await.unwrap_err();
            refusal(&error);
        }
        assert_eq!(seen.calls(), 1);
    }

    #[tokio::test]
    async fn a_missing_field_is_put_in_where_asked() {
        let seen = Seen::default();
        let service = IdempotencyKeyLayer::new()
            .dialect(Dialect::inserted_body_field("RequestId"))
            .generator(|| "r-1".parse())
            .layer(seen.answering(200));
        let mut request = post(r#"{"amount":1}"#);
        request.headers_mut().insert(CONTENT_LENGTH, 12.into());
        service.clone().oneshot(request).await.unwrap();
        assert_eq!(seen.body(0), r#"{"RequestId":"r-1","amount":1}"#);
        let len = seen.0.lock().unwrap()[0].0.headers[CONTENT_LENGTH].clone();
        assert_eq!(len, seen.body(0).len().to_string());
        assert_eq!(seen.extension(0).unwrap().as_str(), "r-1");

        let given = with_extension(key("mine"), "{}");
        service.clone().oneshot(given).await.unwrap();
        assert_eq!(seen.body(1), r#"{"RequestId":"mine"}"#);

        let there = post(r#"{"RequestId":"there"}"#);
        service.clone().oneshot(there).await.unwrap();
        assert_eq!(seen.body(2), r#"{"RequestId":"there"}"#);

        let both = with_extension(key("mine"), r#"{"RequestId":"there"}"#);
        let error = service.oneshot(both).await.unwrap_err();
        refusal(&error);
    }

    /// What vouches for the body would no longer match it.
    #[tokio::test]
    async fn nothing_is_put_into_a_body_that_is_signed() {
        let seen = Seen::default();
        let service = IdempotencyKeyLayer::new()
            .dialect(Dialect::inserted_body_field("RequestId"))
            .layer(seen.answering(200));
        for name in [
            "content-digest",
            "repr-digest",
            "digest",
            "content-md5",
            "signature",
        ] {
            let sealed = |body: &'static str| {
                let mut request = with_extension(key("mine"), body);
                let value = HeaderValue::from_static("sum");
                request.headers_mut().insert(name, value);
                request
            };
            let calls = seen.calls();
            let call = service.clone().oneshot(sealed("{}"));
            let text = refusal(&call.await.unwrap_err()).to_string();
            assert!(text.contains(name), "{text}");
            assert_eq!(seen.calls(), calls);
            // With the key in it, the body stays as it is.
            let there = sealed(r#"{"RequestId":"mine"}"#);
            service.clone().oneshot(there).await.unwrap();
            assert_eq!(seen.calls(), calls + 1);
        }
        // The sum may stand behind the body.
        let inner = service_fn(|_: Request<KeyBody<Unsized>>| async {
            Ok::<_, BoxError>(Response::new(()))
        });
        let service = IdempotencyKeyLayer::new()
            .dialect(Dialect::inserted_body_field("RequestId"))
            .layer(inner);
        let mut trailers = HeaderMap::new();
        trailers.insert("content-digest", HeaderValue::from_static("sum"));
        let body = Unsized::new("{}", Some(trailers), false);
        let call = service.oneshot(Request::post("/").body(body).unwrap());
        refusal(&call.await.unwrap_err());
    }

    #[tokio::test]
    async fn a_body_that_fails_fails_the_call() {
        struct Broken;
        impl http_body::Body for Broken {
            type Data = Bytes;
            type Error = io::Error;
            fn poll_frame(
                self: Pin<&mut Self>,
                _: &mut Context<'_>,
            ) -> Poll<Option<Result<Frame<Bytes>, io::Error>>> {
                Poll::Ready(Some(Err(io::Error::other("disk"))))
            }
        }
        let seen = Seen::default();
        let service = IdempotencyKeyLayer::new()
            .dialect(Dialect::body_field("RequestId"))
            .layer(seen.answering(200));
        let request = Request::post("/").body(Broken).unwrap();
        let error = service.oneshot(request).await.unwrap_err();
        assert!(
            refusal(&error)
                .to_string()
                .ends_with("the body failed while it was read")
        );
        assert_eq!(seen.calls(), 0);
    }

    proptest! {
        #[test]
        fn no_body_makes_it_panic_or_changes_on_its_way(
            body in prop_oneof![
                prop::collection::vec(any::<u8>(), 0..200),
                "\\{\"(RequestId|a)\":\"[a-z\\\\]{0,5}\"(,\"RequestId\":[0-9\"x]{0,4})?\\}"
                    .prop_map(String::into_bytes),
            ],
        ) {
            let seen = Seen::default();
            let service = IdempotencyKeyLayer::new()
                .dialect(Dialect::body_field("RequestId"))
                .layer(seen.answering(200));
            let body = Bytes::from(body);
            let request = Request::post("/").body(Full::new(body.clone())).unwrap();
            let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
            if runtime.block_on(service.oneshot(request)).is_ok() {
                prop_assert_eq!(seen.body(0), body);
            } else {
                prop_assert_eq!(seen.calls(), 0);
            }
        }
    }
}

#[test]
fn what_crosses_threads_can() {
    fn can_be_shared<T: Send + Sync + 'static>() {}
    fn can_move<T: Send>(_: &T) {}
    can_be_shared::<KeyError>();
    can_be_shared::<Dialect>();
    can_be_shared::<IdempotencyKeyLayer>();
    fn is_easy_to_read<T: Send + Unpin + 'static>() {}
    is_easy_to_read::<KeyBody<Full<Bytes>>>();
    let seen = Seen::default();
    let mut service = IdempotencyKeyLayer::new().layer(seen.answering(200));
    can_move(&service);
    can_move(&service.call(post("{}")));
}
