//! When the engine tells a source that its batches are safe, and how far it takes time to have
//! passed there.

use serde_json::json;
use tempfile::TempDir;
use tokio::sync::oneshot::{self, error::TryRecvError};

use super::*;
use crate::{
    agent::{PodFeed, state::StateDir},
    attribution::{TokenOpen, pods::PodIndex},
    audit::{
        AuditRecord, ReadRecord,
        canary::{self, Canary, Measured, State},
        checkpoint::Position,
    },
    config::RunArgs,
    nats::{
        answering::Asks,
        interest::{Interest, Question},
        progress::Revision,
    },
};

mod late;

struct Scene {
    engine: Engine,
    batches: mpsc::Receiver<AuditBatch>,
    _tasks: JoinSet<AgentError>,
    _state: StateDir,
    directory: TempDir,
}

/// An engine with a log file as source 0 and a webhook as source 1.
async fn scene() -> Scene {
    scene_in(tempfile::tempdir().unwrap()).await
}

/// The same, with the state and the rules that are in this directory.
async fn scene_in(directory: TempDir) -> Scene {
    scene_with(directory, json!({})).await
}

/// The same, with more in its configuration.
async fn scene_with(directory: TempDir, more: serde_json::Value) -> Scene {
    let at = |name: &str| directory.path().join(name);
    let certified = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
    std::fs::write(at("tls.crt"), certified.cert.pem()).unwrap();
    std::fs::write(at("tls.key"), certified.signing_key.serialize_pem()).unwrap();
    std::fs::write(at("tokens"), "a-token-that-is-long-enough").unwrap();
    let mut file = json!({
        "audit-webhook": "127.0.0.1:0",
        "audit-webhook-cert-file": at("tls.crt"),
        "audit-webhook-key-file": at("tls.key"),
        "audit-webhook-token-file": at("tokens"),
        "no-sensor": true,
    });
    file.as_object_mut().unwrap().extend(more.as_object().cloned().unwrap());
    std::fs::write(at("config.yaml"), file.to_string()).unwrap();
    let config = Config::resolve(RunArgs {
        config: Some(at("config.yaml")),
        audit_log: vec![at("audit.log")],
        alert_log: Some(at("alerts.ndjson")),
        state_dir: Some(at("state")),
        no_kube: true,
        ..RunArgs::default()
    })
    .unwrap();
    let state = StateDir::open(&config.state_dir).unwrap();
    let health = Health::new("node".to_owned(), None);
    let metrics = StageMetrics::default();
    let mut tasks = JoinSet::new();
    let pods = PodFeed::start(&config, &metrics.pods, &mut tasks).await.unwrap();
    let senses = Senses::new(None, pods);
    let rules = Some(at("rules.yaml")).filter(|path| path.exists());
    let rules = RulesFile::open(rules.as_deref()).unwrap();
    let built = Engine::build(&config, &state, &health, senses, rules, metrics, &mut tasks);
    let (engine, batches) = built.unwrap();
    Scene { engine, batches, _tasks: tasks, _state: state, directory }
}

fn batch(source: usize, newest_stage: Option<Micros>) -> (AuditBatch, oneshot::Receiver<()>) {
    let (acknowledge, told) = oneshot::channel();
    let (lines, records) = (Vec::new(), Vec::new());
    let acknowledge = Some(acknowledge);
    (AuditBatch { source, lines, records, newest_stage, position: None, acknowledge }, told)
}

#[tokio::test]
async fn a_batch_without_an_alert_is_acknowledged_at_once() {
    let mut scene = scene().await;
    let (batch, mut told) = batch(1, None);
    scene.engine.take(batch);
    assert_eq!(told.try_recv(), Ok(()));
}

