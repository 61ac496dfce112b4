//! From the write of an audit line to the alert line that a log shipper can read, over 1,000
//! alerts. Each is a real join: one pod, one open of its token on the node (by this process, so
//! the grade is `outside`), one request.

use std::{
    fs::File,
    io::Read as _,
    os::fd::OwnedFd,
    path::Path,
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

const ALERTS: usize = 1000;

/// Between an open and its request's line, and again before the next open: a request's way to the
/// API server and into its log takes longer. Together with the agent's own clock of one second it
/// spreads the lines over all that the agent does besides.
const PAUSE: Duration = Duration::from_millis(7);

/// Measures.
///
/// # Errors
/// If the agent does not start, or an alert does not come or is of another pod.
pub(crate) fn measure() -> Result<Vec<Row>> {
    let sandbox = Sandbox::create()?;
    announce(format_args!("latency: {ALERTS} pods with a token volume each"));
    let pods: Vec<Pod> = (0..ALERTS).map(|_| Pod::create(&sandbox)).collect::<Result<_>>()?;
    let audit = AuditLog::create(sandbox.folder().join("audit.log"))?;
    let setup = AgentSetup::new(&sandbox, audit.path());
    let agent = setup.start()?;
    let mut alerts = AlertLines::follow(setup.alerts().path())?;
    announce(format_args!("latency: {ALERTS} alerts"));
    let mut until_line = Vec::new();
    let mut until_created = Vec::new();
    for pod in &pods {
        File::open(pod.volume().join("token")).context("could not open a token")?;
        thread::sleep(PAUSE);
        let line = AuditLine::recorded(Request::ListPods, Stage::ResponseComplete, pod)?;
        let wall = Timestamp::now();
        let written = audit.append(&line)?;
        let (seen, alert) = alerts.next().with_context(|| {
            format!("no alert for a request; the agent wrote:\n{}", agent.log())
        })?;
        until_line.push((seen - written).as_secs_f64() * 1e3);
        until_created.push(created(&alert, pod)?.duration_since(wall).as_secs_f64() * 1e3);
        thread::sleep(PAUSE);
    }
    agent.terminate()?;
    sandbox.close()?;
    let millis = |values: &[f64], share: f64| format!("{:.3} ms", quantile(values, share));
    let p50 = quantile(&until_line, 0.5);
    let p99 = quantile(&until_line, 0.99);
    Ok(vec![
        Row::new("half of all alerts within", millis(&until_line, 0.5)).at_most(p50, 1.0, "ms"),
        Row::new("99 % within", millis(&until_line, 0.99)).at_most(p99, 5.0, "ms"),
        Row::new("all within", millis(&until_line, 1.0)),
        Row::new("half of all by their own event.created", millis(&until_created, 0.5)),
    ])
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
struct AlertLines {
    file: File,
    writes: OwnedFd,
    read: Vec<u8>,
}

impl AlertLines {
    /// From the log's beginning.
    fn follow(path: &Path) -> Result<Self> {
        let file = File::open(path).with_context(|| format!("could not open {path:?}"))?;
        let writes = init(CreateFlags::NONBLOCK | CreateFlags::CLOEXEC)?;
        add_watch(&writes, path, WatchFlags::MODIFY)
            .with_context(|| format!("could not watch {path:?}"))?;
        Ok(Self { file, writes, read: Vec::new() })
    }

    /// The next line, and when all of it could be read.
    fn next(&mut self) -> Result<(Instant, Value)> {
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
