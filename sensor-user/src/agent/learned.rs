//! What attribution learned about workloads, kept in the state directory over restarts: without it
//! whoever is there while the agent restarts would be learned as the workload's own.

use std::path::Path;

use super::kept::Kept;
use crate::attribution::SavedLearning;

/// Where it is kept.
#[derive(Debug)]
pub(super) struct LearnedStore {
    kept: Kept,
    /// What could not be written yet.
    unwritten: Option<SavedLearning>,
}

impl LearnedStore {
    /// In this state directory; nothing is read or written yet.
    pub(super) fn new(state_dir: &Path) -> Self {
        let kept = Kept::new(state_dir, "learned.json", "what was learned about workloads");
        Self { kept, unwritten: None }
    }

    /// What earlier agents learned. A damaged file is a new beginning.
    pub(super) fn read(&self) -> SavedLearning {
        self.kept.read().unwrap_or_else(|error| {
            tracing::error!(%error, "which executables read tokens is learned anew");
            SavedLearning::default()
        })
    }

    /// Writes what has changed, if anything; what fails is tried again at the next call.
    pub(super) fn keep(&mut self, changed: Option<SavedLearning>) {
        let Some(content) = changed.or_else(|| self.unwritten.take()) else { return };
        if !self.kept.write(&content) {
            self.unwritten = Some(content);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use serde_json::json;

    use super::*;

    fn saved(executable: &str) -> SavedLearning {
        let habit = json!({"executables": [executable], "learned": true});
        let workload = json!({"image": ["shop/cart:1", "main"]});
        serde_json::from_value(json!({"workloads": [[workload, habit]]})).unwrap()
    }

    #[test]
    fn what_was_learned_is_there_after_a_restart() {
        let directory = tempfile::tempdir().unwrap();
        let mut store = LearnedStore::new(directory.path());
        assert_eq!(store.read(), SavedLearning::default());
        store.keep(Some(saved("/bin/cart")));
        store.keep(None);
        assert_eq!(LearnedStore::new(directory.path()).read(), saved("/bin/cart"));
    }

    #[test]
    fn what_cannot_be_written_is_written_later_unless_there_is_something_newer() {
        let directory = tempfile::tempdir().unwrap();
        let away = directory.path().join("away");
        let mut store = LearnedStore::new(&away);
        store.keep(Some(saved("/bin/old")));
        store.keep(Some(saved("/bin/new")));
        fs::create_dir(&away).unwrap();
        store.keep(None);
        assert_eq!(store.read(), saved("/bin/new"));
    }

    #[test]
    fn a_damaged_file_is_a_new_beginning() {
        let directory = tempfile::tempdir().unwrap();
        for content in ["", "{", r#"{"version":2,"workloads":[]}"#, r#"{"version":1}"#, "[]", "\0"]
        {
            fs::write(directory.path().join("learned.json"), content).unwrap();
            let mut store = LearnedStore::new(directory.path());
            assert_eq!(store.read(), SavedLearning::default(), "{content}");
            store.keep(Some(saved("/bin/cart")));
            assert_eq!(store.read(), saved("/bin/cart"), "{content}");
        }
    }
}
