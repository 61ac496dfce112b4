//! Feeds the [`Correlator`] that `run` has, in the order of event time.
//!
//! Of pods without an open nothing can be told but TokenRequests, sessions and decoys, and nobody
//! learns from them: where all opens can be looked through before, their requests are skipped.
//!
//! A recorded open may tell what the agent's index knew of its pod: its account, for decoys, and its
//! addresses. That counts from that open on.
//!
//! Opens without a pod uid are given the one that requests of a pod of that name carried, which
//! were read already: audit events are, by the lateness, ahead of what has its turn.

use std::{num::NonZeroUsize, sync::Arc};

use lru::LruCache;

use super::{Judged, Outcome, Semantics, Tell};
use crate::{
    attribution::pods::PodChange,
    audit::{
        AuditRecord, POD_NAME,
        scan::{
            Glance, Interest, Pods, Scan, Users, classify, decode, glance, received_timestamp,
            stage_timestamp,
        },
    },
    correlation::{Correlator, Finding, Open, Request, Settings, journal::NoJournal},
    replay::{PodsWithOpens, document::Writer, opens::OpenDocument},
    rules::{rulebook::Rulebook, token_access},
    time::Micros,
};

/// How often incidents are looked through for those that have ended, in event time.
const TICK: Micros = Micros::from_secs(1);
/// Pods at once: of a cluster, not of a node.
const PODS: usize = 16_384;
/// How long a request waits for an open beyond the skew: in the order of time none comes after it.
const PATIENCE: Micros = Micros::from_secs(1);
/// Pods of whom is remembered what their opens' documents call them, and what uids their names had.
const REMEMBERED: NonZeroUsize = NonZeroUsize::MIN.saturating_add(4_095);
/// Uids of one name: a StatefulSet's pod comes back under it.
const UIDS: usize = 8;
/// What an open says that has no uid of its own.
const BY_NAME: &str = "no pod uid was recorded: joined by namespace and pod name";

/// The rules as `run` evaluates them.
pub struct LiveSemantics {
    correlator: Correlator<NoJournal>,
    /// The pods that matter.
    pods: PodsWithOpens,
    /// Whether accounts matter without a pod.
    accounts: bool,
    lateness: Micros,
    /// Event time.
    now: Micros,
    /// The last one that was, in event time.
    tick: Micros,
    /// What documents say of a pod, by the uid that it has here.
    told: LruCache<String, Told>,
    /// Whether opens were read that only names tell whose they are.
    needs_names: bool,
    /// When the audit files begin, by the lines read so far: requests before are not seen.
    begins: Option<Micros>,
    /// Whether none of the lines to come can be earlier.
    begins_known: bool,
    uids: LruCache<PodName, Vec<Seen>>,
    findings: Vec<Finding>,
    writer: Writer,
}

/// Namespace and name of a pod.
type PodName = (String, String);

/// What documents of opens say of a pod.
struct Told {
    name: Option<PodName>,
    host: Option<String>,
}

/// A uid that requests of a pod carried.
struct Seen {
    uid: String,
    last: Micros,
}

impl LiveSemantics {
    /// Findings come from this writer; rules are as users decided. `pods` are those of which opens
    /// are to come. Of `settings` those count that a replay can have in common with `run`.
    pub fn new(
        lateness: Micros,
        settings: Settings,
        pods: PodsWithOpens,
        rulebook: Arc<Rulebook>,
        writer: Writer,
    ) -> Self {
        let settings = Settings { patience: PATIENCE, pods: PODS, ..settings };
        // Else, and while no open tells addresses, only tokens tell whose a request is.
        let accounts = !rulebook.decoys.is_empty();
        let mut correlator = Correlator::new(settings, NoJournal);
        correlator.set_rulebook(rulebook);
        Self {
            correlator,
            pods,
            accounts,
            lateness,
            now: Micros::MIN,
            tick: Micros::MIN,
            told: LruCache::new(REMEMBERED),
            needs_names: false,
            begins: None,
            begins_known: false,
            uids: LruCache::new(REMEMBERED),
            findings: Vec::new(),
            writer,
        }
    }

    /// Notes which uid a pod's name stands for.
    fn learn(&mut self, record: &AuditRecord) {
        let Some((namespace, _)) = record.service_account() else { return };
        let (Some(name), Some(uid)) = (record.extra(POD_NAME), record.pod_uid()) else { return };
        let key = (namespace.to_owned(), name.to_owned());
        let seen = self.uids.get_or_insert_mut(key, Vec::new);
        let time = record.request_received_timestamp;
        if let Some(known) = seen.iter_mut().find(|it| it.uid == uid) {
            known.last = known.last.max(time);
            return;
        }
        if seen.len() >= UIDS {
            seen.remove(0);
        }
        seen.push(Seen { uid: uid.to_owned(), last: time });
    }

    /// The uid for an open that has none: of the pod that asked next, else of the last that did;
    /// else its name, which no request will have.
    fn uid_of(&mut self, name: &PodName, opened: Micros) -> String {
        let seen = self.uids.get(name).map_or(&[][..], Vec::as_slice);
        let next = seen.iter().filter(|it| it.last >= opened).min_by_key(|it| it.last);
        let last = seen.iter().max_by_key(|it| it.last);
        let found = next.or(last).map(|it| it.uid.clone());
        found.unwrap_or_else(|| format!("{}/{}", name.0, name.1))
    }

