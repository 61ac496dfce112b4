//! Joins opens with requests: a deterministic state machine over inputs and the times passed in.
//!
//! It imports no tokio, kube, aya or clock, so `replay` can run the very same code as `run`. Its
//! only side effect is the [`Journal`], behind a trait.
//!
//! * A qualifying open starts or extends an [exposure](window::Exposure) of its pod.
//! * A request in an exposure opens the pod's one [incident](incident::Incident) (R1) and alerts at
//!   once, or joins it, silently unless it makes it worse.
//! * An exposure that ends without one is told as a mere read (R0).
//! * What needs no exposure is joined [by the hour](hourly): tokens minted (R2), tokens read from
//!   outside (R3), decoys (R7).
//! * When the watermark has passed an incident's end, its summary is told and it is forgotten.
//!
//! Ids are hashes of facts, so whoever replays the same inputs finds the same ids.

use std::{collections::HashMap, num::NonZeroUsize, sync::Arc};

use lru::LruCache;
use serde::{Deserialize, Serialize};

use crate::{
    attribution::{TokenOpen, pods::Pod},
    audit::{self, AuditRecord},
    rules::{
        RequestKind, address::Address, catalogue::RuleId, exceptions::ExceptionId,
        rulebook::Rulebook, token_access,
    },
    time::Micros,
};

mod alone;
pub mod finding;
pub mod habits;
pub mod hourly;
pub mod ids;
pub mod incident;
pub mod journal;
mod pod;
pub mod sessions;
pub mod story;
mod subject;
pub mod window;

pub use finding::{Attached, Finding, Kind};

use alone::{decoy_opened, decoy_used, minted_key, outside_key};
use habits::Habits;
use hourly::Hourly;
use ids::{Key, RequestId};
use incident::{Cause, Incident};
use journal::{Entry, Journal, JournalError};
use pod::{Known, PodState, Waiting};
use sessions::Sessions;

/// Requests of one incident that the journal keeps: a restart counts no more than these again.
const JOURNALLED: u64 = 512;
/// Requests that an exception swallowed, remembered so that their later stages are not counted.
const SWALLOWED: NonZeroUsize = NonZeroUsize::MIN.saturating_add(1_023);

/// An open, with the boot in which its kernel times and process ids mean something.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Open {
    /// `/proc/sys/kernel/random/boot_id` at the time of the open.
    pub boot_id: String,
    /// The open itself.
    pub open: TokenOpen,
    /// The pod whose token it is, where the index knows it.
    #[serde(skip)]
    pub pod: Option<Arc<Pod>>,
    /// The pod that the opener runs in, where the index knows it.
    #[serde(skip)]
    pub reader: Option<Arc<Pod>>,
}

impl Open {
    /// One whose pods are not known.
    pub fn new(boot_id: impl Into<String>, open: TokenOpen) -> Self {
        Self { boot_id: boot_id.into(), open, pod: None, reader: None }
    }
}

/// One stage of a request.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Request {
    /// Received time on the steady axis that opens are on too.
    pub time: Micros,
    /// The audit event.
    pub record: AuditRecord,
    /// The pod that its service account and address point to, where its token names none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub by_address: Option<String>,
    /// What was found when it was attached: after a restart that must not be judged anew.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub judged: Option<(RequestKind, Address)>,
    /// Its pod, where the index knows it.
    #[serde(skip)]
    pub pod: Option<Arc<Pod>>,
}

impl Request {
    /// One whose pod is not known but by its token.
    pub fn new(time: Micros, record: AuditRecord) -> Self {
        Self { time, record, by_address: None, judged: None, pod: None }
    }

    /// Uid of the pod with whose identity it was made.
    pub fn pod_uid(&self) -> Option<&str> {
        self.record.pod_uid().or(self.by_address.as_deref())
    }
}

