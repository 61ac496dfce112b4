//! Feeds the [`Correlator`] that `run` has, in the order of event time.
//!
//! Of pods without an open nothing can be told but TokenRequests, sessions and decoys, and nobody
//! learns from them: where all opens can be looked through before, their requests are skipped.
//!
//! A recorded open may tell what the agent's index knew of its pod: its account, for decoys, and its
//! addresses. That counts from that open on.
//!
//! Opens without a pod uid wait for requests of a pod of that name.

use std::{collections::BTreeMap, num::NonZeroUsize, sync::Arc};

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
    replay::{PodsWithOpens, clock::LEAP, document::Writer, opens::OpenDocument},
    rules::{exceptions::ExceptionId, rulebook::Rulebook, token_access},
    time::Micros,
};

mod by_name;

use by_name::{ByName, PodName};

/// How often incidents are looked through for those that have ended, in event time.
const TICK: Micros = Micros::from_secs(1);
/// Pods at once: of a cluster, not of a node.
const PODS: usize = 16_384;
/// How long a request waits for an open beyond the skew: in the order of time none comes after it.
const PATIENCE: Micros = Micros::from_secs(1);
/// Pods of whom is remembered on which host they were.
const REMEMBERED: NonZeroUsize = NonZeroUsize::MIN.saturating_add(4_095);
/// Opens of one moment among which one that comes twice is found.
const TWINS: usize = 64;
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
    /// The hosts of pods, by the uid that they have here.
    hosts: LruCache<String, Option<String>>,
    /// Opens of pods without a uid, once there are any.
    by_name: Option<ByName>,
    window: Micros,
    /// When the audit files begin, by the lines read so far: requests before are not seen.
    begins: Option<Micros>,
    /// Whether none of the lines to come can be earlier.
    begins_known: bool,
    /// Time of the first line: all that there is to go by where each is far from the next.
    first_line: Option<Micros>,
    /// Time of the line before: one that is far from both its neighbours is not believed.
    line_before: Option<Micros>,
    /// Opens of the same moment that had their turn.
    twins: Vec<OpenDocument>,
    excepted: BTreeMap<ExceptionId, u64>,
    findings: Vec<Finding>,
    writer: Writer,
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
        let window = settings.window;
        let mut correlator = Correlator::new(settings, NoJournal);
        correlator.set_rulebook(rulebook);
        Self {
            correlator,
            pods,
            accounts,
            lateness,
            now: Micros::MIN,
            tick: Micros::MIN,
            hosts: LruCache::new(REMEMBERED),
            by_name: None,
            window,
            begins: None,
            begins_known: false,
            first_line: None,
            line_before: None,
            twins: Vec::new(),
            excepted: BTreeMap::new(),
            findings: Vec::new(),
            writer,
        }
    }

    /// Notes the time of a line as it is read.
    fn note_begin(&mut self, time: Micros) {
        self.first_line.get_or_insert(time);
        let before = self.line_before.replace(time);
        if let Some(before) = before.filter(|it| (it.0 - time.0).abs() <= LEAP.0) {
            let begins = self.begins.into_iter().chain([before, time]).min().unwrap_or(time);
            self.begins_known = time > begins + self.lateness;
            self.begins = Some(begins);
        }
    }

    /// Watching begins with the audit files, if it has not begun.
    fn watch(&mut self) {
        self.correlator.watch(self.begins.or(self.first_line).unwrap_or(self.now));
    }

    /// Whether the open had its turn just now: a file may be given twice.
    fn is_twin(&mut self, open: &OpenDocument) -> bool {
        if self.twins.first().is_some_and(|twin| twin.time != open.time) {
            self.twins.clear();
        }
        let is_twin = self.twins.iter().any(|twin| twin.is_same(open));
        if !is_twin && self.twins.len() < TWINS {
            self.twins.push(open.clone());
        }
        is_twin
    }

    fn feed(&mut self, mut open: Open) {
        open.find_pods(&self.writer.pods);
        self.watch();
        self.correlator.open(open, self.now, &mut self.findings);
    }

    fn report(&mut self, tell: Tell<'_>) {
        for finding in self.findings.drain(..) {
            let open = finding.open.as_ref().map(|open| &open.open);
            let uid = open.and_then(|open| open.pod_uid.as_deref());
            let host = uid.and_then(|uid| self.hosts.get(uid)?.as_deref());
            let mut document = self.writer.of(&finding, host);
            if open.is_some_and(|open| open.degraded.iter().any(|it| it == BY_NAME)) {
                document.tokentrail.confidence = "low";
                document.tokentrail.reasons.push(BY_NAME.to_owned());
                if finding.request.is_none()
                    && let Some(resource) = &mut document.orchestrator.resource
                {
                    // Nobody knows it.
                    resource.id = None;
                }
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
    Some((open.namespace.as_deref()?.into(), open.names.first()?.as_str().into()))
}

/// Name and uid of the pod that a request is of.
fn named(record: &AuditRecord) -> Option<(PodName, &str)> {
    let (namespace, _) = record.service_account()?;
    Some(((namespace.into(), record.extra(POD_NAME)?.into()), record.pod_uid()?))
}

impl Semantics for LiveSemantics {
    fn expect(&mut self, open: &OpenDocument) -> bool {
        if let Some(skew) = open.skew {
            self.correlator.widen_patience(skew + PATIENCE);
        }
        // Its account may then ask without saying for which pod.
        self.accounts |= open.pod.is_some();
        let by_name = open.pod_uid.is_none() && name_of(open).is_some();
        if by_name {
            self.by_name.get_or_insert_with(|| ByName::new(self.window));
        }
        by_name || open.pod_uid.is_some()
    }

    fn judge(&mut self, line: &[u8]) -> Judged {
        if !self.begins_known
            && let Some(time) = stage_timestamp(line)
        {
            self.note_begin(time);
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
        let (received, stage) = match times {
            Some(times) => times,
            None => match decode(line, &interest) {
                Ok(Some(record)) => (record.request_received_timestamp, record.stage_timestamp),
                Ok(None) => return Judged::Skip,
                Err(reason) => return Judged::Bad(reason),
            },
        };
        // The end of a watch is told long after its receipt, whatever the lateness: as in `run`, it
        // meets what is held when all that is earlier by the lateness is known.
        let time = received.max(stage - self.lateness);
        Judged::Keep { time }
    }

    fn forget(&mut self, _: Micros) {}

    fn open(&mut self, document: OpenDocument, tell: Tell<'_>) {
        if self.is_twin(&document) {
            return;
        }
        let name = name_of(&document);
        let mut open = document.open();
        let OpenDocument { pod_uid, boot_id, host, skew, pod, .. } = document;
        if let Some(pod) = pod {
            self.writer.pods.apply(PodChange::Present(pod), self.now);
        }
        let is_by_name = pod_uid.is_none();
        open.pod_uid = pod_uid;
        if is_by_name {
            open.degraded.push(BY_NAME.to_owned());
        }
        let mut open = Open::new(boot_id, open);
        open.skew_us = skew.unwrap_or_default().0;
        open.named = name.clone();
        let opens = match (is_by_name, name, &mut self.by_name) {
            (false, ..) => vec![open],
            (true, Some(name), Some(by_name)) => by_name.open(&name, open),
            (true, ..) => return,
        };
        for open in opens {
            if let Some(uid) = &open.open.pod_uid {
                self.hosts.put(uid.clone(), host.clone());
            }
            self.feed(open);
        }
        self.report(tell);
    }

    fn request(&mut self, line: &[u8], tell: Tell<'_>) -> Outcome {
        // It was judged before.
        let record = match classify(line, &interest(Pods::All, self.accounts)) {
            Scan::Skip => return Ok(()),
            Scan::Bad(reason) => return Err(reason),
            Scan::Record(record) => record,
        };
        if let Some(by_name) = &mut self.by_name
            && let Some((name, uid)) = named(&record)
        {
            for open in by_name.request(name, uid, record.request_received_timestamp) {
                self.feed(open);
            }
        }
        let mut request = Request::new(record.request_received_timestamp, record);
        request.find_pod(&self.writer.pods);
        self.watch();
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
        for open in self.by_name.as_mut().map(|it| it.expire(tick)).unwrap_or_default() {
            self.feed(open);
        }
        self.correlator.advance(tick, self.now, &mut self.findings);
        for hit in self.correlator.take_hits() {
            *self.excepted.entry(hit.exception).or_default() += 1;
        }
        self.report(tell);
    }

    fn excepted(&self) -> Vec<(String, u64)> {
        self.excepted.iter().map(|(exception, count)| (exception.to_string(), *count)).collect()
    }

    fn losses(&self) -> Vec<(&'static str, u64)> {
        let losses = self.correlator.losses();
        vec![
            ("exposures", losses.exposures),
            ("reads of pods", losses.reads),
            ("waiting requests", losses.waiting),
            ("pods", losses.pods),
            ("hourly incidents", losses.hourly),
            ("alerts of their own", losses.crowded),
            ("requests of summaries", losses.unlisted),
            ("requests' identities", losses.forgotten),
        ]
    }
}
