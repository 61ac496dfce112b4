//! Lines that wait on disk until their turn: a busy cluster writes tens of megabytes in the time that a
//! line may be late.
//!
//! They lie in files without a name, each of which is gone when its last line was taken. Used by the
//! replay loop for what memory has no room for.

use std::{
    fs::File,
    io,
    os::unix::fs::FileExt as _,
    path::{Path, PathBuf},
    rc::Rc,
};

use tempfile::{tempfile, tempfile_in};

/// Bytes after which another file begins: so much may stay on disk for one line.
const SEGMENT: u64 = 8 << 20;

/// Writes lines to disk.
#[derive(Debug)]
pub struct Spill {
    folder: Option<PathBuf>,
    segment: Option<(Rc<File>, u64)>,
}

/// A line on disk.
#[derive(Debug)]
pub struct Spilled {
    segment: Rc<File>,
    at: u64,
    length: usize,
}

impl Spill {
    /// Files are made in this folder, or in that of temporary files.
    pub fn new(folder: Option<&Path>) -> Self {
        Self { folder: folder.map(Path::to_owned), segment: None }
    }

    /// Puts a line there.
    ///
    /// # Errors
    /// The disk is full.
    pub fn put(&mut self, line: &[u8]) -> io::Result<Spilled> {
        let (segment, at) = match self.segment.take().filter(|(_, end)| *end < SEGMENT) {
            Some(segment) => segment,
            None => (Rc::new(self.file()?), 0),
        };
        segment.write_all_at(line, at)?;
        self.segment = Some((Rc::clone(&segment), at + line.len() as u64));
        Ok(Spilled { segment, at, length: line.len() })
    }

    fn file(&self) -> io::Result<File> {
        self.folder.as_deref().map_or_else(tempfile, tempfile_in)
    }
}

impl Spilled {
    /// Takes it back.
    ///
    /// # Errors
    /// It cannot be read.
    pub fn take(self) -> io::Result<Box<[u8]>> {
        let mut line = vec![0; self.length].into_boxed_slice();
        self.segment.read_exact_at(&mut line, self.at)?;
        Ok(line)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_come_back_in_any_order_and_leave_nothing_behind() {
        let folder = tempfile::tempdir().unwrap();
        let mut spill = Spill::new(Some(folder.path()));
        // Some of them begin files of their own.
        let lines: Vec<Vec<u8>> = (0_u8..20).map(|it| vec![it; usize::from(it) << 17]).collect();
        let mut put: Vec<_> = lines.iter().map(|line| (line, spill.put(line).unwrap())).collect();
        put.rotate_left(7);
        for (line, spilled) in put.into_iter().rev() {
            assert_eq!(*spilled.take().unwrap(), **line);
        }
        assert_eq!(folder.path().read_dir().unwrap().count(), 0);
    }

    #[test]
    fn a_folder_that_is_gone_is_an_error() {
        let mut spill = Spill::new(Some(Path::new("/nonexistent")));
        assert_eq!(spill.put(b"line").unwrap_err().kind(), io::ErrorKind::NotFound);
    }
}
