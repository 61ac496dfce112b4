//! How much a correlator holds and for how long, what it holds, and what it dropped. Values only; read
//! by all of `correlation`, shown by `metrics`.

use crate::time::Micros;

/// Bounds and identities; fixed for the life of a correlator.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Name or id of the cluster, part of every id.
    pub cluster: String,
    /// How long after an open a request still belongs to it, inclusive.
    pub window: Micros,
    /// How long a request without an open is kept for an open that arrives after it.
    pub patience: Micros,
    /// How long after an exposure's end requests of the same client can prolong an incident.
    pub longest_tail: Micros,
    /// How long after its begin an `exec` session can explain an open.
    pub session_memory: Micros,
    /// How long a pod must have been watched before a request of a kind that was not seen is new.
    pub learning: Micros,
    /// Exposures of one pod.
    pub exposures_per_pod: usize,
    /// Requests of one pod that wait for an open.
    pub waiting_per_pod: usize,
    /// Pods with any state; the one that was idle longest gives way.
    pub pods: usize,
}

impl Settings {
    /// The documented figures, for one machine with one clock.
    pub fn new(cluster: impl Into<String>) -> Self {
        Self {
            cluster: cluster.into(),
            window: Micros::from_secs(60),
            patience: Micros::from_secs(10),
            longest_tail: Micros::from_secs(15 * 60),
            session_memory: Micros::from_secs(12 * 3_600),
            learning: Micros::from_secs(10 * 60),
            exposures_per_pod: 16,
            waiting_per_pod: 64,
            pods: 1_024,
        }
    }
}

/// What was dropped to stay within the bounds, and what could not be journalled.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Losses {
    /// Exposures beyond a pod's bound: the oldest gave way.
    pub exposures: u64,
    /// Reads whose exposures gave way and that were not told: those of too many pods were, in one hour.
    pub reads: u64,
    /// Waiting requests beyond a pod's bound: the oldest gave way.
    pub waiting: u64,
    /// Pods beyond the bound.
    pub pods: u64,
    /// Hourly incidents beyond their bound: the oldest was told to have ended.
    pub hourly: u64,
    /// Requests that were joined with no open, as the pod that they name cannot be their user's.
    pub false_claims: u64,
    /// Opens and requests that would have begun an incident without an exposure, or joined one of their
    /// own, did their maker not have too many: one for all the others tells of them in its summary.
    pub crowded: u64,
    /// Requests that a summary would have listed, had there been fewer incidents at once.
    pub unlisted: u64,
    /// Requests whose identity was forgotten: a later stage of one counts as a request again.
    pub forgotten: u64,
    /// Incidents that were told to have begun, and turned out to be part of an earlier one: input
    /// came in another order than it happened in.
    pub merged: u64,
    /// Requests that an incident would have begun with, had they not come after it was told: in the
    /// order of event time its alert names another request, and without an exposure has another id.
    pub overtaken: u64,
    /// Entries that the journal refused.
    pub journal: u64,
}

/// What is held at the moment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Held {
    /// Pods with any state.
    pub pods: usize,
    /// Exposures.
    pub exposures: usize,
    /// Incidents that have not ended, of all rules.
    pub incidents: usize,
    /// Requests that wait for an open.
    pub waiting: usize,
}
