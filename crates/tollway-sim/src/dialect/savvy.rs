//! Savvy Connect Direct: the key is a body field, and business errors arrive in a 200.

use std::time::Duration;

use http::{HeaderMap, StatusCode};
use serde_json::{Map, Value, json};

use super::{Action, Dialect, Repeat, Resource, Route, per_second, text};
use crate::ledger::Record;
use crate::limits::{Limit, Refusal, Scope};
use crate::reply::Reply;
use crate::wire::{self, Wire};

const PAYMENT: Resource = Resource {
    object: "payment",
    id_prefix: "SV",
    amount: Some("Amount"),
    parent: None,
};

static ROUTES: [Route; 3] = [
    Route::new("POST /payments", Action::Create(&PAYMENT)),
    Route::new("GET /payments", Action::Find("payment")),
    Route::new("GET /payments/{id}", Action::Get("payment")),
];

/// The codes of business errors are ours; all that is documented is that they aren't 0.
const DECLINED: u32 = 5;
const INVALID_FIELD: u32 = 12;
const OTHER_PAYLOAD: u32 = 94;

pub(super) struct Savvy;

impl Savvy {
    fn payment(&self, record: &Record, first: bool) -> Reply {
        let answer = json!({
            "responseCode": 0,
            "responseMessage": "Approved",
            "isFirstResponse": first,
        });
        Reply::json(StatusCode::OK, &record.object(answer))
    }

    fn business_error(&self, code: u32, message: &str) -> Reply {
        let answer = json!({
            "responseCode": code,
            "responseMessage": message,
            "isFirstResponse": true,
        });
        Reply::json(StatusCode::OK, &answer)
    }
}

impl Dialect for Savvy {
    fn wire(&self) -> &'static Wire {
        &wire::SAVVY
    }

    fn routes(&self) -> &'static [Route] {
        &ROUTES
    }

    /// No rate is documented; this one is ours.
    fn limits(&self, _sandbox: bool) -> Vec<Limit> {
        vec![Limit::rate(Scope::Gateway, per_second(100))]
    }

    fn key(&self, _: &HeaderMap, fields: &Map<String, Value>) -> Result<Option<String>, Reply> {
        match text(fields, "RequestId") {
            Some(key) => Ok(Some(key)),
            None => Err(self.invalid("RequestId")),
        }
    }

    fn created(&self, record: &Record) -> Reply {
        self.payment(record, true)
    }

    fn repeated(&self, first: &Record, repeat: Repeat) -> Reply {
        match repeat {
            Repeat::Same | Repeat::InFlight => self.payment(first, false),
            Repeat::OtherPayload => self.business_error(
                OTHER_PAYLOAD,
                "RequestId was used before with another payload",
            ),
        }
    }

    fn waits_for_first(&self) -> bool {
        true
    }

    fn one(&self, record: &Record) -> Reply {
        self.payment(record, false)
    }

    fn many(&self, sought: Option<&str>, records: &[&Record]) -> Reply {
        match (sought, records) {
            (Some(_), []) => self.failure(StatusCode::NOT_FOUND),
            (Some(_), [first, ..]) => self.one(first),
            (None, records) => {
                let payments: Vec<Value> = records
                    .iter()
                    .map(|record| record.object(json!({})))
                    .collect();
                let answer = json!({"responseCode": 0, "payments": payments});
                Reply::json(StatusCode::OK, &answer)
            }
        }
    }

    fn invalid(&self, field: &str) -> Reply {
        self.business_error(INVALID_FIELD, &format!("{field} is missing or not valid"))
    }

    fn throttled(&self, refusal: &Refusal) -> Reply {
        let wait = refusal.retry_after;
        // Whole seconds, rounded up: whoever waits as told comes late enough.
        let seconds = wait.as_secs() + u64::from(wait > Duration::from_secs(wait.as_secs()));
        let body = format!(
            r#"{{"statusCode":429,"message":"Rate limit is exceeded. Try again in {} seconds."}}"#,
            seconds.max(1)
        );
        Reply::new(StatusCode::TOO_MANY_REQUESTS, body)
    }

    fn failure(&self, status: StatusCode) -> Reply {
        let message = status.canonical_reason().unwrap_or("Failure");
        Reply::json(
            status,
            &json!({"statusCode": status.as_u16(), "message": message}),
        )
    }

    fn refused(&self, status: StatusCode) -> Reply {
        match status {
            StatusCode::PAYMENT_REQUIRED => self.business_error(DECLINED, "Declined"),
            _ => self.failure(status),
        }
    }
}
