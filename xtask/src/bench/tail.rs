//! An agent behind a busy API server: 50,000 audit lines a second for half a minute, rotated as they
//! are there, and among them some that an alert must follow from: requests of pods whose tokens were
//! opened on this node just before (by this process, so the grade is `outside`).
//!
//! An alert that does not come, and a line that is not read, is an error of the measurement.

use std::{
    collections::HashMap,
    fs::File,
    sync::mpsc::Receiver,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;
use tokentrail_tests::{AgentSetup, AuditLine, NODE_NAME, PATIENCE, Pod, Request, Sandbox, Stage};

use super::{
    latency::AlertLines,
    report::{Row, quantile},
    rest::{cpu_seconds, peak_mb},
};
use crate::shell::announce;

mod crowd;
mod log;

pub(super) use self::{crowd::Crowd, log::Log};

/// Lines a second.
pub(super) const RATE: u32 = 50_000;
/// How long.
pub(super) const LASTS: Duration = Duration::from_secs(30);
/// Between two bursts of lines: an API server's audit backend wakes up, writes what has come
/// meanwhile, one write a line, and sleeps.
const TURN: Duration = Duration::from_millis(2);
/// Pods that an alert is about, evenly over the time.
const PODS: u32 = 240;
/// Turns from an open to its request's line: a request's way into the log takes no less.
const TURNS_TO_REQUEST: u32 = 4;

/// A request among everybody's.
pub(super) struct Planted {
    /// Of which pod.
    pub(super) pod: Pod,
    /// On which node.
    pub(super) node: String,
    /// Whether its token is opened here just before.
    pub(super) opened: bool,
}

/// Measures.
///
/// # Errors
/// If the agent does not start, an alert does not come or a line is not read.
pub(crate) fn measure() -> Result<Vec<Row>> {
    let mut crowd = Crowd::generate()?;
    let sandbox = Sandbox::create()?;
    let pods: Vec<Planted> =
        (0..PODS).map(|_| Planted::on_this_node(&sandbox)).collect::<Result<_>>()?;
    let mut log = Log::create(sandbox.folder().join("audit.log"))?;
    let setup = AgentSetup::new(&sandbox, log.path());
    let agent = setup.start()?;
    let alerts = AlertLines::follow(setup.alerts().path())?.in_background();

    announce(format_args!("tail: {RATE} lines/s for {} s, {PODS} alerts", LASTS.as_secs()));
    let (before, start) = (cpu_seconds(agent.pid())?, Instant::now());
    let written = write(&mut log, &mut crowd, &pods)?;
    let (took, used) = (start.elapsed().as_secs_f64(), cpu_seconds(agent.pid())? - before);

    let latencies = latencies(written, &alerts)
        .with_context(|| format!("the agent wrote:\n{}", agent.log()))?;
    let lines = f64::from(log.lines());
    let read = agent.wait_for_metric("tokentrail_audit_lines_total", &[], lines)?;
    ensure!(read - lines < 0.5, "{read} lines were read, {lines} written");
    let (share, peak) = (used / took * 100.0, peak_mb(agent.pid())?);
    agent.terminate()?;
    sandbox.close()?;

    let [p50, p99, all] = [0.5, 0.99, 1.0].map(|share| quantile(&latencies, share));
    let millis = |value: f64| format!("{value:.3} ms");
    let rate = lines / took;
    Ok(vec![
        Row::new("written and read", format!("{rate:.0} lines/s")).at_least(
            rate / 1e3,
            f64::from(RATE) / 1e3 * 0.99,
            "thousand a second",
        ),
        Row::new("bytes of them", format!("{:.0} MB/s", log.megabytes() / took)),
        Row::new("50 % of alerts within", millis(p50)),
        Row::new("99 % of alerts within", millis(p99)).at_most(p99, 20.0, "ms"),
        Row::new("all alerts within", millis(all)),
        Row::new("CPU", format!("{share:.1} %")).at_most(share, 30.0, "% of one core"),
        Row::new("peak memory", format!("{peak:.1} MB")).at_most(peak, 40.0, "MB"),
    ])
}

impl Planted {
    /// Of a new pod of this node.
    pub(super) fn on_this_node(sandbox: &Sandbox) -> Result<Self> {
        Ok(Self { pod: Pod::create(sandbox)?, node: NODE_NAME.to_owned(), opened: true })
    }

    fn line(&self) -> Result<String> {
        let line = AuditLine::recorded(Request::ListPods, Stage::ResponseComplete, &self.pod)?;
        let node = |name: &str| format!("{name:?}");
        Ok(line.text().replace(&node(NODE_NAME), &node(&self.node)) + "\n")
    }
}

/// Writes everybody's lines at their pace and what is planted evenly among them, after its token was opened.
/// Tells when the write of each planted line began, by its pod's uid.
pub(super) fn write<'pods>(
    log: &mut Log,
    crowd: &mut Crowd,
    planted: &'pods [Planted],
) -> Result<HashMap<&'pods str, Instant>> {
    let turns = u32::try_from(LASTS.as_nanos() / TURN.as_nanos())?;
    let lines_a_turn = RATE / (turns / u32::try_from(LASTS.as_secs())?);
    let turns_a_pod = turns / u32::try_from(planted.len())?;
    let mut written = HashMap::new();
    let start = Instant::now();
    for turn in 0..turns {
        let here = usize::try_from(turn / turns_a_pod).ok().and_then(|index| planted.get(index));
        if turn % turns_a_pod == 0
            && let Some(Planted { pod, opened: true, .. }) = here
        {
            File::open(pod.volume().join("token")).context("could not open a token")?;
        }
        let asking = here.filter(|_| turn % turns_a_pod == TURNS_TO_REQUEST);
        // Somewhere among the others' lines.
        let place = turn / turns_a_pod % lines_a_turn;
        crowd.turn();
        for number in 0..lines_a_turn {
            if let Some(planted) = asking.filter(|_| number == place) {
                let began = log.append(planted.line()?.as_bytes())?;
                written.insert(planted.pod.uid.as_str(), began);
            }
            log.append(crowd.next_line())?;
        }
        // What was late is made up for.
        thread::sleep((start + TURN * (turn + 1)).saturating_duration_since(Instant::now()));
    }
    Ok(written)
}

/// From the write of each line to the alert about its pod, milliseconds.
pub(super) fn latencies(
    mut written: HashMap<&str, Instant>,
    alerts: &Receiver<(Instant, Value)>,
) -> Result<Vec<f64>> {
    let (all, mut latencies) = (written.len(), Vec::new());
    while !written.is_empty() {
        let (seen, alert) = alerts
            .recv_timeout(PATIENCE)
            .with_context(|| format!("{} of {all} alerts did not come", written.len()))?;
        let pod = alert.pointer("/orchestrator/resource/id").and_then(Value::as_str);
        let began = pod.and_then(|uid| written.remove(uid));
        let began = began.with_context(|| format!("nothing asked for this alert: {alert}"))?;
        latencies.push((seen - began).as_secs_f64() * 1e3);
    }
    Ok(latencies)
}
