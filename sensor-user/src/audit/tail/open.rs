//! One open log file and how far it is read.
//!
//! Reads a few bytes back each time: if they are gone or are others, the file was truncated or
//! rewritten in place (and may have grown past the old place since). That costs no system call.

use std::{
    fs::{self, File},
    io::{self, Read},
    os::{fd::AsRawFd, unix::fs::FileExt},
    time::SystemTime,
};

use flate2::read::MultiGzDecoder;
use memchr::memrchr;

use super::{gzip::Gzip, rotation::FileId};
use crate::{
    audit::{checkpoint::Position, lines::Lines},
    fingerprint::first_line,
};

/// How many bytes back are compared. Lines may be of one length and of one ending, but their times
/// stand within this, and no two lines have the same ones.
const REMEMBERED: usize = 512;

/// A file being read.
#[derive(Debug)]
pub(super) struct OpenFile {
    content: Content,
    id: FileId,
    lines: Lines,
    /// Fingerprint of the first line, once there is one.
    first_line: Option<u64>,
}

#[derive(Debug)]
enum Content {
    /// As it was written; it may grow, or be truncated.
    Plain(Plain),
    /// Rotated and compressed.
    Compressed(Gzip),
}

#[derive(Debug)]
struct Plain {
    file: File,
    /// The bytes before the next one to read, as they were when they were read.
    last: Vec<u8>,
}

/// What a read found.
#[derive(Debug)]
pub(super) enum Found<'a> {
    /// New bytes, perhaps none, and whether there may be more right now.
    Bytes(&'a [u8], bool),
    /// The file is not the one it was.
    Truncated,
    /// A compressed file that cannot be read any further.
    Damaged(io::Error),
}

impl OpenFile {
    /// The file from an offset on.
    pub(super) fn at(file: File, id: FileId, offset: u64) -> Self {
        let last = bytes_before(&file, offset).unwrap_or_default();
        let content = Content::Plain(Plain { file, last });
        Self { content, id, lines: Lines::new(offset), first_line: None }
    }

    /// A compressed file from an offset of its content on.
    pub(super) fn compressed(file: File, id: FileId, offset: u64, rotated: SystemTime) -> Self {
        let first_line = first_line(MultiGzDecoder::new(FromStart::of(&file))).ok().flatten();
        let content = Content::Compressed(Gzip::at(file, offset, rotated));
        Self { content, id, lines: Lines::new(offset), first_line }
    }

    /// The file behind its last complete line: one that is being written now is read whole.
    pub(super) fn at_end(file: File, id: FileId) -> io::Result<Self> {
        let mut end = file.metadata()?.len();
        let mut buffer = [0; 4096];
        while end > 0 {
            let start = end.saturating_sub(buffer.len() as u64);
            let read = file.read_at(&mut buffer, start)?;
            let read = buffer.get(..read).unwrap_or_default();
            if let Some(newline) = memrchr(b'\n', read) {
                end = start + newline as u64 + 1;
                break;
            }
            end = start;
        }
        Ok(Self::at(file, id, end))
    }

    pub(super) fn id(&self) -> FileId {
        self.id
    }

    pub(super) fn lines(&mut self) -> &mut Lines {
        &mut self.lines
    }

    /// Fingerprint of the first line; `None` before anything was read.
    pub(super) fn first_line(&mut self) -> Option<u64> {
        // Nothing read is nothing to know again: what comes first may still be taken away unseen.
        if let (None, Content::Plain(plain)) = (self.first_line, &self.content)
            && self.lines.complete() > 0
        {
            self.first_line = first_line(FromStart::of(&plain.file)).ok().flatten();
        }
        self.first_line
    }

    /// Behind the last complete line.
    pub(super) fn position(&mut self) -> Position {
        let FileId { device, inode } = self.id;
        let (first_line, modified, path) = (self.first_line(), self.modified(), self.path());
        Position { device, inode, offset: self.lines.complete(), first_line, modified, path }
    }

