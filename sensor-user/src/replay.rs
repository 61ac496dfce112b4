//! Recorded opens and audit logs through the rules once more.
pub mod clock;
pub mod elastic;
pub mod input;
pub mod merge;
pub mod opens;
pub mod output;
