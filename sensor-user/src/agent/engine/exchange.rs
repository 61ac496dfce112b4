//! The engine's ends of the exchange with other nodes: its start, and how it stands. A part of `engine`.

use std::{path::Path, sync::Arc};

use tokio::{
    sync::{mpsc, watch},
    task::JoinSet,
};

use super::{
    AgentError, Engine, Source, Way,
    answering::{ASKS, Answering, Ends, Event, QUEUE, places::Places},
    asking::Asking,
};
use crate::{
    alert::{
        log::{AlertLog, AlertLogError, AlertLogSettings},
        unpublished::Unpublished,
    },
    audit::{AuditBatch, AuditMetrics, SourceStatus, canary, decoder::Decoder},
    config::Config,
    nats::{
        Link, NatsMetrics, Status, answering::Answerer, asking::Asker, interest::Round,
        telling::Teller,
    },
    time::Micros,
};

impl Engine {
    /// Starts the task that keeps a connection to the broker. An agent with a sensor asks, one with audit
    /// sources answers.
    pub(super) fn exchange(
        &mut self,
        config: &Config,
        unpublished: Option<Unpublished>,
        metrics: &NatsMetrics,
        audit_metrics: &AuditMetrics,
        sender: mpsc::Sender<AuditBatch>,
        tasks: &mut JoinSet<AgentError>,
    ) {
        let Some(nats) = &config.nats else { return };
        let (mut link, shown) = Link::new(nats.clone(), metrics.clone());
        if config.has_audit_source() {
            let (queue, queued) = mpsc::channel(QUEUE);
            let (asks, heard) = mpsc::channel(ASKS);
            let (done, finished) = watch::channel(0);
            let (reached, said) = watch::channel(None);
            link.answerer = Some(Answerer::new(queued, asks, said, done, metrics.clone()));
            let places = match config.kube.clone() {
                Some(access) => {
                    let (places, lookups) = Places::looked_up(metrics.clone());
                    tasks.spawn(async move {
                        lookups.serve(access).await;
                        let why = "nobody asks where pods are".to_owned();
                        AgentError::Ended { part: "lookups of pods", why }
                    });
                    places
                }
                None => Places::anywhere(),
            };
            let ends = Ends {
                own: nats.names.node().to_owned(),
                asks_itself: !config.no_sensor,
                logs: config.audit_logs.clone(),
                unsearchable: config.audit_webhook.is_some() || config.audit_stdin,
                look_back: nats.look_back,
                places,
                asks: heard,
                queue,
                done: finished,
                reached,
                metrics: metrics.clone(),
            };
            self.answering = Some(Answering::new(ends, self.senses.clock.now().wall));
        }
        if !config.no_sensor {
            let (status_sender, status) = watch::channel(SourceStatus::default());
            let (round, asked) = watch::channel(Round::default());
            let source = self.sources.len();
            let canary = self.canary.run().map(str::to_owned);
            link.asker =
                Some(Asker::new(source, asked, canary, sender, status_sender, metrics.clone()));
            self.asking = Some(Asking::new(round));
            let name = "NATS".to_owned();
            self.sources.push(Source {
                decoder: Decoder::new(name.clone(), audit_metrics.clone()),
                name,
                way: Way::Nats,
                lateness: Micros::from_duration(nats.patience),
                status,
                newest_stage: None,
            });
        }
        if let Some(unpublished) = unpublished {
            let (publishing, durable) = watch::channel(self.alert_log.durable());
            link.teller = Some(Teller::new(unpublished, durable, metrics.clone()));
            self.publishing = Some(publishing);
        }
        self.nats = Some(shown);
        tasks.spawn(async move {
            link.run().await;
            AgentError::Ended { part: "the link to NATS", why: "nobody looks at it".to_owned() }
        });
    }

    /// What happens next on the answering side; never, if this agent answers nobody.
    pub(super) async fn asked(answering: &mut Option<Answering>) -> Option<Event> {
        match answering {
            Some(answering) => answering.event().await,
            None => std::future::pending().await,
        }
    }

    /// Takes that.
    pub(super) fn answer(&mut self, event: Event) {
        let now = self.senses.clock.now().wall;
        if let Some(answering) = &mut self.answering {
            answering.take(event, &self.join.correlator, now);
        }
    }

