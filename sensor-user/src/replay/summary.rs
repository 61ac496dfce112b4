//! What a replay has to say of its input: why it could not begin, and what became of the lines.
//! Values only; shown by the command.

use std::{collections::BTreeMap, io};

use crate::audit::BadLine;

/// A replay could not begin, or not tell its result.
#[derive(Debug, thiserror::Error)]
pub enum ReplayError {
    /// A file is what the other option takes.
    #[error("{name} was given with {given} but holds {holds}; give it with {other}")]
    Mistaken {
        /// Which.
        name: String,
        /// The option that it was given with.
        given: &'static str,
        /// What is in it.
        holds: &'static str,
        /// The option that takes that.
        other: &'static str,
    },
    /// A file is what an earlier run made.
    #[error(
        "{name} was given with {given} but holds alerts; replay takes audit logs, and opens as \
         `run --record` writes them"
    )]
    Alerts {
        /// Which.
        name: String,
        /// The option that it was given with.
        given: &'static str,
    },
    /// A file holds audit events in another form.
    #[error(
        "{name} was given with {given} but holds an EventList; replay takes one audit event a line, as \
         `jq --compact-output .items[]` makes of it"
    )]
    Posts {
        /// Which.
        name: String,
        /// The option that it was given with.
        given: &'static str,
    },
    /// The output would replace an input.
    #[error("{name} is to be read; give another file with --output")]
    Overwrites {
        /// Which.
        name: String,
    },
    /// Standard input is one stream.
    #[error("standard input can be given once; give the other input as a file")]
    StdinTwice,
    /// A file cannot be opened.
    #[error("cannot read {name}")]
    Open {
        /// Which.
        name: String,
        /// Why.
        source: io::Error,
    },
    /// What memory has no room for does not fit anywhere.
    #[error("cannot use a temporary file; make room there or set TMPDIR")]
    Temporary(#[source] io::Error),
}

impl ReplayError {
    /// Whether the arguments are at fault.
    pub fn is_usage(&self) -> bool {
        match self {
            Self::Mistaken { .. }
            | Self::Alerts { .. }
            | Self::Posts { .. }
            | Self::Overwrites { .. }
            | Self::StdinTwice => true,
            Self::Open { .. } | Self::Temporary(_) => false,
        }
    }
}

/// What became of the input.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Summary {
    /// Lines of `--opens`.
    pub opens: Tally,
    /// Lines of `--audit`.
    pub audit: Tally,
    /// Items that came later than the lateness allows: their order is not certain.
    pub late: u64,
    /// Items taken before their turn for want of room.
    pub early: u64,
    /// How often exceptions kept quiet, by their names.
    pub excepted: Vec<(String, u64)>,
    /// What else was given up, by name.
    pub losses: Vec<(&'static str, u64)>,
    /// Files that could not be read to their end, and why.
    pub unread: Vec<String>,
}

/// Lines of one kind of file.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    /// All of them.
    pub lines: u64,
    /// Their bytes, decompressed.
    pub bytes: u64,
    /// Those that could matter.
    pub kept: u64,
    /// Those that could not be used, by reason.
    pub bad: BTreeMap<&'static str, u64>,
    /// Documents of which something could not be used: a field of ours, or whose pod's the open is.
    pub in_part: BTreeMap<&'static str, u64>,
}

impl Tally {
    /// Counts a line that could not be used.
    pub(super) fn bad(&mut self, reason: BadLine) {
        *self.bad.entry(reason.as_str()).or_default() += 1;
    }
}
