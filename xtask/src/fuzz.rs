//! `cargo xtask fuzz`: looks for bytes that break a property of `tests/fuzz`, with libFuzzer.
//!
//! The compiler is the one that builds everything else: coverage is two flags of its own, which
//! `tests/fuzz/rustc-with-coverage` adds. What was learned is kept below `target/fuzz`, what breaks
//! a property in `tests/fuzz/found`, where unit tests try it ever after.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result};
use clap::ValueEnum;

use crate::{
    debian,
    shell::{announce, cargo, program, root, run as shell, target_dir},
};

/// What is fuzzed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Target {
    /// Kernel type information
    Btf,
    /// Events that are wrapped in lines
    Envelopes,
    /// Bytes to lines, long lines made short
    Lines,
    /// Documents of opens
    Opens,
    /// Kernel records through attribution
    Record,
    /// Audit lines, the scan against a full parse
    Scan,
}

impl Target {
    const fn name(self) -> &'static str {
        match self {
            Self::Btf => "btf",
            Self::Envelopes => "envelopes",
            Self::Lines => "lines",
            Self::Opens => "opens",
            Self::Record => "record",
            Self::Scan => "scan",
        }
    }

    /// Words that inputs are made of, if it has any.
    const fn dictionary(self) -> Option<&'static str> {
        match self {
            Self::Btf => None,
            Self::Record => Some("record.dict"),
            Self::Envelopes | Self::Lines | Self::Opens | Self::Scan => Some("json.dict"),
        }
    }

    /// Longest input, bytes: a whole one has room, and is still tried thousands of times a second.
    const fn longest(self) -> u32 {
        match self {
            Self::Record => 512,
            Self::Lines => 1 << 10,
            Self::Envelopes | Self::Opens | Self::Scan => 4 << 10,
            Self::Btf => 16 << 10,
        }
    }

    /// The fixtures whose lines are inputs, if there are any.
    const fn fixtures(self) -> Option<&'static str> {
        match self {
            Self::Envelopes => Some("wrapped"),
            Self::Scan => Some("audit"),
            Self::Opens => Some("opens"),
            Self::Btf | Self::Lines | Self::Record => None,
        }
    }
}

/// Builds the target, or all, and looks for so long with each.
///
/// # Errors
/// Names the target of which a property broke, and where the input is.
pub(crate) fn run(target: Option<Target>, seconds: u64) -> Result<()> {
    let targets = target.as_ref().map_or(Target::value_variants(), std::slice::from_ref);
    debian::install(&[debian::GXX])?;
    announce("fuzz targets");
    let bins = targets.iter().flat_map(|it| ["--bin".to_owned(), format!("fuzz-{}", it.name())]);
    shell(
        cargo()
            .args(["build", "--package", "tokentrail-fuzz", "--features", "fuzzing"])
            .args(bins)
            .env("RUSTC_WORKSPACE_WRAPPER", folder().join("rustc-with-coverage")),
    )?;
    targets.iter().try_for_each(|target| look(*target, seconds))
}

fn look(target: Target, seconds: u64) -> Result<()> {
    let name = target.name();
    let learned = target_dir().join("fuzz").join(name);
    let (corpus, lines) = (learned.join("corpus"), learned.join("fixtures"));
    let found = folder().join("found").join(name);
    for folder in [&corpus, &lines, &found] {
        fs::create_dir_all(folder).with_context(|| format!("could not create {folder:?}"))?;
    }
    if let Some(fixtures) = target.fixtures() {
        split(&root().join("tests/fixtures").join(fixtures), &lines)?;
    }
    announce(format_args!("{name}, {seconds} s"));
    let mut fuzzer = program(target_dir().join(format!("debug/fuzz-{name}")));
    fuzzer
        .args([&corpus, &folder().join("seeds").join(name), &lines, &found])
        .arg(format!("-artifact_prefix={}/", found.display()))
        .arg(format!("-max_total_time={seconds}"))
        .arg(format!("-max_len={}", target.longest()))
        // One input may take seconds on a busy machine; an endless one takes longer.
        .args(["-timeout=20", "-rss_limit_mb=1024", "-verbosity=0", "-print_final_stats=1"]);
    if let Some(words) = target.dictionary() {
        fuzzer.arg(format!("-dict={}", folder().join(words).display()));
    }
    shell(&mut fuzzer).with_context(|| {
        format!("{name}: an input breaks its property; mend that and keep the input in {found:?}")
    })
}

/// Where targets, seeds and what was found are.
fn folder() -> PathBuf {
    root().join("tests/fuzz")
}

/// Each line of a folder's files as a file: libFuzzer takes one input from each.
fn split(from: &Path, to: &Path) -> Result<()> {
    let entries = fs::read_dir(from).with_context(|| format!("could not list {from:?}"))?;
    for entry in entries {
        let path = entry?.path();
        let text = fs::read(&path).with_context(|| format!("could not read {path:?}"))?;
        let name = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
        for (number, line) in text.split(|byte| *byte == b'\n').enumerate() {
            let line_path = to.join(format!("{name}-{number}"));
            fs::write(&line_path, line)
                .with_context(|| format!("could not write {line_path:?}"))?;
        }
    }
    Ok(())
}
