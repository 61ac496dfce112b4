//! The side of an agent with audit sources: hears what nodes ask, publishes the records that the engine finds
//! to be wanted, and says how far it has come, to all nodes and more often to those that ask.
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
use tracing::warn;

use super::{
    NatsMetrics,
    bucket::{Bucket, Entry},
    connection,
    failure::ConnectionError,
    interest::{self, Question, Refused},
    names::{self, Names},
    progress::{Covered, Revision},
    sides,
};
use crate::{
    audit::{AuditRecord, Stage},
    correlation::ids::RequestId,
    errors::with_causes,
    time::Micros,
};

/// Records on their way to the broker at once.
const IN_FLIGHT: usize = 256;
/// How often this side looks at whether to say how far it is.
const LOOK: Duration = Duration::from_secs(1);
/// How often it says so to nodes that ask. Not with each question that it has seen: in a large cluster somebody
/// asks all the time.
const SAID: Duration = Duration::from_secs(5);
/// How often it puts that, by which all nodes know that it is there; and once more when it has read its first event.
const PUT: Duration = Duration::from_mins(1);
/// How often it looks whether the stream of answers is the one of before.
const CHECKED: Duration = Duration::from_secs(10);
/// How often it is said that answers are given up.
const GIVEN_UP: Duration = Duration::from_mins(1);

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
    pub revision: Revision,
}

/// How far the engine is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reached {
    /// What is to be said; nothing while a source has not begun.
    pub covered: Option<Covered>,
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
    /// When it was last said that the broker refuses some for good.
    given_up: Option<Instant>,
    metrics: NatsMetrics,
}

type Taken = BoxFuture<'static, Result<PublishAck, PublishError>>;
/// A put of how far this side is.
type Put = BoxFuture<'static, Result<(), ConnectionError>>;

impl Answerer {
    /// One that publishes what comes by `queue`, and counts by `done`.
    pub fn new(
        queue: mpsc::Receiver<Answer>,
        asks: mpsc::Sender<Asks>,
        reached: watch::Receiver<Option<Reached>>,
        done: watch::Sender<u64>,
        metrics: NatsMetrics,
    ) -> Self {
        Self { queue, asks, reached, waiting: VecDeque::new(), done, given_up: None, metrics }
    }

