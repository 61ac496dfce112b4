//! A place for one scenario, and the list of everything that it put into the machine.
//!
//! Whatever happens (success, failed assertion, early return, Ctrl-C), the list is undone in
//! reverse order. Only what is on the list is touched: processes by pidfd, mounts and cgroups by
//! their full path.

use std::{
    ffi::CStr,
    fs,
    io::{ErrorKind, Write as _},
    os::fd::OwnedFd,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::{Arc, Mutex, MutexGuard, PoisonError, Weak},
    thread,
    time::Duration,
};

use anyhow::{Context as _, Result, anyhow, bail};
use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    io::Errno,
    mount::{MountFlags, UnmountFlags, mount, unmount},
    process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal},
};
use signal_hook::{
    consts::{SIGINT, SIGTERM},
    iterator::Signals,
};

use crate::cgroups;

/// A folder on disk with a kubelet directory in it; dropping it undoes everything.
pub struct Sandbox {
    folder: PathBuf,
    undo: Arc<UndoList>,
}

impl Sandbox {
    /// An empty one, in the folder for temporary files.
    ///
    /// # Errors
    /// If the folder cannot be made.
    pub fn create() -> Result<Self> {
        let folder = tempfile::Builder::new()
            .prefix("tokentrail-")
            .tempdir()
            .context("could not create a folder for temporary files")?
            .keep();
        let undo = Arc::new(UndoList::default());
        undo.push(Undo::Folder(folder.clone()));
        let mut live = locked(&LIVE);
        live.retain(|list| list.strong_count() > 0);
        live.push(Arc::downgrade(&undo));
        drop(live);
        let sandbox = Self { folder, undo };
        fs::create_dir(sandbox.kubelet_root())?;
        Ok(sandbox)
    }

    /// Its folder. On disk, so that no file in it looks like one of a token volume.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// The directory that the kubelet would call `--root-dir`.
    pub fn kubelet_root(&self) -> PathBuf {
        self.folder.join("kubelet")
    }

    /// Mounts a tmpfs of its own in a new folder of this name and returns the folder.
    ///
    /// # Errors
    /// If it cannot be mounted (needs root).
    pub fn tmpfs(&self, name: &str, flags: MountFlags, options: &CStr) -> Result<PathBuf> {
        let folder = self.folder.join(name);
        fs::create_dir_all(&folder).with_context(|| format!("could not create {folder:?}"))?;
        mount("tmpfs", &folder, "tmpfs", flags, options)
            .with_context(|| format!("could not mount a tmpfs at {folder:?}"))?;
        self.on_close(Undo::Mount(folder.clone()));
        Ok(folder)
    }

    /// Undoes everything now and tells what could not be undone.
    ///
    /// # Errors
    /// Lists what is left behind.
    pub fn close(self) -> Result<()> {
        self.undo.run()
    }

    /// Notes something to be undone.
    pub(crate) fn on_close(&self, undo: Undo) {
        self.undo.push(undo);
    }
}

impl Drop for Sandbox {
    fn drop(&mut self) {
        report(self.undo.run());
    }
}

/// Makes Ctrl-C and SIGTERM undo every sandbox of this program before it ends, with exit code
/// 128 + signal as shells have it.
///
/// # Errors
/// If the signals cannot be caught.
pub fn clean_up_on_signals() -> Result<()> {
    let mut signals = Signals::new([SIGINT, SIGTERM]).context("could not catch SIGINT, SIGTERM")?;
    thread::spawn(move || {
        if let Some(signal) = signals.forever().next() {
            let live: Vec<_> = locked(&LIVE).iter().filter_map(Weak::upgrade).collect();
            for list in live {
                report(list.run());
            }
            std::process::exit(128 + signal);
        }
    });
    Ok(())
}

