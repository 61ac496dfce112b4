//! One file on its way through a replay, and all files of a kind: which of them is to be read next.
//!
//! A file is looked into at the start, for what it is and when it begins, and opened when the
//! others have come to that time: a year of rotated logs is one open file. Called by the replay loop.

use std::io::{self, Cursor, Read};

use indicatif::ProgressBar;
use memchr::memmem;
use serde_json::Value;

use super::{clock::Clock, input::Input};
use crate::{
    audit::{lines::Lines, scan::last_stage_timestamp},
    time::Micros,
};

/// Read at once, bytes: fits into a core's cache, so that a line is fetched from memory once.
pub const CHUNK: usize = 256 << 10;

/// `event.dataset` of alerts.
const DATASET: &str = "tokentrail.alerts";

/// A text without the byte order mark that some editors put before it.
pub fn without_mark(text: &[u8]) -> &[u8] {
    text.strip_prefix(b"\xef\xbb\xbf").unwrap_or(text)
}

/// What is in a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Content {
    /// ECS documents of opens.
    Opens,
    /// Raw audit events.
    Audit,
    /// What this program told before. No option takes it.
    Alerts,
    /// Audit events as an API server posts them, many in one document. No option takes it.
    Posts,
}

impl Content {
    /// How it is given.
    pub fn option(self) -> &'static str {
        match self {
            Self::Opens | Self::Alerts => "--opens",
            Self::Audit | Self::Posts => "--audit",
        }
    }

    /// How it is called.
    pub fn name(self) -> &'static str {
        match self {
            Self::Opens => "ECS documents",
            Self::Audit => "audit.k8s.io events",
            Self::Alerts => "alerts",
            Self::Posts => "an EventList",
        }
    }

    /// Its line assembler. An open's document is worth nothing without its process, which the
    /// shortening of audit lines might take for a body.
    fn lines(self) -> Lines {
        match self {
            Self::Opens | Self::Alerts => Lines::with_longest(1 << 20),
            Self::Audit | Self::Posts => Lines::new(0),
        }
    }

    /// What a line is recognised as, and its time.
    fn of(line: &[u8]) -> Option<(Self, Option<Micros>)> {
        let line: Value = serde_json::from_slice(line).ok()?;
        let has = |key: &str| line.get(key).is_some();
        let time = |key: &str| Micros::parse_believable(line.get(key)?.as_str()?);
        let api = line.get("apiVersion").and_then(Value::as_str).unwrap_or_default();
        if has("stage") && (has("auditID") || api.starts_with("audit.k8s.io/")) {
            return Some((Self::Audit, time("stageTimestamp")));
        }
        if has("items") && api.starts_with("audit.k8s.io/") {
            return Some((Self::Posts, None));
        }
        let kind = line.pointer("/event/dataset").and_then(Value::as_str);
        let content = if kind == Some(DATASET) { Self::Alerts } else { Self::Opens };
        has("@timestamp").then(|| (content, time("@timestamp")))
    }

    /// The same of an audit log's line, or of the first event that is wrapped in it.
    fn of_audit(line: &[u8]) -> Option<(Self, Option<Micros>)> {
        let mut lines = Lines::new(0);
        if let Some(event) = lines.next_line(&mut &*line) {
            return Self::of(event.bytes);
        }
        Self::of(lines.finish()?.bytes)
    }

    /// What a line is that does not end in what was read of it: whatever is longer than that is an
    /// audit event's body.
    fn of_beginning(line: &[u8]) -> Option<Self> {
        if line.starts_with(b"{\"kind\":\"EventList\",\"apiVersion\":\"audit.k8s.io/") {
            return Some(Self::Posts);
        }
        let mut lines = Lines::with_longest(0);
        lines.next_line(&mut &*line);
        let begun = lines.finish()?;
        let keys = ["\"apiVersion\":\"audit.k8s.io/", "\"auditID\":", "\"stage\":"];
        let has = |key: &&str| memmem::find(begun.bytes, key.as_bytes()).is_some();
        let is_audit = begun.bytes.starts_with(b"{\"kind\":\"Event\"") && keys.iter().all(has);
        is_audit.then_some(Self::Audit)
    }
}

/// A file that is to be read.
pub struct Source {
    input: Input,
    /// Earliest time at its beginning.
    start: Micros,
    clock: Clock,
    state: State,
    progress: ProgressBar,
    content: Content,
}

enum State {
    /// Not opened yet, or closed again.
    Waiting,
    Reading(Box<Reading>),
    Ended,
}

/// An open file.
pub struct Reading {
    read: Box<dyn Read>,
    /// Its line assembler.
    pub lines: Lines,
    /// Lines so far.
    pub line: u64,
}

