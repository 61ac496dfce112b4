//! Memory and CPU of an agent that is ready and has nothing to do.

use std::{
    fs, thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};
use tokentrail_tests::{AgentSetup, AuditLog, Sandbox};

use crate::{bench::report::Row, shell::announce};

/// How long it is watched: many turns of its clock of one second.
pub(super) const REST: Duration = Duration::from_secs(20);

/// Measures.
///
/// # Errors
/// If the agent does not start or ends.
pub(crate) fn measure() -> Result<Vec<Row>> {
    let sandbox = Sandbox::create()?;
    let audit = AuditLog::create(sandbox.folder().join("audit.log"))?;
    let agent = AgentSetup::new(&sandbox, audit.path()).start()?;
    announce(format_args!("rest: an agent left alone for {} s", REST.as_secs()));
    let (before, start) = (cpu_seconds(agent.pid())?, Instant::now());
    thread::sleep(REST);
    let share = (cpu_seconds(agent.pid())? - before) / start.elapsed().as_secs_f64() * 100.0;
    let resident = resident_mb(agent.pid())?;
    agent.terminate()?;
    sandbox.close()?;
    Ok(vec![
        Row::new("resident memory", format!("{resident:.1} MB")).at_most(resident, 25.0, "MB"),
        Row::new("CPU", format!("{share:.2} %")).at_most(share, 0.2, "% of one core"),
    ])
}

/// CPU time of all threads that a process has. The sum that `/proc/<pid>/stat` keeps is in
/// hundredths of a second, a quarter of what is allowed here.
pub(super) fn cpu_seconds(pid: u32) -> Result<f64> {
    let mut nanos = 0;
    for thread in fs::read_dir(format!("/proc/{pid}/task"))? {
        let path = thread?.path().join("schedstat");
        let text = fs::read_to_string(&path).with_context(|| format!("could not read {path:?}"))?;
        // Time on a CPU, time waiting for one, time slices.
        let on_cpu = text.split(' ').next().unwrap_or_default();
        nanos += on_cpu.parse::<u64>().with_context(|| format!("{path:?} has no times"))?;
    }
    Ok(Duration::from_nanos(nanos).as_secs_f64())
}

pub(super) fn resident_mb(pid: u32) -> Result<f64> {
    memory_mb(pid, "VmRSS:")
}

/// The most that it ever had.
pub(super) fn peak_mb(pid: u32) -> Result<f64> {
    memory_mb(pid, "VmHWM:")
}

fn memory_mb(pid: u32, field: &str) -> Result<f64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
    let kib: u32 = status
        .lines()
        .find_map(|line| line.strip_prefix(field)?.trim().strip_suffix(" kB"))
        .with_context(|| format!("/proc/<pid>/status has no {field}"))?
        .parse()?;
    Ok(f64::from(kib) * 1024.0 / 1e6)
}
