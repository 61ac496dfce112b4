//! By which rules a replay goes: what of its input matters to them, and what they make of it.
//!
//! Pure; the replay loop asks and feeds.

use super::opens::OpenDocument;
use crate::{
    alert::ecs::Document,
    audit::{AuditRecord, BadLine},
    time::Micros,
};

pub mod elastic;

/// An audit event on its way through the order of time.
#[derive(Debug)]
pub enum Held {
    /// As it was read: most are never decoded.
    Line(Box<[u8]>),
    /// Decoded.
    Record(Box<AuditRecord>),
}

impl Held {
    /// What it takes to hold it, roughly, bytes.
    pub fn size(&self) -> usize {
        match self {
            Self::Line(line) => line.len() + 64,
            Self::Record(_) => 4 << 10,
        }
    }
}

/// What a line is worth.
#[derive(Debug)]
pub enum Judged {
    /// It cannot change an alert.
    Skip,
    /// It is no audit event, or a broken one.
    Bad(BadLine),
    /// It may.
    Keep {
        /// Its place in the order of time.
        time: Micros,
        /// To be given back at that place.
        held: Held,
    },
}

/// What becomes of a kept line when its turn comes.
pub type Outcome = Result<(), BadLine>;

/// Rules, with their state.
pub trait Semantics {
    /// An open is read, ahead of its turn. Whether it can matter.
    fn expect(&mut self, open: &OpenDocument) -> bool;

    /// What an audit line is worth, of which all opens up to it are expected.
    fn judge(&self, line: &[u8]) -> Judged;

    /// No audit event before this is to come.
    fn forget(&mut self, watermark: Micros);

    /// An open, in its turn.
    fn open(&mut self, open: OpenDocument, documents: &mut Vec<Document>);

    /// An audit event, in its turn.
    ///
    /// # Errors
    /// It turns out to be a broken one.
    fn request(&mut self, held: Held, documents: &mut Vec<Document>) -> Outcome;

    /// Time has passed; [`Micros::MAX`] at the end.
    fn advance(&mut self, watermark: Micros, documents: &mut Vec<Document>);

    /// What was given up to stay within bounds, by name.
    fn losses(&self) -> Vec<(&'static str, u64)>;
}
