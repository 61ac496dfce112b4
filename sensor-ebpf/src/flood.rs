//! Keeps a flood of opens from pushing others out of the ring. Called by `emit`, before a record is
//! reserved and after one was written; never touches the ring.
//!
//! One process in a loop: what repeats an open of the last second is counted, and the count travels
//! with the next record. Many processes: each session of a container has a share of records for each file
//! of a token's volume, told apart by four, and one for all other files that look like a token; what exceeds
//! it is lost and counted. So no other file hides a token, and it takes many told opens of a token to hide
//! one. The five shares are less than the ring holds: there is room for somebody else.

use aya_ebpf::helpers::generated::bpf_get_current_pid_tgid;
use tokentrail_ebpf::{ACCESS_MODE, Counter, REPEAT_NS, RepeatKey, Repeats, TaskKey};

use crate::{
    maps::{self, off},
    read::Structure,
    task,
};

/// Records that a share has at once; all five take four of five in the ring.
const BURST: u64 = 80;
/// Its records a second after that, as the time that each takes, nanoseconds: 200.
const EACH_NS: u64 = 5_000_000;
/// Files of a volume that have a share of their own; the kubelet writes three, one after the other.
const FILES: u64 = 4;

/// Who has a share of the ring.
#[repr(C)]
#[derive(Clone, Copy)]
pub(crate) struct PaceKey {
    /// The session that the opener is of: others in the container hide nothing of it.
    session: TaskKey,
    /// kernfs id of the opener's cgroup.
    cgroup_id: u64,
    /// Which file of a watched device, from 1 on; 0 for files that only look like a token.
    file: u64,
}

/// An open that may get a record.
pub(crate) struct Admitted {
    key: RepeatKey,
    /// When, on the boot clock, nanoseconds.
    pub(crate) now: u64,
    /// Opens that it stands for, besides itself.
    pub(crate) repeats: u64,
}

/// Whether an open gets a record; if not, that is counted.
#[inline(always)]
pub(crate) fn admit<S: Structure>(file: S, now: u64) -> Option<Admitted> {
    let task = S::current();
    let leader = task.next(off!(task_group_leader));
    let key = key(task, leader, file);
    let mut repeats = 0;
    if let Some(known) = maps::repeats(&key) {
        // SAFETY: a live value of the map. Where two CPUs meet here, one increment may be lost; an
        // entry that is reused meanwhile belongs to another open, whose count is then one too high.
        let known = unsafe { &mut *known };
        if now.wrapping_sub(known.told_ns) < REPEAT_NS {
            known.last_ns = now;
            known.count += 1;
            maps::count(Counter::Repeated);
            return None;
        }
        repeats = known.count;
    }
    let opener = TaskKey { start_boottime_ns: key.start_boottime_ns, tgid: key.tgid.into() };
    let pace = PaceKey {
        session: maps::session_of(&opener).unwrap_or(TaskKey { start_boottime_ns: 0, tgid: 0 }),
        cgroup_id: task::cgroup_id(leader),
        file: if maps::is_volume(key.s_dev) { 1 + key.file_ino % FILES } else { 0 },
    };
    let used_up = maps::pace(&pace);
    if used_up > now + (BURST - 1) * EACH_NS {
        maps::count(Counter::LostFlood);
        return None;
    }
    maps::set_pace(&pace, if used_up > now { used_up } else { now } + EACH_NS);
    Some(Admitted { key, now, repeats })
}

/// Notes that an open got its record: from now on it can be repeated.
#[inline(always)]
pub(crate) fn told(Admitted { key, now, .. }: &Admitted) {
    maps::told(key, &Repeats { told_ns: *now, last_ns: *now, count: 0 });
}

#[inline(always)]
fn key<S: Structure>(task: S, leader: S, file: S) -> RepeatKey {
    // SAFETY: helper without arguments.
    let ids = unsafe { bpf_get_current_pid_tgid() };
    let inode = file.next(off!(file_inode));
    let executable = task::executable_file(task).next(off!(file_inode));
    RepeatKey {
        start_boottime_ns: leader.load(off!(task_start_boottime)),
        file_ino: inode.load(off!(inode_ino)),
        exe_ino: executable.load(off!(inode_ino)),
        tgid: (ids >> 32) as u32,
        s_dev: inode.next(off!(inode_sb)).load(off!(sb_dev)),
        exe_dev: executable.next(off!(inode_sb)).load(off!(sb_dev)),
        tty_dev: task::terminal_device(task),
        access: file.load::<u32>(off!(file_flags)) & ACCESS_MODE,
        padding: 0,
    }
}
