//! A real API server that posts its audit events to an agent: the alert that follows, and what
//! becomes of events while the agent is gone. In a cluster of this test's own, since an API server
//! reads the webhook's configuration when it starts.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
};

use anyhow::{Context as _, Result, ensure};
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, SanType,
};
use serde_json::{Value, json};
use tokentrail_tests::{
    Alerts, PATIENCE, Sandbox, TOKEN_PATH,
    cluster::{Cluster, ClusterNode, Options, victim::Victim},
    tokentrail, wait_until,
};

/// A name that no developer uses.
const NAME: &str = "hook";
/// In the network of the cluster's only node.
const WEBHOOK: &str = "127.0.0.1:9643";
const ADMIN: &str = "127.0.0.1:9464";
const TOKEN: &str = "a-token-for-one-api-server";

/// Certificates of the webhook and its client, and what either side is told about the other.
fn write_files(folder: &Path) -> Result<()> {
    let named = |name: &str| {
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, name);
        params
    };
    let mut params = named("webhook authority");
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::DigitalSignature];
    let key = KeyPair::generate()?;
    fs::write(folder.join("ca.crt"), params.self_signed(&key)?.pem())?;
    let authority = Issuer::new(params, key);
    let mut server = named("webhook");
    server.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    server.subject_alt_names = vec![SanType::IpAddress([127, 0, 0, 1].into())];
    let mut client = named("kube-apiserver");
    client.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
    for (name, params) in [("server", server), ("client", client)] {
        let key = KeyPair::generate()?;
        let certificate = params.signed_by(&key, &authority)?;
        fs::write(folder.join(format!("{name}.crt")), certificate.pem())?;
        fs::write(folder.join(format!("{name}.key")), key.serialize_pem())?;
    }
    fs::write(folder.join("tokens"), TOKEN)?;
    let at = |name: &str| folder.join(name);
    let kubeconfig = json!({
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": "tokentrail", "cluster": {
            "server": format!("https://{WEBHOOK}/"),
            "certificate-authority": at("ca.crt"),
        }}],
        "users": [{"name": "kube-apiserver", "user": {
            "client-certificate": at("client.crt"),
            "client-key": at("client.key"),
            "token": TOKEN,
        }}],
        "contexts": [{"name": "tokentrail", "context": {
            "cluster": "tokentrail", "user": "kube-apiserver",
        }}],
        "current-context": "tokentrail",
    });
    fs::write(at("webhook.kubeconfig"), kubeconfig.to_string())?;
    let config = json!({
        "audit-webhook": WEBHOOK,
        "audit-webhook-cert-file": at("server.crt"),
        "audit-webhook-key-file": at("server.key"),
        "audit-webhook-client-ca-file": at("ca.crt"),
        "audit-webhook-token-file": at("tokens"),
        "audit-webhook-lateness-seconds": 20,
        "alert-log": at("alerts.ndjson"),
        "state-dir": at("state"),
        "admin-listen": ADMIN,
    });
    fs::write(at("config.yaml"), config.to_string())?;
    Ok(())
}

/// An agent in the network of the API server; dropping it kills it.
struct Agent<'scene> {
    process: Child,
    node: &'scene ClusterNode,
    log: PathBuf,
}

impl<'scene> Agent<'scene> {
    fn start(cluster: &'scene Cluster, folder: &Path) -> Result<Self> {
        let node = cluster.node("node-a")?;
        let log = folder.join("agent.log");
        let stderr = fs::OpenOptions::new().create(true).append(true).open(&log)?;
        let process = Command::new("nsenter")
            .arg(format!("--net={}", node.netns().display()))
            .arg("--")
            .arg(tokentrail().get_program())
            .arg("run")
            .arg("--config")
            .arg(folder.join("config.yaml"))
            .arg("--kubelet-root")
            .arg(node.kubelet_root())
            .arg("--kubelet-cgroup")
            .arg(node.cgroup_root())
            .args(["--node-name", node.name(), "--kubeconfig"])
            .arg(cluster.kubeconfig())
            .stdin(Stdio::null())
            .stderr(stderr)
            .spawn()?;
        let mut agent = Self { process, node, log };
        wait_until(PATIENCE, "the agent is ready", || {
            ensure!(agent.process.try_wait()?.is_none(), "the agent ended");
            Ok(agent.get("/readyz").ok().filter(|it| it == "ok\n"))
        })
        .with_context(|| agent.said())?;
        Ok(agent)
    }

    fn get(&self, path: &str) -> Result<String> {
        Ok(self.node.get(&format!("http://{ADMIN}{path}"))?.body)
    }

    /// A sample of its metrics, by name and labels as they are written.
    fn metric(&self, sample: &str) -> Result<u64> {
        let text = self.get("/metrics")?;
        let value = text.lines().find_map(|line| line.strip_prefix(sample)?.trim().parse().ok());
        value.with_context(|| format!("no {sample} in\n{text}"))
    }

    fn wait_for_metric(&self, sample: &str, least: u64) -> Result<u64> {
        wait_until(PATIENCE, &format!("{sample} is at least {least}"), || {
            Ok(Some(self.metric(sample)?).filter(|value| *value >= least))
        })
        .with_context(|| self.said())
    }

