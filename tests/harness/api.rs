//! As much of a Kubernetes API as tells an agent of this node's pods: one list of them, and a watch in
//! which nothing happens.

use std::{
    fs,
    io::{BufRead as _, BufReader, Write as _},
    net::{Ipv4Addr, TcpListener, TcpStream},
    path::PathBuf,
    thread,
};

use anyhow::Result;
use serde_json::{Value, json};

use crate::{node::Workload, pod::Pod, sandbox::Sandbox};

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
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
    let server = format!("http://{}", listener.local_addr()?);
    let metadata = json!({"resourceVersion": "1"});
    let list = json!({"kind": "PodList", "apiVersion": "v1", "metadata": metadata, "items": pods});
    thread::spawn(move || {
        for client in listener.incoming().map_while(Result::ok) {
            let list = list.to_string();
            thread::spawn(move || answer(&client, &list));
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
fn answer(mut client: &TcpStream, list: &str) {
    let mut reader = BufReader::new(client);
    loop {
        let mut head = String::new();
        while !head.ends_with("\r\n\r\n") {
            if reader.read_line(&mut head).unwrap_or(0) == 0 {
                return;
            }
        }
        let target = head.split(' ').nth(1).unwrap_or_default();
        let response = if !target.starts_with("/api/v1/pods") {
            "HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\n\r\n".to_owned()
        } else if target.contains("watch=") {
            "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ntransfer-encoding: chunked\r\n\r\n"
                .to_owned()
        } else {
            let length = list.len();
            format!(
                "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: {length}\r\n\r\n{list}"
            )
        };
        if client.write_all(response.as_bytes()).is_err() {
            return;
        }
    }
}
