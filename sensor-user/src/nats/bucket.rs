//! The key-value bucket: puts a key, watches keys. In the form of NATS (ADR-8), so that `nats kv` shows it.
//!
//! The client's own watch makes a consumer whose subject does not say what it reads, so a permission could
//! not either; and it repairs itself, where here a connection that fails ends.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use async_nats::jetstream::{
    Context, Message,
    consumer::{AckPolicy, DeliverPolicy, push},
};
use futures_util::StreamExt as _;

use super::{connection::ConnectionError, names::Names, progress::Revision, wall_clock};
use crate::time::Micros;

/// Header of a key that was removed.
const OPERATION: &str = "KV-Operation";
/// How often the broker says that nothing has changed. After two of these without a word it is gone, or the
/// bucket is not the one of before.
const BEAT: Duration = Duration::from_secs(10);
/// How long the broker keeps a watch that nobody listens to.
const KEPT: Duration = Duration::from_mins(2);

/// The bucket over one connection.
#[derive(Clone)]
pub(super) struct Bucket {
    context: Context,
    name: String,
    node: String,
    /// When it was made.
    made: Micros,
    /// The greatest revision at which something was put.
    newest: Arc<AtomicU64>,
}

/// Keys as they change.
pub(super) struct Watch {
    messages: push::Messages,
    prefix: String,
    made: Micros,
}

/// A key as it is now.
pub(super) struct Entry {
    pub(super) key: String,
    /// `None` if it was removed.
    pub(super) value: Option<Vec<u8>>,
    pub(super) revision: Revision,
}

impl Bucket {
    /// The one that was made then.
    pub(super) fn new(context: Context, names: &Names, made: Micros) -> Self {
        let (name, node) = (names.bucket(), names.node().to_owned());
        Self { context, name, node, made, newest: Arc::default() }
    }

    /// Whether a revision is of a bucket that has taken the place of this one.
    pub(super) fn is_before(&self, revision: Revision) -> bool {
        self.made < revision.bucket
    }

    /// What of this bucket is seen by who has seen that: nothing, if it is of another one.
    pub(super) fn seen(&self, revision: Revision) -> Revision {
        let is_own = revision.bucket == self.made;
        if is_own { revision } else { Revision { bucket: self.made, number: 0 } }
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
        let sent = self.context.publish(format!("$KV.{}.{key}", self.name), value.into()).await;
        let number = sent.map_err(failed)?.await.map_err(failed)?.sequence;
        if number <= before {
            return Err(ConnectionError::Anew);
        }
        self.newest.fetch_max(number, Ordering::Relaxed);
        Ok(Revision { bucket: self.made, number })
    }

    /// The keys of this pattern: as they are now, then as they change.
    pub(super) async fn watch(
        &self,
        keys: &str,
        what: &'static str,
    ) -> Result<Watch, ConnectionError> {
        let prefix = format!("$KV.{}.", self.name);
        let config = push::Config {
            // None of before is taken for this one.
            name: Some(format!("{}-{}", self.node, wall_clock().0)),
            deliver_subject: self.context.client().new_inbox(),
            filter_subject: format!("{prefix}{keys}"),
            deliver_policy: DeliverPolicy::LastPerSubject,
            ack_policy: AckPolicy::None,
            idle_heartbeat: BEAT,
            inactive_threshold: KEPT,
            ..push::Config::default()
        };
        let consumer = self.context.create_consumer_on_stream(config, format!("KV_{}", self.name));
        let consumer = consumer.await.map_err(|error| ConnectionError::failed(what, &error))?;
        let messages = consumer.messages().await;
        let messages = messages.map_err(|error| ConnectionError::failed(what, &error))?;
        Ok(Watch { messages, prefix, made: self.made })
    }
}

impl Watch {
    /// The next change. Cancelling loses nothing.
    pub(super) async fn next(&mut self) -> Result<Entry, ConnectionError> {
        let message = self.messages.next().await;
        let message = message.ok_or_else(|| ConnectionError::Ended("it was closed".to_owned()))?;
        let message = message.map_err(|error| ConnectionError::failed("watch keys", &error))?;
        Ok(self.entry(&message))
    }

    fn entry(&self, message: &Message) -> Entry {
        let removed = message.headers.as_ref().is_some_and(|it| it.get(OPERATION).is_some());
        Entry {
            key: message.subject.strip_prefix(&*self.prefix).unwrap_or_default().to_owned(),
            value: (!removed).then(|| message.payload.to_vec()),
            revision: Revision {
                bucket: self.made,
                number: message.info().map_or(0, |info| info.stream_sequence),
            },
        }
    }
}
