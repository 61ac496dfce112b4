//! The alert document: Elastic Common Schema names, our own fields under `tokentrail.`.
//!
//! The structures below are the document's definition: they are serialised into alerts and
//! `tokentrail schema` prints their JSON Schema. Whatever carries text that a user chose is
//! redacted here, on its way out.

use std::{collections::BTreeMap, sync::Arc, time::Instant};

use schemars::JsonSchema;
use serde::Serialize;

use crate::{
    alert::evidence::{self, ContainmentStep, Evidence},
    attribution::{Grade, TokenOpen},
    audit::AuditRecord,
    correlation,
    redact::redact,
    rules::{self, Band, Rule},
    time::Micros,
};

/// What every alert of this process says about the process.
#[derive(Clone, Debug)]
pub struct Origin {
    /// `orchestrator.cluster.name`, as configured.
    pub cluster_name: Option<String>,
    /// Node name; `host.name`.
    pub node_name: String,
    /// `/etc/machine-id`, if readable; `host.id`.
    pub host_id: Option<String>,
    /// Random id of this installation, kept in the state directory; `agent.id`.
    pub agent_id: String,
    /// Hook route in use, `none` without a sensor.
    pub route: String,
    /// What this process cannot see or do at the moment.
    pub degraded: Vec<String>,
}

/// Whether a document opens an incident, or closes it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// An incident began.
    Alert,
    /// An incident ended.
    Incident,
}

/// One document, one line of the alert log.
#[derive(Debug, Serialize, JsonSchema)]
#[schemars(title = "tokentrail alert")]
pub struct Document {
    /// Received time of the completing request.
    #[serde(rename = "@timestamp")]
    pub timestamp: Micros,
    /// One English sentence.
    pub message: String,
    /// ECS version.
    pub ecs: Ecs,
    /// Elastic data stream.
    pub data_stream: DataStream,
    /// Fixed words to search for.
    pub tags: Vec<String>,
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
    pub process: Process,
    /// The file that it opened.
    pub file: File,
    /// The audit user.
    pub user: UserName,
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
    pub kubernetes: Kubernetes,
    /// Our own fields.
    pub tokentrail: Tokentrail,
}

/// `ecs`
#[derive(Debug, Serialize, JsonSchema)]
pub struct Ecs {
    /// Version of the Elastic Common Schema.
    pub version: String,
}

/// `data_stream`
#[derive(Debug, Serialize, JsonSchema)]
pub struct DataStream {
    /// Always `logs`.
    #[serde(rename = "type")]
    pub kind: String,
    /// Always `tokentrail.alerts`.
    pub dataset: String,
    /// Always `default`.
    pub namespace: String,
}

/// `event`
#[derive(Debug, Serialize, JsonSchema)]
pub struct Event {
    /// `alert`, or `event` for an incident's summary.
    pub kind: String,
    /// Always `tokentrail`.
    pub module: String,
    /// Always `tokentrail.alerts`.
    pub dataset: String,
    /// ECS categories.
    pub category: Vec<String>,
    /// ECS types.
    #[serde(rename = "type")]
    pub types: Vec<String>,
    /// The rule's name.
    pub action: String,
    /// The document's id: the same finding has the same id wherever it is made.
    pub id: String,
    /// When this document was made.
    pub created: Micros,
    /// When the token was opened.
    pub start: Micros,
    /// When the request was received.
    pub end: Micros,
    /// 21, 47, 73 or 99.
    pub severity: u8,
    /// 21, 47, 73 or 99.
    pub risk_score: u8,
    /// Whether the API server granted the request.
    pub outcome: String,
    /// Why this is told.
    pub reason: String,
}

/// `rule`
#[derive(Debug, Serialize, JsonSchema)]
pub struct RuleFields {
    /// Its name.
    pub id: String,
    /// Its name.
    pub name: String,
    /// What it looks for.
    pub description: String,
    /// Where to read more.
    pub reference: String,
    /// Version of its conditions.
    pub version: String,
}

/// `threat`
#[derive(Debug, Serialize, JsonSchema)]
pub struct Threat {
    /// Always `MITRE ATT&CK`.
    pub framework: String,
    /// The tactic.
    pub tactic: IdName,
    /// Its techniques.
    pub technique: Vec<ThreatTechnique>,
}

/// An id with its name.
#[derive(Debug, Serialize, JsonSchema)]
pub struct IdName {
    /// Such as `TA0006`.
    pub id: String,
    /// Such as `Credential Access`.
    pub name: String,
}

