//! A real API server that posts its audit events to an agent: the alert that follows, and what
//! becomes of events while the agent is gone or has no space for alerts. In a cluster of this test's own, since an API server
//! reads the webhook's configuration when it starts.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
};

use anyhow::{Context as _, Result, ensure};
use rustix::mount::MountFlags;
use serde_json::{Value, json};
use tokentrail_tests::{
    Alerts, Authority, PATIENCE, Sandbox, TOKEN_PATH,
    cluster::{Cluster, ClusterNode, Options, victim::Victim},
    fill, tokentrail, wait_until,
};

/// A name that no developer uses.
const NAME: &str = "hook";
/// In the network of the cluster's only node.
const WEBHOOK: &str = "127.0.0.1:9643";
const ADMIN: &str = "127.0.0.1:9464";
const TOKEN: &str = "a-token-for-one-api-server";

/// Certificates of the webhook and its client, and what either side is told about the other.
fn write_files(folder: &Path) -> Result<()> {
    let authority = Authority::new("webhook authority")?;
    fs::write(folder.join("ca.crt"), authority.pem())?;
    authority.server("webhook", &[], &[[127, 0, 0, 1].into()])?.write(folder, "server")?;
    authority.client("kube-apiserver", None)?.write(folder, "client")?;
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
        "alert-log": at("alerts/alerts.ndjson"),
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

/// The cluster, and where the agent writes.
struct Scene<'scene> {
    cluster: &'scene Cluster,
    folder: &'scene Path,
    alerts: Alerts,
}

impl Scene<'_> {
    fn start_agent(&self) -> Result<Agent<'_>> {
        Agent::start(self.cluster, self.folder)
    }

    fn victim(&self) -> Result<Victim<'_>> {
        Victim::create(self.cluster, self.cluster.node("node-a")?, &json!({}))
    }

    /// The alert about this victim: `Alerts` sees to it that each id is there once.
    fn alert(&self, victim: &Victim<'_>, agent: &Agent<'_>) -> Result<Value> {
        let wanted = |it: &Value| victim.is_of(it);
        let alert = self.alerts.wait_for("the alert", wanted).with_context(|| agent.said())?;
        ensure!(text(&alert, "/tokentrail/grade") == "interactive", "{alert:#}");
        ensure!(self.alerts.matching(wanted)?.len() == 1);
        Ok(alert)
    }

    fn an_attack_alerts(&self, agent: &Agent<'_>) -> Result<()> {
        let status: Value = serde_json::from_str(&agent.get("/statusz")?)?;
        let condition = format!("/conditions/audit webhook {WEBHOOK}");
        ensure!(text(&status, &condition) == "ok", "{status:#}");
        ensure!(text(&status, "/audit") == "a webhook on this node", "{status:#}");
        let victim = self.victim()?;
        victim.exec(&["-it"], &read_and_ask(&victim))?;
        let alert = self.alert(&victim, agent)?;
        ensure!(text(&alert, "/client/user/name") == "kubernetes-admin", "{alert:#}");
        ensure!(text(&alert, "/kubernetes/audit/objectRef/resource") == "pods", "{alert:#}");
        ensure!(agent.metric(&requests("taken"))? > 0);
        for sample in [
            requests("busy"),
            requests("unauthenticated"),
            requests("cut"),
            "tokentrail_audit_bad_lines_total{reason=\"not_json\"}".to_owned(),
            "tokentrail_audit_bad_lines_total{reason=\"wrong_shape\"}".to_owned(),
            "tokentrail_audit_webhook_bad_bodies_total{reason=\"no_items\"}".to_owned(),
            "tokentrail_audit_webhook_bad_bodies_total{reason=\"torn\"}".to_owned(),
        ] {
            ensure!(agent.metric(&sample)? == 0, "{sample}\n{}", agent.get("/metrics")?);
        }
        Ok(())
    }

    /// The open is in the agent's journal, the request with the API server.
    fn a_request_made_while_there_is_no_agent_alerts_afterwards(
        &self,
        agent: Agent<'_>,
    ) -> Result<Agent<'_>> {
        let victim = self.victim()?;
        let opens = "tokentrail_attribution_opens_total{grade=\"interactive\"}";
        let before = agent.metric(opens)?;
        victim.exec(&["-it"], &format!("cp {TOKEN_PATH} /tmp/taken"))?;
        agent.wait_for_metric(opens, before + 1)?;
        agent.kill()?;
        let before = failed_posts(self.cluster)?;
        let ask = format!("apicall --insecure --token-file /tmp/taken {}", victim.uri("pods"));
        let done = victim.exec(&[], &ask)?;
        ensure!(done.output.contains("200 "), "{done:?}");
        wait_until(PATIENCE, "the API server has tried to post it", || {
            Ok((failed_posts(self.cluster)? > before).then_some(()))
        })?;
        let agent = self.start_agent()?;
        self.alert(&victim, &agent)?;
        Ok(agent)
    }

    /// Nothing is acknowledged then, and the API server comes again and again with the same.
    fn while_alerts_find_no_space_posts_are_shed(&self, agent: &Agent<'_>) -> Result<()> {
        let disk = self.alerts.path().parent().context("it has no folder")?;
        let filler = fill(disk)?;
        let victim = self.victim()?;
        victim.exec(&["-it"], &read_and_ask(&victim))?;
        agent.wait_for_metric("tokentrail_alert_log_pending_lines", 1)?;
        let taken = agent.metric(&requests("taken"))?;
        agent.wait_for_metric(&requests("busy"), 1)?;
        agent.wait_for_metric("tokentrail_audit_webhook_duplicates_total", 1)?;
        let now = agent.metric(&requests("taken"))?;
        ensure!(now == taken, "{taken} posts were taken, then {now}");
        ensure!(self.alerts.matching(|it| victim.is_of(it))?.is_empty());
        fs::remove_file(&filler)?;
        self.alert(&victim, agent)?;
        agent.wait_for_metric(&requests("taken"), taken + 1).map(drop)
    }
}

/// Shell: the program that asks reads the token itself.
fn read_and_ask(victim: &Victim<'_>) -> String {
    format!("cat {TOKEN_PATH} >/dev/null; apicall {}", victim.uri("pods"))
}

fn requests(answer: &str) -> String {
    format!("tokentrail_audit_webhook_requests_total{{answer=\"{answer}\"}}")
}

fn run() -> Result<()> {
    let sandbox = Sandbox::create()?;
    let folder = sandbox.folder();
    sandbox.tmpfs("alerts", MountFlags::empty(), c"size=128k")?;
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
    let alerts = Alerts::at(folder.join("alerts/alerts.ndjson"));
    let scene = Scene { cluster: &cluster, folder, alerts };
    let agent = scene.start_agent()?;
    scene.an_attack_alerts(&agent)?;
    let agent = scene.a_request_made_while_there_is_no_agent_alerts_afterwards(agent)?;
    scene.while_alerts_find_no_space_posts_are_shed(&agent)?;
    drop(agent);
    cluster.down()?;
    sandbox.close()
}

#[test]
fn what_a_real_api_server_posts_alerts_also_after_kills_and_full_disks() {
    let result = run();
    assert!(result.is_ok(), "{:?}", result.err());
}
