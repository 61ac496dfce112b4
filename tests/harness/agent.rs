//! The program under test: started with the flags that scripts may count on, watched until it is
//! ready, asked over HTTP, and ended in all the ways in which agents end.

use std::{
    env,
    ffi::OsString,
    fs::{self, File},
    io::Write as _,
    net::{Ipv4Addr, SocketAddr, TcpListener},
    path::{Path, PathBuf},
    process::{Command, ExitStatus, Stdio},
    time::Duration,
};

use anyhow::{Context as _, Result, bail};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

use crate::{
    NODE_NAME,
    alerts::Alerts,
    sandbox::{Process, Sandbox},
    wait::{PATIENCE, wait_until},
};

/// How to run the agent: files and flags, the same at every start.
pub struct AgentSetup<'sandbox> {
    sandbox: &'sandbox Sandbox,
    audit_log: Option<PathBuf>,
    node_name: String,
    alerts: Alerts,
    state_dir: PathBuf,
    arguments: Vec<OsString>,
    environment: Vec<(OsString, OsString)>,
    kubeconfig: Option<PathBuf>,
    stdin: bool,
}

impl<'sandbox> AgentSetup<'sandbox> {
    /// With all its files in the sandbox, following this audit log.
    pub fn new(sandbox: &'sandbox Sandbox, audit_log: impl Into<PathBuf>) -> Self {
        Self {
            sandbox,
            audit_log: Some(audit_log.into()),
            node_name: NODE_NAME.to_owned(),
            alerts: Alerts::at(sandbox.folder().join("alerts.ndjson")),
            state_dir: sandbox.folder().join("state"),
            arguments: Vec::new(),
            environment: Vec::new(),
            kubeconfig: None,
            stdin: false,
        }
    }

    /// With standard input as its audit log, a pipe to be written to by [`Agent::feed`].
    #[must_use]
    pub fn reading_stdin(mut self) -> Self {
        self.stdin = true;
        self.audit_log = Some("-".into());
        self
    }

    /// Without an audit log of its own.
    #[must_use]
    pub fn without_audit_log(mut self) -> Self {
        self.audit_log = None;
        self
    }

    /// On a node of this name.
    #[must_use]
    pub fn node_name(mut self, name: &str) -> Self {
        name.clone_into(&mut self.node_name);
        self
    }

    /// With further arguments of `tokentrail run`.
    #[must_use]
    pub fn args<A: Into<OsString>>(mut self, arguments: impl IntoIterator<Item = A>) -> Self {
        self.arguments.extend(arguments.into_iter().map(Into::into));
        self
    }

    /// With a variable in its environment.
    #[must_use]
    pub fn env(mut self, name: impl Into<OsString>, value: impl Into<OsString>) -> Self {
        self.environment.push((name.into(), value.into()));
        self
    }

    /// With a Kubernetes API; else there is none.
    #[must_use]
    pub fn kubeconfig(mut self, path: impl Into<PathBuf>) -> Self {
        self.kubeconfig = Some(path.into());
        self
    }

    /// With another alert log.
    #[must_use]
    pub fn alert_log(mut self, path: impl Into<PathBuf>) -> Self {
        self.alerts = Alerts::at(path);
        self
    }

    /// With another state directory.
    #[must_use]
    pub fn state(mut self, folder: impl Into<PathBuf>) -> Self {
        self.state_dir = folder.into();
        self
    }

    /// The alert log that it writes.
    pub fn alerts(&self) -> &Alerts {
        &self.alerts
    }

    /// The folder of its journal and checkpoints.
    pub fn state_dir(&self) -> &Path {
        &self.state_dir
    }

    /// Starts it and waits until it says that it is ready.
    ///
    /// # Errors
    /// If it does not start, ends, or is not ready in time; with what it wrote to stderr.
    pub fn start(&self) -> Result<Agent> {
        let mut agent = self.spawn()?;
        agent.wait_until_ready()?;
        Ok(agent)
    }

