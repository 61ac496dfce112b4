//! The wire contract between the BPF programs and user space: record layout, load-time
//! parameters, map names, and the total decoding of a record.
//!
//! Both sides compile this one file, so a layout cannot drift. Everything a record holds is a
//! fact copied from the kernel; what it means is decided in user space. Bytes that arrive here are
//! untrusted: decoding checks length and ABI version, every field is valid for every bit pattern,
//! and names end at their first NUL.
#![no_std]

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

mod repeats;

pub use repeats::{ACCESS_MODE, REPEAT_NS, RepeatKey, Repeats};

/// Version of everything in this contract, and of the maps that outlive an agent. User space refuses
/// records and maps of another one.
pub const ABI_VERSION: u32 = 3;

/// Names of maps and globals, as user space looks them up in the object.
pub mod names {
    /// Ring buffer of [`OpenRecord`](super::OpenRecord)s.
    pub const EVENTS: &str = "EVENTS";
    /// Per-CPU counters, indexed by [`Counter`](super::Counter).
    pub const COUNTERS: &str = "COUNTERS";
    /// Bitmap of the devices of service-account volumes, in words of
    /// [`VolumeBit`](super::VolumeBit).
    pub const VOLUME_DEVICES: &str = "VOLUME_DEVICES";
    /// One word, to be raised after each change of [`VOLUME_DEVICES`].
    pub const VOLUME_CHANGES: &str = "VOLUME_CHANGES";
    /// [`RepeatKey`](super::RepeatKey)s of opens that were told, with their
    /// [`Repeats`](super::Repeats).
    pub const REPEATS: &str = "REPEATS";
    /// What sessions in containers began with: [`SessionCommand`](super::SessionCommand) by
    /// [`TaskKey`](super::TaskKey).
    pub const SESSIONS: &str = "SESSIONS";
    /// Processes of such sessions: [`TaskKey`](super::TaskKey) by [`TaskKey`](super::TaskKey).
    pub const LINEAGE: &str = "LINEAGE";
    /// Read-only [`Offsets`](super::Offsets), written before load.
    pub const OFFSETS: &str = "OFFSETS";
}

/// Bytes kept of a `comm`, its NUL included (`TASK_COMM_LEN`).
pub const COMM_LEN: usize = 16;
/// Bytes kept of a dentry name, its NUL included.
pub const NAME_LEN: usize = 64;
/// Bytes kept of a cgroup directory's name; a containerd scope has 84.
pub const CGROUP_NAME_LEN: usize = 96;
/// Cgroup names kept: the leaf and up to five parents.
pub const CGROUP_LEVELS: usize = 6;
/// Bytes kept of the arguments (NUL-separated) and of `d_path`.
pub const TEXT_LEN: usize = 256;
/// Bytes kept of the command that a session began with.
pub const COMMAND_LEN: usize = 252;

/// The command that a session in a container began with, as it was executed.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct SessionCommand {
    /// Bytes of its arguments, of which [`COMMAND_LEN`] at most are kept; 0 if it is not known: the
    /// session began before the agent, or too many others since.
    pub length: u32,
    /// Start of its arguments, NUL-separated.
    pub text: [u8; COMMAND_LEN],
}

/// A process, among all that ever ran since boot.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct TaskKey {
    /// Start of the process on the boot clock, nanoseconds.
    pub start_boottime_ns: u64,
    /// Process id in the initial pid namespace, in 64 bits: a key has no padding.
    pub tgid: u64,
}

/// A process above the opener, met where the walk towards `init` leaves a container.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct Ancestor {
    /// Start of the process on the boot clock, nanoseconds.
    pub start_boottime_ns: u64,
    /// Process id in the initial pid namespace; 0 if the walk failed.
    pub tgid: u32,
    /// Process id in the opener's own pid namespace.
    pub nspid: u32,
    /// Name of its group leader.
    pub comm: [u8; COMM_LEN],
}

/// What a file descriptor of the opener's process refers to.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct FdFacts {
    /// `i_rdev` in the kernel's encoding (`major << 20 | minor`).
    pub rdev: u32,
    /// `i_mode`; 0 if the descriptor is closed or unreadable.
    pub mode: u32,
}

