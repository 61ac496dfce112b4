//! Alerts published over a real NATS server for whoever collects them: what an agent has in its alert log is there
//! under the name of its node, once, whatever is killed, and local alerts wait for nothing of it.
#![expect(clippy::unwrap_used, reason = "a helper of a test fails as the test does")]

use std::fs;

use jiff::Timestamp;
use serde_json::Value;
use tokentrail_tests::{
    Agent, AgentSetup, AuditLine, AuditLog, Broker, Node, PATIENCE, Pod, Request, Sandbox, Stage,
    Workload, wait_until,
};

fn node<'sandbox>(sandbox: &'sandbox Sandbox, broker: &Broker<'_>) -> Node<'sandbox> {
    let mut node = Node::new(sandbox).unwrap();
    node.agent = node.agent.args(broker.arguments());
    node
}

/// A pod that was attacked, and of which that is told.
fn attacked(node: &Node<'_>) -> Workload {
    let victim = node.workload().unwrap();
    victim.attack().unwrap();
    node.request_by(&victim.pod).unwrap();
    node.wait_for("alert", &victim.pod).unwrap();
    victim
}

fn id(alert: &Value) -> String {
    alert.pointer("/event/id").and_then(Value::as_str).unwrap().to_owned()
}

fn sorted(mut ids: Vec<String>) -> Vec<String> {
    ids.sort();
    ids
}

/// Ids of what is in the agent's log.
fn told(setup: &AgentSetup<'_>) -> Vec<String> {
    sorted(setup.alerts().all().unwrap().iter().map(id).collect())
}

/// Ids of what the broker has, each as often as it has it.
fn published(broker: &Broker<'_>) -> Vec<String> {
    sorted(broker.alerts().unwrap().iter().map(|(_, alert)| id(alert)).collect())
}

/// Waits until the broker has what the agent's log has, and as often.
fn wait_until_published(broker: &Broker<'_>, setup: &AgentSetup<'_>) {
    wait_until(PATIENCE, "all alerts are published", || {
        let (told, published) = (told(setup), published(broker));
        let mut once = published.clone();
        once.dedup();
        assert_eq!(published, once, "one is there twice");
        Ok((told == published).then_some(()))
    })
    .unwrap();
}

fn alerts_of(agent: &Agent) -> Value {
    agent.status().unwrap().pointer("/nats/alerts").unwrap().clone()
}

#[test]
fn an_alert_is_published_as_the_log_has_it_under_the_name_of_its_node() {
    let sandbox = Sandbox::create().unwrap();
    let broker = Broker::start(&sandbox).unwrap();
    let node = node(&sandbox, &broker);
    let agent = node.agent.start().unwrap();
    let victim = attacked(&node);
    wait_until_published(&broker, &node.agent);
    let alert = node.the_alert_about(&victim.pod).unwrap();
    assert!(broker.alerts().unwrap().contains(&("node-b".to_owned(), alert)));
    agent.wait_for_metric("tokentrail_nats_alerts_published_total", &[], 1.0).unwrap();
    wait_until(PATIENCE, "none waits", || {
        let alerts = alerts_of(&agent);
        Ok((alerts["waiting"] == 0 && alerts["last_published"].is_string()).then_some(()))
    })
    .unwrap();
    let log = fs::read_to_string(node.agent.alerts().path()).unwrap();
    assert!(!log.contains(&victim.pod.token), "and so it is in no message");
}

#[test]
fn a_broker_that_is_away_delays_no_alert_in_the_log_and_has_it_when_it_is_back() {
    let sandbox = Sandbox::create().unwrap();
    let mut broker = Broker::start(&sandbox).unwrap();
    let node = node(&sandbox, &broker);
    let agent = node.agent.start().unwrap();
    attacked(&node);
    wait_until_published(&broker, &node.agent);
    broker.kill().unwrap();
    attacked(&node);
    agent.wait_for_metric("tokentrail_nats_alerts_waiting", &[], 1.0).unwrap();
    // And the agent is gone as well, for a while.
    assert!(agent.terminate().unwrap().success());
    let agent = node.agent.spawn().unwrap();
    agent.wait_for_metric("tokentrail_nats_alerts_waiting", &[], 1.0).unwrap();
    broker.start_again().unwrap();
    wait_until_published(&broker, &node.agent);
}

