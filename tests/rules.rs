//! What users decide about rules, in the whole program: a rules file is refused with one error,
//! taken without a restart, and listed with what its exceptions swallowed.
#![expect(clippy::unwrap_used, reason = "a helper of a test fails as the test does")]

use std::{fs, path::PathBuf};

use serde_json::Value;
use tokentrail_tests::{AgentSetup, AuditLog, Finished, PATIENCE, Sandbox, tokentrail, wait_until};

/// A rules file with exceptions of these names.
fn exceptions(names: &[&str]) -> String {
    let entry = |name: &&str| {
        format!("- {{name: {name}, rule: token-read, namespace: shop, reason: looked at}}\n")
    };
    let entries: String = names.iter().map(entry).collect();
    format!("exceptions:\n{entries}")
}

/// A file in the sandbox.
fn file(sandbox: &Sandbox, name: &str, text: &str) -> PathBuf {
    let path = sandbox.folder().join(name);
    fs::write(&path, text).unwrap();
    path
}

/// Runs a subcommand with this rules file, on the state of the sandbox.
fn tell(sandbox: &Sandbox, command: &str, rules: &PathBuf, more: &[&str]) -> Finished {
    let mut program = tokentrail();
    program.arg(command).args(more).arg("--rules-file").arg(rules);
    program.arg("--state-dir").arg(sandbox.folder().join("state"));
    sandbox.run(&mut program).unwrap()
}

#[test]
fn a_rules_file_that_is_refused_is_one_error_for_every_command() {
    let sandbox = Sandbox::create().unwrap();
    let audit = file(&sandbox, "audit.log", "");
    let run: [&str; 4] = ["--no-kube", "--no-sensor", "--audit-log", audit.to_str().unwrap()];
    for (text, says) in [
        (
            "exceptions:\n- {name: a, rule: token-read, pod: b}\n",
            "line 2: exception a: it has no reason",
        ),
        (
            "exceptions:\n- {name: a, rule: token-read, reason: b, user_agent: kubectl*}\n",
            "an attacker chooses",
        ),
        ("exception: []\n", "unknown field `exception`"),
        (
            "exceptions:\n- {name: a, rule: token-read, reason: b, until: soon}\n",
            "\"soon\" is no date",
        ),
        ("decoys: [shop]\n", "namespace/name"),
    ] {
        let rules = file(&sandbox, "rules.yaml", text);
        for (command, more) in [("run", &run[..]), ("check", &run), ("rules", &[])] {
            let refused = tell(&sandbox, command, &rules, more);
            assert_eq!(refused.code, Some(2), "{command}: {refused:?}");
            assert_eq!(refused.output, "", "{command}: errors go to standard error");
            for says in [says, "rules.yaml"] {
                assert!(refused.errors.contains(says), "{command}: {says:?} is not in {refused:?}");
            }
            assert_eq!(refused.errors.trim().lines().count(), 1, "{command}: {refused:?}");
        }
    }
    let missing = tell(&sandbox, "rules", &sandbox.folder().join("no-such.yaml"), &[]);
    assert_eq!(missing.code, Some(2), "{missing:?}");
    assert!(missing.errors.contains("no-such.yaml"), "{missing:?}");
}

#[test]
fn a_new_version_counts_without_a_restart_and_a_bad_one_changes_nothing() {
    let sandbox = Sandbox::create().unwrap();
    let audit = sandbox.folder().join("audit.log");
    AuditLog::create(&audit).unwrap();
    let rules = file(&sandbox, "rules.yaml", &exceptions(&["one"]));
    let setup = AgentSetup::new(&sandbox, &audit).args([
        "--no-sensor".as_ref(),
        "--rules-file".as_ref(),
        rules.as_os_str(),
    ]);
    let agent = setup.start().unwrap();
    let in_force = |least| agent.wait_for_metric("tokentrail_rules_exceptions", &[], least);
    let status = || agent.status().unwrap();
    in_force(1.0).unwrap();

    fs::write(&rules, exceptions(&["one", "two"])).unwrap();
    in_force(2.0).unwrap();

    fs::write(&rules, "exceptions:\n- {name: three, rule: token-read, pod: a}\n").unwrap();
    agent.wait_for_metric("tokentrail_rules_file_refused", &[], 1.0).unwrap();
    wait_until(PATIENCE, "the status says why", || {
        let why = "the earlier rules stay in force";
        Ok(status()["degraded"].to_string().contains(why).then_some(()))
    })
    .unwrap();
    assert!(status()["degraded"].to_string().contains("exception three: it has no reason"));
    assert_eq!(agent.get("/readyz").unwrap().status, 200, "it works as before");
    in_force(2.0).unwrap();

    fs::write(&rules, exceptions(&["one", "two", "three"])).unwrap();
    in_force(3.0).unwrap();
    assert_eq!(agent.metric("tokentrail_rules_file_refused", &[]).unwrap(), 0.0);
    let hits = agent.get("/metrics").unwrap().body;
    assert!(
        hits.contains("tokentrail_rules_exception_hits_total{exception=\"three\"} 0"),
        "{hits}"
    );
    assert_eq!(agent.log().matches("new rules are refused").count(), 1, "{}", agent.log());
    assert!(agent.terminate().unwrap().success());
    let listed = tell(&sandbox, "rules", &rules, &[]);
    assert!(listed.output.contains("three: 0 swallowed"), "{listed:?}");
}