/// `threat.technique`
#[derive(Debug, Serialize, JsonSchema)]
pub struct ThreatTechnique {
    /// Such as `T1552`.
    pub id: String,
    /// Such as `Unsecured Credentials`.
    pub name: String,
    /// The sub-technique that applies.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub subtechnique: Vec<IdName>,
}

/// `agent`
#[derive(Debug, Serialize, JsonSchema)]
pub struct Agent {
    /// Always `tokentrail`.
    #[serde(rename = "type")]
    pub kind: String,
    /// Node name.
    pub name: String,
    /// Version of this program.
    pub version: String,
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
    /// Always Linux.
    pub os: Os,
}

/// `host.os`
#[derive(Debug, Serialize, JsonSchema)]
pub struct Os {
    /// Always `linux`.
    #[serde(rename = "type")]
    pub kind: String,
}

/// `orchestrator`
#[derive(Debug, Serialize, JsonSchema)]
pub struct Orchestrator {
    /// Always `kubernetes`.
    #[serde(rename = "type")]
    pub kind: String,
    /// The cluster, as configured.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cluster: Option<Cluster>,
    /// The pod's namespace: the one of its service account.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub namespace: Option<String>,
    /// The pod whose token was opened.
    pub resource: Resource,
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
    pub kind: String,
    /// The pod's uid.
    pub id: String,
    /// The pod's name, as its token carries it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
}

/// `container`
#[derive(Debug, Serialize, JsonSchema)]
pub struct Container {
    /// Without a `runtime://` prefix.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub id: Option<String>,
    /// `containerd`, `cri-o` or `docker`, where the cgroup's name tells.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub runtime: Option<String>,
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
    /// Nanoseconds on the boot clock at which the process started.
    pub start_boottime_ns: u64,
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
    pub kind: String,
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
    pub grade: Grade,
    /// Whether the session began with the container's main process.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub native: Option<bool>,
    /// How sure: `high`, `medium` or `low`.
    pub confidence: String,
    /// What speaks for and against, as sentences.
    pub reasons: Vec<String>,
    /// Whether the workload itself makes such requests: `own`, `new` or `unknown`.
    pub request: String,
    /// The file as the kernel saw it.
    pub file: RawFile,
    /// The volume, where it is known.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub volume: Option<String>,
    /// The incident.
    pub incident: IncidentFields,
    /// What an analyst would look up next.
    pub evidence: Evidence,
    /// How to contain it.
    pub response: Vec<ContainmentStep>,
    /// From reading the audit line to writing this document, microseconds.
    pub latency_us: u64,
    /// What saw it.
    pub sensor: Sensor,
}

/// `tokentrail.file`
#[derive(Debug, Serialize, JsonSchema)]
pub struct RawFile {
    /// `d_path`, or as much of it as the route can tell.
    pub raw_path: String,
}

/// `tokentrail.incident`
#[derive(Debug, Serialize, JsonSchema)]
pub struct IncidentFields {
    /// The same in every document about it.
    pub id: String,
    /// `open` or `ended`.
    pub state: String,
    /// Opens so far.
    pub opens: u64,
    /// Requests so far.
    pub requests: u64,
    /// First open or request.
    pub first: Micros,
    /// Last open or request.
    pub last: Micros,
}

/// `tokentrail.sensor`
#[derive(Debug, Serialize, JsonSchema)]
pub struct Sensor {
    /// Version of this program.
    pub version: String,
    /// Hook route: `fexit`, `kprobe`, `exit`.
    pub route: String,
    /// What was missing when this was seen.
    pub degraded: Vec<String>,
}

