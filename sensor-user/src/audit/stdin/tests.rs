//! Standard input as the reader of a pipe sees it.

use std::{
    fs::File,
    io::{Write, pipe},
    os::fd::OwnedFd,
    time::Duration,
};

use tokio::{task::JoinHandle, time::timeout};

use super::*;

/// For what must come.
const DEADLINE: Duration = Duration::from_secs(60);

struct Following {
    writer: Option<File>,
    batches: mpsc::Receiver<AuditBatch>,
    status: watch::Receiver<SourceStatus>,
    metrics: AuditMetrics,
    task: JoinHandle<()>,
}

impl Following {
    fn start() -> Self {
        let (reader, writer) = pipe().unwrap();
        let (sender, batches) = mpsc::channel(1);
        let (status_sender, status) = watch::channel(SourceStatus::default());
        let (found, looks) = mpsc::channel(1);
        thread::spawn(move || read_all(reader.as_fd(), &found));
        let metrics = AuditMetrics::default();
        let sieve = Sieve::new(NAME.to_owned(), metrics.clone());
        let stdin = Stdin { source: 3, sender, status: status_sender, sieve };
        let task = tokio::spawn(stdin.take_all(looks));
        let writer = Some(File::from(OwnedFd::from(writer)));
        Self { writer, batches, status, metrics, task }
    }

    /// Waits for so many lines that matter.
    async fn lines(&mut self, count: usize) -> Vec<String> {
        let mut lines = Vec::new();
        while lines.len() < count {
            let batch = timeout(DEADLINE, self.batches.recv()).await.expect("nothing came");
            let batch = batch.unwrap();
            assert!((batch.source, batch.position) == (3, None));
            lines.extend(batch.lines.iter().map(|it| String::from_utf8_lossy(&it.line).into()));
        }
        lines
    }

    async fn status(&mut self, is_so: impl FnMut(&SourceStatus) -> bool) -> SourceStatus {
        let status = timeout(DEADLINE, self.status.wait_for(is_so)).await.expect("it is not so");
        status.unwrap().clone()
    }
}

fn line(number: u32) -> String {
    format!(
        r#"{{"kind":"Event","auditID":"{number}","user":{{"extra":{{"authentication.kubernetes.io/pod-uid":["u"]}}}}}}"#
    )
}

#[tokio::test]
async fn lines_come_as_they_are_written_and_the_last_one_without_its_end() {
    let mut following = Following::start();
    following.status(SourceStatus::is_open).await;
    let mut writer = following.writer.take().unwrap();
    for part in [&line(1)[..9], &line(1)[9..], "\nI1125 12:55:19 started\n", &line(2), "\n"] {
        writer.write_all(part.as_bytes()).unwrap();
    }
    assert_eq!(following.lines(2).await, [line(1), line(2)]);
    // All that was written before has been taken by then.
    let taken = boot_clock_ns();
    while following.status.borrow().complete_at_boot_ns.is_none_or(|at| at < taken) {
        timeout(DEADLINE, async { tokio::task::yield_now().await }).await.unwrap();
    }
    writer.write_all(line(3).as_bytes()).unwrap();
    drop(writer);
    assert_eq!(following.lines(1).await, [line(3)]);
    let ended = following.status(|status| !status.is_open()).await;
    let SourceState::Waiting(why) = ended.state else { panic!("{ended:?}") };
    assert!(why.contains("has ended") && why.contains("start this agent again"), "{why}");
    assert_eq!(following.metrics.bad(crate::audit::BadLine::NotJson).get(), 1);
    // It has ended for good, and its task waits for the agent's end.
    drop(following.batches);
    timeout(DEADLINE, following.task).await.unwrap().unwrap();
}

#[tokio::test]
async fn while_nobody_takes_batches_the_pipe_waits_and_nothing_is_dropped() {
    let mut following = Following::start();
    let writer = following.writer.take().unwrap();
    rustix::io::ioctl_fionbio(&writer, true).unwrap();
    let mut written = 0;
    let mut full = 0;
    // Once it has taken no more for many turns, the way is full to its beginning.
    while full < 1_000 {
        match rustix::io::write(&writer, format!("{}\n", line(written)).as_bytes()) {
            Ok(length) => {
                assert_eq!(length, line(written).len() + 1, "shorter than a pipe takes at once");
                (written, full) = (written + 1, 0);
            }
            Err(Errno::AGAIN) => full += 1,
            Err(error) => panic!("{error}"),
        }
        tokio::task::yield_now().await;
    }
    drop(writer);
    let expected: Vec<_> = (0..written).map(line).collect();
    assert_eq!(following.lines(expected.len()).await, expected);
}

#[tokio::test]
async fn an_agent_that_ends_waits_for_no_reader() {
    let following = Following::start();
    drop(following.batches);
    timeout(DEADLINE, following.task).await.unwrap().unwrap();
    drop(following.writer);
}
