//! What attribution counts. Labels come from closed enums only.

use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{counter::Counter, family::Family, gauge::Gauge},
    registry::Registry,
};

use super::{Grade, Ignored, learned::Unlearned};

/// Counters of the attribution stage. Cheap to clone; clones count together.
#[derive(Clone, Debug, Default)]
pub struct AttributionMetrics {
    opens: Family<OpenLabels, Counter>,
    ignored: Family<IgnoredLabels, Counter>,
    volumes: Gauge,
    refreshes: Family<RefreshLabels, Counter>,
    unlearned: Family<UnlearnedLabels, Counter>,
}

impl AttributionMetrics {
    /// Adds them to a registry, each label value from the start at zero.
    pub fn register(&self, registry: &mut Registry) {
        for grade in Grade::ALL {
            let _ = self.opens.get_or_create(&OpenLabels { grade: grade.as_str() });
        }
        for reason in Ignored::ALL {
            let _ = self.ignored.get_or_create(&IgnoredLabels { reason: reason.as_str() });
        }
        for result in [Refresh::Read, Refresh::Failed, Refresh::Limited] {
            let _ = self.refreshes.get_or_create(&RefreshLabels { result: result.as_str() });
        }
        for what in Unlearned::ALL {
            let _ = self.unlearned.get_or_create(&UnlearnedLabels { what: what.as_str() });
        }
        registry.register(
            "tokentrail_attribution_opens",
            "Opens of service-account tokens and CA certificates, by grade",
            self.opens.clone(),
        );
        registry.register(
            "tokentrail_attribution_ignored",
            "Kernel records that are no open of a token by a workload, by reason",
            self.ignored.clone(),
        );
        registry.register(
            "tokentrail_attribution_volumes",
            "Service-account volumes of this node that opens are matched with",
            self.volumes.clone(),
        );
        registry.register(
            "tokentrail_attribution_volume_refreshes",
            "Readings of the node's mounts, by result; limited ones were put off by the rate limit",
            self.refreshes.clone(),
        );
        registry.register(
            "tokentrail_attribution_unlearned",
            "Workloads forgotten, and reads by executables not remembered, for want of room",
            self.unlearned.clone(),
        );
    }

    pub(super) fn opened(&self, grade: Grade) {
        self.opens.get_or_create(&OpenLabels { grade: grade.as_str() }).inc();
    }

    pub(super) fn ignored(&self, reason: Ignored) {
        self.ignored.get_or_create(&IgnoredLabels { reason: reason.as_str() }).inc();
    }

    pub(super) fn refreshed(&self, result: Refresh) {
        self.refreshes.get_or_create(&RefreshLabels { result: result.as_str() }).inc();
    }

    pub(super) fn unlearned(&self, what: Unlearned) {
        self.unlearned.get_or_create(&UnlearnedLabels { what: what.as_str() }).inc();
    }

    pub(super) fn volumes(&self, count: usize) {
        self.volumes.set(i64::try_from(count).unwrap_or(i64::MAX));
    }

    /// Readings of the mounts with this result.
    #[cfg(test)]
    pub(super) fn refreshes(&self, result: Refresh) -> u64 {
        self.refreshes.get_or_create(&RefreshLabels { result: result.as_str() }).get()
    }
}

/// How a reading of the mounts went.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Refresh {
    Read,
    Failed,
    Limited,
}

impl Refresh {
    const fn as_str(self) -> &'static str {
        match self {
            Self::Read => "read",
            Self::Failed => "failed",
            Self::Limited => "limited",
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OpenLabels {
    grade: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct IgnoredLabels {
    reason: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct RefreshLabels {
    result: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct UnlearnedLabels {
    what: &'static str,
}
