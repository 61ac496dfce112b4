//! As much of a Kubernetes API as tells an agent of this node's pods: one list of them, and a watch in
//! which nothing happens. As tells where the pod of a name is. And as writes an agent's audit canaries to an
//! audit log.

use std::{
    fs,
    io::{BufRead as _, BufReader, Write as _},
    net::{Ipv4Addr, TcpListener, TcpStream},
    path::{Path, PathBuf},
    thread,
};

use anyhow::Result;
use jiff::Timestamp;
use serde_json::{Value, json};

use crate::{
    audit::{AuditLog, micros},
    node::Workload,
    pod::Pod,
    sandbox::Sandbox,
};

/// Where audit canaries ask for something.
const CANARY: &str = "/api/v1/namespaces/tokentrail-canary/";

/// A pod's container as the API tells of it, with its probes and hooks, if any.
pub fn pod(workload: &Workload, image: &str, hooks: &Value) -> Value {
    let Workload { pod, container } = workload;
    let mut main = json!({"name": "main", "image": image});
    if let (Some(main), Some(hooks)) = (main.as_object_mut(), hooks.as_object()) {
        main.extend(hooks.clone());
    }
    let status = json!({
        "name": "main",
        "containerID": format!("containerd://{}", container.id()),
        "imageID": "docker.io/shop@sha256:1",
        "state": {"running": {}},
    });
    pod_of(pod, &main, &[], &[status])
}

/// A pod that has not started yet, with its projected volumes: name and sources of each.
pub fn pod_with_volumes(pod: &Pod, volumes: &[(&str, Value)]) -> Value {
    let volumes: Vec<Value> = volumes
        .iter()
        .map(|(name, sources)| json!({"name": name, "projected": {"sources": sources}}))
        .collect();
    pod_of(pod, &json!({"name": "main", "image": "shop/cart:1"}), &volumes, &[])
}

/// A pod that is on a node, and was for long.
pub fn pod_on(pod: &Pod, node: &str) -> Value {
    json!({
        "metadata": {
            "uid": pod.uid, "name": pod.name, "namespace": pod.namespace,
            "creationTimestamp": "2020-01-01T00:00:00Z",
        },
        "spec": {"nodeName": node},
    })
}

fn pod_of(pod: &Pod, container: &Value, volumes: &[Value], statuses: &[Value]) -> Value {
    json!({
        "metadata": {"uid": pod.uid, "name": pod.name, "namespace": pod.namespace},
        "spec": {
            "serviceAccountName": pod.service_account,
            "containers": [container],
            "volumes": volumes,
        },
        "status": {"containerStatuses": statuses},
    })
}

/// Serves these pods for as long as the test runs, and returns the kubeconfig for it.
///
/// # Errors
/// If there is no port to listen on, or the sandbox cannot be written.
pub fn serve(sandbox: &Sandbox, pods: &[Value]) -> Result<PathBuf> {
    serve_audited(sandbox, pods, Path::new("/dev/null"))
}

/// The same by an API server that audits canaries in this log, while it is there.
///
/// # Errors
/// If there is no port to listen on, or the sandbox cannot be written.
pub fn serve_audited(sandbox: &Sandbox, pods: &[Value], log: &Path) -> Result<PathBuf> {
    let log = log.to_owned();
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
    let server = format!("http://{}", listener.local_addr()?);
    let pods = pods.to_vec();
    thread::spawn(move || {
        for client in listener.incoming().map_while(Result::ok) {
            let (pods, log) = (pods.clone(), log.clone());
            thread::spawn(move || answer(&client, &pods, &log));
        }
    });
    let kubeconfig = sandbox.folder().join("kubeconfig");
    // Not asked for, but a client looks for the machine's authorities where none is named.
    let authority = sandbox.folder().join("ca.pem");
    let certified = rcgen::generate_simple_self_signed(["localhost".to_owned()])?;
    fs::write(&authority, certified.cert.pem())?;
    let cluster = json!({"server": server, "certificate-authority": authority});
    let named = json!({"name": "test", "cluster": cluster});
    let context = json!({"name": "test", "context": {"cluster": "test", "user": "test"}});
    let user = json!({"name": "test", "user": {}});
    let config = json!({
        "apiVersion": "v1", "kind": "Config", "current-context": "test",
        "clusters": [named], "contexts": [context], "users": [user],
    });
    fs::write(&kubeconfig, config.to_string())?;
    Ok(kubeconfig)
}

/// Answers one request after the other; a watch is left open.
fn answer(mut client: &TcpStream, pods: &[Value], log: &Path) {
    let mut reader = BufReader::new(client);
    loop {
        let mut head = String::new();
        while !head.ends_with("\r\n\r\n") {
            if reader.read_line(&mut head).unwrap_or(0) == 0 {
                return;
            }
        }
        let target = head.split(' ').nth(1).unwrap_or_default();
        // Before it is answered, as an API server does in blocking mode.
        if target.starts_with(CANARY) && log.exists() {
            let line = format!("{}\n", canary(target, &head));
            let _ = AuditLog::at(log).append_bytes(line.as_bytes());
        }
        let named = |pod: &&Value| {
            let text = |pointer| pod.pointer(pointer).and_then(Value::as_str).unwrap_or_default();
            let (namespace, name) = (text("/metadata/namespace"), text("/metadata/name"));
            target.starts_with(&format!(
                "/api/v1/namespaces/{namespace}/pods?fieldSelector=metadata.name%3D{name}&"
            ))
        };
        let response = if target.contains("watch=") {
            "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ntransfer-encoding: chunked\r\n\r\n"
                .to_owned()
        } else if target.starts_with("/api/v1/pods") {
            list(pods)
        } else if target.contains("/pods?fieldSelector=metadata.name%3D") {
            list(&pods.iter().filter(named).cloned().collect::<Vec<_>>())
        } else {
            "HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\n\r\n".to_owned()
        };
        if client.write_all(response.as_bytes()).is_err() {
            return;
        }
    }
}

/// An answer with these pods.
fn list(pods: &[Value]) -> String {
    let metadata = json!({"resourceVersion": "1"});
    let list = json!({"kind": "PodList", "apiVersion": "v1", "metadata": metadata, "items": pods});
    let list = list.to_string();
    let length = list.len();
    format!(
        "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: {length}\r\n\r\n{list}"
    )
}

/// The event of a canary's request.
fn canary(target: &str, head: &str) -> Value {
    let agent = head.lines().find_map(|line| {
        let (name, value) = line.split_once(": ")?;
        name.eq_ignore_ascii_case("user-agent").then_some(value)
    });
    let now = micros(Timestamp::now());
    json!({
        "kind": "Event", "apiVersion": "audit.k8s.io/v1", "level": "Metadata", "auditID": target,
        "stage": "ResponseComplete", "requestURI": target, "verb": "list",
        "user": {"username": "tokentrail"}, "userAgent": agent, "responseStatus": {"code": 404},
        "requestReceivedTimestamp": now, "stageTimestamp": now,
    })
}
