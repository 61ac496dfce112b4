//! `tokentrail rules`: when each rule alerts, who is excluded, what is excepted and how often that
//! happened, and how to silence one false positive. Reads the files of an agent, changes nothing.

use std::{collections::BTreeMap, io::Write, path::PathBuf};

use clap::Args;
use serde::Serialize;

use super::{Exit, configure, tell};
use crate::{
    agent::rulebook::{RulesFile, read_hits},
    config::RunArgs,
    rules::{
        Band, Tactic,
        catalogue::RuleId,
        exceptions::{Exception, hits::Hits},
        rulebook::Rulebook,
    },
    time::Micros,
};

mod text;

/// Options of `tokentrail rules`.
#[derive(Args, Clone, Debug)]
pub struct RulesArgs {
    /// Configuration file of the agent, for the two below
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Exceptions to rules, exclusions and decoys (YAML)
    #[arg(long, value_name = "FILE")]
    rules_file: Option<PathBuf>,
    /// Where the agent keeps what exceptions swallowed [default: /var/lib/tokentrail]
    #[arg(long, value_name = "DIR")]
    state_dir: Option<PathBuf>,
    /// One JSON document instead of text
    #[arg(long)]
    json: bool,
}

/// Prints them.
pub fn execute(args: RulesArgs) -> Exit {
    let RulesArgs { config, rules_file, state_dir, json } = args;
    let args = RunArgs { config, rules_file, state_dir, ..RunArgs::default() };
    let config = match configure(args) {
        Ok(config) => config,
        Err(exit) => return exit,
    };
    let rulebook = match RulesFile::open(config.rules_file.as_deref()) {
        Ok(file) => file.current().clone(),
        Err(error) => {
            tell(&error);
            return Exit::Usage;
        }
    };
    // Rules can be listed by people who may not read the agent's state.
    let hits = read_hits(&config.state_dir).unwrap_or_else(|error| {
        tell(&error);
        Hits::default()
    });
    let listing = Listing::new(config.rules_file, &rulebook, &hits, now());
    let shown = if json {
        serde_json::to_string_pretty(&listing).map_err(Into::into)
    } else {
        Ok(text::render(&listing))
    };
    match shown.and_then(|shown| writeln!(std::io::stdout().lock(), "{}", shown.trim_end())) {
        Ok(()) => Exit::Done,
        // Whoever reads us has seen enough.
        Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => Exit::Done,
        Err(error) => {
            tell(&error);
            Exit::Failed
        }
    }
}

/// The wall clock, for commands that judge dates.
pub(super) fn now() -> Micros {
    Micros(jiff::Timestamp::now().as_microsecond())
}

/// What is printed.
#[derive(Debug, Serialize)]
struct Listing {
    rules_file: Option<PathBuf>,
    rules: Vec<ListedRule>,
}

#[derive(Debug, Serialize)]
struct ListedRule {
    id: RuleId,
    condition: &'static str,
    band: Band,
    severity: u8,
    mitre: Vec<ListedTactic>,
    #[serde(skip_serializing_if = "Option::is_none")]
    exclusions: Option<Vec<String>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    decoys: Option<Vec<String>>,
    exceptions: Vec<ListedException>,
}

#[derive(Debug, Serialize)]
struct ListedTactic {
    id: &'static str,
    name: &'static str,
    techniques: Vec<ListedTechnique>,
}

#[derive(Debug, Serialize)]
struct ListedTechnique {
    id: &'static str,
    name: &'static str,
}

#[derive(Debug, Serialize)]
struct ListedException {
    name: String,
    conditions: BTreeMap<&'static str, String>,
    reason: String,
    until: Option<String>,
    /// `null` if no agent has counted it yet.
    hits: Option<u64>,
    last_hit: Option<Micros>,
    counted_since: Option<Micros>,
    /// Why it deserves a second look.
    doubt: Option<String>,
}

impl Listing {
    fn new(rules_file: Option<PathBuf>, rulebook: &Rulebook, hits: &Hits, now: Micros) -> Self {
        let listed = |id: RuleId| {
            let of_rule = rulebook.exceptions.iter().filter(|exception| exception.rule == id);
            ListedRule {
                id,
                condition: id.condition(),
                band: id.band(),
                severity: id.band().score(),
                mitre: id.rule().threat.iter().map(ListedTactic::from).collect(),
                exclusions: (id == RuleId::TokenRequestByUser)
                    .then(|| rulebook.exclusions.patterns().collect()),
                decoys: (id == RuleId::DecoyUsed).then(|| {
                    let decoys = rulebook.decoys.iter();
                    decoys.map(|(namespace, name)| format!("{namespace}/{name}")).collect()
                }),
                exceptions: of_rule.map(|it| ListedException::new(it, hits, now)).collect(),
            }
        };
        Self { rules_file, rules: RuleId::ALL.map(listed).into() }
    }
}

impl ListedException {
    fn new(exception: &Exception, hits: &Hits, now: Micros) -> Self {
        let hit = hits.of(&exception.id);
        Self {
            name: exception.id.to_string(),
            conditions: exception.conditions().collect(),
            reason: exception.reason.clone(),
            until: exception.until.map(|until| until.to_string()),
            hits: hit.map(|hit| hit.count),
            last_hit: hit.and_then(|hit| hit.last),
            counted_since: hit.map(|hit| hit.since),
            doubt: hits.doubt(exception, now),
        }
    }
}

impl From<&Tactic> for ListedTactic {
    fn from(tactic: &Tactic) -> Self {
        // The most exact name there is.
        let technique = |it: &crate::rules::Technique| {
            let (id, name) = it.subtechnique.unwrap_or((it.id, it.name));
            ListedTechnique { id, name }
        };
        let techniques = tactic.techniques.iter().map(technique).collect();
        Self { id: tactic.id, name: tactic.name, techniques }
    }
}
