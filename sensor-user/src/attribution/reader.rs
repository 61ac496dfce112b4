//! Where the opener runs: from the cgroup names that the kernel copied at the open, and from
//! `/proc` only where those are incomplete. Called by [`Attributor`](super::Attributor).

use tokentrail_ebpf::{Missing, OpenRecord, until_nul};

use super::{
    ContainerRef,
    cgroup::{self, Located},
    processes::{ProcessTime, Processes},
};

/// The opener's place.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Reader {
    /// `None` on the host, or if `known` is false.
    pub container: Option<ContainerRef>,
    /// Its cgroup, as far as it is known, root first.
    pub cgroup: String,
    /// The beginning of `cgroup` that leads to the container.
    pub container_path: String,
    /// Whether it runs in a group below the container's.
    pub nested: bool,
    /// Whether `cgroup` starts at the root.
    pub complete: bool,
    /// Whether anything tells where the opener runs.
    pub known: bool,
    /// The opening process.
    pub process: ProcessTime,
}

impl Reader {
    /// Finds the opener's place. `root` is the kubelet's cgroup root, if known.
    pub(super) fn of(record: &OpenRecord, processes: &Processes, root: Option<&[&str]>) -> Self {
        let process = ProcessTime::new(record.tgid, record.start_boottime_ns);
        let names = Names::of(record);
        let located = names.as_ref().and_then(|names| names.locate(root));
        // The kernel's names are of the moment of the open, so they win. A path to the root that
        // names no pod is the host's; the bare root is where cgroup v1 leaves tasks that it
        // manages in another hierarchy.
        let conclusive = names.as_ref().is_some_and(|names| match &located {
            Some(located) => located.container.container_id.is_some() || !names.cut,
            None => names.complete && !names.path.is_empty(),
        });
        if conclusive {
            return Self::at(names.unwrap_or_default(), located, process, true);
        }
        // The entry process is in the same cgroup by definition, and often outlives the opener.
        let asked = [process, ProcessTime::from(record.entry_cgroup)];
        if let Some(path) = asked.into_iter().find_map(|process| processes.cgroup(process, root)) {
            let names = Names { path, complete: true, cut: false };
            let located = names.locate(root);
            return Self::at(names, located, process, true);
        }
        // Nobody left to ask. Six levels without a pod are hardly in one: user sessions nest that
        // deep, containers do not.
        let known = names.as_ref().is_some_and(|names| !names.path.is_empty());
        Self::at(names.unwrap_or_default(), located, process, known)
    }

    fn at(names: Names, located: Option<Located>, process: ProcessTime, known: bool) -> Self {
        let components = cgroup::components(&names.path);
        let depth = located.as_ref().map_or(0, |located| located.depth);
        Self {
            container_path: components.get(..depth).unwrap_or_default().join("/"),
            nested: located.is_some() && components.len() > depth,
            container: located.map(|located| located.container),
            complete: names.complete,
            cgroup: names.path,
            known,
            process,
        }
    }
}

/// The cgroup path that a record's names make.
#[derive(Debug, Default)]
struct Names {
    path: String,
    /// Whether the topmost name is a child of the root.
    complete: bool,
    /// Whether a name filled its buffer, so that its end may be missing.
    cut: bool,
}

impl Names {
    /// `None` if the kernel side could not read them.
    fn of(record: &OpenRecord) -> Option<Self> {
        if record.missing & Missing::CGROUP != 0 {
            return None;
        }
        let named: Vec<&[u8]> = record
            .cgroup_names
            .iter()
            .map(|name| until_nul(name))
            .take_while(|name| !name.is_empty())
            .collect();
        let complete = named.len() < record.cgroup_names.len();
        let cut = named.iter().any(|name| name.len() + 1 >= tokentrail_ebpf::CGROUP_NAME_LEN);
        let path = named
            .iter()
            .rev()
            // A slash cannot be in a kernel's name: what has one is not a level more.
            .map(|name| format!("/{}", String::from_utf8_lossy(name).replace('/', "\u{fffd}")))
            .collect();
        Some(Self { path, complete, cut })
    }

    fn locate(&self, root: Option<&[&str]>) -> Option<Located> {
        // A path that does not start at the root cannot be compared with one.
        cgroup::locate(&cgroup::components(&self.path), root.filter(|_| self.complete))
    }
}
