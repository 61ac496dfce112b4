//! The audit canary with the task that makes its requests, as the engine holds them. Without the
//! Kubernetes API or an audit log there is none, and it says so.

use tokio::{
    sync::{mpsc, oneshot},
    task::JoinSet,
};

use super::AgentError;
use crate::{
    audit::{
        ReadRecord,
        canary::{Asked, Canary, CanaryMetrics, Measured, State, Status, Way, probe, run::Run},
    },
    config::Config,
    time::Micros,
};

/// The state machine and its requests.
pub(super) struct CanaryFeed {
    running: Option<Running>,
    status: Status,
}

struct Running {
    canary: Canary,
    run: Run,
    asked: mpsc::Receiver<Asked>,
    /// Taken at the first request.
    go: Option<oneshot::Sender<()>>,
}

impl CanaryFeed {
    /// One that has made its requests, and knows this of them.
    #[cfg(test)]
    pub(super) fn stub(canary: Canary) -> Self {
        let (_, asked) = mpsc::channel(1);
        let running = Running { canary, run: Run::example(), asked, go: None };
        Self { running: Some(running), status: Status::off("it was not judged yet") }
    }

    /// Prepares the requests, where there is somebody to ask and somewhere to look.
    pub(super) fn start(
        config: &Config,
        metrics: CanaryMetrics,
        tasks: &mut JoinSet<AgentError>,
    ) -> Self {
        let off = |why| Self { running: None, status: Status::off(why) };
        let Some(access) = config.kube.clone() else { return off("no Kubernetes API to ask") };
        let Some(every) = config.audit_canary_every else { return off("turned off") };
        let followed = !config.audit_logs.is_empty() || config.audit_stdin;
        let file = followed.then_some(config.audit_lateness);
        let webhook = config.audit_webhook.as_ref().map(|_| config.audit_webhook_lateness);
        // Which of both an audit side elsewhere has, this node does not know.
        let asks = config.nats.is_some() && !config.no_sensor;
        let nats = asks.then_some(config.audit_lateness.max(config.audit_webhook_lateness));
        let Some(patience) = file.max(webhook).max(nats) else {
            return off("this node has no audit source");
        };
        let run = Run::begin();
        let [every_micros, patience] = [every, patience].map(Micros::from_duration);
        let canary = Canary::new(run.clone(), every_micros, patience, metrics);
        let asking = run.clone();
        // One is made after the other: none ever waits.
        let (sender, asked) = mpsc::channel(1);
        let (go, gone) = oneshot::channel();
        tasks.spawn(async move {
            probe::repeat(access, asking, every, gone, sender).await;
            AgentError::Ended { part: "the audit canary", why: "nobody listens to it".to_owned() }
        });
        let status = Status {
            state: State::Starting,
            detail: "no audit source is open yet".to_owned(),
            measured: None,
        };
        Self { running: Some(Running { canary, run, asked, go: Some(go) }), status }
    }

    /// What the events of its requests are asked for by.
    pub(super) fn run(&self) -> Option<&str> {
        self.running.as_ref().map(|running| running.run.name())
    }

    /// Begins with the requests, now that an audit source is open: an earlier one could be missed.
    pub(super) fn go(&mut self) {
        if let Some(go) = self.running.as_mut().and_then(|running| running.go.take()) {
            // It fails if the task has ended, which ends the agent.
            let _: Result<(), ()> = go.send(());
        }
    }

    /// The next request that was made; never, if there is no canary. Cancelling loses nothing.
    pub(super) async fn asked(&mut self) -> Option<Asked> {
        match &mut self.running {
            Some(running) => running.asked.recv().await,
            None => std::future::pending().await,
        }
    }

    /// Takes a request that was made.
    pub(super) fn note(&mut self, asked: Asked, now: Micros) {
        if let Some(running) = &mut self.running {
            running.canary.note(asked, now);
        }
    }

    /// Takes whatever was read from the source of this index; `wall` is the wall clock of now.
    pub(super) fn see(&mut self, read: &ReadRecord, source: usize, wall: Micros) {
        if let Some(running) = &mut self.running {
            let way = Way { source, side: read.side.clone() };
            running.canary.see(&read.record, read.read_wall(wall), &way);
        }
    }

    /// Passes time, and logs what has changed.
    pub(super) fn judge(&mut self, now: Micros) {
        let Some(Running { canary, go: None, .. }) = &self.running else { return };
        let status = canary.status(now);
        if status.state != self.status.state {
            let detail = &status.detail;
            match status.state {
                State::Unanswered | State::Silent => tracing::warn!(%detail, "audit canary"),
                State::Off | State::Starting | State::Heard => {
                    tracing::info!(%detail, "audit canary");
                }
            }
        }
        self.status = status;
    }

    /// How it stands as of the last [`Self::judge`].
    pub(super) fn status(&self) -> &Status {
        &self.status
    }

    /// Delay and clock by the newest request that came this way.
    pub(super) fn measured(&self, way: &Way) -> Option<Measured> {
        self.running.as_ref()?.canary.measured_by(way)
    }

    /// How much earlier than an event of this machine the API server whose events come by this way may date
    /// what follows it; `None` as soon as nothing is heard any more.
    pub(super) fn skew(&self, way: &Way) -> Option<Micros> {
        let running = self.running.as_ref().filter(|_| self.status.state == State::Heard);
        running?.canary.skew(way)
    }

    /// What alerts may lack because of it, as a sentence.
    pub(super) fn failure(&self) -> Option<String> {
        self.status.failure()
    }
}
