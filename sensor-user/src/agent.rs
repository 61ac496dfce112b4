//! Wiring: start and stop order, and why the agent ended. With `engine`, which holds every stage
//! and turns the loop, the only place that knows them all.

use std::{io, path::PathBuf, pin::pin};

use prometheus_client::registry::Registry;
use tokio::task::JoinSet;

use crate::{
    admin::{self, Health},
    alert::log::{AlertLogError, AlertLogMetrics},
    api::AccessError,
    attribution::{
        AttributionConfig, AttributionMetrics, Attributor, pods::PodMetrics, volumes::VolumesError,
    },
    audit::{
        AuditMetrics,
        canary::CanaryMetrics,
        checkpoint::CheckpointError,
        webhook::{WebhookError, WebhookMetrics},
    },
    config::Config,
    correlation::journal::JournalError,
    kernel::{
        KernelMetrics, Sensor, SensorError,
        clock::{Sampler as _, System},
        pins::{PinError, Pins},
    },
    metrics::{CorrelationMetrics, Metrics},
    nats::NatsMetrics,
    time::Micros,
};

mod canaryfeed;
mod engine;
pub mod files;
mod kept;
mod learned;
mod podfeed;
pub mod rulebook;
mod senses;
mod standby;
mod state;

use canaryfeed::CanaryFeed;
use engine::Engine;
use learned::LearnedStore;
use podfeed::PodFeed;
use rulebook::{RulebookMetrics, RulesFile, RulesFileError};
use senses::Senses;
pub use state::is_taken;
use state::{StateDir, StateError};

