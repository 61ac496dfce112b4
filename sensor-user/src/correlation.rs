//! Joins opens with requests: a deterministic state machine over inputs and the times passed in.
//!
//! It imports no tokio, kube, aya or clock, so `replay` can run the very same code as `run`. Its
//! only side effect is the [`Journal`], behind a trait.
//!
//! * A qualifying open starts or extends an [exposure](window::Exposure) of its pod.
//! * A request in an exposure opens the pod's one [incident](incident::Incident) (R1) and alerts at
//!   once, or joins it, silently unless it makes it worse.
//! * An exposure that ends without one, or gives way to others, is told as a mere read (R0).
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
mod bounds;
pub mod finding;
pub mod habits;
pub mod hourly;
pub mod ids;
pub mod incident;
pub mod journal;
mod place;
mod pod;
pub mod sessions;
pub mod story;
mod subject;
mod wanted;
pub mod window;

pub use bounds::{Held, Losses, Settings};
pub use finding::{Asked, Attached, Finding, Kind, Listed};
pub use wanted::Span;

use alone::{decoy_opened, decoy_used, minted_key, outside_key, read_key};
use habits::Habits;
use hourly::Hourly;
use ids::{Key, RequestId};
use incident::{Cause, Incident};
use journal::{Entry, Journal, JournalError};
use pod::{Grounds, Known, PodState, Waiting};
use sessions::Sessions;
use window::Exposure;

/// Requests of one incident that the journal keeps: a restart counts no more than these again.
const JOURNALLED: u64 = 512;
/// Opens and requests that exceptions swallowed, remembered so that they are counted once, whatever
/// stages come later and whatever is read again after a restart.
pub const SWALLOWED: NonZeroUsize = NonZeroUsize::MIN.saturating_add(1_023);

/// An open, with the boot in which its kernel times and process ids mean something.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Open {
    /// `/proc/sys/kernel/random/boot_id` at the time of the open.
    pub boot_id: String,
    /// The open itself.
    pub open: TokenOpen,
    /// How much earlier than it the API server's clock may date a request that follows, microseconds:
    /// as much as was known when it happened.
    #[serde(default)]
    pub skew_us: i64,
    /// Namespace and name of the pod whose token it is, where a recording tells them.
    #[serde(skip)]
    pub named: Option<(Box<str>, Box<str>)>,
    /// That pod, where the index knows it.
    #[serde(skip)]
    pub pod: Option<Arc<Pod>>,
    /// The pod that the opener runs in, where the index knows it.
    #[serde(skip)]
    pub reader: Option<Arc<Pod>>,
}

impl Open {
    /// One whose pods are not known, on a machine whose clock is the API server's.
    pub fn new(boot_id: impl Into<String>, open: TokenOpen) -> Self {
        Self { boot_id: boot_id.into(), open, skew_us: 0, named: None, pod: None, reader: None }
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
    /// Whether it was read elsewhere, where it was also told what needs no open.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub read_elsewhere: bool,
    /// Its pod, where the index knows it.
    #[serde(skip)]
    pub pod: Option<Arc<Pod>>,
}

impl Request {
    /// One whose pod is not known but by its token.
    pub fn new(time: Micros, record: AuditRecord) -> Self {
        Self { time, record, by_address: None, judged: None, read_elsewhere: false, pod: None }
    }

    /// Uid of the pod with whose identity it was made.
    pub fn pod_uid(&self) -> Option<&str> {
        self.record.pod_uid().or(self.by_address.as_deref())
    }

    /// Whether it names a pod that cannot be its user's: who asks is no service account, or one of
    /// another namespace than the pod is in. No token that the API server signed says so.
    pub fn claims_anothers_pod(&self) -> bool {
        let Some((namespace, _)) = self.record.service_account() else {
            return self.record.extra(audit::POD_UID).is_some();
        };
        let known = self.pod.as_ref().map(|pod| &*pod.namespace).filter(|it| !it.is_empty());
        known.is_some_and(|known| known != namespace)
    }
}

/// Something that an exception kept quiet about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Swallowed {
    /// The exception.
    pub exception: ExceptionId,
    /// Which open or request it was, and of which rule.
    pub id: String,
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
    /// Reads whose exposures were given up.
    reads: Hourly,
    swallowed: LruCache<String, ()>,
    /// What exceptions swallowed since that was last taken.
    hits: Vec<Swallowed>,
    /// Incidents of exposures that go on, by the last look at all; those that began since.
    incidents: usize,
    journal: J,
    journal_failure: Option<String>,
    losses: Losses,
}

