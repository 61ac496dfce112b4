//! What must not alert: opens and requests that look like an attack's and are none.
//!
//! Silence is never waited for. Each scenario ends with an attack on another pod; once that has
//! alerted, all that came before has gone through the agent.
#![expect(clippy::unwrap_used, reason = "a helper of a test fails as the test does")]

use std::fs;

use jiff::{SignedDuration, Timestamp};
use serde_json::{Value, json};
use tokentrail_tests::{
    AuditLine, Node, PATIENCE, Request, SERVICE_ACCOUNT_FOLDER, Sandbox, Stage, Workload,
    wait_until,
};

/// What a kube-apiserver wrote in an hour of a small cluster's life.
const RECORDED: &str = include_str!("fixtures/audit/kube-apiserver.ndjson");

fn assert_silent(node: &Node<'_>, workload: &Workload) {
    node.settle().unwrap();
    let alerts = node.alerts_about(&workload.pod).unwrap();
    assert!(alerts.is_empty(), "{alerts:#?}");
}

#[test]
fn a_workload_that_reads_its_own_token_and_uses_it_is_left_alone() {
    let sandbox = Sandbox::create().unwrap();
    let node = Node::new(&sandbox).unwrap();
    let agent = node.agent.start().unwrap();
    let workload = node.workload().unwrap();
    node.wait_until_seen(&workload).unwrap();
    node.request_by(&workload.pod).unwrap();
    agent.wait_for_metric("tokentrail_audit_records_total", &[], 1.0).unwrap();
    assert_silent(&node, &workload);
    let opens = node.opens_of(&workload.pod).unwrap();
    assert_eq!(opens.len(), 1, "{opens:#?}");
}

#[test]
fn a_request_that_was_received_before_the_open_is_no_consequence_of_it() {
    let sandbox = Sandbox::create().unwrap();
    let node = Node::new(&sandbox).unwrap();
    let agent = node.agent.start().unwrap();
    let workload = node.workload().unwrap();
    let line = |request| AuditLine::recorded(request, Stage::ResponseComplete, &workload.pod);
    // One line is there before the open, one comes after it, as lines of long requests do.
    let (early, late) = (line(Request::ListPods).unwrap(), line(Request::GetSecret).unwrap());
    node.audit.append(&early).unwrap();
    agent.wait_for_metric("tokentrail_audit_records_total", &[], 1.0).unwrap();
    workload.attack().unwrap();
    node.wait_until_seen(&workload).unwrap();
    node.audit.append(&late).unwrap();
    assert_silent(&node, &workload);
    // The exposure is there: a request of now does alert.
    node.request_by(&workload.pod).unwrap();
    node.wait_for("alert", &workload.pod).unwrap();
}

#[test]
fn a_request_after_the_window_is_no_consequence_of_the_open() {
    let sandbox = Sandbox::create().unwrap();
    let node = Node::new(&sandbox).unwrap();
    let _agent = node.agent.start().unwrap();
    let workload = node.workload().unwrap();
    workload.attack().unwrap();
    node.wait_until_seen(&workload).unwrap();
    let open = node.opens_of(&workload.pod).unwrap()[0]["@timestamp"].clone();
    let open: Timestamp = open.as_str().unwrap().parse().unwrap();
    let received = open + SignedDuration::from_millis(60_001);
    let line = AuditLine::recorded(Request::ListPods, Stage::ResponseComplete, &workload.pod)
        .unwrap()
        .at(received, received);
    node.audit.append(&line).unwrap();
    assert_silent(&node, &workload);
}

#[test]
fn what_others_do_with_the_api_server_is_not_blamed_on_the_pod_whose_token_was_read() {
    let sandbox = Sandbox::create().unwrap();
    let node = Node::new(&sandbox).unwrap();
    let agent = node.agent.start().unwrap();
    let [workload, other] = [node.workload().unwrap(), node.workload().unwrap()];
    workload.attack().unwrap();
    node.wait_until_seen(&workload).unwrap();
    // Another pod of the same service account, namespace and node.
    node.request_by(&other.pod).unwrap();
    let mut lines = 1.0;
    for line in RECORDED.lines() {
        let mut event: Value = serde_json::from_str(line).unwrap();
        now(&mut event);
        // Whom somebody acts as, what a request is about and what it carries: all of this a
        // client chooses. Only `user` tells who it was.
        event["auditID"] = json!(workload.pod.uid);
        event["impersonatedUser"] = json!({
            "username": "system:serviceaccount:shop:cart",
            "extra": {"authentication.kubernetes.io/pod-uid": [workload.pod.uid]},
        });
        event["userAgent"] = json!(workload.pod.uid);
        event["requestObject"] = json!({
            "kind": "TokenRequest",
            "spec": {"boundObjectRef": {"kind": "Pod", "uid": workload.pod.uid}},
            "user": {"extra": {"authentication.kubernetes.io/pod-uid": [workload.pod.uid]}},
        });
        node.audit.append_bytes(format!("{event}\n").as_bytes()).unwrap();
        lines += 1.0;
    }
    agent.wait_for_metric("tokentrail_audit_lines_total", &[], lines).unwrap();
    assert_silent(&node, &workload);
    assert_silent(&node, &other);
    let bad = agent.metric("tokentrail_audit_bad_lines_total", &[]).unwrap();
    assert!(bad.abs() < f64::EPSILON, "{}", agent.log());
}

