//! One request, read and understood.

use std::borrow::Cow;

use bytes::Bytes;
use http::HeaderMap;
use http::header::CONTENT_TYPE;
use percent_encoding::percent_decode_str;
use serde_json::{Map, Value};

use crate::dialect::Route;

#[derive(Debug)]
pub(crate) struct Call {
    pub(crate) route: &'static Route,
    /// The path's parameter, decoded.
    pub(crate) object: Option<String>,
    pub(crate) query: Vec<(String, String)>,
    pub(crate) headers: HeaderMap,
    pub(crate) payload: Bytes,
    /// `None` for a body that is neither a form nor a JSON object.
    pub(crate) fields: Option<Map<String, Value>>,
}

pub(crate) fn decode(segment: &str) -> Cow<'_, str> {
    percent_decode_str(segment).decode_utf8_lossy()
}

pub(crate) fn query(query: Option<&str>) -> Vec<(String, String)> {
    form_urlencoded::parse(query.unwrap_or_default().as_bytes())
        .into_owned()
        .collect()
}

/// The fields of a body: a form when it says so, otherwise JSON. No body has no fields.
pub(crate) fn fields(headers: &HeaderMap, payload: &[u8]) -> Option<Map<String, Value>> {
    if payload.is_empty() {
        return Some(Map::new());
    }
    let is_form = headers
        .get(CONTENT_TYPE)
        .and_then(|value| value.to_str().ok())
        .is_some_and(|value| value.starts_with("application/x-www-form-urlencoded"));
    if is_form {
        return Some(form(payload));
    }
    match serde_json::from_slice(payload) {
        Ok(Value::Object(fields)) => Some(fields),
        _ => None,
    }
}

/// `a=1&metadata[reference]=x` as `{"a": "1", "metadata": {"reference": "x"}}`.
fn form(payload: &[u8]) -> Map<String, Value> {
    let mut fields = Map::new();
    for (name, value) in form_urlencoded::parse(payload) {
        let nested = name
            .split_once('[')
            .and_then(|(outer, rest)| Some((outer, rest.strip_suffix(']')?)));
        let value = Value::String(value.into_owned());
        match nested {
            None => {
                fields.insert(name.into_owned(), value);
            }
            Some((outer, inner)) => {
                let outer = fields.entry(outer).or_insert_with(|| Map::new().into());
                if let Value::Object(outer) = outer {
                    outer.insert(inner.to_owned(), value);
                }
            }
        }
    }
    fields
}

/// A text inside an object, by its path.
pub(crate) fn text_at(fields: &Map<String, Value>, path: &[&str]) -> Option<String> {
    let (first, rest) = path.split_first()?;
    let value = rest
        .iter()
        .try_fold(fields.get(*first)?, |value, name| value.get(name))?;
    value.as_str().map(str::to_owned)
}

/// A whole number above zero; a form has it as text.
pub(crate) fn is_amount(value: Option<&Value>) -> bool {
    match value {
        Some(Value::Number(number)) => number.as_u64().is_some_and(|amount| amount > 0),
        Some(Value::String(text)) => text.parse().is_ok_and(|amount: u64| amount > 0),
        _ => false,
    }
}
