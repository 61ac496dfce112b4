//! Lines that were read lately: a request may be in the log before somebody asks for it. Bounded by bytes;
//! the oldest lines go, and how far back it reaches is known. No I/O. Called by the engine.

use std::collections::VecDeque;

use crate::time::Micros;

/// Lines with the times at which they were read, wall clock.
#[derive(Debug)]
pub struct Recent {
    lines: VecDeque<(Box<[u8]>, Micros)>,
    bytes: usize,
    most: usize,
    /// All lines read since then are here.
    since: Micros,
}

impl Recent {
    /// With room for so many bytes; nothing was read before `now`.
    pub fn new(most: usize, now: Micros) -> Self {
        Self { lines: VecDeque::new(), bytes: 0, most, since: now }
    }

    /// Takes a line. Lines come in the order in which they are read.
    pub fn push(&mut self, line: Box<[u8]>, read: Micros) {
        self.bytes += weight(&line);
        self.lines.push_back((line, read));
        while self.bytes > self.most
            && let Some((oldest, read)) = self.lines.pop_front()
        {
            self.bytes -= weight(&oldest);
            self.since = self.since.max(read + Micros(1));
        }
    }

    /// Whether all requests that were received then or later are here, as far as they were read at all:
    /// a line is read after its request was received.
    pub fn reaches(&self, received: Micros) -> bool {
        self.since <= received
    }

    /// The lines that were read then or later, oldest first: among them are all of requests received since.
    pub fn lines_since(&self, received: Micros) -> impl Iterator<Item = &[u8]> {
        let first = self.lines.partition_point(|(_, read)| *read < received);
        self.lines.range(first..).map(|(line, _)| &**line)
    }

    /// Bytes held.
    pub fn bytes(&self) -> usize {
        self.bytes
    }
}

/// What a line costs.
fn weight(line: &[u8]) -> usize {
    line.len() + size_of::<(Box<[u8]>, Micros)>()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn it_is_bounded_and_holds_all_that_it_says(
            most in 0_usize..2_000,
            sizes in proptest::collection::vec((0_usize..300, 0_i64..3), 0..100),
        ) {
            let mut recent = Recent::new(most, Micros(0));
            let (mut all, mut now) = (Vec::new(), 0);
            for (size, pause) in sizes {
                now += pause;
                all.push((vec![b'x'; size], now));
                recent.push(vec![b'x'; size].into(), Micros(now));
                prop_assert!(recent.bytes() <= most);
                for from in 0..=now + 1 {
                    if recent.reaches(Micros(from)) {
                        let read_since = all.iter().filter(|(_, read)| *read >= from).count();
                        let since = recent.lines_since(Micros(from)).count();
                        prop_assert_eq!(since, read_since, "from {}", from);
                    }
                }
            }
        }
    }

    #[test]
    fn what_was_before_is_out_of_reach_and_what_comes_is_not() {
        let mut recent = Recent::new(1_000, Micros(10));
        assert!(!recent.reaches(Micros(9)));
        recent.push(b"line".as_slice().into(), Micros(12));
        assert!(recent.reaches(Micros(10)) && recent.lines_since(Micros::MIN).eq([b"line"]));
    }
}
