//! Ways by who opens, and what becomes of that process: threads, children, other users and cgroups.

use std::{
    env,
    ffi::c_void,
    fs, io,
    os::{
        fd::{FromRawFd as _, OwnedFd},
        unix::{
            fs::{PermissionsExt as _, chown},
            process::CommandExt as _,
        },
    },
    path::PathBuf,
    ptr, thread,
};

use anyhow::{Context as _, Result, ensure};
use rustix::{
    fs::{CWD, Mode, OFlags, openat},
    mount::{MountFlags, mount},
    thread::{UnshareFlags, unshare_unsafe},
};

use super::{READ, TOKEN, Way, announce, calls::by_path, in_child, opener, read, wait_for};

pub(crate) const WAYS: &[Way] = &[
    ("inherited", inherited),
    ("closed_by_other", closed_by_another),
    ("thread", in_thread),
    ("vfork", in_vfork),
    ("ends_at_once", ends_at_once),
    ("setuid", as_set_user),
    ("nested_cgroups", in_nested_cgroups),
];

/// Opens, then becomes a program that reads.
fn inherited() -> Result<()> {
    announce()?;
    let token = openat(CWD, TOKEN, OFlags::RDONLY, Mode::empty())?;
    let descriptor = std::os::fd::IntoRawFd::into_raw_fd(token).to_string();
    Err(opener()?.args([READ, &descriptor]).exec()).context("exec")
}

/// What the program above became does.
pub(crate) fn read_inherited(descriptor: &str) -> Result<()> {
    // SAFETY: it was inherited for this.
    read(unsafe { OwnedFd::from_raw_fd(descriptor.parse()?) })
}

fn in_thread() -> Result<()> {
    thread::spawn(|| by_path(TOKEN))
        .join()
        .unwrap_or_else(|_| Err(io::Error::other("a panic").into()))
}

/// Memory for a child's stack: 64 KiB, enough for a few calls.
type Stack = [u128; 4096];

/// Starts a process that shares memory, and more, with this one.
fn clone(stack: &mut Stack, body: extern "C" fn(*mut c_void) -> i32, flags: i32) -> Result<i32> {
    let top = ptr::from_mut(stack).wrapping_add(1).cast();
    // SAFETY: the stack is the child's alone, and lives until the child has been waited for; stacks
    // grow downwards on all architectures that this runs on.
    let child = unsafe { libc::clone(body, top, flags | libc::SIGCHLD, ptr::null_mut()) };
    ensure!(child > 0, "clone: {}", io::Error::last_os_error());
    Ok(child)
}

/// Another process with the same descriptors closes each one the moment it is there. The one that
/// opens tries often: now and then it loses.
fn closed_by_another() -> Result<()> {
    /// The number of the next descriptor that is opened here.
    const NEXT: i32 = 200;
    extern "C" fn close(_: *mut c_void) -> i32 {
        loop {
            // SAFETY: nobody relies on that descriptor.
            unsafe { libc::close(NEXT) };
        }
    }
    announce()?;
    let low = openat(CWD, "/", OFlags::PATH, Mode::empty())?;
    while rustix::io::fcntl_dupfd_cloexec(&low, 0).map(std::os::fd::IntoRawFd::into_raw_fd)?
        < NEXT - 1
    {}
    let mut stack = Box::new([0; 4096]);
    let closer = clone(&mut stack, close, libc::CLONE_VM | libc::CLONE_FILES)?;
    for _ in 0..100 {
        let token = openat(CWD, TOKEN, OFlags::RDONLY, Mode::empty())?;
        // The other one closes it.
        let _ = std::os::fd::IntoRawFd::into_raw_fd(token);
    }
    // SAFETY: takes no pointers.
    unsafe { libc::kill(closer, libc::SIGKILL) };
    // It was killed, which is no success.
    let _ = wait_for(closer);
    Ok(())
}

fn in_vfork() -> Result<()> {
    extern "C" fn open(_: *mut c_void) -> i32 {
        i32::from(by_path(TOKEN).is_err())
    }
    let mut stack = Box::new([0; 4096]);
    let child = clone(&mut stack, open, libc::CLONE_VM | libc::CLONE_VFORK)?;
    ensure!(wait_for(child)?.success(), "the child failed");
    Ok(())
}

fn ends_at_once() -> Result<()> {
    in_child(|| {
        announce()?;
        let token = openat(CWD, TOKEN, OFlags::RDONLY, Mode::empty())?;
        std::mem::forget(token);
        Ok(())
    })
}

/// A copy of this program that runs as root, whoever starts it.
fn as_set_user() -> Result<()> {
    const COPY: &str = "/tmp/setuid";
    if rustix::process::getuid().as_raw() != 0 {
        ensure!(rustix::process::geteuid().is_root(), "the bit had no effect");
        return by_path(TOKEN);
    }
    fs::copy(env::current_exe()?, COPY)?;
    chown(COPY, Some(0), Some(0))?;
    fs::set_permissions(COPY, fs::Permissions::from_mode(0o4755))?;
    let status = std::process::Command::new(COPY).args([super::OPEN, "setuid"]).uid(1000).status();
    fs::remove_file(COPY)?;
    ensure!(status?.success(), "the copy failed");
    Ok(())
}

/// In a cgroup below one below the container's own.
fn in_nested_cgroups() -> Result<()> {
    // SAFETY: neither descriptors nor memory are unshared.
    unsafe { unshare_unsafe(UnshareFlags::NEWNS) }.context("unshare")?;
    fs::create_dir_all("/mnt")?;
    let own = fs::read_to_string("/proc/self/cgroup")?;
    // The memory controller's hierarchy where that is a v1 one: there containers are told apart.
    let v1 = own.lines().find_map(|line| line.split_once(":memory:").map(|(_, path)| path));
    let (kind, options, path) = match v1 {
        Some(path) => ("cgroup", c"memory", path),
        None => {
            let unified = own.lines().find_map(|line| line.strip_prefix("0::"));
            ("cgroup2", c"", unified.context("no cgroup")?)
        }
    };
    mount("none", "/mnt", kind, MountFlags::empty(), options).context("a cgroup file system")?;
    let nested = PathBuf::from(format!("/mnt{path}/one/two"));
    fs::create_dir_all(&nested)?;
    fs::write(nested.join("cgroup.procs"), "0")?;
    let read = by_path(TOKEN);
    // Out again, so that they can be removed.
    fs::write(format!("/mnt{path}/cgroup.procs"), "0")?;
    for folder in nested.ancestors().take(2) {
        fs::remove_dir(folder)?;
    }
    read
}
