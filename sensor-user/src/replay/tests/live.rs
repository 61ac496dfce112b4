//! Whole replays under live semantics.

use std::sync::Arc;

use super::*;
use crate::{
    audit::POD_UID, correlation::Settings, replay::semantics::live::LiveSemantics,
    rules::rulebook::Rulebook,
};

/// A request received at `at` and answered so much later, of the pod of this uid.
fn request(at: i64, answered: i64, uid: &str) -> Vec<String> {
    let stage = |stage: &str, at_stage: i64| {
        let mut event: Value = serde_json::from_str(&answer(at, "till")).unwrap();
        event["stage"] = json!(stage);
        event["stageTimestamp"] = json!(time(at_stage));
        event["user"]["extra"][POD_UID] = json!([uid]);
        event["userAgent"] = json!("curl/8");
        if stage != "RequestReceived" {
            event["responseStatus"] = json!({"code": 200});
        }
        event.to_string()
    };
    vec![stage("RequestReceived", at), stage("ResponseComplete", at + answered)]
}

fn with(line: &str, pointer: &str, value: Value) -> String {
    let mut line: Value = serde_json::from_str(line).unwrap();
    let (parent, key) = pointer.rsplit_once('/').unwrap();
    line.pointer_mut(parent).unwrap()[key] = value;
    line.to_string()
}

/// An open of the pod of this uid, which its document may or may not have.
fn open_of(at: i64, uid: Option<&str>) -> String {
    uid.map_or_else(
        || open(at, "till"),
        |uid| with(&open(at, "till"), "/orchestrator/resource/id", json!(uid)),
    )
}

fn settings() -> Settings {
    Settings::new("")
}

fn replay_live(opens: &[String], audit: &[String], rules: &str) -> (Vec<Value>, Summary) {
    let folder = tempfile::tempdir().unwrap();
    let [open_file, audit_file] = ["opens", "audit"].map(|name| folder.path().join(name));
    fs::write(&open_file, opens.join("\n")).unwrap();
    fs::write(&audit_file, audit.join("\n")).unwrap();
    let rulebook = Arc::new(Rulebook::parse(rules).unwrap());
    let mut live = LiveSemantics::new(
        Micros::from_secs(75),
        settings(),
        PodsWithOpens::Unknown,
        rulebook,
        writer(),
    );
    replay_with(&mut live, 75, CHUNK, &[&open_file], &[&audit_file])
}

/// Rule, kind, confidence and pod uid of each document.
fn told(documents: &[Value]) -> Vec<String> {
    let text = |value: &Value| value.as_str().unwrap_or("-").to_owned();
    let mut told: Vec<_> = documents
        .iter()
        .map(|it| {
            let (rule, mark) = (text(&it["rule"]["id"]), &it["tokentrail"]);
            let (kind, sure) = (text(&mark["kind"]), text(&mark["confidence"]));
            format!("{rule} {kind} {sure} {}", text(&it["orchestrator"]["resource"]["id"]))
        })
        .collect();
    told.sort();
    told
}

const R1: &str = "token-access-then-api-request";

#[test]
fn an_open_is_joined_by_the_pods_uid_whatever_its_name() {
    let opens = [open_of(0, Some("u-1"))];
    let audit = [request(SECOND, 1_000, "u-2"), request(2 * SECOND, 1_000, "u-1")].concat();
    let (documents, _) = replay_live(&opens, &audit, "");
    assert_eq!(
        told(&documents),
        [format!("{R1} alert medium u-1"), format!("{R1} incident medium u-1")]
    );
    assert_eq!(documents[0]["@timestamp"], json!(time(2 * SECOND)));
    assert_eq!(documents[0]["event"]["start"], json!(time(0)));
}

