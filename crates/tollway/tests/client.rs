//! The client over real sockets and the simulated gateways.

#![allow(
    clippy::unwrap_used,
    reason = "a test that panics has failed, as it should"
)]

use std::error::Error as _;
use std::pin::{Pin, pin};
use std::sync::{Arc, Mutex};
use std::task::Poll;
use std::time::Duration;

use bytes::Bytes;
use http::{Method, Request, StatusCode, Version};
use http_body::Frame;
use http_body_util::BodyExt;
use tokio::time::{Instant, sleep, timeout};
use tollway::core::{BodyRule, Deadline, Endpoint, IdempotencyKey, Phase, Rules, Test, Verdict};
use tollway::idempotency::Dialect;
use tollway::limit::{Call, Limits, Quota, Shape};
use tollway::pool::connect::Tcp;
use tollway::pool::{ConnectionInfo, Protocol};
use tollway::retry::{Attempts, BackOff, RetryPolicy, Stop};
use tollway::timeout::AttemptTimeout;
use tollway::{Body, Client, ClientBuilder, Profile, ResponseBody, ResponseFuture, profiles};
use tollway_sim::{Fault, Faults, Gateway, Provider};
use tower::{Service, ServiceExt};
use tracing::field::{Field, Visit};
use tracing::span::{Attributes, Id, Record};
use tracing::{Event, Subscriber};
use tracing_subscriber::Layer;
use tracing_subscriber::layer::{Context, SubscriberExt as _};

fn all() -> [Profile; 6] {
    [
        profiles::payrix(),
        profiles::stripe(),
        profiles::stripe_sandbox(),
        profiles::modern_treasury(),
        profiles::savvy(),
        profiles::payalo(),
    ]
}

async fn stripe(faults: Faults) -> (Gateway, Client) {
    let gateway = Gateway::builder(Provider::Stripe)
        .faults(faults)
        .start()
        .await
        .unwrap();
    let client = Client::builder(profiles::stripe())
        .plain_http(true)
        .build()
        .unwrap();
    (gateway, client)
}

fn payout(gateway: &Gateway, reference: &str) -> Request<Body> {
    let body = format!("amount=1100&currency=usd&metadata[reference]={reference}");
    Request::post(format!("{}/v1/payouts", gateway.url()))
        .header("content-type", "application/x-www-form-urlencoded")
        .body(Body::from(body))
        .unwrap()
}

#[test]
fn every_profile_makes_a_client() {
    for profile in all() {
        let name = profile.name.clone();
        assert!(Client::builder(profile).build().is_ok(), "{name}");
    }
}

#[test]
fn a_client_can_be_shared() {
    fn shared<T: Clone + Send + Sync + 'static>(_: &T) {}
    let client = Client::builder(Profile::new("anybody")).build().unwrap();
    shared(&client);
}

#[test]
fn what_crosses_threads_can() {
    fn can_move<T: Send + 'static>() {}
    fn can_be_shared<T: Send + Sync + 'static>() {}
    can_move::<ResponseFuture>();
    can_move::<Body>();
    can_be_shared::<ClientBuilder>();
    can_be_shared::<Profile>();
    can_be_shared::<tollway::Error>();
    can_be_shared::<tollway::BuildError>();
    // And what is read frame by frame needs no pinning.
    fn is_easy_to_read<T: Send + Unpin + 'static>() {}
    is_easy_to_read::<ResponseBody>();
    is_easy_to_read::<Body>();
}

#[test]
fn stripe_takes_keys_on_post_and_on_delete_in_version_2() {
    let keys = profiles::stripe().keys.unwrap();
    assert!(keys.applies_to(&Method::POST, "/v1/payouts"));
    assert!(keys.applies_to(&Method::POST, "/v1/payment_intents/pi_1/confirm"));
    assert!(keys.applies_to(&Method::DELETE, "/v2/core/accounts/1"));
    assert!(!keys.applies_to(&Method::DELETE, "/v1/customers/1"));
    assert!(!keys.applies_to(&Method::GET, "/v1/payouts"));
}

