//! From a kernel record to a workload: whose token was opened, by which process of which
//! container, and in what manner (the grade).
//!
//! The only place that decides what an open *is*. It asks the cgroup names in the record, the
//! volume map, `/proc` and the pod index; it never waits for the network or asks a clock. Called by the agent, once per
//! record; what it makes goes to correlation.

use std::path::PathBuf;

use tokentrail_ebpf::{Missing, OpenRecord};

use self::{
    kubelet::Kubelet,
    learned::{Learned, OwnRead},
    pods::PodIndex,
    processes::{ProcessTime, Processes},
    reader::Reader,
    scope::Scope,
    volumes::{Volume, VolumeMap, VolumesError},
};
pub use self::{
    learned::Saved as SavedLearning,
    metrics::AttributionMetrics,
    open::{ContainerRef, Grade, ProcessKey, RelatedProcess, TokenFile, TokenOpen, VolumeRef},
};
use crate::time::Micros;

pub mod cgroup;
mod completion;
mod facts;
#[cfg(test)]
mod fixture;
mod kubelet;
mod learned;
mod metrics;
mod open;
pub mod pods;
mod processes;
mod reader;
mod scope;
pub mod volumes;

/// Searches for the kubelet in a second at most: each looks at every process.
const KUBELET_SEARCH_INTERVAL: Micros = Micros::from_secs(1);

/// What attribution needs to know about the node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AttributionConfig {
    /// Where `proc` is mounted, of the host's pid namespace.
    pub proc_root: PathBuf,
    /// Where the cgroup hierarchies are mounted.
    pub cgroup_root: PathBuf,
    /// Root directories of this node's kubelet.
    pub kubelet_roots: Vec<PathBuf>,
    /// The group that holds this node's `kubepods`, as `/node-a`, from the root of its hierarchy.
    /// `None`: the one above the agent's own pod; pods of all, if it runs in none.
    pub kubelet_cgroup: Option<String>,
    /// The agent's own process id in the initial pid namespace: its opens are its canary's.
    pub own_tgid: u32,
    /// How long it is learned which executables a workload reads its token with: from the start of
    /// the agent, and of each container.
    pub learning: Micros,
    /// From when on opens are seen, on the boot clock, nanoseconds.
    pub since_ns: u64,
}

impl Default for AttributionConfig {
    fn default() -> Self {
        Self {
            proc_root: "/proc".into(),
            cgroup_root: "/sys/fs/cgroup".into(),
            kubelet_roots: vec!["/var/lib/kubelet".into()],
            kubelet_cgroup: None,
            own_tgid: 0,
            learning: Micros::from_secs(600),
            since_ns: 0,
        }
    }
}

/// When an open happened, on the two axes that the record's boot clock does not have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OpenTimes {
    /// On the steady axis that correlation runs on.
    pub time: Micros,
    /// As the wall clock showed it.
    pub wall: Micros,
}

/// Why a record is no open of a token by a workload. Not an error: most such records are expected.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Ignored {
    /// Another file of a token volume, as `namespace`.
    OtherFile,
    /// Opened for writing alone, as the kubelet does when it fills a volume: nothing was read.
    WriteOnly,
    /// A file of that name, but neither in a known token volume nor mounted like one; or in a volume
    /// that has no token for the API server by its pod's spec.
    NotServiceAccountVolume,
    /// In a pod of another node that shares this kernel.
    OutOfScope,
    /// By the kubelet, which writes and compares these files.
    Kubelet,
    /// By this agent.
    Own,
}

impl Ignored {
    /// All reasons.
    pub const ALL: [Self; 6] = [
        Self::OtherFile,
        Self::WriteOnly,
        Self::NotServiceAccountVolume,
        Self::OutOfScope,
        Self::Kubelet,
        Self::Own,
    ];

    /// The reason's name in metrics.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::OtherFile => "other_file",
            Self::WriteOnly => "write_only",
            Self::NotServiceAccountVolume => "not_service_account_volume",
            Self::OutOfScope => "out_of_scope",
            Self::Kubelet => "kubelet",
            Self::Own => "own",
        }
    }
}

/// Attributes records, one after the other.
#[derive(Debug)]
pub struct Attributor {
    own_tgid: u32,
    scope: Option<Scope>,
    volumes: VolumeMap,
    processes: Processes,
    learned: Learned,
    kubelet: Option<Kubelet>,
    kubelet_searched: Option<Micros>,
    metrics: AttributionMetrics,
}