#[test]
fn an_open_without_uid_is_joined_by_namespace_and_name_and_is_less_sure() {
    // The name was another pod's before, and is another's again later.
    let audit = [
        request(-9 * SECOND, 1_000, "u-0"),
        request(2 * SECOND, 1_000, "u-1"),
        request(70 * SECOND, 1_000, "u-2"),
    ];
    let (documents, _) = replay_live(&[open_of(0, None)], &audit.concat(), "");
    assert_eq!(told(&documents), [format!("{R1} alert low u-1"), format!("{R1} incident low u-1")]);
    let elsewhere = with(&open_of(0, None), "/orchestrator/namespace", json!("other"));
    let (documents, _) = replay_live(&[elsewhere], &audit.concat(), "");
    assert_eq!(told(&documents), ["token-read alert low -"]);
    assert_eq!(documents[0]["orchestrator"]["resource"]["name"], json!("till"));
}

#[test]
fn the_receipt_counts_not_the_stage_and_an_open_without_request_is_told_by_itself() {
    // A watch that began before the open and ends after it, and one that ends an hour later.
    let audit = [request(-SECOND, 3 * SECOND, "u-1"), request(-2 * SECOND, 3_600 * SECOND, "u-1")];
    let (documents, summary) = replay_live(&[open_of(0, Some("u-1"))], &audit.concat(), "");
    assert_eq!(told(&documents), ["token-read alert high u-1"]);
    assert_eq!(summary.late, 0);
    let late_answer = request(SECOND, 50 * SECOND, "u-1");
    let (documents, _) = replay_live(&[open_of(0, Some("u-1"))], &late_answer, "");
    assert_eq!(documents.len(), 2);
}

#[test]
fn the_skew_that_was_recorded_is_honoured() {
    let skewed = with(&open_of(0, Some("u-1")), "/tokentrail", json!({"skew_us": SECOND}));
    for (open, at, expected) in [
        (open_of(0, Some("u-1")), -SECOND, "token-read"),
        (skewed.clone(), -SECOND, R1),
        (skewed, -SECOND - 1, "token-read"),
    ] {
        let (documents, _) = replay_live(&[open], &request(at, 1_000, "u-1"), "");
        assert_eq!(documents[0]["rule"]["id"], json!(expected), "{at}");
    }
}

#[test]
fn a_rules_file_counts() {
    let rules = "exceptions:\n- name: known\n  rule: token-access-then-api-request\n  namespace: shop\n  reason: x\n";
    let audit = request(SECOND, 1_000, "u-1");
    let (documents, _) = replay_live(&[open_of(0, Some("u-1"))], &audit, rules);
    assert!(documents.iter().all(|it| it["rule"]["id"] != json!(R1)), "{documents:?}");
}

/// As [`open_of`], by a process of this grade, with what the agent's index knew of the pod.
fn recorded(at: i64, grade: &str) -> String {
    let line = open_of(at, Some("u-1"));
    let mut own =
        serde_json::to_value(opens::parse(line.as_bytes()).unwrap().unwrap().open()).unwrap();
    own["grade"] = json!(grade);
    let pod = json!({
        "uid": "u-1", "namespace": "shop", "name": "till", "service_account": "till",
        "ips": ["10.88.0.4"], "host_ips": ["10.89.0.3"],
    });
    with(&line, "/tokentrail", json!({"open": own, "pod": pod}))
}

#[test]
fn an_open_of_a_decoys_token_is_told_where_its_account_was_recorded() {
    for grade in ["interactive", "workload"] {
        let open = recorded(0, grade);
        // A log has to have something in it.
        let other = json!("system:serviceaccount:shop:other");
        let audit = request(-SECOND, 1_000, "u-2");
        let audit: Vec<_> =
            audit.iter().map(|line| with(line, "/user/username", other.clone())).collect();
        let decoys = |rules| {
            let (documents, _) = replay_live(std::slice::from_ref(&open), &audit, rules);
            documents.iter().filter(|it| it["rule"]["id"] == json!("decoy-used")).count()
        };
        assert_eq!(decoys("decoys: [shop/till]"), 2, "alert and summary, {grade}");
        assert_eq!(decoys("decoys: [shop/third]"), 0);
    }
}

