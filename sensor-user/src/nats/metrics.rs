//! What is counted of the exchange over the broker. Filled in by both of its sides, shown by `/metrics`.

use std::fmt;

use prometheus_client::{
    encoding::{EncodeLabelSet, EncodeLabelValue, LabelValueEncoder},
    metrics::{counter::Counter, family::Family, gauge::Gauge},
    registry::Registry,
};

use super::{interest::Refused, telling::GivenUp};

impl Refused {
    const ALL: [Self; 4] = [Self::Key, Self::Shape, Self::Bounds, Self::Node];

    fn as_str(self) -> &'static str {
        match self {
            Self::Key => "key",
            Self::Shape => "shape",
            Self::Bounds => "bounds",
            Self::Node => "node",
        }
    }
}

impl EncodeLabelValue for Refused {
    fn encode(&self, encoder: &mut LabelValueEncoder<'_>) -> Result<(), fmt::Error> {
        EncodeLabelValue::encode(&self.as_str(), encoder)
    }
}

impl GivenUp {
    const ALL: [Self; 2] = [Self::Rotated, Self::Size];
}

impl EncodeLabelValue for GivenUp {
    fn encode(&self, encoder: &mut LabelValueEncoder<'_>) -> Result<(), fmt::Error> {
        let reason = match self {
            Self::Rotated => "rotated",
            Self::Size => "size",
        };
        EncodeLabelValue::encode(&reason, encoder)
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct GivenUpLabels {
    reason: GivenUp,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct RefusedLabels {
    reason: Refused,
}

/// Counters and gauges. Clones count into the same place.
#[derive(Clone, Debug, Default)]
pub struct NatsMetrics {
    /// 1 while there is a connection.
    pub connected: Gauge,
    /// Connections that were made.
    pub connections: Counter,
    /// Audit sides that this node hears.
    pub audit_sides: Gauge,
    /// Times that this node's questions were put.
    pub asked: Counter,
    /// Pods that this node could not ask about: there were too many.
    pub unasked: Counter,
    /// Answers that came.
    pub answers: Counter,
    /// Pods that others ask about, on an audit side.
    pub interests: Gauge,
    /// Records that the broker has taken.
    pub published: Counter,
    /// Records that it had before: of another audit side, or of this one before a restart.
    pub duplicates: Counter,
    /// Records that it refused for good: the node's share of the stream is full.
    pub overflown: Counter,
    /// Records that found no room in the queue to the broker; what is in a file is read again.
    pub deferred: Counter,
    /// Times that a log file was searched for requests of before.
    pub searches: Counter,
    /// Pods asked about for a time of which a source has nothing any more.
    pub beyond_reach: Counter,
    /// Times that no node was told who got into a pod, as it could not be found out where that is.
    pub unplaced: Counter,
    /// Bytes of lines kept for those who ask later.
    pub look_back_bytes: Gauge,
    /// What came where audit sides speak and is no word of one, and words of one too many.
    pub refused_words: Counter,
    refused: Family<RefusedLabels, Counter>,
    /// Alerts that the broker has taken.
    pub alerts_published: Counter,
    /// Alerts that it has not taken yet.
    pub alerts_waiting: Gauge,
    alerts_given_up: Family<GivenUpLabels, Counter>,
}

impl NatsMetrics {
    /// Puts the metrics under their `tokentrail_nats_` names.
    pub fn register(&self, registry: &mut Registry) {
        let registry = registry.sub_registry_with_prefix("tokentrail_nats");
        let gauges = [
            ("connected", "Whether there is a connection to NATS", &self.connected),
            ("audit_sides", "Audit sides that this node hears", &self.audit_sides),
            ("interests", "Pods that other nodes ask about", &self.interests),
            (
                "look_back_bytes",
                "Bytes of audit lines that are kept for those who ask later",
                &self.look_back_bytes,
            ),
            (
                "alerts_waiting",
                "Alerts in the alert log that are yet to be published to NATS",
                &self.alerts_waiting,
            ),
        ];
        for (name, help, gauge) in gauges {
            registry.register(name, help, gauge.clone());
        }
        let counters = [
            ("connections", "Connections to NATS that were made", &self.connections),
            ("asked", "Times that this node's questions were put", &self.asked),
            (
                "unasked_pods",
                "Pods that this node could not ask about, as there were too many",
                &self.unasked,
            ),
            ("answers", "Answers that came to this node", &self.answers),
            ("published", "Audit records that NATS has taken for other nodes", &self.published),
            ("duplicates", "Audit records that NATS had before", &self.duplicates),
            (
                "overflown",
                "Audit records that NATS refused, as the node's share of the stream is full",
                &self.overflown,
            ),
            (
                "deferred",
                "Audit records that found no room in the queue to NATS; those of files are read again",
                &self.deferred,
            ),
            ("searches", "Times that audit logs were searched for what was before", &self.searches),
            (
                "beyond_reach",
                "Pods asked about for a time of which an audit source has nothing any more",
                &self.beyond_reach,
            ),
            (
                "unplaced_pods",
                "Times that no node was told who got into a pod, as it is not known where that is",
                &self.unplaced,
            ),
            (
                "refused_words",
                "What came where audit sides say how far they are, and is no word of one or of one too many",
                &self.refused_words,
            ),
            ("alerts_published", "Alerts that NATS has taken", &self.alerts_published),
        ];
        for (name, help, counter) in counters {
            registry.register(name, help, counter.clone());
        }
        registry.register(
            "refused_interests",
            "What nodes asked and is not answered, by reason",
            self.refused.clone(),
        );
        registry.register(
            "alerts_given_up",
            "Alerts that will not be published to NATS, by reason",
            self.alerts_given_up.clone(),
        );
        // Each is there before its first case.
        for reason in Refused::ALL {
            drop(self.refused.get_or_create(&RefusedLabels { reason }));
        }
        for reason in GivenUp::ALL {
            drop(self.alerts_given_up.get_or_create(&GivenUpLabels { reason }));
        }
    }

    /// The counter of alerts that are not published for this reason.
    pub fn given_up(&self, reason: GivenUp) -> Counter {
        self.alerts_given_up.get_or_create_owned(&GivenUpLabels { reason })
    }

    /// The counter of one reason.
    pub fn refused(&self, reason: Refused) -> Counter {
        self.refused.get_or_create_owned(&RefusedLabels { reason })
    }
}
