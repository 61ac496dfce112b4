//! Making alerts durable, then answering for them and moving the checkpoint, then letting the journal
//! forget. A part of `engine`.
//!
//! A disk that is busy takes its time to sync. The engine does not wait for it: opens that come
//! meanwhile have to be looked at while their processes live.

use std::{fs::File, io, sync::Arc};

use tokio::task::{self, JoinError, JoinHandle};

use super::{Engine, Owed};
use crate::{audit::checkpoint::Flush, time::Micros};

/// What another thread is making durable.
pub(super) struct Saving {
    task: JoinHandle<Result<(), String>>,
    /// Whom to tell then that their batches are safe.
    acknowledge: Vec<Owed>,
}

/// The end of what is being saved; never, if nothing is. Cancelling loses nothing.
pub(super) async fn saved(saving: &mut Option<Saving>) -> Result<(), String> {
    match saving {
        Some(saving) => (&mut saving.task).await.unwrap_or_else(|error| Err(broken(&error))),
        None => std::future::pending().await,
    }
}

impl Engine {
    /// Whether nothing waits in memory that a crash would lose: else nothing may be saved.
    pub(super) fn may_checkpoint(&self) -> bool {
        self.alert_log.is_clear() && self.join.correlator.journal_failure().is_none()
    }

    /// Counts what exceptions swallowed. Before a position, an answer or the journal lets go of what that
    /// was: read again, it is known to be counted; not read again, it has been.
    pub(super) fn count_swallowed(&mut self) {
        let hits = self.join.correlator.take_hits();
        if !hits.is_empty() {
            let now = self.senses.clock.now().wall;
            self.rulebook.swallowed(hits, now);
        }
    }

    /// Saves all that was told so far and waits for it, unless that cannot be now. The position of one
    /// source is written with those of all others, and their alerts must be durable as well.
    pub(super) fn save_at_once(&mut self) -> Result<(), String> {
        if self.saving.is_some() || !self.may_checkpoint() {
            return Err("what was told before is not safe yet".to_owned());
        }
        self.count_swallowed();
        self.alert_log.sync().map_err(|error| cannot_sync(&error))?;
        self.checkpoints.flush().map_err(|error| error.to_string())
    }

    /// Begins to save all that was told so far, unless that is going on. Tells how it went last.
    pub(super) fn checkpoint(&mut self, now: Micros) -> Result<(), String> {
        self.count_swallowed();
        if self.saving.is_some() || !self.may_checkpoint() {
            return self.saved.clone();
        }
        let alerts = self.alert_log.begin_sync();
        let positions = self.checkpoints.begin_flush();
        if alerts.is_none() && positions.is_none() {
            self.acknowledge();
            return self.forget(now);
        }
        let task = task::spawn_blocking(move || save(alerts, positions));
        let acknowledge = std::mem::take(&mut self.unacknowledged);
        self.saving = Some(Saving { task, acknowledge });
        self.saved.clone()
    }

    /// What was being saved is, or is not.
    pub(super) fn end_saving(&mut self, result: Result<(), String>, now: Micros) {
        let Some(saving) = self.saving.take() else { return };
        self.alert_log.end_sync(result.is_ok());
        self.publish_alerts();
        let later = std::mem::replace(&mut self.unacknowledged, saving.acknowledge);
        if result.is_ok() {
            self.acknowledge();
        } else {
            self.checkpoints.redo();
        }
        self.unacknowledged.extend(later);
        self.saved = result.and_then(|()| self.forget(now));
    }

    /// Lets the journal forget, if all that was told is durable.
    fn forget(&mut self, now: Micros) -> Result<(), String> {
        self.count_swallowed();
        if !self.may_checkpoint() || !self.alert_log.is_synced() {
            return Ok(());
        }
        self.join.correlator.compact_journal(now).map_err(|error| error.to_string())
    }

    /// Saves all that was told, and waits for it.
    pub(super) async fn save_all(&mut self, now: Micros) -> Result<(), String> {
        for _ in 0..2 {
            // What was going on, and then what came since.
            if self.saving.is_some() {
                let result = saved(&mut self.saving).await;
                self.end_saving(result, now);
            }
            self.checkpoint(now)?;
        }
        if self.saving.is_some() {
            let result = saved(&mut self.saving).await;
            self.end_saving(result, now);
        }
        self.saved.clone()
    }
}

/// First the alerts, then the position behind the lines that they are about.
fn save(alerts: Option<Arc<File>>, positions: Option<Flush>) -> Result<(), String> {
    alerts.map_or(Ok(()), |file| file.sync_data()).map_err(|error| cannot_sync(&error))?;
    positions.map_or(Ok(()), |positions| positions.write()).map_err(|error| error.to_string())
}

fn cannot_sync(error: &io::Error) -> String {
    format!("the alert log cannot be synced: {error}")
}

fn broken(error: &JoinError) -> String {
    format!("the thread that saves ended: {error}")
}
