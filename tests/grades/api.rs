//! As much of a Kubernetes API as tells an agent of this node's pods: one list of them, and a watch in
//! which nothing happens.

use std::{
    fs,
    io::{BufRead as _, BufReader, Write as _},
    net::{Ipv4Addr, TcpListener, TcpStream},
    path::PathBuf,
    thread,
};

use serde_json::{Value, json};
use tokentrail_tests::{Sandbox, Workload};

/// A pod's container as the API tells of it, with its probe and hook, if any.
pub(crate) fn pod(workload: &Workload, image: &str, hooks: &Value) -> Value {
    let Workload { pod, container } = workload;
    let mut main = json!({"name": "main", "image": image});
    main.as_object_mut().unwrap().extend(hooks.as_object().unwrap().clone());
    json!({
        "metadata": {"uid": pod.uid, "name": pod.name, "namespace": pod.namespace},
        "spec": {"serviceAccountName": pod.service_account, "containers": [main]},
        "status": {"containerStatuses": [{
            "name": "main",
            "containerID": format!("containerd://{}", container.id()),
            "imageID": "docker.io/shop@sha256:1",
            "state": {"running": {}},
        }]},
    })
}

/// Serves these pods for as long as the test runs, and returns the kubeconfig for it.
pub(crate) fn serve(sandbox: &Sandbox, pods: &[Value]) -> PathBuf {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let server = format!("http://{}", listener.local_addr().unwrap());
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
    let certified = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
    fs::write(&authority, certified.cert.pem()).unwrap();
    let cluster = json!({"server": server, "certificate-authority": authority});
    let named = json!({"name": "test", "cluster": cluster});
    let context = json!({"name": "test", "context": {"cluster": "test", "user": "test"}});
    let user = json!({"name": "test", "user": {}});
    let config = json!({
        "apiVersion": "v1", "kind": "Config", "current-context": "test",
        "clusters": [named], "contexts": [context], "users": [user],
    });
    fs::write(&kubeconfig, config.to_string()).unwrap();
    kubeconfig
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
