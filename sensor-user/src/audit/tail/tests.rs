//! The tailer against a real file system, woken as in operation. Random histories: `model`.

use std::{
    collections::HashSet,
    fs::{self, File, OpenOptions},
    io::Write,
    os::unix::fs::{FileExt, symlink},
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use tempfile::TempDir;
use tokio::{
    sync::{mpsc, watch},
    task::JoinHandle,
    time::timeout,
};

use super::{REPORT, TailConfig, follow};
use crate::{
    audit::{
        AuditBatch, AuditMetrics, BadLine, ReadLine, SourceState, SourceStatus,
        checkpoint::Position, decoder::Decoder, scan::Interest,
    },
    time::Micros,
};

mod away;
mod model;
mod races;

/// For what must come; what must not come is awaited by a later line that must. It bounds failures
/// alone: emulated on a busy machine, ten megabytes take their time.
const DEADLINE: Duration = Duration::from_secs(60);

/// A line that matters.
fn line(id: &str) -> String {
    format!(
        r#"{{"kind":"Event","apiVersion":"audit.k8s.io/v1","auditID":"{id}","stage":"ResponseComplete","requestURI":"/api","verb":"get","user":{{"username":"system:serviceaccount:shop:till","extra":{{"authentication.kubernetes.io/pod-uid":["u-1"]}}}},"requestReceivedTimestamp":"2026-11-21T23:50:21.010116Z","stageTimestamp":"2026-11-21T23:50:21.014096Z"}}
"#
    )
}

/// A line that does not.
fn other_line(second: u8) -> String {
    format!("{{\"kind\":\"Event\",\"stageTimestamp\":\"2026-11-21T23:51:{second:02}.000000Z\"}}\n")
}

fn append(path: &Path, text: &str) {
    let mut file = OpenOptions::new().append(true).create(true).open(path).unwrap();
    file.write_all(text.as_bytes()).unwrap();
}

/// The audit ids of lines, decoded as the engine does it.
fn ids_of(lines: &[ReadLine], metrics: &AuditMetrics) -> Vec<String> {
    let mut decoder = Decoder::new("audit.log".to_owned(), metrics.clone());
    let records = lines.iter().map(|it| decoder.decode(&it.line, it.end, &Interest::LIVE));
    records.flatten().map(|record| record.audit_id).collect()
}

struct Following {
    dir: TempDir,
    path: PathBuf,
    batches: mpsc::Receiver<AuditBatch>,
    status: watch::Receiver<SourceStatus>,
    metrics: AuditMetrics,
    last: Option<Position>,
    task: JoinHandle<()>,
}

impl Following {
    /// Follows `audit.log` in a new directory that was prepared.
    fn start(prepare: impl FnOnce(&Path)) -> Self {
        let dir = tempfile::tempdir().unwrap();
        prepare(&dir.path().join("audit.log"));
        Self::resume(dir, "audit.log", None)
    }

    fn resume(dir: TempDir, name: &str, start: Option<Position>) -> Self {
        let path = dir.path().join(name);
        let (sender, batches) = mpsc::channel(2);
        let (status_sender, status) = watch::channel(SourceStatus::default());
        let metrics = AuditMetrics::default();
        let config = TailConfig { path: path.clone(), source: 3, start };
        let task = tokio::spawn(follow(config, sender, status_sender, metrics.clone()));
        Self { dir, path, batches, status, metrics, last: None, task }
    }

    /// Stops and starts again from the last position, with something done in between.
    async fn restart(self, meanwhile: impl FnOnce(&Path)) -> Self {
        let position = self.last;
        drop(self.batches);
        timeout(DEADLINE, self.task).await.expect("the task did not end").unwrap();
        meanwhile(&self.path);
        Self::resume(self.dir, "audit.log", position)
    }

    async fn batch(&mut self) -> AuditBatch {
        let batch = timeout(DEADLINE, self.batches.recv()).await.expect("nothing came");
        let batch = batch.expect("the tailer ended");
        assert_eq!(batch.source, 3);
        self.last.clone_from(&batch.position);
        batch
    }

    /// The next records are these and no others.
    async fn expect(&mut self, ids: &[&str]) {
        let mut found = Vec::new();
        while found.len() < ids.len() {
            let lines = self.batch().await.lines;
            found.extend(ids_of(&lines, &self.metrics));
        }
        assert_eq!(found, ids);
    }

    async fn until(&mut self, condition: impl FnMut(&SourceStatus) -> bool) -> SourceStatus {
        let status = timeout(DEADLINE, self.status.wait_for(condition)).await;
        status.expect("the status did not come").unwrap().clone()
    }

    async fn open(&mut self) {
        self.until(SourceStatus::is_open).await;
    }

    async fn waiting(&mut self, reason: &str) {
        self.until(|status| match &status.state {
            SourceState::Absent(why) | SourceState::Waiting(why) => why.contains(reason),
            SourceState::Starting | SourceState::Open => false,
        })
        .await;
    }

    fn rotate(&self, number: u32) {
        rotate(&self.path, number);
    }
}

fn rotate(path: &Path, number: u32) {
    let name = format!("audit-2026-11-21T20-29-{number:02}.123.log");
    fs::rename(path, path.with_file_name(name)).unwrap();
}

#[tokio::test]
async fn of_a_line_that_wraps_events_each_is_handed_on_and_the_position_is_that_of_the_line() {
    let wrapped = |id: &str| serde_json::json!({"properties": {"log": line(id)}}).to_string();
    let (first, rest) =
        (format!(r#"{{"records":[{},"#, wrapped("a")), format!("{}]}}\n", wrapped("b")));
    let mut tail = Following::start(|path| append(path, &format!("{}\n", wrapped("before"))));
    tail.open().await;
    append(&tail.path, &first);
    tail.expect(&["a"]).await;
    // The writer has the rest to come. Who starts now begins with the line, which is not done.
    let mut tail = tail.restart(|path| append(path, &rest)).await;
    tail.expect(&["a", "b"]).await;
    let mut tail = tail.restart(|path| append(path, &format!("{}\n", wrapped("c")))).await;
    tail.expect(&["c"]).await;
    assert_eq!(tail.metrics.bad(BadLine::NotJson).get(), 0);
}

#[tokio::test]
async fn an_existing_file_is_followed_from_its_end_and_the_first_batch_says_where() {
    let mut tail = Following::start(|path| append(path, &line("old")));
    let first = tail.batch().await;
    assert!(first.lines.is_empty());
    assert_eq!(first.position.unwrap().offset, line("old").len() as u64);
    append(&tail.path, &line("new"));
    tail.expect(&["new"]).await;
    assert_eq!(tail.last.unwrap().offset, fs::metadata(&tail.path).unwrap().len());
}

#[tokio::test]
async fn a_line_that_is_being_written_at_the_start_comes_whole() {
    let text = line("torn");
    let (head, rest) = text.split_at(5000.min(text.len() / 2));
    let mut tail = Following::start(|path| append(path, &format!("{}{head}", line("old"))));
    tail.open().await;
    append(&tail.path, rest);
    tail.expect(&["torn"]).await;
}

#[tokio::test]
async fn a_missing_file_is_waited_for_and_read_from_its_beginning() {
    let mut tail = Following::start(|_| ());
    tail.waiting("does not exist").await;
    append(&tail.path, &line("first"));
    tail.expect(&["first"]).await;
    tail.open().await;
}

#[tokio::test]
async fn missing_directories_are_waited_for_too() {
    let dir = tempfile::tempdir().unwrap();
    let mut tail = Following::resume(dir, "kubernetes/audit/audit.log", None);
    tail.waiting("does not exist").await;
    fs::create_dir_all(tail.path.parent().unwrap()).unwrap();
    append(&tail.path, &line("first"));
    tail.expect(&["first"]).await;
}

// Permissions do not stop root, so something else stands in the way here.
#[tokio::test]
async fn what_cannot_be_read_is_tried_until_it_can() {
    let mut tail = Following::start(|path| fs::create_dir(path).unwrap());
    tail.waiting("not a regular file").await;
    fs::remove_dir(&tail.path).unwrap();
    append(&tail.path, &line("first"));
    tail.expect(&["first"]).await;
    tail.open().await;
}

#[tokio::test]
async fn a_pipe_in_place_of_the_file_does_not_block() {
    let mut tail = Following::start(|path| {
        let mode = rustix::fs::Mode::from_raw_mode(0o600);
        rustix::fs::mknodat(rustix::fs::CWD, path, rustix::fs::FileType::Fifo, mode, 0).unwrap();
    });
    tail.waiting("not a regular file").await;
}

#[tokio::test]
async fn lines_written_before_and_after_a_rotation_come_once_and_in_order() {
    let mut tail = Following::start(|path| append(path, ""));
    tail.open().await;
    append(&tail.path, &(line("a") + &line("b")));
    tail.rotate(1);
    append(&tail.path, &line("c"));
    tail.expect(&["a", "b", "c"]).await;
    assert_eq!(tail.metrics.rotations.get(), 1);
}

#[tokio::test]
async fn while_the_file_is_gone_the_source_is_not_open_but_late_lines_of_the_old_one_come() {
    let mut tail = Following::start(|path| append(path, ""));
    tail.open().await;
    let mut old = OpenOptions::new().append(true).open(&tail.path).unwrap();
    fs::remove_file(&tail.path).unwrap();
    tail.waiting("does not exist").await;
    old.write_all(line("late").as_bytes()).unwrap();
    tail.expect(&["late"]).await;
    append(&tail.path, &line("new"));
    tail.expect(&["new"]).await;
    tail.open().await;
}

#[tokio::test]
async fn several_rotations_while_down_are_caught_up_in_order_and_nothing_else_is_read() {
    let mut tail = Following::start(|path| append(path, ""));
    tail.open().await;
    append(&tail.path, &line("seen"));
    tail.expect(&["seen"]).await;
    let mut tail = tail
        .restart(|path| {
            let mut day = std::time::SystemTime::UNIX_EPOCH;
            for (number, id) in [(1, "a"), (2, "b"), (3, "c")] {
                append(path, &line(id));
                day += Duration::from_secs(86_400);
                OpenOptions::new().append(true).open(path).unwrap().set_modified(day).unwrap();
                rotate(path, number);
            }
            append(path, &line("d"));
            for other in ["audit-policy.log", "audit.log.1.xz", "audit-2026-01-01T00-00-00.000.log"]
            {
                append(&path.with_file_name(other), &line("wrong"));
            }
            let older = File::open(path.with_file_name("audit-2026-01-01T00-00-00.000.log"));
            older.unwrap().set_modified(std::time::SystemTime::UNIX_EPOCH).unwrap();
        })
        .await;
    tail.expect(&["a", "b", "c", "d"]).await;
    append(&tail.path, &line("e"));
    tail.expect(&["e"]).await;
    assert_eq!(tail.metrics.rotations.get(), 3);
}

#[tokio::test]
async fn a_restart_without_changes_repeats_and_misses_nothing() {
    let mut tail = Following::start(|path| append(path, ""));
    tail.open().await;
    append(&tail.path, &line("a"));
    tail.expect(&["a"]).await;
    let mut tail = tail.restart(|path| append(path, &line("b"))).await;
    tail.expect(&["b"]).await;
    assert_eq!(tail.metrics.truncations.get() + tail.metrics.lost_positions.get(), 0);
}

#[tokio::test]
async fn if_the_file_read_last_is_gone_the_present_one_is_read_and_the_gap_is_counted() {
    let mut tail = Following::start(|path| append(path, ""));
    tail.open().await;
    append(&tail.path, &line("a"));
    tail.expect(&["a"]).await;
    let mut tail = tail
        .restart(|path| {
            // Made before the other goes, so that it cannot get its inode number.
            let new = path.with_extension("new");
            append(&new, &line("b"));
            fs::rename(new, path).unwrap();
        })
        .await;
    tail.expect(&["b"]).await;
    assert_eq!(tail.metrics.lost_positions.get(), 1);
}

#[tokio::test]
async fn a_file_rewritten_while_down_is_read_from_its_beginning() {
    let mut tail = Following::start(|path| append(path, ""));
    tail.open().await;
    append(&tail.path, &line("a"));
    tail.expect(&["a"]).await;
    let mut tail = tail
        .restart(|path| {
            // Longer than before: only the byte before the position tells.
            fs::write(path, line("a-longer-id") + &line("c")).unwrap();
        })
        .await;
    tail.expect(&["a-longer-id", "c"]).await;
    assert_eq!(tail.metrics.truncations.get(), 1);
}

#[tokio::test]
async fn truncation_in_place_starts_over() {
    let mut tail = Following::start(|path| append(path, ""));
    tail.open().await;
    append(&tail.path, &(line("a") + &line("b")));
    tail.expect(&["a", "b"]).await;
    File::options().write(true).open(&tail.path).unwrap().set_len(0).unwrap();
    append(&tail.path, &line("c"));
    tail.expect(&["c"]).await;
    assert_eq!(tail.metrics.truncations.get(), 1);
}

#[tokio::test]
async fn the_hole_that_copytruncate_leaves_is_passed_over() {
    let mut tail = Following::start(|path| append(path, ""));
    tail.open().await;
    // Writes at its own offset, as kube-apiserver does after its first rotation.
    let writer = File::options().write(true).open(&tail.path).unwrap();
    let hole = 300_000;
    writer.write_all_at(&vec![b' '; hole - 1], 0).unwrap();
    writer.write_all_at(b"\n", hole as u64 - 1).unwrap();
    writer.set_len(0).unwrap();
    writer.write_all_at(line("a").as_bytes(), hole as u64).unwrap();
    tail.expect(&["a"]).await;
    append(&tail.path, &line("b"));
    tail.expect(&["b"]).await;
}

#[tokio::test]
async fn a_symlink_that_is_switched_is_followed() {
    let mut tail = Following::start(|path| {
        append(&path.with_file_name("one"), &line("old"));
        append(&path.with_file_name("two"), &line("b"));
        symlink("one", path).unwrap();
    });
    tail.open().await;
    append(&tail.path.with_file_name("one"), &line("a"));
    tail.expect(&["a"]).await;
    let new = tail.path.with_extension("new");
    symlink("two", &new).unwrap();
    fs::rename(new, &tail.path).unwrap();
    tail.expect(&["b"]).await;
    append(&tail.path, &line("c"));
    tail.expect(&["c"]).await;
}

#[tokio::test]
async fn garbage_and_a_line_of_ten_megabytes_cost_no_good_line() {
    let mut tail = Following::start(|path| append(path, ""));
    tail.open().await;
    let body = format!("{{\"items\":[\"{}\"]}}", "x\\\"\\u0026".repeat(1_200_000));
    let big = line("big").replacen('{', &format!("{{\"responseObject\":{body},"), 1);
    assert!(big.len() > 10_000_000);
    let garbage = "y".repeat(3_000_000);
    for text in [
        line("a"),
        "garbage\n\n".into(),
        big,
        "\u{1}\u{2}[[[\n".into(),
        garbage,
        "\n".into(),
        line("b"),
    ] {
        append(&tail.path, &text);
    }
    tail.expect(&["a", "big", "b"]).await;
    let bad = |reason| tail.metrics.bad(reason).get();
    assert_eq!((bad(BadLine::NotJson), bad(BadLine::Blank), bad(BadLine::TooLong)), (2, 1, 1));
    assert_eq!(tail.metrics.shortened.get(), 1);
    assert_eq!(tail.metrics.lines.get(), 7);
}

#[tokio::test]
async fn progress_without_lines_that_matter_is_reported_and_its_newest_time_too() {
    let mut tail = Following::start(|path| append(path, ""));
    tail.batch().await;
    for second in 0..50 {
        append(&tail.path, &other_line(second));
    }
    let end = fs::metadata(&tail.path).unwrap().len();
    let (mut batches, since) = (0, Instant::now());
    let last = loop {
        let batch = tail.batch().await;
        batches += 1;
        if batch.position.as_ref().unwrap().offset == end {
            break batch;
        }
    };
    let allowed = 2 + since.elapsed().as_millis() / REPORT.as_millis();
    assert!(batches <= allowed, "{batches} batches for one burst");
    assert_eq!(last.newest_stage, Micros::parse("2026-11-21T23:51:49Z"));
    let status = tail.until(|status| status.position == last.position).await;
    assert_eq!(status.newest_stage, last.newest_stage);
    assert_eq!(tail.metrics.skipped.get(), 50);
}

#[tokio::test]
async fn a_slow_receiver_makes_the_tail_wait_and_loses_nothing_over_many_rotations() {
    let mut tail = Following::start(|path| append(path, ""));
    tail.open().await;
    let mut ids = Vec::new();
    for number in 0..20 {
        for n in 0..200 {
            ids.push(format!("{number}-{n}"));
            append(&tail.path, &line(ids.last().unwrap()));
        }
        tail.rotate(number);
    }
    append(&tail.path, "");
    tail.expect(&ids.iter().map(String::as_str).collect::<Vec<_>>()).await;
}

#[tokio::test]
async fn a_writer_that_rotates_at_full_speed_loses_and_repeats_nothing() {
    const LINES: usize = 20_000;
    let mut tail = Following::start(|path| append(path, ""));
    tail.open().await;
    let path = tail.path.clone();
    let writer = std::thread::spawn(move || {
        let mut file = OpenOptions::new().append(true).open(&path).unwrap();
        for n in 0..LINES {
            if n % 97 == 96 {
                let name = format!("audit-2026-11-21T20-29-{n:08}.log");
                fs::rename(&path, path.with_file_name(name)).unwrap();
                file = OpenOptions::new().create(true).append(true).open(&path).unwrap();
            }
            file.write_all(line(&n.to_string()).as_bytes()).unwrap();
        }
    });
    let mut next = 0;
    let mut seen = HashSet::new();
    while next < LINES {
        let lines = tail.batch().await.lines;
        for id in ids_of(&lines, &tail.metrics) {
            assert_eq!(id, next.to_string());
            assert!(seen.insert(next));
            next += 1;
        }
    }
    writer.join().unwrap();
}

#[tokio::test]
async fn the_task_ends_when_nobody_listens() {
    let tail = Following::start(|path| append(path, ""));
    drop(tail.batches);
    timeout(DEADLINE, tail.task).await.expect("the task did not end").unwrap();
}
