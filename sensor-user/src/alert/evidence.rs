//! What an analyst would look up next, taken from the requests of an incident: what the service
//! account may do, which requests followed, whether they came from where they should, and how to
//! contain it.

use schemars::JsonSchema;
use serde::Serialize;

use crate::{
    attribution::{Grade, TokenFile, TokenOpen},
    audit::{self, AuditRecord},
    correlation::{Finding, Listed},
    object_name::is_object_name,
    redact::redact,
    rules::{RequestKind, address::Address, catalogue::RuleId},
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
    /// Where the request came from.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub origin: Option<OriginOfRequest>,
    /// The credential that was used, or minted.
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
    /// Whether the workload itself makes such requests: `own`, `new` or `unknown`.
    pub request: &'static str,
}

/// `tokentrail.evidence.origin`
#[derive(Debug, Serialize, JsonSchema)]
pub struct OriginOfRequest {
    /// Whether the address is the pod's: `pod`, `node`, `neither` or `unknown`.
    pub address: &'static str,
    /// Whether the token's node claim names this node; absent where tokens carry none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub node_claim_is_this_node: Option<bool>,
}

/// `tokentrail.evidence.credential`
#[derive(Debug, Serialize, JsonSchema)]
pub struct Credential {
    /// `JTI=<uuid>`
    pub id: String,
    /// When it was minted, if that was seen.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub issued: Option<Micros>,
    /// The user that it was minted by, if that was seen.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub issued_to: Option<String>,
}

/// A way to contain the incident.
#[derive(Debug, Serialize, JsonSchema)]
pub struct ContainmentStep {
    /// What it does, and what it does not.
    pub note: &'static str,
    /// The command, every value quoted for a shell.
    pub command: String,
}

impl Evidence {
    /// Everything known about an incident now.
    pub fn of(finding: &Finding, node_name: &str) -> Self {
        let request = finding.request.as_ref();
        let initiators = finding.open.iter().flat_map(|open| {
            finding.initiators.iter().map(|session| Initiator::of(session, &open.open))
        });
        Self {
            initiator: initiators.collect(),
            service_account: request.and_then(|request| ServiceAccount::of(&request.record)),
            requests: finding.requests.iter().map(RequestLine::of).collect(),
            origin: request.map(|request| OriginOfRequest {
                address: request.address.as_str(),
                node_claim_is_this_node: request
                    .record
                    .extra(audit::NODE_NAME)
                    .map(|claim| claim == node_name),
            }),
            credential: request.and_then(|request| Credential::of(&request.record)),
        }
    }
}

impl ServiceAccount {
    /// The account that a token was minted for, else the one that asked.
    fn of(record: &AuditRecord) -> Option<Self> {
        let (namespace, name) = record.minted_for().or_else(|| record.service_account())?;
        let reason = record.annotations.get("authorization.k8s.io/reason");
        Some(Self {
            namespace: namespace.into(),
            name: name.into(),
            rbac_reason: reason
                .filter(|reason| !reason.is_empty())
                .map(|reason| redact(reason).into_owned()),
        })
    }
}

impl Credential {
    /// The one that was minted, else the one that was used.
    fn of(record: &AuditRecord) -> Option<Self> {
        if let Some(id) = record.annotations.get(audit::ISSUED_CREDENTIAL_ID) {
            return Some(Self {
                id: id.clone(),
                issued: Some(record.request_received_timestamp),
                issued_to: Some(record.user.username.clone()),
            });
        }
        let id = record.extra(audit::CREDENTIAL_ID)?;
        Some(Self { id: id.into(), issued: None, issued_to: None })
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
    fn of(listed: &Listed) -> Self {
        let asked = &*listed.asked;
        Self {
            time: listed.received,
            verb: asked.verb.to_string(),
            resource: redact(&asked.resource).into_owned(),
            namespace: asked.namespace.as_deref().map(str::to_owned),
            name: asked.name.as_deref().map(str::to_owned),
            code: listed.code,
            decision: asked.decision.as_deref().map(str::to_owned),
            user_agent: asked.user_agent.as_deref().map(|agent| redact(agent).into_owned()),
            request: listed.request.as_str(),
        }
    }
}

/// What a request asked for, as the end of a sentence.
pub fn what(record: &AuditRecord) -> String {
    let object = record.object_ref.as_ref();
    let mut text = format!("{} {}", record.verb, redact(&record.resource()));
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
    match record.allowed() {
        Some(true) => "success",
        Some(false) => "failure",
        None => "unknown",
    }
}

/// The node that a token is bound to, if that is another than this one.
fn other_node<'a>(record: &'a AuditRecord, node_name: &str) -> Option<&'a str> {
    record.extra(audit::NODE_NAME).filter(|claim| *claim != node_name)
}

