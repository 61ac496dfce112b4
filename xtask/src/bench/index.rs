//! What the pods of a full node add to an agent's memory.

use anyhow::{Result, ensure};
use serde_json::{Value, json};
use tokentrail_tests::{AgentSetup, AuditLog, Sandbox, cluster::Cluster};

use super::{
    report::{Row, quantile},
    rest::resident_mb,
};
use crate::shell::announce;

/// Pods of a node that is full.
const PODS: u32 = 250;
/// Agents that are looked at with and without them.
const TURNS: usize = 5;

/// Measures. No kubelet runs that many on a small machine: they are objects, with all that a
/// kubelet reports, on a node that is only an object.
///
/// # Errors
/// If the API refuses them, or an agent does not start.
pub(super) fn measure(cluster: &Cluster) -> Result<Row> {
    const NODE: &str = "full-node";
    announce(format_args!("an agent on a node of {PODS} pods"));
    let node = json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": NODE}});
    cluster.apply(&node.to_string())?;
    let sandbox = Sandbox::create()?;
    let audit = AuditLog::create(sandbox.folder().join("audit.log"))?;
    let agent = AgentSetup::new(&sandbox, audit.path()).on_node(NODE, cluster.kubeconfig());
    let resident = |pods: u32| -> Result<f64> {
        // A new one each: what counts is the memory of one that begins with so many.
        let agent = agent.start()?;
        agent.wait_for_metric("tokentrail_pods_lists_total", &[], 1.0)?;
        agent.wait_for_metric("tokentrail_pods_held", &[], f64::from(pods))?;
        let resident = resident_mb(agent.pid())?;
        agent.terminate()?;
        Ok(resident)
    };
    let mut added = Vec::new();
    let empty = (0..TURNS).map(|_| resident(0)).collect::<Result<Vec<_>>>()?;
    let pods: Vec<Value> = (0..PODS).map(|number| full_pod(NODE, number)).collect();
    let list = json!({"apiVersion": "v1", "kind": "List", "items": pods}).to_string();
    cluster.apply(&list)?;
    let status = ["apply", "--server-side", "--force-conflicts", "--subresource=status", "-f", "-"];
    let reported = cluster.kubectl_with_input(&status, &list)?;
    ensure!(reported.success(), "the pods' status was refused: {}", reported.errors);
    for empty in empty {
        added.push(resident(PODS)? - empty);
    }
    sandbox.close()?;
    cluster.kubectl_ok(&["delete", "node", NODE])?;
    let added = quantile(&added, 0.5);
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
