//! A payout in each provider's words.

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::BodyExt;
use serde_json::{Value, json};
use tollway::core::{BoxError, Verdict};
use tollway::retry::Attempts;
use tollway::{Body, Error, Profile, ResponseBody, profiles};
use tollway_sim::wire::{Key, Matches};
use tollway_sim::{Gateway, Provider};

/// The profile of a provider.
#[must_use]
pub fn profile(provider: Provider) -> Profile {
    match provider {
        Provider::Payrix => profiles::payrix(),
        Provider::Stripe => profiles::stripe(),
        Provider::ModernTreasury => profiles::modern_treasury(),
        Provider::Savvy => profiles::savvy(),
        Provider::Payalo => profiles::payalo(),
    }
}

/// A payout of one unit under this reference. Where the provider recognises a
/// repeat by a field of the body, the reference stands there too.
#[must_use]
pub fn payout(provider: Provider, reference: &str) -> Bytes {
    let wire = provider.wire();
    let mut body = json!({
        wire.amount: 100,
        wire.currency: "eur",
        wire.beneficiary: "acct_1",
    });
    if let Key::Field(field) = wire.key {
        body[field] = reference.into();
    }
    match wire.reference {
        [outer, inner] => body[*outer][*inner] = reference.into(),
        path => body[path[0]] = reference.into(),
    }
    body.to_string().into()
}

/// The request that makes a payout.
///
/// # Errors
///
/// None, with the gateway's own URL.
pub fn pay(gateway: &Gateway, reference: &str) -> Result<Request<Body>, http::Error> {
    let provider = gateway.provider();
    Request::post(format!("{}{}", gateway.url(), provider.wire().create))
        .header("content-type", "application/json")
        .body(payout(provider, reference).into())
}

/// The request that asks for the payout of a reference.
///
/// # Errors
///
/// None, with the gateway's own URL.
pub fn look_up(gateway: &Gateway, reference: &str) -> Result<Request<Body>, http::Error> {
    let path = gateway.provider().wire().lookup(reference);
    Request::get(format!("{}{path}", gateway.url())).body(Body::empty())
}

/// Whether the answer to a look-up says that there is such a payout; `None`
/// where it doesn't tell.
#[must_use]
pub fn found(provider: Provider, status: u16, body: &[u8]) -> Option<bool> {
    match (provider.wire().matches, status) {
        (Matches::Status, 200) => Some(true),
        (Matches::Status, 404) => Some(false),
        (Matches::List(pointer), 200) => {
            let body: Value = serde_json::from_slice(body).ok()?;
            Some(!body.pointer(pointer)?.as_array()?.is_empty())
        }
        _ => None,
    }
}

/// How a call ended, as its caller sees it.
#[derive(Debug)]
pub struct Seen {
    /// What the answer, or the error, means.
    pub verdict: Verdict,
    /// The attempts made.
    pub attempts: u32,
    /// The status, if there was an answer.
    pub status: Option<u16>,
    /// The body, or why it broke off. Empty without an answer.
    pub body: Result<Bytes, BoxError>,
}

impl Seen {
    /// Reads a call's result to its end.
    pub async fn of(result: Result<Response<ResponseBody>, Error>) -> Self {
        match result {
            Ok(response) => Self {
                verdict: Verdict::of_response(&response),
                attempts: Attempts::of(response.extensions()).map_or(1, Attempts::made),
                status: Some(response.status().as_u16()),
                body: response
                    .into_body()
                    .collect()
                    .await
                    .map(http_body_util::Collected::to_bytes),
            },
            Err(error) => Self {
                verdict: error.verdict(),
                attempts: error.attempts().map_or(0, Attempts::made),
                status: None,
                body: Ok(Bytes::new()),
            },
        }
    }
}
