//! `cargo xtask build`: from a bare machine with rustup to `target/release/tokentrail`.
//!
//! Makes what is missing, announces each step before it runs, and rebuilds nothing the second time.

use std::{path::PathBuf, process::Command};

use anyhow::Result;

use crate::{
    shell::{announce, cargo, run as shell, say, target_dir},
    toolchain::Rustc,
};

/// The target of the BPF object.
pub(crate) const BPF_TARGET: &str = "bpfel-unknown-none";

/// Builds everything and returns the agent.
///
/// # Errors
/// Names the step that failed.
pub(crate) fn run() -> Result<PathBuf> {
    let object = bpf_object()?;
    announce("release agent");
    shell(
        cargo()
            .args(["build", "--release", "--package", "tokentrail"])
            .env("TOKENTRAIL_BPF_OBJECT", object),
    )?;
    let agent = agent();
    say(format_args!("built {}", agent.display()));
    Ok(agent)
}

/// Where the agent is, once built.
pub(crate) fn agent() -> PathBuf {
    target_dir().join("release/tokentrail")
}

/// Where the BPF object is, once built.
pub(crate) fn bpf_object_path() -> PathBuf {
    target_dir().join("bpf").join(BPF_TARGET).join("bpf/tokentrail-bpf")
}

/// A cargo command for the BPF side: right toolchain, right linker, own target folder (its flags
/// would otherwise throw the host's builds away).
///
/// # Errors
/// If a tool is missing and cannot be made.
pub(crate) fn bpf_cargo(subcommand: &str) -> Result<Command> {
    let rustc = Rustc::current()?;
    rustc.sources()?;
    let linker = rustc.bpf_linker()?;
    let mut command = cargo();
    command
        .args([subcommand, "--profile", "bpf", "--package", "tokentrail-ebpf"])
        .args(["--target", BPF_TARGET, "-Zbuild-std=core", "--target-dir"])
        .arg(target_dir().join("bpf"))
        // `core` for a target without a released standard library is an unstable feature.
        .env("RUSTC_BOOTSTRAP", "1")
        .env("RUSTFLAGS", "-C debuginfo=2 -C link-arg=--btf")
        .env("CARGO_TARGET_BPFEL_UNKNOWN_NONE_LINKER", linker)
        .env_remove("CARGO_ENCODED_RUSTFLAGS");
    Ok(command)
}

fn bpf_object() -> Result<PathBuf> {
    let mut build = bpf_cargo("build")?;
    announce("BPF object");
    shell(build.args(["--bin", "tokentrail-bpf"]))?;
    Ok(bpf_object_path())
}
