//! What the audit canary counts and measures. Filled in by its state machine.

use std::sync::atomic::AtomicU64;

use prometheus_client::{
    metrics::{counter::Counter, family::Family, gauge::Gauge},
    registry::Registry,
};

use super::Measured;

type Seconds = Gauge<f64, AtomicU64>;

/// Numbers of the canary. Clones count into the same place.
#[derive(Clone, Debug)]
pub struct CanaryMetrics {
    requests: Family<[(&'static str, &'static str); 1], Counter>,
    heard: Family<[(&'static str, &'static str); 1], Counter>,
    silent: Gauge,
    clock_offset: Seconds,
    clock_offset_error: Seconds,
    delay: Seconds,
}

impl Default for CanaryMetrics {
    fn default() -> Self {
        // Not measured is not zero.
        let unknown = || {
            let gauge = Seconds::default();
            gauge.set(f64::NAN);
            gauge
        };
        Self {
            requests: Family::default(),
            heard: Family::default(),
            silent: Gauge::default(),
            clock_offset: unknown(),
            clock_offset_error: unknown(),
            delay: unknown(),
        }
    }
}

impl CanaryMetrics {
    /// Puts the metrics under their `tokentrail_audit_canary_` names, each label value from the
    /// start at zero.
    pub fn register(&self, registry: &mut Registry) {
        for result in ["answered", "failed"] {
            let _ = self.requests.get_or_create(&[("result", result)]);
        }
        for whose in ["own", "other"] {
            let _ = self.heard.get_or_create(&[("whose", whose)]);
        }
        let registry = registry.sub_registry_with_prefix("tokentrail_audit_canary");
        registry.register("requests", "Requests made to find in the log", self.requests.clone());
        registry.register("heard", "Canary events read, by whose they are", self.heard.clone());
        registry.register(
            "silent",
            "Whether requests are answered but do not come back",
            self.silent.clone(),
        );
        registry.register(
            "clock_offset_seconds",
            "The API server's clock less this machine's",
            self.clock_offset.clone(),
        );
        registry.register(
            "clock_offset_error_seconds",
            "How far clock offset and delay may be wrong either way",
            self.clock_offset_error.clone(),
        );
        registry.register(
            "delay_seconds",
            "From an event's stageTimestamp to when its line was read, by the API server's clock",
            self.delay.clone(),
        );
    }

    pub(super) fn asked(&self, answered: bool) {
        let result = if answered { "answered" } else { "failed" };
        self.requests.get_or_create(&[("result", result)]).inc();
    }

    pub(super) fn heard(&self, own: bool) {
        let whose = if own { "own" } else { "other" };
        self.heard.get_or_create(&[("whose", whose)]).inc();
    }

    pub(super) fn silent(&self, silent: bool) {
        self.silent.set(silent.into());
    }

    pub(super) fn measured(&self, measured: &Measured) {
        let Measured { clock_offset_us, clock_offset_error_us, delay_us, .. } = measured;
        for (gauge, micros) in [
            (&self.clock_offset, clock_offset_us),
            (&self.clock_offset_error, clock_offset_error_us),
            (&self.delay, delay_us),
        ] {
            #[expect(clippy::cast_precision_loss, reason = "exact below 285 years")]
            gauge.set(*micros as f64 / 1e6);
        }
    }
}
