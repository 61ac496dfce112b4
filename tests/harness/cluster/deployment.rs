//! The agent in a cluster, installed by its Helm chart from its image, as users do.
//!
//! Nodes of a cluster share this machine's file system, where those of users have one each: so each
//! node has a release of its own, with paths of its own. All follow the API server's audit log.

use std::{
    env, fs,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result, bail};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};

use super::{Cluster, ClusterNode};
use crate::{
    agent::{Answer, sum_of_samples},
    alerts::Alerts,
    command::{Finished, run_with_pipes},
    wait::{PATIENCE, wait_until},
};

/// Namespace of the agents.
pub const NAMESPACE: &str = "tokentrail";
/// Where an agent listens, in its pod's network.
const ADMIN_PORT: u16 = 9464;

/// What the agent is installed from.
#[derive(Clone, Debug)]
pub struct Package {
    /// The Helm program.
    pub helm: PathBuf,
    /// The agent's image, an OCI archive.
    pub image: PathBuf,
}

impl Package {
    /// What `TOKENTRAIL_HELM` and `TOKENTRAIL_IMAGE` name.
    ///
    /// # Errors
    /// If these variables are not set: `cargo xtask test` sets them.
    pub fn from_environment() -> Result<Self> {
        let file = |variable: &str| {
            env::var_os(variable).map(PathBuf::from).with_context(|| {
                format!("{variable} names no file; `cargo xtask test` makes it and sets it")
            })
        };
        Ok(Self { helm: file("TOKENTRAIL_HELM")?, image: file("TOKENTRAIL_IMAGE")? })
    }
}

/// An agent on each node.
pub struct Deployment<'cluster> {
    cluster: &'cluster Cluster,
    package: Package,
}

impl<'cluster> Deployment<'cluster> {
    /// Installs it and waits until every node's agent is ready.
    ///
    /// # Errors
    /// If an agent does not get ready; with what the cluster and the agent say.
    pub fn install(cluster: &'cluster Cluster, package: Package) -> Result<Self> {
        cluster.import_image(&package.image)?;
        let deployment = Self { cluster, package };
        for node in cluster.nodes() {
            deployment.helm(node, &json!({}))?;
        }
        deployment.wait_until_ready()?;
        Ok(deployment)
    }

    /// One that was installed before.
    pub fn attach(cluster: &'cluster Cluster, package: Package) -> Self {
        Self { cluster, package }
    }

    /// Installs or changes a node's release with further values; does not wait.
    ///
    /// # Errors
    /// If Helm refuses.
    pub fn helm(&self, node: &ClusterNode, more: &Value) -> Result<()> {
        let values = self.folder(node).join("values.json");
        fs::create_dir_all(self.folder(node))?;
        fs::write(&values, merged(self.values(node), more).to_string())?;
        let mut command = self.cluster.command(&self.package.helm)?;
        command
            .args(["upgrade", "--install", &release(node), "--namespace", NAMESPACE])
            .args(["--create-namespace", "--kubeconfig"])
            .arg(self.cluster.kubeconfig())
            .arg("--values")
            .arg(values)
            .arg(chart());
        let done = run_with_pipes(&self.cluster.ledger, &mut command)?;
        if !done.success() {
            bail!("helm failed: {}{}", done.output, done.errors);
        }
        Ok(())
    }

    /// `helm test` of a node's release, with what it writes.
    ///
    /// # Errors
    /// If Helm does not start or end; not if the test fails.
    pub fn test(&self, node: &ClusterNode) -> Result<Finished> {
        let mut command = self.cluster.command(&self.package.helm)?;
        command
            .args(["test", &release(node), "--namespace", NAMESPACE, "--kubeconfig"])
            .arg(self.cluster.kubeconfig());
        run_with_pipes(&self.cluster.ledger, &mut command)
    }

    /// Ends a node's agent as an operating system does that has no time: `kill -9`. Its kubelet starts the
    /// next one, later each time.
    ///
    /// # Errors
    /// If it does not run.
    pub fn kill(&self, node: &ClusterNode) -> Result<()> {
        let pid = self.pid(node)?;
        let pid = Pid::from_raw(pid.cast_signed()).context("0 is no process")?;
        kill_process(pid, Signal::KILL).with_context(|| format!("could not kill {pid:?}"))
    }

    /// Waits until the agents of all nodes are as their releases say, and ready.
    ///
    /// # Errors
    /// If one does not get ready in time.
    pub fn wait_until_ready(&self) -> Result<()> {
        for node in self.cluster.nodes() {
            let set = format!("daemonset/{}", release(node));
            let args = ["rollout", "status", &set, "--namespace", NAMESPACE, "--timeout=50s"];
            self.cluster.kubectl_ok(&args).with_context(|| self.said(node))?;
        }
        Ok(())
    }

    /// The alerts that a node's agent has written.
    pub fn alerts(&self, node: &ClusterNode) -> Alerts {
        Alerts::at(self.folder(node).join("alerts/alerts.ndjson"))
    }

    /// The pod of a node's agent.
    ///
    /// # Errors
    /// If there is none that runs, or more than one.
    pub fn pod(&self, node: &ClusterNode) -> Result<Value> {
        let mut live = self.pods(node)?.into_iter();
        match (live.next(), live.next()) {
            (Some(pod), None) => Ok(pod),
            (None, _) => bail!("{} has no agent", node.name()),
            (Some(_), Some(_)) => bail!("{} has two agents", node.name()),
        }
    }

    /// What `/statusz` says of each of a node's agents; during an update there are two.
    ///
    /// # Errors
    /// If the API server does not answer.
    pub fn statuses(&self, node: &ClusterNode) -> Result<Vec<Value>> {
        let ask = |pod: &Value| {
            let answer = ask(node, pod, "/statusz").ok()?;
            serde_json::from_str(&answer.body).ok()
        };
        Ok(self.pods(node)?.iter().filter_map(ask).collect())
    }

