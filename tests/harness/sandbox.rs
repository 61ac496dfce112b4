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
    process::{Child, Command, Stdio},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError, Weak,
        atomic::{AtomicBool, Ordering},
    },
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

use crate::{
    cgroups,
    cluster::{Layout, take_down},
    command::{Finished, run_with_input, run_with_pipes, run_with_terminal},
    wait::wait_until,
};

/// A folder on disk with a kubelet directory in it; dropping it undoes everything.
pub struct Sandbox {
    folder: PathBuf,
    ledger: Arc<Ledger>,
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
        let ledger = Ledger::create()?;
        ledger.change(|undo| {
            undo.push(Undo::Folder(folder.clone()));
            Ok(())
        })?;
        let sandbox = Self { folder, ledger };
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
        self.file_system("tmpfs", name, flags, options)
    }

    /// Mounts a new file system of this kind in the folder of this name and returns the folder. What is
    /// mounted there already is covered by it.
    ///
    /// # Errors
    /// If it cannot be mounted (needs root).
    pub fn file_system(
        &self,
        kind: &str,
        name: &str,
        flags: MountFlags,
        options: &CStr,
    ) -> Result<PathBuf> {
        let folder = self.folder.join(name);
        fs::create_dir_all(&folder).with_context(|| format!("could not create {folder:?}"))?;
        self.ledger.change(|undo| {
            undo.push(Undo::Mount(folder.clone()));
            mount(kind, &folder, kind, flags, options)
                .with_context(|| format!("could not mount a {kind} at {folder:?}"))
        })?;
        Ok(folder)
    }

    /// Runs a program of the host to its end; its output goes through pipes.
    ///
    /// # Errors
    /// If it cannot be started or does not end in time; not if it fails.
    pub fn run(&self, command: &mut Command) -> Result<Finished> {
        run_with_pipes(&self.ledger, command)
    }

    /// Runs a program as [`run`](Self::run) does, with this on its standard input.
    ///
    /// # Errors
    /// As there.
    pub fn run_with_input(&self, command: &mut Command, input: &str) -> Result<Finished> {
        run_with_input(&self.ledger, command, input)
    }

    /// Runs a program as [`run`](Self::run) does, on a new terminal.
    ///
    /// # Errors
    /// As there.
    pub fn run_with_terminal(&self, command: &mut Command) -> Result<Finished> {
        run_with_terminal(&self.ledger, command)
    }

    /// Undoes everything now and tells what could not be undone.
    ///
    /// # Errors
    /// Lists what is left behind.
    pub fn close(self) -> Result<()> {
        self.ledger.undo()
    }

    /// Where changes of the machine are written down.
    pub(crate) fn ledger(&self) -> &Arc<Ledger> {
        &self.ledger
    }
}

impl Drop for Sandbox {
    fn drop(&mut self) {
        self.ledger.undo_or_report();
    }
}

/// Makes Ctrl-C and SIGTERM undo every sandbox of this program before it ends, with exit code
/// 128 + signal as shells have it.
fn clean_up_on_signals() -> Result<()> {
    let mut watched = locked(&SIGNALS_WATCHED);
    if *watched {
        return Ok(());
    }
    let mut signals = Signals::new([SIGINT, SIGTERM]).context("could not catch SIGINT, SIGTERM")?;
    *watched = true;
    thread::spawn(move || {
        if let Some(signal) = signals.forever().next() {
            INTERRUPTED.store(true, Ordering::Relaxed);
            let live: Vec<_> = locked(&LIVE).iter().filter_map(Weak::upgrade).collect();
            for ledger in live {
                report(ledger.undo());
            }
            std::process::exit(128 + signal);
        }
    });
    Ok(())
}

/// Everything that was put into the machine; `None` once it was undone.
pub(crate) struct Ledger(Mutex<Option<Vec<Undo>>>);

impl Ledger {
    /// An empty one, undone on Ctrl-C and SIGTERM too.
    pub(crate) fn create() -> Result<Arc<Self>> {
        clean_up_on_signals()?;
        let ledger = Arc::new(Self(Mutex::new(Some(Vec::new()))));
        let mut live = locked(&LIVE);
        live.retain(|ledger| ledger.strong_count() > 0);
        live.push(Arc::downgrade(&ledger));
        Ok(ledger)
    }

    /// Changes the machine: `action` notes what undoes it, and does it. Cleaning up waits for it
    /// to end, so that a signal in the middle of it leaves nothing behind either.
    pub(crate) fn change<T>(&self, action: impl FnOnce(&mut Vec<Undo>) -> Result<T>) -> Result<T> {
        let mut list = locked(&self.0);
        action(list.as_mut().context("the sandbox is being cleaned up")?)
    }

