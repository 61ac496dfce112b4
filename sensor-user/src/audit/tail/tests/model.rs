//! Random histories of a log file, with crashes of the reader, against what a writer knows it wrote:
//! every record exactly once, in order, but for those that a truncation took away before they were
//! read, which is counted.
//!
//! What no reader of positions can count is a truncation of a file of which it had read nothing.

use std::{
    collections::HashSet,
    fs::{self, File, OpenOptions},
    io::Write as _,
    os::unix::fs::{FileExt, MetadataExt},
    path::PathBuf,
    time::{Duration, SystemTime},
};

use flate2::{Compression, write::GzEncoder};
use proptest::prelude::*;
use tempfile::TempDir;
use tokio::sync::{mpsc, watch};

use super::{
    super::{Tail, TailConfig, open::OpenFile},
    ids_of, line, other_line,
};
use crate::{
    audit::{AuditBatch, AuditMetrics, SourceStatus, checkpoint::Position},
    fingerprint::first_line,
};

#[derive(Clone, Debug)]
enum Action {
    /// So many lines, and of the last one only a part at first.
    Write { lines: usize, held_back: usize },
    /// Renamed; the new file comes with the next write, or at once.
    Rotate { create: bool },
    /// The rotated files are compressed, by a program that keeps their times or one that does not.
    Compress { keep_times: bool },
    /// Truncated, perhaps after it was copied; written on at the beginning or at the old offset.
    Truncate { copy: bool, hole: bool },
    /// The reader looks.
    Read,
    /// The reader looks, and dies when so many batches were taken.
    Crash { batches: usize },
}

fn action() -> impl Strategy<Value = Action> {
    prop_oneof![
        6 => (0usize..6, prop_oneof![Just(0), 0usize..300])
            .prop_map(|(lines, held_back)| Action::Write { lines, held_back }),
        2 => any::<bool>().prop_map(|create| Action::Rotate { create }),
        1 => any::<bool>().prop_map(|keep_times| Action::Compress { keep_times }),
        1 => (any::<bool>(), any::<bool>())
            .prop_map(|(copy, hole)| Action::Truncate { copy, hole }),
        3 => Just(Action::Read),
        2 => (0usize..4).prop_map(|batches| Action::Crash { batches }),
    ]
}

struct World {
    dir: TempDir,
    chunk: usize,
    /// Seconds; no two things happen at the same time.
    now: u64,
    file: Option<File>,
    offset: u64,
    held_back: Vec<u8>,
    /// Ids of the records in the live file.
    live: Vec<String>,
    rotated: Vec<PathBuf>,
    copies: usize,
    written: Vec<String>,
    lines: usize,
    /// Ids of records that a truncation may have taken away unread.
    taken: HashSet<String>,
    /// Those of them that were in content of which the reader knew nothing.
    unknown: HashSet<String>,
    reader: Option<(Tail, mpsc::Receiver<AuditBatch>)>,
    position: Option<Position>,
    metrics: AuditMetrics,
    read: Vec<String>,
}

impl World {
    fn new(chunk: usize) -> Self {
        Self {
            dir: tempfile::tempdir().unwrap(),
            chunk,
            now: 1_700_000_000,
            file: None,
            offset: 0,
            held_back: Vec::new(),
            live: Vec::new(),
            rotated: Vec::new(),
            copies: 0,
            written: Vec::new(),
            lines: 0,
            taken: HashSet::new(),
            unknown: HashSet::new(),
            reader: None,
            position: None,
            metrics: AuditMetrics::default(),
            read: Vec::new(),
        }
    }

    fn path(&self) -> PathBuf {
        self.dir.path().join("audit.log")
    }

    fn time(&mut self) -> SystemTime {
        self.now += 1;
        SystemTime::UNIX_EPOCH + Duration::from_secs(self.now)
    }

    fn put(&mut self, bytes: &[u8]) {
        if self.file.is_none() {
            self.offset = 0;
        }
        let (path, time) = (self.path(), self.time());
        let file = self.file.get_or_insert_with(|| {
            OpenOptions::new().write(true).create_new(true).open(path).unwrap()
        });
        file.write_all_at(bytes, self.offset).unwrap();
        file.set_modified(time).unwrap();
        self.offset += bytes.len() as u64;
    }

    /// A writer ends its line before anything happens to its file.
    fn complete(&mut self) {
        let rest = std::mem::take(&mut self.held_back);
        if !rest.is_empty() {
            self.put(&rest);
        }
    }

    fn write(&mut self, lines: usize, held_back: usize) {
        self.complete();
        let mut text = String::new();
        for _ in 0..lines {
            self.lines += 1;
            let id = self.lines.to_string();
            if self.lines.is_multiple_of(3) {
                // No two lines are the same.
                text.push_str(&other_line(0).replacen("Event", &format!("Event{id}"), 1));
            } else {
                text.push_str(&line(&id));
                self.written.push(id.clone());
                self.live.push(id);
            }
        }
        let (now, later) = text.as_bytes().split_at(text.len() - held_back.min(text.len()));
        self.put(now);
        self.held_back = later.to_vec();
    }

    fn rotate(&mut self) {
        self.complete();
        if self.file.take().is_some() {
            let time = jiff::Timestamp::try_from(self.time()).unwrap();
            let name = time.strftime("audit-%Y-%m-%dT%H-%M-%S.000.log").to_string();
            let to = self.path().with_file_name(name);
            fs::rename(self.path(), &to).unwrap();
            self.rotated.push(to);
            self.live.clear();
        }
    }