    /// Uids of a node's agent pods; during an update there are two.
    ///
    /// # Errors
    /// If the API server does not answer.
    pub fn uids(&self, node: &ClusterNode) -> Result<Vec<String>> {
        let uid = |pod: &Value| text(pod, "/metadata/uid").to_owned();
        Ok(self.pods(node)?.iter().map(uid).collect())
    }

    fn pods(&self, node: &ClusterNode) -> Result<Vec<Value>> {
        // The pods of `helm test` are of the release, too.
        let release = release(node);
        let label =
            format!("app.kubernetes.io/name=tokentrail,app.kubernetes.io/instance={release}");
        let pods = self.cluster.get(&["pods", "--namespace", NAMESPACE, "--selector", &label])?;
        let pods = pods.get("items").and_then(Value::as_array).cloned().unwrap_or_default();
        let live = |pod: &Value| pod.pointer("/metadata/deletionTimestamp").is_none();
        Ok(pods.into_iter().filter(live).collect())
    }

    /// Deletes the pod of a node's agent and waits for its successor.
    ///
    /// # Errors
    /// If none gets ready.
    pub fn restart(&self, node: &ClusterNode) -> Result<()> {
        let name = text(&self.pod(node)?, "/metadata/name").to_owned();
        self.cluster.kubectl_ok(&["delete", "pod", &name, "--namespace", NAMESPACE])?;
        self.wait_until_ready()
    }

    /// Asks the HTTP side of a node's agent, from the node as the kubelet does.
    ///
    /// # Errors
    /// If there is no answer.
    pub fn get(&self, node: &ClusterNode, path: &str) -> Result<Answer> {
        ask(node, &self.pod(node)?, path)
    }

    /// Sum of a metric's samples of a node's agent.
    ///
    /// # Errors
    /// If there is no answer.
    pub fn metric(&self, node: &ClusterNode, name: &str, labels: &[&str]) -> Result<f64> {
        Ok(sum_of_samples(&self.get(node, "/metrics")?.body, name, labels))
    }

    /// Waits until `/statusz` of a node's agent is as wanted.
    ///
    /// # Errors
    /// If it is not in time; with the last one.
    pub fn wait_for_status(
        &self,
        node: &ClusterNode,
        what: &str,
        wanted: impl Fn(&Value) -> bool,
    ) -> Result<Value> {
        let status = || self.get(node, "/statusz").ok().map(|answer| answer.body);
        wait_until(PATIENCE, what, || {
            let status = status().and_then(|body| serde_json::from_str::<Value>(&body).ok());
            Ok(status.filter(&wanted))
        })
        .with_context(|| format!("{:?}\n{}", status(), self.said(node)))
    }

    /// Process id of a node's agent on this machine.
    ///
    /// # Errors
    /// If it does not run.
    pub fn pid(&self, node: &ClusterNode) -> Result<u32> {
        let uid = text(&self.pod(node)?, "/metadata/uid").to_owned();
        for entry in fs::read_dir("/proc")?.filter_map(Result::ok) {
            let read = |file| fs::read_to_string(entry.path().join(file)).unwrap_or_default();
            if read("comm").trim() == "tokentrail" && read("cgroup").contains(&uid) {
                let name = entry.file_name();
                return Ok(name.to_string_lossy().parse()?);
            }
        }
        bail!("the agent of {} is no process", node.name())
    }

    /// What a node's agent and its kubelet say, for errors.
    pub fn said(&self, node: &ClusterNode) -> String {
        let label = format!("app.kubernetes.io/instance={}", release(node));
        [&["describe", "pods"][..], &["logs", "--tail=50", "--prefix"]]
            .iter()
            .filter_map(|verb| {
                let args = [verb, &["--namespace", NAMESPACE, "--selector", &label][..]].concat();
                Some(self.cluster.kubectl(&args).ok()?.output)
            })
            .collect()
    }

    fn folder(&self, node: &ClusterNode) -> PathBuf {
        self.cluster.folder().join("agents").join(node.name())
    }

    fn values(&self, node: &ClusterNode) -> Value {
        let folder = self.folder(node);
        json!({
            "image": {"pullPolicy": "Never"},
            "clusterName": self.cluster.name(),
            "audit": {"logFile": self.cluster.audit_log()},
            "alertLog": {"file": folder.join("alerts/alerts.ndjson"), "podLabels": ["app"]},
            "stateDir": folder.join("state"),
            "kubeletRoot": node.kubelet_root(),
            "nodeSelector": {"kubernetes.io/hostname": node.name()},
            "config": {"audit-lateness-seconds": 2},
        })
    }
}

/// Asks an agent's HTTP side from its node, as the kubelet does.
fn ask(node: &ClusterNode, pod: &Value, path: &str) -> Result<Answer> {
    let ip = text(pod, "/status/podIP");
    node.get(&format!("http://{ip}:{ADMIN_PORT}{path}"))
}

/// Name of a node's release.
fn release(node: &ClusterNode) -> String {
    format!("tokentrail-{}", node.name())
}

fn chart() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/helm/tokentrail")
}

fn text<'value>(value: &'value Value, pointer: &str) -> &'value str {
    value.pointer(pointer).and_then(Value::as_str).unwrap_or_default()
}

/// One object with another's keys on top.
fn merged(mut values: Value, more: &Value) -> Value {
    match (&mut values, more) {
        (Value::Object(values), Value::Object(more)) => {
            for (key, more) in more {
                let old = values.remove(key).unwrap_or(Value::Null);
                values.insert(key.clone(), merged(old, more));
            }
        }
        (values, more) => *values = more.clone(),
    }
    values
}
