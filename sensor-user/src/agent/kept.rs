//! What the agent keeps in its state directory to be better after a restart, and is no evidence: small
//! JSON files with a version, written whole and renamed, not synced. One that is damaged is a new
//! beginning; whoever keeps one says so.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Read as _, Write as _},
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize, de::DeserializeOwned};

/// Version of the formats; another one is not read.
const VERSION: u32 = 1;
/// What is larger is not ours.
const MAX_BYTES: u64 = 16 << 20;

#[derive(Serialize, Deserialize)]
struct Versioned<T> {
    version: u32,
    #[serde(flatten)]
    content: T,
}

/// A file that is kept.
#[derive(Debug)]
pub(super) struct Kept {
    path: PathBuf,
    /// What it holds, for people.
    what: &'static str,
    failing: bool,
}

impl Kept {
    /// The file of this name; nothing is read or written yet.
    pub(super) fn new(state_dir: &Path, name: &str, what: &'static str) -> Self {
        Self { path: state_dir.join(name), what, failing: false }
    }

    /// What it holds; nothing if nobody has written it yet.
    ///
    /// # Errors
    /// The file cannot be read or is not one of ours.
    pub(super) fn read<T: DeserializeOwned + Default>(&self) -> io::Result<T> {
        let name = |error: &dyn std::fmt::Display| format!("{}: {error}", self.path.display());
        let mut bytes = Vec::new();
        match File::open(&self.path).and_then(|file| file.take(MAX_BYTES).read_to_end(&mut bytes)) {
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(T::default()),
            Err(error) => return Err(io::Error::new(error.kind(), name(&error))),
        }
        let invalid =
            |why: &dyn std::fmt::Display| io::Error::new(io::ErrorKind::InvalidData, name(why));
        match serde_json::from_slice::<Versioned<T>>(&bytes) {
            Ok(Versioned { version: VERSION, content }) => Ok(content),
            Ok(Versioned { version, .. }) => {
                Err(invalid(&format!("version {version} is not {VERSION}")))
            }
            Err(error) => Err(invalid(&error)),
        }
    }

    /// Writes it anew. Whether that worked; the first failure of several is a warning.
    pub(super) fn write<T: Serialize>(&mut self, content: &T) -> bool {
        let (path, what) = (self.path.display(), self.what);
        let result = self.replace(content);
        match &result {
            Ok(()) => {}
            Err(error) if self.failing => tracing::debug!(%error, "{what} cannot be written"),
            Err(error) => tracing::warn!(%path, %error, "{what} cannot be written"),
        }
        self.failing = result.is_err();
        !self.failing
    }

    fn replace<T: Serialize>(&self, content: &T) -> io::Result<()> {
        let temporary = self.path.with_extension("json.tmp");
        let mut file = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .open(&temporary)?;
        file.write_all(&serde_json::to_vec(&Versioned { version: VERSION, content })?)?;
        fs::rename(&temporary, &self.path)
    }
}
