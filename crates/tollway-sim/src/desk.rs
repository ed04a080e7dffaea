//! The gateway's core: reads and writes the books, as the provider would.

use std::ops::Range;
use std::time::Duration;

use http::StatusCode;
use serde_json::{Map, Value};

use crate::call::{Call, is_amount, text_at};
use crate::dialect::{Action, Dialect, Repeat};
use crate::ledger::{Books, Record};
use crate::reply::Reply;
use crate::wire::Key;

/// An answer, and when it is due.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) reply: Reply,
    pub(crate) due: Duration,
}

/// Does what a request asks for. Its effect, if it has one, takes place now, so that a look-up
/// finds it from now on; its answer is due later.
pub(crate) fn perform(
    dialect: &dyn Dialect,
    books: &mut Books,
    call: &Call,
    now: Duration,
    due: Duration,
) -> Answer {
    let reply = match call.route.action {
        Action::Create(_) | Action::Update(_) => {
            return write(dialect, books, call, now, due);
        }
        Action::Get(kind) => get(dialect, books, call, kind),
        Action::Find(kind) => {
            let sought = dialect.sought(&call.headers, &call.query);
            let mut found = books.made(kind, sought.as_deref());
            // As real ones do, a list ends after a page.
            found.truncate(100);
            dialect.many(sought.as_deref(), &found)
        }
    };
    Answer { reply, due }
}

fn get(dialect: &dyn Dialect, books: &Books, call: &Call, kind: &str) -> Reply {
    let id = call.object.as_deref().unwrap_or_default();
    let mut found = books.by_id(id);
    // Where the key is a field of the payload, an object can be asked for by it.
    if found.is_none() && matches!(dialect.wire().key, Key::Field(_)) {
        found = books.by_key(id);
    }
    match found.filter(|record| record.kind == kind) {
        Some(record) => dialect.one(record),
        None => dialect.failure(StatusCode::NOT_FOUND),
    }
}

fn write(
    dialect: &dyn Dialect,
    books: &mut Books,
    call: &Call,
    now: Duration,
    due: Duration,
) -> Answer {
    let checked = match &call.fields {
        Some(fields) => dialect.key(&call.headers, fields).map(|key| (key, fields)),
        None => Err(dialect.invalid("body")),
    };
    let (key, fields) = match checked {
        Ok(checked) => checked,
        Err(reply) => return Answer { reply, due },
    };
    if let Some(first) = key.as_ref().and_then(|key| books.by_key_mut(key)) {
        return repeated(dialect, first, call, now, due);
    }
    if books.is_full() {
        let reply = dialect.failure(StatusCode::INSUFFICIENT_STORAGE);
        return Answer { reply, due };
    }
    let reply = match record(dialect, books, call, key, fields.clone(), now..due) {
        Ok(mut record) => {
            record.answer = match call.route.action {
                Action::Create(_) => dialect.created(&record),
                _ => dialect.one(&record),
            };
            let reply = record.answer.clone();
            books.apply(record);
            reply
        }
        Err(reply) => reply,
    };
    Answer { reply, due }
}

fn repeated(
    dialect: &dyn Dialect,
    first: &mut Record,
    call: &Call,
    now: Duration,
    due: Duration,
) -> Answer {
    let repeat = if first.route != call.route || first.payload != call.payload {
        Repeat::OtherPayload
    } else if now < first.settles {
        Repeat::InFlight
    } else {
        Repeat::Same
    };
    if repeat != Repeat::OtherPayload {
        first.repeats = first.repeats.saturating_add(1);
    }
    let waits = repeat == Repeat::InFlight && dialect.waits_for_first();
    Answer {
        reply: dialect.repeated(first, repeat),
        due: if waits { due.max(first.settles) } else { due },
    }
}

/// The effect that a request is going to have, or the answer that refuses it.
fn record(
    dialect: &dyn Dialect,
    books: &mut Books,
    call: &Call,
    key: Option<String>,
    mut fields: Map<String, Value>,
    in_flight: Range<Duration>,
) -> Result<Record, Reply> {
    let reference = text_at(&fields, dialect.wire().reference);
    let (id, kind) = match call.route.action {
        Action::Create(resource) => {
            if let Some(amount) = resource.amount
                && !is_amount(fields.get(amount))
            {
                return Err(dialect.invalid(amount));
            }
            (books.next_id(resource.id_prefix), resource.object)
        }
        Action::Update(kind) => {
            let id = call.object.clone().unwrap_or_default();
            match books.by_id_mut(&id).filter(|known| known.kind == kind) {
                Some(known) => {
                    known.fields.extend(fields);
                    fields = known.fields.clone();
                }
                None => return Err(dialect.failure(StatusCode::NOT_FOUND)),
            }
            (id, kind)
        }
        Action::Get(_) | Action::Find(_) => {
            return Err(dialect.failure(StatusCode::METHOD_NOT_ALLOWED));
        }
    };
    Ok(Record {
        id,
        route: call.route,
        kind,
        key,
        reference,
        payload: call.payload.clone(),
        fields,
        at: in_flight.start,
        settles: in_flight.end,
        answer: Reply::new(StatusCode::OK, ""),
        repeats: 0,
    })
}
