//! What the correlator promises, told as opens, requests and what comes of them. Times are seconds
//! on one axis.

use std::{cell::RefCell, rc::Rc};

use proptest::prelude::*;
use serde_json::json;

use super::{
    journal::{FileJournal, NoJournal},
    *,
};
use crate::{
    attribution::{Grade, TokenFile},
    rules::RequestKind,
};

mod foreign;
mod given_up;
mod habits;
mod identity;
mod order;
mod rules;
mod stages;
mod swallowed;

const POD: &str = "5c711d3a-7a35-44c5-9f1a-3f3b3b1f2a10";

fn at(seconds: f64) -> Micros {
    #[expect(clippy::cast_possible_truncation, reason = "test times are small")]
    Micros((seconds * 1e6).round() as i64)
}

fn open(seconds: f64) -> Open {
    Open::new("boot", TokenOpen { pod_uid: Some(POD.into()), ..TokenOpen::example(at(seconds)) })
}

fn request(seconds: f64, name: &str) -> Request {
    staged(seconds, name, "ResponseComplete")
}

fn staged(seconds: f64, name: &str, stage: &str) -> Request {
    let record = serde_json::from_value(json!({
        "auditID": name, "stage": stage, "verb": "list",
        "requestURI": "/api/v1/namespaces/shop/pods",
        "user": {
            "username": "system:serviceaccount:shop:cart",
            "extra": {"authentication.kubernetes.io/pod-uid": [POD]},
        },
        "sourceIPs": ["10.88.0.4"], "userAgent": "curl/8",
        "responseStatus": {"code": 200},
        "requestReceivedTimestamp": at(seconds), "stageTimestamp": at(seconds),
    }));
    Request::new(at(seconds), record.unwrap())
}

struct Scene<J> {
    correlator: Correlator<J>,
    findings: Vec<Finding>,
    now: Micros,
}

fn scene() -> Scene<NoJournal> {
    scene_with(Settings::new("c"), NoJournal)
}

fn scene_with<J: Journal>(settings: Settings, journal: J) -> Scene<J> {
    Scene { correlator: Correlator::new(settings, journal), findings: Vec::new(), now: at(0.0) }
}

impl<J: Journal> Scene<J> {
    fn open(&mut self, open: Open) -> &mut Self {
        self.now = self.now.max(open.open.time);
        self.correlator.open(open, self.now, &mut self.findings);
        self
    }

    fn request(&mut self, request: Request) -> &mut Self {
        self.now = self.now.max(request.time);
        self.correlator.request(request, self.now, &mut self.findings);
        self
    }

    /// Watching begins.
    fn watch(&mut self, seconds: f64) -> &mut Self {
        self.correlator.watch(at(seconds));
        self
    }

    fn until(&mut self, seconds: f64) -> &mut Self {
        self.now = at(seconds);
        self.correlator.advance(self.now, self.now, &mut self.findings);
        self
    }

    /// What R1 told.
    fn told(&self, kind: Kind) -> Vec<&Finding> {
        self.told_by(RuleId::TokenAccessThenApiRequest, kind)
    }

    fn told_by(&self, rule: RuleId, kind: Kind) -> Vec<&Finding> {
        self.findings.iter().filter(|it| it.rule == rule && it.kind == kind).collect()
    }

    fn alerts(&self) -> Vec<&Finding> {
        self.told(Kind::Alert)
    }

    fn summaries(&self) -> Vec<&Finding> {
        self.told(Kind::Incident)
    }
}

/// Somebody asks for a token of `shop/cart`.
fn mint(seconds: f64, name: &str, user: &str, code: u16) -> Request {
    let mut request = request(seconds, name);
    request.record.user = audit::User { username: user.into(), ..Default::default() };
    request.record.verb = "create".into();
    request.record.object_ref = Some(audit::ObjectRef {
        resource: Some("serviceaccounts".into()),
        subresource: Some("token".into()),
        namespace: Some("shop".into()),
        name: Some("cart".into()),
        ..Default::default()
    });
    let status = audit::ResponseStatus { code: Some(code), ..Default::default() };
    request.record.response_status = Some(status);
    request
}