#[test]
fn whatever_is_killed_and_however_often_each_alert_is_published_once() {
    let sandbox = Sandbox::create().unwrap();
    let mut broker = Broker::start(&sandbox).unwrap();
    let node = node(&sandbox, &broker);
    let mut agent = node.agent.start().unwrap();
    let seed = fastrand::u64(..);
    println!("seed {seed}");
    let mut random = fastrand::Rng::with_seed(seed);
    for _ in 0..12 {
        let victim = node.workload().unwrap();
        victim.attack().unwrap();
        node.wait_until_seen(&victim).unwrap();
        let restarts_broker = random.bool();
        if restarts_broker {
            broker.kill().unwrap();
        }
        node.request_by(&victim.pod).unwrap();
        // Anywhere from before the alert is written to after it is published.
        if random.bool() {
            node.wait_for("alert", &victim.pod).unwrap();
        }
        if random.bool() {
            let _: anyhow::Result<f64> = agent.metric("tokentrail_nats_connected", &[]);
        }
        agent.kill().unwrap();
        if restarts_broker {
            broker.start_again().unwrap();
        }
        agent = node.agent.spawn().unwrap();
        agent.wait_for_metric("tokentrail_nats_connected", &[], 1.0).unwrap();
        node.wait_for("alert", &victim.pod).unwrap();
    }
    wait_until_published(&broker, &node.agent);
    let lost = agent.metric("tokentrail_nats_alerts_given_up_total", &[r#"reason="rotated""#]);
    assert!(lost.unwrap() < 0.5);
}

#[test]
fn what_needs_no_open_is_published_once_however_many_audit_sides_hear_of_it() {
    let sandbox = Sandbox::create().unwrap();
    let broker = Broker::start(&sandbox).unwrap();
    let rules = sandbox.folder().join("rules.yaml");
    fs::write(&rules, "decoys: [shop/backup-admin]\n").unwrap();
    // As replicas of one Deployment: what is posted to both, or a stage to each.
    let logs = ["node-a", "node-a2"]
        .map(|name| AuditLog::create(sandbox.folder().join(format!("{name}.log"))).unwrap());
    let side =
        |name: &str, log| broker.side(name, log).args(["--rules-file".as_ref(), rules.as_os_str()]);
    let setups = [side("node-a", &logs[0]), side("node-a2", &logs[1])];
    let agents = [&setups[0], &setups[1]].map(|setup| setup.start().unwrap());
    let minted = AuditLine::mint("mallory", "shop", "cart").unwrap();
    let mut decoy = Pod::elsewhere("decoy");
    decoy.service_account = "backup-admin".to_owned();
    let received = Timestamp::now();
    let used = [Stage::RequestReceived, Stage::ResponseComplete].map(|stage| {
        let line = AuditLine::recorded(Request::GetSecret, stage, &decoy).unwrap();
        line.with_audit_id("one-request").at(received, received)
    });
    for (log, used) in logs.iter().zip(&used) {
        log.append(&minted).unwrap();
        log.append(used).unwrap();
    }
    for (setup, agent) in setups.iter().zip(&agents) {
        for rule in ["token-request-by-user", "decoy-used"] {
            setup.alerts().wait_for(rule, |it| it["rule"]["id"] == rule).unwrap();
        }
        wait_until(PATIENCE, "none waits", || {
            let alerts = alerts_of(agent);
            Ok((alerts["waiting"] == 0 && alerts["last_published"].is_string()).then_some(()))
        })
        .unwrap();
    }
    assert_eq!(told(&setups[0]), told(&setups[1]));
    assert_eq!(published(&broker), told(&setups[0]));
}

#[test]
fn a_broker_that_takes_no_alerts_is_told_so_and_keeps_nobody_from_asking() {
    let sandbox = Sandbox::create().unwrap();
    let login = "authorization { users: [ { user: all, password: x }, { user: agent, password: x, \
                 permissions: { publish: { deny: [\"tokentrail.test.alert.*\"] } } } ] }\n\
                 no_auth_user: all";
    let broker = Broker::bare(&sandbox, login).unwrap();
    broker.set_up().unwrap();
    let mut node = node(&sandbox, &broker);
    let (config, password) =
        (sandbox.folder().join("agent.yaml"), sandbox.folder().join("password"));
    fs::write(&password, "x").unwrap();
    let login = format!("nats-user: agent\nnats-password-file: {}\n", password.display());
    fs::write(&config, login).unwrap();
    node.agent = node.agent.args(["--config".as_ref(), config.as_os_str()]);
    let agent = node.agent.start().unwrap();
    attacked(&node);
    let says = |part: &str| {
        wait_until(PATIENCE, part, || {
            let failure = alerts_of(&agent)["failure"].to_string();
            Ok(failure.contains(part).then_some(()))
        })
        .unwrap();
    };
    says("check that this login may publish there");
    let connections = agent.metric("tokentrail_nats_connections_total", &[]).unwrap();
    assert!(connections < 1.5, "{connections}: the exchange goes on");
    assert_eq!(agent.get("/readyz").unwrap().status, 200);
    // Now it may, and there is no stream.
    let mut anybody = broker.log_in("all", "x", "_INBOX.test").unwrap();
    let gone = anybody.ask("$JS.API.STREAM.DELETE.ALERTS_tokentrail_test", "", b"").unwrap();
    assert_eq!(gone["success"], true, "{gone}");
    broker.reconfigure("deny: [\"tokentrail.test.alert.*\"]", "deny: [\"nothing\"]").unwrap();
    says("make it with `tokentrail nats setup`");
    broker.set_up().unwrap();
    wait_until_published(&broker, &node.agent);
    // And what is longer than it takes is given up, and said.
    let info = anybody.ask("$JS.API.STREAM.INFO.ALERTS_tokentrail_test", "", b"").unwrap();
    let mut config = info["config"].clone();
    config["max_msg_size"] = 64.into();
    let update = "$JS.API.STREAM.UPDATE.ALERTS_tokentrail_test";
    let updated = anybody.ask(update, "", config.to_string().as_bytes()).unwrap();
    assert!(updated.get("error").is_none(), "{updated}");
    attacked(&node);
    let given_up = "tokentrail_nats_alerts_given_up_total";
    agent.wait_for_metric(given_up, &[r#"reason="size""#], 1.0).unwrap();
    wait_until(PATIENCE, "that is said", || {
        Ok(agent.log().contains("an alert is longer than NATS takes").then_some(()))
    })
    .unwrap();
}
