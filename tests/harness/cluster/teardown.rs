//! Taking a cluster down, knowing nothing but its name: whatever program made it, however far it
//! got, and whatever of it died meanwhile.

use std::{
    fs::{self, File, OpenOptions},
    io::ErrorKind,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context as _, Result, bail};
use rustix::{
    fs::{FlockOperation, fcntl_lock},
    io::Errno,
    mount::{UnmountFlags, unmount},
    process::Signal,
};

use super::{components, host::Host, layout::Layout};
use crate::{cgroups, machine::cgroup_hierarchies, wait::wait_until};

/// Where containerd's shims listen, whatever containerd's own folders are.
const SHIM_SOCKETS: &str = "/run/containerd/s";
/// Where libcni notes what it did, whatever its configuration says.
const CNI_CACHE: &str = "/var/lib/cni/results";
/// Where kubelets link the logs of containers, whatever their configuration says.
const LOG_LINKS: &str = "/var/log/containers";

/// How long killed processes may take to go.
const CLEANING: Duration = Duration::from_secs(20);

/// Removes everything of it. Nothing is left to do if there is no such cluster.
///
/// # Errors
/// If another program is just bringing it up, or something cannot be removed.
pub(crate) fn take_down(layout: &Layout) -> Result<()> {
    let folder = layout.folder();
    if !folder.exists() {
        if let Some(thing) = in_the_way(layout)? {
            bail!("there is no cluster {}, but {thing}: not touching it", layout.name());
        }
        return if Layout::base().exists() { Host::lock()?.release() } else { Ok(()) };
    }
    if !layout.facts().exists() {
        bail!("{folder:?} is no cluster's folder: not touching it");
    }
    let lock = lock(layout)?;
    // From here on nothing new is started, or only what does not get far.
    let mark = layout.going_down();
    fs::write(&mark, "").with_context(|| format!("could not write {mark:?}"))?;
    let sockets = shim_sockets(layout)?;
    let end_all =
        || -> Result<bool> { Ok(components::signal(&layout.cgroup(), Signal::KILL)? == 0) };
    wait_until(CLEANING, "all processes of the cluster have ended", || {
        Ok(end_all()?.then_some(()))
    })?;
    for file in sockets.into_iter().chain(cni_cache(layout)).chain(log_links(&folder)) {
        remove_file(&file)?;
    }
    unmount_all(&folder)?;
    wait_until(CLEANING, "the cgroups of the cluster are gone", || {
        end_all()?;
        Ok(cgroups::remove(&layout.cgroup(), Duration::ZERO).is_ok().then_some(()))
    })?;
    let host = Host::lock()?;
    // The file that makes it a cluster goes last: what is interrupted here can be done again.
    for entry in fs::read_dir(&folder)? {
        let path = entry?.path();
        if path != layout.facts() {
            let removed =
                if path.is_dir() { fs::remove_dir_all(&path) } else { fs::remove_file(&path) };
            removed.with_context(|| format!("could not remove {path:?}"))?;
        }
    }
    fs::remove_dir_all(&folder).with_context(|| format!("could not remove {folder:?}"))?;
    drop(lock);
    host.release()
}

/// The right to take it down, against other programs alone: this one may be the one that makes it.
fn lock(layout: &Layout) -> Result<Option<File>> {
    let path = layout.lock();
    let file = match OpenOptions::new().write(true).open(&path) {
        // An earlier attempt got that far.
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        file => file.with_context(|| format!("could not open {path:?}"))?,
    };
    if fcntl_lock(&file, FlockOperation::NonBlockingLockExclusive).is_err() {
        bail!("another program is working on cluster {}; let it end first", layout.name());
    }
    Ok(Some(file))
}

/// What has a name that only this cluster may use; `None` if there is nothing.
pub(crate) fn in_the_way(layout: &Layout) -> Result<Option<String>> {
    let folder = layout.folder();
    if folder.exists() {
        return Ok(Some(format!("the folder {folder:?} exists")));
    }
    let group = layout.cgroup();
    let groups = cgroup_hierarchies()?.into_iter().map(|it| it.mount.join(&group));
    Ok(groups.into_iter().find(|it| it.exists()).map(|it| format!("the cgroup {it:?} exists")))
}

