//! `tokentrail run`: configuration, log, runtime, signals, exit code.

use tokio::{
    runtime,
    signal::unix::{SignalKind, signal},
};
use tracing_subscriber::{
    filter::{LevelFilter, Targets},
    fmt,
    layer::SubscriberExt as _,
    util::SubscriberInitExt as _,
};

use super::{Exit, configure, tell};
use crate::{
    agent::{self, AgentError},
    config::{LogFormat, LogLevel, RunArgs},
};

/// Runs the agent until SIGTERM or SIGINT.
pub fn execute(args: RunArgs) -> Exit {
    let config = match configure(args) {
        Ok(config) => config,
        Err(exit) => return exit,
    };
    start_log(config.log_format, config.log_level);
    // The engine has the main thread to itself; sources and the admin server share one.
    let runtime = runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build();
    let result =
        runtime.map_err(|error| AgentError::Ended { part: "the runtime", why: error.to_string() });
    match result
        .and_then(|runtime| runtime.block_on(async { agent::run(config, stopped()?).await }))
    {
        Ok(()) => Exit::Done,
        Err(error) => {
            tell(&error);
            // Mounts that cannot be read are a capability that is missing, too.
            if matches!(error, AgentError::Sensor(_) | AgentError::Volumes(_)) {
                Exit::Kernel
            } else if matches!(error, AgentError::Rules(_)) {
                Exit::Usage
            } else {
                Exit::Failed
            }
        }
    }
}

/// Completes with the first signal that asks for an end.
fn stopped() -> Result<impl Future<Output = ()>, AgentError> {
    let listen = |kind| {
        signal(kind)
            .map_err(|error| AgentError::Ended { part: "signal handling", why: error.to_string() })
    };
    let (mut terminate, mut interrupt) =
        (listen(SignalKind::terminate())?, listen(SignalKind::interrupt())?);
    Ok(async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
    })
}

fn start_log(format: LogFormat, level: LogLevel) {
    let level = match level {
        LogLevel::Error => tracing::Level::ERROR,
        LogLevel::Warn => tracing::Level::WARN,
        LogLevel::Info => tracing::Level::INFO,
        LogLevel::Debug => tracing::Level::DEBUG,
        LogLevel::Trace => tracing::Level::TRACE,
    };
    // The clients log each retry as an error, where the pod index and the link say once what is wrong.
    let client = if level > tracing::Level::INFO { level.into() } else { LevelFilter::OFF };
    let filter = Targets::new()
        .with_default(level)
        .with_target("kube_client", client)
        .with_target("async_nats", client);
    let registry = tracing_subscriber::registry().with(filter);
    let lines = fmt::layer().with_writer(std::io::stderr).with_ansi(false);
    match format {
        LogFormat::Text => registry.with(lines).init(),
        LogFormat::Json => registry.with(lines.json()).init(),
    }
}