/// One open of a token-like file: facts only, no verdict.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct OpenRecord {
    /// [`ABI_VERSION`] of the writer.
    pub abi_version: u32,
    /// [`Route`] that saw the open.
    pub route: u32,
    /// When, on the boot clock, nanoseconds.
    pub ktime_ns: u64,
    /// Start of the opener's process (its group leader) on the boot clock, nanoseconds.
    pub start_boottime_ns: u64,
    /// kernfs id of the opener's cgroup: its directory's inode on cgroup v2.
    pub cgroup_id: u64,
    /// Inode of the file.
    pub file_ino: u64,
    /// Inode of the executable (`mm->exe_file`).
    pub exe_ino: u64,
    /// Topmost ancestor still in the opener's cgroup.
    pub entry_cgroup: Ancestor,
    /// Topmost ancestor still in the opener's pid namespace.
    pub entry_pidns: Ancestor,
    /// The process that entered the container and that the opener descends from by forks, also where
    /// those between them are gone; zeroes if none was seen to enter.
    pub session: TaskKey,
    /// What `session`, else `entry_cgroup`, was executed as when it entered the container.
    pub session_command: SessionCommand,
    /// Process id in the initial pid namespace.
    pub tgid: u32,
    /// Thread id in the initial pid namespace.
    pub pid: u32,
    /// Parent's process id in the initial pid namespace.
    pub ppid: u32,
    /// Real user id.
    pub uid: u32,
    /// Effective user id.
    pub euid: u32,
    /// Process id in the opener's own pid namespace.
    pub nspid: u32,
    /// Depth of the opener's pid namespace; 0 is the initial one.
    pub pidns_level: u32,
    /// Inode of the opener's pid namespace.
    pub pidns_ino: u32,
    /// Inode of the opener's mount namespace.
    pub mntns_ino: u32,
    /// `f_flags` of the open.
    pub open_flags: u32,
    /// `s_dev` of the file's superblock, kernel encoding (`major << 20 | minor`).
    pub s_dev: u32,
    /// `s_dev` of the executable's superblock, kernel encoding.
    pub exe_dev: u32,
    /// Device of the controlling terminal, kernel encoding; 0 if there is none.
    pub tty_dev: u32,
    /// Bits of [`Missing`]: facts that could not be read.
    pub missing: u32,
    /// Bytes of `argv` that were read.
    pub argv_len: u32,
    /// [`MatchedBy`]: why the filter let it through.
    pub matched_by: u32,
    /// Descriptors 0, 1 and 2 of the opener's process.
    pub fds: [FdFacts; 3],
    /// Name of the opening thread.
    pub comm: [u8; COMM_LEN],
    /// Name of its group leader.
    pub leader_comm: [u8; COMM_LEN],
    /// Name of the file's dentry.
    pub file_name: [u8; NAME_LEN],
    /// Name of the dentry above it.
    pub parent_name: [u8; NAME_LEN],
    /// Name of the mount point's dentry and of the two above it.
    pub mount_names: [[u8; NAME_LEN]; 3],
    /// Name of the executable's dentry and of the two above it.
    pub exe_names: [[u8; NAME_LEN]; 3],
    /// Names of the opener's cgroup and up to five parents, leaf first; empty beyond the root.
    pub cgroup_names: [[u8; CGROUP_NAME_LEN]; CGROUP_LEVELS],
    /// Start of the arguments, NUL-separated.
    pub argv: [u8; TEXT_LEN],
    /// `d_path` of the file seen from the opener's root, where the route has it.
    pub path: [u8; TEXT_LEN],
    /// Opens with the same [`RepeatKey`] that got no record since the last one that did.
    pub repeats: u64,
}

/// The bytes before the first NUL, or all of them.
pub fn until_nul(bytes: &[u8]) -> &[u8] {
    bytes.split(|byte| *byte == 0).next().unwrap_or_default()
}

/// Why bytes are no record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DecodeError {
    /// Not the length of a record.
    Length(usize),
    /// Written by another version of this contract.
    AbiVersion(u32),
    /// A route that this version does not know.
    Route(u32),
}

impl core::fmt::Display for DecodeError {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        match self {
            Self::Length(length) => {
                write!(f, "a record has {} bytes, not {length}", size_of::<OpenRecord>())
            }
            Self::AbiVersion(version) => {
                write!(f, "a record of ABI version {version}, this program reads {ABI_VERSION}")
            }
            Self::Route(route) => write!(f, "a record names the unknown hook route {route}"),
        }
    }
}

impl core::error::Error for DecodeError {}

impl TryFrom<&[u8]> for OpenRecord {
    type Error = DecodeError;

