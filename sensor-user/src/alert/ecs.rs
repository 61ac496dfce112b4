//! The alert document: Elastic Common Schema names, our own fields under `tokentrail.`.
//!
//! The structures below are the document's definition and nothing else: they are serialised into
//! alerts, and `tokentrail schema` prints their JSON Schema. `document` fills them.

use schemars::JsonSchema;
use serde::Serialize;

use crate::{
    alert::evidence::{ContainmentStep, Evidence},
    attribution::Grade,
    audit::AuditRecord,
    correlation::Kind,
    time::Micros,
};

/// One document, one line of the alert log.
#[derive(Debug, Serialize, JsonSchema)]
#[schemars(title = "tokentrail alert")]
pub struct Document {
    /// Received time of the completing request; of the open, where there is none.
    #[serde(rename = "@timestamp")]
    pub timestamp: Micros,
    /// One English sentence.
    pub message: String,
    /// ECS version.
    pub ecs: Ecs,
    /// Elastic data stream.
    pub data_stream: DataStream,
    /// Fixed words to search for.
    pub tags: Vec<&'static str>,
    /// The event.
    pub event: Event,
    /// The rule that made it.
    pub rule: RuleFields,
    /// MITRE ATT&CK, a list entry a tactic.
    pub threat: Vec<Threat>,
    /// This program.
    pub agent: Agent,
    /// The node.
    pub host: Host,
    /// Cluster, namespace, pod.
    pub orchestrator: Orchestrator,
    /// The container that the opener ran in.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub container: Option<Container>,
    /// The process that opened the token.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub process: Option<Process>,
    /// The file that it opened.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub file: Option<File>,
    /// The audit user.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub user: Option<AuditUser>,
    /// Who opened the session that the token was read in, if that is known.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub client: Option<Client>,
    /// Where the request came from.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub source: Option<Source>,
    /// What the client calls itself.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub user_agent: Option<UserAgent>,
    /// Everything to pivot on.
    pub related: Related,
    /// The completing audit event.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub kubernetes: Option<Kubernetes>,
    /// Our own fields.
    pub tokentrail: Tokentrail,
}

/// `ecs`
#[derive(Debug, Serialize, JsonSchema)]
pub struct Ecs {
    /// Version of the Elastic Common Schema.
    pub version: &'static str,
}

/// `data_stream`
#[derive(Debug, Serialize, JsonSchema)]
pub struct DataStream {
    /// Always `logs`.
    #[serde(rename = "type")]
    pub kind: &'static str,
    /// Always `tokentrail.alerts`.
    pub dataset: &'static str,
    /// Always `default`.
    pub namespace: &'static str,
}

/// `event`
#[derive(Debug, Serialize, JsonSchema)]
pub struct Event {
    /// `alert`, or `event` for an incident's summary.
    pub kind: &'static str,
    /// Always `tokentrail`.
    pub module: &'static str,
    /// Always `tokentrail.alerts`.
    pub dataset: &'static str,
    /// ECS categories.
    pub category: Vec<&'static str>,
    /// ECS types.
    #[serde(rename = "type")]
    pub types: Vec<&'static str>,
    /// The rule's name.
    pub action: &'static str,
    /// The document's id: the same finding has the same id wherever it is made.
    pub id: String,
    /// When this document was made.
    pub created: Micros,
    /// When the token was opened; when the request was received, where nothing was.
    pub start: Micros,
    /// When the request was received; when the token was opened, where there is none.
    pub end: Micros,
    /// 21, 47, 73 or 99.
    pub severity: u8,
    /// 21, 47, 73 or 99.
    pub risk_score: u8,
    /// Whether the API server granted the request.
    pub outcome: &'static str,
    /// Why this is told.
    pub reason: String,
}

/// `rule`
#[derive(Debug, Serialize, JsonSchema)]
pub struct RuleFields {
    /// Its name.
    pub id: &'static str,
    /// Its name.
    pub name: &'static str,
    /// What it looks for.
    pub description: &'static str,
    /// Where to read more.
    pub reference: &'static str,
    /// Version of its conditions.
    pub version: &'static str,
}

/// `threat`
#[derive(Debug, Serialize, JsonSchema)]
pub struct Threat {
    /// Always `MITRE ATT&CK`.
    pub framework: &'static str,
    /// The tactic.
    pub tactic: IdName,
    /// Its techniques.
    pub technique: Vec<ThreatTechnique>,
}

/// An id with its name.
#[derive(Debug, Serialize, JsonSchema)]
pub struct IdName {
    /// Such as `TA0006`.
    pub id: &'static str,
    /// Such as `Credential Access`.
    pub name: &'static str,
}

/// `threat.technique`
#[derive(Debug, Serialize, JsonSchema)]
pub struct ThreatTechnique {
    /// Such as `T1552`.
    pub id: &'static str,
    /// Such as `Unsecured Credentials`.
    pub name: &'static str,
    /// The sub-technique that applies.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub subtechnique: Vec<IdName>,
}

