//! What the engine has to do with the webhook: its start, and telling it what is safe. A part of
//! `engine`.

use tokio::{
    sync::{mpsc, oneshot, watch},
    task::JoinSet,
};

use super::{AgentError, Answering, Engine, Source, Way};
use crate::{
    audit::{
        AuditBatch, AuditMetrics, ReadRecord, SourceStatus,
        decoder::Decoder,
        webhook::{Webhook, WebhookMetrics},
    },
    config::Config,
    time::Micros,
};

/// Somebody to be told that their batch is safe.
pub(super) struct Owed {
    acknowledge: oneshot::Sender<()>,
    /// How many records the broker must have taken by then, if some are of this batch or may be of what it
    /// repeats: else none, or a broker that is away would keep API servers from posting.
    published: u64,
}

impl Engine {
    /// Starts the task that takes audit events over HTTPS.
    pub(super) fn listen(
        &mut self,
        config: &Config,
        metrics: WebhookMetrics,
        audit_metrics: &AuditMetrics,
        sender: mpsc::Sender<AuditBatch>,
        tasks: &mut JoinSet<AgentError>,
    ) -> Result<(), AgentError> {
        let Some(webhook) = &config.audit_webhook else { return Ok(()) };
        let name = format!("audit webhook {}", webhook.listen);
        let decoder = Decoder::new(name.clone(), audit_metrics.clone());
        let webhook = Webhook::open(webhook, metrics)?;
        let (status_sender, status) = watch::channel(SourceStatus::default());
        let (source, audit_metrics) = (self.sources.len(), audit_metrics.clone());
        tasks.spawn(async move {
            webhook.serve(source, sender, status_sender, audit_metrics).await;
            AgentError::Ended {
                part: "the audit webhook",
                why: "nobody takes its batches".to_owned(),
            }
        });
        self.sources.push(Source {
            name,
            way: Way::Webhook,
            decoder,
            lateness: Micros::from_duration(config.audit_webhook_lateness),
            status,
            newest_stage: None,
        });
        Ok(())
    }

    /// Remembers whom to tell that the batch just taken is safe; tells it at once, if it is.
    pub(super) fn owe(&mut self, acknowledge: oneshot::Sender<()>, published: u64) {
        self.unacknowledged.retain(|waiting| !waiting.acknowledge.is_closed());
        self.unacknowledged.push(Owed { acknowledge, published });
        // Most batches bring no alert, and need not wait for the disk.
        if self.may_checkpoint() && self.alert_log.is_synced() {
            self.acknowledge();
        }
    }

    /// Tells those who wait that all batches so far are safe.
    pub(super) fn acknowledge(&mut self) {
        self.count_swallowed();
        let done = self.answering.as_ref().map_or(0, Answering::done);
        for owed in self.unacknowledged.extract_if(.., |it| it.published <= done) {
            // Whoever gave up waiting will send again.
            let _ = owed.acknowledge.send(());
        }
    }

    /// Records that were given to the broker's queue so far, up to the last that matters to who posted it.
    pub(super) fn due(&self) -> u64 {
        self.answering.as_ref().map_or(0, Answering::due)
    }

    /// Keeps a posted event for nodes that ask for it later: nobody could read it again.
    pub(super) fn keep_posted(&mut self, read: &ReadRecord, wall: Micros) {
        if let Some(answering) = &mut self.answering
            && let Ok(line) = serde_json::to_vec(&read.record)
        {
            answering.keep(line.into(), read.read_wall(wall));
        }
    }
}
