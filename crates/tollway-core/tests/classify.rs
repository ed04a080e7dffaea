//! The classify layer over services that answer as providers do.

#![allow(
    clippy::unwrap_used,
    reason = "a test that panics has failed, as it should"
)]

use std::collections::VecDeque;
use std::convert::Infallible;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Request, Response, StatusCode};
use http_body::{Body, Frame};
use http_body_util::{BodyExt, Full};
use tollway_core::{
    BodyRule, BoxError, Classify, ClassifyLayer, Fault, Phase, RetryAdvice, Rules, Scope, Test,
    Verdict,
};
use tower::{Layer, Service, ServiceExt, service_fn};

/// A body of these frames, that counts how often it was polled.
#[derive(Clone, Default)]
struct Script {
    frames: VecDeque<Result<Step, io::ErrorKind>>,
    polled: Arc<AtomicUsize>,
}

#[derive(Clone)]
enum Step {
    Data(Bytes),
    Trailers(HeaderMap),
    Pending,
}

impl Script {
    fn of(frames: impl IntoIterator<Item = Result<Step, io::ErrorKind>>) -> Self {
        Self {
            frames: frames.into_iter().collect(),
            polled: Arc::default(),
        }
    }

    fn text(chunks: &[&'static str]) -> Self {
        Self::of(
            chunks
                .iter()
                .map(|c| Ok(Step::Data(Bytes::from_static(c.as_bytes())))),
        )
    }
}

impl Body for Script {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, io::Error>>> {
        self.polled.fetch_add(1, Ordering::Relaxed);
        match self.frames.pop_front() {
            None => Poll::Ready(None),
            Some(Ok(Step::Data(data))) => Poll::Ready(Some(Ok(Frame::data(data)))),
            Some(Ok(Step::Trailers(map))) => Poll::Ready(Some(Ok(Frame::trailers(map)))),
            Some(Ok(Step::Pending)) => {
                cx.waker().wake_by_ref();
                Poll::Pending
            }
            Some(Err(kind)) => Poll::Ready(Some(Err(kind.into()))),
        }
    }
}

async fn answer(
    rules: impl Classify,
    status: u16,
    body: Script,
) -> Response<impl Body<Data = Bytes, Error = io::Error> + Unpin> {
    ClassifyLayer::new(rules)
        .layer(service_fn(move |_: Request<()>| {
            let response = Response::builder().status(status).body(body.clone());
            async { Ok::<_, Infallible>(response.unwrap()) }
        }))
        .oneshot(Request::new(()))
        .await
        .unwrap()
}

fn savvy() -> Rules {
    Rules::new()
        .body(
            BodyRule::new(200..=299, "responseCode", Test::IsNot("0".into()))
                .means(Verdict::Rejected),
        )
        .body(BodyRule::new(200..=299, "responseCode", Test::Missing))
        .body(BodyRule::new(429..=429, "message", Test::Present).delay_after("Try again in"))
}

#[tokio::test]
async fn the_verdict_stands_in_the_extensions_unless_the_status_says_it_all() {
    let response = answer(Rules::new(), 404, Script::default()).await;
    assert_eq!(Verdict::of(response.extensions()), Some(Verdict::Rejected));
    let response = answer(Rules::new(), 201, Script::default()).await;
    assert!(response.extensions().is_empty());
    assert_eq!(Verdict::of_response(&response), Verdict::Done);
}

#[tokio::test]
async fn a_plain_success_overrules_what_was_said_below() {
    let inner = service_fn(|_: Request<()>| async {
        let mut response = Response::new(Script::default());
        response.extensions_mut().insert(Verdict::Unknown);
        Ok::<_, Infallible>(response)
    });
    let outer = ClassifyLayer::new(Rules::new()).layer(inner);
    let response = outer.oneshot(Request::new(())).await.unwrap();
    assert_eq!(Verdict::of_response(&response), Verdict::Done);
}

/// "Done before", for one, would make a success of the failure that comes next.
#[tokio::test]
async fn advice_that_was_given_below_goes_with_the_verdict_that_it_was_about() {
    let inner = BodyRule::new(409..=409, "code", Test::Missing).done_before();
    let inner = ClassifyLayer::new(Rules::new().body(inner));
    for (rules, expected) in [
        (Rules::new(), Verdict::Rejected),
        (
            Rules::new().status(StatusCode::CONFLICT, Verdict::Unknown),
            Verdict::Unknown,
        ),
    ] {
        let gateway = service_fn(|_: Request<()>| async {
            Response::builder().status(409).body(Script::default())
        });
        let stack = ClassifyLayer::new(rules).layer(inner.layer(gateway));
        let response = stack.oneshot(Request::new(())).await.unwrap();
        assert_eq!(Verdict::of_response(&response), expected);
        assert_eq!(RetryAdvice::of(response.extensions()), None);
    }
}

#[tokio::test]
async fn a_body_that_no_rule_needs_is_not_touched() {
    let body = Script::text(&["anything"]);
    let polled = Arc::clone(&body.polled);
    let response = answer(savvy(), 404, body).await;
    assert_eq!(polled.load(Ordering::Relaxed), 0);
    assert_eq!(Verdict::of(response.extensions()), Some(Verdict::Rejected));
}

#[tokio::test]
async fn a_body_in_pieces_is_understood_and_handed_on_frame_for_frame() {
    let mut trailers = HeaderMap::new();
    trailers.insert("x-sum", HeaderValue::from_static("1"));
    let mut body = Script::text(&[r#"{"respon"#, "", r#"seCode":"#, "51}"]);
    body.frames.insert(1, Ok(Step::Pending));
    body.frames.push_back(Ok(Step::Trailers(trailers.clone())));

    let response = answer(savvy(), 200, body).await;
    assert_eq!(Verdict::of(response.extensions()), Some(Verdict::Rejected));
    assert_eq!(response.body().size_hint().lower(), 19);
    let body = response.into_body().collect().await.unwrap();
    assert_eq!(body.trailers(), Some(&trailers));
    assert_eq!(body.to_bytes(), r#"{"responseCode":51}"#);
}

/// Of a body that was read to its end, everything is still to be handed on.
#[tokio::test]
async fn a_body_that_was_read_is_at_its_end_only_once_it_was_handed_on() {
    let text = r#"{"responseCode":0}"#;
    let service = ClassifyLayer::new(savvy()).layer(service_fn(move |_: Request<()>| async move {
        Ok::<_, Infallible>(Response::new(Full::<Bytes>::from(text)))
    }));
    let response = service.oneshot(Request::new(())).await.unwrap();
    let mut body = response.into_body();
    assert!(!body.is_end_stream());
    assert_eq!(body.size_hint().exact(), Some(text.len() as u64));
    let frame = body.frame().await.unwrap().unwrap();
    assert_eq!(frame.into_data().unwrap(), text);
    assert!(body.is_end_stream());
    assert_eq!(body.size_hint().exact(), Some(0));
    assert!(body.frame().await.is_none());
}

#[tokio::test]
async fn an_error_in_the_body_comes_to_the_caller_where_it_came() {
    let mut body = Script::text(&[r#"{"responseCo"#]);
    body.frames.push_back(Err(io::ErrorKind::ConnectionReset));
    // A body that failed isn't asked for more.
    body.frames.push_back(Err(io::ErrorKind::NotConnected));
    let polled = Arc::clone(&body.polled);
    let response = answer(savvy(), 200, body).await;
    assert_eq!(polled.load(Ordering::Relaxed), 2);
    assert_eq!(Verdict::of(response.extensions()), Some(Verdict::Unknown));

    let mut body = response.into_body();
    let first = body.frame().await.unwrap().unwrap();
    assert_eq!(first.into_data().unwrap(), r#"{"responseCo"#);
    let error = body.frame().await.unwrap().unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);
}

/// A body that broke may have been about to say what the rule asks for.
#[tokio::test]
async fn a_body_that_breaks_before_its_rule_is_decided_leaves_the_outcome_unknown() {
    let rules = || {
        let failed = BodyRule::new(200..=200, "status", Test::Is("failed".into()));
        let duplicate = BodyRule::new(409..=409, "code", Test::Is("DUPLICATE".into()));
        Rules::new()
            .body(failed.means(Verdict::Rejected))
            .body(duplicate.done_before())
            .body(BodyRule::new(429..=429, "message", Test::Present).delay_after("in"))
    };
    let throttled = Verdict::of_status(StatusCode::TOO_MANY_REQUESTS);
    for (status, text, breaks, verdict, advice) in [
        (200, r#"{"sta"#, true, Verdict::Unknown, None),
        (200, r#"{"status":"paid","#, true, Verdict::Done, None),
        (200, r#"{"status":"failed","#, true, Verdict::Rejected, None),
        // Whole, if not what was expected.
        (200, r#"{"sta"#, false, Verdict::Done, None),
        (409, "", true, Verdict::Unknown, Some(RetryAdvice::Never)),
        (
            409,
            "<html>",
            false,
            Verdict::Unknown,
            Some(RetryAdvice::Never),
        ),
        // Of these the status says enough, or all.
        (429, "", true, throttled, None),
        (404, "", true, Verdict::Rejected, None),
    ] {
        let mut body = Script::text(&[text]);
        if breaks {
            body.frames.push_back(Err(io::ErrorKind::ConnectionReset));
        }
        let response = answer(rules(), status, body).await;
        assert_eq!(Verdict::of_response(&response), verdict, "{status} {text}");
        let advised = RetryAdvice::of(response.extensions());
        assert_eq!(advised, advice, "{status} {text}");
    }
}

/// The first rule that holds counts: of a body that broke, what a later one found
/// says nothing while an earlier one may have held.
#[tokio::test]
async fn of_a_body_that_breaks_no_rule_speaks_before_those_in_front_of_it_are_decided() {
    let rule = |path: &'static str, test| BodyRule::new(200..=409, path, test);
    let rules = || {
        Rules::new()
            .body(rule("state", Test::Is("12".into())).means(Verdict::Rejected))
            .body(rule("id", Test::Missing).means(Verdict::NO_EFFECT))
            .body(rule("code", Test::Is("DUPLICATE".into())).done_before())
            .body(rule("id", Test::Present).means(Verdict::Done))
    };
    let never = Some(RetryAdvice::Never);
    for (text, breaks, verdict, advice) in [
        // As it may go on: a state that is refused, or another.
        (r#"{"code":1,"id":"a","sta"#, true, Verdict::Unknown, None),
        (
            r#"{"code":1,"id":"a","state":1"#,
            true,
            Verdict::Unknown,
            None,
        ),
        (
            r#"{"code":1,"id":"a","state":12"#,
            true,
            Verdict::Unknown,
            None,
        ),
        (r#"{"code":"DUPLICATE","sta"#, true, Verdict::Unknown, never),
        (
            r#"{"code":1,"id":"a","state":12,"#,
            true,
            Verdict::Rejected,
            None,
        ),
        (
            r#"{"code":1,"id":"a","state":1,"#,
            true,
            Verdict::Done,
            None,
        ),
        // An identifier that has yet to come isn't missing.
        (r#"{"code":1,"state":1,"#, true, Verdict::Unknown, None),
        (r#"{"code":1,"state":1}"#, false, Verdict::NO_EFFECT, None),
        (r#"{"state":1,"id":"a","#, true, Verdict::Unknown, never),
    ] {
        let mut body = Script::text(&[text]);
        if breaks {
            body.frames.push_back(Err(io::ErrorKind::ConnectionReset));
        }
        let response = answer(rules(), 200, body).await;
        let read = (
            Verdict::of_response(&response),
            RetryAdvice::of(response.extensions()),
        );
        assert_eq!(read, (verdict, advice), "{text}");
    }
    // Wherever it breaks, it says what it would have said, or that nobody knows.
    for text in [
        r#"{"code":1,"id":"a","state":12}"#,
        r#"{"id":"a","code":"DUPLICATE","state":1}"#,
        r#"{"state":-123.5e+1,"code":"C"}"#,
        r#"{"state":1,"code":true,"id":7}"#,
    ] {
        let whole = answer(rules(), 200, Script::text(&[text])).await;
        let whole = Verdict::of_response(&whole);
        for at in 0..text.len() {
            let mut body = Script::text(&[&text[..at]]);
            body.frames.push_back(Err(io::ErrorKind::ConnectionReset));
            let broken = Verdict::of_response(&answer(rules(), 200, body).await);
            assert!(
                broken == whole || broken == Verdict::Unknown,
                "{at}, {text}"
            );
        }
    }
}

#[tokio::test]
async fn at_most_the_bound_is_read_and_the_rest_flows_on() {
    let chunk = Bytes::from(vec![b' '; 1024]);
    let body = Script::of(std::iter::repeat_n(Ok(Step::Data(chunk)), 1000));
    let polled = Arc::clone(&body.polled);
    let response = answer(savvy(), 200, body).await;
    assert_eq!(polled.load(Ordering::Relaxed), 64);
    assert_eq!(Verdict::of(response.extensions()), Some(Verdict::Unknown));
    let body = response.into_body().collect().await.unwrap().to_bytes();
    assert_eq!(body.len(), 1000 * 1024);
}

#[tokio::test]
async fn a_body_of_empty_frames_is_given_up() {
    let body = Script::of(std::iter::repeat_n(Ok(Step::Data(Bytes::new())), 100_000));
    let polled = Arc::clone(&body.polled);
    let response = answer(savvy(), 200, body).await;
    assert_eq!(Verdict::of(response.extensions()), Some(Verdict::Unknown));
    assert!(polled.load(Ordering::Relaxed) <= 1024);
}

#[tokio::test]
async fn one_frame_above_the_bound_is_handed_on_whole() {
    let mut text = r#"{"responseCode":0,"pad":""#.to_owned();
    text.push_str(&"x".repeat(100_000));
    let body = Script::of([Ok(Step::Data(text.clone().into()))]);
    let response = answer(savvy(), 200, body).await;
    assert_eq!(Verdict::of_response(&response), Verdict::Done);
    assert_eq!(
        response.into_body().collect().await.unwrap().to_bytes(),
        text
    );
}

#[tokio::test]
async fn the_delay_in_a_savvy_429_is_read() {
    let body = Script::text(&[
        r#"{"statusCode":429,"message":"Rate limit is exceeded. Try again in 19 seconds."}"#,
    ]);
    let response = answer(savvy(), 429, body).await;
    assert_eq!(
        Verdict::of(response.extensions()),
        Some(Verdict::NotExecuted {
            retry_after: Some(Duration::from_secs(19)),
            scope: Scope::Unspecified
        })
    );
}

#[tokio::test]
async fn advice_stands_beside_the_verdict() {
    let response = answer(Rules::new(), 425, Script::default()).await;
    assert_eq!(
        RetryAdvice::of(response.extensions()),
        Some(RetryAdvice::Once)
    );
}

/// Savvy's rules, over a client whose connect errors are plain I/O errors.
fn over_a_client() -> Rules {
    savvy().connect_errors(|error| {
        let error = error.downcast_ref::<io::Error>();
        error.is_some_and(|error| error.kind() == io::ErrorKind::ConnectionRefused)
    })
}

async fn failure(kind: io::ErrorKind) -> BoxError {
    ClassifyLayer::new(over_a_client())
        .layer(service_fn(move |_: Request<()>| async move {
            Err::<Response<Full<Bytes>>, _>(io::Error::from(kind))
        }))
        .oneshot(Request::new(()))
        .await
        .unwrap_err()
}

#[tokio::test]
async fn another_clients_connect_error_had_no_effect() {
    let error = failure(io::ErrorKind::ConnectionRefused).await;
    assert_eq!(Verdict::of_error(&*error), Verdict::NO_EFFECT);
    let fault = Fault::find(&*error).unwrap();
    // A limiter gives the permit of such an attempt to the next one.
    assert_eq!(fault.phase(), Some(Phase::Connect));
    let source = std::error::Error::source(fault).unwrap();
    assert!(source.is::<io::Error>());
}

#[tokio::test]
async fn an_error_that_no_rule_knows_stays_as_it_is_and_is_unknown() {
    let error = failure(io::ErrorKind::BrokenPipe).await;
    assert!(error.is::<io::Error>());
    assert_eq!(Verdict::of_error(&*error), Verdict::Unknown);
}

#[tokio::test]
async fn dropping_the_future_while_the_body_is_read_drops_the_body() {
    let body = Script::of(std::iter::repeat_n(Ok(Step::Pending), 10));
    let held = Arc::downgrade(&body.polled);
    let mut service = ClassifyLayer::new(savvy()).layer(service_fn({
        let mut body = Some(body);
        move |_: Request<()>| {
            let response = Response::new(body.take().unwrap());
            async { Ok::<_, Infallible>(response) }
        }
    }));
    let mut future = Box::pin(service.call(Request::new(())));
    assert!(futures_pending(future.as_mut()).await);
    assert!(held.upgrade().is_some());
    drop(future);
    assert!(held.upgrade().is_none());
}

async fn futures_pending<F: Future>(mut future: Pin<&mut F>) -> bool {
    std::future::poll_fn(|cx| Poll::Ready(future.as_mut().poll(cx).is_pending())).await
}
