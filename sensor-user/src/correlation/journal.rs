//! What must survive the death of the process: qualifying opens, joined requests and sessions, one
//! JSON line each, one write each.
//!
//! While the disk is full, entries wait in a bounded buffer; a line that was cut short is continued
//! where it stopped.
//!
//! The journal is not synced: it is there for `kill -9`, not for a power loss, after which the
//! alert log is the truth.

use std::{
    fs::{File, OpenOptions},
    io::{self, BufRead, BufReader, Read, Seek, SeekFrom, Write},
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};

use super::{Open, Request};

/// One thing to remember.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Entry {
    /// A qualifying open.
    Open(Open),
    /// A request that belongs to an incident of an exposure.
    Request(Request),
    /// An open that is told by itself. It may have to be kept for longer than the exposure that it is
    /// of as well, and must not begin that anew.
    OpenAlone(Open),
    /// An open whose exposure gave way to others.
    GivenUp(Open),
    /// A request that is told by itself.
    RequestAlone(Request),
    /// A session that may explain an open to come.
    Session(Request),
}

impl Entry {
    fn is_of_incident(&self) -> bool {
        match self {
            Self::Open(_)
            | Self::Request(_)
            | Self::OpenAlone(_)
            | Self::GivenUp(_)
            | Self::RequestAlone(_) => true,
            Self::Session(_) => false,
        }
    }
}

/// Where a correlator remembers.
pub trait Journal {
    /// Adds an entry. After an error it may still be written later, by any other call.
    fn append(&mut self, entry: &Entry) -> Result<(), JournalError>;
    /// Writes what waits for space.
    fn flush(&mut self) -> Result<(), JournalError>;
    /// Drops entries that are not needed any more, if that is worth it. `over` says that no open
    /// and no request is.
    fn compact(
        &mut self,
        is_needed: &dyn Fn(&Entry) -> bool,
        over: bool,
    ) -> Result<(), JournalError>;
}

/// Remembers nothing: for replays and tests.
#[derive(Clone, Copy, Debug, Default)]
pub struct NoJournal;

impl Journal for NoJournal {
    fn append(&mut self, _: &Entry) -> Result<(), JournalError> {
        Ok(())
    }

    fn flush(&mut self) -> Result<(), JournalError> {
        Ok(())
    }

    fn compact(&mut self, _: &dyn Fn(&Entry) -> bool, _: bool) -> Result<(), JournalError> {
        Ok(())
    }
}

