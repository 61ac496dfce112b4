//! From an open in a real container to a line in the alert log: what alerts, once, and what the
//! alert says.
#![expect(clippy::unwrap_used, reason = "a helper of a test fails as the test does")]

use std::{env, fs};

use jiff::Timestamp;
use serde_json::{Value, json};
use tokentrail_tests::{
    AuditLine, Container, NODE_NAME, Node, Pod, Request, SERVICE_ACCOUNT_FOLDER, Sandbox, Stage,
    TOKEN_PATH, Workload,
};

const RULE: &str = "token-access-then-api-request";

fn time(document: &Value, pointer: &str) -> Timestamp {
    document.pointer(pointer).unwrap().as_str().unwrap().parse().unwrap()
}

#[test]
fn an_interactive_open_followed_by_a_request_is_one_alert_that_says_who_and_what() {
    let sandbox = Sandbox::create().unwrap();
    let mut node = Node::new(&sandbox).unwrap();
    node.agent = node.agent.args(["--cluster-name", "harbour"]);
    let agent = node.agent.start().unwrap();
    let Workload { pod, container } = node.workload().unwrap();
    let before = Timestamp::now();
    let read = container.exec_tty(&["cat", TOKEN_PATH]).unwrap();
    assert!(read.output.contains(&pod.token), "{read:?}");
    let line = AuditLine::recorded(Request::ListPods, Stage::ResponseComplete, &pod).unwrap();
    node.audit.append(&line).unwrap();
    let alert = node.settled_alert_about(&pod).unwrap();
    let after = Timestamp::now();
    let account = "system:serviceaccount:shop:cart";
    let user_agent = "kubectl/v0.0.0 (linux/amd64) kubernetes/$Format";
    let event: Value = serde_json::from_str(line.text()).unwrap();
    for (pointer, expected) in [
        ("/@timestamp", event["requestReceivedTimestamp"].clone()),
        ("/ecs/version", json!("8.17.0")),
        ("/event/kind", json!("alert")),
        ("/event/action", json!(RULE)),
        ("/event/severity", json!(47)),
        ("/event/risk_score", json!(47)),
        ("/event/outcome", json!("success")),
        ("/event/end", event["requestReceivedTimestamp"].clone()),
        ("/rule/id", json!(RULE)),
        ("/rule/name", json!(RULE)),
        ("/threat/1/tactic/id", json!("TA0006")),
        ("/agent/name", json!(NODE_NAME)),
        ("/host/name", json!(NODE_NAME)),
        ("/orchestrator/cluster/name", json!("harbour")),
        ("/orchestrator/namespace", json!(pod.namespace)),
        ("/orchestrator/resource/id", json!(pod.uid)),
        ("/orchestrator/resource/name", json!(pod.name)),
        ("/container/id", json!(container.id())),
        ("/process/name", json!("cat")),
        ("/process/args", json!(["cat", TOKEN_PATH])),
        ("/process/command_line", json!(format!("cat {TOKEN_PATH}"))),
        ("/process/interactive", json!(true)),
        // The first terminal of the container's own devpts.
        ("/process/tty/char_device", json!({"major": 136, "minor": 0})),
        ("/process/user/id", json!("0")),
        ("/process/entry_leader/entry_meta/type", json!("container")),
        ("/file/path", json!(TOKEN_PATH)),
        ("/file/name", json!("token")),
        ("/user/name", json!(account)),
        ("/source/ip", json!("10.89.0.3")),
        ("/user_agent/original", json!(user_agent)),
        ("/kubernetes/audit/auditID", json!(line.audit_id())),
        ("/kubernetes/audit/verb", json!("list")),
        ("/kubernetes/audit/requestURI", event["requestURI"].clone()),
        ("/kubernetes/audit/user", event["user"].clone()),
        ("/kubernetes/audit/annotations/authorization_k8s_io~1decision", json!("allow")),
        ("/tokentrail/kind", json!("alert")),
        ("/tokentrail/grade", json!("interactive")),
        ("/tokentrail/native", json!(false)),
        ("/tokentrail/volume", json!(pod.volume_name())),
        ("/tokentrail/incident/state", json!("open")),
        ("/tokentrail/incident/opens", json!(1)),
        ("/tokentrail/incident/requests", json!(1)),
        ("/tokentrail/evidence/service_account/namespace", json!("shop")),
        ("/tokentrail/evidence/service_account/name", json!("cart")),
        ("/tokentrail/evidence/origin/node_claim_is_this_node", json!(true)),
        ("/tokentrail/evidence/requests/0/resource", json!("pods")),
        ("/tokentrail/evidence/requests/0/code", json!(200)),
        ("/tokentrail/evidence/requests/0/decision", json!("allow")),
        ("/tokentrail/sensor/route", agent.status().unwrap()["route"].clone()),
    ] {
        assert_eq!(alert.pointer(pointer), Some(&expected), "{pointer} of {alert:#}");
    }
    let text = |pointer: &str| alert.pointer(pointer).and_then(Value::as_str).unwrap_or_default();
    assert!(text("/process/executable").ends_with("/bin/busybox"), "{alert:#}");
    assert!(text("/message").contains(&format!("shop/{}", pod.name)), "{alert:#}");
    assert!(text("/tokentrail/file/raw_path").ends_with("/token"), "{alert:#}");
    assert!(text("/tokentrail/evidence/service_account/rbac_reason").contains("cart-reader"));
    assert!(text("/tokentrail/evidence/credential/id").starts_with("JTI="), "{alert:#}");
    assert!(text("/tokentrail/response/0/command").contains(&pod.name), "{alert:#}");
    let (opened, told) = (time(&alert, "/event/start"), time(&alert, "/event/created"));
    assert!(before <= opened && opened < told && told <= after, "{before} {after} {alert:#}");
    assert!(alert["tokentrail"]["latency_us"].as_u64().unwrap() > 0, "{alert:#}");
}

