//! Payrix: no key, a penalty block, and a 429 without headers.

use std::time::Duration;

use http::{HeaderMap, StatusCode};
use serde_json::{Map, Value, json};

use super::{Action, Dialect, Repeat, Resource, Route, header};
use crate::ledger::Record;
use crate::limits::{Limit, Refusal, Scope};
use crate::reply::Reply;
use crate::rule::Rule;
use crate::wire::{self, Wire};

const THROTTLED: &str = r#"{"errors":[{"code":64,"severity":2,"msg":"Rate of requests exceeded - Temporary block implemented","errorCode":"C_RATE_LIMIT_EXCEEDED_TEMP_BLOCK"}]}"#;

const TXN: Resource = Resource {
    object: "txn",
    id_prefix: "t1_txn_",
    amount: Some("total"),
    parent: None,
};
const LOGIN: Resource = Resource {
    object: "login",
    id_prefix: "t1_log_",
    amount: None,
    parent: None,
};

static ROUTES: [Route; 6] = [
    Route::new("POST /txns", Action::Create(&TXN)),
    Route::new("GET /txns", Action::Find("txn")),
    Route::new("GET /txns/{id}", Action::Get("txn")),
    Route::new("POST /logins", Action::Create(&LOGIN)),
    Route::new("GET /logins", Action::Find("login")),
    Route::new("GET /logins/{id}", Action::Get("login")),
];

pub(super) struct Payrix;

impl Payrix {
    fn data(&self, status: StatusCode, records: &[&Record]) -> Reply {
        let data: Vec<Value> = records
            .iter()
            .map(|record| record.object(json!({})))
            .collect();
        Reply::json(
            status,
            &json!({"response": {"data": data, "details": {"requestId": 1}, "errors": []}}),
        )
    }

    fn error(&self, status: StatusCode, field: Option<&str>, msg: &str) -> Reply {
        Reply::json(
            status,
            &json!({"response": {"data": [], "details": {"requestId": 1}, "errors": [
                {"field": field, "code": 15, "severity": 2, "msg": msg}
            ]}}),
        )
    }
}

impl Dialect for Payrix {
    fn wire(&self) -> &'static Wire {
        &wire::PAYRIX
    }

    fn routes(&self) -> &'static [Route] {
        &ROUTES
    }

    fn limits(&self, _sandbox: bool) -> Vec<Limit> {
        let window = Duration::from_secs(10);
        let rule = Rule::sliding_log(1000, window).penalty(window);
        vec![Limit::rate(Scope::EachPath, rule)]
    }

    fn key(&self, _: &HeaderMap, _: &Map<String, Value>) -> Result<Option<String>, Reply> {
        Ok(None)
    }

    fn created(&self, record: &Record) -> Reply {
        self.data(StatusCode::OK, &[record])
    }

    fn repeated(&self, first: &Record, _: Repeat) -> Reply {
        // Without a key nothing is ever recognised as a repeat.
        self.created(first)
    }

    fn one(&self, record: &Record) -> Reply {
        self.data(StatusCode::OK, &[record])
    }

    fn many(&self, _: Option<&str>, records: &[&Record]) -> Reply {
        self.data(StatusCode::OK, records)
    }

    fn invalid(&self, field: &str) -> Reply {
        self.error(
            StatusCode::BAD_REQUEST,
            Some(field),
            "This field is not valid",
        )
    }

    fn throttled(&self, _: &Refusal) -> Reply {
        Reply::new(StatusCode::TOO_MANY_REQUESTS, THROTTLED)
    }

    fn failure(&self, status: StatusCode) -> Reply {
        self.error(status, None, status.canonical_reason().unwrap_or("Failure"))
    }

    fn sought(&self, headers: &HeaderMap, query: &[(String, String)]) -> Option<String> {
        let by_query = query
            .iter()
            .find(|(key, _)| self.wire().lookup_keys.contains(&key.as_str()));
        by_query.map(|(_, value)| value.clone()).or_else(|| {
            let search = header(headers, "search")?;
            search.strip_prefix("order[equals]=").map(str::to_owned)
        })
    }

    fn wants_throttling(&self, headers: &HeaderMap) -> bool {
        header(headers, "rate-limit-test").as_deref() == Some("match")
    }
}
