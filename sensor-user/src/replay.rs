//! Recorded opens and audit logs through the rules once more, in the order of event time.
//!
//! ```text
//!  --opens ─► input ─► source ─► opens ─────────┐
//!                                  │ expect     ├─► merge ─► semantics ─► output
//!  --audit ─► input ─► source ─► scan (judge) ──┘
//! ```
//!
//! One thread, bounded memory: a chunk of the file that is furthest behind is read; the opens up to
//! its end are read ahead, so that the scan knows which pods matter; what matters waits in `merge`
//! until nothing earlier can come. Called by the command of the same name.

use std::{collections::HashSet, io, path::PathBuf};

use indicatif::ProgressBar;

use crate::{
    alert::ecs::Document,
    audit::{
        BadLine,
        lines::{Line, without_bodies},
        scan::last_stage_timestamp,
    },
    time::Micros,
};

pub mod clock;
pub mod document;
pub mod elastic;
pub mod input;
pub mod merge;
pub mod opens;
pub mod output;
pub mod semantics;
pub mod source;
pub mod spill;
pub mod summary;

use clock::Clock;
use input::Input;
use merge::{Kind, Merge, Place};
use opens::OpenDocument;
use output::Sorted;
use semantics::{Judged, Semantics, live::can_begin_incident};
use source::{CHUNK, Content, Side, Source, without_mark};
use spill::{Spill, Spilled};
use summary::{ReplayError, Summary, Tally};

/// What may wait for its turn, bytes.
const WAITING: usize = 24 << 20;
/// From here on it waits on disk, and only its place takes memory.
const WAITING_HERE: usize = 4 << 20;
/// For how long after the last event what ends is told second by second: in memory one second's
/// documents at a time.
const END: i64 = 16 * 60;
/// From this length on a line waits without its bodies.
const LONG: usize = 2 << 10;
/// What an open takes while it waits in memory, roughly, bytes.
const OPEN_SIZE: usize = 3 << 10;
/// What anything takes besides, bytes.
const ITEM_SIZE: usize = 192;
/// Pods that are told apart from all others.
const PODS: usize = 65_536;

/// What to replay.
#[derive(Clone, Debug)]
pub struct Files {
    /// ECS documents.
    pub opens: Vec<PathBuf>,
    /// Audit events.
    pub audit: Vec<PathBuf>,
    /// How far a line of either may be behind an earlier one of its file.
    pub lateness: Micros,
    /// No line is of after this: what says so has a broken clock.
    pub latest: Micros,
}

impl Files {
    fn clock(&self) -> Clock {
        Clock::new(self.lateness, self.latest)
    }

    /// Bytes on disk; `None` where that shows only at their end.
    pub fn size(&self) -> Option<u64> {
        self.opens.iter().chain(&self.audit).map(|path| Input::of(path.clone()).size()).sum()
    }
}

/// Whose opens there are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PodsWithOpens {
    /// Those of these uids: each open says whose it is.
    Uids(HashSet<String>),
    /// Those of these names: some opens have nothing else.
    Names(HashSet<String>),
    /// That is not known before.
    Unknown,
}

/// Finds all pods of which the opens can begin an incident, by reading them once. Unknown where they
/// cannot be read twice or are too many. What is wrong with a file is told when it is replayed.
pub fn pods_with_opens(files: &Files) -> PodsWithOpens {
    find_pods(files).unwrap_or(PodsWithOpens::Unknown)
}

fn find_pods(files: &Files) -> Option<PodsWithOpens> {
    let (mut uids, mut names) = (HashSet::new(), HashSet::new());
    let (mut have_uids, mut have_names) = (true, true);
    let mut buffer = vec![0; CHUNK];
    for path in &files.opens {
        let input = Input::of(path.clone());
        // To look into it would take from it.
        if !input.is_repeatable() {
            return None;
        }
        let hidden = ProgressBar::hidden();
        let mut source = Source::find(input, Content::Opens, files.clock(), &hidden).ok()?.ok()?;
        loop {
            let filled = source.fill(&mut buffer).ok()?;
            let chunk = buffer.get(..filled).unwrap_or_default();
            for_each_line(&mut source, chunk, &mut Tally::default(), |line, _, _, _| {
                if let Ok(Some(open)) = opens::parse(line.bytes)
                    && can_begin_incident(&open)
                {
                    let name = open.names.first();
                    // One with neither is joined with nothing.
                    have_uids &= open.pod_uid.is_some() || name.is_none();
                    have_names &= name.is_some() || open.pod_uid.is_none();
                    uids.extend(open.pod_uid.clone());
                    names.extend(name.cloned());
                }
            });
            if !(have_uids || have_names) || uids.len() > PODS || names.len() > PODS {
                return None;
            }
            if chunk.is_empty() {
                break;
            }
        }
    }
    Some(if have_uids { PodsWithOpens::Uids(uids) } else { PodsWithOpens::Names(names) })
}

