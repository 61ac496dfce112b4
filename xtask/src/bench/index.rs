//! What the pods of a full node add to an agent's memory.

use std::thread;

use anyhow::{Result, ensure};
use serde_json::{Value, json};
use tokentrail_tests::{
    PATIENCE,
    cluster::{Cluster, ClusterNode, CutOff, deployment::Deployment},
    wait_until,
};

use super::{
    report::Row,
    rest::{REST, resident_mb},
};
use crate::shell::announce;

/// Pods of a node that is full.
const PODS: u32 = 250;

/// Measures. No kubelet runs that many on a small machine: they are objects, with all that a
/// kubelet reports, while the node's own kubelet is cut off and does not see them.
///
/// # Errors
/// If the API refuses them, or the agent does not hear of them.
pub(super) fn measure(
    cluster: &Cluster,
    agents: &Deployment<'_>,
    node: &ClusterNode,
) -> Result<Row> {
    announce(format_args!("{PODS} more pods for the index of an agent"));
    let pid = agents.pid(node)?;
    let held = || agents.metric(node, "tokentrail_pods_held", &[]);
    let (before, resident_before) = (held()?, resident_mb(pid)?);
    let cut = node.cut_off(CutOff::Kubelet)?;
    let pods: Vec<Value> = (0..PODS).map(|number| full_pod(node.name(), number)).collect();
    let list = json!({"apiVersion": "v1", "kind": "List", "items": pods}).to_string();
    cluster.apply(&list)?;
    let status = ["apply", "--server-side", "--force-conflicts", "--subresource=status", "-f", "-"];
    let reported = cluster.kubectl_with_input(&status, &list)?;
    ensure!(reported.success(), "the pods' status was refused: {}", reported.errors);
    wait_until(PATIENCE, "the agent has heard of all pods", || {
        Ok((held()? >= before + f64::from(PODS)).then_some(()))
    })?;
    // What the list and its watch took in passing is given back, or it counts.
    thread::sleep(REST);
    let added = resident_mb(pid)? - resident_before;
    let force = ["delete", "pods", "-l", "app=checkout", "--force", "--grace-period=0"];
    cluster.kubectl_ok(&force)?;
    cut.mend()?;
    Ok(Row::new(format!("memory of {PODS} pods"), format!("{added:.1} MB"))
        .at_most(added, 3.0, "MB"))
}

/// A pod of three containers with what people write into them.
fn full_pod(node: &str, number: u32) -> Value {
    let name = format!("checkout-7d9c5b8f6d-{number:05}");
    let variables: Vec<Value> = (0..20)
        .map(|it| json!({"name": format!("SETTING_{it}"), "value": "a value of some length"}))
        .collect();
    let container = |name: &str| {
        json!({
            "name": name, "image": format!("registry.example.com/shop/{name}:1.2.3"),
            "env": variables,
            "livenessProbe": {"exec": {"command": ["/bin/health", "--deadline", "3s"]}},
            "readinessProbe": {"httpGet": {"path": "/ready", "port": 8080}},
        })
    };
    let names = ["checkout", "proxy", "log-shipper"];
    let statuses: Vec<Value> = (0..)
        .zip(names)
        .map(|(place, name)| {
            json!({
                "name": name, "ready": true, "restartCount": 0, "started": true,
                "image": format!("registry.example.com/shop/{name}:1.2.3"),
                "imageID": format!("registry.example.com/shop/{name}@sha256:{number:064x}"),
                "containerID": format!("containerd://{:064x}", number * 8 + place),
                "state": {"running": {"startedAt": "2026-01-01T00:00:00Z"}},
            })
        })
        .collect();
    json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {
            "name": name, "namespace": "default",
            "labels": {"app": "checkout", "pod-template-hash": "7d9c5b8f6d"},
        },
        "spec": {"nodeName": node, "containers": names.map(container)},
        "status": {
            "phase": "Running", "hostIP": "192.0.2.1", "hostIPs": [{"ip": "192.0.2.1"}],
            "podIP": format!("198.51.100.{}", number % 256),
            "podIPs": [{"ip": format!("198.51.100.{}", number % 256)}],
            "containerStatuses": statuses,
        },
    })
}
