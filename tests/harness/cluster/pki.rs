//! Who is who in a cluster: one authority, certificates for servers and clients, the key of service
//! accounts, and the kubeconfig of everybody who talks to the API server.

use std::{
    fs::{self, OpenOptions},
    io::Write as _,
    net::IpAddr,
    os::unix::fs::OpenOptionsExt as _,
    path::Path,
};

use anyhow::{Context as _, Result};
use rcgen::KeyPair;
use serde_json::json;

use super::layout::{Layout, Network};
use crate::certificates::Authority;

/// Writes all of it.
///
/// # Errors
/// If a key cannot be made or a file not be written.
pub(crate) fn write(layout: &Layout, network: &Network, nodes: &[&str]) -> Result<()> {
    let folder = layout.pki("");
    fs::create_dir(&folder).with_context(|| format!("could not create {folder:?}"))?;
    // The one that everybody trusts.
    let authority = Authority::new(&format!("tokentrail-{}", layout.name()))?;
    write_file(&layout.pki("ca.crt"), authority.pem())?;

    let api_server = ["localhost", "kubernetes.default", "kubernetes.default.svc"];
    let loopback: IpAddr = [127, 0, 0, 1].into();
    let addresses = [loopback, network.node_ip(0), network.api_service_ip()];
    authority.server("apiserver", &api_server, &addresses)?.write(&folder, "apiserver")?;
    let client = |who: &str, name: &str, group| authority.client(name, group)?.write(&folder, who);
    client("kubelet-client", "kube-apiserver", Some("system:masters"))?;

    for (who, name, group) in [
        ("admin", "kubernetes-admin", Some("system:masters")),
        ("kube-controller-manager", "system:kube-controller-manager", None),
        ("kube-scheduler", "system:kube-scheduler", None),
    ] {
        client(who, name, group)?;
        write_kubeconfig(layout, network, who)?;
    }
    for (index, node) in (0..).zip(nodes) {
        client(node, &format!("system:node:{node}"), Some("system:nodes"))?;
        write_kubeconfig(layout, network, node)?;
        let server = format!("{node}-server");
        let addresses = [loopback, network.node_ip(index)];
        authority.server(&server, &[node], &addresses)?.write(&folder, &server)?;
    }

    let service_accounts = KeyPair::generate()?;
    write_file(&layout.pki("service-accounts.key"), &service_accounts.serialize_pem())?;
    write_file(&layout.pki("service-accounts.pub"), &service_accounts.public_key_pem())
}

fn write_kubeconfig(layout: &Layout, network: &Network, who: &str) -> Result<()> {
    let cluster = layout.name();
    let config = json!({
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": cluster, "cluster": {
            "server": format!("https://{}", network.api_server()),
            "certificate-authority": layout.pki("ca.crt"),
        }}],
        "users": [{"name": who, "user": {
            "client-certificate": layout.pki(&format!("{who}.crt")),
            "client-key": layout.pki(&format!("{who}.key")),
        }}],
        "contexts": [{"name": cluster, "context": {"cluster": cluster, "user": who}}],
        "current-context": cluster,
    });
    write_file(&layout.kubeconfig(who), &config.to_string())
}

/// Writes a file that only its owner may read.
fn write_file(path: &Path, text: &str) -> Result<()> {
    OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(path)
        .and_then(|mut file| file.write_all(text.as_bytes()))
        .with_context(|| format!("could not write {path:?}"))
}
