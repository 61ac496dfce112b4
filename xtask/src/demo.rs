//! `cargo xtask demo`: the product at work on this machine's kernel, in two acts.
//!
//! Act 1: somebody in a container reads its token at a terminal, then the API server logs a
//! request of that pod: there must be an alert. Act 2: another pod's workload reads its own token
//! and makes its own request: there must be none. Everything is undone whatever happens.

use std::{
    process::ExitStatus,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};
use serde_json::Value;
use tokentrail_tests::{
    Agent, AgentSetup, AuditLine, AuditLog, Container, Pod, Request, Sandbox, Stage, TOKEN_PATH,
    machine::obstacle_to_containers,
};

use crate::{
    build, debian,
    shell::{program, read, say},
};

pub(crate) mod cluster;

/// The rule that act 1 is about.
const RULE: &str = "token-access-then-api-request";

/// Builds, plays both acts and cleans up.
///
/// # Errors
/// If something is missing, or an act went otherwise than it must.
pub(crate) fn run() -> Result<()> {
    build::run()?;
    debian::install(&[debian::RUNC, debian::BUSYBOX])?;
    if let Some(obstacle) = obstacle_to_containers() {
        bail!("the demo starts real containers and a sensor in the kernel: {obstacle}");
    }
    let start = Instant::now();
    let sandbox = Sandbox::create()?;
    let log = AuditLog::create(sandbox.folder().join("audit.log"))?;
    let setup = AgentSetup::new(&sandbox, log.path());
    say("\n$ tokentrail run --audit-log audit.log --no-kube …");
    let agent = setup.start()?;
    say(format_args!("  ready after {}", milliseconds(start.elapsed())));

    let stage = Scene { sandbox: &sandbox, setup: &setup, agent: &agent, log: &log };
    stage.act_one()?;
    stage.act_two()?;

    let status = agent.terminate()?;
    ensure!(stopped_well(status), "the agent did not stop as it must on SIGTERM: {status}");
    sandbox.close().context("the demo did not clean up after itself")?;
    say(format_args!(
        "\nBoth acts went as they must, in {:.1} s; containers, cgroups and mounts are gone.",
        start.elapsed().as_secs_f64()
    ));
    Ok(())
}

/// What both acts are played with.
struct Scene<'demo> {
    sandbox: &'demo Sandbox,
    setup: &'demo AgentSetup<'demo>,
    agent: &'demo Agent,
    log: &'demo AuditLog,
}

impl Scene<'_> {
    fn act_one(&self) -> Result<()> {
        say("\n━━ Act 1: a token is read by hand, then used");
        let (pod, container) = self.container()?;
        say(format_args!("$ kubectl exec -it {} -- sh\n/ # cat {TOKEN_PATH}", pod.name));
        let (alert, latency) = self.read_by_hand_and_use(&pod, &container)?;
        let rule = text(&alert, "/rule/name");
        ensure!(rule == RULE, "the alert is of rule {rule:?}, not {RULE}");
        say("$ tokentrail alerts");
        let shown = read(
            program(build::agent())
                .arg("alerts")
                .arg(self.setup.alerts().path())
                .args(["--last", "1"]),
        )?;
        shown.lines().for_each(|line| say(format_args!("  {line}")));
        say(format_args!("\n  {RULE}: {} from audit write to alert line", milliseconds(latency)));
        Ok(())
    }

    fn act_two(&self) -> Result<()> {
        say("\n━━ Act 2: a workload reads its own token and uses it");
        let (pod, container) = self.container()?;
        let seen = ("tokentrail_attribution_opens_total", ["grade=\"workload\""]);
        let before = self.agent.metric(seen.0, &seen.1)?;
        let deed = container.workload(&format!("cat {TOKEN_PATH}"))?;
        ensure!(deed.output == pod.token, "the workload could not read its token: {deed:?}");
        say(format_args!("  {}: its main process read the token, without a terminal", pod.name));
        // Without this, silence could mean that the sensor is blind.
        self.agent.wait_for_metric(seen.0, &seen.1, before + 1.0)?;
        say("  the sensor saw that read and graded it `workload`");
        self.log.append(&request_of(&pod)?)?;
        say(format_args!("  the API server logged a request of {}", pod.name));

        // Requests are handled in the order of the log: when the alert of a third pod is there,
        // whatever the second one's request led to is there too.
        let (third, container) = self.container()?;
        self.read_by_hand_and_use(&third, &container)?;
        let wrong = self.setup.alerts().matching(|alert| is_of(alert, &pod))?;
        ensure!(wrong.is_empty(), "the workload's own read must not alert: {wrong:?}");
        say(
            "  no alert for it (a later read by hand in a third pod did alert: nothing is pending)",
        );
        Ok(())
    }

    fn container(&self) -> Result<(Pod, Container)> {
        let pod = Pod::create(self.sandbox)?;
        let container = Container::start(self.sandbox, &pod)?;
        Ok((pod, container))
    }

    /// Reads the token at a terminal and logs a request of the pod; returns the alert, and how
    /// long after the write of the audit line its line was there.
    fn read_by_hand_and_use(&self, pod: &Pod, container: &Container) -> Result<(Value, Duration)> {
        self.log.append(&AuditLine::session(pod)?)?;
        let shown = container.exec_tty(&["sh", "-c", &format!("cat {TOKEN_PATH}; true")])?;
        ensure!(shown.output == pod.token, "the token could not be read: {shown:?}");
        let written = self.log.append(&request_of(pod)?)?;
        let alert = self
            .setup
            .alerts()
            .wait_for(&format!("there is an alert for {}", pod.name), |alert| is_of(alert, pod))
            .with_context(|| format!("the agent wrote:\n{}", self.agent.log()))?;
        Ok((alert, written.elapsed()))
    }
}

/// The line that a kube-apiserver wrote when a pod read a Secret, as if this pod did now.
fn request_of(pod: &Pod) -> Result<AuditLine> {
    AuditLine::recorded(Request::GetSecret, Stage::ResponseComplete, pod)
}

fn is_of(alert: &Value, pod: &Pod) -> bool {
    text(alert, "/orchestrator/resource/id") == pod.uid
}

fn text<'value>(value: &'value Value, pointer: &str) -> &'value str {
    value.pointer(pointer).and_then(Value::as_str).unwrap_or_default()
}

fn stopped_well(status: ExitStatus) -> bool {
    status.code() == Some(0)
}

fn milliseconds(time: Duration) -> String {
    format!("{:.1} ms", time.as_secs_f64() * 1000.0)
}
