//! The scan of audit lines, against a full parse of each.
//!
//! The parse is `serde_json`'s into a `Value`, and what matters of it is told here anew, from the
//! contract in `audit/scan.rs` alone.

use std::net::IpAddr;

use serde_json::Value;

use crate::{
    audit::{
        AuditRecord, BadLine, NODE_NAME, POD_NAME, POD_UID, SERVICE_ACCOUNT, Stage, canary,
        scan::{
            Interest, Node, Pods, Scan, Users, classify, last_stage_timestamp, received_timestamp,
            stage_timestamp,
        },
    },
    redact::redact,
    time::Micros,
};

/// Pods and users that are looked for: some of each kind, and the empty name.
fn known(name: &str) -> bool {
    name.is_empty() || name.starts_with(['c', 'j', '1', '\u{e9}'])
}

/// The same of accounts, by user name.
fn known_account(user: &str) -> bool {
    user.strip_prefix(SERVICE_ACCOUNT).is_some_and(known)
}

/// What a replay looks for with either semantics, and `run` of all nodes and of its own.
const INTERESTS: [Interest<'static>; 4] = [
    Interest::LIVE,
    Interest {
        pods: Pods::WithUid(&known),
        accounts: Users::None,
        sessions: true,
        token_requests: Users::None,
        canaries: false,
        received_may_lack: false,
    },
    Interest {
        pods: Pods::Named(&known),
        accounts: Users::None,
        sessions: false,
        token_requests: Users::Named(&known),
        canaries: false,
        received_may_lack: true,
    },
    Interest {
        pods: Pods::OfNode(Node { name: "n", has_pod: &known, has_account: &known_account }),
        accounts: Users::Named(&known_account),
        ..Interest::LIVE
    },
];

/// A line that matters becomes a record that says what the line says, however it is spelled; no
/// other does; what is wrong with a line is told rightly.
pub fn scan(line: &[u8]) {
    last_stage_timestamp(line);
    let text = String::from_utf8_lossy(line);
    let event = serde_json::from_str::<Value>(&text).ok().filter(has_shape);
    for interest in &INTERESTS {
        let found = classify(line, interest);
        if let Scan::Record(record) = &found {
            can_be_stored(record);
        }
        let Some(event) = &event else { continue };
        // Of a key that is there twice, `Value` has the last; the scan may refuse such a line.
        if found != Scan::Bad(BadLine::WrongShape) {
            is_right(&found, event, interest, &text);
        }
        let plain = event.to_string();
        is_right(&classify(plain.as_bytes(), interest), event, interest, &plain);
    }
    if let Some(event) = &event {
        for (found, key) in [
            (stage_timestamp(line), "stageTimestamp"),
            (received_timestamp(line), "requestReceivedTimestamp"),
        ] {
            if let (Some(found), Some(time)) = (found, event[key].as_str()) {
                assert_eq!(Some(found), Micros::parse(time), "{key} of {text}");
            }
        }
    }
}

fn is_right(found: &Scan, event: &Value, interest: &Interest<'_>, text: &str) {
    let told = |key: &str, is: &dyn Fn(&str) -> bool| event[key].as_str().is_none_or(is);
    let is_event = told("kind", &|kind| kind == "Event")
        && told("apiVersion", &|version| version.starts_with("audit.k8s.io/"));
    let time = |key: &str| Micros::parse_believable(event[key].as_str().unwrap_or_default());
    let may_lack = interest.received_may_lack && event["requestReceivedTimestamp"].is_null();
    let is_dated = time("stageTimestamp").is_some()
        && (may_lack || time("requestReceivedTimestamp").is_some());
    match found {
        Scan::Skip => {
            assert!(!matters(event, interest, &|_| false), "missed with {interest:?}: {text}");
        }
        Scan::Record(record) => {
            let right = is_event && is_dated && matters(event, interest, &known);
            assert!(right, "taken with {interest:?}: {text}");
            agrees(record, event, text);
        }
        Scan::Bad(BadLine::WrongKind) => assert!(!is_event, "{text}"),
        Scan::Bad(BadLine::BadTime) => assert!(is_event && !is_dated, "{text}"),
        Scan::Bad(BadLine::WrongShape) => assert!(event["stage"].is_null(), "{text}"),
        Scan::Bad(reason) => panic!("{reason}: {text}"),
    }
}

