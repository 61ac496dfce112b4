//! What is told by itself: tokens read and not used (R0), tokens minted (R2), tokens read from outside
//! (R3), decoys (R7). Part of the [`Correlator`].

use std::sync::Arc;

use super::{
    Attached, Correlator, Finding, JOURNALLED, Open, Request,
    hourly::Hourly,
    ids::{self, Key, RequestId},
    journal::{Entry, Journal},
    story::{Share, Story},
    window::Exposure,
};
use crate::{
    attribution::{Grade, TokenFile, TokenOpen},
    audit::AuditRecord,
    rules::{RequestKind, catalogue::RuleId, rulebook::Rulebook, token_request},
    time::Micros,
};

impl<J: Journal> Correlator<J> {
    /// Whether an open is told by itself, whatever follows.
    pub(super) fn open_stands_alone(&self, open: &Open) -> bool {
        outside_key(&open.open).is_some() || decoy_opened(&self.rulebook, open).is_some()
    }

    /// R3 and R7: an open that is told by itself, or joins one that was.
    pub(super) fn open_alone(&mut self, open: &Arc<Open>, findings: &mut Vec<Finding>) {
        if let Some(key) = decoy_opened(&self.rulebook, open) {
            self.opened(RuleId::DecoyUsed, key, open, findings);
        }
        if let Some(key) = outside_key(&open.open) {
            self.opened(RuleId::TokenReadFromOutside, key, open, findings);
        }
    }

    /// Whether a restart needs it.
    fn opened(
        &mut self,
        rule: RuleId,
        key: Key,
        open: &Arc<Open>,
        findings: &mut Vec<Finding>,
    ) -> bool {
        if self.excepted(rule, Some(open), None) {
            return false;
        }
        let time = open.open.time;
        let (key, crowded) = self.key(rule, key, time);
        let hourly = self.hourly(rule);
        if let Some(standing) = hourly.find(&key, time) {
            standing.story.add_open(open);
            return standing.story.open_count() <= JOURNALLED;
        }
        let id = if rule == RuleId::TokenReadFromOutside {
            ids::outside_id(&self.settings.cluster, &open.boot_id, &key, open.open.ktime_ns)
        } else {
            self.exposure_id(open)
        };
        let mut story = Story::begin(rule, id, Some(Arc::clone(open)), None);
        story.set_initiators(self.initiators(open, None));
        story.add_open(open);
        if rule == RuleId::TokenRead {
            story.set_early();
        }
        story.set_crowded(crowded);
        findings.push(story.alert());
        self.hourly(rule).begin(key, time, story, findings);
        true
    }

    /// The key by which an event is joined, and whether its owner has too many for one of its own.
    fn key(&mut self, rule: RuleId, own: Key, time: Micros) -> (Key, bool) {
        let is_of_owner = own.rest.is_empty();
        let key = self.hourly(rule).key(own, time);
        let crowded = key.rest.is_empty() && !is_of_owner;
        self.losses.crowded += u64::from(crowded);
        (key, crowded)
    }

    pub(super) fn hourly(&mut self, rule: RuleId) -> &mut Hourly {
        match rule {
            RuleId::TokenRequestByUser => &mut self.minted,
            RuleId::TokenReadFromOutside => &mut self.outside,
            RuleId::TokenRead => &mut self.reads,
            RuleId::DecoyUsed | RuleId::TokenAccessThenApiRequest => &mut self.decoys,
        }
    }

    /// What an incident may hold of its requests.
    pub(super) fn share(&self) -> Share {
        let hourly = [&self.minted, &self.outside, &self.decoys];
        Share::among(self.incidents + hourly.iter().map(|it| it.len()).sum::<usize>())
    }

    /// Whether a request is told by itself, whatever was opened.
    pub(super) fn stands_alone(&self, record: &AuditRecord) -> bool {
        self.is_minted_by_user(record) || decoy_used(&self.rulebook, record).is_some()
    }

    pub(super) fn is_minted_by_user(&self, record: &AuditRecord) -> bool {
        record.minted_for().is_some()
            && !record.user.username.is_empty()
            && token_request::band(record).is_some()
            && !self.rulebook.exclusions.excludes(&record.user.username, &record.user.groups)
    }

    /// R2 and R7: a request that is told by itself, or joins one that was. Whether a restart needs it.
    pub(super) fn alone(
        &mut self,
        id: RequestId,
        request: &Request,
        findings: &mut Vec<Finding>,
    ) -> bool {
        let record = &request.record;
        let mut needed = false;
        if self.is_minted_by_user(record)
            && let Some(key) = minted_key(record)
        {
            needed |= self.asked(RuleId::TokenRequestByUser, key, id, request, findings);
        }
        if let Some(key) = decoy_used(&self.rulebook, record) {
            needed |= self.asked(RuleId::DecoyUsed, key, id, request, findings);
        }
        needed
    }

