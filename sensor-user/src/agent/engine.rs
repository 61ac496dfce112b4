//! The loop that all events go through, one at a time, so nothing downstream needs a lock. What
//! blocks in it (alert log, journal, `/proc`) is local and bounded.

use std::{
    path::PathBuf,
    pin::pin,
    time::{Duration, Instant},
};

use tokio::{
    sync::{mpsc, watch},
    task::JoinSet,
    time::{Interval, MissedTickBehavior},
};

use super::{
    AgentError, CanaryFeed, LearnedStore, RulesFile, Senses, StageMetrics,
    rulebook::RulebookKeeper, senses::ready, state,
};
use crate::{
    admin::Health,
    alert::{
        document::{self, Origin},
        fit,
        log::{AlertLog, AlertLogSettings, Appended, Durable},
        record::Recorder,
    },
    audit::{
        AuditBatch, AuditMetrics, SourceState, SourceStatus,
        checkpoint::Checkpoints,
        decoder::Decoder,
        stdin,
        tail::{self, TailConfig},
    },
    config::Config,
    correlation::{
        Correlator, Kind, Request, Settings,
        journal::{Entry, FileJournal},
    },
    kernel::{SensorConfig, clock::Now},
    metrics::CorrelationMetrics,
    nats,
    time::Micros,
};

mod answering;
mod asking;
mod durable;
mod exchange;
mod heard;
mod join;
mod posted;
mod sensor;
mod shown;

use answering::Answering;
use asking::Asking;
use durable::{Saving, saved};
use exchange::unpublished;
use join::Join;
use posted::Owed;
use sensor::{Failure, Known};

/// Batches that may wait for the engine: enough to keep a tail busy, little enough to hold back.
const BATCHES: usize = 16;
/// How much earlier than an open a clock that nobody measured may date a request that followed it.
const OTHER_CLOCK: Micros = Micros::from_secs(1);
/// How often time is passed on, checkpoints are written and the state is published.
const TICK: Duration = Duration::from_secs(1);

/// Every stage, and the state between them.
pub(super) struct Engine {
    senses: Senses,
    canary: CanaryFeed,
    rulebook: RulebookKeeper,
    learned: LearnedStore,
    join: Join,
    sources: Vec<Source>,
    sources_optional: bool,
    checkpoints: Checkpoints,
    /// Whom to tell that their batches are safe, once the alerts so far are durable.
    unacknowledged: Vec<Owed>,
    /// What is on its way to the disk.
    saving: Option<Saving>,
    /// How that went last.
    saved: Result<(), String>,
    alert_log: AlertLog,
    origin: Origin,
    health: Health,
    metrics: CorrelationMetrics,
    self_test: Interval,
    /// How it is attached, should that have to be done anew.
    sensor: SensorConfig,
    sensor_failure: Option<Failure>,
    /// What was taken, and a sensor may tell of once more.
    known: Known,
    /// What this node asks others; `None` without a sensor or a broker.
    asking: Option<Asking>,
    /// What others ask; `None` without an audit source or a broker.
    answering: Option<Answering>,
    /// How the broker stands.
    nats: Option<watch::Receiver<nats::Status>>,
    /// How far alerts may be published, if they are to be.
    publishing: Option<watch::Sender<Durable>>,
}

/// One audit source as the engine sees it.
struct Source {
    /// As readiness and people call it.
    name: String,
    way: Way,
    /// Decodes its lines.
    decoder: Decoder,
    /// How late an event may come after its request.
    lateness: Micros,
    status: watch::Receiver<SourceStatus>,
    newest_stage: Option<Micros>,
}

/// By which way audit events come.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Way {
    /// From a file, whose positions are kept under this path.
    File(PathBuf),
    /// From standard input.
    Stdin,
    /// From an API server that posts them.
    Webhook,
    /// From audit sides elsewhere.
    Nats,
}

