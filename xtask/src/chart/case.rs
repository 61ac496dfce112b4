//! What a row of the chart's tables says: values, and facts about the objects that they give.
//!
//! A path is a kind and steps into its object, as [`find`](super::find) takes them. The tables are
//! `cases` and `refusals`.

use anyhow::{Result, bail, ensure};
use serde_json::Value;

/// One row.
pub(super) struct Case {
    /// What is being said by it.
    pub(super) says: &'static str,
    /// Values, as YAML.
    pub(super) values: &'static str,
    /// The release's name, where it matters.
    pub(super) release: Option<&'static str>,
    /// The cluster's version, where it matters.
    pub(super) kubernetes: Option<&'static str>,
    pub(super) expected: Expected,
}

/// How it must end.
#[derive(Clone, Copy)]
pub(super) enum Expected {
    /// Objects of which these hold.
    Renders(&'static [(&'static str, Fact)]),
    /// An error with this in it.
    Refused(&'static str),
}

/// A fact about what is at a path.
#[derive(Clone, Copy)]
pub(super) enum Fact {
    /// It is this, written as JSON.
    Is(&'static str),
    /// Nothing is there.
    Absent,
}

impl Fact {
    /// Holds the fact against what was found.
    ///
    /// # Errors
    /// Says what was found instead.
    pub(super) fn check(self, found: Option<&Value>) -> Result<()> {
        match self {
            Self::Is(expected) => {
                let expected: Value = serde_json::from_str(expected)?;
                if found != Some(&expected) {
                    bail!("expected {expected}, found {found:?}");
                }
            }
            Self::Absent => ensure!(found.is_none(), "expected nothing, found {found:?}"),
        }
        Ok(())
    }
}

pub(super) const fn case(says: &'static str, values: &'static str, expected: Expected) -> Case {
    Case { says, values, release: None, kubernetes: None, expected }
}
