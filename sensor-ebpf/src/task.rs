//! The only reader of task and cgroup memory: who opened, from which session and container.
//!
//! All reads are racy against other threads of the process and safe against bad memory. A fact
//! that cannot be read leaves its fields zero and sets its bit in `missing`.

use aya_ebpf::helpers::generated::{
    bpf_get_current_pid_tgid, bpf_get_current_task, bpf_probe_read_user,
};
use tokentrail_ebpf::{ABSENT, Ancestor, FdFacts, Missing, OpenRecord, TEXT_LEN};

use crate::{
    file,
    maps::off,
    read::{Probed, Read},
};

/// Steps towards `init` before a walk gives up. Deeper process trees do not occur in containers.
const WALK: u32 = 32;

/// Fills in everything about the current task. Returns the bits of [`Missing`].
#[inline(always)]
pub(crate) fn describe(record: &mut OpenRecord) -> u32 {
    clear(record);
    // SAFETY: helper without arguments.
    let ids = unsafe { bpf_get_current_pid_tgid() };
    record.tgid = (ids >> 32) as u32;
    record.pid = ids as u32;
    // SAFETY: helper without arguments.
    let Some(task) = Probed::at(unsafe { bpf_get_current_task() }) else {
        return u32::MAX;
    };
    let Some(leader) = task.follow(off!(task_group_leader)) else {
        return u32::MAX;
    };
    let mut missing = 0;
    let mut note = |fact: Option<()>, bit| {
        if fact.is_none() {
            missing |= bit;
        }
    };
    note(names(record, task, leader), Missing::ANCESTORS);
    note(user(record, task), Missing::USER);
    note(terminal(record, task), Missing::TERMINAL);
    note(descriptors(record, task), Missing::TERMINAL);
    note(executable(record, task), Missing::EXECUTABLE);
    note(arguments(record, task), Missing::ARGV);
    let session = Session::of(leader);
    note(namespaces(record, task, session), Missing::NAMESPACES);
    note(cgroup(record, session.cgroup), Missing::CGROUP);
    note(ancestors(record, leader, session), Missing::ANCESTORS);
    missing
}

/// Ring memory holds an older record: whatever may stay unread starts out empty.
#[inline(always)]
fn clear(record: &mut OpenRecord) {
    record.start_boottime_ns = 0;
    record.cgroup_id = 0;
    record.exe_ino = 0;
    record.exe_dev = 0;
    record.ppid = 0;
    record.uid = 0;
    record.euid = 0;
    record.nspid = 0;
    record.pidns_level = 0;
    record.pidns_ino = 0;
    record.mntns_ino = 0;
    record.tty_dev = 0;
    record.argv_len = 0;
    record.comm[0] = 0;
    record.leader_comm[0] = 0;
    record.argv[0] = 0;
    for fd in &mut record.fds {
        *fd = FdFacts { rdev: 0, mode: 0 };
    }
    for name in &mut record.exe_names {
        name[0] = 0;
    }
    for name in &mut record.cgroup_names {
        name[0] = 0;
    }
    for entry in [&mut record.entry_cgroup, &mut record.entry_pidns] {
        entry.start_boottime_ns = 0;
        entry.tgid = 0;
        entry.nspid = 0;
        entry.comm[0] = 0;
    }
}

#[inline(always)]
fn names(record: &mut OpenRecord, task: Probed, leader: Probed) -> Option<()> {
    task.bytes(off!(task_comm), &mut record.comm)?;
    leader.bytes(off!(task_comm), &mut record.leader_comm)?;
    record.start_boottime_ns = leader.get(off!(task_start_boottime))?;
    record.ppid = leader.follow(off!(task_real_parent))?.get(off!(task_tgid))?;
    Some(())
}

/// The credentials that the open was checked against.
#[inline(always)]
fn user(record: &mut OpenRecord, task: Probed) -> Option<()> {
    let credentials = task.follow(off!(task_cred))?;
    record.uid = credentials.get(off!(cred_uid))?;
    record.euid = credentials.get(off!(cred_euid))?;
    Some(())
}