/// The journal could not be read or written.
#[derive(Debug, thiserror::Error)]
pub enum JournalError {
    /// The file system refused.
    #[error("cannot {action} the journal {}: {source}; check that the state directory is writable and has space", path.display())]
    Io {
        /// What was tried.
        action: &'static str,
        /// On which file.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// What waits for space has used up the memory for it.
    #[error("the journal {} is full, or cannot be written and no more entries are kept in memory; check that the state directory has space", path.display())]
    Full {
        /// Which file.
        path: PathBuf,
    },
    /// An entry has no JSON form.
    #[error("an entry cannot be written as JSON: {0}")]
    Encode(#[from] serde_json::Error),
}

/// Size from which dead entries are worth dropping, bytes.
const COMPACT_FROM: u64 = 1 << 20;
/// Size from which nothing is added until dead entries are gone, bytes: a start reads all of it.
const MAX_BYTES: u64 = 32 << 20;
/// What may wait for space, bytes: hundreds of entries.
const PENDING_BYTES: usize = 1 << 20;

/// The journal file `correlation.journal` in the state directory.
#[derive(Debug)]
pub struct FileJournal {
    path: PathBuf,
    file: File,
    length: u64,
    compact_from: u64,
    /// Ends of lines that could not be written yet.
    pending: Vec<u8>,
    /// Whether it holds opens or requests, needed or not.
    has_incidents: bool,
}

impl FileJournal {
    /// Opens or makes the journal and reads back what it holds, with the number of lines that
    /// were no entries (a write that a crash cut off, a version that is no more).
    pub fn open(state_dir: &Path) -> Result<(Self, Vec<Entry>, u64), JournalError> {
        let path = state_dir.join("correlation.journal");
        let error = |action| {
            let path = path.clone();
            move |source| JournalError::Io { action, path, source }
        };
        let mut file = options().open(&path).map_err(error("open"))?;
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes).map_err(error("read"))?;
        let mut damaged = 0;
        let mut entries = Vec::new();
        for line in bytes.split(|byte| *byte == b'\n').filter(|line| !line.is_empty()) {
            match serde_json::from_slice(line) {
                Ok(entry) => entries.push(entry),
                Err(_) => damaged += 1,
            }
        }
        if bytes.last().is_some_and(|byte| *byte != b'\n') {
            // The next entry must not continue a torn one.
            file.write_all(b"\n").map_err(error("write"))?;
        }
        let length = file.metadata().map_err(error("read"))?.len();
        let has_incidents = entries.iter().any(Entry::is_of_incident);
        let pending = Vec::new();
        let compact_from = COMPACT_FROM;
        let journal = Self { path, file, length, compact_from, pending, has_incidents };
        Ok((journal, entries, damaged))
    }

    fn write_pending(&mut self) -> Result<(), JournalError> {
        while !self.pending.is_empty() {
            match self.file.write(&self.pending) {
                Ok(count) if count > 0 => {
                    self.pending.drain(..count);
                    self.length += count as u64;
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                result => {
                    let source = result.err().unwrap_or_else(|| io::ErrorKind::WriteZero.into());
                    return Err(JournalError::Io {
                        action: "write",
                        path: self.path.clone(),
                        source,
                    });
                }
            }
        }
        Ok(())
    }

    fn rewrite(&mut self, is_needed: &dyn Fn(&Entry) -> bool) -> io::Result<()> {
        self.file.seek(SeekFrom::Start(0))?;
        let new_path = self.path.with_extension("journal.new");
        match std::fs::remove_file(&new_path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            Ok(()) | Err(_) => {}
        }
        let mut new = options().open(&new_path)?;
        let (mut length, mut has_incidents) = (0, false);
        for line in BufReader::new(&self.file).split(b'\n') {
            let mut line = line?;
            let entry = serde_json::from_slice::<Entry>(&line).ok().filter(is_needed);
            if let Some(entry) = entry {
                has_incidents |= entry.is_of_incident();
                line.push(b'\n');
                new.write_all(&line)?;
                length += line.len() as u64;
            }
        }
        std::fs::rename(&new_path, &self.path)?;
        self.file = new;
        self.length = length;
        self.has_incidents = has_incidents;
        Ok(())
    }
}

/// Append mode: what one write adds is added at the end, whatever was read before.
fn options() -> OpenOptions {
    let mut options = File::options();
    options.read(true).append(true).create(true).mode(0o600);
    options
}

impl Journal for FileJournal {
    fn append(&mut self, entry: &Entry) -> Result<(), JournalError> {
        let mut line = serde_json::to_vec(entry)?;
        line.push(b'\n');
        if self.pending.len() + line.len() > PENDING_BYTES || self.length > MAX_BYTES {
            return Err(JournalError::Full { path: self.path.clone() });
        }
        self.pending.append(&mut line);
        self.has_incidents |= entry.is_of_incident();
        self.write_pending()
    }

    fn flush(&mut self) -> Result<(), JournalError> {
        self.write_pending()
    }

    fn compact(
        &mut self,
        is_needed: &dyn Fn(&Entry) -> bool,
        over: bool,
    ) -> Result<(), JournalError> {
        // Once nothing is held any more, nothing of it may come back after a restart either.
        if self.length < self.compact_from && !(over && self.has_incidents) {
            return Ok(());
        }
        self.rewrite(is_needed).map_err(|source| JournalError::Io {
            action: "rewrite",
            path: self.path.clone(),
            source,
        })?;
        // Where everything is alive, wait until it has doubled; but not beyond what it may become.
        self.compact_from = COMPACT_FROM.max(self.length * 2).min(MAX_BYTES);
        Ok(())
    }
}