#[test]
fn recorded_addresses_tell_whose_a_request_is() {
    let from = |address: &str, named: bool| {
        let lines = request(SECOND, 1_000, "u-1");
        let lines: Vec<_> = lines
            .iter()
            .map(|line| {
                let line = with(line, "/sourceIPs", json!([address]));
                if named { line } else { with(&line, "/user/extra", json!({})) }
            })
            .collect();
        let (documents, _) = replay_live(&[recorded(0, "interactive")], &lines, "");
        let alert = documents.iter().find(|it| it["tokentrail"]["kind"] == json!("alert")).unwrap();
        let score = alert["event"]["risk_score"].as_u64().unwrap();
        (told(std::slice::from_ref(alert)).remove(0), score)
    };
    assert_eq!(from("10.88.0.4", true), (format!("{R1} alert medium u-1"), 47));
    assert_eq!(from("192.0.2.7", true), (format!("{R1} alert medium u-1"), 73));
    assert_eq!(from("10.88.0.4", false), (format!("{R1} alert low u-1"), 47));
    assert_eq!(from("192.0.2.7", false).0, "token-read alert high u-1");
}

#[test]
fn an_answer_that_comes_as_late_as_it_may_finds_the_open_that_its_receipt_follows() {
    let answer = request(50 * SECOND, 76 * SECOND, "u-1").remove(1);
    let audit = [&request(100 * SECOND, 1_000, "u-2")[..], &[answer]].concat();
    let (documents, _) = replay_live(&[open_of(0, Some("u-1"))], &audit, "");
    assert_eq!(
        told(&documents),
        [format!("{R1} alert medium u-1"), format!("{R1} incident medium u-1")]
    );
}

#[test]
fn an_exception_is_asked_with_the_names_that_the_alert_shows_and_counted() {
    let audit = request(-SECOND, 1_000, "u-2");
    let rule = "exceptions:\n- name: known\n  rule: token-read\n  reason: x\n";
    for (condition, told) in [("namespace: shop", 0), ("pod: till", 0), ("pod: other", 1)] {
        for uid in [Some("u-1"), None] {
            let rules = format!("{rule}  {condition}\n");
            let (documents, summary) = replay_live(&[open_of(0, uid)], &audit, &rules);
            assert_eq!(documents.len(), told, "{condition}");
            let known = ("known".to_owned(), 1);
            assert_eq!(summary.excepted, if told == 0 { vec![known] } else { vec![] });
        }
    }
}

#[test]
fn one_line_of_long_ago_does_not_make_what_is_unknown_new() {
    let mut audit = [request(-2 * SECOND, 1_000, "u-2"), request(SECOND, 1_000, "u-1")].concat();
    let expected = [format!("{R1} alert medium u-1"), format!("{R1} incident medium u-1")];
    let old = request(0, 0, "u-2").remove(0).replace("2026-01-01", "2015-01-01");
    for place in 0..3 {
        audit.insert(place, old.clone());
        let (documents, _) = replay_live(&[open_of(0, Some("u-1"))], &audit, "");
        assert_eq!(told(&documents), expected, "{place}");
        audit.remove(place);
    }
}

#[test]
fn an_open_without_uid_is_of_every_pod_of_its_name_that_asks_in_the_window_and_of_no_other() {
    let (early, late) = (request(2 * SECOND, 1_000, "u-0"), request(1_000 * SECOND, 1_000, "u-3"));
    let within = [request(22 * SECOND, 1_000, "u-1"), request(80 * SECOND, 1_000, "u-2")].concat();
    let open = open_of(20 * SECOND, None);
    let (documents, _) =
        replay_live(std::slice::from_ref(&open), &[&early[..], &late].concat(), "");
    assert_eq!(told(&documents), ["token-read alert low -"]);
    assert_eq!(documents[0]["orchestrator"]["namespace"], json!("shop"));
    let (documents, _) =
        replay_live(std::slice::from_ref(&open), &[&early[..], &within, &late].concat(), "");
    let r1 = |kind: &str, uid: &str| format!("{R1} {kind} low {uid}");
    let expected = ["alert u-1", "alert u-2", "incident u-1", "incident u-2"]
        .map(|it| it.split_once(' ').map(|(kind, uid)| r1(kind, uid)).unwrap());
    assert_eq!(told(&documents), expected);
    // A second open of the session is of the pod that the first turned out to be of.
    let again = with(&open_of(30 * SECOND, None), "/event/id", json!("second"));
    let (documents, _) = replay_live(&[open, again], &within[..2], "");
    assert_eq!(told(&documents), [r1("alert", "u-1"), r1("incident", "u-1")]);
    assert_eq!(documents[1]["tokentrail"]["incident"]["opens"], json!(2));
}

