//! The side of a node with a sensor: puts what it asks, takes the answers, hears how far audit sides are.
//!
//! Answers go to the engine as lines of an audit source; the broker is told that one is taken when the
//! engine says that its alerts are safe. What is not told comes again. State that must outlive a connection
//! is in [`Progress`]; nothing is on disk.

use std::{
    convert::Infallible,
    future::pending,
    sync::Arc,
    time::{Duration, Instant},
};

use async_nats::jetstream::{
    Context, Message,
    consumer::{AckPolicy, Consumer, pull},
};
use futures_util::{FutureExt as _, StreamExt as _, future::BoxFuture, stream::FuturesUnordered};
use tokio::{
    sync::{mpsc, oneshot, watch},
    time::{self, MissedTickBehavior},
};

use super::{
    NatsMetrics, Status,
    answers::{self, Answers},
    bucket::Bucket,
    failure::ConnectionError,
    interest::{self, Question, Round},
    looks::Looks,
    names::{self, Names},
    progress::{Progress, Revision},
    sides::Sides,
    wall_clock,
};
use crate::{
    audit::{AuditBatch, ReadLine, SourceState, SourceStatus},
    time::Micros,
};

/// Answers that may wait for the engine: what it has to tell apart should they come again.
const UNTOLD: i64 = 1_024;
/// After so long without word an answer comes again.
const AGAIN: Duration = Duration::from_secs(30);
/// How long the broker keeps answers and place for a node that is away.
const AWAY: Duration = Duration::from_hours(7 * 24);
/// How often what is asked is put again, so that the bucket keeps it.
const RENEWED: Duration = Duration::from_mins(5);
/// From an audit side's word to a look: to a broker with replicas what it took a moment ago may not be known yet.
const SETTLED: Duration = Duration::from_millis(100);
/// How often the audit sides are counted.
const COUNTED: Duration = Duration::from_secs(5);

/// What asks for a node.
pub struct Asker {
    /// Index of the source in the engine.
    source: usize,
    round: watch::Receiver<Round>,
    /// The run of this node's audit canary, if it has one.
    canary: Option<String>,
    batches: mpsc::Sender<AuditBatch>,
    source_status: watch::Sender<SourceStatus>,
    progress: Progress,
    /// Connections in a row that ended while it was read what audit sides have put.
    ended_reading: u32,
    /// Whether the bucket may hold something that is not asked any more.
    has_put: bool,
    metrics: NatsMetrics,
}

/// A put that is on its way: what, and at which revision it is there.
type Put = BoxFuture<'static, Result<(Question, Revision), ConnectionError>>;
/// A look whether answers wait: how many do.
type Look<'consumer> = BoxFuture<'consumer, Result<u64, ConnectionError>>;
/// An answer that waits for the engine's word.
type Untold = BoxFuture<'static, Option<Vec<Message>>>;

impl Asker {
    /// One that asks for what comes by `round`, and for the audit canaries of a run.
    pub fn new(
        source: usize,
        round: watch::Receiver<Round>,
        canary: Option<String>,
        batches: mpsc::Sender<AuditBatch>,
        source_status: watch::Sender<SourceStatus>,
        metrics: NatsMetrics,
    ) -> Self {
        Self {
            source,
            round,
            canary,
            batches,
            source_status,
            progress: Progress::new(wall_clock()),
            ended_reading: 0,
            // Of a life before.
            has_put: true,
            metrics,
        }
    }

    /// Asks and listens until the connection is of no use any more.
    pub(super) async fn serve(
        &mut self,
        context: &Context,
        bucket: &Bucket,
        names: &Names,
        status: &watch::Sender<Status>,
    ) -> Result<Infallible, ConnectionError> {
        let result = self.listen(context, bucket, names, status).await;
        self.source_status.send_modify(|it| {
            it.state = SourceState::Waiting("not connected to NATS".to_owned());
        });
        result
    }

