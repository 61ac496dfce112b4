//! Which executables each workload was seen to read its token with, so that a reverse shell or an
//! injected tool in the container's own tree stands out.
//!
//! Learning goes by the boot clock of the records alone. A workload is an image under a container's
//! name; a container that no index describes stands for itself. What is learned outlives pods and,
//! through [`Learned::take_changed`] and [`Learned::restore`], the agent; nothing is read or written
//! here. Called by [`Attributor`](super::Attributor).

use std::{collections::BTreeSet, num::NonZeroUsize};

use lru::LruCache;
use serde::{Deserialize, Serialize};

use super::{metrics::AttributionMetrics, pods};
use crate::time::Micros;

/// Workloads remembered; a node has some hundred. The one that read longest ago gives way.
const WORKLOADS: NonZeroUsize = NonZeroUsize::new(1024).unwrap();
/// Executables of one workload. One that reads with so many (a build machine) reads with anything:
/// none is foreign to it.
const EXECUTABLES: usize = 32;

/// Whose habit it is.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum Workload {
    /// Image as the pod's spec names it, and name of the container.
    Image(Box<str>, Box<str>),
    /// Id of a container that no index describes (yet).
    Container(Box<str>),
}

/// What is remembered of one.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
struct Habit {
    /// Paths as records have them: on an overlay, device and inode are another container's others.
    executables: BTreeSet<Box<str>>,
    /// Whether a container of it was watched from its start to the end of learning.
    learned: bool,
    /// The image's digest at that time: the same tag may name another image since.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    digest: Option<Box<str>>,
}

/// All that is learned, as it is kept over restarts; the workload that read last comes last.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Saved {
    workloads: Vec<(Workload, Habit)>,
}

/// A read in the container's own tree.
#[derive(Clone, Copy, Debug)]
pub(super) struct OwnRead<'a> {
    /// Id of the container.
    pub container_id: &'a str,
    /// What the index says of it.
    pub container: Option<&'a pods::Container>,
    /// Path of the reader's executable, as far as the record has it.
    pub executable: &'a str,
    /// When, on the boot clock, nanoseconds.
    pub ktime_ns: u64,
    /// Start of the container's main process, on the same clock.
    pub main_start_ns: u64,
}

/// The memory.
#[derive(Debug)]
pub(super) struct Learned {
    workloads: LruCache<Workload, Habit>,
    /// How long a container, and the agent, learn.
    period_ns: u64,
    /// Start of the agent, on the boot clock.
    since_ns: u64,
    changed: bool,
    metrics: AttributionMetrics,
}

impl Learned {
    /// Nothing yet. `since_ns`: from when on opens are seen, on the boot clock.
    pub(super) fn new(period: Micros, since_ns: u64, metrics: AttributionMetrics) -> Self {
        let period_ns = u64::try_from(period.0).unwrap_or_default().saturating_mul(1_000);
        let workloads = LruCache::new(WORKLOADS);
        Self { workloads, period_ns, since_ns, changed: false, metrics }
    }

    /// Goes on with what an earlier agent learned.
    pub(super) fn restore(&mut self, saved: Saved) {
        for (workload, mut habit) in saved.workloads {
            while habit.executables.len() > EXECUTABLES {
                habit.executables.pop_last();
            }
            self.workloads.put(workload, habit);
        }
    }

    /// All that is learned, if that changed since it was last asked.
    pub(super) fn take_changed(&mut self) -> Option<Saved> {
        std::mem::take(&mut self.changed).then(|| {
            let all = self.workloads.iter().rev();
            let workloads = all.map(|(workload, habit)| (workload.clone(), habit.clone()));
            Saved { workloads: workloads.collect() }
        })
    }

    /// Whether the workload is known well enough to say that it does not read with this executable.
    /// While it is not, it learns.
    pub(super) fn is_foreign(&mut self, read: OwnRead<'_>) -> bool {
        let itself = Workload::Container(read.container_id.into());
        let image = read.container.map(|it| Workload::Image(it.image.clone(), it.name.clone()));
        let digest = read.container.and_then(|it| it.digest.as_deref());
        let lasts = |from_ns: u64| read.ktime_ns.saturating_sub(from_ns) < self.period_ns;
        let (is_young, agent_is_young) = (lasts(read.main_start_ns), lasts(self.since_ns));
        let from_start = read.main_start_ns >= self.since_ns;

        // What it read with before an index described it is known of the container itself.
        let known_before = self.workloads.get(&itself).is_some_and(|it| it.has(read.executable));
        let workload = image.unwrap_or(itself);
        if self.workloads.len() == WORKLOADS.get() && !self.workloads.contains(&workload) {
            self.metrics.unlearned(Unlearned::Workload);
        }
        let habit = self.workloads.get_or_insert_mut(workload, Habit::default);
        let learns = habit.learns(digest) && (is_young || agent_is_young);
        if !is_young && from_start && habit.learns(digest) {
            habit.learned = true;
            habit.digest = digest.map(Into::into);
            self.changed = true;
        }
        if known_before || habit.has(read.executable) {
            return false;
        }
        if habit.executables.len() == EXECUTABLES {
            self.metrics.unlearned(Unlearned::Executable);
            return false;
        }
        if learns {
            habit.executables.insert(read.executable.into());
            self.changed = true;
        }
        !learns
    }
}

impl Habit {
    fn has(&self, executable: &str) -> bool {
        self.executables.contains(executable)
    }

    /// Whether there is something left to learn about it.
    fn learns(&self, digest: Option<&str>) -> bool {
        let is_other = |now: &str| self.digest.as_deref().is_some_and(|then| then != now);
        !self.learned || digest.is_some_and(is_other)
    }
}

/// What was not remembered for want of room.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Unlearned {
    Workload,
    Executable,
}

impl Unlearned {
    pub(super) const ALL: [Self; 2] = [Self::Workload, Self::Executable];

    pub(super) const fn as_str(self) -> &'static str {
        match self {
            Self::Workload => "workload",
            Self::Executable => "executable",
        }
    }
}

#[cfg(test)]
mod tests;
