//! Audit events from standard input: what a cloud's command line, an API server or a shipper writes into a
//! pipe. Every complete line is handed on. When the engine is slow, the pipe waits, and with it its writer:
//! nothing is dropped.
//!
//! There is no place to go on from: what was read is not there any more, and the writer alone knows how to
//! write it again. When the input ends it has ended for good, which is a state like that of a log that
//! cannot be read. Spawned by the agent; ends when nobody takes batches.

use std::{
    io,
    os::fd::{AsFd, BorrowedFd},
    thread,
};

use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    io::{Errno, read},
};
use tokio::sync::{mpsc, watch};
use tracing::{info, warn};

use super::{
    AuditBatch, AuditMetrics, ReadLine, SourceState, SourceStatus, lines::Lines, sieve::Sieve,
    tail::boot_clock_ns,
};

/// How it is called.
pub const NAME: &str = "standard input";
/// Bytes read at once. Bounds the lines of a batch.
const CHUNK: usize = 64 << 10;
/// How long nothing may come before that is said.
const IDLE: Timespec = Timespec { tv_sec: 0, tv_nsec: 500_000_000 };

/// What a look at the input brings.
#[derive(Debug)]
enum Found {
    /// Bytes.
    Bytes(Vec<u8>),
    /// Nothing: all that was there at this time of the boot clock was read.
    Nothing(u64),
    /// No more, ever.
    End(io::Result<()>),
}

/// Follows standard input until the receiver of its batches is dropped.
pub async fn follow(
    source: usize,
    sender: mpsc::Sender<AuditBatch>,
    status: watch::Sender<SourceStatus>,
    metrics: AuditMetrics,
) {
    let (found, looks) = mpsc::channel(1);
    // No task: a read that waits would keep the agent from ending.
    let reader = thread::Builder::new().name("stdin".to_owned());
    if let Err(error) = reader.spawn(move || read_all(io::stdin().as_fd(), &found)) {
        status.send_modify(|it| {
            it.state = SourceState::Waiting(format!("{NAME} cannot be read: {error}"));
        });
        return sender.closed().await;
    }
    info!("audit events are read from standard input");
    Stdin { source, sender, status, sieve: Sieve::new(NAME.to_owned(), metrics) }
        .take_all(looks)
        .await;
}

/// Reads until the end, or until nobody wants to know any more.
fn read_all(input: BorrowedFd<'_>, found: &mpsc::Sender<Found>) {
    loop {
        let look = look(input).unwrap_or_else(|error| Found::End(Err(error)));
        let ends = matches!(look, Found::End(_));
        if found.blocking_send(look).is_err() || ends {
            return;
        }
    }
}

fn look(input: BorrowedFd<'_>) -> io::Result<Found> {
    let began = boot_clock_ns();
    let mut ready = [PollFd::new(&input, PollFlags::IN)];
    match poll(&mut ready, Some(&IDLE)) {
        Ok(0) => return Ok(Found::Nothing(began)),
        Ok(_) | Err(Errno::INTR) => {}
        Err(error) => return Err(error.into()),
    }
    let mut chunk = vec![0; CHUNK];
    loop {
        match read(input, &mut chunk) {
            Ok(0) => return Ok(Found::End(Ok(()))),
            Ok(length) => {
                chunk.truncate(length);
                return Ok(Found::Bytes(chunk));
            }
            Err(Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
}

struct Stdin {
    source: usize,
    sender: mpsc::Sender<AuditBatch>,
    status: watch::Sender<SourceStatus>,
    sieve: Sieve,
}

impl Stdin {
    /// Hands on what is found.
    async fn take_all(mut self, mut looks: mpsc::Receiver<Found>) {
        self.set_state(SourceState::Open);
        let mut lines = Lines::new(0);
        while let Some(look) = looks.recv().await {
            let taken = match look {
                Found::Bytes(chunk) => {
                    let kept = self.sieve.take(&mut lines, &chunk);
                    self.send(kept).await
                }
                Found::Nothing(at_boot_ns) => {
                    self.status.send_if_modified(|status| {
                        status.complete_at_boot_ns = Some(at_boot_ns);
                        false
                    });
                    !self.sender.is_closed()
                }
                Found::End(result) => {
                    let last = self.sieve.finish(&mut lines);
                    let sent = self.send(last.into_iter().collect()).await;
                    self.end(result);
                    sent
                }
            };
            if !taken {
                return;
            }
        }
        self.sender.closed().await;
    }

    /// Waits while the queue is full. Whether anybody takes it.
    async fn send(&self, lines: Vec<ReadLine>) -> bool {
        let newest_stage = self.sieve.newest_stage();
        let batch = AuditBatch {
            source: self.source,
            lines,
            records: Vec::new(),
            newest_stage,
            position: None,
            acknowledge: None,
        };
        let sent = self.sender.send(batch).await.is_ok();
        self.status.send_modify(|status| status.newest_stage = newest_stage);
        sent
    }

    fn end(&self, result: io::Result<()>) {
        let why = match result {
            Ok(()) => "has ended: whoever wrote audit events to it is gone".to_owned(),
            Err(error) => format!("cannot be read: {error}"),
        };
        warn!("standard input {why}");
        let what = "start this agent again, with its writer";
        self.set_state(SourceState::Waiting(format!("{NAME} {why}; {what}")));
    }

    fn set_state(&self, state: SourceState) {
        self.status.send_modify(|status| status.state = state);
    }
}

#[cfg(test)]
mod tests;
