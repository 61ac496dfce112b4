//! Ways to a file that is mounted elsewhere. What they mount goes with their mount namespace.

use std::{
    ffi::CString,
    fs::{self, File},
};

use anyhow::{Context as _, Result};
use rustix::{
    fs::{CWD, Mode, OFlags, openat},
    mount::{
        MountFlags, MountPropagationFlags, MoveMountFlags, OpenTreeFlags, mount, mount_bind,
        mount_change, mount_move, mount_remount, move_mount, open_tree,
    },
    process::chroot,
    thread::{UnshareFlags, unshare_unsafe},
};

use super::{FOLDER, TOKEN, Way, announce, calls::by_path, if_possible, read};

pub(crate) const WAYS: &[Way] = &[
    ("bind_file", bound_file),
    ("bind_folder", || bound_folder().and_then(|()| by_path("/mnt/here/token"))),
    ("moved_mount", moved),
    ("hard_link", linked),
    ("open_tree", cloned),
    ("move_mount", cloned_and_mounted),
    ("chroot", in_chroot),
    ("overlay", overlaid),
    ("userns", in_user_namespace),
];

/// A mount namespace of this process's own, with two folders on a file system of its own.
fn isolate() -> Result<()> {
    // SAFETY: neither descriptors nor memory are unshared.
    unsafe { unshare_unsafe(UnshareFlags::NEWNS) }.context("unshare")?;
    mount_change("/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC)?;
    fs::create_dir_all("/mnt")?;
    mount("none", "/mnt", "ramfs", MountFlags::empty(), None).context("a ramfs")?;
    for folder in ["/mnt/here", "/mnt/there"] {
        fs::create_dir(folder)?;
    }
    Ok(())
}

fn bound_folder() -> Result<()> {
    isolate()?;
    mount_bind(FOLDER, "/mnt/here").context("a bind mount")
}

fn bound_file() -> Result<()> {
    isolate()?;
    File::create("/mnt/innocent")?;
    mount_bind(TOKEN, "/mnt/innocent").context("a bind mount")?;
    by_path("/mnt/innocent")
}

fn moved() -> Result<()> {
    bound_folder()?;
    mount_move("/mnt/here", "/mnt/there").context("a moved mount")?;
    by_path("/mnt/there/token")
}

fn linked() -> Result<()> {
    bound_folder()?;
    mount_remount("/mnt/here", MountFlags::BIND, c"").context("a mount made writable")?;
    let token = fs::canonicalize("/mnt/here/token")?;
    fs::hard_link(&token, "/mnt/here/token.bak")?;
    let read = by_path("/mnt/here/token.bak");
    fs::remove_file("/mnt/here/token.bak")?;
    read
}

fn cloned() -> Result<()> {
    isolate()?;
    let tree = tree()?;
    announce()?;
    read(openat(&tree, "token", OFlags::RDONLY, Mode::empty())?)
}

fn cloned_and_mounted() -> Result<()> {
    isolate()?;
    let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH;
    move_mount(tree()?, "", CWD, "/mnt/there", flags).context("move_mount")?;
    by_path("/mnt/there/token")
}

fn tree() -> Result<std::os::fd::OwnedFd> {
    let tree = open_tree(CWD, FOLDER, OpenTreeFlags::OPEN_TREE_CLONE);
    if_possible("open_tree", tree.map_err(Into::into))
}

fn in_chroot() -> Result<()> {
    // Before the listener is out of reach.
    announce()?;
    chroot(FOLDER)?;
    read(openat(CWD, "/token", OFlags::RDONLY, Mode::empty())?)
}

fn overlaid() -> Result<()> {
    isolate()?;
    let options = CString::new(format!("lowerdir={FOLDER}:/mnt/there"))?;
    let overlay = mount("overlay", "/mnt/here", "overlay", MountFlags::RDONLY, options.as_c_str());
    if_possible("an overlay", overlay.map_err(Into::into))?;
    by_path("/mnt/here/token")
}

fn in_user_namespace() -> Result<()> {
    // SAFETY: neither descriptors nor memory are unshared.
    unsafe { unshare_unsafe(UnshareFlags::NEWUSER | UnshareFlags::NEWNS) }.context("unshare")?;
    by_path(TOKEN)
}