/// `agent`
#[derive(Debug, Serialize, JsonSchema)]
pub struct Agent {
    /// Always `tokentrail`.
    #[serde(rename = "type")]
    pub kind: &'static str,
    /// Node name.
    pub name: String,
    /// Version of this program.
    pub version: &'static str,
    /// Random id of this installation.
    pub id: String,
}

/// `host`
#[derive(Debug, Serialize, JsonSchema)]
pub struct Host {
    /// Node name.
    pub name: String,
    /// Machine id.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub id: Option<String>,
    /// Its addresses, where the Kubernetes API told.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub ip: Vec<String>,
    /// Always Linux.
    pub os: Os,
}

/// `host.os`
#[derive(Debug, Serialize, JsonSchema)]
pub struct Os {
    /// Always `linux`.
    #[serde(rename = "type")]
    pub kind: &'static str,
}

/// `orchestrator`
#[derive(Debug, Serialize, JsonSchema)]
pub struct Orchestrator {
    /// Always `kubernetes`.
    #[serde(rename = "type")]
    pub kind: &'static str,
    /// The cluster, as configured.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cluster: Option<Cluster>,
    /// The pod's namespace: the one of its service account.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub namespace: Option<String>,
    /// The pod whose token was opened or used.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub resource: Option<Resource>,
}

/// `orchestrator.cluster`
#[derive(Debug, Serialize, JsonSchema)]
pub struct Cluster {
    /// As configured.
    pub name: String,
}

/// `orchestrator.resource`
#[derive(Debug, Serialize, JsonSchema)]
pub struct Resource {
    /// Always `pod`.
    #[serde(rename = "type")]
    pub kind: &'static str,
    /// The pod's uid.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub id: Option<String>,
    /// The pod's name, as its token carries it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// Its addresses.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub ip: Vec<String>,
    /// What made it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub parent: Option<Parent>,
    /// Those of its labels that were asked for, `key:value`.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub label: Vec<String>,
}

/// `orchestrator.resource.parent`
#[derive(Debug, Serialize, JsonSchema)]
pub struct Parent {
    /// Kind of the controller, such as `ReplicaSet`.
    #[serde(rename = "type")]
    pub kind: String,
}

/// `container`
#[derive(Debug, Serialize, JsonSchema)]
pub struct Container {
    /// Without a `runtime://` prefix.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub id: Option<String>,
    /// Its name in the pod's spec.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// `containerd`, `cri-o` or `docker`, where the cgroup's name tells.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub runtime: Option<String>,
    /// The image it runs.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub image: Option<Image>,
}

/// `container.image`
#[derive(Debug, Serialize, JsonSchema)]
pub struct Image {
    /// As the pod's spec names it, without its tag.
    pub name: String,
    /// Its tag.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub tag: Vec<String>,
    /// Its digest.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hash: Option<ImageHash>,
}

/// `container.image.hash`
#[derive(Debug, Serialize, JsonSchema)]
pub struct ImageHash {
    /// `sha256:…`
    pub all: Vec<String>,
}

/// `process`
#[derive(Debug, Serialize, JsonSchema)]
pub struct Process {
    /// Process id on the host.
    pub pid: u32,
    /// Id and start time: unique while the machine runs.
    pub entity_id: String,
    /// Name of the group leader.
    pub name: String,
    /// Executable, as far as its last path components tell.
    pub executable: String,
    /// Arguments, cut at 256 bytes.
    pub args: Vec<String>,
    /// Arguments in one line.
    pub command_line: String,
    /// When the process started.
    pub start: Micros,
    /// ECS: the controlling terminal is descriptor 0 and descriptor 2.
    pub interactive: bool,
    /// The controlling terminal.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tty: Option<Tty>,
    /// Real user id.
    pub user: UserId,
    /// The parent.
    pub parent: ProcessId,
    /// The session's first process in the container.
    pub entry_leader: EntryLeader,
}

/// `process.tty`
#[derive(Debug, Serialize, JsonSchema)]
pub struct Tty {
    /// Its device.
    pub char_device: CharDevice,
}

/// A character device.
#[derive(Debug, Serialize, JsonSchema)]
pub struct CharDevice {
    /// Major number.
    pub major: u32,
    /// Minor number.
    pub minor: u32,
}

/// A user id as text, as ECS wants it.
#[derive(Debug, Serialize, JsonSchema)]
pub struct UserId {
    /// Numeric id.
    pub id: String,
}

/// A process known by its id alone.
#[derive(Debug, Serialize, JsonSchema)]
pub struct ProcessId {
    /// Process id on the host.
    pub pid: u32,
}

/// `process.entry_leader`
#[derive(Debug, Serialize, JsonSchema)]
pub struct EntryLeader {
    /// Process id on the host.
    pub pid: u32,
    /// Id and start time.
    pub entity_id: String,
    /// Its name.
    pub name: String,
    /// How it came in: `init` for the container's main process, `container` for an exec session.
    pub entry_meta: EntryMeta,
}

/// `process.entry_leader.entry_meta`
#[derive(Debug, Serialize, JsonSchema)]
pub struct EntryMeta {
    /// `init`, `container`, or `unknown`.
    #[serde(rename = "type")]
    pub kind: &'static str,
}

