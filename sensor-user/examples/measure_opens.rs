//! The optimised half of `cargo xtask bench`, which runs it; nobody else does.
//!
//! * `measure_opens empty ROUTE` attaches the program that does nothing to a route's hooks, says
//!   `attached` and holds it until standard input ends.
//! * `measure_opens others` prints how many tracing programs are loaded.
//! * `measure_opens loop CPU FILE` prints what one open+close of the file costs, then of a file on
//!   tmpfs, then one other system call: nanoseconds, a line each.
//!
//! It attaches or it measures, never both in one process: what is measured is any process of the
//! machine, not the sensor's own.

use std::{
    env,
    ffi::CString,
    hint::black_box,
    io::{self, Write as _},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};
use rustix::{
    fs::{CWD, Mode, OFlags, openat},
    process::getppid,
    thread::{CpuSet, sched_setaffinity},
};
use tokentrail::kernel::{
    bench::{attach_empty, tracing_programs},
    route_name,
};
use tokentrail_ebpf::Route;

/// Calls between two looks at the clock: long against the clock's own cost, short enough that
/// most batches run without an interruption.
const BATCH: u32 = 200;
/// How long one call is repeated before it is measured, and then while it is.
const WARM_UP: Duration = Duration::from_millis(50);
const MEASURE: Duration = Duration::from_millis(250);

fn main() -> Result<()> {
    let arguments: Vec<String> = env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match words.as_slice() {
        ["empty", route] => hold_empty(route),
        ["others"] => Ok(writeln!(io::stdout(), "{}", tracing_programs())?),
        ["loop", cpu, file] => measure(cpu.parse()?, file),
        _ => bail!("run me as `empty ROUTE`, `others` or `loop CPU FILE`"),
    }
}

fn hold_empty(name: &str) -> Result<()> {
    let route = [Route::Fexit, Route::Kprobe, Route::Exit]
        .into_iter()
        .find(|route| route_name(*route) == name)
        .with_context(|| format!("{name} is no route"))?;
    let _attached = attach_empty(route)?;
    writeln!(io::stdout(), "attached")?;
    io::copy(&mut io::stdin(), &mut io::sink())?;
    Ok(())
}

fn measure(cpu: usize, ordinary: &str) -> Result<()> {
    let mut one = CpuSet::new();
    one.set(cpu);
    sched_setaffinity(None, &one).with_context(|| format!("could not run on CPU {cpu} alone"))?;
    let on_tmpfs = tempfile::Builder::new()
        .prefix("tokentrail-")
        .tempfile_in("/dev/shm")
        .context("could not make a file on tmpfs")?;
    let tmpfs_path = on_tmpfs.path().to_string_lossy();
    for file in [ordinary, &*tmpfs_path] {
        let path = CString::new(file)?;
        let nanos = median_ns(|| {
            // What C libraries make of `open`; dropping the descriptor closes it.
            openat(CWD, path.as_c_str(), OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty()).map(drop)
        })
        .with_context(|| format!("could not open {file}"))?;
        writeln!(io::stdout(), "{nanos:.1}")?;
    }
    let nanos = median_ns(|| {
        black_box(getppid());
        Ok(())
    })?;
    writeln!(io::stdout(), "{nanos:.1}")?;
    Ok(())
}

/// Nanoseconds that one call takes: the median over batches, which drops the interrupted ones.
fn median_ns(mut call: impl FnMut() -> rustix::io::Result<()>) -> Result<f64> {
    repeat(WARM_UP, &mut call)?;
    let mut batches = repeat(MEASURE, &mut call)?;
    batches.sort_unstable();
    let median = batches.get(batches.len() / 2).context("nothing was measured")?;
    Ok(median.as_secs_f64() * 1e9 / f64::from(BATCH))
}

/// How long each batch took of those that fit into a time.
fn repeat(
    time: Duration,
    call: &mut impl FnMut() -> rustix::io::Result<()>,
) -> Result<Vec<Duration>> {
    let mut batches = Vec::new();
    let first = Instant::now();
    while first.elapsed() < time {
        let start = Instant::now();
        for _ in 0..BATCH {
            call()?;
        }
        batches.push(start.elapsed());
    }
    Ok(batches)
}
