//! What the canary makes of requests and events in every order. Times are numbers here: nothing waits.

use super::*;
use crate::audit::scan::{Interest, Scan, classify};

const EVERY: Micros = Micros::from_secs(300);
const PATIENCE: Micros = Micros::from_secs(75);
/// 2026-11-21T23:50:00Z
const NOON: Micros = Micros::from_secs(1_795_305_000);

fn canary() -> Canary {
    Canary::new(Run::example(), EVERY, PATIENCE, CanaryMetrics::default())
}

fn secs(secs: i64) -> Micros {
    Micros::from_secs(secs)
}

/// A request sent and answered at these microseconds after [`NOON`].
fn asked(number: u64, sent: i64, answered: i64) -> Asked {
    Asked { number, sent: NOON + Micros(sent), answered: Ok(NOON + Micros(answered)) }
}

/// The way by which most of it comes.
fn way() -> Way {
    Way { source: 0, side: None }
}

/// An event as the API server writes it, found by the scan: received and written at these
/// microseconds after [`NOON`] by the server's clock.
fn event(user_agent: &str, number: u64, received: i64, stage: i64) -> AuditRecord {
    let (received, stage) = (NOON + Micros(received), NOON + Micros(stage));
    let uri = Run::example().uri(number).replace('&', r"\u0026");
    let line = format!(
        r#"{{"kind":"Event","apiVersion":"audit.k8s.io/v1","auditID":"a","stage":"ResponseComplete","requestURI":"{uri}","verb":"list","user":{{"username":"kubernetes-admin"}},"userAgent":"{user_agent}","requestReceivedTimestamp":"{received}","stageTimestamp":"{stage}"}}"#
    );
    match classify(line.as_bytes(), &Interest::LIVE) {
        Scan::Record(record) => record,
        other @ (Scan::Skip | Scan::Bad(_)) => panic!("{other:?}"),
    }
}

fn own(number: u64, received: i64, stage: i64) -> AuditRecord {
    event("tokentrail-canary/run", number, received, stage)
}

#[test]
fn a_request_that_comes_back_gives_clock_and_delay_whichever_is_known_first() {
    // The server is 2 s ahead. 4 ms from sending to answer, received in the middle of it.
    let asked = asked(1, 0, 4_000);
    let event = own(1, 2_002_000, 2_003_000);
    let read = NOON + Micros(3_500);
    let expected = Measured {
        clock_offset_us: 2_000_000,
        clock_offset_error_us: 2_000,
        delay_us: 500,
        heard: read,
        number: 1,
    };
    for event_first in [true, false] {
        let mut canary = canary();
        if event_first {
            canary.see(&event, read, &way());
            canary.note(asked.clone(), secs(0));
        } else {
            canary.note(asked.clone(), secs(0));
            canary.see(&event, read, &way());
        }
        assert_eq!(canary.measured(), Some(expected));
        let status = canary.status(secs(100_000));
        assert_eq!((status.state, status.measured), (State::Heard, Some(expected)));
        assert_eq!(status.failure(), None);
    }
}

#[test]
fn true_offset_and_delay_are_always_within_the_error() {
    let delay = 300;
    for (offset, out, back) in [(0, 1, 9_000), (-3_000_000, 9_000, 1), (7_000, 500, 500)] {
        let mut canary = canary();
        canary.note(asked(1, 0, out + back), secs(0));
        let read = NOON + Micros(out + delay);
        canary.see(&own(1, out + offset, out + offset), read, &way());
        let Measured { clock_offset_us, clock_offset_error_us, delay_us, .. } =
            canary.measured().unwrap();
        assert!((clock_offset_us - offset).abs() <= clock_offset_error_us, "{offset}");
        assert!((delay_us - delay).abs() <= clock_offset_error_us, "{offset}: {delay_us}");
    }
}