/// Why the agent did not start, or stopped by itself.
#[derive(Debug, thiserror::Error)]
pub enum AgentError {
    /// Missing privilege or kernel feature: exit code 3.
    #[error(transparent)]
    Sensor(#[from] SensorError),
    /// The rules file is refused: exit code 2.
    #[error(transparent)]
    Rules(#[from] RulesFileError),
    /// The state directory is unusable.
    #[error(transparent)]
    State(#[from] StateError),
    /// Another agent keeps its programs where this one would.
    #[error(transparent)]
    Pins(#[from] PinError),
    /// The checkpoint is unusable.
    #[error(transparent)]
    Checkpoint(#[from] CheckpointError),
    /// The journal is unusable.
    #[error(transparent)]
    Journal(#[from] JournalError),
    /// The alert log is unusable.
    #[error(transparent)]
    AlertLog(#[from] AlertLogError),
    /// The audit webhook cannot be had.
    #[error(transparent)]
    Webhook(#[from] WebhookError),
    /// The admin address is taken, or not ours.
    #[error(
        "cannot listen on {address} for /metrics and /readyz: {source}; choose another address with --admin-listen"
    )]
    Listen {
        /// The address.
        address: std::net::SocketAddr,
        /// Why not.
        source: io::Error,
    },
    /// The file for recorded opens cannot be written.
    #[error("cannot open {} to record opens: {source}", path.display())]
    Record {
        /// The file.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// The Kubernetes API cannot be asked at all.
    #[error(transparent)]
    Kube(#[from] AccessError),
    /// The node's mounts cannot be read.
    #[error(transparent)]
    Volumes(#[from] VolumesError),
    /// A part that must never end has ended.
    #[error("{part} ended unexpectedly: {why}")]
    Ended {
        /// Which.
        part: &'static str,
        /// What it said.
        why: String,
    },
}

/// What every stage counts.
#[derive(Clone, Debug, Default)]
struct StageMetrics {
    kernel: KernelMetrics,
    attribution: AttributionMetrics,
    pods: PodMetrics,
    audit: AuditMetrics,
    canary: CanaryMetrics,
    webhook: WebhookMetrics,
    nats: NatsMetrics,
    correlation: CorrelationMetrics,
    alert_log: AlertLogMetrics,
    rulebook: RulebookMetrics,
}

impl StageMetrics {
    /// Makes those visible whose stages run.
    fn registry(&self, config: &Config) -> Registry {
        let mut registry = Registry::default();
        if !config.no_sensor {
            self.kernel.register(&mut registry);
            self.attribution.register(&mut registry);
        }
        if config.kube.is_some() {
            self.pods.register(&mut registry);
            self.canary.register(&mut registry);
        }
        self.audit.register(&mut registry);
        if config.audit_webhook.is_some() {
            self.webhook.register(&mut registry);
        }
        if config.nats.is_some() {
            self.nats.register(&mut registry);
        }
        self.correlation.register(&mut registry);
        self.alert_log.register(&mut registry);
        self.rulebook.register(&mut registry);
        registry
    }
}

/// Runs until `stop` completes; then everything seen so far is written and checkpointed.
pub async fn run(config: Config, stop: impl Future<Output = ()>) -> Result<(), AgentError> {
    let mut stop = pin!(stop);
    let health = Health::new(config.node_name.clone(), config.cluster_name.clone());
    let metrics = StageMetrics::default();
    let rules = RulesFile::open(config.rules_file.as_deref())?;
    let mut tasks = JoinSet::new();
    let alone = match Alone::take(&config) {
        Err(error) if config.take_over && error.is_taken() => None,
        alone => Some(alone?),
    };
    let sensor = if config.no_sensor { None } else { Some(start_sensor(&config, &metrics).await?) };
    serve_admin(&config, &metrics, &health, &mut tasks).await?;
    let pods = PodFeed::start(&config, &metrics.pods, &mut tasks).await?;
    let mut senses = Senses::new(sensor, pods);
    senses.pods.fill(senses.clock.now().steady).await;
    let (Alone { state, pins }, held_back) = match alone {
        Some(alone) => (alone, Vec::new()),
        None => tokio::select! {
            () = &mut stop => return Ok(()),
            predecessor = standby::wait(&config, &mut senses, &health) => predecessor?,
        },
    };
    let (mut engine, batches) =
        Engine::build(&config, &state, &health, senses, rules, metrics, &mut tasks)?;
    engine.take_over(pins, held_back)?;
    tracing::info!(
        node = %config.node_name, route = engine.route(), sources = engine.sources(),
        alert_log = %config.alert_log.display(), admin = %config.admin_listen, "started"
    );
    let result = engine.run(batches, &mut tasks, stop).await;
    // Sources first, so that nothing new arrives while the rest is put away.
    tasks.shutdown().await;
    engine.put_away().await;
    tracing::info!("stopped");
    result
}

/// What only one agent of a node may have.
struct Alone {
    state: StateDir,
    /// Where it is to keep its programs, if it is to; why it cannot.
    pins: Option<Result<Pins, PinError>>,
}

impl Alone {
    fn take(config: &Config) -> Result<Self, AgentError> {
        let state = StateDir::open(&config.state_dir)?;
        let pins = match config.sensor().pin_dir.as_deref().map(Pins::open) {
            Some(Err(taken @ PinError::Taken { .. })) => return Err(taken.into()),
            pins => pins,
        };
        Ok(Self { state, pins })
    }
}

impl AgentError {
    /// Whether another agent has what only one may have.
    fn is_taken(&self) -> bool {
        matches!(self, Self::State(StateError::Taken { .. }) | Self::Pins(PinError::Taken { .. }))
    }
}

async fn serve_admin(
    config: &Config,
    metrics: &StageMetrics,
    health: &Health,
    tasks: &mut JoinSet<AgentError>,
) -> Result<(), AgentError> {
    let listener = admin::bind(config.admin_listen)
        .await
        .map_err(|source| AgentError::Listen { address: config.admin_listen, source })?;
    let metrics = Metrics::new(metrics.registry(config));
    let health = health.clone();
    tasks.spawn(async move {
        let ended = admin::serve(listener, metrics, health).await;
        AgentError::Ended { part: "the admin server", why: format!("{ended:?}") }
    });
    Ok(())
}

async fn start_sensor(
    config: &Config,
    metrics: &StageMetrics,
) -> Result<(Sensor, Attributor), AgentError> {
    let since_ns = System.sample().0;
    let sensor = Sensor::start(&config.sensor(), metrics.kernel.clone()).await?;
    let mut attribution = AttributionConfig {
        // As the kernel numbers it: in a pid namespace of its own an agent does not know that.
        own_tgid: sensor.own_record().map_or(0, |own| own.tgid),
        kubelet_cgroup: config.kubelet_cgroup.clone(),
        learning: Micros::from_duration(config.learning),
        since_ns,
        ..AttributionConfig::default()
    };
    if !attribution.kubelet_roots.contains(&config.kubelet_root) {
        attribution.kubelet_roots.push(config.kubelet_root.clone());
    }
    let mut attributor =
        Attributor::new(attribution, sensor.own_record(), metrics.attribution.clone())?;
    attributor.restore_learning(LearnedStore::new(&config.state_dir).read());
    Ok((sensor, attributor))
}
