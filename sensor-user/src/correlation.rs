//! Joins opens with requests: a deterministic state machine over inputs and the times passed in.
//!
//! It imports no tokio, kube, aya or clock, so `replay` can run the very same code as `run`. Its
//! only side effect is the [`Journal`], behind a trait.
//!
//! * A qualifying open starts or extends an [exposure](window::Exposure) of its pod.
//! * A request in an exposure opens the pod's one [incident](incident::Incident) and alerts at
//!   once, or joins it silently.
//! * When the watermark has passed an incident's end, its summary is told and it is forgotten.
//!
//! Ids are hashes of facts, so whoever replays the same inputs finds the same ids.

use std::{collections::HashMap, sync::Arc};

use serde::{Deserialize, Serialize};

use crate::{
    attribution::TokenOpen,
    audit::{self, AuditRecord},
    rules::{Band, Rule, token_access},
    time::Micros,
};

pub mod ids;
pub mod incident;
pub mod journal;
pub mod sessions;
pub mod window;

use ids::RequestId;
use incident::{Attached, Cause, Incident};
use journal::{Entry, Journal, JournalError};
use sessions::Sessions;
use window::Exposure;

/// An open, with the boot in which its kernel times and process ids mean something.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Open {
    /// `/proc/sys/kernel/random/boot_id` at the time of the open.
    pub boot_id: String,
    /// The open itself.
    pub open: TokenOpen,
}

/// One stage of a request.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Request {
    /// Received time on the steady axis that opens are on too.
    pub time: Micros,
    /// The audit event.
    pub record: AuditRecord,
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

/// What the correlator has to say.
#[derive(Clone, Debug)]
pub enum Finding {
    /// An incident began: told at once.
    Alert(Box<Alert>),
    /// An incident ended: its summary.
    Incident(Box<Alert>),
}

/// An incident as it stands when it is told.
#[derive(Clone, Debug)]
pub struct Alert {
    /// `event.id`.
    pub event_id: String,
    /// `tokentrail.incident.id`.
    pub incident_id: String,
    /// The rule that it is told by.
    pub rule: &'static Rule,
    /// How bad.
    pub band: Band,
    /// The open that the completing request was joined with.
    pub open: Arc<TokenOpen>,
    /// The request that began the incident, with its latest stage's outcome.
    pub request: Arc<AuditRecord>,
    /// Sessions that may have brought the opener into the pod, best first.
    pub initiators: Vec<Arc<AuditRecord>>,
    /// Requests in the order of time, as far as they were kept.
    pub requests: Vec<Arc<AuditRecord>>,
    /// All requests, kept or not.
    pub request_count: u64,
    /// Opens of the pod in this incident.
    pub open_count: u64,
    /// First open or request, wall clock.
    pub first: Micros,
    /// Last open or request, wall clock.
    pub last: Micros,
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
    /// Incidents that have not ended.
    pub incidents: usize,
    /// Requests that wait for an open.
    pub waiting: usize,
}

/// A request that no open explains yet.
#[derive(Clone, Debug)]
struct Waiting {
    request: Request,
    id: RequestId,
    /// Clock at its arrival: it is kept for [`Settings::patience`] from then on.
    arrived: Micros,
    /// Whether the journal has it: an explained receipt, which may yet be all that ever comes.
    journalled: bool,
}

#[derive(Default)]
struct PodState {
    exposures: Vec<Exposure>,
    waiting: Vec<Waiting>,
    /// Incidents that can still be joined. In the order of event time there is at most one; where
    /// input arrives out of order, an earlier one may begin after a later one.
    incidents: Vec<Incident>,
    touched: Micros,
}

/// The state machine. One instance sees all opens and requests of a node.
pub struct Correlator<J> {
    settings: Settings,
    pods: HashMap<String, PodState>,
    sessions: Sessions,
    journal: J,
    journal_failure: Option<String>,
    losses: Losses,
}

