//! The rules beside R1: R0, R2, R3, R7, and exceptions of all.

use super::*;
use crate::rules::Band;

fn graded(seconds: f64, grade: Grade) -> Open {
    let mut open = open(seconds);
    open.open.grade = grade;
    open
}

fn ruled(text: &str) -> Arc<Rulebook> {
    Arc::new(Rulebook::parse(text).unwrap())
}

#[test]
fn a_read_that_no_request_follows_is_told_when_none_can_come_any_more() {
    let mut scene = scene();
    scene.open(graded(100.0, Grade::Exec)).open(graded(130.0, Grade::Exec)).until(190.0);
    assert!(scene.findings.is_empty(), "a request may still come");
    scene.until(190.000_001).until(1_000.0);
    let told = scene.told_by(RuleId::TokenRead, Kind::Alert);
    assert_eq!((told.len(), scene.findings.len()), (1, 1));
    assert_eq!((told[0].band, told[0].open_count), (Band::Low, 2));
    assert_eq!(told[0].open.as_ref().unwrap().open.time, at(100.0));
}

#[test]
fn no_mere_read_is_told_of_what_says_nothing_or_is_told_otherwise() {
    let mut certificate = open(100.0);
    certificate.open.file = TokenFile::CaCert;
    for (what, open) in [
        ("the certificate is public", certificate),
        ("the workload reads its own", graded(100.0, Grade::Workload)),
        ("R3 tells of it", graded(100.0, Grade::Outside)),
    ] {
        let mut scene = scene();
        scene.open(open).until(1_000.0);
        assert!(scene.told_by(RuleId::TokenRead, Kind::Alert).is_empty(), "{what}");
    }
    let mut scene = scene();
    scene.open(open(100.0)).request(request(101.0, "r")).until(1_000.0);
    assert!(scene.told_by(RuleId::TokenRead, Kind::Alert).is_empty(), "R1 tells of it");
}

#[test]
fn reading_from_outside_is_one_incident_for_a_reader_and_an_hour() {
    let mut scene = scene();
    let read = |seconds: f64, pod: &str, executable: &str| {
        let mut open = graded(seconds, Grade::Outside);
        open.open.pod_uid = Some(pod.into());
        open.open.executable = executable.into();
        open
    };
    for number in 0..100 {
        scene.open(read(100.0 + f64::from(number), &format!("pod-{number}"), "/usr/bin/tar"));
    }
    scene.open(read(150.0, "pod-1", "/bin/cat"));
    let alerts = scene.told_by(RuleId::TokenReadFromOutside, Kind::Alert);
    assert_eq!(alerts.len(), 2, "one for each reader");
    assert_eq!((alerts[0].band, alerts[0].open_count), (Band::High, 1));
    scene.open(read(3_700.0, "pod-5", "/usr/bin/tar"));
    assert_eq!(scene.told_by(RuleId::TokenReadFromOutside, Kind::Alert).len(), 2);
    scene.open(read(3_700.000_001, "pod-5", "/usr/bin/tar"));
    assert_eq!(scene.told_by(RuleId::TokenReadFromOutside, Kind::Alert).len(), 3);
    scene.until(3_800.0);
    let summaries = scene.told_by(RuleId::TokenReadFromOutside, Kind::Incident);
    let of_tar = summaries.iter().find(|it| it.open_count > 1).unwrap();
    assert_eq!((of_tar.open_count, of_tar.victims.len()), (101, 100));
    assert_eq!(of_tar.victims["pod-5"], 2);
}

#[test]
fn a_request_after_a_read_from_outside_is_in_both_incidents_and_each_names_the_other() {
    let mut scene = scene();
    scene.open(graded(100.0, Grade::Outside)).request(request(101.0, "r")).until(10_000.0);
    let [outside] = scene.told_by(RuleId::TokenReadFromOutside, Kind::Incident)[..] else {
        panic!("{:#?}", scene.findings);
    };
    let [alert] = scene.alerts()[..] else { panic!("{:#?}", scene.findings) };
    assert_eq!(outside.request_count, 1);
    assert_eq!(outside.related, [alert.incident_id.as_str()]);
    assert_eq!(alert.related, [outside.incident_id.as_str()]);
}

#[test]
fn a_token_minted_by_a_user_is_told_once_for_all_its_stages_and_an_hour_of_repeats() {
    let mut scene = scene();
    let mut received = mint(100.0, "a", "mallory", 201);
    received.record.stage = audit::Stage::RequestReceived;
    received.record.response_status = None;
    scene.request(received).request(mint(100.0, "a", "mallory", 201));
    scene.request(mint(100.0, "a", "mallory", 201)).request(mint(200.0, "b", "mallory", 201));
    scene.request(mint(300.0, "c", "trent", 201));
    let alerts = scene.told_by(RuleId::TokenRequestByUser, Kind::Alert);
    assert_eq!(alerts.len(), 2, "one for each user");
    assert_eq!(alerts[0].band, Band::Medium);
    scene.request(mint(3_700.0, "d", "mallory", 201));
    assert_eq!(scene.told_by(RuleId::TokenRequestByUser, Kind::Alert).len(), 2);
    scene.request(mint(3_700.000_001, "e", "mallory", 201)).until(10_000.0);
    assert_eq!(scene.told_by(RuleId::TokenRequestByUser, Kind::Alert).len(), 3);
    let summaries = scene.told_by(RuleId::TokenRequestByUser, Kind::Incident);
    assert_eq!(summaries.iter().map(|it| it.request_count).collect::<Vec<_>>(), [3, 1, 1]);
}

