//! What the correlator has to say, and the parts that it says it of. Values only.

use std::{collections::BTreeMap, sync::Arc};

use schemars::JsonSchema;
use serde::Serialize;

use super::{Open, Request, ids::RequestId};
use crate::{
    audit::{AuditRecord, Stage},
    rules::{Band, RequestKind, address::Address, catalogue::RuleId},
    time::Micros,
};

/// What is said of an incident.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// It began.
    Alert,
    /// It got worse: a higher band of risk, or the first request that the workload does not make.
    Escalation,
    /// It ended: the summary.
    Incident,
}

impl Kind {
    /// Its name in alerts and ids.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Alert => "alert",
            Self::Escalation => "escalation",
            Self::Incident => "incident",
        }
    }
}

/// A request as part of an incident.
#[derive(Clone, Debug)]
pub struct Attached {
    /// Its identity.
    pub id: RequestId,
    /// Received time on the steady axis.
    pub time: Micros,
    /// The event, with its latest stage's outcome.
    pub record: Arc<AuditRecord>,
    /// Whether the workload makes such requests anyway.
    pub request: RequestKind,
    /// Whose address it came from.
    pub address: Address,
    /// Whether only the service account and the address say that it is the pod's.
    pub by_address: bool,
    /// How bad it is.
    pub band: Band,
}

impl Attached {
    /// Of a request with its identity; how bad it is, is the rule's to say.
    pub fn new(id: RequestId, request: &Request, kind: RequestKind) -> Self {
        let judged = request.judged.map(|(_, address)| address);
        let address = || Address::of(&request.record, request.pod.as_deref());
        Self {
            id,
            time: request.time,
            record: Arc::new(request.record.clone()),
            request: kind,
            address: judged.unwrap_or_else(address),
            by_address: request.by_address.is_some(),
            band: Band::Low,
        }
    }
}

/// A request as an incident lists it: all that is kept of most.
#[derive(Clone, Debug)]
pub struct Listed {
    /// Its identity.
    pub id: RequestId,
    /// Received time on the API server's clock.
    pub received: Micros,
    /// The stage that this is of, and when it was reached.
    pub stage: (Micros, Stage),
    /// Whether the workload makes such requests anyway.
    pub request: RequestKind,
    /// How bad it is.
    pub band: Band,
    /// HTTP code.
    pub code: Option<u16>,
    /// What it has in common with others: one for those that are alike.
    pub asked: Arc<Asked>,
}

impl Listed {
    /// Whether `record` is of a later stage.
    pub fn is_before(&self, record: &AuditRecord) -> bool {
        self.stage < (record.stage_timestamp, record.stage)
    }
}

/// Who asked for what, and whether that was granted.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Asked {
    /// Verb.
    pub verb: Box<str>,
    /// Resource with subresource, or the URI's path.
    pub resource: Box<str>,
    /// Namespace.
    pub namespace: Option<Box<str>>,
    /// Name.
    pub name: Option<Box<str>>,
    /// What the client calls itself.
    pub user_agent: Option<Box<str>>,
    /// Where it came from.
    pub source_ips: Vec<Box<str>>,
    /// `allow` or `forbid`.
    pub decision: Option<Box<str>>,
}

impl Asked {
    /// Of a request.
    pub fn of(record: &AuditRecord) -> Self {
        let object = record.object_ref.as_ref();
        let text = |text: &String| text.as_str().into();
        Self {
            verb: text(&record.verb),
            resource: record.resource().into(),
            namespace: object.and_then(|object| object.namespace.as_ref()).map(text),
            name: object.and_then(|object| object.name.as_ref()).map(text),
            user_agent: record.user_agent.as_ref().map(text),
            source_ips: record.source_ips.iter().map(text).collect(),
            decision: record.decision().map(Into::into),
        }
    }
}

/// An incident as it stands when it is told.
#[derive(Clone, Debug)]
pub struct Finding {
    /// What is said.
    pub kind: Kind,
    /// `event.id`.
    pub event_id: String,
    /// `tokentrail.incident.id`.
    pub incident_id: String,
    /// Ids of other rules' incidents about the same.
    pub related: Vec<String>,
    /// The rule that it is told by.
    pub rule: RuleId,
    /// How bad.
    pub band: Band,
    /// The open that it began with, or that its first request was joined with.
    pub open: Option<Arc<Open>>,
    /// The request that it began with; for an escalation the one that made it worse.
    pub request: Option<Attached>,
    /// Sessions that may have brought the opener into the pod, best first.
    pub initiators: Vec<Arc<AuditRecord>>,
    /// Requests in the order of time, as far as they were kept.
    pub requests: Vec<Listed>,
    /// All requests, kept or not.
    pub request_count: u64,
    /// Requests that would be counted again if anything more came of them, as their identity was
    /// forgotten for want of room.
    pub forgotten: u64,
    /// Requests that are earlier than the one that it was told with, and came after it.
    pub overtaken: u64,
    /// Opens in this incident.
    pub open_count: u64,
    /// Whether it is told before the exposure has ended, as that had to give way to others.
    pub early: bool,
    /// Whether it is the one incident for all that its maker has beyond a bound.
    pub crowded: bool,
    /// Pods whose token was opened, and how often; only where there may be several.
    pub victims: BTreeMap<String, u64>,
    /// First open or request, wall clock.
    pub first: Micros,
    /// Last open or request, wall clock.
    pub last: Micros,
}
