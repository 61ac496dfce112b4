//! A made-up node for tests: `/proc`, cgroups and the kubelet's volumes as plain files, and kernel
//! records that fit them.

use std::{fs, os::unix::fs::symlink, path::PathBuf};

use tempfile::TempDir;
use tokentrail_ebpf::{
    ABI_VERSION, Ancestor, CGROUP_LEVELS, CGROUP_NAME_LEN, FdFacts, NAME_LEN, OpenRecord, Route,
};
use zerocopy::FromZeros;

use super::{AttributionConfig, AttributionMetrics, Attributor};

pub(super) const POD: &str = "eb052b63-ea96-4728-ab4a-64ab3babccd7";
pub(super) const OTHER_POD: &str = "2942c55e-c9cb-428a-93f4-eaf89c1f3ce0";
pub(super) const CONTAINER: &str =
    "5694f82f44168cc048e014ae14d1b0c8ef673bec49f329dc169911ea638f63c2";
pub(super) const TICK: u64 = 10_000_000;
/// A pseudo-terminal's device, and a pipe's mode.
pub(super) const PTS: u32 = 136 << 20;
pub(super) const PTY: FdFacts = FdFacts { rdev: PTS, mode: 0o020_620 };
pub(super) const PIPE: FdFacts = FdFacts { rdev: 0, mode: 0o010_600 };
/// The agent's process id.
pub(super) const OWN: u32 = 999;

/// Cgroup of a container in the pod.
pub(super) fn cgroup_of(pod: &str) -> String {
    format!("/kubepods/besteffort/pod{pod}/{CONTAINER}")
}

pub(super) fn name<const N: usize>(text: &str) -> [u8; N] {
    let mut bytes = [0; N];
    bytes[..text.len()].copy_from_slice(text.as_bytes());
    bytes
}

pub(super) fn names(texts: [&str; 3]) -> [[u8; NAME_LEN]; 3] {
    texts.map(name)
}

/// Leaf first, as the kernel side writes them.
pub(super) fn cgroup_names(path: &str) -> [[u8; CGROUP_NAME_LEN]; CGROUP_LEVELS] {
    let mut levels = [[0; CGROUP_NAME_LEN]; CGROUP_LEVELS];
    for (level, component) in levels.iter_mut().zip(path.rsplit('/').filter(|c| !c.is_empty())) {
        *level = name(&component[..component.len().min(CGROUP_NAME_LEN - 1)]);
    }
    levels
}

pub(super) fn ancestor(tgid: u32, start_ticks: u64, nspid: u32, comm: &str) -> Ancestor {
    // The kernel's time is finer than `/proc` tells.
    Ancestor { start_boottime_ns: start_ticks * TICK + 1_234, tgid, nspid, comm: name(comm) }
}

/// A read of the pod's token by process 100, the container's main process, without a terminal.
pub(super) fn record() -> OpenRecord {
    OpenRecord {
        abi_version: ABI_VERSION,
        route: Route::Fexit as u32,
        ktime_ns: 9_000 * TICK,
        start_boottime_ns: 5_000 * TICK + 1_234,
        entry_cgroup: ancestor(100, 5_000, 1, "app"),
        entry_pidns: ancestor(100, 5_000, 1, "app"),
        tgid: 100,
        pid: 101,
        ppid: 50,
        pidns_level: 1,
        s_dev: 77,
        file_ino: 4,
        exe_dev: 9,
        exe_ino: 1_000,
        fds: [PIPE; 3],
        comm: name("worker"),
        leader_comm: name("app"),
        file_name: name("token"),
        parent_name: name("..2024_11_24_09_06_53.3676909075"),
        mount_names: names(["serviceaccount", "kubernetes.io", "secrets"]),
        exe_names: names(["app", "bin", "/"]),
        cgroup_names: cgroup_names(&cgroup_of(POD)),
        ..OpenRecord::new_zeroed()
    }
}

/// The same read, by a process that entered the container later.
pub(super) fn exec_record() -> OpenRecord {
    OpenRecord {
        tgid: 200,
        pid: 200,
        start_boottime_ns: 8_000 * TICK,
        entry_cgroup: ancestor(190, 7_000, 20, "sh"),
        entry_pidns: ancestor(190, 7_000, 20, "sh"),
        ..record()
    }
}

/// Trees that stand for `/proc` and `/sys/fs/cgroup`.
pub(super) struct Node {
    directory: TempDir,
}

impl Node {
    /// A node with pid 1, one pod with a token volume on device 77, and its main process 100.
    pub(super) fn new() -> Self {
        let node = Self { directory: TempDir::new().unwrap() };
        node.process(1, "systemd", 0, 1, "/init.scope");
        node.process(100, "app", 50, 5_000, &cgroup_of(POD));
        node.write("proc/1/mountinfo", "");
        node.volume(POD, "projected/kube-api-access-x2v9d", 77, &["token", "ca.crt", "namespace"]);
        node.cgroup("memory", &cgroup_of(POD), &[100]);
        node
    }

    pub(super) fn path(&self, path: &str) -> PathBuf {
        self.directory.path().join(path)
    }

    pub(super) fn write(&self, path: &str, text: &str) {
        let path = self.path(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }

    pub(super) fn process(&self, pid: u32, comm: &str, ppid: u32, start: u64, cgroup: &str) {
        self.write(
            &format!("proc/{pid}/stat"),
            &format!("{pid} ({comm}) S {ppid} 1 1 0 -1 4 0 0 0 0 0 0 0 0 20 0 1 0 {start} 0 0\n"),
        );
        self.write(&format!("proc/{pid}/comm"), &format!("{comm}\n"));
        self.write(&format!("proc/{pid}/cgroup"), &format!("4:memory:{cgroup}\n0::/\n"));
    }

    pub(super) fn end(&self, pid: u32) {
        fs::remove_dir_all(self.path(&format!("proc/{pid}"))).unwrap();
    }

    /// A process's executable, a file of this test's.
    pub(super) fn executable(&self, pid: u32, executable: &str) {
        self.write(executable, "");
        symlink(self.path(executable), self.path(&format!("proc/{pid}/exe"))).unwrap();
    }

    pub(super) fn cgroup(&self, hierarchy: &str, path: &str, processes: &[u32]) {
        let lines: String = processes.iter().map(|pid| format!("{pid}\n")).collect();
        self.write(&format!("cgroup/{hierarchy}{path}/cgroup.procs"), &lines);
    }

    /// Mounts a volume (`projected/<name>` or `secret/<name>`) in pid 1's namespace.
    pub(super) fn volume(&self, pod: &str, volume: &str, minor: u32, entries: &[&str]) {
        let point = format!("/var/lib/kubelet/pods/{pod}/volumes/kubernetes.io~{volume}");
        for entry in entries {
            self.write(&format!("proc/1/root{point}/{entry}"), "never read");
        }
        let mounts = self.path("proc/1/mountinfo");
        let line = format!("{minor} 27 0:{minor} / {point} rw shared:1 - tmpfs tmpfs rw\n");
        fs::write(&mounts, fs::read_to_string(&mounts).unwrap() + &line).unwrap();
    }

    pub(super) fn config(&self) -> AttributionConfig {
        AttributionConfig {
            proc_root: self.path("proc"),
            cgroup_root: self.path("cgroup"),
            own_tgid: OWN,
            ..AttributionConfig::default()
        }
    }

    pub(super) fn attributor(&self) -> Attributor {
        Attributor::new(self.config(), None, AttributionMetrics::default()).unwrap()
    }
}