impl<J: Journal> Correlator<J> {
    /// An empty correlator.
    pub fn new(settings: Settings, journal: J) -> Self {
        Self {
            habits: Habits::new(settings.learning),
            settings,
            rulebook: Arc::default(),
            pods: HashMap::new(),
            indexed: false,
            sessions: Sessions::default(),
            minted: Hourly::default(),
            outside: Hourly::default(),
            decoys: Hourly::default(),
            reads: Hourly::default(),
            swallowed: LruCache::new(SWALLOWED),
            hits: Vec::new(),
            incidents: 0,
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

    /// From now on, requests wait for an open at least so long.
    pub fn widen_patience(&mut self, patience: Micros) {
        self.settings.patience = self.settings.patience.max(patience);
    }

    /// What exceptions swallowed since this was last called.
    pub fn take_hits(&mut self) -> Vec<Swallowed> {
        std::mem::take(&mut self.hits)
    }

    /// Takes back which opens and requests exceptions swallowed before a restart, oldest first.
    pub fn remember_swallowed<'a>(&mut self, ids: impl IntoIterator<Item = &'a str>) {
        for id in ids {
            self.swallowed.put(id.to_owned(), ());
        }
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
            for given_up in self.expose(&open, now, findings) {
                self.give_up(&given_up, findings);
            }
        }
    }

    /// Takes one stage of a request. `now` is the clock of the steady axis.
    pub fn request(&mut self, request: Request, now: Micros, findings: &mut Vec<Finding>) {
        self.habits.begin(now);
        if self.sessions.note(&request.record, request.time) {
            self.journal(&Entry::Session(request.clone()));
        }
        let id = RequestId::of(&request.record);
        if !request.read_elsewhere
            && self.stands_alone(&request.record)
            && self.alone(id, &request, findings)
        {
            self.journal(&Entry::RequestAlone(request.clone()));
        }
        if request.claims_anothers_pod() {
            self.losses.false_claims += 1;
            return;
        }
        let Some(pod_uid) = request.pod_uid().map(str::to_owned) else { return };
        if self.is_swallowed(RuleId::TokenAccessThenApiRequest, id) {
            return;
        }
        for given_up in self.make_room(&pod_uid, findings) {
            self.give_up(&given_up, findings);
        }
        let pod = self.pods.entry(pod_uid.clone()).or_default();
        pod.touched = now;
        match pod.update_known(id, &request, findings) {
            Known::No => {}
            known @ (Known::Same | Known::News) => {
                self.update_outside(id, &request.record);
                if known == Known::News {
                    self.journal(&Entry::Request(request));
                }
                return;
            }
        }
        let explained = pod.explains(&request, &self.habits, &self.settings);
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
                .is_some_and(|pod| pod.explains(&request, &self.habits, &self.settings));
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
        self.incidents = self.pods.values().map(|pod| pod.incidents.len()).sum();
        for exposure in read {
            ended.extend(self.read(&exposure));
        }
        let Self { minted, outside, decoys, reads, .. } = self;
        for hourly in [minted, outside, decoys, reads] {
            hourly.end(watermark, &mut ended);
        }
        for summary in ended.iter().filter(|it| it.kind == Kind::Incident) {
            let listed = summary.request_count.min(story::Share::MOST_LISTED);
            self.losses.unlisted += listed.saturating_sub(summary.requests.len() as u64);
            self.losses.forgotten += summary.forgotten;
            self.losses.overtaken += summary.overtaken;
        }
        ended.sort_by(|a, b| (a.first, &a.event_id).cmp(&(b.first, &b.event_id)));
        findings.extend(ended);
    }

