//! Real lines, broken lines, and that the scan misses none that matter.

use proptest::prelude::*;
use serde_json::{Value, json};

use super::{Interest, Scan, last_stage_timestamp};
use crate::{
    audit::{AuditRecord, BadLine, CREDENTIAL_ID, POD_UID, Stage},
    time::Micros,
};

mod interest;
mod node;

/// Lines that a kube-apiserver wrote.
const REAL: &str = include_str!(concat!(
    env!("CARGO_MANIFEST_DIR"),
    "/../tests/fixtures/audit/kube-apiserver.ndjson"
));

fn classify(line: &[u8]) -> Scan {
    super::classify(line, &Interest::LIVE)
}

fn event() -> Value {
    json!({
        "kind": "Event",
        "apiVersion": "audit.k8s.io/v1",
        "level": "Metadata",
        "auditID": "6ae47085-24c4-47bc-975f-492d63333d31",
        "stage": "ResponseComplete",
        "requestURI": "/api/v1/secrets?limit=500",
        "verb": "list",
        "user": {"username": "system:serviceaccount:shop:till", "extra": {POD_UID: ["u-1"]}},
        "sourceIPs": ["10.0.0.7"],
        "requestReceivedTimestamp": "2026-11-21T23:50:21.010116Z",
        "stageTimestamp": "2026-11-21T23:50:21.014096Z",
    })
}

fn record(line: &str) -> AuditRecord {
    match classify(line.as_bytes()) {
        Scan::Record(record) => record,
        other @ (Scan::Skip | Scan::Bad(_)) => panic!("{other:?} for {line}"),
    }
}

#[test]
fn of_real_lines_exactly_those_of_accounts_and_those_that_lead_into_pods_or_mint_are_records() {
    let (mut with_uid, mut ways_in, mut others) = (0, 0, 0);
    for line in REAL.lines() {
        let value: Value = serde_json::from_str(line).unwrap();
        let uid = value["user"]["extra"][POD_UID][0].as_str();
        let way_in = value["objectRef"]["resource"] == "pods"
            && ["exec", "attach", "ephemeralcontainers"]
                .iter()
                .any(|way| value["objectRef"]["subresource"] == *way);
        let user = value["user"]["username"].as_str().unwrap_or_default();
        let other = user.starts_with("system:serviceaccount:")
            || (value["objectRef"]["resource"] == "serviceaccounts"
                && value["objectRef"]["subresource"] == "token");
        match classify(line.as_bytes()) {
            Scan::Record(record) if uid.is_some() || way_in || other => {
                assert_eq!(record.pod_uid(), uid);
                // What a record says is what the line says.
                let shown = serde_json::to_value(&record).unwrap();
                for (key, field) in shown.as_object().unwrap() {
                    if !["objectRef", "responseStatus"].contains(&key.as_str()) {
                        assert_eq!(field, &value[key], "{key} of {line}");
                    }
                }
                with_uid += usize::from(uid.is_some());
                ways_in += usize::from(way_in);
                others += usize::from(other && uid.is_none());
            }
            Scan::Skip if uid.is_none() && !way_in && !other => {}
            other @ (Scan::Record(_) | Scan::Skip | Scan::Bad(_)) => panic!("{other:?} for {line}"),
        }
        let stage = value["stageTimestamp"].as_str().and_then(Micros::parse);
        assert!(stage.is_some());
        assert_eq!(last_stage_timestamp(line.as_bytes()), stage);
    }
    assert_eq!((REAL.lines().count(), with_uid, ways_in, others), (116, 20, 11, 15));
}

/// Recorded by `cargo xtask fixtures`.
macro_rules! recorded {
    ($kind:literal) => {
        include_str!(concat!(
            env!("CARGO_MANIFEST_DIR"),
            "/../tests/fixtures/audit/",
            $kind,
            ".ndjson"
        ))
    };
}

use recorded;

/// What the scan makes of a line, in a few words.
fn told(line: &str) -> String {
    let record = match classify(line.as_bytes()) {
        Scan::Record(record) => record,
        Scan::Skip => return "skipped".to_owned(),
        Scan::Bad(reason) => return format!("{reason:?}"),
    };
    let object = record.object_ref.as_ref().unwrap();
    let status = record.response_status.as_ref();
    format!(
        "{:?}: {} {} {}{} {} {}",
        record.stage,
        if record.pod_uid().is_some() { "pod" } else { "somebody" },
        record.verb,
        object.resource.as_deref().unwrap_or_default(),
        object.subresource.as_deref().map(|sub| format!("/{sub}")).unwrap_or_default(),
        status.and_then(|status| status.code).map_or("-".to_owned(), |code| code.to_string()),
        record.decision().unwrap_or("-"),
    )
}

