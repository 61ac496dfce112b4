//! The pods of this node, as the Kubernetes API describes them: names, containers, owner, addresses,
//! probes, projected volumes. A plain table: `watch` tells what changed, the engine applies it, attribution and alerts
//! look up.
//!
//! Nothing waits for it. Correlation runs on uids that the kernel knows; what is not (yet) in here
//! is missing from an alert, never the alert. Times are passed in.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    sync::Arc,
};

use serde::{Deserialize, Serialize};

use crate::time::Micros;

mod hook;
mod metrics;
mod object;
mod projected;
pub mod watch;

pub use hook::Hook;
pub use metrics::PodMetrics;
pub use projected::{Projected, ProjectedFile};

/// How long a deleted pod can still be looked up: an alert may be about what it did last.
const KEPT_AFTER_DELETION: Micros = Micros::from_secs(15 * 60);
/// Pods held, deleted ones included. Kubelets run 110 by default and some hundred at most; jobs
/// that come and go for [`KEPT_AFTER_DELETION`] are what fills the rest.
const MAX_PODS: usize = 4_096;
/// Memory of all pods held, bytes. One takes a few hundred, and a few ten thousand where somebody
/// makes it as large as `object` lets them.
const MAX_BYTES: usize = 16 << 20;

/// What alerts and grades need to know about a pod. As JSON it is part of recorded opens.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
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
    /// When it was made.
    pub created: Option<Micros>,
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
    /// Its projected volumes. Not recorded: which file was opened is.
    #[serde(skip)]
    pub projected: Vec<Projected>,
}

/// The controller that made a pod.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Owner {
    /// Such as `ReplicaSet`.
    pub kind: Box<str>,
    /// Its name.
    pub name: Box<str>,
}

/// What a container is to its pod.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
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
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
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
    /// Whether the kubelet says that it cannot start (no image, say): it is not what just did.
    pub blocked: bool,
    /// Commands that the kubelet runs in it: exec probes and lifecycle hooks. Not recorded: grades are.
    #[serde(skip)]
    pub hooks: Vec<Hook>,
}

