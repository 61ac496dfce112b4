//! Wall-clock time as Kubernetes audit events carry it: microseconds, UTC, six decimals.
//!
//! Only values and their text form; nothing here reads a clock.

use std::{
    borrow::Cow,
    fmt, ops,
    time::{Duration, SystemTime},
};

use jiff::{Timestamp, civil::DateTime, tz::Offset};
use schemars::JsonSchema;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// Microseconds since the Unix epoch, UTC. Text form: RFC 3339 with six decimals and `Z`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Micros(pub i64);

impl Micros {
    /// The end of time: the watermark of a source that has ended.
    pub const MAX: Self = Self(i64::MAX);
    /// The beginning of time: the watermark of a source that has not been read yet.
    pub const MIN: Self = Self(i64::MIN);

    /// A span of whole seconds.
    pub const fn from_secs(secs: i64) -> Self {
        Self(secs * 1_000_000)
    }

    /// Nanoseconds to microseconds, rounded down.
    pub const fn from_nanos(nanos: u64) -> Self {
        #[expect(clippy::cast_possible_wrap, reason = "a u64 / 1000 is below i64::MAX")]
        Self((nanos / 1_000) as i64)
    }

    /// A span; one of 292,000 years at most.
    pub fn from_duration(span: Duration) -> Self {
        Self(i64::try_from(span.as_micros()).unwrap_or(i64::MAX))
    }

    /// Parses RFC 3339; finer digits than microseconds are cut. `None` if it is not a time.
    pub fn parse(text: &str) -> Option<Self> {
        let time = as_written(text).or_else(|| text.parse().ok())?;
        Some(Self(time.as_microsecond()))
    }

    /// As [`parse`](Self::parse), a time between the first Kubernetes and far from now. Anything
    /// else in a log is a zero value or a broken clock, and one such time would move a watermark
    /// for good.
    pub fn parse_believable(text: &str) -> Option<Self> {
        /// 2014-06-06
        const FIRST: Micros = Micros::from_secs(1_402_012_800);
        /// 2200-01-01
        const LAST: Micros = Micros::from_secs(7_258_118_400);
        Self::parse(text).filter(|time| (FIRST..LAST).contains(time))
    }
}

impl From<SystemTime> for Micros {
    /// A time before 1970 is its beginning.
    fn from(time: SystemTime) -> Self {
        time.duration_since(SystemTime::UNIX_EPOCH).map_or(Self(0), Self::from_duration)
    }
}

/// Reads the one form that kube-apiserver writes, several times as fast as any form.
fn as_written(text: &str) -> Option<Timestamp> {
    let bytes: &[u8; 27] = text.as_bytes().try_into().ok()?;
    let number = |at: usize, digits: usize| {
        bytes.get(at..at + digits)?.iter().try_fold(0_i32, |number, digit| {
            digit.is_ascii_digit().then(|| number * 10 + i32::from(digit - b'0'))
        })
    };
    let marks = [(4, b'-'), (7, b'-'), (10, b'T'), (13, b':'), (16, b':'), (19, b'.'), (26, b'Z')];
    if marks.iter().any(|(at, mark)| bytes.get(*at) != Some(mark)) {
        return None;
    }
    let small = |at| number(at, 2).and_then(|number| i8::try_from(number).ok());
    let time = DateTime::new(
        number(0, 4).and_then(|year| i16::try_from(year).ok())?,
        small(5)?,
        small(8)?,
        small(11)?,
        small(14)?,
        small(17)?,
        number(20, 6)? * 1_000,
    );
    Offset::UTC.to_timestamp(time.ok()?).ok()
}

impl ops::Add for Micros {
    type Output = Self;
    fn add(self, other: Self) -> Self {
        Self(self.0.saturating_add(other.0))
    }
}

impl ops::Sub for Micros {
    type Output = Self;
    fn sub(self, other: Self) -> Self {
        Self(self.0.saturating_sub(other.0))
    }
}

impl fmt::Display for Micros {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Beyond year 9999 there is no RFC 3339 form: the nearest representable time stands in.
        let time = Timestamp::from_microsecond(self.0).unwrap_or(if self.0 < 0 {
            Timestamp::MIN
        } else {
            Timestamp::MAX
        });
        write!(f, "{time:.6}")
    }
}

impl Serialize for Micros {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Micros {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = Cow::<'de, str>::deserialize(deserializer)?;
        Self::parse(&text).ok_or_else(|| serde::de::Error::custom("not an RFC 3339 time"))
    }
}

impl JsonSchema for Micros {
    fn inline_schema() -> bool {
        true
    }

    fn schema_name() -> Cow<'static, str> {
        "Time".into()
    }

    fn json_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
        schemars::json_schema!({
            "type": "string",
            "format": "date-time",
            "description": "RFC 3339, UTC, six decimals"
        })
    }
}

#[cfg(test)]
mod tests {
    use jiff::Timestamp;
    use proptest::prelude::*;

    use super::Micros;

    proptest! {
        #[test]
        fn the_usual_form_is_read_as_any_form_is(
            text in r"[012][0-9]{3}-[01][0-9]-[0-3][0-9]T[0-2][0-9]:[0-6][0-9]:[0-6][0-9]\.[0-9]{6}[Z ]"
        ) {
            let expected = text.parse::<Timestamp>().ok().map(|it| Micros(it.as_microsecond()));
            prop_assert_eq!(Micros::parse(&text), expected, "{}", text);
        }
    }

    #[test]
    fn times_are_written_with_six_decimals_and_read_back() {
        for text in ["2026-11-21T23:50:21.010116Z", "2026-11-21T23:50:21.000000Z"] {
            assert_eq!(Micros::parse(text).unwrap().to_string(), text);
        }
    }

    #[test]
    fn what_is_no_time_is_none_and_what_has_no_text_form_does_not_panic() {
        assert_eq!(Micros::parse("yesterday"), None);
        assert_eq!(Micros::parse(""), None);
        let _ = (Micros::MAX.to_string(), Micros::MIN.to_string());
    }
}