impl Engine {
    /// Builds every stage and starts the sources, whose tasks go into `tasks`.
    pub(super) fn build(
        config: &Config,
        state: &state::StateDir,
        health: &Health,
        mut senses: Senses,
        rules: RulesFile,
        metrics: StageMetrics,
        tasks: &mut JoinSet<AgentError>,
    ) -> Result<(Self, mpsc::Receiver<AuditBatch>), AgentError> {
        let settings = AlertLogSettings {
            path: config.alert_log.clone(),
            max_bytes: config.alert_log_max_bytes,
            keep: config.alert_log_keep,
        };
        let alert_log = AlertLog::open(settings.clone(), metrics.alert_log)?;
        // Before the first alert: that one is to be published.
        let unpublished = unpublished(config, settings, &alert_log)?;
        let record = |path: &PathBuf| {
            Recorder::open(path, config.node_name.clone())
                .map_err(|source| AgentError::Record { path: path.clone(), source })
        };
        let recorder = config.record.as_ref().map(record).transpose()?;
        let cluster = config.cluster_name.clone().unwrap_or_default();
        let (journal, entries, damaged) = FileJournal::open(&config.state_dir)?;
        if damaged > 0 {
            tracing::warn!(damaged, "lines of the journal were no entries and are ignored");
        }
        let checkpoints = Checkpoints::open(&config.state_dir)?;
        let no_index = "no pod index: names come from audit events alone".to_owned();
        let now = senses.clock.now().wall;
        let rulebook = RulebookKeeper::open(rules, &config.state_dir, metrics.rulebook, now);
        // Where only what was asked for is seen, nobody knows what a workload does by itself.
        let sees_all = config.nats.is_none() || config.has_audit_source();
        let learning = if sees_all { Micros::from_duration(config.learning) } else { Micros::MAX };
        let settings = Settings { learning, ..Settings::new(cluster) };
        let mut engine = Self {
            join: Join {
                boot_id: state::boot_id(),
                recorder,
                skew: Micros(0),
                correlator: Correlator::new(settings, journal),
                findings: Vec::new(),
            },
            sources: Vec::new(),
            sources_optional: config.audit_log_optional,
            checkpoints,
            unacknowledged: Vec::new(),
            saving: None,
            saved: Ok(()),
            alert_log,
            origin: Origin {
                cluster_name: config.cluster_name.clone(),
                node_name: config.node_name.clone(),
                host_id: state::host_id(),
                agent_id: state.agent_id().to_owned(),
                route: String::new(),
                degraded: if config.kube.is_none() { vec![no_index] } else { Vec::new() },
            },
            health: health.clone(),
            metrics: metrics.correlation,
            self_test: tokio::time::interval(config.self_test_every),
            sensor: config.sensor(),
            sensor_failure: None,
            known: Known::default(),
            asking: None,
            answering: None,
            nats: None,
            publishing: None,
            senses,
            learned: LearnedStore::new(&config.state_dir),
            canary: CanaryFeed::start(config, metrics.canary, tasks),
            rulebook,
        };
        engine.self_test.set_missed_tick_behavior(MissedTickBehavior::Delay);
        // The sensor has just passed its first one.
        engine.self_test.reset();
        engine.join.correlator.set_rulebook(engine.rulebook.current());
        if config.kube.is_some() {
            engine.join.correlator.set_indexed();
        }
        let now = engine.senses.clock.now().steady;
        engine.join.correlator.watch(now);
        engine.join.correlator.remember_swallowed(engine.rulebook.swallowed_before());
        for mut entry in entries {
            engine.place(&mut entry);
            engine.known.remember(&entry, &engine.join.boot_id);
            engine.join.correlator.restore(entry, now, &mut engine.join.findings);
        }
        engine.tell(None);
        let (sender, batches) = mpsc::channel(BATCHES);
        engine.follow(config, &metrics.audit, &sender, tasks);
        engine.listen(config, metrics.webhook, &metrics.audit, sender.clone(), tasks)?;
        engine.exchange(config, unpublished, &metrics.nats, &metrics.audit, sender, tasks);
        engine.ask();
        engine.join.skew = engine.skew();
        Ok((engine, batches))
    }

