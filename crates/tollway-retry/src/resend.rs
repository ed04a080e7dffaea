//! What is kept of a request for its next attempt.

use std::mem;

use http::Request;
use tollway_core::{Attempt, Deadline};
use tower_service::Service;

use crate::ReplayBody;
use crate::evidence::Evidence;
use crate::head::KeptHead;
use crate::replay::Replay;

/// What is kept for the next attempt.
pub(crate) enum Kept<S, B> {
    Resend(Resend<S, B>),
    /// No retry is ever made.
    Nothing(Evidence),
}

impl<S, B> Kept<S, B> {
    /// Keeps all of it for the next attempt, and whether that was possible.
    pub(crate) fn claim(&self) -> bool {
        match self {
            Self::Resend(resend) => resend.body.claim(),
            Self::Nothing(_) => false,
        }
    }
}

pub(crate) struct Resend<S, B> {
    pub(crate) service: S,
    pub(crate) head: KeptHead,
    pub(crate) body: Replay<B>,
}

impl<S, B> Resend<S, B> {
    /// Hands attempt number `attempt` to the service, which is ready. It may wait
    /// for a permit there, but not beyond `until`.
    pub(crate) fn send(
        &mut self,
        attempt: Attempt,
        max_attempts: u32,
        until: Option<Deadline>,
    ) -> S::Future
    where
        S: Service<Request<ReplayBody<B>>>,
    {
        let mut request = if attempt.number() >= max_attempts {
            // What can't be used again isn't copied, nor recorded.
            let body = mem::replace(&mut self.body, Replay::none()).next();
            self.head.take_request(body)
        } else {
            self.head.to_request(self.body.next())
        };
        request.extensions_mut().insert(attempt);
        if let Some(until) = until {
            until.insert_into(request.extensions_mut());
        }
        self.service.call(request)
    }
}