#[test]
fn the_first_stage_of_a_request_counts_and_the_newest_request() {
    let mut canary = canary();
    canary.note(asked(1, 0, 1_000), secs(0));
    canary.see(&own(1, 500, 500), NOON + Micros(700), &way());
    canary.see(&own(1, 500, 900), NOON + Micros(5_000), &way());
    assert_eq!(canary.measured().unwrap().delay_us, 200);
    canary.note(asked(2, 10_000, 11_000), secs(1));
    canary.see(&own(2, 10_500, 10_600), NOON + Micros(10_900), &way());
    assert_eq!(canary.measured().unwrap().delay_us, 300);
    canary.see(&own(1, 500, 900), NOON + Micros(20_000), &way());
    assert_eq!(canary.measured().unwrap().delay_us, 300, "an old one that comes late says nothing");
}

#[test]
fn each_way_has_its_own_clock_and_delay_and_an_old_measurement_says_less() {
    let of = |side: &str| Way { source: 1, side: Some(side.into()) };
    let mut canary = canary();
    canary.note(asked(1, 0, 1_000), secs(0));
    canary.see(&own(1, 500, 500), NOON + Micros(700), &of("a"));
    // Twins read the same log.
    canary.see(&own(1, 500, 500), NOON + Micros(900), &of("b"));
    // The second request went to a server whose clock is 2 s behind.
    canary.note(asked(2, 10_000, 11_000), secs(300));
    canary.see(&own(2, -1_989_500, -1_989_500), NOON + Micros(10_800), &of("c"));
    let told: Vec<_> = canary.ways().map(|(_, it)| (it.number, it.delay_us)).collect();
    assert_eq!(told, [(1, 200), (1, 400), (2, 300)]);
    assert_eq!(canary.measured(), canary.measured_by(&of("c")));
    let (drift, error) = (100_000, 500);
    assert_eq!(canary.skew(&of("c")), Some(Micros(2_000_000 + drift + error)));
    assert_eq!(canary.skew(&of("a")), Some(Micros(2 * drift + error)));
    assert_eq!(canary.skew(&of("d")), None, "nothing came from there");
    for side in 0..2 * WAYS {
        canary.see(&own(3, 0, 0), NOON, &of(&side.to_string()));
    }
    assert_eq!(canary.sightings.len(), WAYS);
}

#[test]
fn a_clock_that_was_set_back_between_sending_and_answer_measures_nothing() {
    let mut canary = canary();
    canary.note(asked(1, 5_000, 1_000), secs(0));
    canary.see(&own(1, 500, 500), NOON, &way());
    assert_eq!((canary.measured(), canary.status(secs(0)).state), (None, State::Heard));
}

#[test]
fn what_is_answered_and_never_heard_is_silence_once_patience_is_over() {
    let mut canary = canary();
    assert_eq!(canary.status(secs(1_000_000)).state, State::Starting, "nothing was asked");
    canary.note(asked(1, 0, 1_000), secs(10));
    assert_eq!(canary.status(secs(10) + PATIENCE).state, State::Starting);
    let status = canary.status(secs(10) + PATIENCE + Micros(1));
    assert_eq!(status.state, State::Silent);
    let told = status.failure().unwrap();
    assert!(told.contains("within 75 s") && told.contains("policy"), "{told}");
    // Later requests do not put it off.
    canary.note(asked(2, 0, 1_000), secs(80));
    assert_eq!(canary.status(secs(86)).state, State::Silent);
    canary.see(&own(2, 500, 500), NOON, &way());
    assert_eq!(canary.status(secs(1_000)).state, State::Heard);
}

#[test]
fn silence_after_sound_needs_two_rounds_more() {
    let mut canary = canary();
    canary.note(asked(1, 0, 1_000), secs(0));
    canary.see(&own(1, 500, 500), NOON, &way());
    canary.note(asked(2, 0, 1_000), secs(300));
    let end = secs(300) + PATIENCE + EVERY + EVERY;
    assert_eq!(canary.status(end).state, State::Heard);
    assert_eq!(canary.status(end + Micros(1)).state, State::Silent);
}

