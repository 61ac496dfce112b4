//! One POST: body → items → records → queue → answer.
//!
//! A post is answered with 200 when the engine says that its events are safe, as it moves a file's
//! checkpoint only then: what the agent loses by being killed, the API server still has. Bad content
//! is counted and answered with 200 as well, for it would be as bad when it is sent again. Only when
//! too many posts wait for the engine, they are told to come later. Called by `connections`, for
//! clients that have proven who they are.

use std::{
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use axum::body::{Body, BodyDataStream};
use futures_util::StreamExt as _;
use http::{HeaderValue, Request, header};
use tokio::{
    sync::{Semaphore, mpsc, oneshot, watch},
    time::timeout,
};
use tracing::warn;

use self::body::Reader;
use super::{
    metrics::{Answer, BadBody, WebhookMetrics},
    recent::Recent,
};
use crate::audit::{AuditBatch, ReadRecord, SourceStatus, sieve::Sieve};

mod body;

/// So many bad bodies are logged, the rest is only counted.
const LOGGED_BAD_BODIES: u64 = 5;

/// How much one post may take.
#[derive(Clone, Copy, Debug)]
pub(super) struct Limits {
    /// Bytes of a body, unpacked.
    pub(super) body: u64,
    /// Posts that are being read or wait for the engine. Bounds what they hold, and the engine's
    /// debt of answers.
    pub(super) in_hand: usize,
    /// From one piece of a body to the next.
    pub(super) pause: Duration,
    /// For all of it: less than the 30 s after which the API server gives up, or its place would be
    /// held for nobody.
    pub(super) answer: Duration,
}

impl Limits {
    pub(super) fn of_body(body: u64) -> Self {
        Self { body, in_hand: 32, pause: Duration::from_secs(5), answer: Duration::from_secs(25) }
    }
}

/// Takes the posts of all connections.
#[derive(Debug)]
pub(super) struct Posts {
    source: usize,
    limits: Limits,
    places: Semaphore,
    sender: mpsc::Sender<AuditBatch>,
    sieve: Mutex<Sieve>,
    recent: Mutex<Recent>,
    logged_bad_bodies: AtomicU64,
    status: watch::Sender<SourceStatus>,
    metrics: WebhookMetrics,
}

impl Posts {
    pub(super) fn new(
        source: usize,
        limits: Limits,
        sender: mpsc::Sender<AuditBatch>,
        sieve: Sieve,
        status: watch::Sender<SourceStatus>,
        metrics: WebhookMetrics,
    ) -> Self {
        Self {
            source,
            limits,
            places: Semaphore::new(limits.in_hand),
            sender,
            sieve: Mutex::new(sieve),
            recent: Mutex::default(),
            logged_bad_bodies: AtomicU64::new(0),
            status,
            metrics,
        }
    }

    /// Takes one, and tells what to answer.
    pub(super) async fn take(&self, request: Request<Body>) -> Answer {
        let encoding = request.headers().get(header::CONTENT_ENCODING).map(HeaderValue::as_bytes);
        // Names of encodings in any case, and gzip's older one: RFC 9110, 8.4.1.
        let gzip = match encoding.unwrap_or(b"identity").to_ascii_lowercase().as_slice() {
            b"identity" => Ok(false),
            b"gzip" | b"x-gzip" => Ok(true),
            _ => Err(BadBody::BadEncoding),
        };
        let frames =
            Frames { body: request.into_body().into_data_stream(), pause: self.limits.pause };
        let work = async {
            let Ok(_place) = self.places.try_acquire() else {
                // An answer in the middle of a body may be lost with the connection.
                return frames.drain().await.err().unwrap_or(Answer::Busy);
            };
            let read = self.read(frames, Reader::new(gzip, self.limits.body)).await;
            read.err().unwrap_or(Answer::Taken)
        };
        timeout(self.limits.answer, work).await.unwrap_or(Answer::Busy)
    }

    async fn read(&self, mut frames: Frames, mut reader: Reader) -> Result<(), Answer> {
        let mut safe = Vec::new();
        while let Some(frame) = frames.next().await? {
            for piece in frame.chunks(reader.piece()) {
                let records = reader.push(piece, &self.sieve);
                if !records.is_empty() {
                    safe.push(self.hand_on(records).await?);
                }
            }
        }
        let (records, fault) = reader.finish();
        if let Some(reason) = fault {
            self.metrics.bad_bodies(reason).inc();
            if self.logged_bad_bodies.fetch_add(1, Ordering::Relaxed) < LOGGED_BAD_BODIES {
                warn!(%reason, "the body of an audit webhook request was not usable to its end");
            }
        }
        safe.push(self.hand_on(records).await?);
        for safe in safe {
            safe.await.map_err(|_| Answer::Busy)?;
        }
        Ok(())
    }

    /// Waits for a place in the queue. An event counts as taken from when it is in: there it comes
    /// before whatever comes again, and so does its answer. Returns who tells when all of it is safe.
    async fn hand_on(&self, mut records: Vec<ReadRecord>) -> Result<oneshot::Receiver<()>, Answer> {
        let place = self.sender.reserve().await.map_err(|_| Answer::Busy)?;
        let mut recent = lock(&self.recent);
        for read in &mut records {
            read.is_repeated = !recent.is_new(read);
        }
        drop(recent);
        let repeated = records.iter().filter(|read| read.is_repeated).count();
        self.metrics.duplicates.inc_by(repeated as u64);
        let (acknowledge, safe) = oneshot::channel();
        let newest_stage = lock(&self.sieve).newest_stage();
        place.send(AuditBatch {
            source: self.source,
            lines: Vec::new(),
            records,
            newest_stage,
            position: None,
            acknowledge: Some(acknowledge),
        });
        self.status.send_modify(|status| status.newest_stage = newest_stage);
        Ok(safe)
    }
}

/// A body as it arrives.
struct Frames {
    body: BodyDataStream,
    pause: Duration,
}

impl Frames {
    async fn next(&mut self) -> Result<Option<axum::body::Bytes>, Answer> {
        let frame = timeout(self.pause, self.body.next()).await;
        frame.map_err(|_| Answer::TooSlow)?.transpose().map_err(|_| Answer::Cut)
    }

    async fn drain(mut self) -> Result<(), Answer> {
        while self.next().await?.is_some() {}
        Ok(())
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
