//! What an incident is made of, whichever rule began it: its opens, its requests, and what was told
//! of it already. Who may join is the rule's business, see `incident` and `hourly`.

use std::{
    cmp::Reverse,
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use super::{
    Open,
    finding::{Asked, Attached, Finding, Kind, Listed},
    ids::{self, RequestId},
};
use crate::{
    audit::AuditRecord,
    rules::{Band, RequestKind, address::Address, catalogue::RuleId},
    time::Micros,
};

/// Requests that a summary lists, those of the highest risk; the rest is counted. Of one incident,
/// and of all that go on, some 100 bytes each.
const LISTED: (usize, usize) = (200, 32_768);
/// Requests that are remembered, so that their later stages and duplicates are not counted again. Of
/// one incident, and of all that go on, some 50 bytes each.
const KNOWN: (usize, usize) = (4_096, 65_536);
/// What each incident may hold of either, however many there are.
const LEAST: usize = 16;
/// Requests before it in whose list one that is alike is looked for.
const ALIKE: usize = 16;
/// Pods named of those whose token was opened.
const VICTIMS: usize = 200;
/// Ids of other incidents.
const RELATED: usize = 16;

/// What one incident may hold, so that all together stay within bounds.
#[derive(Clone, Copy, Debug)]
pub struct Share {
    listed: usize,
    known: usize,
}

impl Share {
    /// Requests that a summary lists where there is room.
    pub const MOST_LISTED: u64 = LISTED.0 as u64;

    /// Where so many go on.
    pub fn among(incidents: usize) -> Self {
        let share = |(most, all): (usize, usize)| (all / incidents.max(1)).clamp(LEAST, most);
        Self { listed: share(LISTED), known: share(KNOWN) }
    }
}

/// What is remembered of a request.
#[derive(Clone, Copy, Debug)]
struct Known {
    /// On the steady axis.
    time: Micros,
    request: RequestKind,
    address: Address,
    by_address: bool,
}

/// Where a request is found: by when it was received, and its identity.
type Place = (Micros, RequestId);

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
    /// The one that it was told with.
    request: Option<Attached>,
    /// The one that it is summed up with: of those that are worst, the earliest.
    worst: Option<Attached>,
    initiators: Vec<Arc<AuditRecord>>,
    requests: BTreeMap<Place, Listed>,
    request_count: u64,
    known: BTreeMap<Place, Known>,
    forgotten: u64,
    overtaken: u64,
    open_count: u64,
    early: bool,
    crowded: bool,
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
            worst: None,
            initiators: Vec::new(),
            requests: BTreeMap::new(),
            request_count: 0,
            known: BTreeMap::new(),
            forgotten: 0,
            overtaken: 0,
            open_count: 0,
            early: false,
            crowded: false,
            victims: BTreeMap::new(),
            related: BTreeSet::new(),
        };
        if let Some(request) = request {
            story.request = Some(story.attach(request, Share::among(1)));
            story.worst.clone_from(&story.request);
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
    pub fn attach(&mut self, mut attached: Attached, share: Share) -> Attached {
        attached.band = self.rule.band_of(&attached.record, attached.request, attached.address);
        self.request_count += 1;
        let told = self.request.as_ref();
        self.overtaken += u64::from(told.is_some_and(|told| attached.time < told.time));
        let received = attached.record.request_received_timestamp;
        self.cover(received);
        let Attached { id, time, request, address, by_address, .. } = attached;
        let place = (received, id);
        self.known.insert(place, Known { time, request, address, by_address });
        self.requests.insert(place, self.listed(&attached));
        self.keep_within(share);
        self.note_worst(&attached);
        attached
    }

    /// Sums it up with this request, or a later stage of the one that it is summed up with. `true` if that
    /// is news of the same.
    fn note_worst(&mut self, attached: &Attached) -> bool {
        // What was told by an open alone is summed up by that.
        let Some(worst) = &mut self.worst else { return false };
        if worst.id == attached.id {
            worst.band = worst.band.max(attached.band);
            let later = worst.record.is_before(&attached.record);
            if later {
                Arc::make_mut(&mut worst.record).take_outcome(&attached.record);
            }
            return later;
        }
        if badness(worst) < badness(attached) {
            *worst = attached.clone();
        }
        false
    }

    fn listed(&self, attached: &Attached) -> Listed {
        let Attached { id, ref record, request, band, .. } = *attached;
        let asked = Asked::of(record);
        let mut before = self.requests.values().rev().take(ALIKE);
        let alike = before.find(|it| *it.asked == asked).map(|it| Arc::clone(&it.asked));
        Listed {
            id,
            received: record.request_received_timestamp,
            stage: (record.stage_timestamp, record.stage),
            request,
            band,
            code: record.response_status.as_ref().and_then(|status| status.code),
            asked: alike.unwrap_or_else(|| Arc::new(asked)),
        }
    }

    fn keep_within(&mut self, share: Share) {
        while self.requests.len() > share.listed {
            let least = self.requests.iter().min_by_key(|(place, it)| (it.band, Reverse(**place)));
            let Some(place) = least.map(|(place, _)| *place) else { break };
            self.requests.remove(&place);
        }
        while self.known.len() > share.known {
            self.known.pop_first();
            self.forgotten += 1;
        }
    }

    /// Takes an open of this pod's token in.
    pub fn add_open(&mut self, open: &Open) {
        self.open_count = self.open_count.saturating_add(open.open.count());
        self.cover(open.open.wall);
        let victim = open.open.pod_uid.clone().unwrap_or_default();
        if self.victims.len() < VICTIMS || self.victims.contains_key(&victim) {
            let opens = self.victims.entry(victim).or_default();
            *opens = opens.saturating_add(open.open.count());
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

    /// Says whether it is the one for all that its maker has beyond a bound.
    pub fn set_crowded(&mut self, crowded: bool) {
        self.crowded = crowded;
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
        if let Some(others) = &other.worst {
            self.note_worst(others);
        }
        self.told = self.told.max(other.told);
        self.own_only &= other.own_only;
        self.cover(other.first);
        self.cover(other.last);
        let before = self.known.len();
        let others = other.known.len();
        self.known.extend(other.known);
        let both = (before + others).saturating_sub(self.known.len());
        self.request_count += other.request_count.saturating_sub(both as u64);
        self.forgotten += other.forgotten;
        self.overtaken += other.overtaken;
        self.requests.extend(other.requests);
        self.keep_within(Share::among(1));
        for id in other.related.iter().chain([&other.id]) {
            self.relate(id);
        }
    }

    /// Notes a later stage of a request that is in; gives it back as it is now, with whether that is
    /// news. `None` if it is not in.
    pub fn update(&mut self, id: RequestId, record: &AuditRecord) -> Option<(Attached, bool)> {
        let place = (record.request_received_timestamp, id);
        let Known { time, request, address, by_address } = *self.known.get(&place)?;
        let band = self.rule.band_of(record, request, address);
        let record = Arc::new(record.clone());
        let attached = Attached { id, time, record, request, address, by_address, band };
        let earlier = self.requests.get(&place).filter(|it| it.is_before(&attached.record));
        let mut is_news = earlier.is_some();
        if let Some(earlier) = earlier.cloned() {
            let mut later = self.listed(&attached);
            later.code = later.code.or(earlier.code);
            if later.asked.decision.is_none() {
                Arc::make_mut(&mut later.asked).decision.clone_from(&earlier.asked.decision);
            }
            self.requests.insert(place, later);
        }
        is_news |= self.note_worst(&attached);
        Some((attached, is_news))
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
        self.tell(Kind::Incident, self.worst.clone())
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
            forgotten: self.forgotten,
            overtaken: self.overtaken,
            open_count: self.open_count,
            early: self.early,
            crowded: self.crowded,
            victims: self.victims.clone(),
            first: self.first,
            last: self.last,
        }
    }
}

/// What of two requests the worse one has more of.
fn badness(request: &Attached) -> (Band, u8, Reverse<Place>) {
    let kind = match request.request {
        RequestKind::Own => 0,
        RequestKind::Unknown => 1,
        RequestKind::New => 2,
    };
    (request.band, kind, Reverse((request.record.request_received_timestamp, request.id)))
}
