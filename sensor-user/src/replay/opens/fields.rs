//! The fields of an ECS document by their dotted names, as Elasticsearch sees them: objects and lists
//! are looked through, nulls are no values. Only those that are asked for are kept. Pure.

use std::{borrow::Cow, collections::BTreeSet, fmt};

use serde::{
    Deserialize, Deserializer,
    de::{DeserializeSeed, Error, IgnoredAny, MapAccess, SeqAccess, Visitor},
};
use serde_json::Value;

/// What is asked for, in order.
const NAMES: [&str; 31] = [
    "@timestamp",
    "container.id",
    "container.runtime",
    "event.action",
    "event.category",
    "event.type",
    "file.inode",
    "file.path",
    "host.boot.id",
    "host.name",
    "host.os.type",
    "orchestrator.namespace",
    "orchestrator.resource.id",
    "orchestrator.resource.name",
    "process.args",
    "process.entry_leader.name",
    "process.entry_leader.pid",
    "process.entry_leader.start",
    "process.executable",
    "process.interactive",
    "process.name",
    "process.parent.pid",
    "process.pid",
    "process.session_leader.name",
    "process.session_leader.pid",
    "process.session_leader.start",
    "process.start",
    "process.user.id",
    OWN,
    POD,
    "tokentrail.skew_us",
];
/// Kept as the objects that they are.
const OWN: &str = "tokentrail.open";
const POD: &str = "tokentrail.pod";

/// The values of a document, each with the place of its field in [`NAMES`].
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Fields(Vec<(usize, Value)>);

impl Fields {
    /// Reads a document.
    ///
    /// # Errors
    /// It is no JSON object, or an object in it has a key twice: of two values the reader would
    /// choose one, and a rule elsewhere the other.
    pub(super) fn read(text: &str) -> serde_json::Result<Self> {
        let mut fields = Self::default();
        let mut deserializer = serde_json::Deserializer::from_str(text);
        let mut path = String::new();
        Gather { fields: &mut fields, path: &mut path }.deserialize(&mut deserializer)?;
        deserializer.end()?;
        Ok(fields)
    }

    pub(super) fn all(&self, field: &str) -> impl Iterator<Item = &Value> {
        let place = NAMES.binary_search(&field).ok();
        self.0.iter().filter(move |(at, _)| Some(*at) == place).map(|(_, value)| value)
    }

    pub(super) fn texts(&self, field: &str) -> impl Iterator<Item = &str> {
        self.all(field).filter_map(Value::as_str)
    }

    pub(super) fn text(&self, field: &str) -> Option<&str> {
        self.texts(field).next()
    }

    /// A number, or one written as text.
    pub(super) fn number(&self, field: &str) -> Option<u64> {
        self.all(field).find_map(|value| value.as_u64().or_else(|| value.as_str()?.parse().ok()))
    }

    pub(super) fn has(&self, field: &str, text: &str) -> bool {
        self.texts(field).any(|value| value == text)
    }

    fn add(&mut self, path: &str, value: Value) {
        if let Ok(place) = NAMES.binary_search(&path) {
            self.0.push((place, value));
        }
    }
}

/// Whether a field of interest is at this path or below it.
fn leads_on(path: &str) -> bool {
    let first = NAMES.get(NAMES.partition_point(|name| *name < path));
    first
        .and_then(|name| name.strip_prefix(path))
        .is_some_and(|rest| rest.is_empty() || rest.starts_with('.'))
}

/// Reads the value at a path.
struct Gather<'a> {
    fields: &'a mut Fields,
    path: &'a mut String,
}

impl<'de> DeserializeSeed<'de> for Gather<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Gather<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("JSON without a key twice")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        let Self { fields, path } = self;
        let (mut keys, length) = (BTreeSet::new(), path.len());
        while let Some(Key(key)) = map.next_key()? {
            if length > 0 {
                path.push('.');
            }
            path.push_str(&key);
            if path == OWN || path == POD {
                let value = map.next_value()?;
                fields.add(path, value);
            } else if leads_on(path) {
                map.next_value_seed(Gather { fields, path })?;
            } else {
                map.next_value::<IgnoredAny>()?;
            }
            path.truncate(length);
            if !keys.insert(key) {
                return Err(A::Error::custom("a key twice"));
            }
        }
        Ok(())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<(), A::Error> {
        let Self { fields, path } = self;
        while list.next_element_seed(Gather { fields, path })?.is_some() {}
        Ok(())
    }

    fn visit_bool<E>(self, value: bool) -> Result<(), E> {
        self.fields.add(self.path, value.into());
        Ok(())
    }

    fn visit_i64<E>(self, value: i64) -> Result<(), E> {
        self.fields.add(self.path, value.into());
        Ok(())
    }

    fn visit_u64<E>(self, value: u64) -> Result<(), E> {
        self.fields.add(self.path, value.into());
        Ok(())
    }

    fn visit_f64<E>(self, value: f64) -> Result<(), E> {
        self.fields.add(self.path, value.into());
        Ok(())
    }

    fn visit_str<E>(self, value: &str) -> Result<(), E> {
        self.fields.add(self.path, value.into());
        Ok(())
    }

    fn visit_unit<E>(self) -> Result<(), E> {
        Ok(())
    }
}

/// A key, borrowed where it has no escapes.
#[derive(Deserialize)]
struct Key<'a>(#[serde(borrow)] Cow<'a, str>);

#[cfg(test)]
mod tests {
    use super::{NAMES, leads_on};

    #[test]
    fn names_are_in_order_and_found_from_each_of_their_parts() {
        assert!(NAMES.is_sorted());
        for name in NAMES {
            for (at, _) in name.match_indices('.').chain([(name.len(), "")]) {
                assert!(leads_on(&name[..at]), "{name} up to {at}");
            }
        }
        for other in ["", "proc", "process.", "process.args.x", "zebra", "event.actio"] {
            assert!(!leads_on(other), "{other}");
        }
    }
}