#[test]
fn the_window_is_sixty_seconds_inclusive() {
    for (seconds, alerts) in [(60.000_000, 1), (60.000_001, 0), (0.0, 1), (0.000_001, 1)] {
        let mut scene = scene();
        scene.open(open(100.0)).request(request(100.0 + seconds, "r"));
        assert_eq!(scene.alerts().len(), alerts, "{seconds} s after the open");
    }
}

#[test]
fn a_request_from_before_the_open_is_no_consequence_of_it_unless_clocks_may_differ() {
    for (skew, alerts) in [(0.0, 0), (1.0, 1)] {
        let mut scene = scene();
        let mut open = open(100.0);
        open.skew_us = at(skew).0;
        scene.open(open).request(request(99.5, "r"));
        assert_eq!(scene.alerts().len(), alerts, "skew {skew} s");
    }
}

#[test]
fn one_incident_is_one_alert_and_one_summary_that_counts_everything() {
    let mut scene = scene();
    scene.open(open(100.0)).request(request(101.0, "a")).request(request(102.0, "b"));
    scene.open(open(103.0)).request(request(104.0, "c"));
    assert_eq!(scene.alerts().len(), 1);
    scene.until(163.0);
    assert_eq!(scene.summaries().len(), 0, "it can still be joined");
    scene.until(164.5);
    let summaries = scene.summaries();
    assert_eq!((summaries[0].request_count, summaries[0].open_count), (3, 2));
    assert_eq!(summaries[0].incident_id, scene.alerts()[0].incident_id);
    assert_ne!(summaries[0].event_id, scene.alerts()[0].event_id);
    assert_eq!((summaries[0].first, summaries[0].last), (at(100.0), at(104.0)));
    assert_eq!(scene.correlator.held(), Held::default(), "nothing is left");
}

#[test]
fn an_open_that_stands_for_its_repeats_counts_as_many_as_they_are() {
    let mut scene = scene();
    let repeated = |seconds, repeats| {
        let mut open = open(seconds);
        open.open.repeats = repeats;
        open
    };
    scene.open(open(100.0)).open(repeated(101.0, 299_999)).request(request(101.5, "a"));
    assert_eq!(scene.alerts()[0].open_count, 300_001);
    scene.open(repeated(102.0, u64::MAX)).until(400.0);
    assert_eq!(scene.summaries()[0].open_count, u64::MAX, "a recording may say anything");
}

#[test]
fn an_open_may_arrive_after_its_request() {
    let mut scene = scene();
    scene.request(request(100.5, "r"));
    assert_eq!(scene.correlator.held().waiting, 1);
    scene.open(open(100.0));
    assert_eq!((scene.alerts().len(), scene.correlator.held().waiting), (1, 0));
}

#[test]
fn a_request_waits_for_its_open_no_longer_than_patience_lasts() {
    let mut scene = scene();
    scene.request(request(100.0, "r")).until(110.5);
    assert_eq!(scene.correlator.held(), Held::default());
}

#[test]
fn the_workloads_own_open_starts_nothing() {
    let mut scene = scene();
    let mut own = open(100.0);
    own.open.grade = Grade::Workload;
    scene.open(own).request(request(101.0, "r"));
    assert!(scene.alerts().is_empty());
}

#[test]
fn every_other_grade_starts_an_exposure() {
    for grade in [Grade::Outside, Grade::Interactive, Grade::Terminal, Grade::Exec] {
        let mut scene = scene();
        let mut open = open(100.0);
        open.open.grade = grade;
        scene.open(open).request(request(101.0, "r"));
        assert_eq!(scene.alerts().len(), 1, "{grade:?}");
    }
}

#[test]
fn another_pods_request_is_not_joined_even_under_the_same_account() {
    let mut scene = scene();
    let mut other = request(101.0, "r");
    let uids = vec!["another".to_owned()];
    other.record.user.extra.insert(audit::POD_UID.into(), uids);
    scene.open(open(100.0)).request(other);
    assert!(scene.alerts().is_empty());
}

