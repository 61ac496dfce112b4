//! When a node looks whether all answers have come, and what it may say then. Pure: times are passed in. Called
//! by the node's connection.
//!
//! What audit sides say of how far they are counts once the broker has nothing for this node that they published
//! before they said so. All nodes that ask hear them at one and the same moment; each looks at one of its own a
//! little later, so that the broker is not asked by a thousand at once.

use std::{
    hash::{DefaultHasher, Hash as _, Hasher as _},
    time::{Duration, Instant},
};

use crate::time::Micros;

/// Over how long the nodes spread.
const SPREAD: Duration = Duration::from_secs(2);
/// A node looks no oftener than one audit side speaks, however many there are.
const PAUSE: Duration = Duration::from_secs(5);

/// The looks of one node, one at a time.
#[derive(Debug)]
pub(super) struct Looks {
    /// How long after a word this node looks.
    phase: Duration,
    /// When the last one began.
    last: Option<Instant>,
    planned: Option<Instant>,
    /// How far all sides were when the one that goes on began.
    running: Option<Micros>,
}

impl Looks {
    /// Of a node, given as a word.
    pub(super) fn of(node: &str) -> Self {
        let mut hasher = DefaultHasher::new();
        node.hash(&mut hasher);
        let spread = u64::try_from(SPREAD.as_micros()).unwrap_or(u64::MAX);
        let phase = Duration::from_micros(hasher.finish() % spread);
        Self { phase, last: None, planned: None, running: None }
    }

    /// An audit side has said how far it is.
    pub(super) fn plan(&mut self, now: Instant) {
        let soon = now + self.phase;
        let at = self.last.map_or(soon, |last| soon.max(last + PAUSE));
        self.planned.get_or_insert(at);
    }

    /// When the next one is due.
    pub(super) fn due(&self) -> Option<Instant> {
        self.planned
    }

    /// One is due; whether to look. `through` is how far all sides are as heard by now: what they say later is of
    /// answers that this look may not see. It is of no use if just that was `told`.
    pub(super) fn begin(
        &mut self,
        now: Instant,
        through: Option<Micros>,
        told: Option<Micros>,
    ) -> bool {
        self.planned = None;
        self.running = through.filter(|_| through != told);
        if self.running.is_some() {
            self.last = Some(now);
        }
        self.running.is_some()
    }

    /// Something else is asked: what goes on does not answer it.
    pub(super) fn restate(&mut self) {
        self.running = None;
    }

    /// The one that went on has come to its end: how far all answers have come, if so.
    pub(super) fn end(&mut self, nothing_waits: bool) -> Option<Micros> {
        self.running.take().filter(|_| nothing_waits)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn nodes_that_hear_the_same_word_spread_evenly_and_a_word_of_another_side_adds_no_look() {
        let word = Instant::now();
        let mut tenths = [0; 20];
        for node in 0..2_000 {
            let mut looks = Looks::of(&format!("node-{node}"));
            looks.plan(word);
            let due = looks.due().unwrap();
            looks.plan(word + Duration::from_secs(1));
            assert_eq!(looks.due(), Some(due));
            tenths[usize::try_from((due - word).as_millis() / 100).unwrap()] += 1;
            assert!(looks.begin(due, Some(Micros(1)), None));
            looks.plan(due + Duration::from_millis(1));
            assert!(looks.due() >= Some(due + PAUSE), "not so soon again");
        }
        assert!(tenths.iter().all(|count| (50..200).contains(count)), "{tenths:?}");
    }

    proptest! {
        /// Against a plain reading: what is told was known before its look began, nothing else was asked since, and
        /// each word is followed by a look that knows it, unless what it said is told already.
        #[test]
        fn what_is_told_was_known_before_the_look_and_is_of_what_is_asked(
            steps in proptest::collection::vec((0_u8..5, 0_u64..3_000, any::<bool>()), 1..200),
        ) {
            let mut looks = Looks::of("node-b");
            let mut now = Instant::now();
            let (mut through, mut told) = (None::<Micros>, None);
            // What was known as the look began that goes on; whether something else was asked since.
            let mut going_on: Option<(Micros, bool)> = None;
            let mut began: Option<Instant> = None;
            for (kind, pause, nothing_waits) in steps {
                now += Duration::from_millis(pause);
                match kind {
                    0 | 1 => {
                        // A side that is new, or has begun anew, may be behind.
                        through = Some(Micros(pause.cast_signed()));
                        looks.plan(now);
                        let latest = began.map_or(now + SPREAD, |at| (now + SPREAD).max(at + PAUSE));
                        prop_assert!(looks.due().is_some_and(|due| due <= latest));
                    }
                    2 => {
                        looks.restate();
                        going_on = going_on.map(|(known, _)| (known, true));
                    }
                    3 if going_on.is_none() && looks.due().is_some_and(|due| due <= now) => {
                        let is_news = through != told;
                        prop_assert_eq!(looks.begin(now, through, told), is_news);
                        if is_news {
                            prop_assert!(began.is_none_or(|at| now - at >= PAUSE));
                            began = Some(now);
                            going_on = through.map(|known| (known, false));
                        }
                        prop_assert_eq!(looks.due(), None);
                    }
                    _ => {
                        if let Some((known, restated)) = going_on.take() {
                            let ends = looks.end(nothing_waits);
                            prop_assert_eq!(ends, Some(known).filter(|_| nothing_waits && !restated));
                            told = ends.or(told);
                        }
                    }
                }
            }
        }
    }
}
