//! Which key a call gets, and whether it may go.

use std::sync::Arc;

use bytes::Bytes;
use http::header::{CONTENT_LENGTH, HeaderMap, HeaderName};
use http::request::Parts;
use http::{Extensions, Response};
use tokio::time::Instant;
use tollway_core::{BoxError, IdempotencyKey, Verdict};

use crate::dialect::{self, Dialect, Misfit, Place};
use crate::error::{Field, Why};
use crate::guard::{Digest, Memory, Refusal, Ticket};
use crate::json::Unreadable;
use crate::{KeyError, KeyGenerator, json};

/// What all calls of a service share.
pub(crate) struct Keys<G> {
    pub(crate) dialect: Dialect,
    pub(crate) generator: Arc<G>,
    pub(crate) memory: Option<Arc<Memory>>,
    pub(crate) echo: bool,
}

/// The key of a call that hasn't gone yet.
pub(crate) struct Chosen {
    pub(crate) key: IdempotencyKey,
    /// Who chose it.
    pub(crate) by: By,
    /// The payload that the key stands for, where it is to be remembered.
    payload: Option<Digest>,
}

/// Who chose a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum By {
    /// The generator, just now: it can't have stood for anything before.
    Generator,
    /// The caller, in the header or in the body.
    Request,
    /// The caller, in the extensions, maybe with the end of its life.
    Extension,
}

impl Chosen {
    fn new(key: IdempotencyKey, by: By) -> Self {
        Self {
            key,
            by,
            payload: None,
        }
    }
}

impl<G: KeyGenerator> Keys<G> {
    /// The key that the caller gave in the extensions or in the header, or else
    /// a new one where that is already clear: not before the body was read, if
    /// the key stands there.
    pub(crate) fn choose(
        &self,
        headers: &HeaderMap,
        extensions: &Extensions,
    ) -> Result<Option<Chosen>, KeyError> {
        let (is_field, written) = match &self.dialect.place {
            Place::Header { name, quoted } => (false, header(headers, name, *quoted)?),
            Place::Field { .. } => (true, None),
        };
        let chosen = match (IdempotencyKey::of(extensions), written) {
            (None, None) if is_field => return Ok(None),
            (None, None) => return self.mint().map(Some),
            (None, Some(key)) => Chosen::new(key, By::Request),
            (Some(key), None) => Chosen::new(key.clone(), By::Extension),
            (Some(key), Some(written)) => {
                agree(key, &written)?;
                Chosen::new(key.clone(), By::Extension)
            }
        };
        match self.dialect.check(&chosen.key) {
            Ok(()) => Ok(Some(chosen)),
            Err(misfit) => Err(KeyError::refused(Why::Given(misfit), Some(chosen.key))),
        }
    }

    fn mint(&self) -> Result<Chosen, KeyError> {
        let key = self.generator.generate();
        let key = key.map_err(|invalid| KeyError::refused(Why::Generated(invalid.into()), None))?;
        match self.dialect.check(&key) {
            Ok(()) => Ok(Chosen::new(key, By::Generator)),
            Err(misfit) => Err(KeyError::refused(Why::Generated(misfit), Some(key))),
        }
    }

    /// Whether the payload that `chosen` stands for is to be remembered.
    pub(crate) fn remembers(&self, chosen: &Chosen) -> bool {
        self.memory.is_some() && chosen.by != By::Generator
    }

    /// Notes the payload that `chosen` stands for, the body as far as it is
    /// known.
    pub(crate) fn note(&self, chosen: &mut Chosen, parts: &Parts, body: Option<&[u8]>) {
        if let Some(memory) = self.memory.as_ref().filter(|_| chosen.by != By::Generator) {
            chosen.payload = Some(memory.payload(parts, body));
        }
    }

    /// The body to send, and the key of its call, now that the body is known.
    pub(crate) fn read(
        &self,
        chosen: Option<Chosen>,
        parts: &mut Parts,
        body: Bytes,
    ) -> Result<(Bytes, Chosen), KeyError> {
        let (body, mut chosen) = match (&self.dialect.place, chosen) {
            (Place::Header { .. }, Some(chosen)) => (body, chosen),
            (Place::Header { .. }, None) => (body, self.mint()?),
            (Place::Field { name, insert }, chosen) => match self.found(name, &body)? {
                Some(found) => {
                    if let Some(chosen) = &chosen {
                        agree(&chosen.key, &found.key)?;
                    }
                    (body, chosen.unwrap_or(found))
                }
                None if *insert => {
                    let chosen = match chosen {
                        Some(chosen) => chosen,
                        None => self.mint()?,
                    };
                    let body = json::with_field(&body, name, chosen.key.as_str())
                        .map_err(|why| unreadable(name, why))?;
                    if let Some(len) = parts.headers.get_mut(CONTENT_LENGTH) {
                        *len = body.len().into();
                    }
                    (body, chosen)
                }
                None => {
                    let why = Why::Field(name.as_ref().into(), Field::Missing);
                    return Err(KeyError::refused(why, None));
                }
            },
        };
        self.note(&mut chosen, parts, Some(&body));
        Ok((body, chosen))
    }