#[test]
fn rules_are_listed_with_what_was_swallowed_and_how_to_silence_a_false_positive() {
    let sandbox = Sandbox::create().unwrap();
    let text = "\
exceptions:
- {name: busy, rule: token-read, namespace: shop, reason: looked at}
- {name: idle, rule: token-read, namespace: bank, reason: looked at}
- {name: past, rule: decoy-used, namespace: bank, reason: looked at, until: 2026-01-31}
token-request-by-user:
  extend: ['system:serviceaccount:cert-manager:*']
  masterclient: alert
decoys: [shop/backup-admin]
";
    let rules = file(&sandbox, "rules.yaml", text);
    fs::create_dir(sandbox.folder().join("state")).unwrap();
    file(
        &sandbox,
        "state/exception-hits.json",
        r#"{"version":1,"exceptions":{
            "busy":{"count":12,"last":"9000-01-01T00:00:00.000000Z","since":"2026-01-01T00:00:00.000000Z"},
            "idle":{"count":0,"last":null,"since":"2026-01-01T00:00:00.000000Z"}}}"#,
    );
    let listed = tell(&sandbox, "rules", &rules, &[]);
    assert_eq!((listed.code, listed.errors.as_str()), (Some(0), ""), "{listed:?}");
    for says in [
        "token-access-then-api-request  MEDIUM 47",
        "token-request-by-user  MEDIUM 47",
        "token-read-from-outside  HIGH 73",
        "token-read  LOW 21",
        "decoy-used  CRITICAL 99",
        "T1552.001 Credentials In Files",
        "system:serviceaccount:cert-manager:*",
        "shop/backup-admin",
        "busy: 12 swallowed, the last at 9000-01-01T00:00:00.000000Z",
        "because looked at",
        "To silence one false positive",
    ] {
        assert!(listed.output.contains(says), "{says:?} is not in\n{}", listed.output);
    }
    assert!(!listed.output.contains("masterclient"), "{}", listed.output);

    let listed = tell(&sandbox, "rules", &rules, &["--json"]);
    let document: Value = serde_json::from_str(&listed.output).unwrap();
    let read = &document["rules"][3];
    assert_eq!(read["id"], "token-read");
    assert_eq!(read["exceptions"][0]["hits"], 12);
    assert_eq!(read["exceptions"][0]["conditions"]["namespace"], "shop");
    assert_eq!(read["exceptions"][0]["doubt"], Value::Null);
    assert_eq!(read["exceptions"][1]["last_hit"], Value::Null);

    let audit = file(&sandbox, "audit.log", "");
    let options = ["--no-kube", "--no-sensor", "--audit-log", audit.to_str().unwrap()];
    let checked = tell(&sandbox, "check", &rules, &options);
    assert_eq!(checked.code, Some(0), "a doubt is no reason not to run: {checked:?}");
    let warnings: Vec<&str> =
        checked.output.lines().filter(|line| line.starts_with("WARNING")).collect();
    assert_eq!(warnings.len(), 2, "{checked:?}");
    assert!(
        warnings[0].contains("exception idle: it has matched nothing on this node"),
        "{warnings:?}"
    );
    assert!(warnings[1].contains("exception past: its last day was 2026-01-31"), "{warnings:?}");
}
