//! Ways by `io_uring`, which makes no system call for an open.

use std::{
    ffi::{CStr, CString},
    io,
    os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd},
};

use anyhow::{Context as _, Result, ensure};
use io_uring::{
    IoUring, opcode,
    squeue::{Entry, Flags},
    types::{DestinationSlot, Fd, Fixed, OpenHow},
};
use rustix::fs::{CWD, Mode, OFlags, openat};

use super::{Impossible, TOKEN, Way, announce, is_token, read};

pub(crate) const WAYS: &[Way] = &[
    ("uring", || plainly(&mut ring()?, |path| open(path).build())),
    ("uring_openat2", || plainly(&mut ring()?, |path| open2(path).build())),
    ("uring_async", || plainly(&mut ring()?, |path| open(path).build().flags(Flags::ASYNC))),
    ("uring_sqpoll", || plainly(&mut polled()?, |path| open(path).build())),
    ("uring_slot", || into_slot(Some(1), |path, slot| open(path).file_index(slot).build())),
    ("uring_slot_2", || into_slot(Some(0), |path, slot| open2(path).file_index(slot).build())),
    ("uring_any_slot", || into_slot(None, |path, slot| open(path).file_index(slot).build())),
    ("uring_skip", without_completion),
    ("uring_overflow", into_full_queue),
    ("uring_batch", closed_in_its_batch),
];

const CURRENT: Fd = Fd(libc::AT_FDCWD);

fn ring() -> Result<IoUring> {
    possible(IoUring::new(8))
}

/// With a kernel thread that takes the requests.
fn polled() -> Result<IoUring> {
    possible(IoUring::builder().setup_sqpoll(1000).build(8))
}

/// Administrators can forbid it.
fn possible<T>(result: io::Result<T>) -> Result<T> {
    match result {
        Err(error) if matches!(error.raw_os_error(), Some(libc::ENOSYS | libc::EPERM)) => {
            Err(Impossible(format!("io_uring: {error}")).into())
        }
        result => result.context("io_uring"),
    }
}

fn open(path: &CStr) -> opcode::OpenAt {
    opcode::OpenAt::new(CURRENT, path.as_ptr()).flags(libc::O_RDONLY)
}

fn open2(path: &CStr) -> opcode::OpenAt2 {
    /// As long as any request: the kernel reads it when it takes the request.
    static HOW: OpenHow = OpenHow::new();
    opcode::OpenAt2::new(CURRENT, path.as_ptr(), &raw const HOW)
}

/// Opens to a descriptor.
fn plainly(ring: &mut IoUring, request: fn(&CStr) -> Entry) -> Result<()> {
    let path = CString::new(TOKEN)?;
    announce()?;
    let opened = answer(ring, &request(&path))?;
    // SAFETY: new, and nobody else's.
    read(unsafe { OwnedFd::from_raw_fd(opened) })
}

/// Opens into the ring's own table, at a place or at any.
fn into_slot(
    slot: Option<u32>,
    request: fn(&CStr, Option<DestinationSlot>) -> Entry,
) -> Result<()> {
    let mut ring = ring()?;
    match ring.submitter().register_files_sparse(4) {
        // Before Linux 5.19.
        Err(error) if error.raw_os_error() == Some(libc::EINVAL) => {
            return Err(Impossible("io_uring has no tables with room here".to_owned()).into());
        }
        registered => possible(registered)?,
    }
    let to = match slot {
        Some(slot) => DestinationSlot::try_from_slot_target(slot)
            .map_err(|slot| io::Error::other(format!("no slot {slot}")))?,
        None => DestinationSlot::auto_target(),
    };
    let path = CString::new(TOKEN)?;
    announce()?;
    let opened = answer(&mut ring, &request(&path, Some(to)))?;
    let at = match slot {
        Some(slot) => slot,
        None => u32::try_from(opened)?,
    };
    let mut start = [0; 2];
    let read = opcode::Read::new(Fixed(at), start.as_mut_ptr(), 2).build();
    answer(&mut ring, &read)?;
    is_token(&start)
}

/// Asks not to be told that the open went well.
fn without_completion() -> Result<()> {
    let mut ring = ring()?;
    if !ring.params().is_feature_skip_cqe_on_success() {
        return Err(Impossible("io_uring completes every request here".to_owned()).into());
    }
    let path = CString::new(TOKEN)?;
    let next = next_descriptor()?;
    announce()?;
    push(&mut ring, &open(&path).build().flags(Flags::SKIP_SUCCESS))?;
    // The answer to the second request says that the first is through.
    answer(&mut ring, &opcode::Nop::new().build())?;
    // SAFETY: what the first request opened, and nobody else's.
    read(unsafe { OwnedFd::from_raw_fd(next) })
}

/// Lets no completion be taken before the queue is full, so that the kernel keeps the last for later.
fn into_full_queue() -> Result<()> {
    const OPEN: u64 = 1;
    let mut ring = ring()?;
    let path = CString::new(TOKEN)?;
    announce()?;
    for _ in 0..ring.params().cq_entries() {
        push(&mut ring, &opcode::Nop::new().build())?;
        ring.submit()?;
    }
    push(&mut ring, &open(&path).build().user_data(OPEN))?;
    ring.submit()?;
    loop {
        let answer = ring.completion().next();
        match answer {
            Some(answer) if answer.user_data() == OPEN => {
                // SAFETY: new, and nobody else's.
                return read(unsafe { OwnedFd::from_raw_fd(answer.result()) });
            }
            Some(_) => {}
            None => drop(ring.submit_and_wait(1)?),
        }
    }
}

/// Opens, reads and closes in one batch, before anything is completed.
fn closed_in_its_batch() -> Result<()> {
    let mut ring = ring()?;
    let path = CString::new(TOKEN)?;
    let next = Fd(next_descriptor()?);
    let mut start = [0; 2];
    announce()?;
    push(&mut ring, &open(&path).build())?;
    push(&mut ring, &opcode::Read::new(next, start.as_mut_ptr(), 2).build())?;
    push(&mut ring, &opcode::Close::new(next).build())?;
    ring.submit_and_wait(3)?;
    is_token(&start)
}

/// The number that the next descriptor will have.
fn next_descriptor() -> Result<i32> {
    Ok(openat(CWD, "/", OFlags::PATH, Mode::empty())?.as_raw_fd())
}

fn push(ring: &mut IoUring, request: &Entry) -> Result<()> {
    // SAFETY: what the request points to lives in the caller until the answer is there.
    unsafe { ring.submission().push(request) }.context("a full queue")
}

/// Submits a request and returns what it was answered.
fn answer(ring: &mut IoUring, request: &Entry) -> Result<i32> {
    push(ring, request)?;
    ring.submit_and_wait(1)?;
    let answer = ring.completion().next().context("no completion")?.result();
    ensure!(answer >= 0, "a request failed: {}", io::Error::from_raw_os_error(-answer));
    Ok(answer)
}
