//! From a finding to the alert document. Whatever carries text that a user chose is redacted here,
//! on its way out.

use std::{collections::BTreeMap, time::Instant};

use super::{
    ecs::{
        Agent, AuditUser, CharDevice, Client, Cluster, Container, DataStream, Document, Ecs,
        EntryLeader, EntryMeta, Event, File, Host, IdName, Image, ImageHash, IncidentFields,
        Kubernetes, Orchestrator, Os, Parent, PodFields, Process, ProcessId, RawFile, Related,
        Resource, RuleFields, Sensor, Source, Threat, ThreatTechnique, Tokentrail, Tty, UserAgent,
        UserId, UserName, Victim,
    },
    evidence::{self, Evidence},
    message,
    who::Who,
};
use crate::{
    attribution::{
        ContainerRef, ProcessKey, TokenOpen,
        pods::{self, Pod, PodIndex},
    },
    audit::{self, AuditRecord},
    correlation::{Finding, Kind},
    redact::redact,
    rules::{Rule, catalogue::RuleId},
    time::Micros,
};

/// Addresses to pivot on.
const ADDRESSES: usize = 64;
/// Those that are looked at of one request: the last, behind what a client may have made up.
const HOPS: usize = 16;

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
    finding: &Finding,
    origin: &Origin,
    pods: &PodIndex,
    read_at: Option<Instant>,
    now: Micros,
) -> Document {
    let rule = finding.rule.rule();
    let open = finding.open.as_ref().map(|open| &open.open);
    let request = finding.request.as_ref().map(|request| &*request.record);
    let who = Who::of(finding, pods);
    let received = request.map(|request| request.request_received_timestamp);
    let opened = open.map(|open| open.wall);
    let end = received.or(opened).unwrap_or(finding.last);
    let known_container =
        open.and_then(|open| open.reader.as_ref()).and_then(|reader| container_of(reader, pods));
    let mut degraded = origin.degraded.clone();
    degraded.extend(open.iter().flat_map(|open| open.degraded.iter().cloned()));
    let message = message::of(finding, &who);
    let users = request.into_iter().chain(finding.initiators.iter().map(|session| &**session));
    let minted_for = request.and_then(AuditRecord::minted_for);
    Document {
        timestamp: end,
        ecs: Ecs { version: "8.17.0" },
        data_stream: DataStream {
            kind: "logs",
            dataset: "tokentrail.alerts",
            namespace: "default",
        },
        tags: vec!["tokentrail", "kubernetes", rule.id],
        event: Event {
            kind: match finding.kind {
                Kind::Alert | Kind::Escalation => "alert",
                Kind::Incident => "event",
            },
            module: "tokentrail",
            dataset: "tokentrail.alerts",
            category: categories(finding),
            types: vec!["access"],
            action: rule.id,
            id: finding.event_id.clone(),
            created: now,
            start: opened.unwrap_or(end),
            end,
            severity: finding.band.score(),
            risk_score: finding.band.score(),
            outcome: request.map_or("success", evidence::outcome),
            reason: message.clone(),
        },
        message,
        rule: rule_fields(rule),
        threat: threats(rule),
        agent: Agent {
            kind: "tokentrail",
            name: origin.node_name.clone(),
            version: env!("CARGO_PKG_VERSION"),
            id: origin.agent_id.clone(),
        },
        host: Host {
            name: origin.node_name.clone(),
            id: origin.host_id.clone(),
            ip: who.pod.map(|pod| texts(&pod.host_ips)).unwrap_or_default(),
            os: Os { kind: "linux" },
        },
        orchestrator: Orchestrator {
            kind: "kubernetes",
            cluster: origin.cluster_name.clone().map(|name| Cluster { name }),
            namespace: who.namespace.map(str::to_owned),
            resource: who.pod_uid.map(|uid| resource(uid.to_owned(), who.pod_name, who.pod)),
        },
        container: open.and_then(|open| open.reader.as_ref()).map(|reader| Container {
            id: reader.container_id.clone(),
            name: known_container.map(|container| container.name.to_string()),
            runtime: reader.runtime.clone(),
            image: known_container.map(image),
        }),
        process: open.map(process),
        file: open.map(|open| File {
            name: open.path.rsplit('/').next().unwrap_or_default().into(),
            path: open.path.clone(),
            inode: open.inode.to_string(),
        }),
        user: request.map(|request| AuditUser {
            name: request.user.username.clone(),
            target: minted_for.map(|(namespace, name)| UserName {
                name: format!("{}{namespace}:{name}", audit::SERVICE_ACCOUNT),
            }),
        }),
        client: finding
            .initiators
            .first()
            .map(|session| Client { user: UserName { name: session.user.username.clone() } }),
        source: request.and_then(AuditRecord::source_ip).map(|ip| Source { ip: ip.into() }),
        user_agent: request
            .and_then(|request| request.user_agent.as_deref())
            .map(|agent| UserAgent { original: redact(agent).into_owned() }),
        related: Related {
            user: users.map(|record| record.user.username.clone()).collect(),
            ip: addresses(finding),
            hosts: vec![origin.node_name.clone()],
        },
        tokentrail: Tokentrail {
            kind: finding.kind,
            grade: open.map(|open| open.grade),
            native: open.and_then(|open| open.native),
            confidence: evidence::confidence(finding, &origin.node_name),
            reasons: evidence::reasons(finding, &origin.node_name),
            request: finding
                .request
                .as_ref()
                .filter(|_| finding.rule == RuleId::TokenAccessThenApiRequest)
                .map(|request| request.request.as_str()),
            file: open.map(|open| RawFile { raw_path: redact(&open.raw_path).into_owned() }),
            volume: open.and_then(|open| open.volume.as_ref()).map(|volume| volume.name.clone()),
            pod: who.pod.map(|pod| PodFields {
                service_account: pod.service_account.to_string(),
                owner: pod.owner.as_ref().map(|owner| owner.name.to_string()),
                host_network: pod.host_network,
                container: known_container.map(|container| container.kind.as_str()),
            }),
            incident: IncidentFields {
                id: finding.incident_id.clone(),
                state: match finding.kind {
                    Kind::Alert | Kind::Escalation => "open",
                    Kind::Incident => "ended",
                },
                related: finding.related.clone(),
                victims: victims(finding, pods),
                opens: finding.open_count,
                requests: finding.request_count,
                first: finding.first,
                last: finding.last,
            },
            evidence: Evidence::of(finding, &origin.node_name),
            response: match minted_for {
                Some((namespace, name)) => evidence::containment_of_account(namespace, name),
                None => evidence::containment(who.namespace, who.pod_name),
            },
            latency_us: read_at
                .map(|read_at| u64::try_from(read_at.elapsed().as_micros()).unwrap_or(u64::MAX)),
            sensor: Sensor {
                version: env!("CARGO_PKG_VERSION"),
                route: open.map_or_else(|| origin.route.clone(), |open| open.route.clone()),
                degraded,
            },
        },
        kubernetes: request.map(|request| Kubernetes { audit: shown(request) }),
    }
}

