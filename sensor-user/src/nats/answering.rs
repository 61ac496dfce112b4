//! The side of an agent with audit sources: hears what nodes ask, publishes the records that the engine finds
//! to be wanted, and says how far it has come.
//!
//! Records are published in their order and counted as they are taken by the broker; those that a connection
//! took with it are published again by the next, and the broker knows them by their ids. The engine decides
//! who wants what.

use std::{
    collections::VecDeque,
    convert::Infallible,
    time::{Duration, Instant},
};

use async_nats::jetstream::{
    self, Context, ErrorCode,
    context::{PublishError, PublishErrorKind},
    message::PublishMessage,
    publish::PublishAck,
};
use futures_util::{StreamExt as _, future::BoxFuture, stream::FuturesOrdered};
use tokio::{
    sync::{mpsc, watch},
    time::{self, MissedTickBehavior},
};

use super::{
    NatsMetrics,
    bucket::Bucket,
    connection::ConnectionError,
    interest::{self, Question, Refused},
    names::{self, Names},
    progress::Covered,
};
use crate::{
    audit::{AuditRecord, Stage},
    correlation::ids::RequestId,
};

/// Records on their way to the broker at once.
const IN_FLIGHT: usize = 256;
/// How often this side looks at whether to say how far it is.
const LOOK: Duration = Duration::from_secs(1);
/// How often it says so while somebody asks, and while nobody does.
const SAID: (Duration, Duration) = (Duration::from_secs(5), Duration::from_mins(1));

/// A record for a node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    /// The node, as a word.
    pub node: String,
    /// The same for all that publish the same.
    pub id: String,
    /// The record as one line of JSON.
    pub payload: Vec<u8>,
}

impl Answer {
    /// That a node is told of a record, given with its JSON form.
    pub fn new(node: String, record: &AuditRecord, payload: Vec<u8>) -> Self {
        let id = format!("{node}.{}", of_record(record));
        Self { node, id, payload }
    }

    /// The same of its audit canary. From each side that has read it: the way from there is what matters.
    pub fn canary(node: String, side: &str, record: &AuditRecord, payload: Vec<u8>) -> Self {
        let id = format!("{node}.{}.{side}", of_record(record));
        Self { node, id, payload }
    }
}

/// What the same stage of a request is known again by.
fn of_record(record: &AuditRecord) -> String {
    let stage = match record.stage {
        Stage::RequestReceived => "received",
        Stage::ResponseStarted => "started",
        Stage::ResponseComplete => "complete",
        Stage::Panic => "panic",
    };
    format!("{}.{stage}", RequestId::of(record).hex())
}

/// What a node asks by now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Asks {
    /// The node, as a word.
    pub node: String,
    /// All of it.
    pub question: Question,
    /// Revision of the bucket.
    pub revision: u64,
}

/// How far the engine is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reached {
    /// What is to be said.
    pub covered: Covered,
    /// Whether anybody asks about pods.
    pub asked: bool,
    /// Revision of the newest such question: who asked it waits to hear that it was seen.
    pub awaited: u64,
}

/// What answers.
pub struct Answerer {
    queue: mpsc::Receiver<Answer>,
    asks: mpsc::Sender<Asks>,
    reached: watch::Receiver<Option<Reached>>,
    /// Not yet taken by the broker, in their order.
    waiting: VecDeque<Answer>,
    /// How many the broker has taken or refused for good.
    done: watch::Sender<u64>,
    metrics: NatsMetrics,
}

type Taken = BoxFuture<'static, Result<PublishAck, PublishError>>;
/// A put of how far this side is.
type Said = BoxFuture<'static, Result<(), ConnectionError>>;

impl Answerer {
    /// One that publishes what comes by `queue`, and counts by `done`.
    pub fn new(
        queue: mpsc::Receiver<Answer>,
        asks: mpsc::Sender<Asks>,
        reached: watch::Receiver<Option<Reached>>,
        done: watch::Sender<u64>,
        metrics: NatsMetrics,
    ) -> Self {
        Self { queue, asks, reached, waiting: VecDeque::new(), done, metrics }
    }