#[tokio::test]
async fn a_batch_is_acknowledged_once_the_alerts_so_far_are_durable() {
    let mut scene = scene().await;
    assert_eq!(scene.engine.alert_log.append("id", b"{}".to_vec()), Appended::Written);
    let (first, mut first_told) = batch(1, None);
    let (second, mut second_told) = batch(1, None);
    scene.engine.take(first);
    scene.engine.take(second);
    assert_eq!(first_told.try_recv(), Err(TryRecvError::Empty), "written is not synced");
    scene.engine.pass_time(&scene.batches).unwrap();
    let (third, mut third_told) = batch(1, None);
    scene.engine.take(third);
    assert_eq!(third_told.try_recv(), Err(TryRecvError::Empty), "it is on its way to the disk");
    let result = saved(&mut scene.engine.saving).await;
    scene.engine.end_saving(result, Micros(0));
    assert_eq!((first_told.try_recv(), second_told.try_recv()), (Ok(()), Ok(())));
    let (fourth, mut fourth_told) = batch(1, None);
    scene.engine.take(fourth);
    assert_eq!((third_told.try_recv(), fourth_told.try_recv()), (Ok(()), Ok(())));
}

#[tokio::test]
async fn while_an_alert_waits_for_space_nothing_is_acknowledged_and_nobody_is_waited_for_in_vain() {
    let mut scene = scene().await;
    scene.engine.alert_log = AlertLog::on_full_disk();
    assert_eq!(scene.engine.alert_log.append("id", b"{}".to_vec()), Appended::Pending);
    let (first, told) = batch(1, None);
    scene.engine.take(first);
    scene.engine.pass_time(&scene.batches).unwrap();
    drop(told);
    let (second, mut told) = batch(1, None);
    scene.engine.take(second);
    scene.engine.pass_time(&scene.batches).unwrap();
    assert_eq!(told.try_recv(), Err(TryRecvError::Empty));
    assert_eq!(scene.engine.unacknowledged.len(), 1);
}

#[tokio::test]
async fn a_post_is_answered_when_the_broker_has_what_another_node_asked_for() {
    let more = json!({"nats": "nats://127.0.0.1:9", "cluster-name": "c", "node-name": "n"});
    let mut scene = scene_with(tempfile::tempdir().unwrap(), more).await;
    let now = scene.engine.senses.clock.now().wall;
    let hour = Micros::from_secs(3_600);
    let interests =
        vec![Interest { from: now - hour, until: now + hour, ..Interest::example("p", 0, 0) }];
    let question = Question { interests, canary: None };
    let asks = Asks { node: "b".to_owned(), question, revision: Revision::default() };
    scene.engine.answer(answering::Event::Asked(asks));
    let wanted: AuditRecord = serde_json::from_value(json!({
        "auditID": "a", "stage": "ResponseComplete", "verb": "list", "requestURI": "/",
        "user": {"username": "system:serviceaccount:shop:cart",
            "extra": {"authentication.kubernetes.io/pod-uid": ["p"]}},
        "requestReceivedTimestamp": now, "stageTimestamp": now,
    }))
    .unwrap();
    let (mut first, mut first_told) = batch(1, None);
    let read = |is_repeated| ReadRecord {
        record: wanted.clone(),
        read_at: Instant::now(),
        side: None,
        is_repeated,
    };
    first.records = vec![read(false)];
    scene.engine.take(first);
    scene.engine.pass_time(&scene.batches).unwrap();
    assert_eq!(first_told.try_recv(), Err(TryRecvError::Empty), "there is no broker");
    let (other, mut other_told) = batch(1, None);
    scene.engine.take(other);
    assert_eq!(other_told.try_recv(), Ok(()), "nobody asked for what is in this one");
    // Who posted it gave up, and sends it again.
    drop(first_told);
    let (mut again, mut again_told) = batch(1, None);
    again.records = vec![read(true)];
    scene.engine.take(again);
    assert_eq!(again_told.try_recv(), Err(TryRecvError::Empty), "nobody has it yet");
    assert_eq!(scene.engine.due(), 1, "it is sent once");
    let health = scene.engine.broker().unwrap();
    assert!(health.failure.is_some());
}

