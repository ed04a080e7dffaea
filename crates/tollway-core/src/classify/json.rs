//! One scalar out of a JSON text, without building the rest of it.

use std::fmt;

use serde::de::{DeserializeSeed, Error, IgnoredAny, MapAccess, SeqAccess, Visitor};

/// With its feature `arbitrary_precision`, which any crate in a build can turn on
/// for all, `serde_json` hands some numbers over as an object of this one field,
/// whose value is their text.
const PRECISE: &str = "$serde_json::private::Number";

/// The longest part of a scalar that is looked at, in bytes.
const MAX_SCALAR: usize = 512;

/// The scalar at `path`, as text: `0`, `true`, or what stands between the
/// quotes. `path` names fields and array positions, outermost first, separated
/// by dots: `errors.0.code`.
///
/// What stands behind the scalar isn't looked at, so a text that was cut off
/// after it still answers; one cut off within it doesn't. Of several fields of
/// one name the first counts. A text is read to a depth of 128 and then given up.
/// Scalars are cut to 512 bytes.
pub(super) fn scalar(json: &[u8], path: &str) -> Option<String> {
    // Some servers put a byte order mark there, which a reader may ignore (RFC
    // 8259, section 8.1).
    let json = json.strip_prefix("\u{feff}".as_bytes()).unwrap_or(json);
    let mut found = None;
    let mut deserializer = serde_json::Deserializer::from_slice(whole(json));
    let seek = Seek {
        path: Some(path),
        found: &mut found,
    };
    // An error may well come once the scalar is found; before, it is a "no".
    let _ = seek.deserialize(&mut deserializer);
    found
}

/// The text without a number at its end, of which there may have been more: one
/// in a field or an array has something behind it.
fn whole(json: &[u8]) -> &[u8] {
    let is_of_number = |b: &u8| b.is_ascii_digit() || b"+-.eE".contains(b);
    let rest = json.iter().rposition(|b| !is_of_number(b));
    let number = rest.map_or(0, |at| at + 1);
    match json.get(number) {
        Some(b'-' | b'0'..=b'9') => &json[..number],
        _ => json,
    }
}

/// Follows the rest of a path; `None` is its end.
struct Seek<'a> {
    path: Option<&'a str>,
    found: &'a mut Option<String>,
}

impl Seek<'_> {
    fn take<E>(self, text: &dyn fmt::Display) -> Result<(), E> {
        if self.path.is_none() {
            let mut text = text.to_string();
            let end = text.floor_char_boundary(MAX_SCALAR);
            text.truncate(end);
            self.found.get_or_insert(text);
        }
        Ok(())
    }
}

/// The first name of a path, and what follows it.
fn split(path: &str) -> (&str, Option<&str>) {
    match path.split_once('.') {
        Some((name, rest)) => (name, Some(rest)),
        None => (path, None),
    }
}

impl<'de> DeserializeSeed<'de> for Seek<'_> {
    type Value = ();

    fn deserialize<D: serde::Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Seek<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("any JSON value")
    }

    fn visit_bool<E: Error>(self, value: bool) -> Result<(), E> {
        self.take(&value)
    }

    fn visit_i64<E: Error>(self, value: i64) -> Result<(), E> {
        self.take(&value)
    }

    fn visit_u64<E: Error>(self, value: u64) -> Result<(), E> {
        self.take(&value)
    }

    fn visit_f64<E: Error>(self, value: f64) -> Result<(), E> {
        self.take(&value)
    }

    fn visit_str<E: Error>(self, value: &str) -> Result<(), E> {
        let end = value.floor_char_boundary(MAX_SCALAR);
        self.take(&&value[..end])
    }

    fn visit_unit<E: Error>(self) -> Result<(), E> {
        Ok(())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<(), A::Error> {
        let (wanted, rest) = self.path.map_or((None, None), |path| {
            let (name, rest) = split(path);
            (name.parse::<usize>().ok(), rest)
        });
        let mut at = 0_usize;
        loop {
            let more = if Some(at) == wanted {
                items
                    .next_element_seed(Seek {
                        path: rest,
                        found: &mut *self.found,
                    })?
                    .is_some()
            } else {
                items.next_element::<IgnoredAny>()?.is_some()
            };
            if !more || self.found.is_some() {
                return Ok(());
            }
            at = at.saturating_add(1);
        }
    }

    fn visit_map<A: MapAccess<'de>>(self, mut fields: A) -> Result<(), A::Error> {
        let (wanted, rest) = match self.path.map(split) {
            Some((name, rest)) => (name, rest),
            None => (PRECISE, None),
        };
        while let Some(is_wanted) = fields.next_key_seed(IsName(wanted))? {
            if is_wanted {
                fields.next_value_seed(Seek {
                    path: rest,
                    found: &mut *self.found,
                })?;
                if self.found.is_some() {
                    return Ok(());
                }
            } else {
                fields.next_value::<IgnoredAny>()?;
            }
        }
        Ok(())
    }
}