    fn try_from(bytes: &[u8]) -> Result<Self, DecodeError> {
        let record = Self::read_from_bytes(bytes).map_err(|_| DecodeError::Length(bytes.len()))?;
        if record.abi_version != ABI_VERSION {
            return Err(DecodeError::AbiVersion(record.abi_version));
        }
        Route::try_from(record.route)?;
        Ok(record)
    }
}

/// The kernel hook that saw an open.
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Route {
    /// BTF trampoline at the return of `security_file_open`.
    Fexit = 1,
    /// kprobe at the entry of `security_file_open`.
    Kprobe = 2,
    /// Tracepoints at the exits of the calls that return an open file, and at io_uring's completions.
    Exit = 3,
}

impl TryFrom<u32> for Route {
    type Error = DecodeError;

    fn try_from(value: u32) -> Result<Self, DecodeError> {
        match value {
            1 => Ok(Self::Fexit),
            2 => Ok(Self::Kprobe),
            3 => Ok(Self::Exit),
            other => Err(DecodeError::Route(other)),
        }
    }
}

/// Why an open passed the filter.
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MatchedBy {
    /// A known file name in a directory named `..<something>` on tmpfs.
    Name = 1,
    /// Any other regular file on a device of the watched set.
    Device = 2,
}

/// Facts that a record may lack, as bits of [`OpenRecord::missing`].
pub struct Missing;

impl Missing {
    /// The opener's cgroup and its names.
    pub const CGROUP: u32 = 1 << 0;
    /// Controlling terminal and descriptors.
    pub const TERMINAL: u32 = 1 << 1;
    /// Executable.
    pub const EXECUTABLE: u32 = 1 << 2;
    /// Arguments.
    pub const ARGV: u32 = 1 << 3;
    /// Mount point.
    pub const MOUNT: u32 = 1 << 4;
    /// Namespaces and process ids in them.
    pub const NAMESPACES: u32 = 1 << 5;
    /// Ancestors at the container's boundaries.
    pub const ANCESTORS: u32 = 1 << 6;
    /// User ids.
    pub const USER: u32 = 1 << 7;
    /// Descriptors 0 to 2, where the controlling terminal may be known.
    pub const DESCRIPTORS: u32 = 1 << 8;
    /// Names of the file or of the directory that it is in.
    pub const FILE_NAME: u32 = 1 << 9;
}

/// Index into the per-CPU counters.
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Counter {
    /// Records lost because the ring was full.
    LostRingFull = 0,
    /// Opens that matched, but whose file could not be read a second time.
    LostUnreadable = 1,
    /// Sessions and processes of sessions for which the maps had no room, even after others gave way.
    SessionsFull = 2,
    /// Opens that one session of one container had too many of.
    LostFlood = 3,
    /// Opens that repeat one of the last second and got no record of their own.
    Repeated = 4,
}

impl Counter {
    /// Number of counters.
    pub const COUNT: u32 = 5;
    /// Slots of the map: behind the counters, how far user space has told of each, which outlives it
    /// beside them.
    pub const SLOTS: u32 = 2 * Self::COUNT;

    /// Slot in which user space keeps how far it has told of this one.
    pub const fn told(self) -> u32 {
        Self::COUNT + self as u32
    }
}

/// Words of the bitmap of watched devices.
pub const VOLUME_WORDS: u32 = (1 << MINOR_BITS) / u64::BITS;
/// `MINORBITS` of `include/linux/kdev_t.h`.
const MINOR_BITS: u32 = 20;

/// Where the bitmap of watched devices has a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct VolumeBit {
    /// Index of the word, below [`VOLUME_WORDS`].
    pub word: u32,
    /// Its one bit in that word.
    pub mask: u64,
}

impl VolumeBit {
    /// `None` for a device with a major number, which no tmpfs has.
    #[inline(always)]
    pub const fn of(s_dev: u32) -> Option<Self> {
        if s_dev >> MINOR_BITS == 0 {
            Some(Self { word: s_dev / u64::BITS, mask: 1 << (s_dev % u64::BITS) })
        } else {
            None
        }
    }
}

/// Offset of a member that this kernel does not have: the feature that needs it is left out.
pub const ABSENT: u32 = u32::MAX;

