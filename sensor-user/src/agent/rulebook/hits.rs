//! What exceptions swallowed, kept in the state directory over restarts. The counts serve to find
//! exceptions that nobody needs; they are no evidence, so a damaged file is a new beginning, and
//! nothing is synced.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Read, Write},
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};

use crate::{
    rules::exceptions::{ExceptionId, Exceptions, hits::Hits},
    time::Micros,
};

/// Version of the file's format; another one is a new beginning.
const VERSION: u32 = 1;
/// Five hundred exceptions fill a tenth of it; what is larger is not ours.
const MAX_BYTES: u64 = 1 << 20;

#[derive(Debug, Serialize, Deserialize)]
struct Saved {
    version: u32,
    exceptions: Hits,
}

/// The counts, and where they are kept.
#[derive(Debug)]
pub(super) struct HitStore {
    path: PathBuf,
    hits: Hits,
    changed: bool,
    failing: bool,
}

impl HitStore {
    /// Goes on with what is there.
    pub(super) fn open(state_dir: &Path) -> Self {
        let hits = read(state_dir).unwrap_or_else(|error| {
            tracing::warn!(%error, "what exceptions swallowed is counted from now on");
            Hits::default()
        });
        Self { path: path_in(state_dir), hits, changed: false, failing: false }
    }

    /// See [`Hits::align`].
    pub(super) fn align(&mut self, exceptions: &Exceptions, now: Micros) {
        self.changed |= self.hits.align(exceptions, now);
    }

    /// See [`Hits::note`].
    pub(super) fn note(&mut self, id: &ExceptionId, now: Micros) {
        self.hits.note(id, now);
        self.changed = true;
    }

    /// Writes the counts if they changed; what fails is tried again at the next call.
    pub(super) fn flush(&mut self) {
        if !self.changed {
            return;
        }
        match write(&self.path, &self.hits) {
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
    let path = path_in(state_dir);
    let name = |error: &dyn std::fmt::Display| format!("{}: {error}", path.display());
    let mut bytes = Vec::new();
    match File::open(&path).and_then(|file| file.take(MAX_BYTES).read_to_end(&mut bytes)) {
        Ok(_) => {}
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Hits::default()),
        Err(error) => return Err(io::Error::new(error.kind(), name(&error))),
    }
    let invalid =
        |why: &dyn std::fmt::Display| io::Error::new(io::ErrorKind::InvalidData, name(why));
    match serde_json::from_slice::<Saved>(&bytes) {
        Ok(Saved { version: VERSION, exceptions }) => Ok(exceptions),
        Ok(saved) => Err(invalid(&format!("version {} is not {VERSION}", saved.version))),
        Err(error) => Err(invalid(&error)),
    }
}

fn path_in(state_dir: &Path) -> PathBuf {
    state_dir.join("exception-hits.json")
}

fn write(path: &Path, hits: &Hits) -> io::Result<()> {
    #[derive(Serialize)]
    struct Saving<'a> {
        version: u32,
        exceptions: &'a Hits,
    }
    let temporary = path.with_extension("json.tmp");
    let mut file =
        OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&temporary)?;
    file.write_all(&serde_json::to_vec(&Saving { version: VERSION, exceptions: hits })?)?;
    fs::rename(&temporary, path)
}
