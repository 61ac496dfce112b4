//! Every map and global of the object, with its only verbs. All of them are created at load.

use core::cell::UnsafeCell;

use aya_ebpf::{
    macros::map,
    maps::{Array, LruHashMap, PerCpuArray, RingBuf, ring_buf::RingBufEntry},
};
use tokentrail_ebpf::{
    Counter, Offsets, RepeatKey, Repeats, SessionCommand, TEXT_LEN, TaskKey, VOLUME_WORDS,
    VolumeBit,
};

use crate::flood::PaceKey;

/// Value: one `OpenRecord` an entry. Writer: `emit`. Reader: user space, which alone consumes.
/// 1 MiB holds 496 records: a burst far above what the filter lets through, while the
/// reader is busy for a moment.
#[map]
pub(crate) static EVENTS: RingBuf = RingBuf::with_byte_size(1 << 20, 0);

/// Key: [`Counter`]. Value: events since load, per CPU. Writer: [`count`]; of the slots behind
/// them, user space. Reader: user space.
#[map]
static COUNTERS: PerCpuArray<u64> = PerCpuArray::with_max_entries(Counter::SLOTS, 0);

/// Key: minor number / 64 of a device with major number 0, which all tmpfs have. Value: one bit a
/// minor number. Writer: user space. Reader: the filter, which gets an array's value without a
/// call. 2^20 minor numbers are all that the kernel gives out (`get_anon_bdev`): 128 KiB.
#[map]
static VOLUME_DEVICES: Array<u64> = Array::with_max_entries(VOLUME_WORDS, 0);

/// Key: 0. Value: how often `VOLUME_DEVICES` has changed. Writer: user space, after each change.
/// Reader: [`Unwatched`].
#[map]
static VOLUME_CHANGES: Array<u64> = Array::with_max_entries(1, 0);

/// Key: the process that a session in a container began with. Value: its command. Writer and
/// reader: `session`. A node has a few hundred containers and starts some probes a second: 1,024
/// are those of the last minutes, 300 KiB.
#[map]
static SESSIONS: LruHashMap<TaskKey, SessionCommand> = LruHashMap::with_max_entries(1024, 0);
/// Key: a process of a session that entered a running container. Value: the session's first one.
/// Writer and reader: `session`. The last 16,384 that were forked in all sessions, 1.5 MiB.
#[map]
static LINEAGE: LruHashMap<TaskKey, TaskKey> = LruHashMap::with_max_entries(16_384, 0);
/// Key: an open that got a record. Value: its repeats. Writer: `flood`; user space takes out what it
/// has told. What matters are those of the last second, of which [`PACES`] lets a session have some
/// hundred: 4,096 are ten such floods at once, 500 KiB. One that is evicted is told anew.
#[map]
static REPEATS: LruHashMap<RepeatKey, Repeats> = LruHashMap::with_max_entries(4096, 0);
/// Key: a session in a container and a kind of files. Value: until when its records have used up its share,
/// boot clock, nanoseconds. Writer and reader: `flood`. Forty for each of a hundred pods, 400 KiB. One that
/// is evicted begins with a full share.
#[map]
static PACES: LruHashMap<PaceKey, u64> = LruHashMap::with_max_entries(4096, 0);
/// `BPF_NOEXIST` of `include/uapi/linux/bpf.h`: an entry is made, never replaced.
const NO_EXIST: u64 = 1;
/// `-EEXIST` of `include/uapi/asm-generic/errno-base.h`: there is one already.
const EXISTS: i32 = -17;

/// A superblock that was looked up and is not watched, as of a number of changes. Writer and
/// reader: [`Unwatched`].
static UNWATCHED: Word = Word::zero();

/// Layout of this kernel's structures. Writer: user space, before load. Reader: all programs,
/// field by field through [`off`], so that each is a constant to the verifier.
#[unsafe(no_mangle)]
pub(crate) static OFFSETS: Offsets = Offsets::NONE;

/// Address of the file operations that all regular files on tmpfs share; 0 until the first
/// token-like file was seen, which is the self-test's. Writer and reader: the filter.
static TMPFS_FILE_OPS: Word = Word::zero();

/// A word that several CPUs load and store, each time whole: what a relaxed atomic is, which LLVM
/// does not lower for BPF.
struct Word(UnsafeCell<u64>);

// SAFETY: accessed only through volatile loads and stores of one aligned word.
unsafe impl Sync for Word {}

impl Word {
    const fn zero() -> Self {
        Self(UnsafeCell::new(0))
    }

    #[inline(always)]
    fn load(&self) -> u64 {
        // SAFETY: a live, aligned word; see the type.
        unsafe { core::ptr::read_volatile(self.0.get()) }
    }

    #[inline(always)]
    fn store(&self, value: u64) {
        // SAFETY: a live, aligned word; see the type.
        unsafe { core::ptr::write_volatile(self.0.get(), value) };
    }
}

/// A field of [`OFFSETS`], as a constant to the verifier.
macro_rules! off {
    ($field:ident) => {{
        let field = core::ptr::addr_of!($crate::maps::OFFSETS.$field);
        // SAFETY: a field of a static. Volatile keeps the compiler from folding in the
        // placeholder that user space overwrites before load.
        unsafe { core::ptr::read_volatile(field) }
    }};
}
pub(crate) use off;