#[tokio::test]
async fn each_source_is_as_late_as_it_may_be_and_the_latest_counts() {
    let mut scene = scene().await;
    // Neither has been read to an end.
    let now = scene.engine.senses.clock.now();
    for source in &mut scene.engine.sources {
        source.status = watch::channel(SourceStatus::default()).1;
    }
    assert_eq!(scene.engine.watermark(now.steady, true), Micros::MIN);
    for source in [0, 1] {
        scene.engine.take(batch(source, Some(now.wall)).0);
    }
    let behind = now.steady - scene.engine.watermark(now.steady, true);
    assert_eq!(behind, Micros::from_secs(300));
    scene.engine.sources.pop();
    let behind = now.steady - scene.engine.watermark(now.steady, true);
    assert_eq!(behind, Micros::from_secs(75));
}

impl Scene {
    /// Ends all but what is on the disk.
    fn end(self) -> TempDir {
        self.directory
    }

    /// The positions that a restart would find, in bytes of the files of these names.
    fn saved<const N: usize>(&self, names: [&str; N]) -> [Option<u64>; N] {
        let saved = Checkpoints::open(&self.directory.path().join("state")).unwrap();
        names.map(|name| Some(saved.position(&self.directory.path().join(name))?.offset))
    }

    /// Follows another log, of this name.
    fn follow_another(&mut self, name: &str) -> usize {
        self.engine.sources.push(Source {
            name: name.to_owned(),
            way: Way::File(self.directory.path().join(name)),
            decoder: Decoder::new(name.to_owned(), AuditMetrics::default()),
            lateness: Micros(0),
            status: watch::channel(SourceStatus::default()).1,
            newest_stage: None,
        });
        self.engine.sources.len() - 1
    }

    /// So much of that log was read, and nothing in it mattered.
    fn reach(&mut self, source: usize, offset: u64) {
        let position =
            Position { device: 1, inode: 2, offset, first_line: None, modified: None, path: None };
        let (mut batch, _told) = batch(source, None);
        batch.position = Some(position);
        self.engine.take(batch);
    }
}

#[tokio::test]
async fn a_logs_first_position_takes_no_other_one_along_before_its_alerts_are_durable() {
    let mut scene = scene().await;
    let busy = scene.follow_another("busy.log");
    scene.reach(busy, 1);
    assert_eq!(scene.saved(["busy.log"]), [Some(1)], "a restart would begin at its end");
    // What the next lines of that log were about is written, but not synced.
    assert_eq!(scene.engine.alert_log.append("a", b"{}".to_vec()), Appended::Written);
    scene.reach(busy, 100);
    assert_eq!(scene.saved(["busy.log"]), [Some(1)]);
    let new = scene.follow_another("new.log");
    scene.reach(new, 5);
    assert_eq!(scene.saved(["busy.log", "new.log"]), [Some(100), Some(5)]);
    assert!(scene.engine.alert_log.is_synced(), "a position is ahead of its alerts");
    // And this time it cannot be.
    scene.engine.alert_log = AlertLog::on_full_disk();
    assert_eq!(scene.engine.alert_log.append("b", b"{}".to_vec()), Appended::Pending);
    scene.reach(busy, 200);
    let newest = scene.follow_another("newest.log");
    scene.reach(newest, 7);
    assert_eq!(scene.saved(["busy.log", "newest.log"]), [Some(100), None]);
}

#[tokio::test]
async fn while_something_is_being_saved_a_first_position_waits_for_its_turn() {
    let mut scene = scene().await;
    assert_eq!(scene.engine.alert_log.append("a", b"{}".to_vec()), Appended::Written);
    scene.engine.pass_time(&scene.batches).unwrap();
    assert!(scene.engine.saving.is_some());
    let new = scene.follow_another("new.log");
    scene.reach(new, 5);
    assert_eq!(scene.saved(["new.log"]), [None], "two would write the same file at once");
    scene.engine.save_all(Micros(0)).await.unwrap();
    assert_eq!(scene.saved(["new.log"]), [Some(5)]);
}

