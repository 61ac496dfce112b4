//! The few fields of a Pod object that are used, as the API writes them, and the pod they make. All
//! other fields are skipped while reading.
//!
//! Source of the field semantics: kubernetes `staging/src/k8s.io/api/core/v1/types.go`.

use std::collections::BTreeSet;

use kube::{api::Object, core::ObjectMeta};
use serde::Deserialize;

use super::{
    Container, ContainerKind, Hook, Owner, Pod,
    projected::{VolumeSpec, projected},
};
use crate::time::Micros;

/// What the kubelet calls a static pod: an MD5 in hexadecimal. Anybody may set it on any pod.
const CONFIG_HASH: &str = "kubernetes.io/config.hash";
const CONFIG_HASH_LEN: usize = 32;

// What is kept of one pod: more than any real one has, and no more of one that is made to be large.
const CONTAINERS: usize = 48;
const ADDRESSES: usize = 16;
/// Of a name, an image, an id.
const TEXT: usize = 512;
/// Of all probes and hooks of a pod.
const HOOKS: usize = 16 << 10;

/// A Pod as it comes from the API.
pub(super) type PodObject = Object<Spec, Status>;

/// `spec`
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub(super) struct Spec {
    service_account_name: String,
    host_network: bool,
    containers: Vec<ContainerSpec>,
    init_containers: Vec<ContainerSpec>,
    ephemeral_containers: Vec<ContainerSpec>,
    volumes: Vec<VolumeSpec>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct ContainerSpec {
    name: String,
    image: String,
    env: Vec<Variable>,
    restart_policy: String,
    liveness_probe: Handler,
    readiness_probe: Handler,
    startup_probe: Handler,
    lifecycle: Lifecycle,
}

/// One without a value has it from elsewhere; the kubelet then puts nothing into probes.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
struct Variable {
    name: String,
    value: String,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct Lifecycle {
    post_start: Handler,
    pre_stop: Handler,
}

/// A probe or a hook; only its command matters here.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
struct Handler {
    exec: Option<Exec>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
struct Exec {
    command: Vec<String>,
}

/// `status`
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub(super) struct Status {
    #[serde(rename = "podIPs")]
    pod_ips: Vec<Address>,
    #[serde(rename = "hostIPs")]
    host_ips: Vec<Address>,
    /// Alone where the API server is older than 1.28.
    #[serde(rename = "hostIP")]
    host_ip: String,
    container_statuses: Vec<ContainerStatus>,
    init_container_statuses: Vec<ContainerStatus>,
    ephemeral_container_statuses: Vec<ContainerStatus>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
struct Address {
    ip: String,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct ContainerStatus {
    name: String,
    #[serde(rename = "containerID")]
    container_id: String,
    #[serde(rename = "imageID")]
    image_id: String,
    state: State,
    last_state: State,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
struct State {
    waiting: Option<Waiting>,
    terminated: Option<Terminated>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
struct Waiting {
    reason: String,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
struct Terminated {
    #[serde(rename = "containerID")]
    container_id: String,
}

/// The pod that an object describes, with those of its labels that are wanted; `None` if it has no
/// uid, namespace or name.
pub(super) fn pod(object: PodObject, wanted_labels: &BTreeSet<String>) -> Option<Pod> {
    let PodObject { metadata, spec, status, .. } = object;
    let status = status.unwrap_or_default();
    let ObjectMeta {
        uid,
        namespace,
        name,
        labels,
        annotations,
        owner_references,
        creation_timestamp: created,
        ..
    } = metadata;
    let mut host_ips = addresses(&status.host_ips);
    if host_ips.is_empty() && !status.host_ip.is_empty() {
        host_ips.push(clip(&status.host_ip));
    }
    let owner = owner_references
        .unwrap_or_default()
        .into_iter()
        .find(|owner| owner.controller == Some(true))
        .map(|owner| Owner { kind: clip(&owner.kind), name: clip(&owner.name) });
    let kind_of_init = |container: &ContainerSpec| match container.restart_policy.as_str() {
        "Always" => ContainerKind::Sidecar,
        _ => ContainerKind::Init,
    };
    let lists = [
        (&spec.containers, &status.container_statuses, &main as KindOf<'_>),
        (&spec.init_containers, &status.init_container_statuses, &kind_of_init),
        (&spec.ephemeral_containers, &status.ephemeral_container_statuses, &ephemeral),
    ];
    let mut room_for_hooks = HOOKS;
    Some(Pod {
        uid: uid.filter(|uid| !uid.is_empty())?.into(),
        static_uid: annotations
            .and_then(|mut annotations| annotations.remove(CONFIG_HASH))
            .filter(|hash| {
                hash.len() == CONFIG_HASH_LEN && hash.bytes().all(|it| it.is_ascii_hexdigit())
            })
            .map(Into::into),
        namespace: clip(&namespace?),
        name: clip(&name?),
        created: created.map(|time| Micros(time.0.as_microsecond())),
        service_account: clip(&spec.service_account_name),
        host_network: spec.host_network,
        ips: addresses(&status.pod_ips),
        host_ips,
        owner,
        labels: labels
            .unwrap_or_default()
            .into_iter()
            .filter(|(key, _)| wanted_labels.contains(key))
            .map(|(key, value)| (key.into(), value.into()))
            .collect(),
        containers: lists
            .into_iter()
            .flat_map(|(specs, statuses, kind)| {
                specs.iter().map(move |spec| (spec, statuses, kind))
            })
            .take(CONTAINERS)
            .map(|(spec, statuses, kind)| {
                container(spec, statuses, kind(spec), &mut room_for_hooks)
            })
            .collect(),
        projected: projected(&spec.volumes),
    })
}

type KindOf<'a> = &'a dyn Fn(&ContainerSpec) -> ContainerKind;

fn main(_: &ContainerSpec) -> ContainerKind {
    ContainerKind::Main
}

fn ephemeral(_: &ContainerSpec) -> ContainerKind {
    ContainerKind::Ephemeral
}

fn container(
    spec: &ContainerSpec,
    statuses: &[ContainerStatus],
    kind: ContainerKind,
    room_for_hooks: &mut usize,
) -> Container {
    let status = statuses.iter().find(|status| status.name == spec.name);
    let before = status.and_then(|status| status.last_state.terminated.as_ref());
    let probes = [&spec.liveness_probe, &spec.readiness_probe, &spec.startup_probe]
        .into_iter()
        .filter_map(|probe| probe.exec.as_ref())
        .map(|exec| exec.command.iter().map(|word| expand(word, &spec.env)).collect());
    let lifecycle = [&spec.lifecycle.post_start, &spec.lifecycle.pre_stop]
        .into_iter()
        .filter_map(|hook| hook.exec.as_ref())
        .map(|exec| exec.command.iter().map(|word| word.as_str().into()).collect());
    let mut hooks: Vec<Hook> = Vec::new();
    for hook in probes.chain(lifecycle).map(Hook) {
        // Liveness and readiness often share a command. An empty one runs nothing.
        if !hook.0.is_empty() && !hooks.contains(&hook) && hook.bytes() <= *room_for_hooks {
            *room_for_hooks -= hook.bytes();
            hooks.push(hook);
        }
    }
    let waits_for = status.and_then(|status| status.state.waiting.as_ref());
    Container {
        name: clip(&spec.name),
        kind,
        image: clip(&spec.image),
        digest: status.and_then(|status| digest(&status.image_id)).map(clip),
        ids: status
            .map(|status| status.container_id.as_str())
            .into_iter()
            .chain(before.map(|before| before.container_id.as_str()))
            .filter_map(|id| Some(clip(id.split_once("://")?.1)))
            .collect(),
        blocked: waits_for.is_some_and(|waiting| {
            !matches!(waiting.reason.as_str(), "" | "ContainerCreating" | "PodInitializing")
        }),
        hooks,
    }
}

/// A word of a probe's command as the kubelet runs it: `$(NAME)` is the container's variable, `$$`
/// a dollar (kubernetes `third_party/forked/golang/expansion`). Lifecycle hooks are run as they are.
fn expand(word: &str, variables: &[Variable]) -> Box<str> {
    let mut expanded = String::new();
    let mut rest = word;
    while let Some((before, after)) = rest.split_once('$') {
        expanded.push_str(before);
        if let Some(after) = after.strip_prefix('$') {
            expanded.push('$');
            rest = after;
        } else if let Some((name, after)) =
            after.strip_prefix('(').and_then(|after| after.split_once(')'))
        {
            match variables.iter().rfind(|variable| variable.name == name) {
                Some(variable) => expanded.push_str(&variable.value),
                None => expanded.extend(["$(", name, ")"]),
            }
            rest = after;
        } else {
            expanded.push('$');
            rest = after;
        }
        if expanded.len() > HOOKS {
            // Too long to be kept anyway.
            break;
        }
    }
    expanded.push_str(rest);
    expanded.into()
}

fn addresses(list: &[Address]) -> Vec<Box<str>> {
    let given = list.iter().filter(|it| !it.ip.is_empty());
    given.take(ADDRESSES).map(|it| clip(&it.ip)).collect()
}

/// The text, or as much of it as is kept.
fn clip(text: &str) -> Box<str> {
    let end = text.floor_char_boundary(TEXT);
    text.get(..end).unwrap_or_default().into()
}

/// `sha256:…` of an image id such as `docker.io/library/nginx@sha256:…`.
fn digest(image_id: &str) -> Option<&str> {
    let digest = image_id.rsplit('@').next()?;
    digest.contains(':').then_some(digest).filter(|digest| !digest.contains('/'))
}
