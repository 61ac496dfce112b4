//! From what Elasticsearch's semantics match to the alert document. Called by their feeder.

use std::sync::Arc;

use super::{elastic::Match, opens::OpenDocument};
use crate::{
    alert::{
        document::{Origin, document},
        ecs::Document,
    },
    attribution::pods::PodIndex,
    audit::{self, AuditRecord},
    correlation::{
        Alert, Finding,
        ids::{self, RequestId},
    },
    rules::{Band, token_access},
    time::Micros,
};

/// What all documents of a replay have in common.
pub struct Writer {
    /// Name of the cluster, part of every id.
    pub cluster: String,
    /// This process.
    pub origin: Origin,
    /// Of pods nothing is known but what events say.
    pub pods: PodIndex,
    /// When the replay began.
    pub now: Micros,
}

impl Writer {
    /// The alert about a match.
    pub fn document(&self, found: &Match) -> Option<Document> {
        match found {
            Match::Sequence { name, open, request } => Some(self.sequence(name, open, request)),
            Match::TokenRequest { .. } => None,
        }
    }

    fn sequence(&self, name: &str, open: &OpenDocument, request: &Arc<AuditRecord>) -> Document {
        let rule = &token_access::RULE;
        let identity = RequestId::of(request);
        let incident_id = ids::request_incident_id(&self.cluster, rule.id, name, identity, None);
        let band = Band::Medium;
        let alert = Alert {
            event_id: ids::event_id(rule.id, &incident_id, "alert", band),
            incident_id,
            rule,
            band,
            open: Arc::new(open.open.clone()),
            request: Arc::clone(request),
            initiators: Vec::new(),
            requests: vec![Arc::clone(request)],
            request_count: 1,
            open_count: 1,
            first: open.time,
            last: request.stage_timestamp,
        };
        self.of_stage(alert, open.host.as_deref())
    }

    /// The alert as Elasticsearch dates it: by the stage, not by the receipt.
    fn of_stage(&self, alert: Alert, node: Option<&str>) -> Document {
        let stage = alert.request.stage_timestamp;
        let claim = alert.request.extra(audit::NODE_NAME);
        let node_name = node.or(claim).unwrap_or_default().to_owned();
        let origin = Origin { node_name, ..self.origin.clone() };
        let finding = Finding::Alert(Box::new(alert));
        let mut document = document(&finding, &origin, &self.pods, None, self.now);
        document.timestamp = stage;
        document.event.end = stage;
        if node.is_none() {
            document.tokentrail.evidence.origin.node_claim_is_this_node = None;
        }
        document
    }
}