/// Bounds and identities; fixed for the life of a correlator.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Name or id of the cluster, part of every id.
    pub cluster: String,
    /// How long after an open a request still belongs to it, inclusive.
    pub window: Micros,
    /// How much earlier than the open the API server's clock may date a request.
    pub skew: Micros,
    /// How long a request without an open is kept for an open that arrives after it.
    pub patience: Micros,
    /// How long after an exposure's end requests of the same client can prolong an incident.
    pub longest_tail: Micros,
    /// How long after its begin an `exec` session can explain an open.
    pub session_memory: Micros,
    /// Exposures of one pod.
    pub exposures_per_pod: usize,
    /// Requests of one pod that wait for an open.
    pub waiting_per_pod: usize,
    /// Pods with any state; the one that was idle longest gives way.
    pub pods: usize,
}

impl Settings {
    /// The documented figures, for one machine with one clock.
    pub fn new(cluster: impl Into<String>) -> Self {
        Self {
            cluster: cluster.into(),
            window: Micros::from_secs(60),
            skew: Micros(0),
            patience: Micros::from_secs(10),
            longest_tail: Micros::from_secs(15 * 60),
            session_memory: Micros::from_secs(12 * 3_600),
            exposures_per_pod: 16,
            waiting_per_pod: 64,
            pods: 1_024,
        }
    }
}

/// What was dropped to stay within the bounds, and what could not be journalled.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Losses {
    /// Exposures beyond a pod's bound: the oldest gave way.
    pub exposures: u64,
    /// Waiting requests beyond a pod's bound: the oldest gave way.
    pub waiting: u64,
    /// Pods beyond the bound.
    pub pods: u64,
    /// Hourly incidents beyond their bound: the oldest was told to have ended.
    pub hourly: u64,
    /// Incidents that were told to have begun, and turned out to be part of an earlier one: input
    /// came in another order than it happened in.
    pub merged: u64,
    /// Entries that the journal refused.
    pub journal: u64,
}

/// What is held at the moment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Held {
    /// Pods with any state.
    pub pods: usize,
    /// Exposures.
    pub exposures: usize,
    /// Incidents that have not ended, of all rules.
    pub incidents: usize,
    /// Requests that wait for an open.
    pub waiting: usize,
}

/// The state machine. One instance sees all opens and requests of a node.
pub struct Correlator<J> {
    settings: Settings,
    rulebook: Arc<Rulebook>,
    pods: HashMap<String, PodState>,
    habits: Habits,
    /// Whether an index knows which pods are this node's: habits of others are of no use.
    indexed: bool,
    sessions: Sessions,
    minted: Hourly,
    outside: Hourly,
    decoys: Hourly,
    swallowed: LruCache<(RuleId, RequestId), ()>,
    /// Exceptions that swallowed something since they were last taken.
    hits: Vec<(ExceptionId, Micros)>,
    journal: J,
    journal_failure: Option<String>,
    losses: Losses,
}

impl<J: Journal> Correlator<J> {
    /// An empty correlator.
    pub fn new(settings: Settings, journal: J) -> Self {
        Self {
            settings,
            rulebook: Arc::default(),
            pods: HashMap::new(),
            habits: Habits::default(),
            indexed: false,
            sessions: Sessions::default(),
            minted: Hourly::default(),
            outside: Hourly::default(),
            decoys: Hourly::default(),
            swallowed: LruCache::new(SWALLOWED),
            hits: Vec::new(),
            journal,
            journal_failure: None,
            losses: Losses::default(),
        }
    }

    /// From now on, what users decided about rules is this.
    pub fn set_rulebook(&mut self, rulebook: Arc<Rulebook>) {
        self.rulebook = rulebook;
    }

    /// From `now` on all requests are seen; else that begins with the first input.
    pub fn watch(&mut self, now: Micros) {
        self.habits.begin(now);
    }

    /// Says that requests come with their pods, if those are this node's.
    pub fn set_indexed(&mut self) {
        self.indexed = true;
    }

