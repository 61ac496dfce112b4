//! The program's subcommands, one file each. They alone print to standard output.

use clap::Subcommand;

use crate::{
    config::{Config, RunArgs},
    errors::with_causes,
};

pub mod alerts;
pub mod check;
pub mod nats;
pub mod replay;
pub mod rules;
pub mod run;
pub mod schema;
pub mod uninstall;

/// What the program is asked to do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Watch this node until a signal ends it
    Run(Box<RunArgs>),
    /// Say whether `run` with the same options would work here, and what is missing
    Check(Box<RunArgs>),
    /// Put recorded opens and audit logs through the rules once more
    Replay(replay::ReplayArgs),
    /// Show an alert log as people read it
    Alerts(alerts::AlertsArgs),
    /// Say when each rule alerts, what is excluded and excepted, and how to silence a false positive
    Rules(rules::RulesArgs),
    /// Prepare a NATS server for the exchange between nodes
    Nats(nats::NatsArgs),
    /// Print the JSON Schema of an alert
    Schema,
    /// Detach and remove what agents with --pin-dir left in the kernel
    Uninstall(uninstall::UninstallArgs),
}

/// Exit code of a command: 0 done, 1 failed, 2 bad configuration, 3 privilege or kernel feature
/// missing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exit {
    /// Done, or stopped by a signal.
    Done,
    /// Anything else.
    Failed,
    /// Bad configuration or arguments.
    Usage,
    /// Missing privilege or kernel feature.
    Kernel,
}

impl From<Exit> for std::process::ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(match exit {
            Exit::Done => 0,
            Exit::Failed => 1,
            Exit::Usage => 2,
            Exit::Kernel => 3,
        })
    }
}

impl Command {
    /// Does it. An error has been told on standard error when this returns.
    pub fn execute(self) -> Exit {
        match self {
            Self::Run(args) => run::execute(*args),
            Self::Check(args) => check::execute(*args),
            Self::Replay(args) => replay::execute(&args),
            Self::Alerts(args) => alerts::execute(&args),
            Self::Rules(args) => rules::execute(args),
            Self::Nats(args) => nats::execute(args),
            Self::Schema => schema::execute(),
            Self::Uninstall(args) => uninstall::execute(&args),
        }
    }
}

/// The configuration of these options; what is wrong with it has been told.
fn configure(args: RunArgs) -> Result<Config, Exit> {
    Config::resolve(args).map_err(|error| {
        tell(&error);
        Exit::Usage
    })
}

/// Tells an error and its causes on standard error, as `tokentrail: what; why`.
#[expect(clippy::print_stderr, reason = "the one place where commands tell errors")]
pub fn tell(error: &dyn std::error::Error) {
    eprintln!("tokentrail: {}", with_causes(error));
}
