//! From chunks of bytes to lines and the offsets at which they end.
//!
//! Pure and of bounded memory whatever the input: a line up to 64 KiB is handed on as it is, a
//! longer one through the `Shortener` (no bodies, no overlong values). A line in which a log service has
//! wrapped events is handed on as these, by `envelope`: whoever takes lines from here knows of no other
//! form than the API server's. Knows nothing of files or of audit events but the names of the two bodies.
//! Called by all audit sources and by `replay`.

use memchr::memchr2;

use self::{
    envelope::{Envelope, LEAD, without_lead},
    shorten::Shortener,
};
use super::BadLine;

mod envelope;
mod shorten;

/// What is handed on of one line at most, bytes.
pub const MAX_LINE: usize = 64 << 10;

/// One line, without its newline; or one of the events that are wrapped in it.
#[derive(Debug, PartialEq, Eq)]
pub struct Line<'a> {
    /// The line or what is left of it; at most [`MAX_LINE`] bytes, unless longer ones are kept whole.
    pub bytes: &'a [u8],
    /// How much of the line that is.
    pub fit: Fit,
    /// Offset behind the line and its newline, or behind the event.
    pub end: u64,
    /// Whether it stands in no chunk as it is: it was put together from several, or unwrapped.
    pub carried: bool,
}

impl Line<'_> {
    /// Why it is of no use, if that is known without a look at it.
    pub fn fault(&self) -> Option<BadLine> {
        match self.fit {
            Fit::Whole | Fit::Shortened => None,
            Fit::TooLong => Some(BadLine::TooLong),
            Fit::Torn => Some(BadLine::NotJson),
            Fit::CloudAudit => Some(BadLine::CloudAudit),
        }
    }
}

/// How much of a line was handed on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fit {
    /// All of it.
    Whole,
    /// Still one JSON object if the line was, but without bodies and overlong values.
    Shortened,
    /// Not all that would have to be kept: of no use.
    TooLong,
    /// The end of a line in which events are wrapped, which does not end as it must. Those that were
    /// whole were handed on.
    Torn,
    /// An entry of Google Cloud's audit log, which is none of the API server's.
    CloudAudit,
}

/// A line of at most [`MAX_LINE`] bytes without its bodies, for whoever has to keep it; as it is where
/// it cannot be made shorter.
pub fn without_bodies(line: &[u8]) -> Box<[u8]> {
    let mut shortener = Shortener::of_bodies();
    shortener.push(line);
    match shortener.finish() {
        (kept, Fit::Whole | Fit::Shortened) => kept.into(),
        (_, Fit::TooLong | Fit::Torn | Fit::CloudAudit) => line.into(),
    }
}

/// Assembles lines. Holds the unterminated end of what it was fed.
#[derive(Debug)]
pub struct Lines {
    /// Whether events are unwrapped.
    unwraps: bool,
    /// The unterminated line so far; of one with wrapped events, until the first of them.
    line: Kept,
    /// The same line, if events may be wrapped in it.
    envelope: Envelope,
    /// Whether they may.
    wrapped: bool,
    /// Whether `line` was handed out and is to be cleared.
    handed: bool,
    offset: u64,
    complete: u64,
    nul_bytes: u64,
}

/// What is kept of a line or of an event that comes in pieces.
#[derive(Debug, Default)]
struct Kept {
    /// Up to this length it is kept whole.
    longest: usize,
    /// Whether something may stand before an event.
    led: bool,
    /// All of it, if it is within `longest`.
    partial: Vec<u8>,
    /// What is left of it, if it is longer. Boxed: most files never need it.
    long: Option<Box<Shortener>>,
}

/// How far a look for wrapped events has come.
enum Step {
    /// An event is ready.
    Event,
    /// The line is at its end.
    End,
    /// All was taken.
    More,
}

impl Lines {
    /// An assembler of an audit source, whose first byte has this offset.
    pub fn new(offset: u64) -> Self {
        let line = Kept { led: true, ..Kept::new(MAX_LINE) };
        Self { unwraps: true, line, offset, complete: offset, ..Self::with_longest(MAX_LINE) }
    }

    /// An assembler from the beginning that keeps lines of up to this length whole, and unwraps none.
    pub fn with_longest(longest: usize) -> Self {
        Self {
            unwraps: false,
            line: Kept::new(longest),
            envelope: Envelope::default(),
            wrapped: false,
            handed: false,
            offset: 0,
            complete: 0,
            nul_bytes: 0,
        }
    }

    /// Offset behind the last complete line: a reader that starts here misses nothing, and repeats
    /// nothing but events of a line that is not complete.
    pub fn complete(&self) -> u64 {
        self.complete
    }

    /// Offset behind the last byte taken.
    pub fn offset(&self) -> u64 {
        self.offset
    }

    /// NUL bytes passed over since the last call.
    pub fn take_nul_bytes(&mut self) -> u64 {
        std::mem::take(&mut self.nul_bytes)
    }

    /// The next line of `rest`, which shrinks by what was taken. `None`: all was taken, feed the
    /// next chunk.
    ///
    /// A NUL ends a line like a newline does: none can be in JSON, so what stands before a run of
    /// them (the hole that copytruncate leaves, or a block lost in a power cut) was torn off.
    pub fn next_line<'a, 'chunk: 'a>(&'a mut self, rest: &mut &'chunk [u8]) -> Option<Line<'a>> {
        self.clear_handed();
        loop {
            if !self.wrapped && self.line.is_empty() {
                self.skip_nuls(rest);
                self.wrapped = self.unwraps && envelope::may_begin(rest);
                if self.wrapped {
                    self.envelope.begin(self.line.longest);
                }
            }
            if !self.wrapped {
                return self.next_plain_line(rest);
            }
            match self.unwrap_some(rest) {
                Step::Event => return self.hand_out_event(),
                Step::More => return None,
                Step::End if self.has_rest() => return Some(self.hand_out_rest()),
                Step::End => {}
            }
        }
    }

