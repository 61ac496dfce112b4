//! What the audit room counts, and the closed list of reasons for which a line is not used.
//!
//! Filled in by the sources, shown by `/metrics`.

use std::fmt;

use prometheus_client::{
    encoding::{EncodeLabelSet, EncodeLabelValue, LabelValueEncoder},
    metrics::{counter::Counter, family::Family, gauge::Gauge},
    registry::Registry,
};

/// Why a line could not be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum BadLine {
    /// Nothing but white space.
    Blank,
    /// Not one JSON object: garbage, or torn.
    NotJson,
    /// JSON, but another kind than an audit event.
    WrongKind,
    /// An audit event with a field of the wrong type, or without one that must be there.
    WrongShape,
    /// Without a believable time.
    BadTime,
    /// More than 64 KiB would have to be kept, bodies not counted.
    TooLong,
    /// An entry of Google Cloud's audit log: no `audit.k8s.io` event, and it names no pod.
    CloudAudit,
}

impl BadLine {
    /// All reasons, so that each counter is there before its first case.
    pub const ALL: [Self; 7] = [
        Self::Blank,
        Self::NotJson,
        Self::WrongKind,
        Self::WrongShape,
        Self::BadTime,
        Self::TooLong,
        Self::CloudAudit,
    ];

    /// Label value, snake case.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Blank => "blank",
            Self::NotJson => "not_json",
            Self::WrongKind => "wrong_kind",
            Self::WrongShape => "wrong_shape",
            Self::BadTime => "bad_time",
            Self::TooLong => "too_long",
            Self::CloudAudit => "cloud_audit",
        }
    }
}

impl fmt::Display for BadLine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl EncodeLabelValue for BadLine {
    fn encode(&self, encoder: &mut LabelValueEncoder<'_>) -> Result<(), fmt::Error> {
        EncodeLabelValue::encode(&self.as_str(), encoder)
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct BadLabels {
    reason: BadLine,
}

/// Counters of all audit sources together. Clones count into the same place.
#[derive(Clone, Debug, Default)]
pub struct AuditMetrics {
    /// Lines read.
    pub lines: Counter,
    /// Bytes read.
    pub bytes: Counter,
    /// Lines that mattered and became records.
    pub records: Counter,
    /// Lines that cannot matter and were not decoded.
    pub skipped: Counter,
    /// Lines over 64 KiB that were used without their bodies and overlong values.
    pub shortened: Counter,
    /// Bytes of NUL runs passed over: holes that copytruncate leaves.
    pub nul_bytes: Counter,
    /// Times a file was followed to its successor.
    pub rotations: Counter,
    /// Times a file was found truncated or rewritten in place.
    pub truncations: Counter,
    /// Times the checkpointed file was gone, so that lines may have been missed.
    pub lost_positions: Counter,
    /// Bytes written but not read yet.
    pub lag_bytes: Gauge,
    bad: Family<BadLabels, Counter>,
}

impl AuditMetrics {
    /// Puts the metrics under their `tokentrail_audit_` names.
    pub fn register(&self, registry: &mut Registry) {
        let mut counter = |name: &str, help: &str, counter: &Counter| {
            registry.register(format!("tokentrail_audit_{name}"), help, counter.clone());
        };
        counter("lines", "Audit lines read", &self.lines);
        counter("bytes", "Bytes read from audit sources", &self.bytes);
        counter("records", "Audit lines that mattered", &self.records);
        counter("skipped_lines", "Audit lines that could not matter", &self.skipped);
        counter("shortened_lines", "Audit lines over 64 KiB used without bodies", &self.shortened);
        counter("nul_bytes", "Bytes of NUL holes passed over", &self.nul_bytes);
        counter("rotations", "Times a file was followed to its successor", &self.rotations);
        counter("truncations", "Times a file was truncated in place", &self.truncations);
        counter("lost_positions", "Times the checkpointed file was gone", &self.lost_positions);
        registry.register(
            "tokentrail_audit_bad_lines",
            "Audit lines that could not be used, by reason",
            self.bad.clone(),
        );
        registry.register(
            "tokentrail_audit_lag_bytes",
            "Bytes written to audit files but not read yet",
            self.lag_bytes.clone(),
        );
        for reason in BadLine::ALL {
            drop(self.bad.get_or_create(&BadLabels { reason }));
        }
    }

    /// The counter of one reason.
    pub fn bad(&self, reason: BadLine) -> Counter {
        self.bad.get_or_create_owned(&BadLabels { reason })
    }
}

#[cfg(test)]
mod tests {
    use prometheus_client::{encoding::text::encode, registry::Registry};

    use super::{AuditMetrics, BadLine};

    #[test]
    fn every_reason_is_shown_before_its_first_case_and_clones_count_together() {
        let metrics = AuditMetrics::default();
        let mut registry = Registry::default();
        metrics.register(&mut registry);
        metrics.clone().bad(BadLine::TooLong).inc();
        metrics.lines.inc();
        let mut text = String::new();
        encode(&mut text, &registry).unwrap();
        for line in [
            "tokentrail_audit_bad_lines_total{reason=\"too_long\"} 1",
            "tokentrail_audit_bad_lines_total{reason=\"not_json\"} 0",
            "tokentrail_audit_lines_total 1",
            "tokentrail_audit_lag_bytes 0",
        ] {
            assert!(text.contains(line), "{line} is not in\n{text}");
        }
    }
}