/// Sockets of its shims: of those that live, by what they listen at, and of those that died, by
/// what containerd noted.
fn shim_sockets(layout: &Layout) -> Result<Vec<PathBuf>> {
    let mut sockets = Vec::new();
    for pid in components::processes(&layout.cgroup())? {
        let process = Path::new("/proc").join(pid.to_string());
        // Processes end while one looks at them.
        let Ok(descriptors) = fs::read_dir(process.join("fd")) else { continue };
        let open: Vec<PathBuf> =
            descriptors.filter_map(|entry| fs::read_link(entry.ok()?.path()).ok()).collect();
        let listening = fs::read_to_string(process.join("net/unix")).unwrap_or_default();
        for line in listening.lines() {
            // `address: references protocol flags type state inode path`
            let mut words = line.split_whitespace().skip(6);
            let (Some(inode), Some(path)) = (words.next(), words.next()) else { continue };
            let inode = PathBuf::from(format!("socket:[{inode}]"));
            if path.starts_with(SHIM_SOCKETS) && open.contains(&inode) {
                sockets.push(path.into());
            }
        }
    }
    for node in super::layout::NODE_NAMES {
        let tasks = layout.node(node).join("state/io.containerd.runtime.v2.task/k8s.io");
        let Ok(tasks) = fs::read_dir(tasks) else { continue };
        for task in tasks.filter_map(Result::ok) {
            if let Ok(address) = fs::read_to_string(task.path().join("address"))
                && let Some(path) = address.trim().strip_prefix("unix://")
                && path.starts_with(SHIM_SOCKETS)
            {
                sockets.push(path.into());
            }
        }
    }
    Ok(sockets)
}

/// Notes about its pods' interfaces: those of its own networks by their name, those of loopback by
/// the namespace that they tell of.
fn cni_cache(layout: &Layout) -> Vec<PathBuf> {
    let prefix = layout.cni_prefix();
    let below = format!("\"{}/", layout.folder().display());
    let ours = |path: &PathBuf| {
        path.file_name().is_some_and(|name| name.to_string_lossy().starts_with(&prefix))
            || fs::read_to_string(path).is_ok_and(|text| text.contains(&below))
    };
    files(CNI_CACHE).into_iter().filter(ours).collect()
}

fn log_links(folder: &Path) -> Vec<PathBuf> {
    let ours = |path: &PathBuf| fs::read_link(path).is_ok_and(|to| to.starts_with(folder));
    files(LOG_LINKS).into_iter().filter(ours).collect()
}

fn files(folder: &str) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).into_iter().flatten();
    entries.filter_map(|entry| Some(entry.ok()?.path())).collect()
}

fn remove_file(path: &Path) -> Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != ErrorKind::NotFound => {
            Err(error).with_context(|| format!("could not remove {path:?}"))
        }
        _ => Ok(()),
    }
}

/// Unmounts what is at or below a folder, latest first, until nothing is: a mount may hide another.
fn unmount_all(folder: &Path) -> Result<()> {
    wait_until(CLEANING, &format!("nothing is mounted below {folder:?}"), || {
        let mounts = fs::read_to_string("/proc/self/mountinfo")?;
        let below: Vec<PathBuf> = mounts
            .lines()
            .filter_map(|line| line.split(' ').nth(4))
            .map(|path| PathBuf::from(unescape(path)))
            .filter(|path| path.starts_with(folder))
            .collect();
        for path in below.iter().rev() {
            match unmount(path, UnmountFlags::NOFOLLOW | UnmountFlags::DETACH) {
                // Gone with another one.
                Ok(()) | Err(Errno::INVAL | Errno::NOENT) => {}
                Err(error) => {
                    return Err(error).with_context(|| format!("could not unmount {path:?}"));
                }
            }
        }
        Ok(below.is_empty().then_some(()))
    })
}

/// Blanks and the like are octal numbers in mountinfo.
fn unescape(path: &str) -> String {
    [("\\040", " "), ("\\011", "\t"), ("\\012", "\n"), ("\\134", "\\")]
        .iter()
        .fold(path.to_owned(), |path, (code, character)| path.replace(code, character))
}
