//! Feeds [`Elastic`], decoding no line that meets no pending open.

use std::cell::Cell;

use lru::LruCache;
use serde_json::Value;

use super::{Judged, Outcome, Semantics, Tell};
use crate::{
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

/// Opens of one pod.
struct Expected {
    /// Time of the last one.
    last: Micros,
    /// How many are still to have their turn.
    waiting: usize,
}

/// Elasticsearch's evaluation of the two rules.
pub struct ElasticSemantics {
    machine: Elastic,
    /// Pods with an open that was read and is not out of span, the last one read at the end.
    expected: LruCache<String, Expected>,
    given_up: u64,
    /// Nothing before this is left.
    now: Micros,
    matches: Vec<Match>,
    writer: Writer,
}

impl ElasticSemantics {
    /// Alerts come from this writer.
    pub fn new(writer: Writer) -> Self {
        Self {
            machine: Elastic::default(),
            expected: LruCache::unbounded(),
            given_up: 0,
            now: Micros::MIN,
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
}

impl Semantics for ElasticSemantics {
    fn expect(&mut self, open: &OpenDocument) -> bool {
        if !open.is_elastic || open.names.is_empty() {
            return false;
        }
        for name in &open.names {
            match self.expected.get_mut(name) {
                Some(expected) => {
                    expected.last = expected.last.max(open.time);
                    expected.waiting += 1;
                }
                None => {
                    self.expected.push(name.clone(), Expected { last: open.time, waiting: 1 });
                }
            }
            if self.expected.len() > EXPECTED {
                self.expected.pop_lru();
                self.given_up += 1;
            }
        }
        true
    }

    fn judge(&mut self, line: &[u8]) -> Judged {
        let was_open = Cell::new(false);
        let known = |name: &str| {
            let Some(expected) = self.expected.peek(name) else { return false };
            was_open.set(true);
            expected.waiting > 0 || self.machine.is_pending(name)
        };
        let interest = Self::interest(&known);
        match glance(line, &interest) {
            // The open was used up: only what comes too late could have done so before, which is
            // to be counted.
            Glance::Skip if was_open.get() => {
                let late = stage_timestamp(line).filter(|time| *time < self.now);
                return late.map_or(Judged::Skip, |time| Judged::Keep { time });
            }
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
        let is_over =
            |(_, it): (&String, &Expected)| it.waiting == 0 && it.last + MAX_SPAN < watermark;
        while self.expected.peek_lru().is_some_and(is_over) {
            self.expected.pop_lru();
        }
    }

    fn open(&mut self, open: OpenDocument, _: Tell<'_>) {
        for name in &open.names {
            if let Some(expected) = self.expected.peek_mut(name) {
                expected.waiting = expected.waiting.saturating_sub(1);
            }
        }
        self.machine.open(open);
    }

    fn request(&mut self, line: &[u8], tell: Tell<'_>) -> Outcome {
        let pending = |name: &str| self.machine.is_pending(name);
        let record = match classify(line, &Self::interest(&pending)) {
            Scan::Skip => return Ok(()),
            Scan::Bad(reason) => return Err(reason),
            Scan::Record(record) => record,
        };
        let has_user_name = !record.user.username.is_empty() || has_user_name(line);
        self.machine.request(record, has_user_name, &mut self.matches);
        self.matches.drain(..).map(|found| self.writer.document(&found)).for_each(tell);
        Ok(())
    }

    fn advance(&mut self, watermark: Micros, _: Tell<'_>) {
        self.now = self.now.max(watermark);
    }

    fn losses(&self) -> Vec<(&'static str, u64)> {
        vec![("opens", self.given_up + self.machine.evicted())]
    }
}

/// Whether a user has a name, and be it empty.
fn has_user_name(line: &[u8]) -> bool {
    let event = serde_json::from_str::<Value>(&String::from_utf8_lossy(line));
    event.is_ok_and(|event| event.pointer("/user/username").is_some_and(Value::is_string))
}
