//! What the workload's own requests do to R1: confidence, risk, escalation.

use super::*;
use crate::{
    attribution::pods::{Container, ContainerKind, Owner},
    rules::Band,
};

/// A request for this resource, allowed, by this client.
fn ask(seconds: f64, name: &str, agent: &str, verb: &str, resource: &str) -> Request {
    let mut request = request(seconds, name);
    request.record.user_agent = Some(agent.into());
    request.record.verb = verb.into();
    request.record.object_ref = Some(audit::ObjectRef {
        resource: Some(resource.into()),
        namespace: Some("shop".into()),
        ..Default::default()
    });
    request
}

fn kinds(findings: &[&Finding]) -> Vec<RequestKind> {
    findings.iter().map(|it| it.request.as_ref().unwrap().request).collect()
}

#[test]
fn what_the_workload_did_before_the_exposure_is_its_own_and_the_rest_is_new() {
    for (agent, verb, resource, expected) in [
        ("app", "list", "pods", RequestKind::Own),
        ("app", "get", "pods", RequestKind::Own),
        ("curl", "list", "pods", RequestKind::New),
        ("app", "delete", "pods", RequestKind::New),
        ("app", "list", "secrets", RequestKind::New),
    ] {
        let mut scene = scene();
        scene.watch(0.0);
        scene.request(ask(500.0, "1", "app", "list", "pods"));
        scene.request(ask(510.0, "2", "app", "get", "pods"));
        scene.open(open(1_000.0)).request(ask(1_001.0, "3", agent, verb, resource));
        assert_eq!(kinds(&scene.alerts()), [expected], "{agent} {verb} {resource}");
    }
}

#[test]
fn what_was_not_watched_for_ten_minutes_is_unknown() {
    for (began, expected) in [(400.0, RequestKind::New), (400.000_001, RequestKind::Unknown)] {
        let mut scene = scene();
        scene.watch(began);
        scene.open(open(1_000.0)).request(request(1_001.0, "r"));
        assert_eq!(kinds(&scene.alerts()), [expected], "watching since {began} s");
    }
    // A pod that is young was not watched for long, however long others were.
    let mut scene = scene();
    scene.watch(0.0);
    let mut young = request(1_001.0, "r");
    young.pod = Some(Arc::new(Pod { created: Some(at(700.0)), ..Pod::default() }));
    scene.open(open(1_000.0)).request(young);
    assert_eq!(kinds(&scene.alerts()), [RequestKind::Unknown]);
}

#[test]
fn a_day_later_it_is_forgotten() {
    let mut scene = scene();
    scene.watch(0.0);
    scene.request(request(10.0, "own"));
    scene.open(open(86_400.0 + 11.0)).request(request(86_400.0 + 12.0, "r"));
    assert_eq!(kinds(&scene.alerts()), [RequestKind::New]);
}

#[test]
fn an_intruders_requests_do_not_become_the_workloads_own() {
    let mut scene = scene();
    scene.watch(0.0);
    for round in 0..3 {
        let start = 1_000.0 + f64::from(round) * 1_000.0;
        scene.open(open(start)).request(request(start + 1.0, &format!("r{round}")));
        scene.until(start + 500.0);
    }
    assert_eq!(kinds(&scene.alerts()), [RequestKind::New; 3]);
}

#[test]
fn a_pods_successor_of_the_same_owner_and_image_is_known_already() {
    let container = Container {
        name: "main".into(),
        kind: ContainerKind::Main,
        image: "app:1".into(),
        digest: None,
        ids: Vec::new(),
        blocked: false,
        hooks: Vec::new(),
    };
    let pod = |owner: &str| {
        Some(Arc::new(Pod {
            namespace: "shop".into(),
            owner: Some(Owner { kind: "ReplicaSet".into(), name: owner.into() }),
            containers: vec![container.clone()],
            ..Pod::default()
        }))
    };
    for (owner, expected) in [("cart-1", RequestKind::Own), ("cart-2", RequestKind::New)] {
        let mut scene = scene();
        scene.watch(0.0);
        let mut earlier = request(100.0, "earlier");
        earlier.record.user.extra.insert(audit::POD_UID.into(), vec!["gone".into()]);
        earlier.pod = pod("cart-1");
        let mut now = request(1_001.0, "now");
        now.pod = pod(owner);
        scene.request(earlier).open(open(1_000.0)).request(now);
        assert_eq!(kinds(&scene.alerts()), [expected], "{owner}");
    }
}

