//! What rustc alone cannot do: the sources of `core` for the BPF target, a linker for it, and the
//! checker of dependencies. Each is made once and kept in a cache that all clones share.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result, bail};

use crate::{
    debian::Archive,
    shell::{announce, cache_dir, cargo, program, read, run, say},
};

const BPF_LINKER: &str = "0.13.0";
const CARGO_DENY: &str = "0.20.2";

/// The compiler in use.
pub(crate) struct Rustc {
    release: String,
    commit: String,
    llvm_major: String,
    sysroot: PathBuf,
}

impl Rustc {
    /// Asks the `rustc` that cargo would use here.
    ///
    /// # Errors
    /// If there is none, or it does not tell its version.
    pub(crate) fn current() -> Result<Self> {
        let version = read(program("rustc").args(["--version", "--verbose"]))?;
        let field = |name: &str| {
            version
                .lines()
                .find_map(|line| line.strip_prefix(name))
                .map(str::trim)
                .with_context(|| format!("`rustc --version --verbose` does not name its {name}"))
        };
        let llvm = field("LLVM version:")?;
        Ok(Self {
            release: field("release:")?.to_owned(),
            commit: field("commit-hash:")?.chars().take(9).collect(),
            llvm_major: llvm.split('.').next().unwrap_or(llvm).to_owned(),
            sysroot: read(program("rustc").args(["--print", "sysroot"]))?.into(),
        })
    }

    /// Makes sure that `-Zbuild-std=core` finds its sources.
    ///
    /// rustup is asked first. Where it has no network, Debian's package of the very same version
    /// does: another version would not compile.
    ///
    /// # Errors
    /// If neither has them.
    pub(crate) fn sources(&self) -> Result<()> {
        let library = self.library();
        if library.join("core/src/lib.rs").exists() {
            return Ok(());
        }
        announce("rust-src: rustup component add rust-src");
        match read(program("rustup").args(["component", "add", "rust-src"])) {
            Ok(_) if library.join("core/src/lib.rs").exists() => return Ok(()),
            Ok(_) => say("  rustup added it, but not to this toolchain"),
            Err(error) => say(format_args!("  {}", first_line(&error.to_string()))),
        }
        announce(format_args!("rust-src: Debian's package of {}", self.release));
        let archive = Archive::open()?;
        let version = archive
            .versions("rust-src")?
            .into_iter()
            .find(|version| version.split(['+', '-']).next() == Some(&self.release))
            .with_context(|| {
                format!(
                    "neither rustup nor Debian has rust-src {}; run `rustup component add rust-src` where there is a network",
                    self.release
                )
            })?;
        // Unfolded beside its place and renamed: half a library would pass for a whole one.
        let folder = library.parent().unwrap_or(&library);
        fs::create_dir_all(folder)
            .with_context(|| format!("could not create {folder:?} in rustc's own folder"))?;
        let unpacked = tempfile::tempdir_in(folder)?;
        archive.unpack(&format!("rust-src={version}"), unpacked.path())?;
        let sources = unpacked.path().join(format!("usr/src/rustc-{}/library", self.release));
        if library.exists() {
            fs::remove_dir_all(&library)
                .with_context(|| format!("could not remove the incomplete {library:?}"))?;
        }
        fs::rename(&sources, &library)
            .with_context(|| format!("could not move {sources:?} to {library:?}"))
    }

    /// Where this compiler's standard library has its sources, once they are there.
    pub(crate) fn library(&self) -> PathBuf {
        self.sysroot.join("lib/rustlib/src/rust/library")
    }

    /// Makes sure that the standard library for a target is there, as it was released.
    ///
    /// # Errors
    /// If rustup cannot get it.
    pub(crate) fn standard_library(&self, target: &str) -> Result<()> {
        if self.sysroot.join("lib/rustlib").join(target).join("lib").exists() {
            return Ok(());
        }
        announce(format_args!("standard library: rustup target add {target}"));
        read(program("rustup").args(["target", "add", target])).map(drop).with_context(|| {
            format!("no standard library for {target}: run `rustup target add {target}` where there is a network")
        })
    }

    /// Makes sure that there is a bpf-linker of the LLVM that this rustc has, and returns it.
    ///
    /// # Errors
    /// If rustc ships no shared LLVM, or the linker does not build.
    pub(crate) fn bpf_linker(&self) -> Result<PathBuf> {
        let name = format!("bpf-linker-{BPF_LINKER}-rustc-{}-{}", self.release, self.commit);
        let folder = tools()?.join(name);
        let linker = folder.join("bin/bpf-linker");
        if runs(&linker) {
            return Ok(linker);
        }
        announce(format_args!(
            "bpf-linker {BPF_LINKER}: building it against the LLVM of rustc {} (about a minute)",
            self.release
        ));
        // llvm-sys looks for `lib/libLLVM.so` below its prefix.
        let library = self.llvm()?;
        let prefix = folder.join("llvm/lib");
        fs::create_dir_all(&prefix).with_context(|| format!("could not create {prefix:?}"))?;
        let link = prefix.join("libLLVM.so");
        let _ = fs::remove_file(&link);
        std::os::unix::fs::symlink(&library, &link)
            .with_context(|| format!("could not create {link:?}"))?;
        let rpath = self.sysroot.join("lib");
        run(install("bpf-linker", BPF_LINKER, &folder)
            .args(["--features", &format!("llvm-{}", self.llvm_major)])
            .env("LLVM_PREFIX", folder.join("llvm"))
            .env("RUSTFLAGS", format!("-C link-arg=-Wl,-rpath,{}", rpath.display())))?;
        if !runs(&linker) {
            bail!("{linker:?} was built, but does not run");
        }
        Ok(linker)
    }

    /// rustc's own shared LLVM: the largest `libLLVM*` in its folder (the others are linker scripts).
    fn llvm(&self) -> Result<PathBuf> {
        let folder = self.sysroot.join("lib");
        fs::read_dir(&folder)
            .with_context(|| format!("could not list {folder:?}"))?
            .filter_map(Result::ok)
            .filter(|entry| entry.file_name().to_string_lossy().starts_with("libLLVM"))
            .max_by_key(|entry| entry.metadata().map_or(0, |facts| facts.len()))
            .map(|entry| entry.path())
            .with_context(|| format!("no libLLVM in {folder:?}: this rustc is not from rustup"))
    }
}

/// Makes sure that cargo-deny is there and returns it.
///
/// # Errors
/// If it does not build.
pub(crate) fn cargo_deny() -> Result<PathBuf> {
    let folder = tools()?.join(format!("cargo-deny-{CARGO_DENY}"));
    let program = folder.join("bin/cargo-deny");
    if !runs(&program) {
        announce(format_args!("cargo-deny {CARGO_DENY}: building it (about two minutes)"));
        run(&mut install("cargo-deny", CARGO_DENY, &folder))?;
    }
    Ok(program)
}

fn tools() -> Result<PathBuf> {
    Ok(cache_dir()?.join("tools"))
}

fn install(package: &str, version: &str, folder: &Path) -> std::process::Command {
    let mut command = cargo();
    command
        .args(["install", package, "--version", version])
        .args(["--locked", "--force", "--quiet", "--no-default-features", "--root"])
        .arg(folder)
        // The workspace's own target folder would keep hundreds of files nobody needs again.
        .env_remove("CARGO_TARGET_DIR");
    command
}

fn first_line(text: &str) -> &str {
    text.lines().next().unwrap_or(text)
}

/// Whether a tool exists and starts: a cached one may belong to libraries that were removed.
fn runs(tool: &Path) -> bool {
    tool.exists() && read(program(tool).arg("--version")).is_ok()
}
