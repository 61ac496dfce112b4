//! Memory and CPU of an agent that is ready and has nothing to do.

use std::{
    fs, thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};
use rustix::param::clock_ticks_per_second;
use tokentrail_tests::{AgentSetup, AuditLog, Sandbox};

use crate::{bench::report::Row, shell::announce};

/// How long it is watched. The kernel counts CPU time in hundredths of a second: 0.05 % of this.
const REST: Duration = Duration::from_secs(20);

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

/// User and system time of all threads that a process has or had.
fn cpu_seconds(pid: u32) -> Result<f64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat"))?;
    // The name in parentheses may hold anything; times are fields 14 and 15, the state is 3.
    let (_, fields) = stat.rsplit_once(')').context("/proc/<pid>/stat has no name")?;
    let ticks: u32 = fields
        .split_whitespace()
        .skip(11)
        .take(2)
        .map(str::parse::<u32>)
        .sum::<Result<_, _>>()
        .context("/proc/<pid>/stat has no times")?;
    let per_second = u32::try_from(clock_ticks_per_second())?;
    Ok(f64::from(ticks) / f64::from(per_second))
}

fn resident_mb(pid: u32) -> Result<f64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
    let kib: u32 = status
        .lines()
        .find_map(|line| line.strip_prefix("VmRSS:")?.trim().strip_suffix(" kB"))
        .context("/proc/<pid>/status has no VmRSS")?
        .parse()?;
    Ok(f64::from(kib) * 1024.0 / 1e6)
}
