//! Which pod a tmpfs belongs to: a map from superblock numbers to service-account volumes, made
//! from the mountinfo of the kubelet's mount namespace.
//!
//! Each such volume is a tmpfs of its own (kubernetes `pkg/volume/projected`, `wrappedVolumeSpec`),
//! so `s_dev` names it exactly, by whatever path it was reached. Of the volumes' files only the
//! *names* are looked at, never the contents. Called by [`Attributor`](super::Attributor).

use std::{
    collections::{HashMap, HashSet},
    ffi::{OsStr, OsString},
    fs::{self, File},
    io::{self, Read, Seek},
    os::unix::{ffi::OsStringExt, fs::MetadataExt},
    path::{Path, PathBuf},
};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use tokentrail_ebpf::OpenRecord;

use self::files::Looks;
use super::{
    TokenFile,
    metrics::{AttributionMetrics, Refresh},
    pods::{PodIndex, Projected},
};
use crate::time::Micros;

mod files;

/// Readings of mountinfo in a second at most: a churn of mounts must not keep the agent busy.
const REFRESHES_PER_SECOND: u32 = 10;
/// Bits of a minor number in the kernel's device numbers (`MINORBITS`).
const MINOR_BITS: u32 = 20;

/// A device number as the kernel's records hold it: `major << 20 | minor`.
pub const fn kernel_dev(major: u32, minor: u32) -> u32 {
    major << MINOR_BITS | minor & ((1 << MINOR_BITS) - 1)
}

/// Major and minor of a device number as the kernel's records hold it.
pub const fn split_dev(dev: u32) -> (u32, u32) {
    (dev >> MINOR_BITS, dev & ((1 << MINOR_BITS) - 1))
}

/// The kubelet's volume plugin that made a volume.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum VolumeKind {
    /// `kubernetes.io~projected`: short-lived, bound to the pod.
    Projected,
    /// `kubernetes.io~secret`: a Secret of type service-account-token.
    Secret,
}

/// A volume of a pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Volume {
    /// Uid of the pod, as the kubelet's directory is called.
    pub pod_uid: String,
    /// Name of the volume in the pod's spec.
    pub name: String,
    /// Plugin that made it.
    pub kind: VolumeKind,
}

/// A volume with what is known of it.
#[derive(Debug)]
struct Mounted {
    volume: Volume,
    /// Where its files are.
    directory: PathBuf,
    /// When it was last looked at; at mount time it is still empty.
    looks: Looks,
}

impl Mounted {
    /// What its pod's spec says of it.
    fn spec<'a>(&self, pods: &'a PodIndex) -> Option<&'a Projected> {
        let of_spec = self.volume.kind == VolumeKind::Projected;
        of_spec.then(|| pods.projected(&self.volume.pod_uid, &self.volume.name)).flatten()
    }

    fn holds_token(&self, pods: &PodIndex) -> bool {
        files::holds_token(self.volume.kind, self.spec(pods), self.looks)
    }
}

/// Why the mounts could not be read.
#[derive(Debug, thiserror::Error)]
#[error(
    "cannot read the mounts in {}, run in the host's pid namespace with CAP_SYS_PTRACE: {source}",
    path.display()
)]
pub struct VolumesError {
    path: PathBuf,
    source: io::Error,
}

/// The volumes of this node's pods that may be of a service account.
#[derive(Debug)]
pub struct VolumeMap {
    kubelet_roots: Vec<PathBuf>,
    /// `/proc/<pid>` of the process whose mounts are read.
    process: PathBuf,
    /// Kept open: it outlives the process, and polling it tells of changes.
    mountinfo: File,
    /// Whether `mountinfo` is the kernel's, which tells of changes; a saved copy does not.
    watched: bool,
    stale: bool,
    volumes: HashMap<u32, Mounted>,
    /// Uids of their pods.
    pods: HashSet<String>,
    /// Those that hold a token, when they were last asked for.
    devices: Option<HashSet<u32>>,
    /// Whether that may have changed since.
    devices_in_doubt: bool,
    /// How many more times [`keep_up`](Self::keep_up) reads although no mount changed.
    settling: u8,
    limit: RateLimit,
    metrics: AttributionMetrics,
}

impl VolumeMap {
    /// Reads the mounts that `process` (`/proc/<pid>`) sees below the kubelets' root directories.
    pub fn open(
        process: &Path,
        kubelet_roots: Vec<PathBuf>,
        metrics: AttributionMetrics,
    ) -> Result<Self, VolumesError> {
        let (mountinfo, watched) = open_mountinfo(process)?;
        let mut map = Self {
            kubelet_roots,
            process: process.to_owned(),
            mountinfo,
            watched,
            stale: false,
            volumes: HashMap::new(),
            pods: HashSet::new(),
            devices: None,
            devices_in_doubt: true,
            settling: 0,
            limit: RateLimit::default(),
            metrics,
        };
        map.refresh()?;
        Ok(map)
    }

    /// Reads the mounts of another process from now on.
    pub fn follow(&mut self, process: &Path) -> Result<(), VolumesError> {
        let (mountinfo, watched) = open_mountinfo(process)?;
        (self.mountinfo, self.watched) = (mountinfo, watched);
        process.clone_into(&mut self.process);
        self.refresh()
    }

