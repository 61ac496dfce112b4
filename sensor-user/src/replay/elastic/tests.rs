//! Each sentence of the rules' Elasticsearch semantics, and a model that knows only these.

use proptest::prelude::*;
use serde_json::{Value, json};

use super::{super::opens, *};
use crate::audit::{
    User,
    scan::{Interest, Pods, Users, decode},
};

/// An open of this pod's token at this microsecond after the beginning of 2026.
fn open(at: i64, names: &Value) -> OpenDocument {
    let document = json!({
        "@timestamp": time(at).to_string(),
        "host": {"os": {"type": "linux"}},
        "event": {"category": ["file"], "type": ["change"], "action": "open"},
        "file": {"path": "/var/run/secrets/kubernetes.io/serviceaccount/token"},
        "process": {"interactive": true},
        "container": {"id": ""},
        "orchestrator": {"resource": {"name": names}},
    });
    opens::parse(document.to_string().as_bytes()).unwrap().unwrap()
}

fn time(at: i64) -> Micros {
    Micros::parse("2026-01-01T00:00:00Z").unwrap() + Micros(at)
}

fn event(at: i64, names: &Value) -> Value {
    json!({
        "kind": "Event", "apiVersion": "audit.k8s.io/v1", "stage": "ResponseComplete",
        "verb": "list",
        "user": {"username": "system:serviceaccount:shop:till", "extra": {POD_NAME: names}},
        "requestReceivedTimestamp": time(at).to_string(), "stageTimestamp": time(at).to_string(),
    })
}

/// The event, if the scan takes it for one that may matter.
fn record(event: &Value) -> Option<AuditRecord> {
    let any = |_: &str| true;
    let interest = Interest {
        pods: Pods::Named(&any),
        accounts: Users::None,
        sessions: true,
        token_requests: Users::All,
        canaries: false,
        received_may_lack: true,
    };
    decode(event.to_string().as_bytes(), &interest).unwrap()
}

/// What happens, in this order.
enum Step {
    Open(i64, Value),
    Event(Value),
}

use Step::{Event, Open};

/// Times of open and request of each alert.
fn alerts(steps: Vec<Step>) -> Vec<(i64, i64)> {
    let (mut elastic, mut matches) = (Elastic::default(), Vec::new());
    for step in steps {
        match step {
            Open(at, names) => elastic.open(open(at, &names)),
            Event(event) => {
                record(&event).into_iter().for_each(|it| elastic.request(it, true, &mut matches));
            }
        }
    }
    let times = matches.into_iter().map(|it| match it {
        Match::Sequence { open, request, .. } => {
            ((open.time - time(0)).0, (request.stage_timestamp - time(0)).0)
        }
        Match::TokenRequest { .. } => panic!("nobody asked for a token"),
    });
    times.collect()
}

const MINUTE: i64 = 60_000_000;

fn till(at: i64) -> Step {
    Event(event(at, &json!(["till"])))
}

fn opened(at: i64) -> Step {
    Open(at, json!("till"))
}

#[test]
fn a_request_is_in_time_up_to_sixty_seconds_inclusive() {
    for (at, expected) in [
        (0, vec![(0, 0)]),
        (MINUTE - 1, vec![(0, MINUTE - 1)]),
        (MINUTE, vec![(0, MINUTE)]),
        (MINUTE + 1, vec![]),
    ] {
        assert_eq!(alerts(vec![opened(0), till(at)]), expected, "{at}");
    }
}

#[test]
fn a_request_before_the_open_is_none_after_it() {
    assert_eq!(alerts(vec![till(0), opened(1)]), []);
    assert_eq!(alerts(vec![till(0), opened(1), till(2)]), [(1, 2)]);
}

#[test]
fn a_later_open_takes_the_place_of_the_pending_one() {
    assert_eq!(alerts(vec![opened(0), opened(5), till(9)]), [(5, 9)]);
    let renewed = vec![opened(0), opened(MINUTE), till(MINUTE + 9)];
    assert_eq!(alerts(renewed), [(MINUTE, MINUTE + 9)]);
    assert_eq!(alerts(vec![opened(0), opened(0), till(9), till(9)]), [(0, 9)]);
}

#[test]
fn the_first_request_uses_the_open_up_with_an_alert_or_without() {
    assert_eq!(alerts(vec![opened(0), till(1), till(2), till(3)]), [(0, 1)]);
    assert_eq!(alerts(vec![opened(0), till(MINUTE + 1), till(MINUTE + 2)]), []);
    assert_eq!(alerts(vec![opened(0), till(1), opened(2), till(3)]), [(0, 1), (2, 3)]);
}