/// Whether this kernel has all of these members; a constant to the verifier.
macro_rules! known {
    ($($field:ident),+) => {
        $($crate::maps::off!($field) != tokentrail_ebpf::ABSENT)&&+
    };
}
pub(crate) use known;

/// Memory that nobody else has, to be discarded: the reader passes over it. Never without a wake-up: the
/// kernel wakes the reader for the first record that it has not read, and for none behind that.
/// <https://github.com/torvalds/linux/blob/v6.12/kernel/bpf/ringbuf.c> (`bpf_ringbuf_commit`)
#[inline(always)]
pub(crate) fn scratch() -> Option<RingBufEntry<[u8; 2 * TEXT_LEN]>> {
    EVENTS.reserve(0)
}

/// Adds one to a counter of this CPU.
#[inline(always)]
pub(crate) fn count(counter: Counter) {
    if let Some(value) = COUNTERS.get_ptr_mut(counter as u32) {
        // SAFETY: a live slot of this CPU. A preempting program may lose one increment.
        unsafe { *value += 1 };
    }
}

/// Notes what a session began with. What the same process executes later changes nothing.
#[inline(always)]
pub(crate) fn begin_session(key: &TaskKey, command: &SessionCommand) {
    // Not known, then, if there is no room even after others were evicted.
    if let Err(error) = SESSIONS.insert(key, command, NO_EXIST)
        && error != EXISTS
    {
        count(Counter::SessionsFull);
    }
}

/// Notes which session a process belongs to.
#[inline(always)]
pub(crate) fn belongs_to(process: &TaskKey, session: &TaskKey) {
    if LINEAGE.insert(process, session, 0).is_err() {
        count(Counter::SessionsFull);
    }
}

/// Notes that a process belongs to no session, whatever its parent did.
#[inline(always)]
pub(crate) fn belongs_to_none(process: &TaskKey) {
    // Most have never been of one.
    let _: Result<(), i32> = LINEAGE.remove(process);
}

/// The session that a process belongs to.
#[inline(always)]
pub(crate) fn session_of(process: &TaskKey) -> Option<TaskKey> {
    LINEAGE.get_ptr(process).map(|session| {
        // SAFETY: a live value of the map; one that is reused meanwhile reads as another session's.
        unsafe { *session }
    })
}

/// What a session began with, if that is known.
#[inline(always)]
pub(crate) fn session_command(key: &TaskKey) -> Option<*const SessionCommand> {
    SESSIONS.get_ptr(key)
}

/// The repeats of an open that got a record.
#[inline(always)]
pub(crate) fn repeats(key: &RepeatKey) -> Option<*mut Repeats> {
    REPEATS.get_ptr_mut(key)
}

/// Notes an open that got a record.
#[inline(always)]
pub(crate) fn told(key: &RepeatKey, repeats: &Repeats) {
    // No room even after others were evicted: the next one is told as well.
    let _: Result<(), i32> = REPEATS.insert(key, repeats, 0);
}

/// Until when a session has used up its share; 0 if it is new.
#[inline(always)]
pub(crate) fn pace(key: &PaceKey) -> u64 {
    PACES.get_ptr(key).map_or(0, |until| {
        // SAFETY: a live value of the map; one that is reused meanwhile reads as another session's.
        unsafe { *until }
    })
}

/// Notes until when a session has used up its share.
#[inline(always)]
pub(crate) fn set_pace(key: &PaceKey, until: u64) {
    // No room even after others were evicted: it keeps a full share.
    let _: Result<(), i32> = PACES.insert(key, until, 0);
}

/// Whether user space named this device as a service-account volume's.
#[inline(always)]
pub(crate) fn is_volume(s_dev: u32) -> bool {
    match VolumeBit::of(s_dev) {
        Some(bit) => VOLUME_DEVICES.get(bit.word).is_some_and(|word| word & bit.mask != 0),
        None => false,
    }
}

/// What is remembered about a superblock that is not watched: its address, whose upper 16 bits
/// are the same for all, with the number of changes in their place. A change thus forgets it, also
/// one between lookup and store.
#[derive(Clone, Copy)]
pub(crate) struct Unwatched(u64);

impl Unwatched {
    /// To be made before the lookup.
    #[inline(always)]
    pub(crate) fn now(superblock: u64) -> Option<Self> {
        Some(Self(superblock << 16 | VOLUME_CHANGES.get(0)? & 0xffff))
    }

    #[inline(always)]
    pub(crate) fn is_known(self) -> bool {
        UNWATCHED.load() == self.0
    }

    #[inline(always)]
    pub(crate) fn remember(self) {
        UNWATCHED.store(self.0);
    }
}

/// The learned file operations of tmpfs, 0 if none were learned yet.
#[inline(always)]
pub(crate) fn tmpfs_file_ops() -> u64 {
    TMPFS_FILE_OPS.load()
}

/// Remembers the file operations of a regular file that was proven to be on tmpfs.
#[inline(always)]
pub(crate) fn learn_tmpfs_file_ops(operations: u64) {
    TMPFS_FILE_OPS.store(operations);
}
