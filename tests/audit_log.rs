//! What may happen to the audit log between an open and the request: rotation in both ways, lines
//! that are none, lines that are huge, and a file that is not there yet.
#![expect(clippy::unwrap_used, reason = "a helper of a test fails as the test does")]

use std::fs;

use tokentrail_tests::{Agent, AuditLine, Node, PATIENCE, Request, Sandbox, Stage, wait_until};

/// Far less than the longest line that the agent is given here.
const MEMORY: u64 = 60 << 20;

#[test]
fn a_log_that_is_rotated_by_renaming_is_followed_through_both_files() {
    let sandbox = Sandbox::create().unwrap();
    let mut node = Node::new(&sandbox).unwrap();
    let agent = node.agent.start().unwrap();
    let victims = [node.workload().unwrap(), node.workload().unwrap()];
    for victim in &victims {
        victim.attack().unwrap();
    }
    // One request is the old file's last line, the other the new one's first, and nobody waits
    // for the agent in between.
    node.request_by(&victims[0].pod).unwrap();
    node.audit.rotate_by_rename().unwrap();
    node.request_by(&victims[1].pod).unwrap();
    node.settle().unwrap();
    for victim in &victims {
        assert_eq!(node.alerts_about(&victim.pod).unwrap().len(), 1);
    }
    agent.wait_for_metric("tokentrail_audit_rotations_total", &[], 1.0).unwrap();
}

#[test]
fn a_log_that_is_copied_and_truncated_is_read_from_its_new_beginning() {
    let sandbox = Sandbox::create().unwrap();
    let mut node = Node::new(&sandbox).unwrap();
    let agent = node.agent.start().unwrap();
    let victims = [node.workload().unwrap(), node.workload().unwrap()];
    for victim in &victims {
        victim.attack().unwrap();
    }
    node.request_by(&victims[0].pod).unwrap();
    // What is truncated away unread is gone, whoever reads: this way of rotating has that gap.
    node.wait_for("alert", &victims[0].pod).unwrap();
    node.audit.rotate_by_copy_and_truncate().unwrap();
    node.request_by(&victims[1].pod).unwrap();
    node.settle().unwrap();
    for victim in &victims {
        assert_eq!(node.alerts_about(&victim.pod).unwrap().len(), 1);
    }
    agent.wait_for_metric("tokentrail_audit_truncations_total", &[], 1.0).unwrap();
}

#[test]
fn a_log_that_does_not_exist_yet_is_waited_for_and_read_from_its_first_line() {
    let sandbox = Sandbox::create().unwrap();
    let node = Node::without_audit_log(&sandbox);
    let mut agent = node.agent.spawn().unwrap();
    let path = node.audit.path().display().to_string();
    wait_until_not_ready(&agent, &[&path, "does not exist"]);
    let victim = node.workload().unwrap();
    victim.attack().unwrap();
    node.request_by(&victim.pod).unwrap();
    node.wait_for("alert", &victim.pod).unwrap();
    agent.wait_until_ready().unwrap();
    assert_eq!(node.alerts_about(&victim.pod).unwrap().len(), 1);
}

#[test]
fn something_else_in_the_logs_place_is_named_and_waited_out() {
    let sandbox = Sandbox::create().unwrap();
    let node = Node::without_audit_log(&sandbox);
    let path = node.audit.path();
    fs::create_dir(path).unwrap();
    let mut agent = node.agent.spawn().unwrap();
    wait_until_not_ready(&agent, &[&path.display().to_string(), "not a regular file"]);
    fs::remove_dir(path).unwrap();
    let victim = node.workload().unwrap();
    victim.attack().unwrap();
    node.request_by(&victim.pod).unwrap();
    node.wait_for("alert", &victim.pod).unwrap();
    agent.wait_until_ready().unwrap();
}