impl Attributor {
    /// Reads the node's mounts and looks for the kubelet. Without one, mounts are those of pid 1.
    /// `own` is a record of an open by the agent: it says where the agent itself runs.
    pub fn new(
        config: AttributionConfig,
        own: Option<&OpenRecord>,
        metrics: AttributionMetrics,
    ) -> Result<Self, VolumesError> {
        let mut processes = Processes::new(config.proc_root, config.cgroup_root);
        let completed = own.and_then(|own| completion::complete(own, &mut processes));
        let own = completed.as_ref().or(own);
        let beside = || {
            let place = Reader::of(own?, &processes, None);
            Scope::beside(&place.cgroup, place.complete)
        };
        let scope = config.kubelet_cgroup.as_deref().map(Scope::below).or_else(beside);
        if let Some(scope) = &scope {
            tracing::info!(?scope, "pods of other nodes on this kernel are not ours");
        }
        let kubelet = Kubelet::find(&processes);
        let source = match &kubelet {
            Some(kubelet) => kubelet.directory.clone(),
            None => processes.proc_root().join("1"),
        };
        Ok(Self {
            own_tgid: config.own_tgid,
            scope,
            volumes: VolumeMap::open(&source, config.kubelet_roots, metrics.clone())?,
            processes,
            learned: Learned::new(config.learning, config.since_ns, metrics.clone()),
            kubelet,
            kubelet_searched: None,
            metrics,
        })
    }

    /// Attributes one record.
    pub fn attribute(
        &mut self,
        record: &OpenRecord,
        times: OpenTimes,
        pods: &PodIndex,
    ) -> Result<TokenOpen, Ignored> {
        let completed = completion::complete(record, &mut self.processes);
        let late = completed.map_or(0, |whole| record.missing & !whole.missing);
        let result = self.decide(completed.as_ref().unwrap_or(record), late, times, pods);
        match &result {
            Ok(open) => self.metrics.opened(open.grade),
            Err(reason) => self.metrics.ignored(*reason),
        }
        result
    }

    /// Notices new and gone volumes without an open; to be called about once a second.
    pub fn keep_up(&mut self) -> Result<(), VolumesError> {
        self.volumes.keep_up()
    }

    /// Whether it can be told of every pod that runs here by now that it does, see
    /// [`VolumeMap::knows_pods`]. `now` is on the axis of [`OpenTimes::time`].
    pub fn knows_pods(&mut self, now: Micros) -> bool {
        self.volumes.knows_pods(now)
    }

    /// Whether a pod runs here, by its volumes.
    pub fn has_pod(&self, uid: &str) -> bool {
        self.volumes.has_pod(uid)
    }

    /// The kernel-encoded `s_dev` of each service-account volume, if the set changed since this was
    /// last asked: for the kernel side's map. Worth asking after each record and each refresh.
    pub fn take_changed_devices(&mut self, pods: &PodIndex) -> Option<Vec<u32>> {
        self.volumes.take_changed_devices(pods)
    }

    /// Goes on with what an earlier agent learned about workloads.
    pub fn restore_learning(&mut self, saved: SavedLearning) {
        self.learned.restore(saved);
    }

    /// What is learned about workloads, if that changed since it was last asked.
    pub fn take_changed_learning(&mut self) -> Option<SavedLearning> {
        self.learned.take_changed()
    }

