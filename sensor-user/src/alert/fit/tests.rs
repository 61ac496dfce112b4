//! Whatever opens, requests and sessions hold, their document is a line that a start reads back.

use std::{collections::BTreeMap, fs, sync::Arc};

use proptest::prelude::*;

use super::*;
use crate::{
    alert::{
        document::{Origin, document},
        log::{AlertLog, AlertLogMetrics, AlertLogSettings, Appended},
    },
    attribution::{TokenOpen, pods::PodIndex},
    audit::{AuditRecord, ObjectRef, ResponseStatus, Stage, User},
    correlation::{
        Attached, Finding, Open, Request,
        ids::RequestId,
        story::{Share, Story},
    },
    rules::{RequestKind, catalogue::RuleId},
    time::Micros,
};

/// How much of everything there is.
#[derive(Clone, Debug)]
struct Size {
    /// What texts are made of.
    fill: char,
    /// Length of each text of a record, in characters; by its place.
    texts: [usize; 12],
    /// Elements of each list and map; by its place.
    lists: [usize; 4],
    /// Requests and victims.
    requests: u32,
}

impl Size {
    fn text(&self, place: usize) -> String {
        self.fill.to_string().repeat(self.texts[place])
    }

    fn list(&self, place: usize) -> Vec<String> {
        (0..self.lists[place]).map(|number| format!("{number}{}", self.fill)).collect()
    }

    fn map<T>(&self, place: usize, value: impl Fn() -> T) -> BTreeMap<String, T> {
        self.list(place).into_iter().map(|key| (key, value())).collect()
    }

    fn user(&self) -> User {
        User {
            username: self.text(0),
            uid: self.text(1),
            groups: self.list(0),
            extra: self.map(1, || vec![self.text(2), self.text(3)]),
        }
    }

    fn record(&self, number: u32) -> AuditRecord {
        let mut annotations = self.map(2, || self.text(4));
        annotations.insert("authorization.k8s.io/decision".into(), self.text(5));
        annotations.insert("response".into(), self.text(5));
        AuditRecord {
            audit_id: format!("{number}"),
            stage: Stage::ResponseComplete,
            request_uri: self.text(6),
            verb: self.text(7),
            user: self.user(),
            impersonated_user: Some(self.user()),
            source_ips: self.list(3),
            user_agent: Some(self.text(8)),
            object_ref: Some(ObjectRef {
                resource: Some(self.text(9)),
                namespace: Some(self.text(10)),
                name: Some(self.text(11)),
                ..ObjectRef::default()
            }),
            response_status: Some(ResponseStatus {
                message: Some(self.text(4)),
                ..ResponseStatus::default()
            }),
            request_received_timestamp: Micros(i64::from(number)),
            stage_timestamp: Micros(i64::from(number)),
            annotations,
        }
    }

    /// The summary of an incident that is so large.
    fn finding(&self) -> Finding {
        let open = |number: u32| {
            let pod_uid = Some(format!("{number}{}", self.text(0)));
            Open::new("boot", TokenOpen { pod_uid, ..TokenOpen::example(Micros(1)) })
        };
        let attached = |number: u32| {
            let request = Request::new(Micros(i64::from(number)), self.record(number));
            Attached::new(RequestId::of(&request.record), &request, RequestKind::Unknown)
        };
        let rule = RuleId::TokenAccessThenApiRequest;
        let first = Some(Arc::new(open(0)));
        let mut story = Story::begin(rule, "a".repeat(32), first, Some(attached(0)));
        story.set_initiators((0..16).map(|number| Arc::new(self.record(number))).collect());
        for number in 1..self.requests {
            story.attach(attached(number), Share::among(1));
            story.add_open(&open(number));
        }
        story.summary()
    }
}

