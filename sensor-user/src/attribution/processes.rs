//! What `/proc` and the cgroup file systems tell about live processes: where one runs, and which
//! one a container started with.
//!
//! Everything here may be gone, or be another process under the same id, by the time it is read:
//! each answer is checked against a start time, and "cannot tell" is an answer. Both trees' roots
//! are parameters, so that tests bring their own. Called by [`Attributor`](super::Attributor).

use std::{
    fs,
    io::{self, Read as _},
    num::NonZeroUsize,
    os::unix::fs::{DirEntryExt as _, MetadataExt as _},
    path::{Path, PathBuf},
};

use lru::LruCache;
use tokentrail_ebpf::Ancestor;

use super::{
    ContainerRef, ProcessKey,
    cgroup::{self, Located},
    facts,
    reader::Reader,
};

/// Nanoseconds in a clock tick of `/proc/<pid>/stat`: `USER_HZ` is 100 on x86-64 and arm64.
const NANOS_PER_TICK: u64 = 10_000_000;
/// Cgroups remembered by their ids; a node has some hundred.
const MAX_IDS: NonZeroUsize = NonZeroUsize::new(4096).unwrap();
/// Cgroups that one search looks at.
const MAX_SEARCHED: usize = 1 << 14;
/// Containers whose main process is remembered; a node has a few hundred.
const MAX_CONTAINERS: NonZeroUsize = NonZeroUsize::new(1024).unwrap();
/// Processes of a container compared; with more, its main process counts as unknown.
const MAX_PROCESSES: usize = 4096;
/// Cgroups below a container's looked into: a container may be free to make any number.
const MAX_CGROUPS: usize = 64;
/// Bytes of a command that are read: more than any probe has.
const MAX_COMMAND: u64 = 64 << 10;
/// Steps towards `init`, as in the kernel side.
const MAX_ANCESTORS: usize = 32;
/// What `/proc/self/ns/pid` says in the initial pid namespace (`PROC_PID_INIT_INO`).
const INITIAL_PID_NAMESPACE: &str = "pid:[4026531836]";
/// Where a cgroup path may hang below `/sys/fs/cgroup`: on v2, on hybrids, on v1.
const HIERARCHIES: [&str; 5] = ["", "unified", "memory", "pids", "systemd"];

/// A process at the precision of `/proc`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct ProcessTime {
    pub tgid: u32,
    pub start_ticks: u64,
}

impl ProcessTime {
    pub(super) const fn new(tgid: u32, start_boottime_ns: u64) -> Self {
        Self { tgid, start_ticks: start_boottime_ns / NANOS_PER_TICK }
    }
}

impl From<ProcessKey> for ProcessTime {
    fn from(key: ProcessKey) -> Self {
        Self::new(key.tgid, key.start_boottime_ns)
    }
}

impl From<Ancestor> for ProcessTime {
    fn from(ancestor: Ancestor) -> Self {
        Self::new(ancestor.tgid, ancestor.start_boottime_ns)
    }
}

/// The node's processes.
#[derive(Debug)]
pub(super) struct Processes {
    proc_root: PathBuf,
    cgroup_root: PathBuf,
    /// Whether `/proc` counts processes as the kernel's records do: not where the agent's node is
    /// itself a container (kind).
    same_ids: bool,
    mains: LruCache<String, ProcessTime>,
    /// Paths of cgroups by their ids; `None` for one that was not there.
    cgroups: LruCache<u64, Option<String>>,
}

impl Processes {
    pub(super) fn new(proc_root: PathBuf, cgroup_root: PathBuf) -> Self {
        let same_ids = fs::read_link(proc_root.join("self/ns/pid"))
            .map_or(true, |namespace| namespace == Path::new(INITIAL_PID_NAMESPACE));
        let (mains, cgroups) = (LruCache::new(MAX_CONTAINERS), LruCache::new(MAX_IDS));
        Self { proc_root, cgroup_root, same_ids, mains, cgroups }
    }

    /// Whether a process seen in `/proc` is one that a record names. Where ids differ, the time of
    /// the start has to do: two processes of one container within 10 ms are a parent and its child.
    pub(super) fn is_same(&self, seen: ProcessTime, recorded: ProcessTime) -> bool {
        seen.start_ticks == recorded.start_ticks && (!self.same_ids || seen.tgid == recorded.tgid)
    }

    pub(super) fn proc_root(&self) -> &Path {
        &self.proc_root
    }

    pub(super) fn stat(&self, tgid: u32) -> Option<Stat> {
        // A name in it may hold any bytes.
        let text = fs::read(self.proc_root.join(tgid.to_string()).join("stat")).ok()?;
        Stat::parse(&String::from_utf8_lossy(&text))
    }

    /// Whether the process that had this id at this time still lives.
    pub(super) fn lives(&self, process: ProcessTime) -> bool {
        self.stat(process.tgid).is_some_and(|stat| stat.start_ticks == process.start_ticks)
    }

