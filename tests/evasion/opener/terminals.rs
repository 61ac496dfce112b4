//! Ways by what the reader's terminal and descriptors are, whatever they were when it started.

use std::{
    fs::File,
    os::fd::{AsFd, OwnedFd},
};

use anyhow::Result;
use rustix::{
    fs::{Mode, OFlags, open},
    process::{ioctl_tiocsctty, setsid},
    pty::{OpenptFlags, openpt, ptsname, unlockpt},
    stdio::{dup2_stderr, dup2_stdin, dup2_stdout},
};

use super::{TOKEN, Way, calls::by_path, in_child};

pub(crate) const WAYS: &[Way] = &[
    ("tiocsctty", || with_terminal(|_| Ok(()))),
    ("tty_on_0_and_2", || with_terminal(|terminal| take(terminal, terminal))),
    ("tty_on_0", || with_terminal(|terminal| take(terminal, &File::create("/dev/null")?))),
    ("tty_on_2", || with_terminal(|terminal| take(&File::open("/dev/null")?, terminal))),
];

/// Reads with a new terminal, after its descriptors were arranged.
fn with_terminal(arrange: fn(&OwnedFd) -> Result<()>) -> Result<()> {
    let ours = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY)?;
    unlockpt(&ours)?;
    let name = ptsname(&ours, Vec::new())?;
    let theirs = open(name, OFlags::RDWR | OFlags::NOCTTY, Mode::empty())?;
    in_child(|| {
        setsid()?;
        ioctl_tiocsctty(&theirs)?;
        arrange(&theirs)?;
        by_path(TOKEN)
    })
}

/// Makes these descriptors 0 and 2.
fn take(input: &impl AsFd, errors: &impl AsFd) -> Result<()> {
    dup2_stdin(input)?;
    dup2_stdout(File::create("/dev/null")?)?;
    dup2_stderr(errors)?;
    Ok(())
}
