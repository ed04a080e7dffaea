//! Verdict rules about bodies, as data.

use std::borrow::Cow;
use std::ops::RangeInclusive;
use std::time::Duration;

use http::{HeaderMap, HeaderName, StatusCode};

use super::{Answer, Judgement, json};
use crate::retry_after::{MAX, seconds};
use crate::{RetryAdvice, Scope, Verdict};

/// A rule about one scalar in a JSON body.
///
/// ```
/// use tollway_core::{BodyRule, Test, Verdict};
///
/// // Savvy answers 200, and says in the body that it refused.
/// let refused = BodyRule::new(200..=299, "responseCode", Test::IsNot("0".into()))
///     .means(Verdict::Rejected);
/// ```
#[derive(Clone, Debug)]
pub struct BodyRule {
    statuses: RangeInclusive<u16>,
    path: Cow<'static, str>,
    test: Test,
    meaning: Meaning,
    unless: Option<HeaderName>,
}

/// What is asked of a scalar in a body.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Test {
    /// It is there, and reads like this: a string between its quotes, a number
    /// as JSON writes it.
    Is(Cow<'static, str>),
    /// It is there, and reads unlike this.
    IsNot(Cow<'static, str>),
    /// It isn't in the part of the body that was read, which may not be JSON at
    /// all.
    Missing,
    /// It is there.
    Present,
}

/// What it means that a rule holds.
#[derive(Clone, Debug)]
enum Meaning {
    Verdict(Verdict),
    /// Not executed, and the scalar is a text in which the delay stands behind
    /// these words.
    DelayAfter(Cow<'static, str>),
    DoneBefore,
}

impl BodyRule {
    /// A rule for answers of these statuses about the scalar at this path
    /// (fields and array positions separated by dots, `errors.0.code`; no JSON
    /// pointer, no `$`). Unless told otherwise it means that the outcome is
    /// unknown.
    pub fn new(
        statuses: RangeInclusive<u16>,
        path: impl Into<Cow<'static, str>>,
        test: Test,
    ) -> Self {
        Self {
            statuses,
            path: path.into(),
            test,
            meaning: Meaning::Verdict(Verdict::Unknown),
            unless: None,
        }
    }

    /// That it holds means this verdict.
    #[must_use]
    pub fn means(mut self, verdict: Verdict) -> Self {
        self.meaning = Meaning::Verdict(verdict);
        self
    }

    /// That it holds means: not executed, and the scalar is a text in which the
    /// delay stands behind `words`, as a number: `Try again in 19 seconds`. Its
    /// unit is the one that it names, from milliseconds to days, and else the
    /// second; further ones with their units are added, `1 minute 30 seconds`.
    /// Without a number, not executed, with no delay asked for.
    #[must_use]
    pub fn delay_after(mut self, words: impl Into<Cow<'static, str>>) -> Self {
        self.meaning = Meaning::DelayAfter(words.into());
        self
    }

    /// That it holds means: a call with the same idempotency key was done before.
    /// See [`RetryAdvice::DoneBefore`].
    ///
    /// A rejection in which the scalar isn't found, since the body can't be read,
    /// may mean the same: its outcome is unknown, and not to be tried again.
    #[must_use]
    pub fn done_before(mut self) -> Self {
        self.meaning = Meaning::DoneBefore;
        self
    }

    /// The rule doesn't apply to answers with this header, whose bodies then
    /// needn't be read.
    #[must_use]
    pub fn unless_header(mut self, name: HeaderName) -> Self {
        self.unless = Some(name);
        self
    }

    /// What keeps it from ever holding, if anything does: the field, the value,
    /// what was expected.
    pub(super) fn check(&self) -> Result<(), (&'static str, String, &'static str)> {
        let (first, last) = (self.statuses.start(), self.statuses.end());
        if first > last || *last < 100 || *first > 999 {
            let statuses = format!("{first}..={last}");
            return Err((
                "statuses",
                statuses,
                "a range of statuses, such as 200..=299",
            ));
        }
        let is_pointer = self.path.starts_with('/') || self.path.starts_with("$.");
        if is_pointer || self.path.split('.').any(str::is_empty) {
            let path = format!("`{}`", self.path);
            return Err((
                "path",
                path,
                "names separated by dots, such as errors.0.code",
            ));
        }
        Ok(())
    }

    pub(super) fn applies(&self, status: StatusCode, headers: &HeaderMap) -> bool {
        let excepted = |header| headers.contains_key(header);
        self.statuses.contains(&status.as_u16()) && !self.unless.as_ref().is_some_and(excepted)
    }

    /// Whether a body that failed behind this, and may have gone on, can't change
    /// what the rule says.
    pub(super) fn is_decided(&self, body: &[u8]) -> bool {
        json::scalar(body, &self.path).is_some()
    }

    /// What it means that no rule held in what there is of this body, where this
    /// one may have.
    pub(super) fn left_open(&self, answer: &Answer<'_>) -> Option<Judgement> {
        let advice = match self.meaning {
            // A repeat would be told that it was done before, and take this
            // attempt for the one that did it.
            Meaning::DoneBefore => Some(RetryAdvice::Never),
            Meaning::Verdict(_) | Meaning::DelayAfter(_) if answer.broken => None,
            Meaning::Verdict(_) | Meaning::DelayAfter(_) => return None,
        };
        let open = !self.is_decided(answer.body) || self.read(answer.body).is_some();
        open.then_some(Judgement {
            verdict: Verdict::Unknown,
            advice,
        })
    }

    pub(super) fn read(&self, body: &[u8]) -> Option<Judgement> {
        let scalar = json::scalar(body, &self.path);
        let holds = match (&self.test, scalar.as_deref()) {
            (Test::Is(wanted), Some(scalar)) => wanted == scalar,
            (Test::IsNot(refused), Some(scalar)) => refused != scalar,
            (Test::Present, Some(_)) | (Test::Missing, None) => true,
            _ => false,
        };
        holds.then(|| match &self.meaning {
            Meaning::Verdict(verdict) => (*verdict).into(),
            Meaning::DelayAfter(words) => Judgement::from(Verdict::NotExecuted {
                retry_after: scalar.and_then(|text| delay_after(&text, words)),
                scope: Scope::Unspecified,
            }),
            Meaning::DoneBefore => Judgement {
                verdict: Verdict::Unknown,
                advice: Some(RetryAdvice::DoneBefore),
            },
        })
    }
}

/// The delay behind `words` in `text`: one part or several, `1 minute 30 seconds`.
fn delay_after(text: &str, words: &str) -> Option<Duration> {
    let (_, rest) = text.split_once(words)?;
    let (seconds, unit, mut rest) = part(rest)?;
    let Some(unit) = unit else {
        return Some(seconds);
    };
    let mut delay = times(seconds, unit);
    while let Some((seconds, Some(unit), more)) = part(behind_comma(rest)) {
        delay = delay.saturating_add(times(seconds, unit));
        rest = more;
    }
    Some(delay.min(MAX))
}

/// The number that `text` begins with, as seconds, how many milliseconds its unit
/// has, if it names one, and what follows.
fn part(text: &str) -> Option<(Duration, Option<u32>, &str)> {
    let (number, rest) = split_where(text.trim_start(), |c| !c.is_ascii_digit() && c != '.');
    let whole = number.trim_end_matches('.');
    // Behind a full stop stands another sentence.
    let rest = if number == whole { rest } else { "" };
    let (unit, rest) = split_where(rest.trim_start(), |c| !c.is_ascii_alphabetic());
    let unit = match unit.to_ascii_lowercase().as_str() {
        "ms" | "millisecond" | "milliseconds" => Some(1),
        "s" | "sec" | "secs" | "second" | "seconds" => Some(1000),
        "m" | "min" | "mins" | "minute" | "minutes" => Some(60 * 1000),
        "h" | "hr" | "hrs" | "hour" | "hours" => Some(60 * 60 * 1000),
        "d" | "day" | "days" => Some(24 * 60 * 60 * 1000),
        _ => None,
    };
    Some((seconds(whole)?, unit, rest))
}

/// So many units of so many milliseconds.
fn times(seconds: Duration, unit: u32) -> Duration {
    seconds.saturating_mul(unit) / 1000
}

fn behind_comma(text: &str) -> &str {
    let text = text.trim_start().trim_start_matches(',').trim_start();
    text.strip_prefix("and ").unwrap_or(text)
}

/// What stands before the first character like this, and the rest.
fn split_where(text: &str, is_like_this: fn(char) -> bool) -> (&str, &str) {
    text.split_at(text.find(is_like_this).unwrap_or(text.len()))
}

#[cfg(test)]
mod tests {
    use std::time::SystemTime;

    use super::*;
    use crate::{Classify, Rules};

    fn verdict(rules: &Rules, status: u16, body: &str) -> Verdict {
        let answer = Answer {
            status: StatusCode::from_u16(status).unwrap(),
            headers: &HeaderMap::new(),
            body: body.as_bytes(),
            broken: false,
            clock: || SystemTime::UNIX_EPOCH,
        };
        rules.classify(&answer).verdict
    }

    #[test]
    fn a_delay_is_read_out_of_a_text() {
        let rules = Rules::new()
            .body(BodyRule::new(429..=429, "message", Test::Present).delay_after("Try again in"));
        for (message, expected) in [
            (
                "Rate limit is exceeded. Try again in 19 seconds.",
                Some(19_000),
            ),
            ("Try again in 0.25 seconds.", Some(250)),
            ("Try again in 7.", Some(7_000)),
            ("Try again in 7. Minutes count.", Some(7_000)),
            ("Try again in 1 minute.", Some(60_000)),
            ("Try again in 2.5 Minutes.", Some(150_000)),
            ("Try again in 3min", Some(180_000)),
            ("Try again in 1 hour, please.", Some(3_600_000)),
            ("Try again in 2 days.", Some(172_800_000)),
            ("Try again in 250ms.", Some(250)),
            ("Try again in 1500 milliseconds", Some(1_500)),
            ("Try again in 99999999999 hours.", Some(4_294_967_295_000)),
            ("Try again in 1 minute 30 seconds.", Some(90_000)),
            ("Try again in 1h2m3s", Some(3_723_000)),
            ("Try again in 2 minutes, 5 seconds.", Some(125_000)),
            ("Try again in 1 hour and 1 minute.", Some(3_660_000)),
            ("Try again in 1 minute 30", Some(60_000)),
            ("Try again in 5 seconds, 3 attempts are left.", Some(5_000)),
            ("Try again in 5, 3 minutes at most.", Some(5_000)),
            ("Try again in 2 seconds. 5 minutes are usual.", Some(2_000)),
            ("Try again in a while.", None),
            ("Slow down.", None),
        ] {
            let body = format!(r#"{{"statusCode":429,"message":"{message}"}}"#);
            let Verdict::NotExecuted { retry_after, .. } = verdict(&rules, 429, &body) else {
                panic!("a 429 is not executed");
            };
            assert_eq!(
                retry_after,
                expected.map(Duration::from_millis),
                "{message}"
            );
        }
    }

    #[test]
    fn a_business_error_in_a_200_is_a_rejection_and_a_garbled_200_is_unknown() {
        let rules = Rules::new()
            .body(
                BodyRule::new(200..=299, "responseCode", Test::IsNot("0".into()))
                    .means(Verdict::Rejected),
            )
            .body(BodyRule::new(200..=299, "responseCode", Test::Missing));
        assert_eq!(verdict(&rules, 200, r#"{"responseCode":0}"#), Verdict::Done);
        assert_eq!(
            verdict(&rules, 200, r#"{"responseCode":51}"#),
            Verdict::Rejected
        );
        assert_eq!(verdict(&rules, 200, r#"{"responseCo"#), Verdict::Unknown);
        assert_eq!(
            verdict(&rules, 404, r#"{"responseCode":0}"#),
            Verdict::Rejected
        );
    }
}