/// Byte offsets of kernel structure members, resolved from BTF at start, and load-time switches.
///
/// The BPF side reads each field on its own, as a verifier constant: a branch on an [`ABSENT`]
/// offset is dead code that the verifier drops.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct Offsets {
    /// 1 if helper `bpf_get_current_task_btf` exists (kernel 5.11).
    pub have_task_btf: u32,
    /// 1 if helper `bpf_snprintf` exists (kernel 5.13).
    pub have_snprintf: u32,
    /// 1 on x86-64, 2 on arm64: where a kprobe finds its first argument.
    pub arch: u32,
    /// `task_struct.files`
    pub task_files: u32,
    /// `task_struct.mm`
    pub task_mm: u32,
    /// `task_struct.real_parent`
    pub task_real_parent: u32,
    /// `task_struct.group_leader`
    pub task_group_leader: u32,
    /// `task_struct.tgid`
    pub task_tgid: u32,
    /// `task_struct.comm`
    pub task_comm: u32,
    /// `task_struct.start_boottime`
    pub task_start_boottime: u32,
    /// `task_struct.signal`
    pub task_signal: u32,
    /// `task_struct.thread_pid`
    pub task_thread_pid: u32,
    /// `task_struct.cgroups`
    pub task_cgroups: u32,
    /// `task_struct.nsproxy`
    pub task_nsproxy: u32,
    /// `task_struct.cred`
    pub task_cred: u32,
    /// `cred.uid`
    pub cred_uid: u32,
    /// `cred.euid`
    pub cred_euid: u32,
    /// `signal_struct.tty`
    pub signal_tty: u32,
    /// `tty_struct.driver`
    pub tty_driver: u32,
    /// `tty_struct.index`
    pub tty_index: u32,
    /// `tty_driver.major`
    pub tty_driver_major: u32,
    /// `tty_driver.minor_start`
    pub tty_driver_minor_start: u32,
    /// `files_struct.fdt`
    pub files_fdt: u32,
    /// `fdtable.fd`
    pub fdt_fd: u32,
    /// `fdtable.max_fds`
    pub fdt_max_fds: u32,
    /// `files_struct.fd_array`
    pub files_fd_array: u32,
    /// `file.f_path`, for `bpf_d_path`
    pub file_path: u32,
    /// `file.f_path` + `path.dentry`
    pub file_dentry: u32,
    /// `file.f_path` + `path.mnt`
    pub file_mnt: u32,
    /// `file.f_inode`
    pub file_inode: u32,
    /// `file.f_op`
    pub file_op: u32,
    /// `file.f_flags`
    pub file_flags: u32,
    /// `file.f_mode`
    pub file_mode: u32,
    /// `dentry.d_name` + `qstr.len`
    pub dentry_name_len: u32,
    /// `dentry.d_name` + `qstr.name`
    pub dentry_name_ptr: u32,
    /// `dentry.d_iname` / `d_shortname`
    pub dentry_inline_name: u32,
    /// Bytes of that
    pub dentry_inline_len: u32,
    /// `dentry.d_parent`
    pub dentry_parent: u32,
    /// First byte of what the filter reads of a dentry …
    pub dentry_glance: u32,
    /// … and how many bytes that spans.
    pub dentry_glance_len: u32,
    /// `inode.i_ino`
    pub inode_ino: u32,
    /// `inode.i_mode`
    pub inode_mode: u32,
    /// `inode.i_rdev`
    pub inode_rdev: u32,
    /// `inode.i_sb`
    pub inode_sb: u32,
    /// `super_block.s_dev`
    pub sb_dev: u32,
    /// `super_block.s_magic`
    pub sb_magic: u32,
    /// `mount.mnt` (the embedded `vfsmount`)
    pub mount_vfsmount: u32,
    /// `mount.mnt_mountpoint`
    pub mount_mountpoint: u32,
    /// `mm_struct.exe_file`
    pub mm_exe_file: u32,
    /// `mm_struct.arg_start`
    pub mm_arg_start: u32,
    /// `mm_struct.arg_end`
    pub mm_arg_end: u32,
    /// `pid.level`
    pub pid_level: u32,
    /// `pid.numbers`
    pub pid_numbers: u32,
    /// Size of `struct pid`, without numbers if there may be any of them
    pub pid_size: u32,
    /// Size of `struct upid`
    pub upid_size: u32,
    /// `upid.nr`
    pub upid_nr: u32,
    /// `upid.ns`
    pub upid_ns: u32,
    /// `pid_namespace.ns` + `ns_common.inum`
    pub pidns_inum: u32,
    /// `nsproxy.mnt_ns`
    pub nsproxy_mnt_ns: u32,
    /// `mnt_namespace.ns` + `ns_common.inum`
    pub mntns_inum: u32,
    /// `css_set.dfl_cgrp`
    pub css_set_dfl_cgrp: u32,
    /// `css_set.subsys` + index of the memory controller: the cgroup v1 fallback
    pub css_set_memory: u32,
    /// `cgroup_subsys_state.cgroup`
    pub css_cgroup: u32,
    /// `cgroup.kn`
    pub cgroup_kn: u32,
    /// `kernfs_node.name`
    pub kernfs_name: u32,
    /// `kernfs_node.parent` / `__parent`
    pub kernfs_parent: u32,
    /// `kernfs_node.id`
    pub kernfs_id: u32,
    /// `trace_event_raw_io_uring_complete.ctx`
    pub uring_ring: u32,
    /// `trace_event_raw_io_uring_complete.req`
    pub uring_req: u32,
    /// `trace_event_raw_io_uring_complete.res`
    pub uring_res: u32,
    /// `io_kiocb.opcode`
    pub io_kiocb_opcode: u32,
    /// `io_open.file_slot`, which lies at the start of an `io_kiocb`
    pub io_open_file_slot: u32,
    /// `io_ring_ctx.file_table.data.nodes` / `file_table.files`
    pub io_ring_files: u32,
    /// `io_rsrc_node.file_ptr`; absent where the table holds the files themselves
    pub io_rsrc_node_file: u32,
    /// `task_struct.thread_info.status`, on x86-64 alone
    pub task_thread_status: u32,
    /// `pt_regs.orig_ax`, on x86-64 alone
    pub pt_regs_orig_ax: u32,
}

