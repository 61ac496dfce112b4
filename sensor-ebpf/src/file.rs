//! The only reader of what was opened: the file's identity and names, its mount point, and the
//! names of any other dentry.

use tokentrail_ebpf::OpenRecord;

use crate::{
    maps::off,
    read::{Probed, Read},
};

/// What was opened.
#[inline(always)]
pub(crate) fn identity(record: &mut OpenRecord, file: Probed) -> Option<()> {
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
pub(crate) fn mount(record: &mut OpenRecord, file: Probed) -> Option<()> {
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
