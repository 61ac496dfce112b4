//! The few fields of a Pod object that are used, as the API writes them, and the pod they make. All
//! other fields are skipped while reading.
//!
//! Source of the field semantics: kubernetes `staging/src/k8s.io/api/core/v1/types.go`.

use std::collections::BTreeSet;

use kube::{api::Object, core::ObjectMeta};
use serde::Deserialize;

use super::{Container, ContainerKind, Owner, Pod};

/// `kubernetes.io/config.hash`: what the kubelet calls a static pod.
const CONFIG_HASH: &str = "kubernetes.io/config.hash";

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
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct ContainerSpec {
    name: String,
    image: String,
    restart_policy: String,
    liveness_probe: Handler,
    readiness_probe: Handler,
    startup_probe: Handler,
    lifecycle: Lifecycle,
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
    last_state: LastState,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
struct LastState {
    terminated: Option<Terminated>,
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
    let ObjectMeta { uid, namespace, name, labels, annotations, owner_references, .. } = metadata;
    let mut host_ips = addresses(&status.host_ips);
    if host_ips.is_empty() && !status.host_ip.is_empty() {
        host_ips.push(status.host_ip.as_str().into());
    }
    let owner = owner_references
        .unwrap_or_default()
        .into_iter()
        .find(|owner| owner.controller == Some(true))
        .map(|owner| Owner { kind: owner.kind.into(), name: owner.name.into() });
    let kind_of_init = |container: &ContainerSpec| match container.restart_policy.as_str() {
        "Always" => ContainerKind::Sidecar,
        _ => ContainerKind::Init,
    };
    let containers = [
        (&spec.containers, &status.container_statuses, &main as KindOf<'_>),
        (&spec.init_containers, &status.init_container_statuses, &kind_of_init),
        (&spec.ephemeral_containers, &status.ephemeral_container_statuses, &ephemeral),
    ];
    Some(Pod {
        uid: uid.filter(|uid| !uid.is_empty())?.into(),
        static_uid: annotations
            .and_then(|mut annotations| annotations.remove(CONFIG_HASH))
            .map(Into::into),
        namespace: namespace?.into(),
        name: name?.into(),
        service_account: spec.service_account_name.as_str().into(),
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
        containers: containers
            .into_iter()
            .flat_map(|(specs, statuses, kind)| {
                specs.iter().map(|spec| container(spec, statuses, kind(spec)))
            })
            .collect(),
    })
}

type KindOf<'a> = &'a dyn Fn(&ContainerSpec) -> ContainerKind;

fn main(_: &ContainerSpec) -> ContainerKind {
    ContainerKind::Main
}

fn ephemeral(_: &ContainerSpec) -> ContainerKind {
    ContainerKind::Ephemeral
}

fn container(spec: &ContainerSpec, statuses: &[ContainerStatus], kind: ContainerKind) -> Container {
    let status = statuses.iter().find(|status| status.name == spec.name);
    let before = status.and_then(|status| status.last_state.terminated.as_ref());
    let handlers = [
        &spec.liveness_probe,
        &spec.readiness_probe,
        &spec.startup_probe,
        &spec.lifecycle.post_start,
        &spec.lifecycle.pre_stop,
    ];
    let mut hooks: Vec<Box<[Box<str>]>> = Vec::new();
    for exec in handlers.into_iter().filter_map(|handler| handler.exec.as_ref()) {
        let command: Box<[Box<str>]> =
            exec.command.iter().map(|word| word.as_str().into()).collect();
        // Liveness and readiness often share a command. An empty one runs nothing.
        if !command.is_empty() && !hooks.contains(&command) {
            hooks.push(command);
        }
    }
    Container {
        name: spec.name.as_str().into(),
        kind,
        image: spec.image.as_str().into(),
        digest: status.and_then(|status| digest(&status.image_id)).map(Into::into),
        ids: status
            .map(|status| status.container_id.as_str())
            .into_iter()
            .chain(before.map(|before| before.container_id.as_str()))
            .filter_map(|id| Some(id.split_once("://")?.1.into()))
            .collect(),
        hooks,
    }
}

fn addresses(list: &[Address]) -> Vec<Box<str>> {
    list.iter().filter(|it| !it.ip.is_empty()).map(|it| it.ip.as_str().into()).collect()
}

/// `sha256:…` of an image id such as `docker.io/library/nginx@sha256:…`.
fn digest(image_id: &str) -> Option<&str> {
    let digest = image_id.rsplit('@').next()?;
    digest.contains(':').then_some(digest).filter(|digest| !digest.contains('/'))
}
