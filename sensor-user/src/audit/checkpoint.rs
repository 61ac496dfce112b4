//! How far each audit file has been read, kept over restarts.
//!
//! One small file in the state directory for all sources. Written to a temporary file, synced and
//! renamed: a crash at any point leaves the old or the new state, whole. An older state only means
//! that lines are read again. Blocking; called by the engine, after the alerts of what a position
//! covers are written.

use std::{
    collections::BTreeMap,
    fs::{self, File, OpenOptions},
    io::{self, Read, Write},
    os::unix::fs::{DirBuilderExt, OpenOptionsExt},
    path::{Path, PathBuf},
    time::SystemTime,
};

use serde::{Deserialize, Serialize};
use thiserror::Error;
use tracing::warn;

/// Version of the file's format; another one is a fresh start.
const VERSION: u32 = 1;
/// Far more than any number of sources needs; what is larger is not ours.
const MAX_BYTES: u64 = 1 << 20;

/// How far a file has been read.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Position {
    /// Device of the file.
    pub device: u64,
    /// Inode of the file.
    pub inode: u64,
    /// Bytes of it that are done with.
    pub offset: u64,
    /// Fingerprint of its first line, if it has one: knows its content again under another inode,
    /// and other content under its own.
    #[serde(default)]
    pub first_line: Option<u64>,
    /// Time of its last write as of now: what was written later has not been read.
    #[serde(default)]
    pub modified: Option<SystemTime>,
    /// Where it is, behind symbolic links, which may be switched. `None` too if that is no text.
    #[serde(default)]
    pub path: Option<String>,
}

/// Why positions cannot be kept.
#[derive(Debug, Error)]
pub enum CheckpointError {
    /// The state directory cannot be made.
    #[error(
        "cannot create the state directory {dir}: {source}; create it or name another with --state-dir"
    )]
    Directory {
        /// The state directory.
        dir: PathBuf,
        /// The system's answer.
        source: io::Error,
    },
    /// The file is there but cannot be read.
    #[error("cannot read the audit checkpoints in {file}: {source}; make it readable or remove it")]
    Read {
        /// The checkpoint file.
        file: PathBuf,
        /// The system's answer.
        source: io::Error,
    },
    /// The state directory cannot be written, full or read-only.
    #[error(
        "cannot write the audit checkpoints to {file}: {source}; make the state directory writable or name another with --state-dir"
    )]
    Write {
        /// The checkpoint file.
        file: PathBuf,
        /// The system's answer.
        source: io::Error,
    },
}

/// The positions of all sources.
#[derive(Debug)]
pub struct Checkpoints {
    file: PathBuf,
    saved: Saved,
    changed: bool,
}

/// Positions on their way to the disk.
#[derive(Debug)]
pub struct Flush {
    file: PathBuf,
    saved: Saved,
}

impl Flush {
    /// Writes them.
    ///
    /// # Errors
    /// The state directory cannot be written.
    pub fn write(&self) -> Result<(), CheckpointError> {
        write(&self.file, &self.saved)
            .map_err(|source| CheckpointError::Write { file: self.file.clone(), source })
    }
}

#[derive(Clone, Debug, Serialize, Deserialize)]
struct Saved {
    version: u32,
    /// By the path that was configured; text, since JSON keys are.
    sources: BTreeMap<String, Position>,
}

impl Checkpoints {
    /// Opens the store in the state directory, which is made if need be, and proves that it can be
    /// written. A file that cannot be understood is one warning and a fresh start.
    ///
    /// # Errors
    /// The directory cannot be made, read or written.
    pub fn open(dir: &Path) -> Result<Self, CheckpointError> {
        fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(dir)
            .map_err(|source| CheckpointError::Directory { dir: dir.to_owned(), source })?;
        let file = dir.join("audit-checkpoints.json");
        let saved = read(&file)
            .map_err(|source| CheckpointError::Read { file: file.clone(), source })?
            .unwrap_or(Saved { version: VERSION, sources: BTreeMap::new() });
        let mut checkpoints = Self { file, saved, changed: true };
        checkpoints.flush()?;
        Ok(checkpoints)
    }

    /// Where to go on with a source.
    pub fn position(&self, path: &Path) -> Option<Position> {
        self.saved.sources.get(&*path.to_string_lossy()).cloned()
    }

    /// Notes how far a source is done with; in memory until [`Self::flush`].
    pub fn advance(&mut self, path: &Path, position: Position) {
        if self.position(path).as_ref() != Some(&position) {
            self.saved.sources.insert(path.to_string_lossy().into_owned(), position);
            self.changed = true;
        }
    }

    /// Writes the positions, if they changed.
    ///
    /// # Errors
    /// The state directory cannot be written; the positions stay in memory for the next try.
    pub fn flush(&mut self) -> Result<(), CheckpointError> {
        self.begin_flush().map_or(Ok(()), |flush| flush.write()).inspect_err(|_| self.redo())
    }

    /// The positions, to be written by another thread, if they changed. [`Self::redo`] if it cannot.
    pub fn begin_flush(&mut self) -> Option<Flush> {
        let changed = std::mem::take(&mut self.changed);
        changed.then(|| Flush { file: self.file.clone(), saved: self.saved.clone() })
    }

    /// What was to be written is not.
    pub fn redo(&mut self) {
        self.changed = true;
    }
}

