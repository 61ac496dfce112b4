//! Which files of a volume count, and which of them was opened: nobody else decides that. What the
//! pod's spec says goes first; where the index does not have it, the usual names have to do.
//!
//! Names and inodes are looked at, never contents. Called by [`VolumeMap`](super::VolumeMap).

use std::{
    ffi::{OsStr, OsString},
    fs,
    os::unix::fs::MetadataExt,
    path::Path,
};

use tokentrail_ebpf::{OpenRecord, until_nul};

use super::{
    super::{TokenFile, pods::Projected},
    VolumeKind,
};

/// Entries of a volume's directory looked at; a token volume has a handful.
const MAX_ENTRIES: usize = 256;

/// What the names in a volume look like.
#[derive(Clone, Copy, Debug)]
pub(super) struct Looks {
    /// One is called as a token is.
    token: bool,
    /// All that a Secret of type service-account-token holds is there.
    secret: bool,
}

impl Looks {
    /// Looks at a volume's names.
    pub(super) fn of(directory: &Path) -> Self {
        let Ok(entries) = fs::read_dir(directory) else {
            // A projected volume nearly always holds a token. A Secret rarely does: without its names
            // an application's certificate would pass for one.
            return Self { token: true, secret: false };
        };
        let names: Vec<OsString> =
            entries.take(MAX_ENTRIES).filter_map(|entry| Some(entry.ok()?.file_name())).collect();
        let holds = |name: &str| names.iter().any(|it| it == OsStr::new(name));
        let token = holds("token");
        Self { token, secret: token && holds("ca.crt") && holds("namespace") }
    }
}

/// Whether a volume holds a service-account token for the API server.
pub(super) fn holds_token(kind: VolumeKind, spec: Option<&Projected>, looks: Looks) -> bool {
    match (spec, kind) {
        (Some(spec), _) => spec.has_token() || spec.has_secret && looks.secret,
        (None, VolumeKind::Projected) => looks.token,
        // The type of a Secret is told only to those who may read Secrets.
        (None, VolumeKind::Secret) => looks.secret,
    }
}

/// Which of a volume's files was opened; `None`: none that counts. `directory` is where the volume's
/// files are, if that is known.
pub(super) fn opened_file(
    record: &OpenRecord,
    spec: Option<&Projected>,
    directory: Option<&Path>,
) -> Option<TokenFile> {
    let files: Vec<(&str, Option<TokenFile>)> = match spec.filter(|spec| spec.has_token()) {
        Some(spec) => spec.files.iter().map(|it| (&*it.path, it.file)).collect(),
        None => TokenFile::ALL.map(|file| (file.name(), Some(file))).into(),
    };
    let named: Vec<_> = files.iter().filter(|(path, _)| is_named(record, path)).collect();
    if let [(_, file)] = named.as_slice() {
        return *file;
    }
    // By another name it is a hard link; of two with the same last names it is one.
    let is_opened =
        |path: &str| fs::metadata(directory?.join(path)).ok().map(|it| it.ino() == record.file_ino);
    files.iter().find(|(path, _)| is_opened(path) == Some(true)).and_then(|(_, file)| *file)
}

/// Whether the last two names of the opened file are those of this path in a volume. What is at the top
/// of a volume lies in a folder named by a date.
fn is_named(record: &OpenRecord, path: &str) -> bool {
    let mut names = path.rsplit('/').map(str::as_bytes);
    let parent = until_nul(&record.parent_name);
    names.next() == Some(until_nul(&record.file_name))
        && names.next().map_or(parent.starts_with(b".."), |folder| folder == parent)
}

#[cfg(test)]
mod tests;
