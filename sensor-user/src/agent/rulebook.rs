//! The rulebook as the agent holds it: read at the start, read anew when its file changes, with
//! what its exceptions swallowed. The engine asks it and passes time on; `file` reads, `hits` keeps.

use std::{path::Path, sync::Arc};

use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{counter::Counter, family::Family, gauge::Gauge},
    registry::Registry,
};

use crate::{
    correlation::Swallowed,
    rules::{exceptions::ExceptionId, rulebook::Rulebook},
    time::Micros,
};

mod file;
mod hits;

use file::Polled;
pub use file::{RulesFile, RulesFileError};
use hits::HitStore;
pub use hits::read as read_hits;

/// What is counted about rules. Labels are names of exceptions: as many as a file may hold.
#[derive(Clone, Debug, Default)]
pub struct RulebookMetrics {
    exception_hits: Family<ExceptionLabels, Counter>,
    exceptions: Gauge,
    reloads: Counter,
    refused: Gauge,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ExceptionLabels {
    exception: String,
}

impl From<&ExceptionId> for ExceptionLabels {
    fn from(id: &ExceptionId) -> Self {
        Self { exception: id.to_string() }
    }
}

impl RulebookMetrics {
    /// Makes them visible.
    pub fn register(&self, registry: &mut Registry) {
        let registry = registry.sub_registry_with_prefix("tokentrail_rules");
        registry.register(
            "exception_hits",
            "Alerts that an exception swallowed, since the agent started",
            self.exception_hits.clone(),
        );
        registry.register("exceptions", "Exceptions in force", self.exceptions.clone());
        registry.register("reloads", "Times the rules file was read anew", self.reloads.clone());
        registry.register(
            "file_refused",
            "1 while the rules file is not what is in force, since it was refused",
            self.refused.clone(),
        );
    }

    /// Shows each exception from its beginning, and none that is gone.
    fn align(&self, old: &Rulebook, new: &Rulebook) {
        for exception in old.exceptions.iter() {
            if new.exceptions.iter().all(|other| other.id != exception.id) {
                self.exception_hits.remove(&(&exception.id).into());
            }
        }
        for exception in new.exceptions.iter() {
            drop(self.exception_hits.get_or_create(&(&exception.id).into()));
        }
        let count = new.exceptions.iter().count();
        self.exceptions.set(i64::try_from(count).unwrap_or(i64::MAX));
    }
}

/// The rulebook in force, and what becomes of it.
#[derive(Debug)]
pub struct RulebookKeeper {
    file: RulesFile,
    hits: HitStore,
    metrics: RulebookMetrics,
}

impl RulebookKeeper {
    /// Takes a rules file that was read, and the hits of earlier runs from the state directory.
    pub fn open(file: RulesFile, state_dir: &Path, metrics: RulebookMetrics, now: Micros) -> Self {
        let mut hits = HitStore::open(state_dir);
        hits.align(&file.current().exceptions, now);
        metrics.align(&Rulebook::default(), file.current());
        Self { file, hits, metrics }
    }

    /// The rulebook in force. Ask anew for each decision: it may change between two turns of the
    /// engine's clock.
    pub fn current(&self) -> Arc<Rulebook> {
        Arc::clone(self.file.current())
    }

    /// What exceptions swallowed in earlier runs, as far as it is remembered: it is counted.
    pub fn swallowed_before(&self) -> impl Iterator<Item = &str> {
        self.hits.swallowed()
    }

    /// Counts alerts that exceptions swallowed, and writes that. `now` is the wall clock's.
    pub fn swallowed(&mut self, hits: Vec<Swallowed>, now: Micros) {
        for Swallowed { exception, id } in hits {
            self.hits.note(&exception, id, now);
            if let Some(counter) = self.metrics.exception_hits.get(&(&exception).into()) {
                counter.inc();
            }
        }
        self.hits.flush();
    }

    /// What happens once a second: looks at the file, writes what could not be written before. `now` is
    /// the wall clock's.
    pub fn keep_up(&mut self, now: Micros) {
        let old = self.current();
        match self.file.poll() {
            Polled::Same => {}
            Polled::Changed => {
                let new = self.file.current();
                self.hits.align(&new.exceptions, now);
                self.metrics.align(&old, new);
                self.metrics.reloads.inc();
                self.metrics.refused.set(0);
            }
            Polled::Refused => {
                self.metrics.refused.set(1);
            }
        }
        self.hits.flush();
    }

    /// What is wrong with the file, as a sentence.
    pub fn degraded(&self) -> Option<String> {
        self.file.failure().map(|why| format!("the earlier rules stay in force: {why}"))
    }
}

#[cfg(test)]
mod tests;