#[test]
fn an_open_that_is_given_twice_counts_once() {
    let audit = request(2 * SECOND, 1_000, "u-1");
    let plain = open_of(0, Some("u-1"));
    let of = |id: &str| with(&plain, "/event/id", json!(id));
    for (opens, count) in [
        ([plain.clone(), plain.clone()], 1),
        ([of("a"), of("a")], 1),
        ([of("a"), of("b")], 2),
        ([recorded(0, "interactive"), recorded(0, "interactive")], 1),
    ] {
        let (documents, _) = replay_live(&opens, &audit, "");
        assert_eq!(documents[1]["tokentrail"]["incident"]["opens"], json!(count));
    }
}

proptest! {
    #[test]
    fn whatever_the_order_within_the_lateness_the_same_is_told(
        opens in prop::collection::btree_map(0..3_000i64, 0..2usize, 0..8),
        requests in prop::collection::btree_map(0..3_000i64, (0..2usize, 0..50i64), 0..24),
        files in (1..3usize, 1..3usize),
        chunk in 100..3_000usize,
        salt in any::<u32>(),
    ) {
        // No two at once: which is first then is the order of input.
        let uids = ["u-0", "u-1"];
        let open_lines: Vec<_> = opens
            .iter()
            .map(|(at, pod)| (at * SECOND + 500_000, open_of(at * SECOND + 500_000, Some(uids[*pod]))))
            .collect();
        let audit_lines: Vec<_> = requests
            .iter()
            .flat_map(|(at, (pod, took))| {
                let mut lines = request(at * SECOND, took * SECOND + at, uids[*pod]);
                // Some get no answer.
                lines.truncate(if *took < 40 { 2 } else { 1 });
                let took = took * SECOND + at;
                [at * SECOND, at * SECOND + took].into_iter().zip(lines)
            })
            .collect();
        let texts = |lines: &[(i64, String)]| -> Vec<String> {
            let mut lines = lines.to_vec();
            lines.sort();
            lines.into_iter().map(|(_, line)| line).collect()
        };
        let (expected, _) = replay_live(&texts(&open_lines), &texts(&audit_lines), "");
        let folder = tempfile::tempdir().unwrap();
        let salt = u64::from(salt);
        let open_files = scatter(&open_lines, files.0, salt, folder.path(), "opens");
        let audit_files = scatter(&audit_lines, files.1, salt / 3, folder.path(), "audit");
        // The same too if nobody is looked at who has no open.
        let files = Files { opens: open_files.clone(), audit: vec![], lateness: Micros(0), latest: Micros::MAX };
        let pods = pods_with_opens(&files);
        prop_assert!(matches!(pods, PodsWithOpens::Uids(_)));
        let mut live = LiveSemantics::new(Micros::from_secs(75), settings(), pods, Arc::default(), writer());
        let (found, summary) = replay_with(
            &mut live,
            75,
            chunk,
            &open_files.iter().map(PathBuf::as_path).collect::<Vec<_>>(),
            &audit_files.iter().map(PathBuf::as_path).collect::<Vec<_>>(),
        );
        prop_assert_eq!((summary.late, summary.early), (0, 0));
        prop_assert_eq!(found, expected);
    }
}
