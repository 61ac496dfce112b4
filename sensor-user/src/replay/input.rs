//! Opens what is to be replayed: files and standard input, as they are or compressed. Knows
//! nothing of lines. Called by the readers.

use std::{
    fs::File,
    io::{self, BufReader, Chain, Cursor, Read},
    path::{Path, PathBuf},
};

use flate2::read::MultiGzDecoder;
use indicatif::ProgressBar;
use ruzstd::decoding::{
    FrameDecoder,
    errors::{FrameDecoderError, ReadFrameHeaderError},
};

/// What a decoder of `.zst` may look back on: all that `zstd` asks for up to level 19, twice.
const MAX_WINDOW: u64 = 16 << 20;

/// One thing to read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Input {
    /// Standard input, given as `-`.
    Stdin,
    /// A file.
    File(PathBuf),
}

impl Input {
    /// Of an argument.
    pub fn of(path: PathBuf) -> Self {
        if path.as_os_str() == "-" { Self::Stdin } else { Self::File(path) }
    }

    /// How it is called in errors.
    pub fn name(&self) -> String {
        match self {
            Self::Stdin => "standard input".to_owned(),
            Self::File(path) => path.display().to_string(),
        }
    }

    /// Whether it can be read a second time.
    pub fn is_repeatable(&self) -> bool {
        matches!(self, Self::File(path) if is_plain(path))
    }

    /// Its bytes on disk, where that is known before it is read.
    pub fn size(&self) -> Option<u64> {
        match self {
            Self::File(path) if is_plain(path) => Some(path.metadata().ok()?.len()),
            Self::File(_) | Self::Stdin => None,
        }
    }

    /// Its bytes, decompressed where they are compressed, whatever its name; `progress` counts
    /// those on disk.
    ///
    /// # Errors
    /// It cannot be opened or its beginning not be read.
    pub fn open(&self, progress: &ProgressBar) -> io::Result<Box<dyn Read>> {
        match self {
            Self::Stdin => decompressed(progress.wrap_read(io::stdin())),
            Self::File(path) => decompressed(progress.wrap_read(File::open(path)?)),
        }
    }
}

fn is_plain(path: &Path) -> bool {
    path.metadata().is_ok_and(|metadata| metadata.is_file())
}

fn decompressed(mut read: impl Read + 'static) -> io::Result<Box<dyn Read>> {
    let mut head = Vec::new();
    read.by_ref().take(4).read_to_end(&mut head)?;
    let kind = head.clone();
    let all: Chain<_, _> = Cursor::new(head).chain(read);
    Ok(match kind.as_slice() {
        [0x1f, 0x8b, ..] => Box::new(MultiGzDecoder::new(BufReader::new(all))),
        // A frame, or one to be skipped before it.
        [0x28, 0xb5, 0x2f, 0xfd] | [0x50..=0x5f, 0x2a, 0x4d, 0x18] => {
            Box::new(Zstd::new(BufReader::new(all)))
        }
        _ => Box::new(all),
    })
}

/// Decompresses frame after frame.
struct Zstd<R> {
    source: R,
    decoder: FrameDecoder,
    in_frame: bool,
}

impl<R: Read> Zstd<R> {
    fn new(source: R) -> Self {
        let mut decoder = FrameDecoder::new();
        decoder.set_max_window_size(MAX_WINDOW);
        Self { source, decoder, in_frame: false }
    }

    /// Begins the next frame; `false` at the end of the file.
    fn next_frame(&mut self) -> io::Result<bool> {
        let mut head = [0];
        if self.source.read(&mut head)? == 0 {
            return Ok(false);
        }
        match self.decoder.reset(head.chain(&mut self.source)) {
            Ok(()) => self.in_frame = true,
            Err(FrameDecoderError::ReadFrameHeaderError(ReadFrameHeaderError::SkipFrame {
                length,
                ..
            })) => {
                let length = u64::from(length);
                if io::copy(&mut self.source.by_ref().take(length), &mut io::sink())? < length {
                    return Err(io::ErrorKind::UnexpectedEof.into());
                }
            }
            Err(error) => return Err(io::Error::other(error)),
        }
        Ok(true)
    }
}

impl<R: Read> Read for Zstd<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        use ruzstd::decoding::BlockDecodingStrategy::UptoBlocks;
        loop {
            if !self.in_frame {
                if !self.next_frame()? {
                    return Ok(0);
                }
                continue;
            }
            if self.decoder.can_collect() > 0 {
                return self.decoder.read(buffer);
            }
            if self.decoder.is_finished() {
                self.in_frame = false;
                continue;
            }
            self.decoder
                .decode_blocks(&mut self.source, UptoBlocks(1))
                .map_err(io::Error::other)?;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use flate2::{Compression, write::GzEncoder};
    use ruzstd::encoding::{CompressionLevel, compress_to_vec};

    use super::*;

    fn gz(bytes: &[u8]) -> Vec<u8> {
        let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
        encoder.write_all(bytes).unwrap();
        encoder.finish().unwrap()
    }

    fn zst(bytes: &[u8]) -> Vec<u8> {
        compress_to_vec(bytes, CompressionLevel::Fastest)
    }

    fn read(bytes: Vec<u8>) -> io::Result<Vec<u8>> {
        let mut read = Vec::new();
        decompressed(Cursor::new(bytes))?.read_to_end(&mut read)?;
        Ok(read)
    }

    #[test]
    fn whatever_it_is_compressed_with_the_same_bytes_come_out() {
        let text: Vec<u8> = (0..300_000u32).flat_map(|it| (it % 1_009).to_be_bytes()).collect();
        let (front, back) = text.split_at(100_000);
        let skipped = [&[0x52, 0x2a, 0x4d, 0x18, 3, 0, 0, 0][..], b"abc"].concat();
        for (what, bytes) in [
            ("as it is", text.clone()),
            ("gzip", gz(&text)),
            ("gzip in two members", [gz(front), gz(back)].concat()),
            ("zstd", zst(&text)),
            (
                "zstd in two frames, with one to skip",
                [zst(front), skipped.clone(), zst(back)].concat(),
            ),
            ("zstd behind a frame to skip", [skipped, zst(&text)].concat()),
        ] {
            assert!(read(bytes).unwrap() == text, "{what}");
        }
        for bytes in [&b""[..], b"a", b"abc", b"{}\n\n"] {
            assert_eq!(read(bytes.to_vec()).unwrap(), bytes);
        }
    }

    #[test]
    fn what_was_cut_or_damaged_is_an_error_after_what_could_be_read() {
        let text = b"some text\n".repeat(100_000);
        for packed in [gz(&text), zst(&text)] {
            let cut = packed[..packed.len() - 9].to_vec();
            assert!(read(cut).is_err());
            let mut wild = packed;
            let middle = wild.len() / 2;
            wild.truncate(middle);
            wild.extend(b"\xff\xfe\xfd\xfc\xfb".repeat(99));
            assert!(read(wild).is_err());
        }
        assert!(read([0x28, 0xb5, 0x2f, 0xfd].to_vec()).is_err());
        assert!(read([0x1f, 0x8b, 0, 0].to_vec()).is_err());
    }
}
