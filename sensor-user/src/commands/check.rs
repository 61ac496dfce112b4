//! `tokentrail check`: whether `run` with the same options would work here. It changes nothing; a
//! warning is what `run` would go on without.

use std::{
    io::{self, Write},
    path::Path,
};

use tokio::runtime;

use super::{Exit, configure, rules::now, tell};
use crate::{
    agent::{
        files,
        rulebook::{RulesFile, read_hits},
    },
    config::{Config, RunArgs},
    kernel::{self, Finding},
    nats,
    rules::{exceptions::hits::Hits, rulebook::Rulebook},
};

mod canary;

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
    let canary::Proof { access, warnings } = canary::prove(&config);
    let others: Vec<Finding> =
        files::look(&config).into_iter().chain(access).chain(broker(&config)).collect();
    let pins = config.sensor().pin_dir.as_deref().map(pins);
    let doubts = doubts(&config, rules.current());
    let mut output = io::stdout().lock();
    let mut print = |findings: &[Finding], otherwise: &str| {
        findings.iter().try_for_each(|finding| {
            let mark = if finding.ok { "ok" } else { otherwise };
            writeln!(output, "{mark:<7}  {:<20}  {}", finding.what, finding.detail)
        })
    };
    let printed = print(&kernel, "MISSING")
        .and_then(|()| print(&others, "MISSING"))
        .and_then(|()| print(pins.as_slice(), "WARNING"))
        .and_then(|()| print(&warnings, "WARNING"))
        .and_then(|()| {
            doubts
                .iter()
                .try_for_each(|doubt| writeln!(output, "WARNING  {:<20}  {doubt}", "rules"))
        });
    if let Err(error) = printed {
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

/// Whether the broker is there with all that is needed of it; `run` would wait for it, not ready.
fn broker(config: &Config) -> Option<Finding> {
    let nats = config.nats.as_ref()?;
    let runtime = runtime::Builder::new_current_thread().enable_all().build();
    let found = runtime
        .map_err(|error| error.to_string())
        .and_then(|runtime| runtime.block_on(nats::look(nats)).map_err(|error| error.to_string()));
    Some(Finding { what: "NATS", ok: found.is_ok(), detail: found.unwrap_or_else(|why| why) })
}

/// Whether what is attached would outlive the agent; `run` goes on without.
fn pins(directory: &Path) -> Finding {
    let found = kernel::pins::look(directory).map_err(|error| error.to_string());
    Finding { what: "pin directory", ok: found.is_ok(), detail: found.unwrap_or_else(|why| why) }
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
