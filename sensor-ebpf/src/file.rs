//! The only reader of what was opened: the file's identity and names, its mount point, and the
//! names of any other dentry.

use tokentrail_ebpf::{Missing, OpenRecord};

use crate::{
    maps::{known, off},
    read::{Probed, note_unless},
};

/// What was opened; `false` if that cannot be told.
#[inline(always)]
pub(crate) fn identity(record: &mut OpenRecord, file: Probed) -> bool {
    let inode = file.next(off!(file_inode));
    let dentry = file.next(off!(file_dentry));
    let superblock = inode.next(off!(inode_sb));
    record.file_ino = inode.load(off!(inode_ino));
    record.s_dev = superblock.load(off!(sb_dev));
    record.open_flags = file.load(off!(file_flags));
    dentry.string(off!(dentry_name_ptr), &mut record.file_name);
    dentry.next(off!(dentry_parent)).string(off!(dentry_name_ptr), &mut record.parent_name);
    !superblock.is_null() && record.file_name[0] != 0
}

/// Where its file system is mounted.
#[inline(always)]
pub(crate) fn mount(record: &mut OpenRecord, file: Probed) {
    let mount = file.next(off!(file_mnt)).container(off!(mount_vfsmount));
    names(mount.next(off!(mount_mountpoint)), &mut record.mount_names);
    let present =
        known!(file_mnt, mount_vfsmount, mount_mountpoint) && record.mount_names[0][0] != 0;
    note_unless(present, &mut record.missing, Missing::MOUNT);
}

/// Names of a dentry and of the two above it, empty beyond the root, whose parent is itself.
#[inline(always)]
pub(crate) fn names<const N: usize>(dentry: Probed, into: &mut [[u8; N]; 3]) {
    let mut at = dentry;
    for name in into {
        at.string(off!(dentry_name_ptr), name);
        let parent = at.next(off!(dentry_parent));
        at = if parent == at { Probed::at(0) } else { parent };
    }
}
