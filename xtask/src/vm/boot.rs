//! Boots a kernel with an image under QEMU, without KVM, and listens to its console up to the end of
//! the tests. Knows the words that `init.sh` says, and nothing about what is tested.

use std::{
    fs::{self, File},
    io::{BufRead as _, BufReader, Write as _},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::mpsc::{self, Receiver, RecvTimeoutError},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};
use serde_json::Value;

use super::matrix::Machine;
use crate::{
    build::Arch,
    shell::{announce, complain, program, say, target_dir},
    tally::Tally,
};

/// How long boot and tests may take together, emulated on slow cores that others use as well.
const DEADLINE: Duration = Duration::from_mins(45);

/// What the init script prints around the tests; the rest of the console is for people.
const TESTS_DONE: &str = "tokentrail-vm: done";
const TEST_FAILED: &str = "tokentrail-vm: failed:";
const KERNEL: &str = "tokentrail-vm: kernel: ";
const FACT: &str = "tokentrail-vm: fact: ";

/// What one boot told.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Told {
    pub(super) tally: Tally,
    /// The kernel's own name, as `uname -r` has it.
    pub(super) release: String,
    /// What `routes` and `privileges` found, in their order.
    pub(super) facts: Vec<Value>,
}

enum Boot {
    Ended(Told),
    Panicked,
}

/// Boots and returns what the tests came to. All that the console showed is in `target/vm` afterwards.
///
/// # Errors
/// If the VM does not get to the end of its tests.
pub(super) fn run(
    machine: &Machine,
    kernel: &Path,
    image: &Path,
    tests: &[String],
) -> Result<Told> {
    // QEMU's emulation is known to crash a kernel now and then; twice in a row is no accident.
    for _attempt in 0..2 {
        match boot(machine, kernel, image, tests)? {
            Boot::Ended(told) => return Ok(told),
            Boot::Panicked => complain(format_args!("{}: the VM's kernel crashed", machine.name)),
        }
    }
    bail!("the VM's kernel crashed twice; its console is in {:?}", console_log(machine))
}

fn boot(machine: &Machine, kernel: &Path, image: &Path, tests: &[String]) -> Result<Boot> {
    let name = machine.name;
    announce(format_args!("{name}: booting {}", kernel.display()));
    let start = Instant::now();
    let path = console_log(machine);
    let folder = path.parent().unwrap_or(Path::new("."));
    fs::create_dir_all(folder).with_context(|| format!("could not create {folder:?}"))?;
    let mut log = File::create(&path).with_context(|| format!("could not create {path:?}"))?;
    let mut command = qemu(machine, kernel, image, tests);
    let mut child = command.stdout(Stdio::piped()).spawn().context("could not start QEMU")?;
    let console = lines_of(&mut child);
    let watched = watch(&console, start + DEADLINE, |line| {
        say(format_args!("  {name}│ {line}"));
        // A full disk is told by what cannot be written elsewhere.
        let _ = writeln!(log, "{line}");
    });
    // It powers itself off; what is still running has nothing left to say.
    let _ = child.kill();
    child.wait()?;
    say(format_args!("  {name} ran for {:.1} s", start.elapsed().as_secs_f64()));
    watched
}

/// Where a machine's last console is kept.
fn console_log(machine: &Machine) -> PathBuf {
    target_dir().join("vm").join(format!("{}.log", machine.name))
}

/// Reads the console up to the end of the tests.
fn watch(
    console: &Receiver<String>,
    deadline: Instant,
    mut show: impl FnMut(&str),
) -> Result<Boot> {
    let mut told = Told::default();
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
            told.tally += more;
        } else if let Some(release) = line.strip_prefix(KERNEL) {
            release.clone_into(&mut told.release);
        } else if let Some(fact) = line.strip_prefix(FACT) {
            told.facts
                .push(serde_json::from_str(fact).with_context(|| format!("{fact} is no fact"))?);
        } else if line.starts_with(TEST_FAILED) && told.tally.failed == 0 {
            told.tally.failed += 1;
        } else if line == TESTS_DONE {
            return Ok(Boot::Ended(told));
        }
    }
}

fn qemu(machine: &Machine, kernel: &Path, image: &Path, tests: &[String]) -> Command {
    let (accelerator, processor, board, console) = match machine.arch {
        // In turns on one thread: side by side, one processor now and then runs into a breakpoint that the
        // other has just taken out of the code again, and the kernel crashes (`Oops: int3`).
        // `-cx16`: without it QEMU 7.2 double-faults 6.12 in cmpxchg16b now and then.
        Arch::Amd64 => ("tcg,thread=single", "max,-cx16", "pc", "ttyS0"),
        // Pointer authentication as QEMU's own cipher: the real one takes most of the time.
        Arch::Arm64 => ("tcg,thread=multi", "max,pauth-impdef=on", "virt", "ttyAMA0"),
    };
    let mut command = program(format!("qemu-system-{}", machine.arch.rust_name()));
    command
        .args(["-accel", accelerator, "-cpu", processor, "-machine", board])
        .args(["-smp", "2", "-m", "2048"])
        .args(["-display", "none", "-vga", "none", "-monitor", "none", "-serial", "stdio"])
        .args(["-no-reboot", "-nic", "none", "-kernel"])
        .arg(kernel)
        .arg("-initrd")
        .arg(image)
        .arg("-append")
        .arg(format!(
            "console={console} panic=-1 quiet tokentrail.routes={} tokentrail.tests={} {}",
            machine.routes.join(","),
            tests.join(","),
            machine.parameters
        ));
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

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_console_is_counted_up_to_the_end_of_the_tests() {
        let result = "test result: ok. 2 passed; 0 failed; 0 ignored; 0 measured; 0 filtered out";
        let cases = [
            (vec!["[    1.0] booting", result, result, TESTS_DONE, "after"], Some((4, 0))),
            (vec![result, "tokentrail-vm: failed: pipeline 101", TESTS_DONE], Some((2, 1))),
            (vec![TESTS_DONE], Some((0, 0))),
            (vec![result], None),
            (vec!["tokentrail-vm: fact: {", TESTS_DONE], None),
            (vec!["Kernel panic - not syncing"], None),
        ];
        for (lines, expected) in cases {
            let told = watched(&lines);
            let counts = told.map(|told| (told.tally.passed, told.tally.failed));
            assert_eq!(counts, expected, "{lines:?}");
        }
    }

    #[test]
    fn kernel_and_facts_are_read_off_the_console() {
        let lines = [
            "tokentrail-vm: kernel: 6.12.9",
            "tokentrail-vm: fact: {\"route\":\"exit\"}",
            TESTS_DONE,
        ];
        let told = watched(&lines).unwrap();
        assert_eq!((told.release.as_str(), told.facts), ("6.12.9", vec![json!({"route": "exit"})]));
    }

    fn watched(lines: &[&str]) -> Option<Told> {
        let (sender, console) = mpsc::sync_channel(lines.len());
        lines.iter().for_each(|line| sender.send((*line).to_owned()).unwrap());
        drop(sender);
        match watch(&console, Instant::now() + DEADLINE, |_line| ()) {
            Ok(Boot::Ended(told)) => Some(told),
            Ok(Boot::Panicked) | Err(_) => None,
        }
    }
}