    /// The command of a live process, word by word; `None` if it is gone, or has none.
    pub(super) fn command(&self, process: ProcessTime) -> Option<Vec<Vec<u8>>> {
        let path = self.proc_root.join(process.tgid.to_string()).join("cmdline");
        let mut text = Vec::new();
        // A command of megabytes is no probe's.
        fs::File::open(path).ok()?.take(MAX_COMMAND).read_to_end(&mut text).ok()?;
        let words = facts::split_words(&text);
        // Asked after reading: the id may have passed to another process before.
        (!words.is_empty() && self.lives(process))
            .then(|| words.into_iter().map(<[u8]>::to_vec).collect())
    }

    /// The cgroup path of a live process: of its hierarchies, the first that names a pod, else the
    /// first at all. `None` if the process is gone.
    pub(super) fn cgroup(&self, process: ProcessTime, root: Option<&[&str]>) -> Option<String> {
        let path = self.proc_root.join(process.tgid.to_string()).join("cgroup");
        let text = String::from_utf8_lossy(&fs::read(path).ok()?).into_owned();
        // Asked after reading: the id may have passed to another process before.
        if !self.lives(process) {
            return None;
        }
        let names_pod = |path: &&str| cgroup::locate(&cgroup::components(path), root).is_some();
        cgroup::proc_paths(&text)
            .find(names_pod)
            .or_else(|| cgroup::proc_paths(&text).next())
            .map(str::to_owned)
    }

    /// The path of the cgroup with this id, which on v2 is its directory's inode. Ids are not given
    /// out again, so each is searched for once. `None` where there is no such group (any more), or v1
    /// has the containers.
    pub(super) fn cgroup_of_id(&mut self, id: u64) -> Option<String> {
        if id == 0 || !self.cgroup_root.join("cgroup.controllers").exists() {
            return None;
        }
        if let Some(known) = self.cgroups.get(&id) {
            return known.clone();
        }
        if let Ok(root) = fs::metadata(&self.cgroup_root) {
            self.cgroups.put(root.ino(), Some("/".to_owned()));
        }
        let mut pending = vec![(PathBuf::new(), self.cgroup_root.clone())];
        let (mut searched, mut found) = (0, None);
        while let Some((path, directory)) = pending.pop() {
            searched += 1;
            for child in fs::read_dir(&directory).into_iter().flatten().filter_map(Result::ok) {
                if !child.file_type().is_ok_and(|kind| kind.is_dir()) {
                    continue;
                }
                let path = path.join(child.file_name());
                let name = format!("/{}", path.display());
                if child.ino() == id {
                    found = Some(name.clone());
                }
                self.cgroups.put(child.ino(), Some(name));
                if searched + pending.len() < MAX_SEARCHED {
                    pending.push((path, child.path()));
                }
            }
        }
        // Last, since what a large tree has besides may have taken its place.
        self.cgroups.put(id, found.clone());
        found
    }

