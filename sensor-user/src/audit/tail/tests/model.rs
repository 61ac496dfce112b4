//! Random histories of a log file, with crashes of the reader, against what a writer knows it wrote:
//! every record exactly once, in order.
//!
//! Left out is what no reader of positions can see: a file that was truncated and has grown past
//! the old position with the same bytes before it.

use std::{
    fs::{self, File, OpenOptions},
    os::unix::fs::FileExt,
    path::PathBuf,
    time::{Duration, SystemTime},
};

use proptest::prelude::*;
use tempfile::TempDir;
use tokio::sync::{mpsc, watch};

use super::{
    super::{Tail, TailConfig},
    line, other_line,
};
use crate::audit::{AuditBatch, AuditMetrics, SourceStatus, checkpoint::Position};

#[derive(Clone, Debug)]
enum Action {
    /// So many lines, and of the last one only a part at first.
    Write { lines: usize, held_back: usize },
    /// Renamed; the new file comes with the next write, or at once.
    Rotate { create: bool },
    /// Truncated when it is read to its end, written on at the beginning or at the old offset.
    CopyTruncate { hole: bool },
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
        1 => any::<bool>().prop_map(|hole| Action::CopyTruncate { hole }),
        3 => Just(Action::Read),
        2 => (0usize..4).prop_map(|batches| Action::Crash { batches }),
    ]
}

struct World {
    dir: TempDir,
    chunk: usize,
    file: Option<File>,
    offset: u64,
    held_back: Vec<u8>,
    rotations: u32,
    written: Vec<String>,
    lines: usize,
    reader: Option<(Tail, mpsc::Receiver<AuditBatch>)>,
    position: Option<Position>,
    read: Vec<String>,
}

impl World {
    fn path(&self) -> PathBuf {
        self.dir.path().join("audit.log")
    }

    fn put(&mut self, bytes: &[u8]) {
        if self.file.is_none() {
            self.offset = 0;
        }
        let path = self.path();
        let file = self.file.get_or_insert_with(|| {
            OpenOptions::new().write(true).create_new(true).open(path).unwrap()
        });
        file.write_all_at(bytes, self.offset).unwrap();
        self.offset += bytes.len() as u64;
    }

    /// A writer ends its line before anything happens to its file.
    fn complete(&mut self) {
        let rest = std::mem::take(&mut self.held_back);
        if !rest.is_empty() {
            self.put(&rest);
        }
    }

    fn reader(&mut self, capacity: usize) -> (Tail, mpsc::Receiver<AuditBatch>) {
        self.reader.take().unwrap_or_else(|| {
            let (sender, receiver) = mpsc::channel(capacity);
            let config = TailConfig { path: self.path(), source: 0, start: self.position };
            let status = watch::channel(SourceStatus::default()).0;
            let mut tail = Tail::new(config, sender, status, AuditMetrics::default());
            tail.buffer = vec![0; self.chunk].into_boxed_slice();
            (tail, receiver)
        })
    }

    fn take(&mut self, batch: AuditBatch) {
        self.position = batch.position;
        self.read.extend(batch.records.into_iter().map(|read| read.record.audit_id));
    }

    async fn look(&mut self) {
        let (mut tail, mut receiver) = self.reader(1);
        {
            let mut check = std::pin::pin!(tail.check());
            loop {
                tokio::select! {
                    biased;
                    batch = receiver.recv() => self.take(batch.unwrap()),
                    done = &mut check => break done.unwrap(),
                }
            }
        }
        while let Ok(batch) = receiver.try_recv() {
            self.take(batch);
        }
        self.reader = Some((tail, receiver));
    }

    async fn crash(&mut self, batches: usize) {
        let (mut tail, mut receiver) = self.reader(1);
        let mut check = std::pin::pin!(tail.check());
        let mut done = false;
        for _ in 0..batches {
            tokio::select! {
                biased;
                batch = receiver.recv() => self.take(batch.unwrap()),
                _ = &mut check, if !done => done = true,
            }
            if done {
                break;
            }
        }
    }

    async fn act(&mut self, action: Action) {
        match action {
            Action::Write { lines, held_back } => {
                self.complete();
                let mut text = String::new();
                for _ in 0..lines {
                    self.lines += 1;
                    if self.lines.is_multiple_of(3) {
                        text.push_str(&other_line(0));
                    } else {
                        self.written.push(self.lines.to_string());
                        text.push_str(&line(&self.lines.to_string()));
                    }
                }
                let (now, later) = text.as_bytes().split_at(text.len() - held_back.min(text.len()));
                self.put(now);
                self.held_back = later.to_vec();
            }
            Action::Rotate { create } => {
                self.complete();
                if let Some(file) = self.file.take() {
                    self.rotations += 1;
                    // As far apart as real rotations are.
                    let day = Duration::from_secs(86_400) * self.rotations;
                    file.set_modified(SystemTime::UNIX_EPOCH + day).unwrap();
                    let name = format!("audit-2026-11-21T20-29-{:04}.log", self.rotations);
                    fs::rename(self.path(), self.path().with_file_name(name)).unwrap();
                }
                if create {
                    self.put(b"");
                }
            }
            Action::CopyTruncate { hole } => {
                self.complete();
                self.look().await;
                if let Some(file) = &self.file {
                    file.set_len(0).unwrap();
                    if !hole {
                        self.offset = 0;
                        self.look().await;
                    }
                }
            }
            Action::Read => self.look().await,
            Action::Crash { batches } => self.crash(batches).await,
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn every_line_comes_exactly_once_whatever_happens_to_the_file_and_the_reader(
        actions in prop::collection::vec(action(), 1..40),
        chunk in 2usize..2000,
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let world = runtime.block_on(async {
            let mut world = World {
                dir: tempfile::tempdir().unwrap(),
                chunk,
                file: None,
                offset: 0,
                held_back: Vec::new(),
                rotations: 0,
                written: Vec::new(),
                lines: 0,
                reader: None,
                position: None,
                read: Vec::new(),
            };
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
        prop_assert_eq!(world.read, world.written);
    }
}
