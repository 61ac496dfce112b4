//! Arguments to exit code; everything else is in the library.

use std::process::ExitCode;

use clap::Parser;
use tokentrail::commands::Command;

/// Joins who opened a pod's service-account token with the Kubernetes API requests made with it
#[derive(Debug, Parser)]
#[command(version, propagate_version = true)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

fn main() -> ExitCode {
    Arguments::parse().command.execute().into()
}
