//! What the pod index and its watch count.

use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{counter::Counter, family::Family, gauge::Gauge},
    registry::Registry,
};

/// Counters of the pod index. Cheap to clone; clones count together.
#[derive(Clone, Debug, Default)]
pub struct PodMetrics {
    held: Gauge,
    connected: Gauge,
    lists: Counter,
    refused: Counter,
    unusable: Counter,
    errors: Family<ErrorLabels, Counter>,
}

/// Why the Kubernetes API did not give what it was asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ApiFailure {
    /// No connection, or one that broke or stalled.
    Unreachable,
    /// 401: the credential is not (or no longer) valid.
    Unauthorized,
    /// 403: the service account may not list or watch pods.
    Forbidden,
    /// 410: the server no longer has what happened since; everything is listed again.
    Gone,
    /// Too many requests, or an error inside the server.
    Server,
    /// An answer that cannot be understood.
    Other,
}

impl ApiFailure {
    const ALL: [Self; 6] = [
        Self::Unreachable,
        Self::Unauthorized,
        Self::Forbidden,
        Self::Gone,
        Self::Server,
        Self::Other,
    ];

    const fn as_str(self) -> &'static str {
        match self {
            Self::Unreachable => "unreachable",
            Self::Unauthorized => "unauthorized",
            Self::Forbidden => "forbidden",
            Self::Gone => "gone",
            Self::Server => "server",
            Self::Other => "other",
        }
    }
}

impl PodMetrics {
    /// Makes them visible, each label value from the start at zero.
    pub fn register(&self, registry: &mut Registry) {
        for failure in ApiFailure::ALL {
            let _ = self.errors.get_or_create(&ErrorLabels { reason: failure.as_str() });
        }
        let registry = registry.sub_registry_with_prefix("tokentrail_pods");
        registry.register("held", "Pods in the index, deleted ones included", self.held.clone());
        registry.register(
            "connected",
            "Whether the index follows the Kubernetes API at the moment",
            self.connected.clone(),
        );
        registry.register("lists", "Complete lists of this node's pods", self.lists.clone());
        registry.register("refused", "Pods that the index had no room for", self.refused.clone());
        registry.register(
            "unusable",
            "Pods that came without a uid, namespace or name",
            self.unusable.clone(),
        );
        registry.register(
            "api_errors",
            "Failures of the Kubernetes API, by reason",
            self.errors.clone(),
        );
    }

    pub(super) fn held(&self, count: usize) {
        self.held.set(i64::try_from(count).unwrap_or(i64::MAX));
    }

    pub(super) fn refused(&self) {
        self.refused.inc();
    }

    pub(super) fn unusable(&self) {
        self.unusable.inc();
    }

    pub(super) fn connected(&self, connected: bool) {
        self.connected.set(connected.into());
    }

    pub(super) fn listed(&self) {
        self.lists.inc();
    }

    pub(super) fn failed(&self, failure: ApiFailure) {
        self.errors.get_or_create(&ErrorLabels { reason: failure.as_str() }).inc();
    }

    /// Failures of this kind so far.
    #[cfg(test)]
    pub(super) fn failures(&self, failure: ApiFailure) -> u64 {
        self.errors.get_or_create(&ErrorLabels { reason: failure.as_str() }).get()
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ErrorLabels {
    reason: &'static str,
}
