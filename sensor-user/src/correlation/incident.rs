//! An incident: one pod, one story, one alert; every further request joins it silently.

use std::{collections::BTreeMap, num::NonZeroUsize, sync::Arc};

use lru::LruCache;

use super::{Alert, Request, Settings, ids, ids::RequestId, window::Exposure};
use crate::{
    attribution::TokenOpen,
    audit::AuditRecord,
    rules::{Band, token_access},
    time::Micros,
};

/// Requests whose records are kept for the summary; the rest is counted.
const KEPT_REQUESTS: usize = 200;
/// Request identities remembered, so that later stages and duplicates are not counted again.
const KNOWN_IDS: NonZeroUsize = NonZeroUsize::MIN.saturating_add(4_095);
/// Different clients (user agent and address) whose further requests join.
const CLIENTS: usize = 16;

/// A request on its way into an incident.
#[derive(Clone, Debug)]
pub struct Attached {
    id: RequestId,
    time: Micros,
    record: Arc<AuditRecord>,
}

impl Attached {
    /// Of a request with its identity.
    pub fn new(id: RequestId, request: &Request) -> Self {
        Self { id, time: request.time, record: Arc::new(request.record.clone()) }
    }
}

/// What led to an incident.
#[derive(Debug)]
pub struct Cause<'a> {
    /// The exposure that holds the first request.
    pub exposure: &'a Exposure,
    /// The open that explains it.
    pub open: Arc<TokenOpen>,
    /// Sessions that may have brought the opener in, best first.
    pub initiators: Vec<Arc<AuditRecord>>,
}

/// Who asks: requests with the same user agent from the same address are one client's.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Client {
    user_agent: Option<String>,
    address: Option<String>,
}

impl Client {
    fn of(record: &AuditRecord) -> Self {
        Self {
            user_agent: record.user_agent.clone(),
            address: record.source_ip().map(str::to_owned),
        }
    }
}

/// The state of an incident that has not ended.
#[derive(Debug)]
pub struct Incident {
    id: String,
    band: Band,
    open: Arc<TokenOpen>,
    initiators: Vec<Arc<AuditRecord>>,
    opener: Attached,
    requests: BTreeMap<(Micros, RequestId), Arc<AuditRecord>>,
    request_count: u64,
    known: LruCache<RequestId, Micros>,
    clients: Vec<Client>,
    first: Micros,
    last_attached: Micros,
    exposed_until: Micros,
    open_count: u64,
    first_wall: Micros,
    last_wall: Micros,
}

impl Incident {
    /// Begins with the request `opener`.
    pub fn begin(
        settings: &Settings,
        pod_uid: &str,
        Cause { exposure, open, initiators }: Cause<'_>,
        opener: Attached,
        exposures: &[Exposure],
    ) -> Self {
        let id = ids::incident_id(
            &settings.cluster,
            &exposure.boot_id,
            pod_uid,
            exposure.entry,
            exposure.first.ktime_ns,
        );
        let received = opener.record.request_received_timestamp;
        let mut incident = Self {
            id,
            band: token_access::BASE_BAND,
            first: exposure.first_open().min(opener.time),
            last_attached: opener.time,
            exposed_until: exposure.end(settings),
            open_count: 0,
            first_wall: exposure.first.wall.min(received),
            last_wall: open.wall.max(received),
            open,
            initiators,
            opener: opener.clone(),
            requests: BTreeMap::new(),
            request_count: 0,
            known: LruCache::new(KNOWN_IDS),
            clients: Vec::new(),
        };
        incident.join(opener, exposures, settings);
        incident
    }

    /// Takes a request in.
    pub fn join(&mut self, attached: Attached, exposures: &[Exposure], settings: &Settings) {
        let received = attached.record.request_received_timestamp;
        self.first = self.first.min(attached.time);
        self.last_attached = self.last_attached.max(attached.time);
        self.first_wall = self.first_wall.min(received);
        self.last_wall = self.last_wall.max(received);
        self.request_count += 1;
        self.known.put(attached.id, attached.time);
        let client = Client::of(&attached.record);
        if !self.clients.contains(&client) && self.clients.len() < CLIENTS {
            self.clients.push(client);
        }
        if self.requests.len() < KEPT_REQUESTS {
            self.requests.insert((attached.time, attached.id), attached.record);
        }
        self.cover(exposures, settings);
    }

    /// Notes a later stage of a request that is already in; `false` if it is not.
    pub fn update(&mut self, id: RequestId, record: &AuditRecord) -> bool {
        let Some(time) = self.known.peek(&id).copied() else { return false };
        let refresh = |kept: &mut Arc<AuditRecord>| {
            let kept = Arc::make_mut(kept);
            kept.stage = record.stage;
            kept.stage_timestamp = record.stage_timestamp;
            if record.response_status.is_some() {
                kept.response_status.clone_from(&record.response_status);
            }
            kept.annotations.extend(record.annotations.clone());
        };
        if let Some(kept) = self.requests.get_mut(&(time, id))
            && kept.stage_timestamp < record.stage_timestamp
        {
            refresh(kept);
            if self.opener.id == id {
                self.opener.record = Arc::clone(kept);
            }
        }
        true
    }

    /// Lets exposures that touch the incident prolong it, and counts their opens.
    pub fn cover(&mut self, exposures: &[Exposure], settings: &Settings) {
        loop {
            let before = self.exposed_until;
            let (mut until, mut opens) = (before, 0);
            for exposure in exposures {
                if !self.touches(exposure, settings) {
                    continue;
                }
                until = until.max(exposure.end(settings));
                opens += exposure.count;
                self.first = self.first.min(exposure.first_open());
                self.first_wall = self.first_wall.min(exposure.first.wall);
                for open in exposure.opens() {
                    self.last_wall = self.last_wall.max(open.wall);
                }
            }
            self.open_count = self.open_count.max(opens);
            self.exposed_until = until;
            if until == before {
                return;
            }
        }
    }

    /// Whether an exposure begins before the incident ends, and ends after it began.
    pub fn touches(&self, exposure: &Exposure, settings: &Settings) -> bool {
        exposure.start(settings) <= self.end(settings) && self.first <= exposure.end(settings)
    }

    /// Whether a request outside every exposure is one more of a client that is already in.
    pub fn continues(&self, request: &Request, settings: &Settings) -> bool {
        self.first <= request.time
            && request.time <= self.end(settings)
            && self.clients.contains(&Client::of(&request.record))
    }

    /// The last moment at which a request can still join.
    pub fn end(&self, settings: &Settings) -> Micros {
        let tail =
            (self.last_attached + settings.window).min(self.exposed_until + settings.longest_tail);
        self.exposed_until.max(tail)
    }

    /// Time of its first open or request.
    pub fn first_time(&self) -> Micros {
        self.first
    }

    /// What is told when it begins.
    pub fn alert(&self) -> Alert {
        self.tell("alert")
    }

    /// What is told when it has ended.
    pub fn summary(&self) -> Alert {
        self.tell("incident")
    }

    fn tell(&self, kind: &str) -> Alert {
        Alert {
            event_id: ids::event_id(token_access::RULE.id, &self.id, kind, self.band),
            incident_id: self.id.clone(),
            rule: &token_access::RULE,
            band: self.band,
            open: Arc::clone(&self.open),
            request: Arc::clone(&self.opener.record),
            initiators: self.initiators.clone(),
            requests: self.requests.values().cloned().collect(),
            request_count: self.request_count,
            open_count: self.open_count,
            first: self.first_wall,
            last: self.last_wall,
        }
    }
}