/// The saved state; `None` if there is none that can be used.
fn read(path: &Path) -> io::Result<Option<Saved>> {
    let file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
    };
    let mut bytes = Vec::new();
    file.take(MAX_BYTES).read_to_end(&mut bytes)?;
    let reason = match serde_json::from_slice::<Saved>(&bytes) {
        Ok(saved) if saved.version == VERSION => return Ok(Some(saved)),
        Ok(saved) => format!("version {} is not {VERSION}", saved.version),
        Err(error) => error.to_string(),
    };
    warn!(path = %path.display(), %reason, "audit checkpoints cannot be used, audit files are followed from their end");
    Ok(None)
}

fn write(path: &Path, saved: &Saved) -> io::Result<()> {
    let temporary = path.with_extension("json.tmp");
    let mut file =
        OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&temporary)?;
    file.write_all(&serde_json::to_vec(saved)?)?;
    // Without this a power cut could leave the new name with no content.
    file.sync_all()?;
    fs::rename(&temporary, path)
}

#[cfg(test)]
mod tests {
    use std::{fs, os::unix::fs::PermissionsExt, path::Path, time::SystemTime};

    use super::{CheckpointError, Checkpoints, Position};

    const AUDIT: &str = "/var/log/kubernetes/audit/audit.log";

    fn position(offset: u64) -> Position {
        Position {
            device: 66_306,
            inode: 4_711,
            offset,
            first_line: Some(u64::MAX),
            modified: Some(SystemTime::UNIX_EPOCH),
            path: Some("/data/audit.log".to_owned()),
        }
    }

    #[test]
    fn positions_are_read_back_and_nobody_else_can_read_them() {
        let dir = tempfile::tempdir().unwrap();
        let state = dir.path().join("made/when/missing");
        let mut checkpoints = Checkpoints::open(&state).unwrap();
        assert_eq!(checkpoints.position(Path::new(AUDIT)), None);
        checkpoints.advance(Path::new(AUDIT), position(1));
        checkpoints.advance(Path::new("/other.log"), position(7));
        checkpoints.advance(Path::new(AUDIT), position(2));
        checkpoints.flush().unwrap();

        let checkpoints = Checkpoints::open(&state).unwrap();
        assert_eq!(checkpoints.position(Path::new(AUDIT)), Some(position(2)));
        assert_eq!(checkpoints.position(Path::new("/other.log")), Some(position(7)));
        let mode = fs::metadata(state.join("audit-checkpoints.json")).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        assert_eq!(fs::read_dir(&state).unwrap().count(), 1, "no temporary file is left");
    }

    #[test]
    fn what_is_not_flushed_is_only_in_memory_and_what_did_not_change_is_not_written() {
        let dir = tempfile::tempdir().unwrap();
        let mut checkpoints = Checkpoints::open(dir.path()).unwrap();
        checkpoints.advance(Path::new(AUDIT), position(1));
        assert_eq!(Checkpoints::open(dir.path()).unwrap().position(Path::new(AUDIT)), None);
        checkpoints.flush().unwrap();

        let file = dir.path().join("audit-checkpoints.json");
        fs::remove_file(&file).unwrap();
        checkpoints.advance(Path::new(AUDIT), position(1));
        checkpoints.flush().unwrap();
        assert!(!file.exists());
    }

    #[test]
    fn a_file_that_cannot_be_understood_is_a_fresh_start() {
        for content in [
            "",
            "{\"version\":1,\"sources\":{\"/a\":{\"dev",
            "{\"version\":99,\"sources\":{}}",
            "[]",
            "\u{0}\u{0}\u{0}",
        ] {
            let dir = tempfile::tempdir().unwrap();
            fs::write(dir.path().join("audit-checkpoints.json"), content).unwrap();
            let mut checkpoints = Checkpoints::open(dir.path()).unwrap();
            assert_eq!(checkpoints.position(Path::new(AUDIT)), None, "{content:?}");
            checkpoints.advance(Path::new(AUDIT), position(3));
            checkpoints.flush().unwrap();
            let position_read = Checkpoints::open(dir.path()).unwrap().position(Path::new(AUDIT));
            assert_eq!(position_read, Some(position(3)));
        }
    }

    #[test]
    fn a_file_of_another_release_with_more_or_less_in_a_position_is_read() {
        let dir = tempfile::tempdir().unwrap();
        let content =
            r#"{"version":1,"sources":{"/a":{"device":1,"inode":2,"offset":3,"print":"x"}}}"#;
        fs::write(dir.path().join("audit-checkpoints.json"), content).unwrap();
        let checkpoints = Checkpoints::open(dir.path()).unwrap();
        let expected = Position {
            device: 1,
            inode: 2,
            offset: 3,
            first_line: None,
            modified: None,
            path: None,
        };
        assert_eq!(checkpoints.position(Path::new("/a")), Some(expected));
    }

    // Permissions do not stop root; /proc does: nobody can make a file there.
    #[test]
    fn a_state_directory_that_cannot_be_written_is_named_with_what_to_do() {
        let error = Checkpoints::open(Path::new("/proc/self/fdinfo")).unwrap_err();
        assert!(matches!(error, CheckpointError::Write { .. }), "{error}");
        let text = error.to_string();
        assert!(text.contains("/proc/self/fdinfo") && text.contains("--state-dir"), "{text}");

        let error = Checkpoints::open(Path::new("/proc/self/state")).unwrap_err();
        assert!(matches!(error, CheckpointError::Directory { .. }), "{error}");
    }

    #[test]
    fn a_checkpoint_file_that_cannot_be_read_is_an_error_and_not_a_fresh_start() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("audit-checkpoints.json")).unwrap();
        let error = Checkpoints::open(dir.path()).unwrap_err();
        assert!(matches!(error, CheckpointError::Read { .. }), "{error}");
    }
}
