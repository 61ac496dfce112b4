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
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, SanType,
};
use serde_json::json;

use super::layout::{Layout, Network};

/// Writes all of it.
///
/// # Errors
/// If a key cannot be made or a file not be written.
pub(crate) fn write(layout: &Layout, network: &Network, nodes: &[&str]) -> Result<()> {
    let folder = layout.pki("");
    fs::create_dir(&folder).with_context(|| format!("could not create {folder:?}"))?;
    let authority = Authority::create(layout)?;

    let api_server = ["localhost", "kubernetes.default", "kubernetes.default.svc"];
    let loopback: IpAddr = [127, 0, 0, 1].into();
    let addresses = [loopback, network.node_ip(0), network.api_service_ip()];
    authority.server(layout, "apiserver", &api_server, &addresses)?;
    authority.client(layout, "kubelet-client", "kube-apiserver", Some("system:masters"))?;

    for (who, name, group) in [
        ("admin", "kubernetes-admin", Some("system:masters")),
        ("kube-controller-manager", "system:kube-controller-manager", None),
        ("kube-scheduler", "system:kube-scheduler", None),
    ] {
        authority.client(layout, who, name, group)?;
        write_kubeconfig(layout, network, who)?;
    }
    for (index, node) in (0..).zip(nodes) {
        authority.client(layout, node, &format!("system:node:{node}"), Some("system:nodes"))?;
        write_kubeconfig(layout, network, node)?;
        let server = format!("{node}-server");
        authority.server(layout, &server, &[node], &[loopback, network.node_ip(index)])?;
    }

    let service_accounts = KeyPair::generate()?;
    write_file(&layout.pki("service-accounts.key"), &service_accounts.serialize_pem())?;
    write_file(&layout.pki("service-accounts.pub"), &service_accounts.public_key_pem())
}

/// The one that everybody trusts.
struct Authority(Issuer<'static, KeyPair>);

impl Authority {
    fn create(layout: &Layout) -> Result<Self> {
        let mut params = named(&format!("tokentrail-{}", layout.name()), None);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::DigitalSignature];
        let key = KeyPair::generate()?;
        write_file(&layout.pki("ca.crt"), &params.self_signed(&key)?.pem())?;
        Ok(Self(Issuer::new(params, key)))
    }

    fn server(
        &self,
        layout: &Layout,
        file: &str,
        names: &[&str],
        addresses: &[IpAddr],
    ) -> Result<()> {
        let mut params = named(file, None);
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        for name in names {
            params.subject_alt_names.push(SanType::DnsName((*name).try_into()?));
        }
        params.subject_alt_names.extend(addresses.iter().copied().map(SanType::IpAddress));
        self.sign(layout, file, params)
    }

    fn client(&self, layout: &Layout, file: &str, name: &str, group: Option<&str>) -> Result<()> {
        let mut params = named(name, group);
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        self.sign(layout, file, params)
    }

    fn sign(&self, layout: &Layout, file: &str, mut params: CertificateParams) -> Result<()> {
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        let key = KeyPair::generate()?;
        let certificate = params.signed_by(&key, &self.0)?;
        write_file(&layout.pki(&format!("{file}.crt")), &certificate.pem())?;
        write_file(&layout.pki(&format!("{file}.key")), &key.serialize_pem())
    }
}

/// Kubernetes reads the user from the common name and the group from the organisation.
fn named(name: &str, group: Option<&str>) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = rcgen::DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, name);
    if let Some(group) = group {
        params.distinguished_name.push(DnType::OrganizationName, group);
    }
    params
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
