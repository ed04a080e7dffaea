//! The header fields in which providers say what is left of a quota.

use std::time::{Duration, SystemTime};

use http::{HeaderMap, HeaderName};
use sfv::{BareItem, Item, List, ListEntry, Parser};
use smallvec::SmallVec;
use tollway_core::server_now;

/// One thing that a provider says of one of its quotas: so many more are
/// allowed within so long.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Remainder {
    pub(crate) left: u32,
    pub(crate) within: Duration,
    /// The quota's window and limit, if it says.
    pub(crate) window: Option<Duration>,
    pub(crate) limit: Option<u32>,
}

pub(crate) type Remainders = SmallVec<[Remainder; 2]>;

/// Longer than this, a field is read no further: it holds no useful list.
const LONGEST: usize = 1024;
/// A longer time to wait is a mistake of the provider, and is cut to this.
pub(crate) const LATEST: Duration = Duration::from_secs(86_400);

const RATE_LIMIT: HeaderName = HeaderName::from_static("ratelimit");
const RATE_LIMIT_POLICY: HeaderName = HeaderName::from_static("ratelimit-policy");
/// Limit, remaining, reset: the customary names, and those of the older drafts.
const TRIPLES: [[HeaderName; 3]; 2] = [
    [
        HeaderName::from_static("x-ratelimit-limit"),
        HeaderName::from_static("x-ratelimit-remaining"),
        HeaderName::from_static("x-ratelimit-reset"),
    ],
    [
        HeaderName::from_static("ratelimit-limit"),
        HeaderName::from_static("ratelimit-remaining"),
        HeaderName::from_static("ratelimit-reset"),
    ],
];

/// Whether there is anything to read. It costs less than looking up each name.
#[inline]
pub(crate) fn present(headers: &HeaderMap) -> bool {
    headers.keys().any(|name| {
        let name = name.as_str();
        name.strip_prefix("x-")
            .unwrap_or(name)
            .starts_with("ratelimit")
    })
}

/// Reads `RateLimit` with `RateLimit-Policy`
/// (draft-ietf-httpapi-ratelimit-headers), and the triples of
/// `X-RateLimit-Limit`, `-Remaining` and `-Reset`. A reset is in seconds, or,
/// where it is a billion or more, a Unix time by the provider's clock, for which
/// `now` is asked. What is malformed says nothing.
pub(crate) fn read(headers: &HeaderMap, now: impl Fn() -> SystemTime) -> Remainders {
    let mut found = structured(headers);
    for [limit, remaining, reset] in &TRIPLES {
        let number = |name: &HeaderName| -> Option<f64> {
            let text = headers.get(name)?.to_str().ok()?;
            // The older drafts put policies behind the number.
            let number = text.split([',', ';']).next()?.trim();
            number.parse().ok().filter(|number: &f64| *number >= 0.0)
        };
        let (Some(left), Some(reset)) = (number(remaining), number(reset)) else {
            continue;
        };
        found.push(Remainder {
            left: whole(left),
            within: until(reset, || server_now(headers, now())),
            window: None,
            limit: number(limit).map(whole),
        });
    }
    found
}

fn structured(headers: &HeaderMap) -> Remainders {
    let policies = list(headers, &RATE_LIMIT_POLICY);
    let policy = |name: &str, parameter: &str| {
        let policy = policies.iter().find(|item| self::name(item) == Some(name));
        policy.and_then(|item| integer(item, parameter))
    };
    let limits = list(headers, &RATE_LIMIT);
    limits
        .iter()
        .filter_map(|item| {
            let name = name(item)?;
            let window = policy(name, "w").map(Duration::from_secs);
            Some(Remainder {
                left: u32::try_from(integer(item, "r")?).unwrap_or(u32::MAX),
                within: integer(item, "t")
                    .map(Duration::from_secs)
                    .or(window)?
                    .min(LATEST),
                window,
                limit: policy(name, "q").and_then(|limit| u32::try_from(limit).ok()),
            })
        })
        .collect()
}