#[test]
fn an_impersonated_users_claims_count_for_nothing() {
    let mut scene = scene();
    let mut forged = request(101.0, "r");
    forged.record.impersonated_user = Some(std::mem::take(&mut forged.record.user));
    scene.open(open(100.0)).request(forged);
    assert!(scene.alerts().is_empty());
}

#[test]
fn the_stages_of_a_request_are_one_request() {
    let mut scene = scene();
    scene.open(open(100.0));
    for stage in ["RequestReceived", "ResponseStarted", "ResponseComplete", "ResponseComplete"] {
        scene.request(staged(101.0, "r", stage));
    }
    scene.until(200.0);
    assert_eq!((scene.alerts().len(), scene.summaries()[0].request_count), (1, 1));
}

#[test]
fn a_later_stage_brings_the_outcome_into_the_summary() {
    let mut scene = scene();
    let mut complete = staged(101.0, "r", "ResponseComplete");
    complete.record.stage_timestamp = at(140.0);
    complete.record.response_status =
        Some(audit::ResponseStatus { code: Some(403), ..audit::ResponseStatus::default() });
    scene.open(open(100.0)).request(staged(101.0, "r", "ResponseStarted")).request(complete);
    scene.until(200.0);
    let code = |told: &Finding| {
        let record = &told.request.as_ref().unwrap().record;
        record.response_status.as_ref().and_then(|status| status.code)
    };
    assert_eq!(code(scene.alerts()[0]), Some(200));
    assert_eq!(code(scene.summaries()[0]), Some(403));
    assert_eq!(scene.alerts()[0].incident_id, scene.summaries()[0].incident_id);
}

#[test]
fn a_receipt_alone_counts_once_no_answer_came_within_the_lateness() {
    let mut scene = scene();
    scene.open(open(100.0)).request(staged(101.0, "r", "RequestReceived"));
    assert!(scene.alerts().is_empty());
    scene.until(101.5);
    assert_eq!(scene.alerts().len(), 1);
}

#[test]
fn the_same_client_goes_on_after_the_window_but_not_for_ever() {
    let mut scene = scene();
    scene.open(open(100.0));
    for step in 0..40 {
        scene.request(request(101.0 + f64::from(step) * 50.0, &format!("r{step}")));
    }
    // The exposure ends at 160 s; 15 min later even a busy client joins no more.
    scene.until(3_000.0);
    assert_eq!((scene.alerts().len(), scene.summaries().len()), (1, 1));
    let last = scene.summaries()[0].last;
    assert!(at(960.0) < last && last <= at(1_060.0), "{last:?}");
}

#[test]
fn another_client_does_not_join_after_the_window() {
    let mut scene = scene();
    let mut other = request(170.0, "other");
    other.record.user_agent = Some("wget".into());
    scene.open(open(100.0)).request(request(150.0, "a")).request(other).until(300.0);
    assert_eq!(scene.summaries()[0].request_count, 1);
}

#[test]
fn a_new_open_after_an_incidents_end_is_a_new_incident() {
    let mut scene = scene();
    scene.open(open(100.0)).request(request(101.0, "a"));
    scene.open(open(500.0)).request(request(501.0, "b"));
    let ids: Vec<_> = scene.alerts().iter().map(|alert| alert.incident_id.clone()).collect();
    assert_eq!(ids.len(), 2);
    assert_ne!(ids[0], ids[1]);
    scene.until(1_000.0);
    assert_eq!(scene.summaries().len(), 2);
}

#[test]
fn a_request_is_joined_with_the_newest_open_not_after_it() {
    let mut scene = scene();
    scene.open(open(100.0)).open(open(120.0)).open(open(140.0)).request(request(130.0, "r"));
    assert_eq!(scene.alerts()[0].open.as_ref().unwrap().open.time, at(120.0));
}

