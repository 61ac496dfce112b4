//! The rules file: read whole or not at all, and polled for changes. A version that is refused
//! leaves the earlier one in force.
//!
//! Polled, not watched: once a second is soon enough, and it sees through every way in which files
//! are replaced, a ConfigMap's links among them.

use std::{
    fs::{self, File},
    io::{self, Read},
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    sync::Arc,
};

use crate::{
    errors::with_causes,
    rules::rulebook::{Rulebook, RulebookError},
};

/// Far more than judged exceptions fill.
const MAX_BYTES: u64 = 256 << 10;

/// The rules file is unusable. Exit code 2.
#[derive(Debug, thiserror::Error)]
pub enum RulesFileError {
    /// It cannot be read.
    #[error("cannot read the rules file {}: {source}", path.display())]
    Read {
        /// Which.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// A directory, a pipe or the like.
    #[error("the rules file {} is not a regular file; name one with --rules-file", path.display())]
    NoFile {
        /// Which.
        path: PathBuf,
    },
    /// Nobody wrote that by hand.
    #[error(
        "the rules file {} has more than {MAX_BYTES} bytes; merge exceptions by patterns",
        path.display()
    )]
    TooLong {
        /// Which.
        path: PathBuf,
    },
    /// Something in it is refused.
    #[error("the rules file {} is not valid: {source}", path.display())]
    Invalid {
        /// Which.
        path: PathBuf,
        /// What.
        source: RulebookError,
    },
}

/// The rulebook of a file, or all defaults where there is none.
#[derive(Debug)]
pub struct RulesFile {
    current: Arc<Rulebook>,
    watched: Option<Watched>,
}

#[derive(Debug)]
struct Watched {
    path: PathBuf,
    /// What was there when it was read last; `None` if nothing was.
    read: Option<Stamp>,
    /// What was there when it was looked at last.
    seen: Option<Stamp>,
    failure: Option<String>,
}

/// Tells one version of a file from another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Stamp {
    device: u64,
    inode: u64,
    bytes: u64,
    // Not the time of modification: copying tools set that.
    changed: (i64, i64),
}

impl Stamp {
    fn of(path: &Path) -> Option<Self> {
        let data = fs::metadata(path).ok()?;
        Some(Self {
            device: data.dev(),
            inode: data.ino(),
            bytes: data.size(),
            changed: (data.ctime(), data.ctime_nsec()),
        })
    }
}

/// What a look at the file gave.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Polled {
    /// Nothing new.
    Same,
    /// A new version is in force.
    Changed,
    /// There is a new version, which is refused.
    Refused,
}

impl RulesFile {
    /// Reads it.
    ///
    /// # Errors
    /// It cannot be read, or something in it is refused.
    pub fn open(path: Option<&Path>) -> Result<Self, RulesFileError> {
        let Some(path) = path else { return Ok(Self { current: Arc::default(), watched: None }) };
        // Before reading: what is written meanwhile is then a change.
        let stamp = Stamp::of(path);
        let current = Arc::new(read(path)?);
        let watched = Watched { path: path.to_owned(), read: stamp, seen: stamp, failure: None };
        Ok(Self { current, watched: Some(watched) })
    }

    /// What is in force.
    pub fn current(&self) -> &Arc<Rulebook> {
        &self.current
    }

    /// Why the newest version is not in force, if it is not.
    pub fn failure(&self) -> Option<&str> {
        self.watched.as_ref()?.failure.as_deref()
    }

    /// Reads a new version once it was found the same twice: somebody may still be writing it.
    pub(super) fn poll(&mut self) -> Polled {
        let Some(watched) = &mut self.watched else { return Polled::Same };
        let stamp = Stamp::of(&watched.path);
        let settled = watched.seen == stamp;
        watched.seen = stamp;
        if !settled || watched.read == stamp {
            return Polled::Same;
        }
        watched.read = stamp;
        match read(&watched.path) {
            Ok(rulebook) => {
                let exceptions = rulebook.exceptions.iter().count();
                tracing::info!(path = %watched.path.display(), exceptions, "new rules");
                watched.failure = None;
                self.current = Arc::new(rulebook);
                Polled::Changed
            }
            Err(error) => {
                let why = with_causes(&error);
                tracing::error!(why, "new rules are refused, the earlier ones hold");
                watched.failure = Some(why);
                Polled::Refused
            }
        }
    }
}

fn read(path: &Path) -> Result<Rulebook, RulesFileError> {
    let failed = |source| RulesFileError::Read { path: path.to_owned(), source };
    // To open a pipe would wait for its other end.
    if !fs::metadata(path).map_err(failed)?.is_file() {
        return Err(RulesFileError::NoFile { path: path.to_owned() });
    }
    let mut bytes = Vec::new();
    let file = File::open(path).map_err(failed)?;
    file.take(MAX_BYTES + 1).read_to_end(&mut bytes).map_err(failed)?;
    if bytes.len() as u64 > MAX_BYTES {
        return Err(RulesFileError::TooLong { path: path.to_owned() });
    }
    let text = String::from_utf8(bytes)
        .map_err(|_| failed(io::Error::new(io::ErrorKind::InvalidData, "it is not UTF-8")))?;
    Rulebook::parse(&text)
        .map_err(|source| RulesFileError::Invalid { path: path.to_owned(), source })
}