impl Container {
    fn bytes(&self) -> usize {
        let ids: usize = self.ids.iter().map(|id| id.len() + size_of::<Box<str>>()).sum();
        let digest = self.digest.as_ref().map_or(0, |digest| digest.len());
        let hooks: usize = self.hooks.iter().map(Hook::bytes).sum();
        size_of::<Self>() + self.name.len() + self.image.len() + ids + digest + hooks
    }

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
    /// Memory of all pods held, about.
    bytes: usize,
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
        let old: Vec<Box<str>> = self
            .pods
            .iter()
            .filter(|(_, entry)| entry.gone.is_some_and(|gone| gone + KEPT_AFTER_DELETION < now))
            .map(|(uid, _)| uid.clone())
            .collect();
        for uid in &old {
            self.remove(uid);
        }
        if !old.is_empty() {
            self.metrics.held(self.pods.len());
        }
    }

    /// The pod of this uid, as the API or, for static pods, as the kubelet calls it. A real uid
    /// comes first: what a static pod is called by is an annotation that anybody may set.
    pub fn pod(&self, uid: &str) -> Option<&Arc<Pod>> {
        let entry = self.pods.get(uid).or_else(|| self.pods.get(self.aliases.get(uid)?));
        entry.map(|entry| &entry.pod)
    }

    /// The running pod of a service account that has this address; on its node's network if it uses
    /// that. `None` too if several do.
    pub fn by_address(&self, namespace: &str, account: &str, address: &str) -> Option<&Arc<Pod>> {
        let mut found = self.pods.values().filter(|Entry { pod, gone }| {
            let addresses = if pod.host_network { &pod.host_ips } else { &pod.ips };
            gone.is_none()
                && *pod.namespace == *namespace
                && *pod.service_account == *account
                && addresses.iter().any(|it| **it == *address)
        });
        found.next().filter(|_| found.next().is_none()).map(|entry| &entry.pod)
    }

    /// Whether there is a pod of a service account, running or not.
    pub fn has_account(&self, namespace: &str, account: &str) -> bool {
        let mut pods = self.pods.values().map(|entry| &entry.pod);
        pods.any(|pod| *pod.service_account == *account && *pod.namespace == *namespace)
    }

    /// Whether a container was added to its running pod, as by `kubectl debug`.
    pub fn is_ephemeral(&self, pod_uid: &str, container_id: &str) -> bool {
        let Some(pod) = self.pod(pod_uid) else { return false };
        let mut candidates = pod.candidates(container_id).peekable();
        candidates.peek().is_some() && candidates.all(|it| it.kind == ContainerKind::Ephemeral)
    }

    /// Whether the kubelet itself runs this command in the container, as a probe or a hook.
    pub fn is_hook(&self, pod_uid: &str, container_id: Option<&str>, command: &[Vec<u8>]) -> bool {
        let Some(pod) = self.pod(pod_uid) else { return false };
        let known = container_id.and_then(|id| pod.container(id));
        pod.containers
            .iter()
            // Startup probes run before the kubelet has reported the container's id.
            .filter(|container| known.is_none_or(|known| known.name == container.name))
            .any(|container| container.hooks.iter().any(|hook| hook.is(command)))
    }

    /// What the spec of a pod says of its volume of this name, if that is a projected one.
    pub fn projected(&self, pod_uid: &str, volume: &str) -> Option<&Projected> {
        self.pod(pod_uid)?.projected.iter().find(|it| *it.name == *volume)
    }

    fn put(&mut self, pod: Pod) {
        let bytes = pod.bytes();
        self.remove(&pod.uid);
        while self.pods.len() >= MAX_PODS || self.bytes + bytes > MAX_BYTES {
            if !self.make_room() {
                self.metrics.refused();
                return;
            }
        }
        if let Some(listing) = &mut self.listing {
            listing.insert(pod.uid.clone());
        }
        if let Some(alias) = &pod.static_uid {
            self.aliases.entry(alias.clone()).or_insert_with(|| pod.uid.clone());
        }
        self.bytes += bytes;
        self.pods.insert(pod.uid.clone(), Entry { pod: Arc::new(pod), gone: None });
    }

    fn remove(&mut self, uid: &str) {
        let Some(Entry { pod, .. }) = self.pods.remove(uid) else { return };
        self.bytes = self.bytes.saturating_sub(pod.bytes());
        if let Some(alias) = &pod.static_uid
            && self.aliases.get(alias).is_some_and(|owner| **owner == *uid)
        {
            self.aliases.remove(alias);
        }
    }

    /// The pod that was deleted first gives way; `false` if none was.
    fn make_room(&mut self) -> bool {
        let oldest = self
            .pods
            .iter()
            .filter_map(|(uid, entry)| Some((entry.gone?, uid)))
            .min()
            .map(|(_, uid)| uid.clone());
        oldest.is_some_and(|uid| {
            self.remove(&uid);
            true
        })
    }
}

impl Pod {
    /// The container of this id, running or before its last restart; `None` too where several may
    /// have it.
    pub fn container(&self, id: &str) -> Option<&Container> {
        let mut candidates = self.candidates(id);
        candidates.next().filter(|_| candidates.next().is_none())
    }

    /// The containers that may have this id. The kubelet reports one up to a second after the
    /// start; until then it is one of those without any, unless that one cannot start.
    fn candidates(&self, id: &str) -> impl Iterator<Item = &Container> {
        let has = |container: &Container| container.ids.iter().any(|it| **it == *id);
        let known = self.containers.iter().any(has);
        self.containers.iter().filter(move |container| {
            if known { has(container) } else { container.ids.is_empty() && !container.blocked }
        })
    }

    /// Memory that it takes, about.
    fn bytes(&self) -> usize {
        let texts = [&self.uid, &self.namespace, &self.name, &self.service_account];
        let addresses = self.ips.iter().chain(&self.host_ips);
        let labels = self.labels.iter().flat_map(|(key, value)| [key, value]);
        let owner = self.owner.iter().flat_map(|owner| [&owner.kind, &owner.name]);
        let texts = texts.into_iter().chain(addresses).chain(labels).chain(owner);
        size_of::<Self>()
            + texts.map(|text| text.len() + size_of::<Box<str>>()).sum::<usize>()
            + self.containers.iter().map(Container::bytes).sum::<usize>()
            + self.projected.iter().map(Projected::bytes).sum::<usize>()
    }
}

#[cfg(test)]
mod tests;