/// Compares a field's name where it stands, without keeping it.
struct IsName<'a>(&'a str);

impl<'de> DeserializeSeed<'de> for IsName<'_> {
    type Value = bool;

    fn deserialize<D: serde::Deserializer<'de>>(self, deserializer: D) -> Result<bool, D::Error> {
        deserializer.deserialize_str(self)
    }
}

impl Visitor<'_> for IsName<'_> {
    type Value = bool;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a field's name")
    }

    fn visit_str<E: Error>(self, name: &str) -> Result<bool, E> {
        Ok(self.0 == name)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_scalar_is_found_by_its_path() {
        let json = br#"{"a":[{"x":1},{"code":"C_1","n":-2.5,"t":true}],"code":7,"z":null}"#;
        for (path, text) in [
            ("code", Some("7")),
            ("a.1.code", Some("C_1")),
            ("a.1.n", Some("-2.5")),
            ("a.1.t", Some("true")),
            ("a.0.code", None),
            ("a.2.code", None),
            ("a", None),
            ("z", None),
            ("code.0", None),
            ("", None),
        ] {
            assert_eq!(scalar(json, path).as_deref(), text, "{path}");
        }
    }

    #[test]
    fn a_number_of_any_precision_is_a_scalar() {
        // As it is handed over with the feature, so that the test needs none.
        let json = br#"{"code":{"$serde_json::private::Number":"-2.50"}}"#;
        assert_eq!(scalar(json, "code").as_deref(), Some("-2.50"));
    }

    #[test]
    fn a_text_cut_off_behind_the_scalar_still_answers() {
        let json = br#"{"responseCode": 0, "rows": [1, 2, "#;
        assert_eq!(scalar(json, "responseCode").as_deref(), Some("0"));
        assert_eq!(scalar(json, "rows.5"), None);
    }

    #[test]
    fn a_byte_order_mark_hides_nothing() {
        let json = "\u{feff}{\"responseCode\":0}";
        assert_eq!(
            scalar(json.as_bytes(), "responseCode").as_deref(),
            Some("0")
        );
    }

    #[test]
    fn the_first_of_two_fields_of_one_name_counts() {
        let json = br#"{"code":1,"code":2}"#;
        assert_eq!(scalar(json, "code").as_deref(), Some("1"));
    }

    #[test]
    fn depth_and_length_are_bounded() {
        let deep = "[".repeat(100_000);
        assert_eq!(scalar(deep.as_bytes(), "0.0.0"), None);
        let long = format!(r#"{{"m":"{}"}}"#, "é".repeat(10_000));
        assert!(scalar(long.as_bytes(), "m").unwrap().len() <= MAX_SCALAR);
    }

    proptest! {
        #[test]
        fn no_text_makes_it_panic(json in prop::collection::vec(any::<u8>(), 0..256), path in "[a-z0-9.]{0,12}") {
            let _ = scalar(&json, &path);
        }

        #[test]
        fn no_json_like_text_makes_it_panic(json in r#"[\[\]{}":,a0-9.\\u]{0,64}"#, path in "[a0.]{0,6}") {
            let _ = scalar(json.as_bytes(), &path);
        }
    }
}