/// The controlling terminal; a process without one has no `tty`, which is a fact too.
#[inline(always)]
fn terminal(record: &mut OpenRecord, task: Probed) -> Option<()> {
    let signal = task.follow(off!(task_signal))?;
    let tty: u64 = signal.get(off!(signal_tty))?;
    let Some(tty) = Probed::at(tty) else {
        return Some(());
    };
    let driver = tty.follow(off!(tty_driver))?;
    let major: u32 = driver.get(off!(tty_driver_major))?;
    let minor: u32 = driver.get(off!(tty_driver_minor_start))?;
    let index: u32 = tty.get(off!(tty_index))?;
    record.tty_dev = (major << 20 | minor).wrapping_add(index);
    Some(())
}

/// Descriptors 0 to 2. The smallest descriptor table has 64 places.
#[inline(always)]
fn descriptors(record: &mut OpenRecord, task: Probed) -> Option<()> {
    let table = task.follow(off!(task_files))?.follow(off!(files_fdt))?.follow(off!(fdt_fd))?;
    for (index, fd) in (0..).zip(&mut record.fds) {
        if let Some(file) = table.element(index)
            && let Some(inode) = file.follow(off!(file_inode))
        {
            fd.rdev = inode.get(off!(inode_rdev))?;
            fd.mode = u32::from(inode.get::<u16>(off!(inode_mode))?);
        }
    }
    Some(())
}

#[inline(always)]
fn executable(record: &mut OpenRecord, task: Probed) -> Option<()> {
    let executable = task.follow(off!(task_mm))?.follow(off!(mm_exe_file))?;
    let inode = executable.follow(off!(file_inode))?;
    record.exe_ino = inode.get(off!(inode_ino))?;
    record.exe_dev = inode.follow(off!(inode_sb))?.get(off!(sb_dev))?;
    file::names(executable.follow(off!(file_dentry))?, &mut record.exe_names)
}

/// The start of the arguments, as they lie in the process's own memory: it can change them.
#[inline(always)]
fn arguments(record: &mut OpenRecord, task: Probed) -> Option<()> {
    let mm = task.follow(off!(task_mm))?;
    let start: u64 = mm.get(off!(mm_arg_start))?;
    let end: u64 = mm.get(off!(mm_arg_end))?;
    let length = end.wrapping_sub(start);
    let length = if length > TEXT_LEN as u64 { TEXT_LEN as u32 } else { length as u32 };
    // SAFETY: `argv` is writable for TEXT_LEN bytes; the helper checks the source.
    let result =
        unsafe { bpf_probe_read_user(record.argv.as_mut_ptr().cast(), length, start as *const _) };
    if result != 0 {
        return None;
    }
    record.argv_len = length;
    Some(())
}

/// What marks the container that a process is in: the walk looks for where this changes.
#[derive(Clone, Copy)]
struct Session {
    /// `struct cgroup` of the hierarchy that containers are told apart by.
    cgroup: Option<Probed>,
    /// Whether that is the memory controller's hierarchy of cgroup v1.
    v1: bool,
    /// Depth of the pid namespace.
    level: u32,
    /// `struct pid_namespace`.
    pid_namespace: u64,
    /// Process id in it.
    nspid: u32,
}

impl Session {
    #[inline(always)]
    fn of(leader: Probed) -> Self {
        let (cgroup, v1) = hierarchy(leader);
        let mut session = Self { cgroup, v1, level: ABSENT, pid_namespace: 0, nspid: 0 };
        if let Some(pid) = leader.follow(off!(task_thread_pid))
            && let Some(level) = pid.get::<u32>(off!(pid_level))
            && let Some((nspid, namespace)) = pid_at(pid, level)
        {
            session.level = level;
            session.nspid = nspid;
            session.pid_namespace = namespace;
        }
        session
    }
}

/// The cgroup that names the container. Where the default hierarchy has the process in its root,
/// containers live in cgroup v1 and the memory controller's hierarchy stands in.
#[inline(always)]
fn hierarchy(leader: Probed) -> (Option<Probed>, bool) {
    let unified = cgroup_of(leader, false);
    if off!(css_set_memory) != ABSENT
        && let Some(cgroup) = unified
        && let Some(node) = cgroup.follow(off!(cgroup_kn))
        && node.follow(off!(kernfs_parent)).is_none()
    {
        return (cgroup_of(leader, true), true);
    }
    (unified, false)
}