/// `file`
#[derive(Debug, Serialize, JsonSchema)]
pub struct File {
    /// Canonical path, `/var/run/secrets/kubernetes.io/serviceaccount/…`.
    pub path: String,
    /// Name.
    pub name: String,
    /// Inode, as text.
    pub inode: String,
}

/// `user`
#[derive(Debug, Serialize, JsonSchema)]
pub struct AuditUser {
    /// `system:serviceaccount:<namespace>:<name>`, or who minted a token.
    pub name: String,
    /// The account that a token was minted for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub target: Option<UserName>,
}

/// A user's name.
#[derive(Debug, Serialize, JsonSchema)]
pub struct UserName {
    /// `system:serviceaccount:<namespace>:<name>`
    pub name: String,
}

/// `client`
#[derive(Debug, Serialize, JsonSchema)]
pub struct Client {
    /// The best candidate of `tokentrail.evidence.initiator`.
    pub user: UserName,
}

/// `source`
#[derive(Debug, Serialize, JsonSchema)]
pub struct Source {
    /// The address that the API server saw.
    pub ip: String,
}

/// `user_agent`
#[derive(Debug, Serialize, JsonSchema)]
pub struct UserAgent {
    /// As sent.
    pub original: String,
}

/// `related`
#[derive(Debug, Serialize, JsonSchema)]
pub struct Related {
    /// User names.
    pub user: Vec<String>,
    /// Addresses.
    pub ip: Vec<String>,
    /// Host names.
    pub hosts: Vec<String>,
}

/// `kubernetes`
#[derive(Debug, Serialize, JsonSchema)]
pub struct Kubernetes {
    /// The completing event under its original names, annotation keys with `_` for `.`.
    pub audit: AuditRecord,
}

/// `tokentrail`
#[derive(Debug, Serialize, JsonSchema)]
pub struct Tokentrail {
    /// What this document is.
    pub kind: Kind,
    /// In what manner the token was opened.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub grade: Option<Grade>,
    /// Whether the session began with the container's main process.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub native: Option<bool>,
    /// How sure: `high`, `medium` or `low`.
    pub confidence: &'static str,
    /// What speaks for and against, as sentences.
    pub reasons: Vec<String>,
    /// Whether the workload itself makes such requests: `own`, `new` or `unknown`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub request: Option<&'static str>,
    /// The file as the kernel saw it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub file: Option<RawFile>,
    /// The volume, where it is known.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub volume: Option<String>,
    /// The pod's side of it, where the Kubernetes API told.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pod: Option<PodFields>,
    /// The incident.
    pub incident: IncidentFields,
    /// What an analyst would look up next.
    pub evidence: Evidence,
    /// How to contain it.
    pub response: Vec<ContainmentStep>,
    /// From reading the audit line to writing this document, microseconds; absent where something
    /// else than a line completed it (an open that came late, a restart, an incident's end).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub latency_us: Option<u64>,
    /// What saw it.
    pub sensor: Sensor,
}

/// `tokentrail.file`
#[derive(Debug, Serialize, JsonSchema)]
pub struct RawFile {
    /// `d_path`, or as much of it as the route can tell.
    pub raw_path: String,
}

/// `tokentrail.pod`
#[derive(Debug, Serialize, JsonSchema)]
pub struct PodFields {
    /// Its service account.
    pub service_account: String,
    /// Name of the controller that made it; its kind is `orchestrator.resource.parent.type`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub owner: Option<String>,
    /// Whether it uses the node's network.
    pub host_network: bool,
    /// What the opener's container is to its pod: `main`, `init`, `sidecar` or `ephemeral`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub container: Option<&'static str>,
}

/// `tokentrail.incident`
#[derive(Debug, Serialize, JsonSchema)]
pub struct IncidentFields {
    /// The same in every document about it.
    pub id: String,
    /// `open` or `ended`.
    pub state: &'static str,
    /// Incidents of other rules about the same.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub related: Vec<String>,
    /// Pods whose tokens were opened, and how often; where there may be several.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub victims: Vec<Victim>,
    /// Opens so far.
    pub opens: u64,
    /// Requests so far.
    pub requests: u64,
    /// First open or request.
    pub first: Micros,
    /// Last open or request.
    pub last: Micros,
}

/// `tokentrail.incident.victims`
#[derive(Debug, Serialize, JsonSchema)]
pub struct Victim {
    /// The pod's uid; empty where that is not known.
    pub id: String,
    /// Namespace, where the Kubernetes API told.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub namespace: Option<String>,
    /// Name, where the Kubernetes API told.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// Opens of its token.
    pub opens: u64,
}

/// `tokentrail.sensor`
#[derive(Debug, Serialize, JsonSchema)]
pub struct Sensor {
    /// Version of this program.
    pub version: &'static str,
    /// Hook route: `fexit`, `kprobe`, `exit`.
    pub route: String,
    /// What was missing when this was seen.
    pub degraded: Vec<String>,
}
