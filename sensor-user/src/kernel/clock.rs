//! Boot clock, wall clock and the axis that correlation runs on.
//!
//! Kernel records carry the boot clock, audit events the wall clock. A wall clock can be set at
//! any moment; the boot clock never is. So everything is compared on the *steady* axis: boot time
//! plus the offset that the wall clock had when the agent started. The clock remembers since when
//! which offset held, which takes one sample per batch of records: offsets change only when
//! somebody sets the clock, since the kernel slews both clocks alike.
//!
//! Reads no clock but through its [`Sampler`]; [`System`] is the real one.

use std::collections::VecDeque;

use rustix::time::{ClockId, clock_gettime};

use crate::time::Micros;

/// Differences below this are the sampling's own noise, nanoseconds.
const THRESHOLD_NS: i64 = 50_000;
/// Settings of the clock that are remembered: a clock set every minute fills an hour.
const SEGMENTS: usize = 64;

/// Reads both clocks at one moment.
pub trait Sampler {
    /// Boot clock in nanoseconds, and wall clock minus boot clock in nanoseconds.
    fn sample(&self) -> (u64, i64);
}

/// The machine's clocks.
#[derive(Clone, Copy, Debug, Default)]
pub struct System;

impl Sampler for System {
    fn sample(&self) -> (u64, i64) {
        // The pair with the least time between its two boot readings is the most exact; a task
        // that was preempted in one try is not in all.
        let (_, boot, offset) = (0..3)
            .map(|_| {
                let before = nanos(ClockId::Boottime);
                let wall = nanos(ClockId::Realtime);
                let gap = nanos(ClockId::Boottime) - before;
                let boot = before + gap / 2;
                (gap, boot, wall - boot)
            })
            .min()
            .unwrap_or_default();
        (u64::try_from(boot).unwrap_or_default(), offset)
    }
}

fn nanos(clock: ClockId) -> i64 {
    let time = clock_gettime(clock);
    time.tv_sec.saturating_mul(1_000_000_000).saturating_add(time.tv_nsec)
}

/// An offset and the boot time from which it held.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Segment {
    from_ns: u64,
    offset_ns: i64,
}

/// This moment on two axes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Now {
    /// On the axis that correlation runs on.
    pub steady: Micros,
    /// As the wall clock shows it.
    pub wall: Micros,
}

/// Translates between the three axes.
#[derive(Debug)]
pub struct Clock<S = System> {
    sampler: S,
    /// Wall clock minus boot clock at the agent's start: the steady axis.
    start_offset_ns: i64,
    /// Oldest first, never empty; the first one counts for everything before it as well.
    segments: VecDeque<Segment>,
}

impl Clock<System> {
    /// A clock over the machine's own clocks; the steady axis is the wall clock of this moment.
    pub fn system() -> Self {
        Self::new(System)
    }
}

impl<S: Sampler> Clock<S> {
    /// A clock over `sampler`.
    pub fn new(sampler: S) -> Self {
        let (from_ns, offset_ns) = sampler.sample();
        Self {
            sampler,
            start_offset_ns: offset_ns,
            segments: VecDeque::from([Segment { from_ns, offset_ns }]),
        }
    }

    /// Reads the clocks, and notices whether the wall clock was set. To be called with every batch
    /// and on every tick.
    pub fn now(&mut self) -> Now {
        let (boot_ns, offset_ns) = self.sampler.sample();
        if self.newest().offset_ns.abs_diff(offset_ns) > THRESHOLD_NS.unsigned_abs() {
            if self.segments.len() == SEGMENTS {
                self.segments.pop_front();
            }
            self.segments.push_back(Segment { from_ns: boot_ns, offset_ns });
        }
        Now { steady: self.boot_to_steady(boot_ns), wall: self.boot_to_wall(boot_ns) }
    }

    /// What the wall clock showed at a boot time.
    pub fn boot_to_wall(&self, ktime_ns: u64) -> Micros {
        let segment = self.newest_where(|segment| segment.from_ns <= ktime_ns);
        shift(ktime_ns, segment.offset_ns)
    }