    /// Starts the tasks that follow the audit logs, standard input among them.
    fn follow(
        &mut self,
        config: &Config,
        metrics: &AuditMetrics,
        sender: &mpsc::Sender<AuditBatch>,
        tasks: &mut JoinSet<AgentError>,
    ) {
        for (index, path) in config.audit_logs.iter().enumerate() {
            let (status_sender, status) = watch::channel(SourceStatus::default());
            let tail = TailConfig {
                path: path.clone(),
                source: index,
                start: self.checkpoints.position(path),
            };
            let decoder = Decoder::new(path.display().to_string(), metrics.clone());
            let (sender, metrics) = (sender.clone(), metrics.clone());
            tasks.spawn(async move {
                tail::follow(tail, sender, status_sender, metrics).await;
                AgentError::Ended {
                    part: "the tail of an audit log",
                    why: "nobody takes its batches".to_owned(),
                }
            });
            self.sources.push(Source {
                name: format!("audit log {}", path.display()),
                way: Way::File(path.clone()),
                decoder,
                lateness: Micros::from_duration(config.audit_lateness),
                status,
                newest_stage: None,
            });
        }
        if config.audit_stdin {
            let (status_sender, status) = watch::channel(SourceStatus::default());
            let (source, name) = (self.sources.len(), stdin::NAME.to_owned());
            let decoder = Decoder::new(name.clone(), metrics.clone());
            let (sender, metrics) = (sender.clone(), metrics.clone());
            tasks.spawn(async move {
                stdin::follow(source, sender, status_sender, metrics).await;
                AgentError::Ended { part: stdin::NAME, why: "nobody takes its batches".to_owned() }
            });
            self.sources.push(Source {
                name,
                way: Way::Stdin,
                decoder,
                lateness: Micros::from_duration(config.audit_lateness),
                status,
                newest_stage: None,
            });
        }
    }

    /// Moves a remembered entry onto this run's steady axis: the wall clock may have been set since.
    fn place(&self, entry: &mut Entry) {
        match entry {
            Entry::Open(open) | Entry::OpenAlone(open) | Entry::GivenUp(open)
                if open.boot_id == self.join.boot_id =>
            {
                open.open.time = self.senses.clock.boot_to_steady(open.open.ktime_ns);
            }
            // Of an earlier boot only the wall clock tells.
            Entry::Open(open) | Entry::OpenAlone(open) | Entry::GivenUp(open) => {
                open.open.time = self.senses.clock.wall_to_steady(open.open.wall);
            }
            Entry::Request(request) | Entry::RequestAlone(request) | Entry::Session(request) => {
                let received = request.record.request_received_timestamp;
                request.time = self.senses.clock.wall_to_steady(received);
            }
        }
        match entry {
            Entry::Open(open) | Entry::OpenAlone(open) | Entry::GivenUp(open) => {
                open.find_pods(&self.senses.pods.index);
            }
            Entry::Request(request) | Entry::RequestAlone(request) | Entry::Session(request) => {
                request.find_pod(&self.senses.pods.index);
            }
        }
    }

    /// How many audit sources there are.
    pub(super) fn sources(&self) -> usize {
        self.sources.len()
    }

