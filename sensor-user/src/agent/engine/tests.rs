//! When the engine tells a source that its batches are safe, and how far it takes time to have
//! passed there.

use serde_json::json;
use tempfile::TempDir;
use tokio::sync::oneshot::{self, error::TryRecvError};

use super::*;
use crate::{
    agent::{PodFeed, state::StateDir},
    config::RunArgs,
};

struct Scene {
    engine: Engine,
    batches: mpsc::Receiver<AuditBatch>,
    _tasks: JoinSet<AgentError>,
    _state: StateDir,
    _directory: TempDir,
}

/// An engine with a log file as source 0 and a webhook as source 1.
async fn scene() -> Scene {
    let directory = tempfile::tempdir().unwrap();
    let at = |name: &str| directory.path().join(name);
    let certified = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
    std::fs::write(at("tls.crt"), certified.cert.pem()).unwrap();
    std::fs::write(at("tls.key"), certified.signing_key.serialize_pem()).unwrap();
    std::fs::write(at("tokens"), "a-token-that-is-long-enough").unwrap();
    let file = json!({
        "audit-webhook": "127.0.0.1:0",
        "audit-webhook-cert-file": at("tls.crt"),
        "audit-webhook-key-file": at("tls.key"),
        "audit-webhook-token-file": at("tokens"),
    });
    std::fs::write(at("config.yaml"), file.to_string()).unwrap();
    let config = Config::resolve(RunArgs {
        config: Some(at("config.yaml")),
        audit_log: vec![at("audit.log")],
        alert_log: Some(at("alerts.ndjson")),
        state_dir: Some(at("state")),
        no_sensor: true,
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
    let rules = RulesFile::open(None).unwrap();
    let built = Engine::build(&config, &state, &health, senses, rules, metrics, &mut tasks);
    let (engine, batches) = built.unwrap();
    Scene { engine, batches, _tasks: tasks, _state: state, _directory: directory }
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