#[tokio::test]
async fn what_an_exception_swallowed_is_counted_before_its_batch_is_let_go_and_once_for_all_restarts()
 {
    let directory = tempfile::tempdir().unwrap();
    let rules = "exceptions: [{name: ops, rule: token-request-by-user, user: ops, reason: known}]";
    std::fs::write(directory.path().join("rules.yaml"), rules).unwrap();
    let minted: AuditRecord = serde_json::from_value(json!({
        "auditID": "a", "stage": "ResponseComplete", "verb": "create",
        "requestURI": "/api/v1/namespaces/shop/serviceaccounts/cart/token",
        "user": {"username": "ops"}, "responseStatus": {"code": 201},
        "objectRef": {"resource": "serviceaccounts", "subresource": "token", "namespace": "shop",
            "name": "cart"},
        "requestReceivedTimestamp": "2026-11-22T10:00:00.000000Z",
        "stageTimestamp": "2026-11-22T10:00:00.000000Z",
    }))
    .unwrap();
    let mut scene = scene_in(directory).await;
    for life in 0..3 {
        let (mut batch, mut told) = batch(1, None);
        batch.records = vec![ReadRecord {
            record: minted.clone(),
            read_at: Instant::now(),
            side: None,
            is_repeated: false,
        }];
        scene.engine.take(batch);
        assert_eq!(told.try_recv(), Ok(()), "in life {life}");
        // It may be killed here.
        let state = scene.directory.path().join("state");
        let rulebook = scene.engine.rulebook.current();
        let exception = &rulebook.exceptions.iter().next().unwrap().id;
        let hits = crate::agent::rulebook::read_hits(&state).unwrap();
        assert_eq!(hits.of(exception).unwrap().count, 1, "in life {life}");
        scene = scene_in(scene.end()).await;
    }
}

#[tokio::test]
async fn who_posts_may_be_behind_by_a_second_or_by_what_the_canary_measured_there() {
    let mut scene = scene().await;
    assert_eq!(scene.engine.join.skew, OTHER_CLOCK, "from the beginning");
    for (state, source, offset, error, skew) in [
        (State::Heard, 1, 0, 2_000, 102_000),
        (State::Heard, 1, -3_000_000, 2_000, 3_102_000),
        (State::Heard, 1, 3_000_000, 2_000, 0),
        (State::Heard, 1, i64::MIN, i64::MAX, 3_600_000_000),
        // Measured where this machine's clock writes; or once, and not any more.
        (State::Heard, 0, -3_000_000, 2_000, 1_000_000),
        (State::Silent, 1, -3_000_000, 2_000, 1_000_000),
        (State::Unanswered, 1, -3_000_000, 2_000, 1_000_000),
    ] {
        let measured = Measured {
            heard: Micros(0),
            clock_offset_us: offset,
            clock_offset_error_us: error,
            delay_us: 0,
            number: 1,
        };
        let way = canary::Way { source, side: None };
        scene.engine.canary = CanaryFeed::stub(Canary::example(state, way, measured));
        scene.engine.pass_time(&scene.batches).unwrap();
        assert_eq!(scene.engine.join.skew, Micros(skew), "{state:?} {measured:?}");
    }
    scene.engine.join.skew = Micros(2_500);
    let recorded = scene.directory.path().join("opens.ndjson");
    let recorder = Recorder::open(&recorded, "node".to_owned()).unwrap();
    scene.engine.join.recorder = Some(recorder);
    let (now, pods) = (Micros::from_secs(1_800_000_000), PodIndex::default());
    scene.engine.join.open(TokenOpen::example(now), &pods, now);
    let recorded: serde_json::Value =
        serde_json::from_slice(&std::fs::read(recorded).unwrap()).unwrap();
    assert_eq!(recorded["tokentrail"]["skew_us"], 2_500, "an open takes along what is known");
    scene.engine.sources.pop();
    scene.engine.pass_time(&scene.batches).unwrap();
    assert_eq!(scene.engine.join.skew, Micros(0), "a log file is written by this machine");
}
