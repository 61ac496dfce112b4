//! What is sent for what is asked, and when an audit side may say that it is through.

use std::{fs, path::Path};

use serde_json::{Value, json};

use super::*;
use crate::{
    correlation::{Request, Settings, journal::NoJournal},
    nats::interest::Interest,
};

/// An audit side, and the other ends of its channels.
struct Scene {
    answering: Answering,
    known: Correlator<NoJournal>,
    _asks: mpsc::Sender<Asks>,
    queued: mpsc::Receiver<Answer>,
    done: watch::Sender<u64>,
    reached: watch::Receiver<Option<Reached>>,
    metrics: NatsMetrics,
}

/// The wall clock at its start, seconds after [`at`] begins.
const START: i64 = 1_000;

/// A believable time.
fn at(seconds: i64) -> Micros {
    Micros::from_secs(1_800_000_000 + seconds)
}

fn scene(queue: usize, logs: Vec<PathBuf>) -> Scene {
    let (asks, heard) = mpsc::channel(ASKS);
    let (queue, queued) = mpsc::channel(queue);
    let (done, finished) = watch::channel(0);
    let (reached, said) = watch::channel(None);
    let metrics = NatsMetrics::default();
    let ends = Ends {
        own: "own".to_owned(),
        unsearchable: logs.is_empty(),
        logs,
        look_back: 1 << 20,
        asks: heard,
        queue,
        done: finished,
        reached,
        metrics: metrics.clone(),
    };
    Scene {
        answering: Answering::new(ends, at(START)),
        known: Correlator::new(Settings::new("c"), NoJournal),
        _asks: asks,
        queued,
        done,
        reached: said,
        metrics,
    }
}

/// An event at so many seconds.
fn event(id: &str, seconds: i64, more: Value) -> Value {
    let time = at(seconds);
    let mut event = json!({
        "auditID": id, "stage": "ResponseComplete", "verb": "list", "requestURI": "/",
        "requestReceivedTimestamp": time, "stageTimestamp": time,
    });
    let Value::Object(more) = more else { unreachable!() };
    event.as_object_mut().unwrap().extend(more);
    event
}

/// One that pod `p` made.
fn by_pod(id: &str, seconds: i64) -> Value {
    let extra = json!({"authentication.kubernetes.io/pod-uid": ["p"],
        "authentication.kubernetes.io/pod-name": ["cart-0"]});
    event(
        id,
        seconds,
        json!({"user":
        {"username": "system:serviceaccount:shop:cart", "extra": extra}}),
    )
}

/// Somebody gets into that pod.
fn session(id: &str, seconds: i64) -> Value {
    event(
        id,
        seconds,
        json!({"user": {"username": "admin"}, "objectRef": {"resource": "pods",
        "subresource": "exec", "namespace": "shop", "name": "cart-0"}}),
    )
}

impl Scene {
    /// A line is read then.
    fn read(&mut self, event: &Value, seconds: i64) {
        let record: AuditRecord = serde_json::from_value(event.clone()).unwrap();
        self.answering.answer(&record, &self.known);
        let line = event.to_string().into_bytes();
        self.answering.keep(line.into(), at(seconds));
    }

    fn hear(&mut self, node: &str, interests: Vec<Interest>, revision: u64) {
        self.hear_all(node, Question { interests, canary: None }, revision);
    }

    fn hear_all(&mut self, node: &str, question: Question, revision: u64) {
        let revision = Revision { bucket: at(0), number: revision };
        self.hear_asks(Asks { node: node.to_owned(), question, revision });
    }

    fn hear_asks(&mut self, asks: Asks) {
        let now = at(START);
        self.answering.take(Event::Asked(asks), &self.known, now);
    }

    /// Ids of the events that were sent since, with their nodes.
    fn sent(&mut self) -> Vec<String> {
        let mut sent = Vec::new();
        while let Ok(Answer { node, payload, .. }) = self.queued.try_recv() {
            let record: AuditRecord = serde_json::from_slice(&payload).unwrap();
            sent.push(format!("{} to {node}", record.audit_id));
            self.done.send_modify(|done| *done += 1);
        }
        sent
    }

