//! Follows one audit log file: through rotation by renaming, truncation in place, deletion, a
//! restart. Every complete line is handed on exactly once. When the engine is slow, the file is the
//! queue: nothing is dropped but what a truncation in place takes away before it was read or copied.
//!
//! Reads and judges lines, keeps no state on disk (the engine checkpoints the positions it is
//! given) and never ends by itself. Spawned by the agent, one task a file.
//!
//! While the agent is down, the file that it read last may be renamed, copied and compressed, and
//! others after it: it is found by its inode, else by the fingerprint of its first line.
//!
//! What it cannot see: lines that were truncated away and are in no copy (the truncation is counted, if
//! anything of their file was read before), and those in a file that was deleted while the agent was
//! down (counted as a lost position).

use std::{
    path::PathBuf,
    time::{Duration, Instant},
};

use rustix::time::{ClockId, clock_gettime};
use tokio::{
    sync::{mpsc, watch as shared},
    time,
};
use tracing::{info, warn};

use self::{
    open::{Found, OpenFile},
    pace::Pace,
    resume::Outcome,
    rotation::{FileId, OpenError},
    watch::{Wake, Watch},
};
use super::{
    AuditBatch, AuditMetrics, ReadLine, SourceState, SourceStatus, checkpoint::Position,
    sieve::Sieve,
};

mod gzip;
mod open;
mod pace;
mod resume;
mod rotation;
pub mod search;
mod watch;

/// Bytes read at once. Bounds the lines of a batch, and with them the memory of a backlog.
const CHUNK: usize = 64 << 10;
/// Progress without lines that may matter is reported at most this often.
const REPORT: Duration = Duration::from_millis(200);

/// What to follow.
#[derive(Clone, Debug)]
pub struct TailConfig {
    /// The live log file.
    pub path: PathBuf,
    /// Index of the source in the configuration.
    pub source: usize,
    /// Where to go on. `None`: at the end of a file that is there now, at the beginning of one that
    /// appears later.
    pub start: Option<Position>,
}

/// Follows a file until the receiver of its batches is dropped. Needs a runtime with I/O and time.
pub async fn follow(
    config: TailConfig,
    sender: mpsc::Sender<AuditBatch>,
    status: shared::Sender<SourceStatus>,
    metrics: AuditMetrics,
) {
    let mut watch = Watch::new(&config.path);
    let mut pace = Pace::new(time::Instant::now());
    let mut tail = Tail::new(config, sender, status, metrics);
    loop {
        watch.arm(tail.open_id());
        let mut done = tail.check().await;
        // What check has just opened is not watched yet: once more, or a write is noticed late.
        while done.is_ok() && watch.watches(tail.open_id()) {
            match watch.changed().await {
                Wake::Data => {
                    // Even a wait for a time that has come takes until the timer's next turn.
                    if let Some(until) = pace.next(time::Instant::now()) {
                        time::sleep_until(until).await;
                    }
                    done = tail.read().await;
                }
                Wake::Check => break,
            }
        }
        if done.is_err() {
            return;
        }
    }
}

/// The boot clock, which goes on while the machine is suspended, as the kernel's records have it.
pub(super) fn boot_clock_ns() -> u64 {
    let now = clock_gettime(ClockId::Boottime);
    let nanos = now.tv_sec.saturating_mul(1_000_000_000).saturating_add(now.tv_nsec);
    u64::try_from(nanos).unwrap_or_default()
}

/// Nobody receives batches any more.
#[derive(Debug)]
struct Closed;

/// Why reading stops for now, or for good.
enum Stop {
    Waiting(OpenError),
    Closed,
}

impl From<Closed> for Stop {
    fn from(Closed: Closed) -> Self {
        Self::Closed
    }
}

impl From<OpenError> for Stop {
    fn from(error: OpenError) -> Self {
        Self::Waiting(error)
    }
}

struct Tail {
    config: TailConfig,
    sender: mpsc::Sender<AuditBatch>,
    status: shared::Sender<SourceStatus>,
    metrics: AuditMetrics,
    sieve: Sieve,
    /// The live file, or on the way to it a rotated one.
    open: Option<OpenFile>,
    /// The path was looked at before: a file that is new now is read from its beginning.
    looked: bool,
    buffer: Box<[u8]>,
    reported: Option<Position>,
    reported_at: Instant,
    lag: i64,
}

