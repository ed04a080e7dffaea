//! A payout in each provider's words.

use std::time::Duration;

use bytes::Bytes;
use http::request::Builder;
use http::{Request, Uri};
use serde_json::{Value, json};
use tollway::Profile;
use tollway::core::{BoxError, IdempotencyKey, InvalidKey};
use tollway::idempotency::key_from_reference;
use tollway::{Body, profiles};
use tollway_sim::Provider;
use tollway_sim::rule::Rule;

use crate::file::Payout;

/// Keys and request ids are derived from the business's references, under this
/// name. A run that was interrupted and is started anew repeats them, and the
/// provider recognises what it has already seen.
const NAMESPACE: &str = "tollway-payouts";

/// What is to be known of a provider to send it payouts.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Api(pub(crate) Provider);

impl Api {
    pub(crate) fn profile(self) -> Profile {
        match self.0 {
            Provider::Payrix => profiles::payrix(),
            Provider::Stripe => profiles::stripe(),
            Provider::ModernTreasury => profiles::modern_treasury(),
            Provider::Savvy => profiles::savvy(),
            Provider::Payalo => profiles::payalo(),
        }
    }

    /// The rate that the provider allows for payouts, if it limits it.
    pub(crate) fn rule(self) -> Option<Rule> {
        let second = Duration::from_secs(1);
        Some(match self.0 {
            Provider::Payrix => Rule::sliding_log(1000, 10 * second),
            Provider::Stripe => Rule::sliding_log(15, second),
            Provider::ModernTreasury | Provider::Savvy => Rule::sliding_log(100, second),
            Provider::Payalo => return None,
        })
    }

    /// The least time in which the provider takes so many payouts.
    pub(crate) fn least_time(self, payouts: usize) -> Duration {
        let Some(rule) = self.rule() else {
            return Duration::ZERO;
        };
        let payouts = u32::try_from(payouts).unwrap_or(u32::MAX);
        rule.window() * (payouts.saturating_sub(1) / rule.limit().max(1))
    }

    /// The request that pays `payout`.
    pub(crate) fn create(
        self,
        target: &Target,
        payout: &Payout,
    ) -> Result<Request<Body>, BoxError> {
        let path = match self.0 {
            Provider::Payrix => "/txns",
            Provider::Stripe => "/v1/payouts",
            Provider::ModernTreasury => "/api/payment_orders",
            Provider::Savvy | Provider::Payalo => "/payments",
        };
        let mut request = target.request("POST", path)?;
        if let Provider::Stripe | Provider::ModernTreasury = self.0 {
            request = request.extension(key(payout)?);
        }
        let (content_type, body) = if self.0 == Provider::Stripe {
            ("application/x-www-form-urlencoded", stripe_form(payout))
        } else {
            ("application/json", self.json(payout)?.to_string())
        };
        Ok(request
            .header("content-type", content_type)
            .body(Body::from(body))?)
    }

    fn json(self, payout: &Payout) -> Result<Value, InvalidKey> {
        let Payout {
            reference,
            amount,
            currency,
            beneficiary,
        } = payout;
        Ok(match self.0 {
            Provider::Payrix => json!({
                "order": reference, "total": amount, "currency": currency, "merchant": beneficiary,
            }),
            Provider::Stripe => Value::Null,
            Provider::ModernTreasury => json!({
                "type": "ach", "direction": "credit", "amount": amount, "currency": currency,
                "receiving_account_id": beneficiary, "metadata": {"reference": reference},
            }),
            Provider::Savvy => json!({
                "RequestId": key(payout)?.as_str(),
                "Reference": reference, "Amount": amount, "Currency": currency,
                "Beneficiary": beneficiary,
            }),
            Provider::Payalo => json!({
                "merchantReference": reference, "amount": amount, "currency": currency,
                "beneficiary": beneficiary,
            }),
        })
    }

    /// The request that asks whether the payout of this reference took effect.
    pub(crate) fn look_up(
        self,
        target: &Target,
        reference: &str,
    ) -> Result<Request<Body>, BoxError> {
        // References are letters, digits, `-`, `_` and `.`: nothing to escape.
        let path = match self.0 {
            Provider::Payrix => format!("/txns?order%5Bequals%5D={reference}"),
            Provider::Stripe => format!("/v1/payouts?metadata%5Breference%5D={reference}"),
            Provider::ModernTreasury => {
                format!("/api/payment_orders?metadata%5Breference%5D={reference}")
            }
            Provider::Savvy => format!("/payments?Reference={reference}"),
            Provider::Payalo => format!("/payments/{reference}/status"),
        };
        Ok(target.request("GET", &path)?.body(Body::empty())?)
    }