#[test]
fn a_setting_without_sense_is_refused_by_name() {
    let limits = Limits::builder().every_call(Quota::per_second(0));
    let error = Client::builder(profiles::stripe())
        .limits(limits)
        .build()
        .unwrap_err();
    let text = error.to_string();
    assert!(
        text.starts_with("no client can be built: limits: "),
        "{text}"
    );
    assert!(text.contains("every call"), "{text}");

    let retry = tollway::retry::RetryPolicy::builder().max_attempts(0);
    let error = Client::builder(profiles::stripe())
        .retry(retry)
        .build()
        .unwrap_err();
    assert!(error.to_string().contains("max_attempts"), "{error}");

    for (builder, expected) in [
        (
            Client::builder(profiles::stripe()).deadline(Duration::ZERO),
            "no client can be built: deadline: zero, expected a positive duration",
        ),
        (
            Client::builder(profiles::stripe()).rules(Rules::new().body(BodyRule::new(
                200..=299,
                "/error",
                Test::Present,
            ))),
            "no client can be built: rules: path of a body rule is `/error`, \
             expected names separated by dots, such as errors.0.code",
        ),
        (
            Client::builder(profiles::stripe()).attempt_timeout(Duration::ZERO),
            "no client can be built: attempt_timeout: zero, expected a positive duration",
        ),
        (
            Client::builder(profiles::stripe())
                .attempt_timeout(AttemptTimeout::new(Duration::MAX).then(Duration::ZERO)),
            "no client can be built: attempt_timeout: zero, expected a positive duration",
        ),
        (
            Client::builder(profiles::stripe())
                .attempt_timeout(AttemptTimeout::new(Duration::MAX).body_pause(Duration::ZERO)),
            "no client can be built: attempt_timeout: zero, expected a positive duration",
        ),
    ] {
        assert_eq!(builder.build().unwrap_err().to_string(), expected);
    }
}

/// The attempts that a POST with a key gets from a gateway that fails. The key
/// stands in this header, or in the extensions.
async fn attempts(builder: ClientBuilder, header: Option<&'static str>) -> u32 {
    let gateway = Gateway::builder(Provider::Stripe)
        .faults(Faults::script(vec![Some(Fault::ErrorBefore(503)); 4]))
        .start()
        .await
        .unwrap();
    let back_off = BackOff::exponential(Duration::from_millis(1), Duration::from_millis(2));
    let retry = RetryPolicy::builder().back_off(back_off.unwrap());
    let client = builder.retry(retry).plain_http(true).build().unwrap();
    let mut request = payout(&gateway, "po-1");
    match header {
        Some(name) => _ = request.headers_mut().insert(name, "a".parse().unwrap()),
        None => {
            let key: IdempotencyKey = "a".parse().unwrap();
            request.extensions_mut().insert(key);
        }
    }
    let response = client.send(request).await.unwrap();
    let attempts = Attempts::of(response.extensions());
    attempts.unwrap().made()
}

#[tokio::test]
async fn the_retry_trusts_the_header_that_the_provider_looks_at_and_no_other() {
    let (common, own) = (Some("idempotency-key"), Some("x-request-id"));
    let of = |name: Option<&'static str>| Dialect::header(name.unwrap().parse().unwrap());
    // Payrix honours no key, wherever it stands.
    let payrix = || Client::builder(profiles::payrix());
    assert_eq!(attempts(payrix(), common).await, 1);
    assert_eq!(attempts(payrix(), None).await, 1);
    let nobody = Client::builder(Profile::new("nobody"));
    assert_eq!(attempts(nobody, common).await, 1);
    // One of another name is as good.
    let somebody = || Client::builder(Profile::new("somebody")).keys(of(own));
    assert_eq!(attempts(somebody(), own).await, 4);
    assert_eq!(attempts(somebody(), None).await, 4);
    assert_eq!(attempts(somebody(), common).await, 4, "it has its own, too");
    // Nor where it looks at one, but for other calls than this.
    let refunds = Dialect::default().endpoints([Endpoint::post("/v1/refunds")]);
    let elsewhere = || Client::builder(Profile::new("x")).keys(refunds.clone().unwrap());
    assert_eq!(attempts(elsewhere(), common).await, 1);
    assert_eq!(attempts(elsewhere(), None).await, 1);
}

