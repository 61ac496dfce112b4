//! `tokentrail check`: whether `run` with the same options would work here. It changes nothing.

use std::io::{self, Write};

use super::{Exit, configure, rules::now, tell};
use crate::{
    agent::{
        files,
        rulebook::{RulesFile, read_hits},
    },
    config::{Config, RunArgs},
    kernel::{self, Finding},
    rules::{exceptions::hits::Hits, rulebook::Rulebook},
};

/// Prints one line a check.
pub fn execute(args: RunArgs) -> Exit {
    let config = match configure(args) {
        Ok(config) => config,
        Err(exit) => return exit,
    };
    let rules = match RulesFile::open(config.rules_file.as_deref()) {
        Ok(rules) => rules,
        Err(error) => {
            tell(&error);
            return Exit::Usage;
        }
    };
    let kernel = if config.no_sensor { Vec::new() } else { kernel::preflight(&config.sensor()) };
    let files = files::look(&config);
    let doubts = doubts(&config, rules.current());
    let mut output = io::stdout().lock();
    let mut print = |findings: &[Finding]| {
        findings.iter().try_for_each(|finding| {
            let mark = if finding.ok { "ok     " } else { "MISSING" };
            writeln!(output, "{mark}  {:<20}  {}", finding.what, finding.detail)
        })
    };
    let printed = print(&kernel).and_then(|()| print(&files)).and_then(|()| {
        doubts.iter().try_for_each(|doubt| writeln!(output, "WARNING  {:<20}  {doubt}", "rules"))
    });
    if let Err(error) = printed {
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

/// What deserves a second look in the rules file; no reason not to run.
fn doubts(config: &Config, rulebook: &Rulebook) -> Vec<String> {
    let (hits, unknown) = match read_hits(&config.state_dir) {
        Ok(hits) => (hits, None),
        Err(error) => (Hits::default(), Some(format!("hits of exceptions are unknown: {error}"))),
    };
    let now = now();
    let doubts = rulebook.exceptions.iter().filter_map(|exception| {
        let doubt = hits.doubt(exception, now)?;
        Some(format!("exception {}: {doubt}", exception.id))
    });
    unknown.into_iter().chain(doubts).collect()
}
