//! Which file is which: identities, and the rotated siblings of a log file in order.
//!
//! A file is its device and inode; names move. Knows the two naming habits of rotation, asks the
//! file system, keeps nothing. Called by the tailer.

use std::{
    ffi::OsStr,
    fs::{self, File, Metadata},
    io,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    time::SystemTime,
};

use rustix::fs::{Mode, OFlags};
use thiserror::Error;

/// Identity of a file while it exists or is held open.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct FileId {
    pub(super) device: u64,
    pub(super) inode: u64,
}

impl From<&Metadata> for FileId {
    fn from(metadata: &Metadata) -> Self {
        Self { device: metadata.dev(), inode: metadata.ino() }
    }
}

/// Why a source is not open. The texts are shown in readiness and `/statusz`.
#[derive(Debug, Error)]
pub(super) enum OpenError {
    #[error("{0} does not exist (yet)")]
    Missing(PathBuf),
    #[error("no permission to read {0}; run as root or with CAP_DAC_READ_SEARCH")]
    Denied(PathBuf),
    #[error("{0} is not a regular file")]
    NotAFile(PathBuf),
    #[error("cannot read {0}: {1}")]
    Io(PathBuf, io::Error),
}

impl OpenError {
    pub(super) fn new(path: &Path, error: io::Error) -> Self {
        let path = path.to_owned();
        #[expect(clippy::wildcard_enum_match_arm, reason = "std's ErrorKind is open-ended")]
        match error.kind() {
            io::ErrorKind::NotFound => Self::Missing(path),
            io::ErrorKind::PermissionDenied => Self::Denied(path),
            _ => Self::Io(path, error),
        }
    }
}

/// Opens a regular file; never waits for a writer as a pipe in its place would.
pub(super) fn open(path: &Path) -> Result<(File, FileId), OpenError> {
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NOCTTY | OFlags::NONBLOCK;
    let file = rustix::fs::open(path, flags, Mode::empty()).map(File::from);
    let file = file.map_err(|error| OpenError::new(path, error.into()))?;
    let metadata = file.metadata().map_err(|error| OpenError::new(path, error))?;
    if !metadata.is_file() {
        return Err(OpenError::NotAFile(path.to_owned()));
    }
    Ok((file, FileId::from(&metadata)))
}

/// Which file a path names now.
pub(super) fn identify(path: &Path) -> Result<FileId, OpenError> {
    fs::metadata(path)
        .map(|metadata| FileId::from(&metadata))
        .map_err(|error| OpenError::new(path, error))
}

/// Opens the rotated sibling that has this identity, if there is one.
pub(super) fn find(live: &Path, id: FileId) -> Result<Option<File>, OpenError> {
    siblings(live)?.iter().find(|sibling| sibling.id == id).map(Sibling::open).transpose()
}

/// Opens the oldest rotated sibling that is newer than a file; `None` if the live file is next.
pub(super) fn next(
    live: &Path,
    id: FileId,
    modified: Option<SystemTime>,
) -> Result<Option<(File, FileId)>, OpenError> {
    let siblings = siblings(live)?;
    // A file's last change is its last line. Where two fall into one tick of the clock, names with
    // a time in them decide; of a file that is gone already the name is not known.
    let own = siblings.iter().find(|sibling| sibling.id == id);
    let newer = |sibling: &&Sibling| match own {
        Some(own) => (sibling.modified, &sibling.path) > (own.modified, &own.path),
        None => Some(sibling.modified) > modified,
    };
    siblings.iter().find(newer).map(|next| Ok((next.open()?, next.id))).transpose()
}

/// A rotated, uncompressed file beside the live one.
#[derive(Debug)]
struct Sibling {
    modified: SystemTime,
    path: PathBuf,
    id: FileId,
}

impl Sibling {
    /// Missing too if the name has gone to another file since: a new listing will tell.
    fn open(&self) -> Result<File, OpenError> {
        let (file, id) = open(&self.path)?;
        if id == self.id { Ok(file) } else { Err(OpenError::Missing(self.path.clone())) }
    }
}

/// The rotated siblings of the live file, oldest first.
fn siblings(live: &Path) -> Result<Vec<Sibling>, OpenError> {
    let (Some(dir), Some(name)) = (live.parent(), live.file_name()) else {
        return Ok(Vec::new());
    };
    let dir = if dir.as_os_str().is_empty() { Path::new(".") } else { dir };
    match list(dir, name) {
        // A directory that may be entered but not listed: the live file is all there is to see.
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => Ok(Vec::new()),
        listed => listed.map_err(|error| OpenError::new(dir, error)),
    }
}

fn list(dir: &Path, live: &OsStr) -> io::Result<Vec<Sibling>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        // Files may vanish while they are listed: compressed, or over the number to keep.
        if is_rotated(&entry.file_name(), live)
            && let Ok(metadata) = entry.metadata()
            && metadata.is_file()
            && let Ok(modified) = metadata.modified()
        {
            found.push(Sibling { modified, path: entry.path(), id: FileId::from(&metadata) });
        }
    }
    found.sort_by(|one, other| (one.modified, &one.path).cmp(&(other.modified, &other.path)));
    Ok(found)
}

/// Whether `name` is a rotated form of `live`: `audit-2026-11-21T20-29-11.123.log` (lumberjack, as
/// in kube-apiserver) or `audit.log.1`, `audit.log-20261121` (logrotate).
fn is_rotated(name: &OsStr, live: &OsStr) -> bool {
    let (name, live) = (name.as_encoded_bytes(), live.as_encoded_bytes());
    let (stem, extension) = live.split_at(
        live.iter().rposition(|byte| *byte == b'.').filter(|at| *at > 0).unwrap_or(live.len()),
    );
    let lumberjack = name.strip_prefix(stem).and_then(|rest| rest.strip_suffix(extension));
    [name.strip_prefix(live), lumberjack].into_iter().flatten().any(|middle| match middle {
        [b'-' | b'.', stamp @ ..] => {
            stamp.iter().any(u8::is_ascii_digit)
                && stamp.iter().all(|byte| byte.is_ascii_digit() || b"-T.".contains(byte))
        }
        _ => false,
    })
}

#[cfg(test)]
mod tests {
    use super::is_rotated;

    #[test]
    fn rotated_names_are_told_from_other_files_beside_the_log() {
        for (live, name, rotated) in [
            ("audit.log", "audit-2026-11-21T20-29-11.123.log", true),
            ("kube-apiserver-audit.log", "kube-apiserver-audit-2026-11-21T20-29-11.123.log", true),
            ("audit.log", "audit.log.1", true),
            ("audit.log", "audit.log-20261121", true),
            ("audit", "audit-2026-11-21T20-29-11.123", true),
            ("audit.log", "audit.log", false),
            ("audit.log", "audit-2026-11-21T20-29-11.123.log.gz", false),
            ("audit.log", "audit.log.1.gz", false),
            ("audit.log", "audit-policy.log", false),
            ("audit.log", "audit-.log", false),
            ("audit.log", "other.log.1", false),
            (".log", ".log.1", true),
        ] {
            assert_eq!(is_rotated(name.as_ref(), live.as_ref()), rotated, "{live} {name}");
        }
    }
}
