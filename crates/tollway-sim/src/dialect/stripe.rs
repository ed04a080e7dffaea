//! Stripe: two rates at once, resources with limits of their own, keys in a header.

use std::time::Duration;

use http::{HeaderMap, StatusCode};
use serde_json::{Map, Value, json};

use super::{Action, Dialect, Repeat, Resource, Route, header, per_second};
use crate::ledger::Record;
use crate::limits::{Cap, Limit, Refusal, Scope};
use crate::reply::Reply;
use crate::rule::Rule;
use crate::wire::{self, Wire};

const fn resource(object: &'static str, id_prefix: &'static str) -> Resource {
    Resource {
        object,
        id_prefix,
        amount: None,
        parent: None,
    }
}

const fn money(object: &'static str, id_prefix: &'static str) -> Resource {
    let mut resource = resource(object, id_prefix);
    resource.amount = Some("amount");
    resource
}

const PAYOUT: Resource = money("payout", "po_");
const INTENT: Resource = money("payment_intent", "pi_");
const FILE: Resource = resource("file", "file_");
const SUBSCRIPTION: Resource = resource("subscription", "sub_");
const INVOICE: Resource = Resource {
    object: "invoice",
    id_prefix: "in_",
    amount: None,
    parent: Some("subscription"),
};

static ROUTES: [Route; 16] = [
    Route::new("POST /v1/payouts", Action::Create(&PAYOUT)),
    Route::new("GET /v1/payouts", Action::Find("payout")),
    Route::new("GET /v1/payouts/{id}", Action::Get("payout")),
    Route::new("POST /v1/payment_intents", Action::Create(&INTENT)),
    Route::new("GET /v1/payment_intents", Action::Find("payment_intent")),
    Route::new(
        "GET /v1/payment_intents/search",
        Action::Find("payment_intent"),
    ),
    Route::new(
        "GET /v1/payment_intents/{id}",
        Action::Get("payment_intent"),
    ),
    Route::new(
        "POST /v1/payment_intents/{id}",
        Action::Update("payment_intent"),
    ),
    Route::new("POST /v1/files", Action::Create(&FILE)),
    Route::new("GET /v1/files", Action::Find("file")),
    Route::new("GET /v1/files/{id}", Action::Get("file")),
    Route::new("POST /v1/invoices", Action::Create(&INVOICE)),
    Route::new("GET /v1/invoices/{id}", Action::Get("invoice")),
    Route::new("POST /v1/subscriptions", Action::Create(&SUBSCRIPTION)),
    Route::new("GET /v1/subscriptions/{id}", Action::Get("subscription")),
    Route::new(
        "POST /v1/subscriptions/{id}",
        Action::Update("subscription"),
    ),
];

const LONGEST_KEY: usize = 255;

pub(super) struct Stripe;

impl Stripe {
    fn error(&self, status: StatusCode, error: &Value) -> Reply {
        Reply::json(status, &json!({ "error": error }))
    }

    fn bad_request(&self, param: &str, message: &str) -> Reply {
        let error = json!({"type": "invalid_request_error", "param": param, "message": message});
        self.error(StatusCode::BAD_REQUEST, &error)
    }

    /// The reason that Stripe gives, which follows from what was exceeded.
    fn reason(refusal: &Refusal) -> &'static str {
        match (&refusal.scope, refusal.cap) {
            (Scope::Gateway, Cap::Rate(_)) => "global-rate",
            (Scope::Gateway, Cap::InFlight(_)) => "global-concurrency",
            (Scope::EachEndpoint, Cap::Rate(_)) => "endpoint-rate",
            (_, Cap::InFlight(_)) => "endpoint-concurrency",
            (_, Cap::Rate(_)) => "resource-specific",
        }
    }
}