impl<J: Journal> Correlator<J> {
    /// An empty correlator.
    pub fn new(settings: Settings, journal: J) -> Self {
        Self {
            settings,
            pods: HashMap::new(),
            sessions: Sessions::default(),
            journal,
            journal_failure: None,
            losses: Losses::default(),
        }
    }

    /// Takes an open. `now` is the clock of the steady axis. What does not qualify is ignored.
    pub fn open(&mut self, open: Open, now: Micros, findings: &mut Vec<Finding>) {
        if !token_access::qualifies(&open.open) || open.open.pod_uid.is_none() {
            return;
        }
        self.journal(&Entry::Open(open.clone()));
        self.apply_open(open, now, findings);
    }

    /// Takes one stage of a request. `now` is the clock of the steady axis.
    pub fn request(&mut self, request: Request, now: Micros, findings: &mut Vec<Finding>) {
        if self.sessions.note(&request.record, request.time) {
            self.journal(&Entry::Session(request.clone()));
        }
        let Some(pod_uid) = request.record.pod_uid().map(str::to_owned) else { return };
        let id = RequestId::of(&request.record);
        self.make_room(&pod_uid);
        let pod = self.pods.entry(pod_uid).or_default();
        pod.touched = now;
        if pod.update_known(id, &request) {
            return;
        }
        let explained = pod.explains(&request, &self.settings);
        if !token_access::answered(&request.record) || !explained {
            let receipt = explained.then(|| Entry::Request(request.clone()));
            let waiting = Waiting { request, id, arrived: now, journalled: explained };
            pod.wait(waiting, &self.settings, &mut self.losses);
            if let Some(receipt) = receipt {
                self.journal(&receipt);
            }
            return;
        }
        self.journal(&Entry::Request(request.clone()));
        self.attach(id, &request, findings);
    }