    /// The unterminated end as a line, when nothing can follow it any more.
    pub fn finish(&mut self) -> Option<Line<'_>> {
        self.clear_handed();
        self.complete = self.offset;
        if std::mem::take(&mut self.wrapped) {
            return if self.has_rest() { Some(self.hand_out_rest()) } else { None };
        }
        if self.line.is_empty() {
            return None;
        }
        Some(self.hand_out())
    }

    fn clear_handed(&mut self) {
        if std::mem::take(&mut self.handed) {
            self.line.clear();
        }
    }

    fn skip_nuls(&mut self, rest: &mut &[u8]) {
        let nuls = rest.iter().take_while(|byte| **byte == 0).count();
        if nuls > 0 {
            *rest = rest.get(nuls..).unwrap_or_default();
            self.nul_bytes += nuls as u64;
            self.offset += nuls as u64;
            self.complete = self.offset;
        }
    }

    fn next_plain_line<'a, 'chunk: 'a>(&'a mut self, rest: &mut &'chunk [u8]) -> Option<Line<'a>> {
        let chunk: &'chunk [u8] = rest;
        let Some(at) = memchr2(b'\n', 0, chunk) else {
            *rest = &[];
            self.offset += chunk.len() as u64;
            self.line.push(chunk);
            return None;
        };
        let (head, tail) = chunk.split_at(at);
        *rest = tail;
        self.offset += head.len() as u64;
        self.end_line(rest);
        if self.line.is_empty() && head.len() <= self.line.longest {
            let bytes = if self.unwraps { without_lead(head) } else { head };
            return Some(Line { bytes, fit: Fit::Whole, end: self.complete, carried: false });
        }
        self.line.push(head);
        Some(self.hand_out())
    }

    /// Passes over what ends a line. NULs themselves are left to be counted by the next call.
    fn end_line(&mut self, rest: &mut &[u8]) {
        if let Some(after) = rest.strip_prefix(b"\n") {
            *rest = after;
            self.offset += 1;
        }
        self.complete = self.offset;
    }

    /// Looks for the next event that is wrapped in the line.
    fn unwrap_some(&mut self, rest: &mut &[u8]) -> Step {
        let end = memchr2(b'\n', 0, rest);
        let line = end.and_then(|at| rest.get(..at)).unwrap_or(rest);
        let (taken, after) = rest.split_at(self.envelope.push(line));
        *rest = after;
        self.offset += taken.len() as u64;
        if self.envelope.has_carried() {
            self.line.clear();
        } else {
            self.line.push(taken);
        }
        if self.envelope.ready().is_some() {
            return Step::Event;
        }
        if end.is_none() {
            return Step::More;
        }
        self.end_line(rest);
        self.wrapped = false;
        Step::End
    }

    fn hand_out_event(&mut self) -> Option<Line<'_>> {
        let (bytes, fit) = self.envelope.ready()?.finish();
        Some(Line { bytes, fit, end: self.offset, carried: true })
    }

    /// Whether something of a line is left to be handed on, once its events are.
    fn has_rest(&self) -> bool {
        !(self.envelope.has_carried() && self.envelope.is_whole())
    }

    /// The line itself if it carries no events, as it is then one like any other.
    fn hand_out_rest(&mut self) -> Line<'_> {
        let carried = self.envelope.has_carried();
        let fault = match (carried, self.envelope.is_cloud_audit()) {
            (true, _) => Some(Fit::Torn),
            (false, true) => Some(Fit::CloudAudit),
            (false, false) => None,
        };
        let line = self.hand_out();
        Line { fit: fault.unwrap_or(line.fit), ..line }
    }

    fn hand_out(&mut self) -> Line<'_> {
        self.handed = true;
        let (bytes, fit) = self.line.finish();
        Line { bytes, fit, end: self.complete, carried: true }
    }
}

impl Kept {
    fn new(longest: usize) -> Self {
        Self { longest, ..Self::default() }
    }

    fn is_empty(&self) -> bool {
        self.partial.is_empty() && self.long.is_none()
    }

    fn clear(&mut self) {
        self.partial.clear();
        self.long = None;
    }

    fn push(&mut self, bytes: &[u8]) {
        if self.long.is_none() && self.partial.len() + bytes.len() <= self.longest {
            self.partial.extend_from_slice(bytes);
            return;
        }
        if let Some(long) = &mut self.long {
            long.push(bytes);
            return;
        }
        // As much of the beginning as shows what stands before an event.
        let (beginning, rest) = bytes.split_at(bytes.len().min(LEAD));
        self.partial.extend_from_slice(beginning);
        let beginning = std::mem::take(&mut self.partial);
        let long = self.long.insert(Box::default());
        long.push(if self.led { without_lead(&beginning) } else { &beginning });
        long.push(rest);
    }

    fn finish(&mut self) -> (&[u8], Fit) {
        match &mut self.long {
            Some(long) => long.finish(),
            None if self.led => (without_lead(&self.partial), Fit::Whole),
            None => (self.partial.as_slice(), Fit::Whole),
        }
    }
}

#[cfg(test)]
mod tests;