#[test]
fn only_an_answer_counts_and_a_receipt_uses_nothing_up() {
    for (stage, counts) in [
        ("RequestReceived", false),
        ("ResponseStarted", true),
        ("ResponseComplete", true),
        ("Panic", false),
    ] {
        let mut staged = event(1, &json!(["till"]));
        staged["stage"] = json!(stage);
        let expected = if counts { vec![(0, 1)] } else { vec![(0, 2)] };
        assert_eq!(alerts(vec![opened(0), Event(staged), till(2)]), expected, "{stage}");
    }
}

#[test]
fn the_stage_counts_not_the_receipt() {
    // A watch that began long before the open and ends after it.
    let mut watch = event(5, &json!(["till"]));
    watch["verb"] = json!("watch");
    watch["requestReceivedTimestamp"] = json!(time(-9 * MINUTE).to_string());
    assert_eq!(alerts(vec![opened(0), Event(watch)]), [(0, 5)]);
}

#[test]
fn each_element_of_a_list_joins_on_its_own() {
    let both = json!(["till", "cart"]);
    assert_eq!(alerts(vec![opened(0), Event(event(1, &both))]), [(0, 1)]);
    let opens = vec![opened(0), Open(1, json!("cart")), Event(event(2, &both))];
    assert_eq!(alerts(opens), [(0, 2), (1, 2)]);
    let one_open = vec![Open(0, both.clone()), till(1), Event(event(2, &json!(["cart"]))), till(3)];
    assert_eq!(alerts(one_open), [(0, 1), (0, 2)]);
    let twice = json!(["till", "till"]);
    assert_eq!(alerts(vec![opened(0), Event(event(1, &twice))]), [(0, 1)]);
}

#[test]
fn a_key_that_is_null_or_missing_takes_no_part_and_an_empty_one_does() {
    for nothing in [json!(null), json!([]), json!([null])] {
        let steps = vec![Open(0, nothing.clone()), Event(event(1, &nothing)), opened(2), till(3)];
        assert_eq!(alerts(steps), [(2, 3)], "{nothing}");
    }
    let mut without = event(1, &json!(["till"]));
    without["user"].as_object_mut().unwrap().remove("extra");
    assert_eq!(alerts(vec![opened(0), Event(without)]), []);
    assert_eq!(alerts(vec![Open(0, json!("")), Event(event(1, &json!([""])))]), [(0, 1)]);
    let beside_null = json!([null, "till"]);
    assert_eq!(alerts(vec![opened(0), Event(event(1, &beside_null))]), [(0, 1)]);
}

#[test]
fn names_are_compared_with_their_case() {
    assert_eq!(alerts(vec![Open(0, json!("Till")), till(1)]), []);
}

#[test]
fn whom_a_user_acts_as_plays_no_part() {
    let mut event = event(1, &json!(["cart"]));
    event["impersonatedUser"] = json!({"username": "x", "extra": {POD_NAME: ["till"]}});
    assert_eq!(alerts(vec![opened(0), Event(event), till(2)]), [(0, 2)]);
}

#[test]
fn what_comes_too_late_for_its_place_undoes_nothing() {
    assert_eq!(alerts(vec![opened(5), opened(3), till(9)]), [(5, 9)]);
    assert_eq!(alerts(vec![opened(5), till(3), till(9)]), [(5, 9)]);
}

fn minted(user: &Value, change: impl Fn(&mut Value)) -> usize {
    let template = record(&event(0, &json!(["x"]))).unwrap();
    let mut event = event(0, &json!(null));
    event["verb"] = json!("create");
    event["user"] = user.clone();
    event["objectRef"] = json!({"resource": "serviceaccounts", "subresource": "token"});
    change(&mut event);
    let mut matches = Vec::new();
    let has_user_name = user["username"].is_string();
    let record = AuditRecord {
        object_ref: serde_json::from_value::<Option<ObjectRef>>(event["objectRef"].clone())
            .unwrap(),
        user: serde_json::from_value::<User>(user.clone()).unwrap(),
        verb: event["verb"].as_str().unwrap().to_owned(),
        stage: serde_json::from_value(event["stage"].clone()).unwrap(),
        ..template
    };
    Elastic::default().request(record, has_user_name, &mut matches);
    matches.len()
}

