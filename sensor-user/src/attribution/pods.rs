//! The pods of this node, as the Kubernetes API describes them: names, containers, owner, addresses,
//! probes. A plain table: `watch` tells what changed, the engine applies it, attribution and alerts
//! look up.
//!
//! Nothing waits for it. Correlation runs on uids that the kernel knows; what is not (yet) in here
//! is missing from an alert, never the alert. Times are passed in.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    sync::Arc,
};

use crate::time::Micros;

mod metrics;
mod object;
pub mod watch;

pub use metrics::PodMetrics;

/// How long a deleted pod can still be looked up: an alert may be about what it did last.
const KEPT_AFTER_DELETION: Micros = Micros::from_secs(15 * 60);
/// Pods held, deleted ones included. Kubelets run 110 by default and some hundred at most; jobs
/// that come and go for [`KEPT_AFTER_DELETION`] are what fills the rest.
const MAX_PODS: usize = 4_096;

/// What alerts and grades need to know about a pod.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Pod {
    /// `metadata.uid`.
    pub uid: Box<str>,
    /// The uid that the kubelet calls a static pod by, in cgroups and directories: the annotation
    /// `kubernetes.io/config.hash` (kubernetes `pkg/kubelet/types/pod_update.go`).
    pub static_uid: Option<Box<str>>,
    /// Namespace.
    pub namespace: Box<str>,
    /// Name.
    pub name: Box<str>,
    /// Name of its service account.
    pub service_account: Box<str>,
    /// Whether it uses the node's network: its addresses are then the node's.
    pub host_network: bool,
    /// Its addresses.
    pub ips: Vec<Box<str>>,
    /// Its node's addresses.
    pub host_ips: Vec<Box<str>>,
    /// The controller that made it.
    pub owner: Option<Owner>,
    /// Those of its labels that were asked for.
    pub labels: BTreeMap<Box<str>, Box<str>>,
    /// Its containers, of all kinds.
    pub containers: Vec<Container>,
}

/// The controller that made a pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Owner {
    /// Such as `ReplicaSet`.
    pub kind: Box<str>,
    /// Its name.
    pub name: Box<str>,
}

/// What a container is to its pod.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ContainerKind {
    /// One of the pod's ordinary containers.
    Main,
    /// Runs before them and ends.
    Init,
    /// An init container that goes on running (`restartPolicy: Always`).
    Sidecar,
    /// Added to the running pod, as by `kubectl debug`.
    Ephemeral,
}

impl ContainerKind {
    /// The kind's name in alerts.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Main => "main",
            Self::Init => "init",
            Self::Sidecar => "sidecar",
            Self::Ephemeral => "ephemeral",
        }
    }
}

/// A container of a pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Container {
    /// Its name in the pod's spec.
    pub name: Box<str>,
    /// What it is to the pod.
    pub kind: ContainerKind,
    /// The image as the spec names it.
    pub image: Box<str>,
    /// The image's digest, once the kubelet has reported it.
    pub digest: Option<Box<str>>,
    /// Ids without a `runtime://` prefix: the running instance, and the one before a restart.
    pub ids: Vec<Box<str>>,
    /// Commands that the kubelet runs in it: exec probes and lifecycle hooks.
    pub hooks: Vec<Box<[Box<str>]>>,
}

impl Container {
    /// Name and tag of its image; the tag is absent where there is none.
    pub fn image_name_and_tag(&self) -> (&str, Option<&str>) {
        let named = self.image.split('@').next().unwrap_or_default();
        // A registry's port has a colon, too, but a slash behind it.
        match named.rsplit_once(':') {
            Some((name, tag)) if !tag.contains('/') => (name, Some(tag)),
            _ => (named, None),
        }
    }
}

/// One change of the table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PodChange {
    /// A list of all pods begins.
    Listing,
    /// A pod as it is now; new, changed, or part of a list.
    Present(Box<Pod>),
    /// A pod was deleted.
    Gone {
        /// Its uid.
        uid: Box<str>,
    },
    /// The list is complete: pods that it did not have are gone.
    Listed,
}

/// The table.
#[derive(Debug, Default)]
pub struct PodIndex {
    pods: HashMap<Box<str>, Entry>,
    /// Static pods' other uid → the API's.
    aliases: HashMap<Box<str>, Box<str>>,
    /// Uids of the list that is being read. Only at its end it decides who is gone.
    listing: Option<HashSet<Box<str>>>,
    metrics: PodMetrics,
}

