//! Modern Treasury: keys in a header, a plain 429, a load balancer that closes idle connections.

use std::time::Duration;

use http::{HeaderMap, StatusCode};
use serde_json::{Map, Value, json};

use super::{Action, Dialect, Repeat, Resource, Route, header, per_second};
use crate::ledger::Record;
use crate::limits::{Limit, Refusal, Scope};
use crate::reply::Reply;
use crate::wire::{self, Wire};

const ORDER: Resource = Resource {
    object: "payment_order",
    id_prefix: "mt-order-",
    amount: Some("amount"),
    parent: None,
};

static ROUTES: [Route; 3] = [
    Route::new("POST /api/payment_orders", Action::Create(&ORDER)),
    Route::new("GET /api/payment_orders", Action::Find("payment_order")),
    Route::new("GET /api/payment_orders/{id}", Action::Get("payment_order")),
];

pub(super) struct ModernTreasury;

impl ModernTreasury {
    fn error(&self, status: StatusCode, code: &str, message: &str, parameter: &str) -> Reply {
        let mut errors = json!({"code": code, "message": message});
        if !parameter.is_empty() {
            errors["parameter"] = parameter.into();
        }
        Reply::json(status, &json!({ "errors": errors }))
    }

    fn order(&self, record: &Record) -> Value {
        record.object(json!({"object": "payment_order", "status": "pending", "live_mode": false}))
    }
}

impl Dialect for ModernTreasury {
    fn wire(&self) -> &'static Wire {
        &wire::MODERN_TREASURY
    }

    fn routes(&self) -> &'static [Route] {
        &ROUTES
    }

    /// No rate is documented; this one is ours.
    fn limits(&self, _sandbox: bool) -> Vec<Limit> {
        vec![Limit::rate(Scope::Gateway, per_second(100))]
    }

    /// Documented: its load balancer drops them at 30 s.
    fn idle_timeout(&self) -> Option<Duration> {
        Some(Duration::from_secs(30))
    }

    fn key(&self, headers: &HeaderMap, _: &Map<String, Value>) -> Result<Option<String>, Reply> {
        Ok(header(headers, "idempotency-key"))
    }

    fn created(&self, record: &Record) -> Reply {
        Reply::json(StatusCode::CREATED, &self.order(record))
    }

    fn repeated(&self, first: &Record, repeat: Repeat) -> Reply {
        match repeat {
            Repeat::Same => first.answer.clone(),
            Repeat::InFlight => self.error(
                StatusCode::CONFLICT,
                "idempotency_key_in_use",
                "A request with this idempotency key is in progress.",
                "",
            ),
            Repeat::OtherPayload => self.error(
                StatusCode::BAD_REQUEST,
                "idempotency_error",
                "This idempotency key was used with other parameters.",
                "",
            ),
        }
    }

    fn one(&self, record: &Record) -> Reply {
        Reply::json(StatusCode::OK, &self.order(record))
    }

    fn many(&self, _: Option<&str>, records: &[&Record]) -> Reply {
        let orders: Vec<Value> = records.iter().map(|record| self.order(record)).collect();
        Reply::json(StatusCode::OK, &Value::Array(orders))
    }

    fn invalid(&self, field: &str) -> Reply {
        self.error(
            StatusCode::UNPROCESSABLE_ENTITY,
            "parameter_invalid",
            "A parameter is missing or not valid.",
            field,
        )
    }

    fn throttled(&self, _: &Refusal) -> Reply {
        self.failure(StatusCode::TOO_MANY_REQUESTS)
    }

    fn failure(&self, status: StatusCode) -> Reply {
        let (code, message) = match status {
            StatusCode::TOO_MANY_REQUESTS => ("rate_limit_exceeded", "Too many requests."),
            StatusCode::NOT_FOUND => ("resource_not_found", "The resource does not exist."),
            _ => (
                "request_failed",
                status.canonical_reason().unwrap_or("Failure"),
            ),
        };
        self.error(status, code, message, "")
    }
}