/// The items of a structured field, over all its lines.
fn list(headers: &HeaderMap, name: &HeaderName) -> Vec<Item> {
    let mut items = Vec::new();
    for line in headers.get_all(name) {
        if line.len() > LONGEST {
            continue;
        }
        let Ok(entries) = Parser::new(line.as_bytes()).parse::<List>() else {
            continue;
        };
        items.extend(entries.into_iter().filter_map(|entry| match entry {
            ListEntry::Item(item) => Some(item),
            ListEntry::InnerList(_) => None,
        }));
    }
    items
}

fn name(item: &Item) -> Option<&str> {
    match &item.bare_item {
        BareItem::String(name) => Some(name.as_str()),
        BareItem::Token(name) => Some(name.as_str()),
        _ => None,
    }
}

fn integer(item: &Item, parameter: &str) -> Option<u64> {
    match item.params.get(parameter)? {
        BareItem::Integer(value) => u64::try_from(i64::from(*value)).ok(),
        _ => None,
    }
}

#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "not negative, and the cast saturates"
)]
fn whole(number: f64) -> u32 {
    number as u32
}

fn until(reset: f64, now: impl Fn() -> SystemTime) -> Duration {
    const EPOCH_SECONDS: f64 = 1e9;
    const EPOCH_MILLIS: f64 = 1e12;
    let seconds = if reset >= EPOCH_MILLIS {
        reset / 1000.0
    } else {
        reset
    };
    let Ok(span) = Duration::try_from_secs_f64(seconds) else {
        return LATEST;
    };
    let span = if reset >= EPOCH_SECONDS {
        let now = now().duration_since(SystemTime::UNIX_EPOCH);
        span.saturating_sub(now.unwrap_or_default())
    } else {
        span
    };
    span.min(LATEST)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn said(fields: &[(&'static str, &str)]) -> Vec<(u32, Duration)> {
        let mut headers = HeaderMap::new();
        for (name, value) in fields {
            headers.append(*name, value.parse().unwrap());
        }
        assert!(present(&headers));
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(1_700_000_000);
        let found = read(&headers, || now);
        found.iter().map(|said| (said.left, said.within)).collect()
    }

    const fn secs(secs: u64) -> Duration {
        Duration::from_secs(secs)
    }

    #[test]
    fn the_structured_fields_are_joined_by_name() {
        let fields = [
            (
                "ratelimit-policy",
                r#""burst";q=100;w=60, "daily";q=1000;w=86400"#,
            ),
            ("ratelimit", r#""burst";r=50;t=30"#),
            ("ratelimit", r#""daily";r=7"#),
        ];
        assert_eq!(said(&fields), [(50, secs(30)), (7, secs(86_400))]);
    }

    #[test]
    fn a_reset_is_seconds_or_a_unix_time() {
        let fields = |reset| [("x-ratelimit-remaining", "3"), ("x-ratelimit-reset", reset)];
        assert_eq!(said(&fields("12")), [(3, secs(12))]);
        assert_eq!(said(&fields("1.5")), [(3, Duration::from_millis(1500))]);
        assert_eq!(said(&fields("1700000012")), [(3, secs(12))]);
        assert_eq!(said(&fields("1700000012000")), [(3, secs(12))]);
        assert_eq!(said(&fields("1600000000")), [(3, secs(0))]);
        assert_eq!(said(&fields("999999999")), [(3, LATEST)]);
    }

    /// Ours may be an hour behind.
    #[test]
    fn a_unix_time_is_by_the_provider_s_clock() {
        let fields = [
            ("x-ratelimit-remaining", "3"),
            ("x-ratelimit-reset", "1700003612"),
            ("date", "Tue, 14 Nov 2023 23:13:20 GMT"),
        ];
        assert_eq!(said(&fields), [(3, secs(12))]);
    }

    #[test]
    fn what_is_malformed_says_nothing() {
        for field in [
            ("ratelimit", r#""a";r=-1;t=2"#),
            ("ratelimit", r#""a";t=2"#),
            ("ratelimit", r#""a";r=1"#),
            ("ratelimit", r#"("a");r=1;t=2"#),
            ("ratelimit", "limit=100, remaining=50, reset=5"),
            ("x-ratelimit-reset", "5"),
        ] {
            assert_eq!(said(&[field]), [], "{field:?}");
        }
        let fields = [
            ("x-ratelimit-remaining", "NaN"),
            ("x-ratelimit-reset", "inf"),
        ];
        assert_eq!(said(&fields), []);
    }
}