#[test]
fn the_hook_route_is_the_one_that_this_kernel_must_offer() {
    let sandbox = Sandbox::create().unwrap();
    let node = Node::new(&sandbox).unwrap();
    let agent = node.agent.start().unwrap();
    let route = agent.status().unwrap()["route"].clone();
    match env::var("TOKENTRAIL_EXPECT_ROUTE") {
        Ok(expected) => assert_eq!(route, expected, "{}", agent.status().unwrap()),
        Err(_) => assert!(["fexit", "kprobe", "exit"].iter().any(|it| route == *it), "{route}"),
    }
}

#[test]
fn a_terminal_session_that_hides_its_errors_alerts_as_terminal() {
    let alert = alert_of_read(|workload| {
        let read = workload.container.exec_tty_without_errors(&["cat", TOKEN_PATH]).unwrap();
        assert!(read.output.contains(&workload.pod.token), "{read:?}");
    });
    assert_eq!(alert["tokentrail"]["grade"], "terminal");
    assert_eq!(alert["process"]["interactive"], false);
    assert_eq!(alert["process"]["tty"]["char_device"]["major"], 136);
}

#[test]
fn a_session_without_a_terminal_alerts_as_exec() {
    let alert = alert_of_read(|workload| {
        let read = workload.container.exec(&["cat", TOKEN_PATH]).unwrap();
        assert_eq!(read.output, workload.pod.token);
    });
    assert_eq!(alert["tokentrail"]["grade"], "exec");
    assert_eq!(alert["process"].get("tty"), None);
    assert_eq!(alert["process"]["entry_leader"]["entry_meta"]["type"], "container");
}

#[test]
fn what_a_session_leaves_behind_when_it_ends_still_alerts_as_exec() {
    let alert = alert_of_read(|workload| {
        // By then it is a child of the container's main process, as the workload's own are.
        let late = format!("while kill -0 $session; do :; done 2>/dev/null; cat {TOKEN_PATH}");
        let script = format!("session=$$; ( ({late}) & )");
        let read = workload.container.exec(&["sh", "-c", &script]).unwrap();
        assert_eq!(read.output, workload.pod.token);
    });
    assert_eq!(alert["tokentrail"]["grade"], "exec");
    assert_eq!(alert["tokentrail"]["native"], false);
    assert_eq!(alert["process"]["entry_leader"]["name"], "sh");
    assert_ne!(alert["process"]["parent"]["pid"], alert["process"]["entry_leader"]["pid"]);
}

#[test]
fn reading_the_ca_certificate_by_hand_alerts_too() {
    let path = format!("{SERVICE_ACCOUNT_FOLDER}/ca.crt");
    let alert = alert_of_read(|workload| {
        let read = workload.container.exec_tty(&["cat", &path]).unwrap();
        assert!(read.output.contains("BEGIN CERTIFICATE"), "{read:?}");
    });
    assert_eq!(alert["file"]["path"], path);
    assert_eq!(alert["file"]["name"], "ca.crt");
    assert_eq!(alert["tokentrail"]["grade"], "interactive");
}