    fn report(&mut self, tell: Tell<'_>) {
        for finding in self.findings.drain(..) {
            let open = finding.open.as_ref().map(|open| &open.open);
            let told = open.and_then(|open| self.told.get(open.pod_uid.as_deref()?));
            let mut document = self.writer.of(&finding, told.and_then(|told| told.host.as_deref()));
            if let Some((namespace, name)) = told.and_then(|told| told.name.clone()) {
                document.orchestrator.namespace.get_or_insert(namespace);
                if let Some(resource) = &mut document.orchestrator.resource {
                    resource.name.get_or_insert(name);
                }
            }
            if open.is_some_and(|open| open.degraded.iter().any(|it| it == BY_NAME)) {
                document.tokentrail.confidence = "low";
                document.tokentrail.reasons.push(BY_NAME.to_owned());
            }
            tell(document);
        }
    }
}

/// What can change what is told where only these pods have opens.
fn interest(pods: Pods<'_>, accounts: bool) -> Interest<'_> {
    let accounts = if accounts { Users::All } else { Users::None };
    Interest { pods, accounts, canaries: false, ..Interest::LIVE }
}

/// Whether an open can begin an incident of its pod.
pub fn can_begin_incident(open: &OpenDocument) -> bool {
    token_access::qualifies(&open.open())
}

fn name_of(open: &OpenDocument) -> Option<PodName> {
    Some((open.namespace.clone()?, open.names.first()?.clone()))
}

impl Semantics for LiveSemantics {
    fn expect(&mut self, open: &OpenDocument) -> bool {
        if let Some(skew) = open.skew {
            self.correlator.widen_patience(skew + PATIENCE);
        }
        // Its account may then ask without saying for which pod.
        self.accounts |= open.pod.is_some();
        let by_name = open.pod_uid.is_none() && name_of(open).is_some();
        self.needs_names |= by_name;
        by_name || open.pod_uid.is_some()
    }

    fn judge(&mut self, line: &[u8]) -> Judged {
        if !self.begins_known
            && let Some(time) = stage_timestamp(line)
        {
            let begins = self.begins.map_or(time, |begins| begins.min(time));
            self.begins_known = time > begins + self.lateness;
            self.begins = Some(begins);
        }
        let (uids, names);
        let pods = match &self.pods {
            PodsWithOpens::Uids(known) => {
                uids = |uid: &str| known.contains(uid);
                Pods::WithUid(&uids)
            }
            PodsWithOpens::Names(known) => {
                names = |name: &str| known.contains(name);
                Pods::Named(&names)
            }
            PodsWithOpens::Unknown => Pods::All,
        };
        let interest = interest(pods, self.accounts);
        match glance(line, &interest) {
            Glance::Skip => return Judged::Skip,
            Glance::Bad(reason) => return Judged::Bad(reason),
            Glance::Decode => {}
        }
        let times = received_timestamp(line).zip(stage_timestamp(line));
        let (received, stage) = match times.filter(|_| !self.needs_names) {
            Some(times) => times,
            None => match decode(line, &interest) {
                Ok(Some(record)) => {
                    self.learn(&record);
                    (record.request_received_timestamp, record.stage_timestamp)
                }
                Ok(None) => return Judged::Skip,
                Err(reason) => return Judged::Bad(reason),
            },
        };
        // The end of a watch is told long after its receipt, whatever the lateness.
        let time = if received >= stage - self.lateness { received } else { stage };
        Judged::Keep { time }
    }

    fn forget(&mut self, _: Micros) {}

    fn open(&mut self, document: OpenDocument, tell: Tell<'_>) {
        let name = name_of(&document);
        let mut open = document.open();
        let OpenDocument { pod_uid, boot_id, host, time, skew, pod, .. } = document;
        if let Some(pod) = pod {
            self.writer.pods.apply(PodChange::Present(pod), self.now);
        }
        let uid = match (pod_uid, &name) {
            (Some(uid), _) => uid,
            (None, Some(name)) => {
                open.degraded.push(BY_NAME.to_owned());
                self.uid_of(name, time)
            }
            (None, None) => return,
        };
        open.pod_uid = Some(uid.clone());
        self.told.put(uid, Told { name, host });
        self.correlator.watch(self.begins.unwrap_or(self.now));
        let mut open = Open::new(boot_id, open);
        open.skew_us = skew.unwrap_or_default().0;
        open.find_pods(&self.writer.pods);
        self.correlator.open(open, self.now, &mut self.findings);
        self.report(tell);
    }

    fn request(&mut self, line: &[u8], tell: Tell<'_>) -> Outcome {
        // It was judged before.
        let record = match classify(line, &interest(Pods::All, self.accounts)) {
            Scan::Skip => return Ok(()),
            Scan::Bad(reason) => return Err(reason),
            Scan::Record(record) => record,
        };
        let mut request = Request::new(record.request_received_timestamp, record);
        request.find_pod(&self.writer.pods);
        self.correlator.watch(self.begins.unwrap_or(self.now));
        self.correlator.request(request, self.now, &mut self.findings);
        self.report(tell);
        Ok(())
    }

    fn advance(&mut self, watermark: Micros, tell: Tell<'_>) {
        // At fixed moments: where chunks end must not show.
        let tick = match watermark {
            Micros::MAX => watermark,
            time => {
                self.now = self.now.max(time);
                Micros(time.0.saturating_sub(time.0.rem_euclid(TICK.0)))
            }
        };
        if tick <= self.tick {
            return;
        }
        self.tick = tick;
        self.correlator.advance(tick, self.now, &mut self.findings);
        // Nobody counts them here.
        drop(self.correlator.take_hits());
        self.report(tell);
    }

    fn losses(&self) -> Vec<(&'static str, u64)> {
        let losses = self.correlator.losses();
        vec![
            ("exposures", losses.exposures),
            ("reads of pods", losses.reads),
            ("waiting requests", losses.waiting),
            ("pods", losses.pods),
            ("hourly incidents", losses.hourly),
            ("requests of summaries", losses.unlisted),
            ("requests' identities", losses.forgotten),
        ]
    }
}
