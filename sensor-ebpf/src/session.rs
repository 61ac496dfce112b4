//! Sessions in containers: what one began with, and who belongs to it. Noted as it happens, since
//! processes are gone by the time that anybody asks.
//!
//! A probe of the kubelet lives for milliseconds, and only by its command is it told from an
//! attacker's session. A process whose parent has ended is a child of the container's first one, as
//! the workload's own are, and only by its forks is it told from those.

use tokentrail_ebpf::{COMMAND_LEN, OpenRecord, SessionCommand, TaskKey};

use crate::{
    maps::{self, off},
    read::Structure,
    task,
};

/// Notes the command of a process that is in another container than its parent: the first that it
/// executes there. This runs at every `execve` of the machine, so the rest leaves early.
#[inline(always)]
pub(crate) fn on_exec<S: Structure>() -> i32 {
    let task = S::current();
    let leader = task.next(off!(task_group_leader));
    if !task::begins_session(leader) {
        return 0;
    }
    let mut command = SessionCommand { length: 0, text: [0; COMMAND_LEN] };
    command.length = task::copy_arguments(task, &mut command.text);
    let key = key(leader);
    if command.length != 0 {
        maps::begin_session(&key, &command);
    }
    if is_first(leader) {
        maps::belongs_to_none(&key);
    } else {
        maps::belongs_to(&key, &key);
    }
    0
}

/// Notes that a child belongs to the session of its parent. This runs at every `fork` of the machine
/// and ends for nearly all of them with one lookup.
#[inline(always)]
pub(crate) fn on_fork<S: Structure>(parent: S, task: S) -> i32 {
    let (parent, child) = (key(parent.next(off!(task_group_leader))), key(task));
    if child.tgid != parent.tgid
        && let Some(session) = maps::session_of(&parent)
    {
        maps::belongs_to(&child, &session);
    }
    0
}

/// Whether a process is the first of its pid namespace. One that is also in another container than its
/// parent is that container's own, and so is all that it forks; any other one of a session stays of it.
#[inline(always)]
fn is_first<S: Structure>(leader: S) -> bool {
    task::nspid(leader) == 1
}

/// Fills in the session of a process, and what it began with.
#[inline(always)]
pub(crate) fn describe(record: &mut OpenRecord) {
    let opener = TaskKey { start_boottime_ns: record.start_boottime_ns, tgid: record.tgid.into() };
    record.session = maps::session_of(&opener).unwrap_or(TaskKey { start_boottime_ns: 0, tgid: 0 });
    let entry = &record.entry_cgroup;
    let began = if record.session.tgid != 0 {
        record.session
    } else {
        TaskKey { start_boottime_ns: entry.start_boottime_ns, tgid: entry.tgid.into() }
    };
    let into = core::ptr::from_mut(&mut record.session_command);
    match maps::session_command(&began) {
        // SAFETY: both are live and apart; the verifier checks their bounds.
        Some(known) => unsafe { core::ptr::copy_nonoverlapping(known, into, 1) },
        None => {
            record.session_command.length = 0;
            record.session_command.text[0] = 0;
        }
    }
}

#[inline(always)]
fn key<S: Structure>(leader: S) -> TaskKey {
    TaskKey {
        start_boottime_ns: leader.load(off!(task_start_boottime)),
        tgid: leader.load::<u32>(off!(task_tgid)).into(),
    }
}
