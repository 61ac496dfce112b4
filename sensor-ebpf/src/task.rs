//! The only reader of task and cgroup memory: who opened, from which session and container.
//!
//! All reads are racy against other threads of the process and safe against bad memory. A fact
//! that cannot be read is zero or empty and sets its bit of [`Missing`].

use aya_ebpf::helpers::generated::{bpf_get_current_pid_tgid, bpf_probe_read_user};
use tokentrail_ebpf::{Ancestor, Missing, OpenRecord, TEXT_LEN};

use crate::{
    file,
    maps::{known, off},
    read::{Array, Inline, Structure, note_unless},
    session, words,
};

/// Steps towards `init` before a walk gives up. Deeper process trees do not occur in containers.
const WALK: u32 = 32;
/// `MAX_PID_NS_LEVEL` of `include/linux/pid_namespace.h`.
const DEEPEST_PID_NAMESPACE: u32 = 32;

/// Fills in everything about the current task, and the bits of [`Missing`]; `false` if there is none.
#[inline(always)]
pub(crate) fn describe<S: Structure>(record: &mut OpenRecord) -> bool {
    // SAFETY: helper without arguments.
    let ids = unsafe { bpf_get_current_pid_tgid() };
    record.tgid = (ids >> 32) as u32;
    record.pid = ids as u32;
    let task = S::current();
    let leader = task.next(off!(task_group_leader));
    // Never, but to the verifier: all that follows would have twice as many states.
    if !S::ANY_ADDRESS && off!(have_task_btf) != 0 && leader.is_null() {
        return false;
    }
    task.bytes(off!(task_comm), &mut record.comm);
    leader.bytes(off!(task_comm), &mut record.leader_comm);
    record.start_boottime_ns = leader.load(off!(task_start_boottime));
    record.ppid = leader.next(off!(task_real_parent)).load(off!(task_tgid));
    user(record, task);
    terminal(record, task);
    executable(record, task);
    arguments(record, task);
    namespaces(record, task, leader);
    let container = container_cgroup(leader);
    cgroup(record, container);
    ancestors(record, leader, container);
    true
}

/// The credentials that the open was checked against.
#[inline(always)]
fn user<S: Structure>(record: &mut OpenRecord, task: S) {
    let credentials = task.next(off!(task_cred));
    record.uid = credentials.load(off!(cred_uid));
    record.euid = credentials.load(off!(cred_euid));
    let present = known!(cred_uid, cred_euid) && !credentials.is_null();
    note_unless(present, &mut record.missing, Missing::USER);
}

/// The controlling terminal, and what descriptors 0 to 2 are. A process without a terminal has no
/// `tty`, which is a fact too. The smallest descriptor table has 64 places.
#[inline(always)]
fn terminal<S: Structure>(record: &mut OpenRecord, task: S) {
    let signal = task.next(off!(task_signal));
    record.tty_dev = terminal_device(task);
    let files = task.next(off!(task_files));
    let table = files.next(off!(files_fdt));
    let array = table.next(off!(fdt_fd));
    let reachable = S::ANY_ADDRESS || is_first_table(table);
    for (index, fd) in (0..).zip(&mut record.fds) {
        let file = if S::ANY_ADDRESS {
            array.element(index)
        } else if reachable {
            files.next(off!(files_fd_array).wrapping_add(index * 8))
        } else {
            S::null()
        };
        let inode = file.next(off!(file_inode));
        fd.rdev = inode.load(off!(inode_rdev));
        fd.mode = u32::from(inode.load::<u16>(off!(inode_mode)));
    }
    let known = known!(signal_tty, tty_driver, tty_index, tty_driver_major)
        && known!(tty_driver_minor_start, inode_rdev);
    let present = known && !signal.is_null() && !array.is_null();
    note_unless(present, &mut record.missing, Missing::TERMINAL);
    note_unless(reachable, &mut record.missing, Missing::DESCRIPTORS);
}

/// Whether a process has the table of descriptors that it began with, whose array is a member of
/// `files_struct`: it has 64 places, any other one more.
/// <https://github.com/torvalds/linux/blob/v6.12/fs/file.c#L376>
#[inline(always)]
fn is_first_table<S: Structure>(table: S) -> bool {
    known!(files_fd_array, fdt_max_fds) && table.load::<u32>(off!(fdt_max_fds)) <= 64
}

/// Device of the controlling terminal, 0 without one.
#[inline(always)]
pub(crate) fn terminal_device<S: Structure>(task: S) -> u32 {
    let tty = task.next(off!(task_signal)).next(off!(signal_tty));
    let driver = tty.next(off!(tty_driver));
    let major: u32 = driver.load(off!(tty_driver_major));
    let minor: u32 = driver.load(off!(tty_driver_minor_start));
    let index: u32 = tty.load(off!(tty_index));
    (major << 20 | minor).wrapping_add(index)
}

