//! How far what a node asked is answered. Pure: revisions and times are passed in. Called by the node's
//! connection.
//!
//! Each audit side says through when it has read, and which revision of the bucket it knew. A pod's
//! requests are all here once every side has come past them knowing that they are wanted: until then the
//! pod's exposures must not be taken to be over.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::interest::Interest;
use crate::{audit::canary::Measured, time::Micros};

/// How long an audit side counts that is silent: as long as its key stays in the bucket.
const GONE: Micros = Micros::from_secs(15 * 60);
/// An audit side says something once a minute at least; after this it is silent.
const SILENT: Micros = Micros::from_secs(180);
/// Audit sides at once.
pub const SIDES: usize = 64;

/// A state of the bucket. Of one that is made anew the numbers begin again; where the stream of answers is made anew,
/// what lay in it is gone, and what was seen before is to be seen again.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Revision {
    /// When the bucket or the stream of answers was made, the later of both. NATS server's clock.
    pub bucket: Micros,
    /// Its own count of what was put.
    pub number: u64,
}

impl Revision {
    /// Whether what was put at `other` is in the bucket at this revision.
    fn has(self, other: Self) -> bool {
        self.bucket == other.bucket && self.number >= other.number
    }
}

/// What an audit side says of itself: to all in the bucket, and to nodes that ask something.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Covered {
    /// All requests received until then were read, and answers to what was asked are on the broker. API
    /// server's clock.
    pub through: Micros,
    /// The revision of the bucket up to which it knew what is asked.
    pub seen: Revision,
    /// Time of the newest event that it has read, if it has read any. API server's clock.
    #[serde(default)]
    pub last_event: Option<Micros>,
    /// Whether it sends nodes their audit canaries.
    #[serde(default)]
    pub sends_canaries: bool,
}

/// An audit side as this node heard it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Side {
    /// What it said last.
    #[serde(flatten)]
    pub covered: Covered,
    /// When, by this machine's wall clock.
    pub heard: Micros,
    /// Whether it has said something lately.
    pub connected: bool,
    /// How long it takes from there, and the clock of the API server whose events it reads: by the newest of
    /// this node's audit canaries that came that way.
    pub canary: Option<Measured>,
}

/// What was asked, and who has answered how much.
#[derive(Debug)]
pub struct Progress {
    /// When an audit side was heard last, or when this began.
    heard: Micros,
    sides: BTreeMap<String, Side>,
    asked: BTreeMap<String, Asking>,
    /// When the newer bucket was made that was looked for last.
    followed: Option<Micros>,
}

#[derive(Debug)]
struct Asking {
    from: Micros,
    until: Micros,
    /// The revision at which all of it was in the bucket.
    since: Option<Revision>,
}

impl Progress {
    /// Nothing yet.
    pub fn new(now: Micros) -> Self {
        Self { heard: now, sides: BTreeMap::new(), asked: BTreeMap::new(), followed: None }
    }

    /// A connection begins. All is put anew: a broker that lost its last puts counts from a smaller number.
    pub fn connect(&mut self) {
        for asking in self.asked.values_mut() {
            asking.since = None;
        }
    }

    /// A word names a newer bucket than there is here. Whether to look for that one: once, since whoever may write
    /// there may name any, and the broker's clock may have been set back.
    pub fn follow(&mut self, bucket: Micros) -> bool {
        self.followed.replace(bucket) != Some(bucket)
    }

    /// From now on this is asked, once it is put.
    pub fn ask(&mut self, interests: &[Interest]) {
        self.asked.retain(|pod, _| interests.iter().any(|it| it.pod == *pod));
        for Interest { pod, from, until, .. } in interests {
            let (from, until) = (*from, *until);
            let asking =
                self.asked.entry(pod.clone()).or_insert(Asking { from, until, since: None });
            if from < asking.from || until > asking.until {
                asking.since = None;
            }
            (asking.from, asking.until) = (from, until);
        }
    }

    /// This is in the bucket, as of this revision.
    pub fn put(&mut self, interests: &[Interest], revision: Revision) {
        for Interest { pod, from, until, .. } in interests {
            if let Some(asking) = self.asked.get_mut(pod)
                && asking.since.is_none_or(|since| since.bucket != revision.bucket)
                && *from <= asking.from
                && *until >= asking.until
            {
                asking.since = Some(revision);
            }
        }
    }

