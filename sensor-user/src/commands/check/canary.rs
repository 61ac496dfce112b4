//! One audit canary for `tokentrail check`: asks the API server once and waits for the request in
//! the audit logs, read as `run` reads them, from their ends.

use std::time::Duration;

use tokio::{
    runtime,
    sync::{mpsc, watch},
    task::JoinSet,
    time::{Instant, timeout_at},
};

use crate::{
    audit::{
        AuditBatch, AuditMetrics, SourceStatus,
        canary::{
            Canary, CanaryMetrics, State,
            probe::{Probe, nonce, wall_clock},
        },
        decoder::Decoder,
        scan::Interest,
        tail::{self, TailConfig},
    },
    config::Config,
    kernel::Finding,
    time::Micros,
};

/// How long the event may take from the answer. A log that is written in blocking mode has it
/// before.
const PATIENCE: Duration = Duration::from_secs(5);

/// What was found out.
#[derive(Default)]
pub(super) struct Proof {
    /// Whether the Kubernetes API can be asked at all, where it is to be: else `run` does not start.
    pub(super) access: Option<Finding>,
    /// Whether the request came back: `run` goes on without.
    pub(super) warnings: Vec<Finding>,
}

/// Asks, where there is somebody to ask.
pub(super) fn prove(config: &Config) -> Proof {
    if config.kube.is_none() {
        return Proof::default();
    }
    match runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime.block_on(ask(config)),
        Err(error) => warning(Err(format!("cannot be asked for: {error}"))),
    }
}

async fn ask(config: &Config) -> Proof {
    let Some(access) = &config.kube else { return Proof::default() };
    let probe = match Probe::open(access, nonce()).await {
        Ok(probe) => probe,
        Err(error) => {
            let (what, detail) = ("Kubernetes API", error.to_string());
            return Proof { access: Some(Finding { what, ok: false, detail }), ..Proof::default() };
        }
    };
    if config.audit_logs.is_empty() || config.audit_canary_every.is_none() {
        return Proof::default();
    }
    warning(listen(config, probe).await)
}

/// Whether a request comes back, and what it tells.
async fn listen(config: &Config, mut probe: Probe) -> Result<String, String> {
    let (sender, mut batches) = mpsc::channel(1);
    let mut tails = JoinSet::new();
    let mut sources = Vec::new();
    for (source, path) in config.audit_logs.iter().enumerate() {
        let (status_sender, status) = watch::channel(SourceStatus::default());
        let tail = TailConfig { path: path.clone(), source, start: None };
        tails.spawn(tail::follow(tail, sender.clone(), status_sender, AuditMetrics::default()));
        sources.push(status);
    }
    // A first look is over when there is a state; what is not open then has been told already.
    for status in &mut sources {
        let looked = status.wait_for(|status| *status != SourceStatus::default());
        let _: Result<_, _> = timeout_at(Instant::now() + PATIENCE, looked).await;
    }
    if !sources.iter().any(|status| status.borrow().is_open()) {
        return Err("not asked for: no audit log is there to find it in".to_owned());
    }
    let patience = Micros::from_duration(PATIENCE);
    let mut canary =
        Canary::new(probe.run().to_owned(), patience, patience, CanaryMetrics::default());
    let mut decoder = Decoder::new("audit log".to_owned(), AuditMetrics::default());
    // The tails must not wait for a long time with the request's line unread.
    let asked = probe.ask();
    let mut asked = std::pin::pin!(asked);
    let asked = loop {
        tokio::select! {
            biased;
            Some(batch) = batches.recv() => see(&mut canary, &mut decoder, &batch),
            asked = &mut asked => break asked,
        }
    };
    canary.note(asked, Micros(0));
    let deadline = Instant::now() + PATIENCE;
    while canary.status(Micros(0)).state == State::Starting {
        match timeout_at(deadline, batches.recv()).await {
            Ok(Some(batch)) => see(&mut canary, &mut decoder, &batch),
            Ok(None) | Err(_) => break,
        }
    }
    let status = canary.status(patience + Micros(1));
    if status.failure().is_some() { Err(status.detail) } else { Ok(status.detail) }
}

fn see(canary: &mut Canary, decoder: &mut Decoder, batch: &AuditBatch) {
    for read in decoder.decode_all(&batch.lines, &Interest::LIVE) {
        canary.see(&read.record, read.read_wall(wall_clock()), batch.source);
    }
}

fn warning(result: Result<String, String>) -> Proof {
    let ok = result.is_ok();
    let detail = result.unwrap_or_else(|why| why);
    Proof { access: None, warnings: vec![Finding { what: "audit canary", ok, detail }] }
}
