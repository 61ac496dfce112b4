//! Documents as several writers make them, and what is no open.

use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;

fn document() -> Value {
    json!({
        "@timestamp": "2026-11-21T23:50:21.010116Z",
        "host": {"os": {"type": "linux"}},
        "event": {"category": ["file"], "type": "change", "action": "open", "id": "e-1"},
        "file": {"path": "/var/run/secrets/kubernetes.io/serviceaccount/token"},
        "process": {"interactive": true, "pid": 7, "name": "cat", "args": ["cat", "--token", "x"]},
        "container": {"id": "c-1"},
        "orchestrator": {"namespace": "shop", "resource": {"name": "till-1", "id": "u-1"}},
    })
}

fn read(document: &Value) -> OpenDocument {
    parse(document.to_string().as_bytes()).unwrap().unwrap_or_else(|| panic!("{document}"))
}

/// The document with this field set, at its dotted name.
fn with(field: &str, value: Value) -> Value {
    let mut document = document();
    let pointer = format!("/{}", field.replace('.', "/"));
    match document.pointer_mut(&pointer) {
        Some(place) => *place = value,
        None => panic!("{field}"),
    }
    document
}

#[test]
fn an_open_is_read_with_what_its_document_says() {
    let read = read(&document());
    assert_eq!(read.time, Micros::parse("2026-11-21T23:50:21.010116Z").unwrap());
    assert_eq!(read.names, ["till-1"]);
    assert_eq!(read.namespace.as_deref(), Some("shop"));
    assert!(read.is_elastic);
    let open = &read.open();
    assert_eq!(
        (open.wall, open.grade, open.file),
        (read.time, Grade::Interactive, TokenFile::Token)
    );
    assert_eq!(open.pod_uid.as_deref(), Some("u-1"));
    assert_eq!(open.reader.as_ref().unwrap().container_id.as_deref(), Some("c-1"));
    assert_eq!((open.process.tgid, open.args.join(" ")), (7, "cat --token [redacted]".to_owned()));
}

#[test]
fn names_with_dots_and_lists_of_objects_are_the_same_fields() {
    let dotted = json!({
        "@timestamp": ["2026-11-21T23:50:21.010116Z"],
        "host.os.type": "linux",
        "event": [{"category": "file"}, {"type": ["x", "change"], "action": "open"}],
        "file.path": ["/elsewhere", "/var/run/secrets/kubernetes.io/serviceaccount/token"],
        "process": {"interactive": [false, true], "pid": "7", "name": "cat"},
        "container.id": "c-1",
        "orchestrator": {"resource.name": "till-1", "namespace": "shop"},
        "orchestrator.resource": {"id": "u-1"},
    });
    let (dotted, nested) = (read(&dotted), read(&document()));
    let without_args = TokenOpen { args: Vec::new(), ..nested.open() };
    assert_eq!(dotted.open(), without_args);
    assert_eq!((dotted.names, dotted.namespace), (nested.names, nested.namespace));
    assert!(dotted.is_elastic);
}

#[test]
fn elastics_conditions_hold_if_any_value_does_and_mind_case() {
    for (field, value, holds) in [
        ("host.os.type", json!("Linux"), false),
        ("host.os.type", json!(["windows", "linux"]), true),
        ("event.category", json!(["process", "file"]), true),
        ("event.category", json!("process"), false),
        ("event.type", json!(["creation"]), false),
        ("event.type", json!(null), false),
        ("file.path", json!("/run/secrets/kubernetes.io/serviceaccount/token"), false),
        ("file.path", json!("/var/run/secrets/kubernetes.io/serviceaccount/ca.crt"), true),
        ("process.interactive", json!(false), false),
        ("process.interactive", json!("true"), false),
        ("process.interactive", json!(1), false),
        ("process.interactive", json!([false, true]), true),
        ("container.id", json!(""), true),
        ("container.id", json!(null), false),
        ("container.id", json!([]), false),
        ("orchestrator.resource.name", json!(null), true),
        ("orchestrator.resource.id", json!(5), true),
    ] {
        assert_eq!(read(&with(field, value.clone())).is_elastic, holds, "{field} {value}");
    }
    assert_eq!(
        read(&with("orchestrator.resource.name", json!(["a", null, "b"]))).names,
        ["a", "b"]
    );
    assert_eq!(read(&with("process.interactive", json!(null))).open().grade, Grade::Workload);
}

