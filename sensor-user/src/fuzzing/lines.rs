//! From bytes to lines, cut anywhere; and what is left of long lines.

use std::iter;

use serde_json::Value;

use crate::audit::lines::{Fit, Lines, MAX_LINE};

/// What an input may grow to, bytes: more than is kept of a line …
const LONG_TEXT: usize = 80 << 10;
/// … or, since that is slow, most often only more than is kept of a value.
const TEXT: usize = 20 << 10;

/// Lines are those of a plain split however the input is cut into chunks; what is kept of a long one
/// is bounded and still the object that it was.
///
/// The last four bytes say how the others are cut.
pub fn lines(input: &[u8]) {
    let Some((text, cuts)) = input.split_last_chunk::<4>() else { return };
    let [a, b, c, d] = cuts.map(usize::from);
    let text = grown(text, if b % 4 == 0 { LONG_TEXT } else { TEXT });
    let longest = if a % 2 == 0 { MAX_LINE } else { 64 };
    let whole = Cut::of(&text, longest, iter::repeat(text.len().max(1)));
    let pieces = [a + 1, b + 1, (c + 1) << 6, (d + 1) << 10];
    assert_eq!(Cut::of(&text, longest, pieces.into_iter().cycle()), whole);
    whole.is_a_split_of(&text, longest);
}

/// The input with its repetitions: a byte 1, which is in no JSON, repeats what stands before it;
/// the byte behind it says how much of that and how often. So a small input makes a long line.
fn grown(input: &[u8], most: usize) -> Vec<u8> {
    let mut grown: Vec<u8> = Vec::new();
    let mut input = input.iter();
    while let Some(byte) = input.next() {
        if *byte != 1 {
            grown.push(*byte);
        } else if let Some(how) = input.next() {
            let from = grown.len().saturating_sub(1 + usize::from(how & 15));
            let run = grown.get(from..).unwrap_or_default().to_vec();
            for _ in 0..1_usize << (how >> 4) {
                if grown.len() + run.len() <= most {
                    grown.extend_from_slice(&run);
                }
            }
        }
    }
    grown
}

/// What was made of an input.
#[derive(Debug, PartialEq)]
struct Cut {
    /// Each line, with how much of it that is and its end.
    lines: Vec<(Vec<u8>, Fit, u64)>,
    complete: u64,
    nul_bytes: u64,
}

impl Cut {
    fn of(mut text: &[u8], longest: usize, pieces: impl Iterator<Item = usize>) -> Self {
        let mut assembler = Lines::with_longest(longest);
        let mut lines = Vec::new();
        for length in pieces {
            let (mut piece, rest) = text.split_at(length.min(text.len()));
            while let Some(line) = assembler.next_line(&mut piece) {
                lines.push((line.bytes.to_vec(), line.fit, line.end));
            }
            text = rest;
            if text.is_empty() {
                break;
            }
        }
        let complete = assembler.complete();
        if let Some(line) = assembler.finish() {
            lines.push((line.bytes.to_vec(), line.fit, line.end));
        }
        Self { lines, complete, nul_bytes: assembler.take_nul_bytes() }
    }

    fn is_a_split_of(&self, text: &[u8], longest: usize) {
        let nul_bytes = text.iter().filter(|byte| **byte == 0).count() as u64;
        assert_eq!(self.nul_bytes, nul_bytes);
        let (mut end, mut lines) = (0, self.lines.iter());
        for piece in text.split_inclusive(|byte| matches!(byte, 0 | b'\n')) {
            end += piece.len() as u64;
            // A NUL ends a line, but does not belong to it, and between two is none.
            let (line, end) = match piece.split_last() {
                Some((b'\n', line)) => (line, end),
                Some((0, [])) => continue,
                Some((0, line)) => (line, end - 1),
                _ => (piece, end),
            };
            let Some((kept, fit, found_end)) = lines.next() else {
                panic!("the line up to {end} is missing")
            };
            assert_eq!(*found_end, end);
            if line.len() <= longest {
                assert_eq!((kept.as_slice(), fit), (line, &Fit::Whole));
            } else {
                assert!(*fit != Fit::Whole && kept.len() <= MAX_LINE);
                is_what_is_left_of(kept, *fit, line);
            }
        }
        assert_eq!(lines.next(), None);
    }
}

/// What must be so of a line that was too long.
fn is_what_is_left_of(kept: &[u8], fit: Fit, line: &[u8]) {
    let Ok(Value::Object(object)) = serde_json::from_slice::<Value>(line) else { return };
    if fit == Fit::Shortened {
        assert!(parsed(kept).is_object(), "{}", String::from_utf8_lossy(kept));
    }
    // The line as the API server would write it: no key twice, no key in another spelling.
    let plain = Value::Object(object.clone()).to_string();
    let kept = shortened(plain.as_bytes());
    if kept.len() == plain.len() {
        return;
    }
    let kept = parsed(&kept);
    let is_body = |key: &str| matches!(key, "requestObject" | "responseObject");
    let length = |value: &Value| value.to_string().len();
    let all: usize = object
        .iter()
        .filter(|(key, _)| !is_body(key))
        .map(|(key, it)| key.len() + length(it))
        .sum();
    for (key, value) in &object {
        if is_body(key) {
            assert_eq!(kept[key], Value::Null);
        } else if length(value) <= 64 || all <= 4 << 10 {
            assert_eq!(kept[key], *value, "{key}");
        } else if let (Some(from), Some(to)) = (value.as_array(), kept[key].as_array()) {
            // The last of the addresses is the only one that a client cannot choose.
            if from.iter().all(|element| length(element) < 1 << 10) {
                assert_eq!(to.last(), from.last(), "{key}");
            }
        }
    }
}

/// A line as if it were too long.
fn shortened(line: &[u8]) -> Vec<u8> {
    let mut lines = Lines::with_longest(0);
    assert_eq!(lines.next_line(&mut &*line), None);
    lines.finish().map(|line| line.bytes.to_vec()).unwrap_or_default()
}

fn parsed(kept: &[u8]) -> Value {
    serde_json::from_str(&String::from_utf8_lossy(kept)).unwrap_or_default()
}
