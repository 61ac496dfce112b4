//! Audit events that come hours after their requests, on a node that is told of them over the broker.

use serde_json::json;

use super::*;
use crate::audit::ReadLine;

/// When the token was opened, before now.
const AGO: Micros = Micros::from_secs(7_200);

/// A node that asks, with this patience; how its source is told how far it is answered.
async fn node(patience: u32) -> (Scene, watch::Sender<SourceStatus>) {
    let more = json!({
        "nats": "nats://127.0.0.1:9", "cluster-name": "c", "node-name": "n", "no-sensor": false,
        "nats-patience-seconds": patience,
    });
    let mut scene = scene_with(tempfile::tempdir().unwrap(), more).await;
    scene.engine.sources.retain(|source| source.way == Way::Nats);
    let (answered, status) = watch::channel(SourceStatus::default());
    scene.engine.sources[0].status = status;
    (scene, answered)
}

impl Scene {
    /// A token was opened then.
    fn open(&mut self, time: Micros) {
        let (pods, now) = (PodIndex::default(), self.engine.senses.clock.now().steady);
        let steady = self.engine.senses.clock.wall_to_steady(time);
        self.engine.join.open(TokenOpen::example(steady), &pods, now);
        self.engine.ask();
    }

    /// Audit sides have said that they are this far with all that is asked.
    fn answered(&self, status: &watch::Sender<SourceStatus>, through: Micros) {
        let number = self.engine.asking.as_ref().unwrap().number();
        status.send_modify(|status| {
            status.answered_through = Some(through);
            status.answered_round = number;
        });
    }

    fn asks(&self) -> Vec<Interest> {
        self.engine.asking.as_ref().unwrap().asked()
    }

    fn alerts(&self) -> usize {
        let log = std::fs::read_to_string(self.directory.path().join("alerts.ndjson")).unwrap();
        log.lines().filter(|it| it.contains("token-access-then-api-request")).count()
    }
}

fn request(received: Micros) -> AuditBatch {
    let event = json!({
        "kind": "Event", "auditID": "a", "stage": "ResponseComplete", "verb": "list",
        "requestURI": "/api/v1/namespaces/shop/pods", "responseStatus": {"code": 200},
        "objectRef": {"resource": "pods", "namespace": "shop"},
        "user": {"username": "system:serviceaccount:shop:cart",
            "extra": {"authentication.kubernetes.io/pod-uid": ["pod"]}},
        "requestReceivedTimestamp": received, "stageTimestamp": received,
    });
    let line = ReadLine {
        line: event.to_string().into_bytes().into(),
        end: 0,
        read_at: Instant::now(),
        side: None,
    };
    let (mut batch, _) = batch(0, None);
    batch.lines = vec![line];
    batch
}

#[tokio::test]
async fn a_request_that_comes_hours_late_is_asked_for_until_then_and_alerts() {
    let (mut scene, answered) = node(3 * 3_600).await;
    let opened = scene.engine.senses.clock.now().wall - AGO;
    scene.open(opened);
    // The audit side is behind by two hours: its cloud's log service is.
    for behind in [AGO + Micros::from_secs(1), AGO - Micros::from_secs(50)] {
        let through = scene.engine.senses.clock.now().wall - behind;
        scene.answered(&answered, through);
        scene.engine.pass_time(&scene.batches).unwrap();
        let asked = scene.asks();
        assert_eq!(asked.len(), 1, "it is asked for as long as its requests may come");
        assert!(asked[0].covers(opened + Micros::from_secs(5)));
    }
    scene.engine.take(request(opened + Micros::from_secs(5)));
    assert_eq!(scene.alerts(), 1);
    let through = scene.engine.senses.clock.now().wall;
    scene.answered(&answered, through);
    scene.engine.pass_time(&scene.batches).unwrap();
    assert!(scene.asks().is_empty(), "all sides are past it");
}

#[tokio::test]
async fn beyond_the_patience_of_the_node_a_request_is_too_late() {
    let (mut scene, answered) = node(3_600).await;
    let opened = scene.engine.senses.clock.now().wall - AGO;
    scene.open(opened);
    scene.answered(&answered, opened);
    scene.engine.pass_time(&scene.batches).unwrap();
    assert!(scene.asks().is_empty());
    scene.engine.take(request(opened + Micros::from_secs(5)));
    assert_eq!(scene.alerts(), 0);
}

#[tokio::test]
async fn what_audit_sides_said_of_other_questions_ends_nothing() {
    let (mut scene, answered) = node(3 * 3_600).await;
    let through = scene.engine.senses.clock.now().wall;
    scene.answered(&answered, through);
    // As the journal has it after a restart, or the ring after an outage.
    let opened = scene.engine.senses.clock.now().wall - AGO;
    scene.open(opened);
    scene.engine.pass_time(&scene.batches).unwrap();
    assert_eq!(scene.asks().len(), 1, "nobody has been asked about it yet");
    scene.engine.take(request(opened + Micros::from_secs(5)));
    assert_eq!(scene.alerts(), 1);
}
