//! What an analyst would look up next, taken from the requests of an incident: what the service
//! account may do, which requests followed, whether they came from where they should, and how to
//! contain it.

use schemars::JsonSchema;
use serde::Serialize;

use crate::{
    attribution::{Grade, TokenFile, TokenOpen, pods::Pod},
    audit::{self, AuditRecord},
    correlation::Alert,
    redact::redact,
    time::Micros,
};

/// `tokentrail.evidence`
#[derive(Debug, Serialize, JsonSchema)]
pub struct Evidence {
    /// Who may have opened the session that the token was read in, best candidate first.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub initiator: Vec<Initiator>,
    /// The account behind the token.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub service_account: Option<ServiceAccount>,
    /// Requests in the order of time, 200 at most.
    pub requests: Vec<RequestLine>,
    /// Where the requests came from.
    pub origin: OriginOfRequest,
    /// The credential that was used.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub credential: Option<Credential>,
}

/// `tokentrail.evidence.initiator`
#[derive(Debug, Serialize, JsonSchema)]
pub struct Initiator {
    /// The authenticated user.
    pub user: String,
    /// Whom they acted as, if they impersonated somebody.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub acting_as: Option<String>,
    /// Their groups.
    pub groups: Vec<String>,
    /// The address that the API server saw.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub address: Option<String>,
    /// What the client calls itself.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub user_agent: Option<String>,
    /// The credential.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub credential_id: Option<String>,
    /// `exec`, `attach` or `ephemeralcontainers`.
    pub kind: String,
    /// URI with the command that was asked for.
    pub uri: String,
    /// When the session was asked for.
    pub start: Micros,
    /// Why this is a candidate.
    pub why: String,
}

/// `tokentrail.evidence.service_account`
#[derive(Debug, Serialize, JsonSchema)]
pub struct ServiceAccount {
    /// Namespace.
    pub namespace: String,
    /// Name.
    pub name: String,
    /// What the authorizer said of the completing request: binding and role.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rbac_reason: Option<String>,
}

/// One request of the incident.
#[derive(Debug, Serialize, JsonSchema)]
pub struct RequestLine {
    /// When it was received.
    pub time: Micros,
    /// Verb.
    pub verb: String,
    /// Resource with subresource, or the URI's path.
    pub resource: String,
    /// Namespace.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub namespace: Option<String>,
    /// Name.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// HTTP code.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub code: Option<u16>,
    /// `allow` or `forbid`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub decision: Option<String>,
    /// What the client calls itself.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub user_agent: Option<String>,
}

/// `tokentrail.evidence.origin`
#[derive(Debug, Serialize, JsonSchema)]
pub struct OriginOfRequest {
    /// Whether the address is the pod's: `pod`, `node`, `neither` or `unknown`.
    pub address: String,
    /// Whether the token's node claim names this node; absent where tokens carry none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub node_claim_is_this_node: Option<bool>,
}

/// `tokentrail.evidence.credential`
#[derive(Debug, Serialize, JsonSchema)]
pub struct Credential {
    /// `JTI=<uuid>`
    pub id: String,
}

/// A way to contain the incident.
#[derive(Debug, Serialize, JsonSchema)]
pub struct ContainmentStep {
    /// What it does, and what it does not.
    pub note: String,
    /// The command, every value quoted for a shell.
    pub command: String,
}

impl Evidence {
    /// Everything known about an incident now; `pod` is the one whose token was opened.
    pub fn of(alert: &Alert, node_name: &str, pod: Option<&Pod>) -> Self {
        let request = &alert.request;
        Self {
            initiator: alert
                .initiators
                .iter()
                .map(|session| Initiator::of(session, &alert.open))
                .collect(),
            service_account: request.service_account().map(|(namespace, name)| ServiceAccount {
                namespace: namespace.into(),
                name: name.into(),
                rbac_reason: request
                    .annotations
                    .get("authorization.k8s.io/reason")
                    .filter(|reason| !reason.is_empty())
                    .map(|reason| redact(reason).into_owned()),
            }),
            requests: alert.requests.iter().map(|request| RequestLine::of(request)).collect(),
            origin: OriginOfRequest {
                address: Address::of(request, pod).as_str().into(),
                node_claim_is_this_node: request
                    .extra(audit::NODE_NAME)
                    .map(|claim| claim == node_name),
            },
            credential: request.extra(audit::CREDENTIAL_ID).map(|id| Credential { id: id.into() }),
        }
    }
}

/// Whose address a request came from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Address {
    Pod,
    Node,
    Neither,
    Unknown,
}

impl Address {
    /// By the one address that a client cannot set. On the host's network the two are one: then it
    /// is the node's.
    fn of(request: &AuditRecord, pod: Option<&Pod>) -> Self {
        let (Some(ip), Some(pod)) = (request.source_ip(), pod) else { return Self::Unknown };
        let among = |list: &[Box<str>]| list.iter().any(|it| **it == *ip);
        match (among(&pod.host_ips), among(&pod.ips)) {
            (true, _) => Self::Node,
            (false, true) => Self::Pod,
            // A pod has no address before the kubelet reports one.
            (false, false) if pod.ips.is_empty() || pod.host_ips.is_empty() => Self::Unknown,
            (false, false) => Self::Neither,
        }
    }

    const fn as_str(self) -> &'static str {
        match self {
            Self::Pod => "pod",
            Self::Node => "node",
            Self::Neither => "neither",
            Self::Unknown => "unknown",
        }
    }
}

