//! From what a replay finds to the alert document. Called by the semantics.

use std::sync::Arc;

use super::{elastic::Match, opens::OpenDocument};
use crate::{
    alert::{
        document::{Origin, document},
        ecs::Document,
    },
    attribution::pods::PodIndex,
    audit::{self, AuditRecord, Stage},
    correlation::{
        Attached, Finding, Open,
        ids::{self, Key, RequestId},
        story::Story,
    },
    rules::{Band, RequestKind, address::Address, catalogue::RuleId},
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

/// Both rules' risk: Elasticsearch's do not look at what a request does.
const BAND: Band = Band::Medium;

impl Writer {
    /// The alert about a match.
    pub fn document(&self, found: &Match) -> Document {
        match found {
            Match::Sequence { name, open, request } => {
                let key = Key { owner: name.clone(), rest: Vec::new() };
                let rule = RuleId::TokenAccessThenApiRequest;
                let node = open.host.as_deref();
                self.alert(rule, &key, None, Some(open), request, node)
            }
            Match::TokenRequest { request } => {
                let rest = [request.user_agent.clone(), minted_for(request)];
                let rest = rest.into_iter().flatten().collect();
                let key = Key { owner: request.user.username.clone(), rest };
                // The query matches each stage by itself.
                let stage = Some(request.stage);
                self.alert(RuleId::TokenRequestByUser, &key, stage, None, request, None)
            }
        }
    }

    /// The alert as Elasticsearch dates it: by the stage, not by the receipt.
    fn alert(
        &self,
        rule: RuleId,
        key: &Key,
        stage: Option<Stage>,
        open: Option<&OpenDocument>,
        record: &Arc<AuditRecord>,
        node: Option<&str>,
    ) -> Document {
        let identity = RequestId::of(record);
        let id = ids::request_incident_id(&self.cluster, rule, key, identity, stage);
        let request = Attached {
            id: identity,
            time: record.stage_timestamp,
            record: Arc::clone(record),
            request: RequestKind::Unknown,
            address: Address::Unknown,
            by_address: false,
            band: BAND,
        };
        let open = open.map(|open| Arc::new(Open::new(open.boot_id.clone(), open.open())));
        let mut finding = Story::begin(rule, id, open, Some(request)).alert();
        finding.band = BAND;
        finding.event_id =
            ids::event_id(rule.as_str(), &finding.incident_id, finding.kind.as_str(), BAND);
        finding.last = record.stage_timestamp;
        finding.open_count = u64::from(finding.open.is_some());
        let mut document = self.of(&finding, node);
        document.timestamp = record.stage_timestamp;
        document.event.end = record.stage_timestamp;
        document
    }

    /// The document of a finding, on a node if it is known which.
    pub fn of(&self, finding: &Finding, node: Option<&str>) -> Document {
        let claim = finding.request.as_ref().and_then(|it| it.record.extra(audit::NODE_NAME));
        let node_name = node.or(claim).unwrap_or_default().to_owned();
        let origin = Origin { node_name, ..self.origin.clone() };
        let mut document = document(finding, &origin, &self.pods, None, self.now);
        // A claim is no witness for itself.
        if node.is_none()
            && let Some(from) = &mut document.tokentrail.evidence.origin
        {
            from.node_claim_is_this_node = None;
        }
        document
    }
}

fn minted_for(request: &AuditRecord) -> Option<String> {
    let (namespace, name) = request.minted_for()?;
    Some(format!("{namespace}/{name}"))
}
