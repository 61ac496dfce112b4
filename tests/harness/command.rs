//! Running one program to its end within a deadline, with or without a terminal.

use std::{
    fs::File,
    io::{Read, Write as _},
    process::{Command, Stdio},
    sync::Arc,
    thread::{self, JoinHandle},
};

use anyhow::{Context as _, Result, bail};
use rustix::{
    fs::{Mode, OFlags, open},
    pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt},
};

use crate::{
    sandbox::{Ledger, Process},
    wait::{PATIENCE, wait_until},
};

/// What a program left behind.
#[derive(Clone, Debug)]
pub struct Finished {
    /// Its exit code; `None` if a signal ended it.
    pub code: Option<i32>,
    /// What it wrote to standard output; with a terminal, all that the terminal showed.
    pub output: String,
    /// What it wrote to standard error; with a terminal, nothing.
    pub errors: String,
}

impl Finished {
    /// Whether the exit code is 0.
    pub fn success(&self) -> bool {
        self.code == Some(0)
    }
}

/// Runs a program that says nothing unless it fails.
pub(crate) fn run_silent(command: &mut Command) -> Result<()> {
    let output = command
        .stdin(Stdio::null())
        .output()
        .with_context(|| format!("could not start {:?}", command.get_program()))?;
    if !output.status.success() {
        let args: Vec<_> = command.get_args().map(|it| it.to_string_lossy()).collect();
        let said = String::from_utf8_lossy(&output.stderr);
        bail!("`{}` failed: {}", args.join(" "), said.trim());
    }
    Ok(())
}

/// Runs a program whose input is empty and whose output goes through pipes.
pub(crate) fn run_with_pipes(ledger: &Arc<Ledger>, command: &mut Command) -> Result<Finished> {
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut process = ledger.spawn(command)?;
    let output = process.child.stdout.take().map(read_to_end);
    let errors = process.child.stderr.take().map(read_to_end);
    let code = finish(&mut process, command)?;
    Ok(Finished { code, output: collect(output), errors: collect(errors) })
}

/// Runs a program with this on its standard input; its output goes through pipes.
pub(crate) fn run_with_input(
    ledger: &Arc<Ledger>,
    command: &mut Command,
    input: &str,
) -> Result<Finished> {
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut process = ledger.spawn(command)?;
    let output = process.child.stdout.take().map(read_to_end);
    let errors = process.child.stderr.take().map(read_to_end);
    if let Some(mut pipe) = process.child.stdin.take() {
        // A program that ends before it has read all says itself what was wrong.
        let _ = pipe.write_all(input.as_bytes());
    }
    let code = finish(&mut process, command)?;
    Ok(Finished { code, output: collect(output), errors: collect(errors) })
}

/// Runs a program whose three standard descriptors are one new pseudo terminal.
pub(crate) fn run_with_terminal(ledger: &Arc<Ledger>, command: &mut Command) -> Result<Finished> {
    let Console { mut process, shown } = spawn_with_terminal(ledger, command)?;
    let code = finish(&mut process, command)?;
    Ok(Finished { code, output: collect(Some(shown)), errors: String::new() })
}

/// A running program with a terminal.
pub(crate) struct Console {
    process: Process,
    shown: JoinHandle<Vec<u8>>,
}

/// Starts a program whose three standard descriptors are one new pseudo terminal.
pub(crate) fn spawn_with_terminal(ledger: &Arc<Ledger>, command: &mut Command) -> Result<Console> {
    let ours = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC)
        .context("could not open a pseudo terminal")?;
    grantpt(&ours)?;
    unlockpt(&ours)?;
    let name = ptsname(&ours, Vec::new())?;
    let theirs = open(name, OFlags::RDWR | OFlags::NOCTTY | OFlags::CLOEXEC, Mode::empty())
        .context("could not open the other end of a pseudo terminal")?;
    command.stdin(theirs.try_clone()?).stdout(theirs.try_clone()?).stderr(theirs);
    let process = ledger.spawn(command)?;
    // The command holds the terminal's other end; only without it does reading come to an end.
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    Ok(Console { process, shown: read_to_end(File::from(ours)) })
}

fn finish(process: &mut Process, command: &Command) -> Result<Option<i32>> {
    let what = format!("{command:?} ends");
    let status = wait_until(PATIENCE, &what, || Ok(process.child.try_wait()?))?;
    Ok(status.code())
}

/// Reads on a thread of its own, so that a full pipe never stops the program.
fn read_to_end(mut from: impl Read + Send + 'static) -> JoinHandle<Vec<u8>> {
    thread::spawn(move || {
        let mut bytes = Vec::new();
        // A terminal ends with EIO once its other end is closed; what came before it is all.
        let _ = from.read_to_end(&mut bytes);
        bytes
    })
}

fn collect(reader: Option<JoinHandle<Vec<u8>>>) -> String {
    let bytes = reader.and_then(|reader| reader.join().ok()).unwrap_or_default();
    String::from_utf8_lossy(&bytes).into_owned()
}
