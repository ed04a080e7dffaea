//! The guard as the services of a layer share it.

use std::hash::{BuildHasher, RandomState};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use http::Request;
use tokio::time::Instant;
use tollway_core::{IdempotencyKey, Phase};

use crate::guard::{Digest, End, Guard, Refusal};

/// A guard that many services share.
#[derive(Debug)]
pub(crate) struct Memory {
    guard: Mutex<Guard>,
    digester: Digester,
}

impl Memory {
    pub(crate) fn new(bound: usize) -> Self {
        Self {
            guard: Mutex::new(Guard::new(bound)),
            digester: Digester::default(),
        }
    }

    /// Lets a call go whose body is known or not. See [`Guard::admit`].
    pub(crate) fn admit<B>(
        self: &Arc<Self>,
        key: &IdempotencyKey,
        request: &Request<B>,
        body: Option<&[u8]>,
        life: Duration,
        now: Instant,
    ) -> Result<Ticket, Refusal> {
        let payload = self.digester.payload(request, body);
        let key = self.digester.key(key);
        let since = self.guard().admit(key, payload, life, now)?;
        Ok(Ticket {
            memory: Arc::clone(self),
            key,
            since,
            knows_body: body.is_some(),
            unsent: None,
            has_ended: false,
        })
    }

    /// See [`Guard::tell`].
    pub(crate) fn tell(&self, key: &IdempotencyKey, since: Instant) {
        let key = self.digester.key(key);
        self.guard().tell(key, since);
    }

    fn guard(&self) -> MutexGuard<'_, Guard> {
        // A panic can't leave it half-changed in a way that matters: at worst
        // a key is forgotten.
        self.guard.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A call that was let go. Dropped in flight, its outcome is unknown.
#[derive(Debug)]
pub(crate) struct Ticket {
    memory: Arc<Memory>,
    key: Digest,
    since: Instant,
    knows_body: bool,
    /// Whether all that it was seen to wait for comes before sending, if it was
    /// seen to wait.
    unsent: Option<bool>,
    has_ended: bool,
}

impl Ticket {
    /// Since when the key has been in use.
    pub(crate) fn since(&self) -> Instant {
        self.since
    }

    /// Whether the body is a part of what the key stands for.
    pub(crate) fn knows_body(&self) -> bool {
        self.knows_body
    }

    /// The call waits, and for this by its own account. Returns whether another
    /// one with its key is in doubt, of which that says nothing.
    pub(crate) fn waits(&mut self, noted: Option<Phase>) -> bool {
        let unsent = noted.is_some_and(Phase::is_before_sending);
        self.unsent = Some(unsent && self.unsent != Some(false));
        unsent && self.memory.guard().is_in_doubt(self.key, self.since)
    }

    /// The call has ended. See [`Guard::settle`].
    pub(crate) fn settle(mut self, end: End) -> bool {
        self.has_ended = true;
        self.memory.guard().settle(self.key, self.since, end)
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        if !self.has_ended {
            let end = match self.unsent {
                Some(true) => End::NotExecuted,
                _ => End::Unknown,
            };
            let mut guard = self.memory.guard();
            guard.settle(self.key, self.since, end);
        }
    }
}

/// Two keyed hashes of 64 bits, side by side. At 128 bits an accidental match
/// is out of the question; the random keys keep a payload that somebody else
/// chose from being made to match.
#[derive(Debug, Default)]
struct Digester(RandomState, RandomState);

impl Digester {
    fn key(&self, key: &IdempotencyKey) -> Digest {
        self.digest(key.as_str())
    }

    /// Method, path with query, and the body if it is known.
    fn payload<B>(&self, request: &Request<B>, body: Option<&[u8]>) -> Digest {
        let path = request.uri().path_and_query().map(|path| path.as_str());
        self.digest((request.method(), path, body))
    }

    fn digest(&self, value: impl std::hash::Hash) -> Digest {
        Digest([self.0.hash_one(&value), self.1.hash_one(&value)])
    }
}
