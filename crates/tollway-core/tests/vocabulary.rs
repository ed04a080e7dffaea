//! The small types that travel in extensions and error chains.

use std::error::Error;
use std::fmt;
use std::time::Duration;

use bytes::Bytes;
use http::{Extensions, HeaderValue, Method, StatusCode};
use http_body_util::Full;
use proptest::prelude::*;
use tokio::time::Instant;
use tollway_core::{
    Attempt, BoxError, ClassifyBody, ClassifyLayer, Deadline, Endpoint, Endpoints, Fault,
    IdempotencyKey, InvalidKey, Judgement, Phase, Priority, RetryAdvice, Rules, Scope, Verdict,
};

#[test]
fn an_id_is_recognised_as_its_template() {
    let endpoints = Endpoints::new([
        (Endpoint::post("/v1/payment_intents"), 1),
        (Endpoint::get("/v1/payment_intents/{id}"), 2),
        (Endpoint::get("/v1/payment_intents/search"), 3),
        (Endpoint::get("/files/{*path}"), 4),
    ])
    .unwrap();
    let at = |method: Method, path| endpoints.at(&method, path).map(|found| *found.value);
    assert_eq!(at(Method::POST, "/v1/payment_intents"), Some(1));
    assert_eq!(at(Method::GET, "/v1/payment_intents/pi_123"), Some(2));
    assert_eq!(at(Method::GET, "/v1/payment_intents/search"), Some(3));
    assert_eq!(at(Method::GET, "/files/a/b"), Some(4));
    assert_eq!(at(Method::GET, "/v1/payment_intents"), None);
    assert_eq!(at(Method::POST, "/v1/payment_intents/"), None);
    assert_eq!(at(Method::DELETE, "/v1/payment_intents/pi_123"), None);
}

#[test]
fn overlapping_and_malformed_templates_are_refused_by_name() {
    let refusal = |templates: [&'static str; 2]| {
        Endpoints::new(templates.map(|template| (Endpoint::get(template), ())))
            .unwrap_err()
            .to_string()
    };
    assert_eq!(
        refusal(["/a/{x}", "/a/{y}"]),
        "the endpoint `GET /a/{y}` overlaps with `/a/{x}`: a path could be either; \
         keep one of them"
    );
    assert!(refusal(["/a", "/a"]).contains("overlaps with `/a`"));
    assert!(refusal(["/a", "b"]).contains("starts with `/`"));
    assert!(refusal(["/a", "/b?c=d"]).contains("without a query"));
    for malformed in ["/b/{", "/b/{}", "/b/}"] {
        assert!(refusal(["/a", malformed]).ends_with("as in `{id}`"));
    }
    for malformed in ["/b/{x}.json", "/b/{x}{y}"] {
        assert!(refusal(["/a", malformed]).contains("a segment ends with its"));
    }
    assert!(refusal(["/a", "/b/{*x}/c"]).contains("stands at the end"));
}

#[test]
fn the_same_path_under_two_methods_is_two_endpoints() {
    let endpoints = Endpoints::new([(Endpoint::get("/p"), 1), (Endpoint::post("/p"), 2)]).unwrap();
    let found = endpoints.at(&Method::POST, "/p").unwrap();
    assert_eq!(found.endpoint, &Endpoint::post("/p"));
}

#[test]
fn absent_extensions_have_their_defaults() {
    let mut extensions = Extensions::new();
    assert_eq!(Priority::of(&extensions), Priority::Normal);
    assert_eq!(Attempt::of(&extensions), Attempt::FIRST);
    assert_eq!(Deadline::of(&extensions), None);
    assert_eq!(IdempotencyKey::of(&extensions), None);
    extensions.insert(Attempt::FIRST.next());
    assert!(Attempt::of(&extensions).is_retry());
    assert_eq!(Attempt::of(&extensions).to_string(), "2");
}

#[tokio::test(start_paused = true)]
async fn a_deadline_follows_a_paused_clock() {
    let deadline = Deadline::after(Instant::now(), Duration::from_secs(5)).unwrap();
    tokio::time::advance(Duration::from_secs(4)).await;
    assert_eq!(deadline.remaining(Instant::now()), Duration::from_secs(1));
    tokio::time::advance(Duration::from_secs(1)).await;
    assert!(deadline.has_passed(Instant::now()));
    assert_eq!(Deadline::after(Instant::now(), Duration::MAX), None);
}

#[test]
fn a_key_is_visible_ascii_of_bounded_length() {
    assert_eq!("".parse::<IdempotencyKey>(), Err(InvalidKey::Empty));
    let long = "k".repeat(256);
    assert_eq!(
        long.parse::<IdempotencyKey>(),
        Err(InvalidKey::TooLong(256))
    );
    let spaced = "a b".parse::<IdempotencyKey>();
    assert_eq!(spaced, Err(InvalidKey::Character { at: 1 }));
    let utf8 = IdempotencyKey::new(HeaderValue::from_bytes("é".as_bytes()).unwrap());
    assert_eq!(utf8, Err(InvalidKey::Character { at: 0 }));
    assert!("k".repeat(255).parse::<IdempotencyKey>().is_ok());
}