    /// Takes back what a journal remembers. Alerts come out again, under the same ids: the log
    /// that has them already refuses them.
    pub fn restore(&mut self, entry: Entry, now: Micros, findings: &mut Vec<Finding>) {
        match entry {
            Entry::Open(open) => {
                // What gives way now did so before, and has an entry of its own.
                self.expose(&Arc::new(open), now, findings);
            }
            Entry::OpenAlone(open) => self.open_alone(&Arc::new(open), findings),
            Entry::GivenUp(open) => {
                self.read_given_up(&Arc::new(open), findings);
            }
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
                    return self.update_outside(id, &request.record);
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
        let Self { rulebook, minted, outside, decoys, reads, journal, .. } = self;
        let known_sessions = &self.sessions;
        let is_needed = |entry: &Entry| match entry {
            Entry::Open(open) => within(open.open.pod_uid.as_deref(), open.open.time),
            Entry::Request(request) => within(request.pod_uid(), request.time),
            Entry::OpenAlone(open) => {
                let time = open.open.time;
                held(outside, outside_key(&open.open), time)
                    || held(decoys, decoy_opened(rulebook, open), time)
            }
            Entry::GivenUp(open) => held(reads, read_key(&open.open), open.open.time),
            Entry::RequestAlone(request) => {
                held(minted, minted_key(&request.record), request.time)
                    || held(decoys, decoy_used(rulebook, &request.record), request.time)
            }
            Entry::Session(request) => known_sessions.holds(&request.record),
        };
        let hourly = [&*minted, &*outside, &*decoys, &*reads];
        let over = horizons.is_empty() && hourly.iter().all(|it| it.is_empty());
        journal.compact(&is_needed, over)
    }

    /// Why entries are missing from the journal, for now or for good; `None` while none is.
    pub fn journal_failure(&self) -> Option<&str> {
        self.journal_failure.as_deref()
    }

    /// What was dropped so far.
    pub fn losses(&self) -> Losses {
        Losses { hourly: self.hourlies().iter().map(|it| it.evicted()).sum(), ..self.losses }
    }

    /// What is held now.
    pub fn held(&self) -> Held {
        let incidents = self.hourlies().iter().map(|it| it.len()).sum();
        let held = Held { pods: self.pods.len(), incidents, ..Held::default() };
        self.pods.values().fold(held, |held, pod| Held {
            exposures: held.exposures + pod.exposures.len(),
            incidents: held.incidents + pod.incidents.len(),
            waiting: held.waiting + pod.waiting.len(),
            ..held
        })
    }

    fn hourlies(&self) -> [&Hourly; 4] {
        [&self.minted, &self.outside, &self.decoys, &self.reads]
    }

    /// Lets an open start or extend an exposure. Returns those that give way and that nothing was told of.
    fn expose(
        &mut self,
        open: &Arc<Open>,
        now: Micros,
        findings: &mut Vec<Finding>,
    ) -> Vec<Exposure> {
        let Some(pod_uid) = open.open.pod_uid.clone() else { return Vec::new() };
        let mut given_up = self.make_room(&pod_uid, findings);
        let pod = self.pods.entry(pod_uid.clone()).or_default();
        pod.touched = now;
        given_up.extend(pod.expose(open, &self.settings, &mut self.losses));
        self.losses.merged += pod.merge_incidents(&self.settings);
        for receipt in pod.explained_receipts(&self.habits, &self.settings) {
            self.journal(&Entry::Request(receipt));
        }
        let Some(pod) = self.pods.get_mut(&pod_uid) else { return given_up };
        for (id, request) in pod.take_explained(&self.habits, &self.settings) {
            self.attach(id, request, findings);
        }
        given_up
    }

    /// Attaches a request that an exposure or the incident explains, and journals it as it was
    /// judged, unless it comes from there.
    fn attach(&mut self, id: RequestId, mut request: Request, findings: &mut Vec<Finding>) {
        let Some(pod_uid) = request.pod_uid().map(str::to_owned) else { return };
        let Some(pod) = self.pods.get(&pod_uid) else { return };
        let Some(Grounds { anchor, joined, kind }) =
            pod.grounds(&request, &self.habits, &self.settings)
        else {
            return;
        };
        let anchor = anchor.map(|(exposure, open)| (exposure.clone(), open));
        let known = request.judged.is_some();
        let count = joined.and_then(|at| pod.incidents.get(at)).map(|it| it.story.request_count());
        let attached = Attached::new(id, &request, kind);
        let open = anchor.as_ref().map(|(_, open)| Arc::clone(open));
        if !known {
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
        let share = self.share();
        let Some(pod) = self.pods.get_mut(&pod_uid) else { return };
        let told_in = if let Some(incident) = joined.and_then(|at| pod.incidents.get_mut(at)) {
            findings.extend(incident.join(attached, share, &pod.exposures, &self.settings));
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
            self.incidents += 1;
            Some(id)
        } else {
            None
        };
        self.losses.merged += pod.merge_incidents(&self.settings);
        // The incident now lasts longer, so requests of the same client may belong to it as well.
        let more = pod.take_explained(&self.habits, &self.settings);
        if let Some((outside, told_in)) = outside.zip(told_in)
            && let Some(story) = self.outside.stories().find(|story| story.id() == outside)
        {
            story.relate(&told_in);
        }
        for (id, request) in more {
            self.attach(id, request, findings);
        }
    }

    fn is_swallowed(&mut self, rule: RuleId, id: RequestId) -> bool {
        !self.swallowed.is_empty()
            && self.swallowed.get(&ids::swallowed_request(rule, id)).is_some()
    }

    /// Who may have brought the opener into the pod, as the token names it, or else the index.
    fn initiators(&self, open: &Open, record: Option<&AuditRecord>) -> Vec<Arc<AuditRecord>> {
        let of_token = record.and_then(|record| {
            let (namespace, _) = record.service_account()?;
            Some((namespace, record.extra(audit::POD_NAME)?))
        });
        let of_index = open.pod.as_ref().map(|pod| (&*pod.namespace, &*pod.name));
        let candidates =
            |(namespace, name)| self.sessions.candidates(open, namespace, name, &self.settings);
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
    /// told of it is told to have ended. Returns its exposures that nothing was told of.
    fn make_room(&mut self, pod_uid: &str, findings: &mut Vec<Finding>) -> Vec<Exposure> {
        if self.pods.len() < self.settings.pods || self.pods.contains_key(pod_uid) {
            return Vec::new();
        }
        let idlest = self
            .pods
            .iter()
            .min_by_key(|(uid, pod)| (pod.weight(), pod.touched, uid.as_str()))
            .map(|(uid, _)| uid.clone());
        let Some(mut pod) = idlest.and_then(|uid| self.pods.remove(&uid)) else {
            return Vec::new();
        };
        self.losses.pods += 1;
        findings.extend(pod.end_incidents(Micros::MAX, &self.settings));
        pod.exposures
    }
}

#[cfg(test)]
mod tests;