    fn compress(&mut self, keep_times: bool) {
        for from in std::mem::take(&mut self.rotated) {
            let to = from.with_added_extension("gz");
            let file = File::create(&to).unwrap();
            let mut encoder = GzEncoder::new(&file, Compression::fast());
            encoder.write_all(&fs::read(&from).unwrap()).unwrap();
            encoder.finish().unwrap();
            let own = fs::metadata(&from).unwrap().modified().unwrap();
            let later = self.time();
            file.set_modified(if keep_times { own } else { later }).unwrap();
            fs::remove_file(from).unwrap();
        }
    }

    fn truncate(&mut self, copy: bool, hole: bool) {
        self.complete();
        let inode = self.file.as_ref().map(|file| file.metadata().unwrap().ino());
        let Some(inode) = inode else { return };
        // What the reader knows of this content, and what is left of that if it dies now.
        let begins = first_line(File::open(self.path()).unwrap()).unwrap();
        let reader = self.reader.as_mut().and_then(|(tail, _)| tail.open.as_mut());
        let known = [reader.map(OpenFile::position), self.position.clone()];
        let here = |known: &Position| known.inode == inode;
        let in_it = |known: &Position| begins.is_some() && known.first_line == begins;
        let places = || known.iter().flatten();
        // Who is not here yet will find the copy among the rotated files, who is knows it by its
        // first line.
        if !copy || places().any(|known| here(known) && !in_it(known)) {
            self.taken.extend(self.live.iter().cloned());
            if !places().all(|known| here(known) && in_it(known)) {
                self.unknown.extend(self.live.iter().cloned());
            }
        }
        let time = self.time();
        if copy {
            self.copies += 1;
            let to = self.path().with_added_extension(self.copies.to_string());
            fs::copy(self.path(), &to).unwrap();
            File::options().append(true).open(to).unwrap().set_modified(time).unwrap();
        }
        let time = self.time();
        if let Some(file) = &self.file {
            file.set_len(0).unwrap();
            file.set_modified(time).unwrap();
        }
        if !hole {
            self.offset = 0;
        }
        self.live.clear();
    }

    fn reader(&mut self) -> (Tail, mpsc::Receiver<AuditBatch>) {
        self.reader.take().unwrap_or_else(|| {
            let (sender, receiver) = mpsc::channel(1);
            let config = TailConfig { path: self.path(), source: 0, start: self.position.clone() };
            let status = watch::channel(SourceStatus::default()).0;
            let mut tail = Tail::new(config, sender, status, self.metrics.clone());
            tail.buffer = vec![0; self.chunk].into_boxed_slice();
            (tail, receiver)
        })
    }

    fn take(&mut self, batch: &AuditBatch) {
        self.position.clone_from(&batch.position);
        self.read.extend(ids_of(&batch.lines, &self.metrics));
    }

    async fn look(&mut self) {
        let (mut tail, mut receiver) = self.reader();
        {
            let mut check = std::pin::pin!(tail.check());
            loop {
                tokio::select! {
                    biased;
                    batch = receiver.recv() => self.take(&batch.unwrap()),
                    done = &mut check => break done.unwrap(),
                }
            }
        }
        while let Ok(batch) = receiver.try_recv() {
            self.take(&batch);
        }
        self.reader = Some((tail, receiver));
    }

    async fn crash(&mut self, batches: usize) {
        let (mut tail, mut receiver) = self.reader();
        let mut check = std::pin::pin!(tail.check());
        let mut done = false;
        for _ in 0..batches {
            tokio::select! {
                biased;
                batch = receiver.recv() => self.take(&batch.unwrap()),
                _ = &mut check, if !done => done = true,
            }
            if done {
                break;
            }
        }
    }

    async fn act(&mut self, action: Action) {
        match action {
            Action::Write { lines, held_back } => self.write(lines, held_back),
            Action::Rotate { create } => {
                self.rotate();
                if create {
                    self.put(b"");
                }
            }
            Action::Compress { keep_times } => self.compress(keep_times),
            Action::Truncate { copy, hole } => self.truncate(copy, hole),
            Action::Read => self.look().await,
            Action::Crash { batches } => self.crash(batches).await,
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn every_line_comes_exactly_once_whatever_happens_to_the_file_and_the_reader(
        actions in prop::collection::vec(action(), 1..40),
        // Half of it at most is for what is compared: as much as in operation.
        chunk in 1024usize..3000,
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let truncated = actions.iter().any(|action| matches!(action, Action::Truncate { .. }));
        let world = runtime.block_on(async {
            let mut world = World::new(chunk);
            world.put(b"");
            world.look().await;
            for action in actions {
                world.act(action).await;
            }
            world.complete();
            if world.file.is_none() {
                world.put(b"");
            }
            world.look().await;
            world
        });
        let World { read, written, taken, unknown, metrics, .. } = world;
        let seen: HashSet<_> = read.iter().collect();
        let missing: Vec<_> = written.iter().filter(|id| !seen.contains(id)).collect();
        prop_assert!(missing.iter().all(|id| taken.contains(*id)), "{missing:?} were not read");
        let expected: Vec<_> = written.iter().filter(|id| seen.contains(id)).collect();
        prop_assert_eq!(read.iter().collect::<Vec<_>>(), expected);
        let (truncations, lost) = (metrics.truncations.get(), metrics.lost_positions.get());
        let counted = truncations + lost > 0 || missing.iter().all(|id| unknown.contains(*id));
        prop_assert!(counted, "{missing:?} are not counted");
        prop_assert!(truncations == 0 || truncated);
    }
}
