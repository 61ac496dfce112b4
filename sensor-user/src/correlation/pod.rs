//! What is held of one pod: exposures, incidents, and requests that wait for an open.

use std::sync::Arc;

use super::{
    JOURNALLED, Losses, Open, Request, Settings,
    finding::Finding,
    habits::Habits,
    ids::RequestId,
    incident::Incident,
    window::{self, Exposure},
};
use crate::{
    rules::{RequestKind, token_access},
    time::Micros,
};

/// A request that no open explains yet.
#[derive(Clone, Debug)]
pub(super) struct Waiting {
    pub(super) request: Request,
    pub(super) id: RequestId,
    /// Clock at its arrival: it is kept for [`Settings::patience`] from then on.
    pub(super) arrived: Micros,
    /// Whether the journal has it: an explained receipt, which may yet be all that ever comes.
    pub(super) journalled: bool,
}

/// Whether a stage is of a request that is here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Known {
    /// It is new.
    No,
    /// It is, and a restart can do without it.
    Same,
    /// It is, and changes what a restart would find.
    News,
}

/// What explains a request.
#[derive(Debug)]
pub(super) struct Grounds<'a> {
    /// The exposure that holds it, and the open that it follows from.
    pub(super) anchor: Option<(&'a Exposure, Arc<Open>)>,
    /// The incident that it joins, by its place.
    pub(super) joined: Option<usize>,
    /// Whether the workload makes such requests by itself.
    pub(super) kind: RequestKind,
}

/// One pod.
#[derive(Debug, Default)]
pub(super) struct PodState {
    pub(super) exposures: Vec<Exposure>,
    pub(super) waiting: Vec<Waiting>,
    /// Incidents that can still be joined. In the order of event time there is at most one; where
    /// input arrives out of order, an earlier one may begin after a later one.
    pub(super) incidents: Vec<Incident>,
    pub(super) touched: Micros,
}

impl PodState {
    /// A later stage or a duplicate of a request that is already here.
    pub(super) fn update_known(
        &mut self,
        id: RequestId,
        request: &Request,
        findings: &mut Vec<Finding>,
    ) -> Known {
        let known = self.incidents.iter_mut().find_map(|it| {
            let (is_news, escalation) = it.update(id, &request.record)?;
            // Of those that the journal does not have it needs no later stages either.
            let needed = is_news && it.story.request_count() <= JOURNALLED;
            Some((needed || escalation.is_some(), escalation))
        });
        if let Some((needed, escalation)) = known {
            findings.extend(escalation);
            return if needed { Known::News } else { Known::Same };
        }
        let Some(index) = self.waiting.iter().position(|waiting| waiting.id == id) else {
            return Known::No;
        };
        let Some(waiting) = self.waiting.get_mut(index) else { return Known::No };
        if token_access::answered(&request.record)
            && !token_access::answered(&waiting.request.record)
        {
            // The answer takes the place of the receipt and is looked at anew.
            self.waiting.remove(index);
            return Known::No;
        }
        if waiting.request.record.is_before(&request.record) {
            waiting.request.record.take_outcome(&request.record);
        }
        Known::Same
    }