    /// From now on, requests may be dated so much earlier than their open, if not more already.
    pub fn widen_skew(&mut self, skew: Micros) {
        let Settings { skew: known, patience, .. } = &mut self.settings;
        *known = skew.max(*known);
        *patience = (*known + Micros::from_secs(1)).max(*patience);
    }

    /// Exceptions that swallowed something since this was last called, with the times of it.
    pub fn take_hits(&mut self) -> Vec<(ExceptionId, Micros)> {
        std::mem::take(&mut self.hits)
    }

    /// Takes an open. `now` is the clock of the steady axis. What no rule is about is ignored.
    pub fn open(&mut self, open: Open, now: Micros, findings: &mut Vec<Finding>) {
        self.habits.begin(now);
        let open = Arc::new(open);
        if self.open_stands_alone(&open) {
            self.journal(&Entry::OpenAlone(Open::clone(&open)));
            self.open_alone(&open, findings);
        }
        if token_access::qualifies(&open.open) {
            self.journal(&Entry::Open(Open::clone(&open)));
            self.expose(&open, now, findings);
        }
    }

    /// Takes one stage of a request. `now` is the clock of the steady axis.
    pub fn request(&mut self, request: Request, now: Micros, findings: &mut Vec<Finding>) {
        self.habits.begin(now);
        if self.sessions.note(&request.record, request.time) {
            self.journal(&Entry::Session(request.clone()));
        }
        let id = RequestId::of(&request.record);
        if self.stands_alone(&request.record) && self.alone(id, &request, findings) {
            self.journal(&Entry::RequestAlone(request.clone()));
        }
        let Some(pod_uid) = request.pod_uid().map(str::to_owned) else { return };
        self.make_room(&pod_uid, findings);
        let pod = self.pods.entry(pod_uid.clone()).or_default();
        pod.touched = now;
        match pod.update_known(id, &request, findings) {
            Known::No => {}
            Known::Same => return,
            Known::Worse => return self.journal(&Entry::Request(request)),
        }
        if self.swallowed.get(&(RuleId::TokenAccessThenApiRequest, id)).is_some() {
            return;
        }
        let explained = pod.explains(&request, &self.settings);
        if explained && token_access::answered(&request.record) {
            self.attach(id, request, findings);
            return;
        }
        if explained {
            // It may be all that ever comes.
            self.journal(&Entry::Request(request.clone()));
        } else if request.pod.is_some() || !self.indexed {
            let Request { record, pod, time, .. } = &request;
            self.habits.learn(&pod_uid, pod.as_deref(), record, *time);
        }
        let waiting = Waiting { request, id, arrived: now, journalled: explained };
        let pod = self.pods.entry(pod_uid).or_default();
        pod.wait(waiting, &self.settings, &mut self.losses);
    }

    /// Passes time: tells incidents that ended before `watermark`, and reads that nothing followed;
    /// forgets what can no longer matter. `now` is the clock of the steady axis.
    pub fn advance(&mut self, watermark: Micros, now: Micros, findings: &mut Vec<Finding>) {
        // Where no answer came within the lateness bound, the receipt alone has to do.
        let mut unanswered = Vec::new();
        for pod in self.pods.values_mut() {
            pod.waiting.retain(|waiting| {
                let received_only = !token_access::answered(&waiting.request.record);
                if received_only && waiting.request.time < watermark {
                    unanswered.push((waiting.id, waiting.request.clone()));
                    return false;
                }
                received_only || waiting.arrived + self.settings.patience >= now
            });
        }
        unanswered.sort_by_key(|(id, request)| (request.time, *id));
        for (id, request) in unanswered {
            let explained = request
                .pod_uid()
                .and_then(|pod_uid| self.pods.get(pod_uid))
                .is_some_and(|pod| pod.explains(&request, &self.settings));
            if explained {
                self.attach(id, request, findings);
            }
        }
        let mut ended = Vec::new();
        let mut read = Vec::new();
        self.pods.retain(|_, pod| {
            ended.extend(pod.end_incidents(watermark, &self.settings));
            read.extend(pod.forget_exposures(watermark, &self.settings));
            !pod.incidents.is_empty() || !pod.exposures.is_empty() || !pod.waiting.is_empty()
        });
        for exposure in read {
            ended.extend(self.read(&exposure));
        }
        for hourly in [&mut self.minted, &mut self.outside, &mut self.decoys] {
            hourly.end(watermark, &mut ended);
        }
        ended.sort_by(|a, b| (a.first, &a.event_id).cmp(&(b.first, &b.event_id)));
        findings.extend(ended);
    }

