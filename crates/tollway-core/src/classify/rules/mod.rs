//! Verdict rules as data.

use std::error::Error;
use std::fmt;

use http::{HeaderMap, HeaderName, StatusCode};

use super::{Answer, BodyRule, Classify, Judgement};
use crate::{Fault, Phase, RetryAdvice, Scope, Verdict};

/// A provider's verdict rules as data.
///
/// The default knows nothing of the provider:
/// [`Judgement::of_head`]. Each method adds one fact about it.
///
/// The order of precedence: a [`BodyRule`] that holds, then a
/// [status](Self::status) with a verdict of its own, then the head. Upon that,
/// the header that overrides retries and the list of statuses worth a retry add
/// their advice.
///
/// Where a body failed before a rule about it found its scalar, no rule behind
/// that one is asked, and if the status alone would be final, the outcome is
/// unknown: the rule may have held. So is that of a rejection in which a rule that
/// would say ["done before"](BodyRule::done_before) finds none, whatever its body.
#[derive(Clone, Debug, Default)]
pub struct Rules {
    statuses: Vec<(u16, Verdict)>,
    retried: Option<Vec<u16>>,
    should_retry: Option<HeaderName>,
    reason: Option<HeaderName>,
    body: Vec<BodyRule>,
    is_connect: Option<fn(&(dyn Error + 'static)) -> bool>,
}

impl Rules {
    /// The rules when nothing is known of the provider.
    #[must_use]
    pub const fn new() -> Self {
        Self {
            statuses: Vec::new(),
            retried: None,
            should_retry: None,
            reason: None,
            body: Vec::new(),
            is_connect: None,
        }
    }

    /// This status means this verdict, whatever it usually means. (Stripe's 409:
    /// the same key is in use right now, so the outcome is unknown.)
    #[must_use]
    pub fn status(mut self, status: StatusCode, verdict: Verdict) -> Self {
        self.statuses.push((status.as_u16(), verdict));
        self
    }

    /// Only these statuses are worth a retry. Others keep their verdict, with
    /// [`RetryAdvice::Never`]. (Modern Treasury lists its own.)
    #[must_use]
    pub fn retry_only(mut self, statuses: impl IntoIterator<Item = u16>) -> Self {
        self.retried = Some(statuses.into_iter().collect());
        self
    }

    /// This header overrides the client's own judgement of a failure: `true`
    /// makes a rejection one of unknown outcome, which a retry may try again;
    /// `false` forbids a retry. (`Stripe-Should-Retry`.)
    #[must_use]
    pub fn should_retry_header(mut self, name: HeaderName) -> Self {
        self.should_retry = Some(name);
        self
    }

    /// This header of a 429 says which limit was hit: `global-rate`,
    /// `endpoint-rate`, `global-concurrency`, `endpoint-concurrency` or
    /// `resource-specific`. (`Stripe-Rate-Limited-Reason`.)
    #[must_use]
    pub fn reason_header(mut self, name: HeaderName) -> Self {
        self.reason = Some(name);
        self
    }

    /// A rule about the body. Of several that hold, the first counts.
    #[must_use]
    pub fn body(mut self, rule: BodyRule) -> Self {
        self.body.push(rule);
        self
    }

    /// These errors of the client below are connect errors: nothing was sent, so
    /// the verdict is [`NO_EFFECT`](Verdict::NO_EFFECT), and a retry may repeat
    /// the call whatever its method.
    ///
    /// Not needed over Tollway's pool, whose errors say so themselves. Over
    /// another client they count as [`Unknown`](Verdict::Unknown) unless it is
    /// said here.
    ///
    /// Only of a client that follows no redirects: behind a 303 the payment has
    /// been made, and what can't be connected to is the place where its receipt
    /// lies. reqwest's follows ten of them, and says `is_connect` then too, unless
    /// it is built with `redirect::Policy::none()`.
    ///
    /// ```
    /// # mod reqwest {
    /// #     #[derive(Debug)]
    /// #     pub struct Error;
    /// #     impl Error {
    /// #         pub fn is_connect(&self) -> bool {
    /// #             true
    /// #         }
    /// #     }
    /// # }
    /// use tollway_core::Rules;
    ///
    /// // hyper-util's `client::legacy::Error` has an `is_connect` as well.
    /// let rules = Rules::new()
    ///     .connect_errors(|error| error.downcast_ref().is_some_and(reqwest::Error::is_connect));
    /// # impl std::error::Error for reqwest::Error {}
    /// # impl std::fmt::Display for reqwest::Error {
    /// #     fn fmt(&self, _: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
    /// #         Ok(())
    /// #     }
    /// # }
    /// ```
    #[must_use]
    pub fn connect_errors(mut self, is_connect: fn(&(dyn Error + 'static)) -> bool) -> Self {
        self.is_connect = Some(is_connect);
        self
    }

    /// Whether each rule about a body can hold at all. One that can't is a
    /// mistake that nobody would notice: a refusal in a 200 would be taken for a
    /// success. tollway's `Client` asks when it is built; who puts layers together
    /// asks here.
    ///
    /// # Errors
    ///
    /// Where one has no status, or a path that leads nowhere: an empty name in it,
    /// a slash or `$.` at its start.
    pub fn check(&self) -> Result<(), InvalidRules> {
        self.body.iter().try_for_each(|rule| {
            let invalid = |(field, value, expected)| InvalidRules {
                field,
                value,
                expected,
            };
            rule.check().map_err(invalid)
        })
    }

    /// What the first rule means that holds. Of a body that failed, none says
    /// anything behind one that may have held.
    fn of_body(&self, answer: &Answer<'_>) -> Option<Judgement> {
        self.about(answer)
            .take_while(|rule| !answer.broken || rule.is_decided(answer.body))
            .find_map(|rule| rule.read(answer.body))
    }

    /// What a body leaves open in which no rule held.
    #[cold]
    fn left_open(&self, answer: &Answer<'_>) -> Option<Judgement> {
        self.about(answer)
            .filter_map(|rule| rule.left_open(answer))
            .max_by_key(|open| open.advice.is_some())
    }

    /// The rules that apply to an answer with this head.
    fn about(&self, answer: &Answer<'_>) -> impl Iterator<Item = &BodyRule> {
        let (status, headers) = (answer.status, answer.headers);
        let rules = self.body.iter();
        rules.filter(move |rule| rule.applies(status, headers))
    }

    /// What the status alone means here, if that was said.
    fn of_status(&self, status: StatusCode) -> Option<Judgement> {
        let rules = self.statuses.iter();
        rules
            .rev()
            .find_map(|(code, verdict)| (*code == status.as_u16()).then(|| (*verdict).into()))
    }

    fn scope(&self, headers: &HeaderMap) -> Option<Scope> {
        Some(match headers.get(self.reason.as_ref()?)?.as_bytes() {
            b"global-rate" => Scope::GlobalRate,
            b"endpoint-rate" => Scope::EndpointRate,
            b"global-concurrency" => Scope::GlobalConcurrency,
            b"endpoint-concurrency" => Scope::EndpointConcurrency,
            b"resource-specific" => Scope::Resource,
            _ => Scope::Unspecified,
        })
    }

    fn override_retry(&self, judgement: &mut Judgement, answer: &Answer<'_>) {
        let header = self
            .should_retry
            .as_ref()
            .and_then(|name| answer.headers.get(name));
        match header.map(|value| value.as_bytes()) {
            Some(b"true") if judgement.verdict == Verdict::Rejected => {
                let unknown = Judgement::from(Verdict::Unknown);
                *judgement = unknown.heeding(answer.headers, answer.clock);
            }
            Some(b"false") => forbid(judgement),
            Some(b"true") => {}
            _ => self.retry_listed_only(judgement, answer.status),
        }
    }

    fn retry_listed_only(&self, judgement: &mut Judgement, status: StatusCode) {
        let listed = self
            .retried
            .as_ref()
            .is_none_or(|list| list.contains(&status.as_u16()));
        if !listed {
            forbid(judgement);
        }
    }
}

/// Rules of which one can never hold: which field of it, what it was, and what was
/// expected.
#[derive(Debug)]
pub struct InvalidRules {
    field: &'static str,
    value: String,
    expected: &'static str,
}

impl fmt::Display for InvalidRules {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            field,
            value,
            expected,
        } = self;
        write!(f, "{field} of a body rule is {value}, expected {expected}")
    }
}

impl Error for InvalidRules {}

/// Advises against a retry, where nothing does yet.
fn forbid(judgement: &mut Judgement) {
    if !judgement.verdict.is_final() && judgement.advice != Some(RetryAdvice::DoneBefore) {
        judgement.advice = Some(RetryAdvice::Never);
    }
}

impl Classify for Rules {
    fn needs_body(&self, status: StatusCode, headers: &HeaderMap) -> bool {
        self.body.iter().any(|rule| rule.applies(status, headers))
    }

    fn classify(&self, answer: &Answer<'_>) -> Judgement {
        let (headers, clock) = (answer.headers, answer.clock);
        let ruled = self.of_body(answer);
        let mut judgement = match ruled.or_else(|| self.of_status(answer.status)) {
            Some(judgement) => judgement.heeding(headers, clock),
            None => Judgement::of_head_by(answer.status, headers, clock),
        };
        if ruled.is_none()
            && (answer.broken || judgement.verdict == Verdict::Rejected)
            && judgement.verdict.is_final()
            && let Some(open) = self.left_open(answer)
        {
            judgement = open.heeding(headers, clock);
        }
        if let Verdict::NotExecuted { scope, .. } = &mut judgement.verdict
            && let Some(said) = self.scope(answer.headers)
        {
            *scope = said;
        }
        if judgement.verdict != Verdict::Done {
            self.override_retry(&mut judgement, answer);
        }
        judgement
    }

    fn classify_error(&self, error: &(dyn Error + 'static)) -> Option<Fault> {
        let fault = || Fault::new(Verdict::NO_EFFECT).in_phase(Phase::Connect);
        self.is_connect?(error).then(fault)
    }
}

#[cfg(test)]
mod tests;