    /// Starts it and returns at once.
    ///
    /// # Errors
    /// If there is no agent or it cannot be started.
    pub fn spawn(&self) -> Result<Agent> {
        let admin = free_address()?;
        // Each start has a file of its own: a test may want to read what an earlier one said.
        let log = tempfile::Builder::new()
            .prefix("agent-")
            .suffix(".log")
            .tempfile_in(self.sandbox.folder())?
            .into_temp_path()
            .keep()?;
        let stderr = File::create(&log)?;
        let mut command = tokentrail();
        command
            .arg("run")
            .args(self.audit_log.iter().flat_map(|it| ["--audit-log".as_ref(), it.as_os_str()]))
            .arg("--alert-log")
            .arg(self.alerts.path())
            .arg("--state-dir")
            .arg(&self.state_dir)
            .args(["--admin-listen", &admin.to_string()])
            .arg("--kubelet-root")
            .arg(self.sandbox.kubelet_root())
            .args(["--node-name", &self.node_name])
            .args(&self.arguments)
            .envs(self.environment.iter().map(|(name, value)| (name, value)))
            .stdin(if self.stdin { Stdio::piped() } else { Stdio::null() })
            .stdout(stderr.try_clone()?)
            .stderr(stderr);
        match &self.kubeconfig {
            Some(path) => command.arg("--kubeconfig").arg(path),
            None => command.arg("--no-kube"),
        };
        let process = self
            .sandbox
            .ledger()
            .spawn(&mut command)
            .context("there is no agent to run; `cargo xtask build` makes it")?;
        Ok(Agent { process, admin, log })
    }
}

/// A running agent. Dropping it kills it.
pub struct Agent {
    process: Process,
    admin: SocketAddr,
    log: PathBuf,
}

/// An answer of its HTTP side.
#[derive(Clone, Debug)]
pub struct Answer {
    /// HTTP status code.
    pub status: u16,
    /// The body.
    pub body: String,
}

impl Agent {
    /// Waits until `/readyz` answers 200.
    ///
    /// # Errors
    /// If the agent ends or does not get ready in time.
    pub fn wait_until_ready(&mut self) -> Result<()> {
        wait_until(PATIENCE, "the agent is ready", || {
            if let Some(status) = self.process.child.try_wait()? {
                bail!("the agent ended ({status})");
            }
            // Until it listens, there is no answer at all.
            Ok(self.get("/readyz").ok().filter(|answer| answer.status == 200).map(drop))
        })
        .with_context(|| format!("the agent wrote:\n{}", self.log()))
    }

    /// Writes to its standard input.
    ///
    /// # Errors
    /// If it reads none, or does not any more.
    pub fn feed(&mut self, text: &str) -> Result<()> {
        let stdin = self.process.child.stdin.as_mut().context("the agent reads no input")?;
        Ok(stdin.write_all(text.as_bytes())?)
    }

    /// Ends its standard input.
    pub fn end_input(&mut self) {
        self.process.child.stdin = None;
    }

    /// Asks its HTTP side.
    ///
    /// # Errors
    /// If there is no answer; any status is one.
    pub fn get(&self, path: &str) -> Result<Answer> {
        http_get(&format!("http://{}{path}", self.admin))
    }

    /// What `/statusz` says.
    ///
    /// # Errors
    /// If it does not answer, or with something else.
    pub fn status(&self) -> Result<Value> {
        let body = self.get("/statusz")?.body;
        serde_json::from_str(&body).with_context(|| format!("/statusz is no JSON: {body}"))
    }

    /// Sum of a metric's samples, over all label sets that have every one of `labels` (each
    /// written `name="value"`); 0 if there is none.
    ///
    /// # Errors
    /// If `/metrics` does not answer.
    pub fn metric(&self, name: &str, labels: &[&str]) -> Result<f64> {
        Ok(sum_of_samples(&self.get("/metrics")?.body, name, labels))
    }

    /// Waits until a metric is at least `least`: a positive sign that something was processed.
    ///
    /// # Errors
    /// If it is not in time.
    pub fn wait_for_metric(&self, name: &str, labels: &[&str], least: f64) -> Result<f64> {
        wait_until(PATIENCE, &format!("{name}{labels:?} is at least {least}"), || {
            // Until it listens, there is no answer at all.
            Ok(self.metric(name, labels).ok().filter(|value| *value >= least))
        })
        .with_context(|| format!("the agent wrote:\n{}", self.log()))
    }

    /// The most memory that it ever had, bytes (`VmHWM`).
    ///
    /// # Errors
    /// If it has ended.
    pub fn peak_memory(&self) -> Result<u64> {
        let status = fs::read_to_string(format!("/proc/{}/status", self.pid()))?;
        let kilobytes = status
            .lines()
            .find_map(|line| line.strip_prefix("VmHWM:")?.trim().strip_suffix(" kB"))
            .with_context(|| format!("no VmHWM in {status}"))?;
        Ok(kilobytes.parse::<u64>()? * 1024)
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.process.child.id()
    }