    /// `/proc/<pid>` of the process whose mounts are read.
    pub fn process(&self) -> &Path {
        &self.process
    }

    /// The service-account volume on device `s_dev` (kernel encoding). Mounts are read again first if
    /// they changed since: superblock numbers are reused, an old entry would name the wrong pod.
    pub fn lookup(&mut self, s_dev: u32, now: Micros, pods: &PodIndex) -> Option<&Volume> {
        // A copy of mountinfo never tells that it changed: look whenever it might help.
        let missed = !self.volumes.contains_key(&s_dev);
        self.freshen(missed && !self.watched, now);
        let mounted = self.volumes.get_mut(&s_dev)?;
        if !mounted.holds_token(pods) {
            mounted.looks = Looks::of(&mounted.directory);
            if !mounted.holds_token(pods) {
                return None;
            }
            self.devices_in_doubt = true;
        }
        Some(&mounted.volume)
    }

    /// Whether the volume on `s_dev` has no token for the API server by its pod's spec.
    pub fn is_without_token(&self, s_dev: u32, pods: &PodIndex) -> bool {
        let mounted = self.volumes.get(&s_dev);
        mounted.is_some_and(|it| it.spec(pods).is_some() && !it.holds_token(pods))
    }

    /// Which file was opened, of a volume that [`lookup`](Self::lookup) knows or of one that is nowhere
    /// known; `None`: none that counts.
    pub fn opened_file(&self, record: &OpenRecord, pods: &PodIndex) -> Option<TokenFile> {
        let mounted = self.volumes.get(&record.s_dev);
        let spec = mounted.and_then(|it| it.spec(pods));
        files::opened_file(record, spec, mounted.map(|it| it.directory.as_path()))
    }

    /// Reads the mounts again if they changed, or may have. Whether they are known as they are now.
    fn freshen(&mut self, in_doubt: bool, now: Micros) -> bool {
        self.stale |= self.changed();
        if self.stale || in_doubt {
            if self.limit.allows(now) {
                if let Err(error) = self.refresh() {
                    tracing::debug!(%error, "volume map kept as it was");
                }
            } else {
                self.metrics.refreshed(Refresh::Limited);
            }
        }
        !self.stale
    }

    /// Whether each pod that has a volume by now is known to have one: only then can
    /// [`has_pod`](Self::has_pod) say no. Without any volume, the wrong place may have been looked at.
    pub fn knows_pods(&mut self, now: Micros) -> bool {
        self.watched && self.freshen(false, now) && !self.pods.is_empty()
    }

    /// Whether this pod has a volume of the kubelet's, with a token or without.
    pub fn has_pod(&self, uid: &str) -> bool {
        self.pods.contains(uid)
    }

    /// Reads the mounts again if they changed, and twice more afterwards: the kubelet mounts a
    /// volume first and writes its files then. To be called about once a second.
    pub fn keep_up(&mut self) -> Result<(), VolumesError> {
        // Pods may have become known.
        self.devices_in_doubt = true;
        if !self.changed() && !self.stale {
            if self.settling == 0 {
                return Ok(());
            }
            self.settling -= 1;
        }
        self.refresh()
    }

    /// Reads the mounts again. On an error the map stays as it was.
    pub fn refresh(&mut self) -> Result<(), VolumesError> {
        // Asked before reading: a change while reading then shows at the next question.
        self.changed();
        let text = self.read().map_err(|source| {
            self.metrics.refreshed(Refresh::Failed);
            VolumesError { path: self.process.join("mountinfo"), source }
        })?;
        self.volumes.clear();
        self.pods.clear();
        for mount in parse_mountinfo(&text, &self.kubelet_roots) {
            let directory = mount.directory(&self.process);
            let looks = Looks::of(&directory);
            self.pods.insert(mount.volume.pod_uid.clone());
            self.volumes.insert(mount.s_dev, Mounted { volume: mount.volume, directory, looks });
        }
        self.stale = false;
        self.devices_in_doubt = true;
        self.metrics.refreshed(Refresh::Read);
        Ok(())
    }

    /// `s_dev` of each service-account volume, kernel encoding.
    pub fn devices(&self, pods: &PodIndex) -> impl Iterator<Item = u32> {
        let volumes = self.volumes.iter();
        volumes.filter(|(_, mounted)| mounted.holds_token(pods)).map(|(s_dev, _)| *s_dev)
    }

    /// The devices, if they changed since this was last asked (at first: all of them).
    pub fn take_changed_devices(&mut self, pods: &PodIndex) -> Option<Vec<u32>> {
        if !std::mem::take(&mut self.devices_in_doubt) {
            return None;
        }
        let devices: HashSet<u32> = self.devices(pods).collect();
        self.metrics.volumes(devices.len());
        if self.devices.as_ref() == Some(&devices) {
            return None;
        }
        Some(self.devices.insert(devices).iter().copied().collect())
    }

