//! Reading the ring: bytes become records, records are lent to the caller one by one and released
//! only afterwards, and what was lost on the way is counted.

use std::io;

use aya::{
    Ebpf,
    maps::{MapData, MapError, PerCpuArray, RingBuf},
};
use tokentrail_ebpf::{Counter, OpenRecord, names};
use tokio::io::{Interest, unix::AsyncFd};

/// Records that one call may hand out: the ring's own capacity, so that an opener in a loop cannot
/// keep the reader from its other work.
const BATCH: usize = 512;

/// The consumer's end of the ring and of the counters beside it.
pub(super) struct Reader {
    ring: AsyncFd<RingBuf<MapData>>,
    counters: PerCpuArray<MapData, u64>,
}

/// What was read of one record.
pub(super) type Decoded = Result<OpenRecord, tokentrail_ebpf::DecodeError>;

impl Reader {
    /// Takes the maps out of the loaded object. Needs a tokio runtime with I/O.
    pub(super) fn new(ebpf: &mut Ebpf) -> Result<Self, MapError> {
        let ring = RingBuf::try_from(take(ebpf, names::EVENTS)?)?;
        let counters = PerCpuArray::try_from(take(ebpf, names::COUNTERS)?)?;
        // SAFETY: the ring owns its descriptor and is moved in; it is neither closed nor replaced
        // before the registration is dropped with it.
        let ring = unsafe { AsyncFd::register_with_interest(ring, Interest::READABLE) }
            .map_err(|error| MapError::IoError(error.into()))?;
        Ok(Self { ring, counters })
    }

    /// Waits until there may be records. Cancelling loses nothing.
    pub(super) async fn ready(&self) -> io::Result<()> {
        // Not cleared here: only a reader that found the ring empty may forget the wake-up.
        self.ring.readable().await.map(drop)
    }

    /// Lends out what the ring holds, at most [`BATCH`] records. Each is released when `each`
    /// has returned, so a record that was not handled is still there after a crash.
    pub(super) fn read(&mut self, mut each: impl FnMut(Decoded)) -> usize {
        let mut count = 0;
        let mut pump = |ring: &mut RingBuf<MapData>| {
            while count < BATCH {
                let Some(item) = ring.next() else {
                    // Forgets the wake-up that `try_io` noted before the ring was found empty, so
                    // that one in between is kept.
                    return Err(io::ErrorKind::WouldBlock.into());
                };
                each(OpenRecord::try_from(&*item));
                count += 1;
            }
            Ok(())
        };
        let mut ran = false;
        let result = self.ring.try_io_mut(Interest::READABLE, |ring| {
            ran = true;
            pump(ring)
        });
        if !ran {
            // No wake-up so far; a caller's tick looks nonetheless.
            let _: io::Result<()> = pump(self.ring.get_mut());
        }
        drop(result);
        count
    }

    /// A counter's sum over all CPUs.
    pub(super) fn counter(&self, counter: Counter) -> Result<u64, MapError> {
        Ok(self.counters.get(&(counter as u32), 0)?.iter().sum())
    }
}

/// Takes a map of the object by name.
pub(super) fn take(ebpf: &mut Ebpf, name: &str) -> Result<aya::maps::Map, MapError> {
    ebpf.take_map(name).ok_or_else(|| MapError::InvalidName { name: name.to_owned() })
}