#[inline(always)]
fn executable<S: Structure>(record: &mut OpenRecord, task: S) {
    let file = executable_file(task);
    let inode = file.next(off!(file_inode));
    record.exe_ino = inode.load(off!(inode_ino));
    record.exe_dev = inode.next(off!(inode_sb)).load(off!(sb_dev));
    file::names(file.next(off!(file_dentry)), &mut record.exe_names);
    let named = S::ANY_ADDRESS || record.exe_names[0][0] != 0;
    note_unless(named & !inode.is_null(), &mut record.missing, Missing::EXECUTABLE);
}

/// What the process executes.
#[inline(always)]
pub(crate) fn executable_file<S: Structure>(task: S) -> S {
    task.next(off!(task_mm)).next(off!(mm_exe_file))
}

#[inline(always)]
fn arguments<S: Structure>(record: &mut OpenRecord, task: S) {
    let length = copy_arguments(task, &mut record.argv);
    record.argv_len = if length > TEXT_LEN as u32 { TEXT_LEN as u32 } else { length };
    note_unless(length != 0, &mut record.missing, Missing::ARGV);
}

/// Copies the start of the arguments of the current task, as they lie in the process's own memory:
/// it can change them. Returns how many bytes they have, 0 if they cannot be read.
#[inline(always)]
pub(crate) fn copy_arguments<S: Structure, const N: usize>(task: S, into: &mut [u8; N]) -> u32 {
    let mm = task.next(off!(task_mm));
    let start: u64 = mm.load(off!(mm_arg_start));
    let end: u64 = mm.load(off!(mm_arg_end));
    let whole = end.wrapping_sub(start);
    if !S::ANY_ADDRESS {
        return if words::copy(start, whole, into) { whole as u32 } else { 0 };
    }
    let length = if whole > N as u64 { N as u32 } else { whole as u32 };
    // SAFETY: `into` is writable for N bytes; the helper checks the source.
    let result =
        unsafe { bpf_probe_read_user(into.as_mut_ptr().cast(), length, start as *const _) };
    if result == 0 && start != 0 { whole as u32 } else { 0 }
}

/// Whether a process is in another container than its parent, by cgroup and mount namespace: it
/// entered, or was the first. A service of the host's init differs in the cgroup alone, and so does a
/// runtime's helper on its way in.
#[inline(always)]
pub(crate) fn begins_session<S: Structure>(leader: S) -> bool {
    let parent = leader.next(off!(task_real_parent)).next(off!(task_group_leader));
    let (cgroup, v1) = container_cgroup(leader);
    let above = if v1 { memory_cgroup(parent) } else { unified_cgroup(parent) };
    !above.is(cgroup) & !mount_namespace(parent).is(mount_namespace(leader))
}

#[inline(always)]
fn mount_namespace<S: Structure>(task: S) -> S {
    task.next(off!(task_nsproxy)).next(off!(nsproxy_mnt_ns))
}

/// A process's id in its own pid namespace.
#[inline(always)]
pub(crate) fn nspid<S: Structure>(leader: S) -> u32 {
    let pid = leader.next(off!(task_thread_pid));
    nspid_at(pid, pid.load(off!(pid_level)))
}

/// The number that a `struct pid` stands for in its namespace at a depth.
#[inline(always)]
fn nspid_at<S: Structure>(pid: S, level: u32) -> u32 {
    pid.nth(upids(), level, |upid| upid.load(off!(upid_nr)))
}

/// `pid.numbers`, one for each depth; to the type a single one before Linux 6.6.
/// <https://github.com/torvalds/linux/commit/b69f0aeb068980af983d399deafc7477cec8bc04>
#[inline(always)]
fn upids() -> Array {
    let open = off!(pid_size) == off!(pid_numbers);
    let length = if open { DEEPEST_PID_NAMESPACE + 1 } else { 1 };
    Array { start: off!(pid_numbers), stride: off!(upid_size), length }
}

/// kernfs id of the cgroup that a process is in.
#[inline(always)]
pub(crate) fn cgroup_id<S: Structure>(leader: S) -> u64 {
    let (cgroup, _) = container_cgroup(leader);
    cgroup.next(off!(cgroup_kn)).load(off!(kernfs_id))
}

/// The cgroup that tells containers apart, and whether that is one of v1.
#[inline(always)]
fn container_cgroup<S: Structure>(leader: S) -> (S, bool) {
    let unified = unified_cgroup(leader);
    // Where the default hierarchy has the process in its root, containers live in cgroup v1 and the
    // memory controller's hierarchy stands in.
    let in_root = unified.next(off!(cgroup_kn)).next(off!(kernfs_parent)).is_null();
    let v1 = known!(css_set_memory, css_cgroup) && in_root;
    (if v1 { memory_cgroup(leader) } else { unified }, v1)
}