    pub(super) fn route(&self) -> &'static str {
        self.senses.route()
    }

    pub(super) async fn run(
        &mut self,
        mut batches: mpsc::Receiver<AuditBatch>,
        tasks: &mut JoinSet<AgentError>,
        stop: impl Future<Output = ()>,
    ) -> Result<(), AgentError> {
        let mut stop = pin!(stop);
        let mut tick = tokio::time::interval(TICK);
        tick.set_missed_tick_behavior(MissedTickBehavior::Skip);
        loop {
            // Not biased: a flood of one kind must not starve the others.
            tokio::select! {
                () = &mut stop => return Ok(()),
                ready = ready(self.senses.sensor.as_ref()) => {
                    ready?;
                    self.drain();
                }
                result = saved(&mut self.saving) => {
                    let now = self.senses.clock.now().steady;
                    self.end_saving(result, now);
                }
                Some(asked) = self.canary.asked() => {
                    self.canary.note(asked, self.senses.clock.now().steady);
                }
                // While alerts wait for space, so does what would make more of them.
                Some(change) = self.senses.pods.changed() => {
                    self.senses.pods.index.apply(change, self.senses.clock.now().steady);
                }
                Some(batch) = batches.recv(), if self.alert_log.has_room() => {
                    // An open may be in the ring that this batch's requests follow from.
                    self.drain();
                    self.take(batch);
                }
                Some(event) = Self::asked(&mut self.answering) => self.answer(event),
                _ = tick.tick() => self.pass_time(&batches)?,
                _ = self.self_test.tick(), if self.senses.sensor().is_some() => {
                    self.test_sensor().await?;
                }
                Some(ended) = tasks.join_next() => {
                    return Err(ended.unwrap_or_else(|error| AgentError::Ended {
                        part: "a task", why: error.to_string(),
                    }));
                }
            }
        }
    }

    /// Takes every record out of the ring. A record is released after its open was journalled.
    fn drain(&mut self) {
        let Self { senses, join, known, .. } = self;
        let mut opened = false;
        senses.drain(|open, pods, now| {
            if !known.take(&open) {
                opened = true;
                join.open(open, pods, now);
            }
        });
        if opened {
            self.ask();
        }
        self.tell(None);
    }

    fn take(&mut self, mut batch: AuditBatch) {
        let Now { steady: now, wall } = self.senses.clock.now();
        let due_before = self.due();
        let covers_nothing = batch.lines.is_empty() && batch.records.is_empty();
        let decoded = self.decode(batch.source, batch.lines, Now { steady: now, wall });
        let has_repeated = batch.records.iter().any(|read| read.is_repeated);
        if let Some(answering) = self.answering.as_mut().filter(|it| it.is_behind()) {
            // What comes again may have been forgotten before it was sent.
            for read in batch.records.iter().filter(|read| read.is_repeated) {
                answering.answer(&read.record, &self.join.correlator);
            }
        }
        batch.records.retain(|read| !read.is_repeated);
        for read in &batch.records {
            self.keep_posted(read, wall);
        }
        let read_elsewhere = self.sources.get(batch.source).is_some_and(|it| it.way == Way::Nats);
        for read in decoded.into_iter().chain(batch.records) {
            self.canary.see(&read, batch.source, wall);
            if let Some(answering) = self.answering.as_mut().filter(|_| !read_elsewhere) {
                answering.answer(&read.record, &self.join.correlator);
            }
            let time = self.senses.clock.wall_to_steady(read.record.request_received_timestamp);
            let request = Request { read_elsewhere, ..Request::new(time, read.record) };
            self.join.request(request, &self.senses.pods.index, now);
            self.tell(Some(read.read_at));
        }
        if let Some(source) = self.sources.get_mut(batch.source) {
            source.newest_stage = source.newest_stage.max(batch.newest_stage);
            // In memory only: it is written when the alerts up to here are durable.
            if let (Way::File(path), Some(position)) = (&source.way, batch.position) {
                let first = self.checkpoints.position(path).is_none();
                self.checkpoints.advance(path, position);
                // But at once where a restart would begin at the log's end instead. If that fails,
                // the next tick tries again and says so.
                if first && covers_nothing && self.save_at_once().is_err() {
                    tracing::debug!("the first checkpoint could not be written yet");
                }
            }
        }
        if let Some(acknowledge) = batch.acknowledge {
            let due = self.due();
            // What was taken before may be among what is due from then.
            self.owe(acknowledge, if due > due_before || has_repeated { due } else { 0 });
        }
    }

    /// Writes what was found.
    fn tell(&mut self, read_at: Option<Instant>) {
        for finding in std::mem::take(&mut self.join.findings) {
            let now = self.senses.clock.now().wall;
            let origin = self.origin_now();
            let document =
                document::document(&finding, &origin, &self.senses.pods.index, read_at, now);
            let line = match fit::line(&document) {
                Ok(line) => line,
                Err(error) => {
                    tracing::error!(%error, "an alert has no JSON form");
                    continue;
                }
            };
            if self.alert_log.append(&document.event.id, line) == Appended::Known {
                // Told before a restart already.
                continue;
            }
            match finding.kind {
                Kind::Alert => {
                    self.metrics.alerts.inc();
                    if let Some(read_at) = read_at {
                        self.metrics.latency.observe(read_at.elapsed().as_secs_f64());
                    }
                }
                Kind::Escalation => {
                    self.metrics.escalations.inc();
                }
                Kind::Incident => {
                    self.metrics.summaries.inc();
                }
            }
        }
    }

    /// What an alert of this moment says about this process.
    fn origin_now(&self) -> Origin {
        let mut origin = self.origin.clone();
        self.senses.route().clone_into(&mut origin.route);
        let sensor = self.senses.sensor().into_iter().flat_map(|it| it.degraded().iter().cloned());
        let lacking = [self.senses.pods.degraded(), self.canary.failure()].into_iter().flatten();
        origin.degraded.splice(..0, sensor);
        origin.degraded.extend(lacking);
        origin
    }

    /// What happens once a second.
    fn pass_time(&mut self, batches: &mpsc::Receiver<AuditBatch>) -> Result<(), AgentError> {
        // What is in the ring happened before: it must not find its exposure gone.
        self.drain();
        let now = self.senses.clock.now();
        self.keep_rules(now.wall);
        let now = now.steady;
        self.keep_answering(now, batches.is_empty());
        let watermark = self.watermark(now, batches.is_empty());
        self.join.correlator.advance(watermark, now, &mut self.join.findings);
        self.ask();
        self.senses.pods.index.forget(now);
        if self.sources.iter().any(|source| self.may_tell_canary(source)) {
            self.canary.go();
        }
        self.canary.judge(now);
        self.join.skew = self.skew();
        self.tell(None);
        self.alert_log.maintain();
        self.publish_alerts();
        let journal = self.join.correlator.flush_journal();
        let checkpoint = self.checkpoint(now);
        self.senses.keep_up();
        self.known.forget();
        self.learned.keep(self.senses.take_changed_learning());
        self.publish(journal.map_err(|error| error.to_string()), checkpoint);
        Ok(())
    }

    /// Takes a rules file that has changed.
    fn keep_rules(&mut self, now: Micros) {
        self.count_swallowed();
        self.rulebook.keep_up(now);
        self.join.correlator.set_rulebook(self.rulebook.current());
    }

    /// How much earlier than an open a request may be dated that follows it. A log file is written by
    /// this machine's clock; who posts has one of their own, and so has whose log another agent reads. The
    /// canary may have measured it.
    fn skew(&self) -> Micros {
        let is_file = |source: &Source| matches!(source.way, Way::File(_));
        let others = self.sources.iter().enumerate().filter(|(_, it)| !is_file(it));
        let ways = others.flat_map(|(index, source)| self.ways(index, source));
        let skews = ways.map(|way| self.canary.skew(&way).unwrap_or(OTHER_CLOCK));
        skews.max().unwrap_or_default()
    }

    /// How far every source is known to be complete, on the steady axis.
    fn watermark(&self, now: Micros, queue_is_empty: bool) -> Micros {
        // Without any source no request can come, and exposures need not wait for one.
        let there = self.sources.iter().filter(|source| !self.may_be_absent(source));
        there.map(|source| self.reached(source, now, queue_is_empty)).min().unwrap_or(now)
    }

    /// How far a source is known to be complete, on the steady axis.
    fn reached(&self, source: &Source, now: Micros, queue_is_empty: bool) -> Micros {
        if source.way == Way::Nats {
            // What is asked only now may be about requests of before that.
            let round = self.asking.as_ref().map_or(0, Asking::number);
            let status = source.status.borrow();
            let answered = status.answered_through.filter(|_| status.answered_round == round);
            let answered = answered.map(|wall| self.senses.clock.wall_to_steady(wall).min(now));
            return answered.unwrap_or(Micros::MIN).max(now - source.lateness);
        }
        let newest = source.newest_stage.map(|wall| self.senses.clock.wall_to_steady(wall));
        // A source that was read to its end is complete up to that moment. Not up to now: the
        // whole process may have been stopped since.
        let complete = source.status.borrow().complete_at_boot_ns.filter(|_| queue_is_empty);
        let idle = complete.map(|boot_ns| self.senses.clock.boot_to_steady(boot_ns));
        // A server whose clock runs ahead must not end what is still going on here.
        let newest = newest.map(|time| time.min(now));
        newest.max(idle).map_or(Micros::MIN, |time| time - source.lateness)
    }

    /// Whether this node has no such audit log, and need not have one.
    fn may_be_absent(&self, source: &Source) -> bool {
        self.sources_optional && matches!(source.status.borrow().state, SourceState::Absent(_))
    }

    /// The last checkpoint, after the sources have stopped.
    pub(super) async fn put_away(&mut self) {
        self.drain();
        self.alert_log.maintain();
        let now = self.senses.clock.now().wall;
        self.keep_rules(now);
        self.learned.keep(self.senses.take_changed_learning());
        let now = self.senses.clock.now().steady;
        if let Err(error) = self.join.correlator.flush_journal() {
            tracing::error!(%error, "the next start does not know of all opens");
        }
        if let Err(why) = self.save_all(now).await {
            tracing::warn!(why, "the next start reads a part of the audit log again");
        }
        if !self.alert_log.is_clear() {
            tracing::error!(
                "alerts could not be written before the end; the next start tells them"
            );
        }
    }
}

#[cfg(test)]
mod tests;
