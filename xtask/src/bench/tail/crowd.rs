//! What everybody else asks: lines as `replay::generate` makes them, again and again, each time
//! received and answered now. A debug build makes far less than 50,000 of them a second.

use std::{fs, ops::Range};

use anyhow::{Context as _, Result, ensure};
use jiff::Timestamp;

use crate::{bench::replay::generate, shell::target_dir};

const SEED: u64 = 20_260_102;
/// Bytes of lines that differ: those of a second.
const DIFFERENT: u64 = 50_000_000;

/// Lines without end.
pub(in crate::bench) struct Crowd {
    text: Vec<u8>,
    lines: Vec<Line>,
    next: usize,
    /// The time that lines bear.
    now: String,
}

/// Where a line is, with its end, and where its times are.
struct Line {
    at: Range<usize>,
    times: [Range<usize>; 2],
}

impl Crowd {
    /// Makes the lines, or takes those of an earlier time.
    pub(in crate::bench) fn generate() -> Result<Self> {
        let folder = target_dir().join("bench/tail");
        fs::create_dir_all(&folder)?;
        let path = folder.join(format!("audit-{SEED}-{DIFFERENT}.ndjson"));
        if !path.exists() {
            generate::audit(&path, DIFFERENT, SEED)?;
        }
        Self::of(fs::read(path)?)
    }

    fn of(text: Vec<u8>) -> Result<Self> {
        let mut lines = Vec::new();
        let mut start = 0;
        for line in str::from_utf8(&text)?.split_inclusive('\n') {
            let time = |key: &str| {
                let found = line.rfind(key).context("a line has no time")?;
                let from = start + found + key.len();
                Ok::<_, anyhow::Error>(from..from + TIME)
            };
            let times = [time(r#""requestReceivedTimestamp":""#)?, time(r#""stageTimestamp":""#)?];
            lines.push(Line { at: start..start + line.len(), times });
            start += line.len();
        }
        ensure!(!lines.is_empty(), "there are no lines");
        let mut crowd = Self { text, lines, next: 0, now: String::new() };
        crowd.turn();
        Ok(crowd)
    }

    /// From now on, lines bear this moment's time.
    pub(in crate::bench) fn turn(&mut self) {
        self.now = Timestamp::now().strftime("%Y-%m-%dT%H:%M:%S.%6fZ").to_string();
    }

    /// The next line, with its end.
    pub(in crate::bench) fn next_line(&mut self) -> &[u8] {
        let Some(line) = self.lines.get(self.next) else { return b"" };
        self.next = (self.next + 1) % self.lines.len();
        for time in &line.times {
            if let Some(time) = self.text.get_mut(time.clone()) {
                time.copy_from_slice(self.now.as_bytes());
            }
        }
        self.text.get(line.at.clone()).unwrap_or_default()
    }
}

/// Bytes of a time, as `2026-01-01T00:00:00.000000Z`.
const TIME: usize = 27;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_come_again_and_again_with_the_time_of_their_turn_and_are_the_same_otherwise() {
        const OLD: &str = "2026-01-01T00:00:00.000000Z";
        let line = |id| {
            format!(
                r#"{{"auditID":"{id}","requestReceivedTimestamp":"{OLD}","stageTimestamp":"{OLD}"}}"#
            ) + "\n"
        };
        let mut crowd = Crowd::of((line(1) + &line(2)).into_bytes()).unwrap();
        for id in [1, 2, 1, 2] {
            crowd.turn();
            let expected = line(id).replace(OLD, &crowd.now);
            assert_eq!(str::from_utf8(crowd.next_line()).unwrap(), expected);
        }
    }
}
