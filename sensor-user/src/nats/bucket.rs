//! The key-value bucket: puts a key, watches keys. In the form of NATS (ADR-8), so that `nats kv` shows it.
//!
//! The client's own watch makes a consumer whose subject does not say what it reads, so a permission could
//! not either; and it repairs itself, where here a connection that fails ends.

use std::time::Duration;

use async_nats::jetstream::{
    Context, Message,
    consumer::{AckPolicy, DeliverPolicy, push},
};
use futures_util::StreamExt as _;

use super::{connection::ConnectionError, names::Names, wall_clock};

/// Header of a key that was removed.
const OPERATION: &str = "KV-Operation";
/// How often the broker says that nothing has changed. After two of these without a word it is gone.
const BEAT: Duration = Duration::from_secs(30);
/// How long the broker keeps a watch that nobody listens to.
const KEPT: Duration = Duration::from_mins(2);

/// The bucket over one connection.
#[derive(Clone)]
pub(super) struct Bucket {
    context: Context,
    name: String,
    node: String,
}

/// Keys as they change.
pub(super) struct Watch {
    messages: push::Messages,
    prefix: String,
}

/// A key as it is now.
pub(super) struct Entry {
    pub(super) key: String,
    /// `None` if it was removed.
    pub(super) value: Option<Vec<u8>>,
    pub(super) revision: u64,
}

impl Bucket {
    pub(super) fn new(context: Context, names: &Names) -> Self {
        Self { context, name: names.bucket(), node: names.node().to_owned() }
    }

    /// Puts a key; the revision at which it is there.
    pub(super) async fn put(
        &self,
        key: &str,
        value: Vec<u8>,
        what: &'static str,
    ) -> Result<u64, ConnectionError> {
        let failed = |error| ConnectionError::failed(what, &error);
        let sent = self.context.publish(format!("$KV.{}.{key}", self.name), value.into()).await;
        let ack = sent.map_err(failed)?.await;
        Ok(ack.map_err(failed)?.sequence)
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
        Ok(Watch { messages, prefix })
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
            revision: message.info().map_or(0, |info| info.stream_sequence),
        }
    }
}
