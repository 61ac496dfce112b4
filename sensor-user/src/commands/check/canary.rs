//! One audit canary for `tokentrail check`: asks the API server once and waits for the request in the audit
//! logs, read as `run` reads them, from their ends; and over NATS, unless an agent runs here.

use std::{path::PathBuf, time::Duration};

use tokio::{
    runtime,
    sync::{mpsc, watch},
    task::JoinSet,
    time::{Instant, timeout, timeout_at},
};

use crate::{
    agent::is_taken,
    audit::{
        AuditBatch, AuditMetrics, SourceStatus,
        canary::{
            Canary, CanaryMetrics, State, Way,
            probe::{Probe, wall_clock},
            run::Run,
        },
        decoder::Decoder,
        scan::Interest,
        tail::{self, TailConfig},
    },
    config::Config,
    kernel::Finding,
    nats::{Link, NatsConfig, NatsMetrics, asking::Asker, interest::Round},
    time::Micros,
};

/// How long the event may take from the answer. A log that is written in blocking mode has it
/// before.
const PATIENCE: Duration = Duration::from_secs(5);
/// The same over NATS: API servers post what happened within half a minute.
const OVER_NATS: Duration = Duration::from_secs(35);
/// How long the event may take to come by another way as well.
const MOMENT: Duration = Duration::from_millis(500);

/// What was found out.
#[derive(Default)]
pub(super) struct Proof {
    /// Whether the Kubernetes API can be asked at all, where it is to be: else `run` does not start.
    pub(super) access: Option<Finding>,
    /// Whether the request came back, and by which ways: `run` goes on without.
    pub(super) warnings: Vec<Finding>,
}

/// Asks, where there is somebody to ask.
pub(super) fn prove(config: &Config) -> Proof {
    if config.kube.is_none() {
        return Proof::default();
    }
    match runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime.block_on(ask(config)),
        Err(error) => warnings(vec![Err(format!("cannot be asked for: {error}"))]),
    }
}

async fn ask(config: &Config) -> Proof {
    let Some(access) = &config.kube else { return Proof::default() };
    let run = Run::begin();
    let probe = match Probe::open(access, run.clone()).await {
        Ok(probe) => probe,
        Err(error) => {
            let (what, detail) = ("Kubernetes API", error.to_string());
            return Proof { access: Some(Finding { what, ok: false, detail }), ..Proof::default() };
        }
    };
    let nats = config.nats.as_ref().filter(|_| !config.no_sensor);
    if config.audit_canary_every.is_none() || (config.audit_logs.is_empty() && nats.is_none()) {
        return Proof::default();
    }
    let mut told = Vec::new();
    // The answers that wait for an agent are its own to take.
    let is_running = nats.is_some() && is_taken(&config.state_dir);
    if is_running {
        let why = "not asked for over NATS while an agent runs here: its /statusz has it (audit_canary, sources)";
        told.push(Ok(why.to_owned()));
    }
    let nats = nats.filter(|_| !is_running);
    if nats.is_some() || !config.audit_logs.is_empty() {
        told.extend(listen(&config.audit_logs, nats, run, probe).await);
    }
    warnings(told)
}

/// Whether a request comes back, and what it tells of each way.
async fn listen(
    logs: &[PathBuf],
    nats: Option<&NatsConfig>,
    run: Run,
    mut probe: Probe,
) -> Vec<Result<String, String>> {
    let (sender, mut batches) = mpsc::channel(1);
    let mut tasks = JoinSet::new();
    let mut sources = Vec::new();
    for (source, path) in logs.iter().enumerate() {
        let (status_sender, status) = watch::channel(SourceStatus::default());
        let tail = TailConfig { path: path.clone(), source, start: None };
        tasks.spawn(tail::follow(tail, sender.clone(), status_sender, AuditMetrics::default()));
        sources.push(status);
    }
    // A first look is over when there is a state; what is not open then has been told already.
    for status in &mut sources {
        let looked = status.wait_for(|status| *status != SourceStatus::default());
        let _: Result<_, _> = timeout(PATIENCE, looked).await;
    }
    // It asks for nothing but its canaries, and acknowledges nothing.
    let (_round, asked) = watch::channel(Round::default());
    let mut is_answered = false;
    if let Some(nats) = nats {
        let (mut link, mut status) = Link::new(nats.clone(), NatsMetrics::default());
        let (source_status, _) = watch::channel(SourceStatus::default());
        let canary = Some(run.name().to_owned());
        let metrics = NatsMetrics::default();
        let asker = Asker::new(logs.len(), asked, canary, sender.clone(), source_status, metrics);
        link.asker = Some(asker);
        tasks.spawn(link.run());
        let answers = status
            .wait_for(|status| status.audit_sides.values().any(|it| it.covered.sends_canaries));
        is_answered = timeout(PATIENCE, answers).await.is_ok_and(|it| it.is_ok());
    }
    if !is_answered && !sources.iter().any(|status| status.borrow().is_open()) {
        let why = match nats {
            Some(_) => {
                "no audit log is there to find it in, and no audit side that sends it is heard over NATS"
            }
            None => "no audit log is there to find it in",
        };
        return vec![Err(format!("not asked for: {why}"))];
    }
    let allowed = if is_answered { OVER_NATS } else { PATIENCE };
    let patience = Micros::from_duration(allowed);
    let mut canary = Canary::new(run, patience, patience, CanaryMetrics::default());
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
    let mut deadline = Instant::now() + allowed;
    loop {
        if canary.status(Micros(0)).state != State::Starting {
            deadline = deadline.min(Instant::now() + MOMENT);
        }
        let Ok(Some(batch)) = timeout_at(deadline, batches.recv()).await else { break };
        see(&mut canary, &mut decoder, &batch);
    }
    let status = canary.status(patience + Micros(1));
    if status.failure().is_some() {
        return vec![Err(status.detail)];
    }
    let ways = canary.ways().map(|(way, measured)| match (&way.side, logs.get(way.source)) {
        (Some(side), _) => Ok(format!("audit side {side}: {measured}")),
        (None, Some(log)) => Ok(format!("{}: {measured}", log.display())),
        (None, None) => Ok(measured.to_string()),
    });
    let ways: Vec<_> = ways.collect();
    if ways.is_empty() { vec![Ok(status.detail)] } else { ways }
}

fn see(canary: &mut Canary, decoder: &mut Decoder, batch: &AuditBatch) {
    for read in decoder.decode_all(&batch.lines, &Interest::LIVE) {
        let way = Way { source: batch.source, side: read.side.clone() };
        canary.see(&read.record, read.read_wall(wall_clock()), &way);
    }
}

fn warnings(told: Vec<Result<String, String>>) -> Proof {
    let finding = |result: Result<String, String>| {
        let ok = result.is_ok();
        Finding { what: "audit canary", ok, detail: result.unwrap_or_else(|why| why) }
    };
    Proof { access: None, warnings: told.into_iter().map(finding).collect() }
}
