//! The key-value bucket: puts a key, watches keys. In the form of NATS (ADR-8), so that `nats kv` shows it.
//!
//! The client's own watch makes a consumer whose subject does not say what it reads, so a permission could
//! not either; it takes what a writer puts into a status line for the server's word; and it repairs itself, where
//! here a connection that fails ends. What lies in the bucket when that begins is [`Listed`], since the client
//! ends a connection over which an odd header comes: a message with one is passed over by the next connection.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use async_nats::{
    Subscriber,
    jetstream::{
        self, Context, Message,
        consumer::{AckPolicy, DeliverPolicy, push},
    },
};
use futures_util::{
    StreamExt as _, TryStreamExt as _,
    stream::{self, BoxStream},
};
use tokio::time::{self, Instant};

use self::listed::Listed;
use super::{failure::ConnectionError, names::Names, progress::Revision, wall_clock};
use crate::time::Micros;

mod listed;

/// Header of a key that was removed.
const OPERATION: &str = "KV-Operation";
/// What fails if a watch does.
const WATCH: &str = "watch what is asked";
/// How often the broker says that nothing has changed. After two of these without a word it is gone, or the
/// bucket is not the one of before.
const BEAT: Duration = Duration::from_secs(10);
/// How long the broker keeps a watch that nobody listens to.
const KEPT: Duration = Duration::from_mins(2);

/// How a stream was found to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Found {
    /// When it was made. NATS server's clock.
    pub(super) made: Micros,
    /// The number of what was put last.
    pub(super) last: u64,
}

impl Found {
    pub(super) fn of(info: &jetstream::stream::Info) -> Self {
        let made = u64::try_from(info.created.unix_timestamp_nanos());
        Self { made: Micros::from_nanos(made.unwrap_or_default()), last: info.state.last_sequence }
    }
}

/// The bucket over one connection.
#[derive(Clone)]
pub(super) struct Bucket {
    context: Context,
    names: Names,
    /// As it was when the connection began.
    found: Found,
    /// The greatest revision at which something was put.
    newest: Arc<AtomicU64>,
}

/// Keys as they change.
pub(super) type Watch = BoxStream<'static, Result<Entry, ConnectionError>>;

/// A key as it is now.
pub(super) struct Entry {
    pub(super) key: String,
    /// `None` if it was removed.
    pub(super) value: Option<Vec<u8>>,
    pub(super) revision: Revision,
}

impl Bucket {
    /// The one that was found.
    pub(super) fn new(context: Context, names: Names, found: Found) -> Self {
        Self { context, names, found, newest: Arc::default() }
    }

    /// Whether a revision is of a bucket that has taken the place of this one.
    pub(super) fn is_before(&self, revision: Revision) -> bool {
        self.found.made < revision.bucket
    }

    /// What of this bucket is seen by who has seen that: nothing, if it is of another one.
    pub(super) fn seen(&self, revision: Revision) -> Revision {
        let is_own = revision.bucket == self.found.made;
        if is_own { revision } else { self.at(0) }
    }

    /// A revision of this one.
    fn at(&self, number: u64) -> Revision {
        Revision { bucket: self.found.made, number }
    }

    /// Puts a key; the revision at which it is there.
    pub(super) async fn put(
        &self,
        key: &str,
        value: Vec<u8>,
        what: &'static str,
    ) -> Result<Revision, ConnectionError> {
        let failed = |error| ConnectionError::failed(what, &error);
        let before = self.newest.load(Ordering::Relaxed);
        let sent = self.context.publish(self.names.subject_of(key), value.into()).await;
        let number = sent.map_err(failed)?.await.map_err(failed)?.sequence;
        if number <= before {
            return Err(ConnectionError::Anew);
        }
        self.newest.fetch_max(number, Ordering::Relaxed);
        Ok(self.at(number))
    }

    /// The keys of this pattern: as they are now, then as they change.
    pub(super) fn watch(&self, keys: &'static str) -> Watch {
        let listed = stream::try_unfold(Listed::new(self.clone(), keys), |mut listed| async {
            let entries = listed.more().await?;
            Ok(entries.map(|entries| (stream::iter(entries.into_iter().map(Ok)), listed)))
        });
        let bucket = self.clone();
        let changes = stream::once(async move {
            let changes = bucket.changes(keys).await?;
            Ok(stream::try_unfold(changes, |mut changes| async {
                let entry = changes.next().await?;
                Ok(Some((entry, changes)))
            }))
        });
        listed.try_flatten().chain(changes.try_flatten()).boxed()
    }

    /// The keys of this pattern as they change from what was found.
    async fn changes(self, keys: &str) -> Result<Changes, ConnectionError> {
        let inbox = self.context.client().new_inbox();
        let messages = self.context.client().subscribe(inbox.clone()).await;
        let messages = messages.map_err(|error| ConnectionError::failed(WATCH, &error))?;
        let config = push::Config {
            // None of before is taken for this one.
            name: Some(format!("{}-{}", self.names.node(), wall_clock().0)),
            deliver_subject: inbox.clone(),
            filter_subject: self.names.subject_of(keys),
            deliver_policy: DeliverPolicy::ByStartSequence { start_sequence: self.found.last + 1 },
            ack_policy: AckPolicy::None,
            idle_heartbeat: BEAT,
            inactive_threshold: KEPT,
            ..push::Config::default()
        };
        let stream = self.names.bucket_stream();
        let made = self.context.create_consumer_on_stream(config, stream).await;
        made.map_err(|error| ConnectionError::failed(WATCH, &error))?;
        Ok(Changes { bucket: self, messages, inbox, heard: Instant::now() })
    }

    /// The key at this subject.
    fn key<'subject>(&self, subject: &'subject str) -> &'subject str {
        subject.strip_prefix(&*self.names.subject_of("")).unwrap_or_default()
    }
}

/// What a consumer tells of keys.
struct Changes {
    bucket: Bucket,
    messages: Subscriber,
    inbox: String,
    /// When the broker said something last.
    heard: Instant,
}

impl Changes {
    async fn next(&mut self) -> Result<Entry, ConnectionError> {
        loop {
            let message = time::timeout_at(self.heard + 2 * BEAT, self.messages.next()).await;
            let message = message
                .map_err(|_| ConnectionError::ended("the server says nothing of what is asked"))?;
            let message = message.ok_or_else(|| ConnectionError::ended("it was closed"))?;
            self.heard = Instant::now();
            // Only what comes without a key is of the server itself, whatever a writer put into a status line.
            if *message.subject != *self.inbox {
                return Ok(self.entry(message));
            }
        }
    }

    fn entry(&self, message: async_nats::Message) -> Entry {
        let message = Message { message, context: self.bucket.context.clone() };
        let removed = message.headers.as_ref().is_some_and(|it| it.get(OPERATION).is_some());
        Entry {
            key: self.bucket.key(&message.subject).to_owned(),
            value: (!removed).then(|| message.payload.to_vec()),
            revision: self.bucket.at(message.info().map_or(0, |info| info.stream_sequence)),
        }
    }
}