#[test]
fn requests_that_nobody_was_authenticated_for_or_that_carry_no_pod_are_nobodys() {
    let sandbox = Sandbox::create().unwrap();
    let node = Node::new(&sandbox).unwrap();
    let agent = node.agent.start().unwrap();
    let workload = node.workload().unwrap();
    workload.attack().unwrap();
    node.wait_until_seen(&workload).unwrap();
    let line = AuditLine::recorded(Request::ListPods, Stage::ResponseComplete, &workload.pod);
    let line: Value = serde_json::from_str(line.unwrap().text()).unwrap();
    for user in [
        // An invalid token: the API server knows no user.
        json!({}),
        json!({"username": "system:anonymous", "groups": ["system:unauthenticated"]}),
        // A token from a Secret: it is bound to no pod.
        json!({"username": "system:serviceaccount:shop:cart", "uid": line["user"]["uid"]}),
        json!({"username": "system:serviceaccount:shop:cart", "extra": {
            "authentication.kubernetes.io/pod-name": [workload.pod.name],
        }}),
    ] {
        let mut event = line.clone();
        event["user"] = user;
        event["responseStatus"] = json!({"metadata": {}, "code": 401});
        node.audit.append_bytes(format!("{event}\n").as_bytes()).unwrap();
    }
    agent.wait_for_metric("tokentrail_audit_lines_total", &[], 4.0).unwrap();
    assert_silent(&node, &workload);
}

#[test]
fn a_kubelet_that_writes_a_new_token_has_not_read_one() {
    let sandbox = Sandbox::create().unwrap();
    let node = Node::new(&sandbox).unwrap();
    let _agent = node.agent.start().unwrap();
    let mut workload = node.workload().unwrap();
    workload.pod.rotate_token().unwrap();
    node.wait_until_seen(&workload).unwrap();
    node.request_by(&workload.pod).unwrap();
    assert_silent(&node, &workload);
    let opens = node.opens_of(&workload.pod).unwrap();
    assert_eq!(opens.len(), 1, "the workload's own read alone: {opens:#?}");
}

#[test]
fn the_namespace_file_and_files_that_only_look_like_tokens_are_nobodys_secret() {
    let sandbox = Sandbox::create().unwrap();
    let node = Node::new(&sandbox).unwrap();
    let _agent = node.agent.start().unwrap();
    let workload = node.workload().unwrap();
    let container = &workload.container;
    let namespace = container.exec_tty(&["cat", &format!("{SERVICE_ACCOUNT_FOLDER}/namespace")]);
    assert!(namespace.unwrap().output.contains("shop"));
    // On disk, and on a tmpfs that is no token volume.
    for folder in ["/tmp", "/dev/shm"] {
        let command = format!("echo mine > {folder}/token && cat {folder}/token");
        assert!(container.exec_tty(&["sh", "-c", &command]).unwrap().output.contains("mine"));
    }
    let home = sandbox.tmpfs("home", rustix::mount::MountFlags::empty(), c"size=64k").unwrap();
    fs::write(home.join("token"), "mine").unwrap();
    assert_eq!(fs::read_to_string(home.join("token")).unwrap(), "mine");
    node.request_by(&workload.pod).unwrap();
    assert_silent(&node, &workload);
    assert_eq!(node.opens_of(&workload.pod).unwrap(), Vec::<Value>::new());
}

#[test]
fn an_open_that_no_request_follows_is_held_and_nothing_is_told_yet() {
    let sandbox = Sandbox::create().unwrap();
    let node = Node::new(&sandbox).unwrap();
    let agent = node.agent.start().unwrap();
    let workload = node.workload().unwrap();
    workload.attack().unwrap();
    node.wait_until_seen(&workload).unwrap();
    wait_until(PATIENCE, "the open is counted as held", || {
        Ok((agent.status()?["correlation"]["exposures"].as_u64() >= Some(1)).then_some(()))
    })
    .unwrap();
    assert!(node.agent.alerts().all().unwrap().is_empty());
}

/// As if it had happened just now.
fn now(event: &mut Value) {
    let now = Timestamp::now().strftime("%Y-%m-%dT%H:%M:%S.%6fZ").to_string();
    event["requestReceivedTimestamp"] = json!(now);
    event["stageTimestamp"] = json!(now);
}
