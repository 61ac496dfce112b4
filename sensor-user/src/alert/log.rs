//! The alert log: one document a line, each `event.id` once, whatever crashes in between.
//!
//! A line is written with one `write`; [`AlertLog::sync`] makes it durable before a checkpoint
//! moves. While the disk is full, lines wait in a bounded buffer, and a line that was cut short is
//! continued where it stopped, never started anew. On start the ids at the end of the log are read
//! back, so an alert that is found again is recognised.

use std::{
    collections::VecDeque,
    fs::{self, File},
    io::{self, Read, Seek, SeekFrom, Write},
    num::NonZeroUsize,
    os::unix::fs::{MetadataExt, OpenOptionsExt},
    path::{Path, PathBuf},
    sync::Arc,
};

use lru::LruCache;
use prometheus_client::{
    metrics::{counter::Counter, gauge::Gauge},
    registry::Registry,
};
use serde::Deserialize;

use super::fit;

/// Ids remembered: more than lines fit into what is read back.
const KNOWN_IDS: NonZeroUsize = NonZeroUsize::MIN.saturating_add(16_383);
/// How much of the log's end is read back on start, bytes. Ids further back belong to requests
/// that no source yields again: checkpoints and the journal reach back minutes, not megabytes.
const READ_BACK: u64 = 8 << 20;
/// How every document begins.
pub(super) const BEGINNING: &[u8] = br#"{"@timestamp":"#;
/// The longest document, bytes.
const LONGEST_LINE: u64 = fit::LONGEST as u64;
/// What may wait for space, bytes; beyond it the audit sources have to wait.
const PENDING_BYTES: usize = 4 << 20;

/// Where and how large.
#[derive(Clone, Debug)]
pub struct AlertLogSettings {
    /// The file; `-` is standard output.
    pub path: PathBuf,
    /// Size at which a file is rotated, bytes.
    pub max_bytes: u64,
    /// Rotated files kept, as `<path>.1` (newest) to `<path>.<keep>`.
    pub keep: u32,
}

/// The alert log cannot be used.
#[derive(Debug, thiserror::Error)]
#[error("cannot {action} the alert log {}: {source}; {advice}", path.display())]
pub struct AlertLogError {
    action: &'static str,
    path: PathBuf,
    advice: &'static str,
    source: io::Error,
}

impl AlertLogError {
    /// What is to be published of it cannot be told.
    pub fn unpublishable(path: PathBuf, source: io::Error) -> Self {
        let advice = "log and state directory must be readable and writable; or set nats-publish-alerts to false";
        Self { action: "find what is to be published of", path, advice, source }
    }
}

/// Numbers of the alert log.
#[derive(Clone, Debug, Default)]
pub struct AlertLogMetrics {
    written: Counter,
    duplicates: Counter,
    failures: Counter,
    rotations: Counter,
    pending: Gauge,
}

impl AlertLogMetrics {
    /// Makes them visible.
    pub fn register(&self, registry: &mut Registry) {
        let registry = registry.sub_registry_with_prefix("tokentrail_alert_log");
        registry.register("lines", "Documents written to the alert log", self.written.clone());
        registry.register(
            "duplicates",
            "Documents not written because the log already has their id",
            self.duplicates.clone(),
        );
        registry.register("write_failures", "Writes that failed", self.failures.clone());
        registry.register("rotations", "Files rotated", self.rotations.clone());
        registry.register("pending_lines", "Documents waiting for space", self.pending.clone());
    }
}

/// How far the log is durable.
#[derive(Clone, Debug, Default)]
pub struct Durable {
    /// Inode of the file at the log's path. Those that were rotated before are durable as a whole.
    pub inode: u64,
    /// So many bytes of it.
    pub length: u64,
    /// Documents that were written since the log was opened.
    pub documents: u64,
    /// The file: no other one gets its inode while this is around.
    _held: Option<Arc<File>>,
}

impl PartialEq for Durable {
    fn eq(&self, other: &Self) -> bool {
        let facts = |it: &Self| (it.inode, it.length, it.documents);
        facts(self) == facts(other)
    }
}

/// What became of a document.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Appended {
    /// It is in the log.
    Written,
    /// The log had it already.
    Known,
    /// It waits for space.
    Pending,
}

/// The sink.
#[derive(Debug)]
pub struct AlertLog {
    settings: AlertLogSettings,
    target: Target,
    known: LruCache<String, ()>,
    pending: VecDeque<Vec<u8>>,
    pending_bytes: usize,
    failure: Option<String>,
    unsynced: bool,
    /// What is on its way to the disk, see [`AlertLog::begin_sync`].
    syncing: Option<Durable>,
    /// Documents written.
    written: u64,
    durable: Durable,
    metrics: AlertLogMetrics,
}

#[derive(Debug)]
enum Target {
    File { file: Arc<File>, inode: u64, length: u64 },
    Stdout,
}