#[inline(always)]
fn cgroup_of(leader: Probed, v1: bool) -> Option<Probed> {
    let set = leader.follow(off!(task_cgroups))?;
    if v1 {
        set.follow(off!(css_set_memory))?.follow(off!(css_cgroup))
    } else {
        set.follow(off!(css_set_dfl_cgrp))
    }
}

/// Number and namespace of a `struct pid` at a depth.
#[inline(always)]
fn pid_at(pid: Probed, level: u32) -> Option<(u32, u64)> {
    // Depth is at most 32 (MAX_PID_NS_LEVEL); more is a bad read.
    if level > 32 {
        return None;
    }
    let upid = pid.member(off!(pid_numbers))?.member(level * off!(upid_size))?;
    Some((upid.get(off!(upid_nr))?, upid.get(off!(upid_ns))?))
}

#[inline(always)]
fn namespaces(record: &mut OpenRecord, task: Probed, session: Session) -> Option<()> {
    let mount_namespace = task.follow(off!(task_nsproxy))?.follow(off!(nsproxy_mnt_ns))?;
    record.mntns_ino = mount_namespace.get(off!(mntns_inum))?;
    record.pidns_ino = Probed::at(session.pid_namespace)?.get(off!(pidns_inum))?;
    record.pidns_level = session.level;
    record.nspid = session.nspid;
    Some(())
}

#[inline(always)]
fn cgroup(record: &mut OpenRecord, cgroup: Option<Probed>) -> Option<()> {
    let mut node = cgroup?.follow(off!(cgroup_kn))?;
    record.cgroup_id = node.get(off!(kernfs_id))?;
    for name in &mut record.cgroup_names {
        node.string(off!(kernfs_name), name)?;
        let Some(parent) = node.follow(off!(kernfs_parent)) else {
            break;
        };
        node = parent;
    }
    Some(())
}

/// The last processes before the container's two boundaries. Two walks, since one that looks for
/// both makes the verifier try every order in which they can be met.
#[inline(always)]
fn ancestors(record: &mut OpenRecord, leader: Probed, session: Session) -> Option<()> {
    let entry = walk(leader, |task| cgroup_of(task, session.v1) == session.cgroup);
    let by_cgroup = entry.and_then(|task| ancestor(&mut record.entry_cgroup, task, session.level));
    let entry = walk(leader, |task| in_pid_namespace(task, session));
    let by_pidns = entry.and_then(|task| ancestor(&mut record.entry_pidns, task, session.level));
    by_cgroup.and(by_pidns)
}

/// The topmost process from `leader` towards `init` that is the same as `leader` in a way; `None`
/// if that takes too many steps.
#[inline(always)]
fn walk(leader: Probed, same: impl Fn(Probed) -> bool) -> Option<Probed> {
    let mut at = leader;
    for _ in 0..WALK {
        match parent_of(at) {
            Some(parent) if same(parent) => at = parent,
            _ => return Some(at),
        }
    }
    None
}

/// The parent process; `None` above `init`.
#[inline(always)]
fn parent_of(leader: Probed) -> Option<Probed> {
    let parent = leader.follow(off!(task_real_parent))?.follow(off!(task_group_leader))?;
    if parent.get::<u32>(off!(task_tgid))? == 0 { None } else { Some(parent) }
}

#[inline(always)]
fn in_pid_namespace(leader: Probed, session: Session) -> bool {
    let Some(pid) = leader.follow(off!(task_thread_pid)) else {
        return false;
    };
    pid.get(off!(pid_level)) == Some(session.level)
        && pid_at(pid, session.level)
            .is_some_and(|(_, namespace)| namespace == session.pid_namespace)
}

#[inline(always)]
fn ancestor(into: &mut Ancestor, leader: Probed, level: u32) -> Option<()> {
    into.start_boottime_ns = leader.get(off!(task_start_boottime))?;
    into.tgid = leader.get(off!(task_tgid))?;
    leader.bytes(off!(task_comm), &mut into.comm)?;
    into.nspid = pid_at(leader.follow(off!(task_thread_pid))?, level)?.0;
    Some(())
}
