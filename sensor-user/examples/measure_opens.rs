//! The optimised half of `cargo xtask bench`, which runs it; nobody else does.
//!
//! * `measure_opens empty ROUTE` attaches the program that does nothing to a route's hooks, says
//!   `attached` and holds it until standard input ends.
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
    os::fd::AsRawFd as _,
    time::Instant,
};

use anyhow::{Context as _, Result, bail};
use rustix::{
    fs::{CWD, MemfdFlags, Mode, OFlags, memfd_create, openat},
    process::getppid,
    thread::{CpuSet, sched_setaffinity},
};
use tokentrail::kernel::{bench::attach_empty, route_name};
use tokentrail_ebpf::Route;

/// Calls between two looks at the clock: long against the clock's own cost, short enough that
/// most batches run without an interruption.
const BATCH: u32 = 200;
/// Batches of one measurement; their median drops the interrupted ones.
const BATCHES: usize = 250;

fn main() -> Result<()> {
    let arguments: Vec<String> = env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match words.as_slice() {
        ["empty", route] => hold_empty(route),
        ["loop", cpu, file] => measure(cpu.parse()?, file),
        _ => bail!("run me as `empty ROUTE` or `loop CPU FILE`"),
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
    // The kernel's own tmpfs: nothing to find a place for, nothing to clean up.
    let memory = memfd_create("measured", MemfdFlags::CLOEXEC)?;
    let on_tmpfs = format!("/proc/self/fd/{}", memory.as_raw_fd());
    for file in [ordinary, &on_tmpfs] {
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

/// Time that one call takes: the median over the batches, after as much again to warm up.
fn median_ns(mut call: impl FnMut() -> rustix::io::Result<()>) -> Result<f64> {
    let mut batches = Vec::with_capacity(BATCHES * 2);
    for _ in 0..BATCHES * 2 {
        let start = Instant::now();
        for _ in 0..BATCH {
            call()?;
        }
        batches.push(start.elapsed());
    }
    let mut measured = batches.split_off(BATCHES);
    measured.sort_unstable();
    let median = measured.get(BATCHES / 2).context("nothing was measured")?;
    Ok(median.as_secs_f64() * 1e9 / f64::from(BATCH))
}
