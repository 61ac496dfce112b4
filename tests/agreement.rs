//! Whatever happens on a node, and however its audit log is written: what `run` tells of it, `replay`
//! tells of what `run --record` wrote and the same log.
//!
//! What happens is chance, the same for the same seed. Not compared is what design says is not: when
//! and by which program a document was made. Where a line came after something later of the same pod,
//! the first alert may be about another request, and only the summary is compared. Incidents that are
//! joined for an hour have no summary yet.
#![expect(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "a helper of a test fails as the test does; what a document lacks is null"
)]

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Value, json};
use tokentrail_tests::{Alerts, PATIENCE, Sandbox, tokentrail, wait_until};

#[path = "agreement/scene.rs"]
mod scene;

use scene::{LATENESS, Scene};

/// Each is one sequence of events.
const SEEDS: [u64; 8] = [1, 2, 3, 4, 5, 6, 7, 8];
/// In these the agent is killed on the way.
const KILLED: [u64; 2] = [3, 8];
/// In these nothing is left to learn: what a workload reads is foreign, what it asks is new.
const LEARNED: [u64; 3] = [2, 5, 6];

/// What each document is compared by, under its `event.id`.
type Told = BTreeMap<String, Value>;

#[test]
fn what_run_tells_while_it_happens_replay_tells_of_what_was_recorded() {
    let sandboxes: Vec<_> = SEEDS.iter().map(|_| Sandbox::create().unwrap()).collect();
    // They all happen first: then all end within the same minutes.
    let scenes: Vec<_> = SEEDS
        .iter()
        .zip(&sandboxes)
        .map(|(seed, sandbox)| {
            let learning = if LEARNED.contains(seed) { 0 } else { 600 };
            Scene::play(sandbox, *seed, KILLED.contains(seed), learning)
        })
        .collect();
    let (mut seen, mut grades) = (BTreeSet::new(), BTreeSet::new());
    for scene in scenes {
        let replayed = replay(&scene);
        let expected = told(&scene, &replayed);
        let so_far = || told(&scene, &scene.node.agent.alerts().all().unwrap());
        // An exposure, a further request at its end, the lateness, and what the agent takes.
        let ended = wait_until(PATIENCE * 4, "all that replay tells is told", || {
            let found = so_far();
            Ok(expected.keys().all(|id| found.contains_key(id)).then_some(()))
        });
        let differences = differences(&so_far(), &expected);
        let seed = scene.seed;
        assert!(differences.is_empty(), "seed {seed}: {differences:#?}\n{}", scene.story());
        ended.unwrap();
        seen.extend(replayed.iter().map(|it| (text(&it["rule"]["id"]), kind(it))));
        grades.extend(replayed.iter().map(|it| text(&it["tokentrail"]["grade"])));
    }
    assert!(grades.contains("foreign"), "{grades:?}");
    for (rule, kind) in [
        ("token-access-then-api-request", "alert"),
        ("token-access-then-api-request", "escalation"),
        ("token-access-then-api-request", "incident"),
        ("token-read", "alert"),
        ("token-read-from-outside", "alert"),
        ("token-request-by-user", "alert"),
        ("decoy-used", "alert"),
    ] {
        assert!(
            seen.contains(&(rule.to_owned(), kind.to_owned())),
            "no {kind} of {rule}: {seen:?}"
        );
    }
}

/// What a replay of the recording tells.
fn replay(scene: &Scene<'_>) -> Vec<Value> {
    let folder = scene.sandbox.folder();
    let output = folder.join("replayed.ndjson");
    let mut command = tokentrail();
    command.arg("replay").arg("--opens").arg(folder.join("opens.ndjson"));
    command.arg("--audit").arg(scene.node.audit.path()).arg("-o").arg(&output);
    command.arg("--rules-file").arg(scene.rules());
    command.args(["--lateness", &format!("{LATENESS}s")]);
    command.args(["--learning", &format!("{}s", scene.learning)]);
    let finished = scene.sandbox.run(&mut command).unwrap();
    assert_eq!(finished.code, Some(0), "{finished:?}");
    for trouble in ["--lateness", "given up", "unusable"] {
        assert!(!finished.errors.contains(trouble), "{finished:?}");
    }
    Alerts::at(output).all().unwrap()
}

/// What is to be compared of these documents.
fn told(scene: &Scene<'_>, documents: &[Value]) -> Told {
    let of_scene = documents.iter().filter(|it| !is_hourly_summary(it)).filter_map(|document| {
        let pod = &document["orchestrator"]["resource"]["id"];
        let compared = match pod.as_str() {
            Some(uid) if !scene.has(uid) => return None,
            Some(uid) if !scene.is_in_order(uid) => {
                (kind(document) == "incident").then(|| of_incident(document))?
            }
            // Another scene's agent has opens of this one's pods in its ring, too.
            None if document.get("process").is_some() => return None,
            Some(_) | None => of_document(document),
        };
        Some((text(&document["event"]["id"]), compared))
    });
    of_scene.collect()
}

fn is_hourly_summary(document: &Value) -> bool {
    kind(document) == "incident" && document["rule"]["id"] != "token-access-then-api-request"
}

/// All but what is about the telling.
fn of_document(document: &Value) -> Value {
    let mut document = document.clone();
    let mut without = vec![
        ("/event", "created"),
        ("/tokentrail", "latency_us"),
        ("/tokentrail", "sensor"),
        ("", "agent"),
        ("/host", "id"),
    ];
    if document.get("process").is_none() {
        // Only a recorded open says on which node it was.
        without.extend([
            ("", "host"),
            ("/related", "hosts"),
            ("/tokentrail/evidence/origin", "node_claim_is_this_node"),
        ]);
    }
    for (parent, key) in without {
        if let Some(parent) = document.pointer_mut(parent).and_then(Value::as_object_mut) {
            parent.remove(key);
        }
    }
    document
}

/// What an incident was in the end, whichever request was told of first.
fn of_incident(document: &Value) -> Value {
    let incident = &document["tokentrail"]["incident"];
    let requests = document["tokentrail"]["evidence"]["requests"].as_array().unwrap();
    json!({
        "severity": document["event"]["severity"],
        "incident": incident,
        "requests": requests,
    })
}

/// Where two tell differently: by which document and field.
fn differences(run: &Told, replay: &Told) -> Vec<String> {
    let ids: BTreeSet<_> = run.keys().chain(replay.keys()).collect();
    let mut differences = Vec::new();
    for id in ids {
        match (run.get(id), replay.get(id)) {
            (Some(run), Some(replay)) => compare(id, run, replay, &mut differences),
            (Some(run), None) => differences.push(format!("only run tells {run:#}")),
            (None, Some(replay)) => differences.push(format!("only replay tells {replay:#}")),
            (None, None) => {}
        }
    }
    differences
}

fn compare(place: &str, run: &Value, replay: &Value, differences: &mut Vec<String>) {
    match (run, replay) {
        (Value::Object(a), Value::Object(b)) => {
            for key in a.keys().chain(b.keys()).collect::<BTreeSet<_>>() {
                let place = format!("{place}/{key}");
                compare(&place, &run[key], &replay[key], differences);
            }
        }
        _ if run == replay => {}
        _ => differences.push(format!("{place}: run says {run}, replay {replay}")),
    }
}

fn kind(document: &Value) -> String {
    text(&document["tokentrail"]["kind"])
}

fn text(value: &Value) -> String {
    value.as_str().unwrap_or_default().to_owned()
}