#[tokio::test]
async fn a_call_is_retried_under_one_key_and_tells_its_story() {
    let (gateway, client) = stripe(Faults::script([Some(Fault::ErrorAfter(503))])).await;
    let response = client.send(payout(&gateway, "po-1")).await.unwrap();
    assert_eq!(response.status(), StatusCode::OK);
    assert_eq!(Attempts::of(response.extensions()).unwrap().made(), 2);
    let key = IdempotencyKey::of(response.extensions()).unwrap();
    let ledger = gateway.ledger();
    assert_eq!(ledger.entries[0].key.as_deref(), Some(key.as_str()));
    assert_eq!(ledger.times_applied("po-1"), 1);
}

#[tokio::test]
async fn it_is_a_tower_service_for_any_body() {
    let (gateway, mut client) = stripe(Faults::none()).await;
    let request = payout(&gateway, "po-2")
        .map(|_| String::from("amount=1100&currency=usd&metadata[reference]=po-2"));
    let response = client
        .ready_for(&request)
        .await
        .call(request)
        .await
        .unwrap();
    assert_eq!(Verdict::of_response(&response), Verdict::Done);
    assert_eq!(gateway.ledger().times_applied("po-2"), 1);
}

/// `ServiceExt::ready` can't tell which body is meant; the request does.
trait ReadyFor: Sized {
    async fn ready_for<B>(&mut self, request: &Request<B>) -> &mut Self
    where
        Self: Service<Request<B>>,
        Self::Error: std::fmt::Debug;
}

impl ReadyFor for Client {
    async fn ready_for<B>(&mut self, _: &Request<B>) -> &mut Self
    where
        Self: Service<Request<B>>,
        <Self as Service<Request<B>>>::Error: std::fmt::Debug,
    {
        ServiceExt::<Request<B>>::ready(self).await.unwrap()
    }
}

#[tokio::test]
async fn an_error_says_what_it_means_and_why() {
    let (gateway, _) = stripe(Faults::none()).await;
    let request = payout(&gateway, "po-3");
    gateway.shutdown().await;
    let retry = tollway::retry::RetryPolicy::builder().max_attempts(1);
    let client = Client::builder(profiles::stripe())
        .plain_http(true)
        .retry(retry)
        .build()
        .unwrap();
    let error = client.send(request).await.unwrap_err();
    assert!(error.is_not_executed());
    assert!(!error.is_unknown() && !error.is_timeout());
    assert_eq!(error.phase(), Some(Phase::Connect));
    assert!(error.idempotency_key().is_some());
    assert_eq!(error.attempts().unwrap().made(), 1);
    assert_eq!(error.to_string(), "the call had no effect");
    assert!(format!("{error:#}").contains("refused"), "{error:#}");
    // What a `main` shows can be read.
    assert_eq!(format!("{error:?}"), format!("Error({error:#})"));
    assert!(error.source().is_some());
}

/// What is to be logged of a call that fails.
async fn logged(builder: ClientBuilder, request: Request<Body>) -> String {
    let client = builder.plain_http(true).build().unwrap();
    format!("{:#}", client.send(request).await.unwrap_err())
}

