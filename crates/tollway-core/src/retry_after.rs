//! The `Retry-After` header field.

use std::time::{Duration, SystemTime};

use http::HeaderMap;
use http::header::{DATE, HeaderValue, RETRY_AFTER};

/// The longest delay that is reported. Whoever asks for more gets this, so that
/// no sum of an instant and a delay can overflow.
pub(crate) const MAX: Duration = Duration::from_secs(u32::MAX as u64);

/// Clocks that differ by more than this are taken for wrong.
const SKEW: Duration = Duration::from_secs(2);

/// How long a response asks its client to wait: its `Retry-After`, in either
/// form of [RFC 9110, section 10.2.3], to the millisecond and never too short.
///
/// `now` is the wall clock, needed for the form with a date. Where the response
/// has a `Date` that differs from `now` by more than two seconds, the clocks
/// disagree, and the server's own is used: what counts is how far apart the
/// server's two dates are. A date in the past is a delay of zero. A number of
/// seconds may have decimals, as some servers send; it is rounded up to a
/// millisecond. A delay of more than 136 years (`u32::MAX` seconds) is reported
/// as that.
///
/// Anything that is in neither form is ignored, as if it weren't there. Where
/// the field stands there more than once, which it shouldn't, the longest delay
/// counts.
///
/// ```
/// use std::time::{Duration, SystemTime};
/// use http::{HeaderMap, HeaderValue, header::RETRY_AFTER};
///
/// let mut headers = HeaderMap::new();
/// headers.insert(RETRY_AFTER, HeaderValue::from_static("19"));
/// assert_eq!(
///     tollway_core::retry_after(&headers, SystemTime::UNIX_EPOCH),
///     Some(Duration::from_secs(19)),
/// );
/// ```
///
/// [RFC 9110, section 10.2.3]: https://www.rfc-editor.org/rfc/rfc9110#section-10.2.3
#[must_use]
pub fn retry_after(headers: &HeaderMap, now: SystemTime) -> Option<Duration> {
    let fields = headers.get_all(RETRY_AFTER).iter().filter_map(text);
    fields.filter_map(|text| delay(text, headers, now)).max()
}

fn delay(text: &str, headers: &HeaderMap, now: SystemTime) -> Option<Duration> {
    if let Some(delay) = seconds(text) {
        return Some(delay);
    }
    let until = date(text)?;
    let delay = until.duration_since(server_now(headers, now));
    Some(ceil_to_millis(delay.unwrap_or_default()).min(MAX))
}

/// A number of seconds, decimals allowed, rounded up to a millisecond. `None`
/// where the text is anything else.
pub(crate) fn seconds(text: &str) -> Option<Duration> {
    let (whole, decimals) = text.split_once('.').unwrap_or((text, "0"));
    let digits = |text: &str| !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    if !digits(whole) || !digits(decimals) {
        return None;
    }
    // More digits than a u64 holds: a long time in any case.
    let whole = whole.parse().unwrap_or(u64::MAX);
    let nanos = decimals
        .bytes()
        .chain(std::iter::repeat(b'0'))
        .take(9)
        .fold(0, |nanos, digit| nanos * 10 + u32::from(digit - b'0'));
    let beyond = decimals.bytes().skip(9).any(|digit| digit != b'0');
    let nanos = nanos.saturating_add(u32::from(beyond));
    let delay = Duration::from_secs(whole).saturating_add(Duration::from_nanos(nanos.into()));
    Some(ceil_to_millis(delay.min(MAX)).min(MAX))
}

/// What time it is at the server that sent these headers: `now`, unless its
/// `Date` differs from that by more than two seconds.
#[must_use]
pub fn server_now(headers: &HeaderMap, now: SystemTime) -> SystemTime {
    let Some(theirs) = headers.get(DATE).and_then(text).and_then(date) else {
        return now;
    };
    let skew = match now.duration_since(theirs) {
        Ok(ahead) => ahead,
        Err(behind) => behind.duration(),
    };
    if skew > SKEW { theirs } else { now }
}

fn text(value: &HeaderValue) -> Option<&str> {
    // A date has 29 characters, in the oldest form up to 33.
    value.to_str().ok().map(str::trim).filter(|t| t.len() <= 64)
}

fn date(text: &str) -> Option<SystemTime> {
    httpdate::parse_http_date(text).ok()
}