#[test]
fn a_key_does_not_show_itself_in_a_log() {
    let key: IdempotencyKey = "0192f3a4-secret-secret-secret".parse().unwrap();
    assert_eq!(format!("{key:?}"), "IdempotencyKey(0192…, 29 characters)");
    let short: IdempotencyKey = "order-17".parse().unwrap();
    assert_eq!(format!("{short:?}"), "IdempotencyKey(…, 8 characters)");
}

#[tokio::test(start_paused = true)]
async fn a_key_dies_at_its_instant() {
    let now = Instant::now();
    let key: IdempotencyKey = "k".parse().unwrap();
    assert!(key.is_valid(now));
    let key = key.valid_until(now + Duration::from_secs(1));
    assert!(key.is_valid(now));
    assert!(!key.is_valid(now + Duration::from_secs(1)));
}

#[derive(Debug)]
struct Wrap(BoxError);

impl fmt::Display for Wrap {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("wrapped")
    }
}

impl Error for Wrap {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        Some(&*self.0)
    }
}

#[test]
fn the_outermost_fault_speaks_however_deep_it_stands() {
    let inner = Fault::new(Verdict::NO_EFFECT);
    let outer = Fault::new(Verdict::Unknown)
        .in_phase(Phase::Head)
        .caused_by(Wrap(inner.into()));
    let error = Wrap(Wrap(outer.into()).into());
    assert_eq!(Verdict::of_error(&error), Verdict::Unknown);
    assert_eq!(Fault::find(&error).unwrap().phase(), Some(Phase::Head));
}

#[test]
fn an_answer_in_doubt_is_unknown_and_keeps_what_it_asks_for() {
    let delay = Duration::from_secs(7);
    let throttled = Verdict::NotExecuted {
        retry_after: Some(delay),
        scope: Scope::Unspecified,
    };
    let after = Some(RetryAdvice::After(delay));
    for (verdict, advice, expected) in [
        (throttled, None, after),
        (throttled, Some(RetryAdvice::Once), after),
        (
            throttled,
            Some(RetryAdvice::Never),
            Some(RetryAdvice::Never),
        ),
        (Verdict::Rejected, None, None),
        (Verdict::Unknown, after, after),
        (Verdict::Unknown, Some(RetryAdvice::DoneBefore), None),
    ] {
        let mut judgement = Judgement::from(verdict);
        judgement.advice = advice;
        let mut response = http::Response::new(());
        judgement.insert_into(response.extensions_mut());
        judgement.in_doubt().insert_into(response.extensions_mut());
        assert_eq!(Verdict::of_response(&response), Verdict::Unknown);
        let told = RetryAdvice::of(response.extensions());
        assert_eq!(told, expected, "{verdict:?} {advice:?}");
    }
}

#[test]
fn an_endless_chain_is_given_up() {
    #[derive(Debug)]
    struct Loop;
    impl fmt::Display for Loop {
        fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("loop")
        }
    }
    impl Error for Loop {
        fn source(&self) -> Option<&(dyn Error + 'static)> {
            Some(self)
        }
    }
    assert_eq!(Verdict::of_error(&Loop), Verdict::Unknown);
}

proptest! {
    #[test]
    fn every_status_has_a_verdict_and_only_2xx_is_done(code in 200_u16..1000) {
        let verdict = Verdict::of_status(StatusCode::from_u16(code).unwrap());
        prop_assert_eq!(verdict == Verdict::Done, code < 300);
    }

    #[test]
    fn no_template_and_no_path_make_the_matcher_panic(
        templates in prop::collection::vec(r"/?[a-b{}*/?x]{0,8}", 0..6),
        path in r"[a-bx/{}]{0,12}",
    ) {
        let entries = templates.into_iter().map(|template| (Endpoint::get(template), ()));
        if let Ok(endpoints) = Endpoints::new(entries) {
            let _ = endpoints.at(&Method::GET, &path);
        }
    }

    #[test]
    fn a_key_is_read_back_as_it_was_written(text in "[!-~]{1,255}") {
        let key: IdempotencyKey = text.parse().unwrap();
        prop_assert_eq!(key.as_str(), text);
    }
}

#[test]
fn what_crosses_threads_can() {
    fn can_be_shared<T: Send + Sync + 'static>() {}
    can_be_shared::<Attempt>();
    can_be_shared::<ClassifyLayer>();
    can_be_shared::<Deadline>();
    can_be_shared::<Endpoint>();
    can_be_shared::<Endpoints<u8>>();
    can_be_shared::<Fault>();
    can_be_shared::<IdempotencyKey>();
    can_be_shared::<Priority>();
    can_be_shared::<Rules>();
    can_be_shared::<Verdict>();
    fn is_easy_to_read<T: Send + Unpin + 'static>() {}
    is_easy_to_read::<ClassifyBody<Full<Bytes>>>();
}
