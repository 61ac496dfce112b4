//! What exceptions swallowed, kept in the state directory over restarts. The counts serve to find
//! exceptions that nobody needs; they are no evidence, so a damaged file is a new beginning, and
//! nothing is synced.
//!
//! With the counts go the ids of what was counted last: after a restart some of it is read again.

use std::{
    collections::VecDeque,
    fs::{self, File, OpenOptions},
    io::{self, Read, Write},
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};

use crate::{
    correlation::SWALLOWED,
    rules::exceptions::{ExceptionId, Exceptions, hits::Hits},
    time::Micros,
};

/// Version of the file's format; another one is a new beginning.
const VERSION: u32 = 1;
/// Five hundred exceptions fill a tenth of it; what is larger is not ours.
const MAX_BYTES: u64 = 1 << 20;
/// Ids kept: as many as a correlator remembers.
const KEPT_IDS: usize = SWALLOWED.get();

#[derive(Debug, Default, Serialize, Deserialize)]
struct Saved {
    version: u32,
    exceptions: Hits,
    /// Oldest first.
    #[serde(default)]
    swallowed: VecDeque<String>,
}

/// The counts, and where they are kept.
#[derive(Debug)]
pub(super) struct HitStore {
    path: PathBuf,
    saved: Saved,
    changed: bool,
    failing: bool,
}

impl HitStore {
    /// Goes on with what is there.
    pub(super) fn open(state_dir: &Path) -> Self {
        let mut saved = read_saved(state_dir).unwrap_or_else(|error| {
            tracing::warn!(%error, "what exceptions swallowed is counted from now on");
            Saved::default()
        });
        saved.version = VERSION;
        Self { path: path_in(state_dir), saved, changed: false, failing: false }
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
        if !self.changed {
            return;
        }
        match write(&self.path, &self.saved) {
            Ok(()) => (self.changed, self.failing) = (false, false),
            Err(error) if self.failing => {
                tracing::debug!(%error, "what exceptions swallowed cannot be written");
            }
            Err(error) => {
                self.failing = true;
                let path = self.path.display();
                tracing::warn!(%path, %error, "what exceptions swallowed cannot be written");
            }
        }
    }
}

/// The counts in a state directory; none if no agent has kept any there.
///
/// # Errors
/// The file cannot be read or is not one of ours.
pub fn read(state_dir: &Path) -> io::Result<Hits> {
    Ok(read_saved(state_dir)?.exceptions)
}

fn read_saved(state_dir: &Path) -> io::Result<Saved> {
    let path = path_in(state_dir);
    let name = |error: &dyn std::fmt::Display| format!("{}: {error}", path.display());
    let mut bytes = Vec::new();
    match File::open(&path).and_then(|file| file.take(MAX_BYTES).read_to_end(&mut bytes)) {
        Ok(_) => {}
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Saved::default()),
        Err(error) => return Err(io::Error::new(error.kind(), name(&error))),
    }
    let invalid =
        |why: &dyn std::fmt::Display| io::Error::new(io::ErrorKind::InvalidData, name(why));
    match serde_json::from_slice::<Saved>(&bytes) {
        Ok(saved) if saved.version == VERSION => Ok(saved),
        Ok(saved) => Err(invalid(&format!("version {} is not {VERSION}", saved.version))),
        Err(error) => Err(invalid(&error)),
    }
}

fn path_in(state_dir: &Path) -> PathBuf {
    state_dir.join("exception-hits.json")
}

fn write(path: &Path, saved: &Saved) -> io::Result<()> {
    let temporary = path.with_extension("json.tmp");
    let mut file =
        OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&temporary)?;
    file.write_all(&serde_json::to_vec(saved)?)?;
    fs::rename(&temporary, path)
}