/// Makes the document of a finding. `read_at` is when the completing audit line was read, if it
/// was just now; `now` is the wall clock.
pub fn document(
    finding: &correlation::Finding,
    origin: &Origin,
    read_at: Option<Instant>,
    now: Micros,
) -> Document {
    let (kind, alert) = match finding {
        correlation::Finding::Alert(alert) => (Kind::Alert, alert),
        correlation::Finding::Incident(alert) => (Kind::Incident, alert),
    };
    let rule = &rules::token_access::RULE;
    let (open, request) = (&*alert.open, &*alert.request);
    let (namespace, _) = request.service_account().unzip();
    let pod_uid = open.pod_uid.clone().unwrap_or_default();
    let pod_name = request.extra(crate::audit::POD_NAME);
    let mut ips: Vec<String> = Vec::new();
    for address in alert.requests.iter().flat_map(|request| &request.source_ips) {
        if !ips.contains(address) {
            ips.push(address.clone());
        }
    }
    let mut degraded = origin.degraded.clone();
    degraded.extend(open.degraded.iter().cloned());
    let message = message(kind, alert, namespace, pod_name);
    Document {
        timestamp: request.request_received_timestamp,
        ecs: Ecs { version: "8.17.0".into() },
        data_stream: DataStream {
            kind: "logs".into(),
            dataset: "tokentrail.alerts".into(),
            namespace: "default".into(),
        },
        tags: vec!["tokentrail".into(), "kubernetes".into(), rule.id.into()],
        event: Event {
            kind: match kind {
                Kind::Alert => "alert".into(),
                Kind::Incident => "event".into(),
            },
            module: "tokentrail".into(),
            dataset: "tokentrail.alerts".into(),
            category: vec!["file".into(), "process".into(), "api".into()],
            types: vec!["access".into()],
            action: rule.id.into(),
            id: alert.event_id.clone(),
            created: now,
            start: open.wall,
            end: request.request_received_timestamp,
            severity: alert.band.score(),
            risk_score: alert.band.score(),
            outcome: evidence::outcome(request).into(),
            reason: message.clone(),
        },
        message,
        rule: rule_fields(rule),
        threat: threats(rule),
        agent: Agent {
            kind: "tokentrail".into(),
            name: origin.node_name.clone(),
            version: env!("CARGO_PKG_VERSION").into(),
            id: origin.agent_id.clone(),
        },
        host: Host {
            name: origin.node_name.clone(),
            id: origin.host_id.clone(),
            os: Os { kind: "linux".into() },
        },
        orchestrator: Orchestrator {
            kind: "kubernetes".into(),
            cluster: origin.cluster_name.clone().map(|name| Cluster { name }),
            namespace: namespace.map(str::to_owned),
            resource: Resource {
                kind: "pod".into(),
                id: pod_uid.clone(),
                name: pod_name.map(str::to_owned),
            },
        },
        container: open.reader.as_ref().map(|reader| Container {
            id: reader.container_id.clone(),
            runtime: reader.runtime.clone(),
        }),
        process: process(open),
        file: File {
            name: open.path.rsplit('/').next().unwrap_or_default().into(),
            path: open.path.clone(),
            inode: open.inode.to_string(),
        },
        user: UserName { name: request.user.username.clone() },
        client: alert
            .initiators
            .first()
            .map(|session| Client { user: UserName { name: session.user.username.clone() } }),
        source: request.source_ip().map(|ip| Source { ip: ip.into() }),
        user_agent: request
            .user_agent
            .as_deref()
            .map(|agent| UserAgent { original: redact(agent).into_owned() }),
        related: Related {
            user: std::iter::once(request)
                .chain(alert.initiators.iter().map(|session| &**session))
                .map(|record| record.user.username.clone())
                .collect(),
            ip: ips,
            hosts: vec![origin.node_name.clone()],
        },
        tokentrail: Tokentrail {
            kind,
            grade: open.grade,
            native: open.native,
            confidence: "medium".into(),
            reasons: evidence::reasons(open, request, &origin.node_name),
            request: "unknown".into(),
            file: RawFile { raw_path: redact(&open.raw_path).into_owned() },
            volume: open.volume.as_ref().map(|volume| volume.name.clone()),
            incident: IncidentFields {
                id: alert.incident_id.clone(),
                state: match kind {
                    Kind::Alert => "open".into(),
                    Kind::Incident => "ended".into(),
                },
                opens: alert.open_count,
                requests: alert.request_count,
                first: alert.first,
                last: alert.last,
            },
            evidence: Evidence::of(alert, &origin.node_name),
            response: evidence::containment(namespace, pod_name),
            latency_us: read_at.map_or(0, |read_at| {
                u64::try_from(read_at.elapsed().as_micros()).unwrap_or(u64::MAX)
            }),
            sensor: Sensor {
                version: env!("CARGO_PKG_VERSION").into(),
                route: open.route.clone(),
                degraded,
            },
        },
        kubernetes: Kubernetes { audit: shown(&alert.request) },
    }
}

