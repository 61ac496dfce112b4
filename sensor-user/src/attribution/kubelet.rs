//! Which process is the kubelet: the one reader outside a pod that is expected to open its token
//! (it compares and renews the files, kubernetes `atomic_writer.go`).
//!
//! Known by executable, or by being that very process; a name only says where to look, since
//! anybody can choose one. Called by [`Attributor`](super::Attributor).

use std::{
    fs,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
};

use tokentrail_ebpf::OpenRecord;

use super::{
    cgroup,
    processes::{ProcessTime, Processes},
    volumes::kernel_dev,
};

/// Names of processes that a kubelet is (part of): upstream, MicroK8s, k3s.
const NAMES: [&str; 5] = ["kubelet", "kubelite", "k3s", "k3s-server", "k3s-agent"];

/// Whether a process name is one that a kubelet has.
pub(super) fn is_kubelet_name(comm: &str) -> bool {
    NAMES.contains(&comm)
}

/// The node's kubelet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Kubelet {
    process: ProcessTime,
    /// Device (kernel encoding) and inode of its executable.
    executable: (u32, u64),
    /// `/proc/<pid>`.
    pub directory: PathBuf,
}

impl Kubelet {
    /// Looks through all processes. Of several with the name, the oldest outside pods is taken:
    /// a newcomer that borrows the name does not replace it.
    pub(super) fn find(processes: &Processes) -> Option<Self> {
        let mut found: Option<Self> = None;
        for entry in fs::read_dir(processes.proc_root()).ok()?.filter_map(Result::ok) {
            let Some(tgid) = entry.file_name().to_str().and_then(|name| name.parse().ok()) else {
                continue;
            };
            let Some(kubelet) = Self::at(processes, tgid, &entry.path()) else { continue };
            if found
                .as_ref()
                .is_none_or(|found| kubelet.process.start_ticks < found.process.start_ticks)
            {
                found = Some(kubelet);
            }
        }
        found
    }

    fn at(processes: &Processes, tgid: u32, directory: &Path) -> Option<Self> {
        let comm = fs::read(directory.join("comm")).ok()?;
        if !is_kubelet_name(String::from_utf8_lossy(&comm).trim_end()) {
            return None;
        }
        let process = ProcessTime { tgid, start_ticks: processes.stat(tgid)?.start_ticks };
        let path = processes.cgroup(process, None)?;
        if cgroup::locate(&cgroup::components(&path), None).is_some() {
            return None;
        }
        let executable = fs::metadata(directory.join("exe")).ok()?;
        let device = executable.dev();
        Some(Self {
            process,
            executable: (
                kernel_dev(rustix::fs::major(device), rustix::fs::minor(device)),
                executable.ino(),
            ),
            directory: directory.to_owned(),
        })
    }

    /// Whether this kubelet opened. The executable covers a restart; the process covers file
    /// systems that show user space other numbers than the kernel's own (overlayfs, btrfs).
    pub(super) fn opened(&self, record: &OpenRecord, processes: &Processes) -> bool {
        let opener = ProcessTime::new(record.tgid, record.start_boottime_ns);
        (record.exe_dev, record.exe_ino) == self.executable
            || processes.is_same(self.process, opener)
    }

    /// Whether it still runs.
    pub(super) fn lives(&self, processes: &Processes) -> bool {
        processes.lives(self.process)
    }
}