/// One thing that was put into the machine.
pub(crate) enum Undo {
    /// A process, held by a pidfd: its number may belong to another one by now.
    Process(OwnedFd),
    /// A container that runc keeps below this root.
    Container { runc: PathBuf, root: PathBuf, id: String },
    /// A mount at this path.
    Mount(PathBuf),
    /// A cgroup, by its path from the root of every hierarchy (see `cgroups`).
    Cgroup(PathBuf),
    /// A folder with all that is in it.
    Folder(PathBuf),
}

impl Undo {
    /// A process that was just started.
    pub(crate) fn process(child: &std::process::Child) -> Result<Self> {
        let pid = Pid::from_child(child);
        let pidfd = pidfd_open(pid, PidfdFlags::empty())
            .with_context(|| format!("could not watch process {}", child.id()))?;
        Ok(Self::Process(pidfd))
    }

    fn run(self) -> Result<()> {
        match self {
            Self::Process(pidfd) => kill(&pidfd),
            Self::Container { runc, root, id } => delete_container(&runc, &root, &id),
            Self::Mount(path) => {
                detach(&path).with_context(|| format!("could not unmount {path:?}"))
            }
            Self::Cgroup(path) => cgroups::remove(&path, CLEANING),
            Self::Folder(path) => match fs::remove_dir_all(&path) {
                Err(error) if error.kind() != ErrorKind::NotFound => {
                    Err(error).with_context(|| format!("could not remove {path:?}"))
                }
                _ => Ok(()),
            },
        }
    }
}

/// How long one thing may take to go away.
const CLEANING: Duration = Duration::from_secs(10);

/// Undo lists of this process, for the signal handler.
static LIVE: Mutex<Vec<Weak<UndoList>>> = Mutex::new(Vec::new());

#[derive(Default)]
struct UndoList(Mutex<Vec<Undo>>);

impl UndoList {
    fn push(&self, undo: Undo) {
        locked(&self.0).push(undo);
    }

    /// Undoes all, latest first; one failure does not keep the others from being undone. The lock
    /// is held meanwhile, so that a second caller (signal against drop) waits for the first.
    fn run(&self) -> Result<()> {
        let mut list = locked(&self.0);
        let failures: Vec<String> = std::iter::from_fn(|| list.pop())
            .filter_map(|undo| undo.run().err())
            .map(|error| format!("{error:#}"))
            .collect();
        if failures.is_empty() {
            Ok(())
        } else {
            Err(anyhow!("left behind: {}", failures.join("; ")))
        }
    }
}

fn kill(pidfd: &OwnedFd) -> Result<()> {
    match pidfd_send_signal(pidfd, Signal::KILL) {
        Ok(()) => {}
        Err(Errno::SRCH) => return Ok(()),
        Err(error) => return Err(error).context("could not kill a process"),
    }
    let deadline = Timespec { tv_sec: CLEANING.as_secs().cast_signed(), tv_nsec: 0 };
    let ended = poll(&mut [PollFd::new(pidfd, PollFlags::IN)], Some(&deadline))?;
    if ended == 0 {
        bail!("a killed process did not end");
    }
    Ok(())
}

fn delete_container(runc: &Path, root: &Path, id: &str) -> Result<()> {
    let status = Command::new(runc)
        .arg("--root")
        .arg(root)
        .args(["delete", "--force", id])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .status()
        .context("could not start runc")?;
    if !status.success() {
        bail!("runc could not delete container {id} ({status})");
    }
    Ok(())
}

/// Unmounts; a mount that is still looked at goes away when the last one looks away.
fn detach(path: &Path) -> Result<(), Errno> {
    match unmount(path, UnmountFlags::NOFOLLOW) {
        Err(Errno::BUSY) => unmount(path, UnmountFlags::NOFOLLOW | UnmountFlags::DETACH),
        other => other,
    }
}

fn report(result: Result<()>) {
    if let Err(error) = result {
        let _ = writeln!(std::io::stderr(), "{error:#}");
    }
}

/// A list stays usable after a panic elsewhere: that is when it is needed most.
pub(crate) fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
