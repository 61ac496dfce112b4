//! How often a file is read that is written to without pause: not at each write. A few reads are free,
//! so that a line that comes by itself is read at once.
//!
//! Pure: the time is passed in. Called by the tailer.

use std::time::Duration;

use tokio::time::Instant;

/// What reads are counted in, and the longest wait: a part of what an alert may take under load.
const SPAN: Duration = Duration::from_millis(5);
/// Reads in it: more than the stages of one request need.
const READS: u32 = 4;

/// Counts reads.
#[derive(Debug)]
pub(super) struct Pace {
    until: Instant,
    left: u32,
}

impl Pace {
    pub(super) fn new(now: Instant) -> Self {
        Self { until: now, left: 0 }
    }

    /// Until when the read that is wanted `now` has to wait, if it has to.
    pub(super) fn next(&mut self, now: Instant) -> Option<Instant> {
        if now >= self.until {
            *self = Self { until: now + SPAN, left: READS };
        }
        if self.left > 0 {
            self.left -= 1;
            return None;
        }
        // It is the first of the next span.
        let at = self.until;
        *self = Self { until: at + SPAN, left: READS - 1 };
        Some(at)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// When reads take place that are wanted at these microseconds, each once the one before is over.
    fn reads(wanted: impl IntoIterator<Item = u64>) -> Vec<u64> {
        let start = Instant::now();
        let (mut pace, mut now) = (Pace::new(start), start);
        let read = |wanted| {
            now = now.max(start + Duration::from_micros(wanted));
            now = pace.next(now).unwrap_or(now);
            u64::try_from((now - start).as_micros()).unwrap()
        };
        wanted.into_iter().map(read).collect()
    }

    #[test]
    fn single_reads_and_the_few_of_one_request_do_not_wait() {
        for wanted in [vec![0, 20_000, 40_000], vec![7, 8, 9, 10], vec![0, 6_000, 6_001, 12_500]] {
            assert_eq!(reads(wanted.clone()), wanted);
        }
    }

    #[test]
    fn under_a_flood_the_rest_waits_for_the_next_span() {
        assert_eq!(reads([0, 1, 2, 3, 4, 5, 6, 7, 8]), [0, 1, 2, 3, 5000, 5000, 5000, 5000, 10000]);
    }

    #[test]
    fn however_long_a_flood_is_its_reads_are_bounded_and_none_waits_longer_than_a_span() {
        let mut last = 0;
        let times = reads((0..100_000).step_by(20));
        for (count, time) in times.iter().enumerate() {
            assert!(*time >= count as u64 / u64::from(READS) * 5_000);
            assert!(*time - last <= 5_000);
            last = *time;
        }
    }
}
