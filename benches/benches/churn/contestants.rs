//! Those who call.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;

use http::Request;
use http_body_util::BodyExt;
use hyper_util::client::legacy::{self, connect::HttpConnector};
use hyper_util::rt::TokioExecutor;
use tollway::limit::Limits;
use tollway::{Client, profiles};
use tollway_core::{BoxError, Verdict};
use tollway_pool::{Pool, Protocol};
use tower::ServiceExt;

use crate::server::Version;
use crate::{Body, SENT};

/// What became of a call, as its caller sees it.
#[derive(Clone, Copy, PartialEq)]
pub(crate) enum Outcome {
    Done,
    Failed(Verdict),
}

type Calling = Pin<Box<dyn Future<Output = Outcome> + Send>>;

/// Makes one call, whoever it is.
pub(crate) type Contestant = Arc<dyn Fn(Request<Body>) -> Calling + Send + Sync>;

pub(crate) fn contestants(
    version: Version,
    keyed: bool,
) -> Result<Vec<(&'static str, Contestant)>, BoxError> {
    let mut contestants = vec![("tollway", client(version, keyed)?)];
    if !keyed {
        contestants.push(("pool", pool(version)?));
    }
    contestants.push(("hyper-util legacy", legacy(version)));
    contestants.push(("reqwest", reqwest(version)?));
    Ok(contestants)
}

/// Reads the answer of each call that `send` makes.
fn contestant<F, S, B, E>(send: F) -> Contestant
where
    F: Fn(Request<Body>) -> S + Send + Sync + 'static,
    S: Future<Output = Result<http::Response<B>, E>> + Send + 'static,
    B: hyper::body::Body<Data: Send, Error: Into<BoxError>> + Send,
    E: Into<BoxError> + Send,
{
    Arc::new(move |request| {
        let sent = send(request);
        Box::pin(async move {
            match sent.await {
                Ok(response) => outcome(response.into_body().collect().await),
                Err(error) => outcome(Err::<(), _>(error)),
            }
        })
    })
}

fn outcome<T, E: Into<BoxError>>(result: Result<T, E>) -> Outcome {
    match result {
        Ok(_) => Outcome::Done,
        Err(error) => Outcome::Failed(Verdict::of_error(&*error.into())),
    }
}

const fn protocol(version: Version) -> Protocol {
    match version {
        Version::Http1 => Protocol::Http1Only,
        Version::Http2 => Protocol::Http2Only,
    }
}

fn client(version: Version, keyed: bool) -> Result<Contestant, BoxError> {
    let mut builder = Client::builder(profiles::stripe())
        .limits(Limits::builder())
        .plain_http(true)
        .pool(|pool| pool.protocol(protocol(version)));
    if !keyed {
        builder = builder.keys(None);
    }
    let client = builder.build()?;
    Ok(contestant(move |request| {
        client.send(request.map(tollway::Body::new))
    }))
}

fn pool(version: Version) -> Result<Contestant, BoxError> {
    let pool: Pool<Body> = Pool::builder()
        .plain_http(true)
        .protocol(protocol(version))
        .build()?;
    Ok(contestant(move |request| pool.clone().oneshot(request)))
}

fn legacy(version: Version) -> Contestant {
    let client = legacy::Client::builder(TokioExecutor::new())
        .http2_only(version == Version::Http2)
        .build::<_, Body>(HttpConnector::new());
    contestant(move |request| client.request(request))
}

fn reqwest(version: Version) -> Result<Contestant, BoxError> {
    let client = match version {
        Version::Http1 => reqwest::Client::builder().http1_only(),
        Version::Http2 => reqwest::Client::builder().http2_prior_knowledge(),
    }
    .no_proxy()
    .build()?;
    Ok(Arc::new(move |request| {
        let (parts, _) = request.into_parts();
        let sent = client
            .request(parts.method, parts.uri.to_string())
            .headers(parts.headers)
            .body(SENT)
            .send();
        Box::pin(async move {
            match sent.await {
                Ok(response) => outcome(response.bytes().await),
                Err(error) => outcome(Err::<(), _>(error)),
            }
        })
    }))
}
