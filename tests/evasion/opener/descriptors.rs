//! Ways to a descriptor that another process opened.

use std::{
    fs::File,
    io::{IoSlice, IoSliceMut},
    mem::MaybeUninit,
    os::fd::{AsFd as _, AsRawFd as _, FromRawFd as _, OwnedFd},
    process,
};

use anyhow::{Context as _, Result};
use rustix::{
    net::{
        AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
        SendAncillaryMessage, SendFlags, SocketFlags, SocketType, recvmsg, sendmsg, socketpair,
    },
    process::{Pid, PidfdFlags, PidfdGetfdFlags, pidfd_getfd, pidfd_open},
};

use super::{TOKEN, Way, announce, checked, if_possible, in_child, read};

pub(crate) const WAYS: &[Way] =
    &[("scm_rights", received), ("pidfd_getfd", taken), ("fanotify", notified)];

/// The child opens and sends, the process of this name receives.
fn received() -> Result<()> {
    let (ours, theirs) =
        socketpair(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::empty(), None)?;
    in_child(|| {
        let token = File::open(TOKEN)?;
        let files = [token.as_fd()];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        control.push(SendAncillaryMessage::ScmRights(&files));
        sendmsg(&theirs, &[IoSlice::new(b"!")], &mut control, SendFlags::empty())?;
        Ok(())
    })?;
    announce()?;
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let mut byte = [0];
    recvmsg(&ours, &mut [IoSliceMut::new(&mut byte)], &mut control, RecvFlags::empty())?;
    let files = control.drain().find_map(|message| match message {
        RecvAncillaryMessage::ScmRights(mut files) => files.next(),
        RecvAncillaryMessage::ScmCredentials(_) | _ => None,
    });
    read(files.context("no descriptor came")?)
}

/// The parent opens, the child of this name takes it.
fn taken() -> Result<()> {
    let token = File::open(TOKEN)?;
    let holder = Pid::from_raw(process::id().cast_signed()).context("a process id")?;
    // A process may look into its descendants alone where Yama is strict.
    in_child(|| {
        drop(token.try_clone()?);
        announce()?;
        let holder = pidfd_open(holder, PidfdFlags::empty())?;
        let taken = pidfd_getfd(holder, token.as_raw_fd(), PidfdGetfdFlags::empty());
        read(if_possible("pidfd_getfd", taken.map_err(Into::into))?)
    })
}

/// Whoever watches opens gets a descriptor of the file with each.
fn notified() -> Result<()> {
    // SAFETY: takes no pointers.
    let watch =
        unsafe { libc::fanotify_init(libc::FAN_CLASS_NOTIF, libc::O_RDONLY.cast_unsigned()) };
    let watch = if_possible("fanotify_init", checked(watch.into()))?;
    // SAFETY: new, and nobody else's.
    let watch = unsafe { OwnedFd::from_raw_fd(watch) };
    let path = std::ffi::CString::new(TOKEN)?;
    let (add, opens) = (libc::FAN_MARK_ADD, libc::FAN_OPEN);
    // SAFETY: the path ends with a NUL and lives until the call returns.
    let marked = unsafe {
        libc::fanotify_mark(watch.as_raw_fd(), add, opens, libc::AT_FDCWD, path.as_ptr())
    };
    checked(marked.into()).context("fanotify_mark")?;
    in_child(|| File::open(TOKEN).map(drop).context("open"))?;
    announce()?;
    let mut event = [0_u8; size_of::<libc::fanotify_event_metadata>()];
    rustix::io::read(&watch, &mut event)?;
    // `fd` of `struct fanotify_event_metadata`.
    let at = std::mem::offset_of!(libc::fanotify_event_metadata, fd);
    let file = event.get(at..).and_then(<[u8]>::first_chunk).context("a short event")?;
    // SAFETY: the kernel made it for this process.
    read(unsafe { OwnedFd::from_raw_fd(i32::from_ne_bytes(*file)) })
}
