//! Which file is which: identities, and the rotated siblings of a log file in order.
//!
//! A file is its device and inode; names move, and compressing makes another file. Knows the two
//! naming habits of rotation, asks the file system, keeps nothing. Called by the tailer.

use std::{
    collections::HashSet,
    ffi::OsStr,
    fs::{self, File, Metadata},
    io,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    time::SystemTime,
};

use flate2::read::MultiGzDecoder;
use jiff::{civil::DateTime, tz::TimeZone};
use rustix::fs::{Mode, OFlags};
use thiserror::Error;

use super::open::OpenFile;
use crate::fingerprint::first_line;

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

/// A rotated file beside the live one.
#[derive(Debug)]
pub(super) struct Sibling {
    pub(super) id: FileId,
    /// When it was written last; of a compressed one when it was rotated, as far as its name tells.
    pub(super) time: SystemTime,
    path: PathBuf,
    compressed: bool,
}

impl Sibling {
    /// Opens it from an offset of its content on. Missing too if the name has gone to another file
    /// since: a new listing will tell.
    pub(super) fn open(&self, offset: u64) -> Result<OpenFile, OpenError> {
        let file = self.file()?;
        Ok(if self.compressed {
            OpenFile::compressed(file, self.id, offset, self.time)
        } else {
            OpenFile::at(file, self.id, offset)
        })
    }

    /// Whether its first line is this one; what cannot be read is none.
    pub(super) fn begins_with(&self, line: Option<u64>) -> Result<bool, OpenError> {
        let Some(line) = line else { return Ok(false) };
        let file = self.file()?;
        let found = if self.compressed {
            first_line(MultiGzDecoder::new(&file))
        } else {
            first_line(&file)
        };
        Ok(found.is_ok_and(|found| found == Some(line)))
    }

    fn file(&self) -> Result<File, OpenError> {
        let (file, id) = open(&self.path)?;
        if id == self.id { Ok(file) } else { Err(OpenError::Missing(self.path.clone())) }
    }
}

/// Opens the file that was rotated next after the open one; `None` if the live file is next.
pub(super) fn next(live: &Path, open: &mut OpenFile) -> Result<Option<OpenFile>, OpenError> {
    let siblings = siblings(live)?;
    let mut own = siblings.iter().position(|sibling| sibling.id == open.id());
    if own.is_none() {
        // It may have been compressed meanwhile, and must not be taken for its own successor.
        let first_line = open.first_line();
        for (index, sibling) in siblings.iter().enumerate() {
            if sibling.compressed && sibling.begins_with(first_line)? {
                own = Some(index);
            }
        }
    }
    let next = match own {
        Some(own) => siblings.get(own + 1),
        // Of a file that is gone already the name is not known, but when it was written last.
        None => siblings.iter().find(|sibling| Some(sibling.time) > open.modified()),
    };
    next.map(|next| next.open(0)).transpose()
}

/// The rotated siblings of the live file, oldest first.
pub(super) fn siblings(live: &Path) -> Result<Vec<Sibling>, OpenError> {
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
        let name = entry.file_name();
        // Files may vanish while they are listed: compressed, or over the number to keep.
        if let Some(rotated) = Rotated::parse(&name, live)
            && let Ok(metadata) = entry.metadata()
            && metadata.is_file()
            && let Ok(modified) = metadata.modified()
        {
            let Rotated { compressed, at } = rotated;
            let time = at.filter(|_| compressed).unwrap_or(modified);
            let id = FileId::from(&metadata);
            found.push(Sibling { id, time, path: entry.path(), compressed });
        }
    }
    // One that is being compressed is there twice.
    let plain: HashSet<_> =
        found.iter().filter(|it| !it.compressed).map(|it| it.path.clone()).collect();
    found.retain(|it| !(it.compressed && plain.contains(&it.path.with_extension(""))));
    // A file's last change is its last line. Where two fall into one tick of the clock, names with
    // a time in them decide.
    found.sort_by(|one, other| (one.time, &one.path).cmp(&(other.time, &other.path)));
    Ok(found)
}

/// What a name says about a rotated file.
#[derive(Debug, PartialEq, Eq)]
struct Rotated {
    compressed: bool,
    /// When it was rotated: lumberjack says it in UTC. Its compressed files are of a later time.
    at: Option<SystemTime>,
}

impl Rotated {
    /// `None` if `name` is no rotated form of `live`: `audit-2026-11-21T20-29-11.123.log`
    /// (lumberjack, as in kube-apiserver) or `audit.log.1`, `audit.log-20261121` (logrotate), each
    /// with `.gz` or without.
    fn parse(name: &OsStr, live: &OsStr) -> Option<Self> {
        let (name, live) = (name.as_encoded_bytes(), live.as_encoded_bytes());
        let uncompressed = name.strip_suffix(b".gz");
        let (compressed, name) = (uncompressed.is_some(), uncompressed.unwrap_or(name));
        let (stem, extension) = live.split_at(
            live.iter().rposition(|byte| *byte == b'.').filter(|at| *at > 0).unwrap_or(live.len()),
        );
        let lumberjack = name.strip_prefix(stem).and_then(|rest| rest.strip_suffix(extension));
        [lumberjack, name.strip_prefix(live)].into_iter().flatten().find_map(|middle| {
            let [b'-' | b'.', stamp @ ..] = middle else { return None };
            let fits = stamp.iter().any(u8::is_ascii_digit)
                && stamp.iter().all(|byte| byte.is_ascii_digit() || b"-T.".contains(byte));
            fits.then(|| Self { compressed, at: time_of(stamp) })
        })
    }
}

fn time_of(stamp: &[u8]) -> Option<SystemTime> {
    let stamp = str::from_utf8(stamp).ok()?;
    let time = DateTime::strptime("%Y-%m-%dT%H-%M-%S%.f", stamp).ok()?;
    Some(time.to_zoned(TimeZone::UTC).ok()?.timestamp().into())
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, SystemTime};

    use super::Rotated;

    #[test]
    fn rotated_names_are_told_from_other_files_beside_the_log() {
        // 2026-11-21T20:29:11.123Z
        let at = SystemTime::UNIX_EPOCH + Duration::from_millis(1_795_292_951_123);
        let plain = |at| Some(Rotated { compressed: false, at });
        let gzip = |at| Some(Rotated { compressed: true, at });
        for (live, name, rotated) in [
            ("audit.log", "audit-2026-11-21T20-29-11.123.log", plain(Some(at))),
            ("k-audit.log", "k-audit-2026-11-21T20-29-11.123.log", plain(Some(at))),
            ("audit.log", "audit.log.1", plain(None)),
            ("audit.log", "audit.log-20261121", plain(None)),
            ("audit", "audit-2026-11-21T20-29-11.123", plain(Some(at))),
            ("audit.log", "audit-2026-11-21T20-29-11.123.log.gz", gzip(Some(at))),
            ("audit.log", "audit.log.1.gz", gzip(None)),
            ("audit.log", "audit.log-20261121.gz", gzip(None)),
            ("audit.log", "audit.log", None),
            ("audit.log", "audit.log.gz", None),
            ("audit.log", "audit.log.1.xz", None),
            ("audit.log", "audit-policy.log", None),
            ("audit.log", "audit-.log", None),
            ("audit.log", "other.log.1", None),
            (".log", ".log.1", plain(None)),
        ] {
            assert_eq!(Rotated::parse(name.as_ref(), live.as_ref()), rotated, "{live} {name}");
        }
    }
}
