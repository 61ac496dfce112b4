//! What audit sides say of themselves, as a node hears it: first what lies in the bucket, then what is put there,
//! and while the node asks something also what they say to those who ask.
//!
//! Not a watch of the bucket: that is a consumer, and whoever may make one may have it deliver to any subject.
//! A subscription and reads of single keys need no more than to be allowed these keys.

use std::{borrow::Cow, collections::BTreeMap, future::pending};

use async_nats::{Subscriber, client::RequestErrorKind, jetstream::Context};
use futures_util::{StreamExt as _, TryStreamExt as _};
use serde::{Deserialize, Serialize};

use super::{
    NatsMetrics,
    failure::ConnectionError,
    names::{self, Names},
    progress::{self, Covered},
};

/// Keys that are looked at for audit sides: anybody may have replies put under some.
const LOOKED_AT: usize = 4_096;

/// What audit sides say.
pub(super) struct Sides {
    context: Context,
    names: Names,
    metrics: NatsMetrics,
    before: BTreeMap<String, Covered>,
    put: Subscriber,
    /// What is said to those who ask, while this node does.
    reached: Option<Subscriber>,
}

impl Sides {
    /// Begins to listen, as one that asks: whoever may not learns it now, and not when it has something to ask. Reads
    /// first what was put before, or does not.
    pub(super) async fn open(
        context: &Context,
        names: &Names,
        metrics: NatsMetrics,
        reads: bool,
    ) -> Result<Self, ConnectionError> {
        let all = names.subject_of(names::SIDES);
        // Before the bucket is read: what is put meanwhile comes twice, and not never.
        let put = subscribe(context, all.clone()).await?;
        let reached = Some(subscribe(context, names.reached_by("*")).await?);
        let (context, names) = (context.clone(), names.clone());
        let mut sides = Self { context, names, metrics, before: BTreeMap::new(), put, reached };
        if reads {
            sides.list(&all).await?;
        }
        Ok(sides)
    }

    /// Reads what lies in the bucket.
    async fn list(&mut self, all: &str) -> Result<(), ConnectionError> {
        let failed = |error| ConnectionError::failed("list audit sides", &error);
        let bucket = self.context.get_stream_no_info(self.names.bucket_stream()).await;
        let bucket = bucket.map_err(|error| ConnectionError::failed("open the bucket", &error))?;
        let found = bucket.info_with_subjects(all).await.map_err(failed)?;
        let mut found = found.take(LOOKED_AT);
        while self.before.len() < progress::SIDES
            && let Some((subject, _)) = found
                .try_next()
                .await
                .map_err(|error| ConnectionError::failed("list audit sides", &error))?
        {
            let said = self.read(&subject).await?;
            self.before.extend(said);
        }
        Ok(())
    }

    /// What lies in the bucket at this subject, if it is a word. Of the reply the payload counts alone: what else is
    /// in it, whoever put that there has chosen.
    async fn read(&self, subject: &str) -> Result<Option<(String, Covered)>, ConnectionError> {
        let get = format!("$JS.API.DIRECT.GET.{}.{subject}", self.names.bucket_stream());
        match self.context.client().request(get, Vec::new().into()).await {
            // Gone since.
            Ok(reply) if reply.payload.is_empty() => Ok(None),
            Ok(reply) => Ok(self.said(subject, &reply.payload)),
            Err(error) if error.kind() == RequestErrorKind::TimedOut => {
                Err(ConnectionError::failed("read what an audit side says", &error))
            }
            Err(_) => Ok(None),
        }
    }

    /// Which audit side says what, if one does; what is no word is counted.
    fn said(&self, subject: &str, payload: &[u8]) -> Option<(String, Covered)> {
        let said = said(&self.names, subject, payload);
        if said.is_none() {
            self.metrics.refused_words.inc();
        }
        said
    }

    /// What lay in the bucket.
    pub(super) fn before(self) -> BTreeMap<String, Covered> {
        self.before
    }

    /// Hears what is said to those who ask, or does not any more.
    pub(super) async fn heed(&mut self, asks: bool) -> Result<(), ConnectionError> {
        if !asks {
            self.reached = None;
        } else if self.reached.is_none() {
            self.reached = Some(subscribe(&self.context, self.names.reached_by("*")).await?);
        }
        Ok(())
    }

    /// Which audit side says what, next; `None` at the end of the connection. Cancelling loses nothing.
    pub(super) async fn next(&mut self) -> Option<(String, Covered)> {
        loop {
            if let Some(before) = self.before.pop_first() {
                return Some(before);
            }
            let reached = async {
                match &mut self.reached {
                    Some(reached) => reached.next().await,
                    None => pending().await,
                }
            };
            let message = tokio::select! {
                message = self.put.next() => message?,
                message = reached => message?,
            };
            if let Some(said) = self.said(&message.subject, &message.payload) {
                return Some(said);
            }
        }
    }
}

async fn subscribe(context: &Context, subject: String) -> Result<Subscriber, ConnectionError> {
    let heard = context.client().subscribe(subject).await;
    heard.map_err(|error| ConnectionError::failed("hear the audit sides", &error))
}

/// A word of an audit side.
#[derive(Serialize, Deserialize)]
struct Word<'side> {
    /// Who says so: a copy that lands under another's name is no word of that one.
    side: Cow<'side, str>,
    #[serde(flatten)]
    covered: Covered,
}

/// What this audit side says.
pub(super) fn word(names: &Names, covered: Covered) -> Vec<u8> {
    // Names, numbers and times: they have a JSON form.
    serde_json::to_vec(&Word { side: names.node().into(), covered }).unwrap_or_default()
}

/// Which audit side says what, if one does: anybody may have replies put there, and copies of what was said.
fn said(names: &Names, subject: &str, payload: &[u8]) -> Option<(String, Covered)> {
    let Word { side, covered } = serde_json::from_slice(payload).ok()?;
    (names.side_at(subject)? == side).then(|| (side.into_owned(), covered))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::time::Micros;

    #[test]
    fn a_word_is_heard_as_that_of_the_side_that_says_it_and_of_no_other() {
        let names = Names::new("test", "node-a");
        let covered = Covered { through: Micros(7), ..Covered::default() };
        let word = word(&names, covered);
        for (subject, payload, heard) in [
            ("tokentrail.test.reached.node-a", &*word, true),
            ("$KV.tokentrail_test.side.node-a", &word, true),
            ("tokentrail.test.reached.thief", &word, false),
            ("$KV.tokentrail_test.side.thief", &word, false),
            ("$KV.tokentrail_test.ask.node-a", &word, false),
            ("tokentrail.test.reached.node-a", br#"{"side":"node-a"}"#, false),
            ("tokentrail.test.reached.node-a", br#"{"stream":"x","seq":7}"#, false),
            ("tokentrail.test.reached.node-a", b"", false),
        ] {
            let said = said(&names, subject, payload);
            assert_eq!(said, heard.then(|| ("node-a".to_owned(), covered)), "{subject}");
        }
    }
}
