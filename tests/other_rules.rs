//! The rules beside "opened, then asked": what is told of a mere read, of a read from outside, of a
//! token that is minted, of a decoy; and exceptions.

use std::{ffi::OsStr, fs};

use serde_json::{Value, json};
use tokentrail_tests::{
    AgentSetup, AuditLine, AuditLog, Node, PATIENCE, Request, Sandbox, Stage, TOKEN_PATH,
    wait_until,
};

const READ: &str = "token-read";
const OUTSIDE: &str = "token-read-from-outside";
const MINTED: &str = "token-request-by-user";

fn holds(document: &Value, expected: &[(&str, Value)]) {
    for (pointer, value) in expected {
        assert_eq!(document.pointer(pointer), Some(value), "{pointer} of {document:#}");
    }
}

#[test]
fn a_session_that_only_reads_the_token_is_told_when_no_request_can_follow_any_more() {
    let sandbox = Sandbox::create().unwrap();
    let mut node = Node::new(&sandbox).unwrap();
    let config = sandbox.folder().join("config.yaml");
    fs::write(&config, "audit-lateness-seconds: 1\n").unwrap();
    node.agent = node.agent.args([OsStr::new("--config"), config.as_os_str()]);
    let _agent = node.agent.start().unwrap();
    let [read, used] = [node.workload().unwrap(), node.workload().unwrap()];
    read.attack().unwrap();
    used.attack().unwrap();
    node.request_by(&used.pod).unwrap();
    let told = || Ok(node.told(READ, "alert", &read.pod)?.into_iter().next());
    let alert = wait_until(PATIENCE * 2, "the read is told", told).unwrap();
    holds(
        &alert,
        &[
            ("/event/severity", json!(21)),
            ("/event/kind", json!("alert")),
            ("/tokentrail/grade", json!("interactive")),
            ("/tokentrail/incident/opens", json!(1)),
            ("/tokentrail/incident/requests", json!(0)),
            ("/process/args", json!(["cat", TOKEN_PATH])),
        ],
    );
    assert_eq!(alert["@timestamp"], alert["event"]["start"], "the time of the open");
    assert!(alert.get("kubernetes").is_none() && alert.get("user").is_none(), "{alert:#}");
    // The other ended in the same minute, and was told by another rule.
    node.wait_for("incident", &used.pod).unwrap();
    assert_eq!(node.told(READ, "alert", &used.pod).unwrap(), Vec::<Value>::new());
}

#[test]
fn a_program_of_the_host_that_walks_through_tokens_is_one_alert() {
    let sandbox = Sandbox::create().unwrap();
    let node = Node::new(&sandbox).unwrap();
    let _agent = node.agent.start().unwrap();
    let victims = [node.workload().unwrap(), node.workload().unwrap()];
    for victim in &victims {
        let path = victim.pod.volume().join("token");
        assert_eq!(fs::read_to_string(path).unwrap(), victim.pod.token);
    }
    let [first, second] = &victims;
    let alert = node.wait_for_rule(OUTSIDE, "alert", &first.pod).unwrap();
    holds(&alert, &[("/event/severity", json!(73)), ("/tokentrail/grade", json!("outside"))]);
    assert_eq!(alert["tokentrail"]["incident"]["victims"][0]["id"], first.pod.uid);
    // What is then asked with that identity is told as ever, and names the reading.
    node.request_by(&first.pod).unwrap();
    let used = node.settled_alert_about(&first.pod).unwrap();
    let reading = &alert["tokentrail"]["incident"]["id"];
    assert_eq!(&used["tokentrail"]["incident"]["related"], &json!([reading]));
    assert_eq!(node.told(OUTSIDE, "alert", &second.pod).unwrap(), Vec::<Value>::new());
}

