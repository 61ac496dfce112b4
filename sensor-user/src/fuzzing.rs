//! What holds for any bytes that come in, one function an input, each a panic where it does not hold.
//!
//! `tests/fuzz` gives these to a fuzzer, unit tests try them on the inputs that are kept there.
//! Compiled for nothing else: behind the feature `fuzzing`, and in tests.

#![expect(
    clippy::indexing_slicing,
    clippy::panic,
    reason = "a property that does not hold is told by a panic"
)]
#![expect(
    clippy::wildcard_enum_match_arm,
    reason = "JSON gets no further kinds of values, and all but two are alike here"
)]

mod btf;
mod envelopes;
mod lines;
mod opens;
mod record;
mod scan;

pub use self::{
    btf::btf, envelopes::envelopes, lines::lines, opens::opens, record::record, scan::scan,
};

/// A property of any bytes.
pub type Property = fn(&[u8]);

/// All of them, by the names of their targets.
pub const PROPERTIES: [(&str, Property); 6] = [
    ("btf", btf),
    ("envelopes", envelopes),
    ("lines", lines),
    ("opens", opens),
    ("record", record),
    ("scan", scan),
];

#[cfg(test)]
mod tests;