/// Somebody's `kubectl exec` into the pod.
fn session(seconds: f64, user: &str, query: &str) -> Request {
    let mut request = staged(seconds, user, "ResponseStarted");
    request.record.user = audit::User { username: user.into(), ..Default::default() };
    request.record.request_uri = format!("/api/v1/namespaces/shop/pods/cart-0/exec?{query}");
    request.record.object_ref = Some(audit::ObjectRef {
        resource: Some("pods".into()),
        namespace: Some("shop".into()),
        name: Some("cart-0".into()),
        subresource: Some("exec".into()),
        ..Default::default()
    });
    request
}

fn named(mut request: Request) -> Request {
    request.record.user.extra.insert(audit::POD_NAME.into(), vec!["cart-0".into()]);
    request
}

#[test]
fn the_alert_names_who_opened_the_session_best_candidate_first() {
    let mut scene = scene();
    scene.request(session(10.0, "old", "command=sh&tty=true"));
    scene.request(session(90.0, "probe", "command=true"));
    scene.request(session(80.0, "mallory", "command=sh&stdin=true&tty=true"));
    let mut refused = session(95.0, "refused", "command=sh&tty=true");
    refused.record.response_status =
        Some(audit::ResponseStatus { code: Some(403), ..Default::default() });
    scene.request(refused);
    scene.open(open(100.0)).request(session(100.5, "late", "tty=true"));
    scene.request(named(request(101.0, "r")));
    let users: Vec<_> =
        scene.alerts()[0].initiators.iter().map(|it| it.user.username.clone()).collect();
    assert_eq!(users, ["mallory", "old", "probe"]);
}

#[test]
fn who_opened_the_session_is_still_known_after_a_restart() {
    let journal = Memory::default();
    let mut before = scene_with(Settings::new("c"), journal.clone());
    before.request(session(90.0, "mallory", "command=sh&tty=true")).open(open(100.0));
    let mut after = scene_with(Settings::new("c"), NoJournal);
    for entry in journal.0.borrow().iter().cloned() {
        after.correlator.restore(entry, at(100.0), &mut after.findings);
    }
    after.request(named(request(101.0, "r")));
    assert_eq!(after.alerts()[0].initiators[0].user.username, "mallory");
}

#[test]
fn one_pods_flood_does_not_evict_another_pods_exposure() {
    let settings = Settings { pods: 4, ..Settings::new("c") };
    let mut scene = scene_with(settings, NoJournal);
    scene.open(open(100.0));
    for number in 0..200 {
        let mut flood = open(101.0);
        flood.open.pod_uid = Some("noisy".into());
        flood.open.entry.key.tgid = number;
        scene.open(flood);
        let mut waiting = request(101.0, "w");
        let uids = vec![format!("pod-{number}")];
        waiting.record.user.extra.insert(audit::POD_UID.into(), uids);
        scene.request(waiting);
    }
    scene.request(request(102.0, "r"));
    assert_eq!(scene.alerts().len(), 1);
    let losses = scene.correlator.losses();
    assert!(losses.exposures > 0 && losses.pods > 0, "{losses:?}");
}

/// A journal that a later correlator can read.
#[derive(Clone, Default)]
struct Memory(Rc<RefCell<Vec<Entry>>>);

impl Journal for Memory {
    fn append(&mut self, entry: &Entry) -> Result<(), JournalError> {
        self.0.borrow_mut().push(entry.clone());
        Ok(())
    }

    fn flush(&mut self) -> Result<(), JournalError> {
        Ok(())
    }

    fn compact(&mut self, is_needed: &dyn Fn(&Entry) -> bool, _: bool) -> Result<(), JournalError> {
        self.0.borrow_mut().retain(|entry| is_needed(entry));
        Ok(())
    }
}

#[test]
fn death_between_open_and_request_loses_nothing() {
    let journal = Memory::default();
    let mut before = scene_with(Settings::new("c"), journal.clone());
    before.open(open(100.0));
    let mut after = scene_with(Settings::new("c"), NoJournal);
    for entry in journal.0.borrow().iter().cloned() {
        after.correlator.restore(entry, at(100.0), &mut after.findings);
    }
    after.request(request(101.0, "r"));
    before.request(request(101.0, "r"));
    assert_eq!(after.alerts()[0].event_id, before.alerts()[0].event_id);
}

