//! What of the sensor stays in the kernel when its agent ends: sets of pins in a BPF file system. Owns
//! their layout, and the lock by which they are one agent's. What is in a set's ring is read by
//! `predecessor`.
//!
//! ```text
//! <directory>/<node>/v<ABI version>/<boot clock when it was made, ns>/
//!     EVENTS COUNTERS SESSIONS LINEAGE     maps, by their names
//!     open-<hook> session-<hook>           what keeps programs attached
//! ```
//!
//! A set is whole: it is made under another name and then renamed. Who takes over makes its own and
//! then removes those of before, so there is one at any moment. A boot removes them all.

use std::{
    fs::{self, File},
    io,
    os::unix::fs::{DirBuilderExt as _, MetadataExt as _},
    path::{Path, PathBuf},
    time::SystemTime,
};

use aya::maps::{MapData, MapInfo};
use rustix::{
    fs::{FlockOperation, flock, statfs},
    process::geteuid,
};
use thiserror::Error;
use tokentrail_ebpf::{ABI_VERSION, SessionCommand, TaskKey, names};

use super::{
    attach::{Link, reason},
    clock::{Sampler as _, System},
};

/// Where pins are if nothing else is said.
pub const DEFAULT_PIN_DIR: &str = "/sys/fs/bpf/tokentrail";

/// `BPF_FS_MAGIC` of `include/uapi/linux/magic.h`.
const BPF_FS_MAGIC: i64 = 0xcafe_4a11;
/// How the name of a set begins that is not whole yet.
const UNFINISHED: &str = "new-";
/// How the name of a pin begins that keeps opens being reported.
const OPENS: &str = "open-";
/// How the name of a pin begins that keeps sessions being followed.
const SESSIONS: &str = "session-";

/// Why nothing can be pinned.
#[derive(Debug, Error)]
pub enum PinError {
    /// Two agents would read one ring.
    #[error("another tokentrail keeps its programs in {}; stop it, or choose another directory with --pin-dir", path.display())]
    Taken {
        /// The directory.
        path: PathBuf,
    },
    /// There is none.
    #[error("{} is on no BPF file system; mount one with `mount -t bpf bpf /sys/fs/bpf`", path.display())]
    NoBpfFs {
        /// The directory.
        path: PathBuf,
    },
    /// Who owns the directory could put other programs and maps in the place of ours.
    #[error("{} belongs to user {owner}; remove it, or choose another directory with --pin-dir", path.display())]
    Foreign {
        /// The directory.
        path: PathBuf,
        /// Whose it is.
        owner: u32,
    },
    /// The file system refused.
    #[error("cannot {action} {}: {source}", path.display())]
    Io {
        /// What was tried.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// The kernel refused.
    #[error("cannot pin {}: {reason}", path.display())]
    Refused {
        /// The pin.
        path: PathBuf,
        /// What the kernel said.
        reason: String,
    },
    /// The same, and what was to be pinned is not attached any more.
    #[error("cannot pin {}: {reason}; run without --pin-dir", path.display())]
    Detached {
        /// The pin.
        path: PathBuf,
        /// What the kernel said.
        reason: String,
    },
}

/// The directory of a node's sets: nodes may share a kernel, and then its BPF file system.
pub fn of_node(directory: &Path, node: &str) -> PathBuf {
    // A BPF file system takes no dot in a name.
    let plain = |it: char| if it.is_ascii_alphanumeric() || it == '-' { it } else { '_' };
    directory.join(node.chars().map(plain).collect::<String>())
}

/// The directory of a node's sets, one agent's for as long as this lives.
#[derive(Debug)]
pub struct Pins {
    root: PathBuf,
    _lock: File,
}

impl Pins {
    /// Makes the directory if need be, and takes it.
    pub fn open(root: &Path) -> Result<Self, PinError> {
        if !is_on_bpf_fs(root) {
            return Err(PinError::NoBpfFs { path: root.to_owned() });
        }
        make(root)?;
        Self::lock(root)
    }

    fn lock(root: &Path) -> Result<Self, PinError> {
        let lock = File::open(root).map_err(io("open", root))?;
        let owner = lock.metadata().map_err(io("read", root))?.uid();
        if owner != geteuid().as_raw() {
            return Err(PinError::Foreign { path: root.to_owned(), owner });
        }
        match flock(&lock, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => Ok(Self { root: root.to_owned(), _lock: lock }),
            Err(rustix::io::Errno::WOULDBLOCK) => Err(PinError::Taken { path: root.to_owned() }),
            Err(error) => Err(io("lock", root)(error.into())),
        }
    }

    /// All whole sets, oldest first. Removes what is not whole.
    pub(super) fn sets(&self) -> Vec<Set> {
        let (whole, unfinished) = sets_in(&self.root);
        for set in unfinished {
            if let Err(error) = set.remove() {
                tracing::warn!(%error, "a set of pins that an agent did not finish stays");
            }
        }
        whole
    }

