//! `tokentrail check`: whether `run` with the same options would work here. It changes nothing; a
//! warning is what `run` would go on without.

use std::{
    collections::BTreeMap,
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
    nats::{self, Look, progress::Covered},
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
    let (broker, sides) = broker(&config);
    let others: Vec<Finding> =
        files::look(&config).into_iter().chain(access).chain(broker).collect();
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
        .and_then(|()| print(&sides, "WARNING"))
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

/// Whether the broker is there with all that is needed of it; `run` would wait for it, not ready. And which
/// audit sides answer this node: `run` goes on without.
fn broker(config: &Config) -> (Option<Finding>, Vec<Finding>) {
    let Some(nats) = &config.nats else { return (None, Vec::new()) };
    let runtime = runtime::Builder::new_current_thread().enable_all().build();
    let asks = !config.no_sensor;
    let found = runtime.map_err(|error| error.to_string()).and_then(|runtime| {
        runtime.block_on(nats::look(nats, asks)).map_err(|error| error.to_string())
    });
    let broker = |ok, detail| Some(Finding { what: "NATS", ok, detail });
    match found {
        Ok(Look { broker: detail, sides }) => {
            let sides = sides.into_iter().flat_map(|sides| self::sides(&sides)).collect();
            (broker(true, detail), sides)
        }
        Err(why) => (broker(false, why), Vec::new()),
    }
}

/// What is known of the audit sides, a finding each.
fn sides(sides: &BTreeMap<String, Covered>) -> Vec<Finding> {
    let what = "audit side";
    if sides.is_empty() {
        let detail = "no audit side answers for this cluster over NATS: requests of pods would not be known here";
        return vec![Finding { what, ok: false, detail: detail.to_owned() }];
    }
    let detail = |(name, covered): (&String, &Covered)| {
        let Covered { through, last_event, sends_canaries, .. } = covered;
        let newest = last_event.map_or_else(|| "none".to_owned(), |time| time.to_string());
        let older = if *sends_canaries { "" } else { "; too old to send audit canaries" };
        format!("{name}: newest event {newest}, complete until {through}{older}")
    };
    sides.iter().map(|side| Finding { what, ok: true, detail: detail(side) }).collect()
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