    async fn listen(
        &mut self,
        context: &Context,
        bucket: &Bucket,
        names: &Names,
        status: &watch::Sender<Status>,
    ) -> Result<Infallible, ConnectionError> {
        let consumer = context
            .create_consumer_on_stream(consumer(names), names.stream())
            .await
            .map_err(|error| ConnectionError::failed("listen for answers", &error))?;
        let mut answers = Answers::open(context, names).await?;
        // What a client cannot read may lie there for as long as somebody likes. Who speaks is heard without it.
        let reads = self.ended_reading < 2;
        self.ended_reading += 1;
        let sides = Sides::open(context, names, self.metrics.clone(), reads).await;
        self.ended_reading = 0;
        let mut sides = sides?;
        self.progress.connect();
        // First of all: what audit sides say is held against it.
        let mut looks = Looks::of(names.node());
        let mut put = self.put(bucket, names, &mut looks);
        let mut looking: Option<Look<'_>> = None;
        let mut untold: FuturesUnordered<Untold> = FuturesUnordered::new();
        let mut renew = time::interval_at(time::Instant::now() + RENEWED, RENEWED);
        let mut count = time::interval(COUNTED);
        renew.set_missed_tick_behavior(MissedTickBehavior::Delay);
        count.set_missed_tick_behavior(MissedTickBehavior::Delay);
        self.source_status.send_modify(|it| it.state = SourceState::Open);
        loop {
            sides.heed(self.progress.asks()).await?;
            tokio::select! {
                answer = answers.next() => {
                    let mut batch = vec![answer?];
                    while batch.len() < answers::BATCH
                        && let Some(more) = answers.next().now_or_never()
                    {
                        batch.push(more?);
                    }
                    status.send_modify(|it| it.last_answer = Some(wall_clock()));
                    let word = self.hand_on(batch).await?;
                    untold.push(word);
                }
                Some(told) = untold.next() => {
                    for message in told.into_iter().flatten() {
                        message.ack().await.map_err(|error| {
                            ConnectionError::failed("acknowledge an answer", &*error)
                        })?;
                    }
                }
                said = sides.next() => {
                    let Some((side, covered)) = said else {
                        return Err(ConnectionError::ended("no more of audit sides"));
                    };
                    if bucket.is_before(covered.seen)
                        && self.progress.follow(covered.seen.bucket)
                    {
                        return Err(ConnectionError::Anew);
                    }
                    if !self.progress.hear(&side, covered, wall_clock()) {
                        self.metrics.refused_words.inc();
                    }
                    self.count_sides(status);
                    if self.progress.asks() {
                        looks.plan(Instant::now());
                    } else {
                        self.advance(self.progress.through());
                    }
                }
                () = until(looks.due()), if looking.is_none() => {
                    let told = self.source_status.borrow().answered_through;
                    if looks.begin(Instant::now(), self.progress.through(), told) {
                        looking = Some(Box::pin(waiting(&consumer)));
                    }
                }
                waiting = async { match &mut looking { Some(it) => it.await, None => pending().await } } => {
                    looking = None;
                    // Whatever was published before is here, or nothing is said.
                    if let Some(through) = looks.end(waiting? == 0) {
                        self.advance(Some(through));
                    }
                }
                // One at a time, in order: what changes meanwhile is in the next.
                changed = self.round.changed(), if put.is_none() => {
                    changed.map_err(|_| untaken())?;
                    put = self.put(bucket, names, &mut looks);
                }
                _ = renew.tick(), if put.is_none() => put = self.put(bucket, names, &mut looks),
                done = async { match &mut put { Some(put) => put.await, None => pending().await } } => {
                    put = None;
                    let (put, revision) = done?;
                    self.metrics.asked.inc();
                    self.has_put = !put.interests.is_empty();
                    self.progress.put(&put.interests, revision);
                }
                _ = count.tick() => self.count_sides(status),
            }
        }
    }