/// Replays the files; the documents go to `sorted`.
///
/// # Errors
/// A file is the wrong one or cannot be opened, or alerts cannot be kept. What is wrong with lines,
/// or with a file further on, is in the summary.
pub fn run(
    files: &Files,
    semantics: &mut dyn Semantics,
    sorted: &mut Sorted,
    progress: &ProgressBar,
) -> Result<Summary, ReplayError> {
    run_in_chunks(CHUNK, files, semantics, sorted, progress)
}

fn run_in_chunks(
    chunk: usize,
    files: &Files,
    semantics: &mut dyn Semantics,
    sorted: &mut Sorted,
    progress: &ProgressBar,
) -> Result<Summary, ReplayError> {
    let inputs = |paths: &[PathBuf]| paths.iter().cloned().map(Input::of).collect::<Vec<_>>();
    let (opens, audit) = (inputs(&files.opens), inputs(&files.audit));
    if opens.iter().chain(&audit).filter(|input| **input == Input::Stdin).count() > 1 {
        return Err(ReplayError::StdinTwice);
    }
    let mut replay = Replay {
        audit: find(audit, Content::Audit, files, progress)?,
        buffer: vec![0; chunk],
        tally: Tally::default(),
        unread: Vec::new(),
        ahead: Ahead {
            opens: find(opens, Content::Opens, files, progress)?,
            buffer: vec![0; chunk],
            tally: Tally::default(),
            waiting: Waiting {
                merge: Merge::new(WAITING),
                spill: Spill::new(sorted.folder()),
                failed: None,
            },
            semantics,
        },
        last: Micros(0),
        sorted,
    };
    replay.run()?;
    let Replay { tally, unread, ahead, .. } = replay;
    Ok(Summary {
        opens: ahead.tally,
        audit: tally,
        late: ahead.waiting.merge.late(),
        early: ahead.waiting.merge.early(),
        excepted: ahead.semantics.excepted(),
        losses: ahead.semantics.losses(),
        unread,
    })
}

fn find(
    inputs: Vec<Input>,
    content: Content,
    files: &Files,
    progress: &ProgressBar,
) -> Result<Side, ReplayError> {
    let mut sources = Vec::new();
    for input in inputs {
        let name = input.name();
        match Source::find(input, content, files.clock(), progress) {
            Ok(Ok(source)) => sources.push(source),
            Ok(Err(Content::Alerts)) => {
                return Err(ReplayError::Alerts { name, given: content.option() });
            }
            Ok(Err(Content::Posts)) => {
                return Err(ReplayError::Posts { name, given: content.option() });
            }
            Ok(Err(found)) => {
                return Err(ReplayError::Mistaken {
                    name,
                    given: content.option(),
                    holds: found.name(),
                    other: found.option(),
                });
            }
            Err(source) => return Err(ReplayError::Open { name, source }),
        }
    }
    Ok(Side::new(sources, files.lateness))
}

/// What waits for its turn.
enum Item {
    Open(Box<OpenDocument>),
    Request(Box<[u8]>),
    /// The line of either.
    OnDisk(Spilled),
}

struct Replay<'a> {
    audit: Side,
    buffer: Vec<u8>,
    tally: Tally,
    unread: Vec<String>,
    ahead: Ahead<'a>,
    /// Time of the last that had its turn.
    last: Micros,
    sorted: &'a mut Sorted,
}

/// The opens, which are read ahead of the audit events, and what waits.
struct Ahead<'a> {
    opens: Side,
    buffer: Vec<u8>,
    tally: Tally,
    waiting: Waiting,
    semantics: &'a mut dyn Semantics,
}

/// What waits, in memory or on disk.
struct Waiting {
    merge: Merge<Item>,
    spill: Spill,
    /// What kept a temporary file from being written. Whoever goes on asks.
    failed: Option<io::Error>,
}