    /// What it wrote to stderr (and stdout, where nothing is expected) so far.
    pub fn log(&self) -> String {
        let bytes = fs::read(&self.log).unwrap_or_default();
        String::from_utf8_lossy(&bytes).into_owned()
    }

    /// Ends it as an operating system does that has no time: `kill -9`.
    ///
    /// # Errors
    /// If it cannot be killed.
    pub fn kill(mut self) -> Result<()> {
        self.process.child.kill()?;
        self.process.child.wait()?;
        Ok(())
    }

    /// Ends it as the kubelet does, with SIGTERM, and waits for the exit.
    ///
    /// # Errors
    /// If it does not end in time.
    pub fn terminate(mut self) -> Result<ExitStatus> {
        kill_process(Pid::from_child(&self.process.child), Signal::TERM)?;
        self.exit_status()
    }

    /// Waits for its end, where it is to end by itself.
    ///
    /// # Errors
    /// If it does not end in time.
    pub fn wait(mut self) -> Result<(ExitStatus, String)> {
        let status = self.exit_status()?;
        Ok((status, self.log()))
    }

    fn exit_status(&mut self) -> Result<ExitStatus> {
        wait_until(PATIENCE, "the agent ends", || Ok(self.process.child.try_wait()?))
            .with_context(|| format!("the agent wrote:\n{}", self.log()))
    }
}

/// Asks an HTTP server directly; any status is an answer.
pub(crate) fn http_get(url: &str) -> Result<Answer> {
    let client = ureq::Agent::config_builder()
        .http_status_as_error(false)
        .timeout_global(Some(Duration::from_secs(10)))
        .proxy(None)
        .build()
        .new_agent();
    let mut response = client.get(url).call().with_context(|| format!("no answer from {url}"))?;
    let body = response.body_mut().read_to_string()?;
    Ok(Answer { status: response.status().as_u16(), body })
}

/// A command of the program under test, for what needs no running agent.
pub fn tokentrail() -> Command {
    Command::new(agent_program())
}

/// The program under test: `TOKENTRAIL_BIN`, else what `cargo xtask build` made.
fn agent_program() -> PathBuf {
    if let Some(program) = env::var_os("TOKENTRAIL_BIN") {
        return program.into();
    }
    let workspace = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let target = env::var_os("CARGO_TARGET_DIR").unwrap_or_else(|| "target".into());
    workspace.join(target).join("release/tokentrail")
}

/// A loopback address whose port is free now.
pub(crate) fn free_address() -> Result<SocketAddr> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).context("no port is free")?;
    Ok(listener.local_addr()?)
}

/// Sums samples in the text format of Prometheus: `name{label="value",…} number`.
pub(crate) fn sum_of_samples(text: &str, name: &str, labels: &[&str]) -> f64 {
    text.lines()
        .filter_map(|line| {
            let rest = line.strip_prefix(name)?;
            let (found, value) = match rest.strip_prefix('{') {
                Some(rest) => rest.rsplit_once("} ")?,
                None => ("", rest.strip_prefix(' ')?),
            };
            let wanted = labels.iter().all(|label| found.split(',').any(|it| it == *label));
            // A timestamp may follow the value.
            wanted.then(|| value.split(' ').next()?.parse::<f64>().ok()).flatten()
        })
        .sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_metric_is_the_sum_over_the_label_sets_that_match() {
        let text = "# HELP t_lines Lines.\n# TYPE t_lines counter\n\
                    t_lines_total{source=\"file\",kind=\"kept\"} 3\n\
                    t_lines_total{source=\"file\",kind=\"skipped\"} 4 1700000000\n\
                    t_lines_total_other 9\nt_up 1\n# EOF\n";
        let cases: [(&str, &[&str], f64); 5] = [
            ("t_lines_total", &[], 7.0),
            ("t_lines_total", &["kind=\"kept\""], 3.0),
            ("t_lines_total", &["kind=\"kept\"", "source=\"nats\""], 0.0),
            ("t_up", &[], 1.0),
            ("t_missing", &[], 0.0),
        ];
        for (name, labels, expected) in cases {
            let sum = sum_of_samples(text, name, labels);
            assert!((sum - expected).abs() < f64::EPSILON, "{name}{labels:?} is {sum}");
        }
    }
}
