//! The state directory: ours alone, writable, with the id of this installation; and what the
//! machine says of itself.

use std::{
    fs::{self, File},
    io::{self, Write},
    os::unix::fs::{DirBuilderExt, OpenOptionsExt},
    path::{Path, PathBuf},
};

use rustix::fs::{FlockOperation, flock};

/// The state directory cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum StateError {
    /// The file system refused.
    #[error("cannot {action} {}: {source}; the state directory must be writable, or choose another with --state-dir", path.display())]
    Io {
        /// What was tried.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// Two agents would write the same checkpoint.
    #[error("another tokentrail uses the state directory {}; stop it, or choose another with --state-dir", path.display())]
    Taken {
        /// The directory.
        path: PathBuf,
    },
}

/// The directory, locked for as long as this lives.
#[derive(Debug)]
pub(super) struct StateDir {
    agent_id: String,
    _lock: File,
}

/// Whether an agent uses this state directory. Changes nothing.
pub fn is_taken(directory: &Path) -> bool {
    let Ok(lock) = File::open(directory.join("lock")) else { return false };
    flock(&lock, FlockOperation::NonBlockingLockShared) == Err(rustix::io::Errno::WOULDBLOCK)
}

impl StateDir {
    /// Makes it if need be, and takes it.
    pub(super) fn open(directory: &Path) -> Result<Self, StateError> {
        let io = |action, path: &Path| {
            let path = path.to_owned();
            move |source| StateError::Io { action, path, source }
        };
        fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(directory)
            .map_err(io("make", directory))?;
        let lock_path = directory.join("lock");
        let lock = File::options()
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(&lock_path)
            .map_err(io("write", &lock_path))?;
        match flock(&lock, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {}
            Err(rustix::io::Errno::WOULDBLOCK) => {
                return Err(StateError::Taken { path: directory.to_owned() });
            }
            Err(error) => return Err(io("lock", &lock_path)(error.into())),
        }
        let id_path = directory.join("agent-id");
        let agent_id = match fs::read_to_string(&id_path) {
            Ok(id) if !id.trim().is_empty() => id.trim().to_owned(),
            Ok(_) | Err(_) => {
                let id = kernel_text("/proc/sys/kernel/random/uuid");
                let mut file = File::create(&id_path).map_err(io("write", &id_path))?;
                writeln!(file, "{id}").map_err(io("write", &id_path))?;
                id
            }
        };
        Ok(Self { agent_id, _lock: lock })
    }

    /// A random id that this installation keeps.
    pub(super) fn agent_id(&self) -> &str {
        &self.agent_id
    }
}

/// Id of this boot: kernel times and process ids mean something only within it.
pub(super) fn boot_id() -> String {
    kernel_text("/proc/sys/kernel/random/boot_id")
}

/// The machine's id, where it has one.
pub(super) fn host_id() -> Option<String> {
    Some(kernel_text("/etc/machine-id")).filter(|id| !id.is_empty())
}

fn kernel_text(path: &str) -> String {
    fs::read_to_string(path).unwrap_or_default().trim().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_state_directory_has_one_agent_and_one_id() {
        let directory = tempfile::tempdir().unwrap();
        let state = StateDir::open(&directory.path().join("new")).unwrap();
        let id = state.agent_id().to_owned();
        assert!(is_taken(&directory.path().join("new")) && !is_taken(directory.path()));
        let error = StateDir::open(&directory.path().join("new")).unwrap_err();
        assert!(matches!(error, StateError::Taken { .. }), "{error}");
        drop(state);
        assert!(!is_taken(&directory.path().join("new")));
        assert_eq!(StateDir::open(&directory.path().join("new")).unwrap().agent_id(), id);
    }

    #[test]
    fn a_file_in_its_place_is_a_clear_error() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let error = StateDir::open(file.path()).unwrap_err().to_string();
        assert!(error.contains("--state-dir") && error.contains("must be writable"), "{error}");
    }
}