impl Tail {
    fn new(
        config: TailConfig,
        sender: mpsc::Sender<AuditBatch>,
        status: shared::Sender<SourceStatus>,
        metrics: AuditMetrics,
    ) -> Self {
        Self {
            sieve: Sieve::new(config.path.display().to_string(), metrics.clone()),
            config,
            sender,
            status,
            metrics,
            open: None,
            looked: false,
            buffer: vec![0; CHUNK].into_boxed_slice(),
            reported: None,
            reported_at: Instant::now(),
            lag: 0,
        }
    }

    fn open_id(&self) -> Option<FileId> {
        self.open.as_ref().map(OpenFile::id)
    }

    /// Opens what is to be opened, reads all there is, follows the path to its newest file.
    async fn check(&mut self) -> Result<(), Closed> {
        // Taken before reading: what is written from here on may be missed by this look.
        let began = boot_clock_ns();
        let outcome = self.catch_up().await;
        if outcome.is_ok() {
            self.set_state(SourceState::Open);
            self.status.send_if_modified(|status| {
                status.complete_at_boot_ns = Some(began);
                false
            });
        }
        self.settle(outcome).await
    }

    /// Reads what was added to the open file.
    async fn read(&mut self) -> Result<(), Closed> {
        let outcome = self.drain().await;
        self.settle(outcome).await
    }

    async fn settle(&mut self, outcome: Result<(), Stop>) -> Result<(), Closed> {
        match outcome {
            Ok(()) => {}
            Err(Stop::Waiting(error @ OpenError::Missing(_))) => {
                self.set_state(SourceState::Absent(error.to_string()));
            }
            Err(Stop::Waiting(error)) => self.set_state(SourceState::Waiting(error.to_string())),
            Err(Stop::Closed) => return Err(Closed),
        }
        if self.sender.is_closed() { Err(Closed) } else { self.report().await }
    }

    async fn catch_up(&mut self) -> Result<(), Stop> {
        if self.open.is_none() {
            let first_look = !std::mem::replace(&mut self.looked, true);
            self.open = Some(self.first_file(first_look)?);
            self.report().await?;
        }
        loop {
            self.drain().await?;
            // An error here: deleted, or between a rename and the new file. What is open is kept,
            // it may still grow.
            if Some(rotation::identify(&self.config.path)?) == self.open_id() {
                return Ok(());
            }
            // The writer was done with the old file before its name went to another one, so this
            // second look takes what was written between the first one and the rename.
            self.drain().await?;
            self.next_file().await?;
        }
    }

    /// The file to begin with, at the place to begin at.
    fn first_file(&self, first_look: bool) -> Result<OpenFile, OpenError> {
        let path = &self.config.path;
        let Some(start) = &self.config.start else {
            let (file, id) = rotation::open(path)?;
            return if first_look {
                OpenFile::at_end(file, id).map_err(|error| OpenError::new(path, error))
            } else {
                Ok(OpenFile::at(file, id, 0))
            };
        };
        let (open, outcome) = resume::resume(path, start)?;
        match outcome {
            Outcome::Continued => {}
            Outcome::Truncated => self.count_truncation(),
            Outcome::Gone => {
                self.metrics.lost_positions.inc();
                warn!(path = %path.display(), "the audit log read last is gone, going on with what was written later; lines in between may be missing");
            }
        }
        Ok(open)
    }

    /// Goes on to the file that follows the open one, which is read to its end: the next of the
    /// files rotated since, else the live one.
    async fn next_file(&mut self) -> Result<(), Stop> {
        let Some(open) = &mut self.open else { return Ok(()) };
        let (file, id) = rotation::open(&self.config.path)?;
        // Listed after the live file was opened: a file rotated before is in the list, one rotated
        // later is no older than the live file just opened.
        let rotated = rotation::next(&self.config.path, open)?;
        self.finish_lines().await?;
        let next = rotated.unwrap_or_else(|| OpenFile::at(file, id, 0));
        self.metrics.rotations.inc();
        let inode = next.id().inode;
        info!(path = %self.config.path.display(), inode, "the audit log was rotated");
        self.open = Some(next);
        Ok(())
    }