    /// An audit side has said how far it is. Whether it is heard: there may be too many.
    pub fn hear(&mut self, side: &str, covered: Covered, now: Micros) -> bool {
        self.heard = self.heard.max(now);
        let has_room = self.sides.len() < SIDES || self.sides.contains_key(side);
        if has_room {
            let side_now = Side { covered, heard: now, connected: true, canary: None };
            self.sides.insert(side.to_owned(), side_now);
        }
        has_room
    }

    /// Sees who has fallen silent, and forgets who has been for too long.
    pub fn forget(&mut self, now: Micros) {
        self.sides.retain(|_, side| {
            side.connected = now - side.heard <= SILENT;
            now - side.heard <= GONE
        });
    }

    /// Since when no audit side says anything, if none does.
    pub fn silent_since(&self, now: Micros) -> Option<Micros> {
        (now - self.heard > SILENT).then_some(self.heard)
    }

    /// How many audit sides say something, as of the last [`Self::forget`].
    pub fn speaking(&self) -> usize {
        self.sides.values().filter(|side| side.connected).count()
    }

    /// The audit sides that count.
    pub fn sides(&self) -> &BTreeMap<String, Side> {
        &self.sides
    }

    /// Whether anything is asked.
    pub fn asks(&self) -> bool {
        !self.asked.is_empty()
    }