    /// `late`: facts of the record that the kernel side could not read.
    fn decide(
        &mut self,
        record: &OpenRecord,
        late: u32,
        times: OpenTimes,
        pods: &PodIndex,
    ) -> Result<TokenOpen, Ignored> {
        if record.tgid == self.own_tgid {
            return Err(Ignored::Own);
        }
        let volume = self.volumes.lookup(record.s_dev, times.time, pods).cloned();
        if volume.is_none()
            && (!facts::mounted_as_token_volume(record)
                || self.volumes.is_without_token(record.s_dev, pods))
        {
            return Err(Ignored::NotServiceAccountVolume);
        }
        let file = self.volumes.opened_file(record, pods).ok_or(Ignored::OtherFile)?;
        if facts::is_write_only(record) {
            return Err(Ignored::WriteOnly);
        }
        let root = self.scope.as_ref().and_then(Scope::root);
        let reader = Reader::of(record, &self.processes, root.as_deref());
        if volume.is_none() && self.is_out_of_scope(&reader) {
            return Err(Ignored::OutOfScope);
        }
        let outside = is_outside(&reader, volume.as_ref());
        if outside && reader.container.is_none() && self.is_kubelet(record, times.time) {
            return Err(Ignored::Kubelet);
        }
        let missing = record.missing | late;
        let mut degraded = facts::missing(missing);
        if volume.is_none() {
            degraded.push("volume".to_owned());
        }
        let located = reader.known && (reader.complete || reader.container.is_some());
        if !located && missing & Missing::CGROUP == 0 {
            degraded.push("cgroup".to_owned());
        }
        let native = if reader.container.is_some() {
            let (native, certain) = self.nativeness(record, &reader);
            if !certain {
                degraded.push("main_process".to_owned());
            }
            native
        } else {
            None
        };
        let grade = if outside {
            Grade::Outside
        } else {
            // "Unknown" is no ground to say that somebody entered: where ancestors cannot be read,
            // each read of each workload would alert. `degraded` tells what is missing.
            let entered = native == Some(false) || is_ephemeral(&reader, pods);
            match facts::terminal_grade(record) {
                Some(grade) => grade,
                None if entered && !self.is_hook(record, &reader, pods) => Grade::Exec,
                None if native == Some(true) && self.is_foreign(record, &reader, pods) => {
                    Grade::Foreign
                }
                None => Grade::Workload,
            }
        };
        Ok(describe(record, times, Findings { grade, native, volume, reader, file, degraded }))
    }

    /// Whether the opener's session began with the container's main process, and whether that was
    /// found by comparing with it.
    fn nativeness(&mut self, record: &OpenRecord, reader: &Reader) -> (Option<bool>, bool) {
        let walked = record.missing & Missing::ANCESTORS == 0;
        // Its forks tell of it however many processes are between.
        let followed = record.session.tgid != 0;
        let began = facts::entry(record);
        if (walked || followed)
            && began.tgid != 0
            && let Some(native) = self.processes.is_native(began, reader)
        {
            return (Some(native), true);
        }
        // Second best, the pid namespace: its process 1 is the main process, except where pods
        // share one (then 1 is the pause process, which the main process does not descend from) or
        // use the host's. So a session that began with 1 is native; one that entered and made a
        // namespace of its own did not begin there. Anything else most likely came in by exec: with
        // the main process gone there is little left to be mistaken about. In the host's namespace
        // nothing can be told.
        let entry = record.entry_pidns;
        let own_namespace = record.missing & Missing::NAMESPACES == 0 && record.pidns_level > 0;
        let native = match entry.nspid {
            _ if !own_namespace => None,
            _ if followed => Some(false),
            _ if !walked || entry.tgid == 0 => None,
            1 if entry.tgid == record.entry_cgroup.tgid => Some(true),
            1 => None,
            _ => Some(false),
        };
        (native, false)
    }

    /// Whether the reader is in a pod of another node on this kernel.
    fn is_out_of_scope(&self, reader: &Reader) -> bool {
        reader.container.is_some()
            && self
                .scope
                .as_ref()
                .is_some_and(|scope| scope.excludes(&reader.cgroup, reader.complete))
    }

    /// Whether the session is one of the kubelet's own: an exec probe or a lifecycle hook, by the
    /// command that its entry process began with. Where the kernel side did not see that, or it is
    /// long, the process's present one has to do; one that is gone or cut off is none.
    fn is_hook(&self, record: &OpenRecord, reader: &Reader, pods: &PodIndex) -> bool {
        let Some(container) = &reader.container else { return false };
        let entry = facts::entry(record);
        let in_record =
            || (entry.tgid == record.tgid).then(|| facts::whole_command(record)).flatten();
        let command = facts::session_command(&record.session_command)
            .or_else(in_record)
            .or_else(|| self.processes.command(ProcessTime::from(entry)));
        let id = container.container_id.as_deref();
        command.is_some_and(|command| pods.is_hook(&container.pod_uid, id, &command))
    }