fn size() -> impl Strategy<Value = Size> {
    let fill = prop::sample::select(vec!['a', '"', '\\', '\u{1}', '\n', 'é', '\u{1f600}', '=']);
    let text = || prop_oneof![Just(0_usize), Just(8), Just(300), Just(2_000)];
    let list = || prop_oneof![Just(0_usize), Just(3), Just(40), Just(1_000)];
    let texts = prop::array::uniform12(text());
    (fill, texts, prop::array::uniform4(list()), 1_u32..260)
        .prop_map(|(fill, texts, lists, requests)| Size { fill, texts, lists, requests })
        // Of one line 64 KiB are kept, however they are shared.
        .prop_filter("more than is kept of a line", |size| {
            let maps =
                size.lists[1] * (size.texts[2] + size.texts[3]) * 2 + size.lists[2] * size.texts[4];
            maps + size.texts.iter().sum::<usize>() + size.lists.iter().sum::<usize>() < 64 << 10
        })
}

fn document_of(finding: &Finding) -> Document {
    let origin = Origin {
        cluster_name: None,
        node_name: "node".into(),
        host_id: None,
        agent_id: "agent".into(),
        route: "none".into(),
        degraded: Vec::new(),
    };
    document(finding, &origin, &PodIndex::default(), None, Micros(1))
}

/// Everything that must hold of a document's line, however large the document.
fn check(size: &Size) -> Vec<u8> {
    let document = document_of(&size.finding());
    let whole = serde_json::to_vec(&document).unwrap();
    let line = line(&document).unwrap();
    assert!(line.len() <= LONGEST, "{} of {} bytes: {size:?}", line.len(), whole.len());
    assert!(whole.len() > LONGEST || line == whole, "cut without need");
    let value: Value = serde_json::from_slice(&line).unwrap();
    assert_eq!(value["event"]["id"], document.event.id);
    let listed = value["tokentrail"]["evidence"]["requests"].as_array().unwrap();
    assert_eq!(listed.len(), size.requests.min(200) as usize);
    let response = serde_json::to_value(&document.tokentrail.response).unwrap();
    assert_eq!(value["tokentrail"]["response"], response);
    line
}

/// As much as can be of what takes most room.
fn largest() -> Size {
    Size { fill: '\u{1}', texts: [2_000; 12], lists: [1_000, 2, 2, 1_000], requests: 260 }
}

#[test]
fn the_largest_incident_fits() {
    for fill in ['\u{1}', '\u{1f600}'] {
        let line = check(&Size { fill, ..largest() });
        assert!(line.len() > LONGEST / 8, "{fill:?}: {} bytes are not large", line.len());
        // Lists and maps share a line with short texts.
        check(&Size { fill, texts: [20; 12], lists: [1_000; 4], requests: 260 });
        check(&Size { fill, texts: [300; 12], lists: [30; 4], requests: 260 });
    }
}

#[test]
fn of_a_list_the_beginning_and_the_last_stay() {
    let mut value =
        serde_json::json!({"ips": (0..100).map(|it| it.to_string()).collect::<Vec<_>>()});
    cut(&mut value);
    let ips = value["ips"].as_array().unwrap();
    assert_eq!((ips.len(), &ips[0], &ips[15]), (16, &"0".into(), &"99".into()));
}

#[test]
fn the_longest_line_is_known_after_a_restart_and_taken_back_where_a_crash_cut_it() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("alerts.ndjson");
    let settings = AlertLogSettings { path: path.clone(), max_bytes: 1 << 30, keep: 1 };
    let open = || AlertLog::open(settings.clone(), AlertLogMetrics::default()).unwrap();
    let mut line = check(&largest());
    line.resize(LONGEST, b' ');
    let whole: Value = serde_json::from_slice(&line).unwrap();
    let id = whole["event"]["id"].as_str().unwrap();
    assert_eq!(open().append(id, line.clone()), Appended::Written);
    assert_eq!(open().append(id, line.clone()), Appended::Known);
    let before = fs::read(&path).unwrap();
    for length in [1, 20, LONGEST - 1, LONGEST] {
        fs::write(&path, [&*before, &line[..length]].concat()).unwrap();
        drop(open());
        assert!(fs::read(&path).unwrap() == before, "{length} bytes of it were left");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(12))]

    #[test]
    fn every_document_fits(size in size()) {
        check(&size);
    }
}
