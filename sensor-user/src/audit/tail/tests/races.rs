//! Moments that a real writer hits by chance, brought about on purpose: something happens to the
//! file while the tailer is in the middle of a look, or between two.

use std::{fs, future::poll_fn, io::Write as _, path::Path, pin::pin, task::Poll};

use flate2::{Compression, write::GzEncoder};
use tokio::sync::{mpsc, watch};

use super::{
    super::{Tail, TailConfig},
    append, ids_of, line, rotate,
};
use crate::audit::{AuditBatch, AuditMetrics, SourceStatus};

fn tail(path: &Path, capacity: usize) -> (Tail, mpsc::Receiver<AuditBatch>) {
    let (sender, receiver) = mpsc::channel(capacity);
    let config = TailConfig { path: path.to_owned(), source: 0, start: None };
    let status = watch::channel(SourceStatus::default()).0;
    (Tail::new(config, sender, status, AuditMetrics::default()), receiver)
}

fn all(receiver: &mut mpsc::Receiver<AuditBatch>) -> Vec<String> {
    let batches = std::iter::from_fn(|| receiver.try_recv().ok());
    ids_of(&batches.flat_map(|batch| batch.lines).collect::<Vec<_>>(), &AuditMetrics::default())
}

#[tokio::test]
async fn a_line_written_between_the_end_of_the_file_and_its_rotation_comes() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("audit.log");
    append(&path, "");
    let (mut tail, mut receiver) = tail(&path, 1);
    tail.check().await.unwrap();
    // The first position fills the channel: the look stops at its record, the file read to its end.
    append(&path, &line("a"));
    let mut found = Vec::new();
    {
        let mut check = pin!(tail.check());
        poll_fn(|context| {
            assert!(check.as_mut().poll(context).is_pending());
            Poll::Ready(())
        })
        .await;
        append(&path, &line("b"));
        rotate(&path, 1);
        append(&path, &line("c"));
        loop {
            tokio::select! {
                batch = receiver.recv() => found.extend(batch.unwrap().lines),
                done = &mut check => break done.unwrap(),
            }
        }
    }
    let mut found = ids_of(&found, &AuditMetrics::default());
    found.extend(all(&mut receiver));
    assert_eq!(found, ["a", "b", "c"]);
}

#[tokio::test]
async fn a_file_that_was_truncated_and_has_outgrown_its_old_length_is_read_from_its_beginning() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("audit.log");
    append(&path, "");
    let (mut tail, mut receiver) = tail(&path, 10);
    tail.check().await.unwrap();
    append(&path, &line("a"));
    tail.read().await.unwrap();
    fs::write(&path, line("a-longer-id") + &line("b")).unwrap();
    tail.read().await.unwrap();
    assert_eq!(all(&mut receiver), ["a", "a-longer-id", "b"]);
    assert_eq!(tail.metrics.truncations.get(), 1);
}

#[tokio::test]
async fn a_file_that_was_truncated_and_has_its_old_length_again_is_read_from_its_beginning() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("audit.log");
    append(&path, "");
    let (mut tail, mut receiver) = tail(&path, 10);
    tail.check().await.unwrap();
    append(&path, &line("a"));
    tail.read().await.unwrap();
    fs::write(&path, line("b")).unwrap();
    tail.read().await.unwrap();
    assert_eq!(all(&mut receiver), ["a", "b"]);
    assert_eq!(tail.metrics.truncations.get(), 1);
}

#[tokio::test]
async fn a_file_that_is_compressed_before_it_is_left_behind_is_not_read_again() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("audit.log");
    append(&path, "");
    let (mut tail, mut receiver) = tail(&path, 10);
    tail.check().await.unwrap();
    append(&path, &line("a"));
    tail.check().await.unwrap();
    append(&path, &line("b"));
    let mut compressed = GzEncoder::new(Vec::new(), Compression::fast());
    compressed.write_all(&fs::read(&path).unwrap()).unwrap();
    let rotated = path.with_file_name("audit-2999-01-01T00-00-00.000.log.gz");
    fs::write(rotated, compressed.finish().unwrap()).unwrap();
    fs::rename(&path, path.with_extension("gone")).unwrap();
    fs::remove_file(path.with_extension("gone")).unwrap();
    append(&path, &line("c"));
    tail.check().await.unwrap();
    assert_eq!(all(&mut receiver), ["a", "b", "c"]);
}

#[tokio::test]
async fn lines_that_were_copied_before_they_were_truncated_away_are_read_from_the_copy() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("audit.log");
    append(&path, "");
    let (mut tail, mut receiver) = tail(&path, 10);
    tail.check().await.unwrap();
    let b = line("b");
    let (half, rest) = b.split_at(100);
    append(&path, &(line("a") + half));
    tail.check().await.unwrap();
    append(&path, &(rest.to_owned() + &line("c")));
    fs::copy(&path, path.with_added_extension("1")).unwrap();
    fs::write(&path, line("d")).unwrap();
    tail.check().await.unwrap();
    assert_eq!(all(&mut receiver), ["a", "b", "c", "d"]);
    assert_eq!(tail.metrics.truncations.get(), 1);
}

#[tokio::test]
async fn an_unterminated_line_comes_when_its_file_is_left_behind() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("audit.log");
    append(&path, "");
    let (mut tail, mut receiver) = tail(&path, 10);
    tail.check().await.unwrap();
    append(&path, line("a").trim_end());
    tail.check().await.unwrap();
    assert_eq!(all(&mut receiver), [""; 0]);
    rotate(&path, 1);
    append(&path, &line("b"));
    tail.check().await.unwrap();
    assert_eq!(all(&mut receiver), ["a", "b"]);
}
