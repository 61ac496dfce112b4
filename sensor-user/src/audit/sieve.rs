//! What happens to one line: judged, counted, the first few bad ones logged.
//!
//! Keeps the newest stage time of all lines, of those that are skipped too. No I/O.

use std::time::Instant;

use memchr::memrchr;
use tracing::warn;

use crate::{
    audit::{
        AuditMetrics, BadLine, ReadRecord,
        lines::{Fit, Line, Lines},
        scan::{Interest, Scan, classify, last_stage_timestamp},
    },
    time::Micros,
};

/// So many bad lines of one source are logged, the rest is only counted.
const LOGGED_BAD_LINES: u32 = 5;

/// Turns the lines of one source into records.
#[derive(Debug)]
pub(super) struct Sieve {
    source: String,
    metrics: AuditMetrics,
    newest_stage: Option<Micros>,
    logged_bad_lines: u32,
}

impl Sieve {
    pub(super) fn new(source: String, metrics: AuditMetrics) -> Self {
        Self { source, metrics, newest_stage: None, logged_bad_lines: 0 }
    }

    /// Greatest `stageTimestamp` seen.
    pub(super) fn newest_stage(&self) -> Option<Micros> {
        self.newest_stage
    }

    /// Feeds a chunk to the assembler; the records of the lines that it completes.
    pub(super) fn take(&mut self, lines: &mut Lines, chunk: &[u8]) -> Vec<ReadRecord> {
        let read_at = Instant::now();
        let mut records = Vec::new();
        let mut rest = chunk;
        while let Some(line) = lines.next_line(&mut rest) {
            records.extend(self.judge(&line, read_at));
        }
        self.metrics.bytes.inc_by(chunk.len() as u64);
        self.metrics.nul_bytes.inc_by(lines.take_nul_bytes());
        // Lines are nearly in order, so the last one speaks for all of the chunk.
        if let Some(end) = memrchr(b'\n', chunk) {
            self.note_stage(last_stage_timestamp(chunk.get(..end).unwrap_or_default()));
        }
        records
    }

    /// The unterminated end of a file that will not grow any more, if it is a record.
    pub(super) fn finish(&mut self, lines: &mut Lines) -> Option<ReadRecord> {
        let line = lines.finish()?;
        self.judge(&line, Instant::now())
    }

    fn judge(&mut self, line: &Line<'_>, read_at: Instant) -> Option<ReadRecord> {
        self.metrics.lines.inc();
        let scan = match line.fit {
            Fit::Whole => classify(line.bytes, &Interest::LIVE),
            Fit::Shortened => {
                self.metrics.shortened.inc();
                classify(line.bytes, &Interest::LIVE)
            }
            Fit::TooLong => Scan::Bad(BadLine::TooLong),
        };
        if line.carried {
            self.note_stage(last_stage_timestamp(line.bytes));
        }
        match scan {
            Scan::Skip => {
                self.metrics.skipped.inc();
                None
            }
            Scan::Record(record) => {
                self.metrics.records.inc();
                self.note_stage(Some(record.stage_timestamp));
                Some(ReadRecord { record, read_at })
            }
            Scan::Bad(reason) => {
                self.metrics.bad(reason).inc();
                if self.logged_bad_lines < LOGGED_BAD_LINES {
                    self.logged_bad_lines += 1;
                    let source = &self.source;
                    warn!(source, end = line.end, %reason, "audit line ignored");
                }
                None
            }
        }
    }

    fn note_stage(&mut self, stage: Option<Micros>) {
        self.newest_stage = self.newest_stage.max(stage);
    }
}