    fn found(&self, name: &str, body: &[u8]) -> Result<Option<Chosen>, KeyError> {
        let misfit =
            |misfit| KeyError::refused(Why::Field(name.into(), Field::Misfit(misfit)), None);
        let Some(text) = json::field(body, name).map_err(|why| unreadable(name, why))? else {
            return Ok(None);
        };
        let key: IdempotencyKey = text
            .parse()
            .map_err(|invalid| misfit(Misfit::Invalid(invalid)))?;
        self.dialect.check(&key).map_err(misfit)?;
        Ok(Some(Chosen::new(key, By::Request)))
    }

    /// Lets the call go: writes its key where it belongs, and remembers it.
    pub(crate) fn admit(
        &self,
        chosen: Chosen,
        headers: &mut HeaderMap,
        extensions: &mut Extensions,
    ) -> Result<Outcome, KeyError> {
        let Chosen {
            mut key,
            by,
            payload,
        } = chosen;
        let mut tell = by == By::Extension;
        match &self.dialect.place {
            Place::Header { name, quoted } => {
                // What the caller wrote stays as it is.
                if by == By::Generator || !headers.contains_key(name) {
                    match dialect::write(&key, *quoted) {
                        Ok(value) => headers.insert(name, value),
                        Err(misfit) => {
                            return Err(KeyError::refused(Why::Generated(misfit), Some(key)));
                        }
                    };
                }
            }
            Place::Field { .. } => tell = true,
        }
        let mut ticket = None;
        // The usual case ends here: the header says it all, and the clock isn't
        // asked. Each extension costs an allocation, the first one three.
        if tell || payload.is_some() || self.dialect.life < Dialect::DEFAULT_LIFE {
            let now = Instant::now();
            if !key.is_valid(now) {
                return Err(KeyError::refused(Why::Used(Refusal::Expired), Some(key)));
            }
            if let (Some(payload), Some(memory)) = (payload, &self.memory) {
                match memory.admit(&key, payload, self.dialect.life, now) {
                    Ok(admitted) => ticket = Some(admitted),
                    Err(refusal) => {
                        return Err(KeyError::refused(Why::Used(refusal), Some(key)));
                    }
                }
            }
            let since = ticket.as_ref().map_or(now, Ticket::since);
            if let Some(until) = since.checked_add(self.dialect.life) {
                // An earlier end that the caller knows of stays.
                if key.is_valid(until) {
                    key = key.valid_until(until);
                }
                tell |= until.saturating_duration_since(now) < Dialect::DEFAULT_LIFE;
            }
            if tell {
                extensions.insert(key.clone());
            }
        }
        Ok(Outcome {
            key,
            echo: self.echo,
            ticket,
        })
    }
}

/// The key in the header `name`, if it stands there.
fn header(
    headers: &HeaderMap,
    name: &HeaderName,
    quoted: bool,
) -> Result<Option<IdempotencyKey>, KeyError> {
    let mut values = headers.get_all(name).iter();
    let Some(value) = values.next() else {
        return Ok(None);
    };
    if values.next().is_some() {
        return Err(KeyError::refused(Why::Repeated, None));
    }
    match dialect::read(value, quoted) {
        Ok(key) => Ok(Some(key)),
        Err(misfit) => Err(KeyError::refused(Why::Given(misfit), None)),
    }
}

/// Refuses a call with two keys.
fn agree(key: &IdempotencyKey, other: &IdempotencyKey) -> Result<(), KeyError> {
    if key.as_str() == other.as_str() {
        Ok(())
    } else {
        Err(KeyError::refused(Why::Contradiction, None))
    }
}

fn unreadable(name: &str, why: Unreadable) -> KeyError {
    KeyError::refused(Why::Field(name.into(), Field::Unreadable(why)), None)
}

/// What is done with a call's key once the call has ended.
pub(crate) struct Outcome {
    key: IdempotencyKey,
    echo: bool,
    ticket: Option<Ticket>,
}

impl Outcome {
    pub(crate) fn answered<R>(mut self, response: &mut Response<R>) {
        let verdict = Verdict::of_response(response);
        self.settle(verdict);
        if self.echo || verdict != Verdict::Done {
            response.extensions_mut().insert(self.key);
        }
    }

    pub(crate) fn failed(mut self, error: BoxError) -> KeyError {
        self.settle(Verdict::of_error(&*error));
        KeyError::inner(self.key, error)
    }

    fn settle(&mut self, verdict: Verdict) {
        if let (Verdict::NotExecuted { .. }, Some(ticket)) = (verdict, self.ticket.take()) {
            ticket.not_executed();
        }
    }
}
