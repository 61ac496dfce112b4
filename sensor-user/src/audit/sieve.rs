//! What happens to one line: counted, and kept if it may matter.
//!
//! Keeps the newest stage time of all lines, of those that are skipped too. No I/O.

use std::time::Instant;

use memchr::memrchr;

use crate::{
    audit::{
        AuditMetrics, ReadLine, ReadRecord,
        decoder::Decoder,
        lines::{Fit, Line, Lines},
        scan::{Glance, Interest, glance, last_stage_timestamp},
    },
    time::Micros,
};

/// Picks the lines of one source that may matter.
#[derive(Debug)]
pub(super) struct Sieve {
    decoder: Decoder,
    metrics: AuditMetrics,
    newest_stage: Option<Micros>,
}

impl Sieve {
    pub(super) fn new(source: String, metrics: AuditMetrics) -> Self {
        Self { decoder: Decoder::new(source, metrics.clone()), metrics, newest_stage: None }
    }

    /// Greatest `stageTimestamp` seen: of the last line of each chunk, and of all records.
    pub(super) fn newest_stage(&self) -> Option<Micros> {
        self.newest_stage
    }

    /// Feeds a chunk to the assembler; of the lines that it completes, those that may matter.
    pub(super) fn take(&mut self, lines: &mut Lines, chunk: &[u8]) -> Vec<ReadLine> {
        let read_at = Instant::now();
        let mut kept = Vec::new();
        let mut rest = chunk;
        let mut count = 0;
        while let Some(line) = lines.next_line(&mut rest) {
            count += 1;
            kept.extend(self.judge(&line, read_at));
        }
        self.metrics.lines.inc_by(count);
        self.metrics.bytes.inc_by(chunk.len() as u64);
        self.metrics.nul_bytes.inc_by(lines.take_nul_bytes());
        // Lines are nearly in order, so the last one speaks for all of the chunk.
        if let Some(end) = memrchr(b'\n', chunk) {
            self.note_stage(last_stage_timestamp(chunk.get(..end).unwrap_or_default()));
        }
        kept
    }

    /// As [`Self::take`], decoded, for who has to know what the lines are.
    pub(super) fn take_records(&mut self, lines: &mut Lines, chunk: &[u8]) -> Vec<ReadRecord> {
        let kept = self.take(lines, chunk);
        let records = self.decoder.decode_all(&kept, &Interest::LIVE);
        self.note_stage(records.iter().map(|read| read.record.stage_timestamp).max());
        records
    }

    /// The unterminated end of a file that will not grow any more, if it may matter.
    pub(super) fn finish(&mut self, lines: &mut Lines) -> Option<ReadLine> {
        let line = lines.finish()?;
        self.metrics.lines.inc();
        self.judge(&line, Instant::now())
    }

    fn judge(&mut self, line: &Line<'_>, read_at: Instant) -> Option<ReadLine> {
        if line.fit == Fit::Shortened {
            self.metrics.shortened.inc();
        }
        if line.carried {
            self.note_stage(last_stage_timestamp(line.bytes));
        }
        let glance = line.fault().map_or_else(|| glance(line.bytes, &Interest::LIVE), Glance::Bad);
        match glance {
            Glance::Skip => {
                self.metrics.skipped.inc();
                None
            }
            Glance::Decode => {
                let (line, end) = (line.bytes.into(), line.end);
                Some(ReadLine { line, end, read_at, side: None })
            }
            Glance::Bad(reason) => {
                self.decoder.refuse(line.end, reason);
                None
            }
        }
    }

    fn note_stage(&mut self, stage: Option<Micros>) {
        self.newest_stage = self.newest_stage.max(stage);
    }
}