    /// A boot time on the steady axis.
    pub fn boot_to_steady(&self, ktime_ns: u64) -> Micros {
        shift(ktime_ns, self.start_offset_ns)
    }

    /// A wall-clock time on the steady axis. A time that the wall clock showed twice, since it
    /// was set back, is taken as the later one.
    pub fn wall_to_steady(&self, wall: Micros) -> Micros {
        let segment =
            self.newest_where(|segment| shift(segment.from_ns, segment.offset_ns) <= wall);
        // In microseconds throughout: `wall` may be any value a client can write.
        wall - Micros(segment.offset_ns.div_euclid(1_000))
            + Micros(self.start_offset_ns.div_euclid(1_000))
    }

    /// What the wall clock showed at a time on the steady axis.
    pub fn steady_to_wall(&self, steady: Micros) -> Micros {
        let start = Micros(self.start_offset_ns.div_euclid(1_000));
        let boot_ns = u64::try_from((steady - start).0).unwrap_or_default().saturating_mul(1_000);
        let segment = self.newest_where(|segment| segment.from_ns <= boot_ns);
        steady - start + Micros(segment.offset_ns.div_euclid(1_000))
    }

    fn newest(&self) -> Segment {
        self.newest_where(|_| true)
    }

    /// The newest segment that fits, else the oldest.
    fn newest_where(&self, fits: impl Fn(&Segment) -> bool) -> Segment {
        let oldest = Segment { from_ns: 0, offset_ns: self.start_offset_ns };
        let mut newest_first = self.segments.iter().rev();
        *newest_first.find(|segment| fits(segment)).or(self.segments.front()).unwrap_or(&oldest)
    }
}