impl Waiting {
    /// Lets a line wait, or what was made of it and takes so many bytes.
    fn keep(&mut self, place: Place, line: &[u8], bytes: usize, item: impl FnOnce() -> Item) {
        if self.merge.bytes() < WAITING_HERE {
            return self.merge.push(place, item(), bytes + ITEM_SIZE);
        }
        match self.spill.put(line) {
            Ok(spilled) => self.merge.push(place, Item::OnDisk(spilled), ITEM_SIZE),
            Err(error) => self.failed = Some(error),
        }
    }
}

impl Replay<'_> {
    fn run(&mut self) -> Result<(), ReplayError> {
        while let Some(index) = self.audit.next() {
            self.read_audit(index);
            let watermark = self.audit.watermark();
            self.ahead.semantics.forget(watermark);
            self.hand_out(watermark.min(self.ahead.opens.watermark()))?;
        }
        while self.ahead.read(&mut self.unread) {
            self.hand_out(self.ahead.opens.watermark())?;
        }
        while let Some((place, item)) = self.ahead.waiting.merge.pop(Micros::MAX) {
            self.give(place, item)?;
        }
        for second in 1..=END {
            self.advance(self.last + Micros::from_secs(second))?;
        }
        self.advance(Micros::MAX)
    }

    /// A chunk of an audit file, and before it the opens that its lines can follow.
    fn read_audit(&mut self, index: usize) {
        let Self { audit, buffer, tally, unread, ahead, .. } = self;
        let Some(source) = audit.sources.get_mut(index) else { return };
        let filled = fill(source, buffer, unread);
        let chunk = buffer.get(..filled).unwrap_or_default();
        let horizon = note_times(source.clock(), chunk);
        ahead.read_to(horizon, unread);
        let file = u32::try_from(index).unwrap_or(u32::MAX);
        for_each_line(source, chunk, tally, |line, number, clock, tally| {
            // Its time may be in several chunks.
            if line.carried
                && let Some(time) = last_stage_timestamp(line.bytes)
                && time <= clock.latest()
            {
                clock.note(time);
                ahead.read_to(time + clock.lateness(), unread);
            }
            let judged = match line.fault() {
                Some(reason) => Judged::Bad(reason),
                None => ahead.semantics.judge(line.bytes),
            };
            match judged {
                Judged::Skip => {}
                Judged::Bad(reason) => tally.bad(reason),
                Judged::Keep { time } if time > clock.latest() => tally.bad(BadLine::BadTime),
                Judged::Keep { time } => {
                    tally.kept += 1;
                    let place = Place { time, kind: Kind::Request, file, line: number };
                    let long = line.bytes.len() > LONG;
                    let line = if long { &without_bodies(line.bytes) } else { line.bytes };
                    ahead.waiting.keep(place, line, line.len(), || Item::Request(line.into()));
                }
            }
        });
    }

    /// Gives everything its turn that belongs before the watermark.
    fn hand_out(&mut self, watermark: Micros) -> Result<(), ReplayError> {
        while let Some((place, item)) = self.ahead.waiting.merge.pop(watermark) {
            self.give(place, item)?;
        }
        self.advance(watermark)
    }

    fn advance(&mut self, watermark: Micros) -> Result<(), ReplayError> {
        let Ahead { semantics, waiting, .. } = &mut self.ahead;
        semantics.advance(watermark, &mut telling(self.sorted, &mut waiting.failed));
        self.check()
    }

    fn give(&mut self, place: Place, item: Item) -> Result<(), ReplayError> {
        self.last = self.last.max(place.time);
        self.advance(place.time)?;
        let Ahead { semantics, waiting, .. } = &mut self.ahead;
        let mut tell = telling(self.sorted, &mut waiting.failed);
        let outcome = match item {
            Item::Open(open) => {
                semantics.open(*open, &mut tell);
                Ok(())
            }
            Item::Request(line) => semantics.request(&line, &mut tell),
            Item::OnDisk(spilled) => {
                let line = spilled.take().map_err(ReplayError::Temporary)?;
                match place.kind {
                    // It was parsed before.
                    Kind::Open => opens::parse(&line).map(|open| {
                        open.into_iter().for_each(|open| semantics.open(open, &mut tell));
                    }),
                    Kind::Request => semantics.request(&line, &mut tell),
                }
            }
        };
        drop(tell);
        if let Err(reason) = outcome {
            self.tally.bad(reason);
        }
        self.check()
    }

    fn check(&mut self) -> Result<(), ReplayError> {
        self.ahead.waiting.failed.take().map_or(Ok(()), |error| Err(ReplayError::Temporary(error)))
    }
}

