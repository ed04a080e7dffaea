//! A call and its answer, the same for everybody.

use bytes::Bytes;
use http::header::{AUTHORIZATION, CONTENT_TYPE, USER_AGENT};
use http::{HeaderValue, Method, Request, Uri};
use http_body_util::{BodyExt, Full};

pub(crate) type Body = Full<Bytes>;

pub(crate) const SENT: &[u8; 100] = &[b'{'; 100];
pub(crate) const ANSWER: &str =
    r#"{"id":"pi_1","object":"payment_intent","amount":2000,"currency":"usd"}"#;

/// The call, but for its host.
pub(crate) fn request(uri: Uri) -> Request<Body> {
    let mut request = Request::new(Body::new(Bytes::from_static(SENT)));
    *request.method_mut() = Method::POST;
    *request.uri_mut() = uri;
    let headers = request.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    headers.insert(AUTHORIZATION, HeaderValue::from_static("Bearer nobody"));
    headers.insert(USER_AGENT, HeaderValue::from_static("checkout/1.0"));
    request
}

/// The length of what was answered.
pub(crate) async fn read<B>(body: B) -> usize
where
    B: hyper::body::Body,
    B::Error: std::fmt::Debug,
{
    match body.collect().await {
        Ok(body) => body.to_bytes().len(),
        Err(error) => panic!("{error:?}"),
    }
}
