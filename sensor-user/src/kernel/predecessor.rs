//! Programs that were attached before: by an agent that is gone, whose pins kept them, or by this one,
//! whose self-test no longer hears of them. Reads what they saw and nobody has read, and ends them.
//!
//! `kernel` reads them, keeps its own, ends them and reads them again, so that no open is between.

use aya::maps::{Map, MapData, RingBuf};
use serde::Serialize;
use tokentrail_ebpf::{ABI_VERSION, OpenRecord, names};
use tracing::debug;

use super::{
    LOSSES, Loss,
    attach::{Link, reason},
    pins::{PinError, Set},
    ring::{self, Losses, Reader},
};
use crate::time::Micros;

/// Batches read of a ring that fills as fast as it is read: all that was there, and what came since.
const BATCHES: usize = 4;

/// A time in which opens were not seen, or may not have been.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Gap {
    /// From when, as the wall clock showed it.
    pub from: Micros,
    /// Until when.
    pub to: Micros,
    /// Why.
    pub why: String,
}

/// Programs that were attached before.
pub(super) struct Predecessor {
    ring: Option<RingBuf<MapData>>,
    /// `None` of another version.
    losses: Option<Losses>,
    _links: Vec<Link>,
    set: Option<Set>,
    /// Until when an agent read them.
    read_until: Micros,
    /// Why opens may be missing since.
    blind: Option<String>,
    /// Records of another version.
    unreadable: u64,
}

impl Predecessor {
    /// Those of an agent that is gone.
    pub(super) fn pinned(set: Set) -> Self {
        let map = |name| {
            let data = MapData::from_pin(set.path_of(name))?;
            Map::from_map_data(data)
        };
        let ring = map(names::EVENTS).and_then(RingBuf::try_from);
        let losses = map(names::COUNTERS).and_then(Losses::of);
        let own = set.version == ABI_VERSION;
        let blind = match &ring {
            Err(error) => Some(format!("what was seen cannot be read: {}", reason("map", error))),
            Ok(_) if !set.sees_opens() => Some(
                "no agent ran, and this kernel does not keep the attachments of its route".into(),
            ),
            Ok(_) => None,
        };
        let read_until = set.read_until().map_or(Micros(0), Micros::from);
        Self {
            ring: ring.ok(),
            losses: losses.ok().filter(|_| own),
            _links: Vec::new(),
            set: Some(set),
            read_until,
            blind,
            unreadable: 0,
        }
    }

    /// This agent's own, which no longer see.
    pub(super) fn blind(
        reader: Reader,
        links: Vec<Link>,
        set: Option<Set>,
        read_until: Micros,
        why: String,
    ) -> Self {
        let (ring, losses) = reader.into_parts();
        Self {
            ring: Some(ring),
            losses: Some(losses),
            _links: links,
            set,
            read_until,
            blind: Some(why),
            unreadable: 0,
        }
    }

    /// Lends out what was not read.
    pub(super) fn read(&mut self, mut each: impl FnMut(&OpenRecord)) {
        let Self { ring: Some(ring), unreadable, .. } = self else { return };
        for _ in 0..BATCHES {
            let count = ring::read(ring, |decoded| match decoded {
                Ok(record) => each(&record),
                Err(_) => *unreadable += 1,
            });
            if count == 0 {
                break;
            }
        }
    }

    /// Opens that they saw or should have seen, and that nobody will read.
    pub(super) fn lost(&mut self) -> Vec<(Loss, u64)> {
        let mut lost = vec![(Loss::OtherVersion, self.unreadable)];
        if let Some(losses) = &mut self.losses {
            lost.extend(LOSSES.map(|(counter, loss)| {
                let count = losses.take(counter).inspect_err(|error| {
                    debug!(%error, "cannot read a counter of before");
                });
                (loss, count.unwrap_or_default())
            }));
        }
        lost.retain(|(_, count)| *count > 0);
        lost
    }

    /// Detaches them. They may report for a moment still: the kernel does it when it can.
    pub(super) fn end(&mut self) -> Result<(), PinError> {
        self._links.clear();
        self.set.take().map_or(Ok(()), |set| set.remove())
    }

    /// What was not seen until another one was proven to see, if anything.
    pub(super) fn gap(&self, lost: &[(Loss, u64)], proven: Micros) -> Option<Gap> {
        let lost = lost.iter().map(|(loss, count)| match loss {
            Loss::OtherVersion => {
                format!("{count} opens were noted by another version and cannot be read")
            }
            Loss::RingFull | Loss::Unreadable | Loss::Starting | Loss::Flood => {
                format!("{count} opens were lost while nobody read: {loss:?}")
            }
        });
        let why: Vec<String> = self.blind.iter().cloned().chain(lost).collect();
        let gap = Gap { from: self.read_until, to: proven, why: why.join("; ") };
        (!why.is_empty() && gap.from < gap.to).then_some(gap)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read_until(seconds: i64, blind: Option<&str>) -> Predecessor {
        Predecessor {
            ring: None,
            losses: None,
            _links: Vec::new(),
            set: None,
            read_until: Micros::from_secs(seconds),
            blind: blind.map(str::to_owned),
            unreadable: 3,
        }
    }

    #[test]
    fn what_nobody_saw_or_can_read_is_a_gap_up_to_the_proof_that_another_one_sees() {
        let proven = Micros::from_secs(20);
        let mut before = read_until(10, Some("blind"));
        let lost = before.lost();
        assert_eq!(lost, [(Loss::OtherVersion, 3)]);
        let gap = before.gap(&lost, proven).unwrap();
        assert_eq!((gap.from, gap.to), (Micros::from_secs(10), proven));
        let why = "blind; 3 opens were noted by another version and cannot be read";
        assert_eq!(gap.why, why);
        assert_eq!(read_until(10, None).gap(&[], proven), None, "nothing is missing");
    }

    #[test]
    fn who_was_there_while_the_other_one_was_read_has_no_gap() {
        let before = read_until(20, Some("blind"));
        assert_eq!(before.gap(&[(Loss::RingFull, 1)], Micros::from_secs(15)), None);
    }
}
