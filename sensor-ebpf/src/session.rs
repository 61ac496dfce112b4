//! What a session in a container began with: noted when it enters, since its process may be gone by
//! the time that anybody asks, and can change its own arguments.
//!
//! A probe of the kubelet lives for milliseconds. Only by its command is it told from an attacker's
//! session.

use aya_ebpf::{
    helpers::generated::bpf_get_current_task, helpers::generated::bpf_probe_read_kernel,
};
use tokentrail_ebpf::{Ancestor, COMMAND_LEN, SessionCommand, SessionKey};

use crate::{
    maps::{self, off},
    read::Probed,
    task,
};

/// Notes the command of a process that runs in another cgroup than its parent: the first that it
/// executes there. This runs at every `execve` of the machine, so the rest leaves early.
#[inline(always)]
pub(crate) fn on_exec() -> i32 {
    // SAFETY: helper without arguments.
    let task = Probed::at(unsafe { bpf_get_current_task() });
    let leader = task.next(off!(task_group_leader));
    if !task::begins_session(leader) {
        return 0;
    }
    let mut command = SessionCommand { length: 0, text: [0; COMMAND_LEN] };
    command.length = task::copy_arguments(task, &mut command.text);
    if command.length != 0 {
        let key = SessionKey {
            start_boottime_ns: leader.load(off!(task_start_boottime)),
            tgid: leader.load::<u32>(off!(task_tgid)).into(),
        };
        maps::begin_session(&key, &command);
    }
    0
}

/// Fills in what the session of this process began with.
#[inline(always)]
pub(crate) fn command(entry: &Ancestor, into: &mut SessionCommand) {
    let key = SessionKey { start_boottime_ns: entry.start_boottime_ns, tgid: entry.tgid.into() };
    let known = maps::session_command(&key);
    // SAFETY: `into` is writable for its size; the helper checks the source, and clears the target
    // if that is null.
    unsafe {
        bpf_probe_read_kernel(
            core::ptr::from_mut(into).cast(),
            size_of::<SessionCommand>() as u32,
            known.cast(),
        )
    };
}
