//! By which rules a replay goes: what of its input matters to them, and what they make of it.
//!
//! Pure; the replay loop asks and feeds.

use super::opens::OpenDocument;
use crate::{alert::ecs::Document, audit::BadLine, time::Micros};

pub mod elastic;
pub mod live;

/// What a line is worth.
#[derive(Debug)]
pub enum Judged {
    /// It cannot change an alert.
    Skip,
    /// It is no audit event, or a broken one.
    Bad(BadLine),
    /// It may: it is to be given back, as it is, when its turn comes.
    Keep {
        /// Its place in the order of time.
        time: Micros,
    },
}

/// What becomes of a kept line when its turn comes.
pub type Outcome = Result<(), BadLine>;

/// Takes what is told, one by one: a busy second's documents together would be most of all memory.
pub type Tell<'a> = &'a mut dyn FnMut(Document);

/// Rules, with their state.
pub trait Semantics {
    /// An open is read, ahead of its turn. Whether it can matter.
    fn expect(&mut self, open: &OpenDocument) -> bool;

    /// What an audit line is worth, of which all opens up to it are expected.
    fn judge(&mut self, line: &[u8]) -> Judged;

    /// No audit event before this is to come.
    fn forget(&mut self, watermark: Micros);

    /// An open, in its turn.
    fn open(&mut self, open: OpenDocument, tell: Tell<'_>);

    /// An audit event, in its turn.
    ///
    /// # Errors
    /// It turns out to be a broken one.
    fn request(&mut self, line: &[u8], tell: Tell<'_>) -> Outcome;

    /// Nothing before this is left; [`Micros::MAX`] at the end.
    fn advance(&mut self, watermark: Micros, tell: Tell<'_>);

    /// How often exceptions kept quiet, by their names.
    fn excepted(&self) -> Vec<(String, u64)> {
        Vec::new()
    }

    /// What was given up to stay within bounds, by name.
    fn losses(&self) -> Vec<(&'static str, u64)>;
}