    /// Whether a process of the container's own tree reads with an executable that is none of its
    /// workload's. "Unknown" is no ground to say so.
    fn is_foreign(&mut self, record: &OpenRecord, reader: &Reader, pods: &PodIndex) -> bool {
        let executable = facts::executable(record);
        let container = reader.container.as_ref();
        let Some((container, id)) = container.and_then(|it| Some((it, it.container_id.as_ref()?)))
        else {
            return false;
        };
        if record.missing & Missing::EXECUTABLE != 0 || executable.is_empty() {
            return false;
        }
        let began = facts::entry(record).start_boottime_ns;
        self.learned.is_foreign(OwnRead {
            container_id: id,
            container: pods.pod(&container.pod_uid).and_then(|pod| pod.container(id)),
            executable: &executable,
            ktime_ns: record.ktime_ns,
            main_start_ns: self.processes.main_start_ns(id).unwrap_or(began),
        })
    }

    /// Whether the kubelet opened. Looked for again if an opener bears its name: it may have been
    /// restarted from another executable, or started after the agent.
    fn is_kubelet(&mut self, record: &OpenRecord, now: Micros) -> bool {
        if self.kubelet.as_ref().is_some_and(|kubelet| kubelet.opened(record, &self.processes)) {
            return true;
        }
        if !kubelet::is_kubelet_name(&facts::text(&record.leader_comm))
            || self.kubelet.as_ref().is_some_and(|kubelet| kubelet.lives(&self.processes))
            || self
                .kubelet_searched
                .is_some_and(|last| last <= now && now < last + KUBELET_SEARCH_INTERVAL)
        {
            return false;
        }
        self.kubelet_searched = Some(now);
        let Some(found) = Kubelet::find(&self.processes) else { return false };
        if let Err(error) = self.volumes.follow(&found.directory) {
            tracing::warn!(%error, "mounts of the kubelet cannot be read, using those known before");
        }
        let opened = found.opened(record, &self.processes);
        self.kubelet = Some(found);
        opened
    }
}

/// Whether the reader is on the host or in another pod than the volume's. An unknown place is not
/// outside: that grade is an accusation.
fn is_outside(reader: &Reader, volume: Option<&Volume>) -> bool {
    reader.known
        && match (&reader.container, volume) {
            (Some(container), Some(volume)) => container.pod_uid != volume.pod_uid,
            (Some(_), None) => false,
            (None, _) => true,
        }
}

/// Whether the reader's container was added to its running pod: somebody entered by it.
fn is_ephemeral(reader: &Reader, pods: &PodIndex) -> bool {
    reader.container.as_ref().is_some_and(|container| {
        container.container_id.as_ref().is_some_and(|id| pods.is_ephemeral(&container.pod_uid, id))
    })
}

/// What was found out about an open.
struct Findings {
    grade: Grade,
    native: Option<bool>,
    volume: Option<Volume>,
    reader: Reader,
    file: TokenFile,
    degraded: Vec<String>,
}

fn describe(record: &OpenRecord, times: OpenTimes, findings: Findings) -> TokenOpen {
    let Findings { grade, native, volume, reader, file, degraded } = findings;
    let (args, args_cut) = facts::arguments(record);
    TokenOpen {
        ktime_ns: record.ktime_ns,
        time: times.time,
        wall: times.wall,
        grade,
        native,
        pod_uid: match (&volume, &reader.container) {
            (Some(volume), _) => Some(volume.pod_uid.clone()),
            (None, container) => container.as_ref().map(|container| container.pod_uid.clone()),
        },
        volume: volume.map(|volume| VolumeRef { pod_uid: volume.pod_uid, name: volume.name }),
        reader: reader.container,
        file,
        path: facts::canonical_path(file),
        raw_path: facts::raw_path(record),
        inode: record.file_ino,
        process: ProcessKey { tgid: record.tgid, start_boottime_ns: record.start_boottime_ns },
        pid: record.pid,
        ppid: record.ppid,
        comm: facts::text(&record.comm),
        leader_comm: facts::text(&record.leader_comm),
        executable: facts::executable(record),
        executable_id: (record.exe_dev, record.exe_ino),
        args,
        args_cut,
        uid: record.uid,
        euid: record.euid,
        tty: (record.tty_dev != 0).then(|| volumes::split_dev(record.tty_dev)),
        entry: facts::related(&facts::entry(record)),
        pidns_entry: facts::related(&record.entry_pidns),
        cgroup: reader.cgroup,
        route: facts::route(record).to_owned(),
        degraded,
        repeats: record.repeats,
    }
}

#[cfg(test)]
mod tests;