#[test]
fn a_refusal_is_an_attempt_success_after_it_an_escalation_and_other_failures_are_nothing() {
    let mut scene = scene();
    scene.request(mint(100.0, "a", "mallory", 404)).request(mint(101.0, "b", "mallory", 500));
    assert!(scene.findings.is_empty());
    scene.request(mint(102.0, "c", "mallory", 403));
    assert_eq!(scene.told_by(RuleId::TokenRequestByUser, Kind::Alert)[0].band, Band::Low);
    scene.request(mint(103.0, "d", "mallory", 201)).request(mint(104.0, "e", "mallory", 201));
    let escalations = scene.told_by(RuleId::TokenRequestByUser, Kind::Escalation);
    assert_eq!(escalations.iter().map(|it| it.band).collect::<Vec<_>>(), [Band::Medium]);
}

#[test]
fn who_mints_as_a_matter_of_course_is_told_only_if_the_rulebook_says_so() {
    let controller = "system:serviceaccount:kube-system:generic-garbage-collector";
    let alerts = |rulebook: &str| {
        let mut scene = scene();
        scene.correlator.set_rulebook(ruled(rulebook));
        scene.request(mint(100.0, "a", controller, 201));
        // Called like a kubelet, but none.
        scene.request(mint(101.0, "b", "system:node:worker", 201));
        let alerts = scene.told_by(RuleId::TokenRequestByUser, Kind::Alert);
        alerts
            .iter()
            .map(|it| it.request.as_ref().unwrap().record.audit_id.clone())
            .collect::<Vec<_>>()
    };
    assert_eq!(alerts(""), ["b"]);
    assert_eq!(alerts("token-request-by-user: {kube-system: alert}"), ["a", "b"]);
}

#[test]
fn a_flood_of_clients_is_bounded_and_drowns_nobody_else() {
    let mut scene = scene();
    scene.request(mint(99.0, "trent", "trent", 201));
    for number in 0..100 {
        let mut request = mint(100.0 + f64::from(number), &format!("r{number}"), "mallory", 201);
        request.record.user_agent = Some(format!("agent-{number}"));
        scene.request(request);
    }
    // Sixteen of hers by client, one of all other clients, and Trent's.
    assert_eq!(scene.correlator.held().incidents, 18);
    // The one of all others takes 84.
    assert_eq!(scene.correlator.losses(), Losses { crowded: 84, ..Losses::default() });
    let told = scene.told_by(RuleId::TokenRequestByUser, Kind::Alert);
    assert_eq!(told.iter().filter(|it| it.crowded).count(), 1);
    let alerts = told.len();
    assert_eq!(alerts, 18);
    scene.request(mint(200.0, "again", "trent", 201));
    assert_eq!(scene.told_by(RuleId::TokenRequestByUser, Kind::Alert).len(), alerts);
}

#[test]
fn a_decoy_is_told_by_its_open_its_request_and_its_minting() {
    let rulebook = ruled("decoys: [shop/cart]");
    let mut decoys_open = graded(100.0, Grade::Workload);
    decoys_open.pod = Some(Arc::new(Pod {
        namespace: "shop".into(),
        service_account: "cart".into(),
        ..Pod::default()
    }));
    let inputs: [(&str, Option<Open>, Option<Request>); 3] = [
        ("open", Some(decoys_open), None),
        ("request", None, Some(staged(100.0, "r", "RequestReceived"))),
        ("mint", None, Some(mint(100.0, "m", "system:kube-scheduler", 403))),
    ];
    for (what, open, request) in inputs {
        let mut scene = scene();
        scene.correlator.set_rulebook(Arc::clone(&rulebook));
        for _ in 0..2 {
            if let Some(open) = open.clone() {
                scene.open(open);
            }
            if let Some(request) = request.clone() {
                scene.request(request);
            }
        }
        scene.until(10_000.0);
        let alerts = scene.told_by(RuleId::DecoyUsed, Kind::Alert);
        assert_eq!(alerts.iter().map(|it| it.band).collect::<Vec<_>>(), [Band::Critical], "{what}");
        assert_eq!(scene.told_by(RuleId::DecoyUsed, Kind::Incident).len(), 1, "{what}");
    }
}