    /// Passes time on the answering side.
    pub(super) fn keep_answering(&mut self, now: Micros, queue_is_empty: bool) {
        let own = |source: &&Source| source.way != Way::Nats && !self.may_be_absent(source);
        let sources = self.sources.iter().filter(own);
        let last_event = sources.clone().filter_map(|source| source.newest_stage).max();
        let reached = sources.map(|source| self.reached(source, now, queue_is_empty));
        let begun = |it: &Micros| *it > Micros::MIN;
        let is_any_open = reached.clone().any(|it| begun(&it));
        let through = reached.min().filter(begun);
        let through = through.map(|it| self.senses.clock.steady_to_wall(it));
        let wall = self.senses.clock.now().wall;
        if let Some(answering) = &mut self.answering {
            answering.pass_time(is_any_open, through, last_event, wall, &self.join.correlator);
        }
    }

    /// Tells who publishes alerts how far the log is durable by now.
    pub(super) fn publish_alerts(&self) {
        if let Some(publishing) = &self.publishing {
            let durable = self.alert_log.durable();
            publishing.send_if_modified(|told| {
                let is_news = *told != durable;
                *told = durable;
                is_news
            });
        }
    }

    /// How the broker stands, if there is one, with what the audit canary tells of each audit side.
    pub(super) fn broker(&self) -> Option<Status> {
        let mut status = self.nats.as_ref()?.borrow().clone();
        if let Some(source) = self.sources.iter().position(|source| source.way == Way::Nats) {
            for (name, side) in &mut status.audit_sides {
                side.canary = self.canary.measured(&way(source, name));
            }
        }
        Some(status)
    }

    /// By which ways events of a source may come now.
    pub(super) fn ways(&self, index: usize, source: &Source) -> Vec<canary::Way> {
        let none = vec![canary::Way { source: index, side: None }];
        let Some(status) = self.nats.as_ref().filter(|_| source.way == Way::Nats) else {
            return none;
        };
        let status = status.borrow();
        let ways: Vec<_> = status.audit_sides.keys().map(|name| way(index, name)).collect();
        if ways.is_empty() { none } else { ways }
    }

    /// Whether an audit canary could come back by this source, if one is asked for now.
    pub(super) fn may_tell_canary(&self, source: &Source) -> bool {
        let sends =
            |status: &Status| status.audit_sides.values().any(|it| it.covered.sends_canaries);
        let is_sent = || self.nats.as_ref().is_some_and(|status| sends(&status.borrow()));
        source.status.borrow().is_open() && (source.way != Way::Nats || is_sent())
    }

    /// What this node cannot be told, a sentence each.
    pub(super) fn unanswered(broker: &Status) -> Vec<String> {
        let all = broker.unanswered_since.map(|since| {
            format!(
                "no audit side answers for this cluster over NATS since {since}: requests of pods are \
                 not known here"
            )
        });
        let one = broker.audit_sides.iter().filter(|(_, side)| !side.connected && all.is_none());
        let one: Vec<_> = one
            .map(|(name, side)| {
                let since = side.heard;
                format!(
                    "the audit side {name} says nothing since {since}: requests that it alone reads \
                     are not known here"
                )
            })
            .collect();
        all.into_iter().chain(one).collect()
    }
}

/// What of the alert log is yet to be published, if alerts are.
///
/// # Errors
/// The log cannot be read, or the state directory not be written.
pub(super) fn unpublished(
    config: &Config,
    log: AlertLogSettings,
    alert_log: &AlertLog,
) -> Result<Option<Unpublished>, AlertLogError> {
    let is_file = config.alert_log != Path::new("-");
    if !config.nats.as_ref().is_some_and(|nats| nats.publish_alerts && is_file) {
        return Ok(None);
    }
    let path = log.path.clone();
    let opened = Unpublished::open(log, &config.state_dir, &alert_log.durable());
    opened.map(Some).map_err(|source| AlertLogError::unpublishable(path, source))
}

/// The way from an audit side.
fn way(source: usize, side: &str) -> canary::Way {
    canary::Way { source, side: Some(Arc::from(side)) }
}
