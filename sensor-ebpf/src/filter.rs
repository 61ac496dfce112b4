//! "Is this a token-like file?", as cheaply as possible: this runs at every open of the machine.
//!
//! An open that does not matter leaves after one comparison: files that are not regular files on
//! tmpfs have other file operations than the ones learned from the self-test. What is left is
//! judged by its dentries' names and its superblock, never by a path: symbolic links, bind
//! mounts, `/proc/PID/root`, relative and handle opens all end at the same dentry.

use aya_ebpf::{
    EbpfContext as _,
    helpers::generated::{bpf_d_path, bpf_get_current_task, bpf_get_current_task_btf},
    programs::{FExitContext, ProbeContext, RawTracePointContext, TracePointContext},
};
use aya_log_ebpf::debug;
use tokentrail_ebpf::{MatchedBy, Route, TEXT_LEN};

use crate::{
    emit,
    maps::{self, known, off},
    read::{Buffer, Probed, Read, Span, Structure, Typed},
};

/// File names of a service-account volume: length, then the bytes as a little-endian number.
/// Volumes that name them otherwise are known by device.
const NAMES: [(u32, u64); 2] = [name(b"token"), name(b"ca.crt")];

const fn name<const N: usize>(text: &[u8; N]) -> (u32, u64) {
    let mut bytes = [0; 8];
    let (head, _) = bytes.split_at_mut(N);
    head.copy_from_slice(text);
    (N as u32, u64::from_le_bytes(bytes))
}

/// `..`: the kubelet publishes volume content under a directory named `..<timestamp>`.
/// <https://github.com/kubernetes/kubernetes/blob/v1.34.0/pkg/volume/util/atomic_writer.go#L37>
const DOTS: u16 = u16::from_le_bytes(*b"..");
/// `TMPFS_MAGIC` of `include/uapi/linux/magic.h`.
const TMPFS_MAGIC: u64 = 0x0102_1994;
/// `S_IFMT` and `S_IFREG` of `include/uapi/linux/stat.h`.
const FILE_TYPE: u16 = 0o170_000;
const REGULAR: u16 = 0o100_000;
/// `FMODE_PATH` of `include/linux/fs.h`: an `O_PATH` descriptor, which reads nothing and has other
/// file operations.
const FMODE_PATH: u32 = 0x4000;
/// Where `struct trace_event_raw_sys_exit` has `ret`, in words.
const EXIT_RET: usize = 2;
/// `IORING_OP_OPENAT`, `IORING_OP_OPENAT2` and `IORING_FILE_INDEX_ALLOC` of
/// `include/uapi/linux/io_uring.h`.
const URING_OPENS: [u8; 2] = [18, 28];
const ANY_SLOT: u32 = u32::MAX;
/// The low bits of a pointer in a ring's file table are flags.
const SLOT_FLAGS: u64 = 7;
/// `TS_COMPAT` of `arch/x86/include/asm/thread_info.h`: the running call is a 32-bit one.
const COMPAT: u32 = 2;
/// `open`, `openat`, `open_by_handle_at`, `pidfd_getfd` and `openat2` of
/// `arch/x86/entry/syscalls/syscall_32.tbl`. By those numbers other calls go natively.
const COMPAT_OPENS: [u32; 5] = [5, 295, 342, 438, 437];

#[inline(always)]
pub(crate) fn on_fexit<S: Structure>(ctx: &FExitContext) -> i32 {
    let denied: i32 = ctx.arg(1);
    let address: *const u8 = ctx.arg(0);
    if denied != 0 {
        return 0;
    }
    // SAFETY: the first argument of the traced function, which BTF types as `struct file *`.
    let file = unsafe { Typed::new(address) };
    if let Some(matched) = token_like(file) {
        emit::open(Route::Fexit, S::of(file), matched, |path: &mut [u8; TEXT_LEN]| {
            let from = address.wrapping_add(off!(file_path) as usize).cast_mut();
            // SAFETY: `path` is writable for its length; `from` is the file's `f_path`, which the
            // verifier checks.
            unsafe { bpf_d_path(from.cast(), path.as_mut_ptr().cast(), TEXT_LEN as u32) };
        });
        // Last, so that the verifier does not go through the record once for each path in here.
        debug!(ctx, "fexit: reported an open that matched by {}", matched as u32);
    }
    0
}