impl Offsets {
    /// Nothing resolved: what the object holds until user space overwrites it.
    pub const NONE: Self = zerocopy::transmute!([ABSENT; OFFSETS]);
}

/// Number of fields of [`Offsets`].
const OFFSETS: usize = size_of::<Offsets>() / size_of::<u32>();

// A layout that differs between the two targets would decode into nonsense.
const _: () = assert!(size_of::<OpenRecord>() == 2112 && align_of::<OpenRecord>() == 8);

#[cfg(test)]
mod tests {
    use zerocopy::{FromZeros as _, IntoBytes as _};

    use super::*;

    fn record() -> OpenRecord {
        let mut record = OpenRecord::new_zeroed();
        record.abi_version = ABI_VERSION;
        record.route = Route::Exit as u32;
        record.file_ino = 42;
        record
    }

    #[test]
    fn what_the_kernel_side_writes_is_read_back() {
        assert_eq!(OpenRecord::try_from(record().as_bytes()), Ok(record()));
    }

    #[test]
    fn anything_else_is_refused_with_its_reason() {
        let good = record();
        let bytes = good.as_bytes();
        let length = bytes.len();
        let short = bytes.get(1..).unwrap_or_default();
        assert_eq!(OpenRecord::try_from(short), Err(DecodeError::Length(length - 1)));
        assert_eq!(OpenRecord::try_from([].as_slice()), Err(DecodeError::Length(0)));
        let other = OpenRecord { abi_version: 7, ..good };
        assert_eq!(OpenRecord::try_from(other.as_bytes()), Err(DecodeError::AbiVersion(7)));
        let other = OpenRecord { route: 9, ..good };
        assert_eq!(OpenRecord::try_from(other.as_bytes()), Err(DecodeError::Route(9)));
    }

    #[test]
    fn names_end_at_their_first_nul_or_at_the_end() {
        assert_eq!(until_nul(b"token\0rubbish\0"), b"token");
        assert_eq!(until_nul(b"token"), b"token");
        assert_eq!(until_nul(b""), b"");
    }

    #[test]
    fn only_devices_without_major_number_have_a_bit() {
        assert_eq!(VolumeBit::of(0), Some(VolumeBit { word: 0, mask: 1 }));
        assert_eq!(VolumeBit::of(130), Some(VolumeBit { word: 2, mask: 4 }));
        let last = VolumeBit::of((1 << MINOR_BITS) - 1);
        assert_eq!(last, Some(VolumeBit { word: VOLUME_WORDS - 1, mask: 1 << 63 }));
        assert_eq!(VolumeBit::of(8 << MINOR_BITS | 1), None);
    }
}
