//! The layers composed by hand, among layers of others.
//!
//! First over hyper-util's client and over reqwest's, to a simulated gateway
//! that is made to fail, then over a plain function. tower-http's tracing,
//! sensitive headers and decompression stand among Tollway's layers: no secret
//! shows in a trace, and verdicts hold, compressed answers or not.

use std::time::Duration;

use bytes::Bytes;
use http::header::AUTHORIZATION;
use http::{Request, Response, StatusCode};
use http_body::Body;
use http_body_util::Full;
use hyper_util::client::legacy::Client;
use hyper_util::rt::TokioExecutor;
use tollway::core::{BoxError, ClassifyLayer, Verdict};
use tollway::idempotency::IdempotencyKeyLayer;
use tollway::limit::{Limits, Quota, RateLimitLayer};
use tollway::profiles;
use tollway::retry::{Attempts, RetryLayer, RetryPolicy};
use tollway::timeout::{AttemptTimeoutLayer, DeadlineLayer};
use tollway_sim::{Fault, Faults, Gateway, Provider};
use tower::{Service, ServiceBuilder, ServiceExt, service_fn};
use tower_http::compression::CompressionLayer;
use tower_http::decompression::DecompressionLayer;
use tower_http::sensitive_headers::SetSensitiveRequestHeadersLayer;
use tower_http::trace::{DefaultMakeSpan, TraceLayer};
use tracing_subscriber::fmt::MakeWriter;

async fn gateway() -> Result<Gateway, BoxError> {
    let faults = [Some(Fault::ErrorAfter(503)), Some(Fault::ResetAfterEffect)];
    let gateway = Gateway::builder(Provider::Stripe).faults(Faults::script(faults));
    Ok(gateway.start().await?)
}

async fn over_hyper_util() -> Result<(), BoxError> {
    let gateway = gateway().await?;
    let limits = Limits::builder()
        .every_call(Quota::per_second(100))
        .each_endpoint(Quota::per_second(25))
        .build()?;
    // The client knows which of its errors are connect errors. Told so, the retry
    // repeats such a call whatever its method.
    let rules = profiles::stripe().rules;

    let service = ServiceBuilder::new()
        .layer(DeadlineLayer::new(Duration::from_secs(30)))
        .layer(IdempotencyKeyLayer::new())
        .layer(RetryLayer::new(RetryPolicy::default()))
        .layer(RateLimitLayer::new(limits))
        .layer(AttemptTimeoutLayer::new(Duration::from_secs(5)))
        // A span for each attempt, headers included.
        .layer(SetSensitiveRequestHeadersLayer::new([AUTHORIZATION]))
        .layer(
            TraceLayer::new_for_http().make_span_with(
                DefaultMakeSpan::new()
                    .level(tracing::Level::INFO)
                    .include_headers(true),
            ),
        )
        .layer(ClassifyLayer::new(rules.connect_errors(|error| {
            let error = error.downcast_ref();
            error.is_some_and(hyper_util::client::legacy::Error::is_connect)
        })))
        // Below `Classify`, which reads bodies as they were before compression.
        .layer(DecompressionLayer::new())
        .service(Client::builder(TokioExecutor::new()).build_http());
    pay_once(service, &gateway).await
}

async fn over_reqwest() -> Result<(), BoxError> {
    let gateway = gateway().await?;
    // A redirect followed below the layers would be an attempt that none of
    // them knows of.
    let client = reqwest::Client::builder()
        .redirect(reqwest::redirect::Policy::none())
        .build()?;
    let rules = profiles::stripe().rules;
    let service = ServiceBuilder::new()
        .layer(DeadlineLayer::new(Duration::from_secs(30)))
        .layer(IdempotencyKeyLayer::new())
        .layer(RetryLayer::new(RetryPolicy::default()))
        .layer(AttemptTimeoutLayer::new(Duration::from_secs(5)))
        .layer(ClassifyLayer::new(rules.connect_errors(|error| {
            error.downcast_ref().is_some_and(reqwest::Error::is_connect)
        })))
        .service(service_fn(move |request| {
            through_reqwest(client.clone(), request)
        }));
    pay_once(service, &gateway).await
}

