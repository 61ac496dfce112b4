//! What all clusters of this machine share: the folder that they are in, and the few things that a
//! kubelet or a pod needs changed on the machine itself. The first cluster notes how it was, the
//! last one puts it back.

use std::{
    fs::{self, File},
    io::ErrorKind,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result, bail};
use rustix::{
    fs::{FlockOperation, flock},
    mount::{MountFlags, UnmountFlags, mount, unmount},
    process::geteuid,
};
use serde_json::{Value, json};

use super::layout::Layout;

/// Kernel settings that a kubelet changes.
const SETTINGS: [&str; 6] = [
    "kernel/keys/root_maxbytes",
    "kernel/keys/root_maxkeys",
    "kernel/panic",
    "kernel/panic_on_oops",
    "vm/overcommit_memory",
    "vm/panic_on_oom",
];

/// File systems that an agent in a pod looks for, and that few machines without systemd mount.
const FILE_SYSTEMS: [(&str, &str); 2] =
    [("tracefs", "/sys/kernel/tracing"), ("bpf", "/sys/fs/bpf")];

/// Folders outside of ours that the components make and leave, each after what it may hold.
const FOLDERS: [&str; 10] = [
    "/var/log/containers",
    "/var/lib/cni/results",
    "/var/lib/cni",
    "/run/containerd/s",
    "/run/containerd",
    DEVICE_PLUGINS,
    "/var/lib/kubelet",
    "/opt/containerd",
    "/var/run/nri",
    "/etc/kubernetes",
];

/// Where kubelets talk to device plugins, whatever their `--root-dir` is.
const DEVICE_PLUGINS: &str = "/var/lib/kubelet/device-plugins";

/// The right to add and remove clusters; held for a short time only.
pub(crate) struct Host {
    _lock: File,
}

impl Host {
    /// Waits for it.
    ///
    /// # Errors
    /// If the folder of all clusters cannot be made or is somebody else's.
    pub(crate) fn lock() -> Result<Self> {
        let base = Layout::base();
        loop {
            fs::create_dir_all(base).with_context(|| format!("could not create {base:?}"))?;
            let folder = File::open(base).with_context(|| format!("could not open {base:?}"))?;
            if folder.metadata()?.uid() != geteuid().as_raw() {
                bail!("{base:?} belongs to another user");
            }
            flock(&folder, FlockOperation::LockExclusive)?;
            // Whoever held it may have been the last one and have removed the folder.
            let current = fs::metadata(base).ok();
            if current.is_some_and(|it| folder.metadata().is_ok_and(|ours| ours.ino() == it.ino()))
            {
                return Ok(Self { _lock: folder });
            }
        }
    }

    /// Prepares the machine for the first cluster.
    ///
    /// # Errors
    /// If a file system cannot be mounted.
    pub(crate) fn prepare(&self) -> Result<()> {
        let notes = notes();
        if !notes.exists() {
            let settings: Value =
                SETTINGS.iter().filter_map(|name| Some((*name, read_setting(name)?))).collect();
            let mounts: Vec<&str> =
                FILE_SYSTEMS.iter().filter(|(_, at)| !is_mounted(at)).map(|(_, at)| *at).collect();
            let folders: Vec<&str> =
                FOLDERS.into_iter().filter(|folder| !Path::new(folder).exists()).collect();
            let text = json!({"settings": settings, "mounts": mounts, "folders": folders});
            // Written before anything is changed, and as a whole.
            let draft = notes.with_extension("new");
            fs::write(&draft, text.to_string())
                .and_then(|()| fs::rename(&draft, &notes))
                .with_context(|| format!("could not write {notes:?}"))?;
        }
        for (kind, at) in FILE_SYSTEMS {
            if !is_mounted(at) {
                mount(kind, at, kind, MountFlags::NOSUID | MountFlags::NODEV, None)
                    .with_context(|| format!("could not mount {kind} at {at}"))?;
            }
        }
        Ok(())
    }

    /// Puts the machine back as it was, if no cluster is left.
    ///
    /// # Errors
    /// If something cannot be put back.
    pub(crate) fn release(self) -> Result<()> {
        let base = Layout::base();
        for entry in fs::read_dir(base)?.filter_map(Result::ok) {
            if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                if !entry.file_name().as_encoded_bytes().starts_with(b".") {
                    return Ok(());
                }
                // The draft of a cluster whose maker was killed before it had a name.
                fs::remove_dir_all(entry.path())?;
            }
        }
        let notes = notes();
        if let Ok(text) = fs::read(&notes) {
            let before: Value = serde_json::from_slice(&text)
                .with_context(|| format!("{notes:?} is damaged; remove it"))?;
            for (name, value) in
                before.get("settings").and_then(Value::as_object).into_iter().flatten()
            {
                let value = value.as_str().unwrap_or_default();
                if read_setting(name).is_some_and(|now| now != value) {
                    let file = Path::new("/proc/sys").join(name);
                    fs::write(&file, value)
                        .with_context(|| format!("could not set {file:?} back to {value}"))?;
                }
            }
            for at in strings(&before, "mounts") {
                // Somebody may still look at it; it goes when they look away.
                let _ = unmount(at, UnmountFlags::NOFOLLOW | UnmountFlags::DETACH);
            }
            for folder in strings(&before, "folders") {
                if folder == DEVICE_PLUGINS {
                    // A kubelet of somebody else would have had it before ours.
                    let _ = fs::remove_file(Path::new(folder).join("kubelet.sock"));
                }
                // Not empty: somebody else's by now.
                let _ = fs::remove_dir(folder);
            }
            fs::remove_file(&notes)?;
        }
        match fs::remove_dir(base) {
            Err(error) if error.kind() != ErrorKind::NotFound => {
                Err(error).with_context(|| format!("could not remove {base:?}"))
            }
            _ => Ok(()),
        }
    }
}

fn notes() -> PathBuf {
    Layout::base().join("machine.json")
}

fn strings<'value>(value: &'value Value, key: &str) -> impl Iterator<Item = &'value str> {
    value.get(key).and_then(Value::as_array).into_iter().flatten().filter_map(Value::as_str)
}

fn read_setting(name: &str) -> Option<String> {
    let value = fs::read_to_string(Path::new("/proc/sys").join(name)).ok()?;
    Some(value.trim().to_owned())
}

/// Whether a file system of its own is there.
fn is_mounted(at: &str) -> bool {
    let device = |path: &Path| fs::metadata(path).map(|facts| facts.dev()).ok();
    device(Path::new(at)) != Path::new(at).parent().and_then(device)
}
