//! What the kernel stage counts.

use std::{fmt, fmt::Write as _, sync::atomic::AtomicU64};

use prometheus_client::{
    encoding::{EncodeLabelSet, EncodeLabelValue, LabelValueEncoder},
    metrics::{counter::Counter, family::Family, gauge::Gauge},
    registry::Registry,
};

use super::{
    clock::{Sampler as _, System},
    predecessor::Gap,
};
use crate::time::Micros;

/// Why an open that matched did not become a record.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Loss {
    /// The ring was full: the agent did not read for too long.
    RingFull,
    /// The file was closed again before it could be described.
    Unreadable,
    /// More opens than are kept while the sensor starts.
    Starting,
    /// One session of one container had more than its share.
    Flood,
    /// Noted by programs of another version, whose records cannot be read.
    OtherVersion,
}

impl Loss {
    /// All reasons.
    pub const ALL: [Self; 5] =
        [Self::RingFull, Self::Unreadable, Self::Starting, Self::Flood, Self::OtherVersion];

    /// Its name in metrics and in `/statusz`.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::RingFull => "ring_full",
            Self::Unreadable => "unreadable",
            Self::Starting => "starting",
            Self::Flood => "flood",
            Self::OtherVersion => "other_version",
        }
    }
}

impl EncodeLabelValue for Loss {
    fn encode(&self, encoder: &mut LabelValueEncoder<'_>) -> fmt::Result {
        encoder.write_str(self.as_str())
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct LossLabels {
    reason: Loss,
}

/// Metrics of the kernel stage. Clones share their values.
#[derive(Clone, Debug, Default)]
pub struct KernelMetrics {
    records: Counter,
    repeats: Counter,
    lost: Family<LossLabels, Counter>,
    undecodable: Counter,
    lag: Gauge<f64, AtomicU64>,
    canary: Gauge,
    attached_anew: Counter,
    sessions_full: Counter,
    unseen: Counter<f64, AtomicU64>,
}

impl KernelMetrics {
    /// Adds these metrics to a registry.
    pub fn register(&self, registry: &mut Registry) {
        registry.register(
            "tokentrail_kernel_records",
            "Opens of token-like files that the kernel side reported",
            self.records.clone(),
        );
        registry.register(
            "tokentrail_kernel_repeats",
            "Opens that a process repeated within a second, told with a later record of the same",
            self.repeats.clone(),
        );
        registry.register(
            "tokentrail_kernel_lost",
            "Opens that matched and were lost before user space had them, by reason",
            self.lost.clone(),
        );
        registry.register(
            "tokentrail_kernel_undecodable",
            "Ring entries that were no record of this version",
            self.undecodable.clone(),
        );
        registry.register(
            "tokentrail_kernel_lag_seconds",
            "Time from the last open in the kernel to its record in user space",
            self.lag.clone(),
        );
        registry.register(
            "tokentrail_kernel_canary_ok",
            "1 if the last self-test saw its own open, 0 if not",
            self.canary.clone(),
        );
        registry.register(
            "tokentrail_kernel_attached_anew",
            "Times that the sensor was attached anew, since its self-test had failed",
            self.attached_anew.clone(),
        );
        registry.register(
            "tokentrail_kernel_sessions_full",
            "Sessions and processes of sessions that were not noted, since the kernel had no room",
            self.sessions_full.clone(),
        );
        registry.register(
            "tokentrail_kernel_unseen_seconds",
            "Time of which opens may be missing, as /statusz lists it",
            self.unseen.clone(),
        );
    }

    /// Opens that were lost for a reason, since start.
    pub fn lost_total(&self, reason: Loss) -> u64 {
        self.lost.get_or_create(&LossLabels { reason }).get()
    }

    /// Whether the last self-test passed.
    pub fn canary_ok(&self) -> bool {
        self.canary.get() == 1
    }

    /// Records so far.
    pub fn records_total(&self) -> u64 {
        self.records.get()
    }

    /// A record that waited for its reader.
    pub(super) fn seen_late(&self) {
        self.records.inc();
    }

    pub(super) fn seen(&self, ktime_ns: u64) {
        self.records.inc();
        let (now, _) = System.sample();
        #[expect(clippy::cast_precision_loss, reason = "a lag is far below 2^53 ns")]
        self.lag.set(now.saturating_sub(ktime_ns) as f64 / 1e9);
    }

    /// Opens so far that got no record of their own, since they repeat one of the last second.
    pub fn repeats_total(&self) -> u64 {
        self.repeats.get()
    }

    /// Counts one and returns how many there are now.
    pub(super) fn undecodable(&self) -> u64 {
        self.undecodable.inc() + 1
    }

    pub(super) fn lost(&self, reason: Loss, count: u64) {
        if self.lost.get_or_create(&LossLabels { reason }).inc_by(count) == 0 && count > 0 {
            let reason = reason.as_str();
            tracing::error!(reason, "opens of tokens are lost; counting from here on");
        }
    }

    /// Counts opens that got no record of their own.
    pub(super) fn repeated(&self, count: u64) {
        self.repeats.inc_by(count);
    }

    pub(super) fn sessions_full(&self, count: u64) {
        self.sessions_full.inc_by(count);
    }

    pub(super) fn attached_anew(&self) {
        self.attached_anew.inc();
    }

    pub(super) fn unseen(&self, gap: &Gap) {
        let Micros(micros) = gap.to - gap.from;
        #[expect(clippy::cast_precision_loss, reason = "a gap is far below 2^53 µs")]
        self.unseen.inc_by(micros.max(0) as f64 / 1e6);
    }

    pub(super) fn canary(&self, ok: bool) {
        self.canary.set(i64::from(ok));
    }
}
