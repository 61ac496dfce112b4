//! One open log file and how far it is read.
//!
//! Reads a few bytes back each time: if they are gone or are others, the file was truncated or
//! rewritten in place (and may have grown past the old place since). That costs no system call.

use std::{fs::File, io, os::unix::fs::FileExt, time::SystemTime};

use memchr::memrchr;

use super::rotation::FileId;
use crate::audit::{checkpoint::Position, lines::Lines};

/// How many bytes back are compared. Lines may be of one length and of one ending, but their times
/// stand within this, and no two lines have the same ones.
const REMEMBERED: usize = 512;

/// A file being read.
#[derive(Debug)]
pub(super) struct OpenFile {
    file: File,
    id: FileId,
    lines: Lines,
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
}

impl OpenFile {
    /// The file from an offset on.
    pub(super) fn at(file: File, id: FileId, offset: u64) -> Self {
        let last = bytes_before(&file, offset).unwrap_or_default();
        Self { file, id, lines: Lines::new(offset), last }
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

    /// Behind the last complete line.
    pub(super) fn position(&self) -> Position {
        let FileId { device, inode } = self.id;
        Position { device, inode, offset: self.lines.complete() }
    }

    /// Time of the last write.
    pub(super) fn modified(&self) -> Option<SystemTime> {
        self.file.metadata().and_then(|metadata| metadata.modified()).ok()
    }

    /// Bytes that are not read yet.
    pub(super) fn behind(&self) -> u64 {
        let size = self.file.metadata().map_or(0, |metadata| metadata.len());
        size.saturating_sub(self.lines.offset())
    }

    /// Whether the offset it was opened at can be the end of a line of this file. It cannot if the
    /// file was truncated, or is another one that got the inode number of a deleted one.
    pub(super) fn continues(&self) -> bool {
        let offset = self.lines.offset();
        match self.last.last() {
            None => offset == 0,
            // At the very end an unterminated line may have been given up as torn.
            Some(last) => matches!(last, b'\n' | 0) || self.behind() == 0,
        }
    }

    pub(super) fn into_file(self) -> File {
        self.file
    }

    /// Starts over.
    pub(super) fn rewind(&mut self) {
        self.lines = Lines::new(0);
        self.last.clear();
    }

    /// Reads what is new into the buffer.
    pub(super) fn read<'a>(&mut self, buffer: &'a mut [u8]) -> io::Result<Found<'a>> {
        let offset = self.lines.offset();
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

fn bytes_before(file: &File, offset: u64) -> io::Result<Vec<u8>> {
    let start = offset.saturating_sub(REMEMBERED as u64);
    let mut bytes = vec![0; REMEMBERED.min(usize::try_from(offset).unwrap_or(REMEMBERED))];
    file.read_exact_at(&mut bytes, start)?;
    Ok(bytes)
}