#[test]
fn a_token_that_somebody_mints_is_told_from_the_audit_log_alone() {
    let sandbox = Sandbox::create().unwrap();
    let audit = AuditLog::create(sandbox.folder().join("audit.log")).unwrap();
    let setup = AgentSetup::new(&sandbox, audit.path()).args(["--no-sensor"]);
    let agent = setup.start().unwrap();
    for user in ["mallory", "mallory", "system:kube-controller-manager"] {
        audit.append(&AuditLine::mint(user, "shop", "cart").unwrap()).unwrap();
    }
    let is_minted = |it: &Value| it["rule"]["id"] == MINTED;
    let alert = setup.alerts().wait_for("the minting is told", is_minted).unwrap();
    holds(
        &alert,
        &[
            ("/event/severity", json!(47)),
            ("/event/outcome", json!("success")),
            ("/user/name", json!("mallory")),
            ("/user/target/name", json!("system:serviceaccount:shop:cart")),
            ("/orchestrator/namespace", json!("shop")),
            ("/tokentrail/evidence/service_account/name", json!("cart")),
            ("/tokentrail/evidence/credential/issued_to", json!("mallory")),
            ("/threat/0/technique/0/id", json!("T1528")),
        ],
    );
    let id = alert.pointer("/tokentrail/evidence/credential/id").unwrap().as_str().unwrap();
    assert!(id.starts_with("JTI="), "{id}");
    assert!(alert.get("process").is_none() && alert.get("file").is_none(), "{alert:#}");
    agent.wait_for_metric("tokentrail_audit_lines_total", &[], 3.0).unwrap();
    assert_eq!(setup.alerts().matching(is_minted).unwrap().len(), 1);
}

#[test]
fn an_exception_keeps_quiet_about_what_it_names_until_it_is_taken_back_and_is_counted() {
    let sandbox = Sandbox::create().unwrap();
    let mut node = Node::new(&sandbox).unwrap();
    let rules = sandbox.folder().join("rules.yaml");
    let exception = "exceptions:\n- {name: lists, rule: token-access-then-api-request, \
                     namespace: shop, resource: pods, reason: looked at}\n";
    fs::write(&rules, exception).unwrap();
    node.agent = node.agent.args([OsStr::new("--rules-file"), rules.as_os_str()]);
    let agent = node.agent.start().unwrap();
    let hits = "tokentrail_rules_exception_hits_total";
    let [quiet, loud, later] =
        [node.workload().unwrap(), node.workload().unwrap(), node.workload().unwrap()];
    assert_eq!(quiet.pod.namespace, "shop");
    for victim in [&quiet, &loud] {
        victim.attack().unwrap();
        node.request_by(&victim.pod).unwrap();
    }
    // What the exception does not name is told, in the same session.
    let secret = AuditLine::recorded(Request::GetSecret, Stage::ResponseComplete, &loud.pod);
    node.audit.append(&secret.unwrap()).unwrap();
    let alert = node.wait_for("alert", &loud.pod).unwrap();
    assert_eq!(alert["kubernetes"]["audit"]["objectRef"]["resource"], "secrets");
    agent.wait_for_metric(hits, &["exception=\"lists\""], 2.0).unwrap();
    assert_eq!(node.alerts_about(&quiet.pod).unwrap(), Vec::<Value>::new());
    fs::write(&rules, "").unwrap();
    agent.wait_for_metric("tokentrail_rules_reloads_total", &[], 1.0).unwrap();
    later.attack().unwrap();
    node.request_by(&later.pod).unwrap();
    node.wait_for("alert", &later.pod).unwrap();
}

#[test]
fn whoever_uses_a_decoy_is_told_though_nothing_was_opened() {
    let sandbox = Sandbox::create().unwrap();
    let mut node = Node::new(&sandbox).unwrap();
    let rules = sandbox.folder().join("rules.yaml");
    fs::write(&rules, "decoys: [shop/cart]\n").unwrap();
    node.agent = node.agent.args([OsStr::new("--rules-file"), rules.as_os_str()]);
    let _agent = node.agent.start().unwrap();
    let decoy = node.workload().unwrap();
    node.request_by(&decoy.pod).unwrap();
    let alert = node.wait_for_rule("decoy-used", "alert", &decoy.pod).unwrap();
    holds(
        &alert,
        &[
            ("/event/severity", json!(99)),
            ("/user/name", json!("system:serviceaccount:shop:cart")),
            ("/orchestrator/resource/name", json!(decoy.pod.name)),
        ],
    );
}