/// The one English sentence.
fn message(
    kind: Kind,
    alert: &correlation::Alert,
    namespace: Option<&str>,
    pod_name: Option<&str>,
) -> String {
    let (open, request) = (&alert.open, &alert.request);
    let pod = match (namespace, pod_name) {
        (Some(namespace), Some(name)) => format!("pod {namespace}/{name}"),
        _ => format!("pod {}", open.pod_uid.as_deref().unwrap_or("unknown")),
    };
    let file = open.path.rsplit('/').next().unwrap_or_default();
    let process = if open.comm.is_empty() { "a process" } else { &open.comm };
    let how = match open.grade {
        Grade::Outside => "from outside the pod",
        Grade::Interactive => "interactively",
        Grade::Terminal => "in a terminal session",
        Grade::Exec => "in an exec session",
        Grade::Workload => "as the workload",
    };
    let seconds = (request.request_received_timestamp - open.wall).0;
    #[expect(clippy::cast_precision_loss, reason = "seconds for people, two decimals")]
    let seconds = seconds as f64 / 1e6;
    let what = evidence::what(request);
    let answer = match evidence::outcome(request) {
        "success" => "was allowed to",
        "failure" => "was refused to",
        _ => "asked to",
    };
    let user = &request.user.username;
    match kind {
        Kind::Alert => format!(
            "{process} opened the {file} of {pod} {how}, and {seconds:.2} s later {user} {answer} {what}"
        ),
        Kind::Incident => format!(
            "the incident in {pod} has ended after {} open(s) of its token {how} and {} request(s) by {user}",
            alert.open_count, alert.request_count
        ),
    }
}

fn rule_fields(rule: &Rule) -> RuleFields {
    RuleFields {
        id: rule.id.into(),
        name: rule.id.into(),
        description: rule.description.into(),
        reference: rule.reference.into(),
        version: rule.version.into(),
    }
}

fn threats(rule: &Rule) -> Vec<Threat> {
    let pair = |id: &str, name: &str| IdName { id: id.into(), name: name.into() };
    let threats = rule.threat.iter().map(|tactic| Threat {
        framework: "MITRE ATT&CK".into(),
        tactic: pair(tactic.id, tactic.name),
        technique: tactic
            .techniques
            .iter()
            .map(|technique| ThreatTechnique {
                id: technique.id.into(),
                name: technique.name.into(),
                subtechnique: technique
                    .subtechnique
                    .iter()
                    .map(|(id, name)| pair(id, name))
                    .collect(),
            })
            .collect(),
    });
    threats.collect()
}

fn process(open: &TokenOpen) -> Process {
    let entity =
        |key: crate::attribution::ProcessKey| format!("{}-{}", key.tgid, key.start_boottime_ns);
    let args: Vec<String> = open.args.iter().map(|arg| redact(arg).into_owned()).collect();
    Process {
        pid: open.process.tgid,
        entity_id: entity(open.process),
        name: open.leader_comm.clone(),
        executable: open.executable.clone(),
        command_line: redact(&args.join(" ")).into_owned(),
        args,
        start_boottime_ns: open.process.start_boottime_ns,
        interactive: open.interactive(),
        tty: open.tty.map(|(major, minor)| Tty { char_device: CharDevice { major, minor } }),
        user: UserId { id: open.uid.to_string() },
        parent: ProcessId { pid: open.ppid },
        entry_leader: EntryLeader {
            pid: open.entry.key.tgid,
            entity_id: entity(open.entry.key),
            name: open.entry.comm.clone(),
            entry_meta: EntryMeta {
                kind: match open.native {
                    Some(true) => "init".into(),
                    Some(false) => "container".into(),
                    None => "unknown".into(),
                },
            },
        },
    }
}

/// An audit event as alerts show it: text that a user chose redacted, annotation keys de-dotted
/// (as Elastic's own integration does).
fn shown(record: &Arc<AuditRecord>) -> AuditRecord {
    let mut record = AuditRecord::clone(record);
    record.request_uri = redact(&record.request_uri).into_owned();
    record.user_agent = record.user_agent.map(|agent| redact(&agent).into_owned());
    record.annotations = std::mem::take(&mut record.annotations)
        .into_iter()
        .map(|(key, value)| (key.replace('.', "_"), redact(&value).into_owned()))
        .collect::<BTreeMap<_, _>>();
    record
}

impl From<Band> for u8 {
    fn from(band: Band) -> Self {
        band.score()
    }
}
