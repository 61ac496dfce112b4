//! The registry. Each stage owns its own metrics structure and registers it once at start; this
//! file only adds what belongs to no stage and encodes the text.

use std::sync::{Arc, Mutex, PoisonError};

use prometheus_client::{
    metrics::{counter::Counter, gauge::Gauge, histogram::Histogram, info::Info},
    registry::Registry,
};

use crate::correlation::{Held, Losses};

/// The registry that `/metrics` reads. Metrics themselves are atomics; the lock is for encoding.
#[derive(Clone, Debug)]
pub struct Metrics(Arc<Mutex<Registry>>);

impl Metrics {
    /// Takes a registry in which every stage has registered.
    pub fn new(mut registry: Registry) -> Self {
        let version = vec![("version", env!("CARGO_PKG_VERSION"))];
        registry.register("tokentrail_build", "This program", Info::new(version));
        Self(Arc::new(Mutex::new(registry)))
    }

    /// The OpenMetrics text.
    pub fn encode(&self) -> Result<String, std::fmt::Error> {
        let mut text = String::new();
        let registry = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        prometheus_client::encoding::text::encode(&mut text, &registry)?;
        Ok(text)
    }
}

/// Numbers of the correlation stage and of what leaves it. The stage itself counts plain integers:
/// it is pure.
#[derive(Clone, Debug)]
pub struct CorrelationMetrics {
    pods: Gauge,
    exposures: Gauge,
    incidents: Gauge,
    waiting: Gauge,
    dropped_exposures: Counter,
    untold_reads: Counter,
    dropped_waiting: Counter,
    dropped_pods: Counter,
    dropped_hourly: Counter,
    false_claims: Counter,
    crowded: Counter,
    unlisted: Counter,
    forgotten: Counter,
    merged: Counter,
    overtaken: Counter,
    journal_failures: Counter,
    /// Alerts told.
    pub alerts: Counter,
    /// Escalations told.
    pub escalations: Counter,
    /// Summaries told.
    pub summaries: Counter,
    /// Seconds from reading the completing audit line to having written the alert.
    pub latency: Histogram,
}

impl Default for CorrelationMetrics {
    fn default() -> Self {
        let micros = [50.0, 100.0, 200.0, 500.0, 1e3, 2e3, 5e3, 1e4, 1e5, 1e6];
        Self {
            pods: Gauge::default(),
            exposures: Gauge::default(),
            incidents: Gauge::default(),
            waiting: Gauge::default(),
            dropped_exposures: Counter::default(),
            untold_reads: Counter::default(),
            dropped_waiting: Counter::default(),
            dropped_pods: Counter::default(),
            dropped_hourly: Counter::default(),
            false_claims: Counter::default(),
            crowded: Counter::default(),
            unlisted: Counter::default(),
            forgotten: Counter::default(),
            merged: Counter::default(),
            overtaken: Counter::default(),
            journal_failures: Counter::default(),
            alerts: Counter::default(),
            escalations: Counter::default(),
            summaries: Counter::default(),
            latency: Histogram::new(micros.map(|bound| bound / 1e6)),
        }
    }
}

impl CorrelationMetrics {
    /// Makes them visible.
    pub fn register(&self, registry: &mut Registry) {
        let registry = registry.sub_registry_with_prefix("tokentrail_correlation");
        registry.register("pods", "Pods with any state", self.pods.clone());
        registry.register("exposures", "Exposures held", self.exposures.clone());
        registry.register("incidents", "Incidents that have not ended", self.incidents.clone());
        registry.register(
            "waiting_requests",
            "Requests that wait for an open",
            self.waiting.clone(),
        );
        let bound = "dropped because their pod's bound was reached";
        registry.register(
            "dropped_exposures",
            format!("Exposures {bound}"),
            self.dropped_exposures.clone(),
        );
        registry.register(
            "untold_reads",
            "Reads of dropped exposures that were not told, as too many pods had such in one hour",
            self.untold_reads.clone(),
        );
        registry.register(
            "dropped_waiting_requests",
            format!("Waiting requests {bound}"),
            self.dropped_waiting.clone(),
        );
        registry.register(
            "dropped_pods",
            "Pods whose state gave way to another's",
            self.dropped_pods.clone(),
        );
        registry.register(
            "dropped_hourly_incidents",
            "Incidents without an exposure that were told to have ended early",
            self.dropped_hourly.clone(),
        );
        registry.register(
            "false_claims",
            "Requests that name a pod which is not of their service account's namespace, or name one \
             and are no service account's: they are joined with no open",
            self.false_claims.clone(),
        );
        registry.register(
            "crowded_events",
            "Opens and requests told by the summary of one incident for all, as their maker has too many \
             in one hour for an alert of their own",
            self.crowded.clone(),
        );
        registry.register(
            "unlisted_requests",
            "Requests that summaries do not list as there were too many incidents at once",
            self.unlisted.clone(),
        );
        registry.register(
            "forgotten_requests",
            "Requests of incidents whose later stages would be counted as further requests",
            self.forgotten.clone(),
        );
        registry.register(
            "merged_incidents",
            "Incidents that turned out to be part of an earlier one, as input came out of order",
            self.merged.clone(),
        );
        registry.register(
            "overtaken_requests",
            "Requests that came after the alert of an incident that began with them",
            self.overtaken.clone(),
        );
        registry.register(
            "journal_failures",
            "Entries that could not be written to the journal",
            self.journal_failures.clone(),
        );
        registry.register("alerts", "Alerts told", self.alerts.clone());
        registry.register("escalations", "Escalations told", self.escalations.clone());
        registry.register("summaries", "Incident summaries told", self.summaries.clone());
        registry.register(
            "alert_latency_seconds",
            "From reading the completing audit line to having written the alert",
            self.latency.clone(),
        );
    }

    /// Takes over what the correlator counted.
    pub fn observe(&self, held: Held, losses: Losses) {
        let gauge = |gauge: &Gauge, value: usize| {
            gauge.set(i64::try_from(value).unwrap_or(i64::MAX));
        };
        gauge(&self.pods, held.pods);
        gauge(&self.exposures, held.exposures);
        gauge(&self.incidents, held.incidents);
        gauge(&self.waiting, held.waiting);
        let counter = |counter: &Counter, value: u64| {
            counter.inc_by(value.saturating_sub(counter.get()));
        };
        counter(&self.dropped_exposures, losses.exposures);
        counter(&self.untold_reads, losses.reads);
        counter(&self.dropped_waiting, losses.waiting);
        counter(&self.dropped_pods, losses.pods);
        counter(&self.dropped_hourly, losses.hourly);
        counter(&self.false_claims, losses.false_claims);
        counter(&self.crowded, losses.crowded);
        counter(&self.unlisted, losses.unlisted);
        counter(&self.forgotten, losses.forgotten);
        counter(&self.merged, losses.merged);
        counter(&self.overtaken, losses.overtaken);
        counter(&self.journal_failures, losses.journal);
    }
}