#[test]
fn of_each_kind_of_request_the_scan_tells_what_it_was() {
    let exec = |verb: &str| {
        [
            format!("RequestReceived: somebody {verb} pods/exec - -"),
            format!("ResponseStarted: somebody {verb} pods/exec 101 allow"),
            format!("ResponseComplete: somebody {verb} pods/exec 101 allow"),
        ]
    };
    let texts = |texts: &[&str]| texts.iter().map(|text| (*text).to_owned()).collect::<Vec<_>>();
    let listed =
        ["RequestReceived: pod list pods - -", "ResponseComplete: pod list pods 200 allow"];
    let minted = [
        "RequestReceived: somebody create serviceaccounts/token - -",
        "ResponseComplete: somebody create serviceaccounts/token 201 allow",
    ];
    let unbound = [
        "RequestReceived: somebody list pods - -",
        "ResponseComplete: somebody list pods 200 allow",
    ];
    let cases = [
        (recorded!("exec-websocket-tty"), exec("get").to_vec()),
        (recorded!("exec-websocket"), exec("get").to_vec()),
        (recorded!("exec-spdy-tty"), exec("create").to_vec()),
        (recorded!("exec-spdy"), exec("create").to_vec()),
        (
            recorded!("ephemeral-container"),
            texts(&[
                "RequestReceived: somebody patch pods/ephemeralcontainers - -",
                "ResponseComplete: somebody patch pods/ephemeralcontainers 200 allow",
            ]),
        ),
        (recorded!("pod-allowed"), texts(&listed)),
        (
            recorded!("pod-watch"),
            texts(&[
                "RequestReceived: pod watch pods - -",
                "ResponseStarted: pod watch pods 200 allow",
                "ResponseComplete: pod watch pods 200 allow",
            ]),
        ),
        (
            recorded!("pod-denied"),
            texts(&[
                "RequestReceived: pod get secrets - -",
                "ResponseComplete: pod get secrets 403 forbid",
            ]),
        ),
        // A token that somebody had bound to the pod passes for the pod's own.
        (recorded!("token-request-bound"), [texts(&minted), texts(&listed)].concat()),
        (recorded!("token-request-user"), [texts(&minted), texts(&unbound)].concat()),
        (recorded!("token-request-kubelet"), texts(&minted)),
        (recorded!("legacy-token"), texts(&unbound)),
        (recorded!("impersonation"), texts(&["skipped"; 2])),
        (recorded!("unauthorized"), texts(&["skipped"])),
    ];
    for (lines, expected) in cases {
        assert_eq!(lines.lines().map(told).collect::<Vec<_>>(), expected, "{lines}");
    }
}

#[test]
fn the_uri_of_a_session_tells_whether_it_has_a_terminal() {
    for (lines, terminal) in [
        (recorded!("exec-websocket-tty"), true),
        (recorded!("exec-websocket"), false),
        (recorded!("exec-spdy-tty"), true),
        (recorded!("exec-spdy"), false),
    ] {
        for line in lines.lines() {
            assert_eq!(record(line).request_uri.contains("tty=true"), terminal, "{line}");
        }
    }
}

#[test]
fn a_token_bound_to_a_pod_by_somebody_carries_that_pod_and_comes_from_elsewhere() {
    let own = record(recorded!("pod-allowed").lines().last().unwrap());
    let bound = record(recorded!("token-request-bound").lines().last().unwrap());
    assert_eq!(own.pod_uid(), bound.pod_uid());
    assert_eq!(own.user.username, bound.user.username);
    assert_ne!(own.user.extra[CREDENTIAL_ID], bound.user.extra[CREDENTIAL_ID]);
    assert_ne!(own.source_ip(), bound.source_ip());
}