#[test]
fn lines_that_are_none_are_counted_by_reason_and_the_next_good_one_alerts() {
    let sandbox = Sandbox::create().unwrap();
    let node = Node::new(&sandbox).unwrap();
    let agent = node.agent.start().unwrap();
    let victim = node.workload().unwrap();
    victim.attack().unwrap();
    let good = AuditLine::recorded(Request::ListPods, Stage::ResponseComplete, &victim.pod);
    let good = good.unwrap();
    let (half, _) = good.text().split_at(good.text().len() / 2);
    let wrong_kind = good.clone().replacing(r#""kind":"Event""#, r#""kind":"Pod""#);
    let wrong_shape = good.clone().replacing(r#""verb":"list""#, r#""verb":["list"]"#);
    let bad_time = good
        .clone()
        .replacing(r#"requestReceivedTimestamp":"2"#, r#"requestReceivedTimestamp":"x"#);
    let lines: [(&[u8], &str); 7] = [
        (b"", "blank"),
        (b"\x00\x01\xff\xfe\x80garbage\x1b[2J", "not_json"),
        (half.as_bytes(), "not_json"),
        (b"{\"pod-uid\":", "not_json"),
        (wrong_kind.text().as_bytes(), "wrong_kind"),
        (wrong_shape.text().as_bytes(), "wrong_shape"),
        (bad_time.text().as_bytes(), "bad_time"),
    ];
    for (line, _) in lines {
        node.audit.append_bytes(&[line, b"\n"].concat()).unwrap();
    }
    node.audit.append(&good).unwrap();
    node.settle().unwrap();
    assert_eq!(node.alerts_about(&victim.pod).unwrap().len(), 1);
    for reason in ["blank", "not_json", "wrong_kind", "wrong_shape", "bad_time"] {
        let expected = lines.iter().filter(|(_, of)| *of == reason).map(|_| 1.0).sum::<f64>();
        let label = format!("reason=\"{reason}\"");
        let count = agent.metric("tokentrail_audit_bad_lines_total", &[&label]).unwrap();
        assert!((count - expected).abs() < f64::EPSILON, "{reason}: {count}\n{}", agent.log());
    }
    assert!(agent.log().contains("audit line ignored"), "the first few are told:\n{}", agent.log());
}

#[test]
fn a_line_of_ten_megabytes_alerts_by_itself_and_is_never_in_memory() {
    let sandbox = Sandbox::create().unwrap();
    let node = Node::new(&sandbox).unwrap();
    let agent = node.agent.start().unwrap();
    let victim = node.workload().unwrap();
    victim.attack().unwrap();
    let secrets = r#"{"kind":"Secret","data":{"note":"a \"stageTimestamp\":\"1999-01-01T00:00:00.000000Z\" of its own\\"}},"#;
    let items = secrets.repeat((10 << 20) / secrets.len() + 1);
    let body = format!(r#""responseObject":{{"kind":"SecretList","items":[{items}{{}}]}},"#);
    let key = r#""requestReceivedTimestamp""#;
    let line = AuditLine::recorded(Request::GetSecret, Stage::ResponseComplete, &victim.pod)
        .unwrap()
        .replacing(r#""level":"Metadata""#, r#""level":"RequestResponse""#)
        .replacing(key, &format!("{body}{key}"));
    assert!(line.text().len() > 10 << 20);
    // A line that fits into nothing and is no event comes first.
    node.audit.append_bytes(&[vec![b'x'; 10 << 20], b"\n".to_vec()].concat()).unwrap();
    node.audit.append(&line).unwrap();
    let alert = node.wait_for("alert", &victim.pod).unwrap();
    assert_eq!(alert["kubernetes"]["audit"]["auditID"], line.audit_id());
    assert!(!alert.to_string().contains("SecretList"), "{alert:#}");
    node.settle().unwrap();
    assert_eq!(node.alerts_about(&victim.pod).unwrap().len(), 1);
    let peak = agent.peak_memory().unwrap();
    assert!(peak < MEMORY, "{peak} bytes");
    agent.wait_for_metric("tokentrail_audit_shortened_lines_total", &[], 1.0).unwrap();
}

#[test]
fn a_line_that_is_written_in_pieces_alerts_once_it_is_whole() {
    let sandbox = Sandbox::create().unwrap();
    let node = Node::new(&sandbox).unwrap();
    let agent = node.agent.start().unwrap();
    let victim = node.workload().unwrap();
    victim.attack().unwrap();
    let line = AuditLine::recorded(Request::ListPods, Stage::ResponseComplete, &victim.pod);
    let line = format!("{}\n", line.unwrap().text());
    let bytes = agent.metric("tokentrail_audit_bytes_total", &[]).unwrap();
    let (first, second) = line.split_at(line.len() / 2);
    node.audit.append_bytes(first.as_bytes()).unwrap();
    agent.wait_for_metric("tokentrail_audit_bytes_total", &[], bytes + 1.0).unwrap();
    assert!(node.alerts_about(&victim.pod).unwrap().is_empty());
    node.audit.append_bytes(second.as_bytes()).unwrap();
    node.wait_for("alert", &victim.pod).unwrap();
}

/// Waits until `/readyz` is 503 and says all of this.
fn wait_until_not_ready(agent: &Agent, says: &[&str]) {
    wait_until(PATIENCE, &format!("it is not ready and says {says:?}"), || {
        let Ok(answer) = agent.get("/readyz") else { return Ok(None) };
        let told = answer.status == 503 && says.iter().all(|it| answer.body.contains(it));
        Ok(told.then_some(()))
    })
    .unwrap();
}