#[inline(always)]
pub(crate) fn on_receive_fexit<S: Structure>(ctx: &FExitContext) -> i32 {
    let denied: i32 = ctx.arg(1);
    if denied != 0 {
        return 0;
    }
    // SAFETY: the first argument of the traced function, which BTF types as `struct file *`.
    let file = unsafe { Typed::new(ctx.arg(0)) };
    if let Some(matched) = token_like(file) {
        // `bpf_d_path` is not allowed in this function.
        emit::open(Route::Fexit, S::of(file), matched, |path| path[0] = 0);
        debug!(ctx, "fexit: reported a received file that matched by {}", matched as u32);
    }
    0
}

#[inline(always)]
pub(crate) fn on_kprobe(ctx: &ProbeContext) -> u32 {
    let registers = ctx.as_ptr().cast::<u64>();
    // Both candidates are loaded before one is chosen: a load in each branch is merged by LLVM
    // into one through a computed context pointer, which the verifier refuses.
    // SAFETY: `struct pt_regs` of x86-64 has 21 words, arm64's more; word 14 is `rdi`.
    let rdi = unsafe { core::ptr::read_volatile(registers.wrapping_add(14)) };
    // SAFETY: as above; word 0 is `x0` on arm64.
    let x0 = unsafe { core::ptr::read_volatile(registers) };
    let address = if off!(arch) == 1 { rdi } else { x0 };
    let file = Probed::at(address);
    if let Some(matched) = token_like(file) {
        emit::open(Route::Kprobe, file, matched, |path| path[0] = 0);
        debug!(ctx, "kprobe: reported an open that matched by {}", matched as u32);
    }
    0
}

#[inline(always)]
pub(crate) fn on_exit(ctx: &TracePointContext) -> u32 {
    let words = ctx.as_ptr().cast::<i64>();
    // SAFETY: every `sys_exit_*` tracepoint has its return value in the third word.
    let returned = unsafe { core::ptr::read_volatile(words.wrapping_add(EXIT_RET)) };
    if let Ok(descriptor) = u32::try_from(returned)
        && let Some(table) = descriptors()
        && let file = table.element(descriptor)
        && let Some(matched) = token_like(file)
    {
        emit::open(Route::Exit, file, matched, |path| path[0] = 0);
        debug!(ctx, "exit: reported an open that matched by {}", matched as u32);
    }
    0
}

#[inline(always)]
pub(crate) fn on_uring_complete(ctx: &TracePointContext) -> u32 {
    if !known!(uring_res, uring_req, uring_ring, io_kiocb_opcode) {
        return 0;
    }
    // With the helper: the verifier lets no computed offset into a context.
    let event = Probed::at(ctx.as_ptr() as u64);
    let request = event.next(off!(uring_req));
    let opcode: u8 = request.load(off!(io_kiocb_opcode));
    let result: i32 = event.load(off!(uring_res));
    if URING_OPENS.contains(&opcode)
        && let Ok(result) = u32::try_from(result)
        && let Some(file) = opened_by_uring(event.next(off!(uring_ring)), request, result)
        && let Some(matched) = token_like(file)
    {
        emit::open(Route::Exit, file, matched, |path| path[0] = 0);
        debug!(ctx, "io_uring: reported an open that matched by {}", matched as u32);
    }
    0
}

/// What a request opened: a descriptor of the process, or a place in the ring's own table, of which
/// the request gives the number plus one.
#[inline(always)]
fn opened_by_uring(ring: Probed, request: Probed, result: u32) -> Option<Probed> {
    let slot: u32 = request.load(off!(io_open_file_slot));
    if slot == 0 {
        return descriptors().map(|table| table.element(result));
    }
    let entry = ring.next(off!(io_ring_files));
    let entry = entry.element(if slot == ANY_SLOT { result } else { slot - 1 });
    let file = if known!(io_rsrc_node_file) { entry.next(off!(io_rsrc_node_file)) } else { entry };
    file.address().map(|address| Probed::at(address & !SLOT_FLAGS))
}

/// Nearly every call leaves after one comparison.
#[inline(always)]
pub(crate) fn on_compat_exit(ctx: &RawTracePointContext) -> i32 {
    if !is_compat() {
        return 0;
    }
    let number: u32 = Probed::at(ctx.arg(0)).load(off!(pt_regs_orig_ax));
    let result: i32 = ctx.arg(1);
    if COMPAT_OPENS.contains(&number)
        && let Ok(descriptor) = u32::try_from(result)
        && let Some(table) = descriptors()
        && let file = table.element(descriptor)
        && let Some(matched) = token_like(file)
    {
        emit::open(Route::Exit, file, matched, |path| path[0] = 0);
        debug!(ctx, "compat: reported an open that matched by {}", matched as u32);
    }
    0
}