#[test]
fn a_secret_that_a_client_put_into_its_request_is_not_in_the_record() {
    let jwt = "eyJhbGciOiJSUzI1NiJ9.eyJzdWIiOiJ4In0.c2lnLW5hdHVyZV8";
    let mut line = event();
    line["auditID"] = json!(jwt);
    line["requestURI"] = json!(format!("/api/{jwt}/namespaces/{jwt}/{jwt}?token={jwt}"));
    line["userAgent"] = json!(format!("curl/8 (Bearer {jwt})"));
    line["objectRef"] = json!({
        "resource": jwt, "namespace": jwt, "name": jwt, "subresource": jwt, "apiVersion": jwt,
    });
    let record = record(&line.to_string());
    let text = serde_json::to_string(&record).unwrap();
    assert!(!text.contains("eyJ"), "{text}");
    assert_eq!(
        record.request_uri,
        "/api/[redacted]/namespaces/[redacted]/[redacted]?token=[redacted]"
    );
}

#[test]
fn the_names_of_users_and_groups_stay_as_they_are_unless_they_hold_a_token() {
    let jwt = "eyJhbGciOiJSUzI1NiJ9.eyJzdWIiOiJ4In0.c2lnLW5hdHVyZV8";
    let named = |name: &str| {
        let mut line = event();
        line["user"] = json!({
            "username": name, "groups": [name], "extra": {POD_UID: ["u-1"]},
        });
        let user = record(&line.to_string()).user;
        assert_eq!(user.groups, [user.username.as_str()]);
        user.username
    };
    for name in ["corp-token:alice", "password=x", "system:serviceaccount:shop:vault-token:x"] {
        assert_eq!(named(name), name);
    }
    assert_eq!(named(&format!("corp:{jwt}:x")), "corp:[redacted]:x");
}

#[test]
fn an_address_has_one_form_however_it_is_written() {
    for (written, expected) in [
        ("10.1.1.1", "10.1.1.1"),
        ("::ffff:10.1.1.1", "10.1.1.1"),
        ("::FFFF:a01:101", "10.1.1.1"),
        ("2001:DB8:0::1", "2001:db8::1"),
        ("no address", "no address"),
    ] {
        let mut line = event();
        line["sourceIPs"] = json!([written]);
        assert_eq!(record(&line.to_string()).source_ip(), Some(expected));
    }
}

#[test]
fn a_real_request_is_decoded_in_full() {
    let forbidden = REAL.lines().find(|line| {
        line.contains("\"code\":403") && line.contains(POD_UID) && line.contains("\"pods\"")
    });
    let record = record(forbidden.unwrap());
    assert_eq!(record.stage, Stage::ResponseComplete);
    assert_eq!(record.verb, "list");
    assert_eq!(record.response_status.as_ref().unwrap().code, Some(403));
    assert_eq!(record.object_ref.as_ref().unwrap().resource.as_deref(), Some("pods"));
    assert_eq!(record.decision(), Some("forbid"));
    assert!(record.service_account().is_some());
    assert!(record.source_ip().is_some());
    assert!(record.request_received_timestamp <= record.stage_timestamp);
}

#[test]
fn what_is_missing_or_null_is_empty() {
    for key in
        ["kind", "apiVersion", "auditID", "requestURI", "verb", "sourceIPs", "userAgent", "level"]
    {
        let mut null = event();
        null[key] = Value::Null;
        let mut missing = event();
        missing.as_object_mut().unwrap().remove(key);
        assert_eq!(record(&null.to_string()), record(&missing.to_string()), "{key}");
    }
    let mut nulls = event();
    for key in ["impersonatedUser", "objectRef", "responseStatus", "annotations"] {
        nulls[key] = Value::Null;
    }
    nulls["user"]["groups"] = Value::Null;
    nulls["user"]["uid"] = Value::Null;
    nulls["user"]["username"] = Value::Null;
    nulls["user"]["extra"]["other"] = Value::Null;
    let record = record(&nulls.to_string());
    assert_eq!((record.user.groups.len(), record.annotations.len()), (0, 0));
    assert_eq!(record.object_ref, None);
}

#[test]
fn a_response_code_that_is_none_does_not_cost_the_record() {
    for code in [json!(70_000), json!(-1), json!(0), json!(null)] {
        let mut event = event();
        event["responseStatus"] = json!({"metadata": {}, "code": code});
        assert_eq!(record(&event.to_string()).response_status.unwrap().code, None);
    }
}

#[test]
fn bytes_that_are_no_utf_8_do_not_hide_a_request() {
    let mut line = event().to_string().into_bytes();
    let at = line.windows(5).position(|text| text == b"limit").unwrap();
    line[at] = 0xff;
    let Scan::Record(record) = classify(&line) else { panic!("hidden") };
    assert!(record.request_uri.contains('\u{fffd}'));
}