/// Nanoseconds plus an offset, as microseconds rounded down.
fn shift(time_ns: u64, offset_ns: i64) -> Micros {
    let sum = (i128::from(time_ns) + i128::from(offset_ns)).div_euclid(1_000);
    Micros(i64::try_from(sum).unwrap_or(if sum < 0 { i64::MIN } else { i64::MAX }))
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use proptest::prelude::*;

    use super::*;

    const SECOND: i64 = 1_000_000_000;

    /// Clocks that the test sets.
    #[derive(Default)]
    struct Bench {
        boot_ns: Cell<u64>,
        offset_ns: Cell<i64>,
    }

    impl Sampler for &Bench {
        fn sample(&self) -> (u64, i64) {
            (self.boot_ns.get(), self.offset_ns.get())
        }
    }

    impl Bench {
        fn set(&self, boot_s: u64, offset_s: i64) {
            self.boot_ns.set(boot_s * SECOND.unsigned_abs());
            self.offset_ns.set(offset_s * SECOND);
        }

        fn at(boot_s: u64, offset_s: i64) -> Self {
            let bench = Self::default();
            bench.set(boot_s, offset_s);
            bench
        }
    }

    fn secs(boot_s: u64) -> u64 {
        boot_s * SECOND.unsigned_abs()
    }

    #[test]
    fn until_the_wall_clock_is_set_all_axes_agree() {
        let bench = Bench::at(100, 1_000);
        let clock = Clock::new(&bench);
        for boot in [0, 99, 100, 500] {
            let wall = clock.boot_to_wall(secs(boot));
            assert_eq!(wall, Micros::from_secs(1_000 + boot.cast_signed()));
            assert_eq!(clock.boot_to_steady(secs(boot)), wall);
            assert_eq!(clock.wall_to_steady(wall), wall);
        }
    }

    #[test]
    fn an_open_and_its_request_stay_as_far_apart_as_they_were_when_the_clock_is_set_between_them() {
        for step in [3_600, -3_600] {
            let bench = Bench::at(100, 10_000);
            let mut clock = Clock::new(&bench);
            let open = clock.boot_to_steady(secs(110));
            bench.set(111, 10_000 + step);
            clock.now();
            let request = clock.wall_to_steady(Micros::from_secs(112 + 10_000 + step));
            assert_eq!(request - open, Micros::from_secs(2), "step of {step} s");
        }
    }

    #[test]
    fn a_record_from_before_the_step_keeps_its_old_wall_time() {
        let bench = Bench::at(100, 1_000);
        let mut clock = Clock::new(&bench);
        bench.set(200, 5_000);
        clock.now();
        assert_eq!(clock.boot_to_wall(secs(150)), Micros::from_secs(1_150));
        assert_eq!(clock.boot_to_wall(secs(250)), Micros::from_secs(5_250));
    }

    #[test]
    fn a_wall_time_that_was_shown_twice_is_the_later_one() {
        let bench = Bench::at(100, 1_000);
        let mut clock = Clock::new(&bench);
        bench.set(200, 950);
        clock.now();
        // Wall 1,160 s was boot 160 s, and again boot 210 s.
        assert_eq!(clock.wall_to_steady(Micros::from_secs(1_160)), clock.boot_to_steady(secs(210)));
        let steady = clock.boot_to_steady(secs(210));
        assert_eq!(clock.steady_to_wall(steady), Micros::from_secs(1_160));
        let steady = clock.boot_to_steady(secs(160));
        assert_eq!(clock.steady_to_wall(steady), Micros::from_secs(1_160));
        // Wall 1,149 s was only ever boot 149 s: the clock was set back to 1,150 s.
        assert_eq!(clock.wall_to_steady(Micros::from_secs(1_149)), clock.boot_to_steady(secs(149)));
    }

    #[test]
    fn sampling_noise_makes_no_segment_and_a_step_does() {
        let bench = Bench::at(100, 1_000);
        let mut clock = Clock::new(&bench);
        for noise in [-THRESHOLD_NS, THRESHOLD_NS, 0] {
            bench.offset_ns.set(1_000 * SECOND + noise);
            clock.now();
        }
        assert_eq!(clock.segments.len(), 1);
        bench.offset_ns.set(1_000 * SECOND + THRESHOLD_NS + 1);
        clock.now();
        assert_eq!(clock.segments.len(), 2);
    }

    #[test]
    fn the_machines_clocks_agree_with_the_system_time() {
        let clock = Clock::system();
        let (boot, _) = System.sample();
        let wall =
            std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_micros();
        let apart = i128::from(clock.boot_to_wall(boot).0) - wall.cast_signed();
        assert!(apart.abs() < 5_000_000, "{apart} µs apart");
    }

    proptest! {
        #[test]
        fn steady_distances_are_true_distances_whatever_happens_to_the_wall_clock(
            steps in proptest::collection::vec((1_u64..1_000, -100_000_i64..100_000), 0..200),
            wanted in any::<prop::sample::Index>(),
        ) {
            let bench = Bench::at(1_000, 1_000_000);
            let mut clock = Clock::new(&bench);
            let mut moments = vec![(1_000, 1_000_000)];
            for (pause, offset) in steps {
                let boot = moments.last().unwrap().0 + pause;
                bench.set(boot, 1_000_000 + offset);
                clock.now();
                moments.push((boot, 1_000_000 + offset));
            }
            prop_assert!(clock.segments.len() <= SEGMENTS);
            // Of what is still remembered, the newest reading of a wall time is exact.
            let remembered = moments.len().saturating_sub(SEGMENTS);
            let at = remembered + wanted.index(moments.len() - remembered);
            let (boot, offset) = moments[at];
            let wall = boot.cast_signed() + offset;
            let shown_later = moments[at + 1..].iter().any(|(b, o)| b.cast_signed() + o <= wall);
            if !shown_later {
                prop_assert_eq!(
                    clock.wall_to_steady(Micros::from_secs(wall)),
                    clock.boot_to_steady(secs(boot))
                );
            }
            prop_assert_eq!(
                clock.boot_to_steady(secs(boot + 7)) - clock.boot_to_steady(secs(boot)),
                Micros::from_secs(7)
            );
        }

        #[test]
        fn no_time_is_too_odd(ktime in any::<u64>(), wall in any::<i64>()) {
            let bench = Bench::at(1, 1);
            let clock = Clock::new(&bench);
            let _ = (clock.boot_to_wall(ktime), clock.boot_to_steady(ktime));
            let _ = (clock.wall_to_steady(Micros(wall)), clock.steady_to_wall(Micros(wall)));
        }
    }
}
