//! Ways by the call and the path: which system call opens, and by what name for the file.

use std::{
    ffi::CStr,
    fs::{self, File},
    io,
    os::{
        fd::{AsFd, AsRawFd as _, FromRawFd as _, OwnedFd},
        unix::fs::symlink,
    },
};

use anyhow::{Context as _, Result};
use rustix::{
    fs::{CWD, Mode, OFlags, ResolveFlags, copy_file_range, openat, openat2, sendfile},
    mm::{MapFlags, ProtFlags, mmap},
    pipe::{SpliceFlags, pipe, splice},
};

use super::{FOLDER, TOKEN, Way, announce, checked, if_possible, is_token, read};

/// The one that a kernel answers with a signal if it does not know it.
pub(crate) const INT80: &str = "int80";

pub(crate) const WAYS: &[Way] = &[
    #[cfg(target_arch = "x86_64")]
    ("open", by_open),
    ("openat", || by_path(TOKEN)),
    ("openat2", || by_openat2(TOKEN, ResolveFlags::empty())),
    ("openat2_in_root", || by_openat2("/token", ResolveFlags::IN_ROOT)),
    ("openat2_beneath", || by_openat2("token", ResolveFlags::BENEATH)),
    #[cfg(target_arch = "x86_64")]
    (INT80, by_int80),
    ("handle", by_handle),
    ("relative", relative),
    ("dirfd", || below(OFlags::DIRECTORY, "token")),
    ("opath_dirfd", || below(OFlags::PATH, "token")),
    ("data_link", || below(OFlags::DIRECTORY, "..data/token")),
    ("timestamped", timestamped),
    ("slashes", || {
        by_path("/var//run/./secrets/../secrets///kubernetes.io/serviceaccount/./token")
    }),
    ("symlink_file", || by_symlink("/tmp/innocent", TOKEN, "/tmp/innocent")),
    ("symlink_folder", || by_symlink("/tmp/harmless", FOLDER, "/tmp/harmless/token")),
    ("self_root", || by_path(&format!("/proc/self/root{TOKEN}"))),
    ("self_cwd", self_cwd),
    ("self_fd", reopened),
    ("pid_root", || by_path(&format!("/proc/1/root{TOKEN}"))),
    ("ca_crt", ca_crt),
    ("projected_name", || below(OFlags::DIRECTORY, "key")),
    ("projected_path", || below(OFlags::DIRECTORY, "a/b/tok")),
    ("mmap", mapped),
    ("splice", spliced),
    ("sendfile", sent),
    ("copy_range", copied),
];

const READ: OFlags = OFlags::RDONLY;

/// Announces, opens and reads.
pub(crate) fn by_path(path: &str) -> Result<()> {
    read(open(path)?)
}

fn open(path: &str) -> Result<OwnedFd> {
    announce()?;
    openat(CWD, path, READ, Mode::empty()).with_context(|| path.to_owned())
}

#[cfg(target_arch = "x86_64")]
fn by_open() -> Result<()> {
    let path = std::ffi::CString::new(TOKEN)?;
    announce()?;
    // SAFETY: the path ends with a NUL and lives until the call returns.
    let returned = unsafe { libc::syscall(libc::SYS_open, path.as_ptr(), libc::O_RDONLY) };
    // SAFETY: new, and nobody else's.
    read(unsafe { OwnedFd::from_raw_fd(checked(returned)?) })
}

fn by_openat2(path: &str, resolve: ResolveFlags) -> Result<()> {
    let folder = folder(OFlags::DIRECTORY)?;
    announce()?;
    let opened = openat2(&folder, path, READ, Mode::empty(), resolve);
    read(if_possible("openat2", opened.map_err(io::Error::from))?)
}

/// A 32-bit call of a 64-bit program. Its pointers have 32 bits, so the path must lie low.
#[cfg(target_arch = "x86_64")]
fn by_int80() -> Result<()> {
    let path = [TOKEN.as_bytes(), b"\0"].concat();
    let low = MapFlags::PRIVATE | MapFlags::from_bits_retain(libc::MAP_32BIT.cast_unsigned());
    let access = ProtFlags::READ | ProtFlags::WRITE;
    // SAFETY: a new mapping, which overlays none.
    let page =
        unsafe { rustix::mm::mmap_anonymous(std::ptr::null_mut(), path.len(), access, low) }?;
    // SAFETY: the page is writable and longer than the path.
    unsafe { std::ptr::copy_nonoverlapping(path.as_ptr(), page.cast(), path.len()) };
    announce()?;
    let returned: u64;
    // SAFETY: `open(path, O_RDONLY)` reads the path alone; `rbx`, which inline assembly may not name,
    // is put back, and what the kernel may clear is declared.
    unsafe {
        std::arch::asm!(
            "xchg rbx, {path}", "int 0x80", "xchg rbx, {path}",
            path = inout(reg) page => _,
            inlateout("rax") 5_u64 => returned,
            inlateout("rcx") 0_u64 => _,
            inlateout("rdx") 0_u64 => _,
            lateout("r8") _, lateout("r9") _, lateout("r10") _, lateout("r11") _,
        );
    }
    #[expect(clippy::cast_possible_truncation, reason = "a 32-bit call returns 32 bits")]
    let returned = (returned as u32).cast_signed();
    if returned < 0 {
        return Err(io::Error::from_raw_os_error(-returned)).context("open");
    }
    // SAFETY: new, and nobody else's.
    read(unsafe { OwnedFd::from_raw_fd(returned) })
}