    /// Where it is now, whatever link led there and however it was renamed since.
    fn path(&self) -> Option<String> {
        let Content::Plain(plain) = &self.content else { return None };
        let link = format!("/proc/self/fd/{}", plain.file.as_raw_fd());
        fs::read_link(link).ok()?.into_os_string().into_string().ok()
    }

    /// Time of the last write; of a compressed file the time of its rotation.
    pub(super) fn modified(&self) -> Option<SystemTime> {
        match &self.content {
            Content::Plain(plain) => plain.file.metadata().and_then(|it| it.modified()).ok(),
            Content::Compressed(gzip) => Some(gzip.rotated),
        }
    }

    /// Bytes that are not read yet; of a compressed file nobody knows.
    pub(super) fn behind(&self) -> u64 {
        let size = match &self.content {
            Content::Plain(plain) => plain.file.metadata().map_or(0, |metadata| metadata.len()),
            Content::Compressed(_) => 0,
        };
        size.saturating_sub(self.lines.offset())
    }

    /// Whether this is the content that the position is of. It is not if the file was truncated, or
    /// is another one that got the inode number of a deleted one.
    pub(super) fn continues(&mut self, start: &Position) -> bool {
        if start.first_line.is_some() && self.first_line() != start.first_line {
            return false;
        }
        let Content::Plain(plain) = &self.content else { return true };
        match plain.last.last() {
            None => start.offset == 0,
            // At the very end an unterminated line may have been given up as torn.
            Some(last) => matches!(last, b'\n' | 0) || self.behind() == 0,
        }
    }

    /// Starts over.
    pub(super) fn rewind(&mut self) {
        self.lines = Lines::new(0);
        self.first_line = None;
        if let Content::Plain(plain) = &mut self.content {
            plain.last.clear();
        }
    }

    /// Reads what is new into the buffer.
    pub(super) fn read<'a>(&mut self, buffer: &'a mut [u8]) -> io::Result<Found<'a>> {
        match &mut self.content {
            Content::Plain(plain) => plain.read(self.lines.offset(), buffer),
            Content::Compressed(gzip) => Ok(match gzip.read(buffer) {
                Ok((bytes, more)) => Found::Bytes(bytes, more),
                Err(error) => Found::Damaged(error),
            }),
        }
    }
}

impl Plain {
    fn read<'a>(&mut self, offset: u64, buffer: &'a mut [u8]) -> io::Result<Found<'a>> {
        if offset > 0 && self.last.is_empty() {
            return Ok(Found::Truncated);
        }
        let known = self.last.len().min(buffer.len() / 2);
        let read = loop {
            match self.file.read_at(buffer, offset - known as u64) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                read => break read?,
            }
        };
        let more = read == buffer.len();
        let bytes = buffer.get(..read).unwrap_or_default();
        let Some((known, new)) = bytes.split_at_checked(known) else { return Ok(Found::Truncated) };
        if !self.last.ends_with(known) {
            return Ok(Found::Truncated);
        }
        let remembered = bytes.len().saturating_sub(REMEMBERED);
        self.last = bytes.get(remembered..).unwrap_or_default().to_vec();
        Ok(Found::Bytes(new, more))
    }
}

/// A file from its beginning, wherever its handle stands, which stays there.
pub(super) struct FromStart<'file> {
    file: &'file File,
    offset: u64,
}

impl<'file> FromStart<'file> {
    pub(super) fn of(file: &'file File) -> Self {
        Self { file, offset: 0 }
    }
}

impl Read for FromStart<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.file.read_at(buffer, self.offset)?;
        self.offset += read as u64;
        Ok(read)
    }
}

fn bytes_before(file: &File, offset: u64) -> io::Result<Vec<u8>> {
    let start = offset.saturating_sub(REMEMBERED as u64);
    let mut bytes = vec![0; REMEMBERED.min(usize::try_from(offset).unwrap_or(REMEMBERED))];
    file.read_exact_at(&mut bytes, start)?;
    Ok(bytes)
}