#[test]
fn lines_that_cannot_be_used_are_named() {
    let with = |key: &str, value: Value| {
        let mut event = event();
        event[key] = value;
        event.to_string()
    };
    let twice = |map: &str, line: String, member: &str| {
        line.replacen(&format!("\"{map}\":{{"), &format!("\"{map}\":{{{member},"), 1)
    };
    let bomb = format!("{}{}", "[".repeat(30_000), "]".repeat(30_000));
    for (line, reason) in [
        (String::new(), BadLine::Blank),
        (" \t\r".to_owned(), BadLine::Blank),
        ("garbage".to_owned(), BadLine::NotJson),
        ("\u{7f}ELF\u{1}\u{2}".to_owned(), BadLine::NotJson),
        (event().to_string()[..300].to_owned(), BadLine::NotJson),
        (format!("{{\"{POD_UID}\"}}"), BadLine::NotJson),
        (format!("{{}}{}", event()), BadLine::NotJson),
        (format!("{{\"user\":{bomb},\"x\":\"{POD_UID}\"}}"), BadLine::WrongShape),
        (with("kind", json!("Pod")), BadLine::WrongKind),
        (with("apiVersion", json!("v1")), BadLine::WrongKind),
        (with("stage", json!("Later")), BadLine::WrongShape),
        (with("stage", Value::Null), BadLine::WrongShape),
        (with("verb", json!(1)), BadLine::WrongShape),
        (with("sourceIPs", json!("10.0.0.1")), BadLine::WrongShape),
        (event().to_string().replacen('{', "{\"user\":{},", 1), BadLine::WrongShape),
        (
            twice("extra", event().to_string(), &format!("\"{POD_UID}\":[\"u-2\"]")),
            BadLine::WrongShape,
        ),
        (
            twice("annotations", with("annotations", json!({"a": "b"})), "\"a\":\"c\""),
            BadLine::WrongShape,
        ),
        (with("stageTimestamp", Value::Null), BadLine::BadTime),
        (with("requestReceivedTimestamp", Value::Null), BadLine::BadTime),
        (with("stageTimestamp", json!("yesterday")), BadLine::BadTime),
        (with("stageTimestamp", json!("0001-01-01T00:00:00.000000Z")), BadLine::BadTime),
        (with("stageTimestamp", json!("9999-12-31T23:59:59.999999Z")), BadLine::BadTime),
    ] {
        assert_eq!(classify(line.as_bytes()), Scan::Bad(reason), "{line:.200}");
    }
    // In a place that is not looked at, depth does no harm.
    let line = event().to_string().replacen('{', &format!("{{\"requestObject\":{bomb},"), 1);
    record(&line);
}

#[test]
fn a_pod_uid_anywhere_else_than_in_the_users_extra_does_not_matter() {
    for place in ["impersonatedUser", "annotations", "responseObject"] {
        let mut event = event();
        event["user"] = json!({"username": "admin"});
        event[place] = match place {
            "annotations" => json!({POD_UID: "u-1"}),
            _ => json!({"extra": {POD_UID: ["u-1"]}}),
        };
        assert_eq!(classify(event.to_string().as_bytes()), Scan::Skip, "{place}");
    }
    for extra in [json!({}), Value::Null, json!({POD_UID: []}), json!({POD_UID: null})] {
        let mut event = event();
        event["user"] = json!({"username": "admin", "extra": extra});
        assert_eq!(classify(event.to_string().as_bytes()), Scan::Skip);
    }
}

#[test]
fn the_canary_of_any_agent_is_a_record_and_its_mark_elsewhere_does_not_matter() {
    let mut event = event();
    event["user"] = json!({"username": "kubernetes-admin"});
    for (user_agent, matters) in [
        ("tokentrail-canary/run", true),
        ("tokentrail/0.1.0", false),
        ("curl tokentrail-canary/run", false),
    ] {
        event["userAgent"] = user_agent.into();
        let found = classify(event.to_string().as_bytes());
        assert_eq!(matches!(found, Scan::Record(_)), matters, "{user_agent}");
    }
    event["requestURI"] = "/api/v1/namespaces/tokentrail-canary/pods".into();
    assert_eq!(classify(event.to_string().as_bytes()), Scan::Skip);
    let escaped = event.to_string().replace("curl tokentrail-canary/", r"tokentrail-canary\/");
    assert!(matches!(classify(escaped.as_bytes()), Scan::Record(_)), "{escaped}");
}