    /// Takes back what a journal remembers. Alerts come out again, under the same ids: the log
    /// that has them already refuses them.
    pub fn restore(&mut self, entry: Entry, now: Micros, findings: &mut Vec<Finding>) {
        match entry {
            Entry::Open(open) => self.expose(&Arc::new(open), now, findings),
            Entry::OpenAlone(open) => self.open_alone(&Arc::new(open), findings),
            Entry::RequestAlone(request) => {
                self.alone(RequestId::of(&request.record), &request, findings);
            }
            Entry::Session(request) => {
                self.sessions.note(&request.record, request.time);
            }
            Entry::Request(request) => {
                let id = RequestId::of(&request.record);
                let Some(pod) = request.pod_uid().and_then(|uid| self.pods.get_mut(uid)) else {
                    return;
                };
                if pod.update_known(id, &request, findings) != Known::No {
                    return;
                }
                if request.judged.is_some() || token_access::answered(&request.record) {
                    self.attach(id, request, findings);
                } else {
                    let waiting = Waiting { request, id, arrived: now, journalled: true };
                    pod.wait(waiting, &self.settings, &mut self.losses);
                }
            }
        }
    }

    /// Writes what the journal could not take before.
    pub fn flush_journal(&mut self) -> Result<(), JournalError> {
        let result = self.journal.flush();
        self.journal_failure = result.as_ref().err().map(ToString::to_string);
        result
    }

    /// Drops from the journal what nothing that is held goes back to. Only to be called when all
    /// that was told is durable: the journal is what an untold alert is found again from.
    ///
    /// The horizon is each pod's own: with one for all, a pod's first open could be dropped before
    /// its last, and a restart would find another incident, under another id.
    pub fn compact_journal(&mut self, now: Micros) -> Result<(), JournalError> {
        let sessions = now - self.settings.session_memory;
        self.sessions.forget(sessions);
        let horizons: HashMap<&str, Micros> = self
            .pods
            .iter()
            .filter_map(|(uid, pod)| Some((uid.as_str(), pod.horizon()?)))
            .collect();
        let within = |pod_uid: Option<&str>, time: Micros| {
            pod_uid.and_then(|uid| horizons.get(uid)).is_some_and(|horizon| time >= *horizon)
        };
        let held = |hourly: &Hourly, key: Option<Key>, time| {
            key.is_some_and(|key| hourly.needs(&key, time))
        };
        let Self { rulebook, minted, outside, decoys, journal, sessions: known_sessions, .. } =
            self;
        let is_needed = |entry: &Entry| match entry {
            Entry::Open(open) => within(open.open.pod_uid.as_deref(), open.open.time),
            Entry::Request(request) => within(request.pod_uid(), request.time),
            Entry::OpenAlone(open) => {
                let time = open.open.time;
                held(outside, outside_key(&open.open), time)
                    || held(decoys, decoy_opened(rulebook, open), time)
            }
            Entry::RequestAlone(request) => {
                held(minted, minted_key(&request.record), request.time)
                    || held(decoys, decoy_used(rulebook, &request.record), request.time)
            }
            Entry::Session(request) => known_sessions.holds(&request.record),
        };
        let hourly = [&*minted, &*outside, &*decoys];
        let over = horizons.is_empty() && hourly.iter().all(|it| it.is_empty());
        journal.compact(&is_needed, over)
    }

