//! The part of the wire contract about repeats: which open repeats another one, and what is counted
//! of them. Shared by both sides, like all of it.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use crate::OpenRecord;

impl OpenRecord {
    /// What makes another open a repeat of this one.
    pub fn repeat_key(&self) -> RepeatKey {
        RepeatKey {
            start_boottime_ns: self.start_boottime_ns,
            file_ino: self.file_ino,
            exe_ino: self.exe_ino,
            tgid: self.tgid,
            s_dev: self.s_dev,
            exe_dev: self.exe_dev,
            tty_dev: self.tty_dev,
            access: self.open_flags & ACCESS_MODE,
            padding: 0,
        }
    }
}

/// `O_ACCMODE` of `include/uapi/asm-generic/fcntl.h`: whether a file is opened to read, write or both.
pub const ACCESS_MODE: u32 = 3;
/// How long after an open that got a record its repeats get none, nanoseconds.
pub const REPEAT_NS: u64 = 1_000_000_000;

/// All that user space judges an open by and that one process can change: opens that have it in
/// common are told once a [`REPEAT_NS`].
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct RepeatKey {
    /// As in [`OpenRecord`].
    pub start_boottime_ns: u64,
    /// As in [`OpenRecord`].
    pub file_ino: u64,
    /// As in [`OpenRecord`].
    pub exe_ino: u64,
    /// As in [`OpenRecord`].
    pub tgid: u32,
    /// As in [`OpenRecord`].
    pub s_dev: u32,
    /// As in [`OpenRecord`].
    pub exe_dev: u32,
    /// As in [`OpenRecord`]: a process may get a terminal after its first open.
    pub tty_dev: u32,
    /// Its [`ACCESS_MODE`]: who opens to write may read next.
    pub access: u32,
    /// A key has no hidden padding.
    pub padding: u32,
}

/// What is known of the repeats of an open.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct Repeats {
    /// When the last open that got a record was, boot clock, nanoseconds.
    pub told_ns: u64,
    /// When the last one that got none was.
    pub last_ns: u64,
    /// How many got none since.
    pub count: u64,
}

// A layout that differs between the two targets would find nothing.
const _: () = assert!(size_of::<RepeatKey>() == 48 && size_of::<Repeats>() == 24);
