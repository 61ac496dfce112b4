//! Opens its pod's token in every way there is, each in a process that bears the way's name.
//!
//! This part of the program runs in a container. Without an argument it forks for each way and prints
//! a line of what became of it: `done`, `impossible` where this kernel has no such way, or `failed`.
//! By [`announce`] the test learns which process is about to have the token.

mod calls;
mod descriptors;
mod mounts;
mod processes;
mod terminals;
mod uring;

use std::{
    env,
    ffi::CString,
    fmt,
    io::{self, Read as _, Write as _},
    os::{
        fd::AsFd,
        unix::{net::UnixStream, process::ExitStatusExt as _},
    },
    process::{Command, ExitCode, ExitStatus},
};

use anyhow::{Context as _, Result, bail, ensure};

/// Where the volume is.
const FOLDER: &str = "/var/run/secrets/kubernetes.io/serviceaccount";
const TOKEN: &str = "/var/run/secrets/kubernetes.io/serviceaccount/token";
/// Where the test listens.
const LISTENER: &str = "/workload/who";
/// Exit code of a way that this kernel does not have.
const IMPOSSIBLE: u8 = 77;
/// First argument of this program where it is the opener.
pub(crate) const OPEN: &str = "--open";
/// Argument of an opener that only reads a descriptor which it inherited.
const READ: &str = "read";

/// A way: its name, at most 15 bytes, and what opens and reads the token.
type Way = (&'static str, fn() -> Result<()>);

/// Runs as the opener: all ways, or the one that is named.
pub(crate) fn run(arguments: &[&str]) -> ExitCode {
    ExitCode::from(exit_code(match arguments {
        [] => go_every_way(),
        [READ, descriptor] => processes::read_inherited(descriptor),
        [name, ..] => go(name),
    }))
}

/// Says what went wrong, and returns with what to exit.
fn exit_code(result: Result<()>) -> u8 {
    let Err(error) = result else { return 0 };
    let _ = writeln!(io::stderr(), "{error:#}");
    if error.is::<Impossible>() { IMPOSSIBLE } else { 1 }
}

/// This program as the opener of a way, or of what [`READ`] does.
fn opener() -> io::Result<Command> {
    let mut command = Command::new(env::current_exe()?);
    command.arg(OPEN);
    Ok(command)
}

fn ways() -> Vec<Way> {
    let rooms = [
        calls::WAYS,
        descriptors::WAYS,
        mounts::WAYS,
        processes::WAYS,
        terminals::WAYS,
        uring::WAYS,
    ];
    rooms.concat()
}

fn go_every_way() -> Result<()> {
    for (name, _) in ways() {
        let (mut errors, to) = io::pipe()?;
        let child = fork(|| {
            rustix::stdio::dup2_stderr(&to)?;
            go(name)
        })?;
        drop(to);
        let mut said = String::new();
        errors.read_to_string(&mut said)?;
        let said = said.trim().replace('\n', "; ");
        let ended = wait_for(child)?;
        let result = match ended.code() {
            Some(0) => "done".to_owned(),
            Some(code) if u8::try_from(code) == Ok(IMPOSSIBLE) => format!("impossible: {said}"),
            // What a kernel without 32-bit calls does.
            None if name == calls::INT80 && ended.signal() == Some(libc::SIGSEGV) => {
                "impossible: no 32-bit calls".to_owned()
            }
            _ => format!("failed: {ended}: {said}"),
        };
        writeln!(io::stdout(), "{name} {result}")?;
    }
    Ok(())
}

fn go(name: &str) -> Result<()> {
    rustix::thread::set_name(&CString::new(name)?)?;
    let ways = ways();
    let (_, way) =
        ways.iter().find(|(known, _)| *known == name).with_context(|| format!("no way {name}"))?;
    way()
}

/// Tells the test that this very process is about to have the token.
fn announce() -> Result<()> {
    let mut test = UnixStream::connect(LISTENER).context("the test does not listen")?;
    test.write_all(rustix::thread::name()?.as_bytes())?;
    Ok(())
}

/// Reads a file and makes sure that it is the token.
fn read(file: impl AsFd) -> Result<()> {
    let mut start = [0; 2];
    let count = rustix::io::read(file, &mut start)?;
    is_token(start.get(..count).unwrap_or_default())
}

/// Whether these are the first bytes of a JWT.
fn is_token(bytes: &[u8]) -> Result<()> {
    ensure!(bytes.starts_with(b"ey"), "what was read is no token");
    Ok(())
}

/// This kernel, or its configuration, has no such way.
#[derive(Debug)]
struct Impossible(String);

impl fmt::Display for Impossible {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Impossible {}

/// Takes "no such system call" or "no such file system" for the answer that it is.
fn if_possible<T>(what: &str, result: io::Result<T>) -> Result<T> {
    match result {
        Err(error) if matches!(error.raw_os_error(), Some(libc::ENOSYS | libc::ENODEV)) => {
            Err(Impossible(format!("{what}: {error}")).into())
        }
        result => result.with_context(|| what.to_owned()),
    }
}

/// The result of a raw system call that returns a number.
fn checked(returned: libc::c_long) -> io::Result<i32> {
    match i32::try_from(returned) {
        Ok(number) if number >= 0 => Ok(number),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Runs `body` in a child, which is forked.
fn fork(body: impl FnOnce() -> Result<()>) -> Result<i32> {
    // SAFETY: this program has one thread, so a child may do whatever the parent may.
    match unsafe { libc::fork() } {
        -1 => Err(io::Error::last_os_error()).context("fork"),
        0 => {
            let code = exit_code(body());
            // SAFETY: takes no pointer; nothing of the parent is run at its end.
            unsafe { libc::_exit(code.into()) }
        }
        child => Ok(child),
    }
}

fn wait_for(child: i32) -> Result<ExitStatus> {
    let mut status = 0;
    // SAFETY: `status` is writable.
    let waited = unsafe { libc::waitpid(child, &raw mut status, 0) };
    ensure!(waited == child, "waitpid: {}", io::Error::last_os_error());
    Ok(ExitStatus::from_raw(status))
}

/// Runs `body` in a child to its end.
fn in_child(body: impl FnOnce() -> Result<()>) -> Result<()> {
    let ended = wait_for(fork(body)?)?;
    match ended.code() {
        Some(0) => Ok(()),
        // It has said why.
        Some(code) if u8::try_from(code) == Ok(IMPOSSIBLE) => {
            Err(Impossible("a child was told so".to_owned()).into())
        }
        _ => bail!("a child failed: {ended}"),
    }
}