    /// Why entries are missing from the journal, for now or for good; `None` while none is.
    pub fn journal_failure(&self) -> Option<&str> {
        self.journal_failure.as_deref()
    }

    /// What was dropped so far.
    pub fn losses(&self) -> Losses {
        let hourly = [&self.minted, &self.outside, &self.decoys];
        Losses { hourly: hourly.iter().map(|it| it.evicted()).sum(), ..self.losses }
    }

    /// Whether a request of this pod may yet be joined with what was seen.
    pub fn awaits(&self, pod_uid: &str) -> bool {
        let pod = self.pods.get(pod_uid);
        pod.is_some_and(|pod| !pod.exposures.is_empty() || !pod.incidents.is_empty())
    }

    /// What is held now.
    pub fn held(&self) -> Held {
        let hourly = [&self.minted, &self.outside, &self.decoys];
        let incidents = hourly.iter().map(|it| it.len()).sum();
        let held = Held { pods: self.pods.len(), incidents, ..Held::default() };
        self.pods.values().fold(held, |held, pod| Held {
            exposures: held.exposures + pod.exposures.len(),
            incidents: held.incidents + pod.incidents.len(),
            waiting: held.waiting + pod.waiting.len(),
            ..held
        })
    }

    /// Lets an open start or extend an exposure.
    fn expose(&mut self, open: &Arc<Open>, now: Micros, findings: &mut Vec<Finding>) {
        let Some(pod_uid) = open.open.pod_uid.clone() else { return };
        self.make_room(&pod_uid, findings);
        let pod = self.pods.entry(pod_uid.clone()).or_default();
        pod.touched = now;
        pod.expose(open, &self.settings, &mut self.losses);
        self.losses.merged += pod.merge_incidents(&self.settings);
        for receipt in pod.explained_receipts(&self.settings) {
            self.journal(&Entry::Request(receipt));
        }
        let Some(pod) = self.pods.get_mut(&pod_uid) else { return };
        for (id, request) in pod.take_explained(&self.settings) {
            self.attach(id, request, findings);
        }
    }

