//! The BPF object: entry points, one line each. On the host this is an empty program, so that the
//! workspace builds without a BPF toolchain.
//!
//! Three routes lead to the same filter and the same record; user space loads and attaches one.
//! The `empty_*` programs sit on the same hooks and do nothing: they are the yardstick of the
//! benchmark and nobody else loads them.
#![cfg_attr(target_arch = "bpf", no_std, no_main)]
#![cfg_attr(
    target_arch = "bpf",
    expect(
        clippy::cast_possible_truncation,
        reason = "helpers return 64-bit words of which 32 bits count, and sizes here are below 4 KiB"
    )
)]

#[cfg(not(target_arch = "bpf"))]
fn main() {}

#[cfg(target_arch = "bpf")]
mod emit;
#[cfg(target_arch = "bpf")]
mod file;
#[cfg(target_arch = "bpf")]
mod filter;
#[cfg(target_arch = "bpf")]
mod flood;
#[cfg(target_arch = "bpf")]
mod maps;
#[cfg(target_arch = "bpf")]
mod read;
#[cfg(target_arch = "bpf")]
mod session;
#[cfg(target_arch = "bpf")]
mod task;
#[cfg(target_arch = "bpf")]
mod words;

#[cfg(target_arch = "bpf")]
#[expect(clippy::needless_pass_by_value, reason = "the signature that aya's macros call")]
mod programs {
    use aya_ebpf::{
        macros::{btf_tracepoint, fexit, kprobe, raw_tracepoint, tracepoint},
        programs::{
            BtfTracePointContext, FExitContext, ProbeContext, RawTracePointContext,
            TracePointContext,
        },
    };

    use crate::{
        filter,
        read::{Direct, Probed, Structure as _, Typed},
        session,
    };

    /// Return of `int security_file_open(struct file *)`, the one function that every open by
    /// path, handle, `execve` or `io_uring` passes. Trampolines: x86-64 5.5, arm64 6.0 to 6.4.
    /// <https://github.com/torvalds/linux/blob/v6.12/security/security.c#L3092>
    #[fexit(function = "security_file_open")]
    fn open_fexit(ctx: FExitContext) -> i32 {
        filter::on_fexit::<Probed>(&ctx)
    }

    /// Return of `int security_file_receive(struct file *)`: a descriptor comes from another
    /// process, over a socket or by `pidfd_getfd`. All callers since 5.9.
    /// <https://github.com/torvalds/linux/blob/v6.12/security/security.c#L3061>
    #[fexit(function = "security_file_receive")]
    fn receive_fexit(ctx: FExitContext) -> i32 {
        filter::on_receive_fexit::<Probed>(&ctx)
    }

    /// The same two where the kernel keeps its memory from programs (`lockdown=confidentiality`): they
    /// read what types lead to, and no other address.
    #[fexit(function = "security_file_open")]
    #[inline(always)]
    fn open_direct(ctx: FExitContext) -> i32 {
        filter::on_fexit::<Direct>(&ctx)
    }

    #[fexit(function = "security_file_receive")]
    #[inline(always)]
    fn receive_direct(ctx: FExitContext) -> i32 {
        filter::on_receive_fexit::<Direct>(&ctx)
    }

    /// Entry of the same functions. Sees opens that a security module then denies.
    #[kprobe]
    fn open_kprobe(ctx: ProbeContext) -> u32 {
        filter::on_kprobe(&ctx)
    }

    /// Tracepoints `syscalls:sys_exit_{open,openat,openat2,open_by_handle_at,pidfd_getfd}`: the
    /// returned descriptor leads to the file. Their layout: `include/trace/syscall.h`, stable since
    /// 2.6.
    /// <https://github.com/torvalds/linux/blob/v6.12/kernel/trace/trace_syscalls.c#L646>
    #[tracepoint]
    fn open_exit(ctx: TracePointContext) -> u32 {
        filter::on_exit(&ctx)
    }

    /// Tracepoint `io_uring:io_uring_complete`: a request is done and its result known. Names the
    /// request since 5.19.
    /// <https://github.com/torvalds/linux/blob/v6.12/io_uring/io_uring.h#L130>
    #[tracepoint]
    fn open_uring(ctx: TracePointContext) -> u32 {
        filter::on_uring_complete(&ctx)
    }

    /// Exit of every system call of the machine: `struct pt_regs *`, result. For 32-bit calls, which
    /// the tracepoints of single calls leave out.
    /// <https://github.com/torvalds/linux/blob/v6.12/kernel/entry/common.c#L149>
    #[raw_tracepoint(tracepoint = "sys_exit")]
    fn open_compat(ctx: RawTracePointContext) -> i32 {
        filter::on_compat_exit(&ctx)
    }

    /// A program was executed: the new memory holds its arguments, nothing of it has run yet.
    /// <https://github.com/torvalds/linux/blob/v6.12/fs/exec.c#L1788>
    #[raw_tracepoint(tracepoint = "sched_process_exec")]
    fn session_exec(_: RawTracePointContext) -> i32 {
        session::on_exec::<Probed>()
    }

    /// A process or thread was made and does not run yet: `parent`, `child`.
    /// <https://github.com/torvalds/linux/blob/v6.12/kernel/fork.c#L2817>
    #[raw_tracepoint(tracepoint = "sched_process_fork")]
    fn session_fork(ctx: RawTracePointContext) -> i32 {
        session::on_fork(Probed::at(ctx.arg(0)), Probed::at(ctx.arg(1)))
    }

    /// The same two as typed programs: kernel 5.5.
    #[btf_tracepoint(function = "sched_process_exec")]
    fn exec_direct(_: BtfTracePointContext) -> i32 {
        session::on_exec::<Direct>()
    }

    #[btf_tracepoint(function = "sched_process_fork")]
    fn fork_direct(ctx: BtfTracePointContext) -> i32 {
        // SAFETY: both arguments of the tracepoint are of `struct task_struct *`.
        let [parent, child] = [0, 1].map(|at| Direct::of(unsafe { Typed::new(ctx.arg(at)) }));
        session::on_fork(parent, child)
    }

    #[fexit(function = "security_file_open")]
    fn empty_fexit(_: FExitContext) -> i32 {
        0
    }

    #[kprobe]
    fn empty_kprobe(_: ProbeContext) -> u32 {
        0
    }

    #[tracepoint]
    fn empty_exit(_: TracePointContext) -> u32 {
        0
    }

    #[raw_tracepoint(tracepoint = "sched_process_exec")]
    fn empty_session_exec(_: RawTracePointContext) -> i32 {
        0
    }

    #[raw_tracepoint(tracepoint = "sched_process_fork")]
    fn empty_session_fork(_: RawTracePointContext) -> i32 {
        0
    }
}

/// The verifier refuses a loop without end, so a panic that survives optimisation is found at load.
#[cfg(target_arch = "bpf")]
#[panic_handler]
fn panic(_: &core::panic::PanicInfo) -> ! {
    loop {}
}

/// What the kernel asks of programs that call GPL-only helpers.
#[cfg(target_arch = "bpf")]
#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";
