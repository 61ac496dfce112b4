//! What the engine has to do with the webhook: its start, and telling it what is safe. A part of
//! `engine`.

use tokio::{
    sync::{mpsc, oneshot, watch},
    task::JoinSet,
};

use super::{AgentError, Engine, Source};
use crate::{
    audit::{
        AuditBatch, AuditMetrics, SourceStatus,
        decoder::Decoder,
        webhook::{Webhook, WebhookMetrics},
    },
    config::Config,
    time::Micros,
};

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
            checkpoint: None,
            decoder,
            lateness: Micros::from_duration(config.audit_webhook_lateness),
            status,
            newest_stage: None,
        });
        Ok(())
    }

    /// Remembers whom to tell that the batch just taken is safe; tells it at once, if it is.
    pub(super) fn owe(&mut self, acknowledge: oneshot::Sender<()>) {
        self.unacknowledged.retain(|waiting| !waiting.is_closed());
        self.unacknowledged.push(acknowledge);
        // Most batches bring no alert, and need not wait for the disk.
        if self.may_checkpoint() && self.alert_log.is_synced() {
            self.acknowledge();
        }
    }

    /// Tells those who wait that all batches so far are safe.
    pub(super) fn acknowledge(&mut self) {
        self.count_swallowed();
        for waiting in self.unacknowledged.drain(..) {
            // Whoever gave up waiting will send again.
            let _ = waiting.send(());
        }
    }
}
