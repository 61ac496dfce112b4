//! `tokentrail nats setup`: makes what the exchange between nodes needs on the broker, or brings it up to
//! date. An agent makes none of it.

use std::{
    io::{self, Write},
    path::PathBuf,
    time::Duration,
};

use clap::{Args, Subcommand};
use tokio::runtime;

use super::{Exit, configure, tell};
use crate::{
    config::RunArgs,
    nats::setup::{Size, set_up},
};

/// Options of `tokentrail nats`.
#[derive(Args, Clone, Debug)]
pub struct NatsArgs {
    #[command(subcommand)]
    command: NatsCommand,
}

#[derive(Clone, Debug, Subcommand)]
enum NatsCommand {
    /// Make the streams and the bucket of a cluster, or bring their limits up to date
    Setup(SetupArgs),
}

#[derive(Args, Clone, Debug)]
struct SetupArgs {
    /// Configuration file (YAML), as `run` takes it; its login must be allowed to make streams
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// The NATS server, as nats://host:4222
    #[arg(long, value_name = "URL")]
    nats: Option<String>,
    /// Name of the Kubernetes cluster, as its agents have it
    #[arg(long, value_name = "NAME")]
    cluster_name: Option<String>,
    /// Copies of each message; 3 where the NATS cluster has three servers or more
    #[arg(long, value_name = "COUNT", default_value_t = 1)]
    replicas: usize,
    /// Answers that may wait for one node; more are refused, and cost no other node any
    #[arg(long, value_name = "COUNT", default_value_t = 4096)]
    answers_per_node: u32,
    /// Space for all answers that wait
    #[arg(long, value_name = "MIB", default_value_t = 1024)]
    max_mib: u32,
    /// How long an answer waits for a node that is away
    #[arg(long, value_name = "HOURS", default_value_t = 24)]
    keep_hours: u32,
    /// Alerts of one node that are kept for whoever collects them; its oldest go, and no other node's
    #[arg(long, value_name = "COUNT", default_value_t = 1024)]
    alerts_per_node: u32,
    /// Space for all alerts; the oldest go
    #[arg(long, value_name = "MIB", default_value_t = 2048)]
    alerts_max_mib: u32,
    /// How long an alert is kept
    #[arg(long, value_name = "HOURS", default_value_t = 168)]
    alerts_keep_hours: u32,
}

/// Does it.
pub fn execute(args: NatsArgs) -> Exit {
    let NatsCommand::Setup(args) = args.command;
    let hours = |hours: u32| Duration::from_secs(u64::from(hours.max(1)) * 3_600);
    let size = Size {
        replicas: args.replicas,
        answers_per_node: args.answers_per_node.max(1).into(),
        bytes: i64::from(args.max_mib.max(1)) << 20,
        keep: hours(args.keep_hours),
        alerts_per_node: args.alerts_per_node.max(1).into(),
        alert_bytes: i64::from(args.alerts_max_mib.max(1)) << 20,
        keep_alerts: hours(args.alerts_keep_hours),
    };
    let SetupArgs { config, nats, cluster_name, .. } = args;
    let config = match configure(RunArgs { config, nats, cluster_name, ..RunArgs::default() }) {
        Ok(config) => config,
        Err(exit) => return exit,
    };
    let Some(nats) = config.nats else {
        tell(&io::Error::other("there is no NATS server to set up; name it with --nats"));
        return Exit::Usage;
    };
    let runtime = match runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            tell(&error);
            return Exit::Failed;
        }
    };
    match runtime.block_on(set_up(&nats, size)) {
        Ok(made) => {
            let mut output = io::stdout().lock();
            let printed = made.iter().try_for_each(|it| writeln!(output, "{it}"));
            if let Err(error) = printed {
                tell(&error);
                return Exit::Failed;
            }
            Exit::Done
        }
        Err(error) => {
            tell(&error);
            Exit::Failed
        }
    }
}
