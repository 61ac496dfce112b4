//! A node under test: an audit log, an agent to be started and what it wrote; and the workloads on
//! it that are attacked.

use std::{fs, path::PathBuf};

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;

use crate::{
    agent::AgentSetup,
    alerts::text_at,
    audit::{AuditLine, AuditLog, Request, Stage},
    container::Container,
    pod::{Pod, TOKEN_PATH},
    sandbox::Sandbox,
    wait::{PATIENCE, wait_until},
};

/// `alert` or `incident`.
const KIND: &str = "/tokentrail/kind";
/// The rule that most scenarios are about: a token is opened, and a request follows.
pub(crate) const R1: &str = "token-access-then-api-request";
/// In what manner a token was opened.
const GRADE: &str = "/tokentrail/grade";

/// Everything that a scenario needs beside its workloads.
pub struct Node<'sandbox> {
    sandbox: &'sandbox Sandbox,
    /// What the API server writes.
    pub audit: AuditLog,
    /// The agent, to be started with all its files in the sandbox.
    pub agent: AgentSetup<'sandbox>,
    recording: PathBuf,
}

impl<'sandbox> Node<'sandbox> {
    /// With an empty audit log.
    ///
    /// # Errors
    /// If the sandbox cannot be written.
    pub fn new(sandbox: &'sandbox Sandbox) -> Result<Self> {
        let node = Self::without_audit_log(sandbox);
        AuditLog::create(node.audit.path())?;
        Ok(node)
    }

    /// Before the API server has written its first line.
    pub fn without_audit_log(sandbox: &'sandbox Sandbox) -> Self {
        let audit = AuditLog::at(sandbox.folder().join("audit.log"));
        let recording = sandbox.folder().join("opens.ndjson");
        let agent = AgentSetup::new(sandbox, audit.path())
            .args(["--record".as_ref(), recording.as_os_str()]);
        Self { sandbox, audit, agent, recording }
    }

    /// Starts a pod with one container.
    ///
    /// # Errors
    /// If it does not start.
    pub fn workload(&self) -> Result<Workload> {
        let pod = Pod::create(self.sandbox)?;
        let container = Container::start(self.sandbox, &pod)?;
        Ok(Workload { pod, container })
    }

    /// Appends that this pod listed the pods of its namespace just now, answered and allowed.
    ///
    /// # Errors
    /// If the audit log cannot be written.
    pub fn request_by(&self, pod: &Pod) -> Result<()> {
        let line = AuditLine::recorded(Request::ListPods, Stage::ResponseComplete, pod)?;
        self.audit.append(&line).map(drop)
    }

    /// The alerts of R1 (not the summaries) about this pod so far.
    ///
    /// # Errors
    /// If the alert log holds what no alert log may hold.
    pub fn alerts_about(&self, pod: &Pod) -> Result<Vec<Value>> {
        self.told(R1, "alert", pod)
    }

    /// All documents of this rule and kind about this pod so far.
    ///
    /// # Errors
    /// If the alert log holds what no alert log may hold.
    pub fn told(&self, rule: &str, kind: &str, pod: &Pod) -> Result<Vec<Value>> {
        self.agent.alerts().matching(|it| is_told_by(it, rule, kind) && is_about(it, pod))
    }

    /// The one alert about this pod so far.
    ///
    /// # Errors
    /// If there is none, or more than one.
    pub fn the_alert_about(&self, pod: &Pod) -> Result<Value> {
        let mut alerts = self.alerts_about(pod)?;
        ensure!(alerts.len() == 1, "{} alerts about {}: {alerts:#?}", alerts.len(), pod.name);
        alerts.pop().context("one was there")
    }

    /// The one alert about this pod, after all that was done so far has gone through the agent.
    ///
    /// # Errors
    /// If there is none, or more than one.
    pub fn settled_alert_about(&self, pod: &Pod) -> Result<Value> {
        self.settle()?;
        self.the_alert_about(pod)
    }

    /// Waits for a document of R1 of this kind about this pod.
    ///
    /// # Errors
    /// If none comes.
    pub fn wait_for(&self, kind: &str, pod: &Pod) -> Result<Value> {
        self.wait_for_rule(R1, kind, pod)
    }

    /// Waits for a document of this rule and kind about this pod.
    ///
    /// # Errors
    /// If none comes.
    pub fn wait_for_rule(&self, rule: &str, kind: &str, pod: &Pod) -> Result<Value> {
        let what = format!("the {kind} of {rule} about {} is there", pod.name);
        let alerts = self.agent.alerts();
        alerts.wait_for(&what, |it| is_told_by(it, rule, kind) && is_about(it, pod))
    }

    /// Attacks a pod made for this and waits for its alert. All opens and all audit lines of
    /// before have gone through the agent by then: both are taken in their order.
    ///
    /// # Errors
    /// If there is no alert.
    pub fn settle(&self) -> Result<()> {
        let witness = self.workload()?;
        witness.attack()?;
        self.request_by(&witness.pod)?;
        self.wait_for("alert", &witness.pod).map(drop)
    }

    /// The opens of this pod's tokens that the agent recorded so far, in their order.
    ///
    /// # Errors
    /// If the recording cannot be read.
    pub fn opens_of(&self, pod: &Pod) -> Result<Vec<Value>> {
        let text = fs::read_to_string(&self.recording)
            .with_context(|| format!("could not read {:?}", self.recording))?;
        let complete = text.rsplit_once('\n').map_or("", |(complete, _)| complete);
        let opens: Result<Vec<Value>, _> = complete.lines().map(serde_json::from_str).collect();
        let opens = opens.context("the recording has a line that is no JSON document")?;
        Ok(opens.into_iter().filter(|it| is_about(it, pod)).collect())
    }

    /// Waits until the agent has taken in all opens of before: the workload reads its own token,
    /// and that is recorded. From then on they survive the agent.
    ///
    /// # Errors
    /// If the read fails or is not recorded.
    pub fn wait_until_seen(&self, workload: &Workload) -> Result<()> {
        let of_workload = || -> Result<usize> {
            let opens = self.opens_of(&workload.pod)?;
            Ok(opens.iter().filter(|it| text_at(it, GRADE) == "workload").count())
        };
        let before = of_workload()?;
        workload.read_by_itself()?;
        wait_until(PATIENCE, "the workload's own read is recorded", || {
            Ok((of_workload()? > before).then_some(()))
        })
        .with_context(|| format!("recorded are {:#?}", self.opens_of(&workload.pod)))
    }
}

/// A pod with one running container.
pub struct Workload {
    /// The pod.
    pub pod: Pod,
    /// Its container.
    pub container: Container,
}

impl Workload {
    /// Reads the token as somebody does who has a shell in the container.
    ///
    /// # Errors
    /// If it cannot be read.
    pub fn attack(&self) -> Result<()> {
        let read = self.container.exec_tty(&["cat", TOKEN_PATH])?;
        ensure!(read.output.contains(&self.pod.token), "the token was not read: {read:?}");
        Ok(())
    }

    /// Reads the token as the workload's own code does.
    ///
    /// # Errors
    /// If it cannot be read.
    pub fn read_by_itself(&self) -> Result<()> {
        let read = self.container.workload(&format!("cat {TOKEN_PATH}"))?;
        ensure!(read.output == self.pod.token, "the token was not read: {read:?}");
        Ok(())
    }
}

fn is_told_by(document: &Value, rule: &str, kind: &str) -> bool {
    text_at(document, "/rule/id") == rule && text_at(document, KIND) == kind
}

fn is_about(document: &Value, pod: &Pod) -> bool {
    text_at(document, "/orchestrator/resource/id") == pod.uid
}
