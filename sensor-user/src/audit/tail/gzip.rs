//! A rotated log file that was compressed: read from its beginning to its end, once. It never grows.

use std::{fs::File, io, io::Read as _, time::SystemTime};

use flate2::read::MultiGzDecoder;

/// The content of a compressed file, from an offset on.
#[derive(Debug)]
pub(super) struct Gzip {
    decoder: MultiGzDecoder<File>,
    /// Bytes of the content that are to be passed over first.
    skip: u64,
    ended: bool,
    /// When it was rotated.
    pub(super) rotated: SystemTime,
}

impl Gzip {
    /// The content from an offset on.
    pub(super) fn at(file: File, offset: u64, rotated: SystemTime) -> Self {
        Self { decoder: MultiGzDecoder::new(file), skip: offset, ended: false, rotated }
    }

    /// The next bytes, none on the way to the offset, and whether there is more. One buffer at a
    /// time, so that nobody waits for long.
    ///
    /// # Errors
    /// It is no such file, or cut, or shorter than the offset; there is nothing more then.
    pub(super) fn read<'a>(&mut self, buffer: &'a mut [u8]) -> io::Result<(&'a [u8], bool)> {
        if self.ended {
            return Ok((&[], false));
        }
        let room = usize::try_from(self.skip).unwrap_or(usize::MAX);
        let room = if room == 0 { buffer.len() } else { room.min(buffer.len()) };
        let read = loop {
            match self.decoder.read(buffer.get_mut(..room).unwrap_or_default()) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                read => break read,
            }
        };
        self.ended = !matches!(read, Ok(1..));
        let read = read?;
        if self.skip == 0 {
            return Ok((buffer.get(..read).unwrap_or_default(), read > 0));
        }
        if read == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        self.skip -= read as u64;
        Ok((&[], true))
    }
}
