//! Opens by programs that the workload was not seen to read with: they count only together with
//! requests that it was not seen to make.

use super::*;

fn graded(seconds: f64, grade: Grade) -> Open {
    let mut open = open(seconds);
    open.open.grade = grade;
    open
}

fn foreign(seconds: f64) -> Open {
    graded(seconds, Grade::Foreign)
}

/// A request by this client: what else it asks is the same.
fn ask(seconds: f64, name: &str, agent: &str) -> Request {
    let mut request = request(seconds, name);
    request.record.user_agent = Some(agent.into());
    request
}

/// Watched from the beginning, with a request of the workload's own after 100 s.
fn watched() -> Scene<NoJournal> {
    let mut scene = scene();
    scene.watch(0.0).request(ask(100.0, "habit", "app"));
    scene
}

#[test]
fn a_foreign_read_and_a_request_of_a_new_kind_are_an_alert() {
    let mut scene = watched();
    scene.open(foreign(1_000.0)).request(ask(1_060.0, "r", "curl"));
    let [alert] = scene.alerts()[..] else { panic!("{:?}", scene.findings) };
    assert_eq!(alert.open.as_ref().unwrap().open.grade, Grade::Foreign);
    assert_eq!(alert.request.as_ref().unwrap().request, RequestKind::New);
    scene.request(ask(1_061.0, "more", "curl")).until(3_000.0);
    let [summary] = scene.summaries()[..] else { panic!("{:?}", scene.findings) };
    assert_eq!((summary.request_count, summary.open_count), (2, 1));
}

#[test]
fn a_foreign_read_and_the_workloads_own_requests_are_nothing() {
    let mut scene = watched();
    scene.open(foreign(1_000.0)).request(ask(1_001.0, "r", "app")).until(3_000.0);
    assert!(scene.findings.is_empty(), "{:?}", scene.findings);
    assert_eq!(scene.correlator.held(), Held::default());
}

#[test]
fn a_foreign_read_and_a_request_of_a_kind_that_nobody_watched_for_are_nothing() {
    for (since, alerts) in [(400.0, 1), (400.000_001, 0)] {
        let mut scene = scene();
        scene.watch(since);
        scene.open(foreign(1_000.0)).request(ask(1_001.0, "r", "curl"));
        assert_eq!(scene.alerts().len(), alerts, "watched since {since}");
        // What explains nothing is learned.
        scene.open(foreign(5_000.0)).request(ask(5_001.0, "later", "curl")).until(9_000.0);
        assert_eq!(scene.alerts().len(), 2 * alerts, "watched since {since}");
    }
}

#[test]
fn a_foreign_read_that_nothing_follows_is_nothing() {
    let mut scene = watched();
    scene.open(foreign(1_000.0)).until(3_000.0);
    assert!(scene.findings.is_empty(), "{:?}", scene.findings);
    assert_eq!(scene.correlator.held(), Held::default());
}

#[test]
fn a_session_explains_any_request_and_before_a_foreign_read_does() {
    for agent in ["app", "curl"] {
        let mut scene = watched();
        let mut session = graded(1_000.0, Grade::Exec);
        session.open.entry.key.tgid = 7;
        scene.open(session).open(foreign(1_010.0)).request(ask(1_020.0, "r", agent));
        let [alert] = scene.alerts()[..] else { panic!("{:?}", scene.findings) };
        assert_eq!(alert.open.as_ref().unwrap().open.grade, Grade::Exec, "{agent}");
    }
}

#[test]
fn the_same_processes_terminal_does_not_make_its_foreign_reads_count_nor_the_reverse() {
    let mut scene = watched();
    // The container has a terminal; what reads without it is another matter.
    scene.open(graded(1_000.0, Grade::Interactive)).open(foreign(1_030.0));
    scene.request(ask(1_061.0, "r", "app")).until(3_000.0);
    assert!(scene.alerts().is_empty(), "{:?}", scene.findings);
    assert_eq!(scene.told_by(RuleId::TokenRead, Kind::Alert).len(), 1);
}

#[test]
fn a_foreign_read_may_be_told_of_after_the_request() {
    let mut scene = watched();
    scene.request(ask(1_001.0, "r", "curl")).open(foreign(1_000.0));
    assert_eq!(scene.alerts().len(), 1);
}

#[test]
fn a_workload_that_reads_so_all_the_time_is_held_for_a_quarter_of_an_hour() {
    let journal = Memory::default();
    let mut scene = scene_with(Settings::new("c"), journal.clone());
    scene.watch(0.0).request(ask(100.0, "habit", "app"));
    for minute in 0..600 {
        let time = 1_000.0 + 59.0 * f64::from(minute);
        scene.open(foreign(time)).request(ask(time + 1.0, &format!("r{minute}"), "app"));
        scene.correlator.advance(at(time - 75.0), at(time), &mut scene.findings);
        scene.correlator.compact_journal(at(time)).unwrap();
        assert!(scene.correlator.held().exposures <= 2);
        assert!(journal.0.borrow().len() <= 20, "{}", journal.0.borrow().len());
    }
    assert!(scene.findings.is_empty(), "{:?}", scene.findings);
    assert_eq!(scene.correlator.losses(), Losses::default());
}
