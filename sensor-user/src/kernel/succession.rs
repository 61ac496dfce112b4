//! How one load of the programs follows another: an agent's that of the agent before, kept by its pins,
//! or a new one of this agent's one whose self-test fails. A part of `kernel`.
//!
//! The new one is attached before; then what the old one saw is read, the new one is pinned, the old one
//! ended and read once more. So nothing is missed, and what happened meanwhile was seen by both: who
//! takes the records knows it again.

use std::os::fd::AsFd as _;

use aya::{
    Ebpf,
    maps::{Map, MapData, MapError},
};
use tokentrail_ebpf::{OpenRecord, names};
use tracing::warn;

use super::{Gap, Sensor, SensorError, pins, predecessor::Predecessor};
use crate::time::Micros;

/// Gaps remembered, the newest.
const GAPS: usize = 16;
/// Maps that outlive the agent: what was seen, what was lost, and who belongs to which session.
const PINNED: [&str; 4] = [names::EVENTS, names::COUNTERS, names::SESSIONS, names::LINEAGE];

impl Sensor {
    /// Takes over from the agents that were before: lends to `each` what their programs saw and nobody
    /// has read, keeps this one's pinned, and ends theirs. What both saw comes from both, and from
    /// theirs first.
    pub fn take_over(
        &mut self,
        pins: pins::Pins,
        each: impl FnMut(&OpenRecord),
    ) -> Result<(), SensorError> {
        let predecessors = pins.sets().into_iter().map(Predecessor::pinned).collect();
        self.pins = Some(pins);
        self.succeed(predecessors, each)
    }

    /// Gives way to another one of this agent's, started since, as [`take_over`](Self::take_over) does:
    /// `why` this one no longer sees.
    pub fn replace(
        &mut self,
        successor: Self,
        why: String,
        each: impl FnMut(&OpenRecord),
    ) -> Result<(), SensorError> {
        let old = std::mem::replace(self, successor);
        self.pins = old.pins;
        self.gaps = old.gaps;
        self.metrics.attached_anew();
        if let Err(error) = self.watch_words(old.watched) {
            warn!(%error, "tokens under unusual names stay unseen");
        }
        let (links, set) = (old.links, old.kept.map(|kept| kept.set));
        let blind = Predecessor::blind(old.reader, links, set, old.proven, why);
        self.succeed(vec![blind], each)
    }

    fn succeed(
        &mut self,
        mut predecessors: Vec<Predecessor>,
        mut each: impl FnMut(&OpenRecord),
    ) -> Result<(), SensorError> {
        self.read_of(&mut predecessors, &mut each);
        self.keep()?;
        for predecessor in &mut predecessors {
            if let Err(error) = predecessor.end() {
                warn!(%error, "programs of before stay attached; `tokentrail uninstall` removes them");
            }
        }
        self.read_of(&mut predecessors, &mut each);
        for mut predecessor in predecessors {
            let lost = predecessor.lost();
            // Who was attached while the other one was read has seen all of it.
            if let Some(gap) = predecessor.gap(&lost, self.proven) {
                lost.into_iter().for_each(|(loss, count)| self.metrics.lost(loss, count));
                self.note(gap);
            }
        }
        Ok(())
    }

    fn read_of(&mut self, predecessors: &mut [Predecessor], each: &mut impl FnMut(&OpenRecord)) {
        for predecessor in predecessors {
            predecessor.read(|record| {
                if !self.canary.recognise(record) {
                    self.metrics.seen_late();
                    each(record);
                }
            });
        }
    }

    /// Pins what is attached, where that is wanted.
    fn keep(&mut self) -> Result<(), SensorError> {
        let Some(pins) = &self.pins else { return Ok(()) };
        match pins.keep(&self.maps, &mut self.links, &mut self.sessions) {
            Ok(kept) => {
                if !kept.forgotten.is_empty() {
                    self.degraded.push(format!(
                        "what happens while no agent runs is not seen by {}: this kernel cannot \
                         keep that attached (Linux 5.15)",
                        kept.forgotten.join(", ")
                    ));
                }
                self.kept = Some(kept);
                Ok(())
            }
            Err(error @ pins::PinError::Detached { .. }) => Err(error.into()),
            Err(error) => {
                self.not_kept(&error);
                Ok(())
            }
        }
    }

    /// Notes that nothing outlives this agent, and why.
    pub fn not_kept(&mut self, why: &pins::PinError) {
        let sentence = format!("what happens while no agent runs is not seen: {why}");
        warn!("{sentence}");
        self.degraded.push(sentence);
    }

    /// Notes that an agent is reading; to be called about once a second.
    pub fn beat(&self) {
        if let Some(kept) = &self.kept {
            kept.beat();
        }
    }

    /// Times of which opens may be missing, oldest first.
    pub fn gaps(&self) -> impl Iterator<Item = &Gap> {
        self.gaps.iter()
    }

    /// Notes that the self-test has passed again, after it had failed for this reason.
    pub fn recovered(&mut self, failed_since: Micros, why: String) {
        self.note(Gap { from: failed_since, to: self.proven, why });
    }

    /// When a self-test last passed.
    pub fn proven(&self) -> Micros {
        self.proven
    }

    fn note(&mut self, gap: Gap) {
        warn!(from = %gap.from, to = %gap.to, why = gap.why, "opens may be missing");
        self.metrics.unseen(&gap);
        if self.gaps.len() == GAPS {
            self.gaps.pop_front();
        }
        self.gaps.push_back(gap);
    }
}

/// Further handles of the maps that may be pinned.
pub(super) fn handles(ebpf: &Ebpf) -> Result<Vec<(&'static str, MapData)>, MapError> {
    let handle = |name: &'static str| {
        let (Map::RingBuf(map) | Map::PerCpuArray(map) | Map::LruHashMap(map)) =
            ebpf.map(name).ok_or_else(|| MapError::InvalidName { name: name.to_owned() })?
        else {
            return Err(MapError::InvalidName { name: name.to_owned() });
        };
        let descriptor = map.fd().as_fd().try_clone_to_owned().map_err(MapError::IoError)?;
        Ok((name, MapData::from_fd(descriptor)?))
    };
    PINNED.into_iter().map(handle).collect()
}
