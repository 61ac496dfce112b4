//! What must be nowhere: the contents of tokens, however they come the agent's way.
#![expect(clippy::unwrap_used, reason = "a helper of a test fails as the test does")]

use std::{fs, path::Path};

use tokentrail_tests::{AuditLine, Node, Request, Sandbox, Stage, TOKEN_PATH};

/// So many characters of a token in a row are no accident.
const PIECE: usize = 16;

#[test]
fn a_tokens_content_is_in_nothing_that_the_agent_writes_or_serves() {
    let sandbox = Sandbox::create().unwrap();
    let mut node = Node::new(&sandbox).unwrap();
    node.agent = node.agent.args(["--log-level", "trace"]);
    let agent = node.agent.start().unwrap();
    let victims = [node.workload().unwrap(), node.workload().unwrap()];
    // In the arguments, whole; and so far behind that only a piece of it fits into a record.
    for (victim, padding) in victims.iter().zip([1, 120]) {
        let token = &victim.pod.token;
        let args = ["cat", TOKEN_PATH, &"x".repeat(padding), token];
        assert!(victim.container.exec_tty(&args).unwrap().output.contains(token));
        node.wait_until_seen(victim).unwrap();
        // In everything that a client chooses about a request: address, name, user agent.
        let line = AuditLine::recorded(Request::GetSecret, Stage::ResponseComplete, &victim.pod)
            .unwrap()
            .replacing("/secrets/db", &format!("/secrets/{token}?token={token}"))
            .replacing(r#""name":"db""#, &format!(r#""name":"{token}""#))
            .replacing("kubectl/v0.0.0", &format!("curl/1 (Bearer {token})"))
            .replacing(
                r#""sourceIPs""#,
                &format!(
                    r#""impersonatedUser":{{"username":"{token}","extra":{{"a":["{token}"]}}}},"sourceIPs""#
                ),
            )
            .replacing(r#""code":200"#, &format!(r#""message":"{token}","code":200"#));
        node.audit.append(&line).unwrap();
        // And in a line that is none.
        node.audit.append_bytes(format!("{token}\n").as_bytes()).unwrap();
    }
    for victim in &victims {
        node.wait_for("alert", &victim.pod).unwrap();
    }
    node.settle().unwrap();
    let mut written = vec![
        ("/metrics".to_owned(), agent.get("/metrics").unwrap().body),
        ("/statusz".to_owned(), agent.get("/statusz").unwrap().body),
        ("/readyz".to_owned(), agent.get("/readyz").unwrap().body),
        ("stderr".to_owned(), agent.log()),
    ];
    read_files(node.agent.state_dir(), &mut written);
    for file in ["alerts.ndjson", "opens.ndjson"] {
        written.push((file.to_owned(), fs::read_to_string(sandbox.folder().join(file)).unwrap()));
    }
    assert!(written.len() > 6, "the state directory has files");
    for (place, text) in written {
        assert!(!text.is_empty() || place.ends_with("lock"), "{place} is empty");
        for victim in &victims {
            // The first word says which algorithm signed, in every token alike.
            let (_, secret) = victim.pod.token.split_once('.').unwrap();
            let leak = secret.as_bytes().windows(PIECE).map(str::from_utf8).find_map(|piece| {
                let start = text.find(piece.unwrap())?;
                Some(text.get(start.saturating_sub(200)..start + PIECE).unwrap_or(&text))
            });
            assert_eq!(leak, None, "in {place}");
        }
    }
}

fn read_files(folder: &Path, into: &mut Vec<(String, String)>) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            read_files(&path, into);
        } else {
            into.push((path.display().to_string(), fs::read_to_string(&path).unwrap()));
        }
    }
}
