//! What the kernel side could not read, from where else it can be had: the file's path, the opener's
//! `/proc`, the tree of cgroups. Kernels that keep their memory from programs leave names and
//! arguments to this.
//!
//! What was found stands in the record as if the kernel side had read it, and its bit of [`Missing`] is
//! taken back; that it came late is for the caller to tell. A process that is gone, or whose id
//! is another's by now, completes nothing. Called by [`Attributor`](super::Attributor).

use std::{ffi::OsStr, os::unix::ffi::OsStrExt as _, path::Path};

use tokentrail_ebpf::{FdFacts, Missing, OpenRecord, TEXT_LEN, until_nul};

use super::{
    cgroup,
    processes::{ProcessTime, Processes},
    volumes::kernel_dev,
};

/// What can be completed.
const COMPLETABLE: u32 = Missing::CGROUP
    | Missing::EXECUTABLE
    | Missing::ARGV
    | Missing::MOUNT
    | Missing::DESCRIPTORS
    | Missing::FILE_NAME;

/// Stands for the name of a cgroup that is gone.
const GONE: &str = "(gone)";

/// The record with all that could be found; `None` if it lacks nothing of that.
pub(super) fn complete(record: &OpenRecord, processes: &mut Processes) -> Option<OpenRecord> {
    if record.missing & COMPLETABLE == 0 {
        return None;
    }
    let mut whole = *record;
    let mut find = |bit: u32, step: &mut dyn FnMut(&mut OpenRecord) -> bool| {
        if record.missing & bit != 0 && step(&mut whole) {
            whole.missing &= !bit;
        }
    };
    find(Missing::FILE_NAME, &mut file_names);
    find(Missing::MOUNT, &mut mount_names);
    find(Missing::CGROUP, &mut |record| cgroup_names(record, processes));
    find(Missing::DESCRIPTORS, &mut |record| descriptors(record, processes));
    find(Missing::ARGV, &mut |record| arguments(record, processes));
    find(Missing::EXECUTABLE, &mut |record| executable_names(record, processes));
    Some(whole)
}

fn opener(record: &OpenRecord) -> ProcessTime {
    ProcessTime::new(record.tgid, record.start_boottime_ns)
}

/// The last two names of the path.
fn file_names(record: &mut OpenRecord) -> bool {
    let path = record.path;
    let mut names = names_upwards(until_nul(&path));
    let (Some(file), Some(parent)) = (names.next(), names.next()) else { return false };
    put(&mut record.file_name, file);
    put(&mut record.parent_name, parent);
    true
}

/// The names above the directory that the kubelet publishes a volume's content in.
fn mount_names(record: &mut OpenRecord) -> bool {
    let path = record.path;
    let mut names = names_upwards(until_nul(&path)).skip_while(|name| !name.starts_with(b".."));
    if names.next().is_none() {
        return false;
    }
    put_all(&mut record.mount_names, names);
    true
}

/// The group that has the id that the kernel side read. Of one that is gone already, the nearest above it
/// that is in a container or is one.
fn cgroup_names(record: &mut OpenRecord, processes: &mut Processes) -> bool {
    let above = record.cgroup_names;
    let ids = above.iter().map(|name| name.first_chunk().map_or(0, |id| u64::from_le_bytes(*id)));
    let ids = [record.cgroup_id].into_iter().chain(ids.skip(1));
    for (gone, id) in ids.enumerate() {
        let Some(path) = processes.cgroup_of_id(id) else { continue };
        let names = cgroup::components(&path);
        let located = cgroup::locate(&names, None);
        if gone > 0 && located.is_none_or(|it| it.container.container_id.is_none()) {
            return false;
        }
        let lost = std::iter::repeat_n(GONE, gone);
        put_all(
            &mut record.cgroup_names,
            lost.chain(names.iter().rev().copied()).map(str::as_bytes),
        );
        return true;
    }
    false
}

fn descriptors(record: &mut OpenRecord, processes: &Processes) -> bool {
    let mut fds = record.fds;
    for (number, fd) in (0..).zip(&mut fds) {
        let Ok(found) = processes.descriptor(record.tgid, number) else { return false };
        // A closed one is a fact, too.
        *fd = found.map_or(FdFacts { rdev: 0, mode: 0 }, |(device, mode)| FdFacts {
            rdev: kernel_dev(rustix::fs::major(device), rustix::fs::minor(device)),
            mode,
        });
    }
    if !processes.lives(opener(record)) {
        return false;
    }
    record.fds = fds;
    true
}

fn arguments(record: &mut OpenRecord, processes: &Processes) -> bool {
    let Some(words) = processes.command(opener(record)) else { return false };
    let mut command = words.join(&0);
    command.push(0);
    let length = command.len().min(TEXT_LEN);
    record.argv.iter_mut().zip(&command).for_each(|(to, from)| *to = *from);
    record.argv_len = u32::try_from(length).unwrap_or_default();
    true
}

/// Of an executable that is known, but for its names.
fn executable_names(record: &mut OpenRecord, processes: &Processes) -> bool {
    if record.exe_ino == 0 {
        return false;
    }
    let Some(path) = processes.executable(opener(record)) else { return false };
    let names = path.iter().rev().map(OsStr::as_bytes);
    put_all(&mut record.exe_names, names);
    true
}

/// Names of a path, last first, without the root.
fn names_upwards(path: &[u8]) -> impl Iterator<Item = &[u8]> {
    let names = Path::new(OsStr::from_bytes(path)).iter().rev().map(OsStr::as_bytes);
    names.take_while(|name| *name != b"/")
}

/// Leaves what there is no name for empty.
fn put_all<'a, const N: usize, const M: usize>(
    into: &mut [[u8; N]; M],
    names: impl Iterator<Item = &'a [u8]>,
) {
    *into = [[0; N]; M];
    into.iter_mut().zip(names).for_each(|(to, name)| put(to, name));
}

/// A name as the kernel side writes it: cut, and with a NUL at its end.
fn put<const N: usize>(into: &mut [u8; N], name: &[u8]) {
    *into = [0; N];
    into.iter_mut().take(N - 1).zip(name).for_each(|(to, from)| *to = *from);
}

#[cfg(test)]
mod tests;
