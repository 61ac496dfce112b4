//! `cargo xtask vm`: the whole-program tests on Debian's 6.12 kernel, booted under QEMU.
//!
//! The newest such kernel is taken from Debian by name, unpacked and cached. No KVM is needed. On
//! this kernel the best hook route works, and the tests are told to insist on it.

use std::{
    fs,
    io::{BufRead as _, BufReader},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::mpsc::{self, Receiver, RecvTimeoutError},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, anyhow, bail};

use crate::{
    build,
    debian::{self, Archive},
    shell::{announce, cache_dir, complain, program, say},
    system_tests,
    tally::Tally,
};

mod image;

/// How long boot and tests may take together, emulated on two slow cores.
const DEADLINE: Duration = Duration::from_mins(20);

/// What the init script prints around the tests; the rest of the console is for people.
const TESTS_DONE: &str = "tokentrail-vm: done";
const TEST_FAILED: &str = "tokentrail-vm: failed:";

/// Why no VM can be booted.
pub(crate) enum Obstacle {
    /// Not on this machine.
    Impossible(String),
    /// Something is missing that could be there.
    NotSetUp(String),
}

/// Builds, boots and tests.
///
/// # Errors
/// If a test fails or the VM does not get that far.
pub(crate) fn run() -> Result<()> {
    build::run()?;
    let machine = Machine::prepare().map_err(|obstacle| match obstacle {
        Obstacle::Impossible(why) | Obstacle::NotSetUp(why) => anyhow!(why),
    })?;
    let tally = machine.test()?;
    say(tally);
    if tally.failed > 0 {
        bail!("{} tests failed in the VM", tally.failed);
    }
    Ok(())
}

/// All that a VM needs from elsewhere.
pub(crate) struct Machine {
    kernel: PathBuf,
}

impl Machine {
    /// Gets what is missing: programs and kernel.
    pub(crate) fn prepare() -> Result<Self, Obstacle> {
        if std::env::consts::ARCH != "x86_64" {
            return Err(Obstacle::Impossible(format!(
                "the VM is an x86-64 one with this machine's programs in it, which are {}",
                std::env::consts::ARCH
            )));
        }
        debian::install(&[
            debian::QEMU,
            debian::BUSYBOX,
            debian::RUNC,
            debian::TMUX,
            debian::SCRIPT,
        ])
        .and_then(|()| kernel())
        .map(|kernel| Self { kernel })
        .map_err(|error| Obstacle::NotSetUp(format!("{error:#}")))
    }

    /// Boots with what was built before, and runs the tests in it.
    ///
    /// # Errors
    /// If the tests do not build, or the VM does not get to their end.
    pub(crate) fn test(&self) -> Result<Tally> {
        let mut tests = Vec::new();
        for suite in system_tests::suites()? {
            tests.extend(suite.of_the_kernel().programs()?);
        }
        announce("image for the VM");
        let folder = tempfile::tempdir()?;
        let image = image::write(folder.path(), &build::agent(), &tests)?;
        // QEMU's emulation is known to crash a kernel now and then; twice in a row is no accident.
        for _attempt in 0..2 {
            match boot(&self.kernel, &image)? {
                Boot::Ended(tally) => return Ok(tally),
                Boot::Panicked => complain("the VM's kernel crashed"),
            }
        }
        bail!("the VM's kernel crashed twice")
    }
}

enum Boot {
    Ended(Tally),
    Panicked,
}

fn boot(kernel: &Path, image: &Path) -> Result<Boot> {
    announce(format_args!("booting {}", kernel.display()));
    let start = Instant::now();
    let mut command = qemu(kernel, image);
    let mut child = command.stdout(Stdio::piped()).spawn().context("could not start QEMU")?;
    let console = lines_of(&mut child);
    let watched = watch(&console, start + DEADLINE, |line| say(format_args!("  vm│ {line}")));
    // It powers itself off; what is still running has nothing left to say.
    let _ = child.kill();
    child.wait()?;
    say(format_args!("  the VM ran for {:.1} s", start.elapsed().as_secs_f64()));
    watched
}

/// Reads the console up to the end of the tests.
fn watch(
    console: &Receiver<String>,
    deadline: Instant,
    mut show: impl FnMut(&str),
) -> Result<Boot> {
    let mut tally = Tally::default();
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        let line = match console.recv_timeout(left) {
            Ok(line) => line,
            Err(RecvTimeoutError::Timeout) => bail!("the VM did not finish within {DEADLINE:?}"),
            Err(RecvTimeoutError::Disconnected) => {
                bail!("the VM stopped before its tests were done")
            }
        };
        show(&line);
        if line.contains("Kernel panic") || line.contains("PANIC: double fault") {
            return Ok(Boot::Panicked);
        }
        if let Some(more) = Tally::read(&line) {
            tally += more;
        }
        if line.starts_with(TEST_FAILED) && tally.failed == 0 {
            tally.failed += 1;
        }
        if line == TESTS_DONE {
            return Ok(Boot::Ended(tally));
        }
    }
}

