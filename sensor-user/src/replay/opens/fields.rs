//! The fields of an ECS document by their dotted names, as Elasticsearch sees them: objects and lists
//! are looked through, nulls are no values. Only those that are asked for are kept. Pure.

use std::{borrow::Cow, fmt, ops::Range};

use serde::{
    Deserialize, Deserializer,
    de::{DeserializeSeed, Error, IgnoredAny, MapAccess, SeqAccess, Visitor},
};
use serde_json::Value;

/// What is asked for, in order.
const NAMES: [&str; 33] = [
    "@timestamp",
    "container.id",
    "container.runtime",
    "event.action",
    "event.category",
    "event.id",
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
    "tokentrail.grade",
    OWN,
    POD,
    "tokentrail.skew_us",
];
/// Kept as the objects that they are.
const OWN: &str = "tokentrail.open";
const POD: &str = "tokentrail.pod";

/// The values of a document, each with the place of its field in [`NAMES`].
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Fields(Vec<(usize, Value)>);

impl Fields {
    /// Reads a document.
    ///
    /// # Errors
    /// It is no JSON object, or an object in it has a key twice: of two values the reader would
    /// choose one, and a rule elsewhere the other.
    pub(super) fn read(text: &str) -> serde_json::Result<Self> {
        // As many as most documents have.
        let (mut fields, mut keys) = (Self(Vec::with_capacity(16)), Vec::with_capacity(16));
        let mut deserializer = serde_json::Deserializer::from_str(text);
        Gather { fields: &mut fields, keys: &mut keys, at: At::TOP }
            .deserialize(&mut deserializer)?;
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

    fn add(&mut self, at: &At, value: Value) {
        self.0.extend(at.field().map(|place| (place, value)));
    }
}

/// A path in a document, by the names that begin with it: they stand side by side in [`NAMES`].
#[derive(Clone, Debug)]
struct At {
    names: Range<usize>,
    /// Length of the path, without a dot behind it.
    length: usize,
}

impl At {
    const TOP: Self = Self { names: 0..NAMES.len(), length: 0 };

    /// What follows this path in the name at that place.
    fn rest(&self, place: usize) -> &'static str {
        NAMES.get(place).and_then(|name| name.get(self.length..)).unwrap_or_default()
    }

    /// The place of the field that is at this very path.
    fn field(&self) -> Option<usize> {
        Some(self.names.start).filter(|place| self.length > 0 && self.rest(*place).is_empty())
    }

    fn is(&self, field: &str) -> bool {
        self.field().and_then(|place| NAMES.get(place)) == Some(&field)
    }

    /// The path of a key in an object here; `None` where no field of interest is at it or below.
    fn below(&self, key: &str) -> Option<Self> {
        let dot = usize::from(self.length > 0);
        let leads_on = |place: &usize| {
            let rest = self.rest(*place).get(dot..).and_then(|rest| rest.strip_prefix(key));
            rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('.'))
        };
        let start = self.names.clone().find(leads_on)?;
        let count = (start..self.names.end).take_while(leads_on).count();
        Some(Self { names: start..start + count, length: self.length + dot + key.len() })
    }
}

/// Reads the value at a path.
struct Gather<'a, 'de> {
    fields: &'a mut Fields,
    /// Those read of this object and of the ones around it.
    keys: &'a mut Vec<Cow<'de, str>>,
    at: At,
}

impl<'de> DeserializeSeed<'de> for Gather<'_, 'de> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Gather<'_, 'de> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("JSON without a key twice")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        let Self { fields, keys, at } = self;
        let around = keys.len();
        while let Some(Key(key)) = map.next_key()? {
            match at.below(&key) {
                Some(at) if at.is(OWN) || at.is(POD) => fields.add(&at, map.next_value()?),
                Some(at) => map.next_value_seed(Gather { fields, keys, at })?,
                None => {
                    map.next_value::<IgnoredAny>()?;
                }
            }
            keys.push(key);
        }
        let own = keys.get_mut(around..).unwrap_or_default();
        own.sort_unstable();
        if own.array_windows().any(|[one, next]| one == next) {
            return Err(A::Error::custom("a key twice"));
        }
        keys.truncate(around);
        Ok(())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<(), A::Error> {
        let Self { fields, keys, at } = self;
        while list.next_element_seed(Gather { fields, keys, at: at.clone() })?.is_some() {}
        Ok(())
    }

    fn visit_bool<E>(self, value: bool) -> Result<(), E> {
        self.fields.add(&self.at, value.into());
        Ok(())
    }

    fn visit_i64<E>(self, value: i64) -> Result<(), E> {
        self.fields.add(&self.at, value.into());
        Ok(())
    }

    fn visit_u64<E>(self, value: u64) -> Result<(), E> {
        self.fields.add(&self.at, value.into());
        Ok(())
    }

    fn visit_f64<E>(self, value: f64) -> Result<(), E> {
        self.fields.add(&self.at, value.into());
        Ok(())
    }

    fn visit_str<E>(self, value: &str) -> Result<(), E> {
        self.fields.add(&self.at, value.into());
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
    use super::{At, NAMES};

    #[test]
    fn names_are_in_order_and_found_whichever_of_their_dots_are_objects() {
        assert!(NAMES.is_sorted());
        for (place, name) in NAMES.iter().enumerate() {
            let nested = name.split('.').try_fold(At::TOP, |at, key| at.below(key)).unwrap();
            let dotted = At::TOP.below(name).unwrap();
            assert_eq!((nested.field(), dotted.field()), (Some(place), Some(place)), "{name}");
            assert!(dotted.is(name) && dotted.below("x").is_none() && dotted.below("").is_none());
            for (dot, _) in name.match_indices('.') {
                let (above, key) = (At::TOP.below(&name[..dot]).unwrap(), &name[dot + 1..]);
                let inside = NAMES.iter().filter(|it| it.starts_with(&name[..=dot]));
                assert_eq!((above.names.len(), above.field()), (inside.count(), None), "{name}");
                assert_eq!(above.below(key).unwrap().field(), Some(place), "{name}");
                assert!(above.below("").is_none() && above.below(&name[dot..]).is_none());
            }
        }
        for other in ["", "proc", "process.", "process.args.x", "zebra", "event.actio"] {
            assert!(At::TOP.below(other).is_none(), "{other}");
        }
    }
}
