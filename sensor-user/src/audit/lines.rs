//! From chunks of bytes to lines and the offsets at which they end.
//!
//! Pure and of bounded memory whatever the input: a line up to 64 KiB is handed on as it is, a
//! longer one through the `Shortener` (no bodies, no overlong values). Knows nothing of files or of
//! audit events but the names of the two bodies. Called by the tailer and by `replay`.

use memchr::memchr2;

use self::shorten::Shortener;

mod shorten;

/// What is handed on of one line at most, bytes.
pub const MAX_LINE: usize = 64 << 10;

/// One line, without its newline.
#[derive(Debug, PartialEq, Eq)]
pub struct Line<'a> {
    /// The line or what is left of it; at most [`MAX_LINE`] bytes, unless longer ones are kept whole.
    pub bytes: &'a [u8],
    /// How much of the line that is.
    pub fit: Fit,
    /// Offset behind the line and its newline.
    pub end: u64,
    /// Whether it was put together from several chunks.
    pub carried: bool,
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
}

/// A line of at most [`MAX_LINE`] bytes without its bodies, for whoever has to keep it; as it is where
/// it cannot be made shorter.
pub fn without_bodies(line: &[u8]) -> Box<[u8]> {
    let mut shortener = Shortener::of_bodies();
    shortener.push(line);
    match shortener.finish() {
        (kept, Fit::Whole | Fit::Shortened) => kept.into(),
        (_, Fit::TooLong) => line.into(),
    }
}

/// Assembles lines. Holds the unterminated end of what it was fed.
#[derive(Debug)]
pub struct Lines {
    /// Up to this length a line is kept whole.
    longest: usize,
    /// The unterminated line so far, if it is within `longest`.
    partial: Vec<u8>,
    /// The unterminated line so far, if it is longer. Boxed: most files never need it.
    long: Option<Box<Shortener>>,
    /// Whether `partial` or `long` was handed out as a line and is to be cleared.
    handed: bool,
    offset: u64,
    complete: u64,
    nul_bytes: u64,
}

impl Lines {
    /// An assembler whose first byte has this offset.
    pub fn new(offset: u64) -> Self {
        Self {
            longest: MAX_LINE,
            partial: Vec::new(),
            long: None,
            handed: false,
            offset,
            complete: offset,
            nul_bytes: 0,
        }
    }

    /// An assembler from the beginning that keeps lines of up to this length whole.
    pub fn with_longest(longest: usize) -> Self {
        Self { longest, ..Self::new(0) }
    }

    /// Offset behind the last complete line: a reader that starts here misses and repeats nothing.
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
        if self.partial.is_empty() && self.long.is_none() {
            self.skip_nuls(rest);
        }
        let chunk: &'chunk [u8] = rest;
        let Some(at) = memchr2(b'\n', 0, chunk) else {
            *rest = &[];
            self.offset += chunk.len() as u64;
            self.keep(chunk);
            return None;
        };
        let (head, tail) = chunk.split_at(at);
        // The NULs themselves are left to be counted by the next call.
        let after = tail.strip_prefix(b"\n").unwrap_or(tail);
        *rest = after;
        self.offset += (chunk.len() - after.len()) as u64;
        self.complete = self.offset;
        if self.partial.is_empty() && self.long.is_none() && head.len() <= self.longest {
            let (fit, end) = (Fit::Whole, self.complete);
            return Some(Line { bytes: head, fit, end, carried: false });
        }
        self.keep(head);
        Some(self.hand_out())
    }

    /// The unterminated end as a line, when nothing can follow it any more.
    pub fn finish(&mut self) -> Option<Line<'_>> {
        self.clear_handed();
        self.complete = self.offset;
        if self.partial.is_empty() && self.long.is_none() {
            return None;
        }
        Some(self.hand_out())
    }

    fn clear_handed(&mut self) {
        if std::mem::take(&mut self.handed) {
            self.partial.clear();
            self.long = None;
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

    fn keep(&mut self, bytes: &[u8]) {
        if self.long.is_none() && self.partial.len() + bytes.len() <= self.longest {
            self.partial.extend_from_slice(bytes);
            return;
        }
        let long = self.long.get_or_insert_default();
        long.push(&std::mem::take(&mut self.partial));
        long.push(bytes);
    }

    fn hand_out(&mut self) -> Line<'_> {
        self.handed = true;
        let (bytes, fit) = match &mut self.long {
            Some(long) => long.finish(),
            None => (self.partial.as_slice(), Fit::Whole),
        };
        Line { bytes, fit, end: self.complete, carried: true }
    }
}

#[cfg(test)]
mod tests;
