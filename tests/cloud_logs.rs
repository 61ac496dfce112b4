//! Audit events where no agent can read the API server's file: from standard input, and wrapped as the log
//! services of clouds deliver them. Whatever the form, it alerts as the plain line does.
#![expect(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "a helper of a test fails as the test does; what a document lacks is null"
)]

use std::{fs, path::Path};

use serde_json::Value;
use tokentrail_tests::{
    AgentSetup, Alerts, AuditLine, Broker, Node, PATIENCE, Pod, Request, Sandbox, Stage,
    tokentrail, wait_until,
    wrapped::{Form, cloud_audit},
};

const FIXTURES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/fixtures");

fn request_by(pod: &Pod) -> AuditLine {
    AuditLine::recorded(Request::ListPods, Stage::ResponseComplete, pod).unwrap()
}

#[test]
fn what_cloudwatch_delivers_to_the_input_of_an_audit_side_alerts_where_the_token_was_opened() {
    let sandbox = Sandbox::create().unwrap();
    let broker = Broker::start(&sandbox).unwrap();
    let mut node = Node::new(&sandbox).unwrap();
    node.agent = node.agent.without_audit_log().args(broker.arguments());
    let side = AgentSetup::new(&sandbox, "-")
        .reading_stdin()
        .node_name("collector")
        .state(sandbox.folder().join("state-side"))
        .alert_log(sandbox.folder().join("alerts-side.ndjson"))
        .args(["--no-sensor".to_owned()])
        .args(broker.arguments());
    let mut side = side.start().unwrap();
    let _agent = node.agent.start().unwrap();
    for (asked, form) in [(1.0, Form::CloudWatchSubscription), (2.0, Form::AwsLogsTail)] {
        let victim = node.workload().unwrap();
        // Read before anybody asked, as who got in was.
        let session = AuditLine::session(&victim.pod).unwrap();
        side.feed(&form.wrap(&[session.text()])).unwrap();
        victim.attack().unwrap();
        side.wait_for_metric("tokentrail_nats_interests", &[], asked).unwrap();
        let text = form.wrap(&[request_by(&victim.pod).text()]);
        // A pipe's reader gets what there is, not lines.
        let (front, back) = text.split_at(text.len() / 2);
        side.feed(front).unwrap();
        side.feed(back).unwrap();
        let alert = node.wait_for("alert", &victim.pod).unwrap();
        assert_eq!(alert["client"]["user"]["name"], "admin", "{alert:#}");
        node.the_alert_about(&victim.pod).unwrap();
    }
    assert_eq!(side.status().unwrap()["audit"], "standard input on this node");
    let bad = side.metric("tokentrail_audit_bad_lines_total", &[]).unwrap();
    assert!(bad < 0.5, "{bad} bad lines");
}

#[test]
fn an_agent_whose_input_has_ended_tells_what_came_and_is_not_ready() {
    let sandbox = Sandbox::create().unwrap();
    let mut node = Node::new(&sandbox).unwrap();
    node.agent = node.agent.reading_stdin();
    let mut agent = node.agent.start().unwrap();
    let victim = node.workload().unwrap();
    victim.attack().unwrap();
    // The last line has no end, as that of a writer who was killed.
    agent.feed(request_by(&victim.pod).text()).unwrap();
    agent.end_input();
    node.wait_for("alert", &victim.pod).unwrap();
    let says = "standard input has ended: whoever wrote audit events to it is gone; start this agent again";
    wait_until(PATIENCE, "the agent is not ready", || {
        let ready = agent.get("/readyz")?;
        Ok((ready.status == 503 && ready.body.contains(says)).then_some(()))
    })
    .unwrap();
    let condition = &agent.status().unwrap()["conditions"]["standard input"];
    assert!(condition.to_string().contains(says), "{condition}");
    assert!(agent.log().contains("standard input has ended"), "{}", agent.log());
    // It goes on with all else, and ends as any agent.
    assert_eq!(agent.get("/livez").unwrap().status, 200);
    assert!(agent.terminate().unwrap().success());
}

