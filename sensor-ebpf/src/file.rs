//! The only reader of what was opened: the file's identity and names, its mount point, and the
//! names of any other dentry.

use tokentrail_ebpf::{Missing, OpenRecord};

use crate::{
    maps::{known, off},
    read::{Inline, Structure, note_unless},
};

/// What was opened; `false` if that cannot be told.
#[inline(always)]
pub(crate) fn identity<S: Structure>(record: &mut OpenRecord, file: S) -> bool {
    let inode = file.next(off!(file_inode));
    let dentry = file.next(off!(file_dentry));
    let superblock = inode.next(off!(inode_sb));
    record.file_ino = inode.load(off!(inode_ino));
    record.s_dev = superblock.load(off!(sb_dev));
    record.open_flags = file.load(off!(file_flags));
    name(dentry, &mut record.file_name);
    name(dentry.next(off!(dentry_parent)), &mut record.parent_name);
    let named = record.file_name[0] != 0;
    let both = named & (record.parent_name[0] != 0);
    note_unless(S::ANY_ADDRESS || both, &mut record.missing, Missing::FILE_NAME);
    !superblock.is_null() && (!S::ANY_ADDRESS || named)
}

/// Where its file system is mounted.
#[inline(always)]
pub(crate) fn mount<S: Structure>(record: &mut OpenRecord, file: S) {
    let mount = file.next(off!(file_mnt)).container(off!(mount_vfsmount));
    names(mount.next(off!(mount_mountpoint)), &mut record.mount_names);
    let present =
        known!(file_mnt, mount_vfsmount, mount_mountpoint) && record.mount_names[0][0] != 0;
    note_unless(present, &mut record.missing, Missing::MOUNT);
}

/// Names of a dentry and of the two above it, empty beyond the root, whose parent is itself.
#[inline(always)]
pub(crate) fn names<S: Structure, const N: usize>(dentry: S, into: &mut [[u8; N]; 3]) {
    let mut at = dentry;
    for text in into {
        name(at, text);
        let parent = at.next(off!(dentry_parent));
        at = if parent.is(at) { S::null() } else { parent };
    }
}

#[inline(always)]
fn name<S: Structure, const N: usize>(dentry: S, into: &mut [u8; N]) {
    let inline = Inline {
        start: off!(dentry_inline_name),
        capacity: off!(dentry_inline_len),
        length: off!(dentry_name_len),
    };
    dentry.string(off!(dentry_name_ptr), inline, into);
}
