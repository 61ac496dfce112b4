//! Reading the ring: bytes become records, records are lent to the caller one by one and released
//! only afterwards, and what was lost on the way is counted.

use std::io;

use aya::{
    Ebpf,
    maps::{Map, MapData, MapError, PerCpuArray, PerCpuValues, RingBuf},
};
use tokentrail_ebpf::{Counter, OpenRecord, names};
use tokio::io::{Interest, unix::AsyncFd};

/// Records that one call may hand out: the ring's own capacity, so that an opener in a loop cannot
/// keep the reader from its other work.
const BATCH: usize = 512;

/// The consumer's end of the ring and of the counters beside it.
pub(super) struct Reader {
    ring: AsyncFd<RingBuf<MapData>>,
    losses: Losses,
}

/// What was read of one record.
pub(super) type Decoded = Result<OpenRecord, tokentrail_ebpf::DecodeError>;

impl Reader {
    /// Takes the maps out of the loaded object. Needs a tokio runtime with I/O.
    pub(super) fn new(ebpf: &mut Ebpf) -> Result<Self, MapError> {
        let ring = RingBuf::try_from(take(ebpf, names::EVENTS)?)?;
        let losses = Losses::of(take(ebpf, names::COUNTERS)?)?;
        // SAFETY: the ring owns its descriptor and is moved in; it is neither closed nor replaced
        // before the registration is dropped with it.
        let ring = unsafe { AsyncFd::register_with_interest(ring, Interest::READABLE) }
            .map_err(|error| MapError::IoError(error.into()))?;
        Ok(Self { ring, losses })
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
            count = read(ring, &mut each);
            // Forgets the wake-up that `try_io` noted before the ring was found empty, so that one
            // in between is kept.
            if count < BATCH { Err(io::ErrorKind::WouldBlock.into()) } else { Ok(()) }
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

    /// What was lost since the last call.
    pub(super) fn losses(&mut self) -> &mut Losses {
        &mut self.losses
    }

    /// Its ring and losses, for who reads them to their end.
    pub(super) fn into_parts(self) -> (RingBuf<MapData>, Losses) {
        (self.ring.into_inner(), self.losses)
    }
}

/// Lends out what a ring holds, at most [`BATCH`] records, and returns how many there were.
pub(super) fn read(ring: &mut RingBuf<MapData>, mut each: impl FnMut(Decoded)) -> usize {
    let mut count = 0;
    while count < BATCH
        && let Some(item) = ring.next()
    {
        each(OpenRecord::try_from(&*item));
        count += 1;
    }
    count
}

/// The kernel side's counters, of which each is told once: how far they were told is kept beside them,
/// and outlives the agent as they do.
pub(super) struct Losses {
    counters: PerCpuArray<MapData, u64>,
    told: [u64; Counter::COUNT as usize],
}

impl Losses {
    pub(super) fn of(map: Map) -> Result<Self, MapError> {
        let counters: PerCpuArray<MapData, u64> = PerCpuArray::try_from(map)?;
        let mut told = [0; Counter::COUNT as usize];
        for (slot, told) in (Counter::COUNT..).zip(&mut told) {
            *told = counters.get(&slot, 0)?.iter().sum();
        }
        Ok(Self { counters, told })
    }

    /// How far a counter has come since this was last asked.
    pub(super) fn take(&mut self, counter: Counter) -> Result<u64, MapError> {
        let values = self.counters.get(&(counter as u32), 0)?;
        let total: u64 = values.iter().sum();
        let Some(told) = self.told.get_mut(counter as usize) else { return Ok(0) };
        let new = total.saturating_sub(*told);
        if new > 0 {
            let mut values = vec![0; values.len()];
            if let Some(first) = values.first_mut() {
                *first = total;
            }
            let values = PerCpuValues::try_from(values).map_err(MapError::IoError)?;
            self.counters.set(counter.told(), values, 0)?;
            *told = total;
        }
        Ok(new)
    }
}

/// Takes a map of the object by name.
pub(super) fn take(ebpf: &mut Ebpf, name: &str) -> Result<Map, MapError> {
    ebpf.take_map(name).ok_or_else(|| MapError::InvalidName { name: name.to_owned() })
}