#[test]
fn a_token_request_matches_at_every_stage_and_whatever_comes_of_it() {
    let admin = json!({"username": "kubernetes-admin"});
    for stage in ["RequestReceived", "ResponseStarted", "ResponseComplete", "Panic"] {
        let change = |event: &mut Value| {
            event["stage"] = json!(stage);
            event["responseStatus"] = json!({"code": 403});
        };
        assert_eq!(minted(&admin, change), 1, "{stage}");
    }
    for (key, value) in [
        ("verb", json!("get")),
        ("verb", json!("Create")),
        ("objectRef", json!({"resource": "serviceaccounts"})),
        ("objectRef", json!({"resource": "pods", "subresource": "token"})),
        ("objectRef", json!({"resource": "serviceaccounts", "subresource": "Token"})),
        ("objectRef", json!(null)),
    ] {
        assert_eq!(minted(&admin, |event| event[key] = value.clone()), 0, "{key} {value}");
    }
}

#[test]
fn the_systems_own_users_are_left_out_by_their_whole_name_and_case() {
    for (user, expected) in [
        (json!("jane"), 1),
        (json!(""), 1),
        (json!(null), 0),
        (json!("system:kube-controller-manager"), 0),
        (json!("system:kube-controller-manager2"), 1),
        (json!("system:node:"), 0),
        (json!("system:node:worker-1"), 0),
        (json!("System:node:worker-1"), 1),
        (json!("system:nodes"), 1),
        (json!("system:serviceaccount:kube-system:x"), 0),
        (json!("system:serviceaccount:kube-system2:x"), 1),
        (json!("eks:anything:at all"), 0),
        (json!("xeks:a"), 1),
        (json!("aksService"), 0),
        (json!("aksservice"), 1),
        (json!("masterclient"), 0),
        (json!("nodeclient"), 0),
        (json!("system:serviceaccount:gke-connect:x"), 0),
        (json!("system:gke-controller-manager"), 0),
        (json!("system:serviceaccount:tigera-operator:x"), 0),
        (json!("system:serviceaccount:calico-system:x"), 0),
        (json!("system:serviceaccount:shop:till"), 1),
    ] {
        assert_eq!(minted(&json!({"username": user}), |_| {}), expected, "{user}");
    }
}

/// What happened, without any order but time: opens and answers as `(time, names)`.
fn model(mut opens: Vec<(i64, Vec<u8>)>, mut answers: Vec<(i64, Vec<u8>)>) -> Vec<(i64, i64)> {
    opens.sort_by_key(|(at, _)| *at);
    answers.sort_by_key(|(at, _)| *at);
    let mut found = Vec::new();
    for name in 0..3 {
        let of = |list: &[(i64, Vec<u8>)]| -> Vec<i64> {
            list.iter().filter(|(_, names)| names.contains(&name)).map(|(at, _)| *at).collect()
        };
        let (opens, answers) = (of(&opens), of(&answers));
        for (index, answer) in answers.iter().enumerate() {
            // The answer before took every open up to it; of those since, the last one counts.
            let before = index.checked_sub(1).map_or(i64::MIN, |index| answers[index]);
            let open = opens.iter().rfind(|open| *open <= answer).filter(|open| **open > before);
            if let Some(open) = open.filter(|open| answer - **open <= MINUTE) {
                found.push((*open, *answer));
            }
        }
    }
    found.sort_unstable();
    found
}

proptest! {
    #[test]
    fn alerts_are_those_that_the_whole_history_implies(
        opens in prop::collection::vec((0..20i64, prop::collection::vec(0..3u8, 0..3)), 0..12),
        answers in prop::collection::vec((0..20i64, prop::collection::vec(0..3u8, 0..3)), 0..12),
    ) {
        // Steps of a quarter of the span: on, before and behind its end.
        let spread = |list: Vec<(i64, Vec<u8>)>| -> Vec<(i64, Vec<u8>)> {
            list.into_iter().map(|(at, names)| (at * MINUTE / 4, names)).collect()
        };
        let (opens, answers) = (spread(opens), spread(answers));
        let expected = model(opens.clone(), answers.clone());
        let name = |names: &[u8]| json!(names.iter().map(|it| format!("pod-{it}")).collect::<Vec<_>>());
        let mut steps: Vec<(i64, u8, Step)> = Vec::new();
        steps.extend(opens.iter().map(|(at, names)| (*at, 0, Open(*at, name(names)))));
        steps.extend(answers.iter().map(|(at, names)| (*at, 1, Event(event(*at, &name(names))))));
        steps.sort_by_key(|(at, kind, _)| (*at, *kind));
        let mut found = alerts(steps.into_iter().map(|(_, _, step)| step).collect());
        found.sort_unstable();
        prop_assert_eq!(found, expected);
    }
}
