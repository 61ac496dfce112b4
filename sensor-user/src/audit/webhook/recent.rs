//! Which events were taken lately: the API server sends a whole batch again when its answer was late.
//!
//! Bounded: the events that came longest ago are forgotten. One that comes again even later is the
//! same request to correlation, whose ids are hashes of facts. No I/O. Called by `post`.

use std::num::NonZeroUsize;

use lru::LruCache;

use crate::{
    audit::{ReadRecord, Stage},
    correlation::ids::RequestId,
};

/// Events that matter, remembered at about 100 bytes each: those of four minutes, which is as long as
/// the API server tries, at 270 a second.
const EVENTS: NonZeroUsize = NonZeroUsize::MIN.saturating_add((1 << 16) - 1);

/// The events taken lately.
#[derive(Debug)]
pub(super) struct Recent(LruCache<(RequestId, Stage), ()>);

impl Default for Recent {
    fn default() -> Self {
        Self::of(EVENTS)
    }
}

impl Recent {
    fn of(events: NonZeroUsize) -> Self {
        Self(LruCache::new(events))
    }

    /// Whether an event is new; from now on it is not.
    pub(super) fn is_new(&mut self, read: &ReadRecord) -> bool {
        self.0.put((RequestId::of(&read.record), read.record.stage), ()).is_none()
    }
}
