//! Later stages of a request: wherever it is listed they bring its outcome, in whatever order they come.

use super::*;

/// A stage of the request "r", received at 101 s and at this stage at `stage_at`.
fn stage(name: &str, stage_at: f64, code: Option<u16>) -> Request {
    let mut request = staged(101.0, "r", name);
    request.record.stage_timestamp = at(stage_at);
    request.record.response_status =
        code.map(|code| audit::ResponseStatus { code: Some(code), ..Default::default() });
    let decision = if code == Some(403) { "forbid" } else { "allow" };
    let annotation = ("authorization.k8s.io/decision".to_owned(), decision.to_owned());
    request.record.annotations.extend(code.map(|_| annotation));
    request
}

/// Stage, code and decision of the one request that a finding lists.
fn outcome(told: &Finding) -> (audit::Stage, Option<u16>, Option<&str>) {
    let [listed] = &told.requests[..] else { panic!("{told:#?}") };
    (listed.stage.1, listed.code, listed.asked.decision.as_deref())
}

const REFUSED: (audit::Stage, Option<u16>, Option<&str>) =
    (audit::Stage::ResponseComplete, Some(403), Some("forbid"));

#[test]
fn of_stages_of_the_same_moment_the_last_in_a_requests_life_counts() {
    let started = stage("ResponseStarted", 101.5, Some(200));
    let complete = stage("ResponseComplete", 101.5, Some(403));
    for stages in [[&started, &complete], [&complete, &started]] {
        for open_first in [true, false] {
            let mut scene = scene();
            if open_first {
                scene.open(open(100.0));
            }
            for stage in stages {
                scene.request(stage.clone());
            }
            if !open_first {
                scene.open(open(100.0));
            }
            scene.until(1_000.0);
            let [told] = scene.summaries()[..] else { panic!("{:#?}", scene.findings) };
            assert_eq!(outcome(told), REFUSED, "{:?}, {open_first}", stages[0].record.stage);
            assert_eq!(told.request_count, 1);
        }
    }
}

#[test]
fn a_stage_of_an_earlier_moment_changes_nothing_whenever_it_comes() {
    let mut scene = scene();
    scene.open(open(100.0)).request(stage("ResponseComplete", 102.0, Some(403)));
    scene.request(stage("ResponseStarted", 101.5, Some(200)));
    scene.request(stage("RequestReceived", 101.0, None)).until(1_000.0);
    assert_eq!(outcome(scene.summaries()[0]), REFUSED);
}

#[test]
fn an_outcome_is_in_every_incident_that_lists_the_request() {
    let mut outside = open(100.0);
    outside.open.grade = Grade::Outside;
    let journal = Memory::default();
    let mut scene = scene_with(Settings::new("c"), journal.clone());
    scene.open(outside).request(stage("RequestReceived", 101.0, None));
    scene.request(stage("ResponseStarted", 101.5, Some(200)));
    scene.request(stage("ResponseComplete", 130.0, Some(403)));
    // And after a restart, too.
    let mut after = scene_with(Settings::new("c"), NoJournal);
    for entry in journal.0.borrow().iter().cloned() {
        after.correlator.restore(entry, at(130.0), &mut after.findings);
    }
    scene.until(10_000.0);
    after.until(10_000.0);
    for findings in [&scene.findings, &after.findings] {
        let ended: Vec<_> = findings.iter().filter(|it| it.kind == Kind::Incident).collect();
        let mut rules: Vec<_> = ended.iter().map(|it| it.rule).collect();
        rules.sort();
        assert_eq!(rules, [RuleId::TokenAccessThenApiRequest, RuleId::TokenReadFromOutside]);
        for told in ended {
            assert_eq!(outcome(told), REFUSED, "{}", told.rule);
        }
    }
}

#[test]
fn what_a_later_stage_does_not_tell_stays_as_it_was() {
    let mut scene = scene();
    scene.open(open(100.0)).request(stage("ResponseStarted", 101.5, Some(403)));
    scene.request(stage("ResponseComplete", 102.0, None)).until(1_000.0);
    let [told] = scene.summaries()[..] else { panic!("{:#?}", scene.findings) };
    assert_eq!(outcome(told), REFUSED);
}

#[test]
fn a_minted_tokens_outcome_outlives_a_restart() {
    let minted = |stage: audit::Stage, code: u16| {
        let mut request = mint(101.0, "m", "mallory", code);
        request.record.stage = stage;
        request
    };
    let journal = Memory::default();
    let mut before = scene_with(Settings::new("c"), journal.clone());
    before
        .request(minted(audit::Stage::ResponseStarted, 200))
        .request(minted(audit::Stage::ResponseComplete, 201));
    let mut after = scene_with(Settings::new("c"), NoJournal);
    for entry in journal.0.borrow().iter().cloned() {
        after.correlator.restore(entry, at(102.0), &mut after.findings);
    }
    after.until(10_000.0);
    let [told] = after.told_by(RuleId::TokenRequestByUser, Kind::Incident)[..] else {
        panic!("{:#?}", after.findings)
    };
    assert_eq!(outcome(told).1, Some(201));
}