/// `-cx16`: without it QEMU 7.2 double-faults 6.12 in cmpxchg16b now and then.
fn qemu(kernel: &Path, image: &Path) -> Command {
    let mut command = program("qemu-system-x86_64");
    command
        .args(["-accel", "tcg,thread=multi", "-cpu", "max,-cx16", "-smp", "2", "-m", "2048"])
        .args(["-display", "none", "-vga", "none", "-monitor", "none", "-serial", "stdio"])
        .args(["-no-reboot", "-nic", "none", "-kernel"])
        .arg(kernel)
        .arg("-initrd")
        .arg(image)
        .args(["-append", "console=ttyS0 panic=-1 quiet"]);
    command
}

/// Console lines, read on a thread so that a silent VM can be waited for with a deadline.
fn lines_of(child: &mut Child) -> Receiver<String> {
    let (sender, receiver) = mpsc::sync_channel(1024);
    if let Some(output) = child.stdout.take() {
        thread::spawn(move || {
            for line in BufReader::new(output).split(b'\n').map_while(Result::ok) {
                let line = String::from_utf8_lossy(&line).trim_end().to_owned();
                if sender.send(line).is_err() {
                    break;
                }
            }
        });
    }
    receiver
}

/// The newest 6.12 kernel of Debian trixie, from the cache if it is there.
fn kernel() -> Result<PathBuf> {
    let cache = cache_dir()?.join("kernels");
    fs::create_dir_all(&cache).with_context(|| format!("could not create {cache:?}"))?;
    let archive = match Archive::open() {
        Ok(archive) => archive,
        Err(error) => {
            let cached = newest(names_in(&cache)?).with_context(|| format!("{error:#}"))?;
            complain(format_args!("{error:#}; going on with {cached}"));
            return Ok(cache.join(cached));
        }
    };
    let names = archive.names(r"^linux-image-6\.12\.[0-9]+\+deb13-cloud-amd64$")?;
    let name = newest(names).context("Debian trixie has no 6.12 cloud kernel any more")?;
    let kernel = cache.join(&name);
    if !kernel.exists() {
        announce(format_args!("{name}: downloading it"));
        let unpacked = tempfile::tempdir_in(&cache)?;
        archive.unpack(&name, unpacked.path())?;
        let version = name.trim_start_matches("linux-image-");
        let image = unpacked.path().join(format!("boot/vmlinuz-{version}"));
        fs::rename(&image, &kernel)
            .with_context(|| format!("{name} has no boot/vmlinuz-{version}"))?;
    }
    Ok(kernel)
}

fn names_in(folder: &Path) -> Result<Vec<String>> {
    let entries = fs::read_dir(folder)?.filter_map(Result::ok);
    Ok(entries
        .filter(|entry| entry.path().is_file())
        .map(|entry| entry.file_name().to_string_lossy().into_owned())
        .collect())
}

/// The greatest of several versions: number by number, 6.12.107 after 6.12.94.
fn newest(names: Vec<String>) -> Option<String> {
    names.into_iter().max_by_key(|name| {
        name.split(|it: char| !it.is_ascii_digit())
            .filter_map(|number| number.parse::<u32>().ok())
            .collect::<Vec<_>>()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_kernel_is_found_by_number() {
        let names = [
            "linux-image-6.12.94+deb13-cloud-amd64",
            "linux-image-6.12.107+deb13-cloud-amd64",
            "linux-image-6.12.9+deb13-cloud-amd64",
        ];
        assert_eq!(newest(names.map(str::to_owned).to_vec()).as_deref(), Some(names[1]));
    }

    #[test]
    fn a_console_is_counted_up_to_the_end_of_the_tests() {
        let result = "test result: ok. 2 passed; 0 failed; 0 ignored; 0 measured; 0 filtered out";
        let cases = [
            (vec!["[    1.0] booting", result, result, TESTS_DONE, "after"], Some((4, 0))),
            (vec![result, "tokentrail-vm: failed: pipeline 101", TESTS_DONE], Some((2, 1))),
            (vec![TESTS_DONE], Some((0, 0))),
            (vec![result], None),
            (vec!["Kernel panic - not syncing"], None),
        ];
        for (lines, expected) in cases {
            let (sender, console) = mpsc::sync_channel(lines.len());
            lines.iter().for_each(|line| sender.send((*line).to_owned()).unwrap());
            drop(sender);
            let counts = match watch(&console, Instant::now() + DEADLINE, |_line| ()) {
                Ok(Boot::Ended(tally)) => Some((tally.passed, tally.failed)),
                Ok(Boot::Panicked) | Err(_) => None,
            };
            assert_eq!(counts, expected, "{lines:?}");
        }
    }
}