#[test]
fn death_within_an_incident_tells_the_same_alert_and_does_not_count_a_request_twice() {
    let journal = Memory::default();
    let mut before = scene_with(Settings::new("c"), journal.clone());
    before.open(open(100.0)).request(request(101.0, "a")).request(request(102.0, "b"));
    let mut after = scene_with(Settings::new("c"), NoJournal);
    for entry in journal.0.borrow().iter().cloned() {
        after.correlator.restore(entry, at(102.0), &mut after.findings);
    }
    // The checkpoint had not moved yet: the file yields one of them again.
    after.request(request(102.0, "b")).request(request(103.0, "c")).until(200.0);
    assert_eq!(after.alerts()[0].event_id, before.alerts()[0].event_id);
    assert_eq!(after.summaries()[0].request_count, 3);
}

#[test]
fn death_after_a_receipt_that_stays_unanswered_loses_nothing() {
    for open_first in [true, false] {
        let journal = Memory::default();
        let mut before = scene_with(Settings::new("c"), journal.clone());
        let receipt = staged(101.0, "r", "RequestReceived");
        if open_first {
            before.open(open(100.0)).request(receipt);
        } else {
            before.request(receipt).open(open(100.0));
        }
        let mut after = scene_with(Settings::new("c"), NoJournal);
        for entry in journal.0.borrow().iter().cloned() {
            after.correlator.restore(entry, at(101.0), &mut after.findings);
        }
        assert!(after.alerts().is_empty(), "an answer may still come");
        after.until(200.0);
        assert_eq!(after.alerts().len(), 1, "open first: {open_first}");
    }
}

#[test]
fn what_a_compaction_leaves_begins_no_incident_under_another_id() {
    let journal = Memory::default();
    let mut before = scene_with(Settings::new("c"), journal.clone());
    // Another pod is held from the middle of this pod's exposure on.
    let mut other = open(130.0);
    other.open.pod_uid = Some("other".into());
    before.open(open(100.0)).open(other).open(open(150.0)).request(request(155.0, "r"));
    let known = before.alerts()[0].event_id.clone();
    for until in [190.0, 220.0, 400.0] {
        before.until(until);
        let mut late = open(until);
        late.open.pod_uid = Some("other".into());
        before.open(late);
        before.correlator.compact_journal(at(until)).unwrap();
        let mut after = scene_with(Settings::new("c"), NoJournal);
        for entry in journal.0.borrow().iter().cloned() {
            after.correlator.restore(entry, at(until), &mut after.findings);
        }
        let again = after.alerts();
        assert!(again.iter().all(|alert| alert.event_id == known), "{again:#?} at {until}");
    }
}

#[test]
fn a_journal_file_gives_back_what_it_took_and_shrugs_off_a_torn_line() {
    let directory = tempfile::tempdir().unwrap();
    {
        let (mut journal, entries, damaged) = FileJournal::open(directory.path()).unwrap();
        assert_eq!((entries.len(), damaged), (0, 0));
        journal.append(&Entry::Open(open(1.0))).unwrap();
        journal.append(&Entry::Request(request(2.0, "r"))).unwrap();
    }
    let path = directory.path().join("correlation.journal");
    let mut bytes = std::fs::read(&path).unwrap();
    bytes.extend_from_slice(b"{\"open\":{\"boot");
    std::fs::write(&path, bytes).unwrap();
    let (mut journal, entries, damaged) = FileJournal::open(directory.path()).unwrap();
    assert_eq!((entries.len(), damaged), (2, 1));
    journal.append(&Entry::Open(open(3.0))).unwrap();
    let (_, entries, damaged) = FileJournal::open(directory.path()).unwrap();
    assert_eq!((entries.len(), damaged), (3, 1), "the entry after the torn line stands alone");
}

