//! The queue against a log that is written, rotated and left behind by agents that are killed.

use proptest::prelude::*;
use tempfile::TempDir;

use super::*;
use crate::alert::log::{AlertLog, AlertLogMetrics};

/// A log, the agent that writes it and the queue that it publishes from.
struct Scene {
    folder: TempDir,
    keep: u32,
    log: AlertLog,
    queue: Unpublished,
    written: u64,
}

fn settings(folder: &TempDir, keep: u32) -> AlertLogSettings {
    AlertLogSettings { path: folder.path().join("alerts.ndjson"), max_bytes: 150, keep }
}

fn open(folder: &TempDir, keep: u32) -> (AlertLog, Unpublished) {
    let log = AlertLog::open(settings(folder, keep), AlertLogMetrics::default()).unwrap();
    let queue = Unpublished::open(settings(folder, keep), folder.path(), &log.durable()).unwrap();
    (log, queue)
}

impl Scene {
    fn new(keep: u32) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let (log, queue) = open(&folder, keep);
        Self { folder, keep, log, queue, written: 0 }
    }

    /// Writes one document, of about a third of a file.
    fn write(&mut self) {
        self.written += 1;
        let id = self.written.to_string();
        let line = format!(r#"{{"@timestamp":"2026-11-22T10:00:00Z","event":{{"id":"{id}"}}}}"#);
        self.log.append(&id, line.into_bytes());
    }

    /// What is durable is taken out of the queue.
    fn take(&mut self) -> Vec<String> {
        let mut taken = Vec::new();
        while let Some(next) = self.queue.next(&self.log.durable()).unwrap() {
            taken.push(next.id);
            self.queue.done();
        }
        taken
    }

    fn sync(&mut self) {
        self.log.sync().unwrap();
    }

    fn save(&mut self) {
        if let Some(save) = self.queue.save(&self.log.durable()) {
            save.write().unwrap();
        }
    }

    /// The agent is killed, and another one starts.
    fn restart(&mut self) {
        (self.log, self.queue) = open(&self.folder, self.keep);
    }

    fn waiting(&self) -> u64 {
        self.queue.waiting(&self.log.durable())
    }
}

#[test]
fn what_was_there_before_is_not_published_and_what_comes_is_once_it_is_durable() {
    let folder = tempfile::tempdir().unwrap();
    let before = r#"{"@timestamp":"2026-11-22T10:00:00Z","event":{"id":"before"}}"#;
    fs::write(folder.path().join("alerts.ndjson"), format!("{before}\n")).unwrap();
    let (log, queue) = open(&folder, 2);
    let mut scene = Scene { folder, keep: 2, log, queue, written: 0 };
    scene.write();
    assert_eq!(scene.take(), [""; 0]);
    scene.sync();
    assert_eq!(scene.waiting(), 1);
    let next = scene.queue.next(&scene.log.durable()).unwrap().unwrap();
    assert_eq!(next.id, "1");
    assert!(next.line.ends_with(b"}}"));
    assert_eq!(scene.take(), ["1"], "it is next until it is done");
    assert_eq!(scene.waiting(), 0);
}

#[test]
fn after_a_kill_it_goes_on_where_that_was_saved_also_in_a_file_that_was_rotated() {
    let mut scene = Scene::new(3);
    for _ in 0..2 {
        scene.write();
    }
    scene.sync();
    assert_eq!(scene.take(), ["1", "2"]);
    scene.save();
    for _ in 0..4 {
        scene.write();
    }
    scene.sync();
    scene.restart();
    assert_eq!(scene.waiting(), 4);
    assert_eq!(scene.take(), ["3", "4", "5", "6"]);
    // And not saved: once more from there.
    scene.restart();
    assert_eq!(scene.take(), ["3", "4", "5", "6"]);
    assert_eq!(scene.queue.take_lost(), 0);
}