#[tokio::test]
async fn the_line_to_log_says_each_thing_once() {
    let cut = Faults::always(Fault::ResetAfterEffect);
    let (gateway, _) = stripe(cut).await;
    let addr = gateway.addr();
    let quick = || {
        let retry = RetryPolicy::builder().max_attempts(2);
        Client::builder(profiles::stripe()).retry(retry)
    };
    let mut broken = payout(&gateway, "po-1");
    let key: IdempotencyKey = "order-4711".parse().unwrap();
    broken.extensions_mut().insert(key);
    assert_eq!(
        logged(quick(), broken).await,
        format!(
            "the call's outcome is unknown after 2 attempts (as many as the policy allows); look \
             it up before repeating it, it had IdempotencyKey(…, 10 characters): the connection \
             to {addr} broke before the response came: the request may or may not have taken \
             effect: connection error: Connection reset by peer (os error 104)"
        )
    );
    let line = logged(quick().keys(None), payout(&gateway, "po-2")).await;
    let head = "the call's outcome is unknown after 1 attempt (a retry could take effect twice, \
                since there is no idempotency key); look it up before repeating it: the conn";
    assert!(line.starts_with(head), "{line}");

    // There is nothing to look up of a look-up.
    let look_up = Request::get(format!("{}/v1/payouts", gateway.url()));
    let line = logged(quick(), look_up.body(Body::empty()).unwrap()).await;
    let head = "the call's outcome is unknown after 2 attempts (as many as the policy allows): the";
    assert!(line.starts_with(head), "{line}");

    let mut late = payout(&gateway, "po-3");
    let past = Deadline::at(Instant::now());
    late.extensions_mut().insert(past);
    assert_eq!(
        logged(quick(), late).await,
        "the call had no effect: the call's deadline had passed already; nothing was sent, so it \
         is safe to repeat"
    );
    let limits = Quota::per_hour(1).shape(Shape::Burst);
    let limits = Limits::builder().every_call(limits).build().unwrap();
    let call = Call::new(&Method::POST, "/v1/payouts");
    drop(limits.try_acquire(&call, Instant::now()).unwrap());
    let line = logged(quick().share_limits(limits), payout(&gateway, "po-3")).await;
    let head = "the call had no effect: the deadline passes before the quota has room (the wait";
    assert!(line.starts_with(head), "{line}");
    let relative = Request::post("/v1/payouts").body(Body::empty()).unwrap();
    assert_eq!(
        logged(quick(), relative).await,
        "the call was refused: the request's url names no host: it must be absolute, like \
         https://api.example.com/v1"
    );
    let savvy = Client::builder(profiles::savvy());
    assert_eq!(
        logged(savvy, payout(&gateway, "po-4")).await,
        "the call was refused: not sent: the body's field `RequestId` can't be found, because \
         the body is not a JSON object"
    );
}

/// A body that makes a call of its own as soon as it is looked at.
struct Caller {
    client: Client,
    request: Mutex<Option<Request<Body>>>,
    calls: Mutex<Vec<ResponseFuture>>,
}

impl http_body::Body for &'static Caller {
    type Data = Bytes;
    type Error = std::convert::Infallible;

    fn poll_frame(
        self: Pin<&mut Self>,
        _: &mut std::task::Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        Poll::Ready(None)
    }

    fn size_hint(&self) -> http_body::SizeHint {
        if let Some(request) = self.request.lock().unwrap().take() {
            self.calls.lock().unwrap().push(self.client.send(request));
        }
        http_body::SizeHint::with_exact(0)
    }
}

#[tokio::test]
async fn a_call_may_be_made_while_another_is() {
    let (gateway, client) = stripe(Faults::none()).await;
    let caller: &'static Caller = Box::leak(Box::new(Caller {
        client: client.clone(),
        request: Some(payout(&gateway, "inner")).into(),
        calls: Mutex::default(),
    }));
    let request = payout(&gateway, "outer").map(|_| caller);
    let outer = caller.client.send(request);
    let inner = caller.calls.lock().unwrap().pop().unwrap();
    assert_eq!(outer.await.unwrap().status(), StatusCode::BAD_REQUEST);
    assert_eq!(inner.await.unwrap().status(), StatusCode::OK);
}

/// A body whose frames come from elsewhere, from a task that has died.
struct Dying(u8);

impl http_body::Body for Dying {
    type Data = Bytes;
    type Error = std::io::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut std::task::Context<'_>,
    ) -> Poll<Option<std::io::Result<Frame<Bytes>>>> {
        self.0 += 1;
        match self.0 {
            1 => Poll::Ready(Some(Ok(Frame::data("amount=11".into())))),
            2 => panic!("a body's own"),
            // Read on, it would look whole.
            _ => Poll::Ready(None),
        }
    }
}

#[tokio::test]
async fn a_body_that_panics_fails_its_call_and_no_other() {
    let (gateway, client) = stripe(Faults::none()).await;
    let dying = payout(&gateway, "po-1").map(|_| Body::new(Dying(0)));
    let error = client.send(dying).await.unwrap_err();
    let attempts = error.attempts().unwrap();
    assert_eq!((attempts.made(), attempts.stop()), (1, Stop::NotReplayable));
    assert!(error.is_unknown());
    let response = client.send(payout(&gateway, "po-2")).await.unwrap();
    assert_eq!(response.status(), StatusCode::OK);
    response.into_body().collect().await.unwrap();
    assert_eq!(gateway.ledger().effects(), 1);
    assert_eq!(client.pool_stats().total().calls(), 0);
}