impl AlertLog {
    /// Opens the log, making it and its directory if need be, and reads its last ids back.
    pub fn open(
        settings: AlertLogSettings,
        metrics: AlertLogMetrics,
    ) -> Result<Self, AlertLogError> {
        let mut known = LruCache::new(KNOWN_IDS);
        let target = if settings.path == Path::new("-") {
            Target::Stdout
        } else {
            if let Some(directory) = settings.path.parent().filter(|path| !path.exists()) {
                fs::create_dir_all(directory).map_err(|source| AlertLogError {
                    action: "make the directory of",
                    path: settings.path.clone(),
                    advice: "make it by hand or choose another file with --alert-log",
                    source,
                })?;
            }
            read_back(&rotated(&settings.path, 1), &mut known);
            read_back(&settings.path, &mut known);
            let target = open_file(&settings.path)?;
            // What a killed agent wrote is known by its ids, and counts as durable.
            if let Target::File { file, .. } = &target {
                file.sync_data().map_err(|source| AlertLogError {
                    action: "sync",
                    path: settings.path.clone(),
                    advice: "check the file system that it is on",
                    source,
                })?;
            }
            target
        };
        let mut log = Self {
            settings,
            target,
            known,
            pending: VecDeque::new(),
            pending_bytes: 0,
            failure: None,
            unsynced: false,
            syncing: None,
            written: 0,
            durable: Durable::default(),
            metrics,
        };
        log.durable = log.here();
        Ok(log)
    }

    /// How far it is durable; only a file ever is.
    pub fn durable(&self) -> Durable {
        self.durable.clone()
    }

    /// How far it is written.
    fn here(&self) -> Durable {
        match &self.target {
            &Target::File { ref file, inode, length } => {
                let _held = Some(Arc::clone(file));
                Durable { inode, length, documents: self.written, _held }
            }
            Target::Stdout => Durable::default(),
        }
    }

    /// Writes a document (without its newline) unless the log has its id.
    pub fn append(&mut self, id: &str, mut line: Vec<u8>) -> Appended {
        if self.known.get(id).is_some() {
            self.metrics.duplicates.inc();
            return Appended::Known;
        }
        self.known.put(id.to_owned(), ());
        line.push(b'\n');
        self.pending_bytes += line.len();
        self.pending.push_back(line);
        self.write_pending();
        if self.pending.is_empty() { Appended::Written } else { Appended::Pending }
    }

    /// Tries again what failed, and follows the path if somebody else moved the file away.
    pub fn maintain(&mut self) {
        if let Target::File { file, .. } = &self.target {
            let same = file.metadata().ok().zip(fs::symlink_metadata(&self.settings.path).ok());
            let moved = same
                .is_none_or(|(ours, there)| (ours.dev(), ours.ino()) != (there.dev(), there.ino()));
            // A line that was cut short belongs to the old file: finish it there first. And what is
            // in it must be durable before it leaves our hands, as a checkpoint relies on it.
            if moved && self.pending.is_empty() && self.sync().is_ok() {
                self.reopen();
            }
        }
        self.write_pending();
    }

    /// Makes everything written durable. Nothing may be checkpointed before this returns `Ok`.
    pub fn sync(&mut self) -> io::Result<()> {
        if let Target::File { file, .. } = &self.target
            && !self.is_synced()
        {
            file.sync_data()?;
        }
        self.unsynced = false;
        self.durable = self.here();
        Ok(())
    }

    /// What has to be synced for everything written so far to be durable, to be done by another
    /// thread and told with [`AlertLog::end_sync`]; `None` if it is.
    pub fn begin_sync(&mut self) -> Option<Arc<File>> {
        let unsynced = std::mem::take(&mut self.unsynced);
        let Target::File { file, .. } = &self.target else { return None };
        let file = unsynced.then(|| Arc::clone(file))?;
        self.syncing = Some(self.here());
        Some(file)
    }

    /// What [`AlertLog::begin_sync`] gave out is durable, or not.
    pub fn end_sync(&mut self, durable: bool) {
        let Some(to) = self.syncing.take() else { return };
        self.unsynced |= !durable;
        // It may have been rotated meanwhile, and all of that is durable.
        if durable && to.documents > self.durable.documents {
            self.durable = to;
        }
    }

    /// Whether every document is in the log.
    pub fn is_clear(&self) -> bool {
        self.pending.is_empty()
    }

    /// Whether everything written is durable.
    pub fn is_synced(&self) -> bool {
        !self.unsynced && self.syncing.is_none()
    }

    /// Whether another document may wait.
    pub fn has_room(&self) -> bool {
        self.pending_bytes < PENDING_BYTES
    }

    /// Why the last write failed; `None` while writes succeed.
    pub fn failure(&self) -> Option<&str> {
        self.failure.as_deref()
    }

