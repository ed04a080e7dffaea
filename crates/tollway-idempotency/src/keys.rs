//! Which key a call gets, and whether it may go.

use std::sync::Arc;
use std::task::Poll;
use std::time::SystemTime;

use bytes::Bytes;
use http::header::{CONTENT_LENGTH, Entry, HeaderMap};
use http::{Request, Response, StatusCode};
use tokio::time::Instant;
use tollway_core::{BoxError, Deadline, IdempotencyKey, Judgement, Phase, Verdict};
use uuid::Uuid;

use crate::dialect::{self, Dialect, Misfit, Place};
use crate::error::{Field, Why};
use crate::guard::{End, Refusal};
use crate::json::Unreadable;
use crate::memory::{Memory, Ticket};
use crate::{KeyError, KeyGenerator, json, mint};

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
        Self { key, by }
    }
}

impl<G: KeyGenerator> Keys<G> {
    /// Gives the call a new UUID, where that is all there is to do: it stands in
    /// the header alone, and lives as long as everybody thinks. So do nearly all
    /// calls. `None`, with nothing done, for the others.
    #[inline]
    pub(crate) fn fresh<B>(self: &Arc<Self>, request: &mut Request<B>) -> Option<Outcome<G>> {
        let name = self.dialect.header_of_uuids()?;
        if IdempotencyKey::of(request.extensions()).is_some() {
            return None;
        }
        let headers = request.headers_mut();
        // Requests have few headers: to look at their names takes less time than
        // to hash this one.
        if headers.keys().any(|other| other == name) {
            return None;
        }
        let now = mint::recent_now();
        let uuid = Uuid::from_u128(self.generator.uuid(now)?);
        let key = mint::key_of(uuid).ok()?;
        headers.append(name, key.header_value().clone());
        Some(Outcome {
            keys: Arc::clone(self),
            key: Some(key),
            since: now.into(),
            ticket: None,
        })
    }

    /// The key that the caller gave in the extensions or in the header, or else
    /// a new one. `None` where that isn't clear before the body was read. A key
    /// whose place is a header stands there afterwards; what the caller wrote
    /// stays as it is.
    pub(crate) fn choose<B>(&self, request: &mut Request<B>) -> Result<Option<Chosen>, KeyError> {
        let given = IdempotencyKey::of(request.extensions()).cloned();
        let given = given.map(|key| Chosen::new(key, By::Extension));
        if let Some(chosen) = &given {
            self.check(&chosen.key, Why::Given)?;
        }
        let Place::Header { name, quoted, .. } = &self.dialect.place else {
            return Ok(given);
        };
        // One look-up, whether the header is there or not.
        match request.headers_mut().entry(name) {
            Entry::Occupied(mut written) => {
                // The same bytes, and nothing for a log.
                written.get_mut().set_sensitive(true);
                if written.iter().nth(1).is_some() {
                    return Err(KeyError::refused(Why::Repeated, None));
                }
                let key = dialect::read(written.get(), *quoted)
                    .map_err(|misfit| KeyError::refused(Why::Given(misfit), None))?;
                self.check(&key, Why::Given)?;
                match given {
                    Some(given) => agree(given, &key).map(Some),
                    None => Ok(Some(Chosen::new(key, By::Request))),
                }
            }
            Entry::Vacant(place) => {
                let chosen = match given {
                    Some(given) => given,
                    None => self.mint()?,
                };
                let value = dialect::write(&chosen.key, *quoted)
                    .map_err(|misfit| KeyError::refused(Why::Generated(misfit), None))?;
                place.insert(value);
                Ok(Some(chosen))
            }
        }
    }

    /// Sees to it that the retry trusts no key of a call that has none in this
    /// dialect: the provider doesn't look at it. What the caller wrote into the
    /// header stays, but is said to be dead, since the retry reads it there.
    #[inline]
    pub(crate) fn disown<B>(&self, request: &mut Request<B>) {
        request.extensions_mut().remove::<IdempotencyKey>();
        if !request.method().is_safe()
            && let Some(name) = self.dialect.header_name()
            && let Some(value) = request.headers().get(name)
            && let Ok(key) = IdempotencyKey::new(value.clone())
        {
            let dead = key.valid_until(Instant::now());
            request.extensions_mut().insert(dead);
        }
    }

