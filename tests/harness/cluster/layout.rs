//! Everything that a cluster's name stands for on this machine, and the addresses inside of it.
//! Whoever knows the name finds the whole cluster: no list that a killed program could have left
//! incomplete.

use std::{
    net::{IpAddr, Ipv4Addr},
    path::{Path, PathBuf},
};

use anyhow::{Result, bail};
use serde_json::{Value, json};

/// Where clusters live: on disk, since token volumes are told by being on tmpfs, and outside of
/// any clone, since a cluster belongs to the machine. Short: paths of sockets are.
const BASE: &str = "/var/tmp/tokentrail-cluster";

/// The nodes that there can be.
pub(crate) const NODE_NAMES: [&str; 2] = ["node-a", "node-b"];

/// A cluster's places.
#[derive(Clone, Debug)]
pub(crate) struct Layout {
    name: String,
}

impl Layout {
    /// Name of the file that whoever makes or removes the cluster holds locked.
    pub(crate) const LOCK: &str = "lock";

    /// Those of the cluster of this name.
    ///
    /// # Errors
    /// If the name cannot be part of all the names made of it.
    pub(crate) fn new(name: &str) -> Result<Self> {
        // No hyphen: it ends the name in those made of it.
        let fits = (1..=16).contains(&name.len())
            && name.bytes().all(|it| it.is_ascii_lowercase() || it.is_ascii_digit());
        if !fits {
            bail!(
                "{name:?} is no name for a cluster: 1 to 16 lower-case letters and digits, please"
            );
        }
        Ok(Self { name: name.to_owned() })
    }

    /// The folder of all clusters of this machine.
    pub(crate) fn base() -> &'static Path {
        Path::new(BASE)
    }

    /// The cluster's name.
    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    /// Everything of it that is on disk.
    pub(crate) fn folder(&self) -> PathBuf {
        Self::base().join(&self.name)
    }

    /// What it was made with; in the folder from its first moment.
    pub(crate) fn facts(&self) -> PathBuf {
        self.folder().join("cluster.json")
    }

    /// Where that file is.
    pub(crate) fn lock(&self) -> PathBuf {
        self.folder().join(Self::LOCK)
    }

    /// Is there once the cluster is being taken down.
    pub(crate) fn going_down(&self) -> PathBuf {
        self.folder().join("going-down")
    }

    /// The program of a component, by the name that its process shall have.
    pub(crate) fn program(&self, name: &str) -> PathBuf {
        self.folder().join("bin").join(name)
    }

    /// Where a certificate or a key is.
    pub(crate) fn pki(&self, file: &str) -> PathBuf {
        self.folder().join("pki").join(file)
    }

    /// How somebody (`admin`, a component, a node) reaches the API server.
    pub(crate) fn kubeconfig(&self, who: &str) -> PathBuf {
        self.pki(&format!("{who}.kubeconfig"))
    }

    /// The audit log; its folder holds nothing else, to be given to a pod.
    pub(crate) fn audit_log(&self) -> PathBuf {
        self.folder().join("audit/audit.log")
    }

    /// That of another API server.
    pub(crate) fn other_audit_log(&self) -> PathBuf {
        self.folder().join("audit-2/audit.log")
    }

    /// What a component wrote.
    pub(crate) fn log(&self, component: &str) -> PathBuf {
        self.folder().join("log").join(component)
    }

    /// Everything of a node.
    pub(crate) fn node(&self, node: &str) -> PathBuf {
        self.folder().join(node)
    }

    /// A node's network namespace, kept by a mount inside of the folder.
    pub(crate) fn netns(&self, node: &str) -> PathBuf {
        self.node(node).join("netns")
    }

    /// The cgroup of all its processes, as a path from each hierarchy's root.
    pub(crate) fn cgroup(&self) -> PathBuf {
        format!("tokentrail-{}", self.name).into()
    }

    /// The cgroup of one component.
    pub(crate) fn component_cgroup(&self, component: &str) -> PathBuf {
        self.cgroup().join("system").join(component)
    }

    /// The cgroup below which a node's kubelet has its pods.
    pub(crate) fn node_cgroup(&self, node: &str) -> PathBuf {
        self.cgroup().join(node)
    }

    /// What CNI calls a node's network; its cache outside of the folder goes by that name.
    pub(crate) fn cni_network(&self, node: &str) -> String {
        format!("{}{node}", self.cni_prefix())
    }

    /// How the names of all its CNI networks begin.
    pub(crate) fn cni_prefix(&self) -> String {
        format!("tokentrail-{}-", self.name)
    }
}

