//! How far a file has come, by the times in it. Pure; called by the readers.

use crate::time::Micros;

/// A step forward beyond this needs a second line that bears it out: a lone absurd time must not
/// make all that follows late.
pub const LEAP: Micros = Micros::from_secs(3_600);

/// The greatest time seen.
#[derive(Clone, Debug)]
pub struct Clock {
    newest: Micros,
    /// A time too far ahead to be believed by itself.
    leap: Option<Micros>,
    /// A time so far behind that the newest may be absurd.
    behind: Option<Micros>,
    lateness: Micros,
    latest: Micros,
}

impl Clock {
    /// Of a file in which no line is more than `lateness` behind an earlier one, and none is of after
    /// `latest`.
    pub fn new(lateness: Micros, latest: Micros) -> Self {
        Self { newest: Micros::MIN, leap: None, behind: None, lateness, latest }
    }

    /// Notes the time of a line; the same line may be noted again.
    pub fn note(&mut self, time: Micros) {
        if time > self.latest {
            return;
        }
        if time <= self.newest + LEAP {
            self.leap = None;
            self.note_behind(time);
            self.newest = self.newest.max(time);
            return;
        }
        self.behind = None;
        // The very same time may be the very same line, seen twice.
        let borne_out = |leap: &Micros| *leap != time && *leap <= time + self.lateness;
        let Some(leap) = self.leap.replace(time).filter(borne_out) else { return };
        let (lesser, greater) = (leap.min(time), leap.max(time));
        if greater <= lesser + LEAP {
            self.newest = greater;
            self.leap = None;
        } else {
            self.newest = lesser;
            self.leap = Some(greater);
        }
    }

    /// Two lines on end that are far behind, and close to each other, say that it had gone ahead.
    fn note_behind(&mut self, time: Micros) {
        if time + self.lateness + LEAP >= self.newest || self.newest == Micros::MAX {
            self.behind = None;
            return;
        }
        let Some(behind) = self.behind.replace(time).filter(|behind| *behind != time) else {
            return;
        };
        if behind.max(time) <= behind.min(time) + LEAP {
            self.newest = behind.max(time);
            self.behind = None;
        }
    }

    /// The file will have no further line.
    pub fn end(&mut self) {
        self.newest = Micros::MAX;
    }

    /// Whether [`note`](Self::note) would need a second line for this time.
    pub fn is_leap(&self, time: Micros) -> bool {
        time > self.newest + LEAP
    }

    /// No line is of after this.
    pub fn latest(&self) -> Micros {
        self.latest
    }

    /// How far a line may be behind an earlier one.
    pub fn lateness(&self) -> Micros {
        self.lateness
    }

    /// The greatest time that counts.
    pub fn newest(&self) -> Micros {
        self.newest
    }

    /// No line before this is to come.
    pub fn watermark(&self) -> Micros {
        if self.newest == Micros::MAX { Micros::MAX } else { self.newest - self.lateness }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lone_time_far_ahead_does_not_move_it_and_two_do() {
        let at = |seconds: &[i64]| {
            let mut clock = Clock::new(Micros::from_secs(5), Micros::from_secs(10_000_000));
            seconds.iter().for_each(|it| clock.note(Micros::from_secs(*it)));
            clock.newest()
        };
        let secs = Micros::from_secs;
        for (times, newest) in [
            (&[][..], Micros::MIN),
            (&[100], Micros::MIN),
            (&[100, 101], secs(101)),
            (&[101, 100], secs(101)),
            (&[100, 100], Micros::MIN),
            (&[100, 101, 3_701, 99], secs(3_701)),
            // Absurd ones: after the first lines, as the first, twice but apart.
            (&[100, 101, 9_000_000, 102], secs(102)),
            (&[9_000_000, 100, 101], secs(101)),
            (&[100, 9_000_000, 101], secs(101)),
            (&[100, 101, 9_000_000, 102, 9_000_000, 103], secs(103)),
            // Twice on end: what follows contradicts, but a lone line does not.
            (&[9_000_000, 9_000_001, 100], secs(9_000_001)),
            (&[9_000_000, 9_000_001, 100, 101, 102], secs(102)),
            (&[100, 101, 9_000_000, 9_000_001, 101, 102], secs(102)),
            (&[8_000, 8_001, 100, 8_002, 101], secs(8_002)),
            // No time that a line can have.
            (&[100, 101, 90_000_000, 90_000_001, 102], secs(102)),
            // A night without a line.
            (&[100, 101, 40_000, 40_001, 40_002], secs(40_002)),
            // A line every two hours is one behind.
            (&[100, 7_300, 14_500, 21_700], secs(14_500)),
        ] {
            assert_eq!(at(times), newest, "{times:?}");
        }
    }

    #[test]
    fn a_file_that_has_ended_holds_nothing_back() {
        let mut clock = Clock::new(Micros::from_secs(5), Micros::MAX);
        assert!(clock.watermark() < Micros::from_secs(0));
        clock.end();
        assert_eq!(clock.watermark(), Micros::MAX);
    }
}
