//! `tokentrail check`: whether `run` with the same options would work here. It changes nothing; a
//! warning is what `run` would go on without.

use std::io::{self, Write};

use super::{Exit, configure, tell};
use crate::{
    agent::files,
    config::RunArgs,
    kernel::{self, Finding},
};

mod canary;

/// Prints one line a check.
pub fn execute(args: RunArgs) -> Exit {
    let config = match configure(args) {
        Ok(config) => config,
        Err(exit) => return exit,
    };
    let kernel = if config.no_sensor { Vec::new() } else { kernel::preflight(&config.sensor()) };
    let canary::Proof { access, warnings } = canary::prove(&config);
    let others: Vec<Finding> = files::look(&config).into_iter().chain(access).collect();
    let mut output = io::stdout().lock();
    let mut print = |findings: &[Finding], otherwise: &str| {
        findings.iter().try_for_each(|finding| {
            let mark = if finding.ok { "ok" } else { otherwise };
            writeln!(output, "{mark:<7}  {:<20}  {}", finding.what, finding.detail)
        })
    };
    if let Err(error) = print(&kernel, "MISSING")
        .and_then(|()| print(&others, "MISSING"))
        .and_then(|()| print(&warnings, "WARNING"))
    {
        tell(&error);
        return Exit::Failed;
    }
    if kernel.iter().any(|finding| !finding.ok) {
        Exit::Kernel
    } else if others.iter().any(|finding| !finding.ok) {
        Exit::Failed
    } else {
        Exit::Done
    }
}
