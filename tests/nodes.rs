//! More than one node: a token is opened on one, the request is in the audit log of another, and a real NATS
//! server is between them. Whatever is away for a while, each attack alerts once.
#![expect(clippy::unwrap_used, reason = "a helper of a test fails as the test does")]

use tokentrail_tests::{Agent, AgentSetup, AuditLog, Broker, Node, Sandbox};

/// The node whose agent has a sensor and no audit log, and one that follows the log for it.
struct Scene<'sandbox> {
    /// Where tokens are opened; `audit` is what the other one follows.
    node: Node<'sandbox>,
    side: AgentSetup<'sandbox>,
}

impl<'sandbox> Scene<'sandbox> {
    fn new(sandbox: &'sandbox Sandbox, broker: &Broker<'_>) -> Self {
        let mut node = Node::new(sandbox).unwrap();
        node.agent = node.agent.without_audit_log().args(broker.arguments());
        let side = side(sandbox, "node-a", &node.audit, broker);
        Self { node, side }
    }
}

/// An agent that follows a log for others.
fn side<'sandbox>(
    sandbox: &'sandbox Sandbox,
    name: &str,
    log: &AuditLog,
    broker: &Broker<'_>,
) -> AgentSetup<'sandbox> {
    AgentSetup::new(sandbox, log.path())
        .node_name(name)
        .state(sandbox.folder().join(format!("state-{name}")))
        .alert_log(sandbox.folder().join(format!("alerts-{name}.ndjson")))
        .args(["--no-sensor".to_owned()])
        .args(broker.arguments())
}

/// Waits until it asks about at least so many pods more than `before`.
fn wait_until_asked(side: &Agent) {
    side.wait_for_metric("tokentrail_nats_interests", &[], 1.0).unwrap();
}

#[test]
fn a_request_in_another_nodes_log_alerts_where_the_token_was_opened() {
    let sandbox = Sandbox::create().unwrap();
    let broker = Broker::start(&sandbox).unwrap();
    let scene = Scene::new(&sandbox, &broker);
    let side = scene.side.start().unwrap();
    let agent = scene.node.agent.start().unwrap();
    let victim = scene.node.workload().unwrap();
    victim.attack().unwrap();
    wait_until_asked(&side);
    scene.node.request_by(&victim.pod).unwrap();
    scene.node.wait_for("alert", &victim.pod).unwrap();
    let alert = scene.node.settled_alert_about(&victim.pod).unwrap();
    assert_eq!(alert["tokentrail"]["grade"], "interactive");
    assert_eq!(alert["kubernetes"]["audit"]["objectRef"]["resource"], "pods");
    assert!(scene.side.alerts().all().unwrap().is_empty(), "the audit side has nothing to tell");
    let status: serde_json::Value =
        serde_json::from_str(&agent.get("/statusz").unwrap().body).unwrap();
    assert_eq!(status["conditions"]["NATS"], "ok", "{status:#}");
    assert_eq!(status["audit"], "audit sides over NATS");
}
