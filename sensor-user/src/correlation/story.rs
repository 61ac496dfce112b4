//! What an incident is made of, whichever rule began it: its opens, its requests, and what was told
//! of it already. Who may join is the rule's business, see `incident` and `hourly`.

use std::{
    cmp::Reverse,
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use lru::LruCache;

use super::{
    Open,
    finding::{Attached, Finding, Kind},
    ids::{self, RequestId},
};
use crate::{
    audit::AuditRecord,
    rules::{Band, RequestKind, address::Address, catalogue::RuleId},
    time::Micros,
};

/// Requests whose records are kept for the summary, those of the highest risk; the rest is counted.
const KEPT_REQUESTS: usize = 200;
/// Request identities remembered, so that later stages and duplicates are not counted again.
const KNOWN_IDS: usize = 4_096;
/// Pods named of those whose token was opened.
const VICTIMS: usize = 200;
/// Ids of other incidents.
const RELATED: usize = 16;

/// The record of one incident.
#[derive(Debug)]
pub struct Story {
    rule: RuleId,
    id: String,
    /// The highest band that was told.
    told: Band,
    /// Whether only requests that the workload makes anyway were told.
    own_only: bool,
    open: Option<Arc<Open>>,
    request: Option<Attached>,
    initiators: Vec<Arc<AuditRecord>>,
    requests: BTreeMap<(Micros, RequestId), Attached>,
    request_count: u64,
    known: LruCache<RequestId, (Micros, RequestKind, Address)>,
    open_count: u64,
    early: bool,
    victims: BTreeMap<String, u64>,
    related: BTreeSet<String>,
    first: Micros,
    last: Micros,
}

impl Story {
    /// Begins with an open, with a request, or with a request that an open explains.
    pub fn begin(
        rule: RuleId,
        id: String,
        open: Option<Arc<Open>>,
        request: Option<Attached>,
    ) -> Self {
        let opened = open.as_ref().map(|open| open.open.wall);
        let received = request.as_ref().map(|it| it.record.request_received_timestamp);
        let times = opened.into_iter().chain(received);
        let mut story = Self {
            rule,
            id,
            told: rule.band(),
            own_only: request.as_ref().is_some_and(|it| it.request == RequestKind::Own),
            first: times.clone().min().unwrap_or_default(),
            last: times.max().unwrap_or_default(),
            open,
            request: None,
            initiators: Vec::new(),
            requests: BTreeMap::new(),
            request_count: 0,
            known: LruCache::unbounded(),
            open_count: 0,
            early: false,
            victims: BTreeMap::new(),
            related: BTreeSet::new(),
        };
        if let Some(request) = request {
            story.request = Some(story.attach(request));
        }
        if let Some(request) = &story.request {
            story.told = request.band;
        }
        story
    }

    /// Its id.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// Requests so far.
    pub fn request_count(&self) -> u64 {
        self.request_count
    }

    /// Opens so far.
    pub fn open_count(&self) -> u64 {
        self.open_count
    }

    /// Names who may have opened the session, best first.
    pub fn set_initiators(&mut self, initiators: Vec<Arc<AuditRecord>>) {
        self.initiators = initiators;
    }

    /// Names another rule's incident about the same.
    pub fn relate(&mut self, id: &str) {
        if self.related.len() < RELATED {
            self.related.insert(id.to_owned());
        }
    }

    /// Takes a request in, and gives it back with its band.
    pub fn attach(&mut self, mut attached: Attached) -> Attached {
        attached.band = self.rule.band_of(&attached.record, attached.request, attached.address);
        self.request_count += 1;
        self.cover(attached.record.request_received_timestamp);
        let Attached { id, time, request, address, .. } = attached;
        self.known.put(id, (time, request, address));
        if self.known.len() > KNOWN_IDS {
            self.known.pop_lru();
        }
        self.requests.insert((time, id), attached.clone());
        if self.requests.len() > KEPT_REQUESTS {
            self.drop_least();
        }
        attached
    }

    /// Takes an open of this pod's token in.
    pub fn add_open(&mut self, open: &Open) {
        self.open_count += 1;
        self.cover(open.open.wall);
        let victim = open.open.pod_uid.clone().unwrap_or_default();
        if self.victims.len() < VICTIMS || self.victims.contains_key(&victim) {
            *self.victims.entry(victim).or_default() += 1;
        }
    }

    /// Says how many opens there are, where they are counted elsewhere.
    pub fn set_open_count(&mut self, count: u64) {
        self.open_count = self.open_count.max(count);
    }

    /// Says that its opens are told before their exposures have ended.
    pub fn set_early(&mut self) {
        self.early = true;
    }

    /// Lets it last from or until this time, wall clock.
    pub fn cover(&mut self, wall: Micros) {
        self.first = self.first.min(wall);
        self.last = self.last.max(wall);
    }

    /// Takes another incident's record in, as if all of it had been this one's from the beginning.
    pub fn absorb(&mut self, other: Self) {
        let began = |story: &Self| {
            let request = story.request.as_ref();
            request.map_or((Micros::MAX, None), |it| (it.time, Some(it.id)))
        };
        if began(&other) < began(self) {
            self.open.clone_from(&other.open);
            self.request.clone_from(&other.request);
            self.initiators.clone_from(&other.initiators);
        }
        self.told = self.told.max(other.told);
        self.own_only &= other.own_only;
        self.cover(other.first);
        self.cover(other.last);
        let before = self.known.len();
        for (id, known) in &other.known {
            self.known.put(*id, *known);
        }
        let both = (before + other.known.len()).saturating_sub(self.known.len());
        self.request_count += other.request_count.saturating_sub(both as u64);
        while self.known.len() > KNOWN_IDS {
            self.known.pop_lru();
        }
        self.requests.extend(other.requests);
        while self.requests.len() > KEPT_REQUESTS {
            self.drop_least();
        }
        for id in other.related.iter().chain([&other.id]) {
            self.relate(id);
        }
    }

    /// Drops the request that is missed least.
    fn drop_least(&mut self) {
        let least = self.requests.iter().min_by_key(|(key, it)| (it.band, Reverse(**key)));
        if let Some(key) = least.map(|(key, _)| *key) {
            self.requests.remove(&key);
        }
    }

    /// Notes a later stage of a request that is in; gives it back as it is now, with whether that is news.
    /// `None` if it is not in.
    pub fn update(&mut self, id: RequestId, record: &AuditRecord) -> Option<(Attached, bool)> {
        let (time, request, address) = *self.known.peek(&id)?;
        let band = self.rule.band_of(record, request, address);
        let Some(kept) = self.requests.get_mut(&(time, id)) else {
            // Counted only; but it may turn out to be worse than what is kept.
            let record = Arc::new(record.clone());
            let counted = Attached { id, time, record, request, address, by_address: false, band };
            return Some((counted, false));
        };
        let is_news = kept.record.is_before(record);
        if is_news {
            Arc::make_mut(&mut kept.record).take_outcome(record);
            kept.band = self.rule.band_of(&kept.record, request, address);
            if let Some(first) = self.request.as_mut().filter(|first| first.id == id) {
                first.record = Arc::clone(&kept.record);
            }
        }
        Some((kept.clone(), is_news))
    }

    /// What is told when it begins.
    pub fn alert(&self) -> Finding {
        self.tell(Kind::Alert, self.request.clone())
    }

    /// What is told of a request that makes it worse; `None` if it does not.
    pub fn escalation(&mut self, attached: &Attached) -> Option<Finding> {
        let first_new = self.own_only && attached.request == RequestKind::New;
        if attached.band <= self.told && !first_new {
            return None;
        }
        self.own_only &= !first_new;
        self.told = self.told.max(attached.band);
        Some(self.tell(Kind::Escalation, Some(attached.clone())))
    }

    /// What is told when it has ended.
    pub fn summary(&self) -> Finding {
        self.tell(Kind::Incident, self.request.clone())
    }

    fn tell(&self, kind: Kind, request: Option<Attached>) -> Finding {
        Finding {
            kind,
            event_id: ids::event_id(self.rule.as_str(), &self.id, kind.as_str(), self.told),
            incident_id: self.id.clone(),
            related: self.related.iter().cloned().collect(),
            rule: self.rule,
            band: self.told,
            open: self.open.clone(),
            request,
            initiators: self.initiators.clone(),
            requests: self.requests.values().cloned().collect(),
            request_count: self.request_count,
            open_count: self.open_count,
            early: self.early,
            victims: self.victims.clone(),
            first: self.first,
            last: self.last,
        }
    }
}