    /// Passes time: tells incidents that ended before `watermark`, forgets what can no longer
    /// matter. `now` is the clock of the steady axis.
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
                .record
                .pod_uid()
                .and_then(|pod_uid| self.pods.get(pod_uid))
                .is_some_and(|pod| pod.explains(&request, &self.settings));
            if explained {
                self.journal(&Entry::Request(request.clone()));
                self.attach(id, &request, findings);
            }
        }
        let mut ended: Vec<Alert> = Vec::new();
        self.pods.retain(|_, pod| {
            pod.incidents.retain(|incident| {
                let live = incident.end(&self.settings) >= watermark;
                ended.extend((!live).then(|| incident.summary()));
                live
            });
            // Exposures are what an incident counts its opens in, so they outlive it.
            let needed = !pod.incidents.is_empty();
            pod.exposures.retain(|exposure| needed || exposure.end(&self.settings) >= watermark);
            needed || !pod.exposures.is_empty() || !pod.waiting.is_empty()
        });
        ended.sort_by(|a, b| (a.first, &a.event_id).cmp(&(b.first, &b.event_id)));
        findings.extend(ended.into_iter().map(|alert| Finding::Incident(Box::new(alert))));
    }

    /// Takes back what a journal remembers. Alerts come out again, under the same ids: the log
    /// that has them already refuses them.
    pub fn restore(&mut self, entry: Entry, now: Micros, findings: &mut Vec<Finding>) {
        match entry {
            Entry::Open(open) => self.apply_open(open, now, findings),
            Entry::Session(request) => {
                self.sessions.note(&request.record, request.time);
            }
            Entry::Request(request) => {
                let id = RequestId::of(&request.record);
                let Some(pod) =
                    request.record.pod_uid().and_then(|pod_uid| self.pods.get_mut(pod_uid))
                else {
                    return;
                };
                if pod.update_known(id, &request) {
                    return;
                }
                if token_access::answered(&request.record) {
                    self.attach(id, &request, findings);
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
        let is_needed = |entry: &Entry| match entry {
            Entry::Open(open) => within(open.open.pod_uid.as_deref(), open.open.time),
            Entry::Request(request) => within(request.record.pod_uid(), request.time),
            Entry::Session(request) => request.time >= sessions,
        };
        self.journal.compact(&is_needed, horizons.is_empty())
    }

    /// Why entries are missing from the journal, for now or for good; `None` while none is.
    pub fn journal_failure(&self) -> Option<&str> {
        self.journal_failure.as_deref()
    }

    /// What was dropped so far.
    pub fn losses(&self) -> Losses {
        self.losses
    }

    /// What is held now.
    pub fn held(&self) -> Held {
        self.pods.values().fold(Held { pods: self.pods.len(), ..Held::default() }, |held, pod| {
            Held {
                exposures: held.exposures + pod.exposures.len(),
                incidents: held.incidents + pod.incidents.len(),
                waiting: held.waiting + pod.waiting.len(),
                ..held
            }
        })
    }

    fn apply_open(&mut self, open: Open, now: Micros, findings: &mut Vec<Finding>) {
        let Some(pod_uid) = open.open.pod_uid.clone() else { return };
        self.make_room(&pod_uid);
        let pod = self.pods.entry(pod_uid.clone()).or_default();
        pod.touched = now;
        pod.expose(open, &self.settings, &mut self.losses);
        for receipt in pod.explained_receipts(&self.settings) {
            self.journal(&Entry::Request(receipt));
        }
        let Some(pod) = self.pods.get_mut(&pod_uid) else { return };
        for (id, request) in pod.take_explained(&self.settings) {
            self.journal(&Entry::Request(request.clone()));
            self.attach(id, &request, findings);
        }
    }

    /// Attaches a request that an exposure or the incident explains.
    fn attach(&mut self, id: RequestId, request: &Request, findings: &mut Vec<Finding>) {
        let Some(pod_uid) = request.record.pod_uid() else { return };
        let Some(pod) = self.pods.get_mut(pod_uid) else { return };
        let attached = Attached::new(id, request);
        let anchor = window::anchor(&pod.exposures, request.time, &self.settings);
        let joined = pod.incidents.iter_mut().find(|incident| {
            let exposure = anchor.as_ref().map(|(exposure, _)| *exposure);
            exposure.is_some_and(|exposure| incident.touches(exposure, &self.settings))
                || incident.continues(request, &self.settings)
        });
        if let Some(incident) = joined {
            incident.join(attached, &pod.exposures, &self.settings);
        } else if let Some((exposure, open)) = anchor {
            let initiators = request
                .record
                .service_account()
                .zip(request.record.extra(audit::POD_NAME))
                .map(|((namespace, _), pod)| {
                    self.sessions.candidates(&open, namespace, pod, &self.settings)
                })
                .unwrap_or_default();
            let incident = Incident::begin(
                &self.settings,
                pod_uid,
                Cause { exposure, open, initiators },
                attached,
                &pod.exposures,
            );
            findings.push(Finding::Alert(Box::new(incident.alert())));
            if pod.incidents.len() >= self.settings.exposures_per_pod {
                let oldest = pod.incidents.remove(0);
                findings.push(Finding::Incident(Box::new(oldest.summary())));
            }
            pod.incidents.push(incident);
        }
        // The incident now lasts longer, so requests of the same client may belong to it as well.
        for (id, request) in pod.take_explained(&self.settings) {
            self.journal(&Entry::Request(request.clone()));
            self.attach(id, &request, findings);
        }
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

    /// Keeps the number of pods within its bound: one idle pod gives way to a new one.
    fn make_room(&mut self, pod_uid: &str) {
        if self.pods.len() < self.settings.pods || self.pods.contains_key(pod_uid) {
            return;
        }
        let idlest = self
            .pods
            .iter()
            .min_by_key(|(uid, pod)| (pod.weight(), pod.touched, uid.as_str()))
            .map(|(uid, _)| uid.clone());
        if let Some(uid) = idlest {
            self.pods.remove(&uid);
            self.losses.pods += 1;
        }
    }
}

impl PodState {
    /// A later stage or a duplicate of a request that is already here.
    fn update_known(&mut self, id: RequestId, request: &Request) -> bool {
        if self.incidents.iter_mut().any(|incident| incident.update(id, &request.record)) {
            return true;
        }
        let Some(index) = self.waiting.iter().position(|waiting| waiting.id == id) else {
            return false;
        };
        let Some(waiting) = self.waiting.get_mut(index) else { return false };
        if token_access::answered(&request.record)
            && !token_access::answered(&waiting.request.record)
        {
            // The answer takes the place of the receipt and is looked at anew.
            self.waiting.remove(index);
            return false;
        }
        if request.record.response_status.is_some() {
            waiting.request.record.response_status.clone_from(&request.record.response_status);
        }
        true
    }

    /// Whether an exposure holds the request, or the incident's client goes on.
    fn explains(&self, request: &Request, settings: &Settings) -> bool {
        window::anchor(&self.exposures, request.time, settings).is_some()
            || self.incidents.iter().any(|incident| incident.continues(request, settings))
    }

    fn expose(&mut self, open: Open, settings: &Settings, losses: &mut Losses) {
        if !self.exposures.iter_mut().any(|exposure| exposure.extend(&open, settings)) {
            if self.exposures.len() >= settings.exposures_per_pod {
                self.exposures.remove(0);
                losses.exposures += 1;
            }
            self.exposures.push(Exposure::new(open));
        }
        for incident in &mut self.incidents {
            incident.cover(&self.exposures, settings);
        }
    }

    fn wait(&mut self, waiting: Waiting, settings: &Settings, losses: &mut Losses) {
        if self.waiting.len() >= settings.waiting_per_pod {
            self.waiting.remove(0);
            losses.waiting += 1;
        }
        self.waiting.push(waiting);
    }

    /// Waiting requests that are explained by now, in the order of time.
    fn take_explained(&mut self, settings: &Settings) -> Vec<(RequestId, Request)> {
        let waiting = std::mem::take(&mut self.waiting);
        let (explained, rest): (Vec<_>, Vec<_>) = waiting.into_iter().partition(|waiting| {
            token_access::answered(&waiting.request.record)
                && self.explains(&waiting.request, settings)
        });
        self.waiting = rest;
        let mut explained: Vec<_> =
            explained.into_iter().map(|waiting| (waiting.id, waiting.request)).collect();
        explained.sort_by_key(|(id, request)| (request.time, *id));
        explained
    }

    /// Receipts that an open explains by now and that the journal does not have yet.
    fn explained_receipts(&mut self, settings: &Settings) -> Vec<Request> {
        let mut waiting = std::mem::take(&mut self.waiting);
        let mut receipts = Vec::new();
        for waiting in &mut waiting {
            if !waiting.journalled
                && !token_access::answered(&waiting.request.record)
                && self.explains(&waiting.request, settings)
            {
                waiting.journalled = true;
                receipts.push(waiting.request.clone());
            }
        }
        self.waiting = waiting;
        receipts
    }

    /// The earliest that anything held goes back to; `None` if nothing is held that a restart
    /// would need.
    fn horizon(&self) -> Option<Micros> {
        let exposures = self.exposures.iter().map(Exposure::first_open);
        let incidents = self.incidents.iter().map(Incident::first_time);
        let receipts = self.waiting.iter().filter(|waiting| waiting.journalled);
        exposures.chain(incidents).chain(receipts.map(|waiting| waiting.request.time)).min()
    }

    /// What a pod would lose if it gave way: incidents before exposures before mere waiting.
    fn weight(&self) -> u8 {
        match (self.incidents.is_empty(), self.exposures.is_empty()) {
            (false, _) => 2,
            (true, false) => 1,
            (true, true) => 0,
        }
    }
}

#[cfg(test)]
mod tests;
