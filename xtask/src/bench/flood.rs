//! What somebody who opens a token as fast as it goes costs the agent: one process in a loop, and one
//! new process after the other. They are of the host, so each is told of.

use std::{
    io::Read as _,
    path::Path,
    process::Stdio,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};
use tokentrail_tests::{Agent, AgentSetup, AuditLog, Pod, Sandbox};

use super::{report::Row, rest::cpu_seconds};
use crate::shell::{announce, program};

/// How long each is watched: some turns of the agent's clock of one second.
const LASTS: Duration = Duration::from_secs(10);

/// Measures, with the helper of `bench opens`.
///
/// # Errors
/// If the agent or the flood does not start or ends.
pub(super) fn measure(helper: &Path, cpu: usize) -> Result<Vec<Row>> {
    announce(format_args!("flood: twice {} s of opens of one token", LASTS.as_secs()));
    let sandbox = Sandbox::create()?;
    let pod = Pod::create(&sandbox)?;
    let audit = AuditLog::create(sandbox.folder().join("audit.log"))?;
    let agent = AgentSetup::new(&sandbox, audit.path()).start()?;
    let mut rows = Vec::new();
    for (mode, name) in [("flood", "a process that floods"), ("crowd", "processes that flood")] {
        let (rate, share) = flood(helper, mode, cpu, &pod.volume().join("token"), &agent)?;
        rows.push(Row::new(format!("{name}, opens"), format!("{rate:.0} /s")));
        let row = Row::new(format!("{name}, CPU of the agent"), format!("{share:.2} %"));
        rows.push(row.at_most(share, 5.0, "% of one core"));
    }
    for reason in ["flood", "ring_full"] {
        let lost =
            agent.metric("tokentrail_kernel_lost_total", &[&format!("reason=\"{reason}\"")])?;
        rows.push(Row::new(format!("opens lost, {reason}"), format!("{lost:.0}")));
    }
    agent.terminate()?;
    sandbox.close()?;
    Ok(rows)
}

/// Opens a second, and the agent's share of one core meanwhile, percent.
fn flood(helper: &Path, mode: &str, cpu: usize, token: &Path, agent: &Agent) -> Result<(f64, f64)> {
    let mut command = program(helper);
    command.arg(mode).arg(cpu.to_string()).arg(token);
    let (before, start) = (cpu_seconds(agent.pid())?, Instant::now());
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
    thread::sleep(LASTS);
    let (took, used) = (start.elapsed().as_secs_f64(), cpu_seconds(agent.pid())? - before);
    // The end of its input ends it, also should this process be killed.
    drop(child.stdin.take());
    let mut printed = String::new();
    child.stdout.take().context("the flood has no output")?.read_to_string(&mut printed)?;
    child.wait()?;
    let opens: f64 = printed.trim().parse().with_context(|| format!("it printed {printed:?}"))?;
    Ok((opens / took, used / took * 100.0))
}