/// Whether a full parse finds what an interest asks for. A user without a name may be taken for one
/// with an empty name, where users are looked for by name: `nameless` says which.
fn matters(event: &Value, interest: &Interest<'_>, nameless: &dyn Fn(&str) -> bool) -> bool {
    let user = &event["user"];
    let username = user["username"].as_str().unwrap_or_default();
    let names =
        |key: &str, known: &dyn Fn(&str) -> bool| texts(&user["extra"][key]).into_iter().any(known);
    let of_pod = match interest.pods {
        Pods::All => names(POD_UID, &|_| true),
        Pods::Named(known) => names(POD_NAME, known),
        Pods::WithUid(known) => names(POD_UID, known),
        Pods::OfNode(node) => {
            names(POD_UID, node.has_pod)
                || names(NODE_NAME, &|name| name == node.name)
                || (texts(&user["extra"][POD_UID]).is_empty() && (node.has_account)(username))
        }
    };
    let object = (
        event["objectRef"]["resource"].as_str().unwrap_or_default(),
        event["objectRef"]["subresource"].as_str().unwrap_or_default(),
    );
    let of_object = match object {
        ("pods", "exec" | "attach" | "ephemeralcontainers") => interest.sessions,
        ("serviceaccounts", "token") => match interest.token_requests {
            Users::None => false,
            Users::All => true,
            Users::Named(known) => {
                if user["username"].is_string() {
                    known(username)
                } else {
                    nameless(username)
                }
            }
        },
        _ => false,
    };
    let agent = event["userAgent"].as_str().unwrap_or_default();
    of_pod
        || of_object
        || (username.starts_with(SERVICE_ACCOUNT) && asks_for(interest.accounts, username))
        || (interest.canaries && agent.starts_with(canary::MARK))
}

fn asks_for(users: Users<'_>, username: &str) -> bool {
    match users {
        Users::None => false,
        Users::All => true,
        Users::Named(known) => known(username),
    }
}

/// Whether each value that is looked at is of its type, or null.
fn has_shape(event: &Value) -> bool {
    let is_text = |value: &Value| value.is_null() || value.is_string();
    let all = |value: &Value, is: &dyn Fn(&Value) -> bool| match value {
        Value::Array(values) => values.iter().all(is),
        value => value.is_null(),
    };
    let map = |value: &Value, is: &dyn Fn(&Value) -> bool| match value {
        Value::Object(members) => members.values().all(is),
        value => value.is_null(),
    };
    let is_user = |user: &Value| {
        map(user, &|_| true)
            && is_text(&user["username"])
            && is_text(&user["uid"])
            && all(&user["groups"], &Value::is_string)
            && map(&user["extra"], &|it| it.is_string() || all(it, &is_text))
    };
    let code = &event["responseStatus"]["code"];
    let (object, status) = (&event["objectRef"], &event["responseStatus"]);
    event.is_object()
        && ["kind", "apiVersion", "auditID", "requestURI", "verb", "userAgent"]
            .iter()
            .chain(&["requestReceivedTimestamp", "stageTimestamp"])
            .all(|key| is_text(&event[key]))
        && (event["stage"].is_null()
            || event["stage"].as_str().is_some_and(|it| stage(it).is_some()))
        && is_user(&event["user"])
        && is_user(&event["impersonatedUser"])
        && all(&event["sourceIPs"], &Value::is_string)
        && map(object, &|_| true)
        && ["resource", "namespace", "name", "subresource", "apiGroup", "apiVersion"]
            .iter()
            .all(|key| is_text(&object[key]))
        && map(status, &|_| true)
        && ["status", "reason", "message"].iter().all(|key| is_text(&status[key]))
        && (code.is_null() || code.is_i64())
        && map(&event["annotations"], &is_text)
}

fn stage(name: &str) -> Option<Stage> {
    [
        ("RequestReceived", Stage::RequestReceived),
        ("ResponseStarted", Stage::ResponseStarted),
        ("ResponseComplete", Stage::ResponseComplete),
        ("Panic", Stage::Panic),
    ]
    .iter()
    .find_map(|(text, stage)| (*text == name).then_some(*stage))
}

/// The texts of a list, or the one that stands for it.
fn texts(value: &Value) -> Vec<&str> {
    match value {
        Value::Array(values) => values.iter().filter_map(Value::as_str).collect(),
        value => value.as_str().into_iter().collect(),
    }
}