#[test]
fn what_an_exception_judged_is_counted_and_nothing_is_told_of_it() {
    let mut scene = scene();
    scene.correlator.set_rulebook(ruled(
        "exceptions:
           - {name: debug, rule: token-access-then-api-request, verb: list, namespace: shop,
              reason: looked at}",
    ));
    scene.open(open(100.0));
    for stage in ["ResponseStarted", "ResponseComplete"] {
        scene.request(staged(101.0, "r", stage));
    }
    scene.until(1_000.0);
    // It says nothing of the mere read, which another rule tells.
    assert_eq!(scene.findings.len(), scene.told_by(RuleId::TokenRead, Kind::Alert).len());
    let hits = scene.correlator.take_hits();
    assert_eq!(hits.len(), 1, "a request once: {hits:?}");
    assert!(scene.correlator.take_hits().is_empty());
    // What it does not name is told as ever.
    let mut other = request(2_001.0, "other");
    other.record.verb = "delete".into();
    scene.open(open(2_000.0)).request(request(2_000.5, "again")).request(other);
    assert_eq!(scene.alerts().len(), 1);
    assert_eq!(scene.alerts()[0].request.as_ref().unwrap().record.audit_id, "other");
}

#[test]
fn what_is_told_without_an_exposure_is_told_under_the_same_id_after_a_restart() {
    let journal = Memory::default();
    let mut before = scene_with(Settings::new("c"), journal.clone());
    before.open(graded(100.0, Grade::Outside)).request(mint(101.0, "a", "mallory", 201));
    before.request(mint(102.0, "b", "mallory", 201));
    before.correlator.compact_journal(at(200.0)).unwrap();
    let mut after = scene_with(Settings::new("c"), NoJournal);
    for entry in journal.0.borrow().iter().cloned() {
        after.correlator.restore(entry, at(102.0), &mut after.findings);
    }
    let ids = |scene: &[Finding]| {
        let mut ids: Vec<_> = scene.iter().map(|it| it.event_id.clone()).collect();
        ids.sort();
        ids
    };
    assert_eq!(ids(&after.findings), ids(&before.findings));
    after.request(mint(103.0, "c", "mallory", 201)).until(10_000.0);
    assert_eq!(after.told_by(RuleId::TokenRequestByUser, Kind::Incident)[0].request_count, 3);
}

#[test]
fn an_exception_of_one_rule_is_none_of_another() {
    let mut scene = scene();
    scene.correlator.set_rulebook(ruled(
        "exceptions:
           - {name: mints, rule: token-request-by-user, namespace: shop, reason: looked at}",
    ));
    // An intruder in a pod that mints by trade.
    let mut minted = mint(101.0, "m", "system:serviceaccount:shop:minter", 201);
    minted.record.user.extra.insert(audit::POD_UID.into(), vec![POD.into()]);
    scene.open(open(100.0)).request(minted);
    assert!(scene.told_by(RuleId::TokenRequestByUser, Kind::Alert).is_empty());
    assert_eq!(scene.alerts()[0].band, Band::High);
}

#[test]
fn what_was_judged_before_a_restart_is_not_judged_anew() {
    let journal = Memory::default();
    let mut before = scene_with(Settings::new("c"), journal.clone());
    before.watch(0.0);
    let secrets = |seconds: f64, name: &str| {
        let mut request = request(seconds, name);
        request.record.object_ref =
            Some(audit::ObjectRef { resource: Some("secrets".into()), ..Default::default() });
        request
    };
    before.request(secrets(100.0, "own")).open(open(1_000.0)).request(secrets(1_001.0, "r"));
    assert_eq!(before.alerts()[0].band, Band::Medium, "the workload lists secrets itself");
    let mut after = scene_with(Settings::new("c"), NoJournal);
    for entry in journal.0.borrow().iter().cloned() {
        after.correlator.restore(entry, at(1_002.0), &mut after.findings);
    }
    assert_eq!(after.alerts()[0].event_id, before.alerts()[0].event_id);
    assert!(after.told(Kind::Escalation).is_empty());
}

#[test]
fn sessions_that_were_refused_cost_those_that_were_not_nothing() {
    let mut scene = scene();
    scene.request(session(10.0, "mallory", "command=sh&tty=true"));
    for number in 0..100 {
        let mut refused = session(20.0, &format!("noise-{number}"), "command=sh&tty=true");
        refused.record.stage = audit::Stage::RequestReceived;
        scene.request(refused.clone());
        refused.record.stage = audit::Stage::ResponseComplete;
        refused.record.response_status =
            Some(audit::ResponseStatus { code: Some(403), ..Default::default() });
        scene.request(refused);
    }
    scene.open(open(100.0)).request(named(request(101.0, "r")));
    let users: Vec<_> =
        scene.alerts()[0].initiators.iter().map(|it| it.user.username.clone()).collect();
    assert_eq!(users, ["mallory"]);
}