/// Addresses inside of the cluster. They exist in its own network namespaces alone, so they collide
/// neither with the machine's nor with another cluster's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Network {
    /// First two numbers of the nodes' addresses: node a is `<nodes>.0.1`.
    pub nodes: [u8; 2],
    /// First two numbers of the pods' addresses on node a; node b has the next.
    pub pods: [u8; 2],
    /// First two numbers of the services' addresses: the API server is `<services>.0.1`.
    pub services: [u8; 2],
    /// The API server's port.
    pub api_port: u16,
}

impl Default for Network {
    fn default() -> Self {
        Self { nodes: [10, 90], pods: [10, 88], services: [10, 96], api_port: 6443 }
    }
}

impl Network {
    /// Makes sure that no two ranges are the same.
    ///
    /// # Errors
    /// Names the two that are.
    pub(crate) fn check(&self) -> Result<()> {
        let ranges = [
            ("the nodes", self.nodes),
            ("pods on node a", self.pods),
            ("pods on node b", self.pods_of(1)),
            ("services", self.services),
        ];
        for (index, (one, range)) in ranges.iter().enumerate() {
            if let Some((other, _)) = ranges.iter().skip(index + 1).find(|(_, it)| it == range) {
                bail!("{one} and {other} cannot both have {}", subnet(*range));
            }
        }
        Ok(())
    }

    /// A node's address.
    pub(crate) fn node_ip(&self, index: u8) -> IpAddr {
        Self::address(self.nodes, index + 1)
    }

    /// The API server's address as pods know it.
    pub(crate) fn api_service_ip(&self) -> IpAddr {
        Self::address(self.services, 1)
    }

    /// The range of a node's pods.
    pub(crate) fn pods_of(&self, index: u8) -> [u8; 2] {
        let [first, second] = self.pods;
        [first, second.wrapping_add(index)]
    }

    /// Where the API server listens.
    pub(crate) fn api_server(&self) -> String {
        format!("{}:{}", self.node_ip(0), self.api_port)
    }

    fn address([first, second]: [u8; 2], last: u8) -> IpAddr {
        Ipv4Addr::new(first, second, 0, last).into()
    }

    pub(crate) fn to_json(self) -> Value {
        json!({"nodes": self.nodes, "pods": self.pods, "services": self.services,
               "api_port": self.api_port})
    }

    pub(crate) fn from_json(value: &Value) -> Option<Self> {
        let range = |name: &str| {
            let byte = |index: usize| u8::try_from(value.get(name)?.get(index)?.as_u64()?).ok();
            Some([byte(0)?, byte(1)?])
        };
        Some(Self {
            nodes: range("nodes")?,
            pods: range("pods")?,
            services: range("services")?,
            api_port: value.get("api_port")?.as_u64()?.try_into().ok()?,
        })
    }
}

/// A range as routes and options have it.
pub(crate) fn subnet([first, second]: [u8; 2]) -> String {
    format!("{first}.{second}.0.0/16")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cluster_has_a_plain_name() {
        let cases = [
            ("dev", true),
            ("test2", true),
            ("", false),
            ("dev-a", false),
            ("../etc", false),
            ("Dev", false),
            ("averyveryverylongname", false),
        ];
        for (name, fits) in cases {
            assert_eq!(Layout::new(name).is_ok(), fits, "{name:?}");
        }
    }

    #[test]
    fn sockets_of_the_longest_name_fit_into_an_address() {
        let layout = Layout::new("averylongname123").unwrap();
        let socket = layout.node("node-a").join("containerd.sock.ttrpc");
        assert!(socket.as_os_str().len() < 108, "{socket:?}");
    }

    #[test]
    fn ranges_of_addresses_must_differ() {
        let fine = Network::default();
        assert!(fine.check().is_ok());
        let error = Network { nodes: [10, 89], ..fine }.check().unwrap_err().to_string();
        assert_eq!(error, "the nodes and pods on node b cannot both have 10.89.0.0/16");
        assert_eq!(Network::from_json(&fine.to_json()), Some(fine));
    }
}