#[test]
fn the_host_reading_a_token_through_the_containers_root_alerts_as_outside() {
    let alert = alert_of_read(|workload| {
        let path = format!("/proc/{}/root{TOKEN_PATH}", workload.container.main_pid());
        assert_eq!(fs::read_to_string(path).unwrap(), workload.pod.token);
    });
    assert_eq!(alert["tokentrail"]["grade"], "outside");
    assert_eq!(alert["process"]["pid"], std::process::id());
    assert_eq!(alert.get("container"), None, "the opener ran in none: {alert:#}");
}

#[test]
fn the_host_reading_a_token_in_the_kubelets_directory_alerts_as_outside() {
    let alert = alert_of_read(|workload| {
        let path = workload.pod.volume().join("token");
        assert_eq!(fs::read_to_string(path).unwrap(), workload.pod.token);
    });
    assert_eq!(alert["tokentrail"]["grade"], "outside");
}

#[test]
fn another_pod_reading_a_token_through_a_host_path_alerts_as_outside_and_about_the_victim() {
    let sandbox = Sandbox::create().unwrap();
    let node = Node::new(&sandbox).unwrap();
    let _agent = node.agent.start().unwrap();
    let victim = node.workload().unwrap();
    let thief_pod = Pod::create(&sandbox).unwrap();
    let kubelet = sandbox.kubelet_root();
    let thief = Container::start_with_host_path(&sandbox, &thief_pod, &kubelet).unwrap();
    let path = victim.pod.volume().join("token");
    let path = format!("/host/{}", path.strip_prefix(&kubelet).unwrap().display());
    assert_eq!(thief.workload(&format!("cat {path}")).unwrap().output, victim.pod.token);
    node.request_by(&victim.pod).unwrap();
    // Not the thief's own: nobody but itself has read that token.
    node.request_by(&thief_pod).unwrap();
    let alert = node.settled_alert_about(&victim.pod).unwrap();
    assert_eq!(alert["tokentrail"]["grade"], "outside");
    assert_eq!(alert["container"]["id"], thief.id());
    assert_eq!(node.alerts_about(&thief_pod).unwrap(), Vec::<Value>::new());
}

#[test]
fn every_open_is_recorded_as_an_ecs_document_the_workloads_own_too() {
    let sandbox = Sandbox::create().unwrap();
    let node = Node::new(&sandbox).unwrap();
    let _agent = node.agent.start().unwrap();
    let workload = node.workload().unwrap();
    workload.attack().unwrap();
    node.wait_until_seen(&workload).unwrap();
    let opens = node.opens_of(&workload.pod).unwrap();
    assert_eq!(opens.len(), 2, "{opens:#?}");
    for (open, grade) in opens.iter().zip(["interactive", "workload"]) {
        let interactive = grade == "interactive";
        for (pointer, expected) in [
            ("/host/os/type", json!("linux")),
            ("/event/category", json!(["file"])),
            ("/event/type", json!(["change"])),
            ("/event/action", json!("open")),
            ("/file/path", json!(TOKEN_PATH)),
            ("/process/interactive", json!(interactive)),
            ("/process/args", json!(["cat", TOKEN_PATH])),
            ("/container/id", json!(workload.container.id())),
            ("/tokentrail/grade", json!(grade)),
            ("/tokentrail/skew_us", json!(0)),
        ] {
            assert_eq!(open.pointer(pointer), Some(&expected), "{pointer} of {open:#}");
        }
    }
    assert!(time(&opens[0], "/@timestamp") < time(&opens[1], "/@timestamp"));
    assert_ne!(opens[0]["event"]["id"], opens[1]["event"]["id"]);
}

/// The only alert about a fresh workload whose token is read in this manner and then used.
fn alert_of_read(read: impl FnOnce(&Workload)) -> Value {
    let sandbox = Sandbox::create().unwrap();
    let node = Node::new(&sandbox).unwrap();
    let _agent = node.agent.start().unwrap();
    let workload = node.workload().unwrap();
    read(&workload);
    node.request_by(&workload.pod).unwrap();
    node.settled_alert_about(&workload.pod).unwrap()
}