    /// Answers until the connection is of no use any more.
    pub(super) async fn serve(
        &mut self,
        context: &Context,
        bucket: &Bucket,
        names: &Names,
    ) -> Result<Infallible, ConnectionError> {
        // A node whose log is optional and absent has nothing to answer, and may not be allowed to hear this.
        self.reached.wait_for(Option::is_some).await.map_err(|_| unheard())?;
        let mut asks = bucket.watch(names::ASKS, "watch what is asked").await?;
        let mut taken: FuturesOrdered<Taken> = FuturesOrdered::new();
        for answer in &self.waiting {
            taken.push_back(publish(context, names, answer).await?);
        }
        let mut look = time::interval(LOOK);
        look.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut said: Option<(Reached, Instant)> = None;
        let mut saying: Option<Said> = None;
        loop {
            tokio::select! {
                entry = asks.next() => {
                    let entry = entry?;
                    // A key that was removed asks for nothing.
                    let value = entry.value.as_deref().unwrap_or(interest::NOTHING);
                    if let Some(asks) = self.hear(&entry.key, value, entry.revision) {
                        self.asks.send(asks).await.map_err(|_| unheard())?;
                    }
                }
                answer = self.queue.recv(), if self.waiting.len() < IN_FLIGHT => {
                    let answer = answer.ok_or_else(unheard)?;
                    let sent = publish(context, names, &answer).await;
                    // Kept, should it not have been sent.
                    self.waiting.push_back(answer);
                    taken.push_back(sent?);
                }
                Some(result) = taken.next() => self.take(&result)?,
                _ = look.tick(), if saying.is_none() => {
                    let reached = *self.reached.borrow();
                    if let Some(reached) = reached
                        && said.is_none_or(|(before, at)| is_due(reached, before, at.elapsed()))
                    {
                        said = Some((reached, Instant::now()));
                        saying = Some(say(bucket, names, reached.covered));
                    }
                }
                result = async { match &mut saying { Some(it) => it.await, None => std::future::pending().await } } => {
                    saying = None;
                    result?;
                }
            }
        }
    }

    /// What a key of the bucket asks, if it can be heard.
    fn hear(&self, key: &str, value: &[u8], revision: u64) -> Option<Asks> {
        let Some(node) = names::asker(key) else {
            self.metrics.refused(Refused::Key).inc();
            return None;
        };
        let question = match interest::decode(value) {
            Ok((question, refused)) => {
                self.metrics.refused(Refused::Bounds).inc_by(refused as u64);
                question
            }
            Err(reason) => {
                self.metrics.refused(reason).inc();
                return None;
            }
        };
        Some(Asks { node: node.to_owned(), question, revision })
    }

    /// What the broker said of the record that waits first.
    fn take(&mut self, result: &Result<PublishAck, PublishError>) -> Result<(), ConnectionError> {
        match result {
            Ok(ack) if ack.duplicate => self.metrics.duplicates.inc(),
            Ok(_) => self.metrics.published.inc(),
            Err(error) if is_full(error) => self.metrics.overflown.inc(),
            Err(error) => return Err(ConnectionError::failed("publish an answer", error)),
        };
        self.waiting.pop_front();
        self.done.send_modify(|done| *done += 1);
        Ok(())
    }
}

fn unheard() -> ConnectionError {
    ConnectionError::Ended("nobody hears what is asked".to_owned())
}

/// Whether something new is to be said by now.
fn is_due(reached: Reached, before: Reached, since: Duration) -> bool {
    let every = if reached.asked { SAID.0 } else { SAID.1 };
    // Who has just asked waits for nothing but to hear that this was seen.
    reached.awaited != before.awaited || since >= every
}

fn say(bucket: &Bucket, names: &Names, covered: Covered) -> Said {
    let (bucket, key) = (bucket.clone(), names.side());
    Box::pin(async move {
        // Numbers and times: they have a JSON form.
        let value = serde_json::to_vec(&covered).unwrap_or_default();
        bucket.put(&key, value, "say how far it is").await.map(drop)
    })
}

async fn publish(
    context: &Context,
    names: &Names,
    answer: &Answer,
) -> Result<Taken, ConnectionError> {
    let message = PublishMessage::build()
        .payload(answer.payload.clone().into())
        .message_id(&answer.id)
        .header(names::SIDE, names.node());
    let sent = context.send_publish(names.requests_of(&answer.node), message).await;
    let sent = sent.map_err(|error| ConnectionError::failed("publish an answer", &error))?;
    Ok(Box::pin(sent.into_future()))
}

/// Whether the broker will not take it, however often it is asked.
fn is_full(error: &PublishError) -> bool {
    if error.kind() == PublishErrorKind::MaxPayloadExceeded {
        return true;
    }
    let refusal = std::error::Error::source(error).and_then(|it| it.downcast_ref());
    refusal.is_some_and(|error: &jetstream::Error| {
        [ErrorCode::STREAM_STORE_FAILED, ErrorCode::STREAM_MESSAGE_EXCEEDS_MAXIMUM]
            .contains(&error.error_code())
    })
}
