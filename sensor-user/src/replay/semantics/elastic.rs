//! Feeds [`Elastic`], decoding no line that meets no pending open.

use std::collections::{BTreeSet, HashMap};

use serde_json::Value;

use super::{Judged, Outcome, Semantics};
use crate::{
    alert::ecs::Document,
    audit::scan::{Glance, Interest, Pods, Scan, Users, classify, decode, glance, stage_timestamp},
    replay::{
        document::Writer,
        elastic::{Elastic, MAX_SPAN, Match},
        opens::OpenDocument,
    },
    rules::token_request::is_systems,
    time::Micros,
};

/// Pods of which requests are kept for their turn. Opens are read ahead by a bounded amount, so
/// only a flood of names comes near.
const EXPECTED: usize = 65_536;

/// Elasticsearch's evaluation of the two rules.
pub struct ElasticSemantics {
    machine: Elastic,
    /// Pods with an open that was read and is not out of span, and the time of their last one.
    expected: HashMap<String, Micros>,
    by_time: BTreeSet<(Micros, String)>,
    given_up: u64,
    matches: Vec<Match>,
    writer: Writer,
}

impl ElasticSemantics {
    /// Alerts come from this writer.
    pub fn new(writer: Writer) -> Self {
        Self {
            machine: Elastic::default(),
            expected: HashMap::new(),
            by_time: BTreeSet::new(),
            given_up: 0,
            matches: Vec::new(),
            writer,
        }
    }

    fn interest<'a>(known: &'a dyn Fn(&str) -> bool) -> Interest<'a> {
        Interest {
            pods: Pods::Named(known),
            accounts: Users::None,
            sessions: false,
            token_requests: Users::Named(&|user| !is_systems(user)),
            canaries: false,
            received_may_lack: true,
        }
    }

    fn drop_expected(&mut self) {
        if let Some((_, name)) = self.by_time.pop_first() {
            self.expected.remove(&name);
        }
    }
}

impl Semantics for ElasticSemantics {
    fn expect(&mut self, open: &OpenDocument) -> bool {
        if !open.is_elastic || open.names.is_empty() {
            return false;
        }
        for name in &open.names {
            let before = self.expected.insert(name.clone(), open.time);
            let time = before.map_or(open.time, |before| before.max(open.time));
            if let Some(before) = before {
                self.by_time.remove(&(before, name.clone()));
                self.expected.insert(name.clone(), time);
            }
            self.by_time.insert((time, name.clone()));
            if self.expected.len() > EXPECTED {
                self.drop_expected();
                self.given_up += 1;
            }
        }
        true
    }

    fn judge(&mut self, line: &[u8]) -> Judged {
        let known = |name: &str| self.expected.contains_key(name);
        let interest = Self::interest(&known);
        match glance(line, &interest) {
            Glance::Skip => return Judged::Skip,
            Glance::Bad(reason) => return Judged::Bad(reason),
            Glance::Decode => {}
        }
        let time = match stage_timestamp(line) {
            Some(time) => time,
            None => match decode(line, &interest) {
                Ok(Some(record)) => record.stage_timestamp,
                Ok(None) => return Judged::Skip,
                Err(reason) => return Judged::Bad(reason),
            },
        };
        Judged::Keep { time }
    }

    fn forget(&mut self, watermark: Micros) {
        let over = |(time, _): &(Micros, String)| *time + MAX_SPAN < watermark;
        while self.by_time.first().is_some_and(over) {
            self.drop_expected();
        }
    }

    fn open(&mut self, open: OpenDocument, _: &mut Vec<Document>) {
        self.machine.open(open);
    }

    fn request(&mut self, line: &[u8], documents: &mut Vec<Document>) -> Outcome {
        let pending = |name: &str| self.machine.is_pending(name);
        let record = match classify(line, &Self::interest(&pending)) {
            Scan::Skip => return Ok(()),
            Scan::Bad(reason) => return Err(reason),
            Scan::Record(record) => record,
        };
        let has_user_name = !record.user.username.is_empty() || has_user_name(line);
        self.machine.request(record, has_user_name, &mut self.matches);
        documents.extend(self.matches.drain(..).map(|found| self.writer.document(&found)));
        Ok(())
    }

    fn advance(&mut self, _: Micros, _: &mut Vec<Document>) {}

    fn losses(&self) -> Vec<(&'static str, u64)> {
        vec![("opens", self.given_up + self.machine.evicted())]
    }
}

/// Whether a user has a name, and be it empty.
fn has_user_name(line: &[u8]) -> bool {
    let event = serde_json::from_str::<Value>(&String::from_utf8_lossy(line));
    event.is_ok_and(|event| event.pointer("/user/username").is_some_and(Value::is_string))
}
