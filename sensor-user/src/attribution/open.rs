//! One attributed open: what correlation, alerts and the journal are told about it.
//!
//! Values only; they are made by [`Attributor`](super::Attributor) and kept as JSON by the journal.

use serde::{Deserialize, Serialize};

use crate::time::Micros;

/// How a token was opened, most telling first (see ARCHITECTURE.md, "Grades").
#[derive(
    Clone,
    Copy,
    Debug,
    PartialEq,
    Eq,
    PartialOrd,
    Ord,
    Hash,
    Serialize,
    Deserialize,
    schemars::JsonSchema,
)]
#[serde(rename_all = "lowercase")]
pub enum Grade {
    /// By a process on the host or in another pod than the volume's.
    Outside,
    /// ECS `process.interactive`: the controlling terminal is descriptor 0 and descriptor 2.
    Interactive,
    /// With a controlling terminal, but descriptor 0 or 2 elsewhere.
    Terminal,
    /// By a process that entered the container after its start, without a terminal.
    Exec,
    /// By the container's own tree, but with an executable that this workload was not seen to read
    /// its token with while it was learned.
    Foreign,
    /// By the container's own tree.
    Workload,
}

impl Grade {
    /// All grades, most telling first.
    pub const ALL: [Self; 6] = [
        Self::Outside,
        Self::Interactive,
        Self::Terminal,
        Self::Exec,
        Self::Foreign,
        Self::Workload,
    ];

    /// The grade's name in alerts and metrics.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Outside => "outside",
            Self::Interactive => "interactive",
            Self::Terminal => "terminal",
            Self::Exec => "exec",
            Self::Foreign => "foreign",
            Self::Workload => "workload",
        }
    }
}

/// Which file of the volume was opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum TokenFile {
    /// The service-account token.
    Token,
    /// The cluster's CA certificate, public data that a client reads beside the token.
    CaCert,
}

impl TokenFile {
    /// All of them.
    pub const ALL: [Self; 2] = [Self::Token, Self::CaCert];

    /// Its usual name in a volume.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Token => "token",
            Self::CaCert => "ca.crt",
        }
    }
}

/// A process, identified by id and start time: ids are reused, pairs are not.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct ProcessKey {
    /// Process id in the initial pid namespace.
    pub tgid: u32,
    /// Start on the boot clock, nanoseconds.
    pub start_boottime_ns: u64,
}

/// A container as its cgroup names it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ContainerRef {
    /// Pod uid as in the Kubernetes API (dashes), or a static pod's 32-digit hash.
    pub pod_uid: String,
    /// Container id without a `runtime://` prefix; `None` in the pod's own cgroup.
    pub container_id: Option<String>,
    /// `containerd`, `cri-o` or `docker`, where the cgroup's name tells.
    pub runtime: Option<String>,
}

/// The volume that was read from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct VolumeRef {
    /// Uid of the pod that owns the volume.
    pub pod_uid: String,
    /// Name of the volume, as `kube-api-access-x2v9d`.
    pub name: String,
}

/// A process related to the opener.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RelatedProcess {
    /// Identity; a zero `tgid` means unknown.
    pub key: ProcessKey,
    /// Its name.
    pub comm: String,
}

/// One open of a token, attributed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TokenOpen {
    /// When, on the boot clock, nanoseconds.
    pub ktime_ns: u64,
    /// When, on the steady axis that correlation runs on (see `kernel::clock`).
    pub time: Micros,
    /// When, as the wall clock showed it.
    pub wall: Micros,
    /// In what manner.
    pub grade: Grade,
    /// Whether the entry process is the container's main process; `None` if that is unknown.
    pub native: Option<bool>,
    /// Uid of the pod whose token it is; `None` if neither volume nor reader tells.
    pub pod_uid: Option<String>,
    /// The volume, where mountinfo knew it.
    pub volume: Option<VolumeRef>,
    /// The container that the opener runs in; `None` on the host.
    pub reader: Option<ContainerRef>,
    /// Token or CA certificate.
    pub file: TokenFile,
    /// Canonical path, `/var/run/secrets/kubernetes.io/serviceaccount/…`.
    pub path: String,
    /// The path as the kernel saw it: `d_path`, or the names of mount point, parent and file.
    pub raw_path: String,
    /// Inode of the file.
    pub inode: u64,
    /// The process that opened.
    pub process: ProcessKey,
    /// Thread id.
    pub pid: u32,
    /// Parent's process id.
    pub ppid: u32,
    /// Name of the opening thread.
    pub comm: String,
    /// Name of its group leader.
    pub leader_comm: String,
    /// Executable as its last three path components tell it.
    pub executable: String,
    /// Device and inode of the executable.
    pub executable_id: (u32, u64),
    /// Arguments, cut at 256 bytes; secrets redacted.
    pub args: Vec<String>,
    /// Whether `args` was cut.
    pub args_cut: bool,
    /// Real and effective user id.
    pub uid: u32,
    /// Effective user id.
    pub euid: u32,
    /// Controlling terminal, major and minor; `None` without one.
    pub tty: Option<(u32, u32)>,
    /// Topmost ancestor in the container's cgroup: where this session entered.
    pub entry: RelatedProcess,
    /// Topmost ancestor in the pid namespace.
    pub pidns_entry: RelatedProcess,
    /// Cgroup path as far as the kernel named it, root first.
    pub cgroup: String,
    /// Hook that saw it: `fexit`, `kprobe` or `exit`.
    pub route: String,
    /// Facts that could not be read.
    pub degraded: Vec<String>,
    /// Opens of the same file by the same process, each within a second of one that was told, for
    /// which this one stands as well.
    #[serde(default)]
    pub repeats: u64,
}

impl TokenOpen {
    /// How many opens it stands for.
    pub fn count(&self) -> u64 {
        self.repeats.saturating_add(1)
    }

    /// ECS `process.interactive`.
    pub fn interactive(&self) -> bool {
        self.grade == Grade::Interactive
    }
}

#[cfg(test)]
impl TokenOpen {
    /// Somebody's `cat` in a session of `kubectl exec`, on all axes at this time.
    pub(crate) fn example(time: Micros) -> Self {
        let key = ProcessKey { tgid: 100, start_boottime_ns: 1 };
        let related = RelatedProcess { key, comm: "sh".into() };
        Self {
            ktime_ns: u64::try_from(time.0).unwrap() * 1_000,
            time,
            wall: time,
            grade: Grade::Interactive,
            native: Some(false),
            pod_uid: Some("pod".into()),
            volume: None,
            reader: None,
            file: TokenFile::Token,
            path: "/var/run/secrets/kubernetes.io/serviceaccount/token".into(),
            raw_path: "/run/secrets/kubernetes.io/serviceaccount/..1/token".into(),
            inode: 7,
            process: key,
            pid: 100,
            ppid: 1,
            comm: "cat".into(),
            leader_comm: "cat".into(),
            executable: "/bin/cat".into(),
            executable_id: (1, 2),
            args: vec!["cat".into()],
            args_cut: false,
            uid: 0,
            euid: 0,
            tty: Some((136, 0)),
            entry: related.clone(),
            pidns_entry: related,
            cgroup: "/kubepods".into(),
            route: "exit".into(),
            degraded: Vec::new(),
            repeats: 0,
        }
    }
}
