//! What is sent for what is asked, and when an audit side may say that it is through.

use std::{fs, path::Path};

use serde_json::{Value, json};

use super::{places::LookupEnds, *};
use crate::{
    api::Place,
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
    lookups: LookupEnds,
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
    let (_, lookups) = Places::looked_up(metrics.clone());
    let ends = Ends {
        own: "own".to_owned(),
        asks_itself: true,
        unsearchable: logs.is_empty(),
        logs,
        look_back: 1 << 20,
        places: Places::anywhere(),
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
        lookups,
        metrics,
    }
}

/// One that asks where pods are.
fn scene_with_lookups() -> Scene {
    let mut scene = scene(100, Vec::new());
    (scene.answering.places, scene.lookups) = Places::looked_up(scene.metrics.clone());
    scene
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

    /// It was noted that somebody got in then, as the engine does after an answer.
    fn note(&mut self, session: &Value, seconds: i64) {
        let record: AuditRecord = serde_json::from_value(session.clone()).unwrap();
        self.known.request(Request::new(at(seconds), record), at(START), &mut Vec::new());
    }

    /// Lets the next lookup come to this end.
    async fn look_up(&mut self, found: Result<Option<Place>, String>) {
        let name = tokio::select! {
            name = self.lookups.asked.recv() => name.unwrap(),
            _ = self.answering.event() => panic!("nothing was looked up"),
        };
        self.lookups.found.send((name, found)).await.unwrap();
        let event = self.answering.event().await.unwrap();
        self.answering.take(event, &self.known, at(START));
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

/// The same by a node that knows the pod's name.
fn named(from: i64, until: i64) -> Vec<Interest> {
    let (namespace, name) = (Some("shop".to_owned()), Some("cart-0".to_owned()));
    vec![Interest { namespace, name, ..asked(from, until).remove(0) }]
}

/// Where that pod is, and since when.
fn on(node: &str, since: i64) -> Result<Option<Place>, String> {
    Ok(Some(Place { node: Some(node.to_owned()), since: at(since) }))
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
    scene.note(&session("exec", 900), 900);
    // A node without an index cannot name the pod: its requests do.
    scene.hear("b", asked(1_000, 1_060), 1);
    scene.read(&by_pod("one", 1_001), 1_001);
    scene.read(&by_pod("two", 1_002), 1_002);
    assert_eq!(scene.sent(), ["exec to b", "one to b", "two to b"]);
    scene.hear("c", named(1_000, 1_060), 2);
    assert_eq!(scene.sent(), ["exec to c", "one to c", "two to c"]);
    scene.read(&session("another", 1_003), 1_003);
    assert_eq!(scene.sent(), ["another to c"], "the node that can name it");
}

#[tokio::test]
async fn who_got_in_is_told_to_the_node_that_the_pod_is_on_and_to_none_that_names_it() {
    let mut scene = scene_with_lookups();
    scene.note(&session("exec", 900), 900);
    scene.hear("thief", named(1_000, 1_060), 1);
    scene.hear("node_b", named(1_000, 1_060), 2);
    assert_eq!(scene.sent(), [""; 0]);
    scene.look_up(on("node.b", 800)).await;
    assert_eq!(scene.sent(), ["exec to node_b"]);
    // Known by now; asked for once more.
    scene.hear("thief", Vec::new(), 3);
    scene.hear("thief", named(990, 1_070), 4);
    assert_eq!(scene.sent(), [""; 0]);
    // What comes later may be a session into another pod of that name.
    scene.read(&session("later", 1_003), 1_003);
    scene.note(&session("later", 1_003), 1_003);
    assert_eq!(scene.sent(), [""; 0]);
    scene.look_up(on("thief", 1_002)).await;
    let mut sent = scene.sent();
    sent.sort();
    assert_eq!(
        sent,
        ["exec to node_b", "exec to thief", "later to thief"],
        "the name's former pod is anybody's"
    );
}

#[tokio::test]
async fn who_got_into_a_pod_that_is_gone_is_told_to_whom_it_may_have_been() {
    let mut scene = scene_with_lookups();
    scene.note(&session("exec", 900), 900);
    scene.hear("b", named(1_000, 1_060), 1);
    scene.look_up(Ok(None)).await;
    assert_eq!(scene.sent(), ["exec to b"]);
}

#[tokio::test]
async fn where_the_api_does_not_tell_the_claims_of_a_token_do() {
    let mut scene = scene_with_lookups();
    scene.note(&session("exec", 900), 900);
    scene.hear("b", named(1_000, 1_060), 1);
    scene.tick(1_001);
    assert_eq!(scene.said(), None, "it is looked up");
    scene.look_up(Err("not now".to_owned())).await;
    assert_eq!((scene.sent(), scene.metrics.unplaced.get()), (Vec::new(), 1));
    scene.tick(1_002);
    assert_eq!(scene.said(), Some((1_001, 1)), "this holds up nothing");
    let mut claims = by_pod("one", 1_003);
    claims["user"]["extra"]["authentication.kubernetes.io/node-name"] = json!(["b"]);
    scene.read(&claims, 1_003);
    assert_eq!(scene.sent(), ["exec to b", "one to b"]);
    // The same where others got in before. The broker knows again what is told twice.
    scene.read(&session("later", 1_004), 1_004);
    scene.note(&session("later", 1_004), 1_004);
    scene.look_up(Err("not now".to_owned())).await;
    claims["auditID"] = json!("two");
    scene.read(&claims, 1_005);
    assert_eq!(scene.sent(), ["exec to b", "later to b", "two to b"]);
}

#[tokio::test]
async fn who_asks_for_ever_more_lookups_keeps_nobody_waiting() {
    let mut scene = scene_with_lookups();
    scene.note(&session("exec", 900), 900);
    scene.hear("b", named(1_000, 1_060), 1);
    scene.tick(1_001);
    scene.look_up(on("b", 800)).await;
    scene.read(&session("later", 1_003), 1_003);
    assert_eq!(scene.sent(), ["exec to b"]);
    scene.tick(1_004);
    assert_eq!(scene.said(), Some((1_001, 1)), "though another lookup goes on");
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
fn what_was_sent_before_bucket_or_stream_were_made_anew_is_sent_again() {
    let mut scene = scene(100, Vec::new());
    scene.note(&session("exec", 900), 900);
    scene.read(&by_pod("one", 1_001), 1_001);
    let asks = |made| Asks {
        node: "b".to_owned(),
        question: Question { interests: named(1_000, 1_060), canary: None },
        revision: Revision { bucket: at(made), number: 1 },
    };
    scene.hear_asks(asks(0));
    assert_eq!(scene.sent(), ["exec to b", "one to b"]);
    scene.hear_asks(asks(0));
    assert_eq!(scene.sent(), [""; 0]);
    scene.hear_asks(asks(1));
    assert_eq!(scene.sent(), ["exec to b", "one to b"]);
}

#[test]
fn what_found_no_room_is_sent_when_there_is_some() {
    let mut scene = scene(2, Vec::new());
    scene.hear("b", asked(1_000, 1_060), 1);
    for at in 1..=4 {
        scene.read(&by_pod(&at.to_string(), 1_000 + at), 1_000 + at);
    }
    assert_eq!((scene.metrics.deferred.get(), scene.answering.due()), (2, 4));
    let done = |scene: &Scene| scene.answering.done();
    scene.tick(1_010);
    assert_eq!(scene.said(), None, "the queue is full");
    assert_eq!((scene.sent(), done(&scene)), (vec!["1 to b".to_owned(), "2 to b".to_owned()], 2));
    scene.tick(1_011);
    assert_eq!(done(&scene), 2, "they are in the queue");
    assert_eq!(scene.sent(), ["3 to b", "4 to b"]);
    scene.tick(1_012);
    assert_eq!(scene.said(), Some((1_011, 1)), "as of when they found some");
    assert!(scene.answering.due() >= 4 && done(&scene) == scene.answering.due());
}

#[test]
fn who_got_in_when_there_was_no_room_is_told_when_there_is_some() {
    let mut scene = scene(1, Vec::new());
    scene.hear("b", named(1_000, 1_060), 1);
    scene.read(&by_pod("one", 1_001), 1_001);
    scene.read(&session("exec", 1_002), 1_002);
    scene.note(&session("exec", 1_002), 1_002);
    assert_eq!(scene.sent(), ["one to b"]);
    scene.tick(1_010);
    assert_eq!(scene.sent(), ["exec to b"]);
}

#[test]
fn what_finds_no_room_is_sent_however_much_it_is_and_in_whatever_order_it_was_read() {
    let mut scene = scene(2, Vec::new());
    scene.hear("b", named(990, 1_060), 1);
    for (id, received, read) in [("a", 1_001, 1_001), ("b", 1_002, 1_002), ("c", 1_003, 1_003)] {
        scene.read(&by_pod(id, received), read);
    }
    // A long one, which is logged at its end.
    scene.read(&by_pod("long", 1_000), 1_004);
    let mut sent = HashSet::new();
    for tick in 0..10 {
        scene.tick(1_010 + tick);
        sent.extend(scene.sent());
    }
    assert_eq!(sent.len(), 4, "{sent:?}");
    assert!(scene.said().is_some() && scene.answering.done() == scene.answering.due());
}

#[test]
fn who_asks_about_many_pods_of_many_names_is_told_who_got_in_and_keeps_nobody_waiting() {
    let mut scene = scene(4, Vec::new());
    let names = ["cart-0", "cart-1", "cart-2"];
    for name in names {
        for at in 900..903 {
            let mut session = session(&format!("{name}@{at}"), at);
            session["objectRef"]["name"] = json!(name);
            scene.note(&session, at);
        }
    }
    let interest = |name: &str, uid| Interest {
        pod: format!("{name}-{uid}"),
        name: Some(name.to_owned()),
        ..named(1_000, 1_060).remove(0)
    };
    let all = names.into_iter().flat_map(|name| (0..9).map(move |uid| interest(name, uid)));
    scene.hear("thief", all.collect(), 1);
    let mut sent = HashSet::new();
    for tick in 0..10 {
        scene.tick(1_010 + tick);
        sent.extend(scene.sent());
    }
    assert_eq!(sent.len(), 9, "{sent:?}");
    assert!(scene.metrics.deferred.get() < 9 * 3, "each name counts, not each pod");
    assert!(scene.said().is_some(), "the side is through");
}

#[test]
fn who_asks_nothing_itself_answers_a_node_of_its_name() {
    for (asks_itself, sent) in [(true, vec![]), (false, vec!["one to own"])] {
        let mut scene = scene(100, Vec::new());
        scene.answering.asks_itself = asks_itself;
        scene.hear("own", asked(1_000, 1_060), 1);
        scene.read(&by_pod("one", 1_001), 1_001);
        assert_eq!(scene.sent(), sent);
    }
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
    assert_eq!(scene.said(), Some((1_000, 3)), "as of before it was asked for more");
    scene.tick(1_002);
    assert_eq!(scene.said(), Some((1_002, 4)));
    assert_eq!((scene.metrics.searches.get(), scene.metrics.beyond_reach.get()), (2, 2));
}

#[tokio::test]
async fn what_is_not_asked_any_more_is_not_searched_for() {
    let folder = tempfile::tempdir().unwrap();
    let log = folder.path().join("audit.log");
    write(&log, &[by_pod("wanted", 990)]);
    let mut scene = scene(100, vec![log]);
    scene.hear("b", asked(950, 1_060), 3);
    scene.hear("c", asked(880, 1_060), 4);
    scene.hear("c", Vec::new(), 5);
    scene.searched().await;
    assert_eq!((scene.sent(), scene.metrics.searches.get()), (vec!["wanted to b".to_owned()], 1));
}