fn ceil_to_millis(delay: Duration) -> Duration {
    let below = Duration::from_nanos(u64::from(delay.subsec_nanos() % 1_000_000));
    if below.is_zero() {
        delay
    } else {
        (delay - below).saturating_add(Duration::from_millis(1))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn headers(retry_after: &str) -> HeaderMap {
        let mut headers = HeaderMap::new();
        headers.insert(RETRY_AFTER, HeaderValue::from_str(retry_after).unwrap());
        headers
    }

    /// Sun, 06 Nov 1994 08:49:37 GMT, the example of RFC 9110.
    fn then() -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_secs(784_111_777)
    }

    const DATE_TEXT: &str = "Sun, 06 Nov 1994 08:49:37 GMT";

    #[test]
    fn a_date_counts_to_the_millisecond_and_is_never_cut_to_zero() {
        let now = then() - Duration::from_micros(399_400);
        assert_eq!(
            retry_after(&headers(DATE_TEXT), now),
            Some(Duration::from_millis(400))
        );
    }

    #[test]
    fn a_date_in_the_past_asks_for_no_delay() {
        let now = then() + Duration::from_secs(5);
        assert_eq!(retry_after(&headers(DATE_TEXT), now), Some(Duration::ZERO));
    }

    #[test]
    fn seconds_may_have_decimals() {
        let now = SystemTime::UNIX_EPOCH;
        for (text, millis) in [
            ("0", 0),
            ("1.5", 1500),
            ("0.0001", 1),
            ("2.000", 2000),
            ("2.0000000000", 2000),
            ("2.0000000001", 2001),
        ] {
            let expected = Some(Duration::from_millis(millis));
            assert_eq!(retry_after(&headers(text), now), expected, "{text}");
        }
    }

    #[test]
    fn the_longest_of_several_counts() {
        let mut headers = headers("soon");
        for text in ["7", "Sun, 06 Nov 1994 08:50:07 GMT", "19"] {
            headers.append(RETRY_AFTER, HeaderValue::from_static(text));
        }
        assert_eq!(retry_after(&headers, then()), Some(Duration::from_secs(30)));
    }

    #[test]
    fn the_obsolete_forms_of_a_date_are_read() {
        let now = then() - Duration::from_secs(3);
        for text in ["Sunday, 06-Nov-94 08:49:37 GMT", "Sun Nov  6 08:49:37 1994"] {
            let delay = retry_after(&headers(text), now);
            assert_eq!(delay, Some(Duration::from_secs(3)), "{text}");
        }
    }

    #[test]
    fn the_servers_clock_wins_when_the_clocks_disagree() {
        let mut headers = headers("Sun, 06 Nov 1994 08:50:07 GMT");
        headers.insert(DATE, HeaderValue::from_static(DATE_TEXT));
        let ours = then() - Duration::from_secs(3600);
        assert_eq!(retry_after(&headers, ours), Some(Duration::from_secs(30)));
        let ours = then() + Duration::from_millis(500);
        assert_eq!(
            retry_after(&headers, ours),
            Some(Duration::from_millis(29_500))
        );
    }

    #[test]
    fn nonsense_is_as_if_it_were_not_there() {
        for text in [
            "", "soon", "-1", "+1", "1,5", "1.", ".5", "1e3", "0x10", "١",
        ] {
            let mut headers = HeaderMap::new();
            headers.insert(
                RETRY_AFTER,
                HeaderValue::from_bytes(text.as_bytes()).unwrap(),
            );
            assert_eq!(retry_after(&headers, then()), None, "{text}");
        }
    }

    #[test]
    fn a_delay_beyond_reason_is_the_longest_there_is() {
        for text in [
            "4294967296",
            "99999999999999999999999",
            "4294967295.9999999999",
        ] {
            assert_eq!(retry_after(&headers(text), then()), Some(MAX), "{text}");
        }
    }

    proptest! {
        #[test]
        fn no_header_makes_it_panic(bytes in prop::collection::vec(any::<u8>(), 0..80), now in any::<u32>()) {
            let mut headers = HeaderMap::new();
            if let Ok(value) = HeaderValue::from_bytes(&bytes) {
                headers.insert(RETRY_AFTER, value.clone());
                headers.insert(DATE, value);
            }
            let now = SystemTime::UNIX_EPOCH + Duration::from_secs(now.into());
            let _ = retry_after(&headers, now);
        }

        #[test]
        fn whole_milliseconds_are_read_back(millis in 0..10_000_000_u64) {
            let text = format!("{}.{:03}", millis / 1000, millis % 1000);
            prop_assert_eq!(seconds(&text), Some(Duration::from_millis(millis)));
        }
    }
}
