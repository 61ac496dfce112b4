//! What exceptions swallowed, kept in the state directory over restarts. The counts serve to find
//! exceptions that nobody needs; they are no evidence, so a damaged file is a new beginning, and
//! nothing is synced.
//!
//! With the counts go the ids of what was counted last: after a restart some of it is read again.

use std::{collections::VecDeque, io, path::Path};

use serde::{Deserialize, Serialize};

use crate::{
    agent::kept::Kept,
    correlation::SWALLOWED,
    rules::exceptions::{ExceptionId, Exceptions, hits::Hits},
    time::Micros,
};

/// Ids kept: as many as a correlator remembers.
const KEPT_IDS: usize = SWALLOWED.get();

#[derive(Debug, Default, Serialize, Deserialize)]
struct Saved {
    exceptions: Hits,
    /// Oldest first.
    #[serde(default)]
    swallowed: VecDeque<String>,
}

/// The counts, and where they are kept.
#[derive(Debug)]
pub(super) struct HitStore {
    kept: Kept,
    saved: Saved,
    changed: bool,
}

impl HitStore {
    /// Goes on with what is there.
    pub(super) fn open(state_dir: &Path) -> Self {
        let kept = kept(state_dir);
        let saved = kept.read().unwrap_or_else(|error| {
            tracing::warn!(%error, "what exceptions swallowed is counted from now on");
            Saved::default()
        });
        Self { kept, saved, changed: false }
    }

    /// See [`Hits::align`].
    pub(super) fn align(&mut self, exceptions: &Exceptions, now: Micros) {
        self.changed |= self.saved.exceptions.align(exceptions, now);
    }

    /// See [`Hits::note`]; `what` is the id of what was swallowed.
    pub(super) fn note(&mut self, id: &ExceptionId, what: String, now: Micros) {
        let Saved { exceptions, swallowed, .. } = &mut self.saved;
        exceptions.note(id, now);
        if swallowed.len() >= KEPT_IDS {
            swallowed.pop_front();
        }
        swallowed.push_back(what);
        self.changed = true;
    }

    /// Ids of what was counted last, oldest first.
    pub(super) fn swallowed(&self) -> impl Iterator<Item = &str> {
        self.saved.swallowed.iter().map(String::as_str)
    }

    /// Writes the counts if they changed; what fails is tried again at the next call.
    pub(super) fn flush(&mut self) {
        self.changed = self.changed && !self.kept.write(&self.saved);
    }
}

/// The counts in a state directory; none if no agent has kept any there.
///
/// # Errors
/// The file cannot be read or is not one of ours.
pub fn read(state_dir: &Path) -> io::Result<Hits> {
    Ok(kept(state_dir).read::<Saved>()?.exceptions)
}

fn kept(state_dir: &Path) -> Kept {
    Kept::new(state_dir, "exception-hits.json", "what exceptions swallowed")
}