#[test]
fn a_journal_that_is_full_takes_entries_again_once_some_are_dead() {
    let directory = tempfile::tempdir().unwrap();
    let (mut journal, _, _) = FileJournal::open(directory.path()).unwrap();
    let mut large = open(0.0);
    large.open.cgroup = "x".repeat(512 << 10);
    let mut second = 0_i64;
    // More than half of it is alive at first: it must not wait until that has doubled.
    for alive in [40, 0] {
        while journal.append(&Entry::Open(large.clone())).is_ok() {
            second += 1;
            large.open.time = Micros::from_secs(second);
            assert!(second < 200, "it has no bound");
        }
        let last = second;
        let dead = Micros::from_secs(last - alive);
        journal.compact(&|entry| !is_open_before(dead + Micros(1), entry), false).unwrap();
        journal.append(&Entry::Open(large.clone())).unwrap();
    }
}

fn is_open_before(time: Micros, entry: &Entry) -> bool {
    matches!(entry, Entry::Open(open) if open.open.time < time)
}

#[test]
fn a_journal_that_has_grown_drops_what_is_dead() {
    let directory = tempfile::tempdir().unwrap();
    let (mut journal, _, _) = FileJournal::open(directory.path()).unwrap();
    for second in 0..2_000 {
        journal.append(&Entry::Open(open(f64::from(second)))).unwrap();
    }
    journal.compact(&|entry| !is_open_before(at(1_990.0), entry), false).unwrap();
    journal.append(&Entry::Open(open(2_000.0))).unwrap();
    let (mut journal, entries, damaged) = FileJournal::open(directory.path()).unwrap();
    assert_eq!((entries.len(), damaged), (11, 0));

    journal.append(&Entry::Session(request(2_001.0, "s"))).unwrap();
    journal.compact(&|entry| matches!(entry, Entry::Session(_)), true).unwrap();
    let (_, entries, _) = FileJournal::open(directory.path()).unwrap();
    assert!(matches!(entries[..], [Entry::Session(_)]), "nothing held: nothing comes back");
}

proptest! {
    /// However opens and requests interleave on their way here, a request within the window of an
    /// open ends up in one incident, once.
    #[test]
    fn the_order_of_arrival_does_not_change_what_is_joined(
        opens in proptest::collection::vec(0_u32..200, 1..6),
        requests in proptest::collection::vec(0_u32..200, 0..12),
        order in proptest::collection::vec(any::<u16>(), 18),
    ) {
        let mut inputs: Vec<(u32, Option<String>)> = opens.iter().map(|time| (*time, None)).collect();
        inputs.extend(requests.iter().enumerate().map(|(n, time)| (*time, Some(format!("r{n}")))));
        let exposed = |time: u32| opens.iter().any(|open| (*open..=open + 60).contains(&time));
        // A client of its own each, so that none goes on after the window.
        let asked = |time: u32, name: &str| {
            let mut request = request(f64::from(time), name);
            request.record.user_agent = Some(name.to_owned());
            request
        };
        let mut expected: Vec<RequestId> = inputs
            .iter()
            .filter(|(time, _)| exposed(*time))
            .filter_map(|(time, name)| Some(RequestId::of(&asked(*time, name.as_deref()?).record)))
            .collect();
        expected.sort();
        let mut shuffled: Vec<_> = inputs.into_iter().zip(order).collect();
        shuffled.sort_by_key(|(_, key)| *key);
        let settings = Settings { patience: at(10_000.0), ..Settings::new("c") };
        let mut scene = scene_with(settings, NoJournal);
        for ((time, name), _) in shuffled {
            match name {
                None => scene.open(open(f64::from(time))),
                Some(name) => scene.request(asked(time, &name)),
            };
        }
        scene.until(100_000.0);
        let summaries = scene.summaries();
        let mut joined: Vec<RequestId> =
            summaries.iter().flat_map(|it| it.requests.iter().map(|listed| listed.id)).collect();
        joined.sort();
        prop_assert_eq!(joined, expected);
    }
}