    fn said(&self) -> String {
        format!("the agent wrote:\n{}", fs::read_to_string(&self.log).unwrap_or_default())
    }

    /// As an operating system ends programs when memory runs out.
    fn kill(mut self) -> Result<()> {
        self.process.kill()?;
        self.process.wait()?;
        Ok(())
    }
}

impl Drop for Agent<'_> {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// How many posts to the webhook failed, as the API server counts.
fn failed_posts(cluster: &Cluster) -> Result<u64> {
    let text = cluster.kubectl_ok(&["get", "--raw=/metrics"])?;
    let failed = text.lines().filter_map(|line| {
        let (labels, count) = line.strip_prefix("rest_client_requests_total{")?.rsplit_once(' ')?;
        let wanted = labels.contains("<error>") && labels.contains(WEBHOOK);
        count.parse::<u64>().ok().filter(|_| wanted)
    });
    Ok(failed.sum())
}

fn text<'value>(value: &'value Value, pointer: &str) -> &'value str {
    value.pointer(pointer).and_then(Value::as_str).unwrap_or_default()
}

fn run() -> Result<()> {
    let sandbox = Sandbox::create()?;
    let folder = sandbox.folder();
    write_files(folder)?;
    let mut options = Options::new(NAME)?;
    options.nodes = 1;
    options.api_server_args = vec![
        format!("--audit-webhook-config-file={}", folder.join("webhook.kubeconfig").display()),
        "--audit-webhook-batch-max-wait=500ms".to_owned(),
        // It tries five times, half as long again after each: for 40 s in all.
        "--audit-webhook-initial-backoff=5s".to_owned(),
    ];
    let cluster = Cluster::up(&options)?;
    let agent = Agent::start(&cluster, folder)?;
    let alerts = Alerts::at(folder.join("alerts.ndjson"));
    let answered =
        |answer: &str| format!("tokentrail_audit_webhook_requests_total{{answer=\"{answer}\"}}");

    let status: Value = serde_json::from_str(&agent.get("/statusz")?)?;
    let condition = format!("/conditions/audit webhook {WEBHOOK}");
    ensure!(text(&status, &condition) == "ok", "{status:#}");
    ensure!(text(&status, "/audit") == "a webhook on this node", "{status:#}");

    let victim = Victim::create(&cluster, agent.node, &json!({}))?;
    let ask = format!("apicall {}", victim.uri("pods"));
    victim.exec(&["-it"], &format!("cat {TOKEN_PATH} >/dev/null; {ask}"))?;
    let alert =
        alerts.wait_for("the alert", |it| victim.is_of(it)).with_context(|| agent.said())?;
    ensure!(text(&alert, "/tokentrail/grade") == "interactive", "{alert:#}");
    ensure!(text(&alert, "/client/user/name") == "kubernetes-admin", "{alert:#}");
    ensure!(text(&alert, "/kubernetes/audit/objectRef/resource") == "pods", "{alert:#}");

    // A request that comes while there is no agent. The open is in its journal by then.
    let second = Victim::create(&cluster, agent.node, &json!({}))?;
    let opens = "tokentrail_attribution_opens_total{grade=\"interactive\"}";
    let before = agent.metric(opens)?;
    second.exec(&["-it"], &format!("cp {TOKEN_PATH} /tmp/taken"))?;
    agent.wait_for_metric(opens, before + 1)?;
    ensure!(agent.metric(&answered("taken"))? > 0);
    for (sample, expected) in [
        (answered("busy"), 0),
        (answered("unauthenticated"), 0),
        (answered("cut"), 0),
        ("tokentrail_audit_bad_lines_total{reason=\"not_json\"}".to_owned(), 0),
        ("tokentrail_audit_bad_lines_total{reason=\"wrong_shape\"}".to_owned(), 0),
        ("tokentrail_audit_webhook_bad_bodies_total{reason=\"torn\"}".to_owned(), 0),
    ] {
        ensure!(agent.metric(&sample)? == expected, "{sample}\n{}", agent.get("/metrics")?);
    }
    agent.kill()?;
    let before = failed_posts(&cluster)?;
    let ask = format!("apicall --insecure --token-file /tmp/taken {}", second.uri("pods"));
    let done = second.exec(&[], &ask)?;
    ensure!(done.output.contains("200 "), "{done:?}");
    wait_until(PATIENCE, "the API server has tried to post it", || {
        Ok((failed_posts(&cluster)? > before).then_some(()))
    })?;
    let agent = Agent::start(&cluster, folder)?;
    let alert = alerts
        .wait_for("the alert of the request made meanwhile", |it| second.is_of(it))
        .with_context(|| agent.said())?;
    ensure!(text(&alert, "/tokentrail/grade") == "interactive", "{alert:#}");
    // `Alerts` sees to it that each id is there once.
    ensure!(alerts.matching(|it| victim.is_of(it) || second.is_of(it))?.len() == 2);
    drop(agent);
    cluster.down()?;
    sandbox.close()
}

#[test]
fn what_a_real_api_server_posts_alerts_at_once_and_after_the_agent_was_killed() {
    let result = run();
    assert!(result.is_ok(), "{:?}", result.err());
}
