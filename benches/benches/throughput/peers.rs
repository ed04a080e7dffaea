//! The clients that people use.

use bytes::Bytes;
use http::header::{AUTHORIZATION, CONTENT_TYPE, USER_AGENT};
use http::{HeaderValue, Uri};
use hyper_util::client::legacy::{self, connect::HttpConnector};
use hyper_util::rt::TokioExecutor;
use reqwest_middleware::ClientWithMiddleware;
use reqwest_retry::RetryTransientMiddleware;
use reqwest_retry::policies::ExponentialBackoff;
use tollway_core::BoxError;

use crate::callers::{Caller, Callers, Contestant};
use crate::exchange::{Body, SENT, read, request};
use crate::server::{Server, Version};

/// hyper-util's legacy client.
pub(crate) fn legacy(server: &Server) -> Result<Box<dyn Contestant>, BoxError> {
    let mut connector = HttpConnector::new();
    connector.set_nodelay(true);
    let client = legacy::Client::builder(TokioExecutor::new())
        .http2_only(server.version == Version::Http2)
        .build(connector);
    let uri = server.uri.clone();
    Callers::clones("hyper-util legacy", &Legacy { client, uri })
}

#[derive(Clone)]
struct Legacy {
    client: legacy::Client<HttpConnector, Body>,
    uri: Uri,
}

impl Caller for Legacy {
    async fn call(&mut self) -> usize {
        match self.client.request(request(self.uri.clone())).await {
            Ok(response) => read(response.into_body()).await,
            Err(error) => panic!("{error}"),
        }
    }
}

/// reqwest.
pub(crate) fn reqwest(server: &Server) -> Result<Box<dyn Contestant>, BoxError> {
    let (client, url) = (reqwest_client(server.version)?, url(server)?);
    Callers::clones("reqwest", &Reqwest { client, url })
}

/// reqwest with reqwest-retry, three times.
pub(crate) fn reqwest_retry(server: &Server) -> Result<Box<dyn Contestant>, BoxError> {
    let policy = ExponentialBackoff::builder().build_with_max_retries(3);
    let client = reqwest_middleware::ClientBuilder::new(reqwest_client(server.version)?)
        .with(RetryTransientMiddleware::new_with_policy(policy))
        .build();
    let url = url(server)?;
    Callers::clones("reqwest + reqwest-retry", &Retrying { client, url })
}

/// One for each of the two: a connection stays with its runtime.
fn reqwest_client(version: Version) -> reqwest::Result<reqwest::Client> {
    match version {
        Version::Http1 => reqwest::Client::builder().http1_only(),
        Version::Http2 => reqwest::Client::builder().http2_prior_knowledge(),
    }
    .no_proxy()
    .build()
}

fn url(server: &Server) -> Result<reqwest::Url, BoxError> {
    Ok(server.uri.to_string().parse()?)
}

/// Both clients are called alike, but have no trait in common.
macro_rules! caller_of {
    ($caller:ident, $client:ty) => {
        #[derive(Clone)]
        struct $caller {
            client: $client,
            url: reqwest::Url,
        }

        impl Caller for $caller {
            async fn call(&mut self) -> usize {
                let sent = self
                    .client
                    .post(self.url.clone())
                    .header(CONTENT_TYPE, HeaderValue::from_static("application/json"))
                    .header(AUTHORIZATION, HeaderValue::from_static("Bearer nobody"))
                    .header(USER_AGENT, HeaderValue::from_static("checkout/1.0"))
                    .body(Bytes::from_static(SENT))
                    .send();
                match sent.await {
                    Ok(response) => response.bytes().await.map_or(0, |body| body.len()),
                    Err(error) => panic!("{error}"),
                }
            }
        }
    };
}

caller_of!(Reqwest, reqwest::Client);
caller_of!(Retrying, ClientWithMiddleware);