impl Source {
    /// Looks into the input; what it holds instead of `content` if it is something else.
    ///
    /// # Errors
    /// It cannot be opened or its beginning not be read.
    pub fn find(
        input: Input,
        content: Content,
        clock: Clock,
        progress: &ProgressBar,
    ) -> io::Result<Result<Self, Content>> {
        let again = input.is_repeatable();
        let hidden = ProgressBar::hidden();
        let mut read = input.open(if again { &hidden } else { progress })?;
        let mut head = Vec::new();
        // Damage further on is met, and told, when it is read.
        let _ = read.by_ref().take(CHUNK as u64).read_to_end(&mut head);
        let (mut found, mut start) = (None, None::<Micros>);
        let is_believable = |time: &Micros| *time <= clock.latest();
        let is_cut = head.len() == CHUNK && !head.contains(&b'\n');
        for line in without_mark(&head).split(|byte| *byte == b'\n') {
            if is_cut {
                let wrapped = || Some(Content::of_audit(line)?.0);
                found = Content::of_beginning(line).or_else(wrapped);
            } else if found.is_none() || content == Content::Opens {
                let recognised = match content {
                    Content::Audit => Content::of_audit(line),
                    Content::Opens | Content::Alerts | Content::Posts => Content::of(line),
                };
                // Alerts may stand among other documents of one index.
                let content = recognised.map(|(content, _)| content);
                found = found.filter(|it| *it != Content::Alerts).or(content).or(found);
                let time = recognised.and_then(|(_, time)| time).filter(is_believable);
                start = time.into_iter().chain(start).min();
            } else {
                let time = last_stage_timestamp(line).filter(is_believable);
                start = time.into_iter().chain(start).min();
            }
        }
        if let Some(found) = found.filter(|found| *found != content) {
            return Ok(Err(found));
        }
        let state = if again {
            State::Waiting
        } else {
            State::reading(Box::new(Cursor::new(head).chain(read)), content)
        };
        let start = start.unwrap_or(Micros::MIN);
        Ok(Ok(Self { input, start, clock, state, progress: progress.clone(), content }))
    }

    /// Fills the buffer with what comes next; 0 at the end.
    ///
    /// # Errors
    /// It cannot be read any further. It counts as ended then.
    pub fn fill(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let filled = self.try_fill(buffer);
        if filled.is_err() {
            self.end();
        }
        filled
    }

    fn try_fill(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if matches!(self.state, State::Waiting) {
            self.state = State::reading(self.input.open(&self.progress)?, self.content);
        }
        let State::Reading(reading) = &mut self.state else { return Ok(0) };
        loop {
            match reading.read.read(buffer) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                result => return result,
            }
        }
    }

    /// Its lines and its clock, while it is open.
    pub fn reading(&mut self) -> Option<(&mut Reading, &mut Clock)> {
        match &mut self.state {
            State::Reading(reading) => Some((reading, &mut self.clock)),
            State::Waiting | State::Ended => None,
        }
    }

    /// Nothing more comes of it.
    pub fn end(&mut self) {
        self.state = State::Ended;
        self.clock.end();
    }

    /// How far it has come.
    pub fn clock(&mut self) -> &mut Clock {
        &mut self.clock
    }

    /// How it is called in errors.
    pub fn name(&self) -> String {
        self.input.name()
    }

    fn has_ended(&self) -> bool {
        matches!(self.state, State::Ended)
    }

    fn newest(&self) -> Micros {
        self.clock.newest().max(self.start)
    }

    fn watermark(&self, lateness: Micros) -> Micros {
        self.clock.watermark().max(self.start - lateness)
    }
}

impl State {
    fn reading(read: Box<dyn Read>, content: Content) -> Self {
        Self::Reading(Box::new(Reading { read, lines: content.lines(), line: 0 }))
    }
}

/// All files of a kind.
pub struct Side {
    /// In the order in which they were given.
    pub sources: Vec<Source>,
    lateness: Micros,
}

impl Side {
    /// Of these files.
    pub fn new(sources: Vec<Source>, lateness: Micros) -> Self {
        Self { sources, lateness }
    }

    /// The file that is furthest behind, to be read next; `None` when all have ended.
    pub fn next(&self) -> Option<usize> {
        let open = self.sources.iter().enumerate().filter(|(_, source)| !source.has_ended());
        open.min_by_key(|(_, source)| source.newest()).map(|(index, _)| index)
    }

    /// No line before this is to come from any.
    pub fn watermark(&self) -> Micros {
        let open = self.sources.iter().filter(|source| !source.has_ended());
        open.map(|source| source.watermark(self.lateness)).min().unwrap_or(Micros::MAX)
    }
}
