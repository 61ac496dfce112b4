//! What of the requests made elsewhere matters to what is held here, and which sessions are known: what
//! nodes ask each other. Part of the [`Correlator`].

use std::sync::Arc;

use super::{Correlator, journal::Journal};
use crate::{audit::AuditRecord, time::Micros};

/// Requests of a pod that could be joined. Times are on the steady axis.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Span<'a> {
    /// Uid of the pod.
    pub pod_uid: &'a str,
    /// The earliest received time.
    pub from: Micros,
    /// The latest.
    pub until: Micros,
}

impl<J: Journal> Correlator<J> {
    /// Whether a request of this pod may yet be joined with what was seen.
    pub fn awaits(&self, pod_uid: &str) -> bool {
        let pod = self.pods.get(pod_uid);
        pod.is_some_and(|pod| !pod.exposures.is_empty() || !pod.incidents.is_empty())
    }

    /// What could be joined as it stands now.
    pub fn wanted(&self) -> impl Iterator<Item = Span<'_>> {
        self.pods.iter().filter_map(|(pod_uid, pod)| {
            let exposures = pod.exposures.iter().map(|it| (it.start(), it.end(&self.settings)));
            let incidents =
                pod.incidents.iter().map(|it| (it.first_time(), it.end(&self.settings)));
            let spans = exposures.chain(incidents);
            let (from, until) =
                spans.reduce(|one, other| (one.0.min(other.0), one.1.max(other.1)))?;
            Some(Span { pod_uid, from, until })
        })
    }

    /// The sessions into a pod that are remembered, oldest first.
    pub fn sessions_into(&self, namespace: &str, name: &str) -> Vec<Arc<AuditRecord>> {
        self.sessions.of(namespace, name)
    }
}
