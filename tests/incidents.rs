//! Which opens and requests make an incident: one alert, whatever comes before it and joins it.
#![expect(clippy::unwrap_used, reason = "a helper of a test fails as the test does")]

use jiff::{SignedDuration, Timestamp};
use serde_json::Value;
use tokentrail_tests::{AuditLine, Node, Request, Sandbox, Stage};

fn time(document: &Value, pointer: &str) -> Timestamp {
    document.pointer(pointer).unwrap().as_str().unwrap().parse().unwrap()
}

#[test]
fn a_refused_request_alerts_as_a_failure() {
    let sandbox = Sandbox::create().unwrap();
    let node = Node::new(&sandbox).unwrap();
    let _agent = node.agent.start().unwrap();
    let victim = node.workload().unwrap();
    victim.attack().unwrap();
    let line =
        AuditLine::recorded(Request::ListNodes, Stage::ResponseComplete, &victim.pod).unwrap();
    node.audit.append(&line).unwrap();
    let alert = node.settled_alert_about(&victim.pod).unwrap();
    assert_eq!(alert["event"]["outcome"], "failure");
    assert_eq!(alert["tokentrail"]["evidence"]["requests"][0]["code"], 403);
    assert_eq!(alert["tokentrail"]["evidence"]["requests"][0]["decision"], "forbid");
}

#[test]
fn a_pod_that_was_there_before_the_agent_alerts_as_well() {
    let sandbox = Sandbox::create().unwrap();
    let node = Node::new(&sandbox).unwrap();
    let victim = node.workload().unwrap();
    let _agent = node.agent.start().unwrap();
    victim.attack().unwrap();
    node.request_by(&victim.pod).unwrap();
    let alert = node.settled_alert_about(&victim.pod).unwrap();
    assert_eq!(alert["tokentrail"]["volume"], victim.pod.volume_name());
}

#[test]
fn a_token_that_the_kubelet_refreshed_is_followed_before_and_after() {
    let sandbox = Sandbox::create().unwrap();
    let node = Node::new(&sandbox).unwrap();
    let _agent = node.agent.start().unwrap();
    let [mut before, mut after] = [node.workload().unwrap(), node.workload().unwrap()];
    // Read, refreshed, used: the old token lives on for minutes.
    before.attack().unwrap();
    before.pod.rotate_token().unwrap();
    // Refreshed, read, used: the file is a new one in a new folder.
    after.pod.rotate_token().unwrap();
    after.attack().unwrap();
    node.request_by(&before.pod).unwrap();
    node.request_by(&after.pod).unwrap();
    node.settle().unwrap();
    for pod in [&before.pod, &after.pod] {
        let alert = node.the_alert_about(pod).unwrap();
        assert_eq!(alert["tokentrail"]["grade"], "interactive");
        assert_eq!(alert["tokentrail"]["incident"]["opens"], 1, "a refresh is no read: {alert:#}");
    }
}

#[test]
fn a_request_at_the_end_of_the_window_alerts() {
    let sandbox = Sandbox::create().unwrap();
    let node = Node::new(&sandbox).unwrap();
    let _agent = node.agent.start().unwrap();
    let victim = node.workload().unwrap();
    victim.attack().unwrap();
    node.wait_until_seen(&victim).unwrap();
    let open = time(&node.opens_of(&victim.pod).unwrap()[0], "/@timestamp");
    let received = open + SignedDuration::from_millis(59_999);
    let line = AuditLine::recorded(Request::ListPods, Stage::ResponseComplete, &victim.pod)
        .unwrap()
        .at(received, received);
    node.audit.append(&line).unwrap();
    let alert = node.settled_alert_about(&victim.pod).unwrap();
    assert_eq!(time(&alert, "/@timestamp"), received);
}

#[test]
fn further_requests_and_later_stages_join_silently() {
    let sandbox = Sandbox::create().unwrap();
    let node = Node::new(&sandbox).unwrap();
    let _agent = node.agent.start().unwrap();
    let victim = node.workload().unwrap();
    victim.attack().unwrap();
    let received = Timestamp::now();
    let line = |request, stage| AuditLine::recorded(request, stage, &victim.pod).unwrap();
    let staged = |milliseconds| received + SignedDuration::from_millis(milliseconds);
    let started = line(Request::WatchPods, Stage::ResponseStarted).at(received, staged(1));
    let watch = started.audit_id().to_owned();
    for line in [
        line(Request::WatchPods, Stage::RequestReceived)
            .with_audit_id(&watch)
            .at(received, received),
        started,
        line(Request::GetSecret, Stage::RequestReceived),
        line(Request::GetSecret, Stage::ResponseComplete),
        line(Request::ListNodes, Stage::ResponseComplete),
        line(Request::WatchPods, Stage::ResponseComplete)
            .with_audit_id(&watch)
            .at(received, staged(900)),
    ] {
        node.audit.append(&line).unwrap();
    }
    let alert = node.settled_alert_about(&victim.pod).unwrap();
    assert_eq!(alert["kubernetes"]["audit"]["stage"], "ResponseStarted", "the first answer");
    assert_eq!(alert["tokentrail"]["incident"]["requests"], 1);
}