#[test]
fn what_rotation_took_away_is_counted_while_it_runs_and_at_the_next_start() {
    let mut scene = Scene::new(1);
    for _ in 0..13 {
        scene.write();
    }
    scene.sync();
    // Three a file: the one that is read, those in between, and the two that are left.
    let taken = scene.take();
    assert_eq!(taken, ["1", "2", "3", "10", "11", "12", "13"]);
    assert_eq!((scene.queue.take_lost(), scene.queue.take_lost(), scene.waiting()), (6, 0, 0));
    for _ in 0..2 {
        scene.write();
    }
    scene.sync();
    scene.save();
    fs::remove_file(scene.folder.path().join("alerts.ndjson")).unwrap();
    scene.restart();
    assert_eq!(scene.queue.take_lost(), 0, "a file of before is there");
    scene.write();
    scene.sync();
    assert_eq!(scene.take().last().unwrap(), "16");
}

#[test]
fn what_is_only_written_waits_also_where_the_file_that_is_told_of_was_rotated_away() {
    let mut scene = Scene::new(2);
    for _ in 0..4 {
        scene.write();
    }
    scene.sync();
    let next = scene.queue.next(&scene.log.durable()).unwrap().unwrap();
    assert_eq!(next.id, "1");
    // Three a file: the second, where 4 is, is gone with the fourth, and the last two are written, not synced.
    let told = scene.log.durable();
    for _ in 0..10 {
        scene.write();
    }
    let mut taken = Vec::new();
    while let Some(next) = scene.queue.next(&told).unwrap() {
        taken.push(next.id);
        scene.queue.done();
    }
    assert_eq!(taken, ["1", "2", "3"]);
    // What was rotated was synced before that.
    assert_eq!(scene.take(), ["7", "8", "9", "10", "11", "12"]);
    scene.sync();
    assert_eq!(scene.take(), ["13", "14"]);
    assert_eq!((scene.queue.take_lost(), scene.waiting()), (3, 0));
}

#[test]
fn a_state_that_is_damaged_publishes_all_that_is_there() {
    let mut scene = Scene::new(2);
    for _ in 0..4 {
        scene.write();
    }
    scene.sync();
    scene.take();
    scene.save();
    for damage in ["", "{", r#"{"version":2,"first_line":1,"offset":1,"waiting":0}"#] {
        fs::write(scene.folder.path().join("published-alerts.json"), damage).unwrap();
        scene.restart();
        assert_eq!(scene.take(), ["1", "2", "3", "4"], "{damage:?}");
    }
}

#[test]
fn text_of_others_in_the_log_is_passed_over() {
    let mut scene = Scene::new(2);
    let mut file = OpenOptions::new();
    let path = scene.folder.path().join("alerts.ndjson");
    file.append(true).open(path).unwrap().write_all(b"precious\n{\"@timestamp\":1}\n").unwrap();
    scene.restart();
    scene.write();
    scene.sync();
    assert_eq!((scene.take(), scene.queue.take_lost()), (vec!["1".to_owned()], 0));
}

#[derive(Clone, Copy, Debug)]
enum Step {
    Write,
    Sync,
    Take,
    Save,
    Restart,
}

proptest! {
    /// Whatever happens in whatever order: with enough files kept, each document is taken, in its order, and
    /// again only after a restart.
    #[test]
    fn nothing_is_left_out(steps in proptest::collection::vec(
        proptest::sample::select(
            &[Step::Write, Step::Write, Step::Sync, Step::Take, Step::Save, Step::Restart][..],
        ),
        1..60,
    )) {
        let mut scene = Scene::new(30);
        let mut next = 1;
        for step in steps {
            match step {
                Step::Write => scene.write(),
                Step::Sync => scene.sync(),
                Step::Save => scene.save(),
                Step::Restart => {
                    scene.restart();
                    // From somewhere before.
                    if let Some(first) = scene.queue.next(&scene.log.durable()).unwrap() {
                        let first: u64 = first.id.parse().unwrap();
                        prop_assert!(first <= next);
                        next = first;
                    }
                }
                Step::Take => {
                    for id in scene.take() {
                        prop_assert_eq!(id, next.to_string());
                        next += 1;
                    }
                }
            }
        }
        scene.sync();
        for id in scene.take() {
            prop_assert_eq!(id, next.to_string());
            next += 1;
        }
        prop_assert_eq!(next, scene.written + 1);
        prop_assert_eq!((scene.queue.take_lost(), scene.waiting()), (0, 0));
    }
}
