//! The self-test: opens a file that looks like a token and expects to be told.
//!
//! A route that loads and attaches may still never fire; only an open that comes back proves the
//! whole way from hook to reader. The file lies on tmpfs in a directory whose name starts with
//! `..`, as the kubelet writes tokens. That directory is new, random and private for each test:
//! agents that share a machine do not meet in it, and nobody can put a link in the file's place.

use std::{
    fs, io,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
};

use rustix::fs::{fstatfs, major, minor};
use tempfile::TempDir;
use tokentrail_ebpf::{Missing, OpenRecord};

/// `TMPFS_MAGIC` of `include/uapi/linux/magic.h`.
const TMPFS_MAGIC: i64 = 0x0102_1994;
/// Where to try if nothing is configured.
const CANDIDATES: [&str; 2] = ["/run", "/dev/shm"];

/// A place for the file, and which file is awaited.
pub(super) struct Canary {
    place: PathBuf,
    /// Kernel-encoded device and inode of the file of the running or last test.
    awaited: Option<(u32, u64)>,
    seen: bool,
    /// The record of the last test that succeeded: an open of which the opener is known.
    record: Option<Box<OpenRecord>>,
}

impl Canary {
    /// Chooses the first directory that is on tmpfs and can be written. The error names each one
    /// that was tried.
    pub(super) fn new(configured: Option<&Path>) -> Result<Self, String> {
        let candidates: Vec<&Path> = match configured {
            Some(directory) => vec![directory],
            None => CANDIDATES.iter().map(Path::new).collect(),
        };
        let mut refused = Vec::new();
        for candidate in candidates {
            match is_suitable(candidate) {
                Ok(()) => {
                    return Ok(Self {
                        place: candidate.to_owned(),
                        awaited: None,
                        seen: false,
                        record: None,
                    });
                }
                Err(error) => refused.push(format!("{}: {error}", candidate.display())),
            }
        }
        Err(refused.join("; "))
    }

    /// Where it lies.
    pub(super) fn place(&self) -> &Path {
        &self.place
    }

    /// Creates and so opens the file; its record must follow. The record needs the open, not the
    /// name, so everything is gone again when this returns.
    pub(super) fn open(&mut self) -> io::Result<()> {
        self.awaited = None;
        self.seen = false;
        let directory = directory_in(&self.place)?;
        let file = fs::File::options()
            .read(true)
            .write(true)
            .create_new(true)
            .open(directory.path().join("token"))?;
        let found = file.metadata()?;
        self.awaited = Some((kernel_device(found.dev()), found.ino()));
        directory.close()
    }

    /// Whether this record is the canary's, which is then noted.
    pub(super) fn recognise(&mut self, record: &OpenRecord) -> bool {
        let by_us = record.nspid == std::process::id() || record.missing & Missing::NAMESPACES != 0;
        let own = by_us && self.awaited == Some((record.s_dev, record.file_ino));
        if own {
            self.seen = true;
            self.record = Some(Box::new(*record));
        }
        own
    }

    /// The record of the last test that succeeded.
    pub(super) fn record(&self) -> Option<&OpenRecord> {
        self.record.as_deref()
    }

    /// Whether the record of the last [`open`](Self::open) came.
    pub(super) fn seen(&self) -> bool {
        self.seen
    }
}

/// Whether the file can lie here.
fn is_suitable(place: &Path) -> io::Result<()> {
    if fstatfs(fs::File::open(place)?)?.f_type != TMPFS_MAGIC {
        return Err(io::Error::other("not on tmpfs"));
    }
    directory_in(place)?.close()
}

/// A new directory for one test, readable by its owner alone.
fn directory_in(place: &Path) -> io::Result<TempDir> {
    tempfile::Builder::new().prefix("..tokentrail-canary-").tempdir_in(place)
}

/// `st_dev` as the kernel writes it in `s_dev`: major in the upper 12 bits.
pub(super) fn kernel_device(dev: u64) -> u32 {
    major(dev) << 20 | minor(dev)
}
