//! Verdict rules as data.

use std::error::Error;
use std::fmt;

use http::{HeaderMap, HeaderName, StatusCode};

use super::{Answer, BodyRule, Classify, Judgement};
use crate::{RetryAdvice, Scope, Verdict};

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
        if let (Verdict::NotExecuted { scope, .. }, Some(said)) =
            (&mut judgement.verdict, self.scope(answer.headers))
        {
            *scope = said;
        }
        self.override_retry(&mut judgement, answer);
        judgement
    }

    fn classify_error(&self, error: &(dyn Error + 'static)) -> Option<Verdict> {
        self.is_connect?(error).then_some(Verdict::NO_EFFECT)
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, SystemTime};

    use http::HeaderValue;
    use http::header::RETRY_AFTER;

    use super::*;
    use crate::Test;

    fn judge(rules: &Rules, status: u16, headers: &HeaderMap, body: &str) -> Judgement {
        rules.classify(&Answer {
            status: StatusCode::from_u16(status).unwrap(),
            headers,
            body: body.as_bytes(),
            broken: false,
            clock: || SystemTime::UNIX_EPOCH,
        })
    }

    fn verdict(rules: &Rules, status: u16, body: &str) -> Verdict {
        judge(rules, status, &HeaderMap::new(), body).verdict
    }

    fn header(name: &'static str, value: &'static str) -> HeaderMap {
        let mut headers = HeaderMap::new();
        headers.insert(name, HeaderValue::from_static(value));
        headers
    }

    #[test]
    fn without_rules_the_status_speaks_for_itself() {
        let rules = Rules::new();
        for (status, expected) in [
            (200, Verdict::Done),
            (204, Verdict::Done),
            (301, Verdict::Rejected),
            (302, Verdict::Unknown),
            (303, Verdict::Unknown),
            (304, Verdict::Rejected),
            (307, Verdict::Rejected),
            (308, Verdict::Rejected),
            (400, Verdict::Rejected),
            (402, Verdict::Rejected),
            (409, Verdict::Rejected),
            (408, Verdict::Unknown),
            (425, Verdict::NO_EFFECT),
            (500, Verdict::Unknown),
            (501, Verdict::Rejected),
            (503, Verdict::Unknown),
            (504, Verdict::Unknown),
            (599, Verdict::Unknown),
            // No status of HTTP: to be taken for a 5xx (RFC 9110, section 15).
            (600, Verdict::Unknown),
            (999, Verdict::Unknown),
        ] {
            assert_eq!(verdict(&rules, status, ""), expected, "{status}");
        }
    }

    #[test]
    fn a_rule_that_can_never_hold_is_refused() {
        #[expect(clippy::reversed_empty_ranges, reason = "that is the mistake")]
        let inverted = 299..=200;
        for (statuses, path, wrong) in [
            (inverted, "code", "statuses of a body rule is 299..=200, "),
            (0..=99, "code", "statuses of a body rule is 0..=99, "),
            (
                1000..=1001,
                "code",
                "statuses of a body rule is 1000..=1001, ",
            ),
            (200..=299, "", "path of a body rule is ``, "),
            (
                200..=299,
                "/error/code",
                "path of a body rule is `/error/code`, ",
            ),
            (200..=299, "$.error", "path of a body rule is `$.error`, "),
            (
                200..=299,
                "error..code",
                "path of a body rule is `error..code`, ",
            ),
            (200..=299, "error.", "path of a body rule is `error.`, "),
        ] {
            let right = BodyRule::new(200..=200, "$type.a/b.0", Test::Present);
            let rules = Rules::new().body(right);
            assert!(rules.check().is_ok());
            let rules = rules.body(BodyRule::new(statuses, path, Test::Present));
            let error = rules.check().unwrap_err().to_string();
            assert!(error.starts_with(&format!("{wrong}expected ")), "{error}");
        }
    }

    #[test]
    fn a_delay_asked_for_with_503_is_advice() {
        let headers = header(RETRY_AFTER.as_str(), "7");
        let judgement = judge(&Rules::new(), 503, &headers, "");
        assert_eq!(judgement.verdict, Verdict::Unknown);
        let advice = Some(RetryAdvice::After(Duration::from_secs(7)));
        assert_eq!(judgement.advice, advice);
    }

    #[test]
    fn a_delay_asked_for_is_kept_whatever_else_the_rules_say() {
        let headers = header(RETRY_AFTER.as_str(), "7");
        let unknown = Rules::new().status(StatusCode::SERVICE_UNAVAILABLE, Verdict::Unknown);
        let judgement = judge(&unknown, 503, &headers, "");
        let delay = Duration::from_secs(7);
        assert_eq!(judgement.advice, Some(RetryAdvice::After(delay)));
        // A 409 is final elsewhere, and so is a 400.
        let conflict = Rules::new().status(StatusCode::CONFLICT, Verdict::Unknown);
        let judgement = judge(&conflict, 409, &headers, "");
        assert_eq!(judgement.advice, Some(RetryAdvice::After(delay)));
        let name = HeaderName::from_static("stripe-should-retry");
        let mut told = headers.clone();
        told.insert(name.clone(), HeaderValue::from_static("true"));
        let judgement = judge(&Rules::new().should_retry_header(name), 400, &told, "");
        assert_eq!(judgement.advice, Some(RetryAdvice::After(delay)));
        let refused = Rules::new().status(StatusCode::SERVICE_UNAVAILABLE, Verdict::NO_EFFECT);
        assert!(matches!(
            judge(&refused, 503, &headers, "").verdict,
            Verdict::NotExecuted { retry_after: Some(asked), .. } if asked == delay
        ));
    }

    #[test]
    fn a_425_is_worth_one_retry() {
        let judgement = judge(&Rules::new(), 425, &HeaderMap::new(), "");
        assert_eq!(judgement.advice, Some(RetryAdvice::Once));
    }

    #[test]
    fn a_redirect_to_what_came_of_it_would_only_come_again() {
        // With or without a delay until it may be followed.
        for headers in [HeaderMap::new(), header(RETRY_AFTER.as_str(), "7")] {
            for status in [302, 303] {
                let judgement = judge(&Rules::new(), status, &headers, "");
                assert_eq!(judgement.verdict, Verdict::Unknown);
                assert_eq!(judgement.advice, Some(RetryAdvice::Never));
            }
        }
    }

    #[test]
    fn what_was_done_before_is_said_whatever_else_the_rules_say() {
        let rules = Rules::new()
            .retry_only([503])
            .should_retry_header(HeaderName::from_static("should-retry"))
            .body(BodyRule::new(409..=409, "code", Test::Is("DUPLICATE".into())).done_before());
        for headers in [
            HeaderMap::new(),
            header(RETRY_AFTER.as_str(), "7"),
            header("should-retry", "false"),
            header("should-retry", "true"),
        ] {
            let judgement = judge(&rules, 409, &headers, r#"{"code":"DUPLICATE"}"#);
            assert_eq!(judgement.verdict, Verdict::Unknown);
            assert_eq!(judgement.advice, Some(RetryAdvice::DoneBefore));
        }
        assert_eq!(
            verdict(&rules, 409, r#"{"code":"OTHER"}"#),
            Verdict::Rejected
        );
        // Compressed by something on the way, or from something else.
        for body in ["", "{}", "<html>", "\u{1f}\u{8b}"] {
            let judgement = judge(&rules, 409, &HeaderMap::new(), body);
            assert_eq!(judgement.verdict, Verdict::Unknown, "{body}");
            assert_eq!(judgement.advice, Some(RetryAdvice::Never));
            assert_eq!(verdict(&rules, 404, body), Verdict::Rejected);
        }
        // What the status says is done needs no scalar to be so.
        let rules =
            Rules::new().body(BodyRule::new(200..=200, "code", Test::Is("D".into())).done_before());
        assert_eq!(verdict(&rules, 200, "{}"), Verdict::Done);
    }

    #[test]
    fn the_reason_header_names_the_limit() {
        let name = HeaderName::from_static("stripe-rate-limited-reason");
        let rules = Rules::new().reason_header(name.clone());
        for (reason, expected) in [
            ("global-rate", Scope::GlobalRate),
            ("endpoint-rate", Scope::EndpointRate),
            ("global-concurrency", Scope::GlobalConcurrency),
            ("endpoint-concurrency", Scope::EndpointConcurrency),
            ("resource-specific", Scope::Resource),
            ("something-new", Scope::Unspecified),
        ] {
            let headers = header("stripe-rate-limited-reason", reason);
            let Verdict::NotExecuted { scope, .. } = judge(&rules, 429, &headers, "").verdict
            else {
                panic!("a 429 is not executed");
            };
            assert_eq!(scope, expected, "{reason}");
        }
    }

    #[test]
    fn a_lock_concerns_one_call_unless_a_limit_is_named() {
        let reason = HeaderName::from_static("stripe-rate-limited-reason");
        let rules = Rules::new().reason_header(reason.clone()).body(
            BodyRule::new(429..=429, "error.code", Test::Is("lock_timeout".into()))
                .unless_header(reason)
                .means(Verdict::NO_EFFECT),
        );
        let body = r#"{"error":{"code":"lock_timeout"}}"#;
        assert_eq!(verdict(&rules, 429, body), Verdict::NO_EFFECT);
        let headers = header("stripe-rate-limited-reason", "global-rate");
        assert!(!rules.needs_body(StatusCode::TOO_MANY_REQUESTS, &headers));
        assert!(matches!(
            judge(&rules, 429, &headers, body).verdict,
            Verdict::NotExecuted {
                scope: Scope::GlobalRate,
                ..
            }
        ));
    }

    #[test]
    fn the_should_retry_header_overrides_both_ways() {
        let name = HeaderName::from_static("stripe-should-retry");
        let rules = Rules::new().should_retry_header(name);
        let no = judge(&rules, 500, &header("stripe-should-retry", "false"), "");
        assert_eq!(no.advice, Some(RetryAdvice::Never));
        assert_eq!(no.verdict, Verdict::Unknown);
        let yes = judge(&rules, 400, &header("stripe-should-retry", "true"), "");
        assert_eq!(yes.verdict, Verdict::Unknown);
        let done = judge(&rules, 200, &header("stripe-should-retry", "true"), "");
        assert_eq!(done, Verdict::Done.into());
    }

    #[test]
    fn statuses_outside_the_list_keep_their_verdict_and_are_not_retried() {
        let rules = Rules::new().retry_only([429, 500, 502, 503, 504]);
        let judgement = judge(&rules, 507, &HeaderMap::new(), "");
        assert_eq!(judgement.verdict, Verdict::Unknown);
        assert_eq!(judgement.advice, Some(RetryAdvice::Never));
        assert_eq!(judge(&rules, 503, &HeaderMap::new(), "").advice, None);
        assert_eq!(judge(&rules, 400, &HeaderMap::new(), "").advice, None);
    }

    #[test]
    fn the_should_retry_header_goes_before_the_list() {
        let name = HeaderName::from_static("should-retry");
        let rules = Rules::new().retry_only([503]).should_retry_header(name);
        for (status, said, advice) in [
            (500, "true", None),
            (500, "false", Some(RetryAdvice::Never)),
            (500, "perhaps", Some(RetryAdvice::Never)),
            (503, "true", None),
            (503, "false", Some(RetryAdvice::Never)),
            (503, "perhaps", None),
        ] {
            let judgement = judge(&rules, status, &header("should-retry", said), "");
            assert_eq!(judgement.advice, advice, "{status} {said}");
        }
    }

    #[test]
    fn what_a_broken_body_leaves_open_heeds_what_is_known() {
        let is = |path, text: &'static str| BodyRule::new(200..=499, path, Test::Is(text.into()));
        let rules = Rules::new()
            .body(is("status", "failed").means(Verdict::Rejected))
            .body(is("reason", "locked"));
        let headers = header(RETRY_AFTER.as_str(), "7");
        let judge = |body: &str| {
            rules.classify(&Answer {
                status: StatusCode::FORBIDDEN,
                headers: &headers,
                body: body.as_bytes(),
                broken: true,
                clock: || SystemTime::UNIX_EPOCH,
            })
        };
        let open = judge(r#"{"status":"paid","rea"#);
        assert_eq!(open.verdict, Verdict::Unknown);
        let delay = Duration::from_secs(7);
        assert_eq!(open.advice, Some(RetryAdvice::After(delay)));
        // One rule that holds is enough.
        let held = judge(r#"{"status":"failed","rea"#);
        assert_eq!(held, Verdict::Rejected.into());
    }

    #[test]
    fn the_longer_of_two_delays_counts() {
        let rules =
            Rules::new().body(BodyRule::new(429..=429, "message", Test::Present).delay_after("in"));
        let headers = header(RETRY_AFTER.as_str(), "30");
        let judgement = judge(&rules, 429, &headers, r#"{"message":"in 5 seconds"}"#);
        assert!(matches!(
            judgement.verdict,
            Verdict::NotExecuted { retry_after: Some(delay), .. } if delay.as_secs() == 30
        ));
    }
}
