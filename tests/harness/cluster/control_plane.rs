//! etcd, the API server and those who act on what is in it, on the first node.

use std::{fs, time::Duration};

use anyhow::{Context as _, Result, bail};
use serde_json::json;

use super::{
    components,
    layout::{Layout, NODE_NAMES, Network, subnet},
};
use crate::wait::{PATIENCE, wait_until};

/// The API server, as a component.
pub(crate) const API_SERVER: &str = "kube-apiserver";
/// Another one beside it.
pub(crate) const OTHER_API_SERVER: &str = "kube-apiserver-2";

/// Who may not fill the audit log: what the cluster does for itself.
const UNHEARD: [&str; 3] =
    ["system:apiserver", "system:kube-controller-manager", "system:kube-scheduler"];

/// Starts the API server and what it stores in.
pub(crate) fn start_api_server(layout: &Layout, network: &Network, more: &[String]) -> Result<()> {
    start(layout, network, API_SERVER, more)
}

/// Starts another one on the same store, with a port and a log of its own.
pub(crate) fn start_other_api_server(layout: &Layout, network: &Network) -> Result<()> {
    let log = layout.other_audit_log();
    if let Some(folder) = log.parent() {
        fs::create_dir_all(folder).with_context(|| format!("could not create {folder:?}"))?;
    }
    // The last of an option counts.
    let more = [
        format!("--secure-port={}", network.api_port + 1),
        format!("--audit-log-path={}", log.display()),
        // The service stays the first one's.
        "--endpoint-reconciler-type=none".to_owned(),
    ];
    start(layout, network, OTHER_API_SERVER, &more)
}

fn start(layout: &Layout, network: &Network, component: &str, more: &[String]) -> Result<()> {
    let folder = layout.folder();
    let [first, _] = NODE_NAMES;
    if !components::is_running(layout, "etcd") {
        let mut etcd = components::command(layout, first, "etcd", &layout.program("etcd"))?;
        etcd.arg("--data-dir").arg(folder.join("etcd")).args([
            "--listen-client-urls=http://127.0.0.1:2379",
            "--advertise-client-urls=http://127.0.0.1:2379",
            "--listen-peer-urls=http://127.0.0.1:2380",
            // Nobody needs this data after a power loss.
            "--unsafe-no-fsync",
        ]);
        components::start(layout, "etcd", &etcd)?;
    }
    let policy = folder.join("audit-policy.json");
    fs::write(&policy, audit_policy().to_string())
        .with_context(|| format!("could not write {policy:?}"))?;
    let program = layout.program(API_SERVER);
    let mut server = components::command(layout, first, component, &program)?;
    for (option, file) in [
        ("tls-cert-file", "apiserver.crt"),
        ("tls-private-key-file", "apiserver.key"),
        ("client-ca-file", "ca.crt"),
        ("service-account-key-file", "service-accounts.pub"),
        ("service-account-signing-key-file", "service-accounts.key"),
        ("kubelet-client-certificate", "kubelet-client.crt"),
        ("kubelet-client-key", "kubelet-client.key"),
        ("kubelet-certificate-authority", "ca.crt"),
    ] {
        server.arg(format!("--{option}={}", layout.pki(file).display()));
    }
    server
        .args([
            "--etcd-servers=http://127.0.0.1:2379",
            "--service-account-issuer=https://kubernetes.default.svc",
            "--authorization-mode=Node,RBAC",
            "--enable-admission-plugins=NodeRestriction",
            "--kubelet-preferred-address-types=InternalIP",
            "--allow-privileged",
            "--bind-address=0.0.0.0",
        ])
        .arg(format!("--advertise-address={}", network.node_ip(0)))
        .arg(format!("--secure-port={}", network.api_port))
        .arg(format!("--service-cluster-ip-range={}", subnet(network.services)))
        .arg(format!("--audit-policy-file={}", policy.display()))
        .arg(format!("--audit-log-path={}", layout.audit_log().display()))
        .args(more);
    components::start(layout, component, &server)
}

/// Starts those who need an API server that answers.
pub(crate) fn start_controllers(layout: &Layout) -> Result<()> {
    let [first, _] = NODE_NAMES;
    for (name, options) in [
        (
            "kube-controller-manager",
            vec![
                "--use-service-account-credentials".to_owned(),
                format!("--root-ca-file={}", layout.pki("ca.crt").display()),
                format!(
                    "--service-account-private-key-file={}",
                    layout.pki("service-accounts.key").display()
                ),
                format!("--flex-volume-plugin-dir={}", layout.folder().join("flex").display()),
            ],
        ),
        ("kube-scheduler", Vec::new()),
    ] {
        let mut command = components::command(layout, first, name, &layout.program(name))?;
        command
            .arg(format!("--kubeconfig={}", layout.kubeconfig(name).display()))
            .arg("--leader-elect=false")
            .args(options);
        components::start(layout, name, &command)?;
    }
    Ok(())
}

/// Waits until an API server says that it is ready.
pub(crate) fn wait_for_api_server(layout: &Layout, component: &str, address: &str) -> Result<()> {
    let server = format!("--server=https://{address}");
    wait_until(PATIENCE, &format!("{component} is ready"), || {
        for component in ["etcd", component] {
            if !components::is_running(layout, component) {
                bail!(
                    "{component} ended; it wrote:\n{}",
                    components::end_of_log(layout, component)
                );
            }
        }
        let mut ask = super::kubectl_command(layout)?;
        let answer = ask.args(["get", "--raw=/readyz", &server]).output()?;
        if answer.status.success() {
            return Ok(Some(()));
        }
        // Each question is a process: a shorter pause would only slow the server down.
        std::thread::sleep(Duration::from_millis(100));
        Ok(None)
    })
    .with_context(|| format!("{component} wrote:\n{}", components::end_of_log(layout, component)))
}

/// Every request of everybody else, without bodies.
fn audit_policy() -> serde_json::Value {
    json!({
        "apiVersion": "audit.k8s.io/v1",
        "kind": "Policy",
        "rules": [{"level": "None", "users": UNHEARD}, {"level": "Metadata"}],
    })
}