    /// Whether mounts changed since this was last asked (`mounts_poll` in the kernel). Whoever asks,
    /// what is new has to settle.
    fn changed(&mut self) -> bool {
        let mut fds = [PollFd::new(&self.mountinfo, PollFlags::PRI)];
        let changed =
            poll(&mut fds, Some(&Timespec { tv_sec: 0, tv_nsec: 0 })).is_ok_and(|ready| ready > 0);
        if changed {
            self.settling = 2;
        }
        changed
    }

    fn read(&mut self) -> io::Result<Vec<u8>> {
        let mut text = Vec::new();
        self.mountinfo.rewind()?;
        self.mountinfo.read_to_end(&mut text)?;
        Ok(text)
    }
}

fn open_mountinfo(process: &Path) -> Result<(File, bool), VolumesError> {
    let path = process.join("mountinfo");
    let file = File::open(&path).map_err(|source| VolumesError { path, source })?;
    let watched = rustix::fs::fstatfs(&file)
        .is_ok_and(|filesystem| filesystem.f_type == rustix::fs::PROC_SUPER_MAGIC);
    Ok((file, watched))
}

/// A kubelet's tmpfs in mountinfo.
#[derive(Debug, PartialEq, Eq)]
struct VolumeMount {
    s_dev: u32,
    volume: Volume,
    point: PathBuf,
}

impl VolumeMount {
    /// Where its files are: through the process's root, since the agent may have a mount namespace of
    /// its own. Where it may not look there, it may see the volume in its own.
    fn directory(&self, process: &Path) -> PathBuf {
        let below_root = self.point.strip_prefix("/").unwrap_or(&self.point);
        let directory = process.join("root").join(below_root);
        let is_it = |found: fs::Metadata| {
            kernel_dev(rustix::fs::major(found.dev()), rustix::fs::minor(found.dev())) == self.s_dev
        };
        if fs::read_dir(&directory).is_err() && fs::metadata(&self.point).is_ok_and(is_it) {
            return self.point.clone();
        }
        directory
    }
}

/// The kubelet's tmpfs volumes in a text of `/proc/<pid>/mountinfo` (proc_pid_mountinfo(5)).
fn parse_mountinfo(text: &[u8], kubelet_roots: &[PathBuf]) -> Vec<VolumeMount> {
    text.split(|byte| *byte == b'\n').filter_map(|line| parse_mount(line, kubelet_roots)).collect()
}

fn parse_mount(line: &[u8], kubelet_roots: &[PathBuf]) -> Option<VolumeMount> {
    let mut fields = line.split(|byte| *byte == b' ');
    let device = std::str::from_utf8(fields.nth(2)?).ok()?;
    let root = fields.next()?;
    let point = fields.next()?;
    // Options, then any number of optional fields, then a dash, then the type.
    fields.find(|field| *field == b"-")?;
    if fields.next()? != b"tmpfs" || root != b"/" {
        return None;
    }
    let (major, minor) = device.split_once(':')?;
    let s_dev = kernel_dev(major.parse().ok()?, minor.parse().ok()?);
    let point = PathBuf::from(OsString::from_vec(unescape(point)));
    let volume = kubelet_roots.iter().find_map(|root| volume_at(point.strip_prefix(root).ok()?))?;
    Some(VolumeMount { s_dev, volume, point })
}

/// `pods/<uid>/volumes/kubernetes.io~<plugin>/<name>`, relative to the kubelet's root.
fn volume_at(path: &Path) -> Option<Volume> {
    let names: Vec<&str> = path.iter().map(OsStr::to_str).collect::<Option<_>>()?;
    let ["pods", pod_uid, "volumes", plugin, name] = names.as_slice() else { return None };
    let kind = match *plugin {
        "kubernetes.io~projected" => VolumeKind::Projected,
        "kubernetes.io~secret" => VolumeKind::Secret,
        _ => return None,
    };
    Some(Volume { pod_uid: (*pod_uid).to_owned(), name: (*name).to_owned(), kind })
}

/// Undoes the kernel's `\040` for blank, tab, newline, backslash and `#`.
fn unescape(text: &[u8]) -> Vec<u8> {
    let mut plain = Vec::with_capacity(text.len());
    let mut rest = text;
    loop {
        match rest {
            [b'\\', a @ b'0'..=b'3', b @ b'0'..=b'7', c @ b'0'..=b'7', tail @ ..] => {
                plain.push((a - b'0') << 6 | (b - b'0') << 3 | (c - b'0'));
                rest = tail;
            }
            [byte, tail @ ..] => {
                plain.push(*byte);
                rest = tail;
            }
            [] => return plain,
        }
    }
}

/// At most [`REFRESHES_PER_SECOND`], on the caller's time axis.
#[derive(Debug, Default)]
struct RateLimit {
    second: Option<i64>,
    used: u32,
}

impl RateLimit {
    fn allows(&mut self, now: Micros) -> bool {
        let second = Some(now.0.div_euclid(1_000_000));
        if self.second != second {
            *self = Self { second, used: 0 };
        }
        self.used += 1;
        self.used <= REFRESHES_PER_SECOND
    }
}

#[cfg(test)]
mod tests;