    /// Starts a process that does not outlive the sandbox.
    pub(crate) fn spawn(self: &Arc<Self>, command: &mut Command) -> Result<Process> {
        self.change(|undo| {
            let program = command.get_program().to_owned();
            let mut child =
                command.spawn().with_context(|| format!("could not start {program:?}"))?;
            let pidfd = pidfd_open(Pid::from_child(&child), PidfdFlags::empty())
                .inspect_err(|_| kill_and_reap(&mut child))
                .with_context(|| format!("could not watch {program:?}"))?;
            let pidfd = Arc::new(pidfd);
            undo.push(Undo::Process(Arc::clone(&pidfd)));
            Ok(Process { child, pidfd, ledger: Arc::clone(self) })
        })
    }

    /// Undoes all, latest first; one failure does not keep the others from being undone. The lock
    /// is held meanwhile, so that a second caller (signal against drop) waits for the first.
    pub(crate) fn undo(&self) -> Result<()> {
        let mut list = locked(&self.0);
        let failures: Vec<String> = list
            .take()
            .into_iter()
            .flat_map(|list| list.into_iter().rev())
            .filter_map(|undo| undo.run().err())
            .map(|error| format!("{error:#}"))
            .collect();
        if failures.is_empty() {
            Ok(())
        } else {
            Err(anyhow!("left behind: {}", failures.join("; ")))
        }
    }

    /// Undoes everything where nobody could be given an error.
    pub(crate) fn undo_or_report(&self) {
        report(self.undo());
        while INTERRUPTED.load(Ordering::Relaxed) {
            // The signal thread ends the program; the failures that it caused are nobody's news.
            thread::park();
        }
    }

    /// Lets a cluster stay.
    pub(crate) fn forget_cluster(&self) {
        if let Some(list) = locked(&self.0).as_mut() {
            list.retain(|undo| !matches!(undo, Undo::Cluster(_)));
        }
    }

    fn forget_process(&self, ended: &Arc<OwnedFd>) {
        if let Some(list) = locked(&self.0).as_mut() {
            list.retain(|undo| !matches!(undo, Undo::Process(it) if Arc::ptr_eq(it, ended)));
        }
    }
}

/// A running process of the sandbox. Dropping it kills it.
pub(crate) struct Process {
    pub(crate) child: Child,
    pidfd: Arc<OwnedFd>,
    ledger: Arc<Ledger>,
}

impl Drop for Process {
    fn drop(&mut self) {
        kill_and_reap(&mut self.child);
        self.ledger.forget_process(&self.pidfd);
    }
}

fn kill_and_reap(child: &mut Child) {
    let _ = child.kill();
    let _ = child.wait();
}

/// One thing that was put into the machine.
pub(crate) enum Undo {
    /// A process, with a pidfd: its number may belong to another one by now.
    Process(Arc<OwnedFd>),
    /// A container that runc keeps below this root.
    Container { runc: PathBuf, root: PathBuf, id: String },
    /// A mount at this path.
    Mount(PathBuf),
    /// A cgroup, by its path from the root of every hierarchy (see `cgroups`).
    Cgroup(PathBuf),
    /// A folder with all that is in it.
    Folder(PathBuf),
    /// A whole Kubernetes cluster.
    Cluster(Layout),
}

impl Undo {
    fn run(self) -> Result<()> {
        match self {
            Self::Process(pidfd) => kill(&pidfd),
            // A program that was just being started in it may keep it busy for a moment.
            Self::Container { runc, root, id } => {
                wait_until(CLEANING, &format!("container {id} is gone"), || {
                    Ok(container_is_deleted(&runc, &root, &id)?.then_some(()))
                })
            }
            Self::Mount(path) => {
                detach(&path).with_context(|| format!("could not unmount {path:?}"))
            }
            Self::Cgroup(path) => cgroups::remove(&path, CLEANING),
            Self::Cluster(layout) => take_down(&layout),
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

/// Ledgers of this process, for the signal handler.
static LIVE: Mutex<Vec<Weak<Ledger>>> = Mutex::new(Vec::new());

/// Whether a signal is ending the program.
static INTERRUPTED: AtomicBool = AtomicBool::new(false);

/// Whether the thread that waits for signals was started.
static SIGNALS_WATCHED: Mutex<bool> = Mutex::new(false);

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

fn container_is_deleted(runc: &Path, root: &Path, id: &str) -> Result<bool> {
    let output = Command::new(runc)
        .arg("--root")
        .arg(root)
        .args(["delete", "--force", id])
        .stdin(Stdio::null())
        .output()
        .context("could not start runc")?;
    Ok(output.status.success())
}

/// Unmounts; a mount that is still looked at goes away when the last one looks away.
fn detach(path: &Path) -> Result<(), Errno> {
    match unmount(path, UnmountFlags::NOFOLLOW) {
        Err(Errno::BUSY) => unmount(path, UnmountFlags::NOFOLLOW | UnmountFlags::DETACH),
        // Never mounted: what should have done it failed.
        Err(Errno::INVAL | Errno::NOENT) => Ok(()),
        other => other,
    }
}

pub(crate) fn report(result: Result<()>) {
    if let Err(error) = result {
        let _ = writeln!(std::io::stderr(), "{error:#}");
    }
}

/// A list stays usable after a panic elsewhere: that is when it is needed most.
pub(crate) fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