fn agrees(record: &AuditRecord, event: &Value, text: &str) {
    let same = |found: &str, told: &Value| {
        let told = told.as_str().unwrap_or_default();
        // Long ones are cut, secrets are taken out.
        assert!(found == told || told.len() > 4096 || redact(told) != told, "{found:?} in {text}");
    };
    assert_eq!(Some(record.stage), event["stage"].as_str().and_then(stage), "{text}");
    same(&record.audit_id, &event["auditID"]);
    same(&record.request_uri, &event["requestURI"]);
    same(&record.verb, &event["verb"]);
    same(&record.user.username, &event["user"]["username"]);
    same(record.user_agent.as_deref().unwrap_or_default(), &event["userAgent"]);
    let object = record.object_ref.clone().unwrap_or_default();
    for (found, key) in [
        (object.resource, "resource"),
        (object.namespace, "namespace"),
        (object.name, "name"),
        (object.subresource, "subresource"),
    ] {
        same(&found.unwrap_or_default(), &event["objectRef"][key]);
    }
    for key in [POD_UID, POD_NAME] {
        let told = texts(&event["user"]["extra"][key]);
        let found = record.extra_values(key);
        assert_eq!(found.len(), told.len(), "{key} in {text}");
        found.iter().zip(told).for_each(|(found, told)| same(found, &told.into()));
    }
    let told = texts(&event["sourceIPs"]);
    assert_eq!(record.source_ips.len(), told.len(), "{text}");
    for (found, told) in record.source_ips.iter().zip(told) {
        match told.parse::<IpAddr>() {
            Ok(address) => assert_eq!(found.parse(), Ok(address.to_canonical()), "{text}"),
            Err(_) => same(found, &told.into()),
        }
    }
    let code = event["responseStatus"]["code"].as_i64().unwrap_or_default();
    let found = record.response_status.as_ref().and_then(|status| status.code);
    assert_eq!(found, u16::try_from(code).ok().filter(|code| *code != 0), "{text}");
    assert_eq!(
        Some(record.stage_timestamp),
        event["stageTimestamp"].as_str().and_then(Micros::parse)
    );
    let received = event["requestReceivedTimestamp"].as_str().and_then(Micros::parse);
    assert_eq!(record.request_received_timestamp, received.unwrap_or(record.stage_timestamp));
}

/// A record is kept as JSON, and no secret is in it.
fn can_be_stored(record: &AuditRecord) {
    let stored = serde_json::to_value(record).unwrap_or_default();
    let read: Option<AuditRecord> = serde_json::from_str(&stored.to_string()).ok();
    assert_eq!(read.as_ref(), Some(record));
    holds_no_secret(&stored);
}

fn holds_no_secret(value: &Value) {
    match value {
        Value::String(text) => assert_eq!(redact(text), *text),
        Value::Array(values) => values.iter().for_each(holds_no_secret),
        Value::Object(members) => members
            .iter()
            // Who it is must not be changed, whatever its name looks like.
            .filter(|(key, _)| !["username", "groups"].contains(&key.as_str()))
            .for_each(|(_, value)| holds_no_secret(value)),
        Value::Null | Value::Bool(_) | Value::Number(_) => {}
    }
}

#[cfg(test)]
mod tests {
    use std::panic::catch_unwind;

    use serde_json::json;

    use super::*;

    fn event() -> Value {
        json!({
            "stage": "Panic",
            "user": {"username": "jane", "extra": {POD_UID: ["c"]}},
            "requestReceivedTimestamp": "2026-11-21T23:50:21.010116Z",
            "stageTimestamp": "2026-11-21T23:50:21.010116Z",
        })
    }

    #[test]
    fn a_wrong_answer_breaks_the_property() {
        let event = event();
        let text = event.to_string();
        let Scan::Record(record) = classify(text.as_bytes(), &Interest::LIVE) else {
            panic!("{text}")
        };
        let right = || Scan::Record(record.clone());
        let breaks = |found: Scan, event: &Value| {
            catch_unwind(|| is_right(&found, event, &Interest::LIVE, "")).is_err()
        };
        assert!(has_shape(&event) && !breaks(right(), &event));
        assert!(breaks(Scan::Skip, &event));
        for reason in [BadLine::NotJson, BadLine::WrongKind, BadLine::WrongShape, BadLine::BadTime]
        {
            assert!(breaks(Scan::Bad(reason), &event), "{reason}");
        }
        let mut other = record.clone();
        other.user.username = "joe".to_owned();
        assert!(breaks(Scan::Record(other), &event));
        let mut nobodys = event;
        nobodys["user"]["extra"] = Value::Null;
        assert!(breaks(right(), &nobodys) && !breaks(Scan::Skip, &nobodys));
    }
}