    /// Reads the open file to its end.
    async fn drain(&mut self) -> Result<(), Stop> {
        while let Some(open) = &mut self.open {
            let found = open
                .read(&mut self.buffer)
                .map_err(|error| OpenError::new(&self.config.path, error))?;
            match found {
                Found::Bytes(chunk, more) => {
                    let lines = self.sieve.take(open.lines(), chunk);
                    let behind = if more { open.behind() } else { 0 };
                    self.set_lag(behind);
                    if lines.is_empty() {
                        self.report().await?;
                    } else {
                        self.send(lines).await?;
                    }
                    if !more {
                        break;
                    }
                    tokio::task::yield_now().await;
                }
                Found::Damaged(error) => {
                    self.metrics.lost_positions.inc();
                    warn!(path = %self.config.path.display(), %error, "a compressed audit log cannot be read to its end, the rest of it is missing");
                    break;
                }
                Found::Truncated => {
                    let copy = resume::copy(&self.config.path, &open.position())?;
                    self.count_truncation();
                    if copy.is_some() {
                        // The rest of it is there. What follows is the live file, from its beginning.
                        self.open = copy;
                    } else {
                        self.finish_lines().await?;
                        if let Some(open) = &mut self.open {
                            open.rewind();
                        }
                    }
                    // At once: the old position must not be taken for one in the new content.
                    self.send(Vec::new()).await?;
                }
            }
        }
        Ok(())
    }

    /// Hands on an unterminated line that nothing will complete.
    async fn finish_lines(&mut self) -> Result<(), Stop> {
        let Some(open) = &mut self.open else { return Ok(()) };
        let Some(line) = self.sieve.finish(open.lines()) else { return Ok(()) };
        Ok(self.send(vec![line]).await?)
    }

    async fn report(&mut self) -> Result<(), Closed> {
        let moved = self.open.as_mut().is_some_and(|open| Some(open.position()) != self.reported);
        // The first position is reported at once: a restart must begin where this one did, and an old
        // checkpoint that did not hold must not be tried again.
        if moved && (self.reported.is_none() || self.reported_at.elapsed() >= REPORT) {
            return self.send(Vec::new()).await;
        }
        Ok(())
    }

    /// Waits while the channel is full; meanwhile the file keeps what is written.
    async fn send(&mut self, lines: Vec<ReadLine>) -> Result<(), Closed> {
        let Some(position) = self.open.as_mut().map(OpenFile::position) else { return Ok(()) };
        let newest_stage = self.sieve.newest_stage();
        let batch = AuditBatch {
            source: self.config.source,
            lines,
            records: Vec::new(),
            newest_stage,
            position: Some(position.clone()),
            acknowledge: None,
        };
        self.sender.send(batch).await.map_err(|_| Closed)?;
        self.reported = Some(position.clone());
        self.reported_at = Instant::now();
        self.status.send_modify(|status| {
            status.newest_stage = newest_stage;
            status.position = Some(position);
        });
        Ok(())
    }

    fn set_state(&self, state: SourceState) {
        self.status.send_if_modified(|status| {
            let changed = status.state != state;
            if changed {
                let path = self.config.path.display();
                match &state {
                    SourceState::Absent(reason) | SourceState::Waiting(reason) => {
                        warn!(%path, %reason, "audit log not open");
                    }
                    SourceState::Open | SourceState::Starting => info!(%path, "audit log open"),
                }
                status.state = state;
            }
            changed
        });
    }

    fn set_lag(&mut self, bytes: u64) {
        let lag = i64::try_from(bytes).unwrap_or(i64::MAX);
        // All sources share the gauge, so each adds its own change.
        self.metrics.lag_bytes.inc_by(lag - self.lag);
        self.lag = lag;
    }

    fn count_truncation(&self) {
        self.metrics.truncations.inc();
        warn!(path = %self.config.path.display(), "the audit log was truncated in place, reading it from its beginning");
    }
}

#[cfg(test)]
mod tests;