#[test]
fn what_is_no_open_of_a_token_is_none() {
    for document in [
        with("event.action", json!("Open")),
        with("event.action", json!(7)),
        with("file.path", json!("/var/run/secrets/kubernetes.io/serviceaccount/namespace")),
        with("file.path", json!("/var/run/secrets/kubernetes.io/serviceaccount/a/token")),
        with("file.path", json!("/etc/passwd")),
        json!({}),
    ] {
        assert_eq!(parse(document.to_string().as_bytes()), Ok(None), "{document}");
    }
    for path in [
        "/run/secrets/kubernetes.io/serviceaccount/token",
        "/var/run/secrets/kubernetes.io/serviceaccount/..2026_11_25/ca.crt",
    ] {
        read(&with("file.path", json!(path)));
    }
}

#[test]
fn documents_that_cannot_be_used_are_named() {
    let bomb = format!("{}{}", "[".repeat(30_000), "]".repeat(30_000));
    for (line, reason) in [
        (" \t".to_owned(), BadLine::Blank),
        ("garbage".to_owned(), BadLine::NotJson),
        ("[]".to_owned(), BadLine::NotJson),
        ("5".to_owned(), BadLine::NotJson),
        (document().to_string().replacen('}', "", 1), BadLine::NotJson),
        (format!("{{\"process\":{bomb}}}"), BadLine::NotJson),
        (document().to_string().replacen('{', "{\"container\":{},", 1), BadLine::WrongShape),
        (document().to_string().replace("\"pid\":7", "\"pid\":7,\"pid\":8"), BadLine::WrongShape),
        (with("@timestamp", json!(null)).to_string(), BadLine::BadTime),
        (with("@timestamp", json!(5)).to_string(), BadLine::BadTime),
        (with("@timestamp", json!("0001-01-01T00:00:00Z")).to_string(), BadLine::BadTime),
        (with("@timestamp", json!("9999-01-01T00:00:00Z")).to_string(), BadLine::BadTime),
    ] {
        assert_eq!(parse(line.as_bytes()), Err(reason), "{line:.200}");
    }
}

#[test]
fn our_own_record_of_an_open_is_taken_as_it_is() {
    let mut open = read(&document()).open();
    open.grade = Grade::Exec;
    open.ktime_ns = 42;
    let mut document = document();
    document["tokentrail"] = json!({"grade": "exec", "skew_us": 1_000, "open": open});
    document["host"]["boot"] = json!({"id": "b-1"});
    let read = read(&document);
    assert_eq!((read.open(), read.skew, read.boot_id.as_str()), (open, Some(Micros(1_000)), "b-1"));
}

#[test]
fn fields_of_ours_count_where_they_can_be_read_and_else_the_ecs_fields_do() {
    for (tokentrail, grade, unread) in [
        (json!({"grade": "exec"}), Grade::Exec, vec![]),
        (json!({"grade": "sideways"}), Grade::Interactive, vec!["tokentrail.grade"]),
        (json!({"grade": "exec", "open": {"new": 1}}), Grade::Exec, vec!["tokentrail.open"]),
        (json!({"pod": {"uid": 5}}), Grade::Interactive, vec!["tokentrail.pod"]),
    ] {
        let mut document = document();
        document["tokentrail"] = tokentrail;
        let read = read(&document);
        assert_eq!((read.open().grade, read.unread), (grade, unread), "{document}");
        assert_eq!(read.pod_uid.as_deref(), Some("u-1"));
    }
    let alone =
        json!({"@timestamp": "2026-11-21T23:50:21.010116Z", "tokentrail": {"open": {"a": 1}}});
    assert_eq!(parse(alone.to_string().as_bytes()), Err(BadLine::WrongShape));
    assert_eq!(read(&with("orchestrator.resource.name", json!(7))).names, ["7"]);
}

proptest! {
    #[test]
    fn any_bytes_are_judged_without_a_panic(bytes in prop::collection::vec(any::<u8>(), 0..300), at in any::<prop::sample::Index>()) {
        let _ = parse(&bytes);
        let mut line = document().to_string().into_bytes();
        let at = at.index(line.len());
        line.splice(at..at, bytes);
        let _ = parse(&line);
    }
}