#[tokio::test]
async fn a_timeout_that_ends_the_wait_for_a_connection_says_that_nothing_was_written() {
    let (gateway, _) = stripe(Faults::none()).await;
    let client = Client::builder(profiles::stripe())
        .plain_http(true)
        .limits(Limits::builder())
        .retry(RetryPolicy::builder().max_attempts(1))
        .attempt_timeout(Duration::from_millis(500))
        .pool(|pool| pool.max_connections_per_host(1))
        .build()
        .unwrap();
    // Unread, it keeps the connection.
    let held = client.send(payout(&gateway, "po-10")).await.unwrap();
    let error = client.send(payout(&gateway, "po-11")).await.unwrap_err();
    assert!(error.is_timeout() && error.is_not_executed(), "{error:#}");
    assert_eq!(error.phase(), Some(Phase::Connect), "{error:#}");
    drop(held);
}

#[tokio::test]
async fn a_connection_that_doesn_t_come_free_in_time_is_a_timeout() {
    let hang = Fault::Hang(Duration::from_secs(60));
    let (gateway, _) = stripe(Faults::script([Some(hang)])).await;
    let retry = RetryPolicy::builder().max_attempts(1);
    let client = Client::builder(profiles::stripe())
        .plain_http(true)
        .retry(retry)
        .pool(|pool| {
            let pool = pool.max_connections_per_host(1);
            pool.acquire_timeout(Duration::from_millis(50))
        })
        .build()
        .unwrap();
    let mut hung = pin!(client.send(payout(&gateway, "po-1")));
    let mut waits = pin!(client.send(payout(&gateway, "po-2")));
    let error = tokio::select! {
        biased;
        _ = &mut hung => panic!("it hangs"),
        second = &mut waits => second.unwrap_err(),
    };
    assert!(error.is_timeout() && error.is_not_executed(), "{error:#}");
}

#[tokio::test]
async fn plain_http_is_refused_unless_asked_for() {
    let (gateway, _) = stripe(Faults::none()).await;
    let client = Client::builder(profiles::stripe()).build().unwrap();
    let error = client.send(payout(&gateway, "po-4")).await.unwrap_err();
    assert_eq!(error.verdict(), Verdict::Rejected, "{error:#}");
    assert_eq!(error.attempts().unwrap().made(), 1);
    assert_eq!(gateway.stats().connections_accepted, 0);
}

#[tokio::test]
async fn rules_and_limits_can_be_replaced() {
    let (gateway, _) = stripe(Faults::none()).await;
    let limits = Limits::builder()
        .every_call(Quota::per_second(1))
        .max_waiting(0);
    let client = Client::builder(profiles::stripe())
        .rules(Rules::new().status(StatusCode::OK, Verdict::Rejected))
        .limits(limits)
        .keys(None)
        .deadline(Duration::from_millis(500))
        .plain_http(true)
        .build()
        .unwrap();
    let response = client.send(payout(&gateway, "po-5")).await.unwrap();
    assert_eq!(Verdict::of_response(&response), Verdict::Rejected);
    assert_eq!(gateway.ledger().entries[0].key, None);
    let error = client.send(payout(&gateway, "po-6")).await.unwrap_err();
    assert!(error.is_not_executed(), "{error:#}");
    assert!(error.is_timeout(), "it would have come too late: {error:#}");
    assert_eq!(gateway.ledger().effects(), 1);
}

#[tokio::test]
async fn clients_that_share_their_limits_count_together() {
    let (gateway, _) = stripe(Faults::none()).await;
    let one_a_minute = || Limits::builder().every_call(Quota::per_minute(1));
    let builder = || {
        let builder = Client::builder(profiles::stripe()).limits(one_a_minute());
        builder.plain_http(true).deadline(Duration::from_secs(5))
    };
    let first = builder().build().unwrap();
    let limits = first.limits().clone();
    let second = builder().share_limits(limits.clone()).build().unwrap();
    let own = builder().share_limits(limits).limits(one_a_minute());
    let own = own.build().unwrap();
    first.send(payout(&gateway, "po-1")).await.unwrap();
    let error = second.send(payout(&gateway, "po-2")).await.unwrap_err();
    assert_eq!(error.phase(), Some(Phase::Permit), "{error:#}");
    own.send(payout(&gateway, "po-3")).await.unwrap();
    assert_eq!(gateway.ledger().effects(), 2);
}

