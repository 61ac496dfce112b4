//! How often each exception swallowed something, and which of them deserve a second look. Values
//! only: `agent::rulebook` keeps them over restarts, commands show them.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use super::{Exception, ExceptionId, Exceptions};
use crate::time::Micros;

/// How long an exception may match nothing before it is doubted: 30 days.
const IDLE: Micros = Micros::from_secs(30 * 24 * 60 * 60);

/// What one exception swallowed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hit {
    /// How many alerts.
    pub count: u64,
    /// When last, by the wall clock.
    pub last: Option<Micros>,
    /// Since when it is counted, by the wall clock.
    pub since: Micros,
}

/// What all exceptions swallowed, by their names: as many as the rules file has.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hits(BTreeMap<String, Hit>);

impl Hits {
    /// Begins to count exceptions that are new, and forgets those that are gone. Returns whether
    /// that changed anything.
    pub fn align(&mut self, exceptions: &Exceptions, now: Micros) -> bool {
        let before = self.0.len();
        let names: BTreeSet<&str> = exceptions.iter().map(|it| it.id.as_str()).collect();
        self.0.retain(|name, _| names.contains(name.as_str()));
        let kept = self.0.len();
        for name in names {
            let new = || Hit { count: 0, last: None, since: now };
            self.0.entry(name.to_owned()).or_insert_with(new);
        }
        kept != before || self.0.len() != kept
    }

    /// Counts one. An exception that was taken out of the file meanwhile is not counted.
    pub fn note(&mut self, id: &ExceptionId, now: Micros) {
        if let Some(hit) = self.0.get_mut(id.as_str()) {
            hit.count = hit.count.saturating_add(1);
            hit.last = hit.last.max(Some(now));
        }
    }

    /// What this exception swallowed, if it is counted.
    pub fn of(&self, id: &ExceptionId) -> Option<Hit> {
        self.0.get(id.as_str()).copied()
    }

    /// Why this exception deserves a second look, as a sentence.
    pub fn doubt(&self, exception: &Exception, now: Micros) -> Option<String> {
        if let Some(until) = exception.until.filter(|until| until.is_past(now)) {
            return Some(format!("its last day was {until}; remove it, or give it a new date"));
        }
        let hit = self.of(&exception.id)?;
        if now - hit.last.map_or(hit.since, |last| last.max(hit.since)) < IDLE {
            return None;
        }
        let last = hit.last.map_or_else(|| "never".to_owned(), |last| last.to_string());
        // Each agent counts what its own node sees.
        Some(format!(
            "it has matched nothing on this node for 30 days (last: {last}); if so on all nodes, \
             remove it"
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::{Hit, Hits, IDLE};
    use crate::{rules::rulebook::Rulebook, time::Micros};

    const START: Micros = Micros::from_secs(1_800_000_000);

    fn rulebook(names: &[&str], rest: &str) -> Rulebook {
        let entry = |name: &&str| {
            format!("- {{name: {name}, rule: token-read, pod: a, reason: tested{rest}}}\n")
        };
        let entries: String = names.iter().map(entry).collect();
        Rulebook::parse(&format!("exceptions:\n{entries}")).unwrap()
    }

    #[test]
    fn counts_follow_the_file_and_what_is_not_in_it_is_not_counted() {
        let (both, one) = (rulebook(&["a", "b"], ""), rulebook(&["b"], ""));
        let id = |index| both.exceptions.iter().nth(index).unwrap().id.clone();
        let (a, b) = (id(0), id(1));
        let mut hits = Hits::default();
        hits.note(&a, START);
        assert_eq!(hits, Hits::default());
        assert!(hits.align(&both.exceptions, START));
        assert!(!hits.align(&both.exceptions, START + IDLE));
        hits.note(&a, START);
        hits.note(&b, START + Micros(5));
        hits.note(&b, START + Micros(3));
        let expected = Hit { count: 2, last: Some(START + Micros(5)), since: START };
        assert_eq!(hits.of(&b), Some(expected));
        assert!(hits.align(&one.exceptions, START + IDLE));
        assert_eq!((hits.of(&a), hits.of(&b)), (None, Some(expected)));
    }

    #[test]
    fn an_exception_that_matched_nothing_for_30_days_is_doubted() {
        let rulebook = rulebook(&["a"], "");
        let exception = rulebook.exceptions.iter().next().unwrap();
        let mut hits = Hits::default();
        assert_eq!(hits.doubt(exception, START), None, "nothing is known of it");
        hits.align(&rulebook.exceptions, START);
        assert_eq!(hits.doubt(exception, START + IDLE - Micros(1)), None);
        assert!(hits.doubt(exception, START + IDLE).unwrap().contains("last: never"));
        hits.note(&exception.id, START + IDLE);
        assert_eq!(hits.doubt(exception, START + IDLE + IDLE - Micros(1)), None);
        let doubt = hits.doubt(exception, START + IDLE + IDLE).unwrap();
        assert!(doubt.contains(&(START + IDLE).to_string()), "{doubt}");
    }

    #[test]
    fn an_exception_past_its_date_is_doubted_whatever_was_counted() {
        let rulebook = rulebook(&["a"], ", until: 2026-12-31");
        let exception = rulebook.exceptions.iter().next().unwrap();
        let at = |text| Micros::parse(text).unwrap();
        let hits = Hits::default();
        assert_eq!(hits.doubt(exception, at("2026-12-31T23:59:59.999999Z")), None);
        let doubt = hits.doubt(exception, at("2027-01-01T00:00:00Z")).unwrap();
        assert!(doubt.contains("2026-12-31"), "{doubt}");
    }
}
