//! The audit canary of a node that has no audit source of its own: its request comes back from the log that another
//! agent reads, over a real NATS server, or does not, and that is told. A stand-in for the API server writes the log;
//! `audit_canary` has a real one.
#![expect(clippy::unwrap_used, reason = "a helper of a test fails as the test does")]

use std::fs;

use anyhow::Context as _;
use serde_json::Value;
use tokentrail_tests::{
    Agent, AgentSetup, Broker, Node, PATIENCE, Sandbox, api, tokentrail, wait_until,
};

/// A node with a canary each second, and two agents that read the log for it.
struct Scene<'sandbox> {
    node: Node<'sandbox>,
    sides: [AgentSetup<'sandbox>; 2],
    arguments: Vec<String>,
}

impl<'sandbox> Scene<'sandbox> {
    fn new(sandbox: &'sandbox Sandbox, broker: &Broker<'_>) -> Self {
        let mut node = Node::new(sandbox).unwrap();
        let log = sandbox.folder().join("canaries.log");
        fs::write(&log, "").unwrap();
        let kubeconfig = api::serve_audited(sandbox, &[], &log).unwrap();
        let config = sandbox.folder().join("node.yaml");
        let keys = "audit-canary-seconds: 1\naudit-lateness-seconds: 2\naudit-webhook-lateness-seconds: 2\n";
        fs::write(&config, keys).unwrap();
        let mut arguments = vec!["--config".to_owned(), config.display().to_string()];
        arguments.extend(broker.arguments());
        node.agent = node.agent.without_audit_log().kubeconfig(&kubeconfig).args(arguments.clone());
        arguments.extend(["--kubeconfig".to_owned(), kubeconfig.display().to_string()]);
        let sides = ["node-a", "node-a2"].map(|name| {
            AgentSetup::new(sandbox, &log)
                .node_name(name)
                .state(sandbox.folder().join(format!("state-{name}")))
                .alert_log(sandbox.folder().join(format!("alerts-{name}.ndjson")))
                .args(["--no-sensor".to_owned()])
                .args(broker.arguments())
        });
        Self { node, sides, arguments }
    }

    /// What `tokentrail check` says on the node.
    fn check(&self, sandbox: &Sandbox) -> String {
        let mut check = tokentrail();
        check.args(["check", "--node-name", "node-b"]).args(&self.arguments);
        check.arg("--state-dir").arg(self.node.agent.state_dir());
        sandbox
            .run(check.arg("--alert-log").arg(sandbox.folder().join("check.ndjson")))
            .unwrap()
            .output
    }
}

fn wait_for(agent: &Agent, what: &str, wanted: impl Fn(&Value) -> bool) -> Value {
    let found = wait_until(PATIENCE, what, || Ok(Some(agent.status()?).filter(&wanted)));
    found.with_context(|| agent.get("/statusz").map(|it| it.body).unwrap_or_default()).unwrap()
}

fn is(state: &str) -> impl Fn(&Value) -> bool {
    move |status| status.pointer("/audit_canary/state").and_then(Value::as_str) == Some(state)
}

#[test]
fn own_requests_come_back_from_each_agent_that_reads_them_and_silence_is_told() {
    let sandbox = Sandbox::create().unwrap();
    let broker = Broker::start(&sandbox).unwrap();
    let scene = Scene::new(&sandbox, &broker);
    let agent = scene.node.agent.start().unwrap();
    let status =
        wait_for(&agent, "nobody is asked in vain", |it| it["nats"]["connected"].is_string());
    assert_eq!(status["audit_canary"]["state"], "starting", "{status:#}");
    let sides = scene.sides.each_ref().map(|side| side.start().unwrap());
    let status = wait_for(&agent, "both are heard", |it| {
        let side = |name: &str| it["nats"]["audit_sides"][name]["canary"]["delay_us"].is_i64();
        is("heard")(it) && side("node-a") && side("node-a2")
    });
    // One machine, one clock: the true offset is 0, and nothing is read before it happened.
    for side in ["node-a", "node-a2"] {
        let side = &status["nats"]["audit_sides"][side];
        let canary = |name: &str| side["canary"][name].as_i64().unwrap();
        let error = canary("clock_offset_error_us") + 2;
        assert!(canary("clock_offset_us").abs() <= error, "{status:#}");
        assert!(canary("delay_us") >= -error, "{status:#}");
        assert_eq!(side["connected"], true);
    }
    let source = &status["sources"]["NATS"];
    assert_eq!(source["connected"], "ok", "{status:#}");
    assert!(
        source["last_event"].is_string() && source["canary"]["heard"].is_string(),
        "{status:#}"
    );
    agent.wait_for_metric("tokentrail_audit_canary_heard_total", &[r#"whose="own""#], 2.0).unwrap();
    // At rest they say that once a minute; to who asks, at once.
    scene.node.workload().unwrap().attack().unwrap();
    wait_for(&agent, "sides say what they read last", |it| {
        it["nats"]["audit_sides"]["node-a"]["last_event"].is_string()
    });
    let checked = scene.check(&sandbox);
    assert!(checked.contains("while an agent runs here"), "{checked}");

    // As with a policy that hides the agent's account.
    let log = sandbox.folder().join("canaries.log");
    let hidden = sandbox.folder().join("hidden.log");
    fs::rename(&log, &hidden).unwrap();
    let status = wait_for(&agent, "nothing comes back", is("silent"));
    assert!(status["degraded"].to_string().contains("audit policy hides"), "{status:#}");
    assert_eq!(agent.get("/readyz").unwrap().status, 200, "silence is told, it is no failure");
    fs::rename(&hidden, &log).unwrap();
    wait_for(&agent, "it comes back again", is("heard"));

    assert!(agent.terminate().unwrap().success());
    let checked = scene.check(&sandbox);
    for side in ["node-a", "node-a2"] {
        assert!(checked.contains(&format!("audit side {side}: read ")), "{checked}");
        assert!(checked.contains(&format!("{side}: newest event 20")), "{checked}");
    }
    drop(sides);
}

#[test]
fn where_no_audit_side_is_check_says_so() {
    let sandbox = Sandbox::create().unwrap();
    let broker = Broker::start(&sandbox).unwrap();
    let scene = Scene::new(&sandbox, &broker);
    let checked = scene.check(&sandbox);
    let says = |what: &str, part: &str| {
        let is_it =
            |line: &str| line.starts_with("WARNING") && line.contains(what) && line.contains(part);
        assert!(checked.lines().any(is_it), "{checked}");
    };
    says("audit side", "no audit side answers for this cluster over NATS");
    says("audit canary", "no audit side that sends it is heard over NATS");
}
