//! The only writer of the ring: reserves a record, has every fact filled in, submits it, or
//! counts why it could not.

use aya_ebpf::helpers::generated::bpf_ktime_get_boot_ns;
use tokentrail_ebpf::{ABI_VERSION, Counter, MatchedBy, Missing, OpenRecord, Route, TEXT_LEN};

use crate::{
    maps::{self, known, off},
    read::Probed,
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
    record.missing = task::describe(record) | mount(record, file);
    if !identity(record, file) {
        // The file went away between the filter and here: another thread closed it.
        maps::count(Counter::LostUnreadable);
        entry.discard(0);
        return;
    }
    entry.submit(0);
}

/// What was opened; `false` if that cannot be told.
#[inline(always)]
fn identity(record: &mut OpenRecord, file: Probed) -> bool {
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
fn mount(record: &mut OpenRecord, file: Probed) -> u32 {
    let mount = file.next(off!(file_mnt)).container(off!(mount_vfsmount));
    names(mount.next(off!(mount_mountpoint)), &mut record.mount_names);
    missing_unless(
        Missing::MOUNT,
        known!(file_mnt, mount_vfsmount, mount_mountpoint) && record.mount_names[0][0] != 0,
    )
}

/// `bit`, unless `present`.
#[inline(always)]
pub(crate) fn missing_unless(bit: u32, present: bool) -> u32 {
    if present { 0 } else { bit }
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