    fn tick(&mut self, through: i64) {
        let through = Some(at(through));
        self.answering.pass_time(true, through, None, at(START), &self.known);
    }

    fn said(&self) -> Option<(i64, u64)> {
        let covered = self.reached.borrow().as_ref()?.covered?;
        Some(((covered.through - at(0)).0 / 1_000_000, covered.seen.number))
    }

    /// Lets a search come to its end.
    async fn searched(&mut self) {
        while self.answering.searching.is_some() {
            let event = self.answering.event().await.unwrap();
            self.answering.take(event, &self.known, at(START));
        }
    }
}

fn asked(from: i64, until: i64) -> Vec<Interest> {
    vec![Interest { from: at(from), until: at(until), ..Interest::example("p", 0, 0) }]
}

#[test]
fn what_is_asked_is_sent_whether_it_was_read_before_or_comes_later() {
    let mut scene = scene(100, Vec::new());
    scene.read(&by_pod("early", 1_001), 1_001);
    scene.read(&by_pod("before", 1_010), 1_010);
    assert_eq!(scene.sent(), [""; 0]);
    scene.hear("b", asked(1_005, 1_060), 1);
    assert_eq!(scene.sent(), ["before to b"]);
    scene.read(&by_pod("after", 1_020), 1_020);
    scene.hear("b", asked(1_005, 1_090), 2);
    assert_eq!(scene.sent(), ["after to b"], "said again is not sent again");
    scene.hear("own", asked(1_005, 1_060), 3);
    assert_eq!(scene.sent(), [""; 0], "this node needs no broker");
    scene.hear("b", Vec::new(), 4);
    scene.read(&by_pod("later", 1_030), 1_030);
    assert_eq!(scene.sent(), [""; 0]);
}

#[test]
fn a_canary_is_sent_whether_it_was_read_before_or_comes_later_and_nobody_waits_for_it() {
    let mut scene = scene(100, Vec::new());
    let canary =
        |id: &str, seconds| event(id, seconds, json!({"userAgent": "tokentrail-canary/r"}));
    let run = |run: &str| Question { interests: Vec::new(), canary: Some(run.to_owned()) };
    scene.read(&canary("before", 1_001), 1_001);
    scene.hear_all("b", run("r"), 7);
    assert_eq!(scene.sent(), ["before to b"]);
    scene.read(&canary("after", 1_002), 1_002);
    scene.hear_all("c", run("another"), 8);
    scene.hear_all("own", run("r"), 9);
    assert_eq!(scene.sent(), ["after to b"]);
    assert_eq!(scene.answering.due(), 0);
    scene.tick(1_003);
    assert_eq!(scene.said(), Some((1_003, 9)));
    scene.hear("d", asked(1_000, 1_060), 10);
    scene.read(&by_pod("wanted", 1_010), 1_010);
    assert_eq!((scene.sent(), scene.answering.due()), (vec!["wanted to d".to_owned()], 3));
    scene.tick(1_011);
    assert_eq!(scene.said(), Some((1_011, 10)));
}

#[test]
fn a_source_that_has_not_begun_keeps_no_other_from_answering() {
    let mut scene = scene(100, Vec::new());
    scene.answering.pass_time(false, None, None, at(START), &scene.known);
    assert_eq!(*scene.reached.borrow(), None, "there is nothing to answer from");
    scene.answering.pass_time(true, None, None, at(START), &scene.known);
    let reached = scene.reached.borrow().unwrap();
    assert_eq!(reached.covered, None, "how far all are is not known");
}

#[test]
fn who_got_in_is_told_first_and_once() {
    let mut scene = scene(100, Vec::new());
    let record: AuditRecord = serde_json::from_value(session("exec", 900)).unwrap();
    let now = at(START);
    scene.known.request(Request::new(at(900), record), now, &mut Vec::new());
    // A node without an index cannot name the pod: its requests do.
    scene.hear("b", asked(1_000, 1_060), 1);
    scene.read(&by_pod("one", 1_001), 1_001);
    scene.read(&by_pod("two", 1_002), 1_002);
    assert_eq!(scene.sent(), ["exec to b", "one to b", "two to b"]);
    let named = Interest {
        namespace: Some("shop".to_owned()),
        name: Some("cart-0".to_owned()),
        ..asked(1_000, 1_060).remove(0)
    };
    scene.hear("c", vec![named], 2);
    assert_eq!(scene.sent(), ["exec to c", "one to c", "two to c"]);
    scene.read(&session("another", 1_003), 1_003);
    let mut sent = scene.sent();
    sent.sort();
    assert_eq!(sent, ["another to b", "another to c"], "its name is known by now");
}