    /// Attaches a request that an exposure or the incident explains, and journals it as it was
    /// judged, unless it comes from there.
    fn attach(&mut self, id: RequestId, mut request: Request, findings: &mut Vec<Finding>) {
        let Some(pod_uid) = request.pod_uid().map(str::to_owned) else { return };
        let Some(pod) = self.pods.get(&pod_uid) else { return };
        let anchor = window::anchor(&pod.exposures, request.time, &self.settings);
        let anchor = anchor.map(|(exposure, open)| (exposure.clone(), open));
        let joined = pod.incidents.iter().position(|incident| {
            anchor.as_ref().is_some_and(|(it, _)| incident.touches(it, &self.settings))
                || incident.continues(&request, &self.settings)
        });
        let exposed = anchor.as_ref().map(|(exposure, _)| exposure.first_open());
        let begun = joined.and_then(|at| pod.incidents.get(at)).map(Incident::first_time);
        let exposed = exposed.into_iter().chain(begun).min().unwrap_or(request.time);
        let count = joined.and_then(|at| pod.incidents.get(at)).map(|it| it.story.request_count());
        let known = request.judged.map(|(kind, _)| kind);
        let facts = request.pod.as_deref();
        let kind =
            known.unwrap_or_else(|| self.habits.kind(&pod_uid, facts, &request.record, exposed));
        let attached = Attached::new(id, &request, kind);
        let open = anchor.as_ref().map(|(_, open)| Arc::clone(open));
        if known.is_none() {
            if self.excepted(RuleId::TokenAccessThenApiRequest, open.as_deref(), Some(&attached)) {
                return;
            }
            if count.is_none_or(|count| count < JOURNALLED) {
                request.judged = Some((kind, attached.address));
                self.journal(&Entry::Request(request.clone()));
            }
        }
        let outside = open.as_deref().and_then(|open| self.list_outside(open, &attached));
        let initiators = open.as_deref().map(|open| self.initiators(open, Some(&request.record)));
        let Some(pod) = self.pods.get_mut(&pod_uid) else { return };
        let told_in = if let Some(incident) = joined.and_then(|at| pod.incidents.get_mut(at)) {
            findings.extend(incident.join(attached, &pod.exposures, &self.settings));
            if let Some(outside) = &outside {
                incident.story.relate(outside);
            }
            Some(incident.story.id().to_owned())
        } else if let Some((exposure, open)) = anchor {
            let initiators = initiators.unwrap_or_default();
            let cause = Cause { exposure: &exposure, open, initiators };
            let mut incident =
                Incident::begin(&self.settings, &pod_uid, cause, attached, &pod.exposures);
            if let Some(outside) = &outside {
                incident.story.relate(outside);
            }
            findings.push(incident.story.alert());
            if pod.incidents.len() >= self.settings.exposures_per_pod {
                let oldest = pod.incidents.remove(0);
                findings.push(oldest.story.summary());
            }
            let id = incident.story.id().to_owned();
            pod.incidents.push(incident);
            Some(id)
        } else {
            None
        };
        self.losses.merged += pod.merge_incidents(&self.settings);
        // The incident now lasts longer, so requests of the same client may belong to it as well.
        let more = pod.take_explained(&self.settings);
        if let Some((outside, told_in)) = outside.zip(told_in)
            && let Some(story) = self.outside.stories().find(|story| story.id() == outside)
        {
            story.relate(&told_in);
        }
        for (id, request) in more {
            self.attach(id, request, findings);
        }
    }

    /// Who may have brought the opener into the pod, as the token names it, or else the index.
    fn initiators(&self, open: &Open, record: Option<&AuditRecord>) -> Vec<Arc<AuditRecord>> {
        let of_token = record.and_then(|record| {
            let (namespace, _) = record.service_account()?;
            Some((namespace, record.extra(audit::POD_NAME)?))
        });
        let of_index = open.pod.as_ref().map(|pod| (&*pod.namespace, &*pod.name));
        let candidates = |(namespace, name)| {
            self.sessions.candidates(&open.open, namespace, name, &self.settings)
        };
        of_token.or(of_index).map(candidates).unwrap_or_default()
    }

    fn journal(&mut self, entry: &Entry) {
        let result = self.journal.append(entry);
        // The event goes on: only a crash within the window would now lose it.
        match &result {
            Ok(()) => {}
            Err(error @ JournalError::Io { .. }) => {
                tracing::warn!(%error, "an entry waits for the journal");
            }
            Err(error) => {
                self.losses.journal += 1;
                tracing::error!(%error, "an entry is missing from the journal");
            }
        }
        self.journal_failure = result.err().map(|error| error.to_string());
    }

    /// Keeps the number of pods within its bound: one idle pod gives way to a new one, and what was
    /// told of it is told to have ended.
    fn make_room(&mut self, pod_uid: &str, findings: &mut Vec<Finding>) {
        if self.pods.len() < self.settings.pods || self.pods.contains_key(pod_uid) {
            return;
        }
        let idlest = self
            .pods
            .iter()
            .min_by_key(|(uid, pod)| (pod.weight(), pod.touched, uid.as_str()))
            .map(|(uid, _)| uid.clone());
        if let Some(uid) = idlest {
            let pod = self.pods.remove(&uid).unwrap_or_default();
            findings.extend(pod.incidents.iter().map(|incident| incident.story.summary()));
            self.losses.pods += 1;
        }
    }
}

#[cfg(test)]
mod tests;
