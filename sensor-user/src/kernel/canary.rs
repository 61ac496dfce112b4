//! The self-test: opens a file that looks like a token and expects to be told.
//!
//! A route that loads and attaches may still never fire; only an open that comes back proves the
//! whole way from hook to reader. The file lies on tmpfs under a directory that starts with `..`,
//! as the kubelet writes tokens. It exists only during a test. Several agents may share a machine,
//! if only for the moment in which one replaces another, so it may come and go at any time.

use std::{
    fs, io,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
};

use rustix::fs::{fstatfs, major, minor};
use tokentrail_ebpf::{Missing, OpenRecord};

/// `TMPFS_MAGIC` of `include/uapi/linux/magic.h`.
const TMPFS_MAGIC: i64 = 0x0102_1994;
/// Where to try if nothing is configured.
const CANDIDATES: [&str; 2] = ["/run/tokentrail", "/dev/shm/tokentrail"];

/// A directory for the file, and which file is awaited.
pub(super) struct Canary {
    directory: PathBuf,
    /// Kernel-encoded device and inode of the file of the running or last test.
    awaited: Option<(u32, u64)>,
    seen: bool,
}

impl Canary {
    /// Chooses the first directory that can be made and is on tmpfs. The error names each one
    /// that was tried.
    pub(super) fn new(configured: Option<&Path>) -> Result<Self, String> {
        let candidates: Vec<&Path> = match configured {
            Some(directory) => vec![directory],
            None => CANDIDATES.iter().map(Path::new).collect(),
        };
        let mut refused = Vec::new();
        for candidate in candidates {
            match prepare(candidate) {
                Ok(directory) => return Ok(Self { directory, awaited: None, seen: false }),
                Err(error) => refused.push(format!("{}: {error}", candidate.display())),
            }
        }
        Err(refused.join("; "))
    }

    /// Where it lies.
    pub(super) fn directory(&self) -> &Path {
        &self.directory
    }

    /// Creates and so opens the file; its record must follow.
    pub(super) fn open(&mut self) -> io::Result<()> {
        self.awaited = None;
        self.seen = false;
        let path = self.directory.join("token");
        let file = persistently(|| {
            fs::create_dir_all(&self.directory)?;
            fs::OpenOptions::new().create(true).append(true).open(&path)
        })?;
        let found = file.metadata();
        // The record needs the open, not the name: nothing is left behind if this process dies.
        match fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            Ok(()) | Err(_) => {}
        }
        let found = found?;
        self.awaited = Some((kernel_device(found.dev()), found.ino()));
        Ok(())
    }

    /// Whether this record is the canary's, which is then noted.
    pub(super) fn recognise(&mut self, record: &OpenRecord) -> bool {
        let by_us = record.nspid == std::process::id() || record.missing & Missing::NAMESPACES != 0;
        let own = by_us && self.awaited == Some((record.s_dev, record.file_ino));
        self.seen |= own;
        own
    }

    /// Whether the record of the last [`open`](Self::open) came.
    pub(super) fn seen(&self) -> bool {
        self.seen
    }
}

impl Drop for Canary {
    fn drop(&mut self) {
        remove(&self.directory);
    }
}

/// Creates `<directory>/..canary`; an error if that is not on tmpfs.
fn prepare(directory: &Path) -> io::Result<PathBuf> {
    let inner = directory.join("..canary");
    let made = persistently(|| {
        fs::create_dir_all(&inner)?;
        fs::File::open(&inner)
    })?;
    if fstatfs(made)?.f_type != TMPFS_MAGIC {
        remove(&inner);
        return Err(io::Error::other("not on tmpfs"));
    }
    Ok(inner)
}

/// Does it again if something is not there: an agent that ends removes the directory, if that is
/// empty just then.
fn persistently<T>(mut action: impl FnMut() -> io::Result<T>) -> io::Result<T> {
    for _ in 0..8 {
        match action() {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            other => return other,
        }
    }
    action()
}

/// Removes what [`prepare`] made. Directories that are in use or hold anything stay.
fn remove(inner: &Path) {
    let _: io::Result<()> = fs::remove_dir(inner);
    if let Some(outer) = inner.parent()
        && CANDIDATES.iter().any(|own| Path::new(own) == outer)
    {
        let _: io::Result<()> = fs::remove_dir(outer);
    }
}

/// `st_dev` as the kernel writes it in `s_dev`: major in the upper 12 bits.
pub(super) fn kernel_device(dev: u64) -> u32 {
    major(dev) << 20 | minor(dev)
}
