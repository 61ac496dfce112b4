//! `tokentrail check`: whether `run` with the same options would work here. It changes nothing.

use std::io::{self, Write};

use super::{Exit, configure, tell};
use crate::{
    agent::files,
    config::RunArgs,
    kernel::{self, Finding},
};

/// Prints one line a check.
pub fn execute(args: RunArgs) -> Exit {
    let config = match configure(args) {
        Ok(config) => config,
        Err(exit) => return exit,
    };
    let kernel = if config.no_sensor { Vec::new() } else { kernel::preflight(&config.sensor()) };
    let files = files::look(&config);
    let mut output = io::stdout().lock();
    let mut print = |findings: &[Finding]| {
        findings.iter().try_for_each(|finding| {
            let mark = if finding.ok { "ok     " } else { "MISSING" };
            writeln!(output, "{mark}  {:<20}  {}", finding.what, finding.detail)
        })
    };
    if let Err(error) = print(&kernel).and_then(|()| print(&files)) {
        tell(&error);
        return Exit::Failed;
    }
    if kernel.iter().any(|finding| !finding.ok) {
        Exit::Kernel
    } else if files.iter().any(|finding| !finding.ok) {
        Exit::Failed
    } else {
        Exit::Done
    }
}