/// Puts what is told where documents go.
fn telling<'a>(
    sorted: &'a mut Sorted,
    failed: &'a mut Option<io::Error>,
) -> impl FnMut(Document) + 'a {
    |document| {
        if failed.is_none() {
            *failed = sorted.push(&document).err();
        }
    }
}

impl Ahead<'_> {
    /// Reads all opens up to this time. Where times are absurd the bound holds, and what is beyond
    /// it is expected too late.
    fn read_to(&mut self, horizon: Micros, unread: &mut Vec<String>) {
        while self.opens.watermark() <= horizon && self.waiting.merge.takes_opens() {
            if !self.read(unread) {
                return;
            }
        }
    }

    /// A chunk of the opens that are furthest behind; `false` when there is none.
    fn read(&mut self, unread: &mut Vec<String>) -> bool {
        let Some(index) = self.opens.next() else { return false };
        let Self { opens, buffer, tally, waiting, semantics } = self;
        let Some(source) = opens.sources.get_mut(index) else { return false };
        let filled = fill(source, buffer, unread);
        let chunk = buffer.get(..filled).unwrap_or_default();
        let file = u32::try_from(index).unwrap_or(u32::MAX);
        for_each_line(source, chunk, tally, |line, number, clock, tally| {
            let parsed = match line.fault() {
                Some(reason) => Err(reason),
                None => opens::parse(line.bytes),
            };
            match parsed {
                Err(reason) => tally.bad(reason),
                Ok(None) => {}
                Ok(Some(open)) if open.time > clock.latest() => tally.bad(BadLine::BadTime),
                Ok(Some(open)) => {
                    clock.note(open.time);
                    for field in &open.unread {
                        *tally.in_part.entry(field).or_default() += 1;
                    }
                    if open.pod_uid.is_none() && (open.names.is_empty() || open.namespace.is_none())
                    {
                        // Nothing can be joined with it, or under `elastic` by its name at most.
                        *tally.in_part.entry("no_pod").or_default() += 1;
                    }
                    if semantics.expect(&open) {
                        tally.kept += 1;
                        let place = Place { time: open.time, kind: Kind::Open, file, line: number };
                        let open = || Item::Open(Box::new(open));
                        waiting.keep(place, line.bytes, OPEN_SIZE, open);
                    }
                }
            }
        });
        true
    }
}

/// The source's next bytes; 0 at its end, and where it cannot be read any further, which is told.
fn fill(source: &mut Source, buffer: &mut [u8], unread: &mut Vec<String>) -> usize {
    source.fill(buffer).unwrap_or_else(|error| {
        unread.push(format!("{}: {error}", source.name()));
        0
    })
}

/// Feeds a chunk to the source's assembler, an empty one to end it, and what that completes to
/// `take`, with its number.
fn for_each_line(
    source: &mut Source,
    chunk: &[u8],
    tally: &mut Tally,
    mut take: impl FnMut(&Line<'_>, u64, &mut Clock, &mut Tally),
) {
    let Some((reading, clock)) = source.reading() else { return };
    tally.bytes += chunk.len() as u64;
    let mut rest = chunk;
    loop {
        let next = match chunk.is_empty() {
            true => reading.lines.finish(),
            false => reading.lines.next_line(&mut rest),
        };
        let Some(line) = next else { break };
        reading.line += 1;
        tally.lines += 1;
        let bytes = if reading.line == 1 { without_mark(line.bytes) } else { line.bytes };
        take(&Line { bytes, ..line }, reading.line, clock, tally);
    }
    if chunk.is_empty() {
        source.end();
    }
}

/// Notes how far an audit file has come with a chunk; no line that is whole in it is later than
/// what is returned.
fn note_times(clock: &mut Clock, chunk: &[u8]) -> Micros {
    // What a line that is not whole yet says may be a body's.
    let end = memchr::memrchr(b'\n', chunk).unwrap_or_default();
    let whole = chunk.get(..end).unwrap_or_default();
    let latest = clock.latest();
    match last_stage_timestamp(whole) {
        Some(last) if !clock.is_leap(last) && last >= clock.watermark() => {
            clock.note(last);
            last + clock.lateness()
        }
        // A gap, or times that break all bounds: each line is asked.
        _ => {
            let times = whole.split(|byte| *byte == b'\n').filter_map(last_stage_timestamp);
            let times = times.filter(|time| *time <= latest);
            let greatest = times.inspect(|time| clock.note(*time)).max();
            greatest.unwrap_or(Micros::MIN) + clock.lateness()
        }
    }
}

#[cfg(test)]
mod tests;
