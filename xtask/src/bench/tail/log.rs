//! The audit log as kube-apiserver keeps it: one write a line, renamed at 100 MB.

use std::{
    fs::{self, File, OpenOptions},
    io::Write as _,
    path::{Path, PathBuf},
    time::Instant,
};

use anyhow::Result;
use tokentrail_tests::AuditLog;

/// `--audit-log-maxsize` as most set it, bytes.
const MAX_BYTES: usize = 100_000_000;

/// A log that is being written. Of the rotated files only the last is kept.
pub(in crate::bench) struct Log {
    log: AuditLog,
    file: File,
    size: usize,
    rotated: Option<PathBuf>,
    lines: u32,
    bytes: f64,
}

impl Log {
    pub(in crate::bench) fn create(path: PathBuf) -> Result<Self> {
        let log = AuditLog::create(path)?;
        let file = open(log.path())?;
        Ok(Self { log, file, size: 0, rotated: None, lines: 0, bytes: 0.0 })
    }

    pub(in crate::bench) fn path(&self) -> &Path {
        self.log.path()
    }

    /// Lines written.
    pub(in crate::bench) fn lines(&self) -> u32 {
        self.lines
    }

    /// What they take.
    pub(in crate::bench) fn megabytes(&self) -> f64 {
        self.bytes / 1e6
    }

    /// Writes a line with its end, and returns when that began.
    pub(in crate::bench) fn append(&mut self, line: &[u8]) -> Result<Instant> {
        if self.size + line.len() > MAX_BYTES {
            self.rotate()?;
        }
        let began = Instant::now();
        self.file.write_all(line)?;
        self.size += line.len();
        self.lines += 1;
        self.bytes += f64::from(u32::try_from(line.len())?);
        Ok(began)
    }

    fn rotate(&mut self) -> Result<()> {
        let rotated = self.log.rotate_by_rename()?;
        self.file = open(self.log.path())?;
        self.size = 0;
        if let Some(old) = self.rotated.replace(rotated) {
            fs::remove_file(old)?;
        }
        Ok(())
    }
}

fn open(path: &Path) -> Result<File> {
    Ok(OpenOptions::new().append(true).open(path)?)
}