#[inline(always)]
fn unified_cgroup<S: Structure>(leader: S) -> S {
    leader.next(off!(task_cgroups)).next(off!(css_set_dfl_cgrp))
}

#[inline(always)]
fn memory_cgroup<S: Structure>(leader: S) -> S {
    leader.next(off!(task_cgroups)).next(off!(css_set_memory)).next(off!(css_cgroup))
}

#[inline(always)]
fn namespaces<S: Structure>(record: &mut OpenRecord, task: S, leader: S) {
    let pid = leader.next(off!(task_thread_pid));
    let level: u32 = pid.load(off!(pid_level));
    let level = if level > DEEPEST_PID_NAMESPACE { 0 } else { level };
    record.mntns_ino = mount_namespace(task).load(off!(mntns_inum));
    record.pidns_ino =
        pid.nth(upids(), level, |upid| upid.next(off!(upid_ns)).load(off!(pidns_inum)));
    record.nspid = nspid_at(pid, level);
    record.pidns_level = level;
    let present = record.mntns_ino != 0 && record.pidns_ino != 0;
    note_unless(present, &mut record.missing, Missing::NAMESPACES);
}

/// Depth of the opener's pid namespace, out of the record's memory as in [`note_unless`].
#[inline(always)]
fn level(record: &OpenRecord) -> u32 {
    // SAFETY: a live word.
    unsafe { core::ptr::read_volatile(&raw const record.pidns_level) }
}

#[inline(always)]
fn cgroup<S: Structure>(record: &mut OpenRecord, (cgroup, _): (S, bool)) {
    let mut node = cgroup.next(off!(cgroup_kn));
    record.cgroup_id = node.load(off!(kernfs_id));
    let named = S::ANY_ADDRESS && known!(kernfs_name, kernfs_parent);
    let present = named && !node.is_null();
    for name in &mut record.cgroup_names {
        // Beyond the root: null, whose name is empty.
        node.string(off!(kernfs_name), Inline::NONE, name);
        node = node.next(off!(kernfs_parent));
    }
    note_unless(present, &mut record.missing, Missing::CGROUP);
}

/// The last processes before the container's two boundaries. A walk each, and one for each kind of
/// cgroup: loops with one way out are what the verifier gets through quickly.
#[inline(always)]
fn ancestors<S: Structure>(record: &mut OpenRecord, leader: S, (cgroup, v1): (S, bool)) {
    let by_cgroup = if v1 {
        walk(leader, |task| memory_cgroup(task).is(cgroup))
    } else {
        walk(leader, |task| unified_cgroup(task).is(cgroup))
    };
    let depth = level(record);
    ancestor(&mut record.entry_cgroup, by_cgroup, depth);
    // Read again: each question about it is another state to the verifier.
    let depth = level(record);
    // A parent's namespace is its child's or one above: of the same depth it is the same.
    let by_pidns =
        walk(leader, |task| task.next(off!(task_thread_pid)).load::<u32>(off!(pid_level)) == depth);
    let depth = level(record);
    ancestor(&mut record.entry_pidns, by_pidns, depth);
    session::describe(record);
    let known = known!(task_tgid, task_real_parent, task_start_boottime, task_comm)
        && known!(pid_numbers, upid_nr, upid_ns);
    let present = known && record.entry_cgroup.tgid != 0 && record.entry_pidns.tgid != 0;
    note_unless(present, &mut record.missing, Missing::ANCESTORS);
}

/// The topmost process from `leader` towards `init` that is the same as `leader` in a way; null if
/// that takes too many steps.
#[inline(always)]
fn walk<S: Structure>(leader: S, same: impl Fn(S) -> bool) -> S {
    let mut at = leader;
    for _ in 0..WALK {
        let parent = at.next(off!(task_real_parent)).next(off!(task_group_leader));
        // Above `init` is the idle task, number 0.
        let exists = parent.load::<u32>(off!(task_tgid)) != 0;
        if !(exists & same(parent)) {
            return at;
        }
        at = parent;
    }
    S::null()
}

#[inline(always)]
fn ancestor<S: Structure>(into: &mut Ancestor, leader: S, level: u32) {
    into.start_boottime_ns = leader.load(off!(task_start_boottime));
    into.tgid = leader.load(off!(task_tgid));
    leader.bytes(off!(task_comm), &mut into.comm);
    into.nspid = nspid_at(leader.next(off!(task_thread_pid)), level);
}
