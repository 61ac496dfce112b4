//! The audit canary against a real API server: its clock and the log's delay, a policy that hides
//! the agent's own requests, and a server that does not answer, as `/statusz`, `/metrics` and
//! `tokentrail check` tell them. A cluster of its own: the API server is started with another policy.

use std::{
    fs::{self, File},
    path::PathBuf,
    process::{Child, Command, Stdio},
};

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};
use tokentrail_tests::{
    Finished, PATIENCE,
    cluster::{Cluster, ClusterNode, Options},
    tokentrail, wait_until,
};

/// A name that no developer uses.
const NAME: &str = "canary";
/// Where the agent listens, in the node's network.
const ADMIN: &str = "http://127.0.0.1:9464";

/// A one-node cluster and where the agent keeps its files.
struct Scene {
    cluster: Cluster,
    folder: PathBuf,
}

impl Scene {
    fn set() -> Result<Self> {
        Cluster::take_down(NAME)?;
        let cluster = Cluster::up(&Options { nodes: 1, ..Options::new(NAME)? })?;
        let folder = cluster.folder().join("agent");
        fs::create_dir(&folder)?;
        // The log is written before a request is answered: two seconds are plenty.
        let config = "audit-canary-seconds: 1\naudit-lateness-seconds: 2\n";
        fs::write(folder.join("config.yaml"), config)?;
        Ok(Self { cluster, folder })
    }

    fn node(&self) -> Result<&ClusterNode> {
        self.cluster.nodes().first().context("a cluster has a node")
    }

    /// The program in the node's network, where the API server is reached.
    fn tokentrail(&self, subcommand: &str) -> Result<Command> {
        let mut command = self.cluster.command(tokentrail().get_program().as_ref())?;
        command
            .args([subcommand, "--no-sensor", "--node-name", "node-a", "--config"])
            .arg(self.folder.join("config.yaml"))
            .arg("--audit-log")
            .arg(self.cluster.audit_log())
            .arg("--kubeconfig")
            .arg(self.cluster.kubeconfig())
            .arg("--alert-log")
            .arg(self.folder.join("alerts.ndjson"))
            .arg("--state-dir")
            .arg(self.folder.join("state"));
        Ok(command)
    }

    fn check(&self) -> Result<Finished> {
        self.cluster.run(&mut self.tokentrail("check")?)
    }

    fn start(&self) -> Result<Agent<'_>> {
        let log = self.folder.join("log");
        let mut run = self.tokentrail("run")?;
        let child = run.stdin(Stdio::null()).stdout(Stdio::null()).stderr(File::create(&log)?);
        Ok(Agent { scene: self, child: child.spawn()?, log })
    }
}

/// A running agent. Dropping it kills it.
struct Agent<'scene> {
    scene: &'scene Scene,
    child: Child,
    log: PathBuf,
}

impl Drop for Agent<'_> {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Agent<'_> {
    /// The whole of `/statusz`, once the canary is in this state.
    fn wait_for(&self, state: &str) -> Result<Value> {
        let url = format!("{ADMIN}/statusz");
        wait_until(PATIENCE, &format!("the canary is {state}"), || {
            // Until it listens, there is no answer at all.
            let Ok(answer) = self.scene.node()?.get(&url) else { return Ok(None) };
            let status: Value = serde_json::from_str(&answer.body)?;
            let found = |status: &Value| {
                status.pointer("/audit_canary/state").and_then(Value::as_str) == Some(state)
            };
            Ok(Some(status).filter(found))
        })
        .with_context(|| format!("the agent wrote:\n{}", self.log()))
    }

    fn log(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_default()
    }

    fn is_ready(&self) -> Result<bool> {
        Ok(self.scene.node()?.get(&format!("{ADMIN}/readyz"))?.status == 200)
    }

