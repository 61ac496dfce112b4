//! What audit sides say of themselves, as a node hears it: first what lies in the bucket, then what is put.
//!
//! Not a watch of the bucket: that is a consumer, and whoever may make one may have it deliver to any subject.
//! A subscription and reads of single keys need no more than to be allowed these keys.

use std::collections::{BTreeMap, VecDeque};

use async_nats::{
    Subscriber,
    jetstream::{Context, stream::DirectGetErrorKind},
};
use futures_util::{StreamExt as _, TryStreamExt as _};

use super::{
    connection::ConnectionError,
    names::{self, Names},
    progress::{self, Covered},
};

/// Keys that are looked at for audit sides: anybody may have replies put under some.
const LOOKED_AT: usize = 4_096;

/// Keys and values of audit sides.
pub(super) struct Sides {
    before: VecDeque<(String, Vec<u8>)>,
    put: Subscriber,
    prefix: String,
}

impl Sides {
    /// Begins to listen.
    pub(super) async fn open(context: &Context, names: &Names) -> Result<Self, ConnectionError> {
        let all = names.subject_of(names::SIDES);
        let prefix = names.subject_of("");
        // Before the bucket is read: what is put meanwhile comes twice, and not never.
        let put = context.client().subscribe(all.clone()).await;
        let put = put.map_err(|error| ConnectionError::failed("hear the audit sides", &error))?;
        let failed = |error| ConnectionError::failed("list audit sides", &error);
        let bucket = context.get_stream_no_info(format!("KV_{}", names.bucket())).await;
        let bucket = bucket.map_err(|error| ConnectionError::failed("open the bucket", &error))?;
        let found = bucket.info_with_subjects(&all).await.map_err(failed)?;
        let mut found = found.take(LOOKED_AT);
        let mut before = VecDeque::new();
        while let Some((subject, _)) = found
            .try_next()
            .await
            .map_err(|error| ConnectionError::failed("list audit sides", &error))?
        {
            match bucket.direct_get_last_for_subject(&*subject).await {
                Ok(message) => {
                    let (key, value) = (key(&prefix, &subject), message.payload.to_vec());
                    if said(&key, &value).is_some() {
                        before.push_back((key, value));
                    }
                    if before.len() == progress::SIDES {
                        break;
                    }
                }
                // Gone since.
                Err(error) if error.kind() == DirectGetErrorKind::NotFound => {}
                Err(error) => {
                    return Err(ConnectionError::failed("read what an audit side says", &error));
                }
            }
        }
        Ok(Self { before, put, prefix })
    }

    /// What lay in the bucket, as far as audit sides have said it.
    pub(super) fn before(self) -> BTreeMap<String, Covered> {
        let said = self.before.iter().filter_map(|(key, value)| said(key, value));
        said.map(|(side, covered)| (side.to_owned(), covered)).collect()
    }

    /// The next key and value; `None` at the end of the connection.
    pub(super) async fn next(&mut self) -> Option<(String, Vec<u8>)> {
        if let Some(before) = self.before.pop_front() {
            return Some(before);
        }
        let message = self.put.next().await?;
        Some((key(&self.prefix, &message.subject), message.payload.to_vec()))
    }
}

/// Which audit side says what, if one does.
pub(super) fn said<'key>(key: &'key str, value: &[u8]) -> Option<(&'key str, Covered)> {
    Some((names::side(key)?, serde_json::from_slice(value).ok()?))
}

fn key(prefix: &str, subject: &str) -> String {
    subject.strip_prefix(prefix).unwrap_or(subject).to_owned()
}