#[test]
fn a_followed_file_may_hold_any_form_and_a_restart_repeats_nothing() {
    let sandbox = Sandbox::create().unwrap();
    let node = Node::new(&sandbox).unwrap();
    let mut agent = node.agent.start().unwrap();
    let mut victims = Vec::new();
    for form in Form::ALL {
        let victim = node.workload().unwrap();
        victim.attack().unwrap();
        node.wait_until_seen(&victim).unwrap();
        let wrapped = form.wrap(&[request_by(&victim.pod).text()]);
        if form == Form::AksRecords {
            // Killed while the line is being written, whose first event it has read by then.
            let (front, back) = wrapped.split_at(wrapped.len() - 3);
            node.audit.append_bytes(front.as_bytes()).unwrap();
            node.wait_for("alert", &victim.pod).unwrap();
            agent.kill().unwrap();
            node.audit.append_bytes(back.as_bytes()).unwrap();
            agent = node.agent.start().unwrap();
        } else {
            node.audit.append_bytes(wrapped.as_bytes()).unwrap();
        }
        node.wait_for("alert", &victim.pod).unwrap();
        victims.push(victim);
    }
    node.settle().unwrap();
    for victim in &victims {
        node.the_alert_about(&victim.pod).unwrap();
    }
    let bad = agent.metric("tokentrail_audit_bad_lines_total", &[]).unwrap();
    assert!(bad < 0.5, "{bad} bad lines");
}

#[test]
fn google_clouds_audit_log_is_known_counted_and_said_once() {
    let sandbox = Sandbox::create().unwrap();
    let node = Node::new(&sandbox).unwrap();
    let agent = node.agent.start().unwrap();
    let victim = node.workload().unwrap();
    victim.attack().unwrap();
    let entry = cloud_audit(request_by(&victim.pod).text());
    for _ in 0..3 {
        node.audit.append_bytes(entry.as_bytes()).unwrap();
    }
    let reason = ["reason=\"cloud_audit\""];
    agent.wait_for_metric("tokentrail_audit_bad_lines_total", &reason, 3.0).unwrap();
    node.settle().unwrap();
    assert!(node.alerts_about(&victim.pod).unwrap().is_empty());
    let log = agent.log();
    assert_eq!(log.matches("Google Cloud's audit log: they name no pod").count(), 1, "{log}");
}

/// What a replay of an audit log tells, but for the time at which it does.
fn replayed(sandbox: &Sandbox, semantics: &str, audit: &Path) -> Vec<Value> {
    let output = sandbox.folder().join("replayed.ndjson");
    let opens = format!("{FIXTURES}/opens/cart-0.ndjson");
    let mut replay = tokentrail();
    replay.args(["replay", "--semantics", semantics, "--opens", &opens, "--audit"]).arg(audit);
    let finished = sandbox.run(replay.arg("-o").arg(&output)).unwrap();
    assert_eq!(finished.code, Some(0), "{finished:?}");
    let mut documents = Alerts::at(&output).all().unwrap();
    fs::remove_file(&output).unwrap();
    documents.iter_mut().for_each(|it| it["event"]["created"] = Value::Null);
    documents
}

#[test]
fn a_replay_of_each_form_tells_what_that_of_the_plain_lines_tells() {
    let sandbox = Sandbox::create().unwrap();
    let recorded = ["pod-allowed", "token-request-user"]
        .map(|it| fs::read_to_string(format!("{FIXTURES}/audit/{it}.ndjson")).unwrap());
    let plain = sandbox.folder().join("plain.ndjson");
    fs::write(&plain, recorded.concat()).unwrap();
    for (semantics, alerts) in [("live", 4), ("elastic", 3)] {
        let expected = replayed(&sandbox, semantics, &plain);
        assert_eq!(expected.len(), alerts);
        for form in Form::ALL {
            let wrapped = format!("{FIXTURES}/wrapped/{}.ndjson", form.name());
            let found = replayed(&sandbox, semantics, Path::new(&wrapped));
            assert_eq!(found, expected, "{form:?}, {semantics}");
        }
    }
    // As the harness makes them, so that what is tested is what is kept.
    let lines: Vec<_> = recorded.iter().flat_map(|text| text.lines()).collect();
    for form in Form::ALL {
        let kept = fs::read_to_string(format!("{FIXTURES}/wrapped/{}.ndjson", form.name()));
        assert_eq!(kept.unwrap(), form.wrap(&lines), "run `cargo xtask fixtures --wrapped`");
    }
}
