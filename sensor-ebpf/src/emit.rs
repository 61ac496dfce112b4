//! The only writer of the ring: reserves a record, has every fact filled in, submits it, or
//! counts why it could not.

use aya_ebpf::helpers::generated::bpf_ktime_get_boot_ns;
use tokentrail_ebpf::{ABI_VERSION, Counter, MatchedBy, OpenRecord, Route, TEXT_LEN};

use crate::{file as opened, flood, maps, read::Structure, task};

/// Emits one open of `file`. `path` writes the file's `d_path`, or a leading NUL.
#[inline(always)]
pub(crate) fn open<S: Structure>(
    route: Route,
    file: S,
    matched: MatchedBy,
    path: impl FnOnce(&mut [u8; TEXT_LEN]),
) {
    // SAFETY: helper without arguments.
    let now = unsafe { bpf_ktime_get_boot_ns() };
    let Some(admitted) = flood::admit(file, now) else { return };
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
    record.ktime_ns = admitted.now;
    record.repeats = admitted.repeats;
    record.path[0] = 0;
    path(&mut record.path);
    record.missing = 0;
    let described = task::describe::<S>(record);
    opened::mount(record, file);
    if !described || !opened::identity(record, file) {
        // The file went away between the filter and here: another thread closed it.
        maps::count(Counter::LostUnreadable);
        entry.discard(0);
        return;
    }
    flood::told(&admitted);
    entry.submit(0);
}
