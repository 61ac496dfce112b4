//! What exceptions swallow is counted once, whatever is read again or restored after a restart.

use super::*;
use crate::audit::Stage;

const EXCEPTIONS: &str = "exceptions:
- {name: r0, rule: token-read, grade: exec, reason: looked at}
- {name: r1, rule: token-access-then-api-request, verb: list, reason: looked at}
- {name: r2, rule: token-request-by-user, user: mallory, reason: looked at}
- {name: r3, rule: token-read-from-outside, grade: outside, reason: looked at}
";

/// An agent in one of its lives.
fn life(journal: &Memory) -> Scene<Memory> {
    let mut scene = scene_with(Settings::new("c"), journal.clone());
    scene.correlator.set_rulebook(Arc::new(Rulebook::parse(EXCEPTIONS).unwrap()));
    scene
}

/// What happens: a read, a session with a request, a read from outside with a request, and a token
/// minted.
fn inputs() -> (Vec<Open>, Vec<Request>) {
    let graded = |seconds: f64, grade: Grade| {
        let mut open = open(seconds);
        open.open.grade = grade;
        open
    };
    let mint = mint(103.0, "mint", "mallory", 201);
    let mut receipt = request(104.0, "unanswered");
    receipt.record.stage = Stage::RequestReceived;
    receipt.record.response_status = None;
    let opens = vec![graded(100.0, Grade::Exec), graded(101.0, Grade::Outside)];
    (opens, vec![request(102.0, "list"), mint, receipt])
}

#[test]
fn what_is_read_again_or_restored_after_a_restart_is_counted_once() {
    let journal = Memory::default();
    let (opens, requests) = inputs();
    let mut before = life(&journal);
    for open in opens {
        before.open(open);
    }
    for request in &requests {
        before.request(request.clone());
    }
    // The end of the exposure and of the lateness: the receipt has to do, and nothing joined.
    before.until(161.5);
    let hits = before.correlator.take_hits();
    let mut names: Vec<_> = hits.iter().map(|hit| hit.exception.as_str().to_owned()).collect();
    names.sort();
    assert_eq!(names, ["r0", "r1", "r1", "r2", "r3"], "{:#?}", before.findings);

    let mut after = life(&journal);
    after.correlator.remember_swallowed(hits.iter().map(|hit| hit.id.as_str()));
    let entries = journal.0.take();
    assert!(!entries.is_empty());
    for entry in entries {
        after.correlator.restore(entry, at(161.5), &mut after.findings);
    }
    for request in requests {
        after.request(request);
    }
    after.until(10_000.0);
    assert_eq!(after.correlator.take_hits(), []);
    assert!(after.findings.is_empty(), "{:#?}", after.findings);
}

#[test]
fn what_was_not_counted_before_a_restart_is_counted_after_it() {
    let journal = Memory::default();
    let (opens, requests) = inputs();
    let mut before = life(&journal);
    for open in opens {
        before.open(open);
    }
    before.request(requests[0].clone());
    // Nobody took the hits: they die with it, and so do the ids.
    let mut after = life(&journal);
    for entry in journal.0.take() {
        after.correlator.restore(entry, at(103.0), &mut after.findings);
    }
    after.request(requests[0].clone()).until(10_000.0);
    let names: Vec<ExceptionId> =
        after.correlator.take_hits().into_iter().map(|hit| hit.exception).collect();
    let mut names: Vec<_> = names.iter().map(ExceptionId::as_str).collect();
    names.sort_unstable();
    assert_eq!(names, ["r0", "r1", "r3"]);
}