impl Initiator {
    fn of(session: &AuditRecord, open: &TokenOpen) -> Self {
        let before = (open.wall - session.request_received_timestamp).0 / 1_000_000;
        let object = session.object_ref.as_ref();
        let kind = object.and_then(|object| object.subresource.clone()).unwrap_or_default();
        Self {
            user: session.user.username.clone(),
            acting_as: session.impersonated_user.as_ref().map(|user| user.username.clone()),
            groups: session.user.groups.clone(),
            address: session.source_ip().map(str::to_owned),
            user_agent: session.user_agent.as_deref().map(|agent| redact(agent).into_owned()),
            credential_id: session.extra(audit::CREDENTIAL_ID).map(str::to_owned),
            uri: redact(&session.request_uri).into_owned(),
            start: session.request_received_timestamp,
            why: format!("asked for {kind} in this pod {before} s before the open"),
            kind,
        }
    }
}

impl RequestLine {
    fn of(record: &AuditRecord) -> Self {
        let object = record.object_ref.as_ref();
        Self {
            time: record.request_received_timestamp,
            verb: record.verb.clone(),
            resource: resource(record),
            namespace: object.and_then(|object| object.namespace.clone()),
            name: object.and_then(|object| object.name.clone()),
            code: record.response_status.as_ref().and_then(|status| status.code),
            decision: record.decision().map(str::to_owned),
            user_agent: record.user_agent.as_deref().map(|agent| redact(agent).into_owned()),
        }
    }
}

/// Resource with subresource; the path for non-resource requests.
fn resource(record: &AuditRecord) -> String {
    let object = record.object_ref.as_ref();
    match object.and_then(|object| object.resource.as_deref().map(|resource| (object, resource))) {
        Some((object, resource)) => match &object.subresource {
            Some(subresource) => format!("{resource}/{subresource}"),
            None => resource.to_owned(),
        },
        None => {
            let path = record.request_uri.split('?').next().unwrap_or_default();
            redact(path).into_owned()
        }
    }
}

/// What a request asked for, as the end of a sentence.
pub fn what(record: &AuditRecord) -> String {
    let object = record.object_ref.as_ref();
    let mut text = format!("{} {}", record.verb, resource(record));
    if let Some(name) = object.and_then(|object| object.name.as_deref()) {
        text.push(' ');
        text.push_str(name);
    }
    if let Some(namespace) = object.and_then(|object| object.namespace.as_deref()) {
        text.push_str(" in namespace ");
        text.push_str(namespace);
    }
    text
}

/// ECS `event.outcome` of a request.
pub fn outcome(record: &AuditRecord) -> &'static str {
    match (record.decision(), record.response_status.as_ref().and_then(|status| status.code)) {
        (Some("forbid"), _) | (_, Some(400..)) => "failure",
        (Some("allow"), _) | (_, Some(_)) => "success",
        (_, None) => "unknown",
    }
}

/// What speaks for and against, as sentences.
pub fn reasons(
    open: &TokenOpen,
    request: &AuditRecord,
    node_name: &str,
    pod: Option<&Pod>,
) -> Vec<String> {
    let mut reasons = Vec::new();
    reasons.push(
        match open.grade {
            Grade::Outside => "the opener runs outside the pod that the token belongs to",
            Grade::Interactive => {
                "the opener's controlling terminal is its standard input and standard error"
            }
            Grade::Terminal => {
                "the opener has a controlling terminal, with standard input or error elsewhere"
            }
            Grade::Exec => "the opener entered the container after its start",
            Grade::Workload => "the opener belongs to the container's own process tree",
        }
        .to_owned(),
    );
    if open.file == TokenFile::CaCert {
        reasons.push("only the CA certificate was opened, which is public".to_owned());
    }
    reasons.push("the request's token is bound to this pod's uid".to_owned());
    if let Some(claim) = request.extra(audit::NODE_NAME).filter(|claim| *claim != node_name) {
        reasons.push(format!("the token's node claim names {claim}, this node is {node_name}"));
    }
    let from = match Address::of(request, pod) {
        Address::Pod => "the request came from the pod's own address",
        Address::Node => "the request came from the node's address",
        Address::Neither => "the request came from neither the pod's nor the node's address",
        Address::Unknown => return reasons,
    };
    reasons.push(from.to_owned());
    reasons
}

/// Denies all traffic of pods that are marked; JSON, so that it fits into one line.
const QUARANTINE: &str = concat!(
    r#"{"apiVersion":"networking.k8s.io/v1","kind":"NetworkPolicy","#,
    r#""metadata":{"name":"tokentrail-quarantine"},"spec":{"podSelector":{"matchLabels":"#,
    r#"{"tokentrail.io/quarantine":"true"}},"policyTypes":["Ingress","Egress"]}}"#
);

/// Commands that contain the incident, those that keep evidence first.
pub fn containment(namespace: Option<&str>, pod_name: Option<&str>) -> Vec<ContainmentStep> {
    let (Some(namespace), Some(pod_name)) = (namespace, pod_name) else { return Vec::new() };
    // A NUL cannot be quoted for any shell; no Kubernetes name has one.
    let (Ok(namespace), Ok(pod)) = (shlex::try_quote(namespace), shlex::try_quote(pod_name)) else {
        return Vec::new();
    };
    let step = |note: &str, command: String| ContainmentStep { note: note.into(), command };
    vec![
        step(
            "mark the pod; takes no effect by itself, but selectors and network policies can use it",
            format!(
                "kubectl -n {namespace} label pod {pod} tokentrail.io/quarantine=true --overwrite"
            ),
        ),
        step(
            "cut the marked pod's traffic where the cluster's network plugin enforces policies; \
             existing connections may live on",
            format!("kubectl -n {namespace} apply -f - <<<'{QUARANTINE}'"),
        ),
        step(
            "delete the pod: its bound tokens stop working within about a minute; evidence in it is \
             lost, and neither tokens minted with its rights nor objects created with them are revoked",
            format!("kubectl -n {namespace} delete pod {pod}"),
        ),
    ]
}