    /// Begins to put what is asked now, if the bucket has to hear of it.
    fn put(&mut self, bucket: &Bucket, names: &Names, looks: &mut Looks) -> Option<Put> {
        let Round { number, interests } = self.round.borrow_and_update().clone();
        self.progress.ask(&interests);
        looks.restate();
        self.restate(number);
        let all = interests.len();
        let question = Question { interests, canary: self.canary.clone() };
        if question.is_empty() && !self.has_put {
            return None;
        }
        let (document, put) = interest::encode(question);
        self.metrics.unasked.inc_by((all - put.interests.len()) as u64);
        let (bucket, key) = (bucket.clone(), names.ask());
        Some(Box::pin(async move {
            let revision = bucket.put(&key, document, "ask").await?;
            Ok((put, revision))
        }))
    }

    /// Hands answers to the engine; what becomes of them.
    async fn hand_on(&self, messages: Vec<Message>) -> Result<Untold, ConnectionError> {
        self.metrics.answers.inc_by(messages.len() as u64);
        let read_at = Instant::now();
        let line = |message: &Message| ReadLine {
            line: message.payload.as_ref().into(),
            end: message.info().map_or(0, |info| info.stream_sequence),
            read_at,
            side: side(message),
        };
        let lines = messages.iter().map(line).collect();
        let (acknowledge, word) = oneshot::channel();
        let batch = AuditBatch {
            source: self.source,
            lines,
            records: Vec::new(),
            newest_stage: None,
            position: None,
            acknowledge: Some(acknowledge),
        };
        self.batches.send(batch).await.map_err(|_| untaken())?;
        // Without word they come again.
        Ok(Box::pin(async move { word.await.ok().map(|()| messages) }))
    }

    /// Tells the engine how far all sides are.
    fn advance(&self, through: Option<Micros>) {
        self.source_status.send_if_modified(|status| {
            let moved = status.answered_through != through;
            status.answered_through = through;
            moved
        });
    }

    /// Tells the engine how far they are with what is asked from now on: no further than before, since it is not
    /// known what is on its way.
    fn restate(&self, number: u64) {
        let through = self.progress.through();
        self.source_status.send_modify(|status| {
            let both = status.answered_through.zip(through);
            status.answered_through = both.map(|(before, now)| before.min(now));
            status.answered_round = number;
        });
    }

    /// Counts the audit sides.
    fn count_sides(&mut self, status: &watch::Sender<Status>) {
        let now = wall_clock();
        self.progress.forget(now);
        let (sides, unanswered_since) = (self.progress.sides(), self.progress.silent_since(now));
        let speaking = i64::try_from(self.progress.speaking()).unwrap_or(i64::MAX);
        self.metrics.audit_sides.set(speaking);
        status.send_if_modified(|status| {
            let changed =
                status.audit_sides != *sides || status.unanswered_since != unanswered_since;
            if changed {
                status.audit_sides.clone_from(sides);
                status.unanswered_since = unanswered_since;
            }
            changed
        });
    }
}

fn untaken() -> ConnectionError {
    ConnectionError::ended("nobody takes answers")
}

/// The audit side that sent an answer.
fn side(message: &Message) -> Option<Arc<str>> {
    let value = message.headers.as_ref()?.get(names::SIDE)?;
    names::named_side(value.as_str()).map(Arc::from)
}

/// Waits until then, or for ever.
async fn until(due: Option<Instant>) {
    match due {
        Some(due) => time::sleep_until(due.into()).await,
        None => pending().await,
    }
}

/// How many answers the broker has that are not taken.
async fn waiting(consumer: &Consumer<pull::Config>) -> Result<u64, ConnectionError> {
    time::sleep(SETTLED).await;
    let info = consumer.get_info().await;
    let info = info.map_err(|error| ConnectionError::failed("count answers", &error))?;
    Ok(info.num_pending.saturating_add(info.num_ack_pending as u64))
}

/// How the broker keeps answers for a node: until the engine has taken each.
fn consumer(names: &Names) -> pull::Config {
    pull::Config {
        durable_name: Some(names.node().to_owned()),
        filter_subject: names.requests_of(names.node()),
        ack_policy: AckPolicy::Explicit,
        ack_wait: AGAIN,
        max_ack_pending: UNTOLD,
        inactive_threshold: AWAY,
        ..pull::Config::default()
    }
}
