//! The engine's ends of the exchange with other nodes: its start, and how it stands. A part of `engine`.

use tokio::{
    sync::{mpsc, watch},
    task::JoinSet,
};

use super::{
    AgentError, Engine, Source, Way,
    answering::{ASKS, Answering, Ends, Event, QUEUE},
    asking::Asking,
};
use crate::{
    audit::{AuditBatch, AuditMetrics, SourceStatus, decoder::Decoder},
    config::Config,
    nats::{Link, NatsMetrics, Status, answering::Answerer, asking::Asker},
    time::Micros,
};

impl Engine {
    /// Starts the task that keeps a connection to the broker. An agent with a sensor asks, one with audit
    /// sources answers.
    pub(super) fn exchange(
        &mut self,
        config: &Config,
        metrics: NatsMetrics,
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
            let ends = Ends {
                own: nats.names.node().to_owned(),
                logs: config.audit_logs.clone(),
                unsearchable: config.audit_webhook.is_some() || config.audit_stdin,
                look_back: nats.look_back,
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
            let (interests, asked) = watch::channel(Vec::new());
            let source = self.sources.len();
            link.asker = Some(Asker::new(source, asked, sender, status_sender, metrics));
            self.asking = Some(Asking::new(interests));
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
        let reached = sources.map(|source| self.reached(source, now, queue_is_empty)).min();
        let through = reached.filter(|it| *it > Micros::MIN);
        let through = through.map(|it| self.senses.clock.steady_to_wall(it));
        let wall = self.senses.clock.now().wall;
        if let Some(answering) = &mut self.answering {
            answering.pass_time(through, wall, &self.join.correlator);
        }
    }

    /// How the broker stands, if there is one.
    pub(super) fn broker(&self) -> Option<Status> {
        self.nats.as_ref().map(|status| status.borrow().clone())
    }

    /// What this node cannot be told, as a sentence.
    pub(super) fn unanswered(&self) -> Option<String> {
        let since = self.nats.as_ref()?.borrow().unanswered_since?;
        Some(format!(
            "no audit side answers for this cluster over NATS since {since}: requests of pods are \
             not known here"
        ))
    }
}