impl Dialect for Stripe {
    fn wire(&self) -> &'static Wire {
        &wire::STRIPE
    }

    fn routes(&self) -> &'static [Route] {
        &ROUTES
    }

    fn limits(&self, sandbox: bool) -> Vec<Limit> {
        let rate = |endpoints: &[&str], rule| Limit::rate(Scope::endpoints(endpoints), rule);
        let object = |endpoint: &str, limit, secs| {
            let rule = Rule::sliding_log(limit, Duration::from_secs(secs));
            Limit::rate(Scope::EachObject(endpoint.to_owned()), rule)
        };
        let (minute, hour, day) = (60, 60 * 60, 24 * 60 * 60);
        vec![
            Limit::rate(Scope::Gateway, per_second(if sandbox { 25 } else { 100 })),
            Limit::rate(Scope::EachEndpoint, per_second(25)),
            rate(&["GET /v1/files", "GET /v1/files/{id}"], per_second(20)),
            rate(&["POST /v1/files"], per_second(20)),
            rate(&["GET /v1/payment_intents/search"], per_second(20)),
            rate(&["POST /v1/payouts"], per_second(15)),
            Limit::in_flight(Scope::endpoint("POST /v1/payouts"), 30),
            object("POST /v1/payment_intents/{id}", 1000, hour),
            object("POST /v1/subscriptions/{id}", 200, hour),
            object("POST /v1/invoices", 10, minute),
            object("POST /v1/invoices", 20, day),
        ]
    }

    fn key(&self, headers: &HeaderMap, _: &Map<String, Value>) -> Result<Option<String>, Reply> {
        match header(headers, "idempotency-key") {
            Some(key) if key.len() > LONGEST_KEY => Err(self.bad_request(
                "Idempotency-Key",
                "Idempotency keys may be at most 255 characters long.",
            )),
            key => Ok(key),
        }
    }

    fn created(&self, record: &Record) -> Reply {
        self.one(record)
    }

    fn repeated(&self, first: &Record, repeat: Repeat) -> Reply {
        match repeat {
            Repeat::Same => first.answer.clone().with("idempotent-replayed", "true"),
            Repeat::InFlight => self
                .error(
                    StatusCode::CONFLICT,
                    &json!({
                        "type": "idempotency_error",
                        "code": "idempotency_key_in_use",
                        "message": "There is currently another in-progress request using this Idempotent Key.",
                    }),
                )
                .with("stripe-should-retry", "true"),
            Repeat::OtherPayload => self
                .error(
                    StatusCode::BAD_REQUEST,
                    &json!({
                        "type": "idempotency_error",
                        "message": "Keys for idempotent requests can only be used with the same parameters they were first used with.",
                    }),
                )
                .with("stripe-should-retry", "false"),
        }
    }

    fn one(&self, record: &Record) -> Reply {
        let object = record.object(json!({"object": record.kind, "status": "pending"}));
        Reply::json(StatusCode::OK, &object)
    }

    fn many(&self, _: Option<&str>, records: &[&Record]) -> Reply {
        let data: Vec<Value> = records
            .iter()
            .map(|record| record.object(json!({"object": record.kind, "status": "pending"})))
            .collect();
        Reply::json(
            StatusCode::OK,
            &json!({"object": "list", "data": data, "has_more": false}),
        )
    }

    fn invalid(&self, field: &str) -> Reply {
        self.bad_request(field, &format!("Missing or invalid param: {field}."))
    }

    fn throttled(&self, refusal: &Refusal) -> Reply {
        self.error(
            StatusCode::TOO_MANY_REQUESTS,
            &json!({
                "type": "invalid_request_error",
                "code": "rate_limit",
                "message": "Request rate limit exceeded.",
            }),
        )
        .with("stripe-rate-limited-reason", Self::reason(refusal))
    }

    fn failure(&self, status: StatusCode) -> Reply {
        let kind = if status.is_server_error() {
            "api_error"
        } else {
            "invalid_request_error"
        };
        let message = status.canonical_reason().unwrap_or("Failure");
        self.error(status, &json!({"type": kind, "message": message}))
    }

    fn refused(&self, status: StatusCode) -> Reply {
        if status != StatusCode::PAYMENT_REQUIRED {
            return self.failure(status);
        }
        let declined = json!({
            "type": "card_error",
            "code": "card_declined",
            "message": "Your card was declined.",
        });
        self.error(status, &declined)
    }

    /// A list takes `metadata[reference]`; a search, Stripe's query language, of which the one
    /// clause `metadata['reference']:'…'` is understood.
    fn sought(&self, _: &HeaderMap, query: &[(String, String)]) -> Option<String> {
        query.iter().find_map(|(key, value)| {
            if key == "query" {
                let reference = value.strip_prefix("metadata['reference']:'")?;
                return reference.strip_suffix('\'').map(str::to_owned);
            }
            let asked = self.wire().lookup_keys.contains(&key.as_str());
            asked.then(|| value.clone())
        })
    }

    fn lock_timeout(&self) -> Reply {
        self.error(
            StatusCode::TOO_MANY_REQUESTS,
            &json!({
                "type": "invalid_request_error",
                "code": "lock_timeout",
                "message": "This object cannot be accessed right now because another API request or Stripe process is currently accessing it.",
            }),
        )
        .with("stripe-should-retry", "true")
    }
}
