//! Payalo: references are unique, and few requests may be in flight.

use http::{HeaderMap, StatusCode};
use serde_json::{Map, Value, json};

use super::{Action, Dialect, Repeat, Resource, Route, per_second, text};
use crate::ledger::Record;
use crate::limits::{Limit, Refusal, Scope};
use crate::reply::Reply;
use crate::wire::{self, Wire};

const PAYMENT: Resource = Resource {
    object: "payment",
    id_prefix: "pay_",
    amount: Some("amount"),
    parent: None,
};

static ROUTES: [Route; 4] = [
    Route::new("POST /payments", Action::Create(&PAYMENT)),
    Route::new("GET /payments", Action::Find("payment")),
    Route::new("GET /payments/{id}", Action::Get("payment")),
    Route::new("GET /payments/{id}/status", Action::Get("payment")),
];

pub(super) struct Payalo;

impl Payalo {
    fn payment(&self, record: &Record) -> Value {
        record.object(json!({"paymentId": record.id, "status": "PENDING"}))
    }

    fn error(&self, status: StatusCode, code: &str, message: &str) -> Reply {
        Reply::json(status, &json!({"code": code, "message": message}))
    }
}

impl Dialect for Payalo {
    fn wire(&self) -> &'static Wire {
        &wire::PAYALO
    }

    fn routes(&self) -> &'static [Route] {
        &ROUTES
    }

    fn limits(&self, _sandbox: bool) -> Vec<Limit> {
        vec![
            Limit::rate(Scope::endpoint("GET /payments/{id}/status"), per_second(50)),
            Limit::in_flight(Scope::Gateway, 20),
        ]
    }

    fn key(&self, _: &HeaderMap, fields: &Map<String, Value>) -> Result<Option<String>, Reply> {
        match text(fields, "merchantReference") {
            Some(reference) => Ok(Some(reference)),
            None => Err(self.invalid("merchantReference")),
        }
    }

    fn created(&self, record: &Record) -> Reply {
        Reply::json(StatusCode::CREATED, &self.payment(record))
    }

    /// The second is refused whatever it holds, and the refusal names the first.
    fn repeated(&self, first: &Record, _: Repeat) -> Reply {
        Reply::json(
            StatusCode::CONFLICT,
            &json!({
                "code": "DUPLICATE_MERCHANT_REFERENCE",
                "paymentId": first.id,
                "merchantReference": first.reference,
            }),
        )
    }

    fn one(&self, record: &Record) -> Reply {
        Reply::json(StatusCode::OK, &self.payment(record))
    }

    fn many(&self, _: Option<&str>, records: &[&Record]) -> Reply {
        let payments: Vec<Value> = records.iter().map(|record| self.payment(record)).collect();
        Reply::json(StatusCode::OK, &json!({ "payments": payments }))
    }

    fn invalid(&self, field: &str) -> Reply {
        let message = format!("{field} is missing or not valid");
        self.error(StatusCode::BAD_REQUEST, "INVALID_REQUEST", &message)
    }

    fn throttled(&self, _: &Refusal) -> Reply {
        self.error(
            StatusCode::TOO_MANY_REQUESTS,
            "RATE_LIMITED",
            "Too many requests",
        )
    }

    fn failure(&self, status: StatusCode) -> Reply {
        let code = match status {
            StatusCode::NOT_FOUND => "NOT_FOUND",
            _ if status.is_server_error() => "SERVER_ERROR",
            _ => "INVALID_REQUEST",
        };
        self.error(status, code, status.canonical_reason().unwrap_or("Failure"))
    }
}