    /// Device and mode of what a descriptor of a process refers to; `None` if there is none.
    ///
    /// # Errors
    /// If that may not be known.
    pub(super) fn descriptor(&self, tgid: u32, number: u32) -> io::Result<Option<(u64, u32)>> {
        match fs::metadata(self.proc_root.join(format!("{tgid}/fd/{number}"))) {
            Ok(found) => Ok(Some((found.rdev(), found.mode()))),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// The executable of a live process.
    pub(super) fn executable(&self, process: ProcessTime) -> Option<PathBuf> {
        let path = fs::read_link(self.proc_root.join(format!("{}/exe", process.tgid))).ok()?;
        // Asked after reading: the id may have passed to another process before.
        self.lives(process).then_some(path)
    }

    /// Whether a session's entry process belongs to the container's own tree, that is: whether it
    /// is the container's main process. `None` if the main process cannot be determined.
    pub(super) fn is_native(&mut self, entry: Ancestor, reader: &Reader) -> Option<bool> {
        let container = reader.container.as_ref()?;
        let id = container.container_id.as_ref()?;
        let entry = ProcessTime::from(entry);
        // Before asking whether it lives: a container's last open may be read after its end.
        if self.mains.peek(id).is_some_and(|main| self.is_same(*main, entry)) {
            return Some(true);
        }
        let main = self.main_process(id, reader, entry)?;
        if self.is_same(main, entry) || !reader.nested {
            return Some(self.is_same(main, entry));
        }
        // In a group made inside the container (systemd, a nested runtime) the kernel side's walk
        // ended at that group's border: go on to the container's.
        self.same_ids.then(|| self.top_of(entry, container) == main)
    }

    /// Start of the container's main process on the boot clock, nanoseconds, if it was found before.
    pub(super) fn main_start_ns(&self, container_id: &str) -> Option<u64> {
        Some(self.mains.peek(container_id)?.start_ticks.saturating_mul(NANOS_PER_TICK))
    }

    /// The live process of the container that started first.
    fn main_process(
        &mut self,
        id: &str,
        reader: &Reader,
        entry: ProcessTime,
    ) -> Option<ProcessTime> {
        if let Some(main) = self.mains.get(id).copied()
            && self.lives(main)
        {
            return Some(main);
        }
        let directory = self.container_directory(reader, entry)?;
        let mut processes = Vec::new();
        for tgid in processes_below(&directory)? {
            if let Some(stat) = self.stat(tgid) {
                processes.push((stat, tgid));
            }
        }
        // A child may start in the same tick as its parent: the parent's parent is outside.
        let inside = |tgid: u32| processes.iter().any(|(_, other)| *other == tgid);
        let main = processes
            .iter()
            .min_by_key(|(stat, tgid)| (stat.start_ticks, inside(stat.ppid), *tgid))
            .map(|(stat, tgid)| ProcessTime { tgid: *tgid, start_ticks: stat.start_ticks })?;
        self.mains.put(id.to_owned(), main);
        Some(main)
    }

    /// The directory of the container's cgroup, in whichever hierarchy has it.
    fn container_directory(&self, reader: &Reader, entry: ProcessTime) -> Option<PathBuf> {
        if let Some(directory) = self.cgroup_directory(&cgroup::components(&reader.container_path))
        {
            return Some(directory);
        }
        // The kernel named too few levels, or the agent sees the tree from another root.
        [reader.process, entry].into_iter().find_map(|process| {
            let path = self.cgroup(process, None)?;
            let components = cgroup::components(&path);
            let Located { container, depth } = cgroup::locate(&components, None)?;
            (Some(&container) == reader.container.as_ref())
                .then(|| self.cgroup_directory(components.get(..depth)?))?
        })
    }

    fn cgroup_directory(&self, components: &[&str]) -> Option<PathBuf> {
        // Names from the kernel cannot hold these, bytes of a record could.
        if components.is_empty() || components.contains(&"..") || components.contains(&".") {
            return None;
        }
        // Where the agent runs in a cgroup namespace (kind), its tree starts below the kernel's
        // root: try without the leading names as well.
        (0..components.len()).find_map(|skipped| {
            let path: PathBuf = components.iter().skip(skipped).collect();
            HIERARCHIES
                .iter()
                .map(|hierarchy| self.cgroup_root.join(hierarchy).join(&path))
                .find(|directory| directory.join("cgroup.procs").exists())
        })
    }

    /// The topmost ancestor of a process in a container, as far as it can be followed.
    fn top_of(&self, process: ProcessTime, container: &ContainerRef) -> ProcessTime {
        let mut top = process;
        for _ in 0..MAX_ANCESTORS {
            let parent = self
                .stat(top.tgid)
                .filter(|stat| stat.start_ticks == top.start_ticks)
                .and_then(|stat| Some((stat.ppid, self.stat(stat.ppid)?.start_ticks)))
                .map(|(tgid, start_ticks)| ProcessTime { tgid, start_ticks });
            let inside = |parent: &ProcessTime| {
                self.cgroup(*parent, None)
                    .and_then(|path| cgroup::locate(&cgroup::components(&path), None))
                    .is_some_and(|located| located.container == *container)
            };
            match parent.filter(inside) {
                Some(parent) => top = parent,
                None => break,
            }
        }
        top
    }
}

/// The processes of a cgroup and the ones below it; `None` if there are too many to compare.
fn processes_below(directory: &Path) -> Option<Vec<u32>> {
    let mut processes = Vec::new();
    let mut pending = vec![directory.to_owned()];
    let mut visited = 0;
    while let Some(directory) = pending.pop() {
        visited += 1;
        // A group that vanished meanwhile, or a threaded one, has no list: its parent's has them.
        let listed = fs::read_to_string(directory.join("cgroup.procs")).unwrap_or_default();
        processes.extend(listed.lines().filter_map(|line| line.parse::<u32>().ok()));
        let children = fs::read_dir(&directory).into_iter().flatten().filter_map(Result::ok);
        pending.extend(
            children
                .filter(|child| child.file_type().is_ok_and(|kind| kind.is_dir()))
                .map(|child| child.path())
                .take(MAX_CGROUPS),
        );
        if processes.len() > MAX_PROCESSES || visited + pending.len() > MAX_CGROUPS {
            return None;
        }
    }
    Some(processes)
}

/// What `/proc/<pid>/stat` tells (proc_pid_stat(5)).
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Stat {
    pub comm: String,
    pub ppid: u32,
    pub start_ticks: u64,
}

impl Stat {
    fn parse(text: &str) -> Option<Self> {
        // The name stands in parentheses and may itself hold any.
        let (head, tail) = text.rsplit_once(") ")?;
        let (_, comm) = head.split_once(" (")?;
        let mut fields = tail.split_ascii_whitespace();
        // Fields 4 and 22; the state after the name is field 3.
        let ppid = fields.nth(1)?.parse().ok()?;
        let start_ticks = fields.nth(17)?.parse().ok()?;
        Some(Self { comm: comm.to_owned(), ppid, start_ticks })
    }
}

#[cfg(test)]
mod tests;
