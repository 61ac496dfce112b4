//! The optimised half of `cargo xtask bench`, which runs it; nobody else does.
//!
//! * `measure_opens empty ROUTE` attaches the program that does nothing to a route's hooks, says
//!   `attached` and holds it until standard input ends.
//! * `measure_opens others` prints how many tracing programs are loaded.
//! * `measure_opens loop CPU FILE PROGRAM` prints what one open+close of the file costs, then of a
//!   file on tmpfs, one other system call, a process that ends at once, and one that executes the
//!   program `true` of this (a busybox): nanoseconds, a line each.
//! * `measure_opens flood CPU FILE` opens the file as fast as it goes until standard input ends, then
//!   prints how often; `measure_opens crowd CPU FILE` does it in a new process each time.
//! * `measure_opens arrive COUNT` opens so many files that look like tokens, and prints of each how
//!   long after its open user space had the record: nanoseconds, a line each.
//!
//! But for the last it attaches or it measures, never both in one process: what is measured is any
//! process of the machine, not the sensor's own.

use std::{
    collections::HashMap,
    env,
    ffi::{CStr, CString},
    fs::{self, File},
    hint::black_box,
    io::{self, Write as _},
    os::unix::fs::MetadataExt as _,
    path::PathBuf,
    process::{Command, Stdio},
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};
use rustix::{
    fs::{CWD, Mode, OFlags, openat},
    process::{Pid, WaitOptions, getppid, waitpid},
    thread::{CpuSet, sched_setaffinity},
    time::{ClockId, clock_gettime},
};
use tokentrail::kernel::{
    KernelMetrics, Sensor, SensorConfig,
    bench::{attach_empty, tracing_programs},
    route_name,
};
use tokentrail_ebpf::Route;
use tokio::{runtime::Runtime, time::timeout};

/// Calls between two looks at the clock: long against the clock's own cost, short enough that
/// most batches run without an interruption.
const BATCH: u32 = 200;
/// The same for processes, which take a thousand times as long.
const BATCH_OF_PROCESSES: u32 = 20;
/// How long one call is repeated before it is measured, and then while it is.
const WARM_UP: Duration = Duration::from_millis(50);
const MEASURE: Duration = Duration::from_millis(250);
/// Between two opens that are to arrive: a process has 200 records a second, and others rest between
/// theirs as well.
const PAUSE: Duration = Duration::from_millis(7);
/// How long the last of them may take.
const PATIENCE: Duration = Duration::from_secs(60);

