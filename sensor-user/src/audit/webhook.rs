//! The webhook source: takes the `EventList`s that a kube-apiserver posts over HTTPS
//! (`--audit-webhook-config-file`).
//!
//! ```text
//!  connections ── TLS, places, time limits      credentials ── certificates, tokens, rotation
//!       │
//!     post ── places in the queue, answers      recent ── what was taken before
//!       └─ body ── unpacks    items ── cuts     (then as lines of a file: lines, sieve, scan)
//! ```
//!
//! It listens, hands batches to the engine and answers when that says that they are safe. Where to go
//! on after a restart is the API server's business: it repeats what was not answered, for four
//! minutes. Opened and spawned by the agent.
//!
//! Source of the client's semantics: kubernetes/apiserver `plugin/pkg/audit/webhook`,
//! `pkg/util/webhook`.

use std::{io, net::SocketAddr, sync::Arc, time::Duration};

use tokio::{
    net::TcpListener,
    sync::{mpsc, watch},
    time::{MissedTickBehavior, interval},
};
use tracing::{info, warn};

use self::{
    connections::Shared,
    credentials::{Credentials, Files},
    post::{Limits, Posts},
};
use super::{
    AuditBatch, AuditMetrics, SourceState, SourceStatus, sieve::Sieve, tail::boot_clock_ns,
};

mod connections;
mod credentials;
mod items;
mod metrics;
mod post;
mod recent;

pub use credentials::{CredentialFiles, CredentialsError};
pub use metrics::{Answer, BadBody, Refusal, WebhookMetrics};

/// How often the source says that it is idle.
const BEAT: Duration = Duration::from_secs(1);
/// How often certificates and tokens are looked at.
const LOOK: Duration = Duration::from_secs(10);

/// What to listen as.
#[derive(Clone, Debug)]
pub struct WebhookConfig {
    /// Address and port.
    pub listen: SocketAddr,
    /// Certificates and tokens.
    pub files: CredentialFiles,
    /// Longest body, bytes, unpacked.
    pub max_body: u64,
}

/// Why the webhook does not start.
#[derive(Debug, thiserror::Error)]
pub enum WebhookError {
    /// A certificate, key or token file is of no use.
    #[error(transparent)]
    Credentials(#[from] CredentialsError),
    /// The address is taken, or not ours.
    #[error(
        "cannot listen on {address} for the API server's audit events: {source}; choose another address with --audit-webhook"
    )]
    Listen {
        /// The address.
        address: SocketAddr,
        /// Why not.
        source: io::Error,
    },
}

/// A webhook that listens.
#[derive(Debug)]
pub struct Webhook {
    listener: TcpListener,
    files: Files,
    credentials: Credentials,
    limits: Limits,
    look: Duration,
    metrics: WebhookMetrics,
}

impl Webhook {
    /// Reads certificates and tokens and takes the address. Needs a runtime with I/O.
    ///
    /// # Errors
    /// Either cannot be had.
    pub fn open(config: &WebhookConfig, metrics: WebhookMetrics) -> Result<Self, WebhookError> {
        let (files, credentials) = Files::open(config.files.clone())?;
        let listener = std::net::TcpListener::bind(config.listen)
            .and_then(|listener| {
                listener.set_nonblocking(true)?;
                TcpListener::from_std(listener)
            })
            .map_err(|source| WebhookError::Listen { address: config.listen, source })?;
        let limits = Limits::of_body(config.max_body);
        Ok(Self { listener, files, credentials, limits, look: LOOK, metrics })
    }

    /// Serves until nobody takes batches any more.
    pub async fn serve(
        self,
        source: usize,
        sender: mpsc::Sender<AuditBatch>,
        status: watch::Sender<SourceStatus>,
        audit_metrics: AuditMetrics,
    ) {
        let Self { listener, files, credentials, limits, look, metrics } = self;
        let sieve = Sieve::new("webhook".to_owned(), audit_metrics);
        status.send_modify(|status| status.state = SourceState::Open);
        let beat = status.clone();
        let posts = Posts::new(source, limits, sender.clone(), sieve, status, metrics.clone());
        let (newest, credentials) = watch::channel(Arc::new(credentials));
        let shared = Shared { posts: Arc::new(posts), credentials, metrics: metrics.clone() };
        tokio::select! {
            () = connections::serve(&listener, &shared) => {}
            () = pass_time(&beat) => {}
            () = keep_up(files, look, &newest, &metrics) => {}
            () = sender.closed() => {}
        }
    }
}

/// Says that all which came before has been handed on. What was sent and is not here yet is what the
/// lateness is for.
async fn pass_time(status: &watch::Sender<SourceStatus>) {
    let mut beat = interval(BEAT);
    beat.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        beat.tick().await;
        status.send_modify(|status| status.complete_at_boot_ns = Some(boot_clock_ns()));
    }
}

/// Follows certificates and tokens.
async fn keep_up(
    mut files: Files,
    every: Duration,
    newest: &watch::Sender<Arc<Credentials>>,
    metrics: &WebhookMetrics,
) {
    let mut look = interval(every);
    look.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        look.tick().await;
        match files.changed() {
            Ok(None) => {}
            Ok(Some(credentials)) => {
                info!("the audit webhook's certificates or tokens have changed and are in use");
                newest.send_replace(Arc::new(credentials));
            }
            Err(error) => {
                metrics.reload_failures.inc();
                warn!(%error, "the audit webhook keeps its certificates and tokens of before");
            }
        }
    }
}

#[cfg(test)]
mod tests;