    /// What the answer to a look-up says: whether there is such a payout, or
    /// `None` where it doesn't tell, or tells of another one under the same
    /// reference, which some other program has used for it.
    pub(crate) fn found(self, status: u16, body: &[u8], payout: &Payout) -> Option<bool> {
        let (list, amount) = match self.0 {
            Provider::Payrix => (Some("/response/data"), "total"),
            Provider::Stripe => (Some("/data"), "amount"),
            Provider::ModernTreasury => (Some(""), "amount"),
            Provider::Savvy => (None, "Amount"),
            Provider::Payalo => (None, "amount"),
        };
        match status {
            200 => {}
            404 if list.is_none() => return Some(false),
            _ => return None,
        }
        let body: Value = serde_json::from_slice(body).ok()?;
        let found = match list {
            Some(list) => body.pointer(list)?.as_array()?,
            None => std::slice::from_ref(&body),
        };
        let is_other = |found: &Value| match &found[amount] {
            Value::String(text) => *text != payout.amount.to_string(),
            Value::Null => false,
            number => number.as_u64() != Some(payout.amount),
        };
        if found.iter().any(is_other) {
            return None;
        }
        Some(!found.is_empty())
    }
}

fn key(payout: &Payout) -> Result<IdempotencyKey, InvalidKey> {
    key_from_reference(NAMESPACE, &payout.reference)
}

fn stripe_form(payout: &Payout) -> String {
    form_urlencoded::Serializer::new(String::new())
        .append_pair("amount", &payout.amount.to_string())
        .append_pair("currency", &payout.currency.to_ascii_lowercase())
        .append_pair("destination", &payout.beneficiary)
        .append_pair("metadata[reference]", &payout.reference)
        .finish()
}

/// Where requests go, and what all of them carry.
#[derive(Clone, Debug)]
pub(crate) struct Target {
    base: String,
    headers: http::HeaderMap,
}

impl Target {
    pub(crate) fn new(url: &str, headers: http::HeaderMap) -> Result<Self, BoxError> {
        let unusable =
            || format!("`{url}` can't be called; try https://host[:port], without a query");
        let uri: Uri = url.parse().map_err(|_| unusable())?;
        // Each request's path is put behind the base's; a query would swallow it.
        let (Some(scheme), Some(authority), None) =
            (uri.scheme_str(), uri.authority(), uri.query())
        else {
            return Err(unusable().into());
        };
        if authority.as_str().contains('@') {
            // Not repeated here: it is a secret.
            return Err("the URL has credentials in it; send them with --header".into());
        }
        match (scheme, authority.host()) {
            ("https", _) | ("http", "localhost" | "127.0.0.1" | "[::1]") => {}
            ("http", host) => {
                return Err(format!(
                    "{host}: plain HTTP is for a gateway on this machine; use https"
                )
                .into());
            }
            _ => return Err(unusable().into()),
        }
        let path = uri.path().trim_end_matches('/');
        Ok(Self {
            base: format!("{scheme}://{authority}{path}"),
            headers,
        })
    }

    pub(crate) fn is_plain(&self) -> bool {
        self.base.starts_with("http:")
    }

    fn request(&self, method: &str, path: &str) -> Result<Builder, BoxError> {
        let uri: Uri = format!("{}{path}", self.base).parse()?;
        let mut request = Request::builder().method(method).uri(uri);
        for (name, value) in &self.headers {
            request = request.header(name, value);
        }
        Ok(request)
    }
}

/// The start of a body, for a message.
pub(crate) fn snippet(body: &Bytes) -> String {
    let text = String::from_utf8_lossy(&body[..body.len().min(200)]);
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn base(url: &str) -> Result<String, String> {
        let target = Target::new(url, http::HeaderMap::new());
        target
            .map(|target| target.base)
            .map_err(|error| error.to_string())
    }

    #[test]
    fn requests_go_below_the_path_that_was_given() {
        for (url, expected) in [
            ("https://gateway.test", "https://gateway.test"),
            (
                "https://gateway.test:8443/v9/",
                "https://gateway.test:8443/v9",
            ),
            ("HTTP://127.0.0.1:8080/", "http://127.0.0.1:8080"),
            ("http://[::1]:8080", "http://[::1]:8080"),
        ] {
            assert_eq!(base(url).as_deref(), Ok(expected));
        }
        assert!(
            Target::new("HTTP://localhost:1", http::HeaderMap::new())
                .unwrap()
                .is_plain()
        );
    }

    #[test]
    fn what_would_send_payouts_elsewhere_is_refused() {
        for url in [
            "nonsense",
            "gateway.test:443",
            "ftp://gateway.test",
            "https://gateway.test/?page=1",
        ] {
            let error = base(url).unwrap_err();
            assert!(error.contains("can't be called"), "{error}");
        }
        assert!(
            base("http://gateway.test")
                .unwrap_err()
                .contains("use https")
        );
    }
}
