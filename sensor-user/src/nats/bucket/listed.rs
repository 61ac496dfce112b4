//! What lies in the bucket when a watch begins, in order of its revisions. A part of `bucket`.
//!
//! Read message by message, as JSON: headers in which somebody else has put what no client understands are
//! just bytes there. Many at once while they lie close to each other; over what was replaced the server leaps.

use async_nats::jetstream::{ErrorCode, response::Response};
use data_encoding::BASE64;
use futures_util::{StreamExt as _, TryStreamExt as _, stream};
use serde::{Deserialize, Serialize};

use super::{Bucket, Entry, OPERATION, WATCH};
use crate::nats::failure::ConnectionError;

/// Messages that are asked for at once.
const AT_ONCE: usize = 32;
/// Most of them are asked for with the one before them.
const AHEAD: u64 = AT_ONCE as u64 - 1;

/// Keys of a pattern that are yet to be read.
pub(super) struct Listed {
    bucket: Bucket,
    pattern: String,
    /// The revision from which on nothing is read yet.
    next: u64,
    /// How many messages behind the next one are asked for with it, be they there or not.
    ahead: u64,
}

/// Which message.
#[derive(Serialize)]
#[serde(untagged)]
enum Which<'pattern> {
    Of { seq: u64 },
    NextFrom { seq: u64, next_by_subj: &'pattern str },
}

#[derive(Deserialize)]
struct Reply {
    message: Stored,
}

/// A message as the server tells it.
#[derive(Deserialize)]
struct Stored {
    subject: String,
    seq: u64,
    #[serde(default)]
    hdrs: String,
    #[serde(default)]
    data: String,
}

impl Listed {
    pub(super) fn new(bucket: Bucket, keys: &str) -> Self {
        let pattern = bucket.names.subject_of(keys);
        Self { bucket, pattern, next: 1, ahead: AHEAD }
    }

    /// Some more of them; `None` when all that was found has been read. What was put since has a greater revision,
    /// and is told as a change.
    pub(super) async fn more(&mut self) -> Result<Option<Vec<Entry>>, ConnectionError> {
        let last = self.bucket.found.last;
        let next = Which::NextFrom { seq: self.next, next_by_subj: &self.pattern };
        let Some(first) = self.read(next).await?.filter(|it| it.seq <= last) else {
            return Ok(None);
        };
        let upto = last.min(first.seq + self.ahead);
        let behind = stream::iter(first.seq + 1..=upto).map(|seq| self.read(Which::Of { seq }));
        let behind = behind.buffered(AT_ONCE);
        let behind: Vec<_> = behind.try_filter_map(|it| async { Ok(it) }).try_collect().await?;
        let is_dense = 2 * behind.len() as u64 >= upto - first.seq;
        self.ahead = if is_dense { (2 * self.ahead + 1).min(AHEAD) } else { self.ahead / 2 };
        self.next = upto + 1;
        let prefix = self.pattern.trim_end_matches('*');
        let of_pattern = behind.into_iter().filter(|it| it.subject.starts_with(prefix));
        let all = std::iter::once(first).chain(of_pattern);
        Ok(Some(all.map(|it| self.entry(&it)).collect()))
    }

    /// A message, if it is there.
    async fn read(&self, which: Which<'_>) -> Result<Option<Stored>, ConnectionError> {
        let subject = format!("STREAM.MSG.GET.{}", self.bucket.names.bucket_stream());
        let reply = self.bucket.context.request(subject, &which).await;
        match reply.map_err(|error| ConnectionError::failed(WATCH, &error))? {
            Response::Ok(Reply { message }) => Ok(Some(message)),
            Response::Err { error } if error.error_code() == ErrorCode::NO_MESSAGE_FOUND => {
                Ok(None)
            }
            Response::Err { error } => Err(ConnectionError::failed(WATCH, &error)),
        }
    }

    fn entry(&self, stored: &Stored) -> Entry {
        // What is none is empty, and nobody's question.
        let bytes = |text: &str| BASE64.decode(text.as_bytes()).unwrap_or_default();
        let headers = bytes(&stored.hdrs);
        Entry {
            key: self.bucket.key(&stored.subject).to_owned(),
            value: (!is_removal(&headers)).then(|| bytes(&stored.data)),
            revision: self.bucket.at(stored.seq),
        }
    }
}

/// Whether a message with these headers says that its key was removed.
fn is_removal(headers: &[u8]) -> bool {
    let name = format!("\r\n{OPERATION}:");
    memchr::memmem::find(headers, name.as_bytes()).is_some()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_removed_by_a_header_of_that_name_alone() {
        for (headers, removed) in [
            (&b""[..], false),
            (b"NATS/1.0\r\nKV-Operation: DEL\r\n\r\n", true),
            (b"NATS/1.0\r\nA: b\r\nKV-Operation: PURGE\r\n\r\n", true),
            // As in what the server replies to somebody who reads a key of that name.
            (b"NATS/1.0\r\nNats-Subject: $KV.b.side.KV-Operation\r\n\r\n", false),
            (b"NATS/1.0 400 KV-Operation: x\r\n\r\n", false),
        ] {
            assert_eq!(is_removal(headers), removed, "{}", headers.escape_ascii());
        }
    }
}