#[derive(Debug)]
struct Entry {
    pod: Arc<Pod>,
    /// When it was deleted.
    gone: Option<Micros>,
}

impl PodIndex {
    /// An empty table.
    pub fn new(metrics: PodMetrics) -> Self {
        Self { metrics, ..Self::default() }
    }

    /// Takes a change. `now` is any axis that the caller keeps to.
    pub fn apply(&mut self, change: PodChange, now: Micros) {
        match change {
            PodChange::Listing => self.listing = Some(HashSet::new()),
            PodChange::Present(pod) => self.put(*pod),
            PodChange::Gone { uid } => {
                if let Some(entry) = self.pods.get_mut(&uid) {
                    entry.gone.get_or_insert(now);
                }
            }
            PodChange::Listed => {
                let listed = self.listing.take().unwrap_or_default();
                for (uid, entry) in &mut self.pods {
                    if !listed.contains(uid) {
                        entry.gone.get_or_insert(now);
                    }
                }
            }
        }
        self.metrics.held(self.pods.len());
    }

    /// Forgets pods that were deleted long ago; to be called about once a second.
    pub fn forget(&mut self, now: Micros) {
        let old = |entry: &Entry| entry.gone.is_some_and(|gone| gone + KEPT_AFTER_DELETION < now);
        if self.pods.values().any(old) {
            self.pods.retain(|_, entry| !old(entry));
            self.aliases.retain(|_, uid| self.pods.contains_key(uid));
            self.metrics.held(self.pods.len());
        }
    }

    /// The pod of this uid, as the API or, for static pods, as the kubelet calls it.
    pub fn pod(&self, uid: &str) -> Option<&Arc<Pod>> {
        let uid = self.aliases.get(uid).map_or(uid, |uid| uid);
        self.pods.get(uid).map(|entry| &entry.pod)
    }

    /// Whether a container was added to its running pod, as by `kubectl debug`.
    pub fn is_ephemeral(&self, pod_uid: &str, container_id: &str) -> bool {
        self.pod(pod_uid)
            .and_then(|pod| pod.container(container_id))
            .is_some_and(|container| container.kind == ContainerKind::Ephemeral)
    }

    /// Whether the kubelet itself runs this command in the container, as a probe or a hook.
    pub fn is_hook(&self, pod_uid: &str, container_id: Option<&str>, command: &[Vec<u8>]) -> bool {
        let Some(pod) = self.pod(pod_uid) else { return false };
        let known = container_id.and_then(|id| pod.container(id));
        let equals = |hook: &[Box<str>]| {
            hook.len() == command.len()
                && hook.iter().zip(command).all(|(hook, word)| hook.as_bytes() == word.as_slice())
        };
        pod.containers
            .iter()
            // Startup probes run before the kubelet has reported the container's id.
            .filter(|container| known.is_none_or(|known| known.name == container.name))
            .any(|container| container.hooks.iter().any(|hook| equals(hook)))
    }

    fn put(&mut self, pod: Pod) {
        if !self.pods.contains_key(&pod.uid) && self.pods.len() >= MAX_PODS && !self.make_room() {
            self.metrics.refused();
            return;
        }
        if let Some(listing) = &mut self.listing {
            listing.insert(pod.uid.clone());
        }
        if let Some(alias) = &pod.static_uid {
            self.aliases.insert(alias.clone(), pod.uid.clone());
        }
        self.pods.insert(pod.uid.clone(), Entry { pod: Arc::new(pod), gone: None });
    }

    /// The pod that was deleted first gives way; `false` if none was.
    fn make_room(&mut self) -> bool {
        let oldest = self
            .pods
            .iter()
            .filter_map(|(uid, entry)| Some((entry.gone?, uid)))
            .min()
            .map(|(_, uid)| uid.clone());
        oldest.is_some_and(|uid| self.pods.remove(&uid).is_some())
    }
}

impl Pod {
    /// The container of this id, running or before its last restart.
    ///
    /// The kubelet reports an id up to a second after the start. Until then it is the one container
    /// without an id, if there is just one.
    pub fn container(&self, id: &str) -> Option<&Container> {
        let known = |container: &&Container| container.ids.iter().any(|it| **it == *id);
        self.containers.iter().find(known).or_else(|| {
            let mut nameless = self.containers.iter().filter(|it| it.ids.is_empty());
            nameless.next().filter(|_| nameless.next().is_none())
        })
    }
}

#[cfg(test)]
mod tests;
