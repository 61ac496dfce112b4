//! `cargo xtask build`: from a bare machine with rustup to `target/release/tokentrail`; and the
//! agent as a static program for either architecture, which images hold.
//!
//! Makes what is missing, announces each step before it runs, and rebuilds nothing the second time.

use std::{
    env, fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result};
use clap::ValueEnum;

use crate::{
    debian,
    shell::{announce, cargo, program, root, run as shell, say, target_dir},
    toolchain::Rustc,
};

/// The agent's package.
pub(crate) const AGENT: &str = "tokentrail";

/// The target of the BPF object.
pub(crate) const BPF_TARGET: &str = "bpfel-unknown-none";

/// What an image can be made for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Arch {
    /// x86-64
    Amd64,
    /// 64-bit ARM
    Arm64,
}

impl Arch {
    /// The one of this machine.
    ///
    /// # Errors
    /// If it is neither.
    pub(crate) fn of_this_machine() -> Result<Self> {
        [Self::Amd64, Self::Arm64].into_iter().find(|arch| arch.is_this_machines()).with_context(
            || format!("this machine is {}; name --arch amd64 or arm64", env::consts::ARCH),
        )
    }

    pub(crate) fn is_this_machines(self) -> bool {
        self.rust_name() == env::consts::ARCH
    }

    /// As images and Debian's packages name it.
    pub(crate) const fn oci_name(self) -> &'static str {
        match self {
            Self::Amd64 => "amd64",
            Self::Arm64 => "arm64",
        }
    }

    /// As rustc and QEMU name it.
    pub(crate) const fn rust_name(self) -> &'static str {
        match self {
            Self::Amd64 => "x86_64",
            Self::Arm64 => "aarch64",
        }
    }

    const fn target(self) -> &'static str {
        match self {
            Self::Amd64 => "x86_64-unknown-linux-musl",
            Self::Arm64 => "aarch64-unknown-linux-musl",
        }
    }

    /// Compiles C for it: some crates hold assembly and a little C. No library of C's is linked but
    /// the musl that comes with rustc.
    fn c_compiler(self) -> (&'static str, &'static [debian::Package]) {
        match self {
            _ if self.is_this_machines() => ("musl-gcc", &[debian::MUSL_TOOLS]),
            Self::Amd64 => ("x86_64-linux-gnu-gcc", &[debian::GCC_AMD64]),
            Self::Arm64 => ("aarch64-linux-gnu-gcc", &[debian::GCC_ARM64]),
        }
    }
}

