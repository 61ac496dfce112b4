//! R1's incident: one pod, one story, one alert; every further request joins it silently, unless it
//! makes it worse.

use std::sync::Arc;

use super::{
    Open, Request, Settings,
    finding::{Attached, Finding},
    ids::{self, RequestId},
    story::Story,
    window::Exposure,
};
use crate::{audit::AuditRecord, rules::catalogue::RuleId, time::Micros};

/// Different clients (user agent and address) whose further requests join.
const CLIENTS: usize = 16;

/// What led to an incident.
#[derive(Debug)]
pub struct Cause<'a> {
    /// The exposure that holds the first request.
    pub exposure: &'a Exposure,
    /// The open that explains it.
    pub open: Arc<Open>,
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

/// The state of an incident that has not ended. Times are on the steady axis.
#[derive(Debug)]
pub struct Incident {
    /// Its record.
    pub story: Story,
    clients: Vec<Client>,
    first: Micros,
    last_attached: Micros,
    exposed_until: Micros,
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
            exposure.first.open.ktime_ns,
        );
        let rule = RuleId::TokenAccessThenApiRequest;
        let (time, client) = (opener.time, Client::of(&opener.record));
        let mut story = Story::begin(rule, id, Some(open), Some(opener));
        story.set_initiators(initiators);
        let mut incident = Self {
            story,
            clients: vec![client],
            first: exposure.first_open().min(time),
            last_attached: time,
            exposed_until: exposure.end(settings),
        };
        incident.cover(exposures, settings);
        incident
    }

    /// Takes a request in; what is told of it, if it makes the incident worse.
    pub fn join(
        &mut self,
        attached: Attached,
        exposures: &[Exposure],
        settings: &Settings,
    ) -> Option<Finding> {
        self.first = self.first.min(attached.time);
        self.last_attached = self.last_attached.max(attached.time);
        let client = Client::of(&attached.record);
        if !self.clients.contains(&client) && self.clients.len() < CLIENTS {
            self.clients.push(client);
        }
        let attached = self.story.attach(attached);
        self.cover(exposures, settings);
        self.story.escalation(&attached)
    }

    /// Notes a later stage of a request that is already in; `None` if it is not. What is told of
    /// it, if it makes the incident worse.
    pub fn update(&mut self, id: RequestId, record: &AuditRecord) -> Option<Option<Finding>> {
        let attached = self.story.update(id, record)?;
        Some(self.story.escalation(&attached))
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
                for open in exposure.opens() {
                    self.story.cover(open.open.wall);
                }
            }
            self.story.set_open_count(opens);
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
}
