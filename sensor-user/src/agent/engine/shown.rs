//! How the agent stands, once a second, for readiness and `/statusz`. A part of `engine`.

use std::collections::BTreeMap;

use super::{Engine, Way};
use crate::{
    admin::{Condition, SourceReport},
    audit::SourceState,
};

impl Engine {
    /// Tells `/readyz`, `/statusz` and `/metrics`.
    pub(super) fn publish(&self, journal: Result<(), String>, checkpoint: Result<(), String>) {
        let mut conditions = vec![
            ("journal".to_owned(), journal.into()),
            ("checkpoint".to_owned(), checkpoint.into()),
            (
                "alert log".to_owned(),
                self.alert_log.failure().map_or(Condition::Holds, |why| {
                    Condition::Fails(format!("alerts wait in memory: {why}"))
                }),
            ),
        ];
        if self.senses.sensor().is_some() {
            let failure = self.sensor_failure.as_ref();
            let failure = failure.map_or(Ok(()), |failure| Err(failure.to_string()));
            conditions.push(("sensor".to_owned(), failure.into()));
        }
        let (mut files, mut streams) = (0_usize, Vec::new());
        let mut sources = BTreeMap::new();
        for (index, source) in self.sources.iter().enumerate() {
            if self.may_be_absent(source) {
                continue;
            }
            let connected = match &source.status.borrow().state {
                SourceState::Open => Condition::Holds,
                SourceState::Starting => Condition::Fails("not tried yet".to_owned()),
                SourceState::Absent(why) | SourceState::Waiting(why) => {
                    Condition::Fails(why.clone())
                }
            };
            match source.way {
                Way::File(_) => files += 1,
                Way::Stdin => streams.push("standard input"),
                Way::Webhook => streams.push("a webhook"),
                Way::Nats => {}
            }
            // The broker has a condition of its own.
            if source.way != Way::Nats {
                conditions.push((source.name.clone(), connected.clone()));
            }
            let newest = self.ways(index, source).into_iter();
            let newest = newest.filter_map(|way| self.canary.measured(&way));
            let report = SourceReport {
                connected,
                last_event: source.newest_stage,
                canary: newest.max_by_key(|measured| measured.heard),
            };
            sources.insert(source.name.clone(), report);
        }
        let broker = self.broker();
        if let Some(broker) = &broker {
            let failure = broker.failure.clone();
            conditions.push(("NATS".to_owned(), failure.map_or(Ok(()), Err).into()));
        }
        let held = self.join.correlator.held();
        self.metrics.observe(held, self.join.correlator.losses());
        self.health.publish(|report| {
            self.senses.route().clone_into(&mut report.route);
            report.degraded = self.origin_now().degraded;
            report.gaps =
                self.senses.sensor().map_or_else(Vec::new, |it| it.gaps().cloned().collect());
            report.degraded.extend(self.rulebook.degraded());
            report.degraded.extend(broker.iter().flat_map(Self::unanswered));
            report.conditions = conditions.into_iter().collect();
            report.sources = sources;
            report.audit_canary.clone_from(self.canary.status());
            report.correlation = held.into();
            report.opens = self.senses.sensor().map(|sensor| (&sensor.metrics()).into());
            let files = Some(files).filter(|it| *it > 0).map(|it| format!("{it} file(s)"));
            let sources: Vec<&str> = files.as_deref().into_iter().chain(streams).collect();
            report.audit = match sources.as_slice() {
                [] if broker.is_some() => "audit sides over NATS".to_owned(),
                [] => "none: this node only sees opens, alerts need an audit source".to_owned(),
                sources => format!("{} on this node", sources.join(" and ")),
            };
            report.nats = broker;
        });
    }
}
