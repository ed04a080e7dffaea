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
