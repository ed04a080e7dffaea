//! One field of a JSON object, found or put in.

use std::fmt;

use bytes::{BufMut, Bytes, BytesMut};
use serde::Deserializer;
use serde::de::{DeserializeSeed, IgnoredAny, MapAccess, Visitor};
use serde_json::Value;

/// Why the field can't be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Unreadable {
    NotAnObject,
    Twice,
    NotText,
}

/// The text of the field `name` of the object `json`, or `None` where it has no
/// such field. Only the outermost object is looked at, but all of it is
/// checked: what isn't JSON has no fields.
pub(crate) fn field(json: &[u8], name: &str) -> Result<Option<String>, Unreadable> {
    let mut deserializer = serde_json::Deserializer::from_slice(json);
    let found = deserializer
        .deserialize_map(Object { name })
        .map_err(|_| Unreadable::NotAnObject)?;
    deserializer.end().map_err(|_| Unreadable::NotAnObject)?;
    found
}

/// The object `json` with the field `name` of value `text` before all others.
/// `json` is an object without that field, and `text` visible ASCII.
pub(crate) fn with_field(json: &[u8], name: &str, text: &str) -> Result<Bytes, Unreadable> {
    let brace = json
        .iter()
        .position(|byte| *byte == b'{')
        .ok_or(Unreadable::NotAnObject)?;
    let (head, tail) = json.split_at(brace + 1);
    let is_empty = tail.trim_ascii_start().starts_with(b"}");
    let [name, text] = [name, text].map(|text| Value::from(text).to_string());
    let mut whole = BytesMut::with_capacity(json.len() + name.len() + text.len() + 2);
    whole.put_slice(head);
    whole.put_slice(name.as_bytes());
    whole.put_u8(b':');
    whole.put_slice(text.as_bytes());
    if !is_empty {
        whole.put_u8(b',');
    }
    whole.put_slice(tail);
    Ok(whole.freeze())
}

/// Reads an object for one of its fields.
struct Object<'a> {
    name: &'a str,
}

impl<'de> Visitor<'de> for Object<'_> {
    type Value = Result<Option<String>, Unreadable>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        let mut found = Ok(None);
        while let Some(is_it) = map.next_key_seed(Is(self.name))? {
            if !is_it {
                map.next_value::<IgnoredAny>()?;
                continue;
            }
            let text = match map.next_value()? {
                Value::String(text) => Some(text),
                Value::Number(number) if !number.is_f64() => Some(number.to_string()),
                _ => None,
            };
            found = match found {
                Ok(None) => text.map(Some).ok_or(Unreadable::NotText),
                // Which of two the provider reads is anybody's guess.
                Ok(Some(_)) | Err(_) => Err(Unreadable::Twice),
            };
        }
        Ok(found)
    }
}

/// Whether the name of a field is this one, its escapes resolved.
struct Is<'a>(&'a str);

impl<'de> DeserializeSeed<'de> for Is<'_> {
    type Value = bool;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<bool, D::Error> {
        deserializer.deserialize_str(self)
    }
}

impl Visitor<'_> for Is<'_> {
    type Value = bool;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the name of a field")
    }

    fn visit_str<E>(self, name: &str) -> Result<bool, E> {
        Ok(name == self.0)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_field_is_found_whatever_stands_around_it() {
        let is = |json: &str| field(json.as_bytes(), "RequestId");
        assert_eq!(
            is(r#"{"a":{"RequestId":"x"},"RequestId":"y"}"#),
            Ok(Some("y".into()))
        );
        assert_eq!(
            is(r#" { "Request\u0049d" : "\u0079" } "#),
            Ok(Some("y".into()))
        );
        assert_eq!(is(r#"{"RequestId":-7}"#), Ok(Some("-7".into())));
        assert_eq!(is(r#"{"requestid":"x"}"#), Ok(None));
        assert_eq!(is("{}"), Ok(None));
    }

    #[test]
    fn what_is_no_field_is_told_apart() {
        let is = |json: &str| field(json.as_bytes(), "id");
        for json in [
            "",
            "[]",
            "\"id\"",
            "null",
            "{",
            r#"{"id":"x"} x"#,
            r#"{"id":"x""#,
            "id=x",
        ] {
            assert_eq!(is(json), Err(Unreadable::NotAnObject), "{json}");
        }
        for json in [
            r#"{"id":1.5}"#,
            r#"{"id":null}"#,
            r#"{"id":["x"]}"#,
            r#"{"id":{}}"#,
        ] {
            assert_eq!(is(json), Err(Unreadable::NotText), "{json}");
        }
        for json in [r#"{"id":"x","id":"x"}"#, r#"{"id":null,"id":"x"}"#] {
            assert_eq!(is(json), Err(Unreadable::Twice), "{json}");
        }
    }

    #[test]
    fn a_field_is_put_in_before_all_others_and_nothing_else_changes() {
        let put = |json: &str| with_field(json.as_bytes(), "id", "x\"y").expect("an object");
        assert_eq!(put("{}"), r#"{"id":"x\"y"}"#);
        assert_eq!(put(" {\n } "), " {\"id\":\"x\\\"y\"\n } ");
        assert_eq!(
            put("{ \"a\" : 1.50 }"),
            "{\"id\":\"x\\\"y\", \"a\" : 1.50 }"
        );
    }

    fn json() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![
            Just(Value::Null),
            any::<bool>().prop_map(Value::from),
            any::<i64>().prop_map(Value::from),
            "\\PC*".prop_map(Value::from),
        ];
        leaf.prop_recursive(3, 24, 4, |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
                prop::collection::hash_map("[a-c]{1,2}|\\PC*", inner, 0..4)
                    .prop_map(|map| Value::Object(map.into_iter().collect())),
            ]
        })
    }

    proptest! {
        #[test]
        fn a_field_put_in_is_found_and_the_rest_is_as_it_was(
            object in prop::collection::hash_map("[a-c]{1,2}|\\PC*", json(), 0..5),
            name in "[a-c]{1,2}|\\PC*",
            key in "[!-~]{1,255}",
        ) {
            let mut object: serde_json::Map<_, _> = object.into_iter().collect();
            object.remove(&name);
            let text = Value::from(object.clone()).to_string();
            prop_assert_eq!(field(text.as_bytes(), &name), Ok(None));

            let whole = with_field(text.as_bytes(), &name, &key).expect("an object");
            prop_assert_eq!(field(&whole, &name), Ok(Some(key.clone())));
            object.insert(name, Value::from(key));
            let read: Value = serde_json::from_slice(&whole).expect("JSON");
            prop_assert_eq!(read, Value::from(object));
        }

        #[test]
        fn no_bytes_make_it_panic(json in prop::collection::vec(any::<u8>(), 0..200), name in "\\PC*") {
            let _ = field(&json, &name);
            let _ = with_field(&json, &name, "x");
        }

        #[test]
        fn no_text_that_looks_like_json_makes_it_panic(json in "[\\{\\}\\[\\]\":,\\\\a0-1eu. \n-]{0,60}") {
            let _ = field(json.as_bytes(), "a");
            let _ = with_field(json.as_bytes(), "a", "x");
        }
    }
}