    /// Makes a set of these maps and of what keeps programs attached.
    pub(super) fn keep(
        &self,
        maps: &[(&'static str, MapData)],
        opens: &mut [Link],
        sessions: &mut [Link],
    ) -> Result<Kept, PinError> {
        let version = self.root.join(format!("v{ABI_VERSION}"));
        make(&version)?;
        let (now, _) = System.sample();
        let unfinished = version.join(format!("{UNFINISHED}{now}"));
        make(&unfinished)?;
        let forgotten = fill(&unfinished, maps, opens, sessions).inspect_err(|_| {
            // It is no set, and the next start removes what is left of it.
            let _: io::Result<()> = fs::remove_dir_all(&unfinished);
        })?;
        let path = version.join(now.to_string());
        fs::rename(&unfinished, &path).map_err(io("rename", &unfinished))?;
        let folder = File::open(&path).map_err(io("open", &path))?;
        Ok(Kept { set: Set { version: ABI_VERSION, made_ns: now, path }, folder, forgotten })
    }
}

/// Pins all of it; returns the hooks that this kernel does not keep attached.
fn fill(
    folder: &Path,
    maps: &[(&'static str, MapData)],
    opens: &mut [Link],
    sessions: &mut [Link],
) -> Result<Vec<&'static str>, PinError> {
    for (name, map) in maps {
        let path = folder.join(name);
        map.pin(&path)
            .map_err(|error| PinError::Refused { path, reason: reason("pin", &error) })?;
    }
    let mut forgotten = Vec::new();
    let links = opens.iter_mut().map(|link| (OPENS, link));
    for (kind, link) in links.chain(sessions.iter_mut().map(|link| (SESSIONS, link))) {
        let path = folder.join(format!("{kind}{}", link.hook()));
        let kept = link.pin(&path);
        if !kept.map_err(|error| PinError::Detached { path, reason: reason("pin", &error) })? {
            forgotten.push(link.hook());
        }
    }
    Ok(forgotten)
}

/// A set of this agent's.
#[derive(Debug)]
pub(super) struct Kept {
    pub(super) set: Set,
    folder: File,
    /// Hooks that this kernel does not keep attached.
    pub(super) forgotten: Vec<&'static str>,
}

impl Kept {
    /// Notes that an agent reads it: what comes later, nobody may have read.
    pub(super) fn beat(&self) {
        if let Err(error) = self.folder.set_modified(SystemTime::now()) {
            tracing::debug!(%error, "cannot note that the pins are in use");
        }
    }
}

/// A set of pins.
#[derive(Debug)]
pub(super) struct Set {
    /// [`ABI_VERSION`] of who made it.
    pub(super) version: u32,
    made_ns: u64,
    path: PathBuf,
}

impl Set {
    /// A map of it.
    pub(super) fn path_of(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }

    /// Until when an agent is known to have read it.
    pub(super) fn read_until(&self) -> Option<SystemTime> {
        self.path.metadata().ok()?.modified().ok()
    }

    /// Whether opens were seen while no agent ran.
    pub(super) fn sees_opens(&self) -> bool {
        entries(&self.path).any(|name| name.starts_with(OPENS))
    }

    /// Removes it. What nothing else holds is detached and freed.
    pub(super) fn remove(&self) -> Result<(), PinError> {
        fs::remove_dir_all(&self.path).map_err(io("remove", &self.path))?;
        // The last one of its version.
        if let Some(version) = self.path.parent() {
            let _: io::Result<()> = fs::remove_dir(version);
        }
        Ok(())
    }
}

/// Maps of the newest set that a new load of the programs is to go on with, and where they are pinned:
/// who belongs to which session.
pub(super) fn sessions(root: &Path) -> Vec<(&'static str, PathBuf)> {
    // As in `Pins::open`: somebody else's are not ours.
    if !fs::metadata(root).is_ok_and(|it| it.uid() == geteuid().as_raw()) {
        return Vec::new();
    }
    let (whole, _) = sets_in(root);
    let Some(newest) = whole.iter().rfind(|set| set.version == ABI_VERSION) else {
        return Vec::new();
    };
    let maps = [
        (names::SESSIONS, size_of::<TaskKey>(), size_of::<SessionCommand>()),
        (names::LINEAGE, size_of::<TaskKey>(), size_of::<TaskKey>()),
    ];
    let fitting = maps.into_iter().filter_map(|(name, key, value)| {
        let path = newest.path_of(name);
        let info = MapInfo::from_pin(&path).ok()?;
        let sizes = (info.key_size() as usize, info.value_size() as usize);
        (sizes == (key, value)).then_some((name, path))
    });
    fitting.collect()
}

/// Whether an agent could pin here, and what it would find. Changes nothing.
pub fn look(root: &Path) -> Result<String, PinError> {
    if !is_on_bpf_fs(root) {
        return Err(PinError::NoBpfFs { path: root.to_owned() });
    }
    let (whole, _) = sets_in(root);
    Ok(format!("{}: {} set(s) of programs to take over from", root.display(), whole.len()))
}

/// Removes all that was ever pinned in a directory, of whatever node and version, and returns what that
/// was. Other entries stay, and so do the directories that they are in.
pub fn uninstall(directory: &Path) -> Result<Vec<PathBuf>, PinError> {
    if !directory.exists() {
        return Ok(Vec::new());
    }
    if !is_on_bpf_fs(directory) {
        return Err(PinError::NoBpfFs { path: directory.to_owned() });
    }
    let mut removed = Vec::new();
    for node in entries(directory).map(|name| directory.join(name)) {
        let (whole, unfinished) = sets_in(&node);
        let sets: Vec<Set> = whole.into_iter().chain(unfinished).collect();
        if sets.is_empty() && versions(&node).is_empty() {
            continue;
        }
        let _pins = Pins::lock(&node)?;
        for set in sets {
            set.remove()?;
            removed.push(set.path);
        }
        let left = versions(&node).into_iter().map(|version| node.join(format!("v{version}")));
        for folder in left.chain([node.clone()]) {
            // Where it is not empty, the rest is somebody else's.
            let _: io::Result<()> = fs::remove_dir(folder);
        }
    }
    let _: io::Result<()> = fs::remove_dir(directory);
    Ok(removed)
}

/// Whole sets, oldest first, and unfinished ones.
fn sets_in(root: &Path) -> (Vec<Set>, Vec<Set>) {
    let (mut whole, mut unfinished) = (Vec::new(), Vec::new());
    for version in versions(root) {
        let folder = root.join(format!("v{version}"));
        for name in entries(&folder) {
            let (number, sets) = match name.strip_prefix(UNFINISHED) {
                Some(number) => (number, &mut unfinished),
                None => (name.as_str(), &mut whole),
            };
            if let Ok(made_ns) = number.parse() {
                sets.push(Set { version, made_ns, path: folder.join(&name) });
            }
        }
    }
    whole.sort_by_key(|set: &Set| set.made_ns);
    (whole, unfinished)
}

fn versions(root: &Path) -> Vec<u32> {
    entries(root).filter_map(|name| name.strip_prefix('v')?.parse().ok()).collect()
}

/// Names of what is in a folder; none where it cannot be read.
fn entries(folder: &Path) -> impl Iterator<Item = String> {
    let entries = fs::read_dir(folder).into_iter().flatten().filter_map(Result::ok);
    entries.filter_map(|entry| entry.file_name().into_string().ok())
}

fn make(folder: &Path) -> Result<(), PinError> {
    let made = fs::DirBuilder::new().recursive(true).mode(0o700).create(folder);
    made.map_err(io("make", folder))
}

/// Whether a path, or what of it is there, is on a BPF file system.
fn is_on_bpf_fs(path: &Path) -> bool {
    let existing = path.ancestors().find(|path| path.exists());
    existing.and_then(|path| statfs(path).ok()).is_some_and(|it| it.f_type == BPF_FS_MAGIC)
}

fn io(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> PinError {
    let path = path.to_owned();
    move |source| PinError::Io { action, path, source }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sets_are_found_by_version_and_age_and_nothing_else_is_one() {
        let root = tempfile::tempdir().unwrap();
        for path in ["v2/1000", "v2/999", "v1/1500", "v2/new-7", "v2/mine", "vault/5", "other"] {
            fs::create_dir_all(root.path().join(path)).unwrap();
        }
        let (whole, unfinished) = sets_in(root.path());
        let named = |sets: &[Set]| {
            let sets = sets.iter().map(|set| (set.version, set.made_ns));
            sets.collect::<Vec<_>>()
        };
        assert_eq!(named(&whole), [(2, 999), (2, 1000), (1, 1500)]);
        assert_eq!(named(&unfinished), [(2, 7)]);
    }

    #[test]
    fn what_is_on_no_bpf_file_system_is_refused_and_left_alone() {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path().join("tokentrail");
        let error = Pins::open(&root).unwrap_err();
        assert!(matches!(error, PinError::NoBpfFs { .. }), "{error}");
        assert!(!root.exists());
        assert!(error.to_string().contains("mount -t bpf"), "{error}");
        assert!(matches!(uninstall(folder.path()), Err(PinError::NoBpfFs { .. })));
        assert_eq!(uninstall(&root).unwrap(), Vec::<PathBuf>::new(), "there is nothing");
    }
}