    fn metric(&self, name: &str) -> Result<f64> {
        let text = self.scene.node()?.get(&format!("{ADMIN}/metrics"))?.body;
        let name = format!("tokentrail_audit_canary_{name} ");
        let value = text.lines().find_map(|line| line.strip_prefix(&name));
        Ok(value.with_context(|| format!("{name} is not in\n{text}"))?.parse()?)
    }
}

#[test]
fn own_requests_come_back_and_whatever_keeps_them_from_it_is_told() {
    let scene = Scene::set().unwrap();
    let agent = scene.start().unwrap();

    // One machine, one clock: the true offset is 0.
    let status = agent.wait_for("heard").unwrap();
    let measured = |name: &str| status["audit_canary"][name].as_i64().unwrap();
    let (offset, error) = (measured("clock_offset_us"), measured("clock_offset_error_us"));
    assert!(offset.abs() <= error + 2, "{status:#}");
    assert!(measured("delay_us") >= -error - 2, "nothing is read before it happened: {status:#}");
    assert!(!status["degraded"].to_string().contains("canary"), "{status:#}");
    assert!(agent.metric("heard_total{whose=\"own\"}").unwrap() >= 1.0);
    assert!(agent.metric("requests_total{result=\"answered\"}").unwrap() >= 1.0);
    assert!(agent.metric("silent").unwrap() < 0.5);
    let error = agent.metric("clock_offset_error_seconds").unwrap();
    assert!(agent.metric("clock_offset_seconds").unwrap().abs() <= error + 2e-6);
    assert!(agent.metric("delay_seconds").unwrap() >= -error - 2e-6);
    let checked = scene.check().unwrap();
    assert!(checked.success(), "{checked:?}");
    assert!(line_of(&checked, "audit canary").unwrap().starts_with("ok "), "{checked:?}");

    hide_the_agent(&scene).unwrap();
    let status = agent.wait_for("silent").unwrap();
    assert!(status["degraded"].to_string().contains("audit policy hides"), "{status:#}");
    assert!(agent.metric("silent").unwrap() > 0.5);
    assert!(agent.is_ready().unwrap(), "silence is told, it is no reason to stop");
    let checked = scene.check().unwrap();
    assert!(checked.success(), "{checked:?}");
    let line = line_of(&checked, "audit canary").unwrap();
    assert!(line.starts_with("WARNING") && line.contains("audit policy hides"), "{line}");

    scene.cluster.restart_api_server(&[]).unwrap();
    agent.wait_for("heard").unwrap();

    let frozen = scene.cluster.freeze_api_server().unwrap();
    let status = agent.wait_for("unanswered").unwrap();
    assert!(status["audit_canary"]["detail"].to_string().contains("did not answer"), "{status:#}");
    assert!(agent.is_ready().unwrap());
    frozen.mend().unwrap();
    agent.wait_for("heard").unwrap();
    assert!(agent.metric("silent").unwrap() < 0.5);
    assert!(agent.log().contains("audit policy hides"), "{}", agent.log());
    drop(agent);
    scene.cluster.down().unwrap();
}

/// Starts the API server with a policy by which nobody hears of the agent's account.
fn hide_the_agent(scene: &Scene) -> Result<()> {
    let path = scene.folder.join("policy.json");
    let policy = json!({
        "apiVersion": "audit.k8s.io/v1",
        "kind": "Policy",
        "rules": [{"level": "None", "users": ["kubernetes-admin"]}, {"level": "Metadata"}],
    });
    fs::write(&path, policy.to_string())?;
    // The later of two options of the same name holds.
    scene.cluster.restart_api_server(&[format!("--audit-policy-file={}", path.display())])
}

/// The line about one thing that was looked at.
fn line_of<'output>(finished: &'output Finished, what: &str) -> Result<&'output str> {
    let line = finished.output.lines().find(|line| line.contains(what));
    ensure!(line.is_some(), "{what} is not in {finished:?}");
    Ok(line.unwrap_or_default())
}