    /// Answers until the connection is of no use any more.
    pub(super) async fn serve(
        &mut self,
        context: &Context,
        bucket: &Bucket,
        names: &Names,
        stream: Micros,
    ) -> Result<Infallible, ConnectionError> {
        // A node whose log is optional and absent has nothing to answer, and may not be allowed to hear this.
        self.reached.wait_for(Option::is_some).await.map_err(|_| unheard())?;
        let mut asks = bucket.watch(names::ASKS);
        let mut taken: FuturesOrdered<Taken> = FuturesOrdered::new();
        for answer in &self.waiting {
            taken.push_back(publish(context, names, answer).await?);
        }
        let mut look = time::interval(LOOK);
        look.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let (mut last_said, mut last_put) = (None::<Instant>, None::<Instant>);
        let mut has_read = false;
        let mut put: Option<Put> = None;
        let mut check = Box::pin(still_there(context, names, stream));
        loop {
            tokio::select! {
                entry = asks.next() => {
                    let entry = entry.ok_or_else(unheard)??;
                    if let Some(asks) = self.hear(&entry) {
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
                _ = look.tick() => {
                    let reached = *self.reached.borrow();
                    let Some(covered) = reached.and_then(|it| it.covered) else { continue };
                    let is_due =
                        |last: Option<Instant>, every| last.is_none_or(|at| at.elapsed() >= every);
                    let covered = Covered { seen: bucket.seen(covered.seen), ..covered };
                    let word = sides::word(names, covered);
                    if is_due(last_said, SAID) {
                        last_said = Some(Instant::now());
                        say(context, names, word.clone()).await?;
                    }
                    let is_first = covered.last_event.is_some() && !has_read;
                    if put.is_none() && (is_first || is_due(last_put, PUT)) {
                        last_put = Some(Instant::now());
                        has_read = covered.last_event.is_some();
                        let (bucket, key) = (bucket.clone(), names.side());
                        put = Some(Box::pin(async move {
                            bucket.put(&key, word, "say that it is there").await.map(drop)
                        }));
                    }
                }
                ended = &mut check => return ended,
                result = async { match &mut put { Some(it) => it.await, None => std::future::pending().await } } => {
                    put = None;
                    result?;
                }
            }
        }
    }

    /// What a key of the bucket asks, if it can be heard.
    fn hear(&self, entry: &Entry) -> Option<Asks> {
        let Some(node) = names::asker(&entry.key) else {
            self.metrics.refused(Refused::Key).inc();
            return None;
        };
        // A key that was removed asks for nothing.
        let value = entry.value.as_deref().unwrap_or(interest::NOTHING);
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
        Some(Asks { node: node.to_owned(), question, revision: entry.revision })
    }

    /// What the broker said of the record that waits first.
    fn take(&mut self, result: &Result<PublishAck, PublishError>) -> Result<(), ConnectionError> {
        match result {
            Ok(ack) => {
                let taken = &self.metrics;
                if ack.duplicate { &taken.duplicates } else { &taken.published }.inc();
            }
            Err(error) if is_full(error) => self.give_up(error),
            Err(error) => return Err(ConnectionError::failed("publish an answer", error)),
        }
        self.waiting.pop_front();
        self.done.send_modify(|done| *done += 1);
        Ok(())
    }

    /// The broker never takes the record that waits first: that is counted, and said once a minute.
    fn give_up(&mut self, why: &PublishError) {
        self.metrics.overflown.inc();
        if self.given_up.is_none_or(|said| said.elapsed() >= GIVEN_UP) {
            self.given_up = Some(Instant::now());
            let node = self.waiting.front().map_or("", |answer| &*answer.node);
            let why = with_causes(why);
            warn!(
                node,
                why, "answers are lost: NATS has no room for more; is the node away, or flooded?"
            );
        }
    }
}

fn unheard() -> ConnectionError {
    ConnectionError::ended("nobody hears what is asked")
}

/// Looks now and then whether the stream of answers is still the one that was made then: what lay in it for nodes is
/// gone with it, and no other word tells.
async fn still_there(
    context: &Context,
    names: &Names,
    stream: Micros,
) -> Result<Infallible, ConnectionError> {
    loop {
        time::sleep(CHECKED).await;
        if connection::stream_made(context, names).await? != stream {
            return Err(ConnectionError::Anew);
        }
    }
}

/// Says how far this side is to nodes that ask. Nothing stores it: of what is lost the next one takes the place.
async fn say(context: &Context, names: &Names, word: Vec<u8>) -> Result<(), ConnectionError> {
    let said = context.client().publish(names.reached_by(names.node()), word.into()).await;
    said.map_err(|error| ConnectionError::failed("say how far it is", &error))
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
    refusal.is_some_and(is_for_good)
}

/// Whether the node's own share is used up. What all of them have used up, and what the disk refuses, comes under
/// the same code: that waits.
fn is_for_good(refusal: &jetstream::Error) -> bool {
    match refusal.error_code() {
        ErrorCode::STREAM_MESSAGE_EXCEEDS_MAXIMUM => true,
        ErrorCode::STREAM_STORE_FAILED => {
            refusal.to_string().starts_with("maximum messages per subject")
        }
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_nodes_share_refuses_is_refused_for_good_and_what_others_or_the_disk_do_is_not() {
        // As nats-server words them.
        let cases = [
            (10077, "maximum messages per subject exceeded", true),
            (10077, "maximum bytes exceeded", false),
            (10077, "maximum messages exceeded", false),
            (10054, "message size exceeds maximum allowed", true),
            (10077, "write /data/msgs/7.blk: no space left on device", false),
            (10077, "store is closed", false),
            (10023, "insufficient resources", false),
            (10002, "resource limits exceeded for account", false),
        ];
        for (code, text, expected) in cases {
            let refusal = serde_json::json!({"code": 503, "err_code": code, "description": text});
            let refusal: jetstream::Error = serde_json::from_value(refusal).unwrap();
            assert_eq!(is_for_good(&refusal), expected, "{text}");
        }
    }
}