#[test]
fn another_agents_canary_proves_the_stream_unless_it_is_of_long_ago() {
    for (age, state) in [(PATIENCE, State::Heard), (PATIENCE + Micros(1), State::Silent)] {
        let mut canary = canary();
        canary.note(asked(1, 0, 1_000), secs(0));
        canary.user = Some(own(7, 0, 0).user.username);
        canary.see(&event("tokentrail-canary/others", 7, 0, 0), NOON + age, &way());
        let status = canary.status(secs(76));
        assert_eq!((status.state, status.measured), (state, None));
        // Anybody may call themselves one.
        let mut forged = event("tokentrail-canary/others", 7, 0, 0);
        forged.user.username = "mallory".to_owned();
        let mut deceived = self::canary();
        deceived.note(asked(1, 0, 1_000), secs(0));
        deceived.see(&forged, NOON, &way());
        assert_eq!(deceived.status(secs(76)).state, State::Silent);
    }
}

#[test]
fn a_request_that_is_not_answered_is_told_with_its_reason_until_one_is() {
    let mut canary = canary();
    let why = "the Kubernetes API is in trouble (503)".to_owned();
    canary.note(Asked { number: 1, sent: NOON, answered: Err(why) }, secs(0));
    let status = canary.status(secs(1_000_000));
    assert_eq!(status.state, State::Unanswered, "what is not answered need not be heard");
    assert!(status.failure().unwrap().contains("503"));
    canary.note(asked(2, 0, 1_000), secs(300));
    assert_eq!(canary.status(secs(300)).state, State::Starting);
}

#[test]
fn what_is_no_canary_is_no_sign_of_life() {
    let mut canary = canary();
    canary.note(asked(1, 0, 1_000), secs(0));
    let asked_for = Run::example().uri(1);
    for (agent, uri) in [
        (None, &*asked_for),
        (Some("kubectl/v1.33"), &asked_for),
        (Some("tokentrail-canary/run"), "/api/v1/pods?limit=1&canary=1"),
        // Whoever knows the run does not know its next proof.
        (Some("tokentrail-canary/run"), asked_for.rsplit_once('-').unwrap().0),
        (Some("tokentrail-canary/run"), &asked_for.replace("canary=1", "canary=2")),
        (Some("tokentrail-canary/run"), "/api/v1/namespaces/tokentrail-canary/pods?canary="),
    ] {
        let mut record = own(1, 0, 0);
        (record.user_agent, record.request_uri) = (agent.map(str::to_owned), uri.to_owned());
        canary.see(&record, NOON, &way());
    }
    assert_eq!(canary.status(secs(76)).state, State::Silent);
}

#[test]
fn metrics_say_what_was_asked_heard_and_measured() {
    let metrics = CanaryMetrics::default();
    let mut registry = prometheus_client::registry::Registry::default();
    metrics.register(&mut registry);
    let shown = || {
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &registry).unwrap();
        text
    };
    let before = shown();
    for line in [
        "tokentrail_audit_canary_requests_total{result=\"failed\"} 0",
        "tokentrail_audit_canary_clock_offset_seconds NaN",
    ] {
        assert!(before.contains(line), "{line} is not in\n{before}");
    }
    let mut canary = Canary::new(Run::example(), EVERY, PATIENCE, metrics);
    canary.note(asked(1, 0, 4_000), secs(0));
    canary.status(secs(76));
    let silent = shown();
    assert!(silent.contains("tokentrail_audit_canary_silent 1"), "{silent}");
    canary.see(&own(1, 1_502_000, 1_503_000), NOON + Micros(3_250), &way());
    canary.status(secs(76));
    let after = shown();
    for line in [
        "tokentrail_audit_canary_requests_total{result=\"answered\"} 1",
        "tokentrail_audit_canary_heard_total{whose=\"own\"} 1",
        "tokentrail_audit_canary_silent 0",
        "tokentrail_audit_canary_clock_offset_seconds 1.5",
        "tokentrail_audit_canary_clock_offset_error_seconds 0.002",
        "tokentrail_audit_canary_delay_seconds 0.00025",
    ] {
        assert!(after.contains(line), "{line} is not in\n{after}");
    }
}