/// Whether the current task is in a 32-bit call.
#[inline(always)]
fn is_compat() -> bool {
    if !known!(task_thread_status) {
        return false;
    }
    let status: u32 = if off!(have_task_btf) != 0 {
        // SAFETY: helper without arguments.
        let task = unsafe { bpf_get_current_task_btf() };
        // SAFETY: the helper returns the current `struct task_struct *` with its BTF type.
        unsafe { Typed::new(task.cast_const().cast()) }.get(off!(task_thread_status))
    } else {
        // SAFETY: helper without arguments.
        Probed::at(unsafe { bpf_get_current_task() }).get(off!(task_thread_status))
    };
    status & COMPAT != 0
}

/// The current process's array of `struct file *`. A descriptor that was just returned is below
/// its length, which never shrinks.
#[inline(always)]
fn descriptors() -> Option<Probed> {
    if off!(have_task_btf) != 0 {
        // SAFETY: helper without arguments.
        let task = unsafe { bpf_get_current_task_btf() };
        // SAFETY: the helper returns the current `struct task_struct *` with its BTF type.
        let task = unsafe { Typed::new(task.cast_const().cast()) };
        let table = task.follow(off!(task_files))?.follow(off!(files_fdt))?;
        Some(Probed::at(table.get(off!(fdt_fd))))
    } else {
        // SAFETY: helper without arguments.
        let task = Probed::at(unsafe { bpf_get_current_task() });
        Some(task.next(off!(task_files)).next(off!(files_fdt)).next(off!(fdt_fd)))
    }
}

/// The filter. Reads are ordered by what they cost and how many opens they dismiss.
#[inline(always)]
fn token_like<R: Read>(file: R) -> Option<MatchedBy> {
    let operations: u64 = file.get(off!(file_op));
    let tmpfs = maps::tmpfs_file_ops();
    if tmpfs != 0 && operations != tmpfs {
        return None;
    }
    let mut buffer = Buffer::new();
    let span = Span { start: off!(dentry_glance), length: off!(dentry_glance_len) };
    let dentry = file.follow(off!(file_dentry))?.glance(span, &mut buffer);
    let inode = file.follow(off!(file_inode))?;
    // Before Linux 6.5 an overlay's path is on the file below it as well, which the inode tells.
    let superblock = inode.follow(off!(inode_sb))?;
    let named = named_like_a_token(dentry)?;
    let matched = if named && superblock.get::<u64>(off!(sb_magic)) == TMPFS_MAGIC {
        MatchedBy::Name
    } else if on_a_volume(superblock)? {
        MatchedBy::Device
    } else {
        return None;
    };
    let mode: u16 = inode.get(off!(inode_mode));
    if mode & FILE_TYPE != REGULAR || file.get::<u32>(off!(file_mode)) & FMODE_PATH != 0 {
        return None;
    }
    if tmpfs == 0 && matched == MatchedBy::Name {
        maps::learn_tmpfs_file_ops(operations);
    }
    Some(matched)
}

/// Whether a superblock's device is watched. Where reading that costs, the last one that is not
/// is remembered: opens come in runs.
#[inline(always)]
fn on_a_volume<R: Read>(superblock: R) -> Option<bool> {
    let Some(address) = superblock.address() else {
        return Some(maps::is_volume(superblock.get(off!(sb_dev))));
    };
    let unwatched = maps::Unwatched::now(address)?;
    if unwatched.is_known() {
        return Some(false);
    }
    let watched = maps::is_volume(superblock.get(off!(sb_dev)));
    if !watched {
        unwatched.remember();
    }
    Some(watched)
}

/// Whether a dentry has one of the names and lies in a directory named `..<something>`. Names
/// this short are always inline.
#[inline(always)]
fn named_like_a_token<R: Read>(dentry: R) -> Option<bool> {
    let length: u32 = dentry.get(off!(dentry_name_len));
    if !NAMES.iter().any(|(known, _)| length == *known) {
        return Some(false);
    }
    // Two words, since the verifier lets a BTF load of `char []` span four bytes.
    let low: u32 = dentry.get(off!(dentry_inline_name));
    let high: u32 = dentry.get(off!(dentry_inline_name) + 4);
    let found = u64::from(low) | u64::from(high) << 32;
    let mask = (1 << (length * 8)) - 1;
    if !NAMES.iter().any(|(known, text)| length == *known && found & mask == *text) {
        return Some(false);
    }
    let parent = dentry.follow(off!(dentry_parent))?;
    let parent_length: u32 = parent.get(off!(dentry_name_len));
    let dots: u16 = parent.get(off!(dentry_inline_name));
    Some(parent_length > 2 && dots == DOTS)
}
