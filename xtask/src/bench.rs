//! `cargo xtask bench`: the figures that the product promises, measured on this machine.
//!
//! A benchmark, not a test: it says which bars are met and fails only if it cannot measure. What
//! is compared is measured in one run, in turns, since machines differ and change while they work.

use std::{fs, path::PathBuf, thread};

use anyhow::{Context as _, Result};
use clap::Subcommand;
use rustix::thread::{CpuSet, sched_getaffinity};

use crate::{
    bench::report::Row,
    build, debian,
    shell::{announce, cargo, run as shell, say, target_dir},
};

mod cluster;
mod fleet;
mod flood;
mod index;
mod latency;
mod opens;
mod replay;
mod report;
mod rest;
mod tail;

/// What can be measured by itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Subcommand)]
pub(crate) enum Part {
    /// What the sensor adds to an open that is none of its business
    Opens,
    /// From an audit line to the alert line, over 1,000 alerts
    Latency,
    /// Memory and CPU of an agent that has nothing to do
    Rest,
    /// Latency, CPU and memory of an agent behind an API server that writes 50,000 lines a second
    Tail,
    /// Traffic, delay and CPU of thousands of simulated nodes behind one audit log of 50,000 lines a second
    Fleet,
    /// An audit log of a gigabyte through `replay`, against jq, DuckDB and a typed pass
    Replay,
}

/// Builds what is measured, gets what it is compared with, measures and prints the tables.
///
/// # Errors
/// If something cannot be built, started or measured; not if a bar is missed.
pub(crate) fn run(part: Option<Part>, in_cluster: bool) -> Result<()> {
    if in_cluster {
        let rows = cluster::measure()?;
        announce(format_args!("measured on {}", machine()));
        report::print("in a cluster of two nodes", &rows);
        return Ok(());
    }
    let wanted = |it: Part| part.is_none_or(|part| part == it);
    if wanted(Part::Opens) {
        debian::install(&[debian::LIBBPF_TOOLS])?;
    }
    build::run()?;
    // The cheapest to disturb come first, while the machine is quietest.
    let mut tables: Vec<(&str, Vec<Row>)> = Vec::new();
    if wanted(Part::Opens) {
        tables.push(("an open that is none of its business", opens::measure()?));
    }
    if wanted(Part::Latency) {
        tables.push(("from audit line to alert line", latency::measure()?));
    }
    if wanted(Part::Rest) {
        tables.push(("at rest", rest::measure()?));
    }
    if wanted(Part::Tail) {
        tables.push(("50,000 audit lines a second", tail::measure()?));
    }
    if wanted(Part::Fleet) {
        tables.push(("many nodes, one broker", fleet::measure()?));
    }
    if wanted(Part::Replay) {
        tables.push(("replay, one thread", replay::measure()?));
    }
    announce(format_args!("measured on {}", machine()));
    for (title, rows) in &tables {
        say("");
        report::print(title, rows);
    }
    Ok(())
}

/// An optimised program that measures or is measured, with the very object that the agent has.
fn example(name: &str) -> Result<PathBuf> {
    announce(format_args!("building {name}"));
    shell(
        cargo()
            .args(["build", "--release", "--package", "tokentrail"])
            .args(["--features", "bench", "--example", name])
            .env("TOKENTRAIL_BPF_OBJECT", build::bpf_object_path()),
    )?;
    Ok(target_dir().join("release/examples").join(name))
}

/// The last CPU that this process may use: interrupts prefer the first.
fn last_cpu() -> Result<usize> {
    let allowed = sched_getaffinity(None)?;
    (0..CpuSet::MAX_CPU).rfind(|cpu| allowed.is_set(*cpu)).context("this process may use no CPU")
}

/// Kernel, architecture, cores and processor.
fn machine() -> String {
    let system = rustix::system::uname();
    let cores = thread::available_parallelism().map_or(0, usize::from);
    let processors = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    // arm64 has no such line.
    let model = processors.lines().find_map(|line| line.strip_prefix("model name"));
    let model = model.map_or("", |rest| rest.trim_start_matches([':', ' ', '\t']));
    format!(
        "Linux {} {}, {cores} cores {model}",
        system.release().to_string_lossy(),
        system.machine().to_string_lossy()
    )
}