    /// What explains a request: an exposure that holds it, or an incident whose client goes on; where
    /// there is neither, an exposure that explains what is new, if that is.
    pub(super) fn grounds(
        &self,
        request: &Request,
        habits: &Habits,
        settings: &Settings,
    ) -> Option<Grounds<'_>> {
        let grounds = |only_new| {
            let anchor = window::anchor(&self.exposures, only_new, request.time, settings);
            let joined = self.incidents.iter().position(|incident| {
                anchor.as_ref().is_some_and(|(it, _)| incident.touches(it, settings))
                    || incident.continues(request, settings)
            });
            if anchor.is_none() && joined.is_none() {
                return None;
            }
            let exposed = anchor.as_ref().map(|(exposure, _)| exposure.first_open());
            let begun = joined.and_then(|at| self.incidents.get(at)).map(Incident::first_time);
            let exposed = exposed.into_iter().chain(begun).min().unwrap_or(request.time);
            let judged = request.judged.map(|(kind, _)| kind);
            let kind = judged.unwrap_or_else(|| habits.kind(request, exposed));
            Some(Grounds { anchor, joined, kind })
        };
        grounds(false).or_else(|| grounds(true).filter(|it| it.kind == RequestKind::New))
    }

    /// Whether anything explains a request.
    pub(super) fn explains(&self, request: &Request, habits: &Habits, settings: &Settings) -> bool {
        self.grounds(request, habits, settings).is_some()
    }

    /// Lets an open start or extend an exposure. Where there are too many, the oldest gives way; it is
    /// returned, if nothing was told of it.
    pub(super) fn expose(
        &mut self,
        open: &Arc<Open>,
        settings: &Settings,
        losses: &mut Losses,
    ) -> Option<Exposure> {
        let mut given_up = None;
        if !self.exposures.iter_mut().any(|exposure| exposure.extend(open, settings)) {
            if self.exposures.len() >= settings.exposures_per_pod {
                let oldest = self.exposures.remove(0);
                let is_told = |it: &Incident| it.touches(&oldest, settings);
                let is_told = self.incidents.iter().any(is_told);
                given_up = (!is_told).then_some(oldest);
                losses.exposures += 1;
            }
            self.exposures.push(Exposure::new(Arc::clone(open)));
        }
        for incident in &mut self.incidents {
            incident.cover(&self.exposures, settings);
        }
        given_up
    }

    pub(super) fn wait(&mut self, waiting: Waiting, settings: &Settings, losses: &mut Losses) {
        if self.waiting.len() >= settings.waiting_per_pod {
            self.waiting.remove(0);
            losses.waiting += 1;
        }
        self.waiting.push(waiting);
    }

    /// Waiting requests that are explained by now, in the order of time.
    pub(super) fn take_explained(
        &mut self,
        habits: &Habits,
        settings: &Settings,
    ) -> Vec<(RequestId, Request)> {
        let waiting = std::mem::take(&mut self.waiting);
        let (explained, rest): (Vec<_>, Vec<_>) = waiting.into_iter().partition(|waiting| {
            token_access::answered(&waiting.request.record)
                && self.explains(&waiting.request, habits, settings)
        });
        self.waiting = rest;
        let mut explained: Vec<_> =
            explained.into_iter().map(|waiting| (waiting.id, waiting.request)).collect();
        explained.sort_by_key(|(id, request)| (request.time, *id));
        explained
    }

    /// Receipts that an open explains by now and that the journal does not have yet.
    pub(super) fn explained_receipts(
        &mut self,
        habits: &Habits,
        settings: &Settings,
    ) -> Vec<Request> {
        let mut waiting = std::mem::take(&mut self.waiting);
        let mut receipts = Vec::new();
        for waiting in &mut waiting {
            if !waiting.journalled
                && !token_access::answered(&waiting.request.record)
                && self.explains(&waiting.request, habits, settings)
            {
                waiting.journalled = true;
                receipts.push(waiting.request.clone());
            }
        }
        self.waiting = waiting;
        receipts
    }

    /// Makes one of incidents that have turned out to be the same: the one that began first. Returns
    /// how many were taken in.
    pub(super) fn merge_incidents(&mut self, settings: &Settings) -> u64 {
        let Self { exposures, incidents, .. } = self;
        let mut merged = 0;
        incidents
            .sort_by(|a, b| (a.first_time(), a.story.id()).cmp(&(b.first_time(), b.story.id())));
        let mut earlier = 0;
        while let Some(one) = incidents.get(earlier) {
            let same = incidents
                .iter()
                .skip(earlier + 1)
                .position(|other| one.overlaps(other, settings))
                .map(|place| earlier + 1 + place);
            let Some(later) = same else {
                earlier += 1;
                continue;
            };
            let other = incidents.remove(later);
            if let Some(one) = incidents.get_mut(earlier) {
                one.absorb(other, exposures, settings);
            }
            merged += 1;
            // It lasts longer now: what was looked at before may overlap.
            earlier = 0;
        }
        merged
    }

    /// Forgets exposures that ended before `watermark`, each together with those that it overlaps:
    /// an incident goes back through all of them. Returns those that nothing was told of.
    pub(super) fn forget_exposures(
        &mut self,
        watermark: Micros,
        settings: &Settings,
    ) -> Vec<Exposure> {
        // The earliest moment that something which is still going on goes back to.
        let mut from = watermark;
        while let Some(earlier) = self
            .exposures
            .iter()
            .filter(|it| it.end(settings) >= from && it.start() < from)
            .map(Exposure::start)
            .min()
        {
            from = earlier;
        }
        self.exposures.extract_if(.., |it| it.end(settings) < from).collect()
    }

    /// Tells incidents that ended before `watermark`. Exposures that ended before are forgotten with those
    /// that they explain: nothing else is told of them.
    pub(super) fn end_incidents(&mut self, watermark: Micros, settings: &Settings) -> Vec<Finding> {
        let Self { exposures, incidents, .. } = self;
        let mut ended = Vec::new();
        incidents.retain_mut(|incident| {
            incident.fold(exposures, watermark, settings);
            let live = incident.end(settings) >= watermark;
            ended.extend((!live).then(|| incident.story.summary()));
            live
        });
        ended
    }

    /// The earliest that anything held goes back to; `None` if nothing is held that a restart
    /// would need.
    pub(super) fn horizon(&self) -> Option<Micros> {
        let exposures = self.exposures.iter().map(Exposure::first_open);
        let incidents = self.incidents.iter().map(Incident::first_time);
        let receipts = self.waiting.iter().filter(|waiting| waiting.journalled);
        exposures.chain(incidents).chain(receipts.map(|waiting| waiting.request.time)).min()
    }

    /// What a pod would lose if it gave way: incidents before exposures before mere waiting.
    pub(super) fn weight(&self) -> u8 {
        match (self.incidents.is_empty(), self.exposures.is_empty()) {
            (false, _) => 2,
            (true, false) => 1,
            (true, true) => 0,
        }
    }
}