fn main() -> Result<()> {
    let arguments: Vec<String> = env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match words.as_slice() {
        ["empty", route] => hold_empty(route),
        ["others"] => Ok(writeln!(io::stdout(), "{}", tracing_programs())?),
        ["loop", cpu, file, program] => measure(cpu.parse()?, file, program),
        ["flood", cpu, file] => flood(cpu.parse()?, file, open),
        ["crowd", cpu, file] => flood(cpu.parse()?, file, |path| in_a_child(|| open(path))),
        ["arrive", count] => arrive(count.parse()?),
        _ => bail!("run me as one of those that my first lines name"),
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

fn stay_on(cpu: usize) -> Result<()> {
    let mut one = CpuSet::new();
    one.set(cpu);
    sched_setaffinity(None, &one).with_context(|| format!("could not run on CPU {cpu} alone"))
}

/// What C libraries make of `open`; dropping the descriptor closes it.
fn open(path: &CStr) -> rustix::io::Result<()> {
    openat(CWD, path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty()).map(drop)
}

/// A process that does this and ends.
fn in_a_child(what: impl FnOnce() -> rustix::io::Result<()>) -> rustix::io::Result<()> {
    // SAFETY: the child makes system calls and ends, without anything that a lock may guard.
    let child = unsafe { libc::fork() };
    if child == 0 {
        let code = i32::from(what().is_err());
        // SAFETY: ends the child at once.
        unsafe { libc::_exit(code) };
    }
    let child = Pid::from_raw(child).ok_or(rustix::io::Errno::AGAIN)?;
    let (_, status) =
        waitpid(Some(child), WaitOptions::empty())?.ok_or(rustix::io::Errno::CHILD)?;
    if status.exit_status() == Some(0) { Ok(()) } else { Err(rustix::io::Errno::IO) }
}

fn flood(cpu: usize, file: &str, open: impl Fn(&CStr) -> rustix::io::Result<()>) -> Result<()> {
    let path = CString::new(file)?;
    let stop = AtomicBool::new(false);
    thread::scope(|scope| {
        // Where it may run besides: at real-time priority the flood leaves it nothing of its own CPU.
        scope.spawn(|| {
            let _ = io::copy(&mut io::stdin(), &mut io::sink());
            stop.store(true, Ordering::Relaxed);
        });
        stay_on(cpu)?;
        let mut count = 0_u64;
        while !stop.load(Ordering::Relaxed) {
            open(&path).with_context(|| format!("could not open {file}"))?;
            count += 1;
        }
        Ok(writeln!(io::stdout(), "{count}")?)
    })
}

fn arrive(count: usize) -> Result<()> {
    let folder = tempfile::Builder::new().prefix("tokentrail-").tempdir_in("/dev/shm")?;
    let mut paths = Vec::new();
    // A process that opens the same file again is told of once a second.
    for number in 0..count {
        let volume = folder.path().join(format!("..{number}"));
        fs::create_dir(&volume)?;
        paths.push(volume.join("token"));
    }
    let mut latencies: HashMap<u64, Option<u64>> = HashMap::new();
    for path in &paths {
        latencies.insert(File::create(path)?.metadata()?.ino(), None);
    }
    Runtime::new()?.block_on(async {
        let mut sensor = Sensor::start(&SensorConfig::default(), KernelMetrics::default()).await?;
        // Those that made the files.
        sensor.drain(|_| {});
        let opener = thread::spawn(move || open_in_turn(&paths));
        let mut missing = count;
        let all = async {
            while missing > 0 {
                sensor.ready().await?;
                sensor.drain(|record| {
                    let took = boot_ns().saturating_sub(record.ktime_ns);
                    let first = latencies.get_mut(&record.file_ino);
                    if let Some(first @ None) = first {
                        *first = Some(took);
                        missing -= 1;
                    }
                });
            }
            Ok::<(), io::Error>(())
        };
        timeout(PATIENCE, all).await.context("some opens did not arrive")??;
        opener.join().map_err(|_| anyhow::anyhow!("the opener ended"))?
    })?;
    for nanos in latencies.into_values().flatten() {
        writeln!(io::stdout(), "{nanos}")?;
    }
    Ok(())
}

fn open_in_turn(paths: &[PathBuf]) -> Result<()> {
    for path in paths {
        thread::sleep(PAUSE);
        File::open(path).with_context(|| format!("could not open {}", path.display()))?;
    }
    Ok(())
}

/// The clock of records.
fn boot_ns() -> u64 {
    let time = clock_gettime(ClockId::Boottime);
    let nanos = time.tv_sec.saturating_mul(1_000_000_000).saturating_add(time.tv_nsec);
    u64::try_from(nanos).unwrap_or_default()
}

fn measure(cpu: usize, ordinary: &str, busybox: &str) -> Result<()> {
    stay_on(cpu)?;
    let on_tmpfs = tempfile::Builder::new()
        .prefix("tokentrail-")
        .tempfile_in("/dev/shm")
        .context("could not make a file on tmpfs")?;
    let tmpfs_path = on_tmpfs.path().to_string_lossy();
    for file in [ordinary, &*tmpfs_path] {
        let path = CString::new(file)?;
        let nanos =
            median_ns(BATCH, || open(&path)).with_context(|| format!("could not open {file}"))?;
        writeln!(io::stdout(), "{nanos:.1}")?;
    }
    let nanos = median_ns(BATCH, || {
        black_box(getppid());
        Ok(())
    })?;
    writeln!(io::stdout(), "{nanos:.1}")?;
    let nanos = median_ns(BATCH_OF_PROCESSES, || in_a_child(|| Ok(())))?;
    writeln!(io::stdout(), "{nanos:.1}")?;
    let mut program = Command::new(busybox);
    program.arg("true").stdin(Stdio::null());
    let nanos = median_ns(BATCH_OF_PROCESSES, || {
        let status = program.status().map_err(|_| rustix::io::Errno::IO)?;
        if status.success() { Ok(()) } else { Err(rustix::io::Errno::IO) }
    })?;
    writeln!(io::stdout(), "{nanos:.1}")?;
    Ok(())
}

/// Nanoseconds that one call takes: the median over batches, which drops the interrupted ones.
fn median_ns(batch: u32, mut call: impl FnMut() -> rustix::io::Result<()>) -> Result<f64> {
    repeat(batch, WARM_UP, &mut call)?;
    let mut batches = repeat(batch, MEASURE, &mut call)?;
    batches.sort_unstable();
    let median = batches.get(batches.len() / 2).context("nothing was measured")?;
    Ok(median.as_secs_f64() * 1e9 / f64::from(batch))
}

/// How long each batch took of those that fit into a time.
fn repeat(
    batch: u32,
    time: Duration,
    call: &mut impl FnMut() -> rustix::io::Result<()>,
) -> Result<Vec<Duration>> {
    let mut batches = Vec::new();
    let first = Instant::now();
    while first.elapsed() < time {
        let start = Instant::now();
        for _ in 0..batch {
            call()?;
        }
        batches.push(start.elapsed());
    }
    Ok(batches)
}