#[tokio::test]
async fn what_a_profile_says_of_connections_is_heeded() {
    let gateway = Gateway::builder(Provider::Stripe).start().await.unwrap();
    let hang = Faults::script(vec![Some(Fault::Hang(Duration::from_secs(60))); 3]);
    let slow = Gateway::builder(Provider::Stripe).faults(hang);
    let slow = slow.start().await.unwrap();
    for (protocol, version) in [
        (Protocol::Http1Only, Version::HTTP_11),
        (Protocol::Http2Only, Version::HTTP_2),
    ] {
        let mut profile = profiles::stripe();
        profile.protocol = protocol;
        profile.max_connections = 2;
        profile.idle_timeout = Duration::from_millis(20);
        profile.deadline = Duration::from_millis(500);
        profile.limits = Limits::builder();
        let client = Client::builder(profile).plain_http(true).build().unwrap();
        let response = client.send(payout(&gateway, "po-1")).await.unwrap();
        let connection = ConnectionInfo::of(response.extensions()).unwrap();
        assert_eq!(connection.protocol(), version);
        drop(response.into_body().collect().await.unwrap());
        let idle = async {
            while client.pool_stats().total().open() > 0 {
                sleep(Duration::from_millis(5)).await;
            }
        };
        timeout(Duration::from_secs(10), idle).await.unwrap();
        if protocol == Protocol::Http1Only {
            let call = || client.send(payout(&slow, "po-2"));
            let calls = async { tokio::join!(call(), call(), call()) };
            let third = async {
                while client.pool_stats().total().calls() < 2 {
                    sleep(Duration::from_millis(5)).await;
                }
                client.pool_stats().total().waiting()
            };
            assert_eq!(tokio::join!(calls, third).1, 1);
        }
    }
}

#[tokio::test]
async fn a_drained_client_takes_no_more_calls() {
    let (gateway, client) = stripe(Faults::none()).await;
    client.send(payout(&gateway, "po-7")).await.unwrap();
    assert_eq!(client.drain(Duration::from_secs(5)).await, 0);
    let error = client.send(payout(&gateway, "po-8")).await.unwrap_err();
    assert!(error.is_not_executed(), "{error:#}");
    // It says so at once.
    assert_eq!(error.attempts().unwrap().made(), 1);
}

/// The fields whose numbers are unsigned. OpenTelemetry has none, and
/// tracing-opentelemetry makes texts of them, which no dashboard counts.
#[derive(Clone, Default)]
struct Unsigned(Arc<Mutex<Vec<String>>>);

impl Visit for Unsigned {
    fn record_debug(&mut self, _: &Field, _: &dyn std::fmt::Debug) {}
    fn record_u64(&mut self, field: &Field, _: u64) {
        self.0.lock().unwrap().push(field.to_string());
    }
}

impl<S: Subscriber> Layer<S> for Unsigned {
    fn on_new_span(&self, span: &Attributes<'_>, _: &Id, _: Context<'_, S>) {
        span.record(&mut self.clone());
    }

    fn on_record(&self, _: &Id, values: &Record<'_>, _: Context<'_, S>) {
        values.record(&mut self.clone());
    }

    fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
        if event.metadata().target().starts_with("tollway") {
            event.record(&mut self.clone());
        }
    }
}