/// How sure.
pub fn confidence(finding: &Finding, node_name: &str) -> &'static str {
    match &finding.request {
        Some(request) if finding.rule == RuleId::TokenAccessThenApiRequest => {
            match request.request {
                RequestKind::Own => "low",
                _ if request.by_address => "low",
                _ if other_node(&request.record, node_name).is_some() => "low",
                RequestKind::Unknown => "medium",
                RequestKind::New => "high",
            }
        }
        Some(_) | None => "high",
    }
}

/// What speaks for and against, as sentences.
pub fn reasons(finding: &Finding, node_name: &str) -> Vec<String> {
    let mut reasons = Vec::new();
    if let Some(open) = &finding.open {
        reasons.extend(of_open(&open.open).into_iter().map(str::to_owned));
    }
    if finding.early {
        let why = "so many tokens were opened that this read was let go early: it is not known whether \
                   a request followed";
        reasons.push(why.to_owned());
    }
    if finding.crowded {
        let why = "so many incidents like it began in one hour that this one is for all that follow: its \
                   summary alone tells of them";
        reasons.push(why.to_owned());
    }
    let Some(request) = &finding.request else { return reasons };
    let record = &request.record;
    if finding.rule == RuleId::TokenAccessThenApiRequest {
        reasons.push(
            if request.by_address {
                "the request's token names no pod; its service account and address are this pod's"
            } else {
                "the request's token is bound to this pod's uid"
            }
            .to_owned(),
        );
        let habit = match request.request {
            RequestKind::Own => "the workload made requests of this kind before the open",
            RequestKind::New => "the workload was not seen to make such requests before the open",
            RequestKind::Unknown => {
                "whether the workload makes such requests itself was not watched for long enough"
            }
        };
        reasons.push(habit.to_owned());
    }
    if let Some(claim) = other_node(record, node_name) {
        reasons.push(format!("the token's node claim names {claim}, this node is {node_name}"));
    }
    let from = match request.address {
        Address::Pod => "the request came from the pod's own address",
        Address::Node => "the request came from the node's address",
        Address::Neither => "the request came from neither the pod's nor the node's address",
        Address::Unknown => return reasons,
    };
    reasons.push(from.to_owned());
    reasons
}

fn of_open(open: &TokenOpen) -> Vec<&'static str> {
    let grade = match open.grade {
        Grade::Outside => "the opener runs outside the pod that the token belongs to",
        Grade::Interactive => {
            "the opener's controlling terminal is its standard input and standard error"
        }
        Grade::Terminal => {
            "the opener has a controlling terminal, with standard input or error elsewhere"
        }
        Grade::Exec => "the opener entered the container after its start",
        Grade::Foreign => {
            "the opener belongs to the container's own process tree, but its executable was not \
             seen to read the token while the workload was learned"
        }
        Grade::Workload => "the opener belongs to the container's own process tree",
    };
    let public = "only the CA certificate was opened, which is public";
    std::iter::once(grade).chain((open.file == TokenFile::CaCert).then_some(public)).collect()
}

/// Denies all traffic of pods that are marked; JSON, so that it fits into one line.
const QUARANTINE: &str = concat!(
    r#"{"apiVersion":"networking.k8s.io/v1","kind":"NetworkPolicy","#,
    r#""metadata":{"name":"tokentrail-quarantine"},"spec":{"podSelector":{"matchLabels":"#,
    r#"{"tokentrail.io/quarantine":"true"}},"policyTypes":["Ingress","Egress"]}}"#
);

/// Commands about an account that a token was minted for: nothing revokes a token alone.
pub fn containment_of_account(namespace: &str, name: &str) -> Vec<ContainmentStep> {
    if !is_object_name(namespace) || !is_object_name(name) {
        return Vec::new();
    }
    let step = |note: &'static str, command: String| ContainmentStep { note, command };
    vec![
        step(
            "see what the token's holder may do",
            format!("kubectl auth can-i --list --as=system:serviceaccount:{namespace}:{name}"),
        ),
        step(
            "delete the service account: all its tokens stop working, those of running pods as well; \
             what was created with them stays",
            format!("kubectl -n {namespace} delete serviceaccount {name}"),
        ),
    ]
}

/// Commands that contain the incident, those that keep evidence first.
pub fn containment(namespace: Option<&str>, pod_name: Option<&str>) -> Vec<ContainmentStep> {
    let (Some(namespace), Some(pod)) = (namespace, pod_name) else { return Vec::new() };
    if !is_object_name(namespace) || !is_object_name(pod) {
        return Vec::new();
    }
    let step = |note: &'static str, command: String| ContainmentStep { note, command };
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
