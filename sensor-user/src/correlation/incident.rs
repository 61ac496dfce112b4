//! R1's incident: one pod, one story, one alert; every further request joins it silently, unless it
//! makes it worse.

use std::{collections::VecDeque, mem, sync::Arc};

use super::{
    Open, Request, Settings,
    finding::{Attached, Finding},
    ids::{self, RequestId},
    story::{Share, Story},
    window::Exposure,
};
use crate::{audit::AuditRecord, rules::catalogue::RuleId, time::Micros};

/// Different clients (user agent and address) whose further requests join.
const CLIENTS: usize = 16;
/// Exposures of which is remembered when they were.
const SPANS: usize = 64;

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
    /// Who asks, and when each did first: what a client did before is no continuation.
    clients: Vec<(Client, Micros)>,
    first: Micros,
    last_attached: Micros,
    exposed_until: Micros,
    folded: Folded,
}

/// Exposures of an incident that nothing can extend any more.
#[derive(Debug, Default)]
struct Folded {
    opens: u64,
    /// From when until when, the newest ones: for requests that come later than they may.
    spans: VecDeque<(Micros, Micros)>,
}

impl Folded {
    fn add(&mut self, exposure: &Exposure, settings: &Settings) {
        self.opens = self.opens.saturating_add(exposure.count);
        // What explains new requests alone does not tell whether one that comes late is.
        if !exposure.needs_new_request() {
            self.note((exposure.start(), exposure.end(settings)));
        }
    }

    fn note(&mut self, span: (Micros, Micros)) {
        if self.spans.len() == SPANS {
            self.spans.pop_front();
        }
        self.spans.push_back(span);
    }

    fn absorb(&mut self, other: Self) {
        self.opens = self.opens.saturating_add(other.opens);
        other.spans.into_iter().for_each(|span| self.note(span));
    }

    fn holds(&self, time: Micros) -> bool {
        self.spans.iter().any(|(from, to)| *from <= time && time <= *to)
    }
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
        // Whichever request comes first, the id is that of what it goes back to.
        let root = earliest(exposures, exposure, settings);
        let id = ids::incident_id(
            &settings.cluster,
            &root.boot_id,
            pod_uid,
            root.entry,
            root.first.open.ktime_ns,
        );
        let rule = RuleId::TokenAccessThenApiRequest;
        let (time, client) = (opener.time, Client::of(&opener.record));
        let mut story = Story::begin(rule, id, Some(open), Some(opener));
        story.set_initiators(initiators);
        let mut incident = Self {
            story,
            clients: vec![(client, time)],
            first: exposure.first_open().min(time),
            last_attached: time,
            exposed_until: exposure.end(settings),
            folded: Folded::default(),
        };
        incident.cover(exposures, settings);
        incident
    }

    /// Takes a request in; what is told of it, if it makes the incident worse.
    pub fn join(
        &mut self,
        attached: Attached,
        share: Share,
        exposures: &[Exposure],
        settings: &Settings,
    ) -> Option<Finding> {
        self.first = self.first.min(attached.time);
        self.last_attached = self.last_attached.max(attached.time);
        self.note_client(Client::of(&attached.record), attached.time);
        let attached = self.story.attach(attached, share);
        self.cover(exposures, settings);
        self.story.escalation(&attached)
    }

    /// Notes a later stage of a request that is already in; `None` if it is not. Whether that is news, and
    /// what is told of it, if it makes the incident worse.
    pub fn update(
        &mut self,
        id: RequestId,
        record: &AuditRecord,
    ) -> Option<(bool, Option<Finding>)> {
        let (attached, is_news) = self.story.update(id, record)?;
        Some((is_news, self.story.escalation(&attached)))
    }

    /// Lets exposures that touch the incident prolong it, and counts their opens.
    pub fn cover(&mut self, exposures: &[Exposure], settings: &Settings) {
        loop {
            let before = (self.first, self.exposed_until);
            let (mut until, mut opens) = (self.exposed_until, self.folded.opens);
            for exposure in exposures {
                if !self.touches(exposure, settings) {
                    continue;
                }
                until = until.max(exposure.end(settings));
                opens = opens.saturating_add(exposure.count);
                self.first = self.first.min(exposure.first_open());
                for open in exposure.opens() {
                    self.story.cover(open.open.wall);
                }
            }
            self.story.set_open_count(opens);
            self.exposed_until = until;
            if (self.first, until) == before {
                return;
            }
        }
    }

    /// Takes over what counts of its exposures that ended before `watermark`: an incident may last for
    /// hours, and the opens of a pod are many.
    pub fn fold(&mut self, exposures: &mut Vec<Exposure>, watermark: Micros, settings: &Settings) {
        let mut folded = mem::take(&mut self.folded);
        exposures.retain(|exposure| {
            let over = exposure.end(settings) < watermark && self.touches(exposure, settings);
            if over {
                folded.add(exposure, settings);
            }
            !over
        });
        self.folded = folded;
    }

    /// Whether an exposure begins before the incident ends, and ends after it began.
    pub fn touches(&self, exposure: &Exposure, settings: &Settings) -> bool {
        exposure.start() <= self.end(settings) && self.first <= exposure.end(settings)
    }

    /// Whether two are one: input that came late has filled what was between them.
    pub fn overlaps(&self, other: &Self, settings: &Settings) -> bool {
        self.first <= other.end(settings) && other.first <= self.end(settings)
    }

    /// Takes in another one that is the same.
    pub fn absorb(&mut self, other: Self, exposures: &[Exposure], settings: &Settings) {
        for (client, first) in other.clients {
            self.note_client(client, first);
        }
        self.first = self.first.min(other.first);
        self.last_attached = self.last_attached.max(other.last_attached);
        self.exposed_until = self.exposed_until.max(other.exposed_until);
        self.folded.absorb(other.folded);
        self.story.absorb(other.story);
        self.cover(exposures, settings);
    }

    /// Whether a request outside every exposure is one more of a client that is already in, or came so
    /// late that its exposure is held no more.
    pub fn continues(&self, request: &Request, settings: &Settings) -> bool {
        if self.folded.holds(request.time) {
            return true;
        }
        let client = Client::of(&request.record);
        let known = self.clients.iter().find(|(known, _)| *known == client);
        known.is_some_and(|(_, first)| *first <= request.time) && request.time <= self.end(settings)
    }

    fn note_client(&mut self, client: Client, time: Micros) {
        if let Some((_, first)) = self.clients.iter_mut().find(|(known, _)| *known == client) {
            *first = time.min(*first);
        } else if self.clients.len() < CLIENTS {
            self.clients.push((client, time));
        }
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

/// The exposure that this one goes back to: each overlaps the next.
fn earliest<'a>(
    exposures: &'a [Exposure],
    exposure: &'a Exposure,
    settings: &Settings,
) -> &'a Exposure {
    let mut root = exposure;
    let place = |it: &Exposure| (it.start(), it.first.open.ktime_ns, it.entry);
    while let Some(earlier) = exposures
        .iter()
        .filter(|it| place(it) < place(root) && it.end(settings) >= root.start())
        .min_by_key(|it| place(it))
    {
        root = earlier;
    }
    root
}