    /// All requests received until then were answered by all sides; `None` where there is none. What is
    /// on its way from the broker is not here yet.
    pub fn through(&self) -> Option<Micros> {
        let of_side = |side: &Side| {
            let unseen = self
                .asked
                .values()
                .filter(|asking| asking.since.is_none_or(|since| !side.covered.seen.has(since)));
            // Only what is before the first request that it may not know to be wanted.
            let before = unseen.map(|asking| asking.from - Micros(1)).min();
            before.map_or(side.covered.through, |before| before.min(side.covered.through))
        };
        self.sides.values().map(of_side).min()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// A revision of one and the same bucket.
    fn at(number: u64) -> Revision {
        Revision { bucket: Micros(1), number }
    }

    fn covered(through: i64, seen: u64) -> Covered {
        Covered { through: Micros::from_secs(through), seen: at(seen), ..Covered::default() }
    }

    fn through(progress: &Progress) -> Option<i64> {
        progress.through().map(|it| (it.0 + 1) / 1_000_000)
    }

    #[test]
    fn nothing_is_over_before_a_side_knew_that_it_was_asked() {
        let mut progress = Progress::new(Micros(0));
        let asked = [Interest::example("p", 100, 160)];
        progress.ask(&asked);
        assert_eq!(progress.through(), None, "nobody answers");
        progress.hear("a", covered(500, 7), Micros(0));
        assert_eq!(through(&progress), Some(100), "it is not in the bucket yet");
        progress.put(&asked, at(8));
        assert_eq!(through(&progress), Some(100), "the side has not seen it");
        progress.hear("a", covered(501, 8), Micros(0));
        assert_eq!(through(&progress), Some(501));
        progress.hear("b", covered(90, 8), Micros(0));
        assert_eq!(through(&progress), Some(90), "the one that is behind counts");
        progress.forget(GONE + Micros(1));
        assert_eq!(progress.through(), None);
    }

    #[test]
    fn a_cluster_in_which_no_audit_side_speaks_is_told_from_one_in_which_some_do() {
        let now = Micros::from_secs;
        let mut progress = Progress::new(now(1_000));
        assert_eq!(progress.silent_since(now(1_180)), None, "it may yet be heard");
        assert_eq!(progress.silent_since(now(1_181)), Some(now(1_000)));
        progress.hear("a", covered(0, 0), now(1_181));
        progress.hear("b", covered(0, 0), now(1_300));
        progress.forget(now(1_400));
        assert_eq!((progress.silent_since(now(1_400)), progress.speaking()), (None, 1));
        assert_eq!(progress.silent_since(now(1_481)), Some(now(1_300)));
    }

    #[test]
    fn what_grows_is_asked_anew_and_what_is_over_holds_nothing_back() {
        let mut progress = Progress::new(Micros(0));
        let (first, grown) =
            ([Interest::example("p", 100, 160)], [Interest::example("p", 100, 220)]);
        progress.ask(&first);
        progress.hear("a", covered(500, 9), Micros(0));
        progress.put(&first, at(3));
        assert_eq!(through(&progress), Some(500));
        progress.ask(&grown);
        progress.put(&first, at(4));
        assert_eq!(through(&progress), Some(100), "what was put is not what is asked");
        progress.put(&grown, at(9));
        assert_eq!(through(&progress), Some(500));
        progress.ask(&[]);
        assert!(!progress.asks());
    }

    #[test]
    fn in_a_bucket_made_anew_what_was_put_and_seen_in_the_old_one_does_not_count() {
        let mut progress = Progress::new(Micros(0));
        let asked = [Interest::example("p", 100, 160)];
        let new = |number| Revision { bucket: Micros(2), number };
        progress.ask(&asked);
        progress.put(&asked, at(800));
        progress.hear("a", covered(500, 900), Micros(0));
        assert_eq!(through(&progress), Some(500));
        progress.hear("a", Covered { seen: new(1), ..covered(501, 0) }, Micros(0));
        assert_eq!(through(&progress), Some(100), "there it was not put");
        progress.ask(&asked);
        progress.put(&asked, new(2));
        assert_eq!(through(&progress), Some(100), "the side has not seen it");
        progress.hear("a", covered(502, 901), Micros(0));
        assert_eq!(through(&progress), Some(100), "the side has not seen the new one at all");
        progress.hear("a", Covered { seen: new(2), ..covered(503, 0) }, Micros(0));
        assert_eq!(through(&progress), Some(503));
    }

    #[test]
    fn what_was_put_over_a_connection_before_does_not_count_for_a_broker_that_lost_it() {
        let mut progress = Progress::new(Micros(0));
        let asked = [Interest::example("p", 100, 160)];
        progress.ask(&asked);
        progress.put(&asked, at(8));
        progress.hear("a", covered(500, 8), Micros(0));
        assert_eq!(through(&progress), Some(500));
        // The broker comes back with less, and the side has seen as many puts of others.
        progress.connect();
        progress.ask(&asked);
        assert_eq!(through(&progress), Some(100));
        progress.put(&asked, at(9));
        assert_eq!(through(&progress), Some(100), "the side has not seen it");
        progress.hear("a", covered(501, 9), Micros(0));
        assert_eq!(through(&progress), Some(501));
    }

    #[test]
    fn a_newer_bucket_is_looked_for_once() {
        let mut progress = Progress::new(Micros(0));
        let [first, second] = [Micros(7), Micros(8)];
        assert!(progress.follow(first));
        progress.connect();
        assert!(!progress.follow(first), "it was not there");
        assert!(progress.follow(second));
        assert!(!progress.follow(second));
    }

    #[test]
    fn sides_are_heard_up_to_a_bound() {
        let mut progress = Progress::new(Micros(0));
        for side in 0..SIDES {
            assert!(progress.hear(&side.to_string(), covered(500, 7), Micros(0)));
        }
        assert!(!progress.hear("one more", covered(90, 7), Micros(0)));
        assert!(progress.hear("0", covered(501, 7), Micros(0)));
        assert_eq!(progress.sides().len(), SIDES);
    }

    proptest! {
        /// Against a plain reading of the rule: a pod's requests are answered by a side that says so
        /// at a revision at or after the one from which all of what is asked now was in the bucket.
        #[test]
        fn no_request_that_may_come_is_before_the_watermark(
            steps in proptest::collection::vec((0_u8..3, 0_i64..50, 1_i64..50, 0_u64..5), 1..40),
        ) {
            let mut progress = Progress::new(Micros(0));
            let mut now_asked: Vec<Interest> = Vec::new();
            let (mut revision, mut whole_since) = (0_u64, None);
            let mut side: Option<Covered> = None;
            for (kind, from, span, lag) in steps {
                match kind {
                    0 => {
                        let next = Interest::example("p", from, from + span);
                        let within = now_asked.first().is_some_and(|before| {
                            before.from <= next.from && before.until >= next.until
                        });
                        if !within {
                            whole_since = None;
                        }
                        now_asked = vec![next];
                        progress.ask(&now_asked);
                    }
                    1 => {
                        revision += 1;
                        if whole_since.is_none() && !now_asked.is_empty() {
                            whole_since = Some(revision);
                        }
                        progress.put(&now_asked, at(revision));
                    }
                    _ => {
                        let covered = covered(from + 40, revision.saturating_sub(lag));
                        side = Some(covered);
                        progress.hear("a", covered, Micros(0));
                    }
                }
                let Some(side) = side else { continue };
                let through = progress.through().unwrap();
                prop_assert!(through <= side.through);
                if let Some(asked) = now_asked.first()
                    && whole_since.is_none_or(|since| since > side.seen.number)
                {
                    prop_assert!(through < asked.from);
                }
            }
        }
    }
}