    pub(super) fn asked(
        &mut self,
        rule: RuleId,
        key: Key,
        id: RequestId,
        request: &Request,
        findings: &mut Vec<Finding>,
    ) -> bool {
        let known = self.hourly(rule).stories().find_map(|story| {
            let (attached, is_news) = story.update(id, &request.record)?;
            let escalation = story.escalation(&attached);
            let needed = is_news && story.request_count() <= JOURNALLED;
            Some((needed || escalation.is_some(), escalation))
        });
        if let Some((needed, escalation)) = known {
            findings.extend(escalation);
            return needed;
        }
        let attached = Attached::new(id, request, RequestKind::Unknown);
        if self.excepted(rule, None, Some(&attached)) {
            return false;
        }
        let share = self.share();
        let (key, crowded) = self.key(rule, key, request.time);
        if let Some(standing) = self.hourly(rule).find(&key, request.time) {
            let attached = standing.story.attach(attached, share);
            let escalation = standing.story.escalation(&attached);
            let needed = escalation.is_some() || standing.story.request_count() <= JOURNALLED;
            findings.extend(escalation);
            return needed;
        }
        let incident_id = ids::request_incident_id(&self.settings.cluster, rule, &key, id, None);
        let mut story = Story::begin(rule, incident_id, None, Some(attached));
        story.set_crowded(crowded);
        findings.push(story.alert());
        self.hourly(rule).begin(key, request.time, story, findings);
        true
    }

    /// Notes a later stage of a request that R3's incidents list.
    pub(super) fn update_outside(&mut self, id: RequestId, record: &AuditRecord) {
        for story in self.outside.stories() {
            story.update(id, record);
        }
    }

    /// Lists a request in R3's incident about the open that it follows from; gives that one's id.
    pub(super) fn list_outside(&mut self, open: &Open, attached: &Attached) -> Option<String> {
        let key = outside_key(&open.open)?;
        let share = self.share();
        let standing = self.outside.find(&key, open.open.time)?;
        standing.story.attach(attached.clone(), share);
        Some(standing.story.id().to_owned())
    }

    /// R0: what is told of an exposure that ended without a request.
    pub(super) fn read(&mut self, exposure: &Exposure) -> Option<Finding> {
        // R3 tells of what is read from outside.
        let open = exposure.read.as_ref().filter(|it| it.open.grade != Grade::Outside)?;
        if self.excepted(RuleId::TokenRead, Some(open), None) {
            return None;
        }
        let id = self.exposure_id(&exposure.first);
        let mut story = Story::begin(RuleId::TokenRead, id, Some(Arc::clone(open)), None);
        story.set_open_count(exposure.count);
        for open in exposure.opens() {
            story.cover(open.open.wall);
        }
        story.set_initiators(self.initiators(open, None));
        Some(story.alert())
    }

    /// R0 of an exposure that gave way to others before its end.
    pub(super) fn give_up(&mut self, exposure: &Exposure, findings: &mut Vec<Finding>) {
        let Some(open) = &exposure.read else { return };
        if self.read_given_up(open, findings) {
            self.journal(&Entry::GivenUp(Open::clone(open)));
        }
    }

    /// One incident for a pod and hour, and for so many pods: who floods exposures shall not flood the
    /// alert log. Whether a restart needs it.
    pub(super) fn read_given_up(&mut self, open: &Arc<Open>, findings: &mut Vec<Finding>) -> bool {
        let Some(key) = read_key(&open.open) else { return false };
        if self.reads.is_full() && self.reads.find(&key, open.open.time).is_none() {
            self.losses.reads += 1;
            return false;
        }
        self.opened(RuleId::TokenRead, key, open, findings)
    }

    fn exposure_id(&self, first: &Open) -> String {
        ids::incident_id(
            &self.settings.cluster,
            &first.boot_id,
            first.open.pod_uid.as_deref().unwrap_or_default(),
            first.open.entry.key,
            first.open.ktime_ns,
        )
    }
}

/// R2's key: who mints, for whom, by what client.
pub(super) fn minted_key(record: &AuditRecord) -> Option<Key> {
    let (namespace, name) = record.minted_for()?;
    let agent = record.user_agent.clone().unwrap_or_default();
    let rest = vec![namespace.to_owned(), name.to_owned(), agent];
    Some(Key { owner: record.user.username.clone(), rest })
}

/// R3's key: the reader's executable, and the container or host that it runs in.
pub(super) fn outside_key(open: &TokenOpen) -> Option<Key> {
    if open.grade != Grade::Outside || open.file != TokenFile::Token {
        return None;
    }
    let container = open.reader.as_ref().map_or("host".to_owned(), |reader| {
        reader.container_id.clone().unwrap_or_else(|| reader.pod_uid.clone())
    });
    Some(Key { owner: container, rest: vec![open.executable.clone()] })
}

/// The key of R0's reads that are told early: the pod. What is read from outside is R3's to tell.
pub(super) fn read_key(open: &TokenOpen) -> Option<Key> {
    let pod_uid = open.pod_uid.as_ref().filter(|_| open.grade != Grade::Outside)?;
    Some(Key { owner: pod_uid.clone(), rest: Vec::new() })
}

/// The decoy whose token was opened, as R7's key.
pub(super) fn decoy_opened(rulebook: &Rulebook, open: &Open) -> Option<Key> {
    let pod = open.pod.as_ref().filter(|_| open.open.file == TokenFile::Token)?;
    decoy(rulebook, &pod.namespace, &pod.service_account)
}

/// The decoy that makes a request, or that one mints for, as R7's key.
pub(super) fn decoy_used(rulebook: &Rulebook, record: &AuditRecord) -> Option<Key> {
    let accounts = [record.service_account(), record.minted_for()];
    accounts.into_iter().flatten().find_map(|(namespace, name)| decoy(rulebook, namespace, name))
}

fn decoy(rulebook: &Rulebook, namespace: &str, name: &str) -> Option<Key> {
    let is_decoy = rulebook.decoys.contains(namespace, name);
    is_decoy.then(|| Key { owner: format!("{namespace}/{name}"), rest: Vec::new() })
}
