//! The only writer of the ring: reserves a record, has every fact filled in, submits it, or
//! counts why it could not.

use aya_ebpf::helpers::generated::bpf_ktime_get_boot_ns;
use tokentrail_ebpf::{ABI_VERSION, Counter, MatchedBy, Missing, OpenRecord, Route, TEXT_LEN};

use crate::{
    maps::{self, off},
    read::{Probed, Read},
    task,
};

/// Emits one open of `file`. `path` writes the file's `d_path`, or a leading NUL.
#[inline(always)]
pub(crate) fn open(
    route: Route,
    file: Probed,
    matched: MatchedBy,
    path: impl FnOnce(&mut [u8; TEXT_LEN]),
) {
    let Some(mut entry) = maps::EVENTS.reserve::<OpenRecord>(0) else {
        maps::count(Counter::LostRingFull);
        return;
    };
    // SAFETY: ring memory always holds some bytes, and any bytes make an `OpenRecord`. Every
    // field is written below; text fields up to their NUL.
    let record = unsafe { entry.assume_init_mut() };
    record.abi_version = ABI_VERSION;
    record.route = route as u32;
    record.matched_by = matched as u32;
    // SAFETY: helper without arguments.
    record.ktime_ns = unsafe { bpf_ktime_get_boot_ns() };
    record.path[0] = 0;
    path(&mut record.path);
    let mut missing = 0;
    if mount(record, file).is_none() {
        missing |= Missing::MOUNT;
    }
    missing |= task::describe(record);
    record.missing = missing;
    if identity(record, file).is_none() {
        // The file went away between the filter and here: another thread closed it.
        maps::count(Counter::LostUnreadable);
        entry.discard(0);
        return;
    }
    entry.submit(0);
}

/// What was opened.
#[inline(always)]
fn identity(record: &mut OpenRecord, file: Probed) -> Option<()> {
    let inode = file.follow(off!(file_inode))?;
    let dentry = file.follow(off!(file_dentry))?;
    record.file_ino = inode.get(off!(inode_ino))?;
    record.s_dev = inode.follow(off!(inode_sb))?.get(off!(sb_dev))?;
    record.open_flags = file.get(off!(file_flags))?;
    dentry.string(off!(dentry_name_ptr), &mut record.file_name)?;
    let parent = dentry.follow(off!(dentry_parent))?;
    parent.string(off!(dentry_name_ptr), &mut record.parent_name)
}

/// Where its file system is mounted.
#[inline(always)]
fn mount(record: &mut OpenRecord, file: Probed) -> Option<()> {
    for name in &mut record.mount_names {
        name[0] = 0;
    }
    let mount = file.follow(off!(file_mnt))?.container(off!(mount_vfsmount))?;
    names(mount.follow(off!(mount_mountpoint))?, &mut record.mount_names)
}

/// Names of a dentry and of the two above it, empty beyond the root.
#[inline(always)]
pub(crate) fn names<const N: usize>(dentry: Probed, into: &mut [[u8; N]; 3]) -> Option<()> {
    let mut at = dentry;
    for name in into {
        at.string(off!(dentry_name_ptr), name)?;
        let parent = at.follow(off!(dentry_parent))?;
        if parent == at {
            break;
        }
        at = parent;
    }
    Some(())
}