/// reqwest's client is a service too, but of requests of its own.
async fn through_reqwest<B>(
    client: reqwest::Client,
    request: Request<B>,
) -> Result<Response<reqwest::Body>, reqwest::Error>
where
    B: Body<Data = Bytes, Error: Into<BoxError>> + Send + Sync + 'static,
{
    let request = request.map(reqwest::Body::wrap).try_into()?;
    let response = client.execute(request).await.map(Response::from);
    // Its errors name the whole URL, and are kept in the story of the call.
    response.map_err(reqwest::Error::without_url)
}

/// Two failures, and then a payout: one effect, one key, three attempts.
async fn pay_once<S, B>(service: S, gateway: &Gateway) -> Result<(), BoxError>
where
    S: Service<Request<Full<Bytes>>, Response = Response<B>, Error = BoxError>,
{
    let request = Request::post(format!("{}/v1/payouts", gateway.url()))
        .header(AUTHORIZATION, "Bearer sk_test_secret")
        .header("content-type", "application/x-www-form-urlencoded")
        .body(Full::new(Bytes::from(
            "amount=1100&currency=usd&destination=ba_1&metadata[reference]=po-1",
        )))?;
    let response = service.oneshot(request).await?;

    println!(
        "{} {:?}",
        response.status(),
        Verdict::of_response(&response)
    );
    if let Some(attempts) = Attempts::of(response.extensions()) {
        for attempt in attempts.records() {
            println!("  {:?}: {:?}", attempt.verdict, attempt.outcome);
        }
    }
    let applied = gateway.ledger().times_applied("po-1");
    println!("the ledger has the payout {applied} time(s)");
    if response.status() != StatusCode::OK || applied != 1 {
        return Err("the payout didn't take effect exactly once".into());
    }
    Ok(())
}

/// An answer that is compressed, says 200, and means no.
async fn over_a_function() -> Result<(), BoxError> {
    let refuse = service_fn(|_: Request<Full<Bytes>>| async {
        let body = format!(r#"{{"responseCode":51,"pad":"{}"}}"#, " ".repeat(200));
        Ok::<_, BoxError>(Response::new(Full::new(Bytes::from(body))))
    });
    let mut service = ServiceBuilder::new()
        .layer(ClassifyLayer::new(profiles::savvy().rules))
        .layer(DecompressionLayer::new())
        .layer(CompressionLayer::new())
        .service(refuse);

    let request = Request::post("https://savvy.example/payments").body(Full::default())?;
    let response = service.ready().await?.call(request).await?;
    println!(
        "{} {:?}",
        response.status(),
        Verdict::of_response(&response)
    );
    if Verdict::of_response(&response) != Verdict::Rejected {
        return Err("a refusal was taken for a success".into());
    }
    Ok(())
}

async fn run<W>(traces: W) -> Result<(), BoxError>
where
    W: for<'a> MakeWriter<'a> + Send + Sync + 'static,
{
    let subscriber = tracing_subscriber::fmt()
        .with_max_level(tracing::Level::DEBUG)
        .with_ansi(false)
        .with_writer(traces)
        .finish();
    let guard = tracing::subscriber::set_default(subscriber);
    over_hyper_util().await?;
    over_reqwest().await?;
    over_a_function().await?;
    drop(guard);
    Ok(())
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), BoxError> {
    run(std::io::stdout).await
}

#[cfg(test)]
mod tests {
    use std::io;
    use std::sync::{Arc, Mutex};

    use super::*;

    #[derive(Clone, Default)]
    struct Captured(Arc<Mutex<Vec<u8>>>);

    impl io::Write for Captured {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[tokio::test]
    async fn it_ends_well_and_no_secret_shows_in_the_traces() {
        let captured = Captured::default();
        let traces = captured.clone();
        run(move || traces.clone()).await.unwrap();
        let text = String::from_utf8(captured.0.lock().unwrap().clone()).unwrap();
        assert!(text.contains("authorization"), "headers are traced: {text}");
        assert!(!text.contains("sk_test_secret"), "{text}");
        let keys = text.lines().filter(|line| line.contains("idempotency-key"));
        for line in keys {
            assert!(line.contains(r#""idempotency-key": Sensitive"#), "{line}");
        }
    }
}