/// Builds everything and returns the agent.
///
/// # Errors
/// Names the step that failed.
pub(crate) fn run() -> Result<PathBuf> {
    let object = bpf_object()?;
    announce("release agent");
    shell(
        cargo()
            .args(["build", "--release", "--package", AGENT])
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

/// Builds the agent as a program that needs no other file, and returns it.
///
/// # Errors
/// Names the step that failed.
pub(crate) fn static_agent(arch: Arch) -> Result<PathBuf> {
    static_agent_in(&target_dir(), arch)
}

/// The same, with all that is built for it in a folder of its own.
///
/// # Errors
/// Names the step that failed.
pub(crate) fn static_agent_in(folder: &Path, arch: Arch) -> Result<PathBuf> {
    let object = bpf_object_in(folder)?;
    announce(format_args!("static agent for {}", arch.oci_name()));
    shell(
        static_cargo("build", AGENT, arch)?
            .args(["--release", "--target-dir"])
            .arg(folder)
            .env("TOKENTRAIL_BPF_OBJECT", object),
    )?;
    Ok(folder.join(arch.target()).join("release/tokentrail"))
}

/// A cargo command for a package whose programs are to be static ones.
///
/// # Errors
/// If the standard library for it or the C compiler is missing and cannot be had.
pub(crate) fn static_cargo(subcommand: &str, package: &str, arch: Arch) -> Result<Command> {
    let rustc = Rustc::current()?;
    let target = arch.target();
    let (c_compiler, packages) = arch.c_compiler();
    debian::install(packages)?;
    let underscored = target.replace('-', "_");
    let mut command = cargo();
    command
        .args([subcommand, "--package", package, "--target", target])
        .env(format!("CC_{underscored}"), c_compiler)
        // rustc's own linker: the same for both architectures on every machine.
        .env(format!("CARGO_TARGET_{}_LINKER", underscored.to_uppercase()), "rust-lld");
    // What does not run here runs emulated.
    if !arch.is_this_machines() {
        let emulator = format!("qemu-{}-static", arch.rust_name());
        command.env(format!("CARGO_TARGET_{}_RUNNER", underscored.to_uppercase()), emulator);
    }
    let mut flags = vec!["-Clinker-flavor=ld.lld".to_owned()];
    match rustc.standard_library(target) {
        Ok(()) => flags.push("-Clink-self-contained=yes".to_owned()),
        Err(error) if !arch.is_this_machines() => return Err(error),
        Err(error) => {
            say(format_args!("  {error:#}; making it from its sources and Debian's musl"));
            rustc.sources()?;
            flags.extend(debians_musl(arch)?);
            command
                .args(["-Zbuild-std=std,panic_abort", "-Zbuild-std-features="])
                .env("RUSTC_BOOTSTRAP", "1");
        }
    }
    set_flags(&mut command, &rustc, &flags)?;
    Ok(command)
}

/// Linker flags for the C library of musl-tools. It comes without an unwinder; the agent aborts on
/// a panic and needs one for backtraces alone, so it does without.
fn debians_musl(arch: Arch) -> Result<Vec<String>> {
    let musl = PathBuf::from(format!("/usr/lib/{}-linux-musl", arch.rust_name()));
    let folder = target_dir().join("musl");
    fs::create_dir_all(&folder).with_context(|| format!("could not create {folder:?}"))?;
    // rustc insists on the library: it gets an empty one.
    fs::write(folder.join("libunwind.a"), "!<arch>\n")?;
    let source = folder.join("no_unwinder.c");
    let stubs = folder.join("no_unwinder.o");
    fs::write(&source, include_str!("build/no_unwinder.c"))?;
    shell(program("musl-gcc").args(["-O2", "-fPIC", "-c", "-o"]).args([&stubs, &source]))?;
    let objects = ["rcrt1.o", "crti.o", "crtn.o"].map(|name| musl.join(name));
    let mut flags = vec!["-Clink-self-contained=no".to_owned()];
    flags.extend([&musl, &folder].map(|folder| format!("-Lnative={}", folder.display())));
    flags.extend(
        objects.iter().chain([&stubs]).map(|object| format!("-Clink-arg={}", object.display())),
    );
    Ok(flags)
}

/// A cargo command for the BPF side: right toolchain, right linker, own target folder (its flags
/// would otherwise throw the host's builds away).
///
/// # Errors
/// If a tool is missing and cannot be made.
pub(crate) fn bpf_cargo(subcommand: &str) -> Result<Command> {
    bpf_cargo_in(&target_dir(), subcommand)
}

fn bpf_cargo_in(folder: &Path, subcommand: &str) -> Result<Command> {
    let rustc = Rustc::current()?;
    rustc.sources()?;
    let linker = rustc.bpf_linker()?;
    let mut command = cargo();
    command
        .args([subcommand, "--profile", "bpf", "--package", "tokentrail-ebpf"])
        .args(["--target", BPF_TARGET, "-Zbuild-std=core", "--target-dir"])
        .arg(folder.join("bpf"))
        // `core` for a target without a released standard library is an unstable feature.
        .env("RUSTC_BOOTSTRAP", "1")
        .env("CARGO_TARGET_BPFEL_UNKNOWN_NONE_LINKER", linker);
    let flags = ["-Cdebuginfo=2", "-Clink-arg=--btf"].map(str::to_owned);
    set_flags(&mut command, &rustc, &flags)?;
    Ok(command)
}

fn bpf_object() -> Result<PathBuf> {
    bpf_object_in(&target_dir())
}

fn bpf_object_in(folder: &Path) -> Result<PathBuf> {
    let mut build = bpf_cargo_in(folder, "build")?;
    announce("BPF object");
    shell(build.args(["--bin", "tokentrail-bpf"]))?;
    Ok(folder.join("bpf").join(BPF_TARGET).join("bpf/tokentrail-bpf"))
}

/// Sets rustc's flags, and with them that no path of this machine gets into what is built: the
/// same sources give the same bytes in every clone.
fn set_flags(command: &mut Command, rustc: &Rustc, flags: &[String]) -> Result<()> {
    let cargo_home = match env::var_os("CARGO_HOME") {
        Some(folder) => PathBuf::from(folder),
        None => PathBuf::from(env::var_os("HOME").context("neither CARGO_HOME nor HOME is set")?)
            .join(".cargo"),
    };
    // A registry's folder is called after where crates came from: a mirror, perhaps.
    let registries = fs::read_dir(cargo_home.join("registry/src"));
    let registries = registries.into_iter().flatten().filter_map(Result::ok);
    let mut hidden =
        vec![(root(), "/tokentrail"), (cargo_home, "/cargo"), (rustc.library(), "/rust")];
    hidden.extend(registries.map(|entry| (entry.path(), "/crates")));
    let mut all = flags.to_vec();
    for (folder, shown) in hidden {
        all.push(format!("--remap-path-prefix={}={shown}", folder.display()));
    }
    // Separated so that folders may hold blanks.
    command.env("CARGO_ENCODED_RUSTFLAGS", all.join("\u{1f}"));
    Ok(())
}
