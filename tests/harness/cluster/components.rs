//! A cluster's processes: started in a cgroup and a network namespace of the cluster's, and found
//! again by that cgroup alone, whoever started them.

use std::{
    collections::BTreeSet,
    fs::{self, File, OpenOptions},
    io::{self, ErrorKind, Read as _, Seek as _, SeekFrom},
    path::{Path, PathBuf},
    process::{Command, Stdio},
    thread,
};

use anyhow::{Context as _, Result, bail};
use rustix::{
    io::Errno,
    process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal},
};

use super::layout::Layout;
use crate::{
    machine::{Hierarchy, cgroup_hierarchies},
    wait::{PATIENCE, wait_until},
};

/// Enters the cgroup before anything else, so that no moment exists at which a process of the
/// cluster could not be found. A cgroup that is gone means that the cluster is going down.
const ENTER: &str = r#"set -e; echo $$ > "$1"; shift; exec "$@""#;

/// A program to be run in a node's network as this component.
pub(crate) fn command(
    layout: &Layout,
    node: &str,
    component: &str,
    program: &Path,
) -> Result<Command> {
    if !layout.facts().exists() || layout.going_down().exists() {
        bail!("cluster {} is not up", layout.name());
    }
    let group = group_folder(layout, component)?;
    fs::create_dir_all(&group).with_context(|| format!("could not create the cgroup {group:?}"))?;
    let mut command = Command::new("sh");
    command
        .args(["-c", ENTER, "sh"])
        .arg(group.join("cgroup.procs"))
        .arg("nsenter")
        .arg(format!("--net={}", layout.netns(node).display()))
        .arg("--")
        .arg(program);
    Ok(command)
}

/// Starts a component that outlives this program; its output goes to its log.
pub(crate) fn start(layout: &Layout, component: &str, command: &Command) -> Result<()> {
    let log = layout.log(component);
    let log = OpenOptions::new()
        .create(true)
        .append(true)
        .open(&log)
        .with_context(|| format!("could not open the log {log:?}"))?;
    // A session of its own: neither a terminal nor its Ctrl-C reaches it.
    let mut detached = Command::new("setsid");
    detached
        .arg(command.get_program())
        .args(command.get_args())
        .stdin(Stdio::null())
        .stdout(log.try_clone()?)
        .stderr(log);
    let mut child = detached.spawn().with_context(|| format!("could not start {component}"))?;
    let started = wait_until(PATIENCE, &format!("{component} has started"), || {
        let ended = child.try_wait()?.is_some();
        Ok((ended || is_running(layout, component)).then_some(()))
    });
    // Whenever it ends, nothing of it is left, not even its entry in the table of processes.
    thread::spawn(move || child.wait());
    started
}

/// Whether any process of this component is there.
pub(crate) fn is_running(layout: &Layout, component: &str) -> bool {
    !processes(&layout.component_cgroup(component)).unwrap_or_default().is_empty()
}

/// The components that were ever started, by name.
pub(crate) fn names(layout: &Layout) -> Result<Vec<String>> {
    let folder = group_folder(layout, "")?;
    let entries = fs::read_dir(&folder).with_context(|| format!("could not list {folder:?}"))?;
    let mut names: Vec<String> = entries
        .filter_map(Result::ok)
        .filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()))
        .map(|entry| entry.file_name().to_string_lossy().into_owned())
        .collect();
    names.sort();
    Ok(names)
}

/// Sends a signal to every process in a cgroup and those below it; returns how many there were.
///
/// # Errors
/// If there is one that cannot be told it.
pub(crate) fn signal(group: &Path, signal: Signal) -> Result<usize> {
    let processes = processes(group)?;
    for pid in &processes {
        let Some(id) = Pid::from_raw(*pid) else { continue };
        let sent = pidfd_open(id, PidfdFlags::empty()).and_then(|pidfd| {
            // The number may have passed to another process before the descriptor held it.
            if is_member(*pid, group) { pidfd_send_signal(&pidfd, signal) } else { Ok(()) }
        });
        match sent {
            Ok(()) | Err(Errno::SRCH) => {}
            Err(error) => {
                return Err(error).with_context(|| format!("could not signal process {pid}"));
            }
        }
    }
    Ok(processes.len())
}

/// All processes in a cgroup and those below it, in whatever hierarchy.
pub(crate) fn processes(group: &Path) -> Result<BTreeSet<i32>> {
    let mut found = BTreeSet::new();
    for hierarchy in cgroup_hierarchies()? {
        collect(&hierarchy.mount.join(group), &mut found)?;
    }
    Ok(found)
}

/// The end of what a component wrote, to be shown with an error.
pub(crate) fn end_of_log(layout: &Layout, component: &str) -> String {
    const ENOUGH: u64 = 2048;
    let read = || -> io::Result<String> {
        let mut file = File::open(layout.log(component))?;
        let length = file.metadata()?.len();
        file.seek(SeekFrom::Start(length.saturating_sub(ENOUGH)))?;
        let mut end = Vec::new();
        file.read_to_end(&mut end)?;
        Ok(String::from_utf8_lossy(&end).into_owned())
    };
    read().unwrap_or_else(|error| format!("(no log: {error})"))
}

/// Where a component's cgroup is. One hierarchy is enough to find a process by: the unified one,
/// where containers are told apart too, or whichever there is.
fn group_folder(layout: &Layout, component: &str) -> Result<PathBuf> {
    let hierarchies = cgroup_hierarchies()?;
    let Hierarchy { mount, .. } = hierarchies
        .iter()
        .find(|hierarchy| hierarchy.unified)
        .or_else(|| hierarchies.first())
        .context("no cgroup hierarchy is mounted")?;
    Ok(mount.join(layout.component_cgroup(component)))
}

fn collect(folder: &Path, found: &mut BTreeSet<i32>) -> Result<()> {
    // Groups come and go while one looks.
    let Ok(procs) = fs::read_to_string(folder.join("cgroup.procs")) else { return Ok(()) };
    found.extend(procs.lines().filter_map(|line| line.parse::<i32>().ok()));
    let entries = match fs::read_dir(folder) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
        entries => entries?,
    };
    for entry in entries.filter_map(Result::ok) {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            collect(&entry.path(), found)?;
        }
    }
    Ok(())
}

fn is_member(pid: i32, group: &Path) -> bool {
    let group = Path::new("/").join(group);
    fs::read_to_string(format!("/proc/{pid}/cgroup")).is_ok_and(|groups| {
        groups
            .lines()
            .filter_map(|line| line.splitn(3, ':').nth(2))
            .any(|path| Path::new(path).starts_with(&group))
    })
}