/// `struct file_handle` with room for the longest (`MAX_HANDLE_SZ`).
#[repr(C)]
struct Handle {
    bytes: u32,
    kind: i32,
    handle: [u8; 128],
}

fn by_handle() -> Result<()> {
    let volume = folder(OFlags::DIRECTORY)?;
    let mut handle = Handle { bytes: 128, kind: 0, handle: [0; 128] };
    let mut mount = 0_i32;
    let follow = libc::AT_SYMLINK_FOLLOW;
    let token = c"token".as_ptr();
    let (handle, mount) = (&raw mut handle, &raw mut mount);
    let (call, volume) = (libc::SYS_name_to_handle_at, volume.as_raw_fd());
    // SAFETY: all pointers are to what lives on, and the handle says how long it is.
    checked(unsafe { libc::syscall(call, volume, token, handle, mount, follow) })
        .context("name_to_handle_at")?;
    announce()?;
    let call = libc::SYS_open_by_handle_at;
    // SAFETY: the handle is one that the kernel wrote.
    let opened = checked(unsafe { libc::syscall(call, volume, handle, libc::O_RDONLY) })
        .context("open_by_handle_at")?;
    // SAFETY: new, and nobody else's.
    read(unsafe { OwnedFd::from_raw_fd(opened) })
}

fn relative() -> Result<()> {
    std::env::set_current_dir(FOLDER)?;
    by_path("token")
}

fn below(flags: OFlags, name: &str) -> Result<()> {
    let folder = folder(flags)?;
    announce()?;
    read(openat(&folder, name, READ, Mode::empty())?)
}

fn timestamped() -> Result<()> {
    let name = fs::read_link(format!("{FOLDER}/..data"))?;
    by_path(&format!("{FOLDER}/{}/token", name.display()))
}

fn by_symlink(link: &str, to: &str, path: &str) -> Result<()> {
    symlink(to, link)?;
    let read = by_path(path);
    fs::remove_file(link)?;
    read
}

fn self_cwd() -> Result<()> {
    std::env::set_current_dir(FOLDER)?;
    by_path("/proc/self/cwd/token")
}

fn reopened() -> Result<()> {
    let path_only = openat(CWD, TOKEN, OFlags::PATH, Mode::empty())?;
    by_path(&format!("/proc/self/fd/{}", path_only.as_raw_fd()))
}

fn ca_crt() -> Result<()> {
    announce()?;
    fs::read(format!("{FOLDER}/ca.crt")).map(drop).context("ca.crt")
}

fn mapped() -> Result<()> {
    let token = open(TOKEN)?;
    // SAFETY: a new mapping, which overlays none.
    let map =
        unsafe { mmap(std::ptr::null_mut(), 4096, ProtFlags::READ, MapFlags::PRIVATE, &token, 0) }?;
    drop(token);
    // SAFETY: the page is mapped until the process ends, and what is behind the file's end is zero.
    let text = unsafe { CStr::from_ptr(map.cast()) };
    is_token(text.to_bytes())
}

fn spliced() -> Result<()> {
    let (from, to) = pipe()?;
    splice(open(TOKEN)?, None, to, None, 64, SpliceFlags::empty())?;
    read(from)
}

fn sent() -> Result<()> {
    let (from, to) = pipe()?;
    sendfile(to, open(TOKEN)?, None, 64)?;
    read(from)
}

fn copied() -> Result<()> {
    let path = "/dev/copy";
    let copy = File::create(path)?;
    // Within one file system alone: where that is asked for, the kernel says so.
    let result = match copy_file_range(open(TOKEN)?, None, &copy, None, 64) {
        Err(rustix::io::Errno::XDEV) => Ok(()),
        Ok(_) => read(File::open(path)?),
        Err(error) => Err(error).context("copy_file_range"),
    };
    fs::remove_file(path)?;
    result
}

fn folder(flags: OFlags) -> Result<impl AsFd + std::os::fd::AsRawFd> {
    openat(CWD, FOLDER, flags, Mode::empty()).context(FOLDER)
}
