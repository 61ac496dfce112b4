//! Decodes the lines of one source that matter; counts the others, and logs the first few bad ones. No
//! I/O. Called by `sieve` and, with what it knows of its node, by the engine.

use tracing::warn;

use super::{
    AuditMetrics, AuditRecord, BadLine, ReadLine, ReadRecord,
    scan::{Interest, Scan, classify},
};

/// So many bad lines are logged, the rest is only counted.
const LOGGED_BAD_LINES: u32 = 5;

/// Makes records of lines.
#[derive(Debug)]
pub struct Decoder {
    source: String,
    metrics: AuditMetrics,
    logged_bad_lines: u32,
    logged_cloud_audit: bool,
}

impl Decoder {
    /// One for a source of this name.
    pub fn new(source: String, metrics: AuditMetrics) -> Self {
        Self { source, metrics, logged_bad_lines: 0, logged_cloud_audit: false }
    }

    /// The record of a line that ends at this offset, if it is of interest.
    pub fn decode(
        &mut self,
        line: &[u8],
        end: u64,
        interest: &Interest<'_>,
    ) -> Option<AuditRecord> {
        match classify(line, interest) {
            Scan::Skip => {
                self.metrics.skipped.inc();
                None
            }
            Scan::Record(record) => {
                self.metrics.records.inc();
                Some(record)
            }
            Scan::Bad(reason) => {
                self.refuse(end, reason);
                None
            }
        }
    }

    /// The records of those of these lines that are of interest.
    pub fn decode_all(&mut self, lines: &[ReadLine], interest: &Interest<'_>) -> Vec<ReadRecord> {
        let decode = |ReadLine { line, end, read_at, side }: &ReadLine| {
            let record = self.decode(line, *end, interest)?;
            let (read_at, side) = (*read_at, side.clone());
            Some(ReadRecord { record, read_at, side, is_repeated: false })
        };
        lines.iter().filter_map(decode).collect()
    }

    /// Notes a line that cannot be used.
    pub(super) fn refuse(&mut self, end: u64, reason: BadLine) {
        self.metrics.bad(reason).inc();
        if reason == BadLine::CloudAudit {
            if !std::mem::replace(&mut self.logged_cloud_audit, true) {
                let source = &self.source;
                warn!(
                    source,
                    "these are entries of Google Cloud's audit log: they name no pod, so nothing of them \
                     can be joined with a token that was opened, and they are counted as bad lines"
                );
            }
            return;
        }
        if self.logged_bad_lines < LOGGED_BAD_LINES {
            self.logged_bad_lines += 1;
            let source = &self.source;
            warn!(source, end, %reason, "audit line ignored");
        }
    }
}