    fn mint(&self) -> Result<Chosen, KeyError> {
        let key = self.generator.generate();
        let key = key.map_err(|invalid| KeyError::refused(Why::Generated(invalid.into()), None))?;
        self.check(&key, Why::Generated)?;
        Ok(Chosen::new(key, By::Generator))
    }

    fn check(&self, key: &IdempotencyKey, why: fn(Misfit) -> Why) -> Result<(), KeyError> {
        self.dialect
            .check(key)
            .map_err(|misfit| KeyError::refused(why(misfit), Some(key.clone())))
    }

    /// Whether `chosen` is to be remembered with its payload. One just made
    /// can't have stood for anything before.
    pub(crate) fn remembers(&self, chosen: &Chosen) -> bool {
        self.memory.is_some() && chosen.by != By::Generator
    }

    /// The body to send, and the key of its call, now that the body is known.
    pub(crate) fn read(
        &self,
        chosen: Option<Chosen>,
        headers: &mut HeaderMap,
        trailers: Option<&HeaderMap>,
        body: Bytes,
    ) -> Result<(Bytes, Chosen), KeyError> {
        match (&self.dialect.place, chosen) {
            (Place::Header { .. }, Some(chosen)) => Ok((body, chosen)),
            (Place::Header { .. }, None) => Ok((body, self.mint()?)),
            (Place::Field { name, insert }, given) => match (self.found(name, &body)?, given) {
                (Some(found), None) => Ok((body, found)),
                (Some(found), Some(given)) => Ok((body, agree(given, &found.key)?)),
                (None, given) if *insert => {
                    if let Some(seal) = seal(headers).or_else(|| seal(trailers?)) {
                        let why = Why::Field(name.as_ref().into(), Field::Sealed(seal));
                        return Err(KeyError::refused(why, None));
                    }
                    let chosen = match given {
                        Some(given) => given,
                        None => self.mint()?,
                    };
                    let body = json::with_field(&body, name, chosen.key.as_str())
                        .map_err(|why| unreadable(name, why))?;
                    if headers.contains_key(CONTENT_LENGTH) {
                        headers.insert(CONTENT_LENGTH, body.len().into());
                    }
                    Ok((body, chosen))
                }
                (None, _) => {
                    let why = Why::Field(name.as_ref().into(), Field::Missing);
                    Err(KeyError::refused(why, None))
                }
            },
        }
    }

    fn found(&self, name: &str, body: &[u8]) -> Result<Option<Chosen>, KeyError> {
        let misfit =
            |misfit| KeyError::refused(Why::Field(name.into(), Field::Misfit(misfit)), None);
        let Some(text) = json::field(body, name).map_err(|why| unreadable(name, why))? else {
            return Ok(None);
        };
        let key = text
            .parse()
            .map_err(|invalid| misfit(Misfit::Invalid(invalid)))?;
        self.dialect.check(&key).map_err(misfit)?;
        Ok(Some(Chosen::new(key, By::Request)))
    }

    /// Lets the call go, its body being known or not, and remembers its key.
    pub(crate) fn admit<B>(
        self: &Arc<Self>,
        chosen: Chosen,
        request: &mut Request<B>,
        body: Option<&[u8]>,
    ) -> Result<Outcome<G>, KeyError> {
        let Chosen { mut key, by } = chosen;
        let mut ticket = None;
        let now = Instant::now();
        if !key.is_valid(now) {
            return Err(KeyError::refused(Why::Used(Refusal::Expired), Some(key)));
        }
        if let Some(memory) = self.memory.as_ref().filter(|_| by != By::Generator) {
            match memory.admit(&key, request, body, self.dialect.life, now) {
                Ok(admitted) => ticket = Some(Box::new(admitted)),
                Err(refusal) => {
                    return Err(KeyError::refused(Why::Used(refusal), Some(key)));
                }
            }
        }
        let since = ticket.as_ref().map_or(now, |ticket| ticket.since());
        let was_used = since < now || key.forgotten_at().is_some();
        // An extension costs an allocation, the first one three: it tells only
        // what the header doesn't.
        let mut tell = by == By::Extension || !self.dialect.says_all();
        if let Some(until) = since.checked_add(self.dialect.life) {
            // An earlier end that the caller knows of stays.
            if key.is_valid(until) {
                key = key.valid_until(until);
            }
            tell |= until.saturating_duration_since(now) < Dialect::DEFAULT_LIFE;
        }
        // However long it waits for a permit below, it isn't sent too late.
        if let Some(end) = key.forgotten_at().filter(|_| was_used) {
            Deadline::at(end).insert_into(request.extensions_mut());
        }
        if self.dialect.refuses_repeats {
            key = key.refusing_repeats();
        }
        if tell {
            request.extensions_mut().insert(key.clone());
        }
        Ok(Outcome {
            keys: Arc::clone(self),
            key: Some(key),
            since,
            ticket,
        })
    }
}