    fn write_pending(&mut self) {
        while let Some(line) = self.pending.front_mut() {
            let result = match &mut self.target {
                Target::Stdout => io::stdout().write(line),
                Target::File { file, .. } => file.as_ref().write(line),
            };
            match result {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Ok(count) if count > 0 => {
                    self.unsynced = true;
                    self.failure = None;
                    self.pending_bytes -= count.min(self.pending_bytes);
                    if let Target::File { length, .. } = &mut self.target {
                        *length += count as u64;
                    }
                    if count >= line.len() {
                        self.pending.pop_front();
                        self.metrics.written.inc();
                        self.written += 1;
                        self.rotate_if_full();
                    } else {
                        line.drain(..count);
                    }
                }
                result => {
                    let error = result.err().unwrap_or_else(|| io::ErrorKind::WriteZero.into());
                    if self.failure.is_none() {
                        tracing::error!(
                            path = %self.settings.path.display(), %error,
                            "alerts cannot be written and wait in memory"
                        );
                    }
                    self.failure = Some(error.to_string());
                    self.metrics.failures.inc();
                    break;
                }
            }
        }
        self.metrics.pending.set(i64::try_from(self.pending.len()).unwrap_or(i64::MAX));
    }

    fn rotate_if_full(&mut self) {
        let Target::File { file, length, .. } = &self.target else { return };
        if *length < self.settings.max_bytes {
            return;
        }
        // The old file leaves our hands: it must be durable before a checkpoint relies on it.
        let rotate = || -> io::Result<()> {
            file.sync_data()?;
            for number in (1..self.settings.keep).rev() {
                let from = rotated(&self.settings.path, number);
                if from.exists() {
                    fs::rename(&from, rotated(&self.settings.path, number + 1))?;
                }
            }
            fs::rename(&self.settings.path, rotated(&self.settings.path, 1))
        };
        match rotate() {
            Ok(()) => {
                self.metrics.rotations.inc();
                self.reopen();
            }
            Err(error) => tracing::warn!(
                path = %self.settings.path.display(), %error,
                "the alert log cannot be rotated and grows on"
            ),
        }
    }

    fn reopen(&mut self) {
        match open_file(&self.settings.path) {
            Ok(target) => {
                // The old file was synced before it left our hands.
                self.target = target;
                self.durable = self.here();
            }
            Err(error) => {
                // The old descriptor still takes alerts.
                tracing::error!(%error, "alerts go on into the file that was moved away");
            }
        }
    }
}

/// Opens for appending, never through a symbolic link.
fn open_file(path: &Path) -> Result<Target, AlertLogError> {
    let failed = |action, advice| {
        let path = path.to_owned();
        move |source| AlertLogError { action, path, advice, source }
    };
    let no_follow = rustix::fs::OFlags::NOFOLLOW | rustix::fs::OFlags::CLOEXEC;
    let mut file = File::options()
        .read(true)
        .append(true)
        .create(true)
        .mode(0o600)
        .custom_flags(no_follow.bits().cast_signed())
        .open(path)
        .map_err(failed("open", "it must be a plain file in a writable directory, not a link"))?;
    let mend_failed = failed("mend the last line of", "check the file system that it is on");
    let mended = mend(&mut file).and_then(|length| Ok((length, file.metadata()?.ino())));
    let (length, inode) = mended.map_err(mend_failed)?;
    Ok(Target::File { file: Arc::new(file), inode, length })
}

/// Takes back a line that a crash cut off: its alert is told again, and readers never meet half a
/// document. Text that is not ours is only ended, so that the next line stands alone. Returns the
/// file's length.
fn mend(file: &mut File) -> io::Result<u64> {
    let length = file.metadata()?.len();
    let start = length.saturating_sub(LONGEST_LINE);
    let mut end = Vec::new();
    file.seek(SeekFrom::Start(start))?;
    file.take(LONGEST_LINE).read_to_end(&mut end)?;
    let torn = end.rsplit(|byte| *byte == b'\n').next().unwrap_or_default();
    if torn.is_empty() {
        return Ok(length);
    }
    if torn.starts_with(BEGINNING) || BEGINNING.starts_with(torn) {
        let length = length.saturating_sub(torn.len() as u64);
        file.set_len(length)?;
        return Ok(length);
    }
    file.write_all(b"\n")?;
    Ok(length + 1)
}

/// `alerts.ndjson` → `alerts.ndjson.1`
pub(super) fn rotated(path: &Path, number: u32) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(format!(".{number}"));
    PathBuf::from(name)
}

/// Remembers the ids of the last documents of a file. What cannot be read is no reason not to
/// start: at worst an alert is told twice.
fn read_back(path: &Path, known: &mut LruCache<String, ()>) {
    #[derive(Deserialize)]
    struct Line {
        event: Id,
    }
    #[derive(Deserialize)]
    struct Id {
        id: String,
    }
    let read = || -> io::Result<Vec<u8>> {
        let mut file = File::open(path)?;
        let length = file.metadata()?.len();
        file.seek(SeekFrom::Start(length.saturating_sub(READ_BACK)))?;
        let mut bytes = Vec::new();
        file.take(READ_BACK).read_to_end(&mut bytes)?;
        Ok(bytes)
    };
    match read() {
        Ok(bytes) => {
            for line in bytes.split(|byte| *byte == b'\n') {
                if let Ok(line) = serde_json::from_slice::<Line>(line) {
                    known.put(line.event.id, ());
                }
            }
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => tracing::warn!(
            path = %path.display(), %error,
            "alerts of an earlier run cannot be read back and may be told twice"
        ),
    }
}

#[cfg(test)]
mod tests;