#[test]
fn the_first_new_request_after_own_ones_is_an_escalation_and_own_ones_raise_nothing() {
    let mut scene = scene();
    scene.watch(0.0);
    scene.request(ask(100.0, "own", "app", "list", "secrets"));
    scene.open(open(1_000.0)).request(ask(1_001.0, "a", "app", "list", "secrets"));
    assert_eq!(kinds(&scene.alerts()), [RequestKind::Own]);
    assert_eq!(scene.alerts()[0].band, Band::Medium);
    scene.request(ask(1_002.0, "b", "curl", "list", "pods"));
    scene.request(ask(1_003.0, "c", "curl", "list", "pods"));
    let escalations = scene.told(Kind::Escalation);
    assert_eq!(kinds(&escalations), [RequestKind::New]);
    assert_eq!(escalations[0].band, Band::Medium);
    assert_eq!(escalations[0].incident_id, scene.alerts()[0].incident_id);
    assert_ne!(escalations[0].event_id, scene.alerts()[0].event_id);
}

#[test]
fn each_higher_band_escalates_once_even_if_it_comes_with_a_later_stage() {
    let mut scene = scene();
    scene.open(open(100.0)).request(ask(101.0, "a", "curl", "list", "pods"));
    for (second, name) in [(102.0, "b"), (103.0, "c")] {
        scene.request(ask(second, name, "curl", "get", "secrets"));
    }
    let mut all = ask(104.0, "d", "curl", "watch", "secrets");
    all.record.object_ref.as_mut().unwrap().namespace = None;
    let mut started = all.clone();
    started.record.stage = audit::Stage::ResponseStarted;
    started.record.response_status = None;
    all.record.stage_timestamp = at(110.0);
    scene.request(started);
    assert_eq!(scene.told(Kind::Escalation).len(), 1, "not answered yet");
    scene.request(all);
    let bands: Vec<_> = scene.told(Kind::Escalation).iter().map(|it| it.band).collect();
    assert_eq!(bands, [Band::High, Band::Critical]);
    scene.until(1_000.0);
    assert_eq!(scene.summaries()[0].band, Band::Critical);
}

#[test]
fn the_summary_keeps_the_requests_of_highest_risk() {
    let mut scene = scene();
    scene.open(open(100.0));
    for number in 0..250 {
        let second = 101.0 + f64::from(number) / 10.0;
        let resource = if number >= 200 { "secrets" } else { "pods" };
        scene.request(ask(second, &format!("r{number}"), "curl", "get", resource));
    }
    scene.until(1_000.0);
    let summary = scene.summaries()[0];
    assert_eq!((summary.request_count, summary.requests.len()), (250, 200));
    let secrets = summary.requests.iter().filter(|it| it.band == Band::High).count();
    assert_eq!(secrets, 50);
    assert!(summary.requests.is_sorted_by_key(|it| it.received));
}

#[test]
fn a_request_without_a_pods_name_is_joined_by_account_and_address() {
    let mut scene = scene();
    let mut legacy = request(101.0, "legacy");
    legacy.record.user.extra.clear();
    let mut elsewhere = legacy.clone();
    elsewhere.record.audit_id = "elsewhere".into();
    legacy.by_address = Some(POD.into());
    scene.open(open(100.0)).request(elsewhere).request(legacy);
    let alerts = scene.alerts();
    assert_eq!(alerts.len(), 1);
    assert!(alerts[0].request.as_ref().unwrap().by_address);
}

#[test]
fn an_incident_is_summed_up_with_its_worst_request_whichever_began_it() {
    let mut scene = scene();
    scene.watch(0.0);
    scene.request(ask(500.0, "own", "app", "list", "pods"));
    scene.open(open(1_000.0)).request(ask(1_001.0, "as ever", "app", "list", "pods"));
    scene.request(ask(1_002.0, "new", "curl", "list", "pods"));
    scene.request(ask(1_003.0, "worst", "curl", "list", "secrets"));
    scene.request(ask(1_004.0, "as bad", "curl", "get", "secrets"));
    scene.until(2_000.0);
    let told = |kind| {
        let told = scene.told(kind)[0].request.clone().unwrap();
        (told.record.audit_id.clone(), told.request, told.band)
    };
    assert_eq!(told(Kind::Alert), ("as ever".to_owned(), RequestKind::Own, Band::Medium));
    assert_eq!(told(Kind::Incident), ("worst".to_owned(), RequestKind::New, Band::High));
}