/// The field that vouches for the body as it is, if there is one (RFC 9530, RFC
/// 3230, RFC 1864, RFC 9421).
fn seal(fields: &HeaderMap) -> Option<&'static str> {
    const SEALS: [&str; 5] = [
        "content-digest",
        "repr-digest",
        "digest",
        "content-md5",
        "signature",
    ];
    SEALS.into_iter().find(|seal| fields.contains_key(*seal))
}

/// The key that was given, if the one that was found is the same.
fn agree(given: Chosen, found: &IdempotencyKey) -> Result<Chosen, KeyError> {
    if given.key.as_str() == found.as_str() {
        Ok(given)
    } else {
        Err(KeyError::refused(Why::Contradiction, Some(given.key)))
    }
}

fn unreadable(name: &str, why: Unreadable) -> KeyError {
    KeyError::refused(Why::Field(name.into(), Field::Unreadable(why)), None)
}

/// What is done with a call's key while the call is under way, and once it has
/// ended.
pub(crate) struct Outcome<G> {
    keys: Arc<Keys<G>>,
    // There until it is told.
    key: Option<IdempotencyKey>,
    /// Since when the key has been in use.
    since: Instant,
    // Boxed, since calls seldom have one, and every layer above moves this.
    ticket: Option<Box<Ticket>>,
}

impl<G> Outcome<G> {
    /// The call has ended with an answer.
    #[inline]
    pub(crate) fn answered<R>(&mut self, response: &mut Response<R>) {
        let verdict = Verdict::of_response(response);
        if self.keys.echo || verdict != Verdict::Done || self.ticket.is_some() {
            self.tell(verdict, response);
        }
    }

    #[cold]
    fn tell<R>(&mut self, verdict: Verdict, response: &mut Response<R>) {
        if self.settle(verdict, Some(response.status())) {
            let judgement = Judgement::of_response(response, SystemTime::now()).in_doubt();
            judgement.insert_into(response.extensions_mut());
        }
        if let Some(key) = self.key.take()
            && (self.keys.echo || verdict != Verdict::Done)
        {
            response.extensions_mut().insert(key);
        }
    }

    /// The call has ended with an error.
    #[cold]
    pub(crate) fn failed(&mut self, error: BoxError) -> KeyError {
        if self.settle(Verdict::of_error(&*error), None) {
            return KeyError::in_doubt(self.key.take(), error);
        }
        KeyError::inner(self.key.take(), error)
    }

    /// Polls the call, if what it waits for is of interest: what it says is about
    /// this call, and nothing of others with its key.
    #[inline]
    pub(crate) fn observe<T>(&mut self, poll: impl FnOnce() -> Poll<T>) -> Poll<T> {
        let Some(ticket) = &mut self.ticket else {
            return poll();
        };
        let (poll, noted) = Phase::observe(poll);
        if poll.is_pending() && ticket.waits(noted) {
            return Phase::Head.pending();
        }
        poll
    }

    /// The call has ended. Whether this end would deny what another call with the
    /// same key may have done.
    fn settle(&mut self, verdict: Verdict, status: Option<StatusCode>) -> bool {
        let Some(ticket) = self.ticket.take() else {
            if verdict == Verdict::Unknown {
                self.remember();
            }
            return false;
        };
        let end = match verdict {
            Verdict::NotExecuted { .. } => End::NotExecuted,
            Verdict::Unknown => End::Unknown,
            Verdict::Done => End::Done,
            // Where the body wasn't looked at, the request may have been another.
            Verdict::Rejected
                if ticket.knows_body()
                    && !self.keys.dialect.refuses_repeats
                    && status.is_some_and(Verdict::is_about_request) =>
            {
                End::Refused
            }
            Verdict::Rejected => End::TurnedAway,
        };
        ticket.settle(end)
    }

    /// The key was made here, and is about to be told to the caller, who may
    /// repeat the call with it.
    fn remember(&self) {
        if let (Some(memory), Some(key)) = (&self.keys.memory, &self.key) {
            memory.tell(key, self.since);
        }
    }
}
