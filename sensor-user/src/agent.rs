//! Wiring: start and stop order, and why the agent ended. With `engine`, which holds every stage
//! and turns the loop, the only place that knows them all.

use std::{io, path::PathBuf};

use prometheus_client::registry::Registry;
use tokio::task::JoinSet;

use crate::{
    admin::{self, Health},
    alert::log::AlertLogError,
    attribution::{AttributionConfig, AttributionMetrics, Attributor, volumes::VolumesError},
    audit::checkpoint::CheckpointError,
    config::Config,
    correlation::journal::JournalError,
    kernel::{KernelMetrics, Sensor, SensorError},
    metrics::Metrics,
};

mod engine;
mod state;

use engine::Engine;

/// Why the agent did not start, or stopped by itself.
#[derive(Debug, thiserror::Error)]
pub enum AgentError {
    /// Missing privilege or kernel feature: exit code 3.
    #[error(transparent)]
    Sensor(#[from] SensorError),
    /// The state directory is unusable.
    #[error(transparent)]
    State(#[from] state::StateError),
    /// The checkpoint is unusable.
    #[error(transparent)]
    Checkpoint(#[from] CheckpointError),
    /// The journal is unusable.
    #[error(transparent)]
    Journal(#[from] JournalError),
    /// The alert log is unusable.
    #[error(transparent)]
    AlertLog(#[from] AlertLogError),
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

/// Runs until `stop` completes; then everything seen so far is written and checkpointed.
pub async fn run(config: Config, stop: impl Future<Output = ()>) -> Result<(), AgentError> {
    let health = Health::new(config.node_name.clone(), config.cluster_name.clone());
    let mut registry = Registry::default();
    let state = state::StateDir::open(&config.state_dir)?;
    let mut tasks = JoinSet::new();
    let (mut engine, batches) =
        Engine::build(&config, &state, &health, &mut registry, &mut tasks).await?;
    let listener = admin::bind(config.admin_listen)
        .await
        .map_err(|source| AgentError::Listen { address: config.admin_listen, source })?;
    let metrics = Metrics::new(registry);
    let admin_health = health.clone();
    tasks.spawn(async move {
        let ended = admin::serve(listener, metrics, admin_health).await;
        AgentError::Ended { part: "the admin server", why: format!("{ended:?}") }
    });
    tracing::info!(
        node = %config.node_name, route = engine.route(), sources = config.audit_logs.len(),
        alert_log = %config.alert_log.display(), admin = %config.admin_listen, "started"
    );
    let result = engine.run(batches, &mut tasks, stop).await;
    // Sources first, so that nothing new arrives while the rest is put away.
    tasks.shutdown().await;
    engine.put_away();
    tracing::info!("stopped");
    result
}

async fn start_sensor(
    config: &Config,
    registry: &mut Registry,
) -> Result<(Sensor, Attributor), AgentError> {
    let kernel_metrics = KernelMetrics::default();
    kernel_metrics.register(registry);
    let attribution_metrics = AttributionMetrics::default();
    attribution_metrics.register(registry);
    let mut attribution = AttributionConfig {
        kubelet_cgroup: config.kubelet_cgroup.clone(),
        ..AttributionConfig::default()
    };
    if !attribution.kubelet_roots.contains(&config.kubelet_root) {
        attribution.kubelet_roots.push(config.kubelet_root.clone());
    }
    let sensor = Sensor::start(&config.sensor(), kernel_metrics).await?;
    let attributor = Attributor::new(attribution, attribution_metrics)?;
    Ok((sensor, attributor))
}