#[test]
fn it_is_through_only_with_what_the_broker_has_taken() {
    let mut scene = scene(100, Vec::new());
    scene.tick(900);
    assert_eq!(scene.said(), Some((900, 0)));
    scene.hear("b", asked(1_000, 1_060), 7);
    scene.read(&by_pod("one", 1_001), 1_001);
    scene.tick(1_002);
    scene.tick(1_003);
    assert_eq!(scene.said(), Some((900, 0)), "it is not with the broker yet");
    assert_eq!(scene.sent().len(), 1);
    scene.tick(1_004);
    assert_eq!(scene.said(), Some((1_002, 7)), "as of when it was sent");
    scene.tick(1_005);
    assert_eq!(scene.said(), Some((1_005, 7)));
}

#[test]
fn what_was_seen_in_a_bucket_does_not_count_in_one_that_was_made_anew() {
    let mut scene = scene(100, Vec::new());
    scene.hear("b", asked(1_000, 1_060), 900);
    let question = Question { interests: asked(1_000, 1_060), canary: None };
    let revision = Revision { bucket: at(1), number: 3 };
    scene.hear_asks(Asks { node: "b".to_owned(), question, revision });
    scene.tick(1_001);
    assert_eq!(scene.reached.borrow().unwrap().covered.unwrap().seen, revision);
}

#[test]
fn what_found_no_room_is_sent_when_there_is_some() {
    let mut scene = scene(2, Vec::new());
    scene.hear("b", asked(1_000, 1_060), 1);
    for at in 1..=4 {
        scene.read(&by_pod(&at.to_string(), 1_000 + at), 1_000 + at);
    }
    assert_eq!(scene.metrics.deferred.get(), 2);
    scene.tick(1_010);
    assert_eq!(scene.said(), None, "the queue is full");
    assert_eq!(scene.sent(), ["1 to b", "2 to b"]);
    scene.tick(1_011);
    assert_eq!(scene.sent(), ["3 to b", "4 to b"]);
    scene.tick(1_012);
    assert_eq!(scene.said(), Some((1_011, 1)));
}

#[test]
fn what_was_posted_too_long_ago_is_out_of_reach_and_counted() {
    let mut scene = scene(100, Vec::new());
    scene.hear("b", asked(START - 1, 1_060), 1);
    assert_eq!(scene.metrics.beyond_reach.get(), 1);
    scene.hear("c", asked(START, 1_060), 2);
    assert_eq!(scene.metrics.beyond_reach.get(), 1);
}

fn write(path: &Path, events: &[Value]) {
    let lines: String = events.iter().map(|event| format!("{event}\n")).collect();
    fs::write(path, lines).unwrap();
}

#[tokio::test]
async fn what_was_logged_before_it_began_is_searched_for_in_the_file_before_it_is_through() {
    let folder = tempfile::tempdir().unwrap();
    let log = folder.path().join("audit.log");
    write(&log, &[by_pod("early", 900), by_pod("wanted", 990), session("exec", 991)]);
    let mut scene = scene(100, vec![log, folder.path().join("absent.log")]);
    scene.hear("b", asked(950, 1_060), 3);
    assert_eq!(scene.sent(), [""; 0]);
    scene.tick(1_000);
    assert_eq!(scene.said(), None, "the search goes on");
    // Asked meanwhile: another search follows.
    scene.hear("c", asked(880, 1_060), 4);
    scene.searched().await;
    assert_eq!(scene.sent(), ["wanted to b", "early to c", "wanted to c"]);
    scene.tick(1_001);
    assert_eq!(scene.said(), Some((1_001, 4)));
    assert_eq!((scene.metrics.searches.get(), scene.metrics.beyond_reach.get()), (2, 2));
}