/// Addresses of its requests, each once. All but a request's last are what its client says.
fn addresses(finding: &Finding) -> Vec<String> {
    let mut addresses: Vec<String> = Vec::new();
    for request in &finding.requests {
        let given = &request.asked.source_ips;
        let last = given.len().saturating_sub(HOPS);
        for address in given.iter().skip(last) {
            let is_known = addresses.iter().any(|known| **known == **address);
            if addresses.len() < ADDRESSES && !is_known {
                addresses.push(address.to_string());
            }
        }
    }
    addresses
}

fn categories(finding: &Finding) -> Vec<&'static str> {
    let of_open: &[_] = if finding.open.is_some() { &["file", "process"] } else { &[] };
    let of_request: &[_] = if finding.request.is_some() { &["api"] } else { &[] };
    of_open.iter().chain(of_request).copied().collect()
}

fn victims(finding: &Finding, pods: &PodIndex) -> Vec<Victim> {
    let victims = finding.victims.iter().map(|(uid, opens)| {
        let pod = pods.pod(uid);
        Victim {
            id: uid.clone(),
            namespace: pod.map(|pod| pod.namespace.to_string()),
            name: pod.map(|pod| pod.name.to_string()),
            opens: *opens,
        }
    });
    victims.collect()
}

fn resource(uid: String, name: Option<&str>, pod: Option<&Pod>) -> Resource {
    let owner = pod.and_then(|pod| pod.owner.as_ref());
    Resource {
        kind: "pod",
        id: Some(uid),
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
        id: rule.id,
        name: rule.id,
        description: rule.description,
        reference: rule.reference,
        version: rule.version,
    }
}

fn threats(rule: &Rule) -> Vec<Threat> {
    let threats = rule.threat.iter().map(|tactic| Threat {
        framework: "MITRE ATT&CK",
        tactic: IdName { id: tactic.id, name: tactic.name },
        technique: tactic
            .techniques
            .iter()
            .map(|technique| ThreatTechnique {
                id: technique.id,
                name: technique.name,
                subtechnique: technique
                    .subtechnique
                    .iter()
                    .map(|&(id, name)| IdName { id, name })
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
                    Some(true) => "init",
                    Some(false) => "container",
                    None => "unknown",
                },
            },
        },
    }
}

/// An audit event as alerts show it: text that a user chose redacted, annotation keys de-dotted
/// (as Elastic's own integration does).
fn shown(record: &AuditRecord) -> AuditRecord {
    let mut record = record.clone();
    record.request_uri = redact(&record.request_uri).into_owned();
    record.user_agent = record.user_agent.map(|agent| redact(&agent).into_owned());
    record.annotations = std::mem::take(&mut record.annotations)
        .into_iter()
        .map(|(key, value)| (key.replace('.', "_"), redact(&value).into_owned()))
        .collect::<BTreeMap<_, _>>();
    record
}