#[tokio::test]
async fn a_span_tells_of_the_call_and_of_no_secret() {
    #[derive(Clone, Default)]
    struct Captured(Arc<Mutex<Vec<u8>>>);
    impl std::io::Write for Captured {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }
        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    let (gateway, client) = stripe(Faults::script([Some(Fault::ErrorAfter(503))])).await;
    let mut request = payout(&gateway, "po-9");
    request
        .headers_mut()
        .insert("authorization", "Bearer sk_secret".parse().unwrap());
    request
        .extensions_mut()
        .insert(Endpoint::post("/v1/payouts"));
    let (captured, unsigned) = (Captured::default(), Unsigned::default());
    let writer = captured.clone();
    let subscriber = tracing_subscriber::fmt()
        .with_max_level(tracing_subscriber::filter::LevelFilter::TRACE)
        .with_span_events(tracing_subscriber::fmt::format::FmtSpan::CLOSE)
        .with_ansi(false)
        .with_writer(move || writer.clone())
        .finish()
        .with(unsigned.clone());
    let guard = tracing::subscriber::set_default(subscriber);
    client.send(request).await.unwrap();
    let nothing = Request::get(format!("{}/v1/nothing", gateway.url()));
    let nothing = nothing.body(Body::empty()).unwrap();
    client.send(nothing).await.unwrap();
    let mut late = payout(&gateway, "po-10");
    let past = Deadline::at(tokio::time::Instant::now());
    late.extensions_mut().insert(past);
    client.send(late).await.unwrap_err();
    let hang = Fault::HangAfterEffect(Duration::from_secs(60));
    gateway.set_faults(Faults::always(hang)).unwrap();
    let dropped = client.send(payout(&gateway, "po-12"));
    timeout(Duration::from_millis(200), dropped)
        .await
        .unwrap_err();
    client.drain(Duration::from_secs(5)).await;
    client.send(payout(&gateway, "po-11")).await.unwrap_err();
    drop(guard);
    assert_eq!(*unsigned.0.lock().unwrap(), [""; 0]);

    let text = String::from_utf8(captured.0.lock().unwrap().clone()).unwrap();
    let mut closed = text
        .lines()
        .filter(|line| line.contains("tollway::client: close"));
    let mut next = || closed.next().unwrap();
    let (closed, missing, late) = (next(), next(), next());
    let (dropped, failed) = (next(), next());
    for field in [
        "otel.name=GET otel.kind",
        "error.type=404",
        "otel.status_code=\"ERROR\"",
    ] {
        assert!(missing.contains(field), "{field} is not in {missing}");
    }
    for absent in ["otel.status_description", "resend_count", "url.template"] {
        assert!(!missing.contains(absent), "{absent} is in {missing}");
    }
    assert!(late.contains("error.type=\"timeout\""), "{late}");
    let of_dropped = "error.type=\"dropped\" tollway.verdict=\"unknown\"";
    assert!(dropped.contains(of_dropped), "{dropped}");
    for field in [
        "error.type=\"connect\"",
        "tollway.verdict=\"not_executed\"",
        "otel.status_code=\"ERROR\"",
        "otel.status_description=the call had no effect after 1 attempt (a retry is no use): the \
         pool is being drained",
    ] {
        assert!(failed.contains(field), "{field} is not in {failed}");
    }
    assert!(!closed.contains("otel.status"), "{closed}");
    for field in [
        "call{otel.name=POST /v1/payouts otel.kind=\"client\" tollway.provider=\"stripe\" \
         http.request.method=\"POST\"",
        "network.protocol.version=\"1.1\"",
        "http.request.resend_count=1",
        "server.address=\"127.0.0.1\"",
        &format!("server.port={}", gateway.addr().port()),
        "url.template=\"/v1/payouts\"",
        "http.response.status_code=200",
        "tollway.verdict=\"done\"",
    ] {
        assert!(closed.contains(field), "{field} is not in {closed}");
    }
    assert!(!text.contains("sk_secret"), "{text}");
}

#[tokio::test]
async fn it_can_be_built_over_any_transport() {
    let gateway = Gateway::builder(Provider::Stripe).start().await.unwrap();
    let there: http::Uri = gateway.url().parse().unwrap();
    let transport = tower::service_fn(move |_: http::Uri| {
        Tcp::new(Duration::from_secs(5)).oneshot(there.clone())
    });
    let client = Client::builder(profiles::stripe())
        .plain_http(true)
        .build_over(|pool| pool.build_over(transport))
        .unwrap();
    let request = Request::get("http://pay.example/v1/payouts").body(Body::empty());
    let response = client.send(request.unwrap()).await.unwrap();
    assert_eq!(response.status(), StatusCode::OK);
}
