//! What took effect, and how often.

use std::collections::{BTreeMap, HashMap};
use std::time::Duration;

use bytes::Bytes;
use serde::{Serialize, Serializer};
use serde_json::{Map, Value};

use crate::dialect::Route;
use crate::reply::Reply;

/// One request and the effects it had: the same endpoint, the same key (or, without one, the
/// same reference) and the same payload make one entry.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Entry {
    /// The endpoint, as `POST /v1/payouts`.
    pub endpoint: String,
    /// What the provider recognises a repeat by, where it was sent.
    pub key: Option<String>,
    /// The caller's own reference, where the payload holds one.
    pub reference: Option<String>,
    /// The gateway's id of each effect.
    pub ids: Vec<String>,
    /// How often it took effect. More than 1 is a duplicate.
    pub times_applied: u32,
    /// How many repeats were recognised, and so had no effect.
    pub repeats: u32,
    /// When it first took effect, counted from the gateway's start.
    #[serde(rename = "first_at_ms", serialize_with = "as_millis")]
    pub first_at: Duration,
    /// A hash of the payload, FNV-1a in hexadecimal: equal for equal bytes.
    pub fingerprint: String,
    /// The payload, byte for byte. JSON shows it as text.
    #[serde(serialize_with = "as_text")]
    pub payload: Bytes,
}

fn as_millis<S: Serializer>(time: &Duration, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_u64(u64::try_from(time.as_millis()).unwrap_or(u64::MAX))
}

fn as_text<S: Serializer>(payload: &Bytes, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(&String::from_utf8_lossy(payload))
}

/// A copy of a gateway's ledger, taken at one moment.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Ledger {
    /// The entries, in the order of their first effect.
    pub entries: Vec<Entry>,
}

impl Ledger {
    /// The number of effects, repeats of one request included.
    #[must_use]
    pub fn effects(&self) -> u64 {
        self.entries
            .iter()
            .map(|entry| u64::from(entry.times_applied))
            .sum()
    }

    /// How often the request with this reference took effect, under whatever key.
    #[must_use]
    pub fn times_applied(&self, reference: &str) -> u32 {
        self.entries
            .iter()
            .filter(|entry| entry.reference.as_deref() == Some(reference))
            .map(|entry| entry.times_applied)
            .sum()
    }

    /// Each reference with how often it took effect, under whatever key.
    #[must_use]
    pub fn by_reference(&self) -> BTreeMap<&str, u32> {
        let mut applied = BTreeMap::new();
        for entry in &self.entries {
            if let Some(reference) = &entry.reference {
                *applied.entry(reference.as_str()).or_default() += entry.times_applied;
            }
        }
        applied
    }

    /// The references that took effect more than once.
    #[must_use]
    pub fn duplicates(&self) -> Vec<&str> {
        let applied = self.by_reference().into_iter();
        applied
            .filter_map(|(reference, times)| (times > 1).then_some(reference))
            .collect()
    }
}

/// One effect, with all that is needed to answer for it again.
#[derive(Clone, Debug)]
pub(crate) struct Record {
    pub(crate) id: String,
    pub(crate) route: &'static Route,
    /// The kind of object that was made or changed.
    pub(crate) kind: &'static str,
    pub(crate) key: Option<String>,
    pub(crate) reference: Option<String>,
    pub(crate) payload: Bytes,
    /// The object's fields as they are now.
    pub(crate) fields: Map<String, Value>,
    pub(crate) at: Duration,
    /// When its answer is due: until then the key is in use.
    pub(crate) settles: Duration,
    pub(crate) answer: Reply,
    pub(crate) repeats: u32,
}

impl Record {
    /// The object: what was sent, the id, and the fields that the provider adds.
    pub(crate) fn object(&self, added: Value) -> Value {
        let mut object = self.fields.clone();
        object.insert("id".to_owned(), self.id.clone().into());
        if let Value::Object(added) = added {
            object.extend(added);
        }
        Value::Object(object)
    }
}

/// Beyond this many effects a gateway refuses more: it keeps each payload.
const MOST_EFFECTS: usize = 1_000_000;

/// The gateway's own books.
#[derive(Debug, Default)]
pub(crate) struct Books {
    records: Vec<Record>,
    by_id: HashMap<String, usize>,
    by_key: HashMap<String, usize>,
    by_reference: HashMap<String, Vec<usize>>,
}

impl Books {
    pub(crate) fn is_full(&self) -> bool {
        self.records.len() >= MOST_EFFECTS
    }

    /// An id that no object has.
    pub(crate) fn next_id(&self, prefix: &str) -> String {
        format!("{prefix}{:06}", self.records.len() + 1)
    }

    pub(crate) fn apply(&mut self, record: Record) {
        let index = self.records.len();
        // A change has the id of an object that is in the books already.
        self.by_id.entry(record.id.clone()).or_insert(index);
        if let Some(key) = &record.key {
            self.by_key.insert(key.clone(), index);
        }
        if let Some(reference) = &record.reference {
            let known = self.by_reference.entry(reference.clone());
            known.or_default().push(index);
        }
        self.records.push(record);
    }

    pub(crate) fn by_id(&self, id: &str) -> Option<&Record> {
        self.records.get(*self.by_id.get(id)?)
    }

    pub(crate) fn by_id_mut(&mut self, id: &str) -> Option<&mut Record> {
        self.records.get_mut(*self.by_id.get(id)?)
    }

    pub(crate) fn by_key(&self, key: &str) -> Option<&Record> {
        self.records.get(*self.by_key.get(key)?)
    }

    pub(crate) fn by_key_mut(&mut self, key: &str) -> Option<&mut Record> {
        self.records.get_mut(*self.by_key.get(key)?)
    }

    /// The objects of a kind that were made with this reference, or all of them.
    pub(crate) fn made(&self, kind: &str, reference: Option<&str>) -> Vec<&Record> {
        let made = |record: &&Record| record.kind == kind && self.is_first_of_id(record);
        match reference {
            None => self.records.iter().filter(made).collect(),
            Some(reference) => self
                .by_reference
                .get(reference)
                .into_iter()
                .flatten()
                .filter_map(|&index| self.records.get(index))
                .filter(made)
                .collect(),
        }
    }

    fn is_first_of_id(&self, record: &Record) -> bool {
        self.by_id(&record.id)
            .is_some_and(|first| std::ptr::eq(first, record))
    }

    pub(crate) fn snapshot(&self) -> Ledger {
        let mut entries: Vec<Entry> = Vec::new();
        let mut known: HashMap<(&str, &str, &[u8]), usize> = HashMap::new();
        for record in &self.records {
            let key = record.key.as_ref().or(record.reference.as_ref());
            let group = (
                record.route.name,
                key.unwrap_or(&record.id).as_str(),
                record.payload.as_ref(),
            );
            let index = *known.entry(group).or_insert(entries.len());
            match entries.get_mut(index) {
                Some(entry) => {
                    entry.times_applied += 1;
                    entry.repeats += record.repeats;
                    entry.ids.push(record.id.clone());
                }
                None => entries.push(Entry {
                    endpoint: record.route.name.to_owned(),
                    key: record.key.clone(),
                    reference: record.reference.clone(),
                    ids: vec![record.id.clone()],
                    times_applied: 1,
                    repeats: record.repeats,
                    first_at: record.at,
                    fingerprint: fingerprint(&record.payload),
                    payload: record.payload.clone(),
                }),
            }
        }
        Ledger { entries }
    }
}

fn fingerprint(payload: &[u8]) -> String {
    let hash = payload.iter().fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3)
    });
    format!("{hash:016x}")
}