#[test]
fn the_stage_time_is_the_servers_not_one_from_a_body_and_always_a_believable_one() {
    let at = Micros::parse("2026-11-21T23:50:21.014096Z");
    for (text, expected) in [
        (r#"{"stageTimestamp":"2026-11-21T23:50:21.014096Z"}"#, at),
        (
            r#"{"requestObject":{"stageTimestamp":"2099-01-01T00:00:00.000000Z"},"stageTimestamp":"2026-11-21T23:50:21.014096Z"}"#,
            at,
        ),
        (
            r#"{"stageTimestamp":"2026-11-21T23:50:21.014096Z","annotations":{"a":"\"stageTimestamp\":\"2099-01-01T00:00:00.000000Z\""}}"#,
            at,
        ),
        (
            "{\"stageTimestamp\":\"2026-11-21T23:50:20.000000Z\"}\n{\"stageTimestamp\":\"2026-11-21T23:50:21.014096Z\"}\ngarbage",
            at,
        ),
        (
            r#"{"x": "stageTimestamp", "stageTimestamp" : "2026-11-21T23:50:21.014096Z"}"#,
            Micros::parse("2026-11-21T23:50:21.014096Z"),
        ),
        (r#"{"stageTimestamp":null}"#, None),
        (r#"{"stageTimestamp":"0001-01-01T00:00:00.000000Z"}"#, None),
        (r#"{"stageTimestamp":"2026-11-21T23:50:21.01"#, None),
        ("", None),
    ] {
        assert_eq!(last_stage_timestamp(text.as_bytes()), expected, "{text}");
    }
}

/// Each character of a JSON string as itself or as one of its escapes.
fn spelled(text: &'static str) -> impl Strategy<Value = String> {
    let escaped = prop_oneof![9 => Just(0), 1 => 1..4].boxed();
    prop::collection::vec(escaped, text.len()).prop_map(move |ways| {
        let spell = |(c, way): (char, i32)| match (c, way) {
            (_, 1) => format!("\\u{:04x}", u32::from(c)),
            (_, 2) => format!("\\u{:04X}", u32::from(c)),
            ('/', 3) => "\\/".to_owned(),
            _ => c.to_string(),
        };
        text.chars().zip(ways).map(spell).collect()
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn the_scan_agrees_with_a_full_parse_on_which_lines_matter(
        user in spelled("user"),
        extra in spelled("extra"),
        key in prop_oneof![
            3 => spelled(POD_UID),
            1 => spelled("authentication.kubernetes.io/pod-name"),
        ],
        value in prop_oneof![Just("[]"), Just("null"), Just("[\"u-1\"]"), Just("[\"\\u0075\"]")],
        agent in prop_oneof![
            spelled("curl/8.0"), spelled("a&b<c>"), spelled(POD_UID), Just("\\\\/ \\\\u0061".into()),
        ],
    ) {
        let line = format!(
            r#"{{"kind":"Event","stage":"Panic","userAgent":"{agent}","{user}":{{"{extra}":{{"{key}":{value}}}}},"requestReceivedTimestamp":"2026-11-21T23:50:21.010116Z","stageTimestamp":"2026-11-21T23:50:21.010116Z"}}"#
        );
        crate::fuzzing::scan(line.as_bytes());
    }

    #[test]
    fn any_bytes_are_judged_without_a_panic(
        bytes in prop::collection::vec(any::<u8>(), 0..300),
        cut in any::<prop::sample::Index>(),
        at in any::<prop::sample::Index>(),
    ) {
        classify(&bytes);
        last_stage_timestamp(&bytes);
        let mut line = REAL.lines().nth(cut.index(116)).unwrap().as_bytes().to_vec();
        let at = at.index(line.len());
        line.splice(at..at, bytes);
        classify(&line);
        last_stage_timestamp(&line);
        line.truncate(cut.index(line.len()));
        classify(&line);
    }
}

#[test]
fn a_record_is_an_audit_line_again_that_says_the_same() {
    for file in ["pod-requests", "exec-tty", "token-request-user"] {
        let path = format!("{}/../tests/fixtures/audit/{file}.ndjson", env!("CARGO_MANIFEST_DIR"));
        let text = std::fs::read_to_string(path).unwrap();
        for line in text.lines() {
            let Scan::Record(record) = classify(line.as_bytes()) else { continue };
            let again = serde_json::to_vec(&record).unwrap();
            assert_eq!(classify(&again), Scan::Record(record));
        }
    }
}
