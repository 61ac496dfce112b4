//! Incidents that have no exposure: one for each key and hour of event time from its first event,
//! joined by whatever has the same key (R2: who mints for whom, R3: who reads, R7: which decoy, R0
//! told early: which pod).

use super::{finding::Finding, ids::Key, story::Story};
use crate::time::Micros;

/// How long an incident can be joined from its first event on.
const HOUR: Micros = Micros::from_secs(3_600);
/// How much earlier than the first one an event may be that arrives after it.
const EARLIER: Micros = Micros::from_secs(5 * 60);
/// Incidents of one owner: part of what makes a key is the attacker's to choose. What is beyond them
/// is one more incident, of whatever key.
const PER_OWNER: usize = 16;
/// Incidents in all.
const TOTAL: usize = 256;

/// One incident.
#[derive(Debug)]
pub struct Standing {
    key: Key,
    first: Micros,
    /// Its record.
    pub story: Story,
}

/// The incidents of one rule that can still be joined.
#[derive(Debug, Default)]
pub struct Hourly {
    live: Vec<Standing>,
    evicted: u64,
}

impl Hourly {
    /// The key by which an event is to be joined: its own, or that of its owner alone if that has
    /// too many.
    pub fn key(&self, key: Key, time: Micros) -> Key {
        let of_owner = self.live.iter().filter(|it| it.key.owner == key.owner).count();
        if of_owner < PER_OWNER || self.live.iter().any(|it| it.takes(&key, time)) {
            return key;
        }
        Key { rest: Vec::new(), ..key }
    }

    /// The incident that an event of this time belongs to, which begins with it if it is earlier.
    pub fn find(&mut self, key: &Key, time: Micros) -> Option<&mut Standing> {
        let standing = self.live.iter_mut().find(|standing| standing.takes(key, time))?;
        standing.first = standing.first.min(time);
        Some(standing)
    }

    /// Whether a restart needs an event of this key and time: an incident that has not ended began
    /// with it, or after it.
    pub fn needs(&self, key: &Key, time: Micros) -> bool {
        self.live.iter().any(|it| {
            let same = it.key == *key || (it.key.owner == key.owner && it.key.rest.is_empty());
            same && it.first <= time && time <= it.first + HOUR
        })
    }

    /// Adds one that began at `first`. Where there are too many, the oldest of the owner that has
    /// most is told to have ended.
    pub fn begin(&mut self, key: Key, first: Micros, story: Story, findings: &mut Vec<Finding>) {
        let count = |owner: &str| self.live.iter().filter(|it| it.key.owner == owner).count();
        if self.is_full() {
            let owners = self.live.iter().map(|it| it.key.owner.as_str());
            let crowded = owners.max_by_key(|owner| (count(owner), *owner));
            let owner = crowded.unwrap_or_default().to_owned();
            let places = self.live.iter().enumerate().filter(|(_, it)| it.key.owner == owner);
            if let Some(place) = places.min_by_key(|(_, it)| it.first).map(|(place, _)| place) {
                findings.push(self.live.remove(place).story.summary());
                self.evicted += 1;
            }
        }
        self.live.push(Standing { key, first, story });
    }

    /// Tells those that nothing can join any more.
    pub fn end(&mut self, watermark: Micros, findings: &mut Vec<Finding>) {
        self.live.retain(|standing| {
            let live = standing.first + HOUR >= watermark;
            findings.extend((!live).then(|| standing.story.summary()));
            live
        });
    }

    /// The records of all, for later stages of their requests.
    pub fn stories(&mut self) -> impl Iterator<Item = &mut Story> {
        self.live.iter_mut().map(|standing| &mut standing.story)
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.live.len()
    }

    /// Whether another one would end one that stands.
    pub fn is_full(&self) -> bool {
        self.live.len() >= TOTAL
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.live.is_empty()
    }

    /// How many were told to have ended early.
    pub fn evicted(&self) -> u64 {
        self.evicted
    }
}

impl Standing {
    fn takes(&self, key: &Key, time: Micros) -> bool {
        self.key == *key && self.first - EARLIER <= time && time <= self.first + HOUR
    }
}
