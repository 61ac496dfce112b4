//! Repeats of an open that no later record tells of: the kernel side counts what a process opens
//! again within a second, and the process may never open it after that. Called by the sensor.

use std::collections::VecDeque;

use aya::maps::{HashMap, MapData, MapError};
use tokentrail_ebpf::{OpenRecord, REPEAT_NS, RepeatKey, Repeats as Counted};
use zerocopy::{FromBytes as _, IntoBytes as _};

/// Records kept that may have been repeated: those of a second or two, of the busiest node. Of one
/// that has no room the last repeat is not told by itself: it is counted, and told with the next.
const KEPT: usize = 512;

/// Records of the last second, and the kernel side's counts for them.
pub(super) struct Repeats {
    counts: HashMap<MapData, [u8; size_of::<RepeatKey>()], [u8; size_of::<Counted>()]>,
    told: VecDeque<OpenRecord>,
}

impl Repeats {
    pub(super) fn new(map: aya::maps::Map) -> Result<Self, MapError> {
        Ok(Self { counts: HashMap::try_from(map)?, told: VecDeque::new() })
    }

    /// Remembers a record that was read.
    pub(super) fn note(&mut self, record: &OpenRecord) {
        if self.told.len() == KEPT {
            self.told.pop_front();
        }
        self.told.push_back(*record);
    }

    /// The last repeat of each record of which by now nothing can be a repeat any more, as a record
    /// that stands for all of them.
    pub(super) fn settle(&mut self, now_ns: u64) -> impl Iterator<Item = OpenRecord> {
        std::iter::from_fn(move || {
            loop {
                let record = self.told.pop_front_if(|it| it.ktime_ns + REPEAT_NS < now_ns)?;
                if let Some(last) = self.take(record) {
                    return Some(last);
                }
            }
        })
    }

    fn take(&mut self, mut record: OpenRecord) -> Option<OpenRecord> {
        let key = record.repeat_key();
        let mut bytes = [0; size_of::<RepeatKey>()];
        bytes.copy_from_slice(key.as_bytes());
        let counted = Counted::read_from_bytes(&self.counts.get(&bytes, 0).ok()?).ok()?;
        // A later record has taken the others with it.
        if counted.told_ns != record.ktime_ns || counted.count == 0 {
            return None;
        }
        // If it opens once more between these two, its next record tells of the same repeats again.
        self.counts.remove(&bytes).ok()?;
        record.ktime_ns = counted.last_ns;
        record.repeats = counted.count - 1;
        Some(record)
    }
}
