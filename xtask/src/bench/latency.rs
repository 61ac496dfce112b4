//! From the write of an audit line to the alert line that a log shipper can read, over 1,000
//! alerts. Each is a real join: one pod, one open of its token on the node (by this process, so
//! the grade is `outside`), one request.

use std::{
    fs::File,
    io::Read as _,
    os::fd::OwnedFd,
    path::Path,
    sync::mpsc::{self, Receiver},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};
use jiff::Timestamp;
use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    fs::inotify::{CreateFlags, WatchFlags, add_watch, init},
    io::Errno,
};
use serde_json::Value;
use tokentrail_tests::{AgentSetup, AuditLine, AuditLog, PATIENCE, Pod, Request, Sandbox, Stage};

use crate::{
    bench::report::{Row, quantile},
    shell::announce,
};

/// Pods whose tokens are opened beside one agent: what a large node runs.
const PODS: usize = 200;
/// Agents, one after the other: a pod's later requests join its incident without an alert.
const AGENTS: usize = 5;

/// Between an open and its request's line, and again before the next open: a request's way to the
/// API server and into its log takes longer. Together with the agent's own clock of one second it
/// spreads the lines over all that the agent does besides.
const PAUSE: Duration = Duration::from_millis(7);

/// Measures.
///
/// # Errors
/// If the agent does not start, or an alert does not come or is of another pod.
pub(crate) fn measure() -> Result<Vec<Row>> {
    announce(format_args!("latency: {AGENTS} times {PODS} pods, an alert for each"));
    let mut alerts = Vec::new();
    for _ in 0..AGENTS {
        alerts.extend(alerts_of_one_agent()?);
    }
    let until_line: Vec<f64> = alerts.iter().map(|alert| alert.until_line_ms).collect();
    let until_created: Vec<f64> = alerts.iter().map(|alert| alert.until_created_ms).collect();
    let [p50, p99, all] = [0.5, 0.99, 1.0].map(|share| quantile(&until_line, share));
    let made = quantile(&until_created, 0.5);
    let millis = |value: f64| format!("{value:.3} ms");
    Ok(vec![
        Row::new("50 % of alerts within", millis(p50)).at_most(p50, 1.0, "ms"),
        Row::new("99 % of alerts within", millis(p99)).at_most(p99, 5.0, "ms"),
        Row::new("all alerts within", millis(all)),
        Row::new("50 % by their own event.created", millis(made)),
    ])
}

/// How long after the audit line's write began an alert was there.
struct Latency {
    /// Until a reader of the alert log had the whole line.
    until_line_ms: f64,
    /// Until the time that the alert itself says it was made at: a cross-check.
    until_created_ms: f64,
}

fn alerts_of_one_agent() -> Result<Vec<Latency>> {
    let sandbox = Sandbox::create()?;
    let pods: Vec<Pod> = (0..PODS).map(|_| Pod::create(&sandbox)).collect::<Result<_>>()?;
    let audit = AuditLog::create(sandbox.folder().join("audit.log"))?;
    let setup = AgentSetup::new(&sandbox, audit.path());
    let agent = setup.start()?;
    let mut log = AlertLines::follow(setup.alerts().path())?;
    let mut latencies = Vec::new();
    for pod in &pods {
        File::open(pod.volume().join("token")).context("could not open a token")?;
        thread::sleep(PAUSE);
        let line = AuditLine::recorded(Request::ListPods, Stage::ResponseComplete, pod)?;
        let wall = Timestamp::now();
        let written = audit.append(&line)?;
        let (seen, alert) = log.next_joined().with_context(|| {
            format!("no alert for a request; the agent wrote:\n{}", agent.log())
        })?;
        latencies.push(Latency {
            until_line_ms: (seen - written).as_secs_f64() * 1e3,
            until_created_ms: created(&alert, pod)?.duration_since(wall).as_secs_f64() * 1e3,
        });
        thread::sleep(PAUSE);
    }
    agent.terminate()?;
    sandbox.close()?;
    Ok(latencies)
}

/// When an alert was made, if it is the one about this pod's token.
fn created(alert: &Value, pod: &Pod) -> Result<Timestamp> {
    let text = |pointer| alert.pointer(pointer).and_then(Value::as_str).unwrap_or_default();
    ensure!(
        text("/tokentrail/kind") == "alert" && text("/orchestrator/resource/id") == pod.uid,
        "this is no alert about pod {}: {alert}",
        pod.uid
    );
    text("/event/created").parse().context("an alert has no event.created")
}

/// The alert log as a shipper follows it: woken up by each write.
pub(super) struct AlertLines {
    file: File,
    writes: OwnedFd,
    read: Vec<u8>,
}

impl AlertLines {
    /// From the log's beginning.
    pub(super) fn follow(path: &Path) -> Result<Self> {
        let file = File::open(path).with_context(|| format!("could not open {path:?}"))?;
        let writes = init(CreateFlags::NONBLOCK | CreateFlags::CLOEXEC)?;
        add_watch(&writes, path, WatchFlags::MODIFY)
            .with_context(|| format!("could not watch {path:?}"))?;
        Ok(Self { file, writes, read: Vec::new() })
    }

    /// The next alert about an open and a request: the opens here are also told by themselves.
    pub(super) fn next_joined(&mut self) -> Result<(Instant, Value)> {
        loop {
            let (seen, document) = self.next()?;
            let is = |pointer, text| document.pointer(pointer).is_some_and(|it| *it == text);
            if is("/tokentrail/kind", "alert") && is("/rule/name", "token-access-then-api-request")
            {
                return Ok((seen, document));
            }
        }
    }

    /// What [`Self::next_joined`] gives, as it comes.
    pub(super) fn in_background(mut self) -> Receiver<(Instant, Value)> {
        let (sender, seen) = mpsc::channel();
        thread::spawn(move || {
            while let Ok(alert) = self.next_joined() {
                if sender.send(alert).is_err() {
                    break;
                }
            }
        });
        seen
    }

    /// The next line, and when all of it could be read.
    pub(super) fn next(&mut self) -> Result<(Instant, Value)> {
        let deadline = Timespec { tv_sec: PATIENCE.as_secs().cast_signed(), tv_nsec: 0 };
        loop {
            self.file.read_to_end(&mut self.read)?;
            if let Some(end) = self.read.iter().position(|byte| *byte == b'\n') {
                let seen = Instant::now();
                let line: Vec<u8> = self.read.drain(..=end).collect();
                return Ok((seen, serde_json::from_slice(&line)?));
            }
            if poll(&mut [PollFd::new(&self.writes, PollFlags::IN)], Some(&deadline))? == 0 {
                bail!("nothing came within {PATIENCE:?}");
            }
            // Which events does not matter: the file tells what was written.
            let mut events = [0; 4096];
            match rustix::io::read(&self.writes, &mut events) {
                Ok(_) | Err(Errno::AGAIN) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }
}
