//! From a finding to the alert document. Whatever carries text that a user chose is redacted here,
//! on its way out.

use std::{collections::BTreeMap, sync::Arc, time::Instant};

use super::{
    ecs::{
        Agent, CharDevice, Client, Cluster, Container, DataStream, Document, Ecs, EntryLeader,
        EntryMeta, Event, File, Host, IdName, Image, ImageHash, IncidentFields, Kind, Kubernetes,
        Orchestrator, Os, Parent, PodFields, Process, ProcessId, RawFile, Related, Resource,
        RuleFields, Sensor, Source, Threat, ThreatTechnique, Tokentrail, Tty, UserAgent, UserId,
        UserName,
    },
    evidence::{self, Evidence},
};
use crate::{
    attribution::{
        ContainerRef, Grade, ProcessKey, TokenOpen,
        pods::{self, Pod, PodIndex},
    },
    audit::{self, AuditRecord},
    correlation,
    redact::redact,
    rules::Rule,
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

/// Makes the document of a finding, with what `pods` knows by now.
///
/// `read_at` is when the completing audit line was read, if it
/// was just now; `now` is the wall clock.
pub fn document(
    finding: &correlation::Finding,
    origin: &Origin,
    pods: &PodIndex,
    read_at: Option<Instant>,
    now: Micros,
) -> Document {
    let (kind, alert) = match finding {
        correlation::Finding::Alert(alert) => (Kind::Alert, alert),
        correlation::Finding::Incident(alert) => (Kind::Incident, alert),
    };
    let rule = alert.rule;
    let (open, request) = (&*alert.open, &*alert.request);
    let pod_uid = open.pod_uid.clone().unwrap_or_default();
    let pod = pods.pod(&pod_uid).map(AsRef::as_ref);
    // The token's own words first: they are there without the Kubernetes API, too.
    let (namespace, _) = request.service_account().unzip();
    let namespace = namespace.or(pod.map(|pod| &*pod.namespace));
    let pod_name = request.extra(audit::POD_NAME).or(pod.map(|pod| &*pod.name));
    let known_container = open.reader.as_ref().and_then(|reader| container_of(reader, pods));
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
            ip: pod.map(|pod| texts(&pod.host_ips)).unwrap_or_default(),
            os: Os { kind: "linux".into() },
        },
        orchestrator: Orchestrator {
            kind: "kubernetes".into(),
            cluster: origin.cluster_name.clone().map(|name| Cluster { name }),
            namespace: namespace.map(str::to_owned),
            resource: resource(pod_uid.clone(), pod_name, pod),
        },
        container: open.reader.as_ref().map(|reader| Container {
            id: reader.container_id.clone(),
            name: known_container.map(|container| container.name.to_string()),
            runtime: reader.runtime.clone(),
            image: known_container.map(image),
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
            reasons: evidence::reasons(open, request, &origin.node_name, pod),
            request: "unknown".into(),
            file: RawFile { raw_path: redact(&open.raw_path).into_owned() },
            volume: open.volume.as_ref().map(|volume| volume.name.clone()),
            pod: pod.map(|pod| PodFields {
                service_account: pod.service_account.to_string(),
                owner: pod.owner.as_ref().map(|owner| owner.name.to_string()),
                host_network: pod.host_network,
                container: known_container.map(|container| container.kind.as_str().to_owned()),
            }),
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
            evidence: Evidence::of(alert, &origin.node_name, pod),
            response: evidence::containment(namespace, pod_name),
            latency_us: read_at
                .map(|read_at| u64::try_from(read_at.elapsed().as_micros()).unwrap_or(u64::MAX)),
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
    let later = (request.request_received_timestamp - open.wall).0 / 1_000;
    let later = match later {
        ..0 => format!("{} ms before that", -later),
        0..2_000 => format!("{later} ms later"),
        2_000.. => format!("{} s later", later / 1_000),
    };
    let what = evidence::what(request);
    let answer = match evidence::outcome(request) {
        "success" => "was allowed to",
        "failure" => "was refused to",
        _ => "asked to",
    };
    let user = &request.user.username;
    match kind {
        Kind::Alert => format!(
            "{process} opened the {file} of {pod} {how}, and {later} {user} {answer} {what}"
        ),
        Kind::Incident => format!(
            "the incident in {pod} has ended after {} open(s) of its token {how} and {} request(s) by {user}",
            alert.open_count, alert.request_count
        ),
    }
}

fn resource(uid: String, name: Option<&str>, pod: Option<&Pod>) -> Resource {
    let owner = pod.and_then(|pod| pod.owner.as_ref());
    Resource {
        kind: "pod".into(),
        id: uid,
        name: name.map(str::to_owned),
        ip: pod.map(|pod| texts(&pod.ips)).unwrap_or_default(),
        parent: owner.map(|owner| Parent { kind: owner.kind.to_string() }),
        label: pod
            .into_iter()
            .flat_map(|pod| &pod.labels)
            .map(|(key, value)| format!("{key}:{value}"))
            .collect(),
    }
}

/// The opener's container; its pod need not be the one whose token it is.
fn container_of<'a>(reader: &ContainerRef, pods: &'a PodIndex) -> Option<&'a pods::Container> {
    pods.pod(&reader.pod_uid)?.container(reader.container_id.as_deref()?)
}

fn image(container: &pods::Container) -> Image {
    let (name, tag) = container.image_name_and_tag();
    Image {
        name: name.to_owned(),
        tag: tag.into_iter().map(str::to_owned).collect(),
        hash: container.digest.as_ref().map(|digest| ImageHash { all: vec![digest.to_string()] }),
    }
}

fn texts(list: &[Box<str>]) -> Vec<String> {
    list.iter().map(ToString::to_string).collect()
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
    let entity = |key: ProcessKey| format!("{}-{}", key.tgid, key.start_boottime_ns);
    let args: Vec<String> = open.args.iter().map(|arg| redact(arg).into_owned()).collect();
    Process {
        pid: open.process.tgid,
        entity_id: entity(open.process),
        name: open.leader_comm.clone(),
        executable: open.executable.clone(),
        command_line: redact(&args.join(" ")).into_owned(),
        args,
        start: {
            let age = open.ktime_ns.saturating_sub(open.process.start_boottime_ns);
            open.wall - Micros::from_nanos(age)
        },
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
