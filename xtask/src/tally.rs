//! Counting tests by what libtest prints about them.

use std::{fmt, ops::AddAssign};

/// Tests and checks, by how they ended.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Tally {
    pub(crate) passed: u32,
    pub(crate) failed: u32,
    pub(crate) skipped: u32,
}

impl Tally {
    /// Reads one line of output; `None` if it is not libtest's `test result: …`.
    pub(crate) fn read(line: &str) -> Option<Self> {
        let (_, counts) = line.trim().strip_prefix("test result: ")?.split_once(". ")?;
        let count = |noun: &str| {
            counts.split("; ").find_map(|part| part.strip_suffix(noun)?.trim().parse().ok())
        };
        Some(Self {
            passed: count("passed")?,
            failed: count("failed")?,
            skipped: count("ignored")?,
        })
    }
}

impl AddAssign for Tally {
    fn add_assign(&mut self, other: Self) {
        self.passed += other.passed;
        self.failed += other.failed;
        self.skipped += other.skipped;
    }
}

impl fmt::Display for Tally {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { passed, failed, skipped } = self;
        write!(f, "{passed} passed, {failed} failed, {skipped} skipped")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_result_line_of_libtest_counts() {
        let cases = [
            (
                "test result: ok. 4 passed; 0 failed; 1 ignored; 0 measured; 2 filtered out; finished in 0.00s",
                Some((4, 0, 1)),
            ),
            (
                "test result: FAILED. 3 passed; 2 failed; 0 ignored; 0 measured; 0 filtered out; finished in 1.20s\r",
                Some((3, 2, 0)),
            ),
            ("running 4 tests", None),
            ("test result: ok.", None),
            ("test a_line_says_test_result ... ok", None),
        ];
        for (line, expected) in cases {
            let expected =
                expected.map(|(passed, failed, skipped)| Tally { passed, failed, skipped });
            assert_eq!(Tally::read(line), expected, "{line}");
        }
    }
}
