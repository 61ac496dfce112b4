//! Puts what several nearly ordered files hold into one order. Pure; called by the replay loop.

use std::collections::BTreeMap;

use crate::time::Micros;

/// Where an item belongs: by time, at the same microsecond opens before requests, then in the order
/// of input.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Place {
    /// Event time.
    pub time: Micros,
    /// What it is.
    pub kind: Kind,
    /// Index of its file.
    pub file: u32,
    /// Line in the file.
    pub line: u64,
}

/// What there is to merge.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// A token was opened.
    Open,
    /// The API server was asked.
    Request,
}

/// Holds items until no earlier one can come, within a bound.
#[derive(Debug)]
pub struct Merge<T> {
    held: BTreeMap<Place, (T, usize)>,
    bytes: usize,
    /// Of opens alone.
    opens: usize,
    limit: usize,
    handed: Option<Place>,
    late: u64,
    early: u64,
}

impl<T> Merge<T> {
    /// Holds at most about `limit` bytes.
    pub fn new(limit: usize) -> Self {
        Self { held: BTreeMap::new(), bytes: 0, opens: 0, limit, handed: None, late: 0, early: 0 }
    }

    /// Takes an item of this size. One that belongs before what was handed out is late: it is
    /// handed out next.
    pub fn push(&mut self, place: Place, item: T, bytes: usize) {
        self.late += u64::from(self.handed.is_some_and(|handed| place < handed));
        self.add(place.kind, bytes);
        if let Some((_, replaced)) = self.held.insert(place, (item, bytes)) {
            self.remove(place.kind, replaced);
        }
    }

    /// The next item that belongs before the watermark; whatever its place while there are too many.
    pub fn pop(&mut self, watermark: Micros) -> Option<(Place, T)> {
        let first = self.held.first_entry()?;
        let due = first.key().time < watermark;
        if !due && self.bytes <= self.limit {
            return None;
        }
        let (place, (item, bytes)) = first.remove_entry();
        self.remove(place.kind, bytes);
        self.early += u64::from(!due);
        self.handed = self.handed.max(Some(place));
        Some((place, item))
    }

    fn add(&mut self, kind: Kind, bytes: usize) {
        self.bytes += bytes;
        self.opens += if kind == Kind::Open { bytes } else { 0 };
    }

    fn remove(&mut self, kind: Kind, bytes: usize) {
        self.bytes -= bytes;
        self.opens -= if kind == Kind::Open { bytes } else { 0 };
    }

    /// What it holds, bytes.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Whether opens may be read ahead. Requests take no room from them: those that are handed out for
    /// want of it would find no open.
    pub fn takes_opens(&self) -> bool {
        self.opens <= self.limit / 2
    }

    /// Items that came too late for their place.
    pub fn late(&self) -> u64 {
        self.late
    }

    /// Items that were handed out before it was known that nothing comes before them, for want of
    /// room.
    pub fn early(&self) -> u64 {
        self.early
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn place(time: i64, kind: Kind, line: u64) -> Place {
        Place { time: Micros(time), kind, file: 0, line }
    }

    fn order(merge: &mut Merge<u64>, watermark: i64) -> Vec<u64> {
        std::iter::from_fn(|| merge.pop(Micros(watermark)).map(|(_, item)| item)).collect()
    }

    #[test]
    fn items_wait_for_the_watermark_and_opens_come_first() {
        let mut merge = Merge::new(1_000);
        merge.push(place(5, Kind::Request, 1), 1, 10);
        merge.push(place(5, Kind::Open, 2), 2, 10);
        merge.push(place(4, Kind::Request, 3), 3, 10);
        merge.push(place(5, Kind::Request, 4), 4, 10);
        assert_eq!(order(&mut merge, 5), [3]);
        assert_eq!(order(&mut merge, 6), [2, 1, 4]);
        assert_eq!((merge.late(), merge.early()), (0, 0));
    }

    #[test]
    fn a_late_item_is_next_and_counted_and_so_is_one_handed_out_early() {
        let mut merge = Merge::new(25);
        merge.push(place(5, Kind::Open, 1), 1, 10);
        assert_eq!(order(&mut merge, 9), [1]);
        merge.push(place(4, Kind::Open, 2), 2, 10);
        assert_eq!(merge.late(), 1);
        assert_eq!(order(&mut merge, 9), [2]);
        for line in 3..6 {
            merge.push(place(20, Kind::Open, line), line, 10);
        }
        assert_eq!(order(&mut merge, 9), [3]);
        assert_eq!((merge.late(), merge.early()), (1, 1));
    }

    proptest! {
        #[test]
        fn what_is_late_by_no_more_than_the_watermark_allows_comes_in_order(
            times in prop::collection::vec(0..2_000i64, 1..200),
            lateness in 0..300i64,
        ) {
            // Each line is moved back by at most `lateness`.
            let mut lines: Vec<_> = (0..).zip(times).collect();
            lines.sort_by_key(|(_, time)| *time);
            let mut shuffled = lines.clone();
            shuffled.sort_by_key(|(line, time)| time + i64::try_from(line * 7_919).unwrap() % (lateness + 1));
            let (mut merge, mut newest, mut found) = (Merge::new(1 << 20), i64::MIN, Vec::new());
            for (line, time) in shuffled {
                merge.push(place(time, Kind::Request, line), line, 1);
                newest = newest.max(time);
                found.extend(order(&mut merge, newest - lateness));
            }
            found.extend(order(&mut merge, i64::MAX));
            let expected: Vec<u64> = {
                lines.sort_by_key(|(line, time)| (*time, *line));
                lines.into_iter().map(|(line, _)| line).collect()
            };
            prop_assert_eq!(found, expected);
            prop_assert_eq!(merge.late(), 0);
        }
    }
}
